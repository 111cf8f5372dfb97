/* matmul.cu: matmul and linear as products of gemm_lt.cu, where leading dimensions and one batch
 * stride can say how the operands lie; the plain kernel takes the rest. matmul  d [.., m, n] = a
 * [.., m, k] b [.., k, n], batch axes broadcast with stride 0 linear  y [R, N] = x [R, K] weight
 * [N, K]^T (+ bias [N]) (gelu of that) Batch axes that lie behind each other are one; an innermost
 * one that b does not have is more rows of a; of what then is left the longest is the library's
 * batch and the host counts through the others.
 */
#include "gemm.cuh"

namespace {

/* Beyond this many calls of the library one launch of the plain kernel is the shorter way. */
enum { MOST_CALLS = 256 };

void drop_axis(mcu_plain *p, int axis) {
    p->axes--;
    for (int i = axis; i < p->axes; i++) {
        p->shape[i] = p->shape[i + 1];
        p->a_batch[i] = p->a_batch[i + 1];
        p->b_batch[i] = p->b_batch[i + 1];
        p->d_batch[i] = p->d_batch[i + 1];
    }
}

/* Batch axes of size 1 go, neighbours that are one in all three operands merge. */
void merge_axes(mcu_plain *p) {
    for (int i = p->axes - 1; i >= 0; i--)
        if (p->shape[i] == 1) drop_axis(p, i);
    for (int i = p->axes - 2; i >= 0; i--) {
        int64_t inner = p->shape[i + 1];
        if (p->a_batch[i] != p->a_batch[i + 1] * inner ||
            p->b_batch[i] != p->b_batch[i + 1] * inner ||
            p->d_batch[i] != p->d_batch[i + 1] * inner)
            continue;
        p->shape[i + 1] *= p->shape[i];
        drop_axis(p, i);
    }
}

/* An innermost batch axis over which b does not change is more rows of a and d. */
void fold_rows(mcu_plain *p) {
    while (p->axes > 0) {
        int last = p->axes - 1;
        if (p->b_batch[last] != 0) return;
        if (p->m == 1) { /* the stride of a single row means nothing */
            p->a_m = p->a_batch[last];
            p->d_m = p->d_batch[last];
        } else if (p->a_batch[last] != p->m * p->a_m || p->d_batch[last] != p->m * p->d_m) {
            return;
        }
        p->m *= p->shape[last];
        p->axes--;
    }
}

/* d^T = b^T a^T */
mcu_plain transposed(const mcu_plain *p) {
    mcu_plain t = *p;
    t.m = p->n;
    t.n = p->m;
    t.a = p->b;
    t.b = p->a;
    t.a_m = p->b_n;
    t.a_k = p->b_k;
    t.b_k = p->a_k;
    t.b_n = p->a_m;
    t.d_m = p->d_n;
    t.d_n = p->d_m;
    for (int i = 0; i < p->axes; i++) {
        t.a_batch[i] = p->b_batch[i];
        t.b_batch[i] = p->a_batch[i];
    }
    return t;
}

/* 1 with *g filled (but for batches) when the library's words suffice. */
int in_leading_dimensions(mcu_plain *p, mcu_gemm *g) {
    int way = mcu_stored(p->m, p->n, p->d_m, p->d_n, &g->ldd);
    if (way == 1 && !p->bias) {
        *p = transposed(p);
        way = mcu_stored(p->m, p->n, p->d_m, p->d_n, &g->ldd);
    }
    if (way != 0 || (p->bias && p->bias_n != 1 && p->n > 1)) return 0;
    g->transpose_a = mcu_stored(p->m, p->k, p->a_m, p->a_k, &g->lda);
    g->transpose_b = mcu_stored(p->k, p->n, p->b_k, p->b_n, &g->ldb);
    g->m = p->m;
    g->n = p->n;
    g->k = p->k;
    g->bias = p->bias;
    g->dtype = p->dtype;
    g->d_dtype = p->d_dtype;
    g->gelu = p->gelu;
    return g->transpose_a >= 0 && g->transpose_b >= 0;
}

/* All calls of the library; *taken = 0 when it has no such product: nothing of use is done. */
mc_status by_library(mci_exec *exec, const char *op, const mcu_plain *p, mcu_gemm *g, int *taken) {
    int longest = -1;
    int64_t calls = 1, size = mcu_float_size(p->dtype);
    for (int i = 0; i < p->axes; i++)
        if (longest < 0 || p->shape[i] > p->shape[longest]) longest = i;
    for (int i = 0; i < p->axes; i++) calls *= i == longest ? 1 : p->shape[i];
    *taken = 0;
    if (calls > MOST_CALLS) return MC_OK;
    g->batch = 1;
    if (longest >= 0) {
        g->batch = p->shape[longest];
        g->stride_a = p->a_batch[longest];
        g->stride_b = p->b_batch[longest];
        g->stride_d = p->d_batch[longest];
    }
    mc_status status = MC_OK;
    if (calls == 1) {
        g->a = p->a;
        g->b = p->b;
        g->d = p->d;
        status = mcu_split_product(exec, op, g, taken);
        if (status != MC_OK || *taken) return status;
    }
    *taken = 1;
    for (int64_t call = 0; call < calls && status == MC_OK && *taken; call++) {
        int64_t a = 0, b = 0, d = 0, rest = call;
        for (int i = p->axes - 1; i >= 0; i--) {
            if (i == longest) continue;
            int64_t at = rest % p->shape[i];
            rest /= p->shape[i];
            a += at * p->a_batch[i];
            b += at * p->b_batch[i];
            d += at * p->d_batch[i];
        }
        g->a = (const char *)p->a + a * size;
        g->b = (const char *)p->b + b * size;
        g->d = (char *)p->d + d * size;
        status = mcu_gemm_run(exec, 0, op, g, taken);
    }
    return status;
}

mc_status multiply(mci_exec *exec, const char *op, mcu_plain *p, int tf32) {
    mcu_gemm g = {};
    int taken = 0;
    mc_status status = MC_OK;
    merge_axes(p);
    fold_rows(p);
    g.tf32 = tf32;
    if (in_leading_dimensions(p, &g)) status = by_library(exec, op, p, &g, &taken);
    return status != MC_OK || taken ? status : mcu_plain_product(exec, op, p);
}

}  // namespace

