/* random.cu: fills with random numbers, and dropout; core/rng.h says which number stands where.
 *
 * A thread has the four elements of a Philox block. The state {seed, offset} stays on the device:
 * every thread reads it, and a second, tiny kernel behind moves the offset on, so that a replayed
 * graph goes on with fresh numbers. Integers and uniforms are the CPU's bits: products and sums are
 * not fused. Normals are made in float64 and rounded once, so they differ from the CPU's by a last
 * bit at most; float32 functions would spend the promised 2 ulp on the logarithm and the cosine.
 * dropout compares words with a threshold: x >> 8 times 2^-24 >= p where x >> 8 >= ceil(p 2^24), or
 * x >= 2^8 ceil(p 2^24), which for p = 1 no word has room for.
 */
#include <cstring>

#include "convert.cuh"
#include "elementwise.cuh"
#include "rng.h"

namespace {

enum { THREADS = 256 };

/* mci_philox by 32-bit products: nvcc adds the zero upper halves of 64-bit ones, a fifth more
 * instructions in all. */
__device__ inline void philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t high0 = __umulhi(c[0], 0xD2511F53U), low0 = c[0] * 0xD2511F53U;
        uint32_t high2 = __umulhi(c[2], 0xCD9E8D57U), low2 = c[2] * 0xCD9E8D57U;
        c[0] = high2 ^ c[1] ^ k0;
        c[1] = low2;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
}

/* The device's {seed, offset}; read once by each thread, before it stores: a store might change it,
 * as far as the compiler knows. */
struct numbers {
    uint64_t seed, offset;
    __device__ void words(int64_t block, uint32_t *c) const {
        uint64_t counter = offset + (uint64_t)block;
        c[0] = (uint32_t)counter;
        c[1] = (uint32_t)(counter >> 32);
        c[2] = c[3] = 0;
        philox(c, (uint32_t)seed, (uint32_t)(seed >> 32));
    }
};
struct generator {
    int64_t *data;
    int64_t stride;
    __device__ numbers read() const { return {(uint64_t)data[0], (uint64_t)data[stride]}; }
};

__global__ void advance_kernel(generator g, int64_t blocks) {
    g.data[g.stride] = (int64_t)((uint64_t)g.data[g.stride] + (uint64_t)blocks);
}

generator generator_of(const mci_view *state) {
    return {static_cast<int64_t *>(state->data), state->stride[0]};
}

mc_status advance(mci_exec *exec, const char *name, const generator &g, int64_t n) {
    MCU_LAUNCH(advance_kernel, 1, 1, 0, exec, g, (n + 3) / 4);
    return mcu_launched(name);
}

__device__ inline float unit(uint32_t x) {
    return (float)(int32_t)(x >> 8) * 0x1p-24f;
}
/* a + b c, rounded twice. */
__device__ inline float sum_of(float a, float b, float c) {
    return __fadd_rn(a, __fmul_rn(b, c));
}
__device__ inline double sum_of(double a, double b, double c) {
    return __dadd_rn(a, __dmul_rn(b, c));
}

/* -- four numbers from four words ----------------------------------------------------------------
 */

template <typename T>
struct uniform {
    wide_t<T> low, width, limit;
    __device__ void operator()(const uint32_t *w, T *out) const {
        for (int j = 0; j < 4; j++) {
            wide_t<T> x = sum_of(low, (wide_t<T>)unit(w[j]), width);
            out[j] = lower<T>(x > limit ? limit : x);
        }
    }
};

/* Box and Muller's pair for u and v in (0, 1] and [0, 1) (1958, "A note on the generation of random
 * normal deviates"). */
