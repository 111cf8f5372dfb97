/* matmul.c: out [.., m, n] = a [.., m, k] b [.., k, n], any strides; batch axes of a and b are
 * already broadcast (stride 0). linear is the same with b = weight^T, and then a bias [n] and gelu.
 * float32 accumulates for float32, float16 and bfloat16, float64 for float64; one rounding, after
 * the bias and gelu. The definition is three loops; the fast path is a list of products
 * (products.h) on operands that are used in place where a leading dimension can describe them.
 */
#include "iter.h"
#include "products.h"

/* -- the definition ---------------------------------------------------------------------------- */

static int64_t batch_offset(const mci_view *v, int64_t i) {
    int64_t offset = 0;
    for (int d = v->ndim - 3; d >= 0; d--) {
        offset += i % v->shape[d] * v->stride[d];
        i /= v->shape[d];
    }
    return offset;
}

static int64_t batches(const mci_view *v) {
    int64_t n = 1;
    for (int d = 0; d < v->ndim - 2; d++) n *= v->shape[d];
    return n;
}

static const char *element(const mci_view *v, int64_t offset) {
    return (const char *)v->data + offset * mci_dtypes[v->dtype].size;
}

/* sum over k of a[i, p] * b[p, j], p ascending */
#define DEFINE_DOT(name, T, load)                                                  \
    static T name(const mci_view *a, const mci_view *b, int64_t a0, int64_t b0) {  \
        int64_t k = a->shape[a->ndim - 1];                                         \
        T sum = 0;                                                                 \
        for (int64_t p = 0; p < k; p++) {                                          \
            T x, y;                                                                \
            load(&x, element(a, a0 + p * a->stride[a->ndim - 1]), a->dtype, 0, 1); \
            load(&y, element(b, b0 + p * b->stride[b->ndim - 2]), b->dtype, 0, 1); \
            sum += x * y;                                                          \
        }                                                                          \
        return sum;                                                                \
    }

DEFINE_DOT(dot_f32, float, MCI_CPU(load_f32))
DEFINE_DOT(dot_f64, double, MCI_CPU(load_f64))

/* An array of n elements as a row of a matrix. */
static mci_view row_view(void *data, int dtype, int64_t n) {
    return (mci_view){.data = data, .dtype = dtype, .ndim = 1, .shape = {n}, .stride = {1}};
}

static mc_status gelu_in_place(mci_exec *exec, const mci_view *v) {
    const mci_view *t[2] = {v, v};
    return MCI_CPU(gelu)(exec, t, NULL);
}

enum { RUN = 64 }; /* neighbours whose sums are finished together */

/* Elements j0 .. j0 + count of the row at a0: sums, bias, gelu, one rounding. */
#define DEFINE_ROW(name, T, code, dot, load, store)                                                \
    static mc_status name(mci_exec *exec, const mci_view *c, const mci_view *a, const mci_view *b, \
                          const mci_view *bias, int gelu, int64_t c0, int64_t a0, int64_t b0,      \
                          int64_t j0, int64_t count) {                                             \
        T sums[RUN], add;                                                                          \
        int64_t step = c->stride[c->ndim - 1];                                                     \
        mc_status status = MC_OK;                                                                  \
        for (int64_t j = 0; j < count; j++) {                                                      \
            sums[j] = dot(a, b, a0, b0 + (j0 + j) * b->stride[b->ndim - 1]);                       \
            if (!bias) continue;                                                                   \
            load(&add, element(bias, (j0 + j) * bias->stride[0]), bias->dtype, 0, 1);              \
            sums[j] += add;                                                                        \
        }                                                                                          \
        if (gelu) {                                                                                \
            mci_view v = row_view(sums, code, count);                                              \
            status = gelu_in_place(exec, &v);                                                      \
        }                                                                                          \
        int64_t bytes = step * mci_dtypes[c->dtype].size;                                          \
        store((char *)c->data + c0 * mci_dtypes[c->dtype].size + j0 * bytes, c->dtype, bytes,      \
              sums, count);                                                                        \
        return status;                                                                             \
    }

