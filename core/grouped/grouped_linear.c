/* grouped_linear.c: argument checks of the grouped linear passes (formulas: cpu/grouped.c).
 *
 * The splits are a tensor on the layer's device, so what they hold is checked by the kernel, before
 * it writes: on the CPU a bad entry is an error that names it. Shapes are checked here, and splits
 * that the host knows (a tensor on the CPU, for a layer elsewhere).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend_room.h"
#include "call.h"
#include "graph.h"

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

/* Splits of the host, for a layer on another device. */
typedef struct known_splits {
    int64_t *values; /* [G], or NULL: the splits are where the layer is */
    mc_tensor uploaded;
} known_splits;

static void drop_splits(known_splits *h) {
    free(h->values);
    mc_tensor_release(&h->uploaded);
}

/* Operand i. The device gets the values themselves where it takes them, else a tensor; `rows` are
 * those of operand `name`. */
static void in_splits(mci_call *c, int i, const mc_tensor *splits, int64_t groups, const char *name,
                      int64_t rows, known_splits *h) {
    *h = (known_splits){.values = NULL};
    if (!mci_ok(c)) return;
    if (!splits || !splits->storage || splits->storage->device != MCI_DEVICE_CPU ||
        c->device == MCI_DEVICE_CPU) {
        mci_in(c, i, splits);
        want_splits(c, splits, groups);
        return;
    }
    want_splits(c, splits, groups);
    if (mci_ok(c) && mci_recording)
        c->status =
            mci_fail(MC_EUNSUPPORTED,
                     "%s: m_splits are of the host (a table, or a tensor on the CPU), and a graph "
                     "that is being recorded would repeat them; give a tensor on the device",
                     c->name);
    if (!mci_ok(c)) return;
    int64_t n = splits->v.shape[0], sum = 0;
    h->values = malloc((size_t)(n + 1) * sizeof *h->values);
    if (!h->values) {
        c->status = mci_fail(MC_ENOMEM, "%s: out of memory", c->name);
        return;
    }
    for (int64_t g = 0; g < n; g++) {
        const char *at =
            (const char *)splits->v.data + g * splits->v.stride[0] * mc_dtype_size(splits->v.dtype);
        int32_t narrow;
        memcpy(&narrow, at, sizeof narrow);
        if (splits->v.dtype == MC_INT32)
            h->values[g] = narrow;
        else
            memcpy(&h->values[g], at, sizeof h->values[g]);
        if (h->values[g] < 0)
            mci_bad(c, "m_splits[%lld] is %lld, must be 0 or more", (long long)g,
                    (long long)h->values[g]);
        if (__builtin_add_overflow(sum, h->values[g], &sum)) sum = INT64_MAX;
    }
    if (sum > rows)
        mci_bad(c, "m_splits sum to %lld, %s has %lld rows", (long long)sum, name, (long long)rows);
    if (!mci_ok(c) || mci_backend_of(c->device)->takes_host_splits) return;
    c->status = mc_empty(&h->uploaded, MC_INT64, c->device, 1, &n);
    if (mci_ok(c)) c->status = mc_write(&h->uploaded, h->values, n * (int64_t)sizeof *h->values);
    mci_in(c, i, &h->uploaded);
}

/* mci_end for a call with splits. */
static mc_status end_with_splits(mci_call *c, mci_grouped_params *p, known_splits *h) {
    p->host_splits = h->values;
    mc_status status = mci_end(c, p);
    drop_splits(h);
    return status;
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
    want_weight(&c, weight);
    if (mci_ok(&c)) want_rows(&c, "x", x, weight->v.shape[2]);
    if (mci_ok(&c)) mci_want_same_dtype(&c, "x", x, "weight", weight);
    if (mci_ok(&c) && bias) {
        mci_want_same_dtype(&c, "x", x, "bias", bias);
        mci_want_shape(&c, "bias", bias, 2, weight->v.shape);
    }
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    known_splits h;
    in_splits(&c, 3, splits, weight->v.shape[0], "x", x->v.shape[0], &h);
    mci_out(&c, 0, y, x->v.dtype, 2, (int64_t[]){x->v.shape[0], weight->v.shape[1]});
    mci_grouped_params p = {.zero_tail = mci_is_fresh(&c, 0)};
    return end_with_splits(&c, &p, &h);
}

