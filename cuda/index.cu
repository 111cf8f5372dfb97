/* index.cu: index_select, gather, and their gradients index_add and scatter_add. (Meaning:
 * mascon.h.)
 *
 * index_select: a row of threads per selected row, 16 bytes each where rows allow; four are in
 * flight. Additions are made without atomics on floats. The index is sorted by target
 * (index_sort.cuh). A thread takes WINDOW sorted items of one column, 16 bytes wide, adds up items
 * of one target and then adds the sum to the target: once, for a target whose items lie within one
 * window. Sums of a target that spans windows are kept per window and added in order by a second
 * launch. Accumulators are float32 (float64 for float64, integers wrap). scatter_add with many
 * short lines needs no sort: lines have targets of their own, a thread walks one.
 *
 * A bad index is left out and reported with the CPU's words.
 */
#include "index_sort.cuh"

namespace {

enum { THREADS = 256, WINDOW = 32, BATCH = 4, MOST_BLOCKS = 1 << 20 };

unsigned grid_of(int64_t units) {
    return (unsigned)(units < MOST_BLOCKS ? units : (int64_t)MOST_BLOCKS);
}

/* -- indices --------------------------------------------------------------------------------------
 */

struct index_view {
    const void *data;
    int wide; /* int64, else int32 */
    int ndim; /* as the caller sees it, for the message */
    int64_t shape[MC_MAX_DIMS], limit;
    mcu_guard guard;
};

__device__ inline int64_t index_at(const index_view &x, int64_t offset) {
    return x.wide ? ((const int64_t *)x.data)[offset] : ((const int32_t *)x.data)[offset];
}

/* 1 when `value`, element i (row-major) of the index, is legal; blames it otherwise. */
__device__ inline bool legal(const index_view &x, int64_t i, int64_t value) {
    if (value >= 0 && value < x.limit) return true;
    int64_t most = x.limit - 1;
    if (x.ndim == 0)
        mcu_blame(x.guard, value, most);
    else if (x.ndim == 2)
        mcu_blame(x.guard, i / x.shape[1], i % x.shape[1], value, most);
    else
        mcu_blame(x.guard, i, value, most);
    return false;
}

/* A message for each op, for ranks 0, 1, 2 and more (position counted row-major), and for tables
 * without a legal index. */
#define NONE "none is legal: the axis has size 0"
#define RANGE "legal are 0 to %lld (0-based)"
#define MESSAGES(op)                                                            \
    {                                                                           \
        {op ": index[] is %lld, " RANGE, op ": index[%lld] is %lld, " RANGE,    \
         op ": index[%lld, %lld] is %lld, " RANGE,                              \
         op ": element %lld of index (row-major, 0-based) is %lld, " RANGE},    \
            {op ": index[] is %lld, " NONE, op ": index[%lld] is %lld, " NONE,  \
             op ": index[%lld, %lld] is %lld, " NONE,                           \
             op ": element %lld of index (row-major, 0-based) is %lld, " NONE}, \
    }
enum { SELECT, ADD, GATHER, SCATTER };
const char *const messages[4][2][4] = {MESSAGES("index_select"), MESSAGES("index_add"),
                                       MESSAGES("gather"), MESSAGES("scatter_add")};
#undef MESSAGES
#undef RANGE
#undef NONE

index_view index_of(const mci_exec *exec, int op, const mci_view *index, int64_t limit) {
    index_view x = {};
    x.data = index->data;
    x.wide = index->dtype == MC_INT64;
    x.ndim = index->ndim;
    for (int d = 0; d < x.ndim; d++) x.shape[d] = index->shape[d];
    x.limit = limit;
    x.guard = mcu_guard_of(exec, messages[op][limit == 0][x.ndim < 3 ? x.ndim : 3]);
    return x;
}

/* Nothing but the check: for results without elements. */
__global__ void __launch_bounds__(THREADS) check_kernel(index_view x, mcu_walk<1> walk) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, at;
    for (; i < walk.n; i += (int64_t)gridDim.x * THREADS) {
        walk.at(i, &at);
        legal(x, i, index_at(x, at));
    }
}

mc_status check(mci_exec *exec, const char *name, const index_view &x, const mci_view *index) {
    const mci_view *list[1] = {index};
    mcu_walk<1> walk = mcu_walk_of<1>(list);
    if (walk.n == 0) return MC_OK;
    MCU_LAUNCH(check_kernel, grid_of((walk.n + THREADS - 1) / THREADS), THREADS, 0, exec, x, walk);
    return mcu_launched(name);
}