DEFINE_ROW(row_f32, float, MC_FLOAT32, dot_f32, MCI_CPU(load_f32), MCI_CPU(store_f32))
DEFINE_ROW(row_f64, double, MC_FLOAT64, dot_f64, MCI_CPU(load_f64), MCI_CPU(store_f64))

static mc_status define(mci_exec *exec, const mci_view *c, const mci_view *a, const mci_view *b,
                        const mci_view *bias, int gelu) {
    int64_t m = c->shape[c->ndim - 2], n = c->shape[c->ndim - 1], count = batches(c);
    mc_status status = MC_OK;
    for (int64_t batch = 0; batch < count && status == MC_OK; batch++)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n && status == MC_OK; j += RUN)
                status = (c->dtype == MC_FLOAT64 ? row_f64 : row_f32)(
                    exec, c, a, b, bias, gelu, batch_offset(c, batch) + i * c->stride[c->ndim - 2],
                    batch_offset(a, batch) + i * a->stride[a->ndim - 2], batch_offset(b, batch), j,
                    n - j < RUN ? n - j : RUN);
    return status;
}

/* Multiplications up to which planning a product costs more than its definition. */
enum { TINY = 128 };

/* -- the fast path ----------------------------------------------------------------------------- */

/* A matrix for each batch item: stored [rows, columns] when !trans, else [columns, rows]. */
typedef struct operand {
    char *data;
    int64_t rows, columns, s0, s1; /* as a matrix of the product; strides in elements */
    int trans, packed;
    int64_t ld;
    int64_t batch[MC_MAX_DIMS]; /* elements between batch items */
} operand;

typedef struct job {
    int size, c_size, axes; /* bytes of an element of a and b, of c; batch axes, outermost first */
    int64_t shape[MC_MAX_DIMS], count, rows;
    operand a, b, c;
    const mci_view *out, *bias; /* bias: NULL for none */
    const char *bias_data;      /* its elements side by side */
    int gelu, wide;             /* wide: c is float32 in scratch, for gelu before the rounding */
} job;

static int describable(int64_t rows, int64_t columns, int64_t s0, int64_t s1) {
    return (s1 == 1 || columns == 1) && (s0 >= columns || rows == 1);
}
static int64_t leading(int64_t rows, int64_t columns, int64_t s0) {
    return rows == 1 || s0 < columns ? columns : s0;
}

/* Decides how an operand reaches the products: as it lies, transposed, or packed. */
static void describe(operand *o, int may_trans) {
    o->trans = o->packed = 0;
    if (describable(o->rows, o->columns, o->s0, o->s1)) {
        o->ld = leading(o->rows, o->columns, o->s0);
    } else if (may_trans && describable(o->columns, o->rows, o->s1, o->s0)) {
        o->trans = 1;
        o->ld = leading(o->columns, o->rows, o->s1);
    } else {
        o->packed = 1;
        o->ld = o->columns;
    }
}

static void take(operand *o, const mci_view *v, const int *axis, int axes) {
    int n = v->ndim;
    o->data = v->data;
    o->rows = v->shape[n - 2];
    o->columns = v->shape[n - 1];
    o->s0 = v->stride[n - 2];
    o->s1 = v->stride[n - 1];
    for (int i = 0; i < axes; i++) o->batch[i] = v->stride[axis[i]];
}

static void transpose(operand *o) {
    int64_t rows = o->rows, s0 = o->s0;
    o->rows = o->columns;
    o->columns = rows;
    o->s0 = o->s1;
    o->s1 = s0;
}

