/* products.c: many matrix products of one kind in one parallel region.
 *
 * The list is cut into blocks of c, the blocks are sorted by cost and the threads take them one
 * after the other, dearest first (Graham 1969, the LPT rule: at worst 4/3 of the best schedule).
 * Three ways to compute a block:
 *   direct    float32, float64: one product of the library.
 *   native    bfloat16 by oneDNN, whose products are compiled for a shape: blocks have one of a few
 *             heights along `rows`, and a last one that fits none is padded in scratch.
 *   converted float16, and bfloat16 without instructions for it: parts of 512 x 512 go to float32.
 */
#include "products.h"

#include <omp.h>
#include <stdlib.h>

#include "iter.h"

enum { DIRECT, NATIVE, CONVERTED };

/* A block of c: pointers to its first elements, and what it multiplies. */
typedef struct unit {
    const char *a, *b, *bias;
    char *c;
    int64_t m, n, k, order;
    double cost;
    int32_t zero, last; /* last: the shorter last block of a fixed size */
} unit;

/* Blocks are not made narrower than this for the sake of balance, nor cheaper than LEAST_COST. */
enum { LEAST_M = 64, LEAST_N = 256, LEAST_COST = 500000 };
/* Side of a converted part: three of them in float32 fill 3 MiB. */
enum { CONVERTED_SIDE = 512 };
/* bfloat16: blocks up to PADDED_MOST rows are padded to a height. A block of a sum has about
 * NATIVE_AREA elements, in float32 the second-level cache, but rather GOOD_M rows or more. */
enum { PADDED_MOST = 128, NATIVE_AREA = 262144, NATIVE_GOOD_M = 256, NATIVE_LEAST = 64 };
/* One element of mci_threads' measure of work stands for this many multiply-adds. */
enum { WORK_PER_ELEMENT = 32 };

static const int64_t heights[MCI_HEIGHTS] = {16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 384, 512};

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static int64_t parts_of(int64_t n, int64_t size) {
    return (n + size - 1) / size;
}
static int64_t rounded(int64_t n, int64_t multiple) {
    return parts_of(n, multiple) * multiple;
}
static int size_of(int dtype) {
    return mci_dtypes[dtype].size;
}

/* Multiply-adds, and beside them what it costs to copy operands into the library's layout: measured
 * as about 8 more of each size. */
static double cost_of(int64_t m, int64_t n, int64_t k) {
    double dm = (double)m, dn = (double)n, dk = (double)k;
    return dm * dn * dk + 8.0 * (dm * dn + dn * dk + dm * dk);
}

/* -- cutting ----------------------------------------------------------------------------------- */

typedef struct cutter {
    mci_plan *plan;
    unit *out;     /* NULL: only count */
    double *costs; /* NULL, or room for the first `room` costs */
    int64_t room;
} cutter;

/* The least height that holds `rest` rows, padded; beyond PADDED_MOST the greatest they fill. */
static int height_for(int64_t rest, int64_t cap) {
    int best = 0;
    for (int i = 0; i < MCI_HEIGHTS; i++) {
        if (rest <= PADDED_MOST && heights[i] >= rest) return i;
        if (heights[i] <= smaller(rest, cap)) best = i;
    }
    return best;
}

static void emit(cutter *x, const mci_product *item, int64_t m0, int64_t m, int64_t n0, int64_t n,
                 int64_t k) {
    const mci_plan *plan = x->plan;
    const mci_products *p = plan->p;
    int64_t i = x->plan->units++;
    double cost = item->zero ? 2.0 * (double)m * (double)n : cost_of(m, n, k);
    if (x->costs && i < x->room) x->costs[i] = cost;
    if (!x->out) return;
    int size = size_of(p->dtype), c_size = size_of(p->c_dtype);
    unit *u = &x->out[i];
    *u = (unit){.m = m, .n = n, .k = k, .order = i, .cost = cost, .zero = item->zero};
    u->last = p->trans_a ? m < plan->block_m : n < plan->block_n;
    u->c = (char *)item->c + (m0 * p->ldc + n0) * c_size;
    if (item->zero) return;
    if (p->has_bias) u->bias = (const char *)item->bias + n0 * size;
    if (k == 0) return; /* a and b may be NULL */
    u->a = (const char *)item->a + (p->trans_a ? m0 : m0 * p->lda) * size;
    u->b = (const char *)item->b + (p->trans_b ? n0 * p->ldb : n0) * size;
}

