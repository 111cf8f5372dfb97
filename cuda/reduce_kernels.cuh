/* reduce_kernels.cuh: the two kernels of every reduction, and what they are given as an op.
 *
 * An op reads elements (T, lifted to the calculating type C) as items, folds neighbouring items in
 * a tree, adds the result to an accumulator, joins accumulators, and finishes one to a result.
 * Floats fold in float32 and accumulate in float64: one conversion for up to 32 elements. The order
 * is fixed by shape and alignment; parts of long reductions are joined in order by a second launch,
 * whose elements are the first one's accumulators.
 *
 * rows_kernel:    the innermost axis is reduced; a warp or a block of 256 owns an output.
 * columns_kernel: the innermost axis is kept; a thread owns V neighbouring outputs and every
 *                 blockDim.y-th of their elements, so a warp reads whole lines.
 */
#ifndef MCU_REDUCE_KERNELS_CUH
#define MCU_REDUCE_KERNELS_CUH

#include "common.cuh"

namespace {

enum { REDUCE_THREADS = 256 };

/* -- calculating types ---------------------------------------------------------------------------
 */

template <typename T>
struct calc_of {
    typedef int64_t type;
};
template <>
struct calc_of<double> {
    typedef double type;
};
template <>
struct calc_of<float> {
    typedef float type;
};
template <>
struct calc_of<mcu_half> {
    typedef float type;
};
template <>
struct calc_of<mcu_bf16> {
    typedef float type;
};
template <typename C>
struct wide_of {
    typedef double type;
};
template <>
struct wide_of<int64_t> {
    typedef int64_t type;
};

/* A value and its position along the axis. */
template <typename C>
struct located {
    C value;
    int64_t at;
};

template <typename T>
__device__ inline typename calc_of<T>::type lift(T x) {
    return mcu_up(x);
}
template <typename C>
__device__ inline located<C> lift(located<C> x) {
    return x;
}

template <typename C>
__device__ inline C plus(C a, C b) {
    return a + b;
}
__device__ inline int64_t plus(int64_t a, int64_t b) { /* integers wrap */
    return (int64_t)((uint64_t)a + (uint64_t)b);
}
template <typename C>
__device__ inline C times(C a, C b) {
    return a * b;
}
__device__ inline int64_t times(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a * (uint64_t)b);
}
__device__ inline double lowest(double) {
    return -(double)INFINITY;
}
__device__ inline float lowest(float) {
    return -INFINITY;
}
__device__ inline int64_t lowest(int64_t) {
    return INT64_MIN;
}
/* Turns the order round and back, exactly, for every value. */
template <typename C>
__device__ inline C turned(C x) {
    return -x;
}
__device__ inline int64_t turned(int64_t x) {
    return ~x;
}
__device__ inline double divided(double x, double by) {
    return x / by;
}
__device__ inline int64_t divided(int64_t x, double) {
    return x;
}

/* Rounded once to nearest even. */
__device__ inline void put(void *out, int dtype, int64_t at, double x) {
    switch (dtype) {
        case MC_FLOAT64:
            ((double *)out)[at] = x;
            break;
        case MC_FLOAT32:
            ((float *)out)[at] = (float)x;
            break;
        case MC_FLOAT16:
            ((mcu_half *)out)[at] = mcu_down<mcu_half>(mci_f32_odd(x));
            break;
        default:
            ((mcu_bf16 *)out)[at] = mcu_down<mcu_bf16>(mci_f32_odd(x));
            break;
    }
}
__device__ inline void put(void *out, int dtype, int64_t at, float x) {
    switch (dtype) {
        case MC_FLOAT32:
            ((float *)out)[at] = x;
            break;
        case MC_FLOAT16:
            ((mcu_half *)out)[at] = mcu_down<mcu_half>(x);
            break;
        default:
            ((mcu_bf16 *)out)[at] = mcu_down<mcu_bf16>(x);
            break;
    }
}
__device__ inline void put(void *out, int dtype, int64_t at, int64_t x) {
    switch (dtype) {
        case MC_INT64:
            ((int64_t *)out)[at] = x;
            break;
        case MC_INT32:
            ((int32_t *)out)[at] = (int32_t)x;
            break;
        default:
            ((uint8_t *)out)[at] = (uint8_t)x;
            break;
    }
}

