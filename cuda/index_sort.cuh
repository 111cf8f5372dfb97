/* index_sort.cuh: the order in which additions to indexed rows are made. Items (elements of an
 * index) are sorted by their target, equal targets staying in item order: a radix sort of 8-bit
 * digits from the lowest up, each pass stable. Counts come from integer atomics, whose order does
 * not show, and every item's place from them alone.
 *
 * Whoever writes the list counts the digits of the pass to come, per tile of the list: the kernel
 * that makes the items (sort_begin), then each pass. Few items (a step's tokens) are a matter of
 * launches: there are up to 64 small tiles, and each block of a pass adds up the counts of all.
 * With more, one block turns the counts [digit][tile] into places first. A pass puts the items of a
 * tile there, warp by warp, ranked by votes within a warp.
 */
#ifndef MCU_INDEX_SORT_CUH
#define MCU_INDEX_SORT_CUH

#include "common.cuh"

namespace {

enum {
    SORT_THREADS = 256,
    SORT_WARPS = SORT_THREADS / 32,
    DIGITS = 256,
#ifdef MCU_EMULATED
    SORT_ROUNDS = 2, /* so that tests see both ways */
    SORT_FEW = 3
#else
    SORT_ROUNDS = 8,
    SORT_FEW = 64
#endif
};

struct sort_item {
    int64_t key, item;
};

/* How n items with keys 0 .. limit are sorted. counts: [passes][tiles * DIGITS]. */
struct sort_plan {
    int64_t n, tiles, tile; /* a tile is `tile` items, rounds of SORT_THREADS */
    int passes, few;        /* few: no scan; counts are [tile][digit] */
    unsigned long long *counts;
    __device__ int64_t at(int64_t tile_, int digit) const {
        return few ? tile_ * DIGITS + digit : digit * tiles + tile_;
    }
};

__device__ inline int sort_digit(int64_t key, int pass) {
    return (int)(key >> 8 * pass & (DIGITS - 1));
}

/* Before and after a block's items of a tile are made, by all its threads: bins is theirs, for
 * their digits of pass 0. */
__device__ inline void sort_begin(int *bins) {
    bins[threadIdx.x] = 0;
    __syncthreads();
}
__device__ inline void sort_begun(const sort_plan &s, int64_t tile, const int *bins) {
    __syncthreads();
    s.counts[s.at(tile, (int)threadIdx.x)] = (unsigned)bins[threadIdx.x];
    for (int pass = 1; pass < s.passes; pass++)
        s.counts[pass * s.tiles * DIGITS + s.at(tile, (int)threadIdx.x)] = 0;
    __syncthreads();
}

/* counts[i] = the sum of those before it; one block. */
__global__ void __launch_bounds__(SORT_THREADS)
    sort_scan_kernel(unsigned long long *counts, int64_t n) {
    enum { EACH = 8 };
    __shared__ int64_t totals[SORT_WARPS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int64_t before = 0;
    for (int64_t tile = 0; tile < n; tile += SORT_THREADS * EACH) {
        int64_t at = tile + (int64_t)threadIdx.x * EACH, x[EACH], own = 0;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            x[k] = own;
            own += at + k < n ? (int64_t)counts[at + k] : 0;
        }
        int64_t through = own;
        for (int d = 1; d < 32; d *= 2) {
            int64_t other = __shfl_up_sync(0xFFFFFFFFU, through, d);
            if (lane >= d) through += other;
        }
        if (lane == 31) totals[warp] = through;
        __syncthreads();
        int64_t base = before + through - own;
        for (int w = 0; w < SORT_WARPS; w++) {
            if (w < warp) base += totals[w];
            before += totals[w];
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < EACH; k++)
            if (at + k < n) counts[at + k] = (unsigned long long)(base + x[k]);
    }
}

/* Where the items of this tile with the thread's digit go, from all tiles' counts. */
__device__ inline int64_t sort_place_of(const sort_plan &s, const unsigned long long *counts,
                                        int64_t tile, int64_t *totals) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int64_t before = 0, all = 0;
#pragma unroll 8
    for (int64_t k = 0; k < s.tiles; k++) {
        int64_t count = (int64_t)counts[k * DIGITS + threadIdx.x];
        all += count;
        before += k < tile ? count : 0;
    }
    int64_t through = all;
    for (int d = 1; d < 32; d *= 2) {
        int64_t other = __shfl_up_sync(0xFFFFFFFFU, through, d);
        if (lane >= d) through += other;
    }
    if (lane == 31) totals[warp] = through;
    __syncthreads();
    before += through - all;
    for (int w = 0; w < warp; w++) before += totals[w];
    __syncthreads();
    return before;
}

