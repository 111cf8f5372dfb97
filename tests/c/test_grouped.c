/* test_grouped.c: the passes of the grouped linear layer against their definition in float64. */
#include "cpu/gemm.h"
#include "gradcheck.h"

enum { MAX_GROUPS = 65 };

/* One layer's tensors; rows beyond the splits' sum hold NaN in x and dy: nothing may read them. */
typedef struct layer {
    int64_t groups, rows, used, k, n;
    mc_tensor *x, *w, *b, *dy, *splits;
} layer;

static layer make_layer(int dtype, int layout, int64_t groups, const int64_t *splits, int64_t tail,
                        int64_t k, int64_t n, int index) {
    layer l = {.groups = groups, .k = k, .n = n};
    for (int64_t g = 0; g < groups; g++) l.used += splits[g];
    l.rows = l.used + tail;
    l.x = make_in(dtype, layout, SHAPE(l.rows, k));
    l.dy = make_in(dtype, layout, SHAPE(l.rows, n));
    l.w = make_in(dtype, layout, SHAPE(groups, n, k));
    l.b = make_in(dtype, layout, SHAPE(groups, n));
    l.splits = make_int(index, groups, splits);
    for (int64_t i = l.used * k; i < l.rows * k; i++) set(l.x, i, NAN);
    for (int64_t i = l.used * n; i < l.rows * n; i++) set(l.dy, i, NAN);
    return l;
}
static layer exact(const layer *l) {
    layer e = *l;
    e.x = cast(l->x, MC_FLOAT64);
    e.dy = cast(l->dy, MC_FLOAT64);
    e.w = cast(l->w, MC_FLOAT64);
    e.b = cast(l->b, MC_FLOAT64);
    return e;
}

/* y, dx, dw, db of a layer; those given are written in place */
typedef struct passes {
    mc_tensor *y, *dx, *dw, *db;
} passes;

static passes fresh(void) {
    return (passes){empty(), empty(), empty(), empty()};
}

static void run(const layer *l, passes *p, int accumulate) {
    CHECK_OK(mc_grouped_linear(p->y, l->x, l->w, l->b, l->splits));
    CHECK_OK(mc_grouped_linear_dgrad(p->dx, l->dy, l->w, l->splits));
    CHECK_OK(mc_grouped_linear_wgrad(p->dw, l->dy, l->x, l->splits, accumulate));
    CHECK_OK(mc_grouped_linear_bias_grad(p->db, l->dy, l->splits, accumulate));
}

/* Sums of k products of numbers in [-1, 1): partial sums and their k roundings grow as sqrt(k). */
#define CHECK_SUMS(got, want, k) \
    CHECK_CLOSE_TO(got, want, sqrt((double)(k)) + 4, sqrt((double)(k)) + 1)

static void check_layer(const layer *l) {
    layer e = exact(l);
    passes want = fresh(), fast = fresh(), plain = fresh();
    mc_cpu_set_plain(1);
    run(&e, &want, 0);
    run(l, &plain, 0);
    mc_cpu_set_plain(0);
    run(l, &fast, 0);
    const passes *both[2] = {&fast, &plain};
    for (int i = 0; i < 2; i++) {
        CHECK_SUMS(both[i]->y, want.y, l->k);
        CHECK_SUMS(both[i]->dx, want.dx, l->n);
        CHECK_SUMS(both[i]->dw, want.dw, l->used + 1);
        CHECK_SUMS(both[i]->db, want.db, l->used + 1);
    }
}

/* -- by hand ----------------------------------------------------------------------------------- */

