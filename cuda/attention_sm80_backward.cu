/* attention_sm80_backward.cu: the gradients of attention on the tensor cores, memory linear in the
 * length (FlashAttention-2: Dao 2023, section 3.1 and algorithm 2, with its loops parted in two).
 *
 *     P = exp(scale q k^T - lse),  dS = P * (dout v^T - delta),  delta = rowsum(dout * out)
 *     dq = scale dS k,  dk = scale dS^T q,  dv = P^T dout
 *
 * Two kernels, and nobody adds to what another block writes: one owns keys and walks over the
 * queries of all heads of its group, in order, the other owns queries and walks over the keys. So
 * P and dout v^T are computed twice (7 products for 5), the order of every sum is fixed, and no
 * gradient is kept in float32 in memory. The owner's rows are the rows of the scores' fragments:
 * P^T and dS^T (dS) are weights of the next product just as they come out of the first one, without
 * a way through shared memory. They are rounded to the operands' dtype there. Launch numbers: 4
 * warps with all registers, two blocks to a multiprocessor.
 */
#include "attention_tiles.cuh"

namespace {

const float LOG2_E = 1.4426950408889634F;

template <typename T>
struct backward_args {
    mcu_heads<T> dq, dk, dv, dout, q, k, v, out;
    mcu_stats lse;
    float2 *facts; /* [B, H, padded]: lse log2(e) and delta of each query */
    int T_, S, H, group, causal, padded;
    float scale, scale_log2;
};

/* -- what is known of a query ------------------------------------------------------------------ */

enum { FACT_ROWS = 128 }; /* facts are padded to whole blocks of queries */

/* D / 8 lanes own a query. One beyond the last, or that sees no key, gets weights exp(-inf). grid:
 * (padded * D / 4096, H, B) */
template <typename T, int D>
__global__ void __launch_bounds__(MCU_ATTENTION_THREADS) facts_kernel(backward_args<T> p) {
    constexpr int LANES = D / 8, STEP = MCU_ATTENTION_THREADS / LANES, ROWS = 4;
    int lane = (int)threadIdx.x % LANES, h = (int)blockIdx.y, b = (int)blockIdx.z;
    int first = (int)blockIdx.x * ROWS * STEP + (int)threadIdx.x / LANES;
    typedef mcu_vector<T, 8> eight;
    eight x[ROWS] = {}, y[ROWS] = {};
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int t = first + i * STEP;
        if (t >= p.T_) continue;
        x[i] = *(const eight *)(p.dout.at(b, t, h) + 8 * lane);
        y[i] = *(const eight *)(p.out.at(b, t, h) + 8 * lane);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int t = first + i * STEP;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(mcu_up(x[i].v[j]), mcu_up(y[i].v[j]), sum);
#pragma unroll
        for (int d = LANES / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, d);
        int sees = t < p.T_ && (p.causal ? t + p.S - p.T_ >= 0 : p.S > 0);
        float lse = sees ? p.lse.at(b, h)[t * p.lse.row] * LOG2_E : INFINITY;
        if (lane == 0) p.facts[((int64_t)b * p.H + h) * p.padded + t] = make_float2(lse, sum);
    }
}

/* -- dk and dv --------------------------------------------------------------------------------- */

/* A warp owns 32 keys, or 16 where D = 128 fills twice the registers; queries come in tiles of 64,
 * double-buffered, and pass through the registers SUB at a time. */
template <int D>
struct keys_plan {
    static constexpr int WARP_KEYS = D == 64 ? 32 : 16, KEYS = MCU_ATTENTION_WARPS * WARP_KEYS;
    static constexpr int QUERIES = 64, SUB = D == 64 ? 32 : 64;
    static constexpr int M = WARP_KEYS / 16, N = SUB / 16;
    static constexpr int TILES = (2 * KEYS + 4 * QUERIES) * D * 2; /* bytes */
    static constexpr int BYTES = TILES + 2 * QUERIES * 8;
};

template <typename T, int D>
__device__ inline void load_queries(const backward_args<T> &p, int b, int h, int at, T *q, T *dout,
                                    float4 *facts) {
    constexpr int QUERIES = keys_plan<D>::QUERIES;
    mcu_tile_load<T, D, QUERIES>(q, p.q.at(b, at, h), p.q.row, p.T_ - at);
    mcu_tile_load<T, D, QUERIES>(dout, p.dout.at(b, at, h), p.dout.row, p.T_ - at);
    const float2 *from = p.facts + ((int64_t)b * p.H + h) * p.padded + at;
    if (threadIdx.x < QUERIES / 2) mcu_copy_async(facts + threadIdx.x, from + 2 * threadIdx.x);
}

