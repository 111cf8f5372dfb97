/* grouped.cu: the grouped linear passes: which way each takes, the plan of the splits, tail rows,
 * and the bias gradient. Definitions: core/cpu/grouped.c.
 *
 * Ways, the first that can: cuBLASLt per group (splits that the host knows; grouped_lt.cu), tensor
 * cores (grouped_sm80.cu), plain (grouped_plain.cu). The latter two follow a plan on the device,
 * made from the splits by one block of the prologue kernel: they are read by the device alone.
 */
#include "grouped.cuh"

#include <cstdio>

#include "gemm.cuh"

/* -- the plan ---------------------------------------------------------------------------------- */

enum { PLAN_THREADS = 256, PIECE = 448 }; /* a piece and its arguments fit the 4 KB of a launch */

__device__ inline int64_t add_saturated(int64_t a, int64_t b) { /* both 0 or more */
    return a > INT64_MAX - b ? INT64_MAX : a + b;
}

/* x of this thread and of all before it; *total: of the block. `space`: PLAN_THREADS / 32. */
__device__ inline int64_t block_scan(int64_t x, int64_t *total, int64_t *space) {
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    for (int d = 1; d < 32; d *= 2) {
        int64_t y = __shfl_up_sync(0xFFFFFFFFU, x, d);
        if (lane >= d) x = add_saturated(x, y);
    }
    if (lane == 31) space[warp] = x;
    __syncthreads();
    int64_t before = 0, all = 0;
    for (int i = 0; i < PLAN_THREADS / 32; i++) {
        if (i == warp) before = all;
        all = add_saturated(all, space[i]);
    }
    __syncthreads();
    *total = all;
    return add_saturated(before, x);
}

/* One block: thread i takes splits i, i + 256, ... Splits are capped at rows + 1 in the running
 * sum, which is then exact as far as it is used; `asked` is the true sum, for the message. */
template <typename I>
__global__ void __launch_bounds__(PLAN_THREADS)
    grouped_plan_kernel(const I *splits, int64_t step, int64_t groups, int64_t rows,
                        mcu_grouped_plan plan, mcu_guard negative, mcu_guard excess) {
    __shared__ int64_t space[32], length[MCU_GROUPED_ORDERED];
    int64_t sum = 0, tiles = 0, asked = 0, bad = groups, total;
    for (int64_t base = 0; base < groups; base += PLAN_THREADS) {
        int64_t g = base + (int)threadIdx.x, m = g < groups ? (int64_t)splits[g * step] : 0;
        if (m < 0) {
            bad = g < bad ? g : bad;
            m = 0;
        }
        asked = add_saturated(asked, m);
        m = m <= rows ? m : rows + 1;
        int64_t end = add_saturated(sum, block_scan(m, &total, space)), start = end - m;
        sum = add_saturated(sum, total);
        start = start < rows ? start : rows;
        end = end < rows ? end : rows;
        int64_t own = (end - start + MCU_GROUPED_ROWS - 1) / MCU_GROUPED_ROWS;
        int64_t before = tiles + block_scan(own, &total, space) - own;
        tiles += total;
        if (g < groups) {
            plan.start[g] = start;
            plan.tiles[g] = before;
            if (plan.order) length[g] = end - start;
        }
    }
    bad = -mcu_block_max<int64_t>(-bad, space);
    block_scan(asked, &total, space);
    if (plan.order)
        for (int g = (int)threadIdx.x; g < groups; g += PLAN_THREADS) {
            int before = 0;
            for (int i = 0; i < groups; i++)
                before += length[i] > length[g] || (length[i] == length[g] && i < g);
            plan.order[before] = g;
        }
    if (threadIdx.x != 0) return;
    plan.start[groups] = sum < rows ? sum : rows;
    plan.tiles[groups] = tiles;
    *plan.next = 0;
    if (bad < groups)
        mcu_blame(negative, bad, (int64_t)splits[bad * step]);
    else if (total > rows)
        mcu_blame(excess, total, rows);
}

/* Splits of the host travel in the arguments of launches: those are copied at the call, also into a
 * graph that is recorded. */
