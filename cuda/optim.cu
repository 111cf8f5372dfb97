/* optim.cu: optimizer steps (formulas and their sources: core/cpu/optim.c), for one tensor or many.
 *
 * Contiguous tensors go through the table of chunks.cuh, one too: so a tensor gets the same bits
 * whatever stands beside it. A thread owns as many neighbours as make 16 bytes of the widest
 * operand, so that a warp's accesses to each operand lie side by side: with 8 bfloat16 and 32 bytes
 * of their float32 moments a thread, every access of the moments would touch twice as many sectors.
 * Of a 16-bit parameter beside float32 it takes two such groups. All loads come before the first
 * sum: up to 112 bytes in flight a thread, each byte moved once. Sums of products are written as
 * fma, so that every kernel rounds alike. Strided tensors go element by element.
 *
 * The numbers that depend on step, lr and grad_scale, which lie on the device, are computed by each
 * block's first thread in float64; a block takes some 80 chunks of a large model, so this is
 * nothing.
 */
#include "chunks.cuh"
#include "many.cuh"

namespace {

__device__ inline float fused(float a, float b, float c) {
    return fmaf(a, b, c);
}
__device__ inline double fused(double a, double b, double c) {
    return fma(a, b, c);
}
__device__ inline float root_of(float x) {
    return sqrtf(x);
}
__device__ inline double root_of(double x) {
    return sqrt(x);
}

/* The tensors of a step: parameter, first moment or momentum, second moment, master, gradient. */
enum { PARAM, FIRST, SECOND, MASTER, GRAD, OPERANDS };

/* What a launch's steps have in common. count, scale: may be NULL. */
struct settings {
    const float *count, *lr, *scale;
    mci_optim_params o;
};

static_assert(sizeof(mcu_chunks<OPERANDS>) + sizeof(settings) <= 32764, "kernel parameters");

template <typename R>
struct numbers {
    R scale, add, keep, one1, beta2, one2, inverse_root, eps, rate, momentum, take;
    int skip, first, nesterov;
};

/* As core/cpu/optim.c computes them. */
template <int ADAM, typename R>
__device__ inline numbers<R> numbers_of(const settings &s) {
    const mci_optim_params &o = s.o;
    double scale = s.scale ? (double)*s.scale : 1.0, lr = (double)*s.lr;
    double count = s.count ? (double)*s.count : ADAM ? 0.0 : 1.0;
    numbers<R> k = {};
    k.skip = !(scale - scale == 0); /* infinite or NaN */
    k.scale = (R)scale;
    if (ADAM) {
        k.add = (R)(o.decoupled ? 0.0 : o.weight_decay);
        k.keep = (R)(o.decoupled ? 1 - lr * o.weight_decay : 1.0);
        k.one1 = (R)(1 - o.beta1);
        k.beta2 = (R)o.beta2;
        k.one2 = (R)(1 - o.beta2);
        k.eps = (R)o.eps;
        k.inverse_root = (R)(1 / sqrt(1 - pow(o.beta2, count)));
        k.rate = (R)(lr / (1 - pow(o.beta1, count)));
    } else {
        k.add = (R)o.weight_decay;
        k.rate = (R)lr;
        k.momentum = (R)o.momentum;
        k.first = count <= 1;
        k.keep = k.first ? (R)0 : (R)o.momentum;
        k.take = k.first ? (R)1 : (R)(1 - o.dampening);
        k.nesterov = o.nesterov;
    }
    return k;
}

template <typename R>
__device__ inline void adam(R &w, R &m, R &v, R grad, const numbers<R> &k) {
    R g = fused(k.add, w, grad * k.scale);
    m = fused(g - m, k.one1, m);
    v = fused(k.one2 * g, g, v * k.beta2);
    w = fused(-k.rate, m / fused(root_of(v), k.inverse_root, k.eps), w * k.keep);
}

/* has: there is a momentum buffer b. */
template <typename R>
__device__ inline void sgd(R &w, R &b, bool has, R grad, const numbers<R> &k) {
    R g = fused(k.add, w, grad * k.scale);
    if (has) {
        if (k.first) b = 0; /* what stands there does not count, not even a NaN */
        b = fused(k.keep, b, k.take * g);
        g = k.nesterov ? fused(k.momentum, b, g) : b;
    }
    w = fused(-k.rate, g, w);
}

/* U times V elements, at p[..] + i and every `step` elements on. */
template <int ADAM, int V, int U, typename P, typename G, typename M>
__device__ inline void step_at(void *const (&p)[OPERANDS], int64_t i, int64_t step,
                               const numbers<mcu_real_t<P>> &k) {
    typedef mcu_real_t<P> R;
    P *param = (P *)p[PARAM] + i;
    M *first = (M *)p[FIRST] + i, *second = (M *)p[SECOND] + i;
    R *master = (R *)p[MASTER] + i;
    R w[U][V], m[U][V], v[U][V], g[U][V];
    bool has = ADAM || p[FIRST];
#pragma unroll
    for (int u = 0; u < U; u++) {
        mcu_load<V>(g[u], (const G *)p[GRAD] + i + u * step);
        if (p[MASTER])
            mcu_load<V>(w[u], master + u * step);
        else
            mcu_load<V>(w[u], param + u * step);
        if (has) mcu_load<V>(m[u], first + u * step);
        if (ADAM) mcu_load<V>(v[u], second + u * step);
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
        for (int j = 0; j < V; j++) {
            if (ADAM)
                adam(w[u][j], m[u][j], v[u][j], g[u][j], k);
            else
                sgd(w[u][j], m[u][j], has, g[u][j], k);
        }
        if (has) mcu_store<V>(first + u * step, m[u]);
        if (ADAM) mcu_store<V>(second + u * step, v[u]);
        if (p[MASTER]) mcu_store<V>(master + u * step, w[u]);
        mcu_store<V>(param + u * step, w[u]);
    }
}

/* n elements at p[..] + begin by all threads of the block, V at a time. */
template <int ADAM, int V, typename P, typename G, typename M>
__device__ inline void step_chunk(void *const (&p)[OPERANDS], int64_t begin, int n, bool aligned,
                                  const numbers<mcu_real_t<P>> &k) {
    enum { N = MCU_CHUNK_THREADS, U = 16 / (V * (int)sizeof(P)) };
    int whole = aligned ? n / V : 0, i = (int)threadIdx.x;
    for (; i + (U - 1) * N < whole; i += U * N)
        step_at<ADAM, V, U, P, G, M>(p, begin + (int64_t)i * V, N * V, k);
    for (; U > 1 && i < whole; i += N)
        step_at<ADAM, V, 1, P, G, M>(p, begin + (int64_t)i * V, 0, k);
    for (i = whole * V + (int)threadIdx.x; i < n; i += N)
        step_at<ADAM, 1, 1, P, G, M>(p, begin + i, 0, k);
}

template <int ADAM, typename P, typename G, typename M>
__global__ void __launch_bounds__(MCU_CHUNK_THREADS)
    step_kernel(mcu_chunks<OPERANDS> table, settings s) {
    typedef mcu_real_t<P> R;
    constexpr int gm = (int)(sizeof(G) > sizeof(M) ? sizeof(G) : sizeof(M));
    constexpr int pgm = gm > (int)sizeof(P) ? gm : (int)sizeof(P);
    constexpr int V = 16 / pgm, beside_master = 16 / (int)sizeof(R);
    __shared__ numbers<R> common[1];
    if (threadIdx.x == 0) common[0] = numbers_of<ADAM, R>(s);
    __syncthreads();
    const numbers<R> k = common[0];
    if (k.skip) return;
    uint32_t chunks = table.first[table.tensors];
    for (uint32_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        int tensor = table.owner(chunk);
        int64_t begin = (int64_t)(chunk - table.first[tensor]) * MCU_CHUNK;
        int64_t left = table.n[tensor] - begin;
        int n = left < MCU_CHUNK ? (int)left : MCU_CHUNK;
        void *p[OPERANDS];
        uintptr_t bits = 0;
        for (int i = 0; i < OPERANDS; i++) {
            p[i] = table.at[i][tensor];
            bits |= (uintptr_t)p[i];
        }
        if (V == beside_master || p[MASTER])
            step_chunk<ADAM, beside_master, P, G, M>(p, begin, n, bits % 16 == 0, k);
        else
            step_chunk<ADAM, V, P, G, M>(p, begin, n, bits % 16 == 0, k);
    }
}

/* Strided: a thread an element at a time. */
struct pointers {
    void *at[OPERANDS];
};

template <int ADAM, typename P, typename G, typename M>
__global__ void step_walk_kernel(mcu_walk<OPERANDS> walk, pointers base, settings s) {
    typedef mcu_real_t<P> R;
    __shared__ numbers<R> common[1];
    if (threadIdx.x == 0) common[0] = numbers_of<ADAM, R>(s);
    __syncthreads();
    const numbers<R> k = common[0];
    if (k.skip) return;
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < walk.n; i += step) {
        int64_t at[OPERANDS];
        walk.at(i, at);
        void *p[OPERANDS];
        p[PARAM] = (P *)base.at[PARAM] + at[PARAM];
        p[FIRST] = base.at[FIRST] ? (M *)base.at[FIRST] + at[FIRST] : nullptr;
        p[SECOND] = base.at[SECOND] ? (M *)base.at[SECOND] + at[SECOND] : nullptr;
        p[MASTER] = base.at[MASTER] ? (R *)base.at[MASTER] + at[MASTER] : nullptr;
        p[GRAD] = (G *)base.at[GRAD] + at[GRAD];
        step_at<ADAM, 1, 1, P, G, M>(p, 0, 0, k);
    }
}