__device__ inline void box_muller(uint32_t x, uint32_t y, float *z) {
    double r = sqrt(-2.0 * log((double)((x >> 8) + 1U) * 0x1p-24)), s, c;
    sincospi((double)(y >> 8) * 0x1p-23, &s, &c);
    z[0] = (float)(r * c);
    z[1] = (float)(r * s);
}
__device__ inline void box_muller(uint32_t x, uint32_t y, double *z) {
    double u = ((double)(x >> 8) + 1.0) * 0x1p-24;
    double angle = (double)(y >> 8) * 0x1p-24 * 6.283185307179586477;
    double r = sqrt(-2.0 * log(u));
    z[0] = r * cos(angle);
    z[1] = r * sin(angle);
}

template <typename T>
struct normal {
    wide_t<T> mean, std;
    __device__ void operator()(const uint32_t *w, T *out) const {
        wide_t<T> z[4];
        box_muller(w[0], w[1], z);
        box_muller(w[2], w[3], z + 2);
        for (int j = 0; j < 4; j++) out[j] = lower<T>(sum_of(mean, std, z[j]));
    }
};

/* T: storage of the size of `dtype`. */
template <typename T>
struct integers {
    int64_t low;
    uint64_t range; /* 2^32 at most */
    int dtype;
    __device__ void operator()(const uint32_t *w, T *out) const {
        for (int j = 0; j < 4; j++)
            store_as<int64_t>(out, j, dtype, low + (int64_t)((uint64_t)w[j] * range >> 32));
    }
};

/* Four elements that follow one another, as vectors of up to 16 bytes. */
template <typename T>
__device__ inline void put(T *to, const T *x) {
    constexpr int V = sizeof(T) == 8 ? 2 : 4;
    for (int j = 0; j < 4; j += V) {
        mcu_vector<T, V> part;
        for (int b = 0; b < V; b++) part.v[b] = x[j + b];
        *reinterpret_cast<mcu_vector<T, V> *>(to + j) = part;
    }
}

/* whole: the tensor is dense and aligned. */
template <typename Make, typename T>
__global__ void __launch_bounds__(THREADS)
    random_kernel(Make make, T *out, generator g, int whole, mcu_walk<1> w) {
    int64_t block = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (block * 4 >= w.n) return;
    uint32_t c[4];
    T x[4];
    g.read().words(block, c);
    make(c, x);
    if (whole && block * 4 + 4 <= w.n) {
        put(out + block * 4, x);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int64_t at;
        if (block * 4 + j >= w.n) return;
        w.at(block * 4 + j, &at);
        out[at] = x[j];
    }
}

/* t: out, state. */
template <typename T, typename Make>
mc_status fill(mci_exec *exec, const char *name, const mci_view *const *t, const Make &make) {
    mcu_walk<1> w = mcu_walk_of<1>(t);
    if (w.n == 0) return MC_OK;
    generator g = generator_of(t[1]);
    int whole = w.dense && mcu_aligned(t[0]->data, sizeof(T) == 8 ? 16 : 4 * sizeof(T));
    MCU_LAUNCH((random_kernel<Make, T>), each_blocks(w.n, 4 * THREADS), THREADS, 0, exec, make,
               static_cast<T *>(t[0]->data), g, whole, w);
    return advance(exec, name, g, w.n);
}

/* The largest value of a float dtype below x. */
double value_below(double x, int dtype) {
    uint64_t code = 0, sign = UINT64_C(1) << (8 * dtype_size(dtype) - 1);
    store_as<double>(&code, 0, dtype, x);
    auto value = [&] {
        return dtype == MC_FLOAT64 ? load_as<double>(&code, 0, dtype)
                                   : (double)load_as<float>(&code, 0, dtype);
    };
    if (value() < x) return value();
    code = code == 0 || code == sign ? sign | 1U : code & sign ? code + 1 : code - 1;
    return value();
}

/* -- dropout -------------------------------------------------------------------------------------
 */

template <typename T>
struct dropout_args {
    T *y;
    uint8_t *keep;
    const T *x;
    generator g;
    uint32_t threshold; /* of a word; all are dropped where `none` */
    int none;
    wide_t<T> scale;
    int64_t whole;    /* tiles */
    mcu_walk<3> walk; /* y, keep, x */
    __device__ bool keeps(uint32_t word) const { return word >= threshold && !none; }
};

