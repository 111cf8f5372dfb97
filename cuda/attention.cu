/* attention.cu: rope, and which of the two paths attention takes.
 *
 *     rope  (x[d], x[d + D/2]) turned by (first + t) * theta^(-2 d / D)      (RoFormer, eq. 34)
 *
 * The cosines and sines of all (t, d) are made first, in float64 (an angle of a position near 10^6
 * would lose its fraction in float32) and rounded once, by a thread each; then a thread turns the
 * same pairs of 4 heads, in pieces of 16 bytes where the strides allow, with all its loads under
 * way at once.
 */
#include <cstdio>
#include <cmath>

#include "attention.cuh"
#include "attention_plain.cuh"

namespace {

enum { ROPE_THREADS = 256, ROPE_HEADS = 4 };

template <typename T>
struct rope_args {
    T *y;
    const T *x;
    mcu_real_t<T> *table; /* [T, 2, D / 2]: cosines, sines */
    int64_t sy[4], sx[4];
    int64_t items, times, heads, half;
};

/* A thread owns entry i of the table. */
template <typename R>
__global__ void __launch_bounds__(ROPE_THREADS)
    rope_table_kernel(R *table, int64_t n, int64_t half, double theta, int64_t first, int inverse) {
    int64_t i = (int64_t)blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (i >= n) return;
    int64_t t = i / half, d = i % half;
    double angle = (double)(first + t) * pow(theta, -(double)d / (double)half);
    table[t * 2 * half + d] = (R)cos(angle);
    table[t * 2 * half + half + d] = (R)(inverse ? -sin(angle) : sin(angle));
}

/* A thread owns V neighbouring pairs of up to 4 heads of one (b, t), heads / 4 apart, so that
 * neighbouring threads have neighbouring heads. */
template <typename T, int V>
__global__ void __launch_bounds__(ROPE_THREADS) rope_kernel(rope_args<T> p) {
    typedef mcu_real_t<T> R;
    constexpr int W = V * sizeof(R) > 16 ? 16 / (int)sizeof(R) : V; /* of the table in one load */
    int64_t i = (int64_t)blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (i >= p.items) return;
    int64_t pieces = p.half / V, apart = (p.heads + ROPE_HEADS - 1) / ROPE_HEADS;
    int64_t d, h, t, b;
    if (p.items <= INT32_MAX) { /* then each factor is small: 32-bit divisions */
        uint32_t k = (uint32_t)i, n = (uint32_t)pieces, m = (uint32_t)apart;
        d = k % n * V;
        h = k / n % m;
        b = k / n / m / (uint32_t)p.times;
        t = k / n / m % (uint32_t)p.times;
    } else {
        d = i % pieces * V;
        h = i / pieces % apart;
        b = i / pieces / apart / p.times;
        t = i / pieces / apart % p.times;
    }
    typedef mcu_vector<T, V> piece;
    const T *x = p.x + b * p.sx[0] + t * p.sx[1] + h * p.sx[2] + d * p.sx[3];
    T *y = p.y + b * p.sy[0] + t * p.sy[1] + h * p.sy[2] + d * p.sy[3];
    piece left[ROPE_HEADS], right[ROPE_HEADS];
#pragma unroll
    for (int j = 0; j < ROPE_HEADS; j++) {
        if (h + j * apart >= p.heads) continue;
        left[j] = *(const piece *)(x + j * apart * p.sx[2]);
        right[j] = *(const piece *)(x + j * apart * p.sx[2] + p.half * p.sx[3]);
    }
    const R *row = p.table + t * 2 * p.half + d;
    mcu_vector<R, W> c[V / W], s[V / W];
#pragma unroll
    for (int j = 0; j < V / W; j++) {
        c[j] = *(const mcu_vector<R, W> *)(row + j * W);
        s[j] = *(const mcu_vector<R, W> *)(row + p.half + j * W);
    }
#pragma unroll
    for (int j = 0; j < ROPE_HEADS; j++) {
        if (h + j * apart >= p.heads) continue;
#pragma unroll
        for (int e = 0; e < V; e++) {
            R l = mcu_up(left[j].v[e]), r = mcu_up(right[j].v[e]);
            R cos_ = c[e / W].v[e % W], sin_ = s[e / W].v[e % W];
            left[j].v[e] = mcu_down<T>(l * cos_ - r * sin_);
            right[j].v[e] = mcu_down<T>(l * sin_ + r * cos_);
        }
        *(piece *)(y + j * apart * p.sy[2]) = left[j];
        *(piece *)(y + j * apart * p.sy[2] + p.half * p.sy[3]) = right[j];
    }
}

/* Whether every row of the last axis is contiguous and lies at a multiple of 16 bytes; size: of an
 * element. */
bool rows_of_16_bytes(const mci_view *v, int64_t size) {
    int64_t unit = 16 / size;
    if (!mcu_aligned(v->data, 16)) return false;
    for (int i = 0; i < v->ndim - 1; i++)
        if (v->shape[i] != 1 && v->stride[i] % unit != 0) return false;
    return v->shape[v->ndim - 1] == 1 || v->stride[v->ndim - 1] == 1;
}

template <typename T, int V>
void rope_launch(mci_exec *exec, rope_args<T> p, int64_t batches) {
    p.items = batches * p.times * ((p.heads + ROPE_HEADS - 1) / ROPE_HEADS) * (p.half / V);
    unsigned blocks = (unsigned)((p.items + ROPE_THREADS - 1) / ROPE_THREADS);
    MCU_LAUNCH((rope_kernel<T, V>), blocks, ROPE_THREADS, 0, exec, p);
}

template <typename T>
mc_status rope(mci_exec *exec, const mci_view *const *t, const mci_rope_params *params) {
    typedef mcu_real_t<T> R;
    const mci_view *y = t[0], *x = t[1];
    if (mci_numel(x) == 0) return MC_OK;
    rope_args<T> p = {};
    p.y = (T *)y->data;
    p.x = (const T *)x->data;
    for (int i = 0; i < 4; i++) {
        p.sy[i] = y->stride[i];
        p.sx[i] = x->stride[i];
    }
    p.times = x->shape[1];
    p.heads = x->shape[2];
    p.half = x->shape[3] / 2;
    int64_t n = p.times * p.half;
    size_t bytes = (size_t)n * 2 * sizeof(R);
    p.table = (R *)exec->scratch(exec, bytes);
    if (!p.table) return mcu_no_scratch("rope", bytes);
    MCU_LAUNCH((rope_table_kernel<R>), (unsigned)((n + ROPE_THREADS - 1) / ROPE_THREADS),
               ROPE_THREADS, 0, exec, p.table, n, p.half, params->theta, params->first,
               params->inverse);
    constexpr int V = 16 / (int)sizeof(T);
    if (p.half % V == 0 && rows_of_16_bytes(x, sizeof(T)) && rows_of_16_bytes(y, sizeof(T)))
        rope_launch<T, V>(exec, p, x->shape[0]);
    else
        rope_launch<T, 1>(exec, p, x->shape[0]);
    return mcu_launched("rope");
}

mcu_attention_sizes sizes_of(const mci_view *q, const mci_view *k, int causal) {
    mcu_attention_sizes z = {q->shape[0], q->shape[1], q->shape[2], q->shape[3],
                             k->shape[1], k->shape[2], 0,           causal};
    z.group = z.H / z.Hkv;
    return z;
}

/* NULL when the tensor cores take it, else why not, in `text`. v: all operands of q's dtype. */
const char *why_plain(const mci_view *const *v, int n, const mci_view *q, const mci_view *k,
                      const mci_attention_params *params, char *text, size_t size) {
    mcu_attention_sizes z = sizes_of(q, k, 0);
    if (q->dtype != MC_BFLOAT16 && q->dtype != MC_FLOAT16)
        snprintf(text, size, "plain: %s", q->dtype == MC_FLOAT64 ? "float64" : "float32");
    else if (z.D != 64 && z.D != 128)
        snprintf(text, size, "plain: head size %lld", (long long)z.D);
    else if (z.T > INT32_MAX / 4 || z.S > INT32_MAX / 4) /* positions are counted in 32 bits */
        snprintf(text, size, "plain: length %lld", (long long)(z.T > z.S ? z.T : z.S));
    else if (z.B > 65535 || z.H > 65535 || z.Hkv > 65535) /* the second and third axis of a grid */
        snprintf(text, size, "plain: %lld x %lld heads", (long long)z.B, (long long)z.H);
    else if (params && !(params->scale > 1e-30 && params->scale < 1e30))
        snprintf(text, size, "plain: scale %g", params->scale);
    else {
        for (int i = 0; i < n; i++) {
            if (!v[i] || mci_numel(v[i]) == 0 || rows_of_16_bytes(v[i], 2)) continue;
            snprintf(text, size, "plain: rows that are not contiguous and 16-byte aligned");
            return text;
        }
        return nullptr;
    }
    return text;
}

const char *const TENSOR_CORES = "tensor cores (sm_80 kernel)";
thread_local char path_text[96];

const char *why_plain_forward(const mci_view *const *t, const mci_attention_params *params) {
    const mci_view *v[4] = {t[0], t[2], t[3], t[4]};
    return why_plain(v, 4, t[2], t[3], params, path_text, sizeof path_text);
}
const char *why_plain_backward(const mci_view *const *t, const mci_attention_params *params) {
    return why_plain(t, 8, t[4], t[5], params, path_text, sizeof path_text);
}

}  // namespace

