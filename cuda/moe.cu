/* moe.cu: the way of rows to the experts and back.
 *
 *     moe_sort      moe_sort.cuh
 *     moe_permute   out[r] = x[slots[r] / k]
 *     moe_unpermute: y[t] = sum_j w[t, j] h[rows[t, j]]
 *
 * Rows move 16 bytes at a time where pointers and strides allow it. bfloat16 and float16 are
 * computed in float32 and rounded once. Whatever the values of ids, rows and slots, nothing outside
 * the operands is touched: an entry out of range is blamed and counts as none.
 */
#include <cstring>

#include "convert.cuh"
#include "moe_sort.cuh"

namespace {

enum { MOE_WAVES = 64 };

/* -- rows to the experts
 * ---------------------------------------------------------------------------- */

/* Rows of a matrix as `width` pieces of equal size, `step` pieces apart. */
struct pieces {
    void *data;
    int64_t row, step;
};

enum {
    PERMUTE_AT_ONCE = 4,
#ifdef MCU_EMULATED
    PERMUTE_CACHED = 1 << 10 /* so that tests see both ways */
#else
    PERMUTE_CACHED = 8 << 20 /* bytes of x that stay in the second-level cache beside the output */
#endif
};

/* lanes = 2^log threads per row, each of them at PERMUTE_AT_ONCE pieces in flight. */
template <typename P>
__global__ void __launch_bounds__(MOE_THREADS)
    permute_kernel(pieces out, pieces x, moe_indices slots, int64_t n, int64_t k, int64_t width,
                   int log, mcu_guard guard) {
    int lanes = 1 << log, lane = (int)threadIdx.x & (lanes - 1);
    int64_t step = (int64_t)gridDim.x * (MOE_THREADS >> log);
    for (int64_t r = (int64_t)blockIdx.x * (MOE_THREADS >> log) + (threadIdx.x >> log); r < n;
         r += step) {
        int64_t slot = slots[r], unused;
        if (slot >= n) {
            if (lane == 0) mcu_blame(guard, r, slot, n - 1);
            slot = -1;
        }
        P *to = static_cast<P *>(out.data) + r * out.row;
        const P *from =
            static_cast<const P *>(x.data) + (slot < 0 ? 0 : moe_divide(slot, k, &unused) * x.row);
        for (int64_t c = lane; c < width; c += PERMUTE_AT_ONCE * lanes) {
            P v[PERMUTE_AT_ONCE];
#pragma unroll
            for (int u = 0; u < PERMUTE_AT_ONCE; u++) {
                v[u] = P();
                if (slot >= 0 && c + u * lanes < width) v[u] = from[(c + u * lanes) * x.step];
            }
#pragma unroll
            for (int u = 0; u < PERMUTE_AT_ONCE; u++)
                if (c + u * lanes < width) to[(c + u * lanes) * out.step] = v[u];
        }
    }
}

/* In the order of the rows, x would be read k times: the rows of one expert lie together, and those
 * of a token far apart. So a large x is read in its own order, by the inverse of slots:
 * places[slot] is a row that has this slot, or anything where no row has. */
__global__ void __launch_bounds__(MOE_THREADS)
    places_kernel(int64_t *places, moe_indices slots, int64_t n, mcu_guard guard) {
    int64_t r = (int64_t)blockIdx.x * MOE_THREADS + threadIdx.x;
    for (; r < n; r += (int64_t)gridDim.x * MOE_THREADS) {
        int64_t slot = slots[r];
        if (slot >= n)
            mcu_blame(guard, r, slot, n - 1);
        else if (slot >= 0)
            places[slot] = r;
    }
}

/* A warp per token t. It writes the rows that places has for t's slots; and, from t's share of all
 * rows, those that it has for none: of slots that stand twice, and of no slot. */
__global__ void __launch_bounds__(MOE_THREADS)
    permute_tokens_kernel(pieces out, pieces x, moe_indices slots, const int64_t *places, int64_t n,
                          int64_t k, int64_t width) {
    typedef uint4 P;
    int lane = (int)threadIdx.x % 32;
    int64_t first = (int64_t)blockIdx.x * MOE_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < n / k; t += (int64_t)gridDim.x * MOE_WARPS) {
        const P *from = static_cast<const P *>(x.data) + t * x.row;
        for (int64_t base = 0; base < k; base += 32) {
            int64_t own = t * k + base + lane, r = -1, slot = -1;
            bool there = base + lane < k;
            if (there) {
                r = places[own];
                slot = slots[own];
            }
            bool held = slot >= 0 && slot < n;
            bool fill = there && !(held && places[held ? slot : 0] == own);
            if (!(r >= 0 && r < n && slots[r] == own)) r = -1;
            int last = k - base < 32 ? (int)(k - base) : 32;
            for (int64_t c = lane; c < width + lane; c += PERMUTE_AT_ONCE * 32) {
                P v[PERMUTE_AT_ONCE];
#pragma unroll
                for (int u = 0; u < PERMUTE_AT_ONCE; u++)
                    if (c + 32 * u < width) v[u] = from[c + 32 * u];
                for (int j = 0; j < last; j++) {
                    int64_t to = __shfl_sync(0xFFFFFFFFU, r, j);
                    P *row = static_cast<P *>(out.data) + to * out.row;
#pragma unroll
                    for (int u = 0; u < PERMUTE_AT_ONCE; u++)
                        if (to >= 0 && c + 32 * u < width) row[c + 32 * u] = v[u];
                }
            }
            unsigned left = __ballot_sync(0xFFFFFFFFU, fill);
            for (; left; left &= left - 1) {
                int j = __ffs((int)left) - 1;
                int64_t s = __shfl_sync(0xFFFFFFFFU, held ? slot : -1, j), unused;
                P *row = static_cast<P *>(out.data) + (t * k + base + j) * out.row;
                const P *source = static_cast<const P *>(x.data) +
                                  (s < 0 ? 0 : moe_divide(s, k, &unused) * x.row);
                for (int64_t c = lane; c < width; c += 32) row[c] = s < 0 ? P() : source[c];
            }
        }
    }
}

