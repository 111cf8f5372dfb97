/* test_optim.c: adam_step and sgd_step, and lists of tensors in one call. */
#include "gradcheck.h"

typedef struct optim {
    mc_tensor *param, *m, *v, *master, *grad, *step, *lr, *scale;
    double beta1, beta2, eps, decay, momentum, dampening;
    int decoupled, nesterov;
} optim;

static mc_tensor *number(double x) {
    mc_tensor *t = make_empty(MC_FLOAT32, CONTIGUOUS, SHAPE(1));
    set(t, 0, x);
    return t;
}

static mc_status adam(optim *o) {
    return mc_adam_step(o->param, o->m, o->v, o->master, o->grad, o->step, o->lr, o->scale,
                        o->beta1, o->beta2, o->eps, o->decay, o->decoupled);
}
static mc_status sgd(optim *o) {
    return mc_sgd_step(o->param, o->m, o->master, o->grad, o->step, o->lr, o->scale, o->momentum,
                       o->dampening, o->decay, o->nesterov);
}

/* State in dtype's statistics' dtype; master where asked for, equal to the parameter. */
static optim make_optim(int dtype, int grad_dtype, int layout, int with_master, int ndim,
                        const int64_t *shape) {
    int state = dtype == MC_FLOAT64 ? dtype : MC_FLOAT32;
    optim o = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.125, .momentum = 0.75};
    o.param = make_in(dtype, layout, ndim, shape);
    o.m = make_empty(state, layout, ndim, shape);
    o.v = make_empty(state, layout, ndim, shape);
    CHECK_OK(mc_fill(o.m, 0));
    CHECK_OK(mc_fill(o.v, 0));
    if (with_master) {
        o.master = make_empty(state, layout, ndim, shape);
        CHECK_OK(mc_copy(o.master, o.param));
    }
    o.grad = make_in(grad_dtype, layout, ndim, shape);
    o.step = number(1);
    o.lr = number(0.25); /* exact in float32 */
    o.scale = number(0.5);
    return o;
}

/* One step in double on w[i], m[i], v[i]. */
static void adam_double(const optim *o, double *w, double *m, double *v, const double *grad,
                        int64_t n, int step) {
    for (int64_t i = 0; i < n; i++) {
        double g = 0.5 * grad[i];
        if (o->decoupled)
            w[i] *= 1 - 0.25 * o->decay;
        else
            g += o->decay * w[i];
        m[i] = o->beta1 * m[i] + (1 - o->beta1) * g;
        v[i] = o->beta2 * v[i] + (1 - o->beta2) * g * g;
        double mhat = m[i] / (1 - pow(o->beta1, step)), vhat = v[i] / (1 - pow(o->beta2, step));
        w[i] -= 0.25 * mhat / (sqrt(vhat) + o->eps);
    }
}
static void sgd_double(const optim *o, double *w, double *m, const double *grad, int64_t n,
                       int step) {
    for (int64_t i = 0; i < n; i++) {
        double g = 0.5 * grad[i] + o->decay * w[i];
        if (o->momentum != 0) {
            m[i] = step == 1 ? g : o->momentum * m[i] + (1 - o->dampening) * g;
            g = o->nesterov ? g + o->momentum * m[i] : m[i];
        }
        w[i] -= 0.25 * g;
    }
}

enum { STEPS = 3, MOST = 2100 };

/* Three steps against the formula in double. With a 16-bit parameter and no master, each step
 * rounds the parameter, in the double too. */
