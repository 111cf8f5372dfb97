/* optim.c: checks of the optimizer steps. Everything of the parameter's shape; the gradient in the
 * parameter's dtype or float32 (main_grad); moments in float32 (float64 for float64). */
#include "call.h"

static void want_state(mci_call *c, const char *name, const mc_tensor *t, const mc_tensor *param) {
    if (!mci_ok(c) || !t) return;
    mci_want_shape(c, name, t, param->v.ndim, param->v.shape);
    int dtype = mci_stat_dtype(param->v.dtype);
    if (mci_ok(c) && t->v.dtype != dtype)
        mci_bad(c, "%s is %s, %s is wanted for a %s parameter", name, mc_dtype_name(t->v.dtype),
                mc_dtype_name(dtype), mc_dtype_name(param->v.dtype));
}

static void want_grad(mci_call *c, const mc_tensor *grad, const mc_tensor *param) {
    if (!mci_ok(c)) return;
    mci_want_float(c, "param", param);
    mci_want_shape(c, "grad", grad, param->v.ndim, param->v.shape);
    if (!mci_ok(c)) return;
    if (grad->v.dtype != param->v.dtype && grad->v.dtype != mci_stat_dtype(param->v.dtype))
        mci_bad(c, "grad is %s, wanted the %s parameter's dtype or %s",
                mc_dtype_name(grad->v.dtype), mc_dtype_name(param->v.dtype),
                mc_dtype_name(mci_stat_dtype(param->v.dtype)));
}

/* One float32 element that the kernel reads; may be absent. */
static void want_number(mci_call *c, const char *name, const mc_tensor *t) {
    if (!mci_ok(c) || !t) return;
    if (t->v.dtype != MC_FLOAT32 || mci_numel(&t->v) != 1)
        mci_bad(c, "%s is %s %s, wanted one float32 element", name, mc_dtype_name(t->v.dtype),
                mci_shape_of(t));
}

static void want_range(mci_call *c, const char *name, double value, int below_one) {
    if (!mci_ok(c)) return;
    if (!(value >= 0) || (below_one && !(value < 1)))
        mci_bad(c, "%s is %g, wanted %s", name, value, below_one ? "0 to below 1" : "0 or more");
}

/* Inputs 0 to 3, which all steps have. */
static void in_step(mci_call *c, const mc_tensor *param, const mc_tensor *master,
                    const mc_tensor *grad, const mc_tensor *step, const mc_tensor *lr,
                    const mc_tensor *grad_scale, double weight_decay) {
    mci_in(c, 0, grad);
    mci_in(c, 1, step);
    mci_in(c, 2, lr);
    mci_in_optional(c, 3, grad_scale);
    want_grad(c, grad, param);
    want_state(c, "master", master, param);
    want_number(c, "step", step);
    want_number(c, "lr", lr);
    want_number(c, "grad_scale", grad_scale);
    want_range(c, "weight_decay", weight_decay, 0);
}

mc_status mc_adam_step(mc_tensor *param, mc_tensor *exp_avg, mc_tensor *exp_avg_sq,
                       mc_tensor *master, const mc_tensor *grad, const mc_tensor *step,
                       const mc_tensor *lr, const mc_tensor *grad_scale, double beta1, double beta2,
                       double eps, double weight_decay, int decoupled) {
    mci_call c = mci_begin("adam_step", MCI_OP_adam_step, 4);
    c.apart = 1;
    mci_inout(&c, 0, param, 0);
    mci_inout(&c, 1, exp_avg, 0);
    mci_inout(&c, 2, exp_avg_sq, 0);
    mci_inout(&c, 3, master, 1);
    in_step(&c, param, master, grad, step, lr, grad_scale, weight_decay);
    want_state(&c, "exp_avg", exp_avg, param);
    want_state(&c, "exp_avg_sq", exp_avg_sq, param);
    want_range(&c, "beta1", beta1, 1);
    want_range(&c, "beta2", beta2, 1);
    want_range(&c, "eps", eps, 0);
    mci_optim_params p = {.beta1 = beta1,
                          .beta2 = beta2,
                          .eps = eps,
                          .weight_decay = weight_decay,
                          .decoupled = decoupled != 0};
    return mci_end(&c, &p);
}

mc_status mc_sgd_step(mc_tensor *param, mc_tensor *momentum_buffer, mc_tensor *master,
                      const mc_tensor *grad, const mc_tensor *step, const mc_tensor *lr,
                      const mc_tensor *grad_scale, double momentum, double dampening,
                      double weight_decay, int nesterov) {
    mci_call c = mci_begin("sgd_step", MCI_OP_sgd_step, 3);
    c.apart = 1;
    mci_inout(&c, 0, param, 0);
    mci_inout(&c, 1, momentum_buffer, 1);
    mci_inout(&c, 2, master, 1);
    in_step(&c, param, master, grad, step, lr, grad_scale, weight_decay);
    want_state(&c, "momentum_buffer", momentum_buffer, param);
    want_range(&c, "momentum", momentum, 0);
    if (mci_ok(&c) && momentum != 0 && !momentum_buffer)
        mci_bad(&c, "momentum is %g and there is no momentum buffer", momentum);
    if (mci_ok(&c) && nesterov && (!(momentum > 0) || dampening != 0))
        mci_bad(&c, "nesterov wants momentum above 0 and dampening 0, they are %g and %g", momentum,
                dampening);
    mci_optim_params p = {.momentum = momentum,
                          .dampening = dampening,
                          .weight_decay = weight_decay,
                          .nesterov = nesterov != 0};
    return mci_end(&c, &p);
}
