/* copy.c: the walk over strided tensors (iter.h), loads and stores of every dtype, and the kernels
 * copy, fill and arange on top of them. */
#include "iter.h"

/* -- loads and stores -------------------------------------------------------------------------- */

/* dst[i] = EXPR of x, the i-th element of type T at src */
#define EACH_LOAD(T, EXPR)                                          \
    do {                                                            \
        const T *s = src;                                           \
        if (stride == (int64_t)sizeof(T)) {                         \
            for (int64_t i = 0; i < n; i++) {                       \
                T x = s[i];                                         \
                dst[i] = (EXPR);                                    \
            }                                                       \
        } else {                                                    \
            for (int64_t i = 0; i < n; i++) {                       \
                T x = *(const T *)((const char *)src + i * stride); \
                dst[i] = (EXPR);                                    \
            }                                                       \
        }                                                           \
    } while (0)

/* the i-th element of type T at dst = EXPR of x = src[i] */
#define EACH_STORE(T, EXPR)                                   \
    do {                                                      \
        T *restrict d = dst;                                  \
        if (stride == (int64_t)sizeof(T)) {                   \
            for (int64_t i = 0; i < n; i++) {                 \
                source x = src[i];                            \
                d[i] = (T)(EXPR);                             \
            }                                                 \
        } else {                                              \
            for (int64_t i = 0; i < n; i++) {                 \
                source x = src[i];                            \
                *(T *)((char *)dst + i * stride) = (T)(EXPR); \
            }                                                 \
        }                                                     \
    } while (0)

#define LOAD_BODY(OUT)                                    \
    switch (dtype) {                                      \
        case MC_FLOAT64:                                  \
            EACH_LOAD(double, (OUT)x);                    \
            break;                                        \
        case MC_FLOAT32:                                  \
            EACH_LOAD(float, (OUT)x);                     \
            break;                                        \
        case MC_FLOAT16:                                  \
            EACH_LOAD(uint16_t, (OUT)mci_f16_to_f32(x));  \
            break;                                        \
        case MC_BFLOAT16:                                 \
            EACH_LOAD(uint16_t, (OUT)mci_bf16_to_f32(x)); \
            break;                                        \
        case MC_INT64:                                    \
            EACH_LOAD(int64_t, (OUT)x);                   \
            break;                                        \
        case MC_INT32:                                    \
            EACH_LOAD(int32_t, (OUT)x);                   \
            break;                                        \
        case MC_UINT8:                                    \
            EACH_LOAD(uint8_t, (OUT)x);                   \
            break;                                        \
        case MC_BOOL:                                     \
            EACH_LOAD(uint8_t, (OUT)(x != 0));            \
            break;                                        \
        case MC_FLOAT8_E4M3FN:                            \
            EACH_LOAD(uint8_t, (OUT)mci_e4m3_to_f32(x));  \
            break;                                        \
        case MC_FLOAT8_E5M2:                              \
            EACH_LOAD(uint8_t, (OUT)mci_e5m2_to_f32(x));  \
            break;                                        \
        case MC_FLOAT8_E8M0FNU:                           \
            EACH_LOAD(uint8_t, (OUT)mci_e8m0_to_f32(x));  \
            break;                                        \
        default:                                          \
            break;                                        \
    }

void MCI_CPU(load_f32)(float *restrict dst, const void *restrict src, int dtype, int64_t stride,
                       int64_t n) {
    LOAD_BODY(float)
}

void MCI_CPU(load_f64)(double *restrict dst, const void *restrict src, int dtype, int64_t stride,
                       int64_t n) {
    LOAD_BODY(double)
}

void MCI_CPU(load_i64)(int64_t *restrict dst, const void *restrict src, int dtype, int64_t stride,
                       int64_t n) {
    switch (dtype) {
        case MC_INT64:
            EACH_LOAD(int64_t, x);
            break;
        case MC_INT32:
            EACH_LOAD(int32_t, x);
            break;
        case MC_UINT8:
            EACH_LOAD(uint8_t, x);
            break;
        case MC_BOOL:
            EACH_LOAD(uint8_t, x != 0);
            break;
        default:
            break;
    }
}