template <typename T>
__device__ inline void rounded(T *to, double x) {
    *to = mcu_down<T>(mci_f32_odd(x));
}
template <>
__device__ inline void rounded<double>(double *to, double x) {
    *to = x;
}
template <>
__device__ inline void rounded<float>(float *to, double x) {
    *to = (float)x;
}
template <typename T>
__device__ inline void rounded(T *to, float x) {
    *to = mcu_down<T>(x);
}
template <typename T>
__device__ inline void rounded(T *to, int64_t x) {
    *to = (T)x;
}

/* -- ops -----------------------------------------------------------------------------------------
 */

/* joiner: the op over the first launch's accumulators. */
template <typename C>
struct sum_op {
    typedef C item;
    typedef typename wide_of<C>::type acc;
    typedef sum_op<acc> joiner;
    double divisor; /* mean: the number of elements */
    joiner joins() const { return joiner{divisor}; }
    __device__ item read(C x, int64_t) const { return x; }
    __device__ acc empty() const { return 0; }
    __device__ item fold(item a, item b) const { return plus(a, b); }
    __device__ acc add(acc a, item b) const { return plus(a, (acc)b); }
    __device__ acc join(acc a, acc b) const { return plus(a, b); }
    __device__ acc finish(acc a) const { return divided(a, divisor); }
};

template <typename C>
struct prod_op {
    typedef typename wide_of<C>::type item, acc;
    typedef prod_op<acc> joiner;
    joiner joins() const { return joiner{}; }
    __device__ item read(C x, int64_t) const { return (item)x; }
    __device__ acc empty() const { return 1; }
    __device__ item fold(item a, item b) const { return times(a, b); }
    __device__ acc add(acc a, item b) const { return times(a, b); }
    __device__ acc join(acc a, acc b) const { return times(a, b); }
    __device__ acc finish(acc a) const { return a; }
};

/* The greatest; the least when `turn_in` and `turn_out` are set. NaN wins. */
template <typename C>
struct extreme_op {
    typedef C item, acc;
    typedef extreme_op<C> joiner;
    int turn_in, turn_out;
    joiner joins() const { return joiner{0, turn_out}; }
    __device__ item read(C x, int64_t) const { return turn_in ? turned(x) : x; }
    __device__ acc empty() const { return lowest(C()); }
    __device__ item fold(item a, item b) const { return a > b || a != a ? a : b; }
    __device__ acc add(acc a, item b) const { return fold(a, b); }
    __device__ acc join(acc a, acc b) const { return fold(a, b); }
    __device__ acc finish(acc a) const { return turn_out ? turned(a) : a; }
};

/* The first position of the greatest (the least, turned); NaN wins. */
template <typename C>
struct place_op {
    typedef located<C> item, acc;
    typedef place_op<C> joiner;
    int turn_in;
    joiner joins() const { return joiner{0}; }
    __device__ item read(C x, int64_t at) const { return item{turn_in ? turned(x) : x, at}; }
    __device__ item read(item x, int64_t) const { return x; }
    __device__ acc empty() const { return acc{lowest(C()), INT64_MAX}; }
    __device__ item fold(item a, item b) const {
        bool a_nan = a.value != a.value, b_nan = b.value != b.value;
        bool equal = a.value == b.value || (a_nan && b_nan);
        bool second = equal ? b.at < a.at : b_nan || (!a_nan && b.value > a.value);
        return second ? b : a;
    }
    __device__ acc add(acc a, item b) const { return fold(a, b); }
    __device__ acc join(acc a, acc b) const { return fold(a, b); }
    __device__ int64_t finish(acc a) const { return a.at; }
};

template <typename A>
__device__ inline A other_lane(A x, int d) {
    return __shfl_xor_sync(0xFFFFFFFFU, x, d);
}
template <typename C>
__device__ inline located<C> other_lane(located<C> x, int d) {
    return located<C>{other_lane(x.value, d), other_lane(x.at, d)};
}