static void by_hand(void) {
    TITLE("two groups, one of them empty, by hand in every dtype");
    static const int64_t splits[3] = {1, 0, 2};
    for (int plain = 0; plain < 2; plain++)
        for (int f = 0; f < FLOATS; f++) {
            layer l = make_layer(floats[f], CONTIGUOUS, 3, splits, 1, 2, 2, MC_INT64);
            for (int i = 0; i < 6; i++) set(l.x, i, i + 1), set(l.dy, i, 1 - i);
            for (int i = 0; i < 12; i++) set(l.w, i, i);
            for (int i = 0; i < 6; i++) set(l.b, i, 10 * i);
            passes p = fresh();
            mc_cpu_set_plain(plain);
            run(&l, &p, 0);
            mc_cpu_set_plain(0);
            static const double y[8] = {2, 18, 100, 124, 134, 166, 0, 0};
            static const double dx[8] = {0, 1, -28, -31, -64, -71, 0, 0};
            static const double dw[12] = {1, 2, 0, 0, 0, 0, 0, 0, -18, -22, -26, -32};
            static const double db[6] = {1, 0, 0, 0, -4, -6};
            for (int i = 0; i < 8; i++) CHECK(get(p.y, i) == y[i] && get(p.dx, i) == dx[i]);
            for (int i = 0; i < 12; i++) CHECK(get(p.dw, i) == dw[i]);
            for (int i = 0; i < 6; i++) CHECK(get(p.db, i) == db[i]);
            drop_all();
        }
}

/* -- against the definition -------------------------------------------------------------------- */

static void split_patterns(void) {
    TITLE("zero splits anywhere, one group with all rows, and padding rows agree with the loops");
    static const int64_t cases[][8] = {
        {5, 7, 3, 1, 9, 2, 4, 6},  {0, 7, 3, 1, 9, 2, 4, 6},  {5, 7, 0, 0, 9, 2, 4, 6},
        {5, 7, 3, 1, 9, 2, 4, 0},  {0, 0, 0, 0, 0, 0, 0, 0},  {0, 0, 0, 40, 0, 0, 0, 0},
        {40, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 40}, {1, 1, 1, 1, 1, 1, 1, 1}};
    for (int f = 0; f < FLOATS; f++)
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
            for (int tail = 0; tail < 6; tail += 5) {
                layer l = make_layer(floats[f], CONTIGUOUS, 8, cases[i], tail, 11, 9,
                                     i % 2 ? MC_INT32 : MC_INT64);
                check_layer(&l);
                drop_all();
            }
}

static void group_counts(void) {
    TITLE("1, 3 and 65 groups agree with the loops");
    int64_t splits[MAX_GROUPS];
    for (int64_t g = 0; g < MAX_GROUPS; g++) splits[g] = g * 7 % 5;
    splits[0] = 3;
    for (int f = 0; f < FLOATS; f++)
        for (int i = 0; i < 3; i++) {
            static const int64_t groups[3] = {1, 3, MAX_GROUPS};
            layer l = make_layer(floats[f], CONTIGUOUS, groups[i], splits, 2, 10, 12, MC_INT32);
            check_layer(&l);
            drop_all();
        }
}

static void sizes(void) {
    TITLE("sizes 1, odd and either side of every tile agree with the loops");
    static const int64_t cases[][5] = {
        /* splits of 3 groups, k, n */
        {1, 2, 1, 1, 1},      {15, 16, 17, 1, 5},  {31, 33, 65, 7, 64},  {127, 128, 129, 17, 16},
        {0, 190, 3, 16, 65},  {256, 1, 193, 5, 9}, {511, 513, 0, 3, 4},  {1030, 0, 17, 4, 3},
        {3, 20, 4, 300, 9},   {3, 1, 4, 9, 530},   {10, 0, 18, 1050, 3}, {2, 9, 0, 3, 1100},
        {4, 140, 0, 128, 130}};
    for (int f = 0; f < FLOATS; f++)
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            const int64_t *c = cases[i];
            layer l = make_layer(floats[f], CONTIGUOUS, 3, c, 0, c[3], c[4], MC_INT64);
            check_layer(&l);
            drop_all();
        }
}

