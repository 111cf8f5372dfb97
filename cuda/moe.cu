/* moe.cu: the way of rows to the experts and back.
 *
 *     moe_sort      stable counting sort of the T * k slots by expert: a block counts the experts
 * of its contiguous slots; a warp per expert sums the blocks' counts; each block then places its
 * slots, warp after warp, lane after lane: the order is the slots' own moe_permute   out[r] =
 * x[slots[r] / k]; moe_unpermute: y[t] = sum_j w[t, j] h[rows[t, j]]
 *
 * Rows move 16 bytes at a time where pointers and strides allow it. bfloat16 and float16 are
 * computed in float32 and rounded once. Whatever the values of ids, rows and slots, nothing outside
 * the operands is touched: an entry out of range is blamed and counts as none.
 */
#include "convert.cuh"
#include "moe.cuh"

namespace {

enum { MOE_THREADS = 256, MOE_WARPS = MOE_THREADS / 32, MOE_WAVES = 64 };

/* -- sums over a block
 * ------------------------------------------------------------------------------ */

enum : uint64_t { SUM_LIMIT = UINT64_C(1) << 63 };

/* Sums of 2^63 and more stick at 2^63: an addition without order. */
__device__ inline uint64_t add_up_to_limit(uint64_t a, uint64_t b) {
    return a >= SUM_LIMIT || b >= SUM_LIMIT - a ? SUM_LIMIT : a + b;
}
/* The sum of x over the block's threads up to this one; *total over all. space: MOE_WARPS elements.
 * All MOE_THREADS threads must call it. */
__device__ inline uint64_t block_scan(uint64_t x, uint64_t *total, uint64_t *space) {
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    for (int d = 1; d < 32; d *= 2) {
        uint64_t y = __shfl_up_sync(0xFFFFFFFFU, x, d);
        if (lane >= d) x = add_up_to_limit(x, y);
    }
    if (lane == 31) space[warp] = x;
    __syncthreads();
    uint64_t before = 0, all = 0;
    for (int w = 0; w < MOE_WARPS; w++) {
        if (w < warp) before = add_up_to_limit(before, space[w]);
        all = add_up_to_limit(all, space[w]);
    }
    __syncthreads();
    *total = all;
    return add_up_to_limit(before, x);
}

/* One block: offsets[i] for i = 0 .. groups, MOE_THREADS groups at a time. */
__global__ void __launch_bounds__(MOE_THREADS)
    offsets_kernel(moe_indices offsets, moe_indices first_dims, int64_t groups, mcu_guard negative,
                   mcu_guard overflow) {
    __shared__ uint64_t space[MOE_WARPS];
    uint64_t done = 0;
    if (threadIdx.x == 0) offsets.put(0, 0);
    for (int64_t first = 0; first < groups; first += MOE_THREADS) {
        int64_t g = first + threadIdx.x, m = g < groups ? first_dims[g] : 0;
        if (m < 0) {
            mcu_blame(negative, g, m);
            m = 0;
        }
        uint64_t total, sum = add_up_to_limit(done, block_scan((uint64_t)m, &total, space));
        if (g < groups) offsets.put(g + 1, sum < SUM_LIMIT ? (int64_t)sum : INT64_MAX);
        done = add_up_to_limit(done, total);
    }
    if (threadIdx.x == 0 && done >= SUM_LIMIT) mcu_blame(overflow, 0);
}

/* -- sorting
 * ---------------------------------------------------------------------------------------- */

/* Slots per block: a multiple of MOE_THREADS, for whole warps; blocks beyond the limit get longer.
 */
enum { SORT_SLOTS = 512, SORT_BLOCKS = 512, SORT_TABLE = 1 << 22, SORT_SHARED = 48 << 10 };

struct sort {
    moe_indices ids, rows, slots;
    int64_t *counts, counts_step;
    int64_t n, experts, width, blocks, chunk; /* n slots, `width` per token, `chunk` per block */
    int64_t *table;  /* [experts, blocks]: how many of the expert in the block; then, before it */
    int64_t *totals; /* [experts] */
    char *local;     /* what a block holds per expert, where shared memory is too small */
    int bits;        /* of the largest id */
    mcu_guard guard;
    __device__ inline int64_t id(int64_t i) const {
        int64_t e = ids[i];
        return e >= 0 && e < experts ? e : -1;
    }
};

/* table[e, b], by integer additions, whose order does not show. */
__global__ void __launch_bounds__(MOE_THREADS) count_kernel(sort s, int held) {
    MCU_SHARED(unsigned, shared);
    unsigned long long *column = reinterpret_cast<unsigned long long *>(s.table) + blockIdx.x;
    int64_t first = blockIdx.x * s.chunk, last = first + s.chunk < s.n ? first + s.chunk : s.n;
    for (int64_t e = threadIdx.x; e < s.experts; e += MOE_THREADS) {
        if (held)
            shared[e] = 0;
        else
            column[e * s.blocks] = 0;
    }
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < last; i += MOE_THREADS) {
        int64_t e = s.ids[i];
        if (e >= s.experts) mcu_blame(s.guard, i / s.width, i % s.width, e, s.experts - 1);
        if (e < 0 || e >= s.experts) continue;
        if (held)
            atomicAdd(&shared[e], 1U);
        else
            atomicAdd(&column[e * s.blocks], 1ULL);
    }
    __syncthreads();
    for (int64_t e = threadIdx.x; held && e < s.experts; e += MOE_THREADS)
        column[e * s.blocks] = shared[e];
}

