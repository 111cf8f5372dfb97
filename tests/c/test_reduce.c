/* test_reduce.c: reductions, scans, top k and softmax, against plain loops in float64. */
#include "gradcheck.h"

static const int numbers[] = {MC_FLOAT64, MC_FLOAT32, MC_FLOAT16, MC_BFLOAT16,
                              MC_INT64,   MC_INT32,   MC_UINT8,   MC_BOOL};
enum { NUMBERS = 8 };

typedef mc_status (*reduce_op)(mc_tensor *, const mc_tensor *, int, const int64_t *, int);

/* Whole numbers: sums of them are exact in every dtype used here. */
static mc_tensor *whole_numbers(int dtype, int layout, int ndim, const int64_t *shape) {
    mc_tensor *t = make_empty(dtype, layout, ndim, shape);
    for (int64_t i = 0; i < mc_tensor_numel(t); i++)
        set(t, i, dtype == MC_BOOL ? i % 3 == 0 : fabs(floor(next_number() * 4)));
    return t;
}

static void every_set_of_axes(void) {
    TITLE("sum, mean, amax and amin are right over every set of axes, dtype and layout");
    static const int64_t shape[3] = {3, 4, 5};
    for (int d = 0; d < NUMBERS; d++) {
        for (int layout = 0; layout < LAYOUTS; layout++) {
            for (unsigned mask = 1; mask < 8; mask++) {
                int dtype = numbers[d], n_axes = 0, wrong = 0;
                int64_t axes[3], kept = 1, terms = 1;
                for (int i = 0; i < 3; i++) {
                    if (mask >> i & 1)
                        axes[n_axes++] = i, terms *= shape[i];
                    else
                        kept *= shape[i];
                }
                double sum[60] = {0}, most[60], least[60];
                for (int i = 0; i < 60; i++) most[i] = -INFINITY, least[i] = INFINITY;
                mc_tensor *a = whole_numbers(dtype, layout, 3, shape);
                for (int64_t i = 0; i < 60; i++) {
                    int64_t p[3] = {i / 20, i / 5 % 4, i % 5}, at = 0;
                    for (int k = 0; k < 3; k++)
                        if (!(mask >> k & 1)) at = at * shape[k] + p[k];
                    sum[at] += get(a, i);
                    most[at] = fmax(most[at], get(a, i));
                    least[at] = fmin(least[at], get(a, i));
                }
                for (int keepdim = 0; keepdim < 2; keepdim++) {
                    mc_tensor *s = empty(), *hi = empty(), *lo = empty(), *m = empty();
                    CHECK_OK(mc_sum(s, a, n_axes, axes, keepdim));
                    CHECK_OK(mc_amax(hi, a, n_axes, axes, keepdim));
                    CHECK_OK(mc_amin(lo, a, n_axes, axes, keepdim));
                    wrong += mc_tensor_ndim(s) != (keepdim ? 3 : 3 - n_axes);
                    wrong += mc_tensor_dtype(s) != (d < FLOATS ? dtype : MC_INT64);
                    wrong += mc_tensor_dtype(hi) != dtype;
                    for (int64_t i = 0; i < kept; i++)
                        wrong +=
                            get(s, i) != sum[i] || get(hi, i) != most[i] || get(lo, i) != least[i];
                    if (d >= FLOATS) continue;
                    CHECK_OK(mc_mean(m, a, n_axes, axes, keepdim));
                    for (int64_t i = 0; i < kept; i++) {
                        double want = sum[i] / (double)terms;
                        wrong += fabs(get(m, i) - want) > want * rounding(dtype);
                    }
                }
                CHECK(wrong == 0);
                drop_all();
            }
        }
    }
}

