/* moe_sort.cuh: a stable counting sort of the T * k slots by expert, and offsets from counts.
 *
 * A block counts the experts of its contiguous slots; a warp per expert sums the blocks' counts;
 * each block then places its slots, warp after warp, lane after lane: the order is the slots' own.
 */
#ifndef MCU_MOE_SORT_CUH
#define MCU_MOE_SORT_CUH

#include "moe.cuh"

namespace {

enum { MOE_THREADS = 256, MOE_WARPS = MOE_THREADS / 32 };

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

}  // namespace

#endif