/* Which of a sum's parts are added to float32, in c or in scratch, and not written to c. */
static int added_part(const mci_products *p, int64_t first, int64_t part, int64_t rows) {
    if (p->accumulate) return 1;
    return p->c_dtype == MC_FLOAT32 ? first > 0 : part < rows;
}

/* bfloat16, c = a op(b): blocks of one of the heights along the rows. */
static void cut_rows(cutter *x, const mci_product *item) {
    mci_plan *plan = x->plan;
    const mci_products *p = plan->p;
    for (int64_t r = 0, rows = 0; r < item->rows; r += rows) {
        int h = height_for(item->rows - r, plan->cap);
        rows = smaller(heights[h], item->rows - r);
        if (rows < heights[h] && !item->zero) plan->padded = 1;
        for (int64_t n0 = 0; n0 < p->n; n0 += plan->block_n) {
            int64_t n = smaller(plan->block_n, p->n - n0);
            if (!item->zero) plan->wanted[n < plan->block_n][0][h] = 1;
            emit(x, item, r, rows, n0, n, p->fixed);
        }
    }
}

/* bfloat16, c = a^T b: blocks of rows of c, each the sum of parts that have one of the heights. */
static void cut_sums(cutter *x, const mci_product *item) {
    mci_plan *plan = x->plan;
    const mci_products *p = plan->p;
    for (int64_t m0 = 0; m0 < p->fixed; m0 += plan->block_m) {
        int64_t m = smaller(plan->block_m, p->fixed - m0);
        for (int64_t r = 0, rows = 0; r < item->rows && !item->zero; r += rows) {
            int h = height_for(item->rows - r, plan->cap);
            rows = smaller(heights[h], item->rows - r);
            if (rows < heights[h]) plan->padded = 1;
            plan->wanted[m < plan->block_m][added_part(p, r, rows, item->rows)][h] = 1;
        }
        emit(x, item, m0, m, 0, p->n, item->rows);
    }
}

/* Otherwise: as many equal blocks as its cost asks for, cut along the longer side. */
static void cut_even(cutter *x, const mci_product *item) {
    const mci_products *p = x->plan->p;
    int64_t m = p->trans_a ? p->fixed : item->rows, k = p->trans_a ? item->rows : p->fixed;
    int64_t wanted = (int64_t)(cost_of(m, p->n, k) / x->plan->target + 0.999);
    int64_t m_parts = 1, n_parts = 1;
    while (!item->zero && m_parts * n_parts < wanted) {
        int can_m = m / (m_parts + 1) >= LEAST_M, can_n = p->n / (n_parts + 1) >= LEAST_N;
        if (can_n && (!can_m || p->n / n_parts >= m / m_parts))
            n_parts++;
        else if (can_m)
            m_parts++;
        else
            break;
    }
    int64_t block_m = rounded(parts_of(m, m_parts), 16);
    int64_t block_n = rounded(parts_of(p->n, n_parts), 64);
    if (x->plan->kind == CONVERTED) {
        block_m = smaller(block_m, CONVERTED_SIDE);
        block_n = smaller(block_n, CONVERTED_SIDE);
    }
    for (int64_t m0 = 0; m0 < m; m0 += block_m)
        for (int64_t n0 = 0; n0 < p->n; n0 += block_n)
            emit(x, item, m0, smaller(block_m, m - m0), n0, smaller(block_n, p->n - n0), k);
}

