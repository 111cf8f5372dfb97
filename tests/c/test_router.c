/* test_router.c: router_topk and the losses that balance the load. */
#include "gradcheck.h"

typedef struct router {
    mc_tensor *logits, *bias, *weights, *ids, *scores, *dweights, *dscores, *dlogits;
    int64_t k, groups, group_topk;
    int score;
    double scale;
} router;

static mc_status forward(router *r) {
    return mc_router_topk(r->weights, r->ids, r->scores, r->logits, r->bias, r->k, r->score,
                          r->scale, r->groups, r->group_topk);
}
static mc_status backward(router *r) {
    return mc_router_topk_backward(r->dlogits, r->dweights, r->dscores, r->scores, r->weights,
                                   r->ids, r->logits, r->score, r->scale);
}

static int stat_dtype(int dtype) {
    return dtype == MC_FLOAT64 ? dtype : MC_FLOAT32;
}

static router make_router(int dtype, int layout, int64_t T, int64_t E, int64_t k, int score) {
    router r = {.k = k, .groups = 1, .group_topk = 1, .score = score, .scale = 1.5};
    r.logits = make_in(dtype, layout, SHAPE(T, E));
    for (int64_t i = 0; i < T * E; i++) set(r.logits, i, 3 * get(r.logits, i));
    r.weights = empty(), r.ids = empty(), r.scores = empty(), r.dlogits = empty();
    r.dweights = make_in(stat_dtype(dtype), layout, SHAPE(T, k));
    r.dscores = make_in(stat_dtype(dtype), layout, SHAPE(T, E));
    return r;
}

/* The definition for one row in double, from the scores and logits in x: ids by repeated search. */
enum { MOST = 64 };
static int before(double a, double b) {
    return a > b || (isnan(b) && !isnan(a));
}
static int64_t best_of(const double *keys, int64_t n, const int *barred) {
    int64_t best = -1;
    for (int64_t e = 0; e < n; e++)
        if (!barred[e] && (best < 0 || before(keys[e], keys[best]))) best = e;
    return best;
}
static void route(const router *r, const double *x, int64_t E, int64_t *ids, double *weights,
                  double *scores) {
    double keys[MOST], base[MOST], group_keys[MOST], sum = 0, most = -INFINITY;
    int barred[MOST] = {0}, group_barred[MOST] = {0}, out[MOST];
    for (int64_t e = 0; e < E; e++) most = fmax(most, x[e]);
    for (int64_t e = 0; e < E; e++) sum += exp(x[e] - most);
    for (int64_t e = 0; e < E; e++) {
        scores[e] = r->score == MC_SCORE_SIGMOID ? 1 / (1 + exp(-x[e])) : exp(x[e] - most) / sum;
        base[e] = r->score == MC_SCORE_SOFTMAX_POST ? x[e] : scores[e];
        keys[e] = base[e] + (r->bias ? get(r->bias, e) : 0);
    }
    int64_t size = E / r->groups, each = r->k / r->group_topk;
    if (r->groups > 1) {
        for (int64_t g = 0; g < r->groups; g++) {
            group_keys[g] = 0;
            memcpy(out, barred, sizeof out);
            for (int64_t j = 0; j < each; j++) {
                int64_t e = best_of(keys + g * size, size, out + g * size);
                out[g * size + e] = 1;
                group_keys[g] += keys[g * size + e];
            }
        }
        for (int64_t e = 0; e < E; e++) barred[e] = 1;
        for (int64_t i = 0; i < r->group_topk; i++) {
            int64_t g = best_of(group_keys, r->groups, group_barred);
            group_barred[g] = 1;
            for (int64_t e = g * size; e < (g + 1) * size; e++) barred[e] = 0;
        }
    }
    sum = 0;
    for (int64_t j = 0; j < r->k; j++) {
        ids[j] = best_of(keys, E, barred);
        barred[ids[j]] = 1;
        weights[j] = base[ids[j]];
        if (r->score == MC_SCORE_SOFTMAX_POST) weights[j] = exp(weights[j] - most);
        sum += weights[j];
    }
    for (int64_t j = 0; j < r->k; j++) {
        if (r->score == MC_SCORE_SOFTMAX_POST) weights[j] /= sum;
        if (r->score == MC_SCORE_SIGMOID && r->k > 1) weights[j] /= sum + 1e-20;
        weights[j] *= r->scale;
    }
}

