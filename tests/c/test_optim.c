/* test_optim.c: adam_step and sgd_step. */
#include "gradcheck.h"

typedef struct optim {
    mc_tensor *param, *m, *v, *master, *grad, *step, *lr, *scale;
    double beta1, beta2, eps, decay, momentum, dampening;
    int decoupled, nesterov;
} optim;

static mc_tensor *number(double x) {
    mc_tensor *t = make_empty(MC_FLOAT32, CONTIGUOUS, SHAPE(1));
    set(t, 0, x);
    return t;
}

static mc_status adam(optim *o) {
    return mc_adam_step(o->param, o->m, o->v, o->master, o->grad, o->step, o->lr, o->scale,
                        o->beta1, o->beta2, o->eps, o->decay, o->decoupled);
}
static mc_status sgd(optim *o) {
    return mc_sgd_step(o->param, o->m, o->master, o->grad, o->step, o->lr, o->scale, o->momentum,
                       o->dampening, o->decay, o->nesterov);
}

/* State in dtype's statistics' dtype; master where asked for, equal to the parameter. */
static optim make_optim(int dtype, int grad_dtype, int layout, int with_master, int ndim,
                        const int64_t *shape) {
    int state = dtype == MC_FLOAT64 ? dtype : MC_FLOAT32;
    optim o = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.125, .momentum = 0.75};
    o.param = make_in(dtype, layout, ndim, shape);
    o.m = make_empty(state, layout, ndim, shape);
    o.v = make_empty(state, layout, ndim, shape);
    CHECK_OK(mc_fill(o.m, 0));
    CHECK_OK(mc_fill(o.v, 0));
    if (with_master) {
        o.master = make_empty(state, layout, ndim, shape);
        CHECK_OK(mc_copy(o.master, o.param));
    }
    o.grad = make_in(grad_dtype, layout, ndim, shape);
    o.step = number(1);
    o.lr = number(0.25); /* exact in float32 */
    o.scale = number(0.5);
    return o;
}

/* One step in double on w[i], m[i], v[i]. */
static void adam_double(const optim *o, double *w, double *m, double *v, const double *grad,
                        int64_t n, int step) {
    for (int64_t i = 0; i < n; i++) {
        double g = 0.5 * grad[i];
        if (o->decoupled)
            w[i] *= 1 - 0.25 * o->decay;
        else
            g += o->decay * w[i];
        m[i] = o->beta1 * m[i] + (1 - o->beta1) * g;
        v[i] = o->beta2 * v[i] + (1 - o->beta2) * g * g;
        double mhat = m[i] / (1 - pow(o->beta1, step)), vhat = v[i] / (1 - pow(o->beta2, step));
        w[i] -= 0.25 * mhat / (sqrt(vhat) + o->eps);
    }
}
static void sgd_double(const optim *o, double *w, double *m, const double *grad, int64_t n,
                       int step) {
    for (int64_t i = 0; i < n; i++) {
        double g = 0.5 * grad[i] + o->decay * w[i];
        if (o->momentum != 0) {
            m[i] = step == 1 ? g : o->momentum * m[i] + (1 - o->dampening) * g;
            g = o->nesterov ? g + o->momentum * m[i] : m[i];
        }
        w[i] -= 0.25 * g;
    }
}

enum { STEPS = 3, MOST = 2100 };

/* Three steps against the formula in double. With a 16-bit parameter and no master, each step
 * rounds the parameter, in the double too. */
static void follow(optim *o, int is_adam) {
    static double w[MOST], m[MOST], v[MOST], g[MOST];
    int64_t n = mc_tensor_numel(o->param);
    int dtype = mc_tensor_dtype(o->param);
    double tol = dtype == MC_FLOAT64 ? 1e-13 : 1e-5;
    int same = 1, rounded = 1;
    for (int64_t i = 0; i < n; i++) {
        w[i] = get(o->param, i);
        m[i] = v[i] = 0;
        g[i] = get(o->grad, i);
    }
    for (int step = 1; step <= STEPS; step++) {
        set(o->step, 0, step);
        CHECK_OK(is_adam ? adam(o) : sgd(o));
        if (is_adam)
            adam_double(o, w, m, v, g, n, step);
        else
            sgd_double(o, w, m, g, n, step);
        for (int64_t i = 0; i < n; i++) {
            double at = get(o->master ? o->master : o->param, i);
            double slack =
                o->master || dtype == MC_FLOAT64 || dtype == MC_FLOAT32 ? 0 : rounding(dtype) * 4;
            if (!(fabs(at - w[i]) <= tol + slack)) same = 0;
            if (!o->master) w[i] = at;
            float f = (float)at;
            uint16_t h = 0;
            if (o->master && dtype != MC_FLOAT32) {
                CHECK(mc_convert(&h, dtype, &f, MC_FLOAT32, 1) == MC_OK);
                check_passed--;
                if (memcmp(&h, address(o->param, i), 2) != 0) rounded = 0;
            }
            if (is_adam || o->momentum != 0)
                if (!(fabs(get(o->m, i) - m[i]) <= tol * 4)) same = 0;
            if (is_adam && !(fabs(get(o->v, i) - v[i]) <= tol)) same = 0;
        }
    }
    CHECK(same);
    CHECK(rounded);
}

