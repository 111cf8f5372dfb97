/* norm.c: norms over the last axis of x [.., n].
 *
 *     rms_norm    y = x * rstd * weight,                rstd = 1 / sqrt(mean(x^2) + eps)
 *     layer_norm  y = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(mean((x - mean)^2) + eps)
 *
 * Zhang & Sennrich 2019, eq. 4; Ba, Kiros & Hinton 2016, eq. 4. bfloat16 and float16 are computed
 * in float32 and rounded once.
 */
#include "row.h"

/* Rows per partial sum of the weight gradients, and the most partials: what they cost in memory. */
enum { CHUNK_ROWS = 16, MAX_CHUNKS = 64 };

#define mci_sqrt_f32 sqrtf
#define mci_sqrt_f64 sqrt

#define IN_BOTH_REALS "norm_real.h"
#include "both_reals.h"

mc_status MCI_CPU(rms_norm)(mci_exec *exec, const mci_view *const *t, const void *p) {
    double eps = ((const mci_norm_params *)p)->eps;
    return t[2]->dtype == MC_FLOAT64 ? rms_norm_f64(exec, t, eps) : rms_norm_f32(exec, t, eps);
}

mc_status MCI_CPU(layer_norm)(mci_exec *exec, const mci_view *const *t, const void *p) {
    double eps = ((const mci_norm_params *)p)->eps;
    return t[3]->dtype == MC_FLOAT64 ? layer_norm_f64(exec, t, eps) : layer_norm_f32(exec, t, eps);
}

mc_status MCI_CPU(rms_norm_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)p;
    return (t[3]->dtype == MC_FLOAT64 ? norm_backward_f64 : norm_backward_f32)(
        exec, "rms_norm_backward", t[0], t[1], NULL, t[2], t[3], t[4], NULL, t[5]);
}

mc_status MCI_CPU(layer_norm_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    (void)p;
    return (t[4]->dtype == MC_FLOAT64 ? norm_backward_f64 : norm_backward_f32)(
        exec, "layer_norm_backward", t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]);
}