mc_status mc_grouped_linear_dgrad(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *weight,
                                  const mc_tensor *splits) {
    mci_call c = mci_begin("grouped_linear_dgrad", MCI_OP_grouped_linear_dgrad, 1);
    c.apart = 1;
    mci_in(&c, 0, dy);
    mci_in(&c, 1, weight);
    want_weight(&c, weight);
    if (mci_ok(&c)) want_rows(&c, "dy", dy, weight->v.shape[1]);
    if (mci_ok(&c)) mci_want_same_dtype(&c, "dy", dy, "weight", weight);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    known_splits h;
    in_splits(&c, 2, splits, weight->v.shape[0], "dy", dy->v.shape[0], &h);
    mci_out(&c, 0, dx, dy->v.dtype, 2, (int64_t[]){dy->v.shape[0], weight->v.shape[2]});
    mci_grouped_params p = {.zero_tail = mci_is_fresh(&c, 0)};
    return end_with_splits(&c, &p, &h);
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
    want_rows(&c, "dy", dy, -1);
    want_rows(&c, "x", x, -1);
    if (mci_ok(&c)) mci_want_same_dtype(&c, "dy", dy, "x", x);
    if (mci_ok(&c) && dy->v.shape[0] != x->v.shape[0])
        mci_bad(&c, "dy has %lld rows, x has %lld", (long long)dy->v.shape[0],
                (long long)x->v.shape[0]);
    want_filled(&c, "dw", dw, accumulate);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    known_splits h;
    in_splits(&c, 2, splits, given_groups(dw), "dy", dy->v.shape[0], &h);
    if (!mci_ok(&c)) return end_with_splits(&c, &(mci_grouped_params){0}, &h);
    int64_t shape[] = {splits->v.shape[0], dy->v.shape[1], x->v.shape[1]};
    mci_out(&c, 0, dw, gradient_dtype(dw, dy), 3, shape);
    mci_grouped_params p = {.accumulate = accumulate != 0};
    return end_with_splits(&c, &p, &h);
}

mc_status mc_grouped_linear_bias_grad(mc_tensor *db, const mc_tensor *dy, const mc_tensor *splits,
                                      int accumulate) {
    mci_call c = mci_begin("grouped_linear_bias_grad", MCI_OP_grouped_linear_bias_grad, 1);
    c.apart = 1;
    mci_in(&c, 0, dy);
    want_rows(&c, "dy", dy, -1);
    want_filled(&c, "db", db, accumulate);
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    known_splits h;
    in_splits(&c, 1, splits, given_groups(db), "dy", dy->v.shape[0], &h);
    if (!mci_ok(&c)) return end_with_splits(&c, &(mci_grouped_params){0}, &h);
    mci_out(&c, 0, db, gradient_dtype(db, dy), 2, (int64_t[]){splits->v.shape[0], dy->v.shape[1]});
    mci_grouped_params p = {.accumulate = accumulate != 0};
    return end_with_splits(&c, &p, &h);
}

mc_status mc_grouped_linear_path(const char *pass, int device, int dtype, int64_t groups, int64_t k,
                                 int64_t n, int host_splits, char *text, int64_t size) {
    static const struct {
        const char *pass;
        int op;
    } passes[] = {{"forward", MCI_OP_grouped_linear},
                  {"dgrad", MCI_OP_grouped_linear_dgrad},
                  {"wgrad", MCI_OP_grouped_linear_wgrad}};
    mc_status status = mci_check_device("grouped_linear_path", device);
    if (status != MC_OK) return status;
    int which = 0;
    while (which < 3 && strcmp(pass, passes[which].pass) != 0) which++;
    if (which == 3)
        return mci_fail(
            MC_EINVAL,
            "grouped_linear_path: pass \"%s\", wanted \"forward\", \"dgrad\" or \"wgrad\"", pass);
    const mci_backend *b = mci_backend_of(device);
    if (!b->path) {
        snprintf(text, (size_t)size, "%s: the only way", b->name);
        return MC_OK;
    }
    /* Operands of these sizes that lie as fresh tensors do; an address stands for their alignment.
     */
    void *aligned = (void *)(uintptr_t)4096;
    mci_view x = {
        .data = aligned, .dtype = dtype, .ndim = 2, .shape = {groups, k}, .stride = {k, 1}};
    mci_view y = {
        .data = aligned, .dtype = dtype, .ndim = 2, .shape = {groups, n}, .stride = {n, 1}};
    mci_view w = {.data = aligned,
                  .dtype = dtype,
                  .ndim = 3,
                  .shape = {groups, n, k},
                  .stride = {n * k, k, 1}};
    mci_view splits = {
        .data = aligned, .dtype = MC_INT64, .ndim = 1, .shape = {groups}, .stride = {1}};
    const mci_view *lists[3][5] = {
        {&y, &x, &w, NULL, &splits}, {&x, &y, &w, &splits, NULL}, {&w, &y, &x, &splits, NULL}};
    int64_t known[1] = {0};
    mci_grouped_params p = {.host_splits = host_splits ? known : NULL};
    b->path(passes[which].op, lists[which], &p, text, (size_t)size);
    return MC_OK;
}
