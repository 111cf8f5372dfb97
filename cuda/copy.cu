/* copy.cu: copy between any dtypes and strides, fill, arange.
 *
 * One dtype moves as bits, in units of up to 16 bytes: a unit is the largest power of two that
 * divides the contiguous runs, the strides and the addresses of both sides, so that rows, heads and
 * whole arrays move alike; a thread moves up to 4 of them, 256 apart. Axes go in the order of the
 * destination's strides. Where the source is contiguous along another axis than the destination,
 * tiles of 64 x 64 elements (128 x 128 of 16 bits) are turned in shared memory: both sides see 16
 * bytes per thread.
 * Conversions between float32 and the 16-bit floats are elementwise ops over vectors; any other
 * pair of dtypes goes element by element with the dtypes looked up at run time.
 */
#include <type_traits>

#include "convert.cuh"
#include "elementwise.cuh"

namespace {

enum { THREADS = 256, SIDE = 64 };

/* -- bits of one dtype ---------------------------------------------------------------------------
 */

template <int bytes>
struct unit_of;
template <>
struct unit_of<1> {
    typedef uint8_t type;
};
template <>
struct unit_of<2> {
    typedef uint16_t type;
};
template <>
struct unit_of<4> {
    typedef uint32_t type;
};
template <>
struct unit_of<8> {
    typedef uint64_t type;
};
template <>
struct unit_of<16> {
    typedef mcu_vector<uint32_t, 4> type;
};

template <typename F>
mc_status for_unit(int bytes, F fn) {
    switch (bytes) {
        case 1:
            return fn(unit_of<1>::type());
        case 2:
            return fn(unit_of<2>::type());
        case 4:
            return fn(unit_of<4>::type());
        case 8:
            return fn(unit_of<8>::type());
        default:
            return fn(unit_of<16>::type());
    }
}

/* How units are found: one axis; several with short divisions; several and very many. A thread has
 * this many units. */
enum { ONE_AXIS, SHORT, LONG };
__host__ __device__ constexpr int units_of(int way) {
    return way == ONE_AXIS ? 4 : way == SHORT ? 2 : 1;
}
template <int way, int N>
__device__ inline void unit_at(const mcu_walk<N> &w, int64_t i, int64_t *at) {
    if constexpr (way == ONE_AXIS) {
        for (int k = 0; k < N; k++) at[k] = i * w.stride[k][0];
    } else if constexpr (way == SHORT) {
        short_walk(w, (uint32_t)i, at);
    } else {
        w.at(i, at);
    }
}

/* w counts units; `tail` bytes stand behind the last one, where there is one axis. */
template <typename T, int way>
__global__ void __launch_bounds__(THREADS)
    move_kernel(T *dst, const T *src, int tail, mcu_walk<2> w) {
    constexpr int U = units_of(way);
    int64_t first = (int64_t)blockIdx.x * (U * THREADS) + threadIdx.x;
    T x[U];
    int64_t to[U] = {};
#pragma unroll
    for (int u = 0; u < U; u++) {
        int64_t i = first + u * THREADS, at[2];
        if (i >= w.n) continue;
        unit_at<way>(w, i, at);
        to[u] = at[0];
        x[u] = src[at[1]];
    }
#pragma unroll
    for (int u = 0; u < U; u++)
        if (first + u * THREADS < w.n) dst[to[u]] = x[u];
    if (blockIdx.x == 0 && (int)threadIdx.x < tail)
        reinterpret_cast<uint8_t *>(dst + w.n)[threadIdx.x] =
            reinterpret_cast<const uint8_t *>(src + w.n)[threadIdx.x];
}

template <typename T>
__device__ inline T repeated(uint64_t bits) {
    return (T)bits;
}
template <>
__device__ inline unit_of<16>::type repeated<unit_of<16>::type>(uint64_t bits) {
    uint32_t low = (uint32_t)bits, high = (uint32_t)(bits >> 32);
    return {{low, high, low, high}};
}

/* bits: one element over and over. */
template <typename T, int way>
__global__ void __launch_bounds__(THREADS)
    fill_kernel(T *dst, uint64_t bits, int tail, mcu_walk<1> w) {
    constexpr int U = units_of(way);
    int64_t first = (int64_t)blockIdx.x * (U * THREADS) + threadIdx.x;
    T x = repeated<T>(bits);
#pragma unroll
    for (int u = 0; u < U; u++) {
        int64_t i = first + u * THREADS, at[1];
        if (i >= w.n) continue;
        unit_at<way>(w, i, at);
        dst[at[0]] = x;
    }
    if (blockIdx.x == 0 && (int)threadIdx.x < tail)
        reinterpret_cast<uint8_t *>(dst + w.n)[threadIdx.x] =
            (uint8_t)(bits >> 8 * (threadIdx.x % 8));
}

/* Makes the walk one over units of as many bytes as all views allow, which it returns. */
template <int N>
int widen(mcu_walk<N> *w, const mci_view *const *v, int size, int *tail) {
    if (w->ndim == 0) {
        w->ndim = 1;
        w->shape[0] = 1;
        for (int k = 0; k < N; k++) w->stride[k][0] = 1;
    }
    int last = w->ndim - 1, unit = 16;
    uintptr_t all = last > 0 ? (uintptr_t)(w->shape[last] * size) : 0;
    for (int k = 0; k < N; k++) {
        all |= (uintptr_t)v[k]->data;
        for (int d = 0; d < last; d++) all |= (uintptr_t)(w->stride[k][d] * size);
        if (w->stride[k][last] != 1) unit = size;
    }
    while (unit > size && all % (uintptr_t)unit != 0) unit /= 2;
    int64_t run = w->shape[last] * size;
    *tail = (int)(run % unit);
    w->shape[last] = run / unit;
    w->n = last > 0 ? w->n * size / unit : w->shape[0];
    for (int k = 0; k < N; k++)
        for (int d = 0; d < last; d++) w->stride[k][d] = w->stride[k][d] * size / unit;
    return unit;
}

/* Calls fn with the kernel's way and its number of blocks. */
template <int N, typename F>
mc_status for_way(const mcu_walk<N> &w, F fn) {
    int64_t n = w.n > 0 ? w.n : 1; /* a tail alone */
    if (w.ndim == 1)
        return fn(std::integral_constant<int, ONE_AXIS>(),
                  each_blocks(n, units_of(ONE_AXIS) * THREADS));
    if (n <= INT32_MAX)
        return fn(std::integral_constant<int, SHORT>(), each_blocks(n, units_of(SHORT) * THREADS));
    return fn(std::integral_constant<int, LONG>(), each_blocks(n, units_of(LONG) * THREADS));
}

/* -- transposes ----------------------------------------------------------------------------------
 */

/* dst[r * dst_row + c] = src[c * src_column + r] for rows x columns, once per item of `outer`. */
struct turn {
    int64_t rows, columns, dst_row, src_column, row_tiles, column_tiles;
    mcu_walk<2> outer;
};

/* One tile per block. V elements of a column of the source per access, then V of a row of the
 * destination; V > 1: all columns and rows consist of aligned vectors. A row of the tile takes one
 * word more than its elements do, which spreads a column over the banks. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS) turn_kernel(T *dst, const T *src, turn q) {
    constexpr int per_word = sizeof(T) < 4 ? 4 / (int)sizeof(T) : 1, pitch = SIDE + per_word;
    constexpr int across = SIDE / V, each = SIDE * across / THREADS;
    constexpr int step = V > per_word ? per_word : V;
    typedef mcu_vector<T, V> vector;
    typedef mcu_vector<T, step> word;
    __shared__ __align__(16) T tile[SIDE * pitch];
    int64_t tiles = q.row_tiles * q.column_tiles, batch = (int64_t)blockIdx.x / tiles, at[2];
    int64_t in_batch = (int64_t)blockIdx.x - batch * tiles, c0 = in_batch / q.row_tiles;
    int64_t r0 = (in_batch - c0 * q.row_tiles) * SIDE;
    c0 *= SIDE;
    q.outer.at(batch, at);
    dst += at[0] + r0 * q.dst_row + c0;
    src += at[1] + c0 * q.src_column + r0;
    int rows = q.rows - r0 < SIDE ? (int)(q.rows - r0) : SIDE;
    int columns = q.columns - c0 < SIDE ? (int)(q.columns - c0) : SIDE;
    vector x[each];
#pragma unroll
    for (int k = 0; k < each; k++) {
        int i = (int)threadIdx.x + k * THREADS, c = i / across, r = i % across * V;
        if (c < columns && r < rows)
            x[k] = *reinterpret_cast<const vector *>(src + c * q.src_column + r);
    }
#pragma unroll
    for (int k = 0; k < each; k++) {
        int i = (int)threadIdx.x + k * THREADS, c = i / across, r = i % across * V;
        if (c < columns && r < rows)
#pragma unroll
            for (int j = 0; j < V; j++) tile[(r + j) * pitch + c] = x[k].v[j];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < each; k++) {
        int i = (int)threadIdx.x + k * THREADS, r = i / across, c = i % across * V;
        if (r >= rows || c >= columns) continue;
        vector y;
#pragma unroll
        for (int j = 0; j < V; j += step) {
            word part = *reinterpret_cast<const word *>(tile + r * pitch + c + j);
#pragma unroll
            for (int b = 0; b < step; b++) y.v[j + b] = part.v[b];
        }
        *reinterpret_cast<vector *>(dst + r * q.dst_row + c) = y;
    }
}

/* The same for 16-bit elements in tiles of 128 x 128, for large matrices: a thread's 8 loads are in
 * flight together and both sides see 256 bytes in a row. A word of the tile holds two columns of
 * the source, so that the turn takes 4 stores where elements would take 8. Word w of row r lies at
 * w ^ (r / 8 % 8 * 4): in a bank of its own for each lane of a warp that stores, and for each
 * quarter of one that loads 16 bytes. Blocks go through bands of 16 tiles' rows: both sides touch
 * few pages. */
enum { WIDE = 128, WIDE_WORDS = WIDE / 2, WIDE_EACH = WIDE * WIDE / 8 / THREADS, BAND = 16 };

__global__ void __launch_bounds__(THREADS)
    turn_wide_kernel(uint16_t *dst, const uint16_t *src, turn q) {
    typedef mcu_vector<uint32_t, 4> vector;
    __shared__ __align__(16) uint32_t tile[WIDE * WIDE_WORDS];
    uint32_t tiles = (uint32_t)(q.row_tiles * q.column_tiles), batch = blockIdx.x / tiles;
    uint32_t rest = blockIdx.x - batch * tiles, band_tiles = (uint32_t)q.column_tiles * BAND;
    uint32_t band = rest / band_tiles, left = (uint32_t)q.row_tiles - band * BAND;
    uint32_t height = left < BAND ? left : (uint32_t)BAND;
    rest -= band * band_tiles;
    uint32_t across = rest / height;
    int64_t c0 = (int64_t)across * WIDE,
            r0 = (int64_t)(band * BAND + rest - across * height) * WIDE;
    int64_t at[2];
    q.outer.at(batch, at);
    dst += at[0] + r0 * q.dst_row + c0;
    src += at[1] + c0 * q.src_column + r0;
    int rows = q.rows - r0 < WIDE ? (int)(q.rows - r0) : WIDE;
    int columns = q.columns - c0 < WIDE ? (int)(q.columns - c0) : WIDE;
    /* steps: the two halves of the rows for the first half of the columns, then for the second */
    int r_first = (int)threadIdx.x % 8 * 8, pair_first = (int)threadIdx.x / 8;
    vector x[WIDE_EACH / 2][2];
#pragma unroll
    for (int k = 0; k < WIDE_EACH / 2; k++)
#pragma unroll
        for (int b = 0; b < 2; b++) {
            int r = r_first + k % 2 * 64, c = (pair_first + k / 2 * 32) * 2 + b;
            if (c < columns && r < rows)
                x[k][b] = *reinterpret_cast<const vector *>(src + c * q.src_column + r);
        }
#pragma unroll
    for (int k = 0; k < WIDE_EACH / 2; k++) {
        int r = r_first + k % 2 * 64, pair = pair_first + k / 2 * 32;
        if (r >= rows || pair * 2 >= columns) continue;
        uint32_t *to = tile + r * WIDE_WORDS + (pair ^ (r / 8 % 8 * 4));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t a = x[k][0].v[j], b = x[k][1].v[j];
            to[2 * j * WIDE_WORDS] = __byte_perm(a, b, 0x5410);
            to[(2 * j + 1) * WIDE_WORDS] = __byte_perm(a, b, 0x7632);
        }
    }
    __syncthreads();
    int c = (int)threadIdx.x % 16 * 8;
#pragma unroll
    for (int k = 0; k < WIDE_EACH; k++) {
        int r = k * 16 + (int)threadIdx.x / 16;
        if (r < rows && c < columns)
            *reinterpret_cast<vector *>(dst + r * q.dst_row + c) =
                *reinterpret_cast<const vector *>(tile + r * WIDE_WORDS +
                                                  ((c / 2) ^ (r / 8 % 8 * 4)));
    }
}