const char *mcu_attention_path(const mci_view *const *t, const mci_attention_params *params) {
    const char *why = why_plain_forward(t, params);
    return why ? why : TENSOR_CORES;
}

const char *mcu_attention_backward_path(const mci_view *const *t,
                                        const mci_attention_params *params) {
    const char *why = why_plain_backward(t, params);
    return why ? why : TENSOR_CORES;
}

mc_status mcu_rope(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_rope_params *params = (const mci_rope_params *)params_;
    return mcu_for_float(t[1]->dtype,
                         [&](auto tag) { return rope<decltype(tag)>(exec, t, params); });
}

mc_status mcu_attention(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_attention_params *params = (const mci_attention_params *)params_;
    mcu_attention_sizes z = sizes_of(t[2], t[3], params->causal);
    if (z.B == 0 || z.T == 0 || z.H == 0) return MC_OK;
    if (why_plain_forward(t, params)) return mcu_attention_plain(exec, t, z, params->scale);
    return mcu_attention_sm80(exec, t, &z, params->scale);
}

mc_status mcu_attention_backward(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_attention_params *params = (const mci_attention_params *)params_;
    mcu_attention_sizes z = sizes_of(t[4], t[5], params->causal);
    if (z.B == 0) return MC_OK;
    if (why_plain_backward(t, params))
        return mcu_attention_backward_plain(exec, t, z, params->scale);
    return mcu_attention_backward_sm80(exec, t, &z, params->scale);
}