/* A warp per expert: its row of the table becomes the sums before each block. */
__global__ void __launch_bounds__(MOE_THREADS) sum_kernel(sort s) {
    int lane = (int)threadIdx.x % 32;
    int64_t e = (int64_t)blockIdx.x * MOE_WARPS + threadIdx.x / 32;
    if (e >= s.experts) return; /* whole warps leave */
    int64_t *row = s.table + e * s.blocks, before = 0;
    for (int64_t first = 0; first < s.blocks; first += 32) {
        int64_t b = first + lane, own = b < s.blocks ? row[b] : 0, sum = own;
        for (int d = 1; d < 32; d *= 2) {
            int64_t y = __shfl_up_sync(0xFFFFFFFFU, sum, d);
            if (lane >= d) sum += y;
        }
        if (b < s.blocks) row[b] = before + sum - own;
        before += __shfl_sync(0xFFFFFFFFU, sum, 31);
    }
    if (lane == 0) {
        s.totals[e] = before;
        s.counts[e * s.counts_step] = before;
    }
}

/* Where the block's slots go. A warp owns chunk / MOE_WARPS contiguous slots; next[w, e] counts
 * what warps and steps before have of the expert, starts[e] is where the block's first one goes. */
__global__ void __launch_bounds__(MOE_THREADS) place_kernel(sort s, int held) {
    MCU_SHARED(int64_t, shared);
    __shared__ uint64_t space[MOE_WARPS];
    int64_t bytes = s.experts * (int64_t)(sizeof(int64_t) + MOE_WARPS * sizeof(unsigned));
    int64_t *starts = held ? shared : reinterpret_cast<int64_t *>(s.local + blockIdx.x * bytes);
    unsigned *next = reinterpret_cast<unsigned *>(starts + s.experts);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int64_t first = blockIdx.x * s.chunk, last = first + s.chunk < s.n ? first + s.chunk : s.n;
    int64_t own = first + warp * (s.chunk / MOE_WARPS), end = own + s.chunk / MOE_WARPS;
    if (end > last) end = last;
    unsigned *counts = next + warp * s.experts;

    for (int64_t i = threadIdx.x; i < s.experts * MOE_WARPS; i += MOE_THREADS) next[i] = 0;
    __syncthreads();
    for (int64_t i = own + lane; i < end; i += 32) {
        int64_t e = s.id(i);
        if (e >= 0) atomicAdd(&counts[e], 1U);
    }
    __syncthreads();
    uint64_t routed = 0;
    for (int64_t from = 0; from < s.experts; from += MOE_THREADS) {
        int64_t e = from + threadIdx.x;
        uint64_t total, mine = e < s.experts ? (uint64_t)s.totals[e] : 0;
        uint64_t sum = block_scan(mine, &total, space);
        if (e < s.experts) {
            starts[e] = (int64_t)(routed + sum - mine) + s.table[e * s.blocks + blockIdx.x];
            unsigned before = 0;
            for (int w = 0; w < MOE_WARPS; w++) {
                unsigned count = next[w * s.experts + e];
                next[w * s.experts + e] = before;
                before += count;
            }
        }
        routed += total;
    }
    __syncthreads();

    for (int64_t step = own; step < end; step += 32) { /* the whole warp, for the ballots */
        int64_t i = step + lane, e = i < end ? s.id(i) : -1, to = -1;
        unsigned peers = __ballot_sync(0xFFFFFFFFU, e >= 0);
        for (int bit = 0; bit < s.bits; bit++) {
            unsigned set = __ballot_sync(0xFFFFFFFFU, e >= 0 && (e >> bit & 1));
            peers &= e >= 0 && (e >> bit & 1) ? set : ~set;
        }
        int rank = __popc(peers & ((1U << lane) - 1));
        if (e >= 0) to = starts[e] + counts[e] + rank;
        __syncwarp();
        if (e >= 0 && rank == 0) counts[e] += (unsigned)__popc(peers);
        __syncwarp();
        if (i < end) s.rows.put(i, to);
        if (to >= 0) s.slots.put(to, i);
    }
    for (int64_t r = first + threadIdx.x; r < last; r += MOE_THREADS)
        if (r >= (int64_t)routed) s.slots.put(r, -1);
}