/* An innermost batch axis over which b does not change is more rows of a and c. */
static void fold(job *j) {
    while (j->axes > 0) {
        int last = j->axes - 1;
        int64_t m = j->a.rows;
        if (j->b.batch[last] != 0) return;
        if (m == 1) { /* the stride of a single row means nothing */
            j->a.s0 = j->a.batch[last];
            j->c.s0 = j->c.batch[last];
        }
        if (j->a.batch[last] != m * j->a.s0 || j->c.batch[last] != m * j->c.s0) return;
        j->a.rows = j->c.rows = m * j->shape[last];
        j->axes--;
    }
}

static int64_t batch_at(const job *j, const operand *o, int64_t i) {
    int64_t offset = 0;
    for (int d = j->axes - 1; d >= 0; d--) {
        offset += i % j->shape[d] * o->batch[d];
        i /= j->shape[d];
    }
    return offset;
}

static void product(void *context, int64_t i, mci_product *out) {
    const job *j = context;
    out->a = j->a.data + batch_at(j, &j->a, i) * j->size;
    out->b = j->b.data + batch_at(j, &j->b, i) * j->size;
    out->c = j->c.data + batch_at(j, &j->c, i) * j->c_size;
    out->bias = j->bias_data;
    out->rows = j->rows;
}

static size_t packed_bytes(const job *j, const operand *o, int size) {
    return o->packed ? mci_round64((size_t)(j->count * o->rows * o->columns * size)) : 0;
}

/* Packs every batch item of an input into `room` (or, with `back`, an output from its room) */
static void pack_all(const job *j, const operand *from, char *room, int back) {
    for (int64_t i = 0; i < j->count; i++) {
        char *at = from->data + batch_at(j, from, i) * j->size;
        char *packed = room + i * from->rows * from->columns * j->size;
        if (back)
            MCI_CPU(unpack)(at, packed, j->size, from->rows, from->columns, from->s0, from->s1);
        else
            MCI_CPU(pack)(packed, at, j->size, from->rows, from->columns, from->s0, from->s1);
    }
}

/* The operand as it lies in its room: items one after the other. */
static operand in_room(const job *j, const operand *o, char *room) {
    operand r = *o;
    int64_t step = o->rows * o->columns;
    r.data = room;
    for (int d = j->axes - 1; d >= 0; d--) {
        r.batch[d] = step;
        step *= j->shape[d];
    }
    return r;
}

static mc_status run(mci_exec *exec, const char *op, job *j, mci_plan *plan) {
    size_t a_bytes = packed_bytes(j, &j->a, j->size), b_bytes = packed_bytes(j, &j->b, j->size);
    size_t c_bytes = packed_bytes(j, &j->c, j->c_size), bias_bytes = 0;
    const mci_view *bias = j->bias;
    if (bias && !mci_is_contiguous(bias))
        bias_bytes = mci_round64((size_t)(bias->shape[0] * j->size));
    size_t bytes = mci_round64(plan->scratch) + a_bytes + b_bytes + c_bytes + bias_bytes;
    char *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_fail(MC_ENOMEM, "%s: no memory for %zu bytes of scratch", op, bytes);
    char *room = scratch + mci_round64(plan->scratch);
    operand c = j->c;
    if (j->a.packed) {
        pack_all(j, &j->a, room, 0);
        j->a = in_room(j, &j->a, room);
        room += a_bytes;
    }
    if (j->b.packed) {
        pack_all(j, &j->b, room, 0);
        j->b = in_room(j, &j->b, room);
        room += b_bytes;
    }
    if (bias) j->bias_data = bias->data;
    if (bias_bytes) {
        MCI_CPU(pack)(room, bias->data, j->size, bias->shape[0], 1, bias->stride[0], 1);
        j->bias_data = room;
        room += bias_bytes;
    }
    if (c.packed) j->c = in_room(j, &c, room);
    mc_status status = MCI_CPU(products_run)(plan, scratch);
    if (status != MC_OK) return status;
    if (j->wide) {
        mci_view v = *j->out;
        v.data = room;
        v.dtype = MC_FLOAT32;
        v.stride[0] = v.shape[1];
        v.stride[1] = 1;
        const mci_view *t[2] = {j->out, &v};
        status = gelu_in_place(exec, &v);
        return status == MC_OK ? MCI_CPU(copy)(exec, t, NULL) : status;
    }
    if (c.packed) pack_all(j, &c, room, 1);
    return j->gelu ? gelu_in_place(exec, j->out) : MC_OK;
}