static void follow(optim *o, int is_adam) {
    static double w[MOST], m[MOST], v[MOST], g[MOST];
    int64_t n = mc_tensor_numel(o->param);
    int dtype = mc_tensor_dtype(o->param);
    double tol = dtype == MC_FLOAT64 ? 1e-13 : 1e-5;
    int same = 1, rounded = 1;
    for (int64_t i = 0; i < n; i++) {
        w[i] = get(o->param, i);
        m[i] = v[i] = 0;
        g[i] = get(o->grad, i);
    }
    for (int step = 1; step <= STEPS; step++) {
        set(o->step, 0, step);
        CHECK_OK(is_adam ? adam(o) : sgd(o));
        if (is_adam)
            adam_double(o, w, m, v, g, n, step);
        else
            sgd_double(o, w, m, g, n, step);
        for (int64_t i = 0; i < n; i++) {
            double at = get(o->master ? o->master : o->param, i);
            double slack =
                o->master || dtype == MC_FLOAT64 || dtype == MC_FLOAT32 ? 0 : rounding(dtype) * 4;
            if (!(fabs(at - w[i]) <= tol + slack)) same = 0;
            if (!o->master) w[i] = at;
            float f = (float)at;
            uint16_t h = 0;
            if (o->master && dtype != MC_FLOAT32) {
                CHECK(mc_convert(&h, dtype, &f, MC_FLOAT32, 1) == MC_OK);
                check_passed--;
                if (memcmp(&h, address(o->param, i), 2) != 0) rounded = 0;
            }
            if (is_adam || o->momentum != 0)
                if (!(fabs(get(o->m, i) - m[i]) <= tol * 4)) same = 0;
            if (is_adam && !(fabs(get(o->v, i) - v[i]) <= tol)) same = 0;
        }
    }
    CHECK(same);
    CHECK(rounded);
}

static void steps_follow_the_formula(void) {
    TITLE("three steps of Adam, AdamW and SGD follow the formulas in every dtype, layout and size");
    static const int64_t sizes[] = {0, 1, 15, 1023, 1024, 1025, 2100};
    for (int k = 0; k < FLOATS * LAYOUTS * 7; k++) {
        int dtype = floats[k % FLOATS], layout = k / FLOATS % LAYOUTS;
        int64_t n = sizes[k / FLOATS / LAYOUTS];
        int small = dtype == MC_FLOAT16 || dtype == MC_BFLOAT16;
        for (int kind = 0; kind < 8; kind++) {
            int grad_dtype = kind & 1 && small ? MC_FLOAT32 : dtype;
            int64_t shape[3] = {n % 5 ? 1 : 5, n % 5 ? n : n / 5, 1};
            optim o = make_optim(dtype, grad_dtype, layout, small && kind & 2, 3, shape);
            o.decoupled = kind >> 2;
            follow(&o, 1);
            drop_all();
        }
        for (int kind = 0; kind < 4; kind++) {
            optim o = make_optim(dtype, dtype, layout, small && kind & 1, 1, &n);
            o.nesterov = kind == 1;
            o.dampening = kind == 2 ? 0.5 : 0;
            if (kind == 3) o.momentum = 0, o.m = NULL;
            follow(&o, 0);
            drop_all();
        }
    }
}

static void stale_momentum(void) {
    TITLE("step 1 of SGD ignores what stands in the momentum buffer, even NaN");
    optim o = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, SHAPE(40));
    CHECK_OK(mc_fill(o.m, (double)NAN));
    double want = get(o.param, 3) - 0.25 * (0.5 * get(o.grad, 3) + 0.125 * get(o.param, 3));
    CHECK_OK(sgd(&o));
    CHECK_NEAR(get(o.param, 3), want, 1e-6);
    drop_all();
}

static void scale_that_is_not_finite(void) {
    TITLE("a grad_scale that is not finite skips the update; none is 1; NaN gradients show");
    static const double bad[] = {(double)INFINITY, -(double)INFINITY, (double)NAN};
    for (int i = 0; i < 3; i++) {
        optim o = make_optim(MC_BFLOAT16, MC_BFLOAT16, CONTIGUOUS, 1, SHAPE(40));
        mc_tensor *param = cast(o.param, MC_BFLOAT16), *m = cast(o.m, MC_FLOAT32);
        set(o.scale, 0, bad[i]);
        CHECK_OK(adam(&o));
        CHECK_OK(sgd(&o));
        CHECK_SAME(o.param, param);
        CHECK_SAME(o.m, m);
        CHECK_SAME(o.v, m);
        drop_all();
    }
    optim a = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, SHAPE(40)), b = a;
    b.param = cast(a.param, MC_FLOAT32), b.m = cast(a.m, MC_FLOAT32);
    b.v = cast(a.v, MC_FLOAT32);
    set(a.scale, 0, 1);
    b.scale = NULL;
    set(a.grad, 7, NAN);
    CHECK_OK(adam(&a));
    CHECK_OK(adam(&b));
    CHECK_SAME(a.param, b.param);
    CHECK(isnan(get(a.param, 7)) && !isnan(get(a.param, 8)));
    drop_all();
}