/* -- index_select
 * ---------------------------------------------------------------------------------- */

/* The axes of a selection: `table` is indexed along `axis`, `rows` has the index's axes there. What
 * they have in common is `common`: offsets in table and rows. */
struct selection {
    mcu_walk<2> common;  /* all other axes */
    mcu_walk<2> items;   /* the index's axes: offsets in index and rows */
    int64_t axis_stride; /* of the table */
};

selection selection_of(const mci_view *table, const mci_view *rows, const mci_view *index,
                       int axis) {
    selection s = {};
    mci_view a = {}, b = {}, items = *index;
    int extra = index->ndim - 1;
    for (int d = 0; d < table->ndim; d++) {
        if (d == axis) continue;
        a.shape[a.ndim] = b.shape[a.ndim] = table->shape[d];
        a.stride[a.ndim] = table->stride[d];
        b.stride[a.ndim++] = rows->stride[d > axis ? d + extra : d];
    }
    b.ndim = a.ndim;
    for (int d = 0; d < index->ndim; d++) items.stride[d] = rows->stride[axis + d];
    const mci_view *common[2] = {&a, &b}, *both[2] = {index, &items};
    s.common = mcu_walk_of<2>(common);
    s.items = mcu_walk_of<2>(both);
    s.axis_stride = table->stride[axis];
    return s;
}

/* 1 when elements go V at a time: along the innermost common axis, from aligned addresses. */
int goes_by(const selection &s, int V, const void *table, const void *rows) {
    const mcu_walk<2> &c = s.common;
    if (c.ndim == 0 || c.shape[c.ndim - 1] % V != 0 || s.axis_stride % V != 0) return 0;
    if (!mcu_aligned(table, 16) || !mcu_aligned(rows, 16)) return 0;
    for (int k = 0; k < 2; k++) {
        if (c.stride[k][c.ndim - 1] != 1) return 0;
        for (int d = 0; d < c.ndim - 1; d++)
            if (c.stride[k][d] % V != 0) return 0;
    }
    for (int d = 0; d < s.items.ndim; d++)
        if (s.items.stride[1][d] % V != 0) return 0;
    return 1;
}

/* The common axes counted in vectors of V, offsets still in elements. */
void by_vectors(selection *s, int V) {
    int last = s->common.ndim - 1;
    s->common.shape[last] /= V;
    s->common.n /= V;
    for (int k = 0; k < 2; k++) s->common.stride[k][last] *= V;
}

/* The block is [blockDim.y items][blockDim.x]; a unit is an item and CHUNK * blockDim.x columns. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
    select_kernel(T *rows, const T *table, selection s, index_view x, int64_t pieces) {
    typedef mcu_vector<T, V> vector;
    enum { CHUNK = 4 };
    const int64_t wide = (int64_t)blockDim.x * CHUNK, units = s.items.n * pieces;
    int64_t unit = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; unit < units; unit += (int64_t)gridDim.x * blockDim.y) {
        int64_t item = pieces > 1 ? unit / pieces : unit, piece = unit - item * pieces, at[2];
        s.items.at(item, at);
        int64_t from = index_at(x, at[0]);
        if (!legal(x, item, from)) continue;
        vector w[CHUNK];
        int64_t to[CHUNK];
#pragma unroll
        for (int k = 0; k < CHUNK; k++) {
            int64_t column = piece * wide + k * (int64_t)blockDim.x + threadIdx.x, offset[2];
            if (column >= s.common.n) break;
            s.common.at(column, offset);
            w[k] = *(const vector *)(table + from * s.axis_stride + offset[0]);
            to[k] = at[1] + offset[1];
        }
#pragma unroll
        for (int k = 0; k < CHUNK; k++) {
            int64_t column = piece * wide + k * (int64_t)blockDim.x + threadIdx.x;
            if (column >= s.common.n) break;
            *(vector *)(rows + to[k]) = w[k];
        }
    }
}

template <typename T, int V>
void launch_select(mci_exec *exec, void *rows, const void *table, const selection &s,
                   const index_view &x) {
    int tx = 1;
    while (tx < THREADS && tx * 4 < s.common.n) tx *= 2;
    int64_t pieces = (s.common.n + tx * 4 - 1) / (tx * 4), ty = THREADS / tx;
    dim3 block((unsigned)tx, (unsigned)ty);
    MCU_LAUNCH((select_kernel<T, V>), grid_of((s.items.n * pieces + ty - 1) / ty), block, 0, exec,
               (T *)rows, (const T *)table, s, x, pieces);
}

/* -- index_add and scatter_add, sorted
 * ------------------------------------------------------------- */