/* -- and back
 * --------------------------------------------------------------------------------------- */

enum { TERMS = 4 }; /* rows of one token that are in flight together */

struct move {
    pieces y, h, dy, dh; /* y and dy [tokens, d], h and dh [n, d] */
    moe_indices rows, slots;
    moe_matrix weights, dweights;
    int64_t tokens, k, n, width;
    mcu_guard bad_rows, bad_slots;
    template <typename R>
    __device__ inline R weight(int64_t t, int64_t j) const {
        if (!weights.data) return 1;
        return moe_load<R>(weights.data, weights.dtype, t * weights.row + j * weights.step);
    }
    /* The row of slot (t, j), -1 for none. */
    __device__ inline int64_t row_of(int64_t t, int64_t j, bool blames) const {
        int64_t r = rows[t * k + j];
        if (r < n) return r;
        if (blames) mcu_blame(bad_rows, t, j, r, n - 1);
        return -1;
    }
};

/* A thread owns N neighbouring columns of a token; 2^log threads per token. */
template <typename T, int N>
__global__ void __launch_bounds__(MOE_THREADS) unpermute_kernel(move m, int log) {
    typedef mcu_real_t<T> R;
    typedef mcu_vector<T, N> P;
    int lanes = 1 << log, lane = (int)threadIdx.x & (lanes - 1);
    int64_t step = (int64_t)gridDim.x * (MOE_THREADS >> log);
    for (int64_t t = (int64_t)blockIdx.x * (MOE_THREADS >> log) + (threadIdx.x >> log);
         t < m.tokens; t += step) {
        /* once at least, for the blame, if the rows are empty */
        for (int64_t c = lane; c < m.width || c == 0; c += lanes) {
            R sum[N];
            for (int i = 0; i < N; i++) sum[i] = 0;
            for (int64_t first = 0; first < m.k; first += TERMS) {
                P h[TERMS];
                R w[TERMS];
                bool there[TERMS];
#pragma unroll
                for (int u = 0; u < TERMS; u++) {
                    int64_t j = first + u, r = j < m.k ? m.row_of(t, j, c == 0) : -1;
                    there[u] = r >= 0 && c < m.width;
                    if (!there[u]) continue;
                    h[u] = static_cast<const P *>(m.h.data)[r * m.h.row + c * m.h.step];
                    w[u] = m.weight<R>(t, j);
                }
#pragma unroll
                for (int u = 0; u < TERMS; u++) {
                    if (!there[u]) continue;
#pragma unroll
                    for (int i = 0; i < N; i++) sum[i] += w[u] * mcu_up(h[u].v[i]);
                }
            }
            P y;
            for (int i = 0; i < N; i++) y.v[i] = mcu_down<T>(sum[i]);
            if (c < m.width) static_cast<P *>(m.y.data)[t * m.y.row + c * m.y.step] = y;
        }
    }
}

