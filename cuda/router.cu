/* router.cu: the choice of experts and its backward.
 *
 *     scores = softmax or sigmoid of logits [T, E]; key = scores (logits for softmax after the
 *     choice) + bias; the k best keys, ties to the lowest id, NaN last; with groups only experts of
 *     the group_topk groups whose best k / group_topk keys have the largest sums
 *
 * One warp per token. Up to 512 experts, k and groups up to 32 (route_fast): expert 32 v + lane in
 * register v of its lane, choice j in lane j; keys as integers of the same order, so that a round
 * of the choice is a maximum over the warp, then a minimum over the ids that have it. All other
 * sizes and float64 (route_any): round after round through memory, each for the best entry that
 * ranks after the one before. 128 threads: four tokens a block, free of barriers.
 */
#include "moe.cuh"

namespace {

enum { ROUTE_THREADS = 128, ROUTE_WARPS = ROUTE_THREADS / 32, ROUTE_WAVES = 16 };
enum { ROUTE_SCRATCH = 64 << 20 }; /* bytes, about: fewer blocks when a warp needs much */

struct route {
    moe_matrix weights, ids, scores, logits, bias;
    void *scratch; /* route_any: k + groups reals per warp */
    int64_t tokens, experts, k, groups, group_topk;
    int score_function;
    double scale;
};

struct route_back {
    moe_matrix dlogits, dweights, dscores, scores, ids, logits;
    void *scratch; /* route_any_backward: k reals per warp */
    int64_t tokens, experts, k;
    int score_function;
    double scale;
    mcu_guard guard;
};

/* -- shared by both ways
 * ---------------------------------------------------------------------------- */

template <typename R>
__device__ inline R sigmoid_of(R x) {
    R e = moe_exp(x < 0 ? x : -x);
    return (x < 0 ? e : (R)1) / (1 + e);
}

/* Over the warp; every lane gets the result. */
__device__ inline unsigned warp_max(unsigned x) {
#ifdef MCU_EMULATED
    return mcu_warp_max(x);
#else
    return __reduce_max_sync(0xFFFFFFFFU, x);
#endif
}
__device__ inline unsigned warp_min(unsigned x) {
    return ~warp_max(~x);
}
template <typename R>
__device__ inline R warp_sum(R x) {
    return mcu_warp_sum(x);
}

/* y = softmax over the lanes that take part, 0 in the others. */
template <typename R>
__device__ inline R lane_softmax(R x, bool part) {
    R shift = moe_shift(mcu_warp_max(part ? moe_number(x) : (R)-INFINITY));
    R y = part ? moe_exp(x - shift) : (R)0, sum = warp_sum(y);
    return part ? y / sum : (R)0;
}

/* The id of choice j of token t, or -1, blamed, when it is no expert. */
template <typename P>
__device__ inline int64_t chosen_id(const P &p, int64_t t, int64_t j) {
    int64_t id = moe_row<int32_t>(p.ids, t)[j * p.ids.step];
    if (id >= 0 && id < p.experts) return id;
    mcu_blame(p.guard, t, j, id, p.experts - 1);
    return -1;
}

/* -- up to 512 experts: all in registers
 * ------------------------------------------------------------ */

/* Integers above 0 in the order of the floats; -0 as 0; NaN lowest. 0 is left for "none". */
__device__ inline unsigned order_of(float x) {
    unsigned u = mci_f32_bits(x + 0.0F);
    return x == x ? u & 0x80000000U ? ~u : u | 0x80000000U : 1U;
}
__device__ inline float value_of(unsigned order) {
    return mci_bits_f32(order & 0x80000000U ? order & 0x7FFFFFFFU : ~order);
}

/* Sets the keys of experts outside the best groups to 0. Lane g holds the key of group g. */
template <int V>
__device__ inline void keep_groups(unsigned (&key)[V], const route &p, int lane) {
    int groups = (int)p.groups, size = (int)p.experts / groups, each = (int)(p.k / p.group_topk);
    unsigned own = 0, chosen = 0;
    for (int g = 0; g < groups; g++) {
        unsigned last = 0xFFFFFFFFU, last_id = 0;
        float sum = 0;
        for (int i = 0; i < each; i++) {
            unsigned best = 0, at = 0;
#pragma unroll
            for (int v = 0; v < V; v++) {
                unsigned e = (unsigned)(v * 32 + lane);
                bool after = key[v] < last || (key[v] == last && e > last_id);
                if ((int)e / size == g && after && key[v] > best) best = key[v], at = e;
            }
            last = warp_max(best);
            last_id = warp_min(best == last ? at : 0xFFFFFFFFU);
            sum += value_of(last);
        }
        if (lane == g) own = order_of(sum);
    }
    for (int i = 0; i < (int)p.group_topk; i++) {
        unsigned most = warp_max(own);
        unsigned g = warp_min(own == most ? (unsigned)lane : 32U);
        chosen |= 1U << g;
        if (lane == (int)g) own = 0;
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        int g = (v * 32 + lane) / size;
        if (g >= 32 || !(chosen >> g & 1U)) key[v] = 0;
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(ROUTE_THREADS, 3) route_fast_kernel(route p) {
    int lane = (int)threadIdx.x % 32, E = (int)p.experts, k = (int)p.k;
    int64_t first = (int64_t)blockIdx.x * ROUTE_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < p.tokens; t += (int64_t)gridDim.x * ROUTE_WARPS) {
        const T *x = moe_row<T>(p.logits, t);
        float base[V]; /* logits, then what is weighed: scores or logits */
        unsigned key[V];
        float most = -INFINITY, sum = 0;
#pragma unroll
        for (int v = 0; v < V; v++) {
            int e = v * 32 + lane;
            base[v] = e < E ? mcu_up(x[e * p.logits.step]) : -INFINITY;
            most = moe_number(base[v]) > most ? base[v] : most;
        }
        if (p.score_function != MC_SCORE_SIGMOID) {
            most = moe_shift(mcu_warp_max(most));
#pragma unroll
            for (int v = 0; v < V; v++) sum += v * 32 + lane < E ? expf(base[v] - most) : 0;
            sum = warp_sum(sum);
        }
        float *scores = moe_row<float>(p.scores, t);
#pragma unroll
        for (int v = 0; v < V; v++) {
            int e = v * 32 + lane;
            key[v] = 0;
            if (e >= E) continue;
            float s = p.score_function == MC_SCORE_SIGMOID ? sigmoid_of(base[v])
                                                           : expf(base[v] - most) / sum;
            scores[e * p.scores.step] = s;
            if (p.score_function != MC_SCORE_SOFTMAX_POST) base[v] = s;
            float b = p.bias.data ? moe_load<float>(p.bias.data, p.bias.dtype, e * p.bias.row) : 0;
            key[v] = order_of(base[v] + b);
        }
        if (p.groups > 1) keep_groups<V>(key, p, lane);

        float weight = 0; /* of choice `lane` */
        unsigned id = 0;
        for (int j = 0; j < k; j++) {
            unsigned best = 0, at = 0;
#pragma unroll
            for (int v = 0; v < V; v++)
                if (key[v] > best) best = key[v], at = (unsigned)(v * 32 + lane);
            unsigned top = warp_max(best);
            unsigned e = warp_min(best == top ? at : 0xFFFFFFFFU);
            float held = 0;
#pragma unroll
            for (int v = 0; v < V; v++) {
                bool mine = e == (unsigned)(v * 32 + lane);
                held = mine ? base[v] : held;
                key[v] = mine ? 0 : key[v];
            }
            held = __shfl_sync(0xFFFFFFFFU, held, (int)(e % 32));
            if (lane == j) weight = held, id = e;
        }
        bool part = lane < k;
        if (p.score_function == MC_SCORE_SOFTMAX_POST) weight = lane_softmax(weight, part);
        if (p.score_function == MC_SCORE_SIGMOID && k > 1)
            weight /= warp_sum(part ? weight : 0) + 1e-20F;
        if (part) {
            moe_row<float>(p.weights, t)[lane * p.weights.step] = weight * (float)p.scale;
            moe_row<int32_t>(p.ids, t)[lane * p.ids.step] = (int32_t)id;
        }
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(ROUTE_THREADS, 3) route_fast_backward_kernel(route_back p) {
    int lane = (int)threadIdx.x % 32, E = (int)p.experts, k = (int)p.k;
    int64_t first = (int64_t)blockIdx.x * ROUTE_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < p.tokens; t += (int64_t)gridDim.x * ROUTE_WARPS) {
        const float *scores = moe_row<float>(p.scores, t);
        int id = lane < k ? (int)chosen_id(p, t, lane) : -1;
        float g = 0, c = 0; /* of choice `lane`: scale * dweight, and what reaches its expert */
        if (p.dweights.data && id >= 0)
            g = moe_row<float>(p.dweights, t)[lane * p.dweights.step] * (float)p.scale;
        if (p.dweights.data && p.score_function == MC_SCORE_SOFTMAX_PRE) c = g;
        if (p.dweights.data && p.score_function == MC_SCORE_SIGMOID) {
            float sum = 1, dot = 0;
            if (k > 1) {
                float q = id >= 0 ? scores[id * p.scores.step] : 0;
                sum = warp_sum(q) + 1e-20F;
                dot = warp_sum(q * g) / sum;
            }
            c = (g - dot) / sum;
        }
        if (p.dweights.data && p.score_function == MC_SCORE_SOFTMAX_POST) {
            float x = id >= 0 ? mcu_up(moe_row<T>(p.logits, t)[id * p.logits.step]) : 0;
            float q = lane_softmax(x, id >= 0);
            c = q * (g - warp_sum(q * g));
        }
        float s[V], ds[V], add[V], dot = 0;
#pragma unroll
        for (int v = 0; v < V; v++) {
            int e = v * 32 + lane;
            s[v] = e < E ? scores[e * p.scores.step] : 0;
            ds[v] = p.dscores.data && e < E ? moe_row<float>(p.dscores, t)[e * p.dscores.step] : 0;
            add[v] = 0;
        }
        for (int j = 0; p.dweights.data && j < k; j++) {
            int to = __shfl_sync(0xFFFFFFFFU, id, j);
            float x = __shfl_sync(0xFFFFFFFFU, c, j);
#pragma unroll
            for (int v = 0; v < V; v++) add[v] += to == v * 32 + lane ? x : 0;
        }
#pragma unroll
        for (int v = 0; v < V; v++) {
            if (p.score_function != MC_SCORE_SOFTMAX_POST) ds[v] += add[v], add[v] = 0;
            dot += v * 32 + lane < E ? s[v] * ds[v] : 0;
        }
        if (p.score_function != MC_SCORE_SIGMOID) dot = warp_sum(dot);
        T *dx = moe_row<T>(p.dlogits, t);
#pragma unroll
        for (int v = 0; v < V; v++) {
            int e = v * 32 + lane;
            float dz = p.score_function == MC_SCORE_SIGMOID ? ds[v] * s[v] * (1 - s[v])
                                                            : s[v] * (ds[v] - dot) + add[v];
            if (e < E) dx[e * p.dlogits.step] = mcu_down<T>(dz);
        }
    }
}

/* -- any size
 * --------------------------------------------------------------------------------------- */

/* 1 when (a, i) ranks before (b, j): larger, NaN last, then by id. */
template <typename R>
__device__ inline bool ranks_before(R a, int64_t i, R b, int64_t j) {
    if (a > b) return true;
    if (b > a) return false;
    if ((a == a) != (b == b)) return a == a;
    return i < j;
}

template <typename R>
struct ranked {
    R key;
    int64_t id; /* -1: none */
};

/* Of the entries from .. to - 1 that take part and rank after `last` (or all), the best. */
template <typename R, typename F>
__device__ inline ranked<R> next_best(ranked<R> last, int64_t from, int64_t to, const F &entry) {
    ranked<R> best = {0, -1};
    for (int64_t e = from + threadIdx.x % 32; e < to; e += 32) {
        R key;
        if (!entry(e, &key)) continue;
        if (last.id >= 0 && !ranks_before(last.key, last.id, key, e)) continue;
        if (best.id < 0 || ranks_before(key, e, best.key, best.id)) best = {key, e};
    }
    for (int d = 16; d > 0; d /= 2) {
        R key = __shfl_xor_sync(0xFFFFFFFFU, best.key, d);
        int64_t id = __shfl_xor_sync(0xFFFFFFFFU, best.id, d);
        if (id >= 0 && (best.id < 0 || ranks_before(key, id, best.key, best.id))) best = {key, id};
    }
    return best;
}

template <typename R>
struct group_entry { /* group g by the sum of its best keys */
    const R *sums;
    __device__ bool operator()(int64_t g, R *key) const {
        *key = sums[g];
        return true;
    }
};

template <typename T>
struct expert_entry { /* expert e by its key, if its group takes part */
    typedef mcu_real_t<T> R;
    const route *p;
    int64_t token, size;
    const R *sums;
    ranked<R> last_group; /* the worst of the groups that take part; id -1: all do */
    __device__ R base(int64_t e) const {
        if (p->score_function == MC_SCORE_SOFTMAX_POST)
            return mcu_up(moe_row<T>(p->logits, token)[e * p->logits.step]);
        return moe_row<R>(p->scores, token)[e * p->scores.step];
    }
    __device__ bool operator()(int64_t e, R *key) const {
        if (last_group.id >= 0) {
            int64_t g = e / size;
            if (ranks_before(last_group.key, last_group.id, sums[g], g)) return false;
        }
        *key = base(e);
        if (p->bias.data) *key += moe_load<R>(p->bias.data, p->bias.dtype, e * p->bias.row);
        return true;
    }
};

/* The logits' maximum (as moe_shift gives it) and the sum of exp(logit - shift). */
template <typename T>
__device__ void shift_and_sum(const T *x, int64_t step, int64_t n, mcu_real_t<T> *shift,
                              mcu_real_t<T> *sum) {
    typedef mcu_real_t<T> R;
    R most = -INFINITY, total = 0;
    for (int64_t e = threadIdx.x % 32; e < n; e += 32) {
        R y = moe_number(mcu_up(x[e * step]));
        most = y > most ? y : most;
    }
    *shift = moe_shift(mcu_warp_max(most));
    for (int64_t e = threadIdx.x % 32; e < n; e += 32)
        total += moe_exp(mcu_up(x[e * step]) - *shift);
    *sum = warp_sum(total);
}

template <typename T>
__global__ void __launch_bounds__(ROUTE_THREADS) route_any_kernel(route p) {
    typedef mcu_real_t<T> R;
    int lane = (int)threadIdx.x % 32;
    int64_t warp = (int64_t)blockIdx.x * ROUTE_WARPS + threadIdx.x / 32;
    R *weights = static_cast<R *>(p.scratch) + warp * (p.k + p.groups), *sums = weights + p.k;
    const ranked<R> none = {0, -1};
    for (int64_t t = warp; t < p.tokens; t += (int64_t)gridDim.x * ROUTE_WARPS) {
        const T *x = moe_row<T>(p.logits, t);
        R *scores = moe_row<R>(p.scores, t), shift = 0, sum = 1;
        int post = p.score_function == MC_SCORE_SOFTMAX_POST;
        if (p.score_function != MC_SCORE_SIGMOID)
            shift_and_sum(x, p.logits.step, p.experts, &shift, &sum);
        /* before the choice reads them; after it where it reads logits, which may lie here too */
        for (int64_t e = lane; !post && e < p.experts; e += 32) {
            R y = mcu_up(x[e * p.logits.step]);
            scores[e * p.scores.step] =
                p.score_function == MC_SCORE_SIGMOID ? sigmoid_of(y) : moe_exp(y - shift) / sum;
        }
        __syncwarp();

        expert_entry<T> experts = {&p, t, p.experts / p.groups, sums, none};
        if (p.groups > 1) {
            for (int64_t g = 0; g < p.groups; g++) {
                ranked<R> best = none;
                R total = 0;
                for (int64_t i = 0; i < p.k / p.group_topk; i++) {
                    best = next_best(best, g * experts.size, (g + 1) * experts.size, experts);
                    total += best.key;
                }
                if (lane == 0) sums[g] = total;
            }
            __syncwarp();
            ranked<R> worst = none;
            for (int64_t i = 0; i < p.group_topk; i++)
                worst = next_best(worst, 0, p.groups, group_entry<R>{sums});
            experts.last_group = worst;
        }
        ranked<R> best = none;
        for (int64_t j = 0; j < p.k; j++) {
            best = next_best(best, 0, p.experts, experts);
            if (lane == 0) {
                weights[j] = experts.base(best.id);
                moe_row<int32_t>(p.ids, t)[j * p.ids.step] = (int32_t)best.id;
            }
            __syncwarp();
        }
        __syncwarp();

        for (int64_t e = lane; post && e < p.experts; e += 32)
            scores[e * p.scores.step] = moe_exp(mcu_up(x[e * p.logits.step]) - shift) / sum;
        R less = 0, norm = 1;
        if (post) shift_and_sum<R>(weights, 1, p.k, &less, &norm);
        if (p.score_function == MC_SCORE_SIGMOID && p.k > 1) {
            norm = 0;
            for (int64_t j = lane; j < p.k; j += 32) norm += weights[j];
            norm = warp_sum(norm) + (R)1e-20;
        }
        __syncwarp();
        for (int64_t j = lane; j < p.k; j += 32) {
            R w = post ? moe_exp(weights[j] - less) : weights[j];
            moe_row<R>(p.weights, t)[j * p.weights.step] = w / norm * (R)p.scale;
        }
        __syncwarp();
    }
}

template <typename T>
__global__ void __launch_bounds__(ROUTE_THREADS) route_any_backward_kernel(route_back p) {
    typedef mcu_real_t<T> R;
    int lane = (int)threadIdx.x % 32;
    int64_t warp = (int64_t)blockIdx.x * ROUTE_WARPS + threadIdx.x / 32;
    R *c = static_cast<R *>(p.scratch) + warp * p.k; /* what reaches the expert of choice j */
    for (int64_t t = warp; t < p.tokens; t += (int64_t)gridDim.x * ROUTE_WARPS) {
        const R *scores = moe_row<R>(p.scores, t);
        const T *x = moe_row<T>(p.logits, t);
        const int32_t *ids = moe_row<int32_t>(p.ids, t);
        int post = p.score_function == MC_SCORE_SOFTMAX_POST;
        int shared = post || (p.score_function == MC_SCORE_SIGMOID && p.k > 1);
        R most = -INFINITY, sum = 0, dot = 0;
        for (int64_t j = lane; j < p.k; j += 32) {
            int64_t id = chosen_id(p, t, j);
            if (!post || id < 0) continue;
            R y = moe_number(mcu_up(x[id * p.logits.step]));
            most = y > most ? y : most;
        }
        R shift = moe_shift(mcu_warp_max(most));
        for (int64_t j = lane; p.dweights.data && j < p.k; j += 32) {
            int64_t id = ids[j * p.ids.step];
            c[j] = 0;
            if (id < 0 || id >= p.experts) continue;
            R g = moe_row<R>(p.dweights, t)[j * p.dweights.step] * (R)p.scale;
            R q =
                post ? moe_exp(mcu_up(x[id * p.logits.step]) - shift) : scores[id * p.scores.step];
            c[j] = g;
            sum += q;
            dot += q * g;
        }
        sum = warp_sum(sum) + (post ? 0 : (R)1e-20);
        dot = warp_sum(dot) / sum;
        for (int64_t j = lane; p.dweights.data && shared && j < p.k; j += 32) {
            int64_t id = ids[j * p.ids.step];
            if (id < 0 || id >= p.experts) continue;
            R q = post ? moe_exp(mcu_up(x[id * p.logits.step]) - shift) : (R)1;
            c[j] = q / sum * (c[j] - dot);
        }
        __syncwarp();
        /* the second pass writes; an output that is an input is read at the written element only */
        R along = 0;
        for (int pass = p.score_function == MC_SCORE_SIGMOID; pass < 2; pass++) {
            for (int64_t e = lane; e < p.experts; e += 32) {
                R s = scores[e * p.scores.step], ds = 0, add = 0;
                if (p.dscores.data) ds = moe_row<R>(p.dscores, t)[e * p.dscores.step];
                for (int64_t j = 0; p.dweights.data && j < p.k; j++)
                    if (ids[j * p.ids.step] == e) add += c[j];
                if (!post) ds += add, add = 0;
                R dz = p.score_function == MC_SCORE_SIGMOID ? ds * s * (1 - s)
                                                            : s * (ds - along) + add;
                if (pass == 0)
                    along += s * ds;
                else
                    moe_row<T>(p.dlogits, t)[e * p.dlogits.step] = mcu_down<T>(dz);
            }
            if (pass == 0) along = warp_sum(along);
        }
        __syncwarp();
    }
}

/* -- launches
 * --------------------------------------------------------------------------------------- */

bool fits_registers(int dtype, int64_t experts, int64_t k, int64_t groups) {
    return dtype != MC_FLOAT64 && experts <= 512 && k <= 32 && groups <= 32;
}

/* Blocks for the kernels of any size, and scratch for their warps: `reals` per warp. */
mc_status any_blocks(mci_exec *exec, const char *op, int64_t tokens, int64_t reals, int dtype,
                     unsigned *blocks, void **scratch) {
    int64_t bytes = reals * ROUTE_WARPS * (dtype == MC_FLOAT64 ? 8 : 4);
    *blocks = mcu_blocks(exec, tokens, ROUTE_WARPS, ROUTE_WAVES);
    while (*blocks > 1 && *blocks * bytes > ROUTE_SCRATCH) *blocks = (*blocks + 1) / 2;
    *scratch = exec->scratch(exec, (size_t)(*blocks * bytes));
    return *scratch ? MC_OK : mcu_no_scratch(op, (size_t)(*blocks * bytes));
}

template <typename T>
void route_fast(mci_exec *exec, const route &p) {
    unsigned blocks = mcu_blocks(exec, p.tokens, ROUTE_WARPS, ROUTE_WAVES);
    if (p.experts <= 32)
        MCU_LAUNCH((route_fast_kernel<T, 1>), blocks, ROUTE_THREADS, 0, exec, p);
    else if (p.experts <= 64)
        MCU_LAUNCH((route_fast_kernel<T, 2>), blocks, ROUTE_THREADS, 0, exec, p);
    else if (p.experts <= 128)
        MCU_LAUNCH((route_fast_kernel<T, 4>), blocks, ROUTE_THREADS, 0, exec, p);
    else if (p.experts <= 256)
        MCU_LAUNCH((route_fast_kernel<T, 8>), blocks, ROUTE_THREADS, 0, exec, p);
    else
        MCU_LAUNCH((route_fast_kernel<T, 16>), blocks, ROUTE_THREADS, 0, exec, p);
}
template <>
void route_fast<double>(mci_exec *, const route &) {}

template <typename T>
void route_fast_backward(mci_exec *exec, const route_back &p) {
    unsigned blocks = mcu_blocks(exec, p.tokens, ROUTE_WARPS, ROUTE_WAVES);
    if (p.experts <= 32)
        MCU_LAUNCH((route_fast_backward_kernel<T, 1>), blocks, ROUTE_THREADS, 0, exec, p);
    else if (p.experts <= 64)
        MCU_LAUNCH((route_fast_backward_kernel<T, 2>), blocks, ROUTE_THREADS, 0, exec, p);
    else if (p.experts <= 128)
        MCU_LAUNCH((route_fast_backward_kernel<T, 4>), blocks, ROUTE_THREADS, 0, exec, p);
    else if (p.experts <= 256)
        MCU_LAUNCH((route_fast_backward_kernel<T, 8>), blocks, ROUTE_THREADS, 0, exec, p);
    else
        MCU_LAUNCH((route_fast_backward_kernel<T, 16>), blocks, ROUTE_THREADS, 0, exec, p);
}
template <>
void route_fast_backward<double>(mci_exec *, const route_back &) {}

} /* namespace */

mc_status mcu_router_topk(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_router_params *params = static_cast<const mci_router_params *>(params_);
    route p = {};
    p.weights = moe_matrix_of(t[0]);
    p.ids = moe_matrix_of(t[1]);
    p.scores = moe_matrix_of(t[2]);
    p.logits = moe_matrix_of(t[3]);
    p.bias = moe_matrix_of(t[4]);
    p.tokens = t[3]->shape[0];
    p.experts = t[3]->shape[1];
    p.k = params->k;
    p.groups = params->groups;
    p.group_topk = params->group_topk;
    p.score_function = params->score_function;
    p.scale = params->scale;
    if (p.tokens == 0) return MC_OK;
    int dtype = t[3]->dtype, fast = fits_registers(dtype, p.experts, p.k, p.groups);
    unsigned blocks = 0;
    if (!fast) {
        mc_status status =
            any_blocks(exec, "router_topk", p.tokens, p.k + p.groups, dtype, &blocks, &p.scratch);
        if (status != MC_OK) return status;
    }
    return mcu_for_float(dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if (fast)
            route_fast<T>(exec, p);
        else
            MCU_LAUNCH((route_any_kernel<T>), blocks, ROUTE_THREADS, 0, exec, p);
        return mcu_launched("router_topk");
    });
}

mc_status mcu_router_topk_backward(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_router_params *params = static_cast<const mci_router_params *>(params_);
    route_back p = {};
    p.dlogits = moe_matrix_of(t[0]);
    p.dweights = moe_matrix_of(t[1]);
    p.dscores = moe_matrix_of(t[2]);
    p.scores = moe_matrix_of(t[3]);
    p.ids = moe_matrix_of(t[5]);
    p.logits = moe_matrix_of(t[6]);
    p.tokens = t[6]->shape[0];
    p.experts = t[6]->shape[1];
    p.k = params->k;
    p.score_function = params->score_function;
    p.scale = params->scale;
    p.guard = mcu_guard_of(exec,
                           "router_topk_backward: ids[%lld, %lld] is %lld, legal are 0 to %lld "
                           "(0-based)");
    if (p.tokens == 0) return MC_OK;
    int dtype = t[6]->dtype, fast = fits_registers(dtype, p.experts, p.k, 1);
    unsigned blocks = 0;
    if (!fast) {
        mc_status status =
            any_blocks(exec, "router_topk_backward", p.tokens, p.k, dtype, &blocks, &p.scratch);
        if (status != MC_OK) return status;
    }
    return mcu_for_float(dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if (fast)
            route_fast_backward<T>(exec, p);
        else
            MCU_LAUNCH((route_any_backward_kernel<T>), blocks, ROUTE_THREADS, 0, exec, p);
        return mcu_launched("router_topk_backward");
    });
}
