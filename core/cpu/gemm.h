/* gemm.h: single matrix products on raw pointers, the one door to oneDNN or CBLAS.
 *
 * All matrices are row-major with leading dimensions in elements. The provider library
 * (libmascon_dnnl.so, libmascon_cblas.so) is opened at the first product; without one, or with
 * MASCON_GEMM=plain, the loops of gemm.c serve. Safe to call from inside a parallel region: it then
 * runs on the calling thread alone. Many products at once: products.h.
 */
#ifndef MCI_GEMM_H
#define MCI_GEMM_H

#include <stddef.h>
#include <stdint.h>

#include "backend.h"

/* c [m, n] = alpha * op(a) op(b) + beta * c; op(a) is [m, k], op(b) is [k, n]; trans = 1: the
 * matrix is stored transposed. beta = 0 does not read c. */
mc_status mci_gemm_f32(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                       const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                       float *c, int64_t ldc);
mc_status mci_gemm_f64(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, double alpha,
                       const double *a, int64_t lda, const double *b, int64_t ldb, double beta,
                       double *c, int64_t ldc);

const char *mci_gemm_provider(void); /* "oneDNN 2.6.3", "CBLAS", "plain loops" */
const char *mci_gemm_reason(void);   /* why a better provider was not taken, or "" */

/* -- bfloat16 -----------------------------------------------------------------------------------
 * c = op(a) op(b) + (nothing, bias [n] in bfloat16 on every row, or c), accumulated in float32; c
 * is float32 when `c_f32`, else bfloat16, rounded once. oneDNN compiles code for each shape (0.1 to
 * 0.5 ms), so callers keep to few shapes; products of a shape are kept and shared by all threads.
 */
enum { MCI_ADD_NOTHING, MCI_ADD_BIAS, MCI_ADD_C };

typedef struct mci_bf16_shape {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t trans_a, trans_b, c_f32, add;
} mci_bf16_shape;

/* Opaque, except for what the caller must provide: `scratch` bytes, 64-byte aligned, per thread. */
typedef struct mci_bf16_product {
    size_t scratch;
} mci_bf16_product;

/* 1 when the provider and this CPU multiply bfloat16 faster than float32. */
int mci_gemm_bf16_native(void);
/* Finds or makes the product of a shape and holds it until the put. Not from a parallel region. */
mc_status mci_gemm_bf16_get(mci_bf16_product **out, const mci_bf16_shape *shape);
void mci_gemm_bf16_put(mci_bf16_product *p);
/* One product on the calling thread alone. */
mc_status mci_gemm_bf16_run(const mci_bf16_product *p, const void *a, const void *b,
                            const void *bias, void *c, void *scratch);
/* Products made so far, for the test that sees none made after warm-up. */
__attribute__((visibility("default"))) int64_t mci_gemm_created(void);

/* -- what a provider library exports: mascon_gemm_<name> --------------------------------------- */
enum { MCI_GEMM_ABI = 1 };

typedef struct mci_gemm_table {
    uint32_t abi;
    const char *name;
    __typeof__(&mci_gemm_f32) f32;
    __typeof__(&mci_gemm_f64) f64; /* NULL: not offered */
    int bf16;                      /* mci_gemm_bf16_native; the rest may be NULL when 0 */
    __typeof__(&mci_gemm_bf16_get) bf16_get;
    __typeof__(&mci_gemm_bf16_put) bf16_put;
    __typeof__(&mci_gemm_bf16_run) bf16_run;
    __typeof__(&mci_gemm_created) created;
} mci_gemm_table;

/* NULL when this machine cannot run it. m, n and k are at least 1 in every call. */
typedef const mci_gemm_table *(*mci_gemm_entry)(const mci_services *services);

#endif
