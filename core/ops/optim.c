/* optim.c: checks of the optimizer steps, one at a time and many at once. Everything of the
 * parameter's shape; the gradient in the parameter's dtype or float32 (main_grad); moments and
 * masters in float32 (float64 for float64), Adam's moments also in bfloat16 beside a bfloat16
 * parameter. */
#include <stdlib.h>

#include "call.h"

static void want_state(mci_call *c, const char *name, const mc_tensor *t, const mc_tensor *param) {
    if (!mci_ok(c) || !t) return;
    mci_want_shape(c, name, t, param->v.ndim, param->v.shape);
    int dtype = mci_stat_dtype(param->v.dtype);
    if (mci_ok(c) && t->v.dtype != dtype)
        mci_bad(c, "%s is %s, %s is wanted for a %s parameter", name, mc_dtype_name(t->v.dtype),
                mc_dtype_name(dtype), mc_dtype_name(param->v.dtype));
}

/* Both of Adam's moments. */
static void want_moments(mci_call *c, const mc_tensor *m, const mc_tensor *v,
                         const mc_tensor *param) {
    if (!mci_ok(c)) return;
    if (m->v.dtype != MC_BFLOAT16 || param->v.dtype != MC_BFLOAT16) {
        want_state(c, "exp_avg", m, param);
        want_state(c, "exp_avg_sq", v, param);
        return;
    }
    mci_want_shape(c, "exp_avg", m, param->v.ndim, param->v.shape);
    mci_want_shape(c, "exp_avg_sq", v, param->v.ndim, param->v.shape);
    mci_want_same_dtype(c, "exp_avg", m, "exp_avg_sq", v);
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

static mci_optim_params adam_params(double beta1, double beta2, double eps, double weight_decay,
                                    int decoupled) {
    return (mci_optim_params){.beta1 = beta1,
                              .beta2 = beta2,
                              .eps = eps,
                              .weight_decay = weight_decay,
                              .decoupled = decoupled != 0};
}

/* Everything but the running. */
static void check_adam(mci_call *c, mc_tensor *param, mc_tensor *exp_avg, mc_tensor *exp_avg_sq,
                       mc_tensor *master, const mc_tensor *grad, const mc_tensor *step,
                       const mc_tensor *lr, const mc_tensor *grad_scale,
                       const mci_optim_params *p) {
    c->apart = 1;
    mci_inout(c, 0, param, 0);
    mci_inout(c, 1, exp_avg, 0);
    mci_inout(c, 2, exp_avg_sq, 0);
    mci_inout(c, 3, master, 1);
    in_step(c, param, master, grad, step, lr, grad_scale, p->weight_decay);
    want_moments(c, exp_avg, exp_avg_sq, param);
    want_range(c, "beta1", p->beta1, 1);
    want_range(c, "beta2", p->beta2, 1);
    want_range(c, "eps", p->eps, 0);
}

mc_status mc_adam_step(mc_tensor *param, mc_tensor *exp_avg, mc_tensor *exp_avg_sq,
                       mc_tensor *master, const mc_tensor *grad, const mc_tensor *step,
                       const mc_tensor *lr, const mc_tensor *grad_scale, double beta1, double beta2,
                       double eps, double weight_decay, int decoupled) {
    mci_optim_params p = adam_params(beta1, beta2, eps, weight_decay, decoupled);
    mci_call c = mci_begin("adam_step", MCI_OP_adam_step, 4);
    check_adam(&c, param, exp_avg, exp_avg_sq, master, grad, step, lr, grad_scale, &p);
    return mci_end(&c, &p);
}

/* n calls of an op, each begun; NULL and *status otherwise, which is MC_OK when n is 0. */
static mci_call *begin_many(const char *name, const char *each, int op, int n_out, int64_t n,
                            mc_status *status) {
    *status = MC_OK;
    if (n < 0) *status = mci_fail(MC_EINVAL, "%s: n is %lld, wanted 0 or more", name, (long long)n);
    if (n <= 0) return NULL;
    mci_call *c = malloc((size_t)n * sizeof *c);
    if (!c) *status = mci_fail(MC_ENOMEM, "%s: no memory for %lld calls", name, (long long)n);
    for (int64_t i = 0; c && i < n; i++) {
        c[i] = mci_begin(name, op, n_out);
        c[i].each = each;
        c[i].number = i + 1;
    }
    return c;
}

/* Are the calls before call i good? The first bad one's message is to stay. */
static int goes_on(const mci_call *c, int64_t i) {
    return i == 0 || mci_ok(&c[i - 1]);
}

static mc_status end_many(mci_call *c, int64_t n, const void *params, int in_order) {
    mc_status status = mci_end_many(c, n, params, in_order);
    free(c);
    return status;
}

mc_status mc_adam_step_many(int64_t n, mc_tensor *const *param, mc_tensor *const *exp_avg,
                            mc_tensor *const *exp_avg_sq, mc_tensor *const *master,
                            mc_tensor *const *grad, const mc_tensor *step, const mc_tensor *lr,
                            const mc_tensor *grad_scale, double beta1, double beta2, double eps,
                            double weight_decay, int decoupled) {
    mci_optim_params p = adam_params(beta1, beta2, eps, weight_decay, decoupled);
    mc_status status;
    mci_call *c = begin_many("adam_step", "parameter", MCI_OP_adam_step, 4, n, &status);
    if (!c) return status;
    for (int64_t i = 0; i < n && goes_on(c, i); i++)
        check_adam(&c[i], param[i], exp_avg[i], exp_avg_sq[i], master ? master[i] : NULL, grad[i],
                   step, lr, grad_scale, &p);
    return end_many(c, n, &p, 0);
}

mc_status mc_sum_squares_many(mc_tensor *acc, int64_t n, mc_tensor *const *x) {
    static const int64_t one[1] = {1};
    mc_status status;
    mci_call *c = begin_many("sum_squares", "tensor", MCI_OP_sum_squares, 1, n, &status);
    if (!c) return status;
    for (int64_t i = 0; i < n && goes_on(c, i); i++) {
        mci_in(&c[i], 0, x[i]);
        mci_inout(&c[i], 0, acc, 0);
        if (!mci_ok(&c[i])) continue;
        mci_want_float(&c[i], "x", x[i]);
        mci_want_shape(&c[i], "acc", acc, 1, one);
        if (mci_ok(&c[i]) && acc->v.dtype != MC_FLOAT64)
            mci_bad(&c[i], "acc is %s, wanted float64", mc_dtype_name(acc->v.dtype));
    }
    return end_many(c, n, NULL, 1);
}

mc_status mc_scale_many(int64_t n, mc_tensor *const *x, const mc_tensor *factor) {
    mc_status status;
    mci_call *c = begin_many("scale", "tensor", MCI_OP_scale, 1, n, &status);
    if (!c) return status;
    for (int64_t i = 0; i < n && goes_on(c, i); i++) {
        c[i].apart = 1;
        mci_inout(&c[i], 0, x[i], 0);
        mci_in(&c[i], 0, factor);
        if (!mci_ok(&c[i])) continue;
        mci_want_float(&c[i], "x", x[i]);
        if (!mci_ok(&c[i])) continue;
        int dtype = factor->v.dtype;
        if (mci_numel(&factor->v) != 1 || (dtype != MC_FLOAT32 && dtype != x[i]->v.dtype))
            mci_bad(&c[i], "factor is %s %s, wanted one element of float32 or x's %s",
                    mc_dtype_name(dtype), mci_shape_of(factor), mc_dtype_name(x[i]->v.dtype));
    }
    return end_many(c, n, NULL, 0);
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