/* Cuts the whole list; the count is left in plan->units. */
static void cut(cutter *x) {
    const mci_products *p = x->plan->p;
    x->plan->units = 0;
    for (int64_t i = 0; i < p->count; i++) {
        mci_product item = {.zero = 0};
        p->product(p->context, i, &item);
        if (p->trans_a && item.rows == 0) {
            if (p->accumulate) continue; /* an empty sum adds nothing, */
            item.zero = 1;               /* and is zero */
        }
        if (x->plan->kind != NATIVE)
            cut_even(x, &item);
        else if (p->trans_a)
            cut_sums(x, &item);
        else
            cut_rows(x, &item);
    }
}

/* -- planning ---------------------------------------------------------------------------------- */

static int dearer(const void *pa, const void *pb) {
    const unit *a = pa, *b = pb;
    if (a->cost != b->cost) return a->cost < b->cost ? 1 : -1;
    return a->order < b->order ? -1 : a->order > b->order;
}

static int greater(const void *pa, const void *pb) {
    double a = *(const double *)pa, b = *(const double *)pb;
    return a < b ? 1 : a > b ? -1 : 0;
}

enum { LPT_THREADS = 64, LPT_UNITS = 1024 };

/* The time of n blocks on `threads` threads under the LPT rule. */
static double makespan(double *costs, int64_t n, int threads) {
    double load[LPT_THREADS] = {0}, most = 0;
    qsort(costs, (size_t)n, sizeof *costs, greater);
    for (int64_t i = 0; i < n; i++) {
        int least = 0;
        for (int t = 1; t < threads; t++)
            if (load[t] < load[least]) least = t;
        load[least] += costs[i];
    }
    for (int t = 0; t < threads; t++) most = load[t] > most ? load[t] : most;
    return most;
}

static void set_target(mci_plan *plan, double cost, int64_t rows, int64_t shares) {
    double target = cost / (double)shares;
    plan->target = target > LEAST_COST ? target : LEAST_COST;
    if (!plan->p->trans_a) plan->cap = larger(PADDED_MOST, rows / shares);
}

/* Chooses how fine to cut: finer blocks balance better but copy operands more often. */
static void choose_target(mci_plan *plan, double cost, int64_t rows) {
    static const int finer[] = {1, 2, 4};
    double costs[LPT_UNITS], best = 0;
    int choice = 2;
    for (int i = 0; i < 3 && plan->threads > 1 && plan->threads <= LPT_THREADS; i++) {
        cutter x = {.plan = plan, .costs = costs, .room = LPT_UNITS};
        set_target(plan, cost, rows, (int64_t)plan->threads * finer[i]);
        cut(&x);
        if (plan->units > LPT_UNITS) break;
        double time = makespan(costs, plan->units, plan->threads);
        if (i == 0 || time < 0.98 * best) {
            best = time;
            choice = i;
        }
    }
    set_target(plan, cost, rows, plan->threads > 1 ? (int64_t)plan->threads * finer[choice] : 1);
}

/* bfloat16: block sizes from what does not change between calls, so that shapes recur. */
static void choose_blocks(mci_plan *plan) {
    const mci_products *p = plan->p;
    int64_t count = larger(p->count, 1), threads = mc_get_num_threads(), parts;
    plan->cap = heights[MCI_HEIGHTS - 1];
    plan->block_m = larger(p->fixed, 1);
    plan->block_n = larger(p->n, 1);
    if (p->trans_a) {
        parts = smaller(parts_of(p->fixed * p->n, NATIVE_AREA), p->fixed / NATIVE_GOOD_M);
        parts = larger(parts, smaller(parts_of(4 * threads, count), p->fixed / NATIVE_LEAST));
        if (parts > 1) plan->block_m = rounded(parts_of(p->fixed, parts), NATIVE_LEAST);
    } else {
        parts = smaller(parts_of(2 * threads, count), p->n / LEAST_N);
        if (parts > 1) plan->block_n = rounded(parts_of(p->n, parts), NATIVE_LEAST);
    }
}