static void layouts(void) {
    TITLE("operands, outputs and splits may lie in memory in any way");
    static const int64_t splits[3] = {5, 0, 20};
    for (int f = 0; f < FLOATS; f++)
        for (int layout = 0; layout < LAYOUTS; layout++)
            for (int out = 0; out < LAYOUTS; out++)
                for (int accumulate = 0; accumulate < 2; accumulate++) {
                    layer l = make_layer(floats[f], layout, 3, splits, 0, 11, 9, MC_INT64);
                    layer e = exact(&l);
                    passes p = {make_in(floats[f], out, SHAPE(l.rows, l.n)),
                                make_in(floats[f], out, SHAPE(l.rows, l.k)),
                                make_in(floats[f], out, SHAPE(3, l.n, l.k)),
                                make_in(floats[f], out, SHAPE(3, l.n))};
                    passes want = {empty(), empty(), cast(p.dw, MC_FLOAT64),
                                   cast(p.db, MC_FLOAT64)};
                    mc_tensor *spread = make_empty(MC_INT64, SPREAD, SHAPE(3));
                    for (int i = 0; i < 3; i++) set(spread, i, (double)splits[i]);
                    l.splits = spread;
                    mc_cpu_set_plain(1);
                    run(&e, &want, accumulate);
                    mc_cpu_set_plain(0);
                    run(&l, &p, accumulate);
                    CHECK_SUMS(p.y, want.y, l.k);
                    CHECK_SUMS(p.dx, want.dx, l.n);
                    CHECK_SUMS(p.dw, want.dw, l.rows);
                    CHECK_SUMS(p.db, want.db, l.rows);
                    drop_all();
                }
}

static void without_bias(void) {
    TITLE("without a bias nothing is added");
    static const int64_t splits[2] = {4, 3};
    for (int f = 0; f < FLOATS; f++) {
        layer l = make_layer(floats[f], CONTIGUOUS, 2, splits, 0, 6, 5, MC_INT32);
        mc_tensor *zero = make(floats[f], SHAPE(2, 5)), *y = empty(), *want = empty();
        CHECK_OK(mc_fill(zero, 0));
        CHECK_OK(mc_grouped_linear(y, l.x, l.w, NULL, l.splits));
        CHECK_OK(mc_grouped_linear(want, l.x, l.w, zero, l.splits));
        CHECK_CLOSE(y, cast(want, MC_FLOAT64), 0);
        drop_all();
    }
}

static void no_features(void) {
    TITLE("a layer without in features gives its bias, and one without groups gives zeros");
    static const int64_t splits[2] = {2, 1};
    for (int f = 0; f < FLOATS; f++) {
        layer l = make_layer(floats[f], CONTIGUOUS, 2, splits, 1, 0, 3, MC_INT32);
        passes p = fresh();
        run(&l, &p, 0);
        for (int64_t i = 0; i < 12; i++) {
            /* rows 0 and 1 are group 0's, row 2 is group 1's, row 3 nobody's */
            double want = i < 6 ? get(l.b, i % 3) : i < 9 ? get(l.b, i - 3) : 0;
            CHECK(get(p.y, i) == want);
        }
        CHECK(mc_tensor_numel(p.dx) == 0 && mc_tensor_numel(p.dw) == 0);
        layer none = make_layer(floats[f], CONTIGUOUS, 0, splits, 2, 3, 3, MC_INT32);
        passes q = fresh();
        run(&none, &q, 0);
        for (int64_t i = 0; i < 6; i++) CHECK(get(q.y, i) == 0 && get(q.dx, i) == 0);
        CHECK(mc_tensor_numel(q.dw) == 0 && mc_tensor_numel(q.db) == 0);
        drop_all();
    }
}

/* -- outputs that were given ------------------------------------------------------------------- */