/* -- kernels -------------------------------------------------------------------------------------
 */

struct reduction {
    const void *in;
    void *out, *partial; /* partial: accumulators [parts][outputs], NULL with one part */
    mcu_walk<2> kept;    /* offsets in `in` and `out`; columns_kernel: of V outputs at a time */
    mcu_walk<1> reduced; /* rows_kernel: of V elements at a time */
    int64_t outputs, length, parts, part_size, out_step;
    int64_t step; /* reduced.stride[0][0], for the usual one axis */
    int out_dtype,
        out_vector; /* out_vector: V outputs are one aligned access of the input's type */
    int flat;       /* the reduced elements lie behind each other */
    int group;      /* rows_kernel: threads of one output, 32 or 256 */
};

template <typename Op, typename T, int V>
__device__ inline typename Op::item folded(const Op &op, const mcu_vector<T, V> &w, int64_t at) {
    typename Op::item s[V];
#pragma unroll
    for (int i = 0; i < V; i++) s[i] = op.read(lift(w.v[i]), at + i);
#pragma unroll
    for (int half = V / 2; half > 0; half /= 2)
#pragma unroll
        for (int i = 0; i < half; i++) s[i] = op.fold(s[i], s[i + half]);
    return s[0];
}

/* Elements [low, low + count) of the output whose elements begin at x, this thread's share. Vectors
 * begin at the first aligned element; what is before and behind them goes by ones. */
template <typename Op, typename T, int V>
__device__ inline typename Op::acc row_share(const reduction &p, const Op &op, const T *x,
                                             int64_t low, int64_t count, int lane) {
    typedef mcu_vector<T, V> vector;
    typename Op::acc a = op.empty();
    int64_t first = low / V, zero = 0;
    const int group = p.group;
    if (V > 1 && p.flat) {
        x += low;
        int64_t head = (int64_t)((16 - (uintptr_t)x % 16) % 16 / sizeof(T));
        if (head > count) head = count;
        int64_t tail = (count - head) % V, last = count - tail;
        if (lane < head) a = op.add(a, op.read(lift(x[lane]), low + lane));
        if (lane < tail) a = op.add(a, op.read(lift(x[last + lane]), low + last + lane));
        x += head;
        count = last - head;
        zero = low + head;
        first = 0;
    }
    int64_t v = lane, n = count / V;
    if (p.reduced.ndim <= 1) {
        const T *from = x + first * p.step;
        for (; v + 3 * group < n; v += 4 * group) {
            vector w[4];
            typename Op::item s[4];
#pragma unroll
            for (int j = 0; j < 4; j++) w[j] = *(const vector *)(from + (v + j * group) * p.step);
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[j] = folded<Op, T, V>(op, w[j], zero + (first + v + j * group) * V);
            a = op.add(a, op.fold(op.fold(s[0], s[1]), op.fold(s[2], s[3])));
        }
    }
#pragma unroll 1
    for (; v < n; v += group) {
        int64_t at;
        p.reduced.at(first + v, &at);
        a = op.add(a, folded<Op, T, V>(op, *(const vector *)(x + at), zero + (first + v) * V));
    }
    return a;
}

