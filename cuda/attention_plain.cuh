/* attention_plain.cuh: attention of any head size, dtype and strides, in ordinary arithmetic.
 *
 *     P = softmax(scale q k^T) over the keys a query sees, out = P v, lse = logsumexp(scale q k^T)
 *     dS = P * (dout v^T - delta) * scale,  dq = dS k,  dk = dS^T q,  dv = P^T dout,
 *     delta = rowsum(dout * out)                                  (FlashAttention-2, section 2)
 *
 * A block of 4 warps owns 16 rows of one head (queries, or keys for dk and dv), a warp 4 of them,
 * and walks over the other side's rows 32 at a time: a lane computes the scores of its warp's rows
 * against one of the 32, then owns columns lane, lane + 32, ... of the results. Both sides pass
 * through shared memory in squares of 32 columns, so that D is free; past 128 columns a block more
 * (grid axis y) repeats the scores for the next 128. Memory is linear in the length. All in R, the
 * arithmetic of the dtype.
 */
#ifndef MCU_ATTENTION_PLAIN_CUH
#define MCU_ATTENTION_PLAIN_CUH

#include <cmath>

#include "attention.cuh"

enum {
    PLAIN_WARPS = 4,
    PLAIN_THREADS = 32 * PLAIN_WARPS,
    PLAIN_MINE = 4, /* rows of a warp */
    PLAIN_OWN = PLAIN_WARPS * PLAIN_MINE,
    PLAIN_STRIPS = 4, /* of 32 columns each */
    PLAIN_COLUMNS = 32 * PLAIN_STRIPS
};

__device__ inline float plain_exp(float x) {
    return expf(x);
}
__device__ inline double plain_exp(double x) {
    return exp(x);
}
__device__ inline float plain_log(float x) {
    return logf(x);
}
__device__ inline double plain_log(double x) {
    return log(x);
}

/* A view [B, rows, heads, D], or [B, heads, rows] of statistics. */
struct plain_view {
    void *data;
    int64_t batch, row, head, step;
};
inline plain_view plain_view_of(const mci_view *v) {
    return {v->data, v->stride[0], v->stride[1], v->stride[2], v->stride[3]};
}
inline plain_view plain_stats_of(const mci_view *v) {
    return {v->data, v->stride[0], v->stride[2], v->stride[1], 0};
}

/* n rows of one head. */
template <typename T>
struct plain_rows {
    T *data;
    int64_t row, step, n;
};
template <typename T>
__device__ inline plain_rows<T> plain_at(const plain_view &v, int64_t b, int64_t r, int64_t h,
                                         int64_t rows) {
    return {(T *)v.data + b * v.batch + r * v.row + h * v.head, v.row, v.step, rows - r};
}

template <typename R>
struct plain_space {
    R own[PLAIN_OWN][33], other[32][33];
};

/* Rows 0 .. rows - 1, columns d0 .. d0 + 31 to shared memory, zero where there are none. */
template <typename T, typename R>
__device__ inline void plain_load(R (*to)[33], int rows, const plain_rows<T> &from, int64_t d0,
                                  int64_t D) {
    int64_t d = d0 + threadIdx.x % 32;
    for (int r = (int)threadIdx.x / 32; r < rows; r += PLAIN_WARPS) {
        bool there = r < from.n && d < D;
        to[r][threadIdx.x % 32] = there ? (R)mcu_up(from.data[r * from.row + d * from.step]) : R(0);
    }
}

/* dot[i] = row i of the warp's own rows . row `lane` of the others. */
template <typename T, typename R>
__device__ inline void plain_dots(plain_space<R> *space, const plain_rows<T> &own,
                                  const plain_rows<T> &other, int64_t D, R (&dot)[PLAIN_MINE]) {
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < PLAIN_MINE; i++) dot[i] = 0;
    for (int64_t d0 = 0; d0 < D; d0 += 32) {
        __syncthreads();
        plain_load(space->own, PLAIN_OWN, own, d0, D);
        plain_load(space->other, 32, other, d0, D);
        __syncthreads();
#pragma unroll 8
        for (int d = 0; d < 32; d++) {
            R x = space->other[lane][d];
#pragma unroll
            for (int i = 0; i < PLAIN_MINE; i++) dot[i] += space->own[PLAIN_MINE * warp + i][d] * x;
        }
    }
}

/* sum[i][j] += over the 32 rows of `other`: weight of row i (lane by lane) times column
 * first + 32 j + lane. The weights go through the warp's own rows of space->own. */
template <typename T, typename R>
__device__ inline void plain_weigh(plain_space<R> *space, const plain_rows<T> &other, int64_t first,
                                   int64_t D, const R (&weight)[PLAIN_MINE],
                                   R (&sum)[PLAIN_MINE][PLAIN_STRIPS]) {
    int lane = (int)threadIdx.x % 32, mine = (int)threadIdx.x / 32 * PLAIN_MINE;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < PLAIN_MINE; i++) space->own[mine + i][lane] = weight[i];
