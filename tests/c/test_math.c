/* test_math.c: elementwise ops, against libm in float64, in every dtype and layout. */
#include "gradcheck.h"

#include <float.h>

#include "cpu/host.h"

/* -- accuracy of the float32 functions --------------------------------------------------------- */

typedef mc_status (*unary_op)(mc_tensor *, const mc_tensor *);

static double ref_sigmoid(double x) {
    return 1 / (1 + exp(-x));
}
static double ref_silu(double x) {
    return x / (1 + exp(-x));
}
static double ref_gelu(double x) {
    return x * ref_sigmoid(2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
}
static double ref_rsqrt(double x) {
    return 1 / sqrt(x);
}

/* |got - want| in units of the last place of a float32 near want. */
static double ulps(float got, double want) {
    if (isnan(want) || isinf(want)) return isnan(want) ? !isnan(got) * 1e9 : (double)got != want;
    if (fabs(want) > (double)FLT_MAX * (1 + 0x1p-25)) return isinf(got) ? 0 : 1e9;
    if (isnan(got) || isinf(got)) return 1e9;
    int exponent;
    frexp(want, &exponent);
    if (exponent < -125) exponent = -125;
    return fabs((double)got - want) / ldexp(1, exponent - 24);
}

static void accuracy(void) {
    TITLE("float32 functions are right to 2 ulp over all exponents, special values too");
    static const struct {
        const char *name;
        unary_op op;
        double (*want)(double);
        double ulp;
    } tests[] = {
        {"exp", mc_exp, exp, 2},
        {"log", mc_log, log, 2},
        {"tanh", mc_tanh, tanh, 2},
        {"sigmoid", mc_sigmoid, ref_sigmoid, 2.5},
        {"sin", mc_sin, sin, 2},
        {"cos", mc_cos, cos, 2},
        {"silu", mc_silu, ref_silu, 3},
        {"sqrt", mc_sqrt, sqrt, 0.5},
        {"rsqrt", mc_rsqrt, ref_rsqrt, 1.5},
        {"gelu", mc_gelu, ref_gelu, -1},
    };
    enum { N = 1 << 20 };
    static float values[N + 16], results[N + 16];
    const float special[16] = {0,     -0.0f,   1,        -1,      INFINITY,  -INFINITY,
                               NAN,   FLT_MAX, -FLT_MAX, FLT_MIN, 0x1p-149f, -0x1p-149f,
                               88.7f, 89.5f,   -103.9f,  -150};
    uint32_t bits = 12345;
    for (int i = 0; i < N; i++) {
        bits = bits * 1664525U + 1013904223U;
        if (i % 2) /* any bit pattern; every other one of the sizes that matter */
            memcpy(&values[i], &bits, 4);
        else
            values[i] = (float)((double)bits * 0x1p-31 - 1) * (i % 4 ? 100.0f : 4.0f);
    }
    memcpy(values + N, special, sizeof special);
    int64_t n = N + 16;
    mc_tensor *x = make_empty(MC_FLOAT32, CONTIGUOUS, 1, &n);
    CHECK_OK(mc_write(x, values, n * 4));
    for (size_t k = 0; k < sizeof tests / sizeof tests[0]; k++) {
        mc_tensor *y = empty();
        double worst = 0;
        float at = 0;
        CHECK_OK(tests[k].op(y, x));
        CHECK_OK(mc_read(y, results, n * 4));
        for (int64_t i = 0; i < n; i++) {
            double want = tests[k].want((double)values[i]), off = ulps(results[i], want);
            /* gelu's tail multiplies the rounding of its cube by the argument of the exponential */
            if (tests[k].ulp < 0) {
                double v = (double)values[i];
                off = fabs((double)results[i] - want) / (0x1p-23 * (1 + fabs(v)));
                if (isnan(want) || isinf(v))
                    off = isnan(results[i]) ? 0 : (double)results[i] != want;
                if (fabs(v) < 1) off = fmax(off, ulps(results[i], want) / 4);
            }
            /* silu multiplies the rounding of a subnormal sigmoid by its argument, at most 104 */
            if (tests[k].op == mc_silu && fabs(want) < 0x1p-118)
                off = fmin(off, fabs((double)results[i] - want) * 0x1p149 / 52);
            if (off > worst) worst = off, at = values[i];
        }
        char text[128];
        snprintf(text, sizeof text, "%s: %.3f ulp at %a", tests[k].name, worst, (double)at);
        if (getenv("CHECK_VERBOSE")) printf("%s\n", text);
        check_count(worst <= fabs(tests[k].ulp), __FILE__, __LINE__, text);
    }
    drop_all();
}

/* -- every op, dtype and layout ---------------------------------------------------------------- */

typedef mc_status (*binary_op)(mc_tensor *, const mc_tensor *, const mc_tensor *);
typedef mc_status (*scalar_op)(mc_tensor *, const mc_tensor *, double, int);

static double add(double x, double y) {
    return x + y;
}
static double sub(double x, double y) {
    return x - y;
}
static double mul(double x, double y) {
    return x * y;
}
static double quotient(double x, double y) {
    return x / y;
}
static double maximum(double x, double y) {
    return isnan(x) || x > y ? x : y;
}
static double minimum(double x, double y) {
    return isnan(x) || x < y ? x : y;
}
static double eq(double x, double y) {
    return x == y;
}
static double ne(double x, double y) {
    return x != y;
}
static double lt(double x, double y) {
    return x < y;
}
static double le(double x, double y) {
    return x <= y;
}
static double gt(double x, double y) {
    return x > y;
}
static double ge(double x, double y) {
    return x >= y;
}

static const struct {
    binary_op op;
    scalar_op scalar;
    double (*want)(double, double);
    int floats_only, compare;
} binaries[] = {
    {mc_add, mc_add_scalar, add, 0, 0},
    {mc_sub, mc_sub_scalar, sub, 0, 0},
    {mc_mul, mc_mul_scalar, mul, 0, 0},
    {mc_div, mc_div_scalar, quotient, 1, 0},
    {mc_pow, mc_pow_scalar, pow, 1, 0},
    {mc_maximum, mc_maximum_scalar, maximum, 0, 0},
    {mc_minimum, mc_minimum_scalar, minimum, 0, 0},
    {mc_eq, mc_eq_scalar, eq, 0, 1},
    {mc_ne, mc_ne_scalar, ne, 0, 1},
    {mc_lt, mc_lt_scalar, lt, 0, 1},
    {mc_le, mc_le_scalar, le, 0, 1},
    {mc_gt, mc_gt_scalar, gt, 0, 1},
    {mc_ge, mc_ge_scalar, ge, 0, 1},
};
enum { BINARIES = sizeof binaries / sizeof binaries[0] };

static const int numbers[] = {MC_FLOAT64, MC_FLOAT32, MC_FLOAT16, MC_BFLOAT16,
                              MC_INT64,   MC_INT32,   MC_UINT8};
enum { NUMBERS = 7 };

/* What storing x in dtype gives. */
static double stored(double x, int dtype) {
    int64_t wide = (int64_t)x;
    if (dtype == MC_UINT8) return (double)(uint8_t)wide;
    if (dtype == MC_INT32) return (double)(int32_t)wide;
    char bytes[8];
    double back;
    mc_convert(bytes, dtype, &x, MC_FLOAT64, 1);
    mc_convert(&back, MC_FLOAT64, bytes, dtype, 1);
    return back;
}

/* Small whole numbers in integer tensors, quarters in floats: sums and products are exact. */
static mc_tensor *small_numbers(int dtype, int layout, int ndim, const int64_t *shape) {
    mc_tensor *t = make_empty(dtype, layout, ndim, shape);
    for (int64_t i = 0; i < mc_tensor_numel(t); i++) {
        double x = floor(next_number() * 12);
        set(t, i, mc_dtype_is_float(dtype) ? x / 4 : dtype == MC_UINT8 ? fabs(x) : x);
    }
    return t;
}

/* Index of element i of a [2, 3, 5] result in an operand that broadcasts to it. */
static int64_t source(const mc_tensor *t, int64_t i) {
    static const int64_t full[3] = {2, 3, 5};
    int64_t position[3], at = 0;
    int nd = mc_tensor_ndim(t);
    for (int d = 2; d >= 0; d--) position[d] = i % full[d], i /= full[d];
    for (int d = 0; d < nd; d++) {
        int64_t size = mc_tensor_shape(t)[d];
        at = at * size + (size == 1 ? 0 : position[d + 3 - nd]);
    }
    return at;
}

static void binary_ops(void) {
    TITLE("binary ops are their formula in every dtype and layout, broadcast either way");
    static const int64_t shapes[][3] = {{2, 3, 5}, {2, 1, 5}, {1, 3, 1}, {1, 1, 5}, {1, 1, 1}};
    for (int k = 0; k < BINARIES; k++) {
        for (int d = 0; d < NUMBERS; d++) {
            int dtype = numbers[d], wrong = 0;
            if (binaries[k].floats_only && !mc_dtype_is_float(dtype)) continue;
            for (int trial = 0; trial < 40; trial++) {
                const int64_t *sa = shapes[trial % 8 == 7 ? 1 : 0], *sb = shapes[trial % 5];
                int cut = trial % 5 == 3 ? 2 : trial % 5 == 4 ? 3 : 0; /* lower ranks */
                mc_tensor *a = small_numbers(dtype, trial % LAYOUTS, 3, sa);
                mc_tensor *b = small_numbers(dtype, trial / LAYOUTS % LAYOUTS, 3 - cut, sb + cut);
                if (trial % 8 == 7 && trial % 5 != 0) continue;
                if (trial % 3 == 2) {
                    mc_tensor *swap = a;
                    a = b, b = swap;
                }
                mc_tensor *y = empty();
                wrong += binaries[k].op(y, a, b) != MC_OK;
                wrong += mc_tensor_dtype(y) != (binaries[k].compare ? MC_BOOL : dtype);
                for (int64_t i = 0; i < 30; i++) {
                    double want = binaries[k].want(get(a, source(a, i)), get(b, source(b, i)));
                    double got = get(y, i);
                    if (!binaries[k].compare) want = stored(want, dtype);
                    /* pow of libm in float32 may be off by an ulp */
                    double tol = binaries[k].floats_only ? fabs(want) * 2 * rounding(dtype) : 0;
                    wrong +=
                        !(got == want || fabs(got - want) <= tol || (isnan(got) && isnan(want)));
                }
                drop_all();
            }
            CHECK(wrong == 0);
        }
    }
}

static void scalar_ops(void) {
    TITLE("ops with a number give what a tensor of that number gives, in both orders");
    static const int64_t lengths[] = {0, 1, 4, 64, 65, 1025};
    for (int k = 0; k < BINARIES; k++) {
        for (int d = 0; d < NUMBERS; d++) {
            int dtype = numbers[d];
            if (binaries[k].floats_only && !mc_dtype_is_float(dtype)) continue;
            for (int l = 0; l < 6; l++) {
                double s = mc_dtype_is_float(dtype) ? 0.3 : 3; /* 0.3 rounds to the dtype */
                mc_tensor *a = small_numbers(dtype, l % 2 ? SPREAD : CONTIGUOUS, 1, &lengths[l]);
                mc_tensor *b = make_empty(dtype, CONTIGUOUS, 1, &lengths[l]);
                mc_tensor *y = empty(), *z = empty(), *v = empty(), *w = empty();
                CHECK_OK(mc_fill(b, s));
                CHECK_OK(binaries[k].scalar(y, a, s, 0));
                CHECK_OK(binaries[k].op(z, a, b));
                CHECK_SAME(y, z);
                CHECK_OK(binaries[k].scalar(v, a, s, 1));
                CHECK_OK(binaries[k].op(w, b, a));
                CHECK_SAME(v, w);
                drop_all();
            }
        }
    }
}

static double sign(double x) {
    return isnan(x) ? x : (x > 0) - (x < 0);
}
static double relu(double x) {
    return x < 0 ? 0 : x;
}
static double negative(double x) {
    return -x;
}
static double is_nan(double x) {
    return isnan(x) != 0;
}
static double is_finite(double x) {
    return isfinite(x) != 0;
}
static double not(double x) {
    return x == 0;
}

static void unary_ops(void) {
    TITLE("unary ops are their formula in every dtype and layout");
    static const struct {
        unary_op op;
        double (*want)(double);
        int floats_only, to_bool;
    } tests[] = {
        {mc_neg, negative, 0, 0},
        {mc_abs, fabs, 0, 0},
        {mc_sign, sign, 0, 0},
        {mc_exp, exp, 1, 0},
        {mc_log, log, 1, 0},
        {mc_sqrt, sqrt, 1, 0},
        {mc_rsqrt, ref_rsqrt, 1, 0},
        {mc_sin, sin, 1, 0},
        {mc_cos, cos, 1, 0},
        {mc_tanh, tanh, 1, 0},
        {mc_sigmoid, ref_sigmoid, 1, 0},
        {mc_relu, relu, 1, 0},
        {mc_gelu, ref_gelu, 1, 0},
        {mc_silu, ref_silu, 1, 0},
        {mc_floor, floor, 1, 0},
        {mc_ceil, ceil, 1, 0},
        {mc_round, rint, 1, 0},
        {mc_isnan, is_nan, 0, 1},
        {mc_isfinite, is_finite, 0, 1},
        {mc_logical_not, not, 0, 1},
    };
    for (size_t k = 0; k < sizeof tests / sizeof tests[0]; k++) {
        for (int d = 0; d < NUMBERS; d++) {
            int dtype = numbers[d], wrong = 0;
            if (tests[k].floats_only && !mc_dtype_is_float(dtype)) continue;
            for (int layout = 0; layout < LAYOUTS; layout++) {
                mc_tensor *a = small_numbers(dtype, layout, SHAPE(3, 11)), *y = empty();
                if (mc_dtype_is_float(dtype)) {
                    set(a, 0, NAN), set(a, 5, INFINITY), set(a, 6, 2.5), set(a, 7, -0.5);
                }
                wrong += tests[k].op(y, a) != MC_OK;
                wrong += mc_tensor_dtype(y) != (tests[k].to_bool ? MC_BOOL : dtype);
                for (int64_t i = 0; i < 33; i++) {
                    double want = tests[k].want(get(a, i)), got = get(y, i);
                    if (!tests[k].to_bool) want = stored(want, dtype);
                    double tol = tests[k].floats_only ? fabs(want) * 6 * rounding(dtype) : 0;
                    wrong +=
                        !(got == want || fabs(got - want) <= tol || (isnan(got) && isnan(want)));
                }
            }
            CHECK(wrong == 0);
            drop_all();
        }
    }
}

static void integers_wrap(void) {
    TITLE("integer arithmetic wraps in its dtype");
    mc_tensor *a = make_int(MC_INT32, 1, (int64_t[]){INT32_MAX}), *y = empty(), *z = empty();
    mc_tensor *u = make_int(MC_UINT8, 1, (int64_t[]){200}), *v = empty();
    CHECK_OK(mc_add_scalar(y, a, 1, 0));
    CHECK(get(y, 0) == INT32_MIN);
    CHECK_OK(mc_mul(z, a, a));
    CHECK(get(z, 0) == 1);
    CHECK_OK(mc_add(v, u, u));
    CHECK(get(v, 0) == 144);
    mc_tensor *l = make_empty(MC_INT64, CONTIGUOUS, SHAPE(1)), *w = empty();
    CHECK_OK(mc_write(l, (int64_t[]){INT64_MIN}, 8));
    CHECK_OK(mc_neg(w, l));
    CHECK(*(int64_t *)address(w, 0) == INT64_MIN);
    drop_all();
}

static void nan_and_clamp(void) {
    TITLE("maximum, minimum and clamp keep NaN; clamp takes infinite bounds on integers");
    for (int f = 0; f < FLOATS; f++) {
        mc_tensor *a = make(floats[f], SHAPE(3)), *b = make(floats[f], SHAPE(3));
        mc_tensor *y = empty(), *z = empty(), *c = empty();
        set(a, 0, NAN), set(b, 1, NAN);
        CHECK_OK(mc_maximum(y, a, b));
        CHECK_OK(mc_minimum(z, a, b));
        CHECK_OK(mc_clamp(c, a, -0.25, 0.25));
        CHECK(isnan(get(y, 0)) && isnan(get(y, 1)) && !isnan(get(y, 2)));
        CHECK(isnan(get(z, 0)) && isnan(get(z, 1)) && !isnan(get(z, 2)));
        CHECK(isnan(get(c, 0)) && fabs(get(c, 1)) <= 0.25 && fabs(get(c, 2)) <= 0.25);
        drop_all();
    }
    mc_tensor *i = make_int(MC_INT32, 3, (int64_t[]){-9, 0, 9}), *y = empty();
    CHECK_OK(mc_clamp(y, i, -INFINITY, 4));
    CHECK(get(y, 0) == -9 && get(y, 1) == 0 && get(y, 2) == 4);
    drop_all();
}

/* -- in place, sizes, threads, instruction sets ------------------------------------------------ */

static void in_place(void) {
    TITLE("an output that is an input gives the same result, in every layout");
    for (int d = 0; d < NUMBERS; d++) {
        for (int layout = 0; layout < LAYOUTS; layout++) {
            mc_tensor *a = small_numbers(numbers[d], layout, SHAPE(9, 131));
            mc_tensor *b = small_numbers(numbers[d], layout, SHAPE(9, 131)), *y = empty();
            CHECK_OK(mc_sub(y, a, b));
            CHECK_OK(mc_sub(b, a, b));
            CHECK_SAME(b, y);
            mc_tensor *z = empty();
            CHECK_OK(mc_mul_scalar(z, a, 3, 0));
            CHECK_OK(mc_mul_scalar(a, a, 3, 0));
            CHECK_SAME(a, z);
            drop_all();
        }
    }
}

static void sizes_and_threads(void) {
    TITLE("results depend neither on the length of the array nor on the thread count");
    static const unary_op ops[] = {mc_exp, mc_sin, mc_gelu, mc_tanh, mc_log};
    for (int f = 0; f < FLOATS; f++) {
        for (int k = 0; k < 5; k++) {
            int64_t n = 100003;
            mc_tensor *x = make(floats[f], 1, &n), *whole = empty(), *serial = empty();
            set(x, 70001, 3e6); /* a sine beyond the fast reduction; infinite in float16 */
            mc_tensor *at = empty(), *one = empty();
            CHECK_OK(mc_set_num_threads(3));
            CHECK_OK(ops[k](whole, x));
            CHECK_OK(mc_set_num_threads(1));
            CHECK_OK(ops[k](serial, x));
            CHECK_SAME(whole, serial);
            for (int64_t i = 69990; i < 70010; i++) {
                CHECK_OK(mc_narrow(at, x, 0, i, 1));
                CHECK_OK(ops[k](one, at));
                CHECK(
                    !memcmp(address(one, 0), address(whole, i), (size_t)mc_dtype_size(floats[f])));
                mc_tensor_release(at);
                mc_tensor_release(one);
            }
            drop_all();
        }
    }
    for (int64_t n = 0; n < 3; n++) {
        mc_tensor *x = make(MC_FLOAT32, SHAPE(4, n)), *y = empty();
        CHECK_OK(mc_add(y, x, x));
        CHECK(mc_tensor_numel(y) == 4 * n);
    }
    drop_all();
    CHECK_OK(mc_set_num_threads(2));
}

extern const mci_backend mci_cpu_table_base;
#ifdef __x86_64__
extern const mci_backend mci_cpu_table_avx2, mci_cpu_table_avx512;
#endif

static void instruction_sets(void) {
    TITLE("all instruction sets give the same bits");
#ifdef __x86_64__
    const mci_backend *tables[2] = {NULL, NULL};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"))
        tables[0] = &mci_cpu_table_avx2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        tables[1] = &mci_cpu_table_avx512;
    static const int ops[] = {MCI_OP_exp,  MCI_OP_log,     MCI_OP_tanh,  MCI_OP_sin, MCI_OP_gelu,
                              MCI_OP_silu, MCI_OP_sigmoid, MCI_OP_rsqrt, MCI_OP_copy};
    static float x[4099], want[4099], got[4099];
    for (int i = 0; i < 4099; i++) x[i] = (float)next_number() * (i % 3 ? 3.0f : 90.0f);
    mci_view in = {.data = x, .dtype = MC_FLOAT32, .ndim = 1, .shape = {4099}, .stride = {1}};
    for (int dtype = MC_FLOAT32; dtype <= MC_BFLOAT16; dtype++) {
        static uint16_t narrow[4099];
        if (dtype != MC_FLOAT32) {
            CHECK_OK(mc_convert(narrow, dtype, x, MC_FLOAT32, 4099));
            in.data = narrow;
            in.dtype = dtype;
        }
        for (size_t k = 0; k < sizeof ops / sizeof ops[0]; k++) {
            for (int isa = -1; isa < 2; isa++) {
                if (isa >= 0 && !tables[isa]) continue;
                const mci_backend *table = isa < 0 ? &mci_cpu_table_base : tables[isa];
                mci_view out = in;
                out.data = isa < 0 ? want : got;
                const mci_view *t[2] = {&out, &in};
                mci_exec exec = {0};
                CHECK_OK(table->kernels[ops[k]](&exec, t, NULL));
                int wrong = 0;
                for (int i = 0; isa >= 0 && i < 4099 * mc_dtype_size(dtype) / 4; i++)
                    wrong += memcmp(&got[i], &want[i], 4) != 0 && !isnan(want[i]);
                CHECK(wrong == 0);
            }
        }
    }
#endif
}

/* -- gradients --------------------------------------------------------------------------------- */

typedef struct grad {
    unary_op forward;
    mc_tensor *x, *dy;
} grad;

static double loss(void *ctx) {
    grad *g = ctx;
    mc_tensor *y = empty();
    CHECK_OK(g->forward(y, g->x));
    check_passed--;
    double sum = weigh(y, g->dy);
    mc_tensor_release(y);
    made_count--;
    mc_tensor_free(y);
    return sum;
}

static void gradients(void) {
    TITLE("backward passes are the derivatives, and hold in every float dtype and layout");
    static const struct {
        unary_op forward;
        binary_op backward;
        int halves;
    } tests[] = {{mc_relu, mc_relu_backward, 0},
                 {mc_gelu, mc_gelu_backward, 0},
                 {mc_silu, mc_silu_backward, 0},
                 {mc_swiglu, mc_swiglu_backward, 1}};
    for (int k = 0; k < 4; k++) {
        int64_t rows[2] = {3, 10}, half[2] = {3, 5};
        const int64_t *out = tests[k].halves ? half : rows;
        grad g = {tests[k].forward, make(MC_FLOAT64, 2, rows), make(MC_FLOAT64, 2, out)};
        mc_tensor *dx = empty();
        CHECK_OK(tests[k].backward(dx, g.dy, g.x));
        GRADCHECK(loss, &g, g.x, dx);
        for (int f = 0; f < FLOATS; f++) {
            for (int layout = 0; layout < LAYOUTS; layout++) {
                mc_tensor *x = make_in(floats[f], layout, 2, rows);
                mc_tensor *dy = make_in(floats[f], layout, 2, out), *y = empty(), *d = empty();
                mc_tensor *wide = empty(), *wide_d = empty();
                mc_tensor *x64 = cast(x, MC_FLOAT64), *dy64 = cast(dy, MC_FLOAT64);
                CHECK_OK(tests[k].forward(y, x));
                CHECK_OK(tests[k].forward(wide, x64));
                CHECK_OK(tests[k].backward(d, dy, x));
                CHECK_OK(tests[k].backward(wide_d, dy64, x64));
                CHECK_CLOSE(y, wide, 8);
                CHECK_CLOSE(d, wide_d, 8);
            }
        }
        drop_all();
    }
    mc_tensor *x = make(MC_FLOAT32, SHAPE(4)), *dy = make(MC_FLOAT32, SHAPE(4)), *dx = empty();
    set(x, 0, 0), set(x, 1, 1e30), set(x, 2, -1e30);
    CHECK_OK(mc_relu_backward(dx, dy, x));
    CHECK(get(dx, 0) == 0);
    mc_tensor *dg = empty();
    CHECK_OK(mc_gelu_backward(dg, dy, x));
    CHECK(get(dg, 1) == get(dy, 1) && get(dg, 2) == 0);
    drop_all();
}

static void swiglu_rows(void) {
    TITLE("swiglu is silu(gate) * up on wide rows, also over threads");
    mc_tensor *x = make(MC_FLOAT32, SHAPE(37, 2 * 1031)), *y = empty();
    int wrong = 0;
    CHECK_OK(mc_swiglu(y, x));
    for (int64_t i = 0; i < 37 * 1031; i++) {
        double g = get(x, i / 1031 * 2062 + i % 1031),
               u = get(x, i / 1031 * 2062 + 1031 + i % 1031);
        wrong += fabs(get(y, i) - ref_silu(g) * u) > fabs(ref_silu(g) * u) * 6 * 0x1p-24;
    }
    CHECK(wrong == 0);
    drop_all();
}

static void errors(void) {
    TITLE("wrong operands are named with the fix");
    mc_tensor *f = make(MC_FLOAT32, SHAPE(2, 3)), *g = make(MC_FLOAT32, SHAPE(4)), *y = empty();
    mc_tensor *i = make_int(MC_INT64, 2, (int64_t[]){1, 2}), *b = empty();
    mc_tensor *e = make_empty(MC_FLOAT8_E4M3FN, CONTIGUOUS, SHAPE(2)),
              *u = make_empty(MC_UINT8, 0, SHAPE(2));
    CHECK_OK(mc_eq(b, i, i));
    CHECK_STATUS(mc_add(y, f, i), MC_EINVAL,
                 "add: a is float32 and b is int64; tensors are not promoted, convert one with "
                 "t:to(\"float32\")");
    CHECK_STATUS(mc_add(y, f, g), MC_EINVAL, "add: shapes do not broadcast: a is [2, 3], b is [4]");
    CHECK_STATUS(mc_div(y, i, i), MC_EINVAL, "div: a is int64; wanted float64, float32");
    CHECK_STATUS(mc_exp(y, i), MC_EINVAL, "exp: a is int64");
    CHECK_STATUS(mc_add_scalar(y, i, 0.5, 0), MC_EINVAL,
                 "add: 0.5 is not an integer and the tensor is int64");
    CHECK_STATUS(mc_mul_scalar(y, u, -1, 0), MC_EINVAL,
                 "mul: -1 does not fit in a tensor of uint8");
    CHECK_STATUS(mc_mul_scalar(y, i, NAN, 0), MC_EINVAL, "is not an integer");
    CHECK_STATUS(mc_add(y, b, b), MC_EINVAL,
                 "add: a is bool, which has no arithmetic; convert it with t:to(\"int32\")");
    CHECK_STATUS(mc_neg(y, b), MC_EINVAL, "neg: a is bool");
    CHECK_STATUS(
        mc_add(y, e, e), MC_EINVAL,
        "add: a is float8_e4m3fn, a storage type without arithmetic; convert it with t:to");
    CHECK_STATUS(mc_clamp(y, i, 0.5, 2), MC_EINVAL, "clamp: 0.5 is not an integer");
    CHECK_STATUS(mc_where(y, f, f, f), MC_EINVAL, "where: the condition is float32; wanted bool");
    CHECK_STATUS(mc_swiglu(y, f), MC_EINVAL, "swiglu: x is [2, 3]; its last axis must be even");
    CHECK_STATUS(mc_silu_backward(y, g, f), MC_EINVAL, "silu_backward: dy is [4], wanted [2, 3]");
    CHECK(!mc_tensor_defined(y));
    drop_all();
}

int main(void) {
    accuracy();
    binary_ops();
    scalar_ops();
    unary_ops();
    integers_wrap();
    nan_and_clamp();
    in_place();
    sizes_and_threads();
    instruction_sets();
    gradients();
    swiglu_rows();
    errors();
    return check_report();
}
