/* index.c: index_select, index_add, gather, scatter_add. Indices are checked before anything is
 * written. Additions to one element come in index order, so results do not depend on threads. */
#include "iter.h"

#include <stdio.h>

static inline int64_t index_value(const char *p, int dtype) {
    return dtype == MC_INT64 ? *(const int64_t *)(const void *)p
                             : (int64_t) * (const int32_t *)(const void *)p;
}

/* Bytes from v's first element to its logical element `at`. */
static int64_t offset_of(const mci_view *v, int64_t at) {
    int64_t offset = 0;
    for (int d = v->ndim - 1; d >= 0; d--) {
        offset += at % v->shape[d] * v->stride[d];
        at /= v->shape[d];
    }
    return offset * mci_dtypes[v->dtype].size;
}

/* Every index must be in [0, limit). */
static mc_status check_index(const char *op, const mci_view *index, int64_t limit) {
    int64_t n = mci_numel(index);
    for (int64_t i = 0; i < n; i++) {
        int64_t x = index_value((const char *)index->data + offset_of(index, i), index->dtype);
        if (x >= 0 && x < limit) continue;
        char where[MC_MAX_DIMS * 24] = "";
        size_t used = 0;
        int64_t rest = i, position[MC_MAX_DIMS];
        for (int d = index->ndim - 1; d >= 0; d--) {
            position[d] = rest % index->shape[d];
            rest /= index->shape[d];
        }
        for (int d = 0; d < index->ndim; d++)
            used += (size_t)snprintf(where + used, sizeof where - used, "%s%lld", d ? ", " : "",
                                     (long long)position[d]);
        if (limit == 0)
            return mci_fail(MC_EINVAL, "%s: index[%s] is %lld, none is legal: the axis has size 0",
                            op, where, (long long)x);
        return mci_fail(MC_EINVAL, "%s: index[%s] is %lld, legal are 0 to %lld (0-based)", op,
                        where, (long long)x, (long long)(limit - 1));
    }
    return MC_OK;
}

/* -- additions --------------------------------------------------------------------------------- */

/* Expands BODY(T, sum) for the storage type T of each dtype; sum(a, b) adds two stored values. */
#define SUM_PLAIN(a, b) ((a) + (b))
#define SUM_BF16(a, b) mci_f32_to_bf16(mci_bf16_to_f32(a) + mci_bf16_to_f32(b))
#define SUM_F16(a, b) mci_f32_to_f16(mci_f16_to_f32(a) + mci_f16_to_f32(b))
#define SUM_I64(a, b) ((int64_t)((uint64_t)(a) + (uint64_t)(b)))
#define SUM_I32(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
#define SUM_U8(a, b) ((uint8_t)((a) + (b)))
#define BY_DTYPE(dtype, BODY)         \
    switch (dtype) {                  \
        case MC_FLOAT64:              \
            BODY(double, SUM_PLAIN);  \
            break;                    \
        case MC_FLOAT32:              \
            BODY(float, SUM_PLAIN);   \
            break;                    \
        case MC_FLOAT16:              \
            BODY(uint16_t, SUM_F16);  \
            break;                    \
        case MC_BFLOAT16:             \
            BODY(uint16_t, SUM_BF16); \
            break;                    \
        case MC_INT64:                \
            BODY(int64_t, SUM_I64);   \
            break;                    \
        case MC_INT32:                \
            BODY(int32_t, SUM_I32);   \
            break;                    \
        default:                      \
            BODY(uint8_t, SUM_U8);    \
            break;                    \
    }

/* dst[i] += src[i]; strides in bytes. */
static void add_run(char *dst, int64_t dst_stride, const char *src, int64_t src_stride, int dtype,
                    int64_t n) {
#define RUN(T, SUM)                                                                 \
    do {                                                                            \
        if (dst_stride == (int64_t)sizeof(T) && src_stride == (int64_t)sizeof(T)) { \
            T *restrict d = (T *)(void *)dst;                                       \
            const T *restrict s = (const T *)(const void *)src;                     \
            for (int64_t i = 0; i < n; i++) d[i] = SUM(d[i], s[i]);                 \
        } else {                                                                    \
            for (int64_t i = 0; i < n; i++) {                                       \
                T *d = (T *)(void *)(dst + i * dst_stride);                         \
                *d = SUM(*d, *(const T *)(const void *)(src + i * src_stride));     \
            }                                                                       \
        }                                                                           \
    } while (0)
    BY_DTYPE(dtype, RUN)
#undef RUN
}

