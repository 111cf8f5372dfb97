/* random.c: checks of the random fills and of dropout. rng.h defines the numbers. */
#include <math.h>

#include "call.h"
#include "dtype.h"

/* `state` as inout output i: int64 [2] = {seed, offset}. */
static void in_state(mci_call *c, int i, mc_tensor *state) {
    static const int64_t two[1] = {2};
    mci_inout(c, i, state, 0);
    if (!mci_ok(c)) return;
    mci_want_shape(c, "the state", state, 1, two);
    if (mci_ok(c) && state->v.dtype != MC_INT64)
        mci_bad(c, "the state is %s, wanted int64", mc_dtype_name(state->v.dtype));
}

static mc_status float_fill(const char *name, int op, mc_tensor *t, mc_tensor *state, double a,
                            double b, int is_range) {
    mci_call c = mci_begin(name, op, 2);
    mci_inout(&c, 0, t, 0);
    in_state(&c, 1, state);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "the tensor", t);
    if (!isfinite(a) || !isfinite(b))
        mci_bad(&c, "%s %g and %s %g must be finite", is_range ? "low" : "mean", a,
                is_range ? "high" : "std", b);
    if (is_range && a > b) mci_bad(&c, "low %g is above high %g", a, b);
    if (!is_range && b < 0) mci_bad(&c, "std is %g, wanted 0 or more", b);
    return mci_end(&c, &(mci_random_params){.a = a, .b = b});
}

mc_status mc_random_uniform(mc_tensor *t, mc_tensor *state, double low, double high) {
    return float_fill("random_uniform", MCI_OP_random_uniform, t, state, low, high, 1);
}

mc_status mc_random_normal(mc_tensor *t, mc_tensor *state, double mean, double std) {
    return float_fill("random_normal", MCI_OP_random_normal, t, state, mean, std, 0);
}

mc_status mc_random_integers(mc_tensor *t, mc_tensor *state, int64_t low, int64_t high) {
    mci_call c = mci_begin("random_integers", MCI_OP_random_integers, 2);
    mci_inout(&c, 0, t, 0);
    in_state(&c, 1, state);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int dtype = t->v.dtype;
    int64_t least = INT64_MIN, most = INT64_MAX; /* of the dtype */
    if (dtype == MC_INT32) least = INT32_MIN, most = INT32_MAX;
    if (dtype == MC_UINT8) least = 0, most = UINT8_MAX;
    if (dtype == MC_BOOL) least = 0, most = 1;
    if (mci_dtype_kind(dtype) == MCI_KIND_STORE)
        mci_bad(&c, "the tensor is %s, a storage type; fill a float32 one and convert it",
                mc_dtype_name(dtype));
    if (low >= high)
        mci_bad(&c, "no integer from %lld up to below %lld", (long long)low, (long long)high);
    else if ((uint64_t)high - (uint64_t)low > UINT64_C(1) << 32)
        mci_bad(&c, "%lld to %lld spans more than 2^32 integers", (long long)low, (long long)high);
    else if (low < least || high - 1 > most)
        mci_bad(&c, "%lld to %lld does not fit in a tensor of %s", (long long)low,
                (long long)(high - 1), mc_dtype_name(dtype));
    return mci_end(&c, &(mci_random_params){.low = low, .high = high});
}

static void want_probability(mci_call *c, double p) {
    if (mci_ok(c) && !(p >= 0 && p <= 1)) mci_bad(c, "p is %g, wanted 0 to 1", p);
}

mc_status mc_dropout(mc_tensor *y, mc_tensor *keep, const mc_tensor *x, mc_tensor *state,
                     double p) {
    mci_call c = mci_begin("dropout", MCI_OP_dropout, 3);
    mci_in(&c, 0, x);
    in_state(&c, 2, state);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "x", x);
    want_probability(&c, p);
    mci_out(&c, 0, y, x->v.dtype, x->v.ndim, x->v.shape);
    mci_out(&c, 1, keep, MC_UINT8, x->v.ndim, x->v.shape);
    return mci_end(&c, &(mci_random_params){.a = p});
}

mc_status mc_dropout_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *keep, double p) {
    mci_call c = mci_begin("dropout_backward", MCI_OP_dropout_backward, 1);
    mci_in(&c, 0, dy);
    mci_in(&c, 1, keep);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "dy", dy);
    want_probability(&c, p);
    mci_want_shape(&c, "keep", keep, dy->v.ndim, dy->v.shape);
    if (keep->v.dtype != MC_UINT8)
        mci_bad(&c, "keep is %s, wanted uint8", mc_dtype_name(keep->v.dtype));
    mci_out(&c, 0, dx, dy->v.dtype, dy->v.ndim, dy->v.shape);
    return mci_end(&c, &(mci_random_params){.a = p});
}
