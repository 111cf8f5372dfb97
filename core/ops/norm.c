/* norm.c: checks of rms_norm and layer_norm. Both work over the last axis of x [.., n]; rows = all
 * leading axes together; statistics are 1-D [rows] in float32 (float64 for float64 x). */
#include "call.h"

/* Rows of x, or -1 after recording that x has no axis or no float dtype. */
static int64_t rows_of(mci_call *c, const mc_tensor *x) {
    mci_want_float(c, "x", x);
    if (mci_ok(c) && x->v.ndim < 1) mci_bad(c, "x has no axis, at least 1 is wanted");
    if (!mci_ok(c)) return -1;
    int64_t rows = 1;
    for (int i = 0; i < x->v.ndim - 1; i++) rows *= x->v.shape[i];
    return rows;
}

/* A weight or bias [n] of x's dtype; may be absent. */
static void want_param(mci_call *c, const char *name, const mc_tensor *w, const mc_tensor *x) {
    if (!mci_ok(c) || !w) return;
    mci_want_same_dtype(c, name, w, "x", x);
    int64_t n = x->v.shape[x->v.ndim - 1];
    if (mci_ok(c) && (w->v.ndim != 1 || w->v.shape[0] != n))
        mci_bad(c, "%s is %s, x's last axis is %lld", name, mci_shape_of(w), (long long)n);
}

static void want_like_x(mci_call *c, const char *name, const mc_tensor *t, const mc_tensor *x) {
    if (!mci_ok(c)) return;
    mci_want_same_dtype(c, name, t, "x", x);
    mci_want_shape(c, name, t, x->v.ndim, x->v.shape);
}

static void want_statistic(mci_call *c, const char *name, const mc_tensor *t, const mc_tensor *x,
                           int64_t rows) {
    if (!mci_ok(c)) return;
    mci_want_shape(c, name, t, 1, &rows);
    int dtype = mci_stat_dtype(x->v.dtype);
    if (mci_ok(c) && t->v.dtype != dtype)
        mci_bad(c, "%s is %s, %s is wanted for %s x", name, mc_dtype_name(t->v.dtype),
                mc_dtype_name(dtype), mc_dtype_name(x->v.dtype));
}

/* A NULL gradient is not computed; one that is asked for needs its parameter. */
static void out_param_grad(mci_call *c, int i, const char *name, mc_tensor *dw, const char *of,
                           const mc_tensor *w, const mc_tensor *x) {
    if (!mci_ok(c) || !dw) return;
    if (of && !w) {
        mci_bad(c, "%s is asked for without a %s", name, of);
        return;
    }
    mci_out(c, i, dw, x->v.dtype, 1, &x->v.shape[x->v.ndim - 1]);
}

static void want_eps(mci_call *c, double eps) {
    if (mci_ok(c) && !(eps >= 0)) mci_bad(c, "eps is %g, wanted 0 or more", eps);
}

mc_status mc_rms_norm(mc_tensor *y, mc_tensor *rstd, const mc_tensor *x, const mc_tensor *weight,
                      double eps) {
    mci_call c = mci_begin("rms_norm", MCI_OP_rms_norm, 2);
    mci_in(&c, 0, x);
    mci_in_optional(&c, 1, weight);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t rows = rows_of(&c, x);
    want_param(&c, "weight", weight, x);
    want_eps(&c, eps);
    mci_out(&c, 0, y, x->v.dtype, x->v.ndim, x->v.shape);
    mci_out(&c, 1, rstd, mci_stat_dtype(x->v.dtype), 1, &rows);
    mci_norm_params p = {.eps = eps};
    return mci_end(&c, &p);
}

mc_status mc_rms_norm_backward(mc_tensor *dx, mc_tensor *dweight, const mc_tensor *dy,
                               const mc_tensor *x, const mc_tensor *weight, const mc_tensor *rstd) {
    mci_call c = mci_begin("rms_norm_backward", MCI_OP_rms_norm_backward, 2);
    mci_in(&c, 0, dy);
    mci_in(&c, 1, x);
    mci_in_optional(&c, 2, weight);
    mci_in(&c, 3, rstd);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t rows = rows_of(&c, x);
    want_like_x(&c, "dy", dy, x);
    want_param(&c, "weight", weight, x);
    want_statistic(&c, "rstd", rstd, x, rows);
    mci_out(&c, 0, dx, x->v.dtype, x->v.ndim, x->v.shape);
    out_param_grad(&c, 1, "dweight", dweight, "weight", weight, x);
    return mci_end(&c, NULL);
}

mc_status mc_layer_norm(mc_tensor *y, mc_tensor *mean, mc_tensor *rstd, const mc_tensor *x,
                        const mc_tensor *weight, const mc_tensor *bias, double eps) {
    mci_call c = mci_begin("layer_norm", MCI_OP_layer_norm, 3);
    mci_in(&c, 0, x);
    mci_in_optional(&c, 1, weight);
    mci_in_optional(&c, 2, bias);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t rows = rows_of(&c, x);
    want_param(&c, "weight", weight, x);
    want_param(&c, "bias", bias, x);
    want_eps(&c, eps);
    int dtype = mci_stat_dtype(x->v.dtype);
    mci_out(&c, 0, y, x->v.dtype, x->v.ndim, x->v.shape);
    mci_out(&c, 1, mean, dtype, 1, &rows);
    mci_out(&c, 2, rstd, dtype, 1, &rows);
    mci_norm_params p = {.eps = eps};
    return mci_end(&c, &p);
}

mc_status mc_layer_norm_backward(mc_tensor *dx, mc_tensor *dweight, mc_tensor *dbias,
                                 const mc_tensor *dy, const mc_tensor *x, const mc_tensor *weight,
                                 const mc_tensor *mean, const mc_tensor *rstd) {
    mci_call c = mci_begin("layer_norm_backward", MCI_OP_layer_norm_backward, 3);
    mci_in(&c, 0, dy);
    mci_in(&c, 1, x);
    mci_in_optional(&c, 2, weight);
    mci_in(&c, 3, mean);
    mci_in(&c, 4, rstd);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t rows = rows_of(&c, x);
    want_like_x(&c, "dy", dy, x);
    want_param(&c, "weight", weight, x);
    want_statistic(&c, "mean", mean, x, rows);
    want_statistic(&c, "rstd", rstd, x, rows);
    mci_out(&c, 0, dx, x->v.dtype, x->v.ndim, x->v.shape);
    out_param_grad(&c, 1, "dweight", dweight, "weight", weight, x);
    out_param_grad(&c, 2, "dbias", dbias, NULL, NULL, x);
    return mci_end(&c, NULL);
}
