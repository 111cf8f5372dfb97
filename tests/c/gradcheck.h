/* gradcheck.h: tensors for tests of kernels, comparison within what a dtype can hold, and gradients
 * against central differences.
 *
 * Tensors come from make() and its kin, are numbers in [-1, 1) that depend on a running seed only,
 * and live until drop_all(). LAYOUTS says how they lie in memory.
 */
#ifndef MASCON_GRADCHECK_H
#define MASCON_GRADCHECK_H

#include <stdlib.h>

#include "check.h"

/* "2, 3" -> the two arguments (int ndim, const int64_t *shape) */
#define SHAPE(...) \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), ((int64_t[]){__VA_ARGS__})

/* Contiguous; gaps between rows; every second element of a row; axes stored in reverse order. */
enum { CONTIGUOUS, PADDED, SPREAD, REVERSED, LAYOUTS };

enum { FLOATS = 4 };
static const int floats[FLOATS] = {MC_FLOAT64, MC_FLOAT32, MC_FLOAT16, MC_BFLOAT16};

static mc_tensor *made[4096];
static int made_count;
static uint64_t made_seed = 1;

static inline mc_tensor *empty(void) {
    mc_tensor *t = mc_tensor_new();
    if (!t || made_count == 4096) abort();
    return made[made_count++] = t;
}

static inline void drop_all(void) {
    while (made_count > 0) mc_tensor_free(made[--made_count]);
}

static inline double next_number(void) { /* Knuth's MMIX generator, top bits */
    made_seed = made_seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(made_seed >> 11) * 0x1p-52 - 1;
}

/* Address of element i in row-major order. */
static inline void *address(const mc_tensor *t, int64_t i) {
    const int64_t *shape = mc_tensor_shape(t), *strides = mc_tensor_strides(t);
    int64_t offset = 0;
    for (int d = mc_tensor_ndim(t) - 1; d >= 0; d--) {
        offset += i % shape[d] * strides[d];
        i /= shape[d];
    }
    return (char *)mc_tensor_data(t) + offset * mc_dtype_size(mc_tensor_dtype(t));
}
static inline double get(const mc_tensor *t, int64_t i) {
    double x = NAN;
    CHECK_OK(mc_convert(&x, MC_FLOAT64, address(t, i), mc_tensor_dtype(t), 1));
    check_passed--; /* counts only when it fails */
    return x;
}
static inline void set(mc_tensor *t, int64_t i, double x) {
    CHECK_OK(mc_convert(address(t, i), mc_tensor_dtype(t), &x, MC_FLOAT64, 1));
    check_passed--;
}

/* Uninitialised, in a layout. */
static inline mc_tensor *make_empty(int dtype, int layout, int ndim, const int64_t *shape) {
    mc_tensor *t = empty(), *base = empty();
    if (layout == CONTIGUOUS || ndim == 0) {
        CHECK_OK(mc_empty(t, dtype, 0, ndim, shape));
        return t;
    }
    int64_t strides[MC_MAX_DIMS] = {0}, n = layout == SPREAD ? 2 : 1;
    for (int i = 0; i < ndim; i++) {
        int d = layout == REVERSED ? i : ndim - 1 - i;
        strides[d] = n;
        n *= shape[d];
        if (layout == PADDED && d == ndim - 1) n += 3;
    }
    n += 8;
    CHECK_OK(mc_empty(base, dtype, 0, 1, &n));
    CHECK_OK(mc_fill(base, 77)); /* never to be read */
    CHECK_OK(mc_as_strided(t, base, ndim, shape, strides, 1));
    return t;
}
static inline mc_tensor *make_in(int dtype, int layout, int ndim, const int64_t *shape) {
    mc_tensor *t = make_empty(dtype, layout, ndim, shape);
    for (int64_t i = 0; i < mc_tensor_numel(t); i++) set(t, i, next_number());
    return t;
}
static inline mc_tensor *make(int dtype, int ndim, const int64_t *shape) {
    return make_in(dtype, CONTIGUOUS, ndim, shape);
}
static inline mc_tensor *make_int(int dtype, int64_t n, const int64_t *values) {
    mc_tensor *t = make_empty(dtype, CONTIGUOUS, 1, &n);
    for (int64_t i = 0; i < n; i++) set(t, i, (double)values[i]);
    return t;
}
/* The same values, contiguous, in another dtype. */
static inline mc_tensor *cast(const mc_tensor *t, int dtype) {
    mc_tensor *u = make_empty(dtype, CONTIGUOUS, mc_tensor_ndim(t), mc_tensor_shape(t));
    for (int64_t i = 0; i < mc_tensor_numel(t); i++) set(u, i, get(t, i));
    return u;
}

