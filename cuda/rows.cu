/* rows.cu: softmax and its relatives (softmax.cuh), running sums and top k along an axis.
 *
 * Running sums: a block of 256 owns a row and scans it in tiles, in float64; where there are many
 * rows and another axis is the innermost, a thread owns a row, so that a warp reads whole lines.
 * Top k: elements become unsigned keys of the same order, greater first, NaN last. A short row is
 * held by a warp, which takes its best k times. For a longer one a block finds the k-th key digit
 * by digit (radix select), takes what is above it and the first of its equals, and sorts the k.
 */
#include "softmax.cuh"

namespace {

/* -- running sums ---------------------------------------------------------------------------------
 */

template <typename T>
struct scan_of {
    typedef double type;
};
template <>
struct scan_of<int64_t> {
    typedef int64_t type;
};
template <>
struct scan_of<int32_t> {
    typedef int64_t type;
};
template <>
struct scan_of<uint8_t> {
    typedef int64_t type;
};

__device__ inline double plus(double a, double b) {
    return a + b;
}
__device__ inline int64_t plus(int64_t a, int64_t b) { /* integers wrap */
    return (int64_t)((uint64_t)a + (uint64_t)b);
}

template <typename T>
struct sum_type { /* of the output */
    typedef T type;
};
template <>
struct sum_type<int32_t> {
    typedef int64_t type;
};
template <>
struct sum_type<uint8_t> {
    typedef int64_t type;
};

/* Rounded once to nearest even. */
__device__ inline void keep(double *to, double x) {
    *to = x;
}
__device__ inline void keep(float *to, double x) {
    *to = (float)x;
}
__device__ inline void keep(mcu_half *to, double x) {
    *to = mcu_down<mcu_half>(mci_f32_odd(x));
}
__device__ inline void keep(mcu_bf16 *to, double x) {
    *to = mcu_down<mcu_bf16>(mci_f32_odd(x));
}
__device__ inline void keep(int64_t *to, int64_t x) {
    *to = x;
}

struct scan_rows {
    void *out;
    const void *in;
    mcu_walk<2> outer; /* over rows: offsets in out and in */
    int64_t count, length, out_step, in_step;
};

/* Thread i owns elements 4 i .. 4 i + 3 of each tile. */
template <typename T>
__global__ void __launch_bounds__(THREADS) scan_kernel(scan_rows p) {
    typedef typename scan_of<T>::type S;
    typedef typename sum_type<T>::type O;
    enum { EACH = 4, TILE = THREADS * EACH, WARPS = THREADS / 32 };
    __shared__ S warp_total[WARPS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    for (int64_t row = blockIdx.x; row < p.count; row += gridDim.x) {
        int64_t offset[2];
        p.outer.at(row, offset);
        O *out = (O *)p.out + offset[0];
        const T *in = (const T *)p.in + offset[1];
        S before = 0; /* the sum of the tiles done */
        for (int64_t tile = 0; tile < p.length; tile += TILE) {
            int64_t at = tile + (int64_t)threadIdx.x * EACH;
            S x[EACH], own = 0;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                S next = at + i < p.length ? (S)mcu_up(in[(at + i) * p.in_step]) : (S)0;
                own = plus(own, next);
                x[i] = own;
            }
            S through = own; /* the warp's sum up to this thread */
            for (int d = 1; d < 32; d *= 2) {
                S other = __shfl_up_sync(0xFFFFFFFFU, through, d);
                if (lane >= d) through = plus(other, through);
            }
            S up_to = __shfl_up_sync(0xFFFFFFFFU, through, 1);
            if (lane == 31) warp_total[warp] = through;
            __syncthreads();
            S base = before;
            for (int i = 0; i < WARPS; i++) {
                before = plus(before, warp_total[i]);
                if (i < warp) base = before;
            }
            __syncthreads();
            if (lane > 0) base = plus(base, up_to);
#pragma unroll
            for (int i = 0; i < EACH; i++)
                if (at + i < p.length) keep(&out[(at + i) * p.out_step], plus(base, x[i]));
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) scan_across_kernel(scan_rows p) {
    typedef typename scan_of<T>::type S;
    typedef typename sum_type<T>::type O;
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (; row < p.count; row += (int64_t)gridDim.x * THREADS) {
        int64_t offset[2];
        p.outer.at(row, offset);
        O *out = (O *)p.out + offset[0];
        const T *in = (const T *)p.in + offset[1];
        S sum = 0;
        for (int64_t i = 0; i < p.length; i++) {
            sum = plus(sum, (S)mcu_up(in[i * p.in_step]));
            keep(&out[i * p.out_step], sum);
        }
    }
}

/* -- top k: keys
 * ----------------------------------------------------------------------------------- */

/* Unsigned, in the order of the values; equal values have one key, NaN the least. */
__device__ inline uint64_t key_of(double x) {
    uint64_t u = mci_f64_bits(x == 0 ? 0.0 : x);
    return x != x ? 0 : u >> 63 ? ~u : u | UINT64_C(1) << 63;
}
__device__ inline uint64_t key_of(float x) {
    uint32_t u = mci_f32_bits(x == 0 ? 0.0F : x);
    return x != x ? 0 : u >> 31 ? ~u : u | UINT32_C(1) << 31;
}
__device__ inline uint64_t key16_of(uint32_t u, uint32_t infinity) {
    uint32_t magnitude = u & 0x7FFFU;
    if (magnitude == 0) u = 0;
    return magnitude > infinity ? 0 : u >> 15 ? ~u & 0xFFFFU : u | 0x8000U;
}
__device__ inline uint64_t key_of(mcu_half x) {
    return key16_of(x.bits, 0x7C00U);
}
__device__ inline uint64_t key_of(mcu_bf16 x) {
    return key16_of(x.bits, 0x7F80U);
}
__device__ inline uint64_t key_of(int64_t x) {
    return (uint64_t)x ^ UINT64_C(1) << 63;
}
__device__ inline uint64_t key_of(int32_t x) {
    return (uint32_t)x ^ UINT32_C(1) << 31;
}
__device__ inline uint64_t key_of(uint8_t x) {
    return x;
}

struct ranked {
    uint64_t key;
    int64_t at;
};
__device__ inline bool before(const ranked &a, const ranked &b) {
    return a.key != b.key ? a.key > b.key : a.at < b.at;
}

struct topk_rows {
    void *values;
    int64_t *indices;
    const void *in;
    ranked *list;      /* select_kernel: k for each block of the grid */
    mcu_walk<3> outer; /* over rows: offsets in values, indices, in */
    int64_t count, length, k, value_step, index_step, in_step;
};

template <typename T>
__device__ inline void give(const topk_rows &p, const int64_t *offset, int64_t j, int64_t at) {
    const T *in = (const T *)p.in + offset[2];
    ((T *)p.values)[offset[0] + j * p.value_step] = in[at * p.in_step];
    p.indices[offset[1] + j * p.index_step] = at;
}

/* -- top k of rows that a warp holds
 * ---------------------------------------------------------------- */

enum { WARP_EACH = 8, WARP_LENGTH = 32 * WARP_EACH, WARP_K = 32 };

/* Lane i holds elements i, i + 32, ... */
template <typename T>
__global__ void __launch_bounds__(THREADS) topk_warp_kernel(topk_rows p) {
    const int lane = (int)threadIdx.x % 32, n = (int)p.length;
    int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    for (; row < p.count; row += (int64_t)gridDim.x * (THREADS / 32)) {
        int64_t offset[3];
        p.outer.at(row, offset);
        const T *in = (const T *)p.in + offset[2];
        uint64_t key[WARP_EACH];
        unsigned left = 0; /* bit i: element lane + 32 i may still be taken */
#pragma unroll
        for (int i = 0; i < WARP_EACH; i++) {
            int at = lane + 32 * i;
            key[i] = at < n ? key_of(in[at * p.in_step]) : 0;
            if (at < n) left |= 1U << i;
        }
        for (int j = 0; j < (int)p.k; j++) {
            uint64_t best = 0;
            int at = INT32_MAX;
#pragma unroll
            for (int i = 0; i < WARP_EACH; i++)
                if ((left >> i & 1U) && (at == INT32_MAX || key[i] > best)) {
                    best = key[i];
                    at = lane + 32 * i;
                }
            for (int d = 16; d > 0; d /= 2) {
                uint64_t other = __shfl_xor_sync(0xFFFFFFFFU, best, d);
                int other_at = __shfl_xor_sync(0xFFFFFFFFU, at, d);
                if (other > best || (other == best && other_at < at)) {
                    best = other;
                    at = other_at;
                }
            }
            if (at % 32 == lane) {
                left &= ~(1U << at / 32);
                give<T>(p, offset, j, at);
            }
        }
    }
}

/* -- top k of longer rows
 * ---------------------------------------------------------------------------- */

/* The sum of x over the threads before this one, and over all. space: THREADS / 32 elements. */
__device__ inline int scan_block(int x, int *total, int *space) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int through = x;
    for (int d = 1; d < 32; d *= 2) {
        int other = __shfl_up_sync(0xFFFFFFFFU, through, d);
        if (lane >= d) through += other;
    }
    if (lane == 31) space[warp] = through;
    __syncthreads();
    int base = 0, sum = 0;
    for (int i = 0; i < THREADS / 32; i++) {
        if (i == warp) base = sum;
        sum += space[i];
    }
    __syncthreads();
    *total = sum;
    return base + through - x;
}

/* Sorts list[0 .. n) by `before`, the whole block: merges of runs of doubling length, each begun
 * between mirror images, so that every exchange puts the better one first and what would lie behind
 * the end never moves. */
__device__ inline void sort_block(ranked *list, int64_t n) {
    for (int64_t run = 1; run < n; run *= 2)
        for (int64_t step = run; step > 0; step /= 2) {
            for (int64_t i = threadIdx.x; i < (n + 1) / 2 + run; i += THREADS) {
                int64_t within = i & (step - 1), a = 2 * (i - within) + within;
                int64_t b = step == run ? a + 2 * (step - within) - 1 : a + step;
                if (b >= n) continue;
                ranked x = list[a], y = list[b];
                if (!before(y, x)) continue;
                list[a] = y;
                list[b] = x;
            }
            __syncthreads();
        }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) topk_block_kernel(topk_rows p) {
    __shared__ unsigned long long count[256];
    __shared__ int space[THREADS / 32];
    const int lane = (int)threadIdx.x;
    ranked *list = p.list + blockIdx.x * p.k;
    for (int64_t row = blockIdx.x; row < p.count; row += gridDim.x) {
        int64_t offset[3];
        p.outer.at(row, offset);
        const T *in = (const T *)p.in + offset[2];
        /* the k-th key: its digits from the top; `wanted`: how many of those that share the digits
         * found so far are among the k */
        uint64_t found = 0, mask = 0;
        unsigned long long wanted = (unsigned long long)p.k;
        for (int shift = 8 * (int)sizeof(T) - 8; shift >= 0; shift -= 8) {
            count[lane] = 0;
            __syncthreads();
            for (int64_t i = lane; i < p.length; i += THREADS) {
                uint64_t key = key_of(in[i * p.in_step]);
                if ((key & mask) == found) atomicAdd(&count[key >> shift & 255U], 1ULL);
            }
            __syncthreads();
            int digit = 255;
            while (count[digit] < wanted) wanted -= count[digit--];
            found |= (uint64_t)digit << shift;
            mask |= (uint64_t)255 << shift;
            __syncthreads();
        }
        /* in order of index: all above the k-th key, then the first `wanted` of its equals */
        int64_t above = 0, equal = p.k - (int64_t)wanted;
        for (int64_t tile = 0; tile < p.length; tile += THREADS) {
            int64_t i = tile + lane;
            uint64_t key = i < p.length ? key_of(in[i * p.in_step]) : 0;
            int is_above = i < p.length && key > found, is_equal = i < p.length && key == found;
            int total, equals;
            int64_t to = above + scan_block(is_above, &total, space);
            int64_t to_equal = equal + scan_block(is_equal, &equals, space);
            if (is_above) list[to] = ranked{key, i};
            if (is_equal && to_equal < p.k) list[to_equal] = ranked{key, i};
            above += total;
            equal += equals;
        }
        __syncthreads();
        sort_block(list, p.k);
        for (int64_t j = lane; j < p.k; j += THREADS) give<T>(p, offset, j, list[j].at);
        __syncthreads();
    }
}

template <typename F>
mc_status for_element(int dtype, F fn) { /* bools are bytes of 0 and 1 */
    return mcu_for_number(dtype == MC_BOOL ? (int)MC_UINT8 : dtype, fn);
}

} /* namespace */

mc_status mcu_softmax(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return softmax(exec, "softmax", t, 2, params_, 0);
}
mc_status mcu_log_softmax(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return softmax(exec, "log_softmax", t, 2, params_, 1);
}
mc_status mcu_softmax_backward(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return softmax(exec, "softmax_backward", t, 3, params_, 0);
}
mc_status mcu_log_softmax_backward(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return softmax(exec, "log_softmax_backward", t, 3, params_, 1);
}

/* t: out, in. */
mc_status mcu_cumsum(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_axis_params *r = (const mci_axis_params *)params_;
    mci_view out = *t[0], in = *t[1];
    const mci_view *outer[2] = {&out, &in};
    scan_rows p = {};
    p.out = out.data;
    p.in = in.data;
    p.length = in.shape[r->axis];
    p.out_step = out.stride[r->axis];
    p.in_step = in.stride[r->axis];
    if (p.length == 0) return MC_OK;
    out.shape[r->axis] = in.shape[r->axis] = 1;
    p.outer = mcu_walk_of<2>(outer);
    p.count = p.outer.n;
    if (p.count == 0) return MC_OK;
    int across = p.length <= 32 || (p.count >= 4096 && p.in_step != 1);
    return for_element(in.dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if (across)
            MCU_LAUNCH((scan_across_kernel<T>), grid_of((p.count + THREADS - 1) / THREADS), THREADS,
                       0, exec, p);
        else
            MCU_LAUNCH((scan_kernel<T>), grid_of(p.count), THREADS, 0, exec, p);
        return mcu_launched("cumsum");
    });
}

