/* attention_sm80.cu: attention forward on the tensor cores, memory linear in the length
 * (FlashAttention-2: Dao 2023, algorithm 1, with the online softmax of Milakov & Gimelshein 2018).
 *
 * A block of 4 warps owns 128 queries of one head, a warp 32 of them: two fragments of queries
 * share every fragment of keys or values read from shared memory, which halves that traffic. Keys
 * and values come in tiles of 64, double-buffered, from the last visible one back to the first: the
 * masked tiles come first, and the running maxima soon stop changing. Scores and probabilities stay
 * in registers; the probabilities are rounded to the operands' dtype for the product with v, their
 * sum is of the unrounded ones. Powers of 2: exp(scale (s - max)) = 2^(c s - c max), c = scale
 * log2(e). Two blocks fit a multiprocessor. Causal blocks of a head start with the longest.
 */
#include <cfloat>

#include "attention_tiles.cuh"

namespace {

enum { QUERIES = 128, WARP_QUERIES = 32, KEYS = 64, M = WARP_QUERIES / 16, N = KEYS / 16 };

const float LN_2 = 0.6931471805599453F;

template <typename T>
struct forward_args {
    mcu_heads<T> out, q, k, v;
    mcu_stats lse;
    int T_, S, group, causal;
    float scale_log2;
};

template <typename T, int D>
__global__ void __launch_bounds__(MCU_ATTENTION_THREADS, 2) forward_kernel(forward_args<T> p) {
    MCU_SHARED(T, shared);
    constexpr int ks = QUERIES * D, vs = ks + 2 * KEYS * D; /* and the queries at 0 */
    int lane = (int)threadIdx.x % 32, warp = mcu_warp_number(), g = lane / 4, pair = lane % 4;
    int first = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES;
    int h = (int)blockIdx.y, b = (int)blockIdx.z, kv = h / p.group;
    int reach = p.causal ? p.S - p.T_ + 1 : p.S; /* query t sees reach keys, and t more if causal */
    int end = first + QUERIES < p.T_ ? first + QUERIES : p.T_;
    int seen = p.causal ? end - 1 + reach : p.S;
    int last = seen > 0 ? (seen - 1) / KEYS * KEYS : -KEYS; /* where the last visible tile begins */

    mcu_tile_load<T, D, QUERIES>(shared, p.q.at(b, first, h), p.q.row, p.T_ - first);
    mcu_copy_commit();
    const T *keys = p.k.at(b, 0, kv), *values = p.v.at(b, 0, kv);
    if (last >= 0) {
        int stage = last / KEYS % 2 * KEYS * D;
        mcu_tile_load<T, D, KEYS>(shared + ks + stage, keys + last * p.k.row, p.k.row, p.S - last);
        mcu_tile_load<T, D, KEYS>(shared + vs + stage, values + last * p.v.row, p.v.row,
                                  p.S - last);
    }
    mcu_copy_commit();

    /* This warp's queries; and of each lane's four rows: c times the maximum, from a finite number
     * on so that a row of -inf has weights 0; the sum of the lane's own columns */
    int mine = WARP_QUERIES * warp, top = first + mine;
    int fewest = p.causal ? top + reach : p.S; /* keys that the first sees */
    float o[M][D / 8][4], max[M][2], sum[M][2];
    mcu_tile_zero(o);
#pragma unroll
    for (int m = 0; m < M; m++) {
        max[m][0] = max[m][1] = -FLT_MAX;
        sum[m][0] = sum[m][1] = 0;
    }
    /* With D = 64 there are registers for the queries' fragments too. */
    constexpr int KEPT = D == 64 ? D / 16 : 0;
    uint32_t qf[KEPT ? KEPT : 1][M][4];
    if (KEPT) {
        mcu_copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
#pragma unroll
            for (int m = 0; m < M; m++)
                mcu_tile_a<T, D, false>(qf[i][m], shared, mine * D, 16 * m, i);
        }
    }