/* -- launching
 * -------------------------------------------------------------------------------------- */

struct job {
    const mci_view *v[OPERANDS];
};

job job_of(int adam, const mci_view *const *t, const mci_optim_params *o) {
    if (adam) return job{{t[0], t[1], t[2], t[3], t[4]}};
    return job{{t[0], o->momentum != 0 ? t[1] : nullptr, nullptr, t[2], t[3]}};
}

const float *number(const mci_view *v) {
    return v ? (const float *)v->data : nullptr;
}

/* Which kernel: float64, float32, float16 (gradient alike, in float32), bfloat16 (the same, moments
 * in float32; the same, moments in bfloat16). */
enum { KINDS = 8 };
int kind_of(const job &j) {
    int wide = j.v[GRAD]->dtype != j.v[PARAM]->dtype;
    switch (j.v[PARAM]->dtype) {
        case MC_FLOAT64:
            return 0;
        case MC_FLOAT32:
            return 1;
        case MC_FLOAT16:
            return 2 + wide;
        default:
            return 4 + wide + (j.v[FIRST] && j.v[FIRST]->dtype == MC_BFLOAT16 ? 2 : 0);
    }
}

/* All steps of a call. */
struct batch {
    mci_exec *exec;
    const char *op;
    int64_t n;
    const mci_view *const *const *t;
    settings s;
};

