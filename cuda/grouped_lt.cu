/* grouped_lt.cu: the grouped linear passes by cuBLASLt, for splits that the host knows.
 *     forward  y_i = x_i W_i^T (+ b_i)     dgrad  dx_i = dy_i W_i     wgrad  dW_i (+)= dy_i^T x_i
 * Equal splits are one batch. Otherwise each group is a product of its own, given to the side
 * stream that has the fewest rows so far, so that small groups fill the device together; the
 * streams fork from the exec's and join it. A group that the library refuses takes the plain kernel
 * in its place.
 */
#include "grouped.cuh"

#include "gemm.cuh"

namespace {

/* A pass as one product with group 0's pointers; steps from a group, or a row, to the next, in
 * bytes. */
struct pass {
    const char *name;
    mcu_gemm g;
    int64_t groups, rows;
    int64_t a_row, b_row, d_row;       /* of the ragged operands; 0 for the others */
    int64_t a_group, b_group, d_group; /* of the others */
    int64_t bias_group;
    int wgrad;
};

/* Rows whose elements lie side by side: 1, and *ld. */
int plain_rows(const mci_view *v, int axis, int64_t *ld) {
    return mcu_stored(v->shape[axis], v->shape[axis + 1], v->stride[axis], v->stride[axis + 1],
                      ld) == 0;
}

/* forward and dgrad: t = out, in, weight. `flip`: the product's b is the transposed weight. */
int rows_pass(pass *w, const mci_view *const *t, const mci_view *bias, int flip) {
    const mci_view *out = t[0], *in = t[1], *weight = t[2];
    mcu_gemm *g = &w->g;
    int64_t size = mcu_float_size(in->dtype);
    int way = mcu_stored(weight->shape[1], weight->shape[2], weight->stride[1], weight->stride[2],
                         &g->ldb);
    if (way < 0 || !plain_rows(in, 0, &g->lda) || !plain_rows(out, 0, &g->ldd)) return 0;
    if (bias && bias->stride[1] != 1 && bias->shape[1] > 1) return 0;
    g->transpose_b = way != flip;
    g->n = out->shape[1];
    g->k = in->shape[1];
    g->a = in->data;
    g->b = weight->data;
    g->d = out->data;
    g->bias = bias ? bias->data : NULL;
    g->dtype = g->d_dtype = in->dtype;
    w->groups = weight->shape[0];
    w->rows = in->shape[0];
    w->a_row = g->lda * size;
    w->d_row = g->ldd * size;
    w->b_group = weight->stride[0] * size;
    w->bias_group = bias ? bias->stride[0] * size : 0;
    return 1;
}

/* t = dw, dy, x */
int sums_pass(pass *w, const mci_view *const *t, int accumulate) {
    const mci_view *dw = t[0], *dy = t[1], *x = t[2];
    mcu_gemm *g = &w->g;
    if (!plain_rows(dy, 0, &g->lda) || !plain_rows(x, 0, &g->ldb) || !plain_rows(dw, 1, &g->ldd))
        return 0;
    g->transpose_a = 1;
    g->accumulate = accumulate;
    g->m = dw->shape[1];
    g->n = dw->shape[2];
    g->a = dy->data;
    g->b = x->data;
    g->d = dw->data;
    g->dtype = dy->dtype;
    g->d_dtype = dw->dtype;
    w->wgrad = 1;
    w->groups = dw->shape[0];
    w->rows = dy->shape[0];
    w->a_row = g->lda * mcu_float_size(dy->dtype);
    w->b_row = g->ldb * mcu_float_size(x->dtype);
    w->d_group = dw->stride[0] * mcu_float_size(dw->dtype);
    return 1;
}

/* The product of group i, whose rows begin at `first`. */
mcu_gemm product_of(const pass *w, int64_t i, int64_t first, int64_t rows) {
    mcu_gemm g = w->g;
    g.batch = 1;
    (w->wgrad ? g.k : g.m) = rows;
    g.a = (const char *)g.a + first * w->a_row;
    g.b = (const char *)g.b + first * w->b_row + i * w->b_group;
    g.d = (char *)g.d + first * w->d_row + i * w->d_group;
    if (g.bias) g.bias = (const char *)g.bias + i * w->bias_group;
    return g;
}

/* Equal groups as one batch; *taken = 0 where they are not, or the library has none. */
mc_status as_batch(mci_exec *exec, const pass *w, const int64_t *splits, int *taken) {
    *taken = 0;
    if (w->groups < 2 || splits[0] == 0 || w->g.bias) return MC_OK;
    for (int64_t i = 1; i < w->groups; i++)
        if (splits[i] != splits[0]) return MC_OK;
    mcu_gemm g = product_of(w, 0, 0, splits[0]);
    int64_t size = mcu_float_size(g.dtype), d_size = mcu_float_size(g.d_dtype);
    g.batch = w->groups;
    g.stride_a = splits[0] * w->a_row / size;
    g.stride_b = (splits[0] * w->b_row + w->b_group) / size;
    g.stride_d = (splits[0] * w->d_row + w->d_group) / d_size;
    return mcu_gemm_run(exec, 0, w->name, &g, taken);
}

mc_status group_by_group(mci_exec *exec, const pass *w, const int64_t *splits) {
    int64_t jobs = 0, first = 0, load[MCU_SIDE_STREAMS] = {};
    for (int64_t i = 0; i < w->groups; i++) jobs += splits[i] > 0 || (w->wgrad && !w->g.accumulate);
    int streams = jobs < 2 ? 0 : jobs < MCU_SIDE_STREAMS ? (int)jobs : (int)MCU_SIDE_STREAMS;
    mc_status status = streams ? mcu_fork(exec, streams) : MC_OK;
    if (status != MC_OK) return status;
    for (int64_t i = 0; i < w->groups && status == MC_OK; i++) {
        int64_t rows = splits[i];
        if (rows == 0 && (!w->wgrad || w->g.accumulate)) continue; /* an empty sum adds nothing */
        int least = 0, taken;
        for (int s = 1; s < streams; s++)
            if (load[s] < load[least]) least = s;
        load[least] += rows;
        mcu_gemm g = product_of(w, i, first, rows);
        status = mcu_gemm_run(exec, streams ? least + 1 : 0, w->name, &g, &taken);
        if (status == MC_OK && !taken) {
            mci_exec side = *exec;
            side.stream = (void *)mcu_side_stream(exec, streams ? least + 1 : 0);
            mcu_plain plain = mcu_plain_of(&g);
            status = mcu_plain_product(&side, w->name, &plain);
        }
        first += rows;
    }
    mc_status joined = streams ? mcu_join(exec, streams) : MC_OK; /* after a failure too */
    return status != MC_OK ? status : joined;
}

}  // namespace