template <typename T>
__device__ inline T drop(T x, bool keep, wide_t<T> scale) {
    return lower<T>(lift(x) * (keep ? scale : (wide_t<T>)0));
}

/* Elements of an item: a block of four, or two of them where that makes 16 bytes. */
__host__ __device__ constexpr int item_of(size_t size) {
    return size == 2 ? 8 : 4;
}
enum { ITEMS = 2, TILE = ITEMS * THREADS };

/* As words, not as elements: 16-bit values that outlive a loop's turn are taken apart at its end,
 * which waits for them. */
template <typename T>
struct dropout_items {
    enum { N = item_of(sizeof(T)), PARTS = N * (int)sizeof(T) / 16 };
    mcu_vector<uint32_t, 4> x[ITEMS][PARTS];
    __device__ void read(const T *from, int64_t first) {
#pragma unroll
        for (int u = 0; u < ITEMS; u++)
#pragma unroll
            for (int j = 0; j < PARTS; j++)
                x[u][j] = reinterpret_cast<const mcu_vector<uint32_t, 4> *>(
                    from + (first + u * THREADS) * N)[j];
    }
};

/* `whole` tiles are arrays of vectors. A thread has ITEMS items of a tile, 256 apart; those of its
 * next tile are on their way while it makes the words of this one. What is left, or strided, goes a
 * block of four after the other. */
template <typename T>
__global__ void __launch_bounds__(THREADS) dropout_kernel(dropout_args<T> q) {
    typedef dropout_items<T> items;
    constexpr int N = items::N, V = 16 / (int)sizeof(T);
    typedef mcu_vector<uint32_t, N / 4> bytes;
    typedef mcu_vector<T, V> vector;
    int64_t n = q.walk.n, tile = blockIdx.x;
    numbers g = q.g.read();
    items next;
    if (tile < q.whole) next.read(q.x, tile * TILE + threadIdx.x);
    for (; tile < q.whole; tile += gridDim.x) {
        int64_t first = tile * TILE + threadIdx.x;
        items now = next;
        if (tile + gridDim.x < q.whole) next.read(q.x, (tile + gridDim.x) * TILE + threadIdx.x);
#pragma unroll
        for (int u = 0; u < ITEMS; u++) {
            int64_t item = first + u * THREADS;
            vector x[items::PARTS];
            bytes keep;
            memcpy(x, now.x[u], sizeof x);
#pragma unroll
            for (int b = 0; b < N / 4; b++) {
                uint32_t c[4];
                g.words(item * (N / 4) + b, c);
                keep.v[b] = 0;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    T &e = x[(b * 4 + j) / V].v[(b * 4 + j) % V];
                    keep.v[b] |= q.keeps(c[j]) ? 1U << 8 * j : 0U;
                    e = drop(e, q.keeps(c[j]), q.scale);
                }
            }
#pragma unroll
            for (int j = 0; j < items::PARTS; j++)
                reinterpret_cast<vector *>(q.y + item * N)[j] = x[j];
            *reinterpret_cast<bytes *>(q.keep + item * N) = keep;
        }
    }
    int64_t rest = q.whole * TILE * (N / 4), steps = (int64_t)gridDim.x * THREADS;
    int64_t block = rest + (int64_t)blockIdx.x * THREADS + threadIdx.x;
    for (; block * 4 < n; block += steps) {
        uint32_t c[4];
        g.words(block, c);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int64_t at[3];
            if (block * 4 + j >= n) return;
            q.walk.at(block * 4 + j, at);
            bool keep = q.keeps(c[j]);
            q.y[at[0]] = drop(q.x[at[2]], keep, q.scale);
            q.keep[at[1]] = keep;
        }
    }
}

double scale_of(double p) {
    return p < 1 ? 1 / (1 - p) : 0;
}

