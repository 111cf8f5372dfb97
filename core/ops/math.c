/* math.c: checks of the elementwise ops. Inputs broadcast and have one dtype; bool has comparisons,
 * maximum and minimum but no arithmetic; 8-bit floats have none of it. */
#include <math.h>

#include "call.h"
#include "dtype.h"

/* What an op asks of its input's dtype. */
enum {
    ANY_NUMBER,  /* integers and floats */
    ORDERED,     /* these and bool */
    FLOATS_ONLY, /* float64, float32, float16, bfloat16 */
};

static void want_dtype(mci_call *c, const char *name, const mc_tensor *a, int need) {
    if (!mci_ok(c)) return;
    int kind = mci_dtype_kind(a->v.dtype);
    if (need == FLOATS_ONLY) {
        mci_want_float(c, name, a);
    } else if (kind == MCI_KIND_STORE) {
        mci_bad(c, "%s is %s, a storage type without arithmetic; convert it with t:to(\"float32\")",
                name, mc_dtype_name(a->v.dtype));
    } else if (kind == MCI_KIND_BOOL && need == ANY_NUMBER) {
        mci_bad(c, "%s is bool, which has no arithmetic; convert it with t:to(\"int32\")", name);
    }
}

static mc_status binary(const char *name, int op, mc_tensor *out, const mc_tensor *a,
                        const mc_tensor *b, int need, int compare) {
    mci_call c = mci_begin(name, op, 1);
    mci_in(&c, 0, a);
    mci_in(&c, 1, b);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_same_dtype(&c, "a", a, "b", b);
    want_dtype(&c, "a", a, need);
    int dtype = compare ? MC_BOOL : a->v.dtype, n;
    int64_t shape[MC_MAX_DIMS];
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    if (mci_same_shape(a, b))
        mci_out(&c, 0, out, dtype, a->v.ndim, a->v.shape);
    else if (mci_broadcast(a->v.ndim, a->v.shape, b->v.ndim, b->v.shape, &n, shape))
        mci_out(&c, 0, out, dtype, n, shape);
    else
        mci_bad(&c, "shapes do not broadcast: a is %s, b is %s", mci_shape_of(a), mci_shape_of(b));
    return mci_end(&c, NULL);
}

static mc_status scalar(const char *name, int op, mc_tensor *out, const mc_tensor *a, double s,
                        int reverse, int need, int compare) {
    mci_call c = mci_begin(name, op, 1);
    mci_in(&c, 0, a);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_dtype(&c, "a", a, need);
    mci_want_number(&c, s, a->v.dtype);
    mci_out(&c, 0, out, compare ? MC_BOOL : a->v.dtype, a->v.ndim, a->v.shape);
    mci_scalar_params p = {.scalar = s, .has_scalar = 1, .reverse = reverse};
    return mci_end(&c, &p);
}

#define BINARY(op, need, compare)                                                           \
    mc_status mc_##op(mc_tensor *out, const mc_tensor *a, const mc_tensor *b) {             \
        return binary(#op, MCI_OP_##op, out, a, b, need, compare);                          \
    }                                                                                       \
    mc_status mc_##op##_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse) { \
        return scalar(#op, MCI_OP_##op, out, a, s, reverse, need, compare);                 \
    }
BINARY(add, ANY_NUMBER, 0)
BINARY(sub, ANY_NUMBER, 0)
BINARY(mul, ANY_NUMBER, 0)
BINARY(div, FLOATS_ONLY, 0)
BINARY(pow, FLOATS_ONLY, 0)
BINARY(maximum, ORDERED, 0)
BINARY(minimum, ORDERED, 0)
BINARY(eq, ORDERED, 1)
BINARY(ne, ORDERED, 1)
BINARY(lt, ORDERED, 1)
BINARY(le, ORDERED, 1)
BINARY(gt, ORDERED, 1)
BINARY(ge, ORDERED, 1)

static mc_status unary(const char *name, int op, mc_tensor *out, const mc_tensor *a, int need,
                       int to_bool) {
    mci_call c = mci_begin(name, op, 1);
    mci_in(&c, 0, a);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_dtype(&c, "a", a, need);
    mci_out(&c, 0, out, to_bool ? MC_BOOL : a->v.dtype, a->v.ndim, a->v.shape);
    return mci_end(&c, NULL);
}

#define UNARY(op, need, to_bool)                               \
    mc_status mc_##op(mc_tensor *out, const mc_tensor *a) {    \
        return unary(#op, MCI_OP_##op, out, a, need, to_bool); \
    }
UNARY(neg, ANY_NUMBER, 0)
UNARY(abs, ANY_NUMBER, 0)
UNARY(sign, ANY_NUMBER, 0)
UNARY(exp, FLOATS_ONLY, 0)
UNARY(log, FLOATS_ONLY, 0)
UNARY(sqrt, FLOATS_ONLY, 0)
UNARY(rsqrt, FLOATS_ONLY, 0)
UNARY(sin, FLOATS_ONLY, 0)
UNARY(cos, FLOATS_ONLY, 0)
UNARY(tanh, FLOATS_ONLY, 0)
UNARY(sigmoid, FLOATS_ONLY, 0)
UNARY(relu, FLOATS_ONLY, 0)
UNARY(gelu, FLOATS_ONLY, 0)
UNARY(silu, FLOATS_ONLY, 0)
UNARY(floor, FLOATS_ONLY, 0)
UNARY(ceil, FLOATS_ONLY, 0)
UNARY(round, FLOATS_ONLY, 0)
UNARY(isnan, ORDERED, 1)
UNARY(isfinite, ORDERED, 1)
UNARY(logical_not, ORDERED, 1)

