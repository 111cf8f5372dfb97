/* grouped.c: the passes of a grouped linear layer; group i owns rows o_i .. o_i + M_i of x and y.
 *     forward  y_i = x_i W_i^T (+ b_i)     dgrad  dx_i = dy_i W_i     wgrad  dW_i (+)= dy_i^T x_i
 *     bias     db_i (+)= sum of dy_i's rows
 * x, dx [R, K], y, dy [R, N], W, dW [G, N, K], b, db [G, N], splits int32 or int64 [G]. Sums run in
 * float32 (float64 for float64) and are rounded once, after the bias. Rows beyond the splits' sum
 * are read by nothing. Each pass has its definition, plain loops, and the fast path, one list of
 * products (products.h) over all groups.
 */
#include "iter.h"
#include "products.h"

/* -- splits ------------------------------------------------------------------------------------ */

static int64_t split_at(const mci_view *splits, int64_t i) {
    const char *at = splits->data;
    if (splits->dtype == MC_INT32) {
        int32_t x;
        memcpy(&x, at + i * splits->stride[0] * 4, sizeof x);
        return x;
    }
    int64_t x;
    memcpy(&x, at + i * splits->stride[0] * 8, sizeof x);
    return x;
}

/* Checks the splits against the rows there are; *sum gets M. Nothing has been written yet. */
static mc_status check_splits(const char *op, const mci_view *splits, const char *operand,
                              int64_t rows, int64_t *sum) {
    int64_t groups = splits->shape[0];
    *sum = 0;
    for (int64_t i = 0; i < groups; i++) {
        int64_t m = split_at(splits, i);
        if (m < 0)
            return mci_fail(MC_EINVAL, "%s: m_splits[%lld] is %lld, must be 0 or more", op,
                            (long long)i, (long long)m);
        if (__builtin_add_overflow(*sum, m, sum)) *sum = INT64_MAX;
    }
    if (*sum > rows)
        return mci_fail(MC_EINVAL, "%s: m_splits sum to %lld, %s has %lld rows", op,
                        (long long)*sum, operand, (long long)rows);
    return MC_OK;
}

/* -- elements, for the definitions ------------------------------------------------------------- */

static void *at(const mci_view *v, int64_t i, int64_t j, int64_t k) {
    int64_t offset = i * v->stride[0] + (v->ndim > 1 ? j * v->stride[1] : 0) +
                     (v->ndim > 2 ? k * v->stride[2] : 0);
    return (char *)v->data + offset * mci_dtypes[v->dtype].size;
}
static float get_f32(const mci_view *v, int64_t i, int64_t j, int64_t k) {
    float x;
    MCI_CPU(load_f32)(&x, at(v, i, j, k), v->dtype, 0, 1);
    return x;
}
static double get_f64(const mci_view *v, int64_t i, int64_t j, int64_t k) {
    double x;
    memcpy(&x, at(v, i, j, k), sizeof x);
    return x;
}
static void put_f32(const mci_view *v, int64_t i, int64_t j, int64_t k, float x) {
    MCI_CPU(store_f32)(at(v, i, j, k), v->dtype, 0, &x, 1);
}
static void put_f64(const mci_view *v, int64_t i, int64_t j, int64_t k, double x) {
    memcpy(at(v, i, j, k), &x, sizeof x);
}

