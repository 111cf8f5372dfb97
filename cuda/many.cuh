/* many.cuh: ops over a list of tensors in few launches (the backend's `many`). */
#ifndef MCU_MANY_CUH
#define MCU_MANY_CUH

#include "common.cuh"

/* t[i] = {acc [1] float64, x}; acc is one for all: acc += the sum of squares of each x, in list
 * order. The same bits as n calls of sum_squares. */
mc_status mcu_sum_squares_many(mci_exec *exec, int64_t n, const mci_view *const *const *t);
/* n calls of adam_step, of scale: t[i] their operands as in ops.def; step, lr, grad_scale and
 * factor are those of t[0]. No tensor overlaps another. The same bits as n calls. */
mc_status mcu_adam_step_many(mci_exec *exec, int64_t n, const mci_view *const *const *t,
                             const void *params);
mc_status mcu_scale_many(mci_exec *exec, int64_t n, const mci_view *const *const *t);

/* The backend's `many`: MC_EUNSUPPORTED for any other op. */
mc_status mcu_many(mci_exec *exec, int op, int64_t n, const mci_view *const *const *t,
                   const void *params);

#endif