#pragma unroll
    for (int j = 0; j < PLAIN_STRIPS; j++) {
        if (first + 32 * j >= D) break;
        __syncthreads();
        plain_load(space->other, 32, other, first + 32 * j, D);
        __syncthreads();
#pragma unroll 4
        for (int r = 0; r < 32; r++) {
            R x = space->other[r][lane];
#pragma unroll
            for (int i = 0; i < PLAIN_MINE; i++) sum[i][j] += space->own[mine + i][r] * x;
        }
    }
}

template <typename T, typename R>
__device__ inline void plain_store(const plain_rows<T> &own, int64_t first, int64_t D,
                                   const R (&sum)[PLAIN_MINE][PLAIN_STRIPS],
                                   const R (&factor)[PLAIN_MINE]) {
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < PLAIN_MINE; i++) {
        int r = PLAIN_MINE * warp + i;
#pragma unroll
        for (int j = 0; j < PLAIN_STRIPS; j++) {
            int64_t d = first + 32 * j + lane;
            if (r < own.n && d < D)
                own.data[r * own.row + d * own.step] = mcu_down<T>(sum[i][j] * factor[i]);
        }
    }
}

/* The block's place: 16 rows of n, a head of `heads`, a batch. */
struct plain_place {
    int64_t first, h, b;
    __device__ inline plain_place(int64_t n, int64_t heads) {
        int64_t i = blockIdx.x, blocks = (n + PLAIN_OWN - 1) / PLAIN_OWN;
        first = i % blocks * PLAIN_OWN;
        h = i / blocks % heads;
        b = i / blocks / heads;
    }
};

/* How many keys the last of the block's queries sees. */
__device__ inline int64_t plain_seen(const mcu_attention_sizes &z, int64_t first) {
    return z.visible((first + PLAIN_OWN < z.T ? first + PLAIN_OWN : z.T) - 1);
}

/* -- forward ----------------------------------------------------------------------------------- */

template <typename T>
struct plain_forward_args {
    plain_view out, lse, q, k, v;
    mcu_attention_sizes z;
    mcu_real_t<T> scale;
};

template <typename T>
__global__ void __launch_bounds__(PLAIN_THREADS) plain_forward_kernel(plain_forward_args<T> p) {
    typedef mcu_real_t<T> R;
    __shared__ plain_space<R> space;
    plain_place at(p.z.T, p.z.H);
    int lane = (int)threadIdx.x % 32, mine = (int)threadIdx.x / 32 * PLAIN_MINE;
    int64_t kv = at.h / p.z.group, column = (int64_t)blockIdx.y * PLAIN_COLUMNS;
    plain_rows<T> q = plain_at<T>(p.q, at.b, at.first, at.h, p.z.T);
    R sum[PLAIN_MINE] = {}, acc[PLAIN_MINE][PLAIN_STRIPS] = {}, max[PLAIN_MINE], weight[PLAIN_MINE];
#pragma unroll
    for (int i = 0; i < PLAIN_MINE; i++) max[i] = -INFINITY;
    int64_t seen = plain_seen(p.z, at.first);
    for (int64_t s = 0; s < seen; s += 32) {
        plain_dots(&space, q, plain_at<T>(p.k, at.b, s, kv, p.z.S), p.z.D, weight);
#pragma unroll
        for (int i = 0; i < PLAIN_MINE; i++) {
            bool hidden = s + lane >= p.z.visible(at.first + mine + i) || s + lane >= p.z.S;
            R score = hidden ? (R)-INFINITY : p.scale * weight[i], top = score;
            for (int d = 16; d > 0; d /= 2) { /* NaN loses: it shows in the sum */
                R other = __shfl_xor_sync(0xFFFFFFFFU, top, d);
                top = other > top || top != top ? other : top;
            }
            top = top > max[i] ? top : max[i];
            R shift = top == (R)-INFINITY ? 0 : top, fade = plain_exp(max[i] - shift);
            max[i] = top;
            weight[i] = plain_exp(score - shift);
            sum[i] = sum[i] * fade + mcu_warp_sum(weight[i]);
#pragma unroll
            for (int j = 0; j < PLAIN_STRIPS; j++) acc[i][j] *= fade;
        }
        plain_weigh(&space, plain_at<T>(p.v, at.b, s, kv, p.z.S), column, p.z.D, weight, acc);
    }
#pragma unroll
    for (int i = 0; i < PLAIN_MINE; i++) {
        int64_t t = at.first + mine + i;
        weight[i] = p.z.visible(t) > 0 ? 1 / sum[i] : 0;
        if (lane == 0 && column == 0 && t < p.z.T)
            *plain_at<R>(p.lse, at.b, t, at.h, p.z.T).data =
                (max[i] == (R)-INFINITY ? 0 : max[i]) + plain_log(sum[i]);
    }
    plain_store(plain_at<T>(p.out, at.b, at.first, at.h, p.z.T), column, p.z.D, acc, weight);
}