template <typename T>
mc_status run_turn(mci_exec *exec, const mci_view *const *v, const mcu_walk<2> &w, int other) {
    constexpr int V = 16 / (int)sizeof(T);
    int last = w.ndim - 1;
    turn q = {};
    q.rows = w.shape[other];
    q.columns = w.shape[last];
    q.dst_row = w.stride[0][other];
    q.src_column = w.stride[1][last];
    q.row_tiles = (q.rows + SIDE - 1) / SIDE;
    q.column_tiles = (q.columns + SIDE - 1) / SIDE;
    int64_t all = q.rows | q.columns | q.dst_row | q.src_column;
    q.outer.n = 1;
    for (int d = 0; d < last; d++) {
        if (d == other) continue;
        int to = q.outer.ndim++;
        q.outer.shape[to] = w.shape[d];
        q.outer.n *= w.shape[d];
        for (int k = 0; k < 2; k++) {
            q.outer.stride[k][to] = w.stride[k][d];
            all |= w.stride[k][d];
        }
    }
    T *dst = static_cast<T *>(v[0]->data);
    const T *src = static_cast<const T *>(v[1]->data);
    bool vectors = all % V == 0 && mcu_aligned(dst, 16) && mcu_aligned(src, 16);
    if constexpr (sizeof(T) == 2) {
        if (vectors && q.rows > SIDE && q.columns > SIDE) {
            q.row_tiles = (q.rows + WIDE - 1) / WIDE;
            q.column_tiles = (q.columns + WIDE - 1) / WIDE;
            MCU_LAUNCH(turn_wide_kernel, (unsigned)(q.row_tiles * q.column_tiles * q.outer.n),
                       THREADS, 0, exec, dst, src, q);
            return mcu_launched("copy");
        }
    }
    unsigned blocks = (unsigned)(q.row_tiles * q.column_tiles * q.outer.n);
    if (vectors)
        MCU_LAUNCH((turn_kernel<T, V>), blocks, THREADS, 0, exec, dst, src, q);
    else
        MCU_LAUNCH((turn_kernel<T, 1>), blocks, THREADS, 0, exec, dst, src, q);
    return mcu_launched("copy");
}

