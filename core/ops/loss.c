/* loss.c: checks of cross_entropy. The values of `target` are checked by the kernels, before
 * anything is written: they may live on a device. */
#include "call.h"

static void want_logits(mci_call *c, const mc_tensor *logits, const mc_tensor *target) {
    mci_want_float(c, "logits", logits);
    if (mci_ok(c) && logits->v.ndim != 2)
        mci_bad(c, "logits is %s, wanted [T, V]", mci_shape_of(logits));
    if (!mci_ok(c)) return;
    mci_want_index(c, "target", target);
    mci_want_shape(c, "target", target, 1, logits->v.shape);
}

/* One number per row: [T] in the dtype of statistics. */
static void want_per_row(mci_call *c, const char *name, const mc_tensor *t,
                         const mc_tensor *logits) {
    if (!mci_ok(c)) return;
    mci_want_shape(c, name, t, 1, logits->v.shape);
    int dtype = mci_stat_dtype(logits->v.dtype);
    if (mci_ok(c) && t->v.dtype != dtype)
        mci_bad(c, "%s is %s, %s is wanted for %s logits", name, mc_dtype_name(t->v.dtype),
                mc_dtype_name(dtype), mc_dtype_name(logits->v.dtype));
}

mc_status mc_cross_entropy(mc_tensor *losses, mc_tensor *lse, const mc_tensor *logits,
                           const mc_tensor *target, int64_t ignore_index) {
    mci_call c = mci_begin("cross_entropy", MCI_OP_cross_entropy, 2);
    mci_in(&c, 0, logits);
    mci_in(&c, 1, target);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_logits(&c, logits, target);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int dtype = mci_stat_dtype(logits->v.dtype);
    mci_out(&c, 0, losses, dtype, 1, logits->v.shape);
    mci_out(&c, 1, lse, dtype, 1, logits->v.shape);
    mci_loss_params p = {.ignore_index = ignore_index};
    return mci_end(&c, &p);
}

mc_status mc_cross_entropy_backward(mc_tensor *dlogits, const mc_tensor *dlosses,
                                    const mc_tensor *logits, const mc_tensor *target,
                                    const mc_tensor *lse, int64_t ignore_index) {
    mci_call c = mci_begin("cross_entropy_backward", MCI_OP_cross_entropy_backward, 1);
    mci_in(&c, 0, dlosses);
    mci_in(&c, 1, logits);
    mci_in(&c, 2, target);
    mci_in(&c, 3, lse);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_logits(&c, logits, target);
    want_per_row(&c, "dlosses", dlosses, logits);
    want_per_row(&c, "lse", lse, logits);
    mci_out(&c, 0, dlogits, logits->v.dtype, logits->v.ndim, logits->v.shape);
    mci_loss_params p = {.ignore_index = ignore_index};
    return mci_end(&c, &p);
}