    for (int at = last; at >= 0; at -= KEYS) {
        int stage = at / KEYS % 2 * KEYS * D, next = at - KEYS;
        mcu_copy_wait<0>();
        __syncthreads(); /* this tile is here, and the other stage is no longer read */
        if (next >= 0) {
            T *kn = shared + ks + KEYS * D - stage, *vn = shared + vs + KEYS * D - stage;
            mcu_tile_load<T, D, KEYS>(kn, keys + next * p.k.row, p.k.row, KEYS);
            mcu_tile_load<T, D, KEYS>(vn, values + next * p.v.row, p.v.row, KEYS);
            mcu_copy_commit();
        }
        if (at >= fewest + (p.causal ? WARP_QUERIES - 1 : 0)) continue;

        float s[M][2 * N][4];
        mcu_tile_zero(s);
        if constexpr (KEPT)
            mcu_tile_dot<T, D, M, N>(s, qf, shared, ks + stage);
        else
            mcu_tile_dot<T, D, M, N>(s, shared, mine * D, ks + stage);
        if (at + KEYS > fewest || at + KEYS > p.S) {
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int limit = p.causal ? fewest + 16 * m + 8 * half + g : p.S;
                    limit = (limit < p.S ? limit : p.S) - at - 2 * pair;
#pragma unroll
                    for (int n = 0; n < 2 * N; n++) {
                        if (8 * n >= limit) s[m][n][2 * half] = -INFINITY;
                        if (8 * n + 1 >= limit) s[m][n][2 * half + 1] = -INFINITY;
                    }
                }
            }
        }

        float fade[M][2];
        int moved = 0;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float x = -INFINITY;
#pragma unroll
                for (int n = 0; n < 2 * N; n++)
                    x = fmaxf(x, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 1));
                x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, 2));
                x = fmaxf(x * p.scale_log2, max[m][half]);
                fade[m][half] = mcu_exp2(max[m][half] - x);
                moved |= x != max[m][half];
                max[m][half] = x;
            }
        }
        if (__any_sync(0xFFFFFFFFU, moved)) { /* else every factor is 1 */
#pragma unroll
            for (int m = 0; m < M; m++) {
                sum[m][0] *= fade[m][0];
                sum[m][1] *= fade[m][1];
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) o[m][n][i] *= fade[m][i / 2];
                }
            }
        }
#pragma unroll
        for (int k = 0; k < N; k++) { /* the powers of 16 keys beside the products of the last 16 */
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float &x = s[m][2 * k + i / 4][i % 4];
                    x = mcu_exp2(fmaf(x, p.scale_log2, -max[m][i % 4 / 2]));
                    sum[m][i % 4 / 2] += x;
                }
            }
            uint32_t w[M][4];
            mcu_tile_pack<T>(w, s, k);
            mcu_tile_weigh<T, D>(o, w, shared, vs + stage, 16 * k);
        }
    }

    if (last < 0) { /* no iteration has waited for the queries, whose rows the results use */
        mcu_copy_wait<0>();
        __syncthreads();
    }
    float *lse = p.lse.at(b, h);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += __shfl_xor_sync(0xFFFFFFFFU, total, 1);
            total += __shfl_xor_sync(0xFFFFFFFFU, total, 2);
            int row = 16 * m + 8 * half + g, t = top + row;
            int any = p.causal ? fewest + row > 0 : p.S > 0;
            if (pair == 0 && t < p.T_) lse[t * p.lse.row] = max[m][half] * LN_2 + logf(total);
            sum[m][half] = any ? 1 / total : 0;
        }
    }
    mcu_tile_store<T, D, M>(p.out.at(b, top, h), p.out.row, p.T_ - top, o, sum, shared, mine);
}

template <typename T, int D>
mc_status forward(mci_exec *exec, const mci_view *const *t, const mcu_attention_sizes *z,
                  double scale) {
    forward_args<T> p = {};
    p.out = mcu_heads_of<T>(t[0]);
    p.lse = mcu_stats_of(t[1]);
    p.q = mcu_heads_of<T>(t[2]);
    p.k = mcu_heads_of<T>(t[3]);
    p.v = mcu_heads_of<T>(t[4]);
    p.T_ = (int)z->T;
    p.S = (int)z->S;
    p.group = (int)z->group;
    p.causal = z->causal;
    p.scale_log2 = (float)(scale * 1.4426950408889634);
    constexpr int bytes = (QUERIES + 4 * KEYS) * D * (int)sizeof(T);
    mc_status st = mcu_check(
        "attention", cudaFuncSetAttribute((const void *)forward_kernel<T, D>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    if (st != MC_OK) return st;
    dim3 grid((unsigned)((z->T + QUERIES - 1) / QUERIES), (unsigned)z->H, (unsigned)z->B);
    MCU_LAUNCH((forward_kernel<T, D>), grid, MCU_ATTENTION_THREADS, bytes, exec, p);
    return mcu_launched("attention");
}

}  // namespace

mc_status mcu_attention_sm80(mci_exec *exec, const mci_view *const *t, const mcu_attention_sizes *z,
                             double scale) {
    if (t[2]->dtype == MC_FLOAT16)
        return (z->D == 64 ? forward<mcu_half, 64> : forward<mcu_half, 128>)(exec, t, z, scale);
    return (z->D == 64 ? forward<mcu_bf16, 64> : forward<mcu_bf16, 128>)(exec, t, z, scale);
}