mc_status copy_turned(mci_exec *exec, const mci_view *const *v, const mcu_walk<2> &w, int other,
                      int size) {
    switch (size) {
        case 1:
            return run_turn<uint8_t>(exec, v, w, other);
        case 2:
            return run_turn<uint16_t>(exec, v, w, other);
        case 4:
            return run_turn<uint32_t>(exec, v, w, other);
        default:
            return run_turn<uint64_t>(exec, v, w, other);
    }
}

/* The axis along which only the source is contiguous; -1: none that is worth tiles. */
int turned_axis(const mcu_walk<2> &w) {
    int last = w.ndim - 1;
    if (last < 1 || w.shape[last] < 8 || w.stride[0][last] != 1 || w.stride[1][last] <= 1)
        return -1;
    for (int d = 0; d < last; d++)
        if (w.stride[1][d] == 1 && w.shape[d] >= 8) return d;
    return -1;
}

/* One element to a whole row: an elementwise op over vectors. */
template <typename T>
struct same {
    typedef T Out;
    typedef T A;
    typedef T B;
    typedef T C;
    static const int inputs = 1, outputs = 1;
    __device__ T operator()(T x) const { return x; }
};

mc_status copy_same(mci_exec *exec, const mci_view *const *v, int size) {
    switch (size) {
        case 1:
            return each(exec, "copy", same<uint8_t>(), same<uint8_t>(), v);
        case 2:
            return each(exec, "copy", same<uint16_t>(), same<uint16_t>(), v);
        case 4:
            return each(exec, "copy", same<uint32_t>(), same<uint32_t>(), v);
        default:
            return each(exec, "copy", same<uint64_t>(), same<uint64_t>(), v);
    }
}