/* Everything against the definition. */
static void check_router(router *r, double tol) {
    int64_t T = mc_tensor_shape(r->logits)[0], E = mc_tensor_shape(r->logits)[1], k = r->k;
    int same_ids = 1, same_weights = 1, same_scores = 1;
    CHECK_OK(forward(r));
    for (int64_t t = 0; t < T; t++) {
        double x[MOST], weights[MOST], scores[MOST];
        int64_t ids[MOST];
        for (int64_t e = 0; e < E; e++) x[e] = get(r->logits, t * E + e);
        route(r, x, E, ids, weights, scores);
        for (int64_t j = 0; j < k; j++) {
            if ((int64_t)get(r->ids, t * k + j) != ids[j]) same_ids = 0;
            if (!(fabs(get(r->weights, t * k + j) - weights[j]) <= tol)) same_weights = 0;
        }
        for (int64_t e = 0; e < E; e++)
            if (!(fabs(get(r->scores, t * E + e) - scores[e]) <= tol)) same_scores = 0;
    }
    CHECK(same_ids);
    CHECK(same_weights);
    CHECK(same_scores);
    CHECK(mc_tensor_dtype(r->ids) == MC_INT32);
    CHECK(mc_tensor_dtype(r->weights) == stat_dtype(mc_tensor_dtype(r->logits)));
}

static void choice_is_the_definition(void) {
    TITLE("router_topk is its definition for every score function, dtype, layout, k and bias");
    static const int64_t experts[] = {1, 2, 8, 33, 60}, ks[] = {1, 2, 8, 16, 33};
    for (int n = 0; n < FLOATS * LAYOUTS * 3 * 2; n++) {
        int dtype = floats[n % FLOATS], layout = n / FLOATS % LAYOUTS;
        int score = n / FLOATS / LAYOUTS % 3, biased = n / FLOATS / LAYOUTS / 3;
        for (int i = 0; i < 25; i++) {
            int64_t E = experts[i / 5], k = ks[i % 5];
            if (k > E) continue;
            router r = make_router(dtype, layout, 9, E, k, score);
            if (biased) r.bias = make_in(stat_dtype(dtype), layout, SHAPE(E));
            check_router(&r, dtype == MC_FLOAT64 ? 1e-14 : 1e-6);
            drop_all();
        }
    }
    for (int score = 0; score < 3; score++) {
        router r = make_router(MC_FLOAT32, CONTIGUOUS, 0, 8, 2, score);
        CHECK_OK(forward(&r));
        CHECK_OK(backward(&r));
        drop_all();
    }
}

static void groups(void) {
    TITLE("with groups only the members of the best groups are chosen");
    static const int64_t cases[][4] = {/* E, k, groups, group_topk */
                                       {32, 8, 8, 4}, {32, 8, 8, 8}, {32, 4, 8, 1}, {16, 2, 4, 2},
                                       {12, 6, 3, 2}, {8, 1, 8, 1},  {6, 6, 2, 2}};
    for (int n = 0; n < 7 * 3 * 2; n++) {
        const int64_t *c = cases[n % 7];
        router r = make_router(MC_FLOAT64, CONTIGUOUS, 40, c[0], c[1], n / 7 % 3);
        r.groups = c[2], r.group_topk = c[3];
        if (n / 21) r.bias = make(MC_FLOAT64, SHAPE(c[0]));
        check_router(&r, 1e-14);
        drop_all();
    }
}

