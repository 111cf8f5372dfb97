/* moe.c: mixture of experts: the choice of experts, the way of rows to them and back, and the
 * losses that balance the load.
 *
 *     router_topk   scores = softmax or sigmoid of logits [T, E]; the k best keys (scores; logits
 *                   for softmax after the choice; plus bias), ties to the lowest id, NaN last
 *     moe_sort      stable counting sort of the T * k slots by expert
 *     aux loss      coefficient * E * sum_e f_e P_e, f_e the share of slots, P_e the mean over
 *                   tokens of their normalised scores          (Fedus et al. 2021, eq. 4)
 *     z loss        coefficient * mean_t logsumexp(logits[t])^2 (Zoph et al. 2022, eq. 5)
 *
 * bfloat16 and float16 are computed in float32 and rounded once. Ids, slots and rows are checked
 * before anything is written.
 */
#include "row.h"

/* Partial sums of the auxiliary loss, whatever the number of threads. */
enum { LOSS_CHUNKS = 64 };

/* Element (i, j) of a 2-D view. */
static inline char *element_at(const mci_view *v, int64_t i, int64_t j) {
    return (char *)v->data + (i * v->stride[0] + j * v->stride[1]) * mci_dtypes[v->dtype].size;
}

#define IN_BOTH_REALS "router_real.h"
#include "both_reals.h"
#define IN_BOTH_REALS "moe_real.h"
#include "both_reals.h"

/* Every element of v (1-D or 2-D) below `end`, and at least 0 unless `negative` is legal. */
static mc_status check_indices(const char *op, const char *name, const mci_view *v, int64_t end,
                               int negative) {
    int64_t rows = v->shape[0], columns = v->ndim > 1 ? v->shape[1] : 1;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            int64_t x = v->ndim > 1 ? mci_index_at2(v, i, j) : mci_index_at(v, i);
            if (x < end && (x >= 0 || negative)) continue;
            const char *range = negative ? ", or negative for none" : "";
            if (v->ndim > 1)
                return mci_fail(
                    MC_EINVAL, "%s: %s[%lld, %lld] is %lld, legal are 0 to %lld (0-based)%s", op,
                    name, (long long)i, (long long)j, (long long)x, (long long)end - 1, range);
            return mci_fail(MC_EINVAL, "%s: %s[%lld] is %lld, legal are 0 to %lld (0-based)%s", op,
                            name, (long long)i, (long long)x, (long long)end - 1, range);
        }
    }
    return MC_OK;
}

mc_status MCI_CPU(router_topk)(mci_exec *exec, const mci_view *const *t, const void *p) {
    return (t[3]->dtype == MC_FLOAT64 ? router_topk_f64 : router_topk_f32)(exec, t, p);
}

mc_status MCI_CPU(router_topk_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    mc_status status = check_indices("router_topk_backward", "ids", t[5], t[6]->shape[1], 0);
    if (status != MC_OK) return status;
    return (t[6]->dtype == MC_FLOAT64 ? router_topk_backward_f64 : router_topk_backward_f32)(exec,
                                                                                             t, p);
}

mc_status MCI_CPU(moe_sort)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_view *counts = t[0], *rows = t[1], *slots = t[2], *ids = t[3];
    int64_t experts = ((const mci_moe_params *)p)->experts, k = ids->shape[1];
    mc_status status = check_indices("moe_sort", "ids", ids, experts, 1);
    if (status != MC_OK) return status;
    size_t bytes = (size_t)experts * sizeof(int64_t);
    int64_t *next = exec->scratch(exec, bytes); /* where the expert's next slot goes */
    if (!next) return mci_no_scratch("moe_sort", bytes);
    memset(next, 0, bytes);
    for (int64_t i = 0; i < ids->shape[0]; i++) {
        for (int64_t j = 0; j < k; j++) {
            int64_t e = mci_index_at2(ids, i, j);
            if (e >= 0) next[e]++;
        }
    }
    int64_t *count = counts->data, *row = rows->data, *slot = slots->data, routed = 0;
    for (int64_t e = 0; e < experts; e++) {
        count[e * counts->stride[0]] = next[e];
        next[e] = routed;
        routed += count[e * counts->stride[0]];
    }
    for (int64_t i = 0; i < ids->shape[0]; i++) {
        for (int64_t j = 0; j < k; j++) {
            int64_t e = mci_index_at2(ids, i, j), to = e >= 0 ? next[e]++ : -1;
            row[i * rows->stride[0] + j * rows->stride[1]] = to;
            if (to >= 0) slot[to * slots->stride[0]] = i * k + j;
        }
    }
    for (int64_t r = routed; r < slots->shape[0]; r++) slot[r * slots->stride[0]] = -1;
    return MC_OK;
}

