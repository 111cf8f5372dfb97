/* grouped_linear.c: argument checks of the grouped linear passes (formulas: cpu/grouped.c).
 *
 * The splits are a tensor on the layer's device, so what they hold is checked by the kernel, before
 * it writes: on the CPU a bad entry is an error that names it. Shapes are checked here.
 */
#include "call.h"

/* splits: int32 or int64 [G], and as many as the layer has groups */
static void want_splits(mci_call *c, const mc_tensor *splits, int64_t groups) {
    if (!mci_ok(c)) return;
    mci_want_index(c, "m_splits", splits);
    if (!mci_ok(c)) return;
    if (splits->v.ndim != 1)
        mci_bad(c, "m_splits is %s, wanted one axis", mci_shape_of(splits));
    else if (groups >= 0 && splits->v.shape[0] != groups)
        mci_bad(c, "m_splits has %lld entries, the layer has %lld groups",
                (long long)splits->v.shape[0], (long long)groups);
}

/* A [rows, columns] operand; columns = -1 takes any. */
static void want_rows(mci_call *c, const char *name, const mc_tensor *t, int64_t columns) {
    if (!mci_ok(c)) return;
    mci_want_float(c, name, t);
    if (!mci_ok(c)) return;
    if (t->v.ndim != 2)
        mci_bad(c, "%s is %s, wanted 2 axes: rows and features", name, mci_shape_of(t));
    else if (columns >= 0 && t->v.shape[1] != columns)
        mci_bad(c, "%s is %s, the layer wants rows of %lld", name, mci_shape_of(t),
                (long long)columns);
}

static void want_weight(mci_call *c, const mc_tensor *weight) {
    if (mci_ok(c) && weight->v.ndim != 3)
        mci_bad(c, "weight is %s, wanted 3 axes: groups, out features, in features",
                mci_shape_of(weight));
}

mc_status mc_grouped_linear(mc_tensor *y, const mc_tensor *x, const mc_tensor *weight,
                            const mc_tensor *bias, const mc_tensor *splits) {
    mci_call c = mci_begin("grouped_linear", MCI_OP_grouped_linear, 1);
    c.apart = 1;
    mci_in(&c, 0, x);
    mci_in(&c, 1, weight);
    mci_in_optional(&c, 2, bias);
    mci_in(&c, 3, splits);
    want_weight(&c, weight);
    if (mci_ok(&c)) want_rows(&c, "x", x, weight->v.shape[2]);
    if (mci_ok(&c)) mci_want_same_dtype(&c, "x", x, "weight", weight);
    if (mci_ok(&c)) want_splits(&c, splits, weight->v.shape[0]);
    if (mci_ok(&c) && bias) {
        mci_want_same_dtype(&c, "x", x, "bias", bias);
        mci_want_shape(&c, "bias", bias, 2, weight->v.shape);
    }
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_out(&c, 0, y, x->v.dtype, 2, (int64_t[]){x->v.shape[0], weight->v.shape[1]});
    mci_grouped_params p = {.zero_tail = mci_is_fresh(&c, 0)};
    return mci_end(&c, &p);
}

mc_status mc_grouped_linear_dgrad(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *weight,
                                  const mc_tensor *splits) {
    mci_call c = mci_begin("grouped_linear_dgrad", MCI_OP_grouped_linear_dgrad, 1);
    c.apart = 1;
    mci_in(&c, 0, dy);
    mci_in(&c, 1, weight);
    mci_in(&c, 2, splits);
    want_weight(&c, weight);
    if (mci_ok(&c)) want_rows(&c, "dy", dy, weight->v.shape[1]);
    if (mci_ok(&c)) mci_want_same_dtype(&c, "dy", dy, "weight", weight);
    if (mci_ok(&c)) want_splits(&c, splits, weight->v.shape[0]);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_out(&c, 0, dx, dy->v.dtype, 2, (int64_t[]){dy->v.shape[0], weight->v.shape[2]});
    mci_grouped_params p = {.zero_tail = mci_is_fresh(&c, 0)};
    return mci_end(&c, &p);
}

/* A gradient of a parameter: its dtype, or float32 beside 16-bit operands (main_grad). */
static int gradient_dtype(const mc_tensor *gradient, const mc_tensor *dy) {
    int narrow = dy->v.dtype == MC_BFLOAT16 || dy->v.dtype == MC_FLOAT16;
    int main_grad = gradient && gradient->storage && gradient->v.dtype == MC_FLOAT32;
    return narrow && main_grad ? MC_FLOAT32 : dy->v.dtype;
}

static void want_filled(mci_call *c, const char *name, const mc_tensor *t, int accumulate) {
    if (mci_ok(c) && accumulate && (!t || !t->storage))
        mci_bad(c, "accumulate adds to %s, and none was given", name);
}

/* Groups of a gradient that was given, by its first axis; -1 when it is to be made. */
static int64_t given_groups(const mc_tensor *gradient) {
    return gradient && gradient->storage && gradient->v.ndim > 0 ? gradient->v.shape[0] : -1;
}

mc_status mc_grouped_linear_wgrad(mc_tensor *dw, const mc_tensor *dy, const mc_tensor *x,
                                  const mc_tensor *splits, int accumulate) {
    mci_call c = mci_begin("grouped_linear_wgrad", MCI_OP_grouped_linear_wgrad, 1);
    c.apart = 1;
    mci_in(&c, 0, dy);
    mci_in(&c, 1, x);
    mci_in(&c, 2, splits);
    want_rows(&c, "dy", dy, -1);
    want_rows(&c, "x", x, -1);
    if (mci_ok(&c)) mci_want_same_dtype(&c, "dy", dy, "x", x);
    if (mci_ok(&c) && dy->v.shape[0] != x->v.shape[0])
        mci_bad(&c, "dy has %lld rows, x has %lld", (long long)dy->v.shape[0],
                (long long)x->v.shape[0]);
    want_filled(&c, "dw", dw, accumulate);
    want_splits(&c, splits, given_groups(dw));
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t shape[] = {splits->v.shape[0], dy->v.shape[1], x->v.shape[1]};
    mci_out(&c, 0, dw, gradient_dtype(dw, dy), 3, shape);
    mci_grouped_params p = {.accumulate = accumulate != 0};
    return mci_end(&c, &p);
}

mc_status mc_grouped_linear_bias_grad(mc_tensor *db, const mc_tensor *dy, const mc_tensor *splits,
                                      int accumulate) {
    mci_call c = mci_begin("grouped_linear_bias_grad", MCI_OP_grouped_linear_bias_grad, 1);
    c.apart = 1;
    mci_in(&c, 0, dy);
    mci_in(&c, 1, splits);
    want_rows(&c, "dy", dy, -1);
    want_filled(&c, "db", db, accumulate);
    want_splits(&c, splits, given_groups(db));
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_out(&c, 0, db, gradient_dtype(db, dy), 2, (int64_t[]){splits->v.shape[0], dy->v.shape[1]});
    mci_grouped_params p = {.accumulate = accumulate != 0};
    return mci_end(&c, &p);
}
