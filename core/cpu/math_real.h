/* math_real.h: the elementwise loops over one real type, included by math.c with `real` and
 * R(name) set for float and for double. x, y, z are the elements of the inputs. */

#define ARGS char *const *p, int64_t first, int64_t n, const void *params
#define UNUSED (void)first, (void)params
#define IN(type, i) ((const type *)(const void *)p[i])
#define OUT(type, i) ((type *)(void *)p[i])

#define UNARY_AS(type, op, EXPR)                               \
    static void R(op)(ARGS) {                                  \
        UNUSED;                                                \
        type *out = OUT(type, 0);                              \
        const real *a = IN(real, 1);                           \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { \
            real x = a[i];                                     \
            out[i] = (type)(EXPR);                             \
        }                                                      \
    }
#define BINARY_AS(type, op, EXPR)                              \
    static void R(op)(ARGS) {                                  \
        UNUSED;                                                \
        type *out = OUT(type, 0);                              \
        const real *a = IN(real, 1), *b = IN(real, 2);         \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) { \
            real x = a[i], y = b[i];                           \
            out[i] = (type)(EXPR);                             \
        }                                                      \
    }
#define UNARY(op, EXPR) UNARY_AS(real, op, EXPR)
#define BINARY(op, EXPR) BINARY_AS(real, op, EXPR)

BINARY(add, x + y)
BINARY(sub, x - y)
BINARY(mul, x *y)
BINARY(div, x / y)
BINARY(pow, R(libm_pow)(x, y))
BINARY(maximum, (x > y) | (x != x) ? x : y)
BINARY(minimum, (x < y) | (x != x) ? x : y)
BINARY_AS(uint8_t, eq, x == y)
BINARY_AS(uint8_t, ne, x != y)
BINARY_AS(uint8_t, lt, x < y)
BINARY_AS(uint8_t, le, x <= y)
BINARY_AS(uint8_t, gt, x > y)
BINARY_AS(uint8_t, ge, x >= y)

UNARY(neg, -x)
UNARY(abs, R(absolute)(x))
UNARY(sign, x > 0 ? (real)1 : x < 0 ? (real)-1 : x != x ? x : (real)0)
UNARY(exp, R(mci_exp)(x))
UNARY(log, R(mci_log)(x))
UNARY(sqrt, R(root)(x))
UNARY(rsqrt, 1 / R(root)(x))
UNARY(tanh, R(mci_tanh)(x))
UNARY(sigmoid, R(mci_sigmoid)(x))
UNARY(relu, x < 0 ? (real)0 : x)
UNARY(silu, x *R(mci_sigmoid)(x))
UNARY(floor, R(down)(x))
UNARY(ceil, R(up)(x))
UNARY(round, R(nearest)(x))
UNARY_AS(uint8_t, isnan, x != x)
UNARY_AS(uint8_t, isfinite, R(absolute)(x) < (real)INFINITY)
UNARY_AS(uint8_t, logical_not, x == 0)

/* 0.5 x (1 + tanh(u)) = x sigmoid(2u), 2u = 2 sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks & Gimpel
 * 2016). x is cut off where the sigmoid has long become 0 or 1, so that its cube stays finite. */
static inline real R(gelu_gate)(real x, real *slope) {
    const real a = (real)1.5957691216057308, b = (real)0.044715;
    real c = x > 40 ? (real)40 : x;
    c = c < -40 ? (real)-40 : c;
    *slope = a * (1 + 3 * b * c * c);
    return R(mci_sigmoid)(a * (c + b * c * c * c));
}
static inline real R(gelu_value)(real x) {
    real slope;
    return x * R(gelu_gate)(x, &slope);
}
static inline real R(gelu_slope)(real x) {
    real slope, s = R(gelu_gate)(x, &slope);
    return s + x * (s * (1 - s) * slope);
}
static inline real R(silu_slope)(real x) {
    real s = R(mci_sigmoid)(x);
    return s + x * (s * (1 - s));
}
UNARY(gelu, R(gelu_value)(x))
BINARY(relu_backward, y > 0 ? x : y != y ? y : (real)0)
BINARY(gelu_backward, x *R(gelu_slope)(y))
BINARY(silu_backward, x *R(silu_slope)(y))
BINARY(swiglu, x *R(mci_sigmoid)(x) * y)

/* out: dgate, dup; in: dy, gate, up */
static void R(swiglu_backward)(ARGS) {
    UNUSED;
    real *dgate = OUT(real, 0), *dup = OUT(real, 1);
    const real *dy = IN(real, 2), *gate = IN(real, 3), *up = IN(real, 4);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        real d = dy[i], x = gate[i], u = up[i], s = R(mci_sigmoid)(x);
        dgate[i] = d * u * (s + x * (s * (1 - s)));
        dup[i] = d * (x * s);
    }
}

static void R(clamp)(ARGS) {
    const mci_clamp_params *q = params;
    const real low = (real)q->low, high = (real)q->high, *a = IN(real, 1);
    real *out = OUT(real, 0);
    (void)first;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        real x = a[i] < low ? low : a[i];
        out[i] = x > high ? high : x;
    }
}

#undef ARGS
#undef UNUSED
#undef IN
#undef OUT
#undef UNARY_AS
#undef BINARY_AS
#undef UNARY
#undef BINARY
