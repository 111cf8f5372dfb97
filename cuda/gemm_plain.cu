/* gemm_plain.cu: d = a b (+ bias) (+ d) (gelu) for any strides, sizes and float dtypes: the
 * products that no library describes, and all of them under the emulator.
 *
 * A block of 256 threads owns a 64 x 64 tile of d and walks k in steps of 16 through shared memory;
 * thread (x, y) of 16 x 16 owns the 4 x 4 elements (y + 16 i, x + 16 j), so that a row of threads
 * writes neighbours. Sums run along k in order, in float32 (float64 for float64), and are rounded
 * once. Blocks take tiles with a stride, so that any number of them is covered.
 */
#include "gemm.cuh"

namespace {

enum { TILE = 64, STEP = 16, THREADS = 256, PITCH = TILE + 1, WAVES = 8 };

__device__ inline float exponential(float x) {
    return expf(x);
}
__device__ inline double exponential(double x) {
    return exp(x);
}

/* x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), the tanh form (Hendrycks & Gimpel 2016); x is cut
 * off where the sigmoid has long become 0 or 1, so that its cube stays finite. */
template <typename R>
__device__ inline R gelu(R x) {
    R c = x > 40 ? (R)40 : x < -40 ? (R)-40 : x;
    R u = (R)1.5957691216057308 * (c + (R)0.044715 * c * c * c);
    return x * (1 / (1 + exponential(-u)));
}

/* Offsets of batch item i. */
__device__ inline void batch_at(const mcu_plain &p, int64_t i, int64_t *a, int64_t *b, int64_t *d) {
    for (int axis = p.axes - 1; axis >= 0; axis--) {
        int64_t q = i / p.shape[axis], r = i - q * p.shape[axis];
        *a += r * p.a_batch[axis];
        *b += r * p.b_batch[axis];
        *d += r * p.d_batch[axis];
        i = q;
    }
}

/* STEP x TILE elements into shared memory as [k][row], zeros outside; threads run along the axis
 * with the smaller stride. */
template <typename T, typename R>
__device__ inline void load_tile(R *shared, const T *from, int64_t first, int64_t rows, int64_t k0,
                                 int64_t k, int64_t row_step, int64_t k_step) {
    bool along_k = k_step < row_step;
    for (int e = (int)threadIdx.x; e < TILE * STEP; e += THREADS) {
        int r = along_k ? e / STEP : e % TILE, kk = along_k ? e % STEP : e / TILE;
        bool inside = first + r < rows && k0 + kk < k;
        shared[kk * PITCH + r] =
            inside ? (R)mcu_up(from[(first + r) * row_step + (k0 + kk) * k_step]) : (R)0;
    }
}

template <typename T, typename D>
__global__ void __launch_bounds__(THREADS)
    plain_kernel(mcu_plain p, int64_t m_tiles, int64_t n_tiles, int64_t tiles) {
    typedef mcu_real_t<T> R;
    __shared__ R a_tile[STEP * PITCH];
    __shared__ R b_tile[STEP * PITCH];
    int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
    for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
        int64_t item = t / n_tiles, a0 = 0, b0 = 0, d0 = 0;
        int64_t n0 = (t - item * n_tiles) * TILE, batch = item / m_tiles;
        int64_t m0 = (item - batch * m_tiles) * TILE;
        batch_at(p, batch, &a0, &b0, &d0);
        R sum[4][4] = {};
        for (int64_t k0 = 0; k0 < p.k; k0 += STEP) {
            load_tile<T, R>(a_tile, (const T *)p.a + a0, m0, p.m, k0, p.k, p.a_m, p.a_k);
            load_tile<T, R>(b_tile, (const T *)p.b + b0, n0, p.n, k0, p.k, p.b_n, p.b_k);
            __syncthreads();
#pragma unroll
            for (int kk = 0; kk < STEP; kk++) {
                R u[4], v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    u[i] = a_tile[kk * PITCH + y + 16 * i];
                    v[i] = b_tile[kk * PITCH + x + 16 * i];
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[i][j] += u[i] * v[j];
            }
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int64_t row = m0 + y + 16 * i, column = n0 + x + 16 * j;
                if (row >= p.m || column >= p.n) continue;
                D *to = (D *)p.d + d0 + row * p.d_m + column * p.d_n;
                R value = sum[i][j];
                if (p.bias) value += (R)mcu_up(((const D *)p.bias)[column * p.bias_n]);
                if (p.accumulate) value += (R)mcu_up(*to);
                if (p.gelu) value = gelu(value);
                *to = mcu_down<D>(value);
            }
    }
}

template <typename T, typename D>
mc_status launch(mci_exec *exec, const char *op, const mcu_plain *p) {
    int64_t batch = 1, m_tiles = (p->m + TILE - 1) / TILE, n_tiles = (p->n + TILE - 1) / TILE;
    for (int i = 0; i < p->axes; i++) batch *= p->shape[i];
    int64_t tiles = batch * m_tiles * n_tiles;
    if (tiles == 0) return MC_OK;
    MCU_LAUNCH((plain_kernel<T, D>), mcu_blocks(exec, tiles, 1, WAVES), THREADS, 0, exec, *p,
               m_tiles, n_tiles, tiles);
    return mcu_launched(op);
}

}  // namespace

mc_status mcu_plain_product(mci_exec *exec, const char *op, const mcu_plain *p) {
    int wide = p->d_dtype == MC_FLOAT32;
    switch (p->dtype) {
        case MC_FLOAT64:
            return launch<double, double>(exec, op, p);
        case MC_FLOAT32:
            return launch<float, float>(exec, op, p);
        case MC_FLOAT16:
            return wide ? launch<mcu_half, float>(exec, op, p)
                        : launch<mcu_half, mcu_half>(exec, op, p);
        case MC_BFLOAT16:
            return wide ? launch<mcu_bf16, float>(exec, op, p)
                        : launch<mcu_bf16, mcu_bf16>(exec, op, p);
        default:
            return mcu_fail(MC_EINTERNAL, "%s: dtype %d where a float was promised", op, p->dtype);
    }
}

mcu_plain mcu_plain_of(const mcu_gemm *g) {
    mcu_plain p = {};
    p.a = g->a;
    p.b = g->b;
    p.bias = g->bias;
    p.d = g->d;
    p.m = g->m;
    p.n = g->n;
    p.k = g->k;
    p.a_m = g->transpose_a ? 1 : g->lda;
    p.a_k = g->transpose_a ? g->lda : 1;
    p.b_k = g->transpose_b ? 1 : g->ldb;
    p.b_n = g->transpose_b ? g->ldb : 1;
    p.d_m = g->ldd;
    p.d_n = p.bias_n = 1;
    p.axes = 1;
    p.shape[0] = g->batch;
    p.a_batch[0] = g->stride_a;
    p.b_batch[0] = g->stride_b;
    p.d_batch[0] = g->stride_d;
    p.dtype = g->dtype;
    p.d_dtype = g->d_dtype;
    p.accumulate = g->accumulate;
    p.gelu = g->gelu;
    return p;
}
