/* gemm.c: opens the library behind gemm.h, and the loops that serve where there is none.
 *
 * float32 and bfloat16 go to oneDNN, float64 (which oneDNN has not) to CBLAS; CBLAS takes float32
 * too where oneDNN is missing. Each is opened once, at the first product that asks for it, unless
 * MASCON_GEMM=cblas or MASCON_GEMM=plain asks for less.
 */
#include "gemm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"
#include "status.h"

typedef struct provider {
    const char *plugin, *symbol;
    const mci_gemm_table *table;
    char reason[256];
} provider;

static provider dnnl = {.plugin = "dnnl", .symbol = "mascon_gemm_dnnl"};
static provider cblas = {.plugin = "cblas", .symbol = "mascon_gemm_cblas"};
static pthread_once_t dnnl_once = PTHREAD_ONCE_INIT, cblas_once = PTHREAD_ONCE_INIT;

static void open_provider(provider *p) {
    mci_gemm_entry entry;
    void *symbol = mci_plugin_symbol(p->plugin, p->symbol, p->reason, sizeof p->reason);
    if (!symbol) return;
    memcpy(&entry, &symbol, sizeof entry);
    const mci_gemm_table *table = entry(mci_plugin_services());
    if (table && table->abi == MCI_GEMM_ABI)
        p->table = table;
    else
        snprintf(p->reason, sizeof p->reason, "libmascon_%s.so is of another version", p->plugin);
}
/* 1 when MASCON_GEMM names what is less than the provider: `less`, or the loops. */
static int declined(provider *p, const char *less) {
    const char *wanted = getenv("MASCON_GEMM");
    if (!wanted || (strcmp(wanted, "plain") != 0 && strcmp(wanted, less) != 0)) return 0;
    snprintf(p->reason, sizeof p->reason, "MASCON_GEMM=%s asks for less", wanted);
    return 1;
}
static void open_dnnl(void) {
    if (!declined(&dnnl, "cblas")) open_provider(&dnnl);
}
static void open_cblas(void) {
    if (!declined(&cblas, "plain")) open_provider(&cblas);
}
static const mci_gemm_table *dnnl_table(void) {
    pthread_once(&dnnl_once, open_dnnl);
    return dnnl.table;
}
static const mci_gemm_table *cblas_table(void) {
    pthread_once(&cblas_once, open_cblas);
    return cblas.table;
}

const char *mci_gemm_provider(void) {
    if (dnnl_table()) return dnnl.table->name;
    return cblas_table() ? cblas.table->name : "plain loops";
}

const char *mci_gemm_reason(void) {
    return dnnl_table() ? "" : dnnl.reason;
}

/* -- loops --------------------------------------------------------------------------------------
 * A block of op(b) is copied into a buffer that stays in the first-level cache; every row of c then
 * takes four rows of it at a time. Each element of c sums over k in ascending order.
 */
enum { BLOCK_K = 32, BLOCK_N = 128 };

