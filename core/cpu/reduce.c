/* reduce.c: reductions, cumulative sums, top k and softmax.
 *
 * A reduction sees its input as kept axes and reduced axes. When the axis of smallest stride is
 * reduced, each output takes its elements in blocks (rows); when it is kept, blocks of outputs take
 * whole runs at a time (columns). Few outputs with much to reduce are cut into parts, whose number
 * and bounds depend on the shape alone, and joined in order: the result never depends on threads.
 */
#include "iter.h"
#include "vmath.h"

typedef struct line {
    char *p;
    int64_t stride; /* bytes */
    int dtype;
} line;

#define real float
#define acc double
#define SUM(a, b) ((a) + (b))
#define PROD(a, b) ((a) * (b))
#define R(name) name##_f32
#define KIND_f32 MCI_F32
#define ACC_KIND_f32 MCI_F64
#define LOWEST (-INFINITY)
#define HIGHEST INFINITY
#define IS_NAN(x) ((x) != (x))
#include "reduce_real.h"
#include "softmax_real.h"
#undef real
#undef R
#define real double
#define R(name) name##_f64
#define KIND_f64 MCI_F64
#define ACC_KIND_f64 MCI_F64
#include "reduce_real.h"
#include "softmax_real.h"
#undef real
#undef acc
#undef SUM
#undef PROD
#undef R
#undef LOWEST
#undef HIGHEST
#undef IS_NAN
/* integers wrap */
#define real int64_t
#define acc int64_t
#define SUM(a, b) ((int64_t)((uint64_t)(a) + (uint64_t)(b)))
#define PROD(a, b) ((int64_t)((uint64_t)(a) * (uint64_t)(b)))
#define R(name) name##_i64
#define KIND_i64 MCI_I64
#define ACC_KIND_i64 MCI_I64
#define LOWEST INT64_MIN
#define HIGHEST INT64_MAX
#define IS_NAN(x) 0
#include "reduce_real.h"

/* -- the general reduction --------------------------------------------------------------------- */

typedef struct reducer {
    void (*block)(void *a, const void *x, int64_t n);
    void (*columns)(void *a, const void *x, int64_t n);
    void (*join)(void *a, const void *b, int64_t n);
    void (*empty)(void *a, int64_t n);
} reducer;