typedef struct splits_piece {
    int64_t m[PIECE];
} splits_piece;
__global__ void __launch_bounds__(PIECE)
    grouped_place_kernel(const splits_piece piece, int64_t *to, int64_t count) {
    if (threadIdx.x < count) to[threadIdx.x] = piece.m[threadIdx.x];
}

/* Per pass, in the order of ops.def: the operand that has the rows. */
typedef struct pass_words {
    const char *op, *negative, *excess;
} pass_words;
#define WORDS(op, operand)                                          \
    {                                                               \
#op, #op ": m_splits[%lld] is %lld, must be 0 or more",     \
            #op ": m_splits sum to %lld, " operand " has %lld rows" \
    }
static const pass_words words[] = {WORDS(grouped_linear, "x"), WORDS(grouped_linear_dgrad, "dy"),
                                   WORDS(grouped_linear_wgrad, "dy"),
                                   WORDS(grouped_linear_bias_grad, "dy")};

/* Fills job->plan, and puts the kernels that make it into the stream. *extra: `bytes` more of the
 * op's one piece of scratch. */
static mc_status make_plan(mci_exec *exec, const pass_words *say, mcu_grouped_job *j,
                           const mci_view *splits, const int64_t *host_splits, size_t bytes,
                           char **extra) {
    int64_t groups = j->groups;
    int ordered = j->ragged_k && groups <= MCU_GROUPED_ORDERED;
    size_t entries =
        (size_t)(2 * (groups + 1) + 1 + (splits ? 0 : groups) + (ordered ? groups : 0));
    entries = (entries + 7) / 8 * 8;
    char *scratch = (char *)exec->scratch(exec, entries * sizeof(int64_t) + bytes);
    if (!scratch) return mcu_no_scratch(say->op, entries * sizeof(int64_t) + bytes);
    if (extra) *extra = scratch + entries * sizeof(int64_t);
    j->plan.start = (int64_t *)scratch;
    j->plan.tiles = j->plan.start + groups + 1;
    j->plan.next = (int *)(j->plan.tiles + groups + 1);
    j->plan.order = ordered ? (int *)(j->plan.tiles + groups + 2 + (splits ? 0 : groups)) : NULL;
    mcu_guard negative = mcu_guard_of(exec, say->negative);
    mcu_guard excess = mcu_guard_of(exec, say->excess);
    if (splits && splits->dtype == MC_INT32) {
        MCU_LAUNCH((grouped_plan_kernel<int32_t>), 1, PLAN_THREADS, 0, exec,
                   (const int32_t *)splits->data, splits->stride[0], groups, j->rows, j->plan,
                   negative, excess);
        return mcu_launched(say->op);
    }
    const int64_t *from = splits ? (const int64_t *)splits->data : NULL;
    if (!splits) {
        int64_t *placed = j->plan.tiles + groups + 2;
        for (int64_t base = 0; base < groups; base += PIECE) {
            splits_piece piece;
            int64_t count = groups - base < PIECE ? groups - base : (int64_t)PIECE;
            for (int64_t i = 0; i < PIECE; i++) piece.m[i] = i < count ? host_splits[base + i] : 0;
            MCU_LAUNCH((grouped_place_kernel), 1, PIECE, 0, exec, piece, placed + base, count);
        }
        from = placed;
    }
    MCU_LAUNCH((grouped_plan_kernel<int64_t>), 1, PLAN_THREADS, 0, exec, from,
               splits ? splits->stride[0] : (int64_t)1, groups, j->rows, j->plan, negative, excess);
    return mcu_launched(say->op);
}

/* -- rows beyond the splits' sum --------------------------------------------------------------- */

/* U: as many bytes as are written at once; a row has `count` of them, `step` apart. */
template <typename U>
__global__ void __launch_bounds__(256)
    grouped_zero_kernel(U *out, int64_t rows, int64_t count, int64_t row_step, int64_t step,
                        const int64_t *first, int64_t from) {
    int64_t i = (first ? *first : from) * count + (int64_t)blockIdx.x * 256 + threadIdx.x;
    for (; i < rows * count; i += (int64_t)gridDim.x * 256) {
        int64_t row = i / count;
        out[row * row_step + (i - row * count) * step] = U();
    }
}