template <typename T>
struct sum_of { /* accumulates T */
    typedef mcu_real_t<T> type;
};
template <>
struct sum_of<int64_t> {
    typedef uint64_t type;
};
template <>
struct sum_of<int32_t> {
    typedef uint32_t type;
};
template <>
struct sum_of<uint8_t> {
    typedef uint32_t type;
};

template <typename T>
__device__ inline T total_of(T x, typename sum_of<T>::type sum) {
    if constexpr (sizeof(T) == 2)
        return mcu_down<T>(mcu_up(x) + sum);
    else
        return (T)((typename sum_of<T>::type)x + sum);
}
template <typename T>
__device__ inline typename sum_of<T>::type summand(T x) {
    return (typename sum_of<T>::type)mcu_up(x);
}

/* What is added where: item i of the sorted list is row `items.at(item)` of the rows; its key is
 * the target, line * limit + index. Keys of bad indices are `bad`, the greatest. */
struct additions {
    mcu_walk<2> common; /* columns: offsets in table and rows */
    mcu_walk<1> lines;  /* offset in the table */
    mcu_walk<2> items;  /* offsets in index and rows */
    int64_t axis_stride, limit, bad, n, windows, columns;
};

/* Lines are the outer axes of the items: item = line * per_line + j. A block makes a tile's items.
 */
__global__ void __launch_bounds__(THREADS)
    keys_kernel(sort_item *out, sort_plan sort, additions p, const __grid_constant__ index_view x,
                int64_t per_line, int axis) {
    __shared__ int bins[DIGITS];
    for (int64_t tile = blockIdx.x; tile < sort.tiles; tile += gridDim.x) {
        sort_begin(bins);
        int64_t end = (tile + 1) * sort.tile < p.n ? (tile + 1) * sort.tile : p.n;
        for (int64_t i = tile * sort.tile + threadIdx.x; i < end; i += THREADS) {
            int64_t at[2];
            p.items.at(i, at);
            int64_t value = index_at(x, at[0]), line = p.n == per_line ? 0 : i / per_line;
            int64_t place = i;
            if (axis >= 0 && (value < 0 || value >= x.limit)) {
                /* the position in the caller's order of axes */
                int64_t rest = line, step = 1;
                place = 0;
                for (int d = x.ndim - 1; d >= 0; d--) {
                    int64_t k = d == axis ? i - line * per_line : rest % x.shape[d];
                    if (d != axis) rest /= x.shape[d];
                    place += k * step;
                    step *= x.shape[d];
                }
            }
            int64_t key = legal(x, place, value) ? line * p.limit + value : p.bad;
            out[i] = sort_item{key, i};
            atomicAdd(&bins[sort_digit(key, 0)], 1);
        }
        sort_begun(sort, tile, bins);
    }
}

/* Where the target `key` begins in the table, less the column's offset. */
__device__ inline int64_t target_of(const additions &p, int64_t key) {
    if (p.lines.n == 1) return key * p.axis_stride;
    int64_t line = key / p.limit, offset;
    p.lines.at(line, &offset);
    return offset + (key - line * p.limit) * p.axis_stride;
}