/* The definitions, once for float32 sums and once for float64. `first` is o_i. */
#define DEFINE_PASSES(T, get, put)                                                            \
    static void forward_##T(const mci_view *y, const mci_view *x, const mci_view *w,          \
                            const mci_view *bias, int64_t g, int64_t first, int64_t rows) {   \
        for (int64_t r = first; r < first + rows; r++)                                        \
            for (int64_t n = 0; n < y->shape[1]; n++) {                                       \
                T sum = 0;                                                                    \
                for (int64_t k = 0; k < x->shape[1]; k++)                                     \
                    sum += get(x, r, k, 0) * get(w, g, n, k);                                 \
                if (bias) sum += get(bias, g, n, 0);                                          \
                put(y, r, n, 0, sum);                                                         \
            }                                                                                 \
    }                                                                                         \
    static void dgrad_##T(const mci_view *dx, const mci_view *dy, const mci_view *w,          \
                          const mci_view *unused, int64_t g, int64_t first, int64_t rows) {   \
        (void)unused;                                                                         \
        for (int64_t r = first; r < first + rows; r++)                                        \
            for (int64_t k = 0; k < dx->shape[1]; k++) {                                      \
                T sum = 0;                                                                    \
                for (int64_t n = 0; n < dy->shape[1]; n++)                                    \
                    sum += get(dy, r, n, 0) * get(w, g, n, k);                                \
                put(dx, r, k, 0, sum);                                                        \
            }                                                                                 \
    }                                                                                         \
    static void wgrad_##T(const mci_view *dw, const mci_view *dy, const mci_view *x, int add, \
                          int64_t g, int64_t first, int64_t rows) {                           \
        for (int64_t n = 0; n < dw->shape[1]; n++)                                            \
            for (int64_t k = 0; k < dw->shape[2]; k++) {                                      \
                T sum = 0;                                                                    \
                for (int64_t r = first; r < first + rows; r++)                                \
                    sum += get(dy, r, n, 0) * get(x, r, k, 0);                                \
                put(dw, g, n, k, add ? get(dw, g, n, k) + sum : sum);                         \
            }                                                                                 \
    }

DEFINE_PASSES(float, get_f32, put_f32)
DEFINE_PASSES(double, get_f64, put_f64)

/* -- operands ---------------------------------------------------------------------------------- */

/* Stored rows as the products want them: elements of a row side by side, rows `ld` apart. */
typedef struct rows_of {
    const mci_view *v;
    char *data;
    int64_t groups, rows, columns; /* groups = 1 for x, y and their gradients */
    int64_t group_step, ld;        /* elements */
    int packed;
    size_t bytes; /* scratch when packed */
} rows_of;

/* v [rows, columns] or [groups, rows, columns]; only the first `rows` rows are used. */
static rows_of describe(const mci_view *v, int64_t rows) {
    int d = v->ndim - 2;
    rows_of o = {.v = v, .data = v->data, .groups = 1, .rows = rows, .columns = v->shape[d + 1]};
    if (d) {
        o.groups = v->shape[0];
        o.group_step = v->stride[0];
    }
    int64_t s0 = v->stride[d], s1 = v->stride[d + 1];
    o.ld = rows <= 1 || s0 < o.columns ? o.columns : s0;
    o.packed = !((s1 == 1 || o.columns == 1) && (s0 >= o.columns || rows <= 1));
    if (o.packed) {
        o.ld = o.columns;
        o.bytes = mci_round64((size_t)(o.groups * rows * o.columns * mci_dtypes[v->dtype].size));
    }
    if (o.ld < 1) o.ld = 1;
    return o;
}

/* Moves a packed operand into `room` (and its contents when it is read), or back from it. */
static char *enter(rows_of *o, char *room, int read) {
    if (!o->packed) return room;
    int d = o->v->ndim - 2, size = mci_dtypes[o->v->dtype].size;
    o->data = room;
    for (int64_t g = 0; g < o->groups && read; g++) MCI_CPU(pack)
    (room + g * o->rows * o->columns * size, (char *)o->v->data + g * o->group_step * size, size,
     o->rows, o->columns, o->v->stride[d], o->v->stride[d + 1]);
    o->group_step = o->rows * o->columns;
    return room + o->bytes;
}
static void leave(const rows_of *o) {
    if (!o->packed) return;
    int d = o->v->ndim - 2, size = mci_dtypes[o->v->dtype].size;
    for (int64_t g = 0; g < o->groups; g++) MCI_CPU(unpack)
    ((char *)o->v->data + (d ? g * o->v->stride[0] : 0) * size, o->data + g * o->group_step * size,
     size, o->rows, o->columns, o->v->stride[d], o->v->stride[d + 1]);
}