/* -- rows to the experts
 * ---------------------------------------------------------------------------- */

/* Rows of a matrix as `width` pieces of equal size, `step` pieces apart. */
struct pieces {
    void *data;
    int64_t row, step;
};

enum { PERMUTE_AT_ONCE = 4 };

/* lanes = 2^log threads per row, each of them at PERMUTE_AT_ONCE pieces in flight. */
template <typename P>
__global__ void __launch_bounds__(MOE_THREADS)
    permute_kernel(pieces out, pieces x, moe_indices slots, int64_t n, int64_t k, int64_t width,
                   int log, mcu_guard guard) {
    int lanes = 1 << log, lane = (int)threadIdx.x & (lanes - 1);
    int64_t step = (int64_t)gridDim.x * (MOE_THREADS >> log);
    for (int64_t r = (int64_t)blockIdx.x * (MOE_THREADS >> log) + (threadIdx.x >> log); r < n;
         r += step) {
        int64_t slot = slots[r], unused;
        if (slot >= n) {
            if (lane == 0) mcu_blame(guard, r, slot, n - 1);
            slot = -1;
        }
        P *to = static_cast<P *>(out.data) + r * out.row;
        const P *from =
            static_cast<const P *>(x.data) + (slot < 0 ? 0 : moe_divide(slot, k, &unused) * x.row);
        for (int64_t c = lane; c < width; c += PERMUTE_AT_ONCE * lanes) {
            P v[PERMUTE_AT_ONCE];
#pragma unroll
            for (int u = 0; u < PERMUTE_AT_ONCE; u++) {
                v[u] = P();
                if (slot >= 0 && c + u * lanes < width) v[u] = from[(c + u * lanes) * x.step];
            }
#pragma unroll
            for (int u = 0; u < PERMUTE_AT_ONCE; u++)
                if (c + u * lanes < width) to[(c + u * lanes) * out.step] = v[u];
        }
    }
}

/* -- and back
 * --------------------------------------------------------------------------------------- */

enum { TERMS = 4 }; /* rows of one token that are in flight together */

struct move {
    pieces y, h, dy, dh; /* y and dy [tokens, d], h and dh [n, d] */
    moe_indices rows, slots;
    moe_matrix weights, dweights;
    int64_t tokens, k, n, width;
    mcu_guard bad_rows, bad_slots;
    template <typename R>
    __device__ inline R weight(int64_t t, int64_t j) const {
        if (!weights.data) return 1;
        return moe_load<R>(weights.data, weights.dtype, t * weights.row + j * weights.step);
    }
    /* The row of slot (t, j), -1 for none. */
    __device__ inline int64_t row_of(int64_t t, int64_t j, bool blames) const {
        int64_t r = rows[t * k + j];
        if (r < n) return r;
        if (blames) mcu_blame(bad_rows, t, j, r, n - 1);
        return -1;
    }
};