template <typename U>
static mc_status zero_rows(mci_exec *exec, const char *op, const mci_view *out,
                           const int64_t *first, int64_t from, int per_unit) {
    int64_t rows = out->shape[0], count = out->shape[1] / per_unit;
    unsigned grid = mcu_blocks(exec, (rows - from) * count, 256, 8);
    MCU_LAUNCH((grouped_zero_kernel<U>), grid, 256, 0, exec, (U *)out->data, rows, count,
               out->stride[0] / per_unit, per_unit == 1 ? out->stride[1] : (int64_t)1, first, from);
    return mcu_launched(op);
}

mc_status mcu_grouped_zero_tail(mci_exec *exec, const char *op, const mci_view *out,
                                const int64_t *first, int64_t from) {
    if (mci_numel(out) == 0 || from >= out->shape[0]) return MC_OK;
    int size = (int)mcu_float_size(out->dtype), wide = 16 / size;
    if (out->stride[1] == 1 && out->shape[1] % wide == 0 && out->stride[0] % wide == 0 &&
        mcu_aligned(out->data, 16))
        return zero_rows<mcu_vector<uint64_t, 2>>(exec, op, out, first, from, wide);
    if (size == 8) return zero_rows<uint64_t>(exec, op, out, first, from, 1);
    if (size == 4) return zero_rows<uint32_t>(exec, op, out, first, from, 1);
    return zero_rows<uint16_t>(exec, op, out, first, from, 1);
}

/* -- the ways ---------------------------------------------------------------------------------- */

static int64_t step(const mci_view *v, int axis) {
    return v->shape[axis] == 1 ? 0 : v->stride[axis];
}
/* The matrix (axis `row`, axis `column`) of v; a leading third axis is the group's. */
static mcu_grouped_matrix matrix(const mci_view *v, int row, int column) {
    mcu_grouped_matrix m = {v->data, v->ndim == 3 ? step(v, 0) : 0, step(v, row), step(v, column)};
    return m;
}

/* The operands of a pass as a job, and which of them are the splits. */
static mcu_grouped_job describe(int op, const mci_view *const *t, const mci_grouped_params *p,
                                const mci_view **splits) {
    mcu_grouped_job j = {};
    j.dtype = t[1]->dtype;
    j.out_dtype = t[0]->dtype;
    j.rows = t[1]->shape[0];
    if (op == MCI_OP_grouped_linear_wgrad) {
        *splits = t[3];
        j.op = "grouped_linear_wgrad";
        j.ragged_k = 1;
        j.accumulate = p->accumulate;
        j.groups = t[0]->shape[0];
        j.m = t[0]->shape[1];
        j.n = t[0]->shape[2];
        j.a = matrix(t[1], 1, 0);
        j.b = matrix(t[2], 0, 1);
        j.out = matrix(t[0], 1, 2);
        return j;
    }
    int forward = op == MCI_OP_grouped_linear;
    *splits = t[forward ? 4 : 3];
    j.op = forward ? "grouped_linear" : "grouped_linear_dgrad";
    j.groups = t[2]->shape[0];
    j.n = t[0]->shape[1];
    j.k = t[1]->shape[1];
    j.a = matrix(t[1], 0, 1);
    j.b = forward ? matrix(t[2], 2, 1) : matrix(t[2], 1, 2);
    j.out = matrix(t[0], 0, 1);
    if (forward && t[3]) {
        j.bias.data = t[3]->data;
        j.bias.group = step(t[3], 0);
        j.bias.column = step(t[3], 1);
    }
    return j;
}