static void copy_run(char *dst, int64_t dst_stride, const char *src, int64_t src_stride, int dtype,
                     int64_t n) {
    int64_t size = mci_dtypes[dtype].size;
    if (dst_stride == size && src_stride == size) {
        memcpy(dst, src, (size_t)(n * size));
        return;
    }
    for (int64_t i = 0; i < n; i++)
        memcpy(dst + i * dst_stride, src + i * src_stride, (size_t)size);
}

/* -- index_select, index_add ------------------------------------------------------------------- */

/* `table` is indexed along `axis`; `rows` has the index's axes there instead. The other axes are
 * common: the innermost of them that lie behind `axis` and run on in both tensors make up one run
 * of `run` elements, the rest are counted by `outer`. */
typedef struct selection {
    const mci_view *table, *rows, *index;
    int axis, dtype, add;
    int64_t run, outer, n_index, axis_bytes, run_table, run_rows;
    int n_outer;
    int64_t shape[MC_MAX_DIMS], table_bytes[MC_MAX_DIMS], rows_bytes[MC_MAX_DIMS];
    int64_t piece; /* index_add: columns of a piece of the run; 0 = by destination */
} selection;

static void common_axes(selection *q) {
    const mci_view *t = q->table, *r = q->rows;
    int64_t size = mci_dtypes[q->dtype].size;
    int extra = q->index->ndim - 1, inner = 1;
    q->run = q->outer = 1;
    q->run_table = q->run_rows = size;
    for (int d = t->ndim - 1; d >= 0; d--) {
        if (d == q->axis) {
            inner = 0;
            continue;
        }
        int64_t n = t->shape[d], a = t->stride[d] * size;
        int64_t b = r->stride[d > q->axis ? d + extra : d] * size;
        if (n == 1) continue;
        if (inner && q->run == 1) {
            q->run_table = a;
            q->run_rows = b;
            q->run = n;
        } else if (inner && a == q->run_table * q->run && b == q->run_rows * q->run) {
            q->run *= n;
        } else {
            inner = 0;
            q->shape[q->n_outer] = n;
            q->table_bytes[q->n_outer] = a;
            q->rows_bytes[q->n_outer++] = b;
            q->outer *= n;
        }
    }
    q->n_index = mci_numel(q->index);
    q->axis_bytes = t->stride[q->axis] * size;
}

/* Addresses of common position `outer`: of the table, and of the rows. */
static void common_at(const selection *q, int64_t outer, char **table, char **rows) {
    *table = q->table->data;
    *rows = q->rows->data;
    for (int d = 0; d < q->n_outer; d++) {
        *table += outer % q->shape[d] * q->table_bytes[d];
        *rows += outer % q->shape[d] * q->rows_bytes[d];
        outer /= q->shape[d];
    }
}

/* Bytes of index element j within `rows`. */
static int64_t row_bytes(const selection *q, int64_t j) {
    int64_t at = 0;
    for (int d = q->index->ndim - 1; d >= 0; d--) {
        at += j % q->index->shape[d] * q->rows->stride[q->axis + d];
        j /= q->index->shape[d];
    }
    return at * mci_dtypes[q->dtype].size;
}

static int64_t index_at(const selection *q, int64_t j) {
    return index_value((const char *)q->index->data + offset_of(q->index, j), q->index->dtype);
}

static void select_rows(void *context, int64_t begin, int64_t end) {
    const selection *q = context;
    char *table = NULL, *rows = NULL;
    for (int64_t item = begin; item < end; item++) {
        int64_t j = item % q->n_index;
        if (j == 0 || item == begin) common_at(q, item / q->n_index, &table, &rows);
        copy_run(rows + row_bytes(q, j), q->run_rows, table + index_at(q, j) * q->axis_bytes,
                 q->run_table, q->dtype, q->run);
    }
}

/* t: out, a, index. out[.., j, ..] = a[.., index[j], ..] along `axis`. */
mc_status MCI_CPU(index_select)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_axis_params *r = p;
    (void)exec;
    selection q = {.table = t[1], .rows = t[0], .index = t[2], .axis = r->axis};
    q.dtype = t[1]->dtype;
    mc_status status = check_index("index_select", t[2], t[1]->shape[r->axis]);
    if (status != MC_OK || mci_numel(t[0]) == 0) return status;
    common_axes(&q);
    mci_parallel(q.outer * q.n_index, mci_numel(t[0]), select_rows, &q);
    return MC_OK;
}

/* Destinations [begin, end), or pieces of the run: either way an element has one writer. */
static void add_rows(void *context, int64_t begin, int64_t end) {
    const selection *q = context;
    int64_t first = q->piece ? begin * q->piece : 0, last = q->piece ? end * q->piece : q->run;
    if (last > q->run) last = q->run;
    for (int64_t outer = 0; outer < q->outer; outer++) {
        char *table, *rows;
        common_at(q, outer, &table, &rows);
        for (int64_t j = 0; j < q->n_index; j++) {
            int64_t to = index_at(q, j);
            if (!q->piece && (to < begin || to >= end)) continue;
            add_run(table + to * q->axis_bytes + first * q->run_table, q->run_table,
                    rows + row_bytes(q, j) + first * q->run_rows, q->run_rows, q->dtype,
                    last - first);
        }
    }
}