/* A thread owns N neighbouring columns of a token; 2^log threads per token. */
template <typename T, int N>
__global__ void __launch_bounds__(MOE_THREADS) unpermute_kernel(move m, int log) {
    typedef mcu_real_t<T> R;
    typedef mcu_vector<T, N> P;
    int lanes = 1 << log, lane = (int)threadIdx.x & (lanes - 1);
    int64_t step = (int64_t)gridDim.x * (MOE_THREADS >> log);
    for (int64_t t = (int64_t)blockIdx.x * (MOE_THREADS >> log) + (threadIdx.x >> log);
         t < m.tokens; t += step) {
        /* once at least, for the blame, if the rows are empty */
        for (int64_t c = lane; c < m.width || c == 0; c += lanes) {
            R sum[N];
            for (int i = 0; i < N; i++) sum[i] = 0;
            for (int64_t first = 0; first < m.k; first += TERMS) {
                P h[TERMS];
                R w[TERMS];
                bool there[TERMS];
#pragma unroll
                for (int u = 0; u < TERMS; u++) {
                    int64_t j = first + u, r = j < m.k ? m.row_of(t, j, c == 0) : -1;
                    there[u] = r >= 0 && c < m.width;
                    if (!there[u]) continue;
                    h[u] = static_cast<const P *>(m.h.data)[r * m.h.row + c * m.h.step];
                    w[u] = m.weight<R>(t, j);
                }
#pragma unroll
                for (int u = 0; u < TERMS; u++) {
                    if (!there[u]) continue;
#pragma unroll
                    for (int i = 0; i < N; i++) sum[i] += w[u] * mcu_up(h[u].v[i]);
                }
            }
            P y;
            for (int i = 0; i < N; i++) y.v[i] = mcu_down<T>(sum[i]);
            if (c < m.width) static_cast<P *>(m.y.data)[t * m.y.row + c * m.y.step] = y;
        }
    }
}

/* Row r of dh from its slot, by one warp: for rows that no token's row_of names. */
template <typename T, int N>
__device__ void fill_row(const move &m, int64_t r, int64_t slot) {
    typedef mcu_vector<T, N> P;
    int64_t j = 0, t = slot < 0 ? 0 : moe_divide(slot, m.k, &j);
    mcu_real_t<T> w = slot < 0 ? 0 : m.weight<mcu_real_t<T>>(t, j);
    for (int64_t c = threadIdx.x % 32; c < m.width; c += 32) {
        P v = {};
        if (slot >= 0) v = static_cast<const P *>(m.dy.data)[t * m.dy.row + c * m.dy.step];
        for (int i = 0; i < N && slot >= 0; i++) v.v[i] = mcu_down<T>(w * mcu_up(v.v[i]));
        static_cast<P *>(m.dh.data)[r * m.dh.row + c * m.dh.step] = v;
    }
}

/* A warp per token t. It owns the dot products of t's slots, and of dh the rows that its slots
 * have, by `slots` and `rows` alike; and, from t's share of all rows, those that no slot has so:
 * zeros, or what `slots` says. DOTS: dweights are asked for. */