/* Shapes around blocks and parts: long rows, long columns, narrow ones. */
static const int64_t shapes[][2] = {{1, 200003}, {200003, 1}, {100007, 3}, {3, 100007},
                                    {70, 513},   {500, 700},  {511, 512},  {1, 1}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void large_sums(void) {
    TITLE("long sums lose nothing, and are the same bits for every thread count");
    for (int s = 0; s < SHAPES; s++) {
        for (int f = 0; f < 2; f++) {
            mc_tensor *a = make(f ? MC_FLOAT64 : MC_FLOAT32, 2, shapes[s]);
            for (int axis = -1; axis < 2; axis++) {
                int64_t ax = axis, terms = axis < 0 ? shapes[s][0] * shapes[s][1] : shapes[s][axis];
                mc_tensor *y[3], *sq[3];
                for (int threads = 1; threads <= 3; threads++) {
                    CHECK_OK(mc_set_num_threads(threads));
                    y[threads - 1] = empty();
                    CHECK_OK(mc_sum(y[threads - 1], a, axis < 0 ? 0 : 1, &ax, 0));
                    sq[threads - 1] = make_empty(MC_FLOAT64, CONTIGUOUS, SHAPE(1));
                    CHECK_OK(mc_fill(sq[threads - 1], 0.5));
                    CHECK_OK(mc_sum_squares(sq[threads - 1], a));
                }
                CHECK_SAME(y[0], y[1]);
                CHECK_SAME(y[0], y[2]);
                CHECK_SAME(sq[0], sq[1]);
                CHECK_SAME(sq[0], sq[2]);
                int64_t n = mc_tensor_numel(y[0]), wrong = 0, step = n > 1000 ? n / 97 : 1;
                double squares = 0.5;
                for (int64_t i = 0; i < n; i += step) {
                    double want = 0, size = 0;
                    for (int64_t k = 0; k < terms; k++) {
                        double x = get(a, axis == 0   ? k * shapes[s][1] + i
                                          : axis == 1 ? i * shapes[s][1] + k
                                                      : k);
                        want += x, size += fabs(x), squares += x * x;
                    }
                    /* 16 additions in a lane, 5 of lanes, then float64; one rounding at the end */
                    double tol = f ? size * 1e-13
                                   : size * 21 * 0x1p-24 / sqrt(fmin((double)terms, 512)) +
                                         fabs(want) * 0x1p-24;
                    wrong += fabs(get(y[0], i) - want) > tol;
                }
                CHECK(wrong == 0);
                if (axis == -1) CHECK_NEAR(get(sq[0], 0), squares, squares * 1e-12);
            }
            drop_all();
        }
    }
    CHECK_OK(mc_set_num_threads(2));
}

static void nan_and_empty(void) {
    TITLE(
        "NaN survives; empty sums are 0, empty products 1, empty means NaN, empty maxima an error");
    for (int f = 0; f < FLOATS; f++) {
        for (int place = 0; place < 600; place += 149) {
            mc_tensor *a = make(floats[f], SHAPE(2, 600)), *y = empty(), *z = empty(), *i = empty(),
                      *j = empty(), *c = empty();
            int64_t last = 1, first = 0;
            set(a, place, NAN);
            CHECK_OK(mc_amax(y, a, 1, &last, 0));
            CHECK_OK(mc_amin(z, a, 1, &last, 0));
            CHECK_OK(mc_amax(c, a, 1, &first, 0));
            CHECK(isnan(get(y, 0)) && !isnan(get(y, 1)) && isnan(get(z, 0)) && !isnan(get(z, 1)));
            CHECK(isnan(get(c, place)) && !isnan(get(c, place + 1 - place / 599)));
            CHECK_OK(mc_argmax(i, a, 1, 0));
            CHECK_OK(mc_argmin(j, a, 1, 0));
            CHECK(get(i, 0) == place && get(j, 0) == place);
            drop_all();
        }
    }
    mc_tensor *e = make_empty(MC_FLOAT32, CONTIGUOUS, SHAPE(3, 0)), *y = empty(), *z = empty(),
              *m = empty(), *w = empty(), *v = empty();
    int64_t axis = 1, first = 0;
    CHECK_OK(mc_sum(y, e, 1, &axis, 0));
    CHECK_OK(mc_prod(z, e, 1, &axis, 0));
    CHECK_OK(mc_mean(m, e, 1, &axis, 1));
    for (int i = 0; i < 3; i++) CHECK(get(y, i) == 0 && get(z, i) == 1 && isnan(get(m, i)));
    CHECK_STATUS(mc_amax(w, e, 1, &axis, 0), MC_EINVAL,
                 "amax: no element to take: a is [3, 0] and axis 1");
    CHECK_OK(mc_amax(w, e, 1, &first, 0)); /* no outputs: nothing is missing */
    CHECK(mc_tensor_numel(w) == 0);
    CHECK_STATUS(mc_argmax(v, e, 1, 0), MC_EINVAL, "argmax: no element to take");
    mc_tensor *scalar = make(MC_FLOAT32, 0, NULL), *s = empty();
    CHECK_OK(mc_sum(s, scalar, 0, NULL, 0));
    CHECK(get(s, 0) == get(scalar, 0) && mc_tensor_ndim(s) == 0);
    drop_all();
}

static void outputs_in_place(void) {
    TITLE("a given output of any strides is written, a wrong one is refused");
    mc_tensor *a = whole_numbers(MC_FLOAT32, CONTIGUOUS, SHAPE(4, 9)), *fresh = empty();
    mc_tensor *given = make_empty(MC_FLOAT32, SPREAD, SHAPE(4)), *bad = make(MC_FLOAT32, SHAPE(5));
    int64_t axis = 1;
    CHECK_OK(mc_sum(fresh, a, 1, &axis, 0));
    CHECK_OK(mc_sum(given, a, 1, &axis, 0));
    CHECK_SAME(fresh, given);
    CHECK_STATUS(mc_sum(bad, a, 1, &axis, 0), MC_EINVAL,
                 "sum: the output given is [5], the result is [4]");
    drop_all();
}

static void arg_and_scan(void) {
    TITLE("argmax, argmin, cumsum and prod are their loops along each axis");
    for (int d = 0; d < NUMBERS; d++) {
        for (int layout = 0; layout < LAYOUTS; layout++) {
            for (int axis = 0; axis < 2; axis++) {
                int dtype = numbers[d], wrong = 0;
                int64_t n0 = axis ? 3 : 1030, n1 = axis ? 1030 : 3, n = 1030;
                mc_tensor *a = whole_numbers(dtype, layout, SHAPE(n0, n1));
                mc_tensor *hi = empty(), *lo = empty(), *c = empty();
                CHECK_OK(mc_argmax(hi, a, axis, 0));
                CHECK_OK(mc_argmin(lo, a, axis, 1));
                CHECK_OK(mc_cumsum(c, a, axis));
                for (int64_t l = 0; l < 3; l++) {
                    int64_t best = 0, worst = 0;
                    double sum = 0;
                    for (int64_t k = 0; k < n; k++) {
                        int64_t at = axis ? l * n + k : k * 3 + l;
#define AT(k) get(a, axis ? l *n + (k) : (k)*3 + l)
                        if (AT(k) > AT(best)) best = k;
                        if (AT(k) < AT(worst)) worst = k;
                        sum += AT(k);
                        double tol = d < FLOATS ? sum * rounding(dtype) : 0;
                        wrong += fabs(get(c, at) - sum) > tol;
                    }
                    wrong += get(hi, l) != (double)best || get(lo, l) != (double)worst;
                }
                CHECK(wrong == 0);
                drop_all();
            }
        }
    }
    mc_tensor *p = make_int(MC_INT32, 3, (int64_t[]){3, -5, 7}), *y = empty();
    CHECK_OK(mc_prod(y, p, 0, NULL, 0));
    CHECK(get(y, 0) == -105 && mc_tensor_dtype(y) == MC_INT64);
    drop_all();
}

static void top(void) {
    TITLE("topk ranks largest first, ties by lowest index, NaN last, and never repeats an index");
    static const int64_t ks[] = {0, 1, 2, 8, 65, 600};
    for (int d = 0; d < NUMBERS; d++) {
        for (int k = 0; k < 6; k++) {
            for (int layout = 0; layout < LAYOUTS; layout++) {
                mc_tensor *a = whole_numbers(numbers[d], layout, SHAPE(3, 600));
                mc_tensor *v = empty(), *ix = empty();
                int wrong = 0;
                if (d < FLOATS)
                    for (int i = 0; i < 600; i += 7) set(a, i, NAN), set(a, i + 1, -INFINITY);
                CHECK_OK(mc_topk(v, ix, a, ks[k]));
                for (int64_t r = 0; r < 3; r++) {
                    char used[600] = {0};
                    for (int64_t j = 0; j < ks[k]; j++) {
                        int64_t best = -1;
                        for (int64_t i = 0; i < 600; i++) {
                            if (used[i]) continue;
                            double x = get(a, r * 600 + i),
                                   b = best < 0 ? 0 : get(a, r * 600 + best);
                            if (best < 0 || x > b || (isnan(b) && !isnan(x))) best = i;
                        }
                        used[best] = 1;
                        wrong += get(ix, r * ks[k] + j) != (double)best;
                        wrong += memcmp(address(v, r * ks[k] + j), address(a, r * 600 + best),
                                        (size_t)mc_dtype_size(numbers[d])) != 0;
                        if (k == 5 && d > 1 && j == 20) break; /* the check is quadratic */
                    }
                }
                CHECK(wrong == 0);
                drop_all();
            }
        }
    }
}

static void softmax_values(void) {
    TITLE("softmax and log_softmax are their formulas, in every float dtype, layout and axis");
    for (int f = 0; f < FLOATS; f++) {
        for (int layout = 0; layout < LAYOUTS; layout++) {
            for (int trial = 0; trial < 4; trial++) {
                int axis = trial % 2, wrong = 0, dtype = floats[f];
                int64_t n = trial < 2 ? 7 : 1029, n0 = axis ? 3 : n, n1 = axis ? n : 3;
                mc_tensor *x = make_in(dtype, layout, SHAPE(n0, n1)), *y = empty(), *z = empty();
                for (int64_t i = 0; i < 3 * n; i++) set(x, i, get(x, i) * 8);
                CHECK_OK(mc_softmax(y, x, axis));
                CHECK_OK(mc_log_softmax(z, x, axis));
                for (int64_t l = 0; l < 3; l++) {
                    long double sum = 0; /* a double would err by more than the kernel may */
#define X(t, k) get(t, axis ? l *n + (k) : (k)*3 + l)
                    for (int64_t k = 0; k < n; k++) sum += expl((long double)X(x, k));
                    for (int64_t k = 0; k < n; k++) {
                        double p = (double)(expl((long double)X(x, k)) / sum);
                        double q = X(x, k) - (double)logl(sum);
                        double step = dtype == MC_FLOAT64 ? 0x1p-53 : 0x1p-24;
                        wrong += fabs(X(y, k) - p) > p * (rounding(dtype) + 32 * step) +
                                                         (dtype == MC_FLOAT16 ? 0x1.01p-25 : 0);
                        wrong += fabs(X(z, k) - q) > fabs(q) * rounding(dtype) + 32 * 20 * step;
                    }
                }
                CHECK(wrong == 0);
                mc_tensor *in_place = cast(x, dtype), *same = cast(y, dtype);
                CHECK_OK(mc_softmax(in_place, in_place, axis));
                CHECK_SAME(in_place, same);
                drop_all();
            }
        }
    }
    mc_tensor *x = make(MC_FLOAT32, SHAPE(3)), *y = empty();
    set(x, 0, -INFINITY), set(x, 1, 3e38), set(x, 2, -3e38);
    CHECK_OK(mc_softmax(y, x, 0));
    CHECK(get(y, 0) == 0 && get(y, 1) == 1 && get(y, 2) == 0);
    drop_all();
}

typedef struct grad {
    mc_status (*forward)(mc_tensor *, const mc_tensor *, int);
    mc_tensor *x, *dy;
    int axis;
} grad;

static double loss(void *ctx) {
    grad *g = ctx;
    mc_tensor *y = mc_tensor_new();
    CHECK_OK(g->forward(y, g->x, g->axis));
    check_passed--;
    double sum = weigh(y, g->dy);
    mc_tensor_free(y);
    return sum;
}

static void softmax_gradients(void) {
    TITLE("backward passes of softmax are the derivatives, for short and long lines");
    for (int k = 0; k < 2; k++) {
        for (int trial = 0; trial < 3; trial++) {
            int64_t n0 = trial == 2 ? 2 : 4, n1 = trial == 2 ? 700 : 5;
            grad g = {k ? mc_log_softmax : mc_softmax, make(MC_FLOAT64, SHAPE(n0, n1)),
                      make(MC_FLOAT64, SHAPE(n0, n1)), trial > 0};
            mc_tensor *y = empty(), *dx = empty();
            CHECK_OK(g.forward(y, g.x, g.axis));
            CHECK_OK((k ? mc_log_softmax_backward : mc_softmax_backward)(dx, g.dy, y, g.axis));
            if (trial < 2) {
                GRADCHECK(loss, &g, g.x, dx);
            } else { /* against the formula: sum over the line of dx is 0 */
                for (int64_t r = 0; r < 2; r++) {
                    double sum = 0;
                    for (int64_t i = 0; i < n1; i++) sum += get(dx, r * n1 + i);
                    CHECK_NEAR(sum, 0, 1e-10);
                }
            }
            for (int f = 1; f < FLOATS; f++) {
                mc_tensor *ys = cast(y, floats[f]), *dys = cast(g.dy, floats[f]), *d = empty(),
                          *want = empty();
                mc_tensor *yw = cast(ys, MC_FLOAT64), *dyw = cast(dys, MC_FLOAT64);
                CHECK_OK((k ? mc_log_softmax_backward : mc_softmax_backward)(d, dys, ys, g.axis));
                CHECK_OK(
                    (k ? mc_log_softmax_backward : mc_softmax_backward)(want, dyw, yw, g.axis));
                CHECK_CLOSE_TO(d, want, 32, 1);
            }
            drop_all();
        }
    }
}

static void errors(void) {
    TITLE("wrong axes and dtypes are named");
    mc_tensor *a = make(MC_FLOAT32, SHAPE(2, 3)), *i = make_int(MC_INT64, 2, (int64_t[]){1, 2}),
              *y = empty(), *z = empty();
    mc_tensor *e = make_empty(MC_FLOAT8_E5M2, CONTIGUOUS, SHAPE(2));
    int64_t two = 2, twice[2] = {1, 1};
    CHECK_STATUS(mc_sum(y, a, 1, &two, 0), MC_EINVAL,
                 "sum: axis 2 of a tensor of shape [2, 3], legal are 0 to 1 (0-based)");
    CHECK_STATUS(mc_sum(y, a, 2, twice, 0), MC_EINVAL, "sum: axis 1 stands twice");
    CHECK_STATUS(mc_mean(y, i, 0, NULL, 0), MC_EINVAL, "mean: a is int64; wanted float64");
    CHECK_STATUS(mc_sum(y, e, 0, NULL, 0), MC_EINVAL, "sum: a is float8_e5m2, a storage type");
    CHECK_STATUS(mc_topk(y, z, a, 4), MC_EINVAL, "topk: k is 4, a is [2, 3]: legal are 0 to 3");
    CHECK_STATUS(mc_softmax(y, i, 0), MC_EINVAL, "softmax: x is int64");
    CHECK_STATUS(mc_softmax(y, a, -1), MC_EINVAL, "softmax: axis -1");
    CHECK_STATUS(mc_sum_squares(a, a), MC_EINVAL, "sum_squares: acc is [2, 3], wanted [1]");
    CHECK(!mc_tensor_defined(y) && !mc_tensor_defined(z));
    drop_all();
}

int main(void) {
    every_set_of_axes();
    large_sums();
    nan_and_empty();
    outputs_in_place();
    arg_and_scan();
    top();
    softmax_values();
    softmax_gradients();
    errors();
    return check_report();
}