/* Those of one kind. */
template <int ADAM, typename P, typename G, typename M>
mc_status run_kind(const batch &b, int kind) {
    mcu_chunks<OPERANDS> table;
    table.clear();
    for (int64_t i = 0; i <= b.n; i++) { /* at n: what is left in the table */
        int64_t elements = 0;
        pointers at = {};
        if (i < b.n) {
            job j = job_of(ADAM, b.t[i], &b.s.o);
            elements = mci_numel(j.v[PARAM]);
            if (kind_of(j) != kind || elements == 0) continue;
            int flat = 1;
            for (int k = 0; k < OPERANDS; k++) {
                at.at[k] = j.v[k] ? j.v[k]->data : nullptr;
                flat = flat && (!j.v[k] || mci_is_contiguous(j.v[k]));
            }
            if (!flat) {
                MCU_LAUNCH((step_walk_kernel<ADAM, P, G, M>),
                           mcu_blocks(b.exec, elements, MCU_CHUNK_THREADS, 16), MCU_CHUNK_THREADS,
                           0, b.exec, mcu_walk_of<OPERANDS>(j.v), at, b.s);
                continue;
            }
        }
        if (table.tensors > 0 && (i == b.n || !table.takes(elements))) {
            MCU_LAUNCH((step_kernel<ADAM, P, G, M>),
                       mcu_blocks(b.exec, table.first[table.tensors], 1, 8), MCU_CHUNK_THREADS, 0,
                       b.exec, table, b.s);
            table.clear();
        }
        if (i < b.n) table.add(at.at, elements);
    }
    return mcu_launched(b.op);
}

template <int ADAM>
mc_status run_one_kind(const batch &b, int kind) {
    switch (kind) {
        case 0:
            return run_kind<ADAM, double, double, double>(b, kind);
        case 1:
            return run_kind<ADAM, float, float, float>(b, kind);
        case 2:
            return run_kind<ADAM, mcu_half, mcu_half, float>(b, kind);
        case 3:
            return run_kind<ADAM, mcu_half, float, float>(b, kind);
        case 4:
            return run_kind<ADAM, mcu_bf16, mcu_bf16, float>(b, kind);
        case 5:
            return run_kind<ADAM, mcu_bf16, float, float>(b, kind);
        case 6:
            return run_kind<1, mcu_bf16, mcu_bf16, mcu_bf16>(b, kind);
        default:
            return run_kind<1, mcu_bf16, float, mcu_bf16>(b, kind);
    }
}

template <int ADAM>
mc_status run_all(const batch &b) {
    unsigned present = 0;
    for (int64_t i = 0; i < b.n; i++) present |= 1U << kind_of(job_of(ADAM, b.t[i], &b.s.o));
    mc_status status = MC_OK;
    for (int kind = 0; kind < KINDS && status == MC_OK; kind++)
        if (present >> kind & 1U) status = run_one_kind<ADAM>(b, kind);
    return status;
}

}  // namespace

mc_status mcu_adam_step_many(mci_exec *exec, int64_t n, const mci_view *const *const *t,
                             const void *params) {
    if (n == 0) return MC_OK;
    settings s = {number(t[0][5]), number(t[0][6]), number(t[0][7]),
                  *(const mci_optim_params *)params};
    return run_all<1>(batch{exec, "adam_step", n, t, s});
}

mc_status mcu_adam_step(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return mcu_adam_step_many(exec, 1, &t, params_);
}

mc_status mcu_sgd_step(mci_exec *exec, const mci_view *const *t, const void *params_) {
    settings s = {number(t[4]), number(t[5]), number(t[6]), *(const mci_optim_params *)params_};
    return run_all<0>(batch{exec, "sgd_step", 1, &t, s});
}