static mc_status run(mci_exec *exec, int op, const mci_view *const *t,
                     const mci_grouped_params *p) {
    const pass_words *say = &words[op - MCI_OP_grouped_linear];
    if (p->host_splits) {
        int taken = 0;
        mc_status status = mcu_grouped_lt(exec, op, t, p, &taken);
        if (status != MC_OK || taken) return status;
    }
    const mci_view *splits;
    mcu_grouped_job j = describe(op, t, p, &splits);
    mc_status status = make_plan(exec, say, &j, splits, p->host_splits, 0, NULL);
    if (status != MC_OK || mci_numel(t[0]) == 0) return status;
    status =
        mcu_grouped_sm80_refuses(&j) ? mcu_grouped_plain(exec, &j) : mcu_grouped_sm80(exec, &j);
    if (status == MC_OK && p->zero_tail && !j.ragged_k)
        status = mcu_grouped_zero_tail(exec, say->op, t[0], j.plan.start + j.groups, 0);
    return status;
}

mc_status mcu_grouped_linear(mci_exec *exec, const mci_view *const *t, const void *params) {
    return run(exec, MCI_OP_grouped_linear, t, (const mci_grouped_params *)params);
}
mc_status mcu_grouped_linear_dgrad(mci_exec *exec, const mci_view *const *t, const void *params) {
    return run(exec, MCI_OP_grouped_linear_dgrad, t, (const mci_grouped_params *)params);
}
mc_status mcu_grouped_linear_wgrad(mci_exec *exec, const mci_view *const *t, const void *params) {
    return run(exec, MCI_OP_grouped_linear_wgrad, t, (const mci_grouped_params *)params);
}

void mcu_grouped_path(int op, const mci_view *const *t, const void *params, char *text,
                      size_t size) {
    const mci_grouped_params *p = (const mci_grouped_params *)params;
    if (op < MCI_OP_grouped_linear || op > MCI_OP_grouped_linear_wgrad) {
        snprintf(text, size, "one kernel for all");
        return;
    }
    const mci_view *splits;
    mcu_grouped_job j = describe(op, t, p, &splits);
    const char *refusal = mcu_grouped_sm80_refuses(&j);
    char own[256];
    if (refusal)
        snprintf(own, sizeof own, "plain CUDA kernel (no tensor cores: %s)", refusal);
    else
        snprintf(own, sizeof own,
                 "mma.sync tensor core kernel of sm_80, splits read on the device");
    if (p->host_splits)
        snprintf(text, size, "cuBLASLt, a product per group (the host knows the splits); else %s",
                 own);
    else
        snprintf(text, size, "%s", own);
}

/* -- the bias gradient ------------------------------------------------------------------------- */

/* Two kernels. In the first a block sums the rows of one row tile: warp w rows w, w + 4, ... of 32
 * V columns, a lane V of them side by side, and the four warps' sums in order. In the second a
 * thread owns a column of a group and adds the tiles' sums in order. */
enum { SUM_WARPS = 4, SUM_THREADS = 32 * SUM_WARPS };

template <typename T, int V>
__global__ void __launch_bounds__(SUM_THREADS)
    grouped_sums_kernel(const mcu_grouped_job j, mcu_real_t<T> *sums) {
    typedef mcu_real_t<T> R;
    __shared__ R space[SUM_WARPS][32 * V];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t across = (j.n + 32 * V - 1) / (32 * V);
    const int64_t tiles = j.plan.tiles[j.groups] * across;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int64_t x = tile / across, n = tile % across * 32 * V + lane * V;
        int64_t g = mcu_grouped_find(j.plan.tiles, j.groups, x);
        int64_t row = j.plan.start[g] + (x - j.plan.tiles[g]) * MCU_GROUPED_ROWS + warp;
        int64_t rows = (j.plan.start[g + 1] - row + SUM_WARPS - 1) / SUM_WARPS;
        if (rows > MCU_GROUPED_ROWS / SUM_WARPS) rows = MCU_GROUPED_ROWS / SUM_WARPS;
        const T *from = (const T *)j.a.data + row * j.a.row + n * j.a.column;
        R sum[V] = {};
        if (n < j.n) {
#pragma unroll 8
            for (int64_t r = 0; r < rows; r++) {
                mcu_vector<T, V> v = *(const mcu_vector<T, V> *)(from + r * SUM_WARPS * j.a.row);
                for (int i = 0; i < V; i++) sum[i] += mcu_up(v.v[i]);
            }
        }
        for (int i = 0; i < V; i++) space[warp][i * 32 + lane] = sum[i];
        __syncthreads();
        if (warp == 0 && n < j.n)
            for (int i = 0; i < V; i++) {
                for (int w = 1; w < SUM_WARPS; w++) sum[i] += space[w][i * 32 + lane];
                sums[x * j.n + n + i] = sum[i];
            }
        __syncthreads();
    }
}

