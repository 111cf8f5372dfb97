/* elementwise.cuh: kernels for every op whose result at a place depends on its operands there.
 *
 * An op is a functor with the element types Out, A, B, C, the numbers `inputs` (1 to 3) and
 * `outputs` (1 or 2), and operator()(a, b, c[, &second]) on stored elements. each() runs it over
 * views that broadcast to the first one's shape, in one of three ways:
 *
 *   dense   plain arrays, or an array and one element: items of V = 16 bytes / widest element
 *           elements, what is left over at the end one by one
 *   rows    the last axis is contiguous (or broadcast), aligned, and a multiple of V: the rows
 *           of a wider matrix, a bias added to every row, permuted axes before the last
 *   plain   everything else, an element per thread, by a functor that may choose its op at run
 *           time, so that few kernels are compiled
 *
 * A block of 256 threads takes U x 256 consecutive items; a thread has U of them, 256 apart: its
 * loads are all begun before the first result is needed, 32 to 64 bytes per thread, which covers
 * the memory's latency at a third of full occupancy. Every item is loaded before it is stored, and
 * by the same thread, so an output may be an input.
 */
#ifndef MCU_ELEMENTWISE_CUH
#define MCU_ELEMENTWISE_CUH

#include "common.cuh"

namespace {

/* -- computing with elements: the CPU's three types, double, float and int64_t -------------------
 */

template <typename T>
struct wide {
    typedef int64_t type;
};
template <>
struct wide<double> {
    typedef double type;
};
template <>
struct wide<float> {
    typedef float type;
};
template <>
struct wide<mcu_half> {
    typedef float type;
};
template <>
struct wide<mcu_bf16> {
    typedef float type;
};
template <typename T>
using wide_t = typename wide<T>::type;
template <typename T>
struct is_integer {
    static const bool value = false;
};
template <>
struct is_integer<int64_t> {
    static const bool value = true;
};

template <typename T>
__device__ inline wide_t<T> lift(T x) {
    return mcu_up(x);
}
template <>
__device__ inline int64_t lift<mcu_bool>(mcu_bool x) {
    return x.bits != 0;
}
template <typename T>
__device__ inline T lower(wide_t<T> x) {
    if constexpr (is_integer<wide_t<T>>::value)
        return (T)x;
    else
        return mcu_down<T>(x);
}
template <>
__device__ inline mcu_bool lower<mcu_bool>(int64_t x) {
    return mcu_bool{(uint8_t)(x != 0)};
}

/* Integers, floats and bool. */
template <typename F>
mc_status for_ordered(int dtype, F fn) {
    return dtype == MC_BOOL ? fn(mcu_bool()) : mcu_for_number(dtype, fn);
}

/* -- the kernels ---------------------------------------------------------------------------------
 */

enum { EACH_THREADS = 256 };

template <typename Op>
struct each_args {
    Op op;
    typename Op::Out *out, *second; /* second: the other output, at out's offsets */
    const typename Op::A *a;
    const typename Op::B *b; /* NULL: `number` instead */
    const typename Op::C *c;
    typename Op::B number;
    unsigned splat; /* bit k: input k (from 1) does not move along the last axis */
    int tail;       /* single elements behind the last item */
    int64_t items;
};

template <typename Op, int V>
struct each_item {
    mcu_vector<typename Op::A, V> a;
    mcu_vector<typename Op::B, V> b;
    mcu_vector<typename Op::C, V> c;
};

template <typename T, int V>
__device__ inline void each_read(mcu_vector<T, V> &to, const T *from, bool splat) {
    if (V > 1 && splat) {
        T x = *from;
#pragma unroll
        for (int j = 0; j < V; j++) to.v[j] = x;
    } else {
        to = *reinterpret_cast<const mcu_vector<T, V> *>(from);
    }
}

/* The operands at these offsets; at[0] is the output's. */
template <int V, typename Op>
__device__ inline void each_load(const each_args<Op> &q, const int64_t *at,
                                 each_item<Op, V> &item) {
    each_read<typename Op::A, V>(item.a, q.a + at[1], q.splat & 2U);
    if constexpr (Op::inputs > 1) {
        if (q.b) {
            each_read<typename Op::B, V>(item.b, q.b + at[2], q.splat & 4U);
        } else {
#pragma unroll
            for (int j = 0; j < V; j++) item.b.v[j] = q.number;
        }
    }
    if constexpr (Op::inputs > 2) each_read<typename Op::C, V>(item.c, q.c + at[3], q.splat & 8U);
}

template <int V, typename Op>
__device__ inline void each_store(const each_args<Op> &q, int64_t at,
                                  const each_item<Op, V> &item) {
    typedef mcu_vector<typename Op::Out, V> result;
    result y, z;
#pragma unroll
    for (int j = 0; j < V; j++) {
        if constexpr (Op::outputs == 2)
            y.v[j] = q.op(item.a.v[j], item.b.v[j], item.c.v[j], &z.v[j]);
        else if constexpr (Op::inputs == 1)
            y.v[j] = q.op(item.a.v[j]);
        else if constexpr (Op::inputs == 2)
            y.v[j] = q.op(item.a.v[j], item.b.v[j]);
        else
            y.v[j] = q.op(item.a.v[j], item.b.v[j], item.c.v[j]);
    }
    *reinterpret_cast<result *>(q.out + at) = y;
    if constexpr (Op::outputs == 2) *reinterpret_cast<result *>(q.second + at) = z;
}

/* Items i of plain arrays: element i V of each, or the only one. */
template <typename Op, int V, int U>
__global__ void __launch_bounds__(EACH_THREADS) each_dense_kernel(each_args<Op> q) {
    const int N = 1 + Op::inputs;
    int64_t begin = (int64_t)blockIdx.x * (U * EACH_THREADS), first = begin + threadIdx.x;
    if (begin + U * EACH_THREADS <= q.items) {
        each_item<Op, V> item[U];
#pragma unroll
        for (int u = 0; u < U; u++) {
            int64_t at[N];
#pragma unroll
            for (int k = 0; k < N; k++)
                at[k] = q.splat >> k & 1U ? 0 : (first + u * EACH_THREADS) * V;
            each_load<V>(q, at, item[u]);
        }
#pragma unroll
        for (int u = 0; u < U; u++) each_store<V>(q, (first + u * EACH_THREADS) * V, item[u]);
        return;
    }
#pragma unroll 1
    for (int u = 0; u < U; u++) {
        int64_t i = first + u * EACH_THREADS, e = i < q.items ? i * V : i + q.items * (V - 1);
        int64_t at[N];
        for (int k = 0; k < N; k++) at[k] = q.splat >> k & 1U ? 0 : e;
        if (i < q.items) {
            each_item<Op, V> item;
            each_load<V>(q, at, item);
            each_store<V>(q, e, item);
        } else if (i < q.items + q.tail) {
            each_item<Op, 1> item;
            each_load<1>(q, at, item);
            each_store<1>(q, e, item);
        }
    }
}

/* walk.at for fewer than 2^31 items, by short divisions alone. */
template <int N>
__device__ inline void short_walk(const mcu_walk<N> &w, uint32_t i, int64_t *at) {
#pragma unroll
    for (int k = 0; k < N; k++) at[k] = 0;
#pragma unroll 1
    for (int d = w.ndim - 1; d > 0; d--) {
        uint32_t size = (uint32_t)w.shape[d], rest = i / size, r = i - rest * size;
#pragma unroll
        for (int k = 0; k < N; k++) at[k] += r * w.stride[k][d];
        i = rest;
    }
#pragma unroll
    for (int k = 0; k < N; k++) at[k] += i * w.stride[k][0];
}

/* Items of a walk whose last axis counts vectors; fewer than 2^31 of them. */
template <typename Op, int V, int U>
__global__ void __launch_bounds__(EACH_THREADS)
    each_rows_kernel(each_args<Op> q, mcu_walk<1 + Op::inputs> w) {
    const int N = 1 + Op::inputs;
    uint32_t items = (uint32_t)q.items, first = blockIdx.x * (U * EACH_THREADS) + threadIdx.x;
    int64_t at[U][N];
    each_item<Op, V> item[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
        uint32_t i = first + u * EACH_THREADS;
        i = i < items ? i : items - 1; /* loaded in vain, but without a branch */
        short_walk(w, i, at[u]);
        each_load<V>(q, at[u], item[u]);
    }
#pragma unroll
    for (int u = 0; u < U; u++)
        if (first + u * EACH_THREADS < items) each_store<V>(q, at[u][0], item[u]);
}

template <typename Op>
__global__ void __launch_bounds__(EACH_THREADS)
    each_plain_kernel(each_args<Op> q, mcu_walk<1 + Op::inputs> w) {
    int64_t i = (int64_t)blockIdx.x * EACH_THREADS + threadIdx.x, at[1 + Op::inputs];
    if (i >= q.items) return;
    each_item<Op, 1> item;
    w.at(i, at);
    each_load<1>(q, at, item);
    each_store<1>(q, at[0], item);
}

/* -- the host's side -----------------------------------------------------------------------------
 */

/* Axes in the order of the first view's strides, merged where that allows it: the order of elements
 * does not matter here. */
template <int N>
void sort_walk(mcu_walk<N> *w) {
    int last = 0;
    for (int d = 1; d < w->ndim; d++)
        for (int k = d; k > 0 && w->stride[0][k - 1] < w->stride[0][k]; k--) {
            int64_t size = w->shape[k];
            w->shape[k] = w->shape[k - 1];
            w->shape[k - 1] = size;
            for (int v = 0; v < N; v++) {
                int64_t step = w->stride[v][k];
                w->stride[v][k] = w->stride[v][k - 1];
                w->stride[v][k - 1] = step;
            }
        }
    for (int d = 1; d < w->ndim; d++) {
        int merges = 1;
        for (int v = 0; v < N; v++)
            merges = merges && w->stride[v][last] == w->stride[v][d] * w->shape[d];
        last += !merges;
        w->shape[last] = merges ? w->shape[last] * w->shape[d] : w->shape[d];
        for (int v = 0; v < N; v++) w->stride[v][last] = w->stride[v][d];
    }
    w->ndim = w->ndim > 0 ? last + 1 : 0;
}

/* Makes the walk one over vectors of `width` elements, or says no and leaves it alone. size: bytes
 * of an element of each operand; splat, tail: as in each_args. */
template <int N>
bool each_vectorises(mcu_walk<N> *w, int width, const mci_view *const *v, const int *size,
                     unsigned *splat, int *tail) {
    int last = w->ndim - 1;
    if (last < 0 || (last > 0 && w->shape[last] % width != 0)) return false;
    if (last > 0 && w->n / width > INT32_MAX) return false;
    for (int k = 0; k < N; k++) {
        if (!v[k]) continue;
        if (w->stride[k][last] == 0 && k > 0) {
            *splat |= 1U << k;
            continue;
        }
        if (w->stride[k][last] != 1 || !mcu_aligned(v[k]->data, (size_t)(width * size[k])))
            return false;
        for (int d = 0; d < last; d++)
            if (w->stride[k][d] % width != 0) return false;
    }
    *tail = (int)(w->shape[last] % width);
    w->shape[last] /= width;
    for (int k = 0; k < N; k++) w->stride[k][last] *= width;
    return true;
}

template <typename Op>
each_args<Op> each_args_of(const Op &op, const mci_view *const *v, const typename Op::B &number,
                           void *second) {
    each_args<Op> q = {};
    q.op = op;
    q.out = static_cast<typename Op::Out *>(v[0]->data);
    q.second = static_cast<typename Op::Out *>(second);
    q.a = static_cast<const typename Op::A *>(v[1]->data);
    if (Op::inputs > 1 && v[2]) q.b = static_cast<const typename Op::B *>(v[2]->data);
    if (Op::inputs > 2) q.c = static_cast<const typename Op::C *>(v[3]->data);
    q.number = number;
    return q;
}

inline unsigned each_blocks(int64_t items, int64_t per_block) {
    return (unsigned)((items + per_block - 1) / per_block);
}

/* v: the output, then Fast::inputs inputs. `fast` and `plain`: one op, for dense arrays and rows,
 * and for the rest. number: in place of the second input where v[2] is NULL. second: data of the
 * other output, if any, which has the first one's strides. */
template <typename Fast, typename Plain>
mc_status each(mci_exec *exec, const char *name, const Fast &fast, const Plain &plain,
               const mci_view *const *v, typename Fast::B number = typename Fast::B(),
               void *second = nullptr) {
    const int N = 1 + Fast::inputs;
    const int size[4] = {sizeof(typename Fast::Out), sizeof(typename Fast::A),
                         sizeof(typename Fast::B), sizeof(typename Fast::C)};
    constexpr int ab = sizeof(typename Fast::A) > sizeof(typename Fast::B)
                           ? sizeof(typename Fast::A)
                           : sizeof(typename Fast::B);
    constexpr int widest = ab > (int)sizeof(typename Fast::Out) ? ab : sizeof(typename Fast::Out);
    constexpr int V = 16 / widest, U = V > 8 ? 1 : V == 4 && Fast::inputs == 1 ? 4 : 2;
    mcu_walk<N> w = mcu_walk_of<N>(v);
    if (w.n == 0) return MC_OK;
    sort_walk<N>(&w);
    unsigned splat = 0;
    int tail = 0;
    bool whole = !second || mcu_aligned(second, sizeof(typename Fast::Out) * V);
    if (whole && each_vectorises<N>(&w, V, v, size, &splat, &tail)) {
        each_args<Fast> q = each_args_of(fast, v, number, second);
        q.splat = splat;
        q.tail = tail;
        q.items = w.n / V;
        if (w.ndim == 1)
            MCU_LAUNCH((each_dense_kernel<Fast, V, U>),
                       each_blocks(q.items + tail, U * EACH_THREADS), EACH_THREADS, 0, exec, q);
        else
            MCU_LAUNCH((each_rows_kernel<Fast, V, 1>), each_blocks(q.items, EACH_THREADS),
                       EACH_THREADS, 0, exec, q, w);
        return mcu_launched(name);
    }
    each_args<Plain> q = each_args_of(plain, v, number, second);
    q.items = w.n;
    MCU_LAUNCH((each_plain_kernel<Plain>), each_blocks(w.n, EACH_THREADS), EACH_THREADS, 0, exec, q,
               w);
    return mcu_launched(name);
}

}  // namespace

#endif