static void threads_and_views(void) {
    TITLE("steps give the same bits with 1 and 2 threads and on strided views");
    int before = mc_get_num_threads();
    optim a = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, SHAPE(230, 301)), b = a, c = a;
    b.param = cast(a.param, MC_FLOAT32), b.m = cast(a.m, MC_FLOAT32);
    b.v = cast(a.v, MC_FLOAT32);
    c.param = make_empty(MC_FLOAT32, REVERSED, SHAPE(230, 301));
    c.m = make_empty(MC_FLOAT32, PADDED, SHAPE(230, 301));
    c.v = make_empty(MC_FLOAT32, SPREAD, SHAPE(230, 301));
    CHECK_OK(mc_copy(c.param, a.param));
    CHECK_OK(mc_fill(c.m, 0));
    CHECK_OK(mc_fill(c.v, 0));
    CHECK_OK(mc_set_num_threads(1));
    CHECK_OK(adam(&a));
    CHECK_OK(mc_set_num_threads(2));
    CHECK_OK(adam(&b));
    CHECK_OK(adam(&c));
    CHECK_SAME(a.param, b.param);
    CHECK_SAME(a.v, b.v);
    CHECK_SAME(a.param, c.param);
    CHECK_SAME(a.m, c.m);
    CHECK_SAME(a.v, c.v);
    CHECK_OK(mc_set_num_threads(before));
    drop_all();
}

static void versions(void) {
    TITLE("a step bumps the versions of what it writes and of nothing else");
    optim o = make_optim(MC_BFLOAT16, MC_FLOAT32, CONTIGUOUS, 1, SHAPE(4));
    mc_tensor *written[4] = {o.param, o.m, o.v, o.master};
    int64_t was[4], grad = mc_tensor_version(o.grad);
    for (int i = 0; i < 4; i++) was[i] = mc_tensor_version(written[i]);
    CHECK_OK(adam(&o));
    for (int i = 0; i < 4; i++) CHECK(mc_tensor_version(written[i]) > was[i]);
    CHECK(mc_tensor_version(o.grad) == grad);
    drop_all();
}

static void scalar_parameter(void) {
    TITLE("a parameter without axes steps too");
    optim o = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, 0, NULL);
    follow(&o, 1);
    drop_all();
}

static void errors(void) {
    TITLE("optimizer steps refuse wrong arguments and say why");
    optim o = make_optim(MC_BFLOAT16, MC_BFLOAT16, CONTIGUOUS, 1, SHAPE(4)), w = o;
    w.grad = make(MC_BFLOAT16, SHAPE(5));
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step");
    CHECK_STATUS(adam(&w), MC_EINVAL, "[5]");
    w = o, w.grad = make(MC_FLOAT16, SHAPE(4));
    CHECK_STATUS(adam(&w), MC_EINVAL,
                 "adam_step: grad is float16, wanted the bfloat16 parameter's dtype or float32");
    w = o, w.m = make(MC_FLOAT16, SHAPE(4));
    CHECK_STATUS(adam(&w), MC_EINVAL,
                 "adam_step: exp_avg is float16, float32 is wanted for a bfloat16 parameter");
    w = o, w.m = make(MC_BFLOAT16, SHAPE(4));
    CHECK_STATUS(
        adam(&w), MC_EINVAL,
        "adam_step: exp_avg is bfloat16 and exp_avg_sq is float32; tensors are not promoted");
    w = o, w.master = make(MC_FLOAT64, SHAPE(4));
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: master is float64");
    w = o, w.step = make(MC_FLOAT32, SHAPE(2));
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: step is float32 [2], wanted one float32 element");
    w = o, w.lr = make(MC_FLOAT64, SHAPE(1));
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: lr is float64 [1]");
    w = o, w.beta1 = 1;
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: beta1 is 1, wanted 0 to below 1");
    w = o, w.eps = (double)NAN;
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: eps is nan");
    w = o, w.m = NULL;
    CHECK_STATUS(sgd(&w), MC_EINVAL, "sgd_step: momentum is 0.75 and there is no momentum buffer");
    w = o, w.nesterov = 1, w.dampening = 0.5;
    CHECK_STATUS(
        sgd(&w), MC_EINVAL,
        "sgd_step: nesterov wants momentum above 0 and dampening 0, they are 0.75 and 0.5");
    w = o, w.v = empty();
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step");
    drop_all();
}