/* Thread: one column of one window. Partial sums: [window][2][column]; 0 is the target that began
 * in an earlier window or fills this one, 1 one that goes on in the next. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
    add_kernel(T *table, const T *rows, const sort_item *list, additions p,
               mcu_vector<typename sum_of<T>::type, V> *partial) {
    typedef typename sum_of<T>::type S;
    typedef mcu_vector<T, V> vector;
    int64_t unit = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (; unit < p.windows * p.columns; unit += (int64_t)gridDim.x * THREADS) {
        int64_t window = p.columns > 1 ? unit / p.columns : unit;
        int64_t column = unit - window * p.columns, offset[2];
        int64_t first = window * WINDOW, end = first + WINDOW < p.n ? first + WINDOW : p.n;
        p.common.at(column, offset);
        int64_t open = first > 0 ? list[first - 1].key : -1; /* this target began earlier */
        S sum[V];
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] = 0;
        sort_item ahead[BATCH]; /* of the batch to come */
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            ahead[k] = first + k < end ? list[first + k] : sort_item{p.bad, 0};
        for (int64_t i = first; i < end; i += BATCH) {
            int64_t key[BATCH + 1];
            vector w[BATCH], old[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                key[k] = ahead[k].key;
                if (key[k] == p.bad) continue;
                int64_t at[2];
                p.items.at(ahead[k].item, at);
                w[k] = *(const vector *)(rows + at[1] + offset[1]);
            }
#pragma unroll
            for (int k = 0; k < BATCH; k++) /* the first of the next window too, for its key */
                ahead[k] =
                    i + BATCH + k < (k ? end : p.n) ? list[i + BATCH + k] : sort_item{p.bad, 0};
            key[BATCH] = ahead[0].key;
            /* the targets are read together, before any is written: they differ */
#pragma unroll
            for (int k = 0; k < BATCH; k++)
                if (key[k] != key[k + 1] && key[k] != open)
                    old[k] = *(const vector *)(table + target_of(p, key[k]) + offset[0]);
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
                if (key[k] == p.bad) continue;
#pragma unroll
                for (int j = 0; j < V; j++) sum[j] += summand(w[k].v[j]);
                bool goes_on = key[k] == key[k + 1];
                if (goes_on && i + k + 1 < end) continue;
                if (key[k] == open || goes_on) {
                    mcu_vector<S, V> *to =
                        &partial[(window * 2 + (key[k] != open)) * p.columns + column];
#pragma unroll
                    for (int j = 0; j < V; j++) to->v[j] = sum[j];
                } else {
#pragma unroll
                    for (int j = 0; j < V; j++) old[k].v[j] = total_of<T>(old[k].v[j], sum[j]);
                    *(vector *)(table + target_of(p, key[k]) + offset[0]) = old[k];
                }
#pragma unroll
                for (int j = 0; j < V; j++) sum[j] = 0;
            }
        }
    }
}

/* Thread: one column of a window in which a target begins that goes on in the next: its sums,
 * window after window. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
    add_spanning_kernel(T *table, const sort_item *list, additions p,
                        const mcu_vector<typename sum_of<T>::type, V> *partial) {
    typedef typename sum_of<T>::type S;
    int64_t unit = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (; unit < (p.windows - 1) * p.columns; unit += (int64_t)gridDim.x * THREADS) {
        int64_t window = p.columns > 1 ? unit / p.columns : unit;
        int64_t column = unit - window * p.columns, offset[2], next = (window + 1) * WINDOW;
        int64_t key = list[next - 1].key;
        if (key == p.bad || list[next].key != key) continue;
        if (window > 0 && list[window * WINDOW - 1].key == key) continue;
        S sum[V];
        const mcu_vector<S, V> *from = &partial[(window * 2 + 1) * p.columns + column];
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] = from->v[j];
        int64_t windows = 0; /* those in which the target goes on: found by halving */
        for (int64_t step = p.windows; step > 0; step /= 2)
            while (next + (windows + step - 1) * WINDOW < p.n &&
                   list[next + (windows + step - 1) * WINDOW].key == key)
                windows += step;
#pragma unroll 4
        for (int64_t k = 1; k <= windows; k++) {
            from = &partial[(window + k) * 2 * p.columns + column];
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] += from->v[j];
        }
        p.common.at(column, offset);
        mcu_vector<T, V> *to = (mcu_vector<T, V> *)(table + target_of(p, key) + offset[0]), w = *to;
#pragma unroll
        for (int j = 0; j < V; j++) w.v[j] = total_of<T>(w.v[j], sum[j]);
        *to = w;
    }
}