template <typename T, int D>
__global__ void __launch_bounds__(MCU_ATTENTION_THREADS, 2) keys_kernel(backward_args<T> p) {
    typedef keys_plan<D> plan;
    constexpr int M = plan::M, N = plan::N, SUB = plan::SUB, QUERIES = plan::QUERIES;
    MCU_SHARED(T, shared);
    constexpr int ks = 0, vs = ks + plan::KEYS * D, qs = vs + plan::KEYS * D;
    constexpr int ds = qs + 2 * QUERIES * D;
    /* [2][QUERIES / 2], of two queries each */
    float4 *facts = (float4 *)(shared + ds + 2 * QUERIES * D);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, g = lane / 4, pair = lane % 4;
    int first = (int)blockIdx.x * plan::KEYS, kv = (int)blockIdx.y, b = (int)blockIdx.z;
    int reach = p.causal ? p.S - p.T_ + 1 : p.S; /* query t sees reach keys, and t more if causal */
    int start = p.causal && first >= reach ? (first - reach + 1) / QUERIES * QUERIES : 0;
    int mine = plan::WARP_KEYS * warp, top = first + mine;

    mcu_tile_load<T, D, plan::KEYS>(shared + ks, p.k.at(b, first, kv), p.k.row, p.S - first);
    mcu_tile_load<T, D, plan::KEYS>(shared + vs, p.v.at(b, first, kv), p.v.row, p.S - first);
    /* Tile i of all: of head i / each of the group, queries i % each * QUERIES from `start` on. */
    int each = start < p.T_ ? (p.T_ - start + QUERIES - 1) / QUERIES : 0, all = p.group * each;
    if (all > 0) load_queries<T, D>(p, b, kv * p.group, start, shared + qs, shared + ds, facts);
    mcu_copy_commit();

    float dk[M][D / 8][4], dv[M][D / 8][4];
    mcu_tile_zero(dk);
    mcu_tile_zero(dv);
    for (int i = 0; i < all; i++) {
        int stage = i % 2 * QUERIES * D, other = QUERIES * D - stage;
        int at = start + i % each * QUERIES;
        const float4 *ft = facts + i % 2 * (QUERIES / 2);
        mcu_copy_wait<0>();
        __syncthreads(); /* this tile is here, and the other stage is no longer read */
        if (i + 1 < all) {
            int h = kv * p.group + (i + 1) / each, next = start + (i + 1) % each * QUERIES;
            load_queries<T, D>(p, b, h, next, shared + qs + other, shared + ds + other,
                               facts + (i + 1) % 2 * (QUERIES / 2));
            mcu_copy_commit();
        }
        for (int sub = 0; sub < QUERIES; sub += SUB) {
            /* None of these queries sees a key of this warp. */
            if (p.causal && top >= at + sub + SUB - 1 + reach) continue;
            float s[M][2 * N][4], dp[M][2 * N][4];
            mcu_tile_zero(s);
            mcu_tile_dot<T, D, M, N>(s, shared, ks + mine * D, qs + stage + sub * D);
            if (p.causal && top + plan::WARP_KEYS > at + sub + reach) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        /* the last column whose query does not see this row's key */
                        int last = top + 16 * m + 8 * half + g - reach - at - sub - 2 * pair;
#pragma unroll
                        for (int n = 0; n < 2 * N; n++) {
                            if (8 * n <= last) s[m][n][2 * half] = -INFINITY;
                            if (8 * n + 1 <= last) s[m][n][2 * half + 1] = -INFINITY;
                        }
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < 2 * N; n++) {
                float4 f = ft[(sub + 8 * n) / 2 + pair];
#pragma unroll
                for (int m = 0; m < M; m++) {
                    dp[m][n][0] = dp[m][n][2] = -f.y;
                    dp[m][n][1] = dp[m][n][3] = -f.w;
                }
            }
            mcu_tile_dot<T, D, M, N>(dp, shared, vs + mine * D, ds + stage + sub * D);
#pragma unroll
            for (int n = 0; n < 2 * N; n++) {
                float4 f = ft[(sub + 8 * n) / 2 + pair];
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        float lse = e % 2 ? f.z : f.x;
                        float x = mcu_exp2(fmaf(s[m][n][e], p.scale_log2, -lse));
                        s[m][n][e] = x;
                        dp[m][n][e] *= x;
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                uint32_t w[M][4];
                mcu_tile_pack<T>(w, s, k);
                mcu_tile_weigh<T, D>(dv, w, shared, ds + stage + sub * D, 16 * k);
                mcu_tile_pack<T>(w, dp, k);
                mcu_tile_weigh<T, D>(dk, w, shared, qs + stage + sub * D, 16 * k);
            }
        }
    }

    mcu_copy_wait<0>();
    __syncthreads(); /* where no query sees these keys, their rows may still be on the way */
    float one[M][2], scale[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        one[m][0] = one[m][1] = 1;
        scale[m][0] = scale[m][1] = p.scale;
    }
    mcu_tile_store<T, D, M>(p.dk.at(b, top, kv), p.dk.row, p.S - top, dk, scale, shared + ks, mine);
    mcu_tile_store<T, D, M>(p.dv.at(b, top, kv), p.dv.row, p.S - top, dv, one, shared + vs, mine);
}