/* -- the fast path ----------------------------------------------------------------------------- */

typedef struct job {
    const mci_view *splits;
    rows_of a, b, c;
    int wgrad;
    const char *bias; /* rows of N elements, `bias_ld` apart */
    int64_t bias_ld, first, tail;
} job;

static char *row(const rows_of *o, int64_t group, int64_t r) {
    return o->data + (group * o->group_step + r * o->ld) * mci_dtypes[o->v->dtype].size;
}

/* Group i; the one past the last is the rows that are to be zeroed. */
static void product(void *context, int64_t i, mci_product *out) {
    job *j = context;
    if (i == 0) j->first = 0;
    if (i == j->splits->shape[0]) {
        out->zero = 1;
        out->rows = j->tail;
        out->c = row(&j->c, 0, j->first);
        return;
    }
    out->rows = split_at(j->splits, i);
    out->a = row(&j->a, 0, j->first);
    out->b = j->wgrad ? row(&j->b, 0, j->first) : row(&j->b, i, 0);
    out->c = j->wgrad ? row(&j->c, i, 0) : row(&j->c, 0, j->first);
    if (j->bias) out->bias = j->bias + i * j->bias_ld * mci_dtypes[j->a.v->dtype].size;
    j->first += out->rows;
}

static mc_status run(mci_exec *exec, const char *op, job *j, mci_products *p,
                     const mci_view *bias) {
    size_t bias_bytes = 0;
    if (bias) {
        int whole = bias->stride[1] == 1 || bias->shape[1] == 1;
        j->bias = bias->data;
        j->bias_ld = bias->stride[0];
        if (!whole) bias_bytes = mci_round64((size_t)mci_numel(bias) * sizeof(double));
    }
    p->dtype = j->a.v->dtype;
    p->c_dtype = j->c.v->dtype;
    p->has_bias = bias != NULL;
    p->recurring = 1;
    p->n = j->c.columns;
    p->lda = j->a.ld;
    p->ldb = j->b.ld;
    p->ldc = j->c.ld;
    p->count = j->splits->shape[0] + (j->tail > 0);
    p->product = product;
    p->context = j;
    mci_plan plan;
    mc_status status = MCI_CPU(products_plan)(&plan, p);
    size_t bytes = mci_round64(plan.scratch) + j->a.bytes + j->b.bytes + j->c.bytes + bias_bytes;
    char *scratch = NULL;
    if (status == MC_OK && bytes > 0) {
        scratch = exec->scratch(exec, bytes);
        if (!scratch)
            status = mci_fail(MC_ENOMEM, "%s: no memory for %zu bytes of scratch", op, bytes);
    }
    if (status == MC_OK && bytes > 0) {
        char *room = scratch + mci_round64(plan.scratch);
        room = enter(&j->a, room, 1);
        room = enter(&j->b, room, 1);
        room = enter(&j->c, room, p->accumulate);
        if (bias_bytes) {
            MCI_CPU(pack)
            (room, bias->data, mci_dtypes[bias->dtype].size, bias->shape[0], bias->shape[1],
             bias->stride[0], bias->stride[1]);
            j->bias = room;
            j->bias_ld = bias->shape[1];
        }
        status = MCI_CPU(products_run)(&plan, scratch);
        if (status == MC_OK) leave(&j->c);
    }
    MCI_CPU(products_end)(&plan);
    return status;
}

/* -- kernels ----------------------------------------------------------------------------------- */