template <typename R, typename O>
__global__ void __launch_bounds__(256)
    grouped_bias_grad_kernel(const mcu_grouped_job j, const R *sums) {
    int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    for (; i < j.groups * j.n; i += (int64_t)gridDim.x * 256) {
        int64_t g = i / j.n, n = i - g * j.n, first = j.plan.tiles[g], last = j.plan.tiles[g + 1];
        if (first == last && j.accumulate) continue; /* nothing to add */
        O *to = (O *)j.out.data + g * j.out.group + n * j.out.column;
        R sum = 0;
#pragma unroll 8
        for (int64_t x = first; x < last; x++) sum += sums[x * j.n + n];
        if (j.accumulate) sum += mcu_up(*to);
        *to = mcu_down<O>(sum);
    }
}

template <typename T>
static mc_status bias_grad(mci_exec *exec, mcu_grouped_job *j, void *scratch) {
    typedef mcu_real_t<T> R;
    constexpr int V = 16 / (int)sizeof(T);
    R *sums = (R *)scratch;
    int64_t tiles = mcu_grouped_tile_bound(j), most = 1 << 30;
    int vector =
        j->a.column == 1 && j->n % V == 0 && j->a.row % V == 0 && mcu_aligned(j->a.data, 16);
    int64_t blocks = tiles * ((j->n + 31) / 32);
    if (vector) blocks = tiles * ((j->n + 32 * V - 1) / (32 * V));
    unsigned grid = (unsigned)(blocks < most ? blocks : most);
    if (blocks > 0) {
        if (vector)
            MCU_LAUNCH((grouped_sums_kernel<T, V>), grid, SUM_THREADS, 0, exec, *j, sums);
        else
            MCU_LAUNCH((grouped_sums_kernel<T, 1>), grid, SUM_THREADS, 0, exec, *j, sums);
    }
    grid = mcu_blocks(exec, j->groups * j->n, 256, 32);
    if (j->out_dtype == j->dtype)
        MCU_LAUNCH((grouped_bias_grad_kernel<R, T>), grid, 256, 0, exec, *j, sums);
    else
        MCU_LAUNCH((grouped_bias_grad_kernel<R, R>), grid, 256, 0, exec, *j, sums);
    return mcu_launched(j->op);
}

mc_status mcu_grouped_linear_bias_grad(mci_exec *exec, const mci_view *const *t,
                                       const void *params) {
    const mci_grouped_params *p = (const mci_grouped_params *)params;
    const pass_words *say = &words[MCI_OP_grouped_linear_bias_grad - MCI_OP_grouped_linear];
    const mci_view *db = t[0], *dy = t[1];
    mcu_grouped_job j = {};
    j.op = say->op;
    j.dtype = dy->dtype;
    j.out_dtype = db->dtype;
    j.accumulate = p->accumulate;
    j.groups = db->shape[0];
    j.rows = dy->shape[0];
    j.n = db->shape[1];
    j.a = matrix(dy, 0, 1);
    j.out.data = db->data;
    j.out.group = step(db, 0);
    j.out.column = step(db, 1);
    size_t real = dy->dtype == MC_FLOAT64 ? sizeof(double) : sizeof(float);
    size_t bytes = (size_t)(mcu_grouped_tile_bound(&j) * j.n) * real;
    char *sums;
    mc_status status = make_plan(exec, say, &j, t[2], p->host_splits, bytes, &sums);
    if (status != MC_OK || mci_numel(db) == 0) return status;
    return mcu_for_float(j.dtype,
                         [&](auto tag) { return bias_grad<decltype(tag)>(exec, &j, sums); });
}
