/* loss.c: cross-entropy of logits [T, V] with targets [T].
 *
 *     loss[t] = lse[t] - logits[t, target[t]],  lse[t] = logsumexp(logits[t])
 *     dlogits[t] = dloss[t] * (exp(logits[t] - lse[t]) - onehot(target[t]))
 *
 * Rows whose target is ignore_index have loss 0 and no gradient. bfloat16 and float16 logits are
 * computed in float32.
 */
#include "row.h"

#define IN_BOTH_REALS "loss_real.h"
#include "both_reals.h"

/* The first target outside 0 .. classes - 1 that is not `ignore` is an error. */
static mc_status check_targets(const char *op, const mci_view *target, int64_t classes,
                               int64_t ignore) {
    for (int64_t i = 0; i < target->shape[0]; i++) {
        int64_t c = mci_index_at(target, i);
        if (c == ignore || (c >= 0 && c < classes)) continue;
        if (classes == 0)
            return mci_fail(MC_EINVAL, "%s: target[%lld] is %lld, there are no classes", op,
                            (long long)i, (long long)c);
        return mci_fail(MC_EINVAL, "%s: target[%lld] is %lld, legal are 0 to %lld (0-based)", op,
                        (long long)i, (long long)c, (long long)classes - 1);
    }
    return MC_OK;
}

mc_status MCI_CPU(cross_entropy)(mci_exec *exec, const mci_view *const *t, const void *p) {
    int64_t ignore = ((const mci_loss_params *)p)->ignore_index;
    mc_status status = check_targets("cross_entropy", t[3], t[2]->shape[1], ignore);
    if (status != MC_OK) return status;
    return (t[2]->dtype == MC_FLOAT64 ? cross_entropy_f64 : cross_entropy_f32)(exec, t, ignore);
}

mc_status MCI_CPU(cross_entropy_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    int64_t ignore = ((const mci_loss_params *)p)->ignore_index;
    mc_status status = check_targets("cross_entropy_backward", t[3], t[2]->shape[1], ignore);
    if (status != MC_OK) return status;
    return (t[2]->dtype == MC_FLOAT64 ? cross_entropy_backward_f64 : cross_entropy_backward_f32)(
        exec, t, ignore);
}
