/* optim.c: optimizer steps: one pass over parameter, state and gradient, in blocks.
 *
 *     g = grad_scale * grad (+ weight_decay * w, unless decoupled)
 *     Adam   m += (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g^2
 *            w = (1 - lr * weight_decay [decoupled]) w
 *                - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
 *     SGD    b = momentum * b + (1 - dampening) g (b = g at step 1),
 *            w -= lr * b, or lr * (g + momentum * b) for Nesterov
 *
 * Kingma & Ba 2015, alg. 1; Loshchilov & Hutter 2019, alg. 2; eps stands where PyTorch has it. w is
 * the float32 master where there is one, else the parameter; computed in float32 (float64 for
 * float64), every result rounded once: bfloat16 moments too. A grad_scale that is not finite leaves
 * everything as it is.
 *
 *     scale  x *= factor, a 16-bit x in float32
 */
#include "row.h"

enum { BLOCK = 1024 };

typedef struct numbers {
    double grad_scale, decay_add, decay_keep, beta1, beta2, eps, correction2_root, rate;
    double momentum, dampening;
    int first, nesterov;
} numbers;

#define mci_sqrt_f32 sqrtf
#define mci_sqrt_f64 sqrt

#define IN_BOTH_REALS "optim_real.h"
#include "both_reals.h"

/* v: param, first moment or momentum, second moment, master, grad; all but the first and the last
 * may be NULL. Contiguous tensors are one row, others go row by row. */
static void step(const mci_view *const *v, const numbers *k) {
    mci_rows m[5];
    int flat = 1, ndim = v[0]->ndim;
    for (int i = 0; i < 5; i++) flat = flat && (!v[i] || mci_is_contiguous(v[i]));
    for (int i = 0; i < 5; i++) {
        m[i] = mci_rows_of(v[i], ndim > 0 ? ndim - 1 : 0);
        if (!flat || !v[i]) continue;
        m[i].n *= m[i].count;
        m[i].count = m[i].step = 1;
        m[i].lead = 0;
    }
    int64_t n = m[0].n, each = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(mci_threads(m[0].count *n)) schedule(static)
    for (int64_t b = 0; b < m[0].count * each; b++) {
        int64_t first = b % each * BLOCK, size = n - first < BLOCK ? n - first : BLOCK;
        void *at[5];
        for (int i = 0; i < 5; i++)
            at[i] =
                v[i] ? (char *)mci_row_at(&m[i], b / each) + first * m[i].step * m[i].size : NULL;
        (v[0]->dtype == MC_FLOAT64 ? step_block_f64 : step_block_f32)(m, at, size, k);
    }
}

static double number(const mci_view *v, double absent) {
    return v ? (double)*(const float *)v->data : absent;
}

mc_status MCI_CPU(adam_step)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec;
    const mci_optim_params *o = p;
    double count = number(t[5], 0), lr = number(t[6], 0), scale = number(t[7], 1);
    if (!isfinite(scale)) return MC_OK;
    numbers k = {.grad_scale = scale,
                 .decay_add = o->decoupled ? 0 : o->weight_decay,
                 .decay_keep = o->decoupled ? 1 - lr * o->weight_decay : 1,
                 .beta1 = o->beta1,
                 .beta2 = o->beta2,
                 .eps = o->eps,
                 .correction2_root = sqrt(1 - pow(o->beta2, count)),
                 .rate = lr / (1 - pow(o->beta1, count))};
    const mci_view *v[5] = {t[0], t[1], t[2], t[3], t[4]};
    step(v, &k);
    return MC_OK;
}

mc_status MCI_CPU(sgd_step)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec;
    const mci_optim_params *o = p;
    double scale = number(t[6], 1);
    if (!isfinite(scale)) return MC_OK;
    numbers k = {.grad_scale = scale,
                 .decay_add = o->weight_decay,
                 .rate = number(t[5], 0),
                 .momentum = o->momentum,
                 .dampening = o->dampening,
                 .first = number(t[4], 1) <= 1,
                 .nesterov = o->nesterov};
    const mci_view *v[5] = {t[0], o->momentum != 0 ? t[1] : NULL, NULL, t[2], t[3]};
    step(v, &k);
    return MC_OK;
}

#define SCALE(real, name)                                                            \
    static void name(char *const *p, int64_t first, int64_t n, const void *params) { \
        real *out = (real *)(void *)p[0], factor = (real) * (const double *)params;  \
        const real *x = (const real *)(const void *)p[1];                            \
        (void)first;                                                                 \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) out[i] = x[i] * factor; \
    }
SCALE(float, scale_f32)
SCALE(double, scale_f64)

/* t: x (in place), factor (one element of x's dtype or float32). */
mc_status MCI_CPU(scale)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)exec, (void)p;
    int kind = mci_compute_kind(t[0]->dtype);
    double factor;
    MCI_CPU(load_f64)(&factor, t[1]->data, t[1]->dtype, 0, 1);
    mci_loop loop = {kind == MCI_F64 ? scale_f64 : scale_f32, &factor, 1, {kind, kind}};
    const mci_view *v[2] = {t[0], t[0]};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 2, v, 0);
    MCI_CPU(run)(&it, &loop);
    return MC_OK;
}
