/* attention.c: rotary positions and scaled dot-product attention.
 *
 *     rope       (x[d], x[d + D/2]) turned by (first + t) * theta^(-2 d / D)    (RoFormer, eq. 34)
 *     attention  P = softmax(scale * q k^T) over the keys a query sees, out = P v,
 *                lse = logsumexp(scale * q k^T)               (Vaswani et al. 2017, eq. 1)
 *     backward   dS = P * (dout v^T - rowsum(dout * out)) * scale,
 *                dq = dS k, dk = dS^T q, dv = P^T dout        (FlashAttention-2, section 2)
 *
 * A causal query t of T sees the first t + S - T + 1 of S keys; one that sees none gives zeros, lse
 * -inf and no gradient. Everything is computed in float32 (float64 for float64).
 */
#include "gemm.h"
#include "row.h"

/* Queries that go through the matrix products together. */
enum { QUERIES = 64 };

typedef struct sizes {
    int64_t B, T, H, D, S, Hkv;
    int64_t group; /* query heads that share a head of k and v, at least 1 */
    int causal;
} sizes;

static inline int64_t whole_lanes(int64_t n) {
    return (n + MCI_LANES - 1) / MCI_LANES * MCI_LANES;
}

/* Elements from one row of scores to the next: whole lanes, and never a power of two, which would
 * put a column of all rows in one set of the cache (with 1024 keys, P v and P^T dout ran 1.6 times
 * as fast). */
static inline int64_t score_width(int64_t keys) {
    return whole_lanes(keys) + 16;
}

/* How many keys, from the first, query `time` sees. */
static inline int64_t visible(const sizes *z, int64_t time) {
    if (!z->causal) return z->S;
    int64_t n = time + z->S - z->T + 1;
    return n < 0 ? 0 : n;
}

/* Row of k or v, as mci_rows counts, that query head h of batch b reads at key s. */
static inline int64_t key_row(const sizes *z, int64_t b, int64_t s, int64_t h) {
    return (b * z->S + s) * z->Hkv + h / z->group;
}

static sizes sizes_of(const mci_view *q, const mci_view *k, int causal) {
    sizes z = {q->shape[0], q->shape[1], q->shape[2], q->shape[3],
               k->shape[1], k->shape[2], 1,           causal};
    if (z.H > 0) z.group = z.H / z.Hkv;
    return z;
}

/* The reason of a failure stands in the message buffer of the thread that met it. */
static mc_status attention_status(const char *op, mc_status status) {
    if (status == MC_OK) return MC_OK;
    return mci_fail(status, "%s: %s failed in a product", op, mci_gemm_provider());
}

#define IN_BOTH_REALS "attention_real.h"
#include "both_reals.h"

mc_status MCI_CPU(rope)(mci_exec *exec, const mci_view *const *t, const void *p) {
    return (t[1]->dtype == MC_FLOAT64 ? rope_f64 : rope_f32)(exec, t, p);
}

mc_status MCI_CPU(attention)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_attention_params *a = p;
    sizes z = sizes_of(t[2], t[3], a->causal);
    if (mci_cpu_plain || z.D == 0)
        return (t[2]->dtype == MC_FLOAT64 ? attention_plain_f64 : attention_plain_f32)(exec, t, &z,
                                                                                       a->scale);
    return (t[2]->dtype == MC_FLOAT64 ? attention_fast_f64 : attention_fast_f32)(exec, t, &z,
                                                                                 a->scale);
}

mc_status MCI_CPU(attention_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_attention_params *a = p;
    sizes z = sizes_of(t[4], t[5], a->causal);
    if (mci_cpu_plain || z.D == 0)
        return (t[4]->dtype == MC_FLOAT64 ? attention_backward_plain_f64
                                          : attention_backward_plain_f32)(exec, t, &z, a->scale);
    return (t[4]->dtype == MC_FLOAT64 ? attention_backward_fast_f64 : attention_backward_fast_f32)(
        exec, t, &z, a->scale);
}