/* -- dq ---------------------------------------------------------------------------------------- */

/* A warp owns 32 queries; keys come in tiles, double-buffered, and pass through the registers 32 at
 * a time. */
template <int D>
struct queries_plan {
    static constexpr int WARP_QUERIES = 32, QUERIES = MCU_ATTENTION_WARPS * WARP_QUERIES;
    static constexpr int KEYS = D == 64 ? 64 : 32, SUB = 32;
    static constexpr int M = WARP_QUERIES / 16, N = SUB / 16;
    static constexpr int BYTES = (2 * QUERIES + 4 * KEYS) * D * 2;
};

template <typename T, int D>
__global__ void __launch_bounds__(MCU_ATTENTION_THREADS, 2) queries_kernel(backward_args<T> p) {
    typedef queries_plan<D> plan;
    constexpr int M = plan::M, N = plan::N, SUB = plan::SUB, KEYS = plan::KEYS;
    MCU_SHARED(T, shared);
    constexpr int qs = 0, ds = qs + plan::QUERIES * D, ks = ds + plan::QUERIES * D;
    constexpr int vs = ks + 2 * KEYS * D;
    int lane = (int)threadIdx.x % 32, warp = mcu_warp_number(), g = lane / 4, pair = lane % 4;
    int first = (int)(gridDim.x - 1 - blockIdx.x) * plan::QUERIES; /* the longest first */
    int h = (int)blockIdx.y, b = (int)blockIdx.z, kv = h / p.group;
    int reach = p.causal ? p.S - p.T_ + 1 : p.S;
    int seen = first + plan::QUERIES < p.T_ ? first + plan::QUERIES : p.T_;
    seen = p.causal ? seen - 1 + reach : p.S;
    int mine = plan::WARP_QUERIES * warp, top = first + mine;
    int fewest = p.causal ? top + reach : p.S;
    int most = p.causal ? fewest + plan::WARP_QUERIES - 1 : p.S;

    mcu_tile_load<T, D, plan::QUERIES>(shared + qs, p.q.at(b, first, h), p.q.row, p.T_ - first);
    mcu_tile_load<T, D, plan::QUERIES>(shared + ds, p.dout.at(b, first, h), p.dout.row,
                                       p.T_ - first);
    mcu_copy_commit();
    const T *keys = p.k.at(b, 0, kv), *values = p.v.at(b, 0, kv);
    if (seen > 0) {
        mcu_tile_load<T, D, KEYS>(shared + ks, keys, p.k.row, p.S);
        mcu_tile_load<T, D, KEYS>(shared + vs, values, p.v.row, p.S);
    }
    mcu_copy_commit();
    const float2 *facts = p.facts + ((int64_t)b * p.H + h) * p.padded + top;
    float2 fact[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        fact[m][0] = facts[16 * m + g];
        fact[m][1] = facts[16 * m + 8 + g];
    }
    float dq[M][D / 8][4];
    mcu_tile_zero(dq);
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
                mcu_tile_a<T, D, false>(qf[i][m], shared, qs + mine * D, 16 * m, i);
        }
    }

    for (int at = 0; at < seen; at += KEYS) {
        int stage = at / KEYS % 2 * KEYS * D, next = at + KEYS;
        mcu_copy_wait<0>();
        __syncthreads(); /* this tile is here, and the other stage is no longer read */
        if (next < seen) {
            T *kn = shared + ks + KEYS * D - stage, *vn = shared + vs + KEYS * D - stage;
            mcu_tile_load<T, D, KEYS>(kn, keys + next * p.k.row, p.k.row, p.S - next);
            mcu_tile_load<T, D, KEYS>(vn, values + next * p.v.row, p.v.row, p.S - next);
            mcu_copy_commit();
        }
        for (int sub = 0; sub < KEYS; sub += SUB) {
            if (at + sub >= most) continue;
            float s[M][2 * N][4], dp[M][2 * N][4];
            mcu_tile_zero(s);
            if constexpr (KEPT)
                mcu_tile_dot<T, D, M, N>(s, qf, shared, ks + stage + sub * D);
            else
                mcu_tile_dot<T, D, M, N>(s, shared, qs + mine * D, ks + stage + sub * D);
            if (at + sub + SUB > fewest || at + sub + SUB > p.S) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int limit = p.causal ? fewest + 16 * m + 8 * half + g : p.S;
                        limit = (limit < p.S ? limit : p.S) - at - sub - 2 * pair;
#pragma unroll
                        for (int n = 0; n < 2 * N; n++) {
                            if (8 * n >= limit) s[m][n][2 * half] = -INFINITY;
                            if (8 * n + 1 >= limit) s[m][n][2 * half + 1] = -INFINITY;
                        }
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float delta = fact[m][i / 2].y;
#pragma unroll
                    for (int n = 0; n < 2 * N; n++) dp[m][n][i] = -delta;
                }
            }
            mcu_tile_dot<T, D, M, N>(dp, shared, ds + mine * D, vs + stage + sub * D);
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int n = 0; n < 2 * N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        s[m][n][i] = dp[m][n][i] *
                                     mcu_exp2(fmaf(s[m][n][i], p.scale_log2, -fact[m][i / 2].x));
                }
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                uint32_t w[M][4];
                mcu_tile_pack<T>(w, s, k);
                mcu_tile_weigh<T, D>(dq, w, shared, ks + stage + sub * D, 16 * k);
            }
        }
    }

    mcu_copy_wait<0>();
    __syncthreads(); /* where no key is seen, the queries' rows may still be on the way */
    float scale[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) scale[m][0] = scale[m][1] = p.scale;
    mcu_tile_store<T, D, M>(p.dq.at(b, top, h), p.dq.row, p.T_ - top, dq, scale, shared + qs, mine);
}