static mc_status backward(const char *name, int op, mc_tensor *dx, const mc_tensor *dy,
                          const mc_tensor *x) {
    mci_call c = mci_begin(name, op, 1);
    mci_in(&c, 0, dy);
    mci_in(&c, 1, x);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_dtype(&c, "x", x, FLOATS_ONLY);
    mci_want_same_dtype(&c, "dy", dy, "x", x);
    mci_want_shape(&c, "dy", dy, x->v.ndim, x->v.shape);
    mci_out(&c, 0, dx, x->v.dtype, x->v.ndim, x->v.shape);
    return mci_end(&c, NULL);
}

mc_status mc_relu_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *x) {
    return backward("relu_backward", MCI_OP_relu_backward, dx, dy, x);
}

mc_status mc_gelu_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *x) {
    return backward("gelu_backward", MCI_OP_gelu_backward, dx, dy, x);
}

mc_status mc_silu_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *x) {
    return backward("silu_backward", MCI_OP_silu_backward, dx, dy, x);
}

mc_status mc_clamp(mc_tensor *out, const mc_tensor *a, double low, double high) {
    mci_call c = mci_begin("clamp", MCI_OP_clamp, 1);
    mci_in(&c, 0, a);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_dtype(&c, "a", a, ANY_NUMBER);
    if (isnan(low) || isnan(high)) mci_bad(&c, "a bound is NaN");
    if (!isinf(low)) mci_want_number(&c, low, a->v.dtype);
    if (!isinf(high)) mci_want_number(&c, high, a->v.dtype);
    mci_out(&c, 0, out, a->v.dtype, a->v.ndim, a->v.shape);
    return mci_end(&c, &(mci_clamp_params){.low = low, .high = high});
}

mc_status mc_where(mc_tensor *out, const mc_tensor *condition, const mc_tensor *a,
                   const mc_tensor *b) {
    mci_call c = mci_begin("where", MCI_OP_where, 1);
    mci_in(&c, 0, condition);
    mci_in(&c, 1, a);
    mci_in(&c, 2, b);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_same_dtype(&c, "a", a, "b", b);
    if (condition->v.dtype != MC_BOOL)
        mci_bad(&c, "the condition is %s; wanted bool, make it by a comparison",
                mc_dtype_name(condition->v.dtype));
    int n, m;
    int64_t both[MC_MAX_DIMS], all[MC_MAX_DIMS];
    if (!mci_broadcast(a->v.ndim, a->v.shape, b->v.ndim, b->v.shape, &n, both) ||
        !mci_broadcast(n, both, condition->v.ndim, condition->v.shape, &m, all))
        mci_bad(&c, "shapes do not broadcast: the condition is %s, a is %s, b is %s",
                mci_shape_of(condition), mci_shape_of(a), mci_shape_of(b));
    mci_out(&c, 0, out, a->v.dtype, m, all);
    return mci_end(&c, NULL);
}

/* The shape of y for x [.., 2I]. */
static void half_shape(mci_call *c, const mc_tensor *x, int64_t *shape) {
    if (!mci_ok(c)) return;
    int last = x->v.ndim - 1;
    if (last < 0 || x->v.shape[last] % 2 != 0) {
        mci_bad(c, "x is %s; its last axis must be even: gate half, then up half", mci_shape_of(x));
        return;
    }
    for (int i = 0; i <= last; i++) shape[i] = x->v.shape[i] / (i == last ? 2 : 1);
}

mc_status mc_swiglu(mc_tensor *y, const mc_tensor *x) {
    mci_call c = mci_begin("swiglu", MCI_OP_swiglu, 1);
    int64_t shape[MC_MAX_DIMS];
    mci_in(&c, 0, x);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_dtype(&c, "x", x, FLOATS_ONLY);
    half_shape(&c, x, shape);
    mci_out(&c, 0, y, x->v.dtype, x->v.ndim, shape);
    return mci_end(&c, NULL);
}

mc_status mc_swiglu_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *x) {
    mci_call c = mci_begin("swiglu_backward", MCI_OP_swiglu_backward, 1);
    int64_t shape[MC_MAX_DIMS];
    mci_in(&c, 0, dy);
    mci_in(&c, 1, x);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_dtype(&c, "x", x, FLOATS_ONLY);
    half_shape(&c, x, shape);
    mci_want_same_dtype(&c, "dy", dy, "x", x);
    mci_want_shape(&c, "dy", dy, x->v.ndim, shape);
    mci_out(&c, 0, dx, x->v.dtype, x->v.ndim, x->v.shape);
    return mci_end(&c, NULL);
}