template <typename T, int V>
mc_status add_sorted(mci_exec *exec, const char *name, void *table, const void *rows,
                     const index_view &x, additions *p, int64_t per_line, int axis) {
    typedef mcu_vector<typename sum_of<T>::type, V> sums;
    p->columns = p->common.n;
    p->windows = (p->n + WINDOW - 1) / WINDOW;
    p->bad = p->lines.n * p->limit;
    sort_plan sort = sort_plan_of(p->n, p->bad);
    size_t items = (size_t)p->n * sizeof(sort_item), counts = sort_bytes(sort);
    size_t kept = (size_t)(p->windows * 2 * p->columns) * sizeof(sums);
    size_t bytes = kept + 2 * items + counts;
    char *scratch = (char *)exec->scratch(exec, bytes);
    if (!scratch) return mcu_no_scratch(name, bytes);
    sums *partial = (sums *)scratch;
    sort_item *a = (sort_item *)(scratch + kept), *b = a + p->n;
    sort.counts = (unsigned long long *)(b + p->n);
    MCU_LAUNCH(keys_kernel, sort_blocks(sort), THREADS, 0, exec, a, sort, *p, x, per_line, axis);
    a = sort_items(exec, a, b, sort);
    int64_t units = p->windows * p->columns;
    MCU_LAUNCH((add_kernel<T, V>), grid_of((units + THREADS - 1) / THREADS), THREADS, 0, exec,
               (T *)table, (const T *)rows, a, *p, partial);
    if (p->windows > 1)
        MCU_LAUNCH((add_spanning_kernel<T, V>), grid_of((units + THREADS - 1) / THREADS), THREADS,
                   0, exec, (T *)table, a, *p, partial);
    return mcu_launched(name);
}

/* -- gather and scatter_add, element by element
 * ------------------------------------------------------ */

template <typename T>
__global__ void __launch_bounds__(THREADS)
    gather_kernel(T *out, const T *table, mcu_walk<3> walk, int64_t axis_stride, index_view x) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, at[3]; /* out, index, table */
    for (; i < walk.n; i += (int64_t)gridDim.x * THREADS) {
        walk.at(i, at);
        int64_t from = index_at(x, at[1]);
        if (legal(x, i, from)) out[at[0]] = table[at[2] + from * axis_stride];
    }
}

/* Thread: one line. Each addition is rounded to T, as on the CPU. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    scatter_lines_kernel(T *table, const T *values, mcu_walk<3> lines, int64_t length,
                         int64_t table_step, int64_t value_step, int64_t index_step, int axis,
                         const __grid_constant__ index_view x) {
    int64_t line = (int64_t)blockIdx.x * THREADS + threadIdx.x, at[3]; /* values, index, table */
    for (; line < lines.n; line += (int64_t)gridDim.x * THREADS) {
        lines.at(line, at);
        for (int64_t j = 0; j < length; j++) {
            int64_t to = index_at(x, at[1] + j * index_step);
            if (to < 0 || to >= x.limit) {
                int64_t rest = line, step = 1, place = 0;
                for (int d = x.ndim - 1; d >= 0; d--) {
                    int64_t k = d == axis ? j : rest % x.shape[d];
                    if (d != axis) rest /= x.shape[d];
                    place += k * step;
                    step *= x.shape[d];
                }
                legal(x, place, to);
                continue;
            }
            T *d = table + at[2] + to * table_step;
            *d = total_of<T>(*d, summand(values[at[0] + j * value_step]));
        }
    }
}

/* v as far as `index` goes, its axis moved to the end or, with `size` 1, taken out of the walk. */
mci_view line_view(const mci_view *v, const mci_view *index, int axis, int64_t stride,
                   int64_t size) {
    mci_view r = *v;
    int n = 0;
    for (int d = 0; d < index->ndim; d++) {
        if (d == axis) continue;
        r.shape[n] = index->shape[d];
        r.stride[n++] = v->stride[d];
    }
    r.shape[n] = size;
    r.stride[n++] = stride;
    r.ndim = n;
    return r;
}

/* fn gets a tag of an element of the dtype's size: for what is only moved. */
template <typename F>
mc_status for_size(int dtype, F fn) {
    switch (dtype) {
        case MC_FLOAT64:
        case MC_INT64:
            return fn(uint64_t());
        case MC_FLOAT32:
        case MC_INT32:
            return fn(uint32_t());
        case MC_FLOAT16:
        case MC_BFLOAT16:
            return fn(uint16_t());
        default:
            return fn(uint8_t());
    }
}

} /* namespace */

/* t: out, a, index. */
mc_status mcu_index_select(mci_exec *exec, const mci_view *const *t, const void *params_) {
    int axis = ((const mci_axis_params *)params_)->axis;
    index_view x = index_of(exec, SELECT, t[2], t[1]->shape[axis]);
    if (mci_numel(t[0]) == 0 || x.limit == 0) return check(exec, "index_select", x, t[2]);
    selection s = selection_of(t[1], t[0], t[2], axis);
    return for_size(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        enum { V = 16 / sizeof(T) };
        if (goes_by(s, V, t[1]->data, t[0]->data)) {
            by_vectors(&s, V);
            launch_select<T, V>(exec, t[0]->data, t[1]->data, s, x);
        } else {
            launch_select<T, 1>(exec, t[0]->data, t[1]->data, s, x);
        }
        return mcu_launched("index_select");
    });
}

