/* reduce.c: checks of reductions, cumulative sums, top k and softmax. Axes are 0-based here. */
#include "call.h"
#include "dtype.h"

static void want_numbers(mci_call *c, const char *name, const mc_tensor *a) {
    if (mci_ok(c) && mci_dtype_kind(a->v.dtype) == MCI_KIND_STORE)
        mci_bad(c, "%s is %s, a storage type without arithmetic; convert it with t:to(\"float32\")",
                name, mc_dtype_name(a->v.dtype));
}

static void want_axis(mci_call *c, const mc_tensor *a, int64_t axis) {
    if (!mci_ok(c) || (axis >= 0 && axis < a->v.ndim)) return;
    if (a->v.ndim == 0)
        mci_bad(c, "axis %lld of a 0-d tensor: it has none", (long long)axis);
    else
        mci_bad(c, "axis %lld of a tensor of shape %s, legal are 0 to %d (0-based)",
                (long long)axis, mci_shape_of(a), a->v.ndim - 1);
}

/* Sums and products of integers and bool are int64. */
static int sum_dtype(int dtype) {
    int kind = mci_dtype_kind(dtype);
    return kind == MCI_KIND_INT || kind == MCI_KIND_BOOL ? MC_INT64 : dtype;
}

/* Makes output 0, a's shape less the reduced axes, and gives the kernel *full: the same memory with
 * those axes at size 1. */
static void out_reduced(mci_call *c, mc_tensor *out, const mc_tensor *a, int dtype,
                        const int *reduced, int keepdim, mci_view *full) {
    int n = 0;
    int64_t shape[MC_MAX_DIMS];
    for (int d = 0; d < a->v.ndim; d++)
        if (!reduced[d] || keepdim) shape[n++] = reduced[d] ? 1 : a->v.shape[d];
    mci_out(c, 0, out, dtype, n, shape);
    if (!mci_ok(c)) return;
    *full = out->v;
    if (keepdim) return;
    full->ndim = a->v.ndim;
    for (int d = a->v.ndim - 1, from = n - 1; d >= 0; d--) {
        full->shape[d] = reduced[d] ? 1 : out->v.shape[from];
        full->stride[d] = reduced[d] ? 0 : out->v.stride[from];
        if (!reduced[d]) from--;
    }
    c->t[0] = full;
}

enum { SUMS, MEANS, EXTREMES };

static mc_status reduce(const char *name, int op, mc_tensor *out, const mc_tensor *a, int n_axes,
                        const int64_t *axes, int keepdim, int what) {
    mci_call c = mci_begin(name, op, 1);
    mci_reduce_params p = {.axis = 0};
    mci_view full;
    mci_in(&c, 0, a);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    if (what == MEANS)
        mci_want_float(&c, "a", a);
    else
        want_numbers(&c, "a", a);
    if (n_axes == 0)
        for (int d = 0; d < a->v.ndim; d++) p.reduced[d] = 1;
    for (int i = 0; i < n_axes; i++) {
        want_axis(&c, a, axes[i]);
        if (!mci_ok(&c)) return mci_end(&c, NULL);
        if (p.reduced[axes[i]]) mci_bad(&c, "axis %lld stands twice", (long long)axes[i]);
        p.reduced[axes[i]] = 1;
    }
    int64_t kept = 1, empty = -1;
    for (int d = 0; d < a->v.ndim; d++) {
        if (!p.reduced[d]) kept *= a->v.shape[d];
        if (p.reduced[d] && a->v.shape[d] == 0) empty = d;
    }
    if (what == EXTREMES && kept > 0 && empty >= 0)
        mci_bad(&c, "no element to take: a is %s and axis %lld (0-based) is reduced",
                mci_shape_of(a), (long long)empty);
    out_reduced(&c, out, a, what == SUMS ? sum_dtype(a->v.dtype) : a->v.dtype, p.reduced, keepdim,
                &full);
    return mci_end(&c, &p);
}