#define ROW(op, type) \
    { op##_block_##type, op##_columns_##type, op##_join_##type, op##_empty_##type }
#define REDUCERS(op) \
    static const reducer op##_reducer[3] = {ROW(op, f32), ROW(op, f64), ROW(op, i64)};
REDUCERS(sum)
REDUCERS(prod)
REDUCERS(max)
REDUCERS(min)

/* Axes, innermost first; strides in bytes. */
typedef struct axes {
    int n;
    int64_t numel, shape[MC_MAX_DIMS], in[MC_MAX_DIMS], out[MC_MAX_DIMS];
} axes;

typedef struct reduction {
    const reducer *r;
    axes kept, reduced;
    char *out;
    const char *in;
    int kind, acc_kind, in_dtype, out_dtype, mean;
    int by_columns;
    int64_t blocks, parts, part_size; /* blocks of outputs; parts of the reduced elements */
    char *partial;                    /* 8 bytes each, [parts][outputs]; NULL with one part */
} reduction;

/* Adds an axis outside the ones there; axes that continue each other become one. */
static void push_axis(axes *a, int64_t size, int64_t in, int64_t out) {
    a->numel *= size;
    if (size == 1) return;
    int k = a->n - 1;
    if (k >= 0 && in == a->in[k] * a->shape[k] && out == a->out[k] * a->shape[k]) {
        a->shape[k] *= size;
        return;
    }
    a->shape[a->n] = size;
    a->in[a->n] = in;
    a->out[a->n++] = out;
}

static int64_t magnitude(int64_t x) {
    return x < 0 ? -x : x;
}

/* Offsets of element `index`, and its position along the axes. */
static int64_t locate(const axes *a, int64_t index, int64_t *position, int64_t *out) {
    int64_t in = 0;
    for (int d = 0; d < a->n; d++) {
        position[d] = index % a->shape[d];
        index /= a->shape[d];
        in += position[d] * a->in[d];
        if (out) *out += position[d] * a->out[d];
    }
    return in;
}

/* How far it is from the start of a run along axis 0 to the start of the next one. */
static int64_t next_run(const axes *a, int64_t *position) {
    int64_t in = 0;
    for (int d = 1; d < a->n; d++) {
        in += a->in[d];
        if (++position[d] < a->shape[d]) break;
        in -= a->shape[d] * a->in[d];
        position[d] = 0;
    }
    return in;
}

/* Reduces elements [begin, end) of the reduced axes, for the output at `in`, into a[0]. */
static void reduce_rows(const reduction *q, const char *in, int64_t begin, int64_t end, void *a) {
    _Alignas(64) char buf[MCI_BLOCK * 8];
    int64_t position[MC_MAX_DIMS] = {0}, run = q->reduced.n ? q->reduced.shape[0] : 1;
    int64_t stride = q->reduced.n ? q->reduced.in[0] : mci_dtypes[q->in_dtype].size;
    int direct = mci_kind_direct(q->kind, q->in_dtype) && stride == mci_dtypes[q->in_dtype].size;
    if (begin >= end) return;
    in += locate(&q->reduced, begin, position, NULL);
    while (begin < end) {
        int64_t n = run - position[0] < end - begin ? run - position[0] : end - begin;
        for (int64_t at = 0; at < n; at += MCI_BLOCK) {
            int64_t m = n - at < MCI_BLOCK ? n - at : MCI_BLOCK;
            const void *x = in + at * stride;
            if (!direct) MCI_CPU(load)(q->kind, buf, x, q->in_dtype, stride, m);
            q->r->block(a, direct ? x : buf, m);
        }
        begin += n;
        in += next_run(&q->reduced, position) - position[0] * stride;
        position[0] = 0;
    }
}

/* The same for `count` outputs along kept axis 0, from the one at `in` on, into a[0..count). */
static void reduce_columns(const reduction *q, const char *in, int64_t count, int64_t begin,
                           int64_t end, void *a) {
    _Alignas(64) char buf[MCI_BLOCK * 8];
    int64_t position[MC_MAX_DIMS] = {0}, run = q->reduced.n ? q->reduced.shape[0] : 1;
    int64_t stride = q->kept.in[0], step = q->reduced.n ? q->reduced.in[0] : 0;
    int direct = mci_kind_direct(q->kind, q->in_dtype) && stride == mci_dtypes[q->in_dtype].size;
    if (begin >= end) return;
    in += locate(&q->reduced, begin, position, NULL);
    while (begin < end) {
        int64_t n = run - position[0] < end - begin ? run - position[0] : end - begin;
        const char *x = in;
        for (int64_t i = 0; i < n; i++, x += step) {
            if (!direct) MCI_CPU(load)(q->kind, buf, x, q->in_dtype, stride, count);
            q->r->columns(a, direct ? x : buf, count);
        }
        begin += n;
        in += next_run(&q->reduced, position) - position[0] * step;
        position[0] = 0;
    }
}

/* Accumulators of `count` outputs along kept axis 0 to memory. */
static void finish(const reduction *q, char *out, void *a, int64_t count) {
    int64_t stride = q->kept.n ? q->kept.out[0] : 8;
    if (q->mean) {
        double *sums = a;
        for (int64_t i = 0; i < count; i++) sums[i] /= (double)q->reduced.numel;
    }
    MCI_CPU(store)(q->acc_kind, out, q->out_dtype, stride, a, count);
}

/* Items: part-major, then blocks of up to MCI_BLOCK outputs along kept axis 0. */
static void reduce_items(void *context, int64_t begin, int64_t end) {
    const reduction *q = context;
    _Alignas(64) char sums[MCI_BLOCK * 8];
    int64_t width = q->kept.n ? q->kept.shape[0] : 1, per_row = (width + MCI_BLOCK - 1) / MCI_BLOCK;
    for (int64_t item = begin; item < end; item++) {
        int64_t part = item / q->blocks, block = item % q->blocks;
        int64_t column = block % per_row * MCI_BLOCK, row = block / per_row;
        int64_t count = width - column < MCI_BLOCK ? width - column : MCI_BLOCK;
        int64_t first = row * width + column, position[MC_MAX_DIMS], out = 0;
        int64_t in = locate(&q->kept, first, position, &out);
        int64_t low = part * q->part_size, high = low + q->part_size;
        if (high > q->reduced.numel) high = q->reduced.numel;
        void *a = q->partial ? q->partial + (part * q->kept.numel + first) * 8 : sums;
        q->r->empty(a, count);
        if (q->by_columns) {
            reduce_columns(q, q->in + in, count, low, high, a);
        } else {
            int64_t step = q->kept.n ? q->kept.in[0] : 0;
            for (int64_t i = 0; i < count; i++)
                reduce_rows(q, q->in + in + i * step, low, high, (char *)a + i * 8);
        }
        if (!q->partial) finish(q, q->out + out, a, count);
    }
}

/* Joins the parts of each block of outputs, in order, into the first. */
static void join_items(void *context, int64_t begin, int64_t end) {
    const reduction *q = context;
    int64_t width = q->kept.n ? q->kept.shape[0] : 1, per_row = (width + MCI_BLOCK - 1) / MCI_BLOCK;
    for (int64_t block = begin; block < end; block++) {
        int64_t column = block % per_row * MCI_BLOCK, first = block / per_row * width + column;
        int64_t count = width - column < MCI_BLOCK ? width - column : MCI_BLOCK;
        int64_t position[MC_MAX_DIMS], out = 0;
        locate(&q->kept, first, position, &out);
        char *a = q->partial + first * 8;
        for (int64_t part = 1; part < q->parts; part++)
            q->r->join(a, a + part * q->kept.numel * 8, count);
        finish(q, q->out + out, a, count);
    }
}

/* t: out (reduced axes kept with size 1), in. */
static mc_status reduce(mci_exec *exec, const mci_view *const *t, const void *p, const reducer *ops,
                        int mean) {
    const mci_reduce_params *r = p;
    const mci_view *out = t[0], *in = t[1];
    int kind = mci_compute_kind(in->dtype), order[MC_MAX_DIMS], n = 0;
    reduction q = {.r = &ops[kind], .out = out->data, .in = in->data, .kind = kind, .mean = mean};
    q.acc_kind = kind == MCI_I64 ? MCI_I64 : MCI_F64;
    q.in_dtype = in->dtype;
    q.out_dtype = out->dtype;
    q.kept.numel = q.reduced.numel = 1;
    for (int d = in->ndim - 1; d >= 0; d--) {
        if (in->shape[d] == 1) continue;
        int k = n++;
        for (; k > 0 && magnitude(in->stride[order[k - 1]]) > magnitude(in->stride[d]); k--)
            order[k] = order[k - 1];
        order[k] = d;
    }
    int in_size = mci_dtypes[in->dtype].size, out_size = mci_dtypes[out->dtype].size;
    for (int k = 0; k < n; k++) {
        int d = order[k];
        push_axis(r->reduced[d] ? &q.reduced : &q.kept, in->shape[d], in->stride[d] * in_size,
                  r->reduced[d] ? 0 : out->stride[d] * out_size);
    }
    q.by_columns = n > 0 && !r->reduced[order[0]];
    if (q.kept.numel == 0) return MC_OK;
    int64_t width = q.kept.n ? q.kept.shape[0] : 1;
    q.blocks = (width + MCI_BLOCK - 1) / MCI_BLOCK * (q.kept.numel / width);
    /* parts of at least 64 Ki elements, at most 64 of them */
    enum { PART = 65536, PARTS = 64 };
    int64_t most = q.reduced.numel / (PART / (width < MCI_BLOCK ? width : MCI_BLOCK));
    if (most > PARTS / q.blocks) most = PARTS / q.blocks;
    if (most < 1) most = 1;
    q.part_size = (q.reduced.numel + most - 1) / most;
    q.part_size = (q.part_size + MCI_BLOCK - 1) / MCI_BLOCK * MCI_BLOCK;
    q.parts = q.part_size ? (q.reduced.numel + q.part_size - 1) / q.part_size : 1;
    if (q.parts < 1) q.parts = 1;
    if (q.parts > 1) {
        q.partial = exec->scratch(exec, (size_t)(q.parts * q.kept.numel * 8));
        if (!q.partial) return mci_fail(MC_ENOMEM, "reduce: no memory for partial results");
    }
    int64_t work = q.kept.numel * q.reduced.numel;
    mci_parallel(q.blocks * q.parts, work, reduce_items, &q);
    if (q.parts > 1) mci_parallel(q.blocks, q.kept.numel * q.parts, join_items, &q);
    return MC_OK;
}

#define KERNEL(op, CALL)                                                              \
    mc_status MCI_CPU(op)(mci_exec * exec, const mci_view *const *t, const void *p) { \
        return CALL;                                                                  \
    }
KERNEL(sum, reduce(exec, t, p, sum_reducer, 0))
KERNEL(mean, reduce(exec, t, p, sum_reducer, 1))
KERNEL(prod, reduce(exec, t, p, prod_reducer, 0))
KERNEL(amax, reduce(exec, t, p, max_reducer, 0))
KERNEL(amin, reduce(exec, t, p, min_reducer, 0))

/* -- sum of squares ---------------------------------------------------------------------------- */

#define SQUARES(type, name)                                                          \
    static void name(void *a, const void *x_, int64_t n) {                           \
        enum { LANES = 16 };                                                         \
        const type *x = x_;                                                          \
        double s[LANES] = {0};                                                       \
        int64_t i = 0;                                                               \
        for (; i + LANES <= n; i += LANES)                                           \
            for (int l = 0; l < LANES; l++) {                                        \
                double v = (double)x[i + l];                                         \
                s[l] += v * v;                                                       \
            }                                                                        \
        for (int l = 0; i + l < n; l++) s[l] += (double)x[i + l] * (double)x[i + l]; \
        for (int half = LANES / 2; half > 0; half /= 2)                              \
            for (int l = 0; l < half; l++) s[l] += s[l + half];                      \
        *(double *)a += s[0];                                                        \
    }
SQUARES(float, squares_f32)
SQUARES(double, squares_f64)
static const reducer squares_reducer[2] = {
    {squares_f32, NULL, sum_join_f32, sum_empty_f32},
    {squares_f64, NULL, sum_join_f64, sum_empty_f64},
};

/* t: acc [1] (float64, added to), x (float). */
mc_status MCI_CPU(sum_squares)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)p;
    double total = 0;
    mci_view sum = {.data = &total, .dtype = MC_FLOAT64};
    mci_reduce_params all = {.axis = 0};
    for (int d = 0; d < t[1]->ndim; d++) all.reduced[d] = 1;
    const mci_view *v[2] = {&sum, t[1]};
    mc_status status = reduce(exec, v, &all, squares_reducer, 0);
    if (status == MC_OK) *(double *)t[0]->data += total;
    return status;
}