template <typename T, int D>
mc_status backward(mci_exec *exec, const mci_view *const *t, const mcu_attention_sizes *z,
                   double scale) {
    backward_args<T> p = {};
    p.dq = mcu_heads_of<T>(t[0]);
    p.dk = mcu_heads_of<T>(t[1]);
    p.dv = mcu_heads_of<T>(t[2]);
    p.dout = mcu_heads_of<T>(t[3]);
    p.q = mcu_heads_of<T>(t[4]);
    p.k = mcu_heads_of<T>(t[5]);
    p.v = mcu_heads_of<T>(t[6]);
    p.out = mcu_heads_of<T>(t[7]);
    p.lse = mcu_stats_of(t[8]);
    p.padded = (int)((z->T + FACT_ROWS - 1) / FACT_ROWS * FACT_ROWS);
    p.T_ = (int)z->T;
    p.S = (int)z->S;
    p.H = (int)z->H;
    p.group = (int)z->group;
    p.causal = z->causal;
    p.scale = (float)scale;
    p.scale_log2 = (float)(scale * 1.4426950408889634);
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    mc_status st = MC_OK;
    if (z->T > 0 && z->H > 0) {
        size_t bytes = (size_t)(z->B * z->H * p.padded) * sizeof(float2);
        p.facts = (float2 *)exec->scratch(exec, bytes);
        if (!p.facts) return mcu_no_scratch("attention_backward", bytes);
        dim3 grid((unsigned)((int64_t)p.padded * D / 4096), (unsigned)z->H, (unsigned)z->B);
        MCU_LAUNCH((facts_kernel<T, D>), grid, MCU_ATTENTION_THREADS, 0, exec, p);
    }
    if (z->S > 0) {
        typedef keys_plan<D> plan;
        dim3 grid((unsigned)((z->S + plan::KEYS - 1) / plan::KEYS), (unsigned)z->Hkv,
                  (unsigned)z->B);
        st = mcu_check("attention_backward",
                       cudaFuncSetAttribute((const void *)keys_kernel<T, D>, most, plan::BYTES));
        if (st != MC_OK) return st;
        MCU_LAUNCH((keys_kernel<T, D>), grid, MCU_ATTENTION_THREADS, plan::BYTES, exec, p);
    }
    if (z->T > 0 && z->H > 0) {
        typedef queries_plan<D> plan;
        dim3 grid((unsigned)((z->T + plan::QUERIES - 1) / plan::QUERIES), (unsigned)z->H,
                  (unsigned)z->B);
        st = mcu_check("attention_backward",
                       cudaFuncSetAttribute((const void *)queries_kernel<T, D>, most, plan::BYTES));
        if (st != MC_OK) return st;
        MCU_LAUNCH((queries_kernel<T, D>), grid, MCU_ATTENTION_THREADS, plan::BYTES, exec, p);
    }
    return mcu_launched("attention_backward");
}

}  // namespace

mc_status mcu_attention_backward_sm80(mci_exec *exec, const mci_view *const *t,
                                      const mcu_attention_sizes *z, double scale) {
    if (t[4]->dtype == MC_FLOAT16)
        return (z->D == 64 ? backward<mcu_half, 64> : backward<mcu_half, 128>)(exec, t, z, scale);
    return (z->D == 64 ? backward<mcu_bf16, 64> : backward<mcu_bf16, 128>)(exec, t, z, scale);
}