/* The library's product for blocks of height h. Sums read packed copies of a and b: oneDNN is
 * faster on them (measured 1.2x for blocks of dy), and their shapes do not depend on strides. */
static mc_status get_native(mci_plan *plan, int last, int added, int h) {
    const mci_products *p = plan->p;
    int64_t size = p->trans_a ? p->fixed : p->n, block = p->trans_a ? plan->block_m : plan->block_n;
    if (last) block = size % block;
    if (block == 0) return MC_OK;
    mci_bf16_shape shape = {.m = heights[h],
                            .n = block,
                            .k = p->fixed,
                            .lda = p->lda,
                            .ldb = p->ldb,
                            .ldc = p->ldc,
                            .trans_b = p->trans_b,
                            .c_f32 = p->c_dtype == MC_FLOAT32,
                            .add = p->has_bias ? MCI_ADD_BIAS : MCI_ADD_NOTHING};
    if (p->trans_a) {
        int in_scratch = added && p->c_dtype != MC_FLOAT32;
        shape = (mci_bf16_shape){.m = block,
                                 .n = p->n,
                                 .k = heights[h],
                                 .lda = block,
                                 .ldb = p->n,
                                 .ldc = in_scratch ? p->n : p->ldc,
                                 .trans_a = 1,
                                 .c_f32 = added || p->c_dtype == MC_FLOAT32,
                                 .add = added ? MCI_ADD_C : MCI_ADD_NOTHING};
    }
    mci_bf16_product *product;
    mc_status status = mci_gemm_bf16_get(&product, &shape);
    if (status != MC_OK) return status;
    if (!plan->wanted[last][added][h]) {
        mci_gemm_bf16_put(product); /* for a later call */
        return MC_OK;
    }
    plan->native[last][added][h] = product;
    if (mci_round64(product->scratch) > plan->library_bytes)
        plan->library_bytes = mci_round64(product->scratch);
    return MC_OK;
}

static mc_status get_all_native(mci_plan *plan) {
    const mci_products *p = plan->p;
    for (int last = 0; last < 2; last++)
        for (int added = 0; added <= p->trans_a; added++)
            for (int h = 0; h < MCI_HEIGHTS; h++) {
                int ahead = p->recurring && (added || !p->accumulate);
                if (!plan->wanted[last][added][h] && !ahead) continue;
                mc_status status = get_native(plan, last, added, h);
                if (status != MC_OK) return status;
            }
    return MC_OK;
}

/* Per thread: oneDNN's scratch, room for a, room for b (sums) or c (rows), a block in float32. */
static size_t a_bytes(const mci_plan *plan) {
    int64_t elements = plan->padded ? plan->p->lda * PADDED_MOST : 0;
    if (plan->p->trans_a) elements = plan->block_m * heights[MCI_HEIGHTS - 1];
    return mci_round64((size_t)elements * 2);
}
static size_t b_bytes(const mci_plan *plan) {
    const mci_products *p = plan->p;
    int64_t rows = plan->padded ? PADDED_MOST : 0;
    if (!p->trans_a) return mci_round64((size_t)(rows * p->ldc * size_of(p->c_dtype)));
    if (p->ldb != p->n) rows = heights[MCI_HEIGHTS - 1];
    return mci_round64((size_t)(rows * p->n) * 2);
}
static size_t block_bytes(const mci_plan *plan) {
    const mci_products *p = plan->p;
    if (!p->trans_a || p->c_dtype == MC_FLOAT32) return 0;
    return mci_round64((size_t)(plan->block_m * p->n) * sizeof(float));
}