/* -- one line at a time: along one axis, for each position of the others ----------------------- */

typedef struct lines {
    const mci_view *v[3];
    int n_views, axis, option;
    int64_t k;
    char *heaps;
} lines;

/* Line `row` of v along `axis`, lines counted row-major over the other axes. */
static line line_of(const mci_view *v, int axis, int64_t row) {
    int size = mci_dtypes[v->dtype].size;
    int64_t at = 0;
    for (int d = v->ndim - 1; d >= 0; d--) {
        if (d == axis) continue;
        at += row % v->shape[d] * v->stride[d];
        row /= v->shape[d];
    }
    return (line){(char *)v->data + at * size, v->ndim ? v->stride[axis] * size : size, v->dtype};
}

/* Runs fn over the lines of the last view of q. */
static void over_lines(lines *q, mci_range_fn fn) {
    const mci_view *v = q->v[q->n_views - 1];
    int64_t rows = 1;
    for (int d = 0; d < v->ndim; d++) rows *= d == q->axis ? 1 : v->shape[d];
    mci_parallel(rows, mci_numel(v), fn, q);
}

static int64_t line_length(const mci_view *v, int axis) {
    return v->ndim ? v->shape[axis] : 1;
}

static void arg_lines(void *context, int64_t begin, int64_t end) {
    const lines *q = context;
    int kind = mci_compute_kind(q->v[1]->dtype);
    int64_t n = line_length(q->v[1], q->axis);
    for (int64_t row = begin; row < end; row++) {
        line out = line_of(q->v[0], q->axis, row), in = line_of(q->v[1], q->axis, row);
        *(int64_t *)(void *)out.p =
            kind == MCI_F32   ? arg_line_f32(in.p, in.dtype, in.stride, n, q->option)
            : kind == MCI_F64 ? arg_line_f64(in.p, in.dtype, in.stride, n, q->option)
                              : arg_line_i64(in.p, in.dtype, in.stride, n, q->option);
    }
}