template <typename Op, typename T, int V>
__global__ void __launch_bounds__(REDUCE_THREADS) rows_kernel(reduction p, Op op) {
    typedef typename Op::acc acc;
    __shared__ acc space[REDUCE_THREADS / 32];
    const int group = p.group, lane = (int)threadIdx.x % group;
    const int64_t per_block = REDUCE_THREADS / group, units = p.outputs * p.parts;
    int64_t unit = (int64_t)blockIdx.x * per_block + (int64_t)threadIdx.x / group;
    for (; unit < units; unit += (int64_t)gridDim.x * per_block) {
        int64_t part = p.parts > 1 ? unit / p.outputs : 0, output = unit - part * p.outputs;
        int64_t low = part * p.part_size, offset[2];
        int64_t count = p.length - low < p.part_size ? p.length - low : p.part_size;
        p.kept.at(output, offset);
        acc a = row_share<Op, T, V>(p, op, (const T *)p.in + offset[0], low, count, lane);
        for (int d = 16; d > 0; d /= 2) a = op.join(a, other_lane(a, d));
        if (group > 32) {
            if (lane % 32 == 0) space[lane / 32] = a;
            __syncthreads();
            if (lane == 0)
                for (int i = 1; i < REDUCE_THREADS / 32; i++) a = op.join(a, space[i]);
            __syncthreads();
        }
        if (lane == 0 && p.partial)
            ((acc *)p.partial)[part * p.outputs + output] = a;
        else if (lane == 0)
            put(p.out, p.out_dtype, offset[1], op.finish(a));
        __syncwarp();
    }
}

/* The block is [blockDim.y stripes][blockDim.x columns of V outputs]. */
template <typename Op, typename T, int V>
__global__ void __launch_bounds__(REDUCE_THREADS, 3) columns_kernel(reduction p, Op op) {
    typedef typename Op::acc acc;
    typedef mcu_vector<T, V> vector;
    __shared__ acc space[REDUCE_THREADS];
    const int tx = (int)blockDim.x, ty = (int)blockDim.y;
    const int x = (int)threadIdx.x, y = (int)threadIdx.y;
    const int64_t columns = p.outputs / V, tiles = (columns + tx - 1) / tx;
    for (int64_t unit = blockIdx.x; unit < tiles * p.parts; unit += gridDim.x) {
        int64_t part = p.parts > 1 ? unit / tiles : 0;
        int64_t column = (unit - part * tiles) * tx + x, offset[2] = {0, 0};
        acc a[V];
#pragma unroll
        for (int i = 0; i < V; i++) a[i] = op.empty();
        if (column < columns) {
            p.kept.at(column, offset);
            const T *in = (const T *)p.in + offset[0];
            int64_t r = part * p.part_size + y, end = (part + 1) * p.part_size;
            if (end > p.length) end = p.length;
            if (p.reduced.ndim <= 1) {
                for (; r + 3 * ty < end; r += 4 * ty) {
                    vector w[4];
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        w[j] = *(const vector *)(in + (r + j * ty) * p.step);
#pragma unroll
                    for (int i = 0; i < V; i++) {
                        typename Op::item s[4];
#pragma unroll
                        for (int j = 0; j < 4; j++) s[j] = op.read(lift(w[j].v[i]), r + j * ty);
                        a[i] = op.add(a[i], op.fold(op.fold(s[0], s[1]), op.fold(s[2], s[3])));
                    }
                }
            }
#pragma unroll 1
            for (; r < end; r += ty) {
                int64_t at;
                p.reduced.at(r, &at);
                vector w = *(const vector *)(in + at);
#pragma unroll
                for (int i = 0; i < V; i++) a[i] = op.add(a[i], op.read(lift(w.v[i]), r));
            }
        }
        if (ty > 1) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                space[y * tx + x] = a[i];
                __syncthreads();
                for (int half = ty / 2; half > 0; half /= 2) {
                    if (y < half)
                        space[y * tx + x] = op.join(space[y * tx + x], space[(y + half) * tx + x]);
                    __syncthreads();
                }
                a[i] = space[x];
                __syncthreads();
            }
        }
        if (column >= columns || y > 0) continue;
        if (p.partial) {
#pragma unroll
            for (int i = 0; i < V; i++)
                ((acc *)p.partial)[part * p.outputs + column * V + i] = a[i];
            continue;
        }
        if constexpr (V > 1) {
            if (p.out_vector) {
                vector w;
#pragma unroll
                for (int i = 0; i < V; i++) rounded(&w.v[i], op.finish(a[i]));
                *(vector *)((T *)p.out + offset[1]) = w;
                continue;
            }
        }
#pragma unroll
        for (int i = 0; i < V; i++)
            put(p.out, p.out_dtype, offset[1] + i * p.out_step, op.finish(a[i]));
    }
}

} /* namespace */

#endif
