/* moe_loss.cu: the losses that balance the load of the experts, and their backwards.
 *
 *     aux loss   coefficient * E * sum_e f_e P_e, f_e the share of slots, P_e the mean over tokens
 * of their normalised scores                        (Fedus et al. 2021, eq. 4) z loss coefficient *
 * mean_t logsumexp(logits[t])^2    (Zoph et al. 2022, eq. 5)
 *
 * A warp per token, lane after lane over the experts; eight tokens a block. A loss is two kernels:
 * each of at most LOSS_BLOCKS blocks leaves one float64 sum over its tokens, a last block adds
 * those. Which token goes where depends on the number of tokens only, so that the sum's order is
 * fixed.
 */
#include "moe.cuh"

namespace {

enum { LOSS_THREADS = 256, LOSS_WARPS = LOSS_THREADS / 32 };
enum { LOSS_WAVES = 8, LOSS_BLOCKS = 256, SHARES = 1024 };

/* loss = factor * (sum of the partials / tokens) */
template <typename R>
__global__ void __launch_bounds__(LOSS_THREADS)
    loss_kernel(R *loss, const double *partials, int blocks, double factor, int64_t tokens) {
    __shared__ double space[32];
    double sum = (int)threadIdx.x < blocks ? partials[threadIdx.x] : 0;
    sum = mcu_block_sum(sum, space);
    if (threadIdx.x == 0) *loss = (R)(factor * (tokens > 0 ? sum / (double)tokens : 0));
}

/* share[e] = counts[e] / sum(counts), 0 when nothing is routed; the first SHARES of them are held
 * in shared memory. */
template <typename R>
struct shares {
    const R *held;
    moe_indices counts;
    double total;
    static __device__ inline R share(int64_t count, double total) {
        return total > 0 ? (R)((double)count / total) : (R)0;
    }
    /* Two kinds of loads, so that they stay two: nvcc 13.0 made one load of shared memory of a
     * choice between shared and device memory, whatever was chosen. */
    __device__ inline R operator[](int64_t e) const {
        if (e < SHARES) return held[e];
        int64_t at = counts.offset(e);
        int64_t count = counts.wide ? (int64_t)__ldg((const long long *)counts.data + at)
                                    : (int64_t)__ldg((const int *)counts.data + at);
        return share(count, total);
    }
};
template <typename R>
__device__ inline shares<R> make_shares(moe_indices counts, int64_t experts, R *held,
                                        double *space) {
    double total = 0;
    for (int64_t e = threadIdx.x; e < experts; e += LOSS_THREADS) total += (double)counts[e];
    total = mcu_block_sum(total, space);
    for (int64_t e = threadIdx.x; e < experts && e < SHARES; e += LOSS_THREADS)
        held[e] = shares<R>::share(counts[e], total);
    __syncthreads();
    return shares<R>{held, counts, total};
}

/* 1 / sum(scores), 0 for a sum of 0; *along = dot(scores, share) times that. */
template <typename T>
__device__ inline mcu_real_t<T> normalise(const T *s, int64_t step, int64_t experts,
                                          const shares<mcu_real_t<T>> &share,
                                          mcu_real_t<T> *along) {
    mcu_real_t<T> sum = 0, dot = 0;
#pragma unroll 2
    for (int64_t e = threadIdx.x % 32; e < experts; e += 32) {
        mcu_real_t<T> x = mcu_up(s[e * step]);
        sum += x;
        dot += x * share[e];
    }
    sum = mcu_warp_sum(sum);
    mcu_real_t<T> inverse = sum == 0 ? 0 : 1 / sum;
    *along = mcu_warp_sum(dot) * inverse;
    return inverse;
}

template <typename T>
__global__ void __launch_bounds__(LOSS_THREADS)
    aux_loss_kernel(moe_matrix scores, moe_indices counts, int64_t tokens, int64_t experts,
                    double *partials) {
    typedef mcu_real_t<T> R;
    __shared__ R held[SHARES];
    __shared__ double space[32];
    shares<R> share = make_shares(counts, experts, held, space);
    double sum = 0;
    int64_t first = (int64_t)blockIdx.x * LOSS_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < tokens; t += (int64_t)gridDim.x * LOSS_WARPS) {
        R along;
        normalise(moe_row<T>(scores, t), scores.step, experts, share, &along);
        if (threadIdx.x % 32 == 0) sum += (double)along;
    }
    sum = mcu_block_sum(sum, space);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

template <typename T>
__global__ void __launch_bounds__(LOSS_THREADS)
    aux_loss_backward_kernel(moe_matrix dscores, const mcu_real_t<T> *dloss, moe_matrix scores,
                             moe_indices counts, int64_t tokens, int64_t experts,
                             double coefficient) {
    typedef mcu_real_t<T> R;
    __shared__ R held[SHARES];
    __shared__ double space[32];
    shares<R> share = make_shares(counts, experts, held, space);
    R unit = (R)((double)*dloss * coefficient * (double)experts / (double)tokens);
    int64_t first = (int64_t)blockIdx.x * LOSS_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < tokens; t += (int64_t)gridDim.x * LOSS_WARPS) {
        R along, inverse = normalise(moe_row<T>(scores, t), scores.step, experts, share, &along);
        T *ds = moe_row<T>(dscores, t);
#pragma unroll 2
        for (int64_t e = threadIdx.x % 32; e < experts; e += 32)
            ds[e * dscores.step] = mcu_down<T>(unit * inverse * (share[e] - along));
    }
}