static void given_rows_stay(void) {
    TITLE("rows beyond the splits keep what a given buffer held, and are zero in a fresh one");
    static const int64_t splits[3] = {64, 96, 80};
    for (int plain = 0; plain < 2; plain++)
        for (int f = 0; f < FLOATS; f++) {
            layer l = make_layer(floats[f], CONTIGUOUS, 3, splits, 80, 6, 7, MC_INT64);
            passes given = {make(floats[f], SHAPE(l.rows, 7)), make(floats[f], SHAPE(l.rows, 6)),
                            empty(), empty()};
            passes made_here = fresh();
            CHECK_OK(mc_fill(given.y, 7));
            CHECK_OK(mc_fill(given.dx, 7));
            mc_cpu_set_plain(plain);
            run(&l, &given, 0);
            run(&l, &made_here, 0);
            mc_cpu_set_plain(0);
            int kept = 1, zeroed = 1, equal = 1;
            for (int64_t i = 0; i < l.rows * 7; i++) {
                if (i < l.used * 7) {
                    equal &= get(given.y, i) == get(made_here.y, i);
                } else {
                    kept &= get(given.y, i) == 7;
                    zeroed &= get(made_here.y, i) == 0;
                }
            }
            for (int64_t i = l.used * 6; i < l.rows * 6; i++) {
                kept &= get(given.dx, i) == 7;
                zeroed &= get(made_here.dx, i) == 0;
            }
            CHECK(kept && zeroed && equal);
            drop_all();
        }
}

static void accumulation(void) {
    TITLE("wgrad and bias grad add to a given gradient or overwrite it, NaN included");
    static const int64_t splits[4] = {140, 0, 5, 700};
    for (int main_grad = 0; main_grad < 2; main_grad++)
        for (int f = main_grad ? 2 : 0; f < FLOATS; f++)
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                int dtype = main_grad ? MC_FLOAT32 : floats[f];
                layer l = make_layer(floats[f], CONTIGUOUS, 4, splits, 3, 5, 6, MC_INT32);
                layer e = exact(&l);
                passes p = fresh(), want = fresh();
                p.dw = make(dtype, SHAPE(4, 6, 5));
                p.db = make(dtype, SHAPE(4, 6));
                want.dw = cast(p.dw, MC_FLOAT64);
                want.db = cast(p.db, MC_FLOAT64);
                if (!accumulate) {
                    CHECK_OK(mc_fill(p.dw, NAN));
                    CHECK_OK(mc_fill(p.db, NAN));
                }
                mc_tensor *before = cast(p.dw, dtype);
                mc_cpu_set_plain(1);
                run(&e, &want, accumulate);
                mc_cpu_set_plain(0);
                run(&l, &p, accumulate);
                CHECK(mc_tensor_dtype(p.dw) == dtype);
                CHECK_SUMS(p.dw, want.dw, l.used);
                CHECK_SUMS(p.db, want.db, l.used);
                /* group 1 has no rows: exact zeros, or exactly what was there */
                for (int64_t i = 30; i < 60; i++)
                    CHECK(get(p.dw, i) == (accumulate ? get(before, i) : 0));
                drop_all();
            }
}

static void bias_before_rounding(void) {
    TITLE("the bias is added before the one rounding");
    static const int64_t splits[1] = {1};
    for (int plain = 0; plain < 2; plain++)
        for (int f = 2; f < FLOATS; f++) {
            /* sum = 1 + spacing / 2, a tie that would round to 1; the bias decides it upwards */
            double spacing = 2 * rounding(floats[f]);
            layer l = make_layer(floats[f], CONTIGUOUS, 1, splits, 0, 2, 1, MC_INT64);
            set(l.x, 0, 1), set(l.x, 1, spacing / 2);
            set(l.w, 0, 1), set(l.w, 1, 1);
            set(l.b, 0, spacing / 2);
            mc_tensor *y = empty();
            mc_cpu_set_plain(plain);
            CHECK_OK(mc_grouped_linear(y, l.x, l.w, l.b, l.splits));
            mc_cpu_set_plain(0);
            CHECK(get(y, 0) == 1 + spacing);
            drop_all();
        }
}

static void nan_stays_in_its_row(void) {
    TITLE("a NaN in a row spoils that row of y and its group's weight gradient, nothing else");
    static const int64_t splits[2] = {20, 21};
    for (int f = 0; f < FLOATS; f++) {
        layer l = make_layer(floats[f], CONTIGUOUS, 2, splits, 0, 6, 5, MC_INT64);
        set(l.x, 19 * 6 + 2, NAN);
        passes p = fresh();
        run(&l, &p, 0);
        int right = 1;
        for (int64_t i = 0; i < 41 * 5; i++) right &= !isnan(get(p.y, i)) == (i / 5 != 19);
        for (int64_t i = 0; i < 60; i++) right &= !isnan(get(p.dw, i)) == !(i < 30 && i % 6 == 2);
        for (int64_t i = 0; i < 41 * 6; i++) right &= !isnan(get(p.dx, i));
        CHECK(right);
        drop_all();
    }
}