/* t: values, indices, in. */
mc_status mcu_topk(mci_exec *exec, const mci_view *const *t, const void *params_) {
    (void)params_;
    int last = t[2]->ndim - 1;
    mci_view view[3] = {*t[0], *t[1], *t[2]};
    const mci_view *outer[3] = {&view[0], &view[1], &view[2]};
    topk_rows p = {};
    p.values = view[0].data;
    p.indices = (int64_t *)view[1].data;
    p.in = view[2].data;
    p.k = view[0].shape[last];
    p.length = view[2].shape[last];
    p.value_step = view[0].stride[last];
    p.index_step = view[1].stride[last];
    p.in_step = view[2].stride[last];
    for (int i = 0; i < 3; i++) view[i].shape[last] = 1;
    p.outer = mcu_walk_of<3>(outer);
    p.count = p.outer.n;
    if (p.k == 0 || p.count == 0) return MC_OK;
    int warps = p.length <= WARP_LENGTH && p.k <= WARP_K;
    /* the lists of the blocks are scratch: as many blocks as are resident anyway */
    int64_t blocks = warps ? (p.count + THREADS / 32 - 1) / (THREADS / 32) : p.count;
    int64_t resident = (int64_t)mcu_processors(exec) * 8;
    if (!warps) {
        blocks = blocks < resident ? blocks : resident;
        size_t bytes = (size_t)(blocks * p.k) * sizeof(ranked);
        p.list = (ranked *)exec->scratch(exec, bytes);
        if (!p.list) return mcu_no_scratch("topk", bytes);
    }
    return for_element(view[2].dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if (warps)
            MCU_LAUNCH((topk_warp_kernel<T>), grid_of(blocks), THREADS, 0, exec, p);
        else
            MCU_LAUNCH((topk_block_kernel<T>), grid_of(blocks), THREADS, 0, exec, p);
        return mcu_launched("topk");
    });
}