/* F32, F64, I64: x as a float and as a double that round further as x does, and as an integer */
#define STORE_BODY(F64, F32, ODD, STICKY, I64, I32, U8)   \
    switch (dtype) {                                      \
        case MC_FLOAT64:                                  \
            EACH_STORE(double, F64);                      \
            break;                                        \
        case MC_FLOAT32:                                  \
            EACH_STORE(float, F32);                       \
            break;                                        \
        case MC_FLOAT16:                                  \
            EACH_STORE(uint16_t, mci_f32_to_f16(ODD));    \
            break;                                        \
        case MC_BFLOAT16:                                 \
            EACH_STORE(uint16_t, mci_f32_to_bf16(ODD));   \
            break;                                        \
        case MC_INT64:                                    \
            EACH_STORE(int64_t, I64);                     \
            break;                                        \
        case MC_INT32:                                    \
            EACH_STORE(int32_t, I32);                     \
            break;                                        \
        case MC_UINT8:                                    \
            EACH_STORE(uint8_t, U8);                      \
            break;                                        \
        case MC_BOOL:                                     \
            EACH_STORE(uint8_t, x != 0);                  \
            break;                                        \
        case MC_FLOAT8_E4M3FN:                            \
            EACH_STORE(uint8_t, mci_f32_to_e4m3(ODD));    \
            break;                                        \
        case MC_FLOAT8_E5M2:                              \
            EACH_STORE(uint8_t, mci_f32_to_e5m2(ODD));    \
            break;                                        \
        case MC_FLOAT8_E8M0FNU:                           \
            EACH_STORE(uint8_t, mci_f64_to_e8m0(STICKY)); \
            break;                                        \
        default:                                          \
            break;                                        \
    }

void MCI_CPU(store_f32)(void *restrict dst, int dtype, int64_t stride, const float *restrict src,
                        int64_t n) {
    typedef float source;
    STORE_BODY(x, x, x, (double)x, mci_f64_to_i64((double)x), mci_f64_to_i32((double)x),
               mci_f64_to_u8((double)x))
}

void MCI_CPU(store_f64)(void *restrict dst, int dtype, int64_t stride, const double *restrict src,
                        int64_t n) {
    typedef double source;
    STORE_BODY(x, x, mci_f32_odd(x), x, mci_f64_to_i64(x), mci_f64_to_i32(x), mci_f64_to_u8(x))
}

void MCI_CPU(store_i64)(void *restrict dst, int dtype, int64_t stride, const int64_t *restrict src,
                        int64_t n) {
    typedef int64_t source;
    STORE_BODY(x, x, mci_f32_odd(mci_i64_sticky(x)), mci_i64_sticky(x), x, x, x)
}

static void raw_load(void *restrict dst_, const void *restrict src, int size, int64_t stride,
                     int64_t n) {
#define RAW(T)                  \
    do {                        \
        T *restrict dst = dst_; \
        EACH_LOAD(T, x);        \
    } while (0)
    if (size == 1)
        RAW(uint8_t);
    else if (size == 2)
        RAW(uint16_t);
    else if (size == 4)
        RAW(uint32_t);
    else
        RAW(uint64_t);
#undef RAW
}

static void raw_store(void *restrict dst, int size, int64_t stride, const void *restrict src_,
                      int64_t n) {
#define RAW(T)                        \
    do {                              \
        typedef T source;             \
        const T *restrict src = src_; \
        EACH_STORE(T, x);             \
    } while (0)
    if (size == 1)
        RAW(uint8_t);
    else if (size == 2)
        RAW(uint16_t);
    else if (size == 4)
        RAW(uint32_t);
    else
        RAW(uint64_t);
#undef RAW
}

void MCI_CPU(load)(int kind, void *dst, const void *src, int dtype, int64_t stride, int64_t n) {
    switch (kind) {
        case MCI_F32:
            MCI_CPU(load_f32)(dst, src, dtype, stride, n);
            break;
        case MCI_F64:
            MCI_CPU(load_f64)(dst, src, dtype, stride, n);
            break;
        case MCI_I64:
            MCI_CPU(load_i64)(dst, src, dtype, stride, n);
            break;
        default:
            raw_load(dst, src, mci_dtypes[dtype].size, stride, n);
    }
}

void MCI_CPU(store)(int kind, void *dst, int dtype, int64_t stride, const void *src, int64_t n) {
    switch (kind) {
        case MCI_F32:
            MCI_CPU(store_f32)(dst, dtype, stride, src, n);
            break;
        case MCI_F64:
            MCI_CPU(store_f64)(dst, dtype, stride, src, n);
            break;
        case MCI_I64:
            MCI_CPU(store_i64)(dst, dtype, stride, src, n);
            break;
        default:
            raw_store(dst, mci_dtypes[dtype].size, stride, src, n);
    }
}