/* -- gradients, repetition --------------------------------------------------------------------- */

static double loss(void *context) {
    layer *l = context;
    mc_tensor *y = mc_tensor_new();
    CHECK_OK(mc_grouped_linear(y, l->x, l->w, l->b, l->splits));
    double sum = weigh(y, l->dy);
    mc_tensor_free(y);
    return sum;
}

static void gradients(void) {
    TITLE("the gradients are those of the forward pass");
    static const int64_t splits[3] = {3, 0, 2};
    layer l = make_layer(MC_FLOAT64, CONTIGUOUS, 3, splits, 0, 4, 3, MC_INT64);
    passes p = fresh();
    run(&l, &p, 0);
    GRADCHECK(loss, &l, l.x, p.dx);
    GRADCHECK(loss, &l, l.w, p.dw);
    GRADCHECK(loss, &l, l.b, p.db);
    drop_all();
}

static void repeats(void) {
    TITLE("a repeated pass gives the same bits, with several threads and a skewed split");
    static const int64_t splits[5] = {300, 7, 0, 40, 90};
    int threads = mc_get_num_threads();
    CHECK_OK(mc_set_num_threads(3));
    for (int f = 0; f < FLOATS; f++) {
        layer l = make_layer(floats[f], CONTIGUOUS, 5, splits, 10, 70, 90, MC_INT64);
        passes first = fresh();
        run(&l, &first, 0);
        for (int i = 0; i < 3; i++) {
            passes again = fresh();
            run(&l, &again, 0);
            CHECK_SAME(again.y, first.y);
            CHECK_SAME(again.dx, first.dx);
            CHECK_SAME(again.dw, first.dw);
            CHECK_SAME(again.db, first.db);
        }
        drop_all();
    }
    CHECK_OK(mc_set_num_threads(threads));
}

static void nothing_made_after_warm_up(void) {
    TITLE("after one step no split makes a new product in the library");
    enum { GROUPS = 6, ROWS = 900 };
    for (int main_grad = 0; main_grad < 2; main_grad++)
        for (int f = 0; f < FLOATS; f++) {
            int64_t splits[GROUPS] = {1};
            int64_t created = 0;
            for (int step = 0; step < 12; step++) {
                int64_t left = ROWS;
                for (int g = 0; g < GROUPS && step > 0; g++) {
                    splits[g] = (int64_t)((next_number() + 1) / 2 * (double)left);
                    if (step % 4 == 3 && g == 2) splits[g] = left;
                    left -= splits[g];
                }
                layer l = make_layer(MC_FLOAT32, CONTIGUOUS, GROUPS, splits,
                                     step > 0 ? left : ROWS - 1, 40, 72, MC_INT64);
                mc_tensor **narrowed[] = {&l.x, &l.w, &l.b, &l.dy};
                for (int i = 0; i < 4; i++) {
                    mc_tensor *t = empty();
                    CHECK_OK(mc_empty(t, floats[f], 0, mc_tensor_ndim(*narrowed[i]),
                                      mc_tensor_shape(*narrowed[i])));
                    CHECK_OK(mc_copy(t, *narrowed[i]));
                    *narrowed[i] = t;
                }
                passes p = fresh();
                if (main_grad && f >= 2) p.dw = make(MC_FLOAT32, SHAPE(GROUPS, 72, 40));
                run(&l, &p, 0);
                if (step == 0)
                    created = mci_gemm_created();
                else
                    CHECK(mci_gemm_created() == created);
                drop_all();
            }
            if (floats[f] == MC_BFLOAT16 && mci_gemm_bf16_native()) CHECK(created > 0);
        }
}

/* -- errors ------------------------------------------------------------------------------------ */

