/* moe.c: checks of the router, of the moves of rows to experts and back, and of the balancing
 * losses. The values of ids, slots and rows are checked by the kernels before anything is written:
 * they may live on a device. */
#include "call.h"

static long long ll(int64_t n) {
    return (long long)n;
}

static void want_matrix(mci_call *c, const char *name, const mc_tensor *t, const char *form) {
    if (mci_ok(c) && t->v.ndim != 2) mci_bad(c, "%s is %s, wanted %s", name, mci_shape_of(t), form);
}

/* The dtype of scores and weights that go with this tensor. */
static void want_stat(mci_call *c, const char *name, const mc_tensor *t, const char *of_name,
                      const mc_tensor *of) {
    if (!mci_ok(c)) return;
    int dtype = mci_stat_dtype(of->v.dtype);
    if (t->v.dtype != dtype)
        mci_bad(c, "%s is %s, %s is wanted for %s %s", name, mc_dtype_name(t->v.dtype),
                mc_dtype_name(dtype), mc_dtype_name(of->v.dtype), of_name);
}

/* Per-slot weights: in the statistics' dtype or that of the rows they scale. */
static void want_weights(mci_call *c, const mc_tensor *weights, const char *of_name,
                         const mc_tensor *of, const mc_tensor *rows) {
    if (!mci_ok(c) || !weights) return;
    if (weights->v.dtype != of->v.dtype) want_stat(c, "weights", weights, of_name, of);
    if (mci_ok(c)) mci_want_shape(c, "weights", weights, 2, rows->v.shape);
}

static void want_score_function(mci_call *c, int score_function) {
    if (mci_ok(c) && (score_function < MC_SCORE_SOFTMAX_PRE || score_function > MC_SCORE_SIGMOID))
        mci_bad(c,
                "score function %d is unknown, wanted 0 (softmax over all), 1 (softmax over the "
                "chosen) or 2 (sigmoid)",
                score_function);
}

static void want_groups(mci_call *c, int64_t experts, int64_t k, int64_t groups,
                        int64_t group_topk) {
    if (!mci_ok(c)) return;
    if (groups < 1 || experts % groups != 0)
        mci_bad(c, "%lld experts do not split into %lld equal groups", ll(experts), ll(groups));
    else if (groups == 1)
        return;
    else if (group_topk < 1 || group_topk > groups)
        mci_bad(c, "group_topk is %lld, wanted 1 to %lld (the groups)", ll(group_topk), ll(groups));
    else if (k % group_topk != 0)
        mci_bad(c, "k is %lld, wanted a multiple of group_topk %lld", ll(k), ll(group_topk));
    else if (k / group_topk > experts / groups)
        mci_bad(c, "k / group_topk is %lld, a group has only %lld experts", ll(k / group_topk),
                ll(experts / groups));
}

mc_status mc_router_topk(mc_tensor *weights, mc_tensor *ids, mc_tensor *scores,
                         const mc_tensor *logits, const mc_tensor *bias, int64_t k,
                         int score_function, double scale, int64_t groups, int64_t group_topk) {
    mci_call c = mci_begin("router_topk", MCI_OP_router_topk, 3);
    mci_in(&c, 0, logits);
    mci_in_optional(&c, 1, bias);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "logits", logits);
    want_matrix(&c, "logits", logits, "[T, E]");
    want_score_function(&c, score_function);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t experts = logits->v.shape[1];
    if (k < 1 || k > experts)
        mci_bad(&c, "k is %lld, wanted 1 to %lld (the experts)", ll(k), ll(experts));
    if (bias) {
        if (bias->v.dtype != logits->v.dtype) want_stat(&c, "bias", bias, "logits", logits);
        mci_want_shape(&c, "bias", bias, 1, &experts);
    }
    want_groups(&c, experts, k, groups, group_topk);
    int64_t chosen[2] = {logits->v.shape[0], k};
    int dtype = mci_stat_dtype(logits->v.dtype);
    mci_out(&c, 0, weights, dtype, 2, chosen);
    mci_out(&c, 1, ids, MC_INT32, 2, chosen);
    mci_out(&c, 2, scores, dtype, 2, logits->v.shape);
    mci_router_params p = {.scale = scale,
                           .k = k,
                           .groups = groups,
                           .group_topk = group_topk,
                           .score_function = score_function};
    return mci_end(&c, &p);
}

