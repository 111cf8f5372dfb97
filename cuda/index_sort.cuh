/* index_sort.cuh: the order in which additions to indexed rows are made. Items (elements of an
 * index) are sorted by their target, equal targets staying in item order: a radix sort of 8-bit
 * digits from the lowest up, each pass stable. Counts come from integer atomics, whose order does
 * not show, and every item's place from them alone.
 *
 * Per pass: a block counts the digits of its tile; one block turns the counts [digit][tile] into
 * places; a block puts its tile's items there, warp by warp, ranked by votes within a warp.
 */
#ifndef MCU_INDEX_SORT_CUH
#define MCU_INDEX_SORT_CUH

#include "common.cuh"

namespace {

enum { SORT_THREADS = 256, SORT_WARPS = SORT_THREADS / 32, SORT_TILE = 2048, DIGITS = 256 };

struct sort_item {
    int64_t key, item;
};

__global__ void __launch_bounds__(SORT_THREADS)
    sort_count_kernel(const sort_item *in, int64_t n, int shift, int64_t *counts, int64_t tiles) {
    __shared__ int bins[DIGITS];
    const int i = (int)threadIdx.x;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        bins[i] = 0;
        __syncthreads();
        for (int64_t at = tile * SORT_TILE + i; at < n && at < (tile + 1) * SORT_TILE;
             at += SORT_THREADS)
            atomicAdd(&bins[in[at].key >> shift & (DIGITS - 1)], 1);
        __syncthreads();
        counts[i * tiles + tile] = bins[i];
        __syncthreads();
    }
}

/* counts[i] = the sum of those before it; one block. */
__global__ void __launch_bounds__(SORT_THREADS) sort_scan_kernel(int64_t *counts, int64_t n) {
    enum { EACH = 8 };
    __shared__ int64_t totals[SORT_WARPS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int64_t before = 0;
    for (int64_t tile = 0; tile < n; tile += SORT_THREADS * EACH) {
        int64_t at = tile + (int64_t)threadIdx.x * EACH, x[EACH], own = 0;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            x[k] = own;
            own += at + k < n ? counts[at + k] : 0;
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
            if (at + k < n) counts[at + k] = base + x[k];
    }
}

__global__ void __launch_bounds__(SORT_THREADS)
    sort_place_kernel(sort_item *out, const sort_item *in, int64_t n, int shift,
                      const int64_t *places, int64_t tiles) {
    __shared__ int64_t next[DIGITS];           /* where the digit's next item goes */
    __shared__ int counts[SORT_WARPS][DIGITS]; /* of a round of 256 items */
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, i = (int)threadIdx.x;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        next[i] = places[i * tiles + tile];
        for (int64_t round = 0; round < SORT_TILE; round += SORT_THREADS) {
            int64_t at = tile * SORT_TILE + round + i;
            bool there = at < n;
            sort_item x = there ? in[at] : sort_item{0, 0};
            int digit = (int)(x.key >> shift & (DIGITS - 1));
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
            }
            __syncthreads();
            int64_t sum = 0;
            for (int w = 0; w < SORT_WARPS; w++) sum += counts[w][i];
            next[i] += sum;
            __syncthreads();
        }
    }
}

/* Passes for keys 0 .. limit. */
inline int sort_passes(int64_t limit) {
    int passes = 1;
    while (limit >> 8 * passes > 0 && passes < 8) passes++;
    return passes;
}
inline int64_t sort_tiles(int64_t n) {
    return (n + SORT_TILE - 1) / SORT_TILE;
}
/* Scratch beside the two lists of n items. */
inline size_t sort_bytes(int64_t n) {
    return (size_t)(sort_tiles(n) * DIGITS) * sizeof(int64_t);
}

/* Sorts a, with b as the other list; gives the one that holds the result. */
inline sort_item *sort_items(mci_exec *exec, sort_item *a, sort_item *b, int64_t *counts, int64_t n,
                             int64_t limit) {
    int64_t tiles = sort_tiles(n);
    unsigned blocks = (unsigned)(tiles < INT32_MAX ? tiles : INT32_MAX);
    for (int pass = 0; pass < sort_passes(limit); pass++) {
        MCU_LAUNCH(sort_count_kernel, blocks, SORT_THREADS, 0, exec, a, n, 8 * pass, counts, tiles);
        MCU_LAUNCH(sort_scan_kernel, 1, SORT_THREADS, 0, exec, counts, tiles * DIGITS);
        MCU_LAUNCH(sort_place_kernel, blocks, SORT_THREADS, 0, exec, b, a, n, 8 * pass, counts,
                   tiles);
        sort_item *swap = a;
        a = b;
        b = swap;
    }
    return a;
}

} /* namespace */

#endif
