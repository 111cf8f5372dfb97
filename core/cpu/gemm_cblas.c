/* gemm_cblas.c: the provider over CBLAS. OpenMP is the one thread pool of the library, so a BLAS
 * with threads of its own (OpenBLAS) is held at one; callers cut products for their threads. */
#include <cblas.h>
#include <limits.h>

#include "gemm.h"

/* Only OpenBLAS has it; any other CBLAS leaves it NULL. */
extern void openblas_set_num_threads(int n) __attribute__((weak));

static const mci_services *core;

/* CBLAS counts in int. */
static int fits(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc) {
    int64_t most = m;
    const int64_t sizes[] = {n, k, lda, ldb, ldc};
    for (int i = 0; i < 5; i++) most = sizes[i] > most ? sizes[i] : most;
    return most <= INT_MAX;
}

static mc_status too_large(void) {
    return core->fail(MC_EUNSUPPORTED, "gemm: a size is beyond the 2^31 - 1 that CBLAS counts to");
}

static int least(int64_t ld, int64_t columns) {
    return (int)(ld > columns ? ld : columns);
}

#define DEFINE_PRODUCT(name, T, function)                                                       \
    static mc_status name(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha, const T *a, \
                          int64_t lda, const T *b, int64_t ldb, T beta, T *c, int64_t ldc) {    \
        if (!fits(m, n, k, lda, ldb, ldc)) return too_large();                                  \
        function(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, \
                 (int)m, (int)n, (int)k, alpha, a, least(lda, ta ? m : k), b,                   \
                 least(ldb, tb ? k : n), beta, c, least(ldc, n));                               \
        return MC_OK;                                                                           \
    }

DEFINE_PRODUCT(f32, float, cblas_sgemm)
DEFINE_PRODUCT(f64, double, cblas_dgemm)

__attribute__((visibility("default"))) const mci_gemm_table *mascon_gemm_cblas(
    const mci_services *services);
const mci_gemm_table *mascon_gemm_cblas(const mci_services *services) {
    static const mci_gemm_table table = {
        .abi = MCI_GEMM_ABI, .name = "CBLAS", .f32 = f32, .f64 = f64};
    if (services->abi != MCI_BACKEND_ABI) return NULL;
    core = services;
    if (openblas_set_num_threads) openblas_set_num_threads(1);
    return &table;
}
