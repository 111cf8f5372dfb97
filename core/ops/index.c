/* index.c: checks of index_select, index_add, gather and scatter_add, all but the range of the
 * indices, which the kernels check. */
#include "call.h"
#include "dtype.h"

static void want_axis(mci_call *c, const mc_tensor *a, int axis) {
    if (!mci_ok(c) || (axis >= 0 && axis < a->v.ndim)) return;
    if (a->v.ndim == 0)
        mci_bad(c, "axis %d of a 0-d tensor: it has none", axis);
    else
        mci_bad(c, "axis %d of a tensor of shape %s, legal are 0 to %d (0-based)", axis,
                mci_shape_of(a), a->v.ndim - 1);
}

static void want_sums(mci_call *c, const mc_tensor *da) {
    int kind = mci_dtype_kind(da->v.dtype);
    if (mci_ok(c) && (kind == MCI_KIND_STORE || kind == MCI_KIND_BOOL))
        mci_bad(c, "da is %s, which has no arithmetic; convert it with t:to(\"%s\")",
                mc_dtype_name(da->v.dtype), kind == MCI_KIND_BOOL ? "int32" : "float32");
}

/* a's shape with `axis` replaced by index's: its rank, or 0 after recording a failure. */
static int selected_shape(mci_call *c, const mc_tensor *a, int axis, const mc_tensor *index,
                          int64_t *shape) {
    mci_want_index(c, "index", index);
    want_axis(c, a, axis);
    if (mci_ok(c) && axis != 0 && index->v.ndim != 1)
        mci_bad(c, "index is %s; along axis %d (0-based) a 1-D index is wanted",
                mci_shape_of(index), axis);
    if (mci_ok(c) && a->v.ndim - 1 + index->v.ndim > MC_MAX_DIMS)
        mci_bad(c, "a is %s and index is %s: the result has more than %d axes", mci_shape_of(a),
                mci_shape_of(index), MC_MAX_DIMS);
    if (!mci_ok(c)) return 0;
    int n = 0;
    for (int d = 0; d < a->v.ndim; d++) {
        if (d != axis) shape[n++] = a->v.shape[d];
        if (d == axis)
            for (int i = 0; i < index->v.ndim; i++) shape[n++] = index->v.shape[i];
    }
    return n;
}

mc_status mc_index_select(mc_tensor *out, const mc_tensor *a, int axis, const mc_tensor *index) {
    mci_call c = mci_begin("index_select", MCI_OP_index_select, 1);
    c.apart = 1;
    int64_t shape[MC_MAX_DIMS];
    mci_in(&c, 0, a);
    mci_in(&c, 1, index);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int n = selected_shape(&c, a, axis, index, shape);
    mci_out(&c, 0, out, a->v.dtype, n, shape);
    return mci_end(&c, &(mci_axis_params){.axis = axis});
}

mc_status mc_index_add(mc_tensor *da, const mc_tensor *dout, int axis, const mc_tensor *index) {
    mci_call c = mci_begin("index_add", MCI_OP_index_add, 1);
    c.apart = 1;
    int64_t shape[MC_MAX_DIMS];
    mci_in(&c, 0, dout);
    mci_in(&c, 1, index);
    mci_inout(&c, 0, da, 0);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_sums(&c, da);
    mci_want_same_dtype(&c, "da", da, "dout", dout);
    int n = selected_shape(&c, da, axis, index, shape);
    mci_want_shape(&c, "dout", dout, n, shape);
    return mci_end(&c, &(mci_axis_params){.axis = axis});
}

/* index has a's rank and is no longer than a along any axis but `axis`. */
static void want_gather(mci_call *c, const mc_tensor *a, int axis, const mc_tensor *index) {
    mci_want_index(c, "index", index);
    want_axis(c, a, axis);
    if (!mci_ok(c)) return;
    int fits = a->v.ndim == index->v.ndim;
    for (int d = 0; fits && d < a->v.ndim; d++)
        fits = d == axis || index->v.shape[d] <= a->v.shape[d];
    if (!fits)
        mci_bad(c,
                "index is %s and a is %s: same rank, and no longer except along axis %d "
                "(0-based), is wanted",
                mci_shape_of(index), mci_shape_of(a), axis);
}

mc_status mc_gather(mc_tensor *out, const mc_tensor *a, int axis, const mc_tensor *index) {
    mci_call c = mci_begin("gather", MCI_OP_gather, 1);
    c.apart = 1;
    mci_in(&c, 0, a);
    mci_in(&c, 1, index);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_gather(&c, a, axis, index);
    mci_out(&c, 0, out, a->v.dtype, index->v.ndim, index->v.shape);
    return mci_end(&c, &(mci_axis_params){.axis = axis});
}

mc_status mc_scatter_add(mc_tensor *da, const mc_tensor *dout, int axis, const mc_tensor *index) {
    mci_call c = mci_begin("scatter_add", MCI_OP_scatter_add, 1);
    c.apart = 1;
    mci_in(&c, 0, dout);
    mci_in(&c, 1, index);
    mci_inout(&c, 0, da, 0);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_sums(&c, da);
    mci_want_same_dtype(&c, "da", da, "dout", dout);
    want_gather(&c, da, axis, index);
    mci_want_shape(&c, "dout", dout, index->v.ndim, index->v.shape);
    return mci_end(&c, &(mci_axis_params){.axis = axis});
}