mc_status mc_router_topk_backward(mc_tensor *dlogits, const mc_tensor *dweights,
                                  const mc_tensor *dscores, const mc_tensor *scores,
                                  const mc_tensor *weights, const mc_tensor *ids,
                                  const mc_tensor *logits, int score_function, double scale) {
    mci_call c = mci_begin("router_topk_backward", MCI_OP_router_topk_backward, 1);
    mci_in_optional(&c, 0, dweights);
    mci_in_optional(&c, 1, dscores);
    mci_in(&c, 2, scores);
    mci_in(&c, 3, weights);
    mci_in(&c, 4, ids);
    mci_in(&c, 5, logits);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "logits", logits);
    want_matrix(&c, "logits", logits, "[T, E]");
    want_matrix(&c, "ids", ids, "[T, k]");
    want_score_function(&c, score_function);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    if (ids->v.dtype != MC_INT32)
        mci_bad(&c, "ids is %s, wanted int32", mc_dtype_name(ids->v.dtype));
    int64_t chosen[2] = {logits->v.shape[0], ids->v.shape[1]};
    mci_want_shape(&c, "ids", ids, 2, chosen);
    mci_want_shape(&c, "weights", weights, 2, chosen);
    want_stat(&c, "weights", weights, "logits", logits);
    mci_want_shape(&c, "scores", scores, 2, logits->v.shape);
    want_stat(&c, "scores", scores, "logits", logits);
    if (dweights) {
        mci_want_shape(&c, "dweights", dweights, 2, chosen);
        want_stat(&c, "dweights", dweights, "logits", logits);
    }
    if (dscores) {
        mci_want_shape(&c, "dscores", dscores, 2, logits->v.shape);
        want_stat(&c, "dscores", dscores, "logits", logits);
    }
    mci_out(&c, 0, dlogits, logits->v.dtype, 2, logits->v.shape);
    mci_router_params p = {
        .scale = scale, .k = chosen[1], .score_function = score_function, .groups = 1};
    return mci_end(&c, &p);
}

mc_status mc_moe_sort(mc_tensor *counts, mc_tensor *rows, mc_tensor *slots, const mc_tensor *ids,
                      int64_t experts) {
    mci_call c = mci_begin("moe_sort", MCI_OP_moe_sort, 3);
    mci_in(&c, 0, ids);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_index(&c, "ids", ids);
    want_matrix(&c, "ids", ids, "[T, k]");
    if (mci_ok(&c) && experts < 1) mci_bad(&c, "%lld experts, wanted at least 1", ll(experts));
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t n = mci_numel(&ids->v);
    mci_out(&c, 0, counts, MC_INT64, 1, &experts);
    mci_out(&c, 1, rows, MC_INT64, 2, ids->v.shape);
    mci_out(&c, 2, slots, MC_INT64, 1, &n);
    mci_moe_params p = {.k = ids->v.shape[1], .experts = experts};
    return mci_end(&c, &p);
}

mc_status mc_moe_permute(mc_tensor *out, const mc_tensor *x, const mc_tensor *slots, int64_t k) {
    mci_call c = mci_begin("moe_permute", MCI_OP_moe_permute, 1);
    c.apart = 1;
    mci_in(&c, 0, x);
    mci_in(&c, 1, slots);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_matrix(&c, "x", x, "[T, d]");
    mci_want_index(&c, "slots", slots);
    if (mci_ok(&c) && k < 1) mci_bad(&c, "k is %lld, wanted at least 1", ll(k));
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    if (slots->v.ndim != 1 || slots->v.shape[0] % k != 0 || slots->v.shape[0] / k != x->v.shape[0])
        mci_bad(&c, "slots is %s, wanted [T * k] with T = %lld and k = %lld", mci_shape_of(slots),
                ll(x->v.shape[0]), ll(k));
    int64_t shape[2] = {slots->v.shape[0], x->v.shape[1]};
    mci_out(&c, 0, out, x->v.dtype, 2, shape);
    mci_moe_params p = {.k = k};
    return mci_end(&c, &p);
}

mc_status mc_moe_unpermute(mc_tensor *y, const mc_tensor *h, const mc_tensor *rows,
                           const mc_tensor *weights) {
    mci_call c = mci_begin("moe_unpermute", MCI_OP_moe_unpermute, 1);
    c.apart = 1;
    mci_in(&c, 0, h);
    mci_in(&c, 1, rows);
    mci_in_optional(&c, 2, weights);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "h", h);
    want_matrix(&c, "h", h, "[R, d]");
    mci_want_index(&c, "rows", rows);
    want_matrix(&c, "rows", rows, "[T, k]");
    want_weights(&c, weights, "h", h, rows);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t shape[2] = {rows->v.shape[0], h->v.shape[1]};
    mci_out(&c, 0, y, h->v.dtype, 2, shape);
    mci_moe_params p = {.k = rows->v.shape[1]};
    return mci_end(&c, &p);
}