/* t: out (int64, the axis kept with size 1), in. */
static mc_status arg(const mci_view *const *t, const void *p, int greatest) {
    const mci_reduce_params *r = p;
    lines q = {.v = {t[0], t[1]}, .n_views = 2, .axis = r->axis, .option = greatest};
    over_lines(&q, arg_lines);
    return MC_OK;
}
KERNEL(argmax, ((void)exec, arg(t, p, 1)))
KERNEL(argmin, ((void)exec, arg(t, p, 0)))

static void cumsum_lines(void *context, int64_t begin, int64_t end) {
    const lines *q = context;
    int kind = mci_compute_kind(q->v[1]->dtype);
    int64_t n = line_length(q->v[1], q->axis);
    for (int64_t row = begin; row < end; row++) {
        line out = line_of(q->v[0], q->axis, row), in = line_of(q->v[1], q->axis, row);
        if (kind == MCI_F32)
            cumsum_line_f32(out.p, out.stride, out.dtype, in.p, in.stride, in.dtype, n);
        else if (kind == MCI_F64)
            cumsum_line_f64(out.p, out.stride, out.dtype, in.p, in.stride, in.dtype, n);
        else
            cumsum_line_i64(out.p, out.stride, out.dtype, in.p, in.stride, in.dtype, n);
    }
}