mc_status copy_bits(mci_exec *exec, const mci_view *const *t) {
    int size = dtype_size(t[0]->dtype), tail;
    mcu_walk<2> w = mcu_walk_of<2>(t);
    if (w.dense && t[0]->data == t[1]->data) return MC_OK;
    sort_walk<2>(&w);
    int other = turned_axis(w);
    if (other >= 0) return copy_turned(exec, t, w, other, size);
    if (w.ndim > 0 && w.stride[1][w.ndim - 1] == 0) return copy_same(exec, t, size);
    int unit = widen<2>(&w, t, size, &tail);
    return for_unit(unit, [&](auto tag) {
        typedef decltype(tag) T;
        return for_way(w, [&](auto way, unsigned blocks) {
            MCU_LAUNCH((move_kernel<T, decltype(way)::value>), blocks, THREADS, 0, exec,
                       static_cast<T *>(t[0]->data), static_cast<const T *>(t[1]->data), tail, w);
            return mcu_launched("copy");
        });
    });
}

/* -- conversions ---------------------------------------------------------------------------------
 */

/* W: the type that holds every value of the source's dtype. */
template <typename W>
__global__ void __launch_bounds__(THREADS)
    convert_kernel(void *dst, int dst_dtype, const void *src, int src_dtype, mcu_walk<2> w) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, at[2];
    if (i >= w.n) return;
    w.at(i, at);
    store_as<W>(dst, at[0], dst_dtype, load_as<W>(src, at[1], src_dtype));
}