__global__ void __launch_bounds__(SORT_THREADS)
    sort_place_kernel(sort_item *out, const sort_item *in, sort_plan s, int pass) {
    __shared__ int64_t next[DIGITS];           /* where the digit's next item goes */
    __shared__ int counts[SORT_WARPS][DIGITS]; /* of a round of 256 items */
    __shared__ int64_t totals[SORT_WARPS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, i = (int)threadIdx.x;
    unsigned long long *own = s.counts + pass * s.tiles * DIGITS;
    unsigned long long *following = pass + 1 < s.passes ? own + s.tiles * DIGITS : nullptr;
    for (int64_t tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
        next[i] = s.few ? sort_place_of(s, own, tile, totals) : (int64_t)own[s.at(tile, i)];
        for (int64_t round = 0; round < s.tile; round += SORT_THREADS) {
            int64_t at = tile * s.tile + round + i;
            bool there = at < s.n;
            sort_item x = there ? in[at] : sort_item{0, 0};
            int digit = sort_digit(x.key, pass);
            /* the lanes with the same digit */
            unsigned same = __ballot_sync(0xFFFFFFFFU, there);
            for (int bit = 0; bit < 8; bit++) {
                unsigned set = __ballot_sync(0xFFFFFFFFU, digit >> bit & 1);
                same &= digit >> bit & 1 ? set : ~set;
            }
            for (int w = 0; w < SORT_WARPS; w++) counts[w][i] = 0;
            __syncthreads();
            int rank = __popc(same & ((1U << lane) - 1));
            if (there && rank == 0) counts[warp][digit] = __popc(same);
            __syncthreads();
            if (there) {
                int64_t to = next[digit] + rank;
                for (int w = 0; w < warp; w++) to += counts[w][digit];
                out[to] = x;
                if (following)
                    atomicAdd(&following[s.at(to / s.tile, sort_digit(x.key, pass + 1))], 1ULL);
            }
            __syncthreads();
            int64_t sum = 0;
            for (int w = 0; w < SORT_WARPS; w++) sum += counts[w][i];
            next[i] += sum;
            __syncthreads();
        }
    }
}

inline sort_plan sort_plan_of(int64_t n, int64_t limit) {
    sort_plan s = {};
    s.n = n;
    s.passes = 1;
    while (limit >> 8 * s.passes > 0 && s.passes < 8) s.passes++;
    int64_t rounds = (n + SORT_FEW * SORT_THREADS - 1) / (SORT_FEW * SORT_THREADS);
    s.tile = (rounds < SORT_ROUNDS ? rounds : (int64_t)SORT_ROUNDS) * SORT_THREADS;
    s.tiles = (n + s.tile - 1) / s.tile;
    s.few = s.tiles <= SORT_FEW;
    return s;
}
inline unsigned sort_blocks(const sort_plan &s) {
    return (unsigned)(s.tiles < INT32_MAX ? s.tiles : INT32_MAX);
}
/* Of scratch for the counts, beside the two lists of n items. */
inline size_t sort_bytes(const sort_plan &s) {
    return (size_t)(s.passes * s.tiles * DIGITS) * sizeof(*s.counts);
}

/* Sorts a, whose first digits are counted, with b as the other list; gives the one that holds the
 * result. */
inline sort_item *sort_items(mci_exec *exec, sort_item *a, sort_item *b, const sort_plan &s) {
    for (int pass = 0; pass < s.passes; pass++) {
        if (!s.few)
            MCU_LAUNCH(sort_scan_kernel, 1, SORT_THREADS, 0, exec,
                       s.counts + pass * s.tiles * DIGITS, s.tiles * DIGITS);
        MCU_LAUNCH(sort_place_kernel, sort_blocks(s), SORT_THREADS, 0, exec, b, a, s, pass);
        sort_item *swap = a;
        a = b;
        b = swap;
    }
    return a;
}

} /* namespace */

#endif