mc_status MCI_CPU(products_plan)(mci_plan *plan, const mci_products *p) {
    memset(plan, 0, sizeof *plan);
    plan->p = p;
    plan->kind = CONVERTED;
    if (p->dtype == MC_FLOAT32 || p->dtype == MC_FLOAT64) plan->kind = DIRECT;
    if (p->dtype == MC_BFLOAT16 && p->fixed > 0 && mci_gemm_bf16_native()) plan->kind = NATIVE;
    double cost = 0;
    int64_t rows = 0;
    for (int64_t i = 0; i < p->count; i++) {
        mci_product item = {.zero = 0};
        p->product(p->context, i, &item);
        cost +=
            item.zero ? 2.0 * (double)item.rows * (double)p->n : cost_of(item.rows, p->n, p->fixed);
        rows += item.rows;
    }
    plan->threads = mci_threads((int64_t)(cost / WORK_PER_ELEMENT));
    if (plan->kind == NATIVE) choose_blocks(plan);
    choose_target(plan, cost, rows);
    memset(plan->wanted, 0, sizeof plan->wanted);
    plan->padded = 0;
    cut(&(cutter){.plan = plan});
    if (plan->units < plan->threads) plan->threads = plan->units < 1 ? 1 : (int)plan->units;
    if (plan->kind == NATIVE) {
        mc_status status = get_all_native(plan);
        if (status != MC_OK) return status;
        plan->thread_bytes =
            plan->library_bytes + a_bytes(plan) + b_bytes(plan) + block_bytes(plan);
    } else if (plan->kind == CONVERTED) {
        plan->thread_bytes = (size_t)3 * CONVERTED_SIDE * CONVERTED_SIDE * sizeof(float);
    }
    plan->scratch = mci_round64((size_t)plan->units * sizeof(unit)) +
                    (size_t)plan->threads * plan->thread_bytes;
    return MC_OK;
}

void MCI_CPU(products_end)(mci_plan *plan) {
    for (int last = 0; last < 2; last++)
        for (int added = 0; added < 2; added++)
            for (int h = 0; h < MCI_HEIGHTS; h++) mci_gemm_bf16_put(plan->native[last][added][h]);
}

/* -- running ----------------------------------------------------------------------------------- */

/* c = bias on every row, or zero */
static void fill_block(const mci_products *p, const unit *u) {
    size_t row = (size_t)(u->n * size_of(p->c_dtype));
    for (int64_t i = 0; i < u->m; i++) {
        char *c = u->c + i * p->ldc * size_of(p->c_dtype);
        if (u->bias)
            memcpy(c, u->bias, row);
        else
            memset(c, 0, row);
    }
}

#define DEFINE_DIRECT(name, T, gemm)                                                               \
    static mc_status name(const mci_products *p, const unit *u) {                                  \
        T *c = (T *)(void *)u->c;                                                                  \
        const T *bias = (const T *)(const void *)u->bias;                                          \
        mc_status status =                                                                         \
            gemm(p->trans_a, p->trans_b, u->m, u->n, u->k, 1, (const T *)(const void *)u->a,       \
                 p->lda, (const T *)(const void *)u->b, p->ldb, p->accumulate ? 1 : 0, c, p->ldc); \
        for (int64_t i = 0; bias && i < u->m; i++)                                                 \
            for (int64_t j = 0; j < u->n; j++) c[i * p->ldc + j] += bias[j];                       \
        return status;                                                                             \
    }

DEFINE_DIRECT(direct_f32, float, mci_gemm_f32)
DEFINE_DIRECT(direct_f64, double, mci_gemm_f64)

/* dst [rows, columns] contiguous floats from rows `ld` elements apart */
static void convert(float *dst, const char *src, int dtype, int64_t rows, int64_t columns,
                    int64_t ld) {
    for (int64_t i = 0; i < rows; i++) MCI_CPU(load_f32)
    (dst + i * columns, src + i * ld * size_of(dtype), dtype, size_of(dtype), columns);
}