/* Adam's moments in the parameter's dtype: as in float32, then rounded once. */
static void moments_in_bfloat16(void) {
    TITLE("moments in bfloat16 are computed in float32 and rounded once, with a master or without");
    for (int kind = 0; kind < 4; kind++) {
        int grad = kind & 1 ? MC_FLOAT32 : MC_BFLOAT16, layout = kind & 2 ? PADDED : CONTIGUOUS;
        optim wide = make_optim(MC_BFLOAT16, grad, CONTIGUOUS, kind & 1, SHAPE(3, 700));
        optim narrow = wide;
        narrow.param = make_empty(MC_BFLOAT16, layout, SHAPE(3, 700));
        narrow.m = make_empty(MC_BFLOAT16, layout, SHAPE(3, 700));
        narrow.v = make_empty(MC_BFLOAT16, layout, SHAPE(3, 700));
        if (wide.master) narrow.master = cast(wide.master, MC_FLOAT32);
        CHECK_OK(mc_copy(narrow.param, wide.param));
        CHECK_OK(mc_fill(narrow.m, 0));
        CHECK_OK(mc_fill(narrow.v, 0));
        for (int step = 1; step <= STEPS; step++) {
            set(wide.step, 0, step);
            CHECK_OK(adam(&wide));
            CHECK_OK(adam(&narrow));
            CHECK_SAME(narrow.param, wide.param);
            CHECK_SAME(narrow.m, cast(wide.m, MC_BFLOAT16));
            CHECK_SAME(narrow.v, cast(wide.v, MC_BFLOAT16));
            CHECK_OK(mc_copy(wide.m, narrow.m)); /* go on from what was rounded */
            CHECK_OK(mc_copy(wide.v, narrow.v));
        }
        drop_all();
    }
}

enum { MANY = 5 };
typedef struct lists {
    mc_tensor *param[MANY], *m[MANY], *v[MANY], *master[MANY], *grad[MANY];
} lists;

/* Tensors of different sizes, dtypes and layouts; some have a master. */
static lists make_lists(optim *one) {
    static const int64_t sizes[MANY] = {5, 0, 2100, 1, 300};
    lists l;
    for (int i = 0; i < MANY; i++) {
        int dtype = i == 2 ? MC_FLOAT32 : MC_BFLOAT16;
        optim o = make_optim(dtype, dtype, i == 4 ? SPREAD : CONTIGUOUS, i % 3 == 0, 1, &sizes[i]);
        l.param[i] = o.param, l.m[i] = o.m, l.v[i] = o.v, l.master[i] = o.master;
        l.grad[i] = o.grad;
        if (i == 0) *one = o;
    }
    return l;
}
static mc_status adam_many(const lists *l, const optim *o) {
    return mc_adam_step_many(MANY, l->param, l->m, l->v, l->master, l->grad, o->step, o->lr,
                             o->scale, o->beta1, o->beta2, o->eps, o->decay, o->decoupled);
}

static void many_steps(void) {
    TITLE("many steps of Adam in one call are those steps one by one");
    optim one, other;
    made_seed = 3;
    lists a = make_lists(&one);
    made_seed = 3;
    lists b = make_lists(&other);
    int64_t version = mc_tensor_version(a.param[2]);
    CHECK_OK(adam_many(&a, &one));
    CHECK(mc_tensor_version(a.param[2]) == version + 1);
    for (int i = 0; i < MANY; i++) {
        optim o = one;
        o.param = b.param[i], o.m = b.m[i], o.v = b.v[i], o.master = b.master[i];
        o.grad = b.grad[i];
        CHECK_OK(adam(&o));
        CHECK_SAME(a.param[i], b.param[i]);
        CHECK_SAME(a.m[i], b.m[i]);
        CHECK_SAME(a.v[i], b.v[i]);
        if (a.master[i]) CHECK_SAME(a.master[i], b.master[i]);
    }
    CHECK_OK(mc_adam_step_many(0, NULL, NULL, NULL, NULL, NULL, one.step, one.lr, NULL, 0.9, 0.9, 0,
                               0, 0));
    a.grad[2] = a.grad[0];
    b = a;
    b.param[3] = make(MC_BFLOAT16, SHAPE(1));
    mc_tensor *before = cast(a.param[0], MC_BFLOAT16);
    CHECK_STATUS(adam_many(&a, &one), MC_EINVAL,
                 "adam_step: parameter 3: grad is [5], wanted [2100]");
    CHECK_SAME(a.param[0], before);
    CHECK(mc_tensor_version(a.param[2]) == version + 1);
    drop_all();
}

