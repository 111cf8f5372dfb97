/* attention.c: checks of rope and attention. Outputs of attention are never the memory of an input:
 * a head's rows are read again after other rows are written. */
#include "call.h"

mc_status mc_rope(mc_tensor *y, const mc_tensor *x, double theta, int64_t first, int inverse) {
    mci_call c = mci_begin("rope", MCI_OP_rope, 1);
    mci_in(&c, 0, x);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "x", x);
    if (mci_ok(&c) && x->v.ndim != 4) mci_bad(&c, "x is %s, wanted [B, T, H, D]", mci_shape_of(x));
    if (mci_ok(&c) && x->v.shape[3] % 2 != 0)
        mci_bad(&c, "x is %s, its last axis must be even: it is rotated in pairs", mci_shape_of(x));
    if (mci_ok(&c) && !(theta > 0)) mci_bad(&c, "theta is %g, wanted more than 0", theta);
    mci_out(&c, 0, y, x->v.dtype, x->v.ndim, x->v.shape);
    mci_rope_params p = {.theta = theta, .first = first, .inverse = inverse != 0};
    return mci_end(&c, &p);
}

/* q [B, T, H, D], k and v [B, S, Hkv, D] of one dtype. */
static void want_qkv(mci_call *c, const mc_tensor *q, const mc_tensor *k, const mc_tensor *v) {
    mci_want_float(c, "q", q);
    mci_want_same_dtype(c, "q", q, "k", k);
    mci_want_same_dtype(c, "q", q, "v", v);
    if (!mci_ok(c)) return;
    const int64_t *qs = q->v.shape, *ks = k->v.shape;
    if (q->v.ndim != 4)
        mci_bad(c, "q is %s, wanted [B, T, H, D]", mci_shape_of(q));
    else if (k->v.ndim != 4)
        mci_bad(c, "k is %s, wanted [B, S, Hkv, D]", mci_shape_of(k));
    else if (!mci_same_shape(k, v))
        mci_bad(c, "k is %s and v is %s, wanted equal", mci_shape_of(k), mci_shape_of(v));
    else if (qs[0] != ks[0] || qs[3] != ks[3])
        mci_bad(c, "q is %s and k is %s, wanted equal first (batch) and last (head size) axes",
                mci_shape_of(q), mci_shape_of(k));
    else if (ks[2] < 1 || qs[2] % ks[2] != 0)
        mci_bad(c, "q has %lld heads, wanted a multiple of k's %lld", (long long)qs[2],
                (long long)ks[2]);
}

static mci_attention_params params_of(double scale, int causal) {
    mci_attention_params p = {.scale = scale, .causal = causal != 0};
    return p;
}

mc_status mc_attention(mc_tensor *out, mc_tensor *lse, const mc_tensor *q, const mc_tensor *k,
                       const mc_tensor *v, double scale, int causal) {
    mci_call c = mci_begin("attention", MCI_OP_attention, 2);
    c.apart = 1;
    mci_in(&c, 0, q);
    mci_in(&c, 1, k);
    mci_in(&c, 2, v);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_qkv(&c, q, k, v);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t lse_shape[3] = {q->v.shape[0], q->v.shape[2], q->v.shape[1]};
    mci_out(&c, 0, out, q->v.dtype, 4, q->v.shape);
    mci_out(&c, 1, lse, mci_stat_dtype(q->v.dtype), 3, lse_shape);
    mci_attention_params p = params_of(scale, causal);
    return mci_end(&c, &p);
}

mc_status mc_attention_backward(mc_tensor *dq, mc_tensor *dk, mc_tensor *dv, const mc_tensor *dout,
                                const mc_tensor *q, const mc_tensor *k, const mc_tensor *v,
                                const mc_tensor *out, const mc_tensor *lse, double scale,
                                int causal) {
    mci_call c = mci_begin("attention_backward", MCI_OP_attention_backward, 3);
    c.apart = 1;
    const mc_tensor *inputs[] = {dout, q, k, v, out, lse};
    for (int i = 0; i < 6; i++) mci_in(&c, i, inputs[i]);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_qkv(&c, q, k, v);
    mci_want_same_dtype(&c, "dout", dout, "q", q);
    mci_want_same_dtype(&c, "out", out, "q", q);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_shape(&c, "dout", dout, 4, q->v.shape);
    mci_want_shape(&c, "out", out, 4, q->v.shape);
    int64_t lse_shape[3] = {q->v.shape[0], q->v.shape[2], q->v.shape[1]};
    mci_want_shape(&c, "lse", lse, 3, lse_shape);
    int dtype = mci_stat_dtype(q->v.dtype);
    if (mci_ok(&c) && lse->v.dtype != dtype)
        mci_bad(&c, "lse is %s, %s is wanted for %s q", mc_dtype_name(lse->v.dtype),
                mc_dtype_name(dtype), mc_dtype_name(q->v.dtype));
    mci_out(&c, 0, dq, q->v.dtype, 4, q->v.shape);
    mci_out(&c, 1, dk, k->v.dtype, 4, k->v.shape);
    mci_out(&c, 2, dv, v->v.dtype, 4, v->v.shape);
    mci_attention_params p = params_of(scale, causal);
    return mci_end(&c, &p);
}