static void bad_splits(void) {
    TITLE("bad splits are named with their place and value, and nothing is written");
    static const int64_t negative[4] = {2, 3, 4, -1}, many[4] = {30, 30, 30, 30};
    static const int64_t huge[4] = {INT64_MAX, INT64_MAX, 1, 1}, fine[4] = {1, 2, 3, 4};
    for (int plain = 0; plain < 2; plain++) {
        mc_cpu_set_plain(plain);
        layer l = make_layer(MC_FLOAT32, CONTIGUOUS, 4, fine, 90, 3, 2, MC_INT64);
        mc_tensor *y = make(MC_FLOAT32, SHAPE(100, 2)), *dx = make(MC_FLOAT32, SHAPE(100, 3));
        mc_tensor *dw = make(MC_FLOAT32, SHAPE(4, 2, 3)), *db = make(MC_FLOAT32, SHAPE(4, 2));
        mc_tensor *y0 = cast(y, MC_FLOAT32), *dx0 = cast(dx, MC_FLOAT32);
        mc_tensor *dw0 = cast(dw, MC_FLOAT32), *db0 = cast(db, MC_FLOAT32);
        l.splits = make_int(MC_INT32, 4, negative);
        CHECK_STATUS(mc_grouped_linear(y, l.x, l.w, l.b, l.splits), MC_EINVAL,
                     "grouped_linear: m_splits[3] is -1, must be 0 or more");
        CHECK_STATUS(mc_grouped_linear_dgrad(dx, l.dy, l.w, l.splits), MC_EINVAL,
                     "grouped_linear_dgrad: m_splits[3] is -1, must be 0 or more");
        CHECK_STATUS(mc_grouped_linear_wgrad(dw, l.dy, l.x, l.splits, 1), MC_EINVAL,
                     "grouped_linear_wgrad: m_splits[3] is -1, must be 0 or more");
        CHECK_STATUS(mc_grouped_linear_bias_grad(db, l.dy, l.splits, 0), MC_EINVAL,
                     "grouped_linear_bias_grad: m_splits[3] is -1, must be 0 or more");
        l.splits = make_int(MC_INT64, 4, many);
        CHECK_STATUS(mc_grouped_linear(y, l.x, l.w, l.b, l.splits), MC_EINVAL,
                     "grouped_linear: m_splits sum to 120, x has 100 rows");
        CHECK_STATUS(mc_grouped_linear_dgrad(dx, l.dy, l.w, l.splits), MC_EINVAL,
                     "grouped_linear_dgrad: m_splits sum to 120, dy has 100 rows");
        CHECK_STATUS(mc_grouped_linear_wgrad(dw, l.dy, l.x, l.splits, 0), MC_EINVAL,
                     "grouped_linear_wgrad: m_splits sum to 120, dy has 100 rows");
        CHECK_STATUS(mc_grouped_linear_bias_grad(db, l.dy, l.splits, 1), MC_EINVAL,
                     "grouped_linear_bias_grad: m_splits sum to 120, dy has 100 rows");
        l.splits = make_int(MC_INT64, 4, huge);
        CHECK_STATUS(mc_grouped_linear(y, l.x, l.w, l.b, l.splits), MC_EINVAL,
                     "grouped_linear: m_splits sum to 9223372036854775807, x has 100 rows");
        mc_tensor *none = empty();
        CHECK_STATUS(mc_grouped_linear(none, l.x, l.w, l.b, l.splits), MC_EINVAL, "m_splits sum");
        CHECK(!mc_tensor_defined(none));
        CHECK_SAME(y, y0);
        CHECK_SAME(dx, dx0);
        CHECK_SAME(dw, dw0);
        CHECK_SAME(db, db0);
        mc_cpu_set_plain(0);
        drop_all();
    }
}