static void steps_follow_the_formula(void) {
    TITLE("three steps of Adam, AdamW and SGD follow the formulas in every dtype, layout and size");
    static const int64_t sizes[] = {0, 1, 15, 1023, 1024, 1025, 2100};
    for (int k = 0; k < FLOATS * LAYOUTS * 7; k++) {
        int dtype = floats[k % FLOATS], layout = k / FLOATS % LAYOUTS;
        int64_t n = sizes[k / FLOATS / LAYOUTS];
        int small = dtype == MC_FLOAT16 || dtype == MC_BFLOAT16;
        for (int kind = 0; kind < 8; kind++) {
            int grad_dtype = kind & 1 && small ? MC_FLOAT32 : dtype;
            int64_t shape[3] = {n % 5 ? 1 : 5, n % 5 ? n : n / 5, 1};
            optim o = make_optim(dtype, grad_dtype, layout, small && kind & 2, 3, shape);
            o.decoupled = kind >> 2;
            follow(&o, 1);
            drop_all();
        }
        for (int kind = 0; kind < 4; kind++) {
            optim o = make_optim(dtype, dtype, layout, small && kind & 1, 1, &n);
            o.nesterov = kind == 1;
            o.dampening = kind == 2 ? 0.5 : 0;
            if (kind == 3) o.momentum = 0, o.m = NULL;
            follow(&o, 0);
            drop_all();
        }
    }
}

static void stale_momentum(void) {
    TITLE("step 1 of SGD ignores what stands in the momentum buffer, even NaN");
    optim o = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, SHAPE(40));
    CHECK_OK(mc_fill(o.m, (double)NAN));
    double want = get(o.param, 3) - 0.25 * (0.5 * get(o.grad, 3) + 0.125 * get(o.param, 3));
    CHECK_OK(sgd(&o));
    CHECK_NEAR(get(o.param, 3), want, 1e-6);
    drop_all();
}

static void scale_that_is_not_finite(void) {
    TITLE("a grad_scale that is not finite skips the update; none is 1; NaN gradients show");
    static const double bad[] = {(double)INFINITY, -(double)INFINITY, (double)NAN};
    for (int i = 0; i < 3; i++) {
        optim o = make_optim(MC_BFLOAT16, MC_BFLOAT16, CONTIGUOUS, 1, SHAPE(40));
        mc_tensor *param = cast(o.param, MC_BFLOAT16), *m = cast(o.m, MC_FLOAT32);
        set(o.scale, 0, bad[i]);
        CHECK_OK(adam(&o));
        CHECK_OK(sgd(&o));
        CHECK_SAME(o.param, param);
        CHECK_SAME(o.m, m);
        CHECK_SAME(o.v, m);
        drop_all();
    }
    optim a = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, SHAPE(40)), b = a;
    b.param = cast(a.param, MC_FLOAT32), b.m = cast(a.m, MC_FLOAT32);
    b.v = cast(a.v, MC_FLOAT32);
    set(a.scale, 0, 1);
    b.scale = NULL;
    set(a.grad, 7, NAN);
    CHECK_OK(adam(&a));
    CHECK_OK(adam(&b));
    CHECK_SAME(a.param, b.param);
    CHECK(isnan(get(a.param, 7)) && !isnan(get(a.param, 8)));
    drop_all();
}