/* t: da, dout, index. da[.., index[j], ..] += dout[.., j, ..], in the order of j. */
mc_status MCI_CPU(index_add)(mci_exec *exec, const mci_view *const *t, const void *p) {
    enum { PIECE = 64 };
    const mci_axis_params *r = p;
    (void)exec;
    selection q = {.table = t[0], .rows = t[1], .index = t[2], .axis = r->axis};
    q.dtype = t[0]->dtype;
    mc_status status = check_index("index_add", t[2], t[0]->shape[r->axis]);
    int64_t work = mci_numel(t[1]);
    if (status != MC_OK || work == 0) return status;
    common_axes(&q);
    q.piece = q.run >= 4 * PIECE ? PIECE : 0;
    int64_t items = q.piece ? (q.run + PIECE - 1) / PIECE : t[0]->shape[r->axis];
    mci_parallel(items, work, add_rows, &q);
    return MC_OK;
}

/* -- gather, scatter_add ----------------------------------------------------------------------- */

/* `table` is indexed along `axis`; `values` has the index's shape. A line is all of the index along
 * `axis` at one position of the other axes. */
typedef struct lines {
    const mci_view *table, *values, *index;
    int axis;
} lines;

static int64_t line_bytes(const mci_view *v, const mci_view *shape, int axis, int64_t row) {
    int64_t at = 0;
    for (int d = shape->ndim - 1; d >= 0; d--) {
        if (d == axis) continue;
        at += row % shape->shape[d] * v->stride[d];
        row /= shape->shape[d];
    }
    return at * mci_dtypes[v->dtype].size;
}

#define LINE_HEAD                                                                           \
    const lines *q = context;                                                               \
    int axis = q->axis, dtype = q->table->dtype, index_dtype = q->index->dtype;             \
    int64_t size = mci_dtypes[dtype].size, n = q->index->shape[axis];                       \
    int64_t table_step = q->table->stride[axis] * size;                                     \
    int64_t value_step = q->values->stride[axis] * size;                                    \
    int64_t index_step = q->index->stride[axis] * mci_dtypes[index_dtype].size;             \
    for (int64_t row = begin; row < end; row++) {                                           \
        char *table = (char *)q->table->data + line_bytes(q->table, q->index, axis, row);   \
        char *value = (char *)q->values->data + line_bytes(q->values, q->index, axis, row); \
        const char *index =                                                                 \
            (const char *)q->index->data + line_bytes(q->index, q->index, axis, row);

static void gather_lines(void *context, int64_t begin, int64_t end) {
    LINE_HEAD
    for (int64_t j = 0; j < n; j++)
        memcpy(value + j * value_step,
               table + index_value(index + j * index_step, index_dtype) * table_step, (size_t)size);
}
}

static void scatter_lines(void *context, int64_t begin, int64_t end) {
    LINE_HEAD
#define SCATTER(T, SUM)                                                   \
    for (int64_t j = 0; j < n; j++) {                                     \
        int64_t to = index_value(index + j * index_step, index_dtype);    \
        T *d = (T *)(void *)(table + to * table_step);                    \
        *d = SUM(*d, *(const T *)(const void *)(value + j * value_step)); \
    }
    BY_DTYPE(dtype, SCATTER)
#undef SCATTER
}
}

static mc_status over_lines(const char *op, lines *q, mci_range_fn fn) {
    mc_status status = check_index(op, q->index, q->table->shape[q->axis]);
    int64_t work = mci_numel(q->index);
    if (status != MC_OK || work == 0) return status;
    mci_parallel(work / q->index->shape[q->axis], work, fn, q);
    return MC_OK;
}

/* t: out, a, index (out's shape). out[i][j] = a[index[i][j]][j] for axis 0. */
mc_status MCI_CPU(gather)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_axis_params *r = p;
    (void)exec;
    lines q = {t[1], t[0], t[2], r->axis};
    return over_lines("gather", &q, gather_lines);
}

/* t: da, dout, index (dout's shape). da[index[i][j]][j] += dout[i][j] for axis 0, in order of i. */
mc_status MCI_CPU(scatter_add)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_axis_params *r = p;
    (void)exec;
    lines q = {t[0], t[1], t[2], r->axis};
    return over_lines("scatter_add", &q, scatter_lines);
}