template <typename T>
__global__ void __launch_bounds__(LOSS_THREADS)
    z_loss_kernel(moe_matrix lse, moe_matrix logits, int64_t tokens, int64_t experts,
                  double *partials) {
    typedef mcu_real_t<T> R;
    __shared__ double space[32];
    double squares = 0;
    int64_t first = (int64_t)blockIdx.x * LOSS_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < tokens; t += (int64_t)gridDim.x * LOSS_WARPS) {
        const T *x = moe_row<T>(logits, t);
        R most = -INFINITY, sum = 0;
#pragma unroll 2
        for (int64_t e = threadIdx.x % 32; e < experts; e += 32) {
            R y = moe_number(mcu_up(x[e * logits.step]));
            most = y > most ? y : most;
        }
        R shift = moe_shift(mcu_warp_max(most));
#pragma unroll 2
        for (int64_t e = threadIdx.x % 32; e < experts; e += 32)
            sum += moe_exp(mcu_up(x[e * logits.step]) - shift);
        R y = shift + moe_log(mcu_warp_sum(sum));
        if (threadIdx.x % 32 == 0) { /* no lane may run ahead: the next turn's maximum needs all */
            *moe_row<R>(lse, t) = y;
            squares += (double)y * (double)y;
        }
        __syncwarp();
    }
    squares = mcu_block_sum(squares, space);
    if (threadIdx.x == 0) partials[blockIdx.x] = squares;
}

template <typename T>
__global__ void __launch_bounds__(LOSS_THREADS)
    z_loss_backward_kernel(moe_matrix dlogits, const mcu_real_t<T> *dloss, moe_matrix logits,
                           moe_matrix lse, int64_t tokens, int64_t experts, double coefficient) {
    typedef mcu_real_t<T> R;
    double unit = (double)*dloss * coefficient * 2 / (double)tokens;
    int64_t first = (int64_t)blockIdx.x * LOSS_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < tokens; t += (int64_t)gridDim.x * LOSS_WARPS) {
        const T *x = moe_row<T>(logits, t);
        R l = *moe_row<R>(lse, t), d = (R)(unit * (double)l);
        for (int64_t e = threadIdx.x % 32; e < experts; e += 32)
            moe_row<T>(dlogits, t)[e * dlogits.step] =
                mcu_down<T>(d * moe_exp(mcu_up(x[e * logits.step]) - l));
    }
}

/* Blocks of a loss, whatever the device. */
unsigned loss_blocks(int64_t tokens) {
    int64_t blocks = (tokens + LOSS_WARPS - 1) / LOSS_WARPS;
    if (blocks > LOSS_BLOCKS) blocks = LOSS_BLOCKS;
    return (unsigned)(blocks < 1 ? 1 : blocks);
}

} /* namespace */