static void ties(void) {
    TITLE("equal keys go to the lowest expert id, with groups too");
    for (int score = 0; score < 3; score++) {
        for (int grouped = 0; grouped < 2; grouped++) {
            router r = make_router(MC_BFLOAT16, CONTIGUOUS, 1, 16, 4, score);
            if (grouped) r.groups = 4, r.group_topk = 2;
            CHECK_OK(mc_fill(r.logits, 0.25));
            CHECK_OK(forward(&r));
            for (int64_t j = 0; j < 4; j++) CHECK((int64_t)get(r.ids, j) == j);
            set(r.logits, 15, 1);
            CHECK_OK(forward(&r));
            CHECK(get(r.ids, 0) == 15 && get(r.ids, 1) == 0 && get(r.ids, 2) == 1);
            drop_all();
        }
    }
}

static void nan_logits(void) {
    TITLE("NaN logits rank last and never give an id twice or one out of range");
    for (int n = 0; n < 3 * 3 * 17; n++) {
        router r = make_router(MC_FLOAT32, CONTIGUOUS, 1, 16, 6, n % 3);
        if (n / 3 % 3 == 1) r.groups = 4, r.group_topk = 2;
        if (n / 3 % 3 == 2) r.groups = 8, r.group_topk = 6;
        int64_t nans = n / 9;
        for (int64_t i = 0; i < nans; i++) set(r.logits, i * 5 % 16, NAN);
        CHECK_OK(forward(&r));
        int seen[16] = {0}, fine = 1;
        for (int64_t j = 0; j < 6; j++) {
            int64_t id = (int64_t)get(r.ids, j);
            if (id < 0 || id >= 16 || seen[id]++) fine = 0;
            /* softmax over all spreads a NaN to every score; the others keep it to its expert */
            if (r.score != MC_SCORE_SOFTMAX_PRE && r.groups == 1 && nans <= 10 &&
                isnan(get(r.logits, id)))
                fine = 0;
        }
        CHECK(fine);
        CHECK_OK(backward(&r));
        drop_all();
    }
}

static void infinities(void) {
    TITLE("experts masked with -inf are chosen last and get weight 0");
    for (int score = 0; score < 3; score++) {
        router r = make_router(MC_FLOAT32, CONTIGUOUS, 1, 4, 3, score);
        set(r.logits, 0, -INFINITY), set(r.logits, 2, -INFINITY);
        CHECK_OK(forward(&r));
        CHECK(get(r.ids, 2) == 0 && get(r.weights, 2) == 0 && get(r.weights, 0) > 0);
        drop_all();
    }
}

typedef struct routed {
    router r;
    int use_weights, use_scores;
} routed;

static double routed_loss(void *ctx) {
    routed *c = ctx;
    CHECK_OK(forward(&c->r));
    check_passed--;
    return (c->use_weights ? weigh(c->r.weights, c->r.dweights) : 0) +
           (c->use_scores ? weigh(c->r.scores, c->r.dscores) : 0);
}

static void gradients(void) {
    TITLE("gradients of the router agree with central differences");
    for (int n = 0; n < 3 * 3 * 3; n++) {
        static const int64_t ks[] = {1, 3, 7};
        int64_t k = ks[n % 3];
        routed c = {make_router(MC_FLOAT64, CONTIGUOUS, 5, 7, k, n / 3 % 3), n / 9 != 1,
                    n / 9 != 0};
        CHECK_OK(forward(&c.r));
        router b = c.r;
        if (!c.use_weights) b.dweights = NULL;
        if (!c.use_scores) b.dscores = NULL;
        CHECK_OK(backward(&b));
        GRADCHECK(routed_loss, &c, c.r.logits, b.dlogits);
        drop_all();
    }
}

static void gradient_dtypes(void) {
    TITLE("router gradients of every dtype and layout agree with float64, and both may be absent");
    for (int n = 0; n < FLOATS * LAYOUTS * 3; n++) {
        int dtype = floats[n % FLOATS], score = n / FLOATS / LAYOUTS;
        router r = make_router(dtype, n / FLOATS % LAYOUTS, 13, 33, 4, score), e = r;
        e.logits = cast(r.logits, MC_FLOAT64);
        e.dweights = cast(r.dweights, MC_FLOAT64), e.dscores = cast(r.dscores, MC_FLOAT64);
        e.weights = empty(), e.ids = empty(), e.scores = empty(), e.dlogits = empty();
        CHECK_OK(forward(&r));
        CHECK_OK(forward(&e));
        CHECK_SAME(r.ids, e.ids);
        CHECK_OK(backward(&r));
        CHECK_OK(backward(&e));
        CHECK_CLOSE_TO(r.dlogits, e.dlogits, 32, 1);
        r.dweights = r.dscores = NULL;
        CHECK_OK(backward(&r));
        CHECK(largest(r.dlogits) == 0);
        drop_all();
    }
}