template <typename T, int N, bool DOTS>
__global__ void __launch_bounds__(MOE_THREADS) unpermute_backward_kernel(move m) {
    typedef mcu_real_t<T> R;
    typedef mcu_vector<T, N> P;
    enum { COLUMNS = N > 1 ? 2 : 1 }; /* pieces of each row in flight */
    int lane = (int)threadIdx.x % 32;
    int64_t first = (int64_t)blockIdx.x * MOE_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < m.tokens; t += (int64_t)gridDim.x * MOE_WARPS) {
        const P *dy = static_cast<const P *>(m.dy.data) + t * m.dy.row;
        for (int64_t from = 0; from < m.k; from += TERMS) {
            const P *h[TERMS];
            P *dh[TERMS];
            R w[TERMS], dot[TERMS];
#pragma unroll
            for (int u = 0; u < TERMS; u++) {
                int64_t j = from + u, r = j < m.k ? m.row_of(t, j, lane == 0) : -1;
                h[u] = nullptr;
                dh[u] = nullptr;
                w[u] = dot[u] = 0;
                if (r < 0) continue;
                w[u] = m.weight<R>(t, j);
                if (DOTS) h[u] = static_cast<const P *>(m.h.data) + r * m.h.row;
                if (m.slots[r] == t * m.k + j) dh[u] = static_cast<P *>(m.dh.data) + r * m.dh.row;
            }
            for (int64_t c = lane; c < m.width; c += 32 * COLUMNS) {
                P y[COLUMNS], x[TERMS][COLUMNS];
#pragma unroll
                for (int i = 0; i < COLUMNS; i++) {
                    if (c + 32 * i < m.width) y[i] = dy[(c + 32 * i) * m.dy.step];
#pragma unroll
                    for (int u = 0; u < TERMS; u++)
                        if (DOTS && h[u] && c + 32 * i < m.width)
                            x[u][i] = h[u][(c + 32 * i) * m.h.step];
                }
#pragma unroll
                for (int i = 0; i < COLUMNS; i++) {
                    if (c + 32 * i >= m.width) continue;
#pragma unroll
                    for (int u = 0; u < TERMS; u++) {
                        P z;
#pragma unroll
                        for (int v = 0; v < N; v++) {
                            R g = mcu_up(y[i].v[v]);
                            if (DOTS && h[u]) dot[u] += g * mcu_up(x[u][i].v[v]);
                            z.v[v] = mcu_down<T>(w[u] * g);
                        }
                        if (dh[u]) dh[u][(c + 32 * i) * m.dh.step] = z;
                    }
                }
            }
#pragma unroll
            for (int u = 0; u < TERMS; u++) {
                if (!DOTS || from + u >= m.k) continue;
                R sum = mcu_warp_sum(dot[u]);
                int64_t at = t * m.dweights.row + (from + u) * m.dweights.step;
                if (lane == 0) moe_store(m.dweights.data, m.dweights.dtype, at, sum);
            }
        }
        for (int64_t from = 0; from < m.k; from += 32) {
            int64_t r = t * m.k + from + lane, slot = -1;
            bool fill = from + lane < m.k;
            if (fill) {
                slot = m.slots[r];
                if (slot >= m.n) {
                    mcu_blame(m.bad_slots, r, slot, m.n - 1);
                    slot = -1;
                }
                fill = slot < 0 || m.rows[slot] != r;
            }
            unsigned left = __ballot_sync(0xFFFFFFFFU, fill);
            for (; left; left &= left - 1) {
                int from_lane = __ffs((int)left) - 1;
                fill_row<T, N>(m, t * m.k + from + from_lane,
                               __shfl_sync(0xFFFFFFFFU, slot, from_lane));
            }
        }
    }
}

/* -- launches
 * --------------------------------------------------------------------------------------- */

int64_t at_least_one(int64_t n) {
    return n > 0 ? n : 1;
}

/* The least log with 2^log >= n, at most that of a block. */
int log_of_lanes(int64_t n) {
    int log = 0;
    while (log < 8 && (1 << log) < n) log++;
    return log;
}

/* 1 when rows of the view are whole pieces of 16 bytes at multiples of 16. */
bool moves_by_16(const mci_view *v, int64_t size) {
    if (!v) return true;
    bool dense = v->stride[1] == 1 || v->shape[1] < 2;
    return dense && mcu_aligned(v->data, 16) && v->stride[0] * size % 16 == 0 &&
           v->shape[1] * size % 16 == 0;
}
/* In pieces of `per` elements. */
pieces pieces_of(const mci_view *v, int64_t per) {
    pieces p = {};
    if (!v) return p;
    p.data = v->data;
    p.row = v->stride[0] / per;
    p.step = per > 1 ? 1 : v->stride[1];
    return p;
}

template <typename P>
void permute(mci_exec *exec, const mci_view *const *t, int64_t k, int64_t per, mcu_guard guard) {
    int64_t n = t[2]->shape[0], width = t[1]->shape[1] / per;
    int log = log_of_lanes((width + PERMUTE_AT_ONCE - 1) / PERMUTE_AT_ONCE);
    MCU_LAUNCH((permute_kernel<P>), mcu_blocks(exec, n, MOE_THREADS >> log, MOE_WAVES), MOE_THREADS,
               0, exec, pieces_of(t[0], per), pieces_of(t[1], per), moe_indices_of(t[2]), n, k,
               width, log, guard);
}