mc_status mcu_moe_aux_loss(mci_exec *exec, const mci_view *const *t, const void *params_) {
    double coefficient = static_cast<const mci_moe_params *>(params_)->coefficient;
    int64_t tokens = t[1]->shape[0], experts = t[1]->shape[1];
    unsigned blocks = loss_blocks(tokens);
    double *partials = static_cast<double *>(exec->scratch(exec, LOSS_BLOCKS * sizeof(double)));
    if (!partials) return mcu_no_scratch("moe_aux_loss", LOSS_BLOCKS * sizeof(double));
    return mcu_for_float(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        typedef mcu_real_t<T> R;
        MCU_LAUNCH((aux_loss_kernel<T>), blocks, LOSS_THREADS, 0, exec, moe_matrix_of(t[1]),
                   moe_indices_of(t[2]), tokens, experts, partials);
        MCU_LAUNCH((loss_kernel<R>), 1, LOSS_THREADS, 0, exec, static_cast<R *>(t[0]->data),
                   partials, (int)blocks, coefficient * (double)experts, tokens);
        return mcu_launched("moe_aux_loss");
    });
}

mc_status mcu_moe_aux_loss_backward(mci_exec *exec, const mci_view *const *t, const void *params_) {
    double coefficient = static_cast<const mci_moe_params *>(params_)->coefficient;
    int64_t tokens = t[2]->shape[0], experts = t[2]->shape[1];
    if (tokens == 0 || experts == 0) return MC_OK;
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        MCU_LAUNCH((aux_loss_backward_kernel<T>), mcu_blocks(exec, tokens, LOSS_WARPS, LOSS_WAVES),
                   LOSS_THREADS, 0, exec, moe_matrix_of(t[0]),
                   static_cast<const mcu_real_t<T> *>(t[1]->data), moe_matrix_of(t[2]),
                   moe_indices_of(t[3]), tokens, experts, coefficient);
        return mcu_launched("moe_aux_loss_backward");
    });
}

mc_status mcu_moe_z_loss(mci_exec *exec, const mci_view *const *t, const void *params_) {
    double coefficient = static_cast<const mci_moe_params *>(params_)->coefficient;
    int64_t tokens = t[2]->shape[0], experts = t[2]->shape[1];
    unsigned blocks = loss_blocks(tokens);
    double *partials = static_cast<double *>(exec->scratch(exec, LOSS_BLOCKS * sizeof(double)));
    if (!partials) return mcu_no_scratch("moe_z_loss", LOSS_BLOCKS * sizeof(double));
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        typedef mcu_real_t<T> R;
        MCU_LAUNCH((z_loss_kernel<T>), blocks, LOSS_THREADS, 0, exec, moe_matrix_of(t[1]),
                   moe_matrix_of(t[2]), tokens, experts, partials);
        MCU_LAUNCH((loss_kernel<R>), 1, LOSS_THREADS, 0, exec, static_cast<R *>(t[0]->data),
                   partials, (int)blocks, coefficient, tokens);
        return mcu_launched("moe_z_loss");
    });
}

mc_status mcu_moe_z_loss_backward(mci_exec *exec, const mci_view *const *t, const void *params_) {
    double coefficient = static_cast<const mci_moe_params *>(params_)->coefficient;
    int64_t tokens = t[2]->shape[0], experts = t[2]->shape[1];
    if (tokens == 0 || experts == 0) return MC_OK;
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        MCU_LAUNCH((z_loss_backward_kernel<T>), mcu_blocks(exec, tokens, LOSS_WARPS, LOSS_WAVES),
                   LOSS_THREADS, 0, exec, moe_matrix_of(t[0]),
                   static_cast<const mcu_real_t<T> *>(t[1]->data), moe_matrix_of(t[2]),
                   moe_matrix_of(t[3]), tokens, experts, coefficient);
        return mcu_launched("moe_z_loss_backward");
    });
}