/* Row r of dh from its slot, by one warp: for rows that no token's row_of names. */
template <typename T, int N>
__device__ void fill_row(const move &m, int64_t r, int64_t slot) {
    typedef mcu_vector<T, N> P;
    int64_t j = 0, t = slot < 0 ? 0 : moe_divide(slot, m.k, &j);
    mcu_real_t<T> w = slot < 0 ? 0 : m.weight<mcu_real_t<T>>(t, j);
    for (int64_t c = threadIdx.x % 32; c < m.width; c += 32) {
        P v = {};
        if (slot >= 0) v = static_cast<const P *>(m.dy.data)[t * m.dy.row + c * m.dy.step];
        for (int i = 0; i < N && slot >= 0; i++) v.v[i] = mcu_down<T>(w * mcu_up(v.v[i]));
        static_cast<P *>(m.dh.data)[r * m.dh.row + c * m.dh.step] = v;
    }
}

/* What a register holds of N elements: words. 16-bit elements that outlive a loop's turn are kept
 * in a register each. */
template <typename T, int N>
struct words_of {
    typedef mcu_vector<uint32_t, (int)sizeof(T) * N / 4> type;
};
template <typename T>
struct words_of<T, 1> {
    typedef T type;
};

/* A warp per token t. It owns the dot products of t's slots, and of dh the rows that its slots
 * have, by `slots` and `rows` alike; and, from t's share of all rows, those that no slot has so:
 * zeros, or what `slots` says. DOTS: dweights are asked for. */
template <typename T, int N, bool DOTS>
__global__ void __launch_bounds__(MOE_THREADS) unpermute_backward_kernel(move m) {
    typedef mcu_real_t<T> R;
    typedef mcu_vector<T, N> P;
    typedef typename words_of<T, N>::type words;
    enum { COLUMNS = N > 1 ? 2 : 1 }; /* pieces of each row in flight */
    int lane = (int)threadIdx.x % 32;
    int64_t first = (int64_t)blockIdx.x * MOE_WARPS + threadIdx.x / 32;
    for (int64_t t = first; t < m.tokens; t += (int64_t)gridDim.x * MOE_WARPS) {
        const P *dy = static_cast<const P *>(m.dy.data) + t * m.dy.row;
        for (int64_t base = 0; base < m.k; base += 32) {
            /* a lane has slot t * k + base + lane, and the row of this number */
            int64_t j = base + lane, own = t * m.k + j, row = -1, slot = -1;
            bool there = j < m.k;
            R weight = 0;
            if (there) {
                slot = m.slots[own];
                row = m.row_of(t, j, true);
            }
            if (slot >= m.n) {
                mcu_blame(m.bad_slots, own, slot, m.n - 1);
                slot = -1;
            }
            int64_t slot_of_row = row >= 0 ? m.slots[row] : -1;
            int64_t row_of_slot = slot >= 0 ? m.rows[slot] : -1;
            if (row >= 0) weight = m.weight<R>(t, j);
            int terms = m.k - base < 32 ? (int)(m.k - base) : 32;
            for (int from = 0; from < terms; from += TERMS) {
                const P *h[TERMS];
                P *dh[TERMS];
                words y[COLUMNS], x[TERMS][COLUMNS];
                R w[TERMS], dot[TERMS];
#pragma unroll
                for (int u = 0; u < TERMS; u++) {
                    int64_t r = __shfl_sync(0xFFFFFFFFU, row, from + u);
                    w[u] = __shfl_sync(0xFFFFFFFFU, weight, from + u);
                    dot[u] = 0;
                    h[u] =
                        DOTS && r >= 0 ? static_cast<const P *>(m.h.data) + r * m.h.row : nullptr;
                    dh[u] = static_cast<P *>(m.dh.data) + r * m.dh.row;
                }
                auto read = [&](int i, int64_t c) {
                    if (c >= m.width) return;
                    y[i] = reinterpret_cast<const words *>(dy)[c * m.dy.step];
#pragma unroll
                    for (int u = 0; u < TERMS; u++)
                        if (DOTS && h[u])
                            x[u][i] = reinterpret_cast<const words *>(h[u])[c * m.h.step];
                };
#pragma unroll
                for (int i = 0; i < COLUMNS; i++) read(i, lane + 32 * i);
                /* after the first reads, which need not wait for this */
                unsigned owned = __ballot_sync(0xFFFFFFFFU, row >= 0 && slot_of_row == own);
                for (int64_t c = lane; c < m.width; c += 32 * COLUMNS) {
#pragma unroll
                    for (int i = 0; i < COLUMNS; i++) {
                        int64_t at = c + 32 * i;
                        if (at >= m.width) continue;
                        P g, z, hx;
                        memcpy(&g, &y[i], sizeof g);
#pragma unroll
                        for (int u = 0; u < TERMS; u++) {
                            if (DOTS) memcpy(&hx, &x[u][i], sizeof hx);
#pragma unroll
                            for (int v = 0; v < N; v++) {
                                R e = mcu_up(g.v[v]);
                                if (DOTS && h[u]) dot[u] += e * mcu_up(hx.v[v]);
                                z.v[v] = mcu_down<T>(w[u] * e);
                            }
                            if (owned >> (from + u) & 1U) dh[u][at * m.dh.step] = z;
                        }
                        read(i, at + 32 * COLUMNS);
                    }
                }
#pragma unroll
                for (int u = 0; u < TERMS; u++) {
                    if (!DOTS || from + u >= terms) continue;
                    R sum = mcu_warp_sum(dot[u]);
                    int64_t at = t * m.dweights.row + (base + from + u) * m.dweights.step;
                    if (lane == 0) moe_store(m.dweights.data, m.dweights.dtype, at, sum);
                }
            }
            bool fill = there && (slot < 0 || row_of_slot != own);
            unsigned left = __ballot_sync(0xFFFFFFFFU, fill);
            for (; left; left &= left - 1) {
                int i = __ffs((int)left) - 1;
                fill_row<T, N>(m, t * m.k + base + i, __shfl_sync(0xFFFFFFFFU, slot, i));
            }
        }
    }
}