/* dst = src, n elements of `size` bytes, dst_step and src_step elements apart. */
static void copy_row(char *dst, int64_t dst_step, const char *src, int64_t src_step, int64_t n,
                     int64_t size) {
    if (dst_step == 1 && src_step == 1)
        memcpy(dst, src, (size_t)(n * size));
    else
        for (int64_t i = 0; i < n; i++)
            memcpy(dst + i * dst_step * size, src + i * src_step * size, (size_t)size);
}

mc_status MCI_CPU(moe_permute)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec;
    int64_t k = ((const mci_moe_params *)p)->k;
    mci_rows mo = mci_rows_of(t[0], 1), mx = mci_rows_of(t[1], 1);
    mc_status status = check_indices("moe_permute", "slots", t[2], t[2]->shape[0], 1);
    if (status != MC_OK || mo.n == 0) return status;
#pragma omp parallel for num_threads(mci_threads(mo.count *mo.n)) schedule(static)
    for (int64_t r = 0; r < mo.count; r++) {
        int64_t slot = mci_index_at(t[2], r);
        char *out = mci_row_at(&mo, r);
        if (slot >= 0)
            copy_row(out, mo.step, mci_row_at(&mx, slot / k), mx.step, mo.n, mo.size);
        else
            for (int64_t i = 0; i < mo.n; i++)
                memset(out + i * mo.step * mo.size, 0, (size_t)mo.size);
    }
    return MC_OK;
}

mc_status MCI_CPU(moe_unpermute)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)p;
    mc_status status = check_indices("moe_unpermute", "rows", t[2], t[1]->shape[0], 1);
    if (status != MC_OK) return status;
    return (t[1]->dtype == MC_FLOAT64 ? moe_unpermute_f64 : moe_unpermute_f32)(exec, t);
}

mc_status MCI_CPU(moe_unpermute_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)p;
    mc_status status = check_indices("moe_unpermute_backward", "rows", t[4], t[0]->shape[0], 1);
    if (status == MC_OK)
        status = check_indices("moe_unpermute_backward", "slots", t[5], t[0]->shape[0], 1);
    if (status != MC_OK) return status;
    return (t[2]->dtype == MC_FLOAT64 ? moe_unpermute_backward_f64 : moe_unpermute_backward_f32)(
        exec, t);
}

mc_status MCI_CPU(moe_aux_loss)(mci_exec *exec, const mci_view *const *t, const void *p) {
    double coefficient = ((const mci_moe_params *)p)->coefficient;
    return (t[1]->dtype == MC_FLOAT64 ? moe_aux_loss_f64 : moe_aux_loss_f32)(exec, t, coefficient);
}

mc_status MCI_CPU(moe_aux_loss_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    double coefficient = ((const mci_moe_params *)p)->coefficient;
    return (t[2]->dtype == MC_FLOAT64 ? moe_aux_loss_backward_f64 : moe_aux_loss_backward_f32)(
        exec, t, coefficient);
}

mc_status MCI_CPU(moe_z_loss)(mci_exec *exec, const mci_view *const *t, const void *p) {
    double coefficient = ((const mci_moe_params *)p)->coefficient;
    return (t[2]->dtype == MC_FLOAT64 ? moe_z_loss_f64 : moe_z_loss_f32)(exec, t, coefficient);
}

mc_status MCI_CPU(moe_z_loss_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    double coefficient = ((const mci_moe_params *)p)->coefficient;
    return (t[2]->dtype == MC_FLOAT64 ? moe_z_loss_backward_f64 : moe_z_loss_backward_f32)(
        exec, t, coefficient);
}