static mc_status converted(const mci_products *p, const unit *u, float *scratch) {
    enum { PART = CONVERTED_SIDE };
    float *a = scratch, *b = a + PART * PART, *c = b + PART * PART;
    int size = size_of(p->dtype), c_size = size_of(p->c_dtype);
    for (int64_t k0 = 0; k0 < u->k; k0 += PART) {
        int64_t k = smaller(PART, u->k - k0);
        int64_t a_rows = p->trans_a ? k : u->m, a_columns = p->trans_a ? u->m : k;
        int64_t b_rows = p->trans_b ? u->n : k, b_columns = p->trans_b ? k : u->n;
        convert(a, u->a + (p->trans_a ? k0 * p->lda : k0) * size, p->dtype, a_rows, a_columns,
                p->lda);
        convert(b, u->b + (p->trans_b ? k0 : k0 * p->ldb) * size, p->dtype, b_rows, b_columns,
                p->ldb);
        mc_status status = mci_gemm_f32(p->trans_a, p->trans_b, u->m, u->n, k, 1, a, a_columns, b,
                                        b_columns, k0 > 0, c, u->n);
        if (status != MC_OK) return status;
    }
    /* a and b are free now: one row of bias, one of the old c */
    if (u->bias) convert(a, u->bias, p->dtype, 1, u->n, u->n);
    for (int64_t i = 0; i < u->m; i++) {
        char *row = u->c + i * p->ldc * c_size;
        float *sum = c + i * u->n;
        if (p->accumulate) convert(b, row, p->c_dtype, 1, u->n, u->n);
        for (int64_t j = 0; u->bias && j < u->n; j++) sum[j] += a[j];
        for (int64_t j = 0; p->accumulate && j < u->n; j++) sum[j] += b[j];
        MCI_CPU(store_f32)(row, p->c_dtype, c_size, sum, u->n);
    }
    return MC_OK;
}

/* [height, columns] of 16-bit elements: `rows` rows of src, then zeros */
static void copy_padded(void *dst, int64_t dst_ld, const void *src, int64_t src_ld, int64_t rows,
                        int64_t height, int64_t columns) {
    uint16_t *to = dst;
    const uint16_t *from = src;
    size_t bytes = (size_t)columns * sizeof *to;
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * dst_ld, from + i * src_ld, bytes);
    for (int64_t i = rows; i < height; i++) memset(to + i * dst_ld, 0, bytes);
}

static mc_status native_rows(const mci_plan *plan, const unit *u, char *scratch) {
    const mci_products *p = plan->p;
    int h = height_for(u->m, heights[MCI_HEIGHTS - 1]);
    const mci_bf16_product *product = plan->native[u->last][0][h];
    if (u->m == heights[h]) return mci_gemm_bf16_run(product, u->a, u->b, u->bias, u->c, scratch);
    char *a = scratch + plan->library_bytes, *c = a + a_bytes(plan);
    int64_t c_size = size_of(p->c_dtype);
    copy_padded(a, p->lda, u->a, p->lda, u->m, heights[h], u->k);
    mc_status status = mci_gemm_bf16_run(product, a, u->b, u->bias, c, scratch);
    for (int64_t i = 0; i < u->m; i++)
        memcpy(u->c + i * p->ldc * c_size, c + i * p->ldc * c_size, (size_t)(u->n * c_size));
    return status;
}

static mc_status native_sums(const mci_plan *plan, const unit *u, char *scratch) {
    const mci_products *p = plan->p;
    char *a = scratch + plan->library_bytes, *b = a + a_bytes(plan);
    float *block = (float *)(void *)(b + b_bytes(plan));
    int summed = 0;
    for (int64_t r = 0, rows = 0; r < u->k; r += rows) {
        int h = height_for(u->k - r, plan->cap);
        rows = smaller(heights[h], u->k - r);
        int added = added_part(p, r, rows, u->k);
        void *c = u->c;
        if (added && p->c_dtype != MC_FLOAT32) {
            if (!summed) memset(block, 0, (size_t)(u->m * u->n) * sizeof *block);
            summed = 1;
            c = block;
        }
        const char *b_part = u->b + r * p->ldb * 2;
        copy_padded(a, u->m, u->a + r * p->lda * 2, p->lda, rows, heights[h], u->m);
        if (rows < heights[h] || p->ldb != p->n) {
            copy_padded(b, u->n, b_part, p->ldb, rows, heights[h], u->n);
            b_part = b;
        }
        mc_status status =
            mci_gemm_bf16_run(plan->native[u->last][added][h], a, b_part, NULL, c, scratch);
        if (status != MC_OK) return status;
    }
    for (int64_t i = 0; i < u->m && summed; i++) {
        uint16_t *c = (uint16_t *)(void *)u->c + i * p->ldc;
        const float *sum = block + i * u->n;
        if (p->accumulate)
            for (int64_t j = 0; j < u->n; j++)
                c[j] = mci_f32_to_bf16(mci_bf16_to_f32(c[j]) + sum[j]);
        else
            for (int64_t j = 0; j < u->n; j++) c[j] = mci_f32_to_bf16(sum[j]);
    }
    return MC_OK;
}

