/* gemm_split.cu: products with few results and long sums (weight gradients), cut along k.
 *
 *     d [m, n] = sum over parts s, in order, of a[:, k_s] b[k_s, :] (+ bias)
 *
 * The library's own kernels give one block a tile of d and all of k, so a small d leaves most of
 * the GPU idle: a router's weight gradient (32 x 1024, k = 16384) ran on 8 of 132 multiprocessors.
 * Here the parts are one batched product into float32 (float64) scratch, and a kernel adds them in
 * order, rounds once and is the same to the last bit in every run. How many parts there are depends
 * on the shape and the number of multiprocessors only.
 */
#include "gemm.cuh"

namespace {

enum { TILE = 128, PART_MIN = 512, PARTS_MAX = 64, THREADS = 256 };
const int64_t SCRATCH_MAX = 64 << 20;

template <typename T, typename S>
__global__ void __launch_bounds__(THREADS)
    add_parts_kernel(T *d, int64_t ldd, const S *parts, int64_t count, int64_t m, int64_t n,
                     const T *bias) {
    int64_t size = m * n, step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < size; i += step) {
        S sum = parts[i];
        for (int64_t s = 1; s < count; s++) sum += parts[s * size + i];
        int64_t row = i / n, column = i - row * n;
        if (bias) sum += (S)mcu_up(bias[column]);
        d[row * ldd + column] = mcu_down<T>(sum);
    }
}

/* Parts of a product, 1 for one that is better left whole. */
int64_t parts_of(const mci_exec *exec, const mcu_gemm *g) {
    int64_t tiles = (g->m + TILE - 1) / TILE * ((g->n + TILE - 1) / TILE);
    int64_t processors = mcu_processors(exec);
    if (g->batch != 1 || g->gelu || g->accumulate || 2 * tiles > processors) return 1;
    int64_t parts = 2 * processors / tiles, most = g->k / PART_MIN;
    int64_t room = SCRATCH_MAX / (g->m * g->n * (g->dtype == MC_FLOAT64 ? 8 : 4));
    if (parts > most) parts = most;
    if (parts > room) parts = room;
    return parts > PARTS_MAX ? (int64_t)PARTS_MAX : parts;
}

/* g's part of k from `first` on, into `d`. */
mcu_gemm part_of(const mcu_gemm *g, int64_t first, int64_t k, int64_t batch, void *d) {
    int64_t size = mcu_float_size(g->dtype);
    int64_t step_a = g->transpose_a ? g->lda : 1, step_b = g->transpose_b ? 1 : g->ldb;
    mcu_gemm p = *g;
    p.a = (const char *)g->a + first * step_a * size;
    p.b = (const char *)g->b + first * step_b * size;
    p.bias = NULL;
    p.d = d;
    p.d_dtype = g->dtype == MC_FLOAT64 ? MC_FLOAT64 : MC_FLOAT32;
    p.ldd = g->n;
    p.k = k;
    p.batch = batch;
    p.stride_a = k * step_a;
    p.stride_b = k * step_b;
    p.stride_d = g->m * g->n;
    return p;
}

}  // namespace

mc_status mcu_split_product(mci_exec *exec, const char *op, const mcu_gemm *g, int *taken) {
    *taken = 0;
    int64_t parts = parts_of(exec, g);
    if (parts < 2) return MC_OK;
    int64_t k = g->k / parts / 8 * 8, rest = g->k - parts * k, size = g->m * g->n;
    int64_t count = parts + (rest > 0);
    size_t bytes = (size_t)(count * size * (g->dtype == MC_FLOAT64 ? 8 : 4));
    char *sums = (char *)exec->scratch(exec, bytes);
    if (!sums) return MC_OK; /* whole, it needs none */
    mcu_gemm all = part_of(g, 0, k, parts, sums);
    mc_status status = mcu_gemm_run(exec, 0, op, &all, taken);
    if (status == MC_OK && *taken && rest > 0) {
        size_t before = bytes / (size_t)count * (size_t)parts;
        mcu_gemm last = part_of(g, parts * k, rest, 1, sums + before);
        status = mcu_gemm_run(exec, 0, op, &last, taken);
    }
    if (status != MC_OK || !*taken) return status;
    unsigned blocks = mcu_blocks(exec, size, THREADS, 8);
    return mcu_for_float(g->d_dtype, [&](auto tag) {
        typedef decltype(tag) T;
        typedef mcu_real_t<T> S;
        MCU_LAUNCH((add_parts_kernel<T, S>), blocks, THREADS, 0, exec, (T *)g->d, g->ldd,
                   (const S *)sums, count, g->m, g->n, (const T *)g->bias);
        return mcu_launched(op);
    });
}