mc_status convert_any(mci_exec *exec, const mci_view *const *t) {
    mcu_walk<2> w = mcu_walk_of<2>(t);
    return for_wide(t[1]->dtype, [&](auto tag) {
        MCU_LAUNCH((convert_kernel<decltype(tag)>), each_blocks(w.n, THREADS), THREADS, 0, exec,
                   t[0]->data, t[0]->dtype, (const void *)t[1]->data, t[1]->dtype, w);
        return mcu_launched("copy");
    });
}

template <typename To, typename From>
struct cast {
    typedef To Out;
    typedef From A;
    typedef From B;
    typedef From C;
    static const int inputs = 1, outputs = 1;
    __device__ To operator()(From x) const {
        To y;
        store_as<float>(&y, 0, code(To()), load_as<float>(&x, 0, code(From())));
        return y;
    }
    __device__ static constexpr int code(float) { return MC_FLOAT32; }
    __device__ static constexpr int code(mcu_half) { return MC_FLOAT16; }
    __device__ static constexpr int code(mcu_bf16) { return MC_BFLOAT16; }
};

template <typename To, typename From>
mc_status run_cast(mci_exec *exec, const mci_view *const *t) {
    return each(exec, "copy", cast<To, From>(), cast<To, From>(), t);
}

}  // namespace

/* t: dst, src. dst[...] = src broadcast to dst's shape. */
mc_status mcu_copy(mci_exec *exec, const mci_view *const *t, const void *) {
    int to = t[0]->dtype, from = t[1]->dtype;
    if (mci_numel(t[0]) == 0) return MC_OK;
    if (to == from) return copy_bits(exec, t);
    if (to == MC_BFLOAT16 && from == MC_FLOAT32) return run_cast<mcu_bf16, float>(exec, t);
    if (to == MC_FLOAT32 && from == MC_BFLOAT16) return run_cast<float, mcu_bf16>(exec, t);
    if (to == MC_FLOAT16 && from == MC_FLOAT32) return run_cast<mcu_half, float>(exec, t);
    if (to == MC_FLOAT32 && from == MC_FLOAT16) return run_cast<float, mcu_half>(exec, t);
    return convert_any(exec, t);
}

/* t: out. Every element = value, rounded to out's dtype. */
mc_status mcu_fill(mci_exec *exec, const mci_view *const *t, const void *params) {
    const mci_fill_params *p = static_cast<const mci_fill_params *>(params);
    int dtype = t[0]->dtype, size = dtype_size(dtype), tail;
    mcu_walk<1> w = mcu_walk_of<1>(t);
    if (w.n == 0) return MC_OK;
    sort_walk<1>(&w);
    uint64_t bits = 0;
    for (int i = 0; i < 8 / size; i++) store_as<double>(&bits, i, dtype, p->value);
    int unit = widen<1>(&w, t, size, &tail);
    return for_unit(unit, [&](auto tag) {
        typedef decltype(tag) T;
        return for_way(w, [&](auto way, unsigned blocks) {
            MCU_LAUNCH((fill_kernel<T, decltype(way)::value>), blocks, THREADS, 0, exec,
                       static_cast<T *>(t[0]->data), bits, tail, w);
            return mcu_launched("fill");
        });
    });
}

namespace {

__global__ void __launch_bounds__(THREADS)
    arange_kernel(void *out, int dtype, int64_t n, int64_t stride, double start, double step) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n)
        store_as<double>(out, i * stride, dtype, __dadd_rn(start, __dmul_rn((double)i, step)));
}

}  // namespace

/* t: out [n]. out[i] = value + i * step in float64, one product and one sum. */
mc_status mcu_arange(mci_exec *exec, const mci_view *const *t, const void *params) {
    const mci_fill_params *p = static_cast<const mci_fill_params *>(params);
    int64_t n = t[0]->shape[0];
    if (n == 0) return MC_OK;
    MCU_LAUNCH(arange_kernel, each_blocks(n, THREADS), THREADS, 0, exec, t[0]->data, t[0]->dtype, n,
               t[0]->stride[0], p->value, p->step);
    return mcu_launched("arange");
}