/* The largest relative error of a rounding to dtype. */
static inline double rounding(int dtype) {
    return dtype == MC_FLOAT64    ? 0x1p-53
           : dtype == MC_FLOAT32  ? 0x1p-24
           : dtype == MC_FLOAT16  ? 0x1p-11
           : dtype == MC_BFLOAT16 ? 0x1p-8
                                  : 0;
}

/* `got` equals `want` up to one rounding of its dtype, of the largest number in `want`, and `steps`
 * roundings of the arithmetic (float32, or float64 for float64), of that number or of `scale`, the
 * size of what cancels on the way, if that is larger. */
static inline int check_close(const mc_tensor *got, const mc_tensor *want, double steps,
                              double scale, const char *file, int line, const char *what) {
    int64_t n = mc_tensor_numel(want);
    double most = 0, worst = 0;
    int same = mc_tensor_ndim(got) == mc_tensor_ndim(want) && mc_tensor_numel(got) == n;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(get(want, i))) most = fmax(most, fabs(get(want, i)));
    int dtype = mc_tensor_dtype(got);
    double tol = most * rounding(dtype) +
                 fmax(most, scale) * steps * rounding(dtype == MC_FLOAT64 ? dtype : MC_FLOAT32);
    if (dtype == MC_FLOAT16) tol += 0x1p-25; /* subnormals */
    for (int64_t i = 0; same && i < n; i++) {
        double a = get(got, i), b = get(want, i), gap = fabs(a - b);
        if (a == b || (isnan(a) && isnan(b))) continue;
        if (!(gap <= worst)) worst = isnan(gap) ? INFINITY : gap;
    }
    char text[256];
    int ok = same && worst <= tol;
    if (!ok)
        snprintf(text, sizeof text, "%s (%s): off by %g, allowed %g", what, mc_dtype_name(dtype),
                 worst, tol);
    return check_count(ok, file, line, ok ? what : text);
}
#define CHECK_CLOSE(got, want, steps) CHECK_CLOSE_TO(got, want, steps, 0)
#define CHECK_CLOSE_TO(got, want, steps, scale) \
    check_close((got), (want), (steps), (scale), __FILE__, __LINE__, #got)

static inline double largest(const mc_tensor *t) {
    double most = 0;
    for (int64_t i = 0; i < mc_tensor_numel(t); i++) most = fmax(most, fabs(get(t, i)));
    return most;
}

static inline int check_same(const mc_tensor *a, const mc_tensor *b, const char *file, int line,
                             const char *what) {
    int equal = 0;
    return check_count(mc_equal(a, b, &equal) == MC_OK && equal, file, line, what);
}
#define CHECK_SAME(a, b) check_same((a), (b), __FILE__, __LINE__, #a " equals " #b)

/* Sum of t * weight: a number that depends on every element. weight NULL: plain sum. */
static inline double weigh(const mc_tensor *t, const mc_tensor *weight) {
    double sum = 0;
    for (int64_t i = 0; i < mc_tensor_numel(t); i++)
        sum += get(t, i) * (weight ? get(weight, i) : 1);
    return sum;
}

/* dx is the gradient of loss(ctx) in x, by central differences; float64, loss of size about 1. */
static inline void gradcheck(double (*loss)(void *), void *ctx, mc_tensor *x, const mc_tensor *dx,
                             const char *name, const char *file, int line) {
    const double h = 1e-5; /* truncation about h^2, cancellation about 1e-16 / h */
    int ok = 1;
    char text[256];
    snprintf(text, sizeof text, "gradient of %s", name);
    for (int64_t i = 0; i < mc_tensor_numel(x); i++) {
        double at = get(x, i);
        set(x, i, at + h);
        double up = loss(ctx);
        set(x, i, at - h);
        double down = loss(ctx);
        set(x, i, at);
        double want = (up - down) / (2 * h), got = get(dx, i);
        if (fabs(got - want) <= 1e-8 * (1 + fabs(want))) continue;
        snprintf(text, sizeof text, "gradient of %s, element %lld: %.12g, differences give %.12g",
                 name, (long long)i, got, want);
        ok = 0;
        break;
    }
    check_count(ok, file, line, text);
}
#define GRADCHECK(loss, ctx, x, dx) gradcheck((loss), (ctx), (x), (dx), #x, __FILE__, __LINE__)

#endif