static void in_place(void) {
    TITLE("scores may be written over float32 logits");
    for (int score = 0; score < 3; score++) {
        router a = make_router(MC_FLOAT32, CONTIGUOUS, 3, 8, 2, score), b = a;
        b.weights = empty(), b.ids = empty();
        CHECK_OK(forward(&a));
        b.scores = b.logits = cast(a.logits, MC_FLOAT32);
        CHECK_OK(forward(&b));
        CHECK_SAME(a.scores, b.scores);
        CHECK_SAME(a.weights, b.weights);
        CHECK_SAME(a.ids, b.ids);
        drop_all();
    }
}

static void router_errors(void) {
    TITLE("router_topk refuses wrong arguments and says why");
    router r = make_router(MC_FLOAT32, CONTIGUOUS, 2, 8, 2, 0), w = r;
    w.k = 9;
    CHECK_STATUS(forward(&w), MC_EINVAL, "router_topk: k is 9, wanted 1 to 8 (the experts)");
    w = r, w.k = 0;
    CHECK_STATUS(forward(&w), MC_EINVAL, "router_topk: k is 0, wanted 1 to 8");
    w = r, w.score = 3;
    CHECK_STATUS(forward(&w), MC_EINVAL, "router_topk: score function 3 is unknown");
    w = r, w.groups = 3;
    CHECK_STATUS(forward(&w), MC_EINVAL, "router_topk: 8 experts do not split into 3 equal groups");
    w = r, w.groups = 4, w.group_topk = 5;
    CHECK_STATUS(forward(&w), MC_EINVAL,
                 "router_topk: group_topk is 5, wanted 1 to 4 (the groups)");
    w = r, w.groups = 4, w.group_topk = 2, w.k = 3;
    CHECK_STATUS(forward(&w), MC_EINVAL, "router_topk: k is 3, wanted a multiple of group_topk 2");
    w = r, w.groups = 4, w.group_topk = 1, w.k = 3;
    CHECK_STATUS(forward(&w), MC_EINVAL,
                 "router_topk: k / group_topk is 3, a group has only 2 experts");
    w = r, w.bias = make(MC_FLOAT32, SHAPE(7));
    CHECK_STATUS(forward(&w), MC_EINVAL, "[7]");
    w = r, w.bias = make(MC_FLOAT64, SHAPE(8));
    CHECK_STATUS(forward(&w), MC_EINVAL,
                 "router_topk: bias is float64, float32 is wanted for float32 logits");
    w = r, w.logits = make(MC_FLOAT32, SHAPE(8));
    CHECK_STATUS(forward(&w), MC_EINVAL, "router_topk: logits is [8], wanted [T, E]");
    CHECK(!mc_tensor_defined(r.weights) && !mc_tensor_defined(r.ids));
    CHECK_OK(forward(&r));
    set(r.ids, 3, 8);
    CHECK_STATUS(backward(&r), MC_EINVAL,
                 "router_topk_backward: ids[1, 1] is 8, legal are 0 to 7 (0-based)");
    CHECK(!mc_tensor_defined(r.dlogits));
    drop_all();
}

/* -- balancing losses -------------------------------------------------------------------------- */

typedef struct balance {
    mc_tensor *x, *counts, *loss, *lse, *dloss, *dx;
} balance;