/* -- launches
 * --------------------------------------------------------------------------------------- */

int64_t at_least_one(int64_t n) {
    return n > 0 ? n : 1;
}

/* The least log with 2^log >= n, at most that of a block. */
int log_of_lanes(int64_t n) {
    int log = 0;
    while (log < 8 && (1 << log) < n) log++;
    return log;
}

/* 1 when rows of the view are whole pieces of 16 bytes at multiples of 16. */
bool moves_by_16(const mci_view *v, int64_t size) {
    if (!v) return true;
    bool dense = v->stride[1] == 1 || v->shape[1] < 2;
    return dense && mcu_aligned(v->data, 16) && v->stride[0] * size % 16 == 0 &&
           v->shape[1] * size % 16 == 0;
}
/* In pieces of `per` elements. */
pieces pieces_of(const mci_view *v, int64_t per) {
    pieces p = {};
    if (!v) return p;
    p.data = v->data;
    p.row = v->stride[0] / per;
    p.step = per > 1 ? 1 : v->stride[1];
    return p;
}

template <typename P>
void permute(mci_exec *exec, const mci_view *const *t, int64_t k, int64_t per, mcu_guard guard) {
    int64_t n = t[2]->shape[0], width = t[1]->shape[1] / per;
    int log = log_of_lanes((width + PERMUTE_AT_ONCE - 1) / PERMUTE_AT_ONCE);
    MCU_LAUNCH((permute_kernel<P>), mcu_blocks(exec, n, MOE_THREADS >> log, MOE_WAVES), MOE_THREADS,
               0, exec, pieces_of(t[0], per), pieces_of(t[1], per), moe_indices_of(t[2]), n, k,
               width, log, guard);
}

mc_status permute_tokens(mci_exec *exec, const mci_view *const *t, int64_t k, int64_t per,
                         mcu_guard guard) {
    int64_t n = t[2]->shape[0], width = t[1]->shape[1] / per;
    size_t bytes = (size_t)n * sizeof(int64_t);
    int64_t *places = static_cast<int64_t *>(exec->scratch(exec, bytes));
    if (!places) return mcu_no_scratch("moe_permute", bytes);
    moe_indices slots = moe_indices_of(t[2]);
    MCU_LAUNCH((places_kernel), mcu_blocks(exec, n, MOE_THREADS, MOE_WAVES), MOE_THREADS, 0, exec,
               places, slots, n, guard);
    MCU_LAUNCH((permute_tokens_kernel), mcu_blocks(exec, n / k, MOE_WARPS, MOE_WAVES), MOE_THREADS,
               0, exec, pieces_of(t[0], per), pieces_of(t[1], per), slots, places, n, k, width);
    return mcu_launched("moe_permute");
}