static void the_same_twice(void) {
    TITLE("a parameter that stands in a list twice takes two steps, in order");
    optim o = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, SHAPE(9)), p = o;
    p.param = cast(o.param, MC_FLOAT32), p.m = cast(o.m, MC_FLOAT32), p.v = cast(o.v, MC_FLOAT32);
    mc_tensor *param[2] = {o.param, o.param}, *m[2] = {o.m, o.m}, *v[2] = {o.v, o.v};
    mc_tensor *grad[2] = {o.grad, o.grad};
    CHECK_OK(mc_adam_step_many(2, param, m, v, NULL, grad, o.step, o.lr, o.scale, o.beta1, o.beta2,
                               o.eps, o.decay, 0));
    CHECK_OK(adam(&p));
    CHECK_OK(adam(&p));
    CHECK_SAME(o.param, p.param);
    drop_all();
}

static void norms_and_factors(void) {
    TITLE("sums of squares and factors over a list are those of its tensors in order");
    for (int k = 0; k < FLOATS; k++) {
        mc_tensor *x[3] = {make_in(floats[k], CONTIGUOUS, SHAPE(40, 60)), make(floats[k], SHAPE(0)),
                           make_in(floats[k], REVERSED, SHAPE(7, 3))};
        mc_tensor *acc = make_empty(MC_FLOAT64, CONTIGUOUS, SHAPE(1)), *want;
        CHECK_OK(mc_fill(acc, 0.5));
        want = cast(acc, MC_FLOAT64);
        CHECK_OK(mc_sum_squares_many(acc, 3, x));
        for (int i = 0; i < 3; i++) CHECK_OK(mc_sum_squares(want, x[i]));
        CHECK_SAME(acc, want);
        mc_tensor *factor = number(0.3), *y[3];
        for (int i = 0; i < 3; i++) y[i] = cast(x[i], MC_FLOAT64);
        CHECK_OK(mc_scale_many(3, x, factor));
        for (int i = 0; i < 3; i++) {
            mc_tensor *product = empty();
            CHECK_OK(mc_mul(product, y[i], cast(factor, MC_FLOAT64)));
            if (floats[k] == MC_FLOAT32)
                CHECK_CLOSE(x[i], product, 1); /* in double the product is not rounded twice */
            else
                CHECK_SAME(x[i], cast(product, floats[k]));
        }
        CHECK_OK(mc_scale_many(3, x, make(floats[k], SHAPE(1))));
        drop_all();
    }
    mc_tensor *x[2] = {make(MC_FLOAT32, SHAPE(3)), make(MC_FLOAT32, SHAPE(4))};
    CHECK_STATUS(
        mc_scale_many(2, x, make(MC_FLOAT64, SHAPE(1))), MC_EINVAL,
        "scale: tensor 1: factor is float64 [1], wanted one element of float32 or x's float32");
    CHECK_STATUS(mc_scale_many(-1, x, x[0]), MC_EINVAL, "scale: n is -1, wanted 0 or more");
    x[1] = make_int(MC_INT32, 1, (int64_t[]){3});
    CHECK_STATUS(mc_sum_squares_many(make(MC_FLOAT64, SHAPE(1)), 2, x), MC_EINVAL,
                 "sum_squares: tensor 2: x is int32; wanted float64, float32, float16 or bfloat16");
    CHECK_STATUS(mc_sum_squares_many(x[0], 1, x), MC_EINVAL, "sum_squares: tensor 1: acc is [3]");
    drop_all();
}

int main(void) {
    steps_follow_the_formula();
    stale_momentum();
    scale_that_is_not_finite();
    threads_and_views();
    versions();
    scalar_parameter();
    moments_in_bfloat16();
    many_steps();
    the_same_twice();
    norms_and_factors();
    errors();
    return check_report();
}
