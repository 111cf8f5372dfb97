/* math.c: elementwise kernels. An op is its loops over float, double and int64_t (math_real.h and
 * below); iter.h brings tensors of all dtypes and strides to them. Integers wrap. */
#include "iter.h"
#include "vmath.h"

#define R(name) name##_f32
#define real float
#define libm_pow_f32 powf
#define absolute_f32 fabsf
#define root_f32 sqrtf
#define down_f32 floorf
#define up_f32 ceilf
#define nearest_f32 rintf
#include "math_real.h"
#undef R
#undef real
#define R(name) name##_f64
#define real double
#define libm_pow_f64 pow
#define absolute_f64 fabs
#define root_f64 sqrt
#define down_f64 floor
#define up_f64 ceil
#define nearest_f64 rint
#include "math_real.h"
#undef R
#undef real

/* -- sine and cosine: a block without huge arguments vectorises -------------------------------- */

#define TRIG(op, quadrants)                                                              \
    static void op##_f32(char *const *p, int64_t first, int64_t n, const void *params) { \
        float *out = (float *)(void *)p[0];                                              \
        const float *a = (const float *)(const void *)p[1];                              \
        (void)first, (void)params;                                                       \
        for (int64_t at = 0; at < n; at += MCI_BLOCK) {                                  \
            int64_t end = n - at < MCI_BLOCK ? n : at + MCI_BLOCK;                       \
            int huge = 0;                                                                \
            for (int64_t i = at; i < end; i++) huge |= !(fabsf(a[i]) <= MCI_TRIG_MAX);   \
            if (huge) {                                                                  \
                for (int64_t i = at; i < end; i++) out[i] = mci_##op##_f32(a[i]);        \
            } else {                                                                     \
                _Pragma("GCC ivdep") for (int64_t i = at; i < end; i++) out[i] =         \
                    mci_trig_f32(a[i], quadrants);                                       \
            }                                                                            \
        }                                                                                \
    }                                                                                    \
    static void op##_f64(char *const *p, int64_t first, int64_t n, const void *params) { \
        double *out = (double *)(void *)p[0];                                            \
        const double *a = (const double *)(const void *)p[1];                            \
        (void)first, (void)params;                                                       \
        for (int64_t i = 0; i < n; i++) out[i] = op(a[i]);                               \
    }
TRIG(sin, 0)
TRIG(cos, 1)

/* -- integers ---------------------------------------------------------------------------------- */

#define INT_LOOP(type, op, EXPR)                                                         \
    static void op##_i64(char *const *p, int64_t first, int64_t n, const void *params) { \
        type *out = (type *)(void *)p[0];                                                \
        const int64_t *a = (const int64_t *)(const void *)p[1];                          \
        const int64_t *b = (const int64_t *)(const void *)p[2];                          \
        (void)first, (void)params;                                                       \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) {                           \
            int64_t x = a[i], y = b[i];                                                  \
            (void)y;                                                                     \
            out[i] = (type)(EXPR);                                                       \
        }                                                                                \
    }
#define INT_UNARY(type, op, EXPR)                                                        \
    static void op##_i64(char *const *p, int64_t first, int64_t n, const void *params) { \
        type *out = (type *)(void *)p[0];                                                \
        const int64_t *a = (const int64_t *)(const void *)p[1];                          \
        (void)first, (void)params;                                                       \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) {                           \
            int64_t x = a[i];                                                            \
            out[i] = (type)(EXPR);                                                       \
        }                                                                                \
    }
INT_LOOP(int64_t, add, (uint64_t)x + (uint64_t)y)
INT_LOOP(int64_t, sub, (uint64_t)x - (uint64_t)y)
INT_LOOP(int64_t, mul, (uint64_t)x *(uint64_t)y)
INT_LOOP(int64_t, maximum, x > y ? x : y)
INT_LOOP(int64_t, minimum, x < y ? x : y)
INT_LOOP(uint8_t, eq, x == y)
INT_LOOP(uint8_t, ne, x != y)
INT_LOOP(uint8_t, lt, x < y)
INT_LOOP(uint8_t, le, x <= y)
INT_LOOP(uint8_t, gt, x > y)
INT_LOOP(uint8_t, ge, x >= y)
INT_UNARY(int64_t, neg, 0 - (uint64_t)x)
INT_UNARY(int64_t, abs, x < 0 ? 0 - (uint64_t)x : (uint64_t)x)
INT_UNARY(int64_t, sign, (x > 0) - (x < 0))
INT_UNARY(uint8_t, isnan, x != x)
INT_UNARY(uint8_t, isfinite, x == x)
INT_UNARY(uint8_t, logical_not, x == 0)