/* -- the walk ---------------------------------------------------------------------------------- */

/* Appends an axis outside the others, merging it with the one before where all operands allow. */
static void add_axis(mci_iter *it, int64_t size, const int64_t *stride) {
    int last = it->ndim - 1, merge = last >= 0;
    for (int i = 0; merge && i < it->n_op; i++)
        merge = stride[i] == it->stride[i][last] * it->shape[last];
    if (merge) {
        it->shape[last] *= size;
        return;
    }
    it->shape[it->ndim] = size;
    for (int i = 0; i < it->n_op; i++) it->stride[i][it->ndim] = stride[i];
    it->ndim++;
}

void MCI_CPU(iter_init)(mci_iter *it, int n_op, const mci_view *const *v, int ordered) {
    int order[MC_MAX_DIMS], n_axes = 0, nd = v[0]->ndim;
    it->n_op = n_op;
    it->ndim = 0;
    it->numel = 1;
    for (int i = 0; i < n_op; i++) {
        it->data[i] = v[i]->data;
        it->dtype[i] = v[i]->dtype;
    }
    for (int d = nd - 1; d >= 0; d--) {
        it->numel *= v[0]->shape[d];
        if (v[0]->shape[d] == 1) continue;
        int k = n_axes++;
        for (; !ordered && k > 0 && v[0]->stride[order[k - 1]] > v[0]->stride[d]; k--)
            order[k] = order[k - 1];
        order[k] = d;
    }
    for (int k = 0; k < n_axes; k++) {
        int64_t stride[MCI_ITER_OPS];
        for (int i = 0; i < n_op; i++) {
            int d = order[k] - nd + v[i]->ndim; /* shapes align at their ends */
            int broadcast = d < 0 || v[i]->shape[d] == 1;
            stride[i] = broadcast ? 0 : v[i]->stride[d] * mci_dtypes[it->dtype[i]].size;
        }
        add_axis(it, v[0]->shape[order[k]], stride);
    }
    if (it->ndim == 0) {
        int64_t stride[MCI_ITER_OPS];
        for (int i = 0; i < n_op; i++) stride[i] = mci_dtypes[it->dtype[i]].size;
        add_axis(it, 1, stride);
    }
}

/* One run of n elements along the innermost axis, from p[i] on. Bit i of direct: operand i needs no
 * buffer. held[i]: how many elements of the
 * buffer of the constant operand i are loaded already. */
static void run_row(const mci_iter *it, const mci_loop *l, char *const *p, int64_t first, int64_t n,
                    unsigned direct, char (*buf)[MCI_BLOCK * 8], int64_t *held) {
    int64_t step = direct == (1U << it->n_op) - 1U ? n : MCI_BLOCK;
    for (int64_t at = 0; at < n; at += step) {
        int64_t m = n - at < step ? n - at : step;
        char *q[MCI_ITER_OPS];
        for (int i = 0; i < it->n_op; i++) {
            int64_t stride = it->stride[i][0];
            q[i] = direct >> i & 1U ? p[i] + at * stride : buf[i];
            if (direct >> i & 1U || i < l->n_out || held[i] >= m) continue;
            MCI_CPU(load)(l->kind[i], buf[i], p[i] + at * stride, it->dtype[i], stride, m);
            held[i] = stride == 0 ? m : 0;
        }
        l->fn(q, first + at, m, l->params);
        for (int i = 0; i < l->n_out; i++)
            if (!(direct >> i & 1U)) MCI_CPU(store)
        (l->kind[i], p[i] + at * it->stride[i][0], it->dtype[i], it->stride[i][0], buf[i], m);
    }
}

