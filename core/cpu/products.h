/* products.h: many matrix products of one kind in one parallel region (products.c).
 *
 * Every grouped layer pass and every matmul is a list of products that share dtypes, layout and
 * leading dimensions and differ in their pointers and in one size, `rows`:
 *     trans_a = 0:  c [rows, n]  = a [rows, fixed] op(b)  (+ bias [n])      forward, dgrad
 *     trans_a = 1:  c [fixed, n] = a^T [fixed, rows] op(b)  (+ c)           wgrad
 * op(b) is b [k, n] or, with trans_b, the transpose of b [n, k]. float32 (float64 for float64)
 * accumulates; the result is rounded once. Each element of c is computed by one thread, in an order
 * that does not depend on which.
 */
#ifndef MCI_PRODUCTS_H
#define MCI_PRODUCTS_H

#include "cpu.h"
#include "gemm.h"

typedef struct mci_product {
    const void *a, *b, *bias;
    void *c;
    int64_t rows;
    int zero; /* 1: c is set to zero, a and b are not read */
} mci_product;

typedef struct mci_products {
    int dtype;            /* of a, b and bias */
    int c_dtype;          /* dtype, or float32 where dtype has 16 bits */
    int trans_a, trans_b; /* as above, not both */
    int has_bias;         /* only with trans_a = 0 */
    int accumulate;       /* add to c; only with trans_a = 1 */
    int recurring;        /* the same list comes with other rows: prepare for all of them */
    int64_t n, fixed, count;
    int64_t lda, ldb, ldc; /* elements between stored rows, at least their length */
    /* Fills product i (zeroed before); called with i = 0 .. count - 1 in order, several times. */
    void (*product)(void *context, int64_t i, mci_product *out);
    void *context;
} mci_products;

enum { MCI_HEIGHTS = 12 };

/* How a list will be run. Between plan and run the caller gets `scratch` bytes, 64-byte aligned. */
typedef struct mci_plan {
    const mci_products *p;
    int kind, threads, padded;
    int64_t block_m, block_n; /* bfloat16: fixed, so that few shapes occur */
    int64_t cap;              /* bfloat16, trans_a = 0: most rows of a block */
    double target;            /* wanted cost of a block */
    int64_t units;
    size_t scratch, thread_bytes, library_bytes;
    /* by last block (of m for sums, else n), added to float32, height */
    mci_bf16_product *native[2][2][MCI_HEIGHTS];
    unsigned char wanted[2][2][MCI_HEIGHTS];
} mci_plan;

/* The plan holds library products until the end, which is called once after each plan, failed or
 * not. Nothing of c is written before run. */
mc_status MCI_CPU(products_plan)(mci_plan *plan, const mci_products *p);
mc_status MCI_CPU(products_run)(mci_plan *plan, void *scratch);
void MCI_CPU(products_end)(mci_plan *plan);

/* dst [rows, columns] contiguous from src with strides s0, s1 (elements of `size` bytes), and back.
 */
void MCI_CPU(pack)(void *dst, const void *src, int size, int64_t rows, int64_t columns, int64_t s0,
                   int64_t s1);
void MCI_CPU(unpack)(void *dst, const void *src, int size, int64_t rows, int64_t columns,
                     int64_t s0, int64_t s1);

static inline size_t mci_round64(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

#endif