mc_status mc_moe_unpermute_backward(mc_tensor *dh, mc_tensor *dweights, const mc_tensor *dy,
                                    const mc_tensor *h, const mc_tensor *rows,
                                    const mc_tensor *slots, const mc_tensor *weights) {
    mci_call c = mci_begin("moe_unpermute_backward", MCI_OP_moe_unpermute_backward, 2);
    c.apart = 1;
    mci_in(&c, 0, dy);
    if (weights)
        mci_in(&c, 1, h);
    else
        mci_in_optional(&c, 1, h); /* only dweights reads it */
    mci_in(&c, 2, rows);
    mci_in(&c, 3, slots);
    mci_in_optional(&c, 4, weights);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "dy", dy);
    want_matrix(&c, "dy", dy, "[T, d]");
    mci_want_index(&c, "rows", rows);
    want_matrix(&c, "rows", rows, "[T, k]");
    mci_want_index(&c, "slots", slots);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int64_t n = mci_numel(&rows->v);
    mci_want_shape(&c, "slots", slots, 1, &n);
    if (mci_ok(&c) && dy->v.shape[0] != rows->v.shape[0])
        mci_bad(&c, "dy is %s and rows is %s, wanted equal first axes", mci_shape_of(dy),
                mci_shape_of(rows));
    int64_t shape[2] = {n, dy->v.shape[1]};
    if (h) {
        mci_want_same_dtype(&c, "h", h, "dy", dy);
        mci_want_shape(&c, "h", h, 2, shape);
    }
    want_weights(&c, weights, "dy", dy, rows);
    if (mci_ok(&c) && dweights && !weights) mci_bad(&c, "dweights is asked for without weights");
    mci_out(&c, 0, dh, dy->v.dtype, 2, shape);
    if (dweights && weights) mci_out(&c, 1, dweights, weights->v.dtype, 2, rows->v.shape);
    mci_moe_params p = {.k = rows->v.shape[1]};
    return mci_end(&c, &p);
}

static void want_scores(mci_call *c, const mc_tensor *scores, const mc_tensor *counts) {
    mci_want_float(c, "scores", scores);
    want_matrix(c, "scores", scores, "[T, E]");
    if (!mci_ok(c)) return;
    mci_want_index(c, "counts", counts);
    mci_want_shape(c, "counts", counts, 1, &scores->v.shape[1]);
}

/* dloss [] in the dtype of the loss. */
static void want_dloss(mci_call *c, const mc_tensor *dloss, const char *of_name,
                       const mc_tensor *of) {
    if (!mci_ok(c)) return;
    mci_want_shape(c, "dloss", dloss, 0, NULL);
    want_stat(c, "dloss", dloss, of_name, of);
}

mc_status mc_moe_aux_loss(mc_tensor *loss, const mc_tensor *scores, const mc_tensor *counts,
                          double coefficient) {
    mci_call c = mci_begin("moe_aux_loss", MCI_OP_moe_aux_loss, 1);
    mci_in(&c, 0, scores);
    mci_in(&c, 1, counts);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_scores(&c, scores, counts);
    mci_out(&c, 0, loss, mci_stat_dtype(scores->v.dtype), 0, NULL);
    mci_moe_params p = {.coefficient = coefficient};
    return mci_end(&c, &p);
}

mc_status mc_moe_aux_loss_backward(mc_tensor *dscores, const mc_tensor *dloss,
                                   const mc_tensor *scores, const mc_tensor *counts,
                                   double coefficient) {
    mci_call c = mci_begin("moe_aux_loss_backward", MCI_OP_moe_aux_loss_backward, 1);
    mci_in(&c, 0, dloss);
    mci_in(&c, 1, scores);
    mci_in(&c, 2, counts);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    want_scores(&c, scores, counts);
    want_dloss(&c, dloss, "scores", scores);
    mci_out(&c, 0, dscores, scores->v.dtype, scores->v.ndim, scores->v.shape);
    mci_moe_params p = {.coefficient = coefficient};
    return mci_end(&c, &p);
}

mc_status mc_moe_z_loss(mc_tensor *loss, mc_tensor *lse, const mc_tensor *logits,
                        double coefficient) {
    mci_call c = mci_begin("moe_z_loss", MCI_OP_moe_z_loss, 2);
    mci_in(&c, 0, logits);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "logits", logits);
    want_matrix(&c, "logits", logits, "[T, E]");
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    int dtype = mci_stat_dtype(logits->v.dtype);
    mci_out(&c, 0, loss, dtype, 0, NULL);
    mci_out(&c, 1, lse, dtype, 1, logits->v.shape);
    mci_moe_params p = {.coefficient = coefficient};
    return mci_end(&c, &p);
}

mc_status mc_moe_z_loss_backward(mc_tensor *dlogits, const mc_tensor *dloss,
                                 const mc_tensor *logits, const mc_tensor *lse,
                                 double coefficient) {
    mci_call c = mci_begin("moe_z_loss_backward", MCI_OP_moe_z_loss_backward, 1);
    mci_in(&c, 0, dloss);
    mci_in(&c, 1, logits);
    mci_in(&c, 2, lse);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_want_float(&c, "logits", logits);
    want_matrix(&c, "logits", logits, "[T, E]");
    want_dloss(&c, dloss, "logits", logits);
    if (mci_ok(&c)) mci_want_shape(&c, "lse", lse, 1, logits->v.shape);
    want_stat(&c, "lse", lse, "logits", logits);
    mci_out(&c, 0, dlogits, logits->v.dtype, logits->v.ndim, logits->v.shape);
    mci_moe_params p = {.coefficient = coefficient};
    return mci_end(&c, &p);
}