/* t: out, in. Floats accumulate in float64. */
mc_status MCI_CPU(cumsum)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_axis_params *r = p;
    (void)exec;
    lines q = {.v = {t[0], t[1]}, .n_views = 2, .axis = r->axis};
    over_lines(&q, cumsum_lines);
    return MC_OK;
}

enum { SMALL_K = 64 }; /* heaps up to this size live on the stack */

static void topk_lines(void *context, int64_t begin, int64_t end) {
    const lines *q = context;
    int kind = mci_compute_kind(q->v[2]->dtype);
    int64_t n = line_length(q->v[2], q->axis), k = q->k;
    _Alignas(16) char small[SMALL_K * 16];
    for (int64_t row = begin; row < end; row++) {
        line values = line_of(q->v[0], q->axis, row), indices = line_of(q->v[1], q->axis, row);
        line in = line_of(q->v[2], q->axis, row);
        void *heap = q->heaps ? q->heaps + row * k * 16 : small;
        if (kind == MCI_F32)
            topk_line_f32(heap, k, in.p, in.stride, in.dtype, n);
        else if (kind == MCI_F64)
            topk_line_f64(heap, k, in.p, in.stride, in.dtype, n);
        else
            topk_line_i64(heap, k, in.p, in.stride, in.dtype, n);
        for (int64_t j = 0; j < k; j++) {
            int64_t at = ((const int64_t *)heap)[2 * j + 1];
            *(int64_t *)(void *)(indices.p + j * indices.stride) = at;
            memcpy(values.p + j * values.stride, in.p + at * in.stride,
                   (size_t)mci_dtypes[in.dtype].size);
        }
    }
}

/* t: values [.., k], indices [.., k] (int64), a [.., n], k <= n. */
mc_status MCI_CPU(topk)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)p;
    int last = t[2]->ndim - 1;
    lines q = {.v = {t[0], t[1], t[2]}, .n_views = 3, .axis = last, .k = line_length(t[0], last)};
    if (q.k == 0 || mci_numel(t[2]) == 0) return MC_OK;
    if (q.k > SMALL_K) {
        q.heaps = exec->scratch(exec, (size_t)(mci_numel(t[0]) * 16));
        if (!q.heaps) return mci_fail(MC_ENOMEM, "topk: no memory for the sort");
    }
    over_lines(&q, topk_lines);
    return MC_OK;
}

/* -- softmax ----------------------------------------------------------------------------------- */

static void softmax_lines(void *context, int64_t begin, int64_t end) {
    const lines *q = context;
    int wide = q->v[0]->dtype == MC_FLOAT64;
    int64_t n = line_length(q->v[0], q->axis);
    for (int64_t row = begin; row < end; row++) {
        line l[3];
        for (int i = 0; i < q->n_views; i++) l[i] = line_of(q->v[i], q->axis, row);
        if (q->n_views == 2)
            (wide ? softmax_line_f64 : softmax_line_f32)(l, n, q->option);
        else
            (wide ? softmax_backward_line_f64 : softmax_backward_line_f32)(l, n, q->option);
    }
}

static mc_status softmax(const mci_view *const *t, int n_views, const void *p, int logarithmic) {
    const mci_axis_params *r = p;
    lines q = {.n_views = n_views, .axis = r->axis, .option = logarithmic};
    for (int i = 0; i < n_views; i++) q.v[i] = t[i];
    if (mci_numel(t[0]) > 0) over_lines(&q, softmax_lines);
    return MC_OK;
}
/* t: y, x; and dx, dy, y. */
KERNEL(softmax, ((void)exec, softmax(t, 2, p, 0)))
KERNEL(log_softmax, ((void)exec, softmax(t, 2, p, 1)))
KERNEL(softmax_backward, ((void)exec, softmax(t, 3, p, 0)))
KERNEL(log_softmax_backward, ((void)exec, softmax(t, 3, p, 1)))