static void bad_shapes(void) {
    TITLE("wrong shapes, dtypes and counts are named");
    static const int64_t splits[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    layer l = make_layer(MC_FLOAT32, CONTIGUOUS, 8, splits, 0, 3, 2, MC_INT64);
    mc_tensor *y = empty(), *seven = make_int(MC_INT64, 7, splits);
    mc_tensor *wide = make(MC_FLOAT32, SHAPE(8, 4)), *x16 = make(MC_BFLOAT16, SHAPE(8, 3));
    CHECK_STATUS(mc_grouped_linear(y, l.x, l.w, l.b, seven), MC_EINVAL,
                 "grouped_linear: m_splits has 7 entries, the layer has 8 groups");
    CHECK_STATUS(mc_grouped_linear_dgrad(y, l.dy, l.w, seven), MC_EINVAL,
                 "grouped_linear_dgrad: m_splits has 7 entries, the layer has 8 groups");
    CHECK_STATUS(mc_grouped_linear_wgrad(make(MC_FLOAT32, SHAPE(8, 2, 3)), l.dy, l.x, seven, 0),
                 MC_EINVAL, "grouped_linear_wgrad: m_splits has 7 entries, the layer has 8 groups");
    CHECK_STATUS(mc_grouped_linear(y, l.x, l.w, l.b, make(MC_FLOAT32, SHAPE(8))), MC_EINVAL,
                 "grouped_linear: m_splits is float32; wanted int32 or int64");
    CHECK_STATUS(mc_grouped_linear(y, l.x, l.w, l.b, make(MC_INT32, SHAPE(8, 1))), MC_EINVAL,
                 "grouped_linear: m_splits is [8, 1], wanted one axis");
    CHECK_STATUS(mc_grouped_linear(y, wide, l.w, l.b, l.splits), MC_EINVAL,
                 "grouped_linear: x is [8, 4], the layer wants rows of 3");
    CHECK_STATUS(mc_grouped_linear(y, seven, l.w, l.b, l.splits), MC_EINVAL,
                 "grouped_linear: x is int64");
    CHECK_STATUS(mc_grouped_linear(y, l.w, l.w, l.b, l.splits), MC_EINVAL,
                 "grouped_linear: x is [8, 2, 3], wanted 2 axes: rows and features");
    CHECK_STATUS(mc_grouped_linear(y, x16, l.w, l.b, l.splits), MC_EINVAL,
                 "grouped_linear: x is bfloat16 and weight is float32");
    CHECK_STATUS(mc_grouped_linear(y, l.x, l.b, l.b, l.splits), MC_EINVAL,
                 "grouped_linear: weight is [8, 2], wanted 3 axes");
    CHECK_STATUS(mc_grouped_linear(y, l.x, l.w, l.x, l.splits), MC_EINVAL,
                 "grouped_linear: bias is [8, 3], wanted [8, 2]");
    CHECK_STATUS(mc_grouped_linear(wide, l.x, l.w, l.b, l.splits), MC_EINVAL,
                 "grouped_linear: the output given is [8, 4], the result is [8, 2]");
    CHECK_STATUS(mc_grouped_linear_wgrad(y, l.dy, make(MC_FLOAT32, SHAPE(9, 3)), l.splits, 0),
                 MC_EINVAL, "grouped_linear_wgrad: dy has 8 rows, x has 9");
    CHECK_STATUS(mc_grouped_linear_wgrad(y, l.dy, l.x, l.splits, 1), MC_EINVAL,
                 "grouped_linear_wgrad: accumulate adds to dw, and none was given");
    CHECK_STATUS(mc_grouped_linear_bias_grad(y, l.dy, l.splits, 1), MC_EINVAL,
                 "grouped_linear_bias_grad: accumulate adds to db, and none was given");
    CHECK_STATUS(mc_grouped_linear_wgrad(make(MC_BFLOAT16, SHAPE(8, 2, 3)), l.dy, l.x, l.splits, 0),
                 MC_EINVAL,
                 "grouped_linear_wgrad: the output given is bfloat16, the result is float32");
    mc_tensor *square = make(MC_FLOAT32, SHAPE(1, 3, 3)), *x = make(MC_FLOAT32, SHAPE(4, 3));
    CHECK_STATUS(mc_grouped_linear(x, x, square, NULL, make_int(MC_INT64, 1, splits)), MC_EINVAL,
                 "grouped_linear: the output given overlaps operand 1; clone the operand first");
    CHECK(!mc_tensor_defined(y));
    drop_all();
}

static void offsets(void) {
    TITLE("offsets are the running sum, beyond 2^31 too, and bad sizes are named");
    static const int64_t dims[4] = {3, 0, INT64_C(3000000000), 5};
    static const int64_t want[5] = {0, 3, 3, INT64_C(3000000003), INT64_C(3000000008)};
    static const int64_t negative[3] = {1, -2, 3}, huge[2] = {INT64_MAX, 1};
    mc_tensor *o = empty(), *empty_dims = make_int(MC_INT32, 0, dims);
    CHECK_OK(mc_grouped_offsets(o, make_int(MC_INT64, 4, dims)));
    CHECK(mc_tensor_dtype(o) == MC_INT64 && mc_tensor_numel(o) == 5);
    for (int i = 0; i < 5; i++) CHECK(((int64_t *)mc_tensor_data(o))[i] == want[i]);
    mc_tensor_release(o);
    CHECK_OK(mc_grouped_offsets(o, make_int(MC_INT32, 2, dims)));
    for (int i = 0; i < 3; i++) CHECK(((int64_t *)mc_tensor_data(o))[i] == want[i]);
    mc_tensor_release(o);
    CHECK_OK(mc_grouped_offsets(o, empty_dims));
    CHECK(mc_tensor_numel(o) == 1 && ((int64_t *)mc_tensor_data(o))[0] == 0);
    mc_tensor *none = empty();
    CHECK_STATUS(mc_grouped_offsets(none, make_int(MC_INT32, 3, negative)), MC_EINVAL,
                 "grouped_offsets: first_dims[1] is -2, must be 0 or more");
    CHECK_STATUS(mc_grouped_offsets(none, make_int(MC_INT64, 2, huge)), MC_EINVAL,
                 "grouped_offsets: first_dims sum to more than 2^63 - 1");
    CHECK_STATUS(mc_grouped_offsets(none, make(MC_FLOAT32, SHAPE(3))), MC_EINVAL,
                 "grouped_offsets: first_dims is float32");
    CHECK(!mc_tensor_defined(none));
    drop_all();
}

/* The last group's weight lies beyond element 2^31. Only its pages are ever touched, so 4 GiB of
 * addresses do, which the sanitizers would fill. */
static void large_offsets(void) {
#ifndef MASCON_SANITIZE
    TITLE("a weight of more than 2^31 elements is found");
    enum { GROUPS = 4097, K = 1 << 19 };
    static int64_t splits[GROUPS];
    splits[GROUPS - 1] = 1;
    mc_tensor *weight = empty(), *last = empty(),
              *x = make_empty(MC_BFLOAT16, CONTIGUOUS, SHAPE(1, K));
    mc_tensor *rows = make_int(MC_INT64, GROUPS, splits), *y = empty(), *dx = empty();
    if (mc_empty(weight, MC_BFLOAT16, 0, SHAPE(GROUPS, 1, K)) == MC_ENOMEM) {
        printf("not tried, too little memory: %s\n", check_title);
        return drop_all();
    }
    CHECK_OK(mc_select(last, weight, 0, GROUPS - 1));
    CHECK_OK(mc_fill(last, 0.5));
    CHECK_OK(mc_fill(x, 1));
    CHECK_OK(mc_grouped_linear(y, x, weight, NULL, rows));
    CHECK(get(y, 0) == K / 2);
    CHECK_OK(mc_grouped_linear_dgrad(dx, y, weight, rows));
    CHECK(get(dx, 0) == K / 4 && get(dx, K - 1) == K / 4);
    drop_all();
#endif
}

int main(void) {
    by_hand();
    split_patterns();
    group_counts();
    sizes();
    layouts();
    without_bias();
    no_features();
    given_rows_stay();
    accumulation();
    bias_before_rounding();
    nan_stays_in_its_row();
    gradients();
    repeats();
    nothing_made_after_warm_up();
    bad_splits();
    bad_shapes();
    offsets();
    large_offsets();
    return check_report();
}