static void run_range(const mci_iter *it, const mci_loop *l, int64_t begin, int64_t end) {
    _Alignas(64) char buf[MCI_ITER_OPS][MCI_BLOCK * 8];
    int64_t index[MC_MAX_DIMS], held[MCI_ITER_OPS] = {0}, rest = begin;
    unsigned direct = 0, constant = 0; /* bit i: operand i */
    char *p[MCI_ITER_OPS];
    for (int i = 0; i < it->n_op; i++) {
        p[i] = it->data[i];
        if (mci_kind_direct(l->kind[i], it->dtype[i]) &&
            it->stride[i][0] == mci_dtypes[it->dtype[i]].size)
            direct |= 1U << i;
        int still = 1;
        for (int d = 0; d < it->ndim; d++) still &= it->stride[i][d] == 0;
        constant |= (unsigned)still << i;
    }
    for (int d = 0; d < it->ndim; d++) {
        index[d] = rest % it->shape[d];
        rest /= it->shape[d];
        for (int i = 0; i < it->n_op; i++) p[i] += index[d] * it->stride[i][d];
    }
    while (begin < end) {
        int64_t n = it->shape[0] - index[0];
        if (n > end - begin) n = end - begin;
        run_row(it, l, p, begin, n, direct, buf, held);
        begin += n;
        if (begin >= end) break;
        for (int i = 0; i < it->n_op; i++) {
            p[i] -= index[0] * it->stride[i][0];
            if (!(constant >> i & 1U)) held[i] = 0;
        }
        index[0] = 0;
        for (int d = 1; d < it->ndim; d++) {
            index[d]++;
            for (int i = 0; i < it->n_op; i++) p[i] += it->stride[i][d];
            if (index[d] < it->shape[d]) break;
            for (int i = 0; i < it->n_op; i++) p[i] -= it->shape[d] * it->stride[i][d];
            index[d] = 0;
        }
    }
}

void MCI_CPU(run)(const mci_iter *it, const mci_loop *loop) {
    enum { GRAIN = 4096 }; /* threads get multiples of it, so that they do not share cache lines */
    int64_t grains = (it->numel + GRAIN - 1) / GRAIN;
    int threads = mci_threads(it->numel);
    if (it->numel == 0) return;
    if (threads <= 1) {
        run_range(it, loop, 0, it->numel);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++) {
        int64_t begin = mci_split(grains, threads, i) * GRAIN;
        int64_t end = mci_split(grains, threads, i + 1) * GRAIN;
        if (end > it->numel) end = it->numel;
        if (begin < end) run_range(it, loop, begin, end);
    }
}

/* -- copy -------------------------------------------------------------------------------------- */

typedef struct pair {
    int dst, src;
} pair;

/* Raw storage of one dtype to raw storage of another, in one rounding. */
static void convert_loop(char *const *p, int64_t first, int64_t n, const void *params) {
    const pair *d = params;
    int kind = mci_compute_kind(d->src);
    int to = mci_dtypes[d->dst].size, from = mci_dtypes[d->src].size;
    _Alignas(64) char buf[MCI_BLOCK * 8];
    (void)first;
    if (d->src == d->dst) {
        memcpy(p[0], p[1], (size_t)(n * to));
    } else if (mci_kind_direct(kind, d->src)) {
        MCI_CPU(store)(kind, p[0], d->dst, to, p[1], n);
    } else if (mci_kind_direct(kind, d->dst)) {
        MCI_CPU(load)(kind, p[0], p[1], d->src, from, n);
    } else {
        for (int64_t i = 0; i < n; i += MCI_BLOCK) {
            int64_t m = n - i < MCI_BLOCK ? n - i : MCI_BLOCK;
            MCI_CPU(load)(kind, buf, p[1] + i * from, d->src, from, m);
            MCI_CPU(store)(kind, p[0] + i * to, d->dst, to, buf, m);
        }
    }
}

enum { SIDE = 32 };

/* A square of the transpose: rows steps along dst's outer axis, cols along its contiguous one. It
 * goes through a buffer, so that each line of src is read once and whole: with strides that are
 * powers of two its columns fall into few cache sets. */
static void copy_tile(char *dst, const char *src, int size, int64_t dst_row, int64_t src_col,
                      int64_t rows, int64_t cols) {
#define TILE(T)                                                           \
    do {                                                                  \
        T tile[SIDE][SIDE];                                               \
        for (int64_t c = 0; c < cols; c++)                                \
            memcpy(tile[c], src + c * src_col, (size_t)rows * sizeof(T)); \
        for (int64_t r = 0; r < rows; r++) {                              \
            T *d = (T *)(void *)(dst + r * dst_row);                      \
            for (int64_t c = 0; c < cols; c++) d[c] = tile[c][r];         \
        }                                                                 \
    } while (0)
    if (size == 1)
        TILE(uint8_t);
    else if (size == 2)
        TILE(uint16_t);
    else if (size == 4)
        TILE(uint32_t);
    else
        TILE(uint64_t);
#undef TILE
}