/* -- backward ---------------------------------------------------------------------------------- */

template <typename T>
struct plain_backward_args {
    plain_view dq, dk, dv, dout, q, k, v, out, lse;
    mcu_real_t<T> *delta; /* [B, H, T] */
    mcu_attention_sizes z;
    mcu_real_t<T> scale;
};

/* A warp owns row i of [B, H, T]. */
template <typename T>
__global__ void __launch_bounds__(PLAIN_THREADS) plain_delta_kernel(plain_backward_args<T> p) {
    typedef mcu_real_t<T> R;
    int64_t i = (int64_t)blockIdx.x * PLAIN_WARPS + threadIdx.x / 32;
    if (i >= p.z.B * p.z.H * p.z.T) return;
    int64_t t = i % p.z.T, h = i / p.z.T % p.z.H, b = i / p.z.T / p.z.H;
    plain_rows<T> x = plain_at<T>(p.dout, b, t, h, p.z.T), y = plain_at<T>(p.out, b, t, h, p.z.T);
    R sum = 0;
    for (int64_t d = threadIdx.x % 32; d < p.z.D; d += 32)
        sum += mcu_up(x.data[d * x.step]) * mcu_up(y.data[d * y.step]);
    sum = mcu_warp_sum(sum);
    if (threadIdx.x % 32 == 0) p.delta[i] = sum;
}

/* dS = P (dP - delta) scale; 0 for a pair that does not see each other. */
template <typename R>
__device__ inline R plain_ds(R *score, R dp, R lse, R delta, R scale, bool hidden) {
    *score = hidden ? 0 : plain_exp(scale * *score - lse);
    return hidden ? 0 : *score * (dp - delta) * scale;
}

template <typename T>
__global__ void __launch_bounds__(PLAIN_THREADS) plain_queries_kernel(plain_backward_args<T> p) {
    typedef mcu_real_t<T> R;
    __shared__ plain_space<R> space;
    plain_place at(p.z.T, p.z.H);
    int lane = (int)threadIdx.x % 32, mine = (int)threadIdx.x / 32 * PLAIN_MINE;
    int64_t kv = at.h / p.z.group, column = (int64_t)blockIdx.y * PLAIN_COLUMNS;
    plain_rows<T> q = plain_at<T>(p.q, at.b, at.first, at.h, p.z.T);
    plain_rows<T> dout = plain_at<T>(p.dout, at.b, at.first, at.h, p.z.T);
    R dq[PLAIN_MINE][PLAIN_STRIPS] = {}, score[PLAIN_MINE], dp[PLAIN_MINE];
    int64_t seen = plain_seen(p.z, at.first);
    for (int64_t s = 0; s < seen; s += 32) {
        plain_rows<T> k = plain_at<T>(p.k, at.b, s, kv, p.z.S);
        plain_dots(&space, q, k, p.z.D, score);
        plain_dots(&space, dout, plain_at<T>(p.v, at.b, s, kv, p.z.S), p.z.D, dp);
#pragma unroll
        for (int i = 0; i < PLAIN_MINE; i++) {
            int64_t t = at.first + mine + i;
            bool there = t < p.z.T && s + lane < p.z.S && s + lane < p.z.visible(t);
            R lse = there ? *plain_at<R>(p.lse, at.b, t, at.h, p.z.T).data : R(0);
            R delta = there ? p.delta[(at.b * p.z.H + at.h) * p.z.T + t] : R(0);
            dp[i] = plain_ds(&score[i], dp[i], lse, delta, p.scale, !there);
        }
        plain_weigh(&space, k, column, p.z.D, dp, dq);
    }
    const R one[PLAIN_MINE] = {1, 1, 1, 1};
    plain_store(plain_at<T>(p.dq, at.b, at.first, at.h, p.z.T), column, p.z.D, dq, one);
}