static balance make_balance(int dtype, int layout, int64_t T, int64_t E) {
    balance b = {.loss = empty(), .lse = empty(), .dx = empty()};
    b.x = make_in(dtype, layout, SHAPE(T, E));
    for (int64_t i = 0; i < T * E; i++) set(b.x, i, get(b.x, i) + 1.25);
    b.counts = make_empty(MC_INT64, layout, SHAPE(E));
    for (int64_t e = 0; e < E; e++) set(b.counts, e, (double)(e * e % 7));
    b.dloss = make_empty(stat_dtype(dtype), CONTIGUOUS, 0, NULL);
    set(b.dloss, 0, 0.75);
    return b;
}

static double aux_loss(void *ctx) {
    balance *b = ctx;
    CHECK_OK(mc_moe_aux_loss(b->loss, b->x, b->counts, 0.5));
    check_passed--;
    return 0.75 * get(b->loss, 0);
}
static double z_loss(void *ctx) {
    balance *b = ctx;
    CHECK_OK(mc_moe_z_loss(b->loss, b->lse, b->x, 0.5));
    check_passed--;
    return 0.75 * get(b->loss, 0);
}

static void losses_are_the_formulas(void) {
    TITLE("the balancing losses in float64 are the formulas, and so are their gradients");
    int64_t T = 5, E = 6;
    balance b = make_balance(MC_FLOAT64, CONTIGUOUS, T, E);
    double total = 0, want = 0, z = 0;
    for (int64_t e = 0; e < E; e++) total += get(b.counts, e);
    for (int64_t t = 0; t < T; t++) {
        double sum = 0, exps = 0;
        for (int64_t e = 0; e < E; e++) {
            sum += get(b.x, t * E + e);
            exps += exp(get(b.x, t * E + e));
        }
        for (int64_t e = 0; e < E; e++)
            want += 0.5 * 6 * get(b.counts, e) / total * get(b.x, t * E + e) / sum / 5;
        z += 0.5 * log(exps) * log(exps) / 5;
    }
    CHECK_NEAR(aux_loss(&b) / 0.75, want, 1e-14);
    CHECK(mc_tensor_ndim(b.loss) == 0);
    CHECK_OK(mc_moe_aux_loss_backward(b.dx, b.dloss, b.x, b.counts, 0.5));
    GRADCHECK(aux_loss, &b, b.x, b.dx);
    CHECK_NEAR(z_loss(&b) / 0.75, z, 1e-14);
    CHECK_OK(mc_moe_z_loss_backward(b.dx, b.dloss, b.x, b.lse, 0.5));
    GRADCHECK(z_loss, &b, b.x, b.dx);
    drop_all();
}

static void balanced_load(void) {
    TITLE("the auxiliary loss is the coefficient at balance and 0 when nothing is routed");
    balance b = make_balance(MC_FLOAT32, CONTIGUOUS, 50, 8);
    CHECK_OK(mc_fill(b.counts, 3));
    CHECK_NEAR(aux_loss(&b) / 0.75, 0.5, 1e-6);
    CHECK_OK(mc_fill(b.counts, 0));
    CHECK_NEAR(aux_loss(&b), 0, 0);
    CHECK_OK(mc_moe_aux_loss_backward(b.dx, b.dloss, b.x, b.counts, 0.5));
    CHECK(largest(b.dx) == 0);
    CHECK_OK(mc_fill(b.counts, 3));
    CHECK_OK(mc_fill(b.x, 0));
    CHECK_NEAR(aux_loss(&b), 0, 0);
    drop_all();
}