template <typename T>
struct dropout_backward_op {
    typedef T Out;
    typedef T A;
    typedef uint8_t B;
    typedef T C;
    static const int inputs = 2, outputs = 1;
    wide_t<T> scale;
    __device__ T operator()(T dy, uint8_t keep) const { return drop(dy, keep != 0, scale); }
};

}  // namespace

/* t: out (float), state. a: low, b: high. */
mc_status mcu_random_uniform(mci_exec *exec, const mci_view *const *t, const void *params) {
    const mci_random_params *p = static_cast<const mci_random_params *>(params);
    double limit = p->b > p->a ? value_below(p->b, t[0]->dtype) : 0;
    return mcu_for_float(t[0]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        typedef wide_t<T> R;
        uniform<T> make = {(R)p->a, (R)(p->b - p->a), p->b > p->a ? (R)limit : (R)p->a};
        return fill<T>(exec, "random_uniform", t, make);
    });
}

/* t: out (float), state. a: mean, b: standard deviation. */
mc_status mcu_random_normal(mci_exec *exec, const mci_view *const *t, const void *params) {
    const mci_random_params *p = static_cast<const mci_random_params *>(params);
    return mcu_for_float(t[0]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        normal<T> make = {(wide_t<T>)p->a, (wide_t<T>)p->b};
        return fill<T>(exec, "random_normal", t, make);
    });
}

/* t: out (any dtype but 8-bit floats), state. low <= x < high. */
mc_status mcu_random_integers(mci_exec *exec, const mci_view *const *t, const void *params) {
    const mci_random_params *p = static_cast<const mci_random_params *>(params);
    auto run = [&](auto tag) {
        typedef decltype(tag) T;
        integers<T> make = {p->low, (uint64_t)p->high - (uint64_t)p->low, t[0]->dtype};
        return fill<T>(exec, "random_integers", t, make);
    };
    switch (dtype_size(t[0]->dtype)) {
        case 1:
            return run(uint8_t());
        case 2:
            return run(uint16_t());
        case 4:
            return run(uint32_t());
        default:
            return run(uint64_t());
    }
}

/* t: y, keep (uint8), state, x. a: p. */
mc_status mcu_dropout(mci_exec *exec, const mci_view *const *t, const void *params) {
    double p = static_cast<const mci_random_params *>(params)->a, top = p * 0x1p24;
    const mci_view *v[3] = {t[0], t[1], t[3]};
    return mcu_for_float(t[3]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        dropout_args<T> q = {};
        q.walk = mcu_walk_of<3>(v);
        if (q.walk.n == 0) return (mc_status)MC_OK;
        q.y = static_cast<T *>(t[0]->data);
        q.keep = static_cast<uint8_t *>(t[1]->data);
        q.x = static_cast<const T *>(t[3]->data);
        q.g = generator_of(t[2]);
        uint32_t least = (uint32_t)top + ((double)(uint32_t)top < top); /* of word >> 8 */
        q.threshold = least << 8;
        q.none = least >> 24 != 0;
        q.scale = (wide_t<T>)scale_of(p);
        const int N = item_of(sizeof(T));
        bool vectors =
            q.walk.dense && mcu_aligned(q.y, 16) && mcu_aligned(q.x, 16) && mcu_aligned(q.keep, N);
        q.whole = vectors ? q.walk.n / (TILE * N) : 0;
        int64_t units = q.whole ? q.whole * TILE : (q.walk.n + 3) / 4;
        MCU_LAUNCH((dropout_kernel<T>),
                   mcu_blocks(exec, units, q.whole ? (int)TILE : (int)THREADS, 4), THREADS, 0, exec,
                   q);
        return advance(exec, "dropout", q.g, q.walk.n);
    });
}

/* t: dx, dy, keep (uint8). a: p. */
mc_status mcu_dropout_backward(mci_exec *exec, const mci_view *const *t, const void *params) {
    double p = static_cast<const mci_random_params *>(params)->a;
    return mcu_for_float(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        dropout_backward_op<T> op = {(wide_t<T>)scale_of(p)};
        return each(exec, "dropout_backward", op, op, t);
    });
}