mc_status mcu_grouped_lt(mci_exec *exec, int op, const mci_view *const *t,
                         const mci_grouped_params *p, int *taken) {
    pass w = {};
    int fits = 0;
    *taken = 0;
    if (!p->host_splits) return MC_OK;
    if (op == MCI_OP_grouped_linear) {
        w.name = "grouped_linear";
        fits = rows_pass(&w, t, t[3], 1);
    } else if (op == MCI_OP_grouped_linear_dgrad) {
        w.name = "grouped_linear_dgrad";
        fits = rows_pass(&w, t, NULL, 0);
    } else if (op == MCI_OP_grouped_linear_wgrad) {
        w.name = "grouped_linear_wgrad";
        fits = sums_pass(&w, t, p->accumulate);
    }
    if (!fits) return MC_OK;
    *taken = 1;
    if (mci_numel(t[0]) == 0) return MC_OK;
    int64_t sum = 0;
    for (int64_t i = 0; i < w.groups; i++) sum += p->host_splits[i];
    int batched;
    mc_status status = as_batch(exec, &w, p->host_splits, &batched);
    if (status == MC_OK && !batched) status = group_by_group(exec, &w, p->host_splits);
    if (status == MC_OK && !w.wgrad && p->zero_tail && sum < w.rows)
        status = mcu_grouped_zero_tail(exec, w.name, t[0], NULL, sum);
    return status;
}