static mc_status run_unit(const mci_plan *plan, const unit *u, char *scratch) {
    const mci_products *p = plan->p;
    if (u->zero || u->k == 0) {
        fill_block(p, u);
        return MC_OK;
    }
    if (plan->kind == DIRECT) return p->dtype == MC_FLOAT64 ? direct_f64(p, u) : direct_f32(p, u);
    if (plan->kind == CONVERTED) return converted(p, u, (float *)(void *)scratch);
    return p->trans_a ? native_sums(plan, u, scratch) : native_rows(plan, u, scratch);
}

mc_status MCI_CPU(products_run)(mci_plan *plan, void *scratch) {
    if (plan->units == 0) return MC_OK;
    unit *units = scratch;
    char *room = (char *)scratch + mci_round64((size_t)plan->units * sizeof *units);
    cut(&(cutter){.plan = plan, .out = units});
    qsort(units, (size_t)plan->units, sizeof *units, dearer);
    int64_t next = 0, bad = MC_OK;
    /* A product run by one thread alone must not start a team of the library's either. */
    int most = omp_get_max_threads();
    if (plan->threads == 1) omp_set_num_threads(1);
#pragma omp parallel num_threads(plan->threads) if (plan->threads > 1)
    {
        char *mine = room + (size_t)omp_get_thread_num() * plan->thread_bytes;
        for (;;) {
            int64_t i;
#pragma omp atomic capture
            i = next++;
            if (i >= plan->units) break;
            mc_status status = run_unit(plan, &units[i], mine);
            if (status != MC_OK) {
#pragma omp atomic write
                bad = status;
            }
        }
    }
    if (plan->threads == 1) omp_set_num_threads(most);
    if (bad == MC_OK) return MC_OK;
    /* the reason stands in the message buffer of another thread */
    return mci_fail((mc_status)bad, "gemm: %s failed in a product", mci_gemm_provider());
}

/* -- strided operands -------------------------------------------------------------------------- */

static void move(char *dst, const char *src, int size, int64_t rows, int64_t columns,
                 const int64_t *to, const int64_t *from) {
    int threads = mci_threads(rows * columns);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) {
        char *d = dst + i * to[0] * size;
        const char *s = src + i * from[0] * size;
        for (int64_t j = 0; j < columns; j++) {
            char *dj = d + j * to[1] * size;
            const char *sj = s + j * from[1] * size;
            if (size == 2)
                memcpy(dj, sj, 2);
            else if (size == 4)
                memcpy(dj, sj, 4);
            else
                memcpy(dj, sj, 8);
        }
    }
}

void MCI_CPU(pack)(void *dst, const void *src, int size, int64_t rows, int64_t columns, int64_t s0,
                   int64_t s1) {
    move(dst, src, size, rows, columns, (int64_t[]){columns, 1}, (int64_t[]){s0, s1});
}

void MCI_CPU(unpack)(void *dst, const void *src, int size, int64_t rows, int64_t columns,
                     int64_t s0, int64_t s1) {
    move(dst, src, size, rows, columns, (int64_t[]){s0, s1}, (int64_t[]){columns, 1});
}