/* Forward and dgrad: out [R, ..] = in [R, ..] times each group's weight, transposed in forward. */
static mc_status rows_pass(mci_exec *exec, const char *op, const char *operand,
                           const mci_view *const *t, const mci_view *bias, const mci_view *splits,
                           int zero_tail, int trans_b) {
    const mci_view *out = t[0], *in = t[1], *w = t[2];
    int64_t sum, total = in->shape[0];
    mc_status status = check_splits(op, splits, operand, total, &sum);
    if (status != MC_OK || mci_numel(out) == 0) return status;
    int64_t used = zero_tail ? total : sum;
    if (!mci_cpu_plain) {
        job j = {.splits = splits,
                 .a = describe(in, sum),
                 .b = describe(w, w->shape[1]),
                 .c = describe(out, used),
                 .tail = used - sum};
        mci_products p = {.trans_b = trans_b, .fixed = in->shape[1]};
        return run(exec, op, &j, &p, bias);
    }
    int64_t first = 0;
    for (int64_t g = 0; g < splits->shape[0]; g++) {
        int64_t rows = split_at(splits, g);
        if (trans_b)
            (out->dtype == MC_FLOAT64 ? forward_double : forward_float)(out, in, w, bias, g, first,
                                                                        rows);
        else
            (out->dtype == MC_FLOAT64 ? dgrad_double : dgrad_float)(out, in, w, bias, g, first,
                                                                    rows);
        first += rows;
    }
    for (int64_t r = sum; r < used; r++)
        for (int64_t n = 0; n < out->shape[1]; n++)
            memset(at(out, r, n, 0), 0, (size_t)mci_dtypes[out->dtype].size);
    return MC_OK;
}

mc_status MCI_CPU(grouped_linear)(mci_exec *exec, const mci_view *const *t, const void *params) {
    const mci_grouped_params *p = params;
    return rows_pass(exec, "grouped_linear", "x", t, t[3], t[4], p->zero_tail, 1);
}

mc_status MCI_CPU(grouped_linear_dgrad)(mci_exec *exec, const mci_view *const *t,
                                        const void *params) {
    const mci_grouped_params *p = params;
    return rows_pass(exec, "grouped_linear_dgrad", "dy", t, NULL, t[3], p->zero_tail, 0);
}

mc_status MCI_CPU(grouped_linear_wgrad)(mci_exec *exec, const mci_view *const *t,
                                        const void *params) {
    const mci_grouped_params *params_of = params;
    const mci_view *dw = t[0], *dy = t[1], *x = t[2], *splits = t[3];
    int add = params_of->accumulate;
    int64_t sum, first = 0;
    mc_status status = check_splits("grouped_linear_wgrad", splits, "dy", dy->shape[0], &sum);
    if (status != MC_OK || mci_numel(dw) == 0) return status;
    if (!mci_cpu_plain) {
        job j = {.splits = splits,
                 .a = describe(dy, sum),
                 .b = describe(x, sum),
                 .c = describe(dw, dw->shape[1]),
                 .wgrad = 1};
        mci_products p = {.trans_a = 1, .fixed = dw->shape[1], .accumulate = add};
        return run(exec, "grouped_linear_wgrad", &j, &p, NULL);
    }
    for (int64_t g = 0; g < splits->shape[0]; g++) {
        int64_t rows = split_at(splits, g);
        if (dw->dtype == MC_FLOAT64)
            wgrad_double(dw, dy, x, add, g, first, rows);
        else
            wgrad_float(dw, dy, x, add, g, first, rows);
        first += rows;
    }
    return MC_OK;
}

/* Rows are summed in runs of fixed length, and the runs' sums in order: the rounding error grows
 * with the run and the number of runs, not with their product, and no thread count shows. */
enum { RUN_ROWS = 64, BIAS_COLUMNS = 64 };