static void loss_dtypes(void) {
    TITLE("balancing losses of every dtype, layout and size agree with float64");
    static const int64_t rows[] = {0, 1, 63, 64, 65, 200}, experts[] = {1, 33};
    for (int n = 0; n < FLOATS * LAYOUTS * 12; n++) {
        int dtype = floats[n % FLOATS];
        int64_t T = rows[n / FLOATS / LAYOUTS % 6], E = experts[n / FLOATS / LAYOUTS / 6];
        balance b = make_balance(dtype, n / FLOATS % LAYOUTS, T, E), e = b;
        e.x = cast(b.x, MC_FLOAT64), e.dloss = cast(b.dloss, MC_FLOAT64);
        e.loss = empty(), e.lse = empty(), e.dx = empty();
        aux_loss(&b), aux_loss(&e);
        CHECK_CLOSE_TO(b.loss, e.loss, 16, 1);
        CHECK_OK(mc_moe_aux_loss_backward(b.dx, b.dloss, b.x, b.counts, 0.5));
        CHECK_OK(mc_moe_aux_loss_backward(e.dx, e.dloss, e.x, e.counts, 0.5));
        CHECK_CLOSE_TO(b.dx, e.dx, 16, 1);
        b.loss = empty(), e.loss = empty(), b.dx = empty(), e.dx = empty();
        z_loss(&b), z_loss(&e);
        CHECK_CLOSE(b.loss, e.loss, 16);
        CHECK_OK(mc_moe_z_loss_backward(b.dx, b.dloss, b.x, b.lse, 0.5));
        CHECK_OK(mc_moe_z_loss_backward(e.dx, e.dloss, e.x, e.lse, 0.5));
        CHECK_CLOSE_TO(b.dx, e.dx, 32, 1);
        drop_all();
    }
}

static void threads(void) {
    TITLE("router and losses give the same bits with 1 and 2 threads");
    int count = mc_get_num_threads();
    router a = make_router(MC_FLOAT32, CONTIGUOUS, 1200, 60, 4, 0), b = a;
    balance p = make_balance(MC_FLOAT32, CONTIGUOUS, 1200, 60), q = p;
    b.weights = empty(), b.ids = empty(), b.dlogits = empty(), b.scores = empty();
    q.loss = empty(), q.lse = empty(), q.dx = empty();
    CHECK_OK(mc_set_num_threads(1));
    CHECK_OK(forward(&a));
    CHECK_OK(backward(&a));
    aux_loss(&p);
    CHECK_OK(mc_set_num_threads(2));
    CHECK_OK(forward(&b));
    CHECK_OK(backward(&b));
    aux_loss(&q);
    CHECK_SAME(a.ids, b.ids);
    CHECK_SAME(a.weights, b.weights);
    CHECK_SAME(a.dlogits, b.dlogits);
    CHECK_SAME(p.loss, q.loss);
    CHECK_OK(mc_set_num_threads(count));
    drop_all();
}

static void loss_errors(void) {
    TITLE("balancing losses refuse wrong arguments and say why");
    balance b = make_balance(MC_FLOAT32, CONTIGUOUS, 3, 4);
    mc_tensor *seven = make_int(MC_INT64, 7, (int64_t[7]){0}), *line = make(MC_FLOAT32, SHAPE(3));
    CHECK_STATUS(mc_moe_aux_loss(b.loss, b.x, seven, 1), MC_EINVAL, "[7]");
    CHECK_STATUS(mc_moe_aux_loss(b.loss, b.x, make(MC_FLOAT32, SHAPE(4)), 1), MC_EINVAL, "float32");
    CHECK_STATUS(mc_moe_aux_loss(b.loss, line, b.counts, 1), MC_EINVAL,
                 "moe_aux_loss: scores is [3], wanted [T, E]");
    CHECK_STATUS(mc_moe_aux_loss_backward(b.dx, line, b.x, b.counts, 1), MC_EINVAL, "[3]");
    CHECK_STATUS(mc_moe_z_loss(b.loss, b.lse, line, 1), MC_EINVAL,
                 "moe_z_loss: logits is [3], wanted [T, E]");
    CHECK_STATUS(mc_moe_z_loss_backward(b.dx, b.dloss, b.x, seven, 1), MC_EINVAL, "[7]");
    CHECK(!mc_tensor_defined(b.loss) && !mc_tensor_defined(b.dx));
    drop_all();
}

int main(void) {
    choice_is_the_definition();
    groups();
    ties();
    nan_logits();
    infinities();
    gradients();
    gradient_dtypes();
    in_place();
    router_errors();
    losses_are_the_formulas();
    balanced_load();
    loss_dtypes();
    threads();
    loss_errors();
    return check_report();
}