/* c = a b (+ bias [n]) (gelu of it); bias and gelu for matrices only. */
static mc_status multiply(mci_exec *exec, const char *op, const mci_view *c, const mci_view *a,
                          const mci_view *b, const mci_view *bias, int gelu) {
    int64_t outputs = mci_numel(c), depth = a->shape[a->ndim - 1];
    if (outputs == 0) return MC_OK;
    int tiny = outputs <= TINY && depth <= TINY / outputs;
    if (mci_cpu_plain || tiny || (gelu && depth == 0)) return define(exec, c, a, b, bias, gelu);
    job j = {.size = mci_dtypes[c->dtype].size,
             .c_size = mci_dtypes[c->dtype].size,
             .count = 1,
             .out = c,
             .bias = bias,
             .gelu = gelu};
    int axis[MC_MAX_DIMS];
    for (int d = 0; d < c->ndim - 2; d++)
        if (c->shape[d] != 1) {
            axis[j.axes] = d;
            j.shape[j.axes++] = c->shape[d];
        }
    take(&j.a, a, axis, j.axes);
    take(&j.b, b, axis, j.axes);
    take(&j.c, c, axis, j.axes);
    fold(&j);
    describe(&j.c, !bias && !gelu); /* a bias runs along c's columns */
    if (gelu && j.c_size == 2) {
        j.wide = j.c.packed = 1;
        j.c_size = (int)sizeof(float);
        j.c.ld = j.c.columns;
    }
    if (j.c.trans) { /* c^T = b^T a^T */
        operand was_a = j.a;
        j.a = j.b;
        j.b = was_a;
        transpose(&j.a);
        transpose(&j.b);
        transpose(&j.c);
        j.c.trans = 0;
    }
    describe(&j.a, !bias);
    describe(&j.b, !j.a.trans);
    for (int d = 0; d < j.axes; d++) j.count *= j.shape[d];
    j.rows = j.a.trans ? j.a.columns : j.a.rows;
    mci_products p = {.dtype = c->dtype,
                      .c_dtype = j.wide ? MC_FLOAT32 : c->dtype,
                      .has_bias = bias != NULL,
                      .trans_a = j.a.trans,
                      .trans_b = j.b.trans,
                      .n = j.b.columns,
                      .fixed = j.a.trans ? j.a.rows : j.a.columns,
                      .count = j.count,
                      .lda = j.a.ld,
                      .ldb = j.b.ld,
                      .ldc = j.c.ld,
                      .product = product,
                      .context = &j};
    mci_plan plan;
    mc_status status = MCI_CPU(products_plan)(&plan, &p);
    if (status == MC_OK) status = run(exec, op, &j, &plan);
    MCI_CPU(products_end)(&plan);
    return status;
}

mc_status MCI_CPU(matmul)(mci_exec *exec, const mci_view *const *t, const void *params) {
    (void)params;
    return multiply(exec, "matmul", t[0], t[1], t[2], NULL, 0);
}

mc_status MCI_CPU(linear)(mci_exec *exec, const mci_view *const *t, const void *params) {
    const mci_matmul_params *p = params;
    mci_view b = *t[2]; /* [N, K] as [K, N] */
    b.shape[0] = t[2]->shape[1];
    b.shape[1] = t[2]->shape[0];
    b.stride[0] = t[2]->stride[1];
    b.stride[1] = t[2]->stride[0];
    return multiply(exec, "linear", t[0], t[1], &b, t[3], p->gelu);
}