#define REDUCE(op, what)                                                                   \
    mc_status mc_##op(mc_tensor *out, const mc_tensor *a, int n_axes, const int64_t *axes, \
                      int keepdim) {                                                       \
        return reduce(#op, MCI_OP_##op, out, a, n_axes, axes, keepdim, what);              \
    }
REDUCE(sum, SUMS)
REDUCE(prod, SUMS)
REDUCE(mean, MEANS)
REDUCE(amax, EXTREMES)
REDUCE(amin, EXTREMES)

static mc_status arg(const char *name, int op, mc_tensor *out, const mc_tensor *a, int axis,
                     int keepdim) {
    mci_call c = mci_begin(name, op, 1);
    mci_reduce_params p = {.axis = axis};
    mci_view full;
    mci_in(&c, 0, a);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_numbers(&c, "a", a);
    want_axis(&c, a, axis);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    if (a->v.shape[axis] == 0)
        mci_bad(&c, "no element to take: a is %s and axis %d (0-based) is empty", mci_shape_of(a),
                axis);
    p.reduced[axis] = 1;
    out_reduced(&c, out, a, MC_INT64, p.reduced, keepdim, &full);
    return mci_end(&c, &p);
}

mc_status mc_argmax(mc_tensor *out, const mc_tensor *a, int axis, int keepdim) {
    return arg("argmax", MCI_OP_argmax, out, a, axis, keepdim);
}

mc_status mc_argmin(mc_tensor *out, const mc_tensor *a, int axis, int keepdim) {
    return arg("argmin", MCI_OP_argmin, out, a, axis, keepdim);
}

mc_status mc_cumsum(mc_tensor *out, const mc_tensor *a, int axis) {
    mci_call c = mci_begin("cumsum", MCI_OP_cumsum, 1);
    mci_in(&c, 0, a);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_numbers(&c, "a", a);
    want_axis(&c, a, axis);
    mci_out(&c, 0, out, sum_dtype(a->v.dtype), a->v.ndim, a->v.shape);
    return mci_end(&c, &(mci_axis_params){.axis = axis});
}

mc_status mc_topk(mc_tensor *values, mc_tensor *indices, const mc_tensor *a, int64_t k) {
    mci_call c = mci_begin("topk", MCI_OP_topk, 2);
    c.apart = 1;
    mci_in(&c, 0, a);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_numbers(&c, "a", a);
    int last = a->v.ndim - 1;
    want_axis(&c, a, last);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    if (k < 0 || k > a->v.shape[last])
        mci_bad(&c, "k is %lld, a is %s: legal are 0 to %lld", (long long)k, mci_shape_of(a),
                (long long)a->v.shape[last]);
    int64_t shape[MC_MAX_DIMS];
    for (int d = 0; d <= last; d++) shape[d] = d == last ? k : a->v.shape[d];
    mci_out(&c, 0, values, a->v.dtype, a->v.ndim, shape);
    mci_out(&c, 1, indices, MC_INT64, a->v.ndim, shape);
    return mci_end(&c, NULL);
}

static mc_status softmax(const char *name, int op, mc_tensor *y, const mc_tensor *x, int axis) {
    mci_call c = mci_begin(name, op, 1);
    mci_in(&c, 0, x);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "x", x);
    want_axis(&c, x, axis);
    mci_out(&c, 0, y, x->v.dtype, x->v.ndim, x->v.shape);
    return mci_end(&c, &(mci_axis_params){.axis = axis});
}

static mc_status softmax_backward(const char *name, int op, mc_tensor *dx, const mc_tensor *dy,
                                  const mc_tensor *y, int axis) {
    mci_call c = mci_begin(name, op, 1);
    mci_in(&c, 0, dy);
    mci_in(&c, 1, y);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "y", y);
    mci_want_same_dtype(&c, "dy", dy, "y", y);
    mci_want_shape(&c, "dy", dy, y->v.ndim, y->v.shape);
    want_axis(&c, y, axis);
    mci_out(&c, 0, dx, y->v.dtype, y->v.ndim, y->v.shape);
    return mci_end(&c, &(mci_axis_params){.axis = axis});
}

mc_status mc_softmax(mc_tensor *y, const mc_tensor *x, int axis) {
    return softmax("softmax", MCI_OP_softmax, y, x, axis);
}

mc_status mc_log_softmax(mc_tensor *y, const mc_tensor *x, int axis) {
    return softmax("log_softmax", MCI_OP_log_softmax, y, x, axis);
}

mc_status mc_softmax_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *y, int axis) {
    return softmax_backward("softmax_backward", MCI_OP_softmax_backward, dx, dy, y, axis);
}

mc_status mc_log_softmax_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *y,
                                  int axis) {
    return softmax_backward("log_softmax_backward", MCI_OP_log_softmax_backward, dx, dy, y, axis);
}

mc_status mc_sum_squares(mc_tensor *acc, const mc_tensor *x) {
    static const int64_t one[1] = {1};
    mci_call c = mci_begin("sum_squares", MCI_OP_sum_squares, 1);
    mci_in(&c, 0, x);
    mci_inout(&c, 0, acc, 0);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "x", x);
    mci_want_shape(&c, "acc", acc, 1, one);
    if (mci_ok(&c) && acc->v.dtype != MC_FLOAT64)
        mci_bad(&c, "acc is %s, wanted float64", mc_dtype_name(acc->v.dtype));
    return mci_end(&c, NULL);
}