template <typename T, int N>
void unpermute_backward(mci_exec *exec, const move &m, bool dots) {
    unsigned blocks = mcu_blocks(exec, m.tokens, MOE_WARPS, MOE_WAVES);
    if (dots)
        MCU_LAUNCH((unpermute_backward_kernel<T, N, true>), blocks, MOE_THREADS, 0, exec, m);
    else
        MCU_LAUNCH((unpermute_backward_kernel<T, N, false>), blocks, MOE_THREADS, 0, exec, m);
}

} /* namespace */

mc_status mcu_grouped_offsets(mci_exec *exec, const mci_view *const *t, const void *) {
    MCU_LAUNCH((offsets_kernel), 1, MOE_THREADS, 0, exec, moe_indices_of(t[0]),
               moe_indices_of(t[1]), t[1]->shape[0],
               mcu_guard_of(exec, "grouped_offsets: first_dims[%lld] is %lld, must be 0 or more"),
               mcu_guard_of(exec, "grouped_offsets: first_dims sum to more than 2^63 - 1"));
    return mcu_launched("grouped_offsets");
}

mc_status mcu_moe_sort(mci_exec *exec, const mci_view *const *t, const void *params_) {
    sort s = {};
    s.ids = moe_indices_of(t[3]);
    s.rows = moe_indices_of(t[1]);
    s.slots = moe_indices_of(t[2]);
    s.counts = static_cast<int64_t *>(t[0]->data);
    s.counts_step = t[0]->stride[0];
    s.n = mci_numel(t[3]);
    s.experts = static_cast<const mci_moe_params *>(params_)->experts;
    s.width = t[3]->shape[1];
    while (s.bits < 62 && (s.experts - 1) >> s.bits > 0) s.bits++;
    s.guard = mcu_guard_of(exec,
                           "moe_sort: ids[%lld, %lld] is %lld, legal are 0 to %lld (0-based), or "
                           "negative for none");
    int64_t most = SORT_TABLE / s.experts;
    if (most > SORT_BLOCKS) most = SORT_BLOCKS;
    s.blocks = (s.n + SORT_SLOTS - 1) / SORT_SLOTS;
    if (s.blocks > most) s.blocks = most;
    s.blocks = at_least_one(s.blocks);
    s.chunk = at_least_one((s.n + s.blocks - 1) / s.blocks);
    s.chunk = (s.chunk + MOE_THREADS - 1) / MOE_THREADS * MOE_THREADS;
    s.blocks = at_least_one((s.n + s.chunk - 1) / s.chunk);

    int64_t each = (int64_t)sizeof(int64_t) + MOE_WARPS * (int64_t)sizeof(unsigned);
    bool counts_held = s.experts <= SORT_SHARED / (int64_t)sizeof(unsigned);
    bool places_held = s.experts <= (SORT_SHARED - 1024) / each;
    size_t table = (size_t)s.experts * (size_t)(s.blocks + 1) * sizeof(int64_t);
    size_t bytes = table + (places_held ? 0 : (size_t)(s.experts * s.blocks * each));
    s.table = static_cast<int64_t *>(exec->scratch(exec, bytes));
    if (!s.table) return mcu_no_scratch("moe_sort", bytes);
    s.totals = s.table + s.experts * s.blocks;
    s.local = reinterpret_cast<char *>(s.table) + table;

    MCU_LAUNCH((count_kernel), (unsigned)s.blocks, MOE_THREADS,
               counts_held ? (size_t)s.experts * sizeof(unsigned) : 0, exec, s, counts_held);
    MCU_LAUNCH((sum_kernel), (unsigned)((s.experts + MOE_WARPS - 1) / MOE_WARPS), MOE_THREADS, 0,
               exec, s);
    MCU_LAUNCH((place_kernel), (unsigned)s.blocks, MOE_THREADS,
               places_held ? (size_t)(s.experts * each) : 0, exec, s, places_held);
    return mcu_launched("moe_sort");
}