/* t: da, dout, index. */
mc_status mcu_index_add(mci_exec *exec, const mci_view *const *t, const void *params_) {
    int axis = ((const mci_axis_params *)params_)->axis;
    index_view x = index_of(exec, ADD, t[2], t[0]->shape[axis]);
    if (mci_numel(t[1]) == 0 || x.limit == 0) return check(exec, "index_add", x, t[2]);
    selection s = selection_of(t[0], t[1], t[2], axis);
    additions p = {};
    p.items = s.items;
    p.axis_stride = s.axis_stride;
    p.limit = x.limit;
    p.n = s.items.n;
    p.lines.n = 1;
    return mcu_for_number(t[0]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        constexpr int V = sizeof(T) == 1 ? 4 : 16 / (int)sizeof(T);
        int fast = goes_by(s, V, t[0]->data, t[1]->data);
        if (fast) by_vectors(&s, V);
        p.common = s.common;
        return fast ? add_sorted<T, V>(exec, "index_add", t[0]->data, t[1]->data, x, &p, p.n, -1)
                    : add_sorted<T, 1>(exec, "index_add", t[0]->data, t[1]->data, x, &p, p.n, -1);
    });
}

/* t: out, a, index. */
mc_status mcu_gather(mci_exec *exec, const mci_view *const *t, const void *params_) {
    int axis = ((const mci_axis_params *)params_)->axis;
    index_view x = index_of(exec, GATHER, t[2], t[1]->shape[axis]);
    mci_view table = *t[1];
    for (int d = 0; d < table.ndim; d++) table.shape[d] = t[2]->shape[d];
    table.stride[axis] = 0;
    const mci_view *list[3] = {t[0], t[2], &table};
    mcu_walk<3> walk = mcu_walk_of<3>(list);
    if (walk.n == 0) return MC_OK;
    return for_size(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        MCU_LAUNCH((gather_kernel<T>), grid_of((walk.n + THREADS - 1) / THREADS), THREADS, 0, exec,
                   (T *)t[0]->data, (const T *)t[1]->data, walk, t[1]->stride[axis], x);
        return mcu_launched("gather");
    });
}

/* t: da, dout, index. */
mc_status mcu_scatter_add(mci_exec *exec, const mci_view *const *t, const void *params_) {
    enum { MANY_LINES = 4096, SHORT_LINE = 32 };
    int axis = ((const mci_axis_params *)params_)->axis;
    const mci_view *da = t[0], *dout = t[1], *index = t[2];
    index_view x = index_of(exec, SCATTER, index, da->shape[axis]);
    int64_t n = mci_numel(index), length = n ? index->shape[axis] : 0;
    if (n == 0) return MC_OK;
    if (x.limit == 0) return check(exec, "scatter_add", x, index);
    int by_lines = n / length >= MANY_LINES || length <= SHORT_LINE;
    int64_t size = by_lines ? 1 : length;
    mci_view v[3] = {line_view(dout, index, axis, dout->stride[axis], size),
                     line_view(index, index, axis, index->stride[axis], size),
                     line_view(da, index, axis, 0, 1)};
    if (by_lines) {
        const mci_view *list[3] = {&v[0], &v[1], &v[2]};
        mcu_walk<3> lines = mcu_walk_of<3>(list);
        return mcu_for_number(da->dtype, [&](auto tag) {
            typedef decltype(tag) T;
            MCU_LAUNCH((scatter_lines_kernel<T>), grid_of((lines.n + THREADS - 1) / THREADS),
                       THREADS, 0, exec, (T *)da->data, (const T *)dout->data, lines, length,
                       da->stride[axis], dout->stride[axis], index->stride[axis], axis, x);
            return mcu_launched("scatter_add");
        });
    }
    additions p = {};
    const mci_view *items[2] = {&v[1], &v[0]}, *lines[1] = {&v[2]};
    p.items = mcu_walk_of<2>(items);
    p.lines = mcu_walk_of<1>(lines);
    p.axis_stride = da->stride[axis];
    p.limit = x.limit;
    p.n = n;
    p.common.n = 1;
    return mcu_for_number(da->dtype, [&](auto tag) {
        return add_sorted<decltype(tag), 1>(exec, "scatter_add", da->data, dout->data, x, &p,
                                            length, axis);
    });
}