static void clamp_i64(char *const *p, int64_t first, int64_t n, const void *params) {
    const mci_clamp_params *q = params;
    int64_t low = mci_f64_to_i64(q->low), high = mci_f64_to_i64(q->high);
    int64_t *out = (int64_t *)(void *)p[0];
    const int64_t *a = (const int64_t *)(const void *)p[1];
    (void)first;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        int64_t x = a[i] < low ? low : a[i];
        out[i] = x > high ? high : x;
    }
}

/* -- kernels ----------------------------------------------------------------------------------- */

/* The loops of an op by compute kind; the inputs decide it. raw_out: the output is bool. */
typedef struct op_loops {
    mci_loop_fn fn[3];
    int raw_out;
} op_loops;

enum { SMALL = 64 };

/* t: out, then n_in inputs of one dtype. */
static mc_status elementwise(const mci_view *const *t, int n_in, const op_loops *ops,
                             const void *params) {
    int kind = mci_compute_kind(t[1]->dtype), n_op = n_in + 1;
    mci_loop_fn fn = ops->fn[kind];
    int64_t numel = mci_numel(t[0]);
    if (!fn)
        return mci_fail(MC_EINTERNAL, "elementwise: no loop for %s", mci_dtypes[t[1]->dtype].name);
    if (numel < MCI_PARALLEL_MIN && mci_kind_direct(kind, t[1]->dtype) && mci_views_flat(n_op, t)) {
        char *p[3] = {t[0]->data, t[1]->data, n_in > 1 ? t[2]->data : NULL};
        if (numel > 0) fn(p, 0, numel, params);
        return MC_OK;
    }
    mci_loop loop = {fn, params, 1, {ops->raw_out ? MCI_RAW : kind, kind, kind}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, n_op, t, 0);
    MCI_CPU(run)(&it, &loop);
    return MC_OK;
}

/* t: out, a, b; or with a number instead of b, which takes a's dtype. */
static mc_status binary(const mci_view *const *t, const void *p, const op_loops *ops) {
    const mci_scalar_params *q = p;
    if (!q || !q->has_scalar) return elementwise(t, 2, ops, NULL);
    int dtype = t[1]->dtype, kind = mci_compute_kind(dtype), a = q->reverse ? 2 : 1;
    uint64_t number = 0;
    MCI_CPU(store_f64)(&number, dtype, mci_dtypes[dtype].size, &q->scalar, 1);
    int64_t numel = mci_numel(t[0]);
    if (numel <= SMALL && mci_kind_direct(kind, dtype) && mci_views_flat(2, t)) {
        uint64_t row[SMALL];
        MCI_CPU(load)(kind, row, &number, dtype, 0, numel);
        char *operand[3] = {t[0]->data, (char *)row, (char *)row};
        operand[a] = t[1]->data;
        if (numel > 0) ops->fn[kind](operand, 0, numel, NULL);
        return MC_OK;
    }
    mci_view scalar = {.data = &number, .dtype = dtype};
    const mci_view *v[3] = {t[0], &scalar, &scalar};
    v[a] = t[1];
    return elementwise(v, 2, ops, NULL);
}

#define KERNEL(op, CALL)                                                              \
    mc_status MCI_CPU(op)(mci_exec * exec, const mci_view *const *t, const void *p) { \
        (void)exec, (void)p;                                                          \
        return CALL;                                                                  \
    }
