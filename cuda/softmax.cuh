/* softmax.cuh: softmax, log_softmax and their gradients along an axis (formulas: mascon.h).
 *
 * Rows up to 8192 elements (float64: 4096): a warp or a block owns a row and keeps it in registers,
 * so that memory is read and written once. Longer rows are read twice, with the running maximum and
 * sum of Milakov & Gimelshein 2018 ("Online normalizer calculation for softmax"). Along an axis
 * that is not the innermost, a warp owns 32 neighbouring rows and reads across them. All sums are
 * in float32 (float64 for float64), in an order that the shape fixes.
 */
#ifndef MCU_SOFTMAX_CUH
#define MCU_SOFTMAX_CUH

#include "common.cuh"

namespace {

enum { THREADS = 256, LONG_THREADS = 512, MOST_BLOCKS = 1 << 20 };

unsigned grid_of(int64_t units) {
    return (unsigned)(units < MOST_BLOCKS ? units : (int64_t)MOST_BLOCKS);
}

/* -- softmax: what the kernels share -------------------------------------------------------------
 */

/* Operands: the output, then one or two inputs, of one shape. */
struct softmax_rows {
    void *out;
    const void *a, *b; /* x; or dy and y */
    mcu_walk<3> outer; /* over rows: offsets in out, a, b */
    int64_t count, length, step[3];
    int group, logarithmic;
};

template <typename T>
__device__ inline float exponential(float x) {
    return sizeof(T) == 2 ? __expf(x) : expf(x); /* 2^-21 off at most where 2^-8 or 2^-11 is seen */
}
template <typename T>
__device__ inline double exponential(double x) {
    return exp(x);
}
__device__ inline float logarithm(float x) {
    return logf(x);
}
__device__ inline double logarithm(double x) {
    return log(x);
}
__device__ inline float lowest(float) {
    return -INFINITY;
}
__device__ inline double lowest(double) {
    return -(double)INFINITY;
}
template <typename C>
__device__ inline C larger(C a, C b) {
    return b > a ? b : a;
}

/* Over the 32 threads of a warp, or the block when group is larger. */
template <typename C>
__device__ inline C group_sum(C x, int group, C *space) {
    return group == 32 ? mcu_warp_sum(x) : mcu_block_sum(x, space);
}
template <typename C>
__device__ inline C group_max(C x, int group, C *space) {
    return group == 32 ? mcu_warp_max(x) : mcu_block_max(x, space);
}

/* The sum of exp(x - top) over what has been seen. NaN is no maximum but spoils the sum, which
 * gives what a NaN maximum would. */
template <typename C>
struct online {
    C top, sum;
};
/* exp(-inf) is 0 before there is a finite maximum, not NaN. */
template <typename C>
__device__ inline C base_of(C top) {
    return top == lowest(C()) ? (C)0 : top;
}
template <typename T, typename C>
__device__ inline online<C> joined(online<C> a, online<C> b) {
    C top = larger(a.top, b.top), base = base_of(top);
    return online<C>{top,
                     a.sum * exponential<T>(a.top - base) + b.sum * exponential<T>(b.top - base)};
}
template <typename T, typename C>
__device__ inline online<C> with(online<C> a, C x) {
    C top = larger(a.top, x), base = base_of(top);
    return online<C>{top, a.sum * exponential<T>(a.top - base) + exponential<T>(x - base)};
}

/* -- softmax of rows held in registers -----------------------------------------------------------
 */

/* Thread i of the row's group holds vectors i, i + group, ...: up to N of V elements. */
template <typename T, int V, int N>
__global__ void __launch_bounds__(THREADS) held_kernel(softmax_rows p) {
    typedef mcu_real_t<T> C;
    typedef mcu_vector<T, V> vector;
    __shared__ C space[32];
    const int group = p.group, lane = (int)threadIdx.x % group, n = (int)p.length;
    const int64_t per_block = THREADS / group;
    int64_t row = (int64_t)blockIdx.x * per_block + (int64_t)threadIdx.x / group;
    for (; row < p.count; row += (int64_t)gridDim.x * per_block) {
        int64_t offset[3];
        p.outer.at(row, offset);
        const T *a = (const T *)p.a + offset[1];
        T *out = (T *)p.out + offset[0];
        C x[N][V], top = lowest(C()), sum = 0;
#pragma unroll
        for (int k = 0; k < N; k++) {
            int at = (lane + k * group) * V;
            if (at < n) {
                vector w = *(const vector *)(a + (V > 1 ? at : at * p.step[1]));
#pragma unroll
                for (int i = 0; i < V; i++) x[k][i] = mcu_up(w.v[i]);
            } else {
#pragma unroll
                for (int i = 0; i < V; i++) x[k][i] = lowest(C());
            }
#pragma unroll
            for (int i = 0; i < V; i++) top = larger(top, x[k][i]);
        }
        top = group_max(top, group, space);
#pragma unroll
        for (int k = 0; k < N; k++) {
            if ((lane + k * group) * V >= n) break;
#pragma unroll
            for (int i = 0; i < V; i++) {
                C e = exponential<T>(x[k][i] - top);
                sum += e;
                x[k][i] = p.logarithmic ? x[k][i] - top : e;
            }
        }
        sum = group_sum(sum, group, space);
        C shift = p.logarithmic ? -logarithm(sum) : (C)0, scale = p.logarithmic ? (C)1 : 1 / sum;
#pragma unroll
        for (int k = 0; k < N; k++) {
            int at = (lane + k * group) * V;
            if (at >= n) break;
            vector w;
#pragma unroll
            for (int i = 0; i < V; i++) w.v[i] = mcu_down<T>(x[k][i] * scale + shift);
            *(vector *)(out + (V > 1 ? at : at * p.step[0])) = w;
        }
    }
}

template <typename T, int V, int N>
__global__ void __launch_bounds__(THREADS) held_backward_kernel(softmax_rows p) {
    typedef mcu_real_t<T> C;
    typedef mcu_vector<T, V> vector;
    __shared__ C space[32];
    const int group = p.group, lane = (int)threadIdx.x % group, n = (int)p.length;
    const int64_t per_block = THREADS / group;
    int64_t row = (int64_t)blockIdx.x * per_block + (int64_t)threadIdx.x / group;
    for (; row < p.count; row += (int64_t)gridDim.x * per_block) {
        int64_t offset[3];
        p.outer.at(row, offset);
        const T *a = (const T *)p.a + offset[1], *b = (const T *)p.b + offset[2];
        T *out = (T *)p.out + offset[0];
        vector dy[N], y[N];
        C sum = 0;
#pragma unroll
        for (int k = 0; k < N; k++) {
            int at = (lane + k * group) * V;
            if (at >= n) break;
            dy[k] = *(const vector *)(a + (V > 1 ? at : at * p.step[1]));
            y[k] = *(const vector *)(b + (V > 1 ? at : at * p.step[2]));
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            if ((lane + k * group) * V >= n) break;
#pragma unroll
            for (int i = 0; i < V; i++)
                sum += p.logarithmic ? mcu_up(dy[k].v[i]) : mcu_up(dy[k].v[i]) * mcu_up(y[k].v[i]);
        }
        sum = group_sum(sum, group, space);
#pragma unroll
        for (int k = 0; k < N; k++) {
            int at = (lane + k * group) * V;
            if (at >= n) break;
            vector w;
#pragma unroll
            for (int i = 0; i < V; i++) {
                C g = mcu_up(dy[k].v[i]), v = mcu_up(y[k].v[i]);
                w.v[i] = mcu_down<T>(p.logarithmic ? g - exponential<T>(v) * sum : v * (g - sum));
            }
            *(vector *)(out + (V > 1 ? at : at * p.step[0])) = w;
        }
    }
}

/* -- softmax of longer rows ----------------------------------------------------------------------
 */

/* A block per row. With V > 1 the operands' rows lie alike: the same number of elements, `head`,
 * before their first aligned one. */
template <typename T, int V, int BACKWARD>
__global__ void __launch_bounds__(LONG_THREADS) long_kernel(softmax_rows p) {
    typedef mcu_real_t<T> C;
    typedef mcu_vector<T, V> vector;
    __shared__ C space[32];
    const int lane = (int)threadIdx.x;
    for (int64_t row = blockIdx.x; row < p.count; row += gridDim.x) {
        int64_t offset[3], n = p.length;
        p.outer.at(row, offset);
        const T *a = (const T *)p.a + offset[1], *b = (const T *)p.b + offset[2];
        T *out = (T *)p.out + offset[0];
        int64_t head = V > 1 ? (int64_t)((16 - (uintptr_t)a % 16) % 16 / sizeof(T)) : 0;
        int64_t vectors = (n - head) / V, last = head + vectors * V;
        /* the elements before and behind the vectors, one per thread */
        int64_t edge = lane < head ? lane : last + lane - head;
        bool on_edge = V > 1 && edge < n;
        online<C> s = {lowest(C()), 0};
        if (on_edge) {
            C x = mcu_up(a[edge]);
            if (BACKWARD)
                s.sum = p.logarithmic ? x : x * mcu_up(b[edge]);
            else
                s = with<T>(s, x);
        }
#pragma unroll 2
        for (int64_t v = lane; v < vectors; v += LONG_THREADS) {
            vector w = *(const vector *)(a + (V > 1 ? head + v * V : v * p.step[1])), u;
            if (BACKWARD) {
                u = *(const vector *)(b + (V > 1 ? head + v * V : v * p.step[2]));
#pragma unroll
                for (int i = 0; i < V; i++)
                    s.sum += p.logarithmic ? mcu_up(w.v[i]) : mcu_up(w.v[i]) * mcu_up(u.v[i]);
                continue;
            }
            C top = s.top;
#pragma unroll
            for (int i = 0; i < V; i++) top = larger(top, mcu_up(w.v[i]));
            C base = base_of(top), sum = s.sum * exponential<T>(s.top - base);
#pragma unroll
            for (int i = 0; i < V; i++) sum += exponential<T>(mcu_up(w.v[i]) - base);
            s = online<C>{top, sum};
        }
        C top = 0, shift = 0, scale = 1, total;
        if (BACKWARD) {
            total = mcu_block_sum(s.sum, space);
        } else {
            top = mcu_block_max(s.top, space);
            total = mcu_block_sum(s.sum * exponential<T>(s.top - base_of(top)), space);
            shift = p.logarithmic ? -logarithm(total) : (C)0;
            scale = 1 / total;
        }
        for (int64_t v = lane; v < vectors + LONG_THREADS; v += LONG_THREADS) {
            /* after the vectors, the edge as a vector of its own */
            bool whole = v < vectors;
            if (!whole && !on_edge) break;
            vector w, u, r;
            if (whole) {
                w = *(const vector *)(a + (V > 1 ? head + v * V : v * p.step[1]));
                if (BACKWARD) u = *(const vector *)(b + (V > 1 ? head + v * V : v * p.step[2]));
            } else {
                w.v[0] = a[edge];
                if (BACKWARD) u.v[0] = b[edge];
            }
#pragma unroll
            for (int i = 0; i < V; i++) {
                if (i > 0 && !whole) break;
                C x = mcu_up(w.v[i]), y;
                if (BACKWARD) {
                    C z = mcu_up(u.v[i]);
                    y = p.logarithmic ? x - exponential<T>(z) * total : z * (x - total);
                } else {
                    y = p.logarithmic ? (x - top) + shift : exponential<T>(x - top) * scale;
                }
                r.v[i] = mcu_down<T>(y);
            }
            if (whole)
                *(vector *)(out + (V > 1 ? head + v * V : v * p.step[0])) = r;
            else
                out[edge] = r.v[0];
        }
    }
}

/* -- softmax across rows --------------------------------------------------------------------------
 */

/* The block is [8 stripes][32 rows]: thread (x, y) takes elements y, y + 8, ... of row x. */
template <typename T, int BACKWARD>
__global__ void __launch_bounds__(THREADS) across_kernel(softmax_rows p) {
    typedef mcu_real_t<T> C;
    enum { STRIPES = THREADS / 32 };
    __shared__ C tops[THREADS], sums[THREADS];
    const int x = (int)threadIdx.x % 32, y = (int)threadIdx.x / 32;
    for (int64_t tile = blockIdx.x; tile * 32 < p.count; tile += gridDim.x) {
        int64_t row = tile * 32 + x, n = row < p.count ? p.length : 0, offset[3] = {0, 0, 0};
        if (n > 0) p.outer.at(row, offset);
        const T *a = (const T *)p.a + offset[1], *b = (const T *)p.b + offset[2];
        T *out = (T *)p.out + offset[0];
        online<C> s = {lowest(C()), 0};
#pragma unroll 4
        for (int64_t i = y; i < n; i += STRIPES) {
            C v = mcu_up(a[i * p.step[1]]);
            if (BACKWARD)
                s.sum += p.logarithmic ? v : v * mcu_up(b[i * p.step[2]]);
            else
                s = with<T>(s, v);
        }
        tops[threadIdx.x] = s.top;
        sums[threadIdx.x] = s.sum;
        __syncthreads();
        s = online<C>{tops[x], sums[x]};
        for (int k = 1; k < STRIPES; k++) {
            if (BACKWARD)
                s.sum += sums[k * 32 + x];
            else
                s = joined<T>(s, online<C>{tops[k * 32 + x], sums[k * 32 + x]});
        }
        __syncthreads();
        C shift = p.logarithmic ? -logarithm(s.sum) : (C)0, scale = 1 / s.sum;
#pragma unroll 4
        for (int64_t i = y; i < n; i += STRIPES) {
            C v = mcu_up(a[i * p.step[1]]), r;
            if (BACKWARD) {
                C z = mcu_up(b[i * p.step[2]]);
                r = p.logarithmic ? v - exponential<T>(z) * s.sum : z * (v - s.sum);
            } else {
                r = p.logarithmic ? (v - s.top) + shift : exponential<T>(v - s.top) * scale;
            }
            out[i * p.step[0]] = mcu_down<T>(r);
        }
    }
}

/* -- softmax: launches ----------------------------------------------------------------------------
 */

template <typename T, int V, int N>
void launch_held(mci_exec *exec, const softmax_rows &p) {
    int64_t per_block = THREADS / p.group;
    unsigned blocks = grid_of((p.count + per_block - 1) / per_block);
    if (p.b)
        MCU_LAUNCH((held_backward_kernel<T, V, N>), blocks, THREADS, 0, exec, p);
    else
        MCU_LAUNCH((held_kernel<T, V, N>), blocks, THREADS, 0, exec, p);
}

/* Elements of a row that a thread keeps: 128 bytes of registers. */
template <typename T>
constexpr int held() {
    return 128 / (int)sizeof(mcu_real_t<T>);
}

/* A warp or a block, and a quarter of the registers where that is enough. */
template <typename T, int V>
void choose_held(mci_exec *exec, softmax_rows *p) {
    constexpr int HELD = held<T>();
    p->group = p->length <= 32 * HELD ? 32 : THREADS;
    if (p->length <= p->group * HELD / 4)
        launch_held<T, V, HELD / 4 / V>(exec, *p);
    else
        launch_held<T, V, HELD / V>(exec, *p);
}

template <typename T, int V>
void launch_long(mci_exec *exec, const softmax_rows &p) {
    if (p.b)
        MCU_LAUNCH((long_kernel<T, V, 1>), grid_of(p.count), LONG_THREADS, 0, exec, p);
    else
        MCU_LAUNCH((long_kernel<T, V, 0>), grid_of(p.count), LONG_THREADS, 0, exec, p);
}

/* 1 when in every operand each row begins as many elements after an aligned address as in the
 * others (as = 1), or at an aligned address itself (as = 0). */
int rows_lie(const softmax_rows &p, const void *const *data, int n, int V, int as) {
    for (int k = 0; k < n; k++) {
        if (!mcu_aligned(data[k], as ? 16 / (size_t)V : 16)) return 0;
        if (as && ((uintptr_t)data[k] - (uintptr_t)data[0]) % 16 != 0) return 0;
        for (int d = 0; d < p.outer.ndim; d++)
            if ((p.outer.stride[k][d] - (as ? p.outer.stride[0][d] : 0)) % V != 0) return 0;
    }
    return 1;
}

template <typename T>
mc_status softmax_of(mci_exec *exec, const char *name, const mci_view *const *t, int n, int axis,
                     int logarithmic) {
    enum { V = 16 / sizeof(T) };
    softmax_rows p = {};
    mci_view outer[3];
    const mci_view *list[3] = {};
    const void *data[3] = {};
    int64_t inner = INT64_MAX, magnitude;
    int dense = 1;
    p.length = t[0]->ndim > 0 ? t[0]->shape[axis] : 1;
    p.logarithmic = logarithmic;
    for (int k = 0; k < n; k++) {
        outer[k] = *t[k];
        p.step[k] = t[k]->ndim > 0 ? t[k]->stride[axis] : 1;
        if (t[k]->ndim > 0) outer[k].shape[axis] = 1;
        dense = dense && (p.step[k] == 1 || p.length == 1);
        list[k] = &outer[k];
        data[k] = t[k]->data;
    }
    p.out = t[0]->data;
    p.a = t[1]->data;
    p.b = n > 2 ? t[2]->data : NULL;
    p.outer = mcu_walk_of<3>(list);
    p.count = p.outer.n;
    if (p.count == 0 || p.length == 0) return MC_OK;
    for (int d = 0; d < p.outer.ndim; d++) {
        magnitude = p.outer.stride[0][d] < 0 ? -p.outer.stride[0][d] : p.outer.stride[0][d];
        inner = magnitude < inner ? magnitude : inner;
    }
    magnitude = p.step[0] < 0 ? -p.step[0] : p.step[0];
    if (!dense && p.count >= 8 && magnitude > inner) {
        if (p.b)
            MCU_LAUNCH((across_kernel<T, 1>), grid_of((p.count + 31) / 32), THREADS, 0, exec, p);
        else
            MCU_LAUNCH((across_kernel<T, 0>), grid_of((p.count + 31) / 32), THREADS, 0, exec, p);
    } else if (p.length <= held<T>() * THREADS) {
        if (dense && p.length % V == 0 && rows_lie(p, data, n, V, 0))
            choose_held<T, V>(exec, &p);
        else
            choose_held<T, 1>(exec, &p);
    } else {
        if (dense && rows_lie(p, data, n, V, 1))
            launch_long<T, V>(exec, p);
        else
            launch_long<T, 1>(exec, p);
    }
    return mcu_launched(name);
}

mc_status softmax(mci_exec *exec, const char *name, const mci_view *const *t, int n,
                  const void *params_, int logarithmic) {
    const mci_axis_params *r = (const mci_axis_params *)params_;
    return mcu_for_float(t[0]->dtype, [&](auto tag) {
        return softmax_of<decltype(tag)>(exec, name, t, n, r->axis, logarithmic);
    });
}

} /* namespace */

#endif