/* The heads of the group come in order, and each one's queries from the first that sees a key. */
template <typename T>
__global__ void __launch_bounds__(PLAIN_THREADS) plain_keys_kernel(plain_backward_args<T> p) {
    typedef mcu_real_t<T> R;
    __shared__ plain_space<R> space;
    plain_place at(p.z.S, p.z.Hkv);
    int lane = (int)threadIdx.x % 32, mine = (int)threadIdx.x / 32 * PLAIN_MINE;
    int64_t column = (int64_t)blockIdx.y * PLAIN_COLUMNS;
    plain_rows<T> k = plain_at<T>(p.k, at.b, at.first, at.h, p.z.S);
    plain_rows<T> v = plain_at<T>(p.v, at.b, at.first, at.h, p.z.S);
    R dk[PLAIN_MINE][PLAIN_STRIPS] = {}, dv[PLAIN_MINE][PLAIN_STRIPS] = {};
    R score[PLAIN_MINE], dp[PLAIN_MINE];
    int64_t start = p.z.causal ? at.first + p.z.T - p.z.S : 0;
    for (int64_t h = at.h * p.z.group; h < (at.h + 1) * p.z.group; h++) {
        for (int64_t t0 = start < 0 ? 0 : start; t0 < p.z.T; t0 += 32) {
            plain_rows<T> q = plain_at<T>(p.q, at.b, t0, h, p.z.T);
            plain_rows<T> dout = plain_at<T>(p.dout, at.b, t0, h, p.z.T);
            plain_dots(&space, k, q, p.z.D, score);
            plain_dots(&space, v, dout, p.z.D, dp);
            int64_t t = t0 + lane, sees = t < p.z.T ? p.z.visible(t) : 0;
            R lse = sees > 0 ? *plain_at<R>(p.lse, at.b, t, h, p.z.T).data : R(0);
            R delta = sees > 0 ? p.delta[(at.b * p.z.H + h) * p.z.T + t] : R(0);
#pragma unroll
            for (int i = 0; i < PLAIN_MINE; i++) {
                int64_t s = at.first + mine + i;
                bool hidden = s >= sees || s >= p.z.S;
                dp[i] = plain_ds(&score[i], dp[i], lse, delta, p.scale, hidden);
            }
            plain_weigh(&space, dout, column, p.z.D, score, dv);
            plain_weigh(&space, q, column, p.z.D, dp, dk);
        }
    }
    const R one[PLAIN_MINE] = {1, 1, 1, 1};
    plain_store(plain_at<T>(p.dk, at.b, at.first, at.h, p.z.S), column, p.z.D, dk, one);
    plain_store(plain_at<T>(p.dv, at.b, at.first, at.h, p.z.S), column, p.z.D, dv, one);
}

/* -- launches ---------------------------------------------------------------------------------- */

/* D = 0 has one column block: lse is wanted all the same. */
inline dim3 plain_grid(int64_t batches, int64_t heads, int64_t rows, int64_t D) {
    int64_t columns = (D + PLAIN_COLUMNS - 1) / PLAIN_COLUMNS;
    int64_t blocks = batches * heads * ((rows + PLAIN_OWN - 1) / PLAIN_OWN);
    return dim3((unsigned)blocks, (unsigned)(columns > 0 ? columns : 1));
}

inline mc_status mcu_attention_plain(mci_exec *exec, const mci_view *const *t,
                                     const mcu_attention_sizes &z, double scale) {
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        plain_forward_args<T> p = {plain_view_of(t[0]), plain_stats_of(t[1]), plain_view_of(t[2]),
                                   plain_view_of(t[3]), plain_view_of(t[4]),  z,
                                   (mcu_real_t<T>)scale};
        MCU_LAUNCH((plain_forward_kernel<T>), plain_grid(z.B, z.H, z.T, z.D), PLAIN_THREADS, 0,
                   exec, p);
        return mcu_launched("attention");
    });
}

inline mc_status mcu_attention_backward_plain(mci_exec *exec, const mci_view *const *t,
                                              const mcu_attention_sizes &z, double scale) {
    return mcu_for_float(t[4]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        plain_backward_args<T> p = {};
        plain_view *heads[8] = {&p.dq, &p.dk, &p.dv, &p.dout, &p.q, &p.k, &p.v, &p.out};
        for (int i = 0; i < 8; i++) *heads[i] = plain_view_of(t[i]);
        p.lse = plain_stats_of(t[8]);
        p.z = z;
        p.scale = (mcu_real_t<T>)scale;
        int64_t rows = z.B * z.H * z.T;
        if (rows > 0) {
            size_t bytes = (size_t)rows * sizeof *p.delta;
            p.delta = (mcu_real_t<T> *)exec->scratch(exec, bytes);
            if (!p.delta) return mcu_no_scratch("attention_backward", bytes);
            MCU_LAUNCH((plain_delta_kernel<T>), (unsigned)((rows + PLAIN_WARPS - 1) / PLAIN_WARPS),
                       PLAIN_THREADS, 0, exec, p);
            MCU_LAUNCH((plain_queries_kernel<T>), plain_grid(z.B, z.H, z.T, z.D), PLAIN_THREADS, 0,
                       exec, p);
        }
        if (z.S > 0)
            MCU_LAUNCH((plain_keys_kernel<T>), plain_grid(z.B, z.Hkv, z.S, z.D), PLAIN_THREADS, 0,
                       exec, p);
        return mcu_launched("attention_backward");
    });
}

#endif
