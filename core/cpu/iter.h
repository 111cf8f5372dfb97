/* iter.h: how elementwise kernels walk over tensors of any strides and dtypes.
 *
 * A kernel is a loop over contiguous arrays of one compute type (float, double, int64_t) or of raw
 * storage. MCI_CPU(run) cuts the tensors into runs along their innermost common axis and hands them
 * to the loop: in place where an operand already is a contiguous array of that type, otherwise
 * through buffers of MCI_BLOCK elements that are loaded before and stored after. Every element is
 * computed from its own inputs and its logical index only, so the cuts and threads never show.
 */
#ifndef MCI_ITER_H
#define MCI_ITER_H

#include "cpu.h"
#include "dtype.h"

enum { MCI_BLOCK = 512, MCI_ITER_OPS = 5 };

/* What a loop sees of an operand: an array of float, double, int64_t, or of the dtype's storage. */
enum { MCI_F32, MCI_F64, MCI_I64, MCI_RAW };

typedef struct mci_iter {
    int n_op, ndim; /* ndim >= 1; axis 0 is the innermost */
    int64_t numel;
    int64_t shape[MC_MAX_DIMS];
    char *data[MCI_ITER_OPS];
    int dtype[MCI_ITER_OPS];
    int64_t stride[MCI_ITER_OPS][MC_MAX_DIMS]; /* bytes; 0 where the operand is broadcast */
} mci_iter;

/* p: the outputs, then the inputs, n elements each; first: logical (row-major) index of p[.][0].
 * An output may be the same array as an input, never a shifted one. */
typedef void (*mci_loop_fn)(char *const *p, int64_t first, int64_t n, const void *params);

typedef struct mci_loop {
    mci_loop_fn fn;
    const void *params;
    int n_out;
    int kind[MCI_ITER_OPS];
} mci_loop;

/* Operands broadcast to v[0]'s shape. `ordered` keeps the row-major order, for loops that use
 * `first`; otherwise axes are sorted so that v[0] is written along its smallest stride. */
void MCI_CPU(iter_init)(mci_iter *it, int n_op, const mci_view *const *v, int ordered);
void MCI_CPU(run)(const mci_iter *it, const mci_loop *loop);

/* n elements, `stride` bytes apart, of a dtype -> array of the compute type; exact, except int64 to
 * float or double, which rounds. float64 may not be loaded as float, nor a float as int64_t. */
void MCI_CPU(load_f32)(float *dst, const void *src, int dtype, int64_t stride, int64_t n);
void MCI_CPU(load_f64)(double *dst, const void *src, int dtype, int64_t stride, int64_t n);
void MCI_CPU(load_i64)(int64_t *dst, const void *src, int dtype, int64_t stride, int64_t n);
/* The reverse, with one rounding to nearest even; integers wrap; float to integer as mc_convert. */
void MCI_CPU(store_f32)(void *dst, int dtype, int64_t stride, const float *src, int64_t n);
void MCI_CPU(store_f64)(void *dst, int dtype, int64_t stride, const double *src, int64_t n);
void MCI_CPU(store_i64)(void *dst, int dtype, int64_t stride, const int64_t *src, int64_t n);
/* The same by kind; MCI_RAW moves the storage bits. */
void MCI_CPU(load)(int kind, void *dst, const void *src, int dtype, int64_t stride, int64_t n);
void MCI_CPU(store)(int kind, void *dst, int dtype, int64_t stride, const void *src, int64_t n);

static inline int mci_kind_size(int kind, int dtype) {
    return kind == MCI_RAW ? mci_dtypes[dtype].size : kind == MCI_F32 ? 4 : 8;
}
/* The compute type that holds every value of dtype: float64 -> double, other floats -> float,
 * integers and bool -> int64_t. */
static inline int mci_compute_kind(int dtype) {
    if (dtype == MC_FLOAT64) return MCI_F64;
    int kind = mci_dtypes[dtype].kind;
    return kind == MCI_KIND_FLOAT || kind == MCI_KIND_STORE ? MCI_F32 : MCI_I64;
}
/* 1 when arrays of dtype are arrays of the kind's C type. */
static inline int mci_kind_direct(int kind, int dtype) {
    return kind == MCI_RAW || (kind == MCI_F32 && dtype == MC_FLOAT32) ||
           (kind == MCI_F64 && dtype == MC_FLOAT64) || (kind == MCI_I64 && dtype == MC_INT64);
}
/* fn(context, begin, end) over ranges of `items` that cover [0, items); `work` elements in all.
 * Each item must be computed alike whatever the range it is in. */
typedef void (*mci_range_fn)(void *context, int64_t begin, int64_t end);
static inline void mci_parallel(int64_t items, int64_t work, mci_range_fn fn, void *context) {
    int threads = mci_threads(work);
    if (threads > items) threads = (int)items;
    if (threads <= 1) {
        if (items > 0) fn(context, 0, items);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int i = 0; i < threads; i++)
        fn(context, mci_split(items, threads, i), mci_split(items, threads, i + 1));
}
/* 1 when the n views have one shape and all are contiguous. */
static inline int mci_views_flat(int n, const mci_view *const *v) {
    for (int i = 0; i < n; i++) {
        int64_t want = 1;
        if (v[i]->ndim != v[0]->ndim) return 0;
        for (int d = v[i]->ndim - 1; d >= 0; d--) {
            int64_t size = v[i]->shape[d];
            if (size != v[0]->shape[d] || (size != 1 && v[i]->stride[d] != want)) return 0;
            want *= size;
        }
    }
    return 1;
}

#endif
