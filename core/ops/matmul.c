/* matmul.c: argument checks of mc_matmul and mc_linear. The product's kernels get operands of one
 * rank of at least 2, a 1-D operand with an axis of size 1 beside it and batch axes broadcast with
 * stride 0.
 */
#include "call.h"

static int tf32_allowed; /* of the process; products read it when they are called */

void mc_set_allow_tf32(int allow) {
    tf32_allowed = allow != 0;
}

int mc_get_allow_tf32(void) {
    return tf32_allowed;
}

/* v with `ndim` axes: the last two are its own, the batch axes before them are those of `batch`. */
static mci_view expanded(const mci_view *v, int ndim, const int64_t *batch) {
    mci_view r = *v;
    int skip = ndim - v->ndim;
    r.ndim = ndim;
    for (int d = 0; d < ndim - 2; d++) {
        int own = d >= skip;
        r.shape[d] = batch[d];
        r.stride[d] = own && v->shape[d - skip] == batch[d] ? v->stride[d - skip] : 0;
    }
    for (int d = ndim - 2; d < ndim; d++) {
        r.shape[d] = v->shape[d - skip];
        r.stride[d] = v->stride[d - skip];
    }
    return r;
}

/* v with an axis of size 1 put in at `axis` */
static mci_view unsqueezed(const mci_view *v, int axis) {
    mci_view r = *v;
    r.ndim = v->ndim + 1;
    for (int d = v->ndim; d > axis; d--) {
        r.shape[d] = v->shape[d - 1];
        r.stride[d] = v->stride[d - 1];
    }
    r.shape[axis] = 1;
    r.stride[axis] = 1;
    return r;
}

mc_status mc_matmul(mc_tensor *out, const mc_tensor *a, const mc_tensor *b) {
    mci_call c = mci_begin("matmul", MCI_OP_matmul, 1);
    c.apart = 1;
    mci_in(&c, 0, a);
    mci_in(&c, 1, b);
    if (mci_ok(&c)) {
        mci_want_float(&c, "a", a);
        mci_want_float(&c, "b", b);
        mci_want_same_dtype(&c, "a", a, "b", b);
    }
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    if (a->v.ndim == 0 || b->v.ndim == 0) {
        mci_bad(&c, "a is %s, b is %s, each needs at least 1 axis", mci_shape_of(a),
                mci_shape_of(b));
        return mci_end(&c, NULL);
    }
    mci_view va = a->v.ndim == 1 ? unsqueezed(&a->v, 0) : a->v;
    mci_view vb = b->v.ndim == 1 ? unsqueezed(&b->v, 1) : b->v;
    int64_t batch[MC_MAX_DIMS], shape[MC_MAX_DIMS];
    int axes = 0;
    if (va.shape[va.ndim - 1] != vb.shape[vb.ndim - 2])
        mci_bad(&c, "inner sizes differ: a is %s, b is %s", mci_shape_of(a), mci_shape_of(b));
    else if (!mci_broadcast(va.ndim - 2, va.shape, vb.ndim - 2, vb.shape, &axes, batch))
        mci_bad(&c, "batch sizes do not broadcast: a is %s, b is %s", mci_shape_of(a),
                mci_shape_of(b));
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t m = va.shape[va.ndim - 2], n = vb.shape[vb.ndim - 1];
    int ndim = 0;
    for (; ndim < axes; ndim++) shape[ndim] = batch[ndim];
    if (a->v.ndim > 1) shape[ndim++] = m;
    if (b->v.ndim > 1) shape[ndim++] = n;
    mci_out(&c, 0, out, a->v.dtype, ndim, shape);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_view vc = a->v.ndim > 1 ? out->v : unsqueezed(&out->v, axes);
    if (b->v.ndim == 1) vc = unsqueezed(&vc, axes + 1);
    va = expanded(&va, axes + 2, batch);
    vb = expanded(&vb, axes + 2, batch);
    c.t[0] = &vc;
    c.t[1] = &va;
    c.t[2] = &vb;
    mci_matmul_params p = {.tf32 = tf32_allowed};
    return mci_end(&c, &p);
}

mc_status mc_linear(mc_tensor *y, const mc_tensor *x, const mc_tensor *weight,
                    const mc_tensor *bias, int gelu) {
    mci_call c = mci_begin("linear", MCI_OP_linear, 1);
    c.apart = 1;
    mci_in(&c, 0, x);
    mci_in(&c, 1, weight);
    mci_in_optional(&c, 2, bias);
    if (mci_ok(&c)) {
        mci_want_float(&c, "x", x);
        mci_want_float(&c, "weight", weight);
        mci_want_same_dtype(&c, "x", x, "weight", weight);
    }
    if (mci_ok(&c) &&
        (x->v.ndim != 2 || weight->v.ndim != 2 || x->v.shape[1] != weight->v.shape[1]))
        mci_bad(&c, "x is %s and weight is %s, wanted [R, K] and [N, K]", mci_shape_of(x),
                mci_shape_of(weight));
    if (mci_ok(&c) && bias) {
        mci_want_same_dtype(&c, "x", x, "bias", bias);
        mci_want_shape(&c, "bias", bias, 1, weight->v.shape);
    }
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_out(&c, 0, y, x->v.dtype, 2, (int64_t[]){x->v.shape[0], weight->v.shape[0]});
    mci_matmul_params p = {.tf32 = tf32_allowed, .gelu = gelu != 0};
    return mci_end(&c, &p);
}