/* dst contiguous along axis 0, src along axis `other`: tiles of both keep to a few cache lines. */
static void copy_transposed(const mci_iter *it, int other) {
    int size = mci_dtypes[it->dtype[0]].size;
    int64_t cols = it->shape[0], rows = it->shape[other], row_tiles = (rows + SIDE - 1) / SIDE;
    int64_t strips = row_tiles * (it->numel / (rows * cols));
    int threads = mci_threads(it->numel);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t strip = 0; strip < strips; strip++) {
        int64_t row = strip % row_tiles * SIDE, rest = strip / row_tiles;
        char *dst = it->data[0] + row * it->stride[0][other];
        const char *src = it->data[1] + row * size;
        for (int d = 1; d < it->ndim; d++) {
            if (d == other) continue;
            dst += rest % it->shape[d] * it->stride[0][d];
            src += rest % it->shape[d] * it->stride[1][d];
            rest /= it->shape[d];
        }
        int64_t height = rows - row < SIDE ? rows - row : SIDE;
        for (int64_t col = 0; col < cols; col += SIDE)
            copy_tile(dst + col * size, src + col * it->stride[1][0], size, it->stride[0][other],
                      it->stride[1][0], height, cols - col < SIDE ? cols - col : SIDE);
    }
}

/* t: dst, src. dst[...] = src broadcast to dst's shape, any strides and dtypes. */
mc_status MCI_CPU(copy)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec, (void)p;
    pair dtypes = {t[0]->dtype, t[1]->dtype};
    mci_loop loop = {convert_loop, &dtypes, 1, {MCI_RAW, MCI_RAW}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 2, t, 0);
    if (it.numel == 0) return MC_OK;
    if (dtypes.dst == dtypes.src) {
        if (it.data[0] == it.data[1] && mci_views_flat(2, t)) return MC_OK;
        int64_t size = mci_dtypes[dtypes.dst].size;
        if (it.stride[0][0] == size && it.stride[1][0] != size && it.shape[0] >= 8)
            for (int d = 1; d < it.ndim; d++)
                if (it.stride[1][d] == size && it.shape[d] >= 8) {
                    copy_transposed(&it, d);
                    return MC_OK;
                }
    }
    MCI_CPU(run)(&it, &loop);
    return MC_OK;
}

/* -- fill, arange ------------------------------------------------------------------------------ */

typedef struct one_value {
    int size;
    uint64_t bits;
} one_value;

static void fill_loop(char *const *p, int64_t first, int64_t n, const void *params) {
    const one_value *v = params;
    (void)first;
#define FILL(T)                                   \
    do {                                          \
        T x;                                      \
        memcpy(&x, &v->bits, sizeof x);           \
        T *d = (T *)(void *)p[0];                 \
        for (int64_t i = 0; i < n; i++) d[i] = x; \
    } while (0)
    if (v->size == 1)
        memset(p[0], *(const uint8_t *)&v->bits, (size_t)n);
    else if (v->size == 2)
        FILL(uint16_t);
    else if (v->size == 4)
        FILL(uint32_t);
    else
        FILL(uint64_t);
#undef FILL
}

/* t: out. Every element = value, rounded to out's dtype. */
mc_status MCI_CPU(fill)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_fill_params *q = p;
    (void)exec;
    one_value v = {mci_dtypes[t[0]->dtype].size, 0};
    MCI_CPU(store_f64)(&v.bits, t[0]->dtype, v.size, &q->value, 1);
    mci_loop loop = {fill_loop, &v, 1, {MCI_RAW}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 1, t, 0);
    MCI_CPU(run)(&it, &loop);
    return MC_OK;
}

static void arange_loop(char *const *p, int64_t first, int64_t n, const void *params) {
    const mci_fill_params *q = params;
    double *out = (double *)(void *)p[0];
    for (int64_t i = 0; i < n; i++) out[i] = q->value + (double)(first + i) * q->step;
}

/* t: out [n]. out[i] = value + i * step, computed in float64. */
mc_status MCI_CPU(arange)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec;
    mci_loop loop = {arange_loop, p, 1, {MCI_F64}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 1, t, 1);
    MCI_CPU(run)(&it, &loop);
    return MC_OK;
}