template <typename T, int N>
void unpermute_backward(mci_exec *exec, const move &m, bool dots) {
    unsigned blocks = mcu_blocks(exec, m.tokens, MOE_WARPS, MOE_WAVES);
    if (dots)
        MCU_LAUNCH((unpermute_backward_kernel<T, N, true>), blocks, MOE_THREADS, 0, exec, m);
    else
        MCU_LAUNCH((unpermute_backward_kernel<T, N, false>), blocks, MOE_THREADS, 0, exec, m);
}

} /* namespace */

mc_status mcu_grouped_offsets(mci_exec *exec, const mci_view *const *t, const void *) {
    MCU_LAUNCH((offsets_kernel), 1, MOE_THREADS, 0, exec, moe_indices_of(t[0]),
               moe_indices_of(t[1]), t[1]->shape[0],
               mcu_guard_of(exec, "grouped_offsets: first_dims[%lld] is %lld, must be 0 or more"),
               mcu_guard_of(exec, "grouped_offsets: first_dims sum to more than 2^63 - 1"));
    return mcu_launched("grouped_offsets");
}

mc_status mcu_moe_sort(mci_exec *exec, const mci_view *const *t, const void *params_) {
    sort s = {};
    s.ids = moe_indices_of(t[3]);
    s.rows = moe_indices_of(t[1]);
    s.slots = moe_indices_of(t[2]);
    s.counts = static_cast<int64_t *>(t[0]->data);
    s.counts_step = t[0]->stride[0];
    s.n = mci_numel(t[3]);
    s.experts = static_cast<const mci_moe_params *>(params_)->experts;
    s.width = t[3]->shape[1];
    while (s.bits < 62 && (s.experts - 1) >> s.bits > 0) s.bits++;
    s.guard = mcu_guard_of(exec,
                           "moe_sort: ids[%lld, %lld] is %lld, legal are 0 to %lld (0-based), or "
                           "negative for none");
    int64_t most = SORT_TABLE / s.experts;
    if (most > SORT_BLOCKS) most = SORT_BLOCKS;
    s.blocks = (s.n + SORT_SLOTS - 1) / SORT_SLOTS;
    if (s.blocks > most) s.blocks = most;
    s.blocks = at_least_one(s.blocks);
    s.chunk = at_least_one((s.n + s.blocks - 1) / s.blocks);
    s.chunk = (s.chunk + MOE_THREADS - 1) / MOE_THREADS * MOE_THREADS;
    s.blocks = at_least_one((s.n + s.chunk - 1) / s.chunk);

    int64_t each = (int64_t)sizeof(int64_t) + MOE_WARPS * (int64_t)sizeof(unsigned);
    bool counts_held = s.experts <= SORT_SHARED / (int64_t)sizeof(unsigned);
    bool places_held = s.experts <= (SORT_SHARED - 1024) / each;
    size_t table = (size_t)s.experts * (size_t)(s.blocks + 1) * sizeof(int64_t);
    size_t bytes = table + (places_held ? 0 : (size_t)(s.experts * s.blocks * each));
    s.table = static_cast<int64_t *>(exec->scratch(exec, bytes));
    if (!s.table) return mcu_no_scratch("moe_sort", bytes);
    s.totals = s.table + s.experts * s.blocks;
    s.local = reinterpret_cast<char *>(s.table) + table;

    MCU_LAUNCH((count_kernel), (unsigned)s.blocks, MOE_THREADS,
               counts_held ? (size_t)s.experts * sizeof(unsigned) : 0, exec, s, counts_held);
    MCU_LAUNCH((sum_kernel), (unsigned)((s.experts + MOE_WARPS - 1) / MOE_WARPS), MOE_THREADS, 0,
               exec, s);
    MCU_LAUNCH((place_kernel), (unsigned)s.blocks, MOE_THREADS,
               places_held ? (size_t)(s.experts * each) : 0, exec, s, places_held);
    return mcu_launched("moe_sort");
}