#define DEFINE_COLUMN_SUMS(name, T, load, store)                                               \
    static void name(const mci_view *db, const mci_view *dy, int64_t g, int64_t n0, int64_t n, \
                     int64_t first, int64_t rows, int add) {                                   \
        T total[BIAS_COLUMNS] = {0}, part[BIAS_COLUMNS], values[BIAS_COLUMNS];                 \
        int size = mci_dtypes[dy->dtype].size, db_size = mci_dtypes[db->dtype].size;           \
        for (int64_t r0 = 0; r0 < rows; r0 += RUN_ROWS) {                                      \
            int64_t last = r0 + RUN_ROWS < rows ? r0 + RUN_ROWS : rows;                        \
            memset(part, 0, sizeof part);                                                      \
            for (int64_t r = r0; r < last; r++) {                                              \
                load(values, at(dy, first + r, n0, 0), dy->dtype, dy->stride[1] * size, n);    \
                for (int64_t i = 0; i < n; i++) part[i] += values[i];                          \
            }                                                                                  \
            for (int64_t i = 0; i < n; i++) total[i] += part[i];                               \
        }                                                                                      \
        if (add) {                                                                             \
            load(values, at(db, g, n0, 0), db->dtype, db->stride[1] * db_size, n);             \
            for (int64_t i = 0; i < n; i++) total[i] += values[i];                             \
        }                                                                                      \
        store(at(db, g, n0, 0), db->dtype, db->stride[1] * db_size, total, n);                 \
    }

DEFINE_COLUMN_SUMS(column_sums_f32, float, MCI_CPU(load_f32), MCI_CPU(store_f32))
DEFINE_COLUMN_SUMS(column_sums_f64, double, MCI_CPU(load_f64), MCI_CPU(store_f64))

/* One path only: these loops are the definition and, bound by memory, fast. */
mc_status MCI_CPU(grouped_linear_bias_grad)(mci_exec *exec, const mci_view *const *t,
                                            const void *params) {
    (void)exec;
    const mci_grouped_params *p = params;
    const mci_view *db = t[0], *dy = t[1], *splits = t[2];
    int64_t sum, groups = db->shape[0], n = db->shape[1];
    mc_status status = check_splits("grouped_linear_bias_grad", splits, "dy", dy->shape[0], &sum);
    if (status != MC_OK || groups == 0 || n == 0) return status;
    int threads = mci_threads(sum * n);
    int64_t blocks = (n + BIAS_COLUMNS - 1) / BIAS_COLUMNS;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t n0 = block * BIAS_COLUMNS, first = 0;
        int64_t columns = n - n0 < BIAS_COLUMNS ? n - n0 : BIAS_COLUMNS;
        for (int64_t g = 0; g < groups; g++) {
            int64_t rows = split_at(splits, g);
            if (rows > 0 || !p->accumulate) {
                if (db->dtype == MC_FLOAT64)
                    column_sums_f64(db, dy, g, n0, columns, first, rows, p->accumulate);
                else
                    column_sums_f32(db, dy, g, n0, columns, first, rows, p->accumulate);
            }
            first += rows;
        }
    }
    return MC_OK;
}

mc_status MCI_CPU(grouped_offsets)(mci_exec *exec, const mci_view *const *t, const void *params) {
    (void)exec, (void)params;
    const mci_view *offsets = t[0], *first_dims = t[1];
    int64_t groups = first_dims->shape[0], sum = 0;
    for (int64_t g = 0; g < groups; g++) {
        int64_t m = split_at(first_dims, g);
        if (m < 0)
            return mci_fail(MC_EINVAL,
                            "grouped_offsets: first_dims[%lld] is %lld, must be 0 or more",
                            (long long)g, (long long)m);
        if (__builtin_add_overflow(sum, m, &sum))
            return mci_fail(MC_EINVAL, "grouped_offsets: first_dims sum to more than 2^63 - 1");
    }
    sum = 0;
    for (int64_t g = 0; g <= groups; g++) {
        memcpy(at(offsets, g, 0, 0), &sum, sizeof sum);
        if (g < groups) sum += split_at(first_dims, g);
    }
    return MC_OK;
}