mc_status mcu_moe_permute(mci_exec *exec, const mci_view *const *t, const void *params_) {
    int64_t k = static_cast<const mci_moe_params *>(params_)->k, size = dtype_size(t[1]->dtype);
    mcu_guard guard = mcu_guard_of(
        exec,
        "moe_permute: slots[%lld] is %lld, legal are 0 to %lld (0-based), or negative for none");
    if (t[2]->shape[0] == 0) return MC_OK;
    if (moves_by_16(t[0], size) && moves_by_16(t[1], size))
        permute<uint4>(exec, t, k, 16 / size, guard);
    else if (size == 8)
        permute<uint64_t>(exec, t, k, 1, guard);
    else if (size == 4)
        permute<uint32_t>(exec, t, k, 1, guard);
    else if (size == 2)
        permute<uint16_t>(exec, t, k, 1, guard);
    else
        permute<uint8_t>(exec, t, k, 1, guard);
    return mcu_launched("moe_permute");
}

mc_status mcu_moe_unpermute(mci_exec *exec, const mci_view *const *t, const void *) {
    move m = {};
    m.rows = moe_indices_of(t[2]);
    m.weights = moe_matrix_of(t[3]);
    m.tokens = t[2]->shape[0];
    m.k = t[2]->shape[1];
    m.n = t[1]->shape[0];
    m.bad_rows = mcu_guard_of(exec,
                              "moe_unpermute: rows[%lld, %lld] is %lld, legal are 0 to %lld "
                              "(0-based), or negative for none");
    if (m.tokens == 0) return MC_OK;
    return mcu_for_float(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        enum { N = 16 / sizeof(T) };
        bool wide = moves_by_16(t[0], sizeof(T)) && moves_by_16(t[1], sizeof(T));
        int64_t per = wide ? N : 1;
        m.y = pieces_of(t[0], per);
        m.h = pieces_of(t[1], per);
        m.width = t[1]->shape[1] / per;
        int log = log_of_lanes(m.width);
        unsigned blocks = mcu_blocks(exec, m.tokens, MOE_THREADS >> log, MOE_WAVES);
        if (wide)
            MCU_LAUNCH((unpermute_kernel<T, N>), blocks, MOE_THREADS, 0, exec, m, log);
        else
            MCU_LAUNCH((unpermute_kernel<T, 1>), blocks, MOE_THREADS, 0, exec, m, log);
        return mcu_launched("moe_unpermute");
    });
}

mc_status mcu_moe_unpermute_backward(mci_exec *exec, const mci_view *const *t, const void *) {
    move m = {};
    m.rows = moe_indices_of(t[4]);
    m.slots = moe_indices_of(t[5]);
    m.weights = moe_matrix_of(t[6]);
    m.dweights = moe_matrix_of(t[1]);
    m.tokens = t[4]->shape[0];
    m.k = t[4]->shape[1];
    m.n = t[0]->shape[0];
    m.bad_rows = mcu_guard_of(exec,
                              "moe_unpermute_backward: rows[%lld, %lld] is %lld, legal are 0 to "
                              "%lld (0-based), or negative for none");
    m.bad_slots = mcu_guard_of(exec,
                               "moe_unpermute_backward: slots[%lld] is %lld, legal are 0 to %lld "
                               "(0-based), or negative for none");
    if (m.n == 0) return MC_OK;
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        enum { N = 16 / sizeof(T) };
        bool dots = t[1] != nullptr;
        bool wide = moves_by_16(t[0], sizeof(T)) && moves_by_16(t[2], sizeof(T)) &&
                    (!dots || moves_by_16(t[3], sizeof(T)));
        int64_t per = wide ? N : 1;
        m.dh = pieces_of(t[0], per);
        m.dy = pieces_of(t[2], per);
        m.h = pieces_of(dots ? t[3] : nullptr, per);
        m.width = t[2]->shape[1] / per;
        if (wide)
            unpermute_backward<T, N>(exec, m, dots);
        else
            unpermute_backward<T, 1>(exec, m, dots);
        return mcu_launched("moe_unpermute_backward");
    });
}