mc_status mcu_moe_permute(mci_exec *exec, const mci_view *const *t, const void *params_) {
    int64_t k = static_cast<const mci_moe_params *>(params_)->k, size = dtype_size(t[1]->dtype);
    mcu_guard guard = mcu_guard_of(
        exec,
        "moe_permute: slots[%lld] is %lld, legal are 0 to %lld (0-based), or negative for none");
    if (t[2]->shape[0] == 0) return MC_OK;
    bool by_16 = moves_by_16(t[0], size) && moves_by_16(t[1], size);
    if (by_16 && k > 1 && mci_numel(t[1]) * size > PERMUTE_CACHED)
        return permute_tokens(exec, t, k, 16 / size, guard);
    if (by_16)
        permute<uint4>(exec, t, k, 16 / size, guard);
    else if (size == 8)
        permute<uint64_t>(exec, t, k, 1, guard);
    else if (size == 4)
        permute<uint32_t>(exec, t, k, 1, guard);
    else if (size == 2)
        permute<uint16_t>(exec, t, k, 1, guard);
    else
        permute<uint8_t>(exec, t, k, 1, guard);
    return mcu_launched("moe_permute");
}

mc_status mcu_moe_unpermute(mci_exec *exec, const mci_view *const *t, const void *) {
    move m = {};
    m.rows = moe_indices_of(t[2]);
    m.weights = moe_matrix_of(t[3]);
    m.tokens = t[2]->shape[0];
    m.k = t[2]->shape[1];
    m.n = t[1]->shape[0];
    m.bad_rows = mcu_guard_of(exec,
                              "moe_unpermute: rows[%lld, %lld] is %lld, legal are 0 to %lld "
                              "(0-based), or negative for none");
    if (m.tokens == 0) return MC_OK;
    return mcu_for_float(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        enum { N = 16 / sizeof(T) };
        bool wide = moves_by_16(t[0], sizeof(T)) && moves_by_16(t[1], sizeof(T));
        int64_t per = wide ? N : 1;
        m.y = pieces_of(t[0], per);
        m.h = pieces_of(t[1], per);
        m.width = t[1]->shape[1] / per;
        int log = log_of_lanes(m.width);
        unsigned blocks = mcu_blocks(exec, m.tokens, MOE_THREADS >> log, MOE_WAVES);
        if (wide)
            MCU_LAUNCH((unpermute_kernel<T, N>), blocks, MOE_THREADS, 0, exec, m, log);
        else
            MCU_LAUNCH((unpermute_kernel<T, 1>), blocks, MOE_THREADS, 0, exec, m, log);
        return mcu_launched("moe_unpermute");
    });
}

mc_status mcu_moe_unpermute_backward(mci_exec *exec, const mci_view *const *t, const void *) {
    move m = {};
    m.rows = moe_indices_of(t[4]);
    m.slots = moe_indices_of(t[5]);
    m.weights = moe_matrix_of(t[6]);
    m.dweights = moe_matrix_of(t[1]);
    m.tokens = t[4]->shape[0];
    m.k = t[4]->shape[1];
    m.n = t[0]->shape[0];
    m.bad_rows = mcu_guard_of(exec,
                              "moe_unpermute_backward: rows[%lld, %lld] is %lld, legal are 0 to "
                              "%lld (0-based), or negative for none");
    m.bad_slots = mcu_guard_of(exec,
                               "moe_unpermute_backward: slots[%lld] is %lld, legal are 0 to %lld "
                               "(0-based), or negative for none");
    if (m.n == 0) return MC_OK;
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        enum { N = 16 / sizeof(T) };
        bool dots = t[1] != nullptr;
        bool wide = moves_by_16(t[0], sizeof(T)) && moves_by_16(t[2], sizeof(T)) &&
                    (!dots || moves_by_16(t[3], sizeof(T)));
        int64_t per = wide ? N : 1;
        m.dh = pieces_of(t[0], per);
        m.dy = pieces_of(t[2], per);
        m.h = pieces_of(dots ? t[3] : nullptr, per);
        m.width = t[2]->shape[1] / per;
        if (wide)
            unpermute_backward<T, N>(exec, m, dots);
        else
            unpermute_backward<T, 1>(exec, m, dots);
        return mcu_launched("moe_unpermute_backward");
    });
}