mc_status mcu_matmul(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_matmul_params *params = (const mci_matmul_params *)params_;
    const mci_view *d = t[0], *a = t[1], *b = t[2];
    if (mci_numel(d) == 0) return MC_OK;
    int row = d->ndim - 2, column = d->ndim - 1;
    mcu_plain p = {};
    p.d = d->data;
    p.a = a->data;
    p.b = b->data;
    p.m = d->shape[row];
    p.n = d->shape[column];
    p.k = a->shape[column];
    p.d_m = d->stride[row];
    p.d_n = d->stride[column];
    p.a_m = a->stride[row];
    p.a_k = a->stride[column];
    p.b_k = b->stride[row];
    p.b_n = b->stride[column];
    p.axes = row;
    for (int i = 0; i < row; i++) {
        p.shape[i] = d->shape[i];
        p.a_batch[i] = a->stride[i];
        p.b_batch[i] = b->stride[i];
        p.d_batch[i] = d->stride[i];
    }
    p.dtype = p.d_dtype = d->dtype;
    return multiply(exec, "matmul", &p, params && params->tf32);
}

mc_status mcu_linear(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_matmul_params *params = (const mci_matmul_params *)params_;
    const mci_view *y = t[0], *x = t[1], *weight = t[2], *bias = t[3];
    if (mci_numel(y) == 0) return MC_OK;
    mcu_plain p = {};
    p.d = y->data;
    p.a = x->data;
    p.b = weight->data;
    p.bias = bias ? bias->data : NULL;
    p.m = y->shape[0];
    p.n = y->shape[1];
    p.k = x->shape[1];
    p.d_m = y->stride[0];
    p.d_n = y->stride[1];
    p.a_m = x->stride[0];
    p.a_k = x->stride[1];
    p.b_k = weight->stride[1];
    p.b_n = weight->stride[0];
    p.bias_n = bias ? bias->stride[0] : 0;
    p.dtype = p.d_dtype = y->dtype;
    p.gelu = params && params->gelu;
    return multiply(exec, "linear", &p, params && params->tf32);
}