#define BINARY_KERNEL(op, i64, raw)                                      \
    static const op_loops op##_loops = {{op##_f32, op##_f64, i64}, raw}; \
    KERNEL(op, binary(t, p, &op##_loops))
#define UNARY_KERNEL(op, i64, raw)                                       \
    static const op_loops op##_loops = {{op##_f32, op##_f64, i64}, raw}; \
    KERNEL(op, elementwise(t, 1, &op##_loops, p))
#define BACKWARD_KERNEL(op)                                             \
    static const op_loops op##_loops = {{op##_f32, op##_f64, NULL}, 0}; \
    KERNEL(op, elementwise(t, 2, &op##_loops, p))

BINARY_KERNEL(add, add_i64, 0)
BINARY_KERNEL(sub, sub_i64, 0)
BINARY_KERNEL(mul, mul_i64, 0)
BINARY_KERNEL(div, NULL, 0)
BINARY_KERNEL(pow, NULL, 0)
BINARY_KERNEL(maximum, maximum_i64, 0)
BINARY_KERNEL(minimum, minimum_i64, 0)
BINARY_KERNEL(eq, eq_i64, 1)
BINARY_KERNEL(ne, ne_i64, 1)
BINARY_KERNEL(lt, lt_i64, 1)
BINARY_KERNEL(le, le_i64, 1)
BINARY_KERNEL(gt, gt_i64, 1)
BINARY_KERNEL(ge, ge_i64, 1)
UNARY_KERNEL(neg, neg_i64, 0)
UNARY_KERNEL(abs, abs_i64, 0)
UNARY_KERNEL(sign, sign_i64, 0)
UNARY_KERNEL(exp, NULL, 0)
UNARY_KERNEL(log, NULL, 0)
UNARY_KERNEL(sqrt, NULL, 0)
UNARY_KERNEL(rsqrt, NULL, 0)
UNARY_KERNEL(sin, NULL, 0)
UNARY_KERNEL(cos, NULL, 0)
UNARY_KERNEL(tanh, NULL, 0)
UNARY_KERNEL(sigmoid, NULL, 0)
UNARY_KERNEL(relu, NULL, 0)
UNARY_KERNEL(gelu, NULL, 0)
UNARY_KERNEL(silu, NULL, 0)
UNARY_KERNEL(floor, NULL, 0)
UNARY_KERNEL(ceil, NULL, 0)
UNARY_KERNEL(round, NULL, 0)
UNARY_KERNEL(isnan, isnan_i64, 1)
UNARY_KERNEL(isfinite, isfinite_i64, 1)
UNARY_KERNEL(logical_not, logical_not_i64, 1)
UNARY_KERNEL(clamp, clamp_i64, 0)
BACKWARD_KERNEL(relu_backward)
BACKWARD_KERNEL(gelu_backward)
BACKWARD_KERNEL(silu_backward)

/* -- where: moves bits, so it takes every dtype ------------------------------------------------ */

#define WHERE(T)                                                                          \
    static void where_##T(char *const *p, int64_t first, int64_t n, const void *params) { \
        T *out = (T *)(void *)p[0];                                                       \
        const uint8_t *c = (const uint8_t *)p[1];                                         \
        const T *a = (const T *)(const void *)p[2], *b = (const T *)(const void *)p[3];   \
        (void)first, (void)params;                                                        \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) {                            \
            T x = a[i], y = b[i];                                                         \
            out[i] = c[i] ? x : y;                                                        \
        }                                                                                 \
    }
WHERE(uint8_t)
WHERE(uint16_t)
WHERE(uint32_t)
WHERE(uint64_t)

/* t: out, condition (bool), a, b. */
mc_status MCI_CPU(where)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec, (void)p;
    int size = mci_dtypes[t[0]->dtype].size;
    mci_loop_fn fn = size == 1   ? where_uint8_t
                     : size == 2 ? where_uint16_t
                     : size == 4 ? where_uint32_t
                                 : where_uint64_t;
    mci_loop loop = {fn, NULL, 1, {MCI_RAW, MCI_RAW, MCI_RAW, MCI_RAW}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 4, t, 0);
    MCI_CPU(run)(&it, &loop);
    return MC_OK;
}

/* -- swiglu ------------------------------------------------------------------------------------ */

/* The gate (half = 0) or up (half = 1) part of v [.., 2I]. */
static mci_view half_of(const mci_view *v, int half) {
    mci_view h = *v;
    int last = v->ndim - 1;
    h.shape[last] /= 2;
    h.data = (char *)v->data + half * h.shape[last] * v->stride[last] * mci_dtypes[v->dtype].size;
    return h;
}

/* t: y [.., I], x [.., 2I]. */
mc_status MCI_CPU(swiglu)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec, (void)p;
    static const op_loops loops = {{swiglu_f32, swiglu_f64, NULL}, 0};
    mci_view gate = half_of(t[1], 0), up = half_of(t[1], 1);
    const mci_view *v[3] = {t[0], &gate, &up};
    return elementwise(v, 2, &loops, NULL);
}

/* t: dx [.., 2I], dy [.., I], x [.., 2I]. */
mc_status MCI_CPU(swiglu_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec, (void)p;
    int kind = mci_compute_kind(t[2]->dtype);
    mci_view dgate = half_of(t[0], 0), dup = half_of(t[0], 1);
    mci_view gate = half_of(t[2], 0), up = half_of(t[2], 1);
    const mci_view *v[5] = {&dgate, &dup, t[1], &gate, &up};
    mci_loop loop = {kind == MCI_F64 ? swiglu_backward_f64 : swiglu_backward_f32,
                     NULL,
                     2,
                     {kind, kind, kind, kind, kind}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 5, v, 0);
    MCI_CPU(run)(&it, &loop);
    return MC_OK;
}