#define DEFINE_LOOPS(name, T)                                                               \
    static void name(int ta, int tb, int64_t m, int64_t n, int64_t k, T alpha, const T *a,  \
                     int64_t lda, const T *b, int64_t ldb, T *c, int64_t ldc) {             \
        T block[BLOCK_K * BLOCK_N];                                                         \
        for (int64_t j0 = 0; j0 < n; j0 += BLOCK_N) {                                       \
            int64_t nb = n - j0 < BLOCK_N ? n - j0 : BLOCK_N;                               \
            for (int64_t p0 = 0; p0 < k; p0 += BLOCK_K) {                                   \
                int64_t kb = k - p0 < BLOCK_K ? k - p0 : BLOCK_K;                           \
                for (int64_t p = 0; p < kb; p++)                                            \
                    for (int64_t j = 0; j < nb; j++)                                        \
                        block[p * BLOCK_N + j] = alpha * (tb ? b[(j0 + j) * ldb + p0 + p]   \
                                                             : b[(p0 + p) * ldb + j0 + j]); \
                for (int64_t i = 0; i < m; i++) {                                           \
                    const T *ai = ta ? a + p0 * lda + i : a + i * lda + p0;                 \
                    int64_t step = ta ? lda : 1, p = 0;                                     \
                    T *restrict ci = c + i * ldc + j0;                                      \
                    for (; p + 4 <= kb; p += 4) {                                           \
                        const T *q = block + p * BLOCK_N;                                   \
                        T a0 = ai[p * step], a1 = ai[(p + 1) * step];                       \
                        T a2 = ai[(p + 2) * step], a3 = ai[(p + 3) * step];                 \
                        for (int64_t j = 0; j < nb; j++)                                    \
                            ci[j] = (((ci[j] + a0 * q[j]) + a1 * q[j + BLOCK_N]) +          \
                                     a2 * q[j + 2 * BLOCK_N]) +                             \
                                    a3 * q[j + 3 * BLOCK_N];                                \
                    }                                                                       \
                    for (; p < kb; p++)                                                     \
                        for (int64_t j = 0; j < nb; j++)                                    \
                            ci[j] += ai[p * step] * block[p * BLOCK_N + j];                 \
                }                                                                           \
            }                                                                               \
        }                                                                                   \
    }

DEFINE_LOOPS(loops_f32, float)
DEFINE_LOOPS(loops_f64, double)

/* c *= beta, without reading c when beta is 0. */
#define DEFINE_SCALE(name, T)                                                 \
    static void name(int64_t m, int64_t n, T beta, T *c, int64_t ldc) {       \
        for (int64_t i = 0; i < m && beta != (T)1; i++)                       \
            for (int64_t j = 0; j < n; j++)                                   \
                c[i * ldc + j] = beta == (T)0 ? (T)0 : beta * c[i * ldc + j]; \
    }

DEFINE_SCALE(scale_f32, float)
DEFINE_SCALE(scale_f64, double)

mc_status mci_gemm_f32(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                       const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                       float *c, int64_t ldc) {
    if (m < 1 || n < 1) return MC_OK;
    if (k > 0) {
        const mci_gemm_table *t = dnnl_table();
        if (!t) t = cblas_table();
        if (t) return t->f32(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    }
    scale_f32(m, n, beta, c, ldc);
    loops_f32(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, c, ldc);
    return MC_OK;
}

mc_status mci_gemm_f64(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, double alpha,
                       const double *a, int64_t lda, const double *b, int64_t ldb, double beta,
                       double *c, int64_t ldc) {
    if (m < 1 || n < 1) return MC_OK;
    const mci_gemm_table *t = k > 0 ? cblas_table() : NULL;
    if (t) return t->f64(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    scale_f64(m, n, beta, c, ldc);
    loops_f64(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, c, ldc);
    return MC_OK;
}

/* -- bfloat16 ---------------------------------------------------------------------------------- */

int mci_gemm_bf16_native(void) {
    const mci_gemm_table *t = dnnl_table();
    return t && t->bf16;
}

mc_status mci_gemm_bf16_get(mci_bf16_product **out, const mci_bf16_shape *shape) {
    *out = NULL;
    if (!mci_gemm_bf16_native())
        return mci_fail(MC_EINTERNAL, "gemm: bfloat16 products asked of a library without them");
    return dnnl.table->bf16_get(out, shape);
}

void mci_gemm_bf16_put(mci_bf16_product *p) {
    if (p) dnnl.table->bf16_put(p);
}

mc_status mci_gemm_bf16_run(const mci_bf16_product *p, const void *a, const void *b,
                            const void *bias, void *c, void *scratch) {
    return dnnl.table->bf16_run(p, a, b, bias, c, scratch);
}

int64_t mci_gemm_created(void) {
    const mci_gemm_table *t = dnnl_table();
    return t && t->created ? t->created() : 0;
}