static void threads_and_views(void) {
    TITLE("steps give the same bits with 1 and 2 threads and on strided views");
    int before = mc_get_num_threads();
    optim a = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, SHAPE(230, 301)), b = a, c = a;
    b.param = cast(a.param, MC_FLOAT32), b.m = cast(a.m, MC_FLOAT32);
    b.v = cast(a.v, MC_FLOAT32);
    c.param = make_empty(MC_FLOAT32, REVERSED, SHAPE(230, 301));
    c.m = make_empty(MC_FLOAT32, PADDED, SHAPE(230, 301));
    c.v = make_empty(MC_FLOAT32, SPREAD, SHAPE(230, 301));
    CHECK_OK(mc_copy(c.param, a.param));
    CHECK_OK(mc_fill(c.m, 0));
    CHECK_OK(mc_fill(c.v, 0));
    CHECK_OK(mc_set_num_threads(1));
    CHECK_OK(adam(&a));
    CHECK_OK(mc_set_num_threads(2));
    CHECK_OK(adam(&b));
    CHECK_OK(adam(&c));
    CHECK_SAME(a.param, b.param);
    CHECK_SAME(a.v, b.v);
    CHECK_SAME(a.param, c.param);
    CHECK_SAME(a.m, c.m);
    CHECK_SAME(a.v, c.v);
    CHECK_OK(mc_set_num_threads(before));
    drop_all();
}

static void versions(void) {
    TITLE("a step bumps the versions of what it writes and of nothing else");
    optim o = make_optim(MC_BFLOAT16, MC_FLOAT32, CONTIGUOUS, 1, SHAPE(4));
    mc_tensor *written[4] = {o.param, o.m, o.v, o.master};
    int64_t was[4], grad = mc_tensor_version(o.grad);
    for (int i = 0; i < 4; i++) was[i] = mc_tensor_version(written[i]);
    CHECK_OK(adam(&o));
    for (int i = 0; i < 4; i++) CHECK(mc_tensor_version(written[i]) > was[i]);
    CHECK(mc_tensor_version(o.grad) == grad);
    drop_all();
}

static void scalar_parameter(void) {
    TITLE("a parameter without axes steps too");
    optim o = make_optim(MC_FLOAT32, MC_FLOAT32, CONTIGUOUS, 0, 0, NULL);
    follow(&o, 1);
    drop_all();
}

static void errors(void) {
    TITLE("optimizer steps refuse wrong arguments and say why");
    optim o = make_optim(MC_BFLOAT16, MC_BFLOAT16, CONTIGUOUS, 1, SHAPE(4)), w = o;
    w.grad = make(MC_BFLOAT16, SHAPE(5));
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step");
    CHECK_STATUS(adam(&w), MC_EINVAL, "[5]");
    w = o, w.grad = make(MC_FLOAT16, SHAPE(4));
    CHECK_STATUS(adam(&w), MC_EINVAL,
                 "adam_step: grad is float16, wanted the bfloat16 parameter's dtype or float32");
    w = o, w.m = make(MC_BFLOAT16, SHAPE(4));
    CHECK_STATUS(adam(&w), MC_EINVAL,
                 "adam_step: exp_avg is bfloat16, float32 is wanted for a bfloat16 parameter");
    w = o, w.master = make(MC_FLOAT64, SHAPE(4));
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: master is float64");
    w = o, w.step = make(MC_FLOAT32, SHAPE(2));
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: step is float32 [2], wanted one float32 element");
    w = o, w.lr = make(MC_FLOAT64, SHAPE(1));
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: lr is float64 [1]");
    w = o, w.beta1 = 1;
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: beta1 is 1, wanted 0 to below 1");
    w = o, w.eps = (double)NAN;
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step: eps is nan");
    w = o, w.m = NULL;
    CHECK_STATUS(sgd(&w), MC_EINVAL, "sgd_step: momentum is 0.75 and there is no momentum buffer");
    w = o, w.nesterov = 1, w.dampening = 0.5;
    CHECK_STATUS(
        sgd(&w), MC_EINVAL,
        "sgd_step: nesterov wants momentum above 0 and dampening 0, they are 0.75 and 0.5");
    w = o, w.v = empty();
    CHECK_STATUS(adam(&w), MC_EINVAL, "adam_step");
    drop_all();
}

int main(void) {
    steps_follow_the_formula();
    stale_momentum();
    scale_that_is_not_finite();
    threads_and_views();
    versions();
    scalar_parameter();
    errors();
    return check_report();
}
