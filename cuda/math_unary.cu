/* math_unary.cu: elementwise ops of one operand, their derivatives, clamp, and swiglu.
 *
 * Formulas as in core/cpu/math_real.h; gelu in its tanh form, 0.5 x (1 + tanh(u)) = x sigmoid(2u)
 * with u = sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks & Gimpel 2016). The sigmoid of bfloat16 and
 * half values is made of the hardware's exponential and reciprocal, a few float32 roundings, which
 * their own rounding hides and without which gelu and swiglu would be bound by arithmetic; float32
 * has the exact functions. swiglu works on the two halves of x's rows as two operands.
 */
#include "elementwise.cuh"

namespace {

__device__ inline float exponential(float x) {
    return expf(x);
}
__device__ inline double exponential(double x) {
    return exp(x);
}
__device__ inline float logarithm(float x) {
    return logf(x);
}
__device__ inline double logarithm(double x) {
    return log(x);
}
__device__ inline float root(float x) {
    return sqrtf(x);
}
__device__ inline double root(double x) {
    return sqrt(x);
}
__device__ inline float hyperbolic(float x) {
    return tanhf(x);
}
__device__ inline double hyperbolic(double x) {
    return tanh(x);
}
__device__ inline float sine(float x) {
    return sinf(x);
}
__device__ inline double sine(double x) {
    return sin(x);
}
__device__ inline float cosine(float x) {
    return cosf(x);
}
__device__ inline double cosine(double x) {
    return cos(x);
}
__device__ inline float magnitude(float x) {
    return fabsf(x);
}
__device__ inline double magnitude(double x) {
    return fabs(x);
}
__device__ inline float down(float x) {
    return floorf(x);
}
__device__ inline double down(double x) {
    return floor(x);
}
__device__ inline float up(float x) {
    return ceilf(x);
}
__device__ inline double up(double x) {
    return ceil(x);
}
__device__ inline float nearest(float x) {
    return rintf(x);
}
__device__ inline double nearest(double x) {
    return rint(x);
}

/* 1 / (1 + e^-x), for an x that came from a T. */
template <typename T>
__device__ inline wide_t<T> sigmoid(wide_t<T> x) {
    typedef wide_t<T> R;
    if constexpr (sizeof(T) == 2) {
        float e = __expf(-magnitude(x));
        return __fdividef(x < 0 ? e : 1.0f, 1.0f + e);
    } else {
        R e = exponential(-magnitude(x));
        return (x < 0 ? e : (R)1) / (1 + e);
    }
}

/* sigmoid(2u) and the slope of 2u. x is cut off where the sigmoid has long become 0 or 1, so that
 * its cube stays finite. */
template <typename T>
__device__ inline wide_t<T> gelu_gate(wide_t<T> x, wide_t<T> *slope) {
    typedef wide_t<T> R;
    const R a = (R)1.5957691216057308, b = (R)0.044715;
    R c = x > 40 ? (R)40 : x;
    c = c < -40 ? (R)-40 : c;
    *slope = a * (1 + 3 * b * c * c);
    return sigmoid<T>(a * (c + b * c * c * c));
}

template <int code, typename T>
__device__ inline wide_t<T> unary(wide_t<T> x) {
    typedef wide_t<T> R;
    if constexpr (code == MCI_OP_neg) return -x;
    if constexpr (code == MCI_OP_abs) return magnitude(x);
    if constexpr (code == MCI_OP_sign) return x > 0 ? (R)1 : x < 0 ? (R)-1 : x != x ? x : (R)0;
    if constexpr (code == MCI_OP_exp) return exponential(x);
    if constexpr (code == MCI_OP_log) return logarithm(x);
    if constexpr (code == MCI_OP_sqrt) return root(x);
    if constexpr (code == MCI_OP_rsqrt) return 1 / root(x);
    if constexpr (code == MCI_OP_sin) return sine(x);
    if constexpr (code == MCI_OP_cos) return cosine(x);
    if constexpr (code == MCI_OP_tanh) return hyperbolic(x);
    if constexpr (code == MCI_OP_sigmoid) return sigmoid<T>(x);
    if constexpr (code == MCI_OP_relu) return x < 0 ? (R)0 : x;
    if constexpr (code == MCI_OP_gelu) {
        R slope;
        return x * gelu_gate<T>(x, &slope);
    }
    if constexpr (code == MCI_OP_silu) return x * sigmoid<T>(x);
    if constexpr (code == MCI_OP_floor) return down(x);
    if constexpr (code == MCI_OP_ceil) return up(x);
    return nearest(x);
}

/* dy times the derivative at x. */
template <int code, typename T>
__device__ inline wide_t<T> backward(wide_t<T> dy, wide_t<T> x) {
    typedef wide_t<T> R;
    if constexpr (code == MCI_OP_relu_backward) return x > 0 ? dy : x != x ? x : (R)0;
    if constexpr (code == MCI_OP_gelu_backward) {
        R slope, s = gelu_gate<T>(x, &slope);
        return dy * (s + x * (s * (1 - s) * slope));
    }
    R s = sigmoid<T>(x);
    return dy * (s + x * (s * (1 - s)));
}

template <typename T, int n_in, int n_out = 1>
struct same_types {
    typedef T Out;
    typedef T A;
    typedef T B;
    typedef T C;
    static const int inputs = n_in, outputs = n_out;
};

template <int code, typename T>
struct unary_one : same_types<T, 1> {
    __device__ T operator()(T a) const { return lower<T>(unary<code, T>(lift(a))); }
};

template <typename T>
struct unary_any : same_types<T, 1> {
    int code;
    __device__ T operator()(T a) const {
        wide_t<T> x = lift(a), y;
#define UNARY_CASE(op)                \
    case MCI_OP_##op:                 \
        y = unary<MCI_OP_##op, T>(x); \
        break;
        switch (code) {
            UNARY_CASE(neg)
            UNARY_CASE(abs)
            UNARY_CASE(sign)
            UNARY_CASE(exp)
            UNARY_CASE(log)
            UNARY_CASE(sqrt)
            UNARY_CASE(rsqrt)
            UNARY_CASE(sin)
            UNARY_CASE(cos)
            UNARY_CASE(tanh)
            UNARY_CASE(sigmoid)
            UNARY_CASE(relu)
            UNARY_CASE(gelu)
            UNARY_CASE(silu)
            UNARY_CASE(floor)
            UNARY_CASE(ceil)
            default:
                y = unary<MCI_OP_round, T>(x);
                break;
        }
#undef UNARY_CASE
        return lower<T>(y);
    }
};

template <typename T>
struct integer_any : same_types<T, 1> {
    int code;
    __device__ T operator()(T a) const {
        int64_t x = lift(a), negative = (int64_t)(0 - (uint64_t)x);
        return lower<T>(code == MCI_OP_sign  ? (x > 0) - (x < 0)
                        : code == MCI_OP_neg ? negative
                        : x < 0              ? negative
                                             : x);
    }
};

template <int code, typename T>
struct backward_one : same_types<T, 2> {
    __device__ T operator()(T dy, T x) const {
        return lower<T>(backward<code, T>(lift(dy), lift(x)));
    }
};

/* isnan, isfinite, logical_not */
template <typename T>
struct test_any : same_types<T, 1> {
    typedef mcu_bool Out;
    int code;
    __device__ mcu_bool operator()(T a) const {
        wide_t<T> x = lift(a);
        bool holds = code == MCI_OP_isnan      ? x != x
                     : code == MCI_OP_isfinite ? x - x == 0 /* inf - inf is NaN */
                                               : x == 0;
        return mcu_bool{(uint8_t)holds};
    }
};

template <typename T>
struct clamp_to : same_types<T, 1> {
    wide_t<T> low, high;
    __device__ T operator()(T a) const {
        wide_t<T> x = lift(a);
        x = x < low ? low : x;
        return lower<T>(x > high ? high : x);
    }
};

template <typename T>
struct swiglu_op : same_types<T, 2> {
    __device__ T operator()(T gate, T up) const {
        wide_t<T> x = lift(gate);
        return lower<T>(x * sigmoid<T>(x) * lift(up));
    }
};

/* Gives dgate; dup goes to *second. */
template <typename T>
struct swiglu_backward_op : same_types<T, 3, 2> {
    __device__ T operator()(T dy, T gate, T up, T *second) const {
        wide_t<T> d = lift(dy), x = lift(gate), s = sigmoid<T>(x);
        *second = lower<T>(d * (x * s));
        return lower<T>(d * lift(up) * (s + x * (s * (1 - s))));
    }
};

template <int code>
mc_status unary_float(mci_exec *exec, const char *name, const mci_view *const *t) {
    return mcu_for_float(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        return each(exec, name, unary_one<code, T>(), unary_any<T>{{}, code}, t);
    });
}

template <int code>
mc_status unary_number(mci_exec *exec, const char *name, const mci_view *const *t) {
    return mcu_for_number(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if constexpr (is_integer<wide_t<T>>::value) {
            integer_any<T> op = {{}, code};
            return each(exec, name, op, op, t);
        } else {
            return each(exec, name, unary_one<code, T>(), unary_any<T>{{}, code}, t);
        }
    });
}

template <int code>
mc_status backward_float(mci_exec *exec, const char *name, const mci_view *const *t) {
    return mcu_for_float(t[1]->dtype, [&](auto tag) {
        backward_one<code, decltype(tag)> op;
        return each(exec, name, op, op, t);
    });
}

mc_status test(mci_exec *exec, const char *name, int code, const mci_view *const *t) {
    return for_ordered(t[1]->dtype, [&](auto tag) {
        test_any<decltype(tag)> op = {{}, code};
        return each(exec, name, op, op, t);
    });
}

/* The gate (half = 0) or up (half = 1) part of v [.., 2I]. */
mci_view half_of(const mci_view *v, int half, int64_t size) {
    mci_view h = *v;
    int last = v->ndim - 1;
    h.shape[last] /= 2;
    h.data = static_cast<char *>(v->data) + half * h.shape[last] * v->stride[last] * size;
    return h;
}

}  // namespace

#define UNARY_OP(op, run)                                                        \
    mc_status mcu_##op(mci_exec *exec, const mci_view *const *t, const void *) { \
        return run<MCI_OP_##op>(exec, #op, t);                                   \
    }
#define TEST_OP(op)                                                              \
    mc_status mcu_##op(mci_exec *exec, const mci_view *const *t, const void *) { \
        return test(exec, #op, MCI_OP_##op, t);                                  \
    }
UNARY_OP(neg, unary_number)
UNARY_OP(abs, unary_number)
UNARY_OP(sign, unary_number)
UNARY_OP(exp, unary_float)
UNARY_OP(log, unary_float)
UNARY_OP(sqrt, unary_float)
UNARY_OP(rsqrt, unary_float)
UNARY_OP(sin, unary_float)
UNARY_OP(cos, unary_float)
UNARY_OP(tanh, unary_float)
UNARY_OP(sigmoid, unary_float)
UNARY_OP(relu, unary_float)
UNARY_OP(gelu, unary_float)
UNARY_OP(silu, unary_float)
UNARY_OP(floor, unary_float)
UNARY_OP(ceil, unary_float)
UNARY_OP(round, unary_float)
UNARY_OP(relu_backward, backward_float)
UNARY_OP(gelu_backward, backward_float)
UNARY_OP(silu_backward, backward_float)
TEST_OP(isnan)
TEST_OP(isfinite)
TEST_OP(logical_not)

mc_status mcu_clamp(mci_exec *exec, const mci_view *const *t, const void *params) {
    const mci_clamp_params *p = static_cast<const mci_clamp_params *>(params);
    return mcu_for_number(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        clamp_to<T> op = {};
        if constexpr (is_integer<wide_t<T>>::value) {
            op.low = mci_f64_to_i64(p->low);
            op.high = mci_f64_to_i64(p->high);
        } else {
            op.low = (wide_t<T>)p->low;
            op.high = (wide_t<T>)p->high;
        }
        return each(exec, "clamp", op, op, t);
    });
}

/* t: y [.., I], x [.., 2I]. */
mc_status mcu_swiglu(mci_exec *exec, const mci_view *const *t, const void *) {
    if (mci_numel(t[0]) == 0) return MC_OK;
    return mcu_for_float(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        mci_view gate = half_of(t[1], 0, sizeof(T)), up = half_of(t[1], 1, sizeof(T));
        const mci_view *v[3] = {t[0], &gate, &up};
        return each(exec, "swiglu", swiglu_op<T>(), swiglu_op<T>(), v);
    });
}

/* t: dx [.., 2I], dy [.., I], x [.., 2I]. */
mc_status mcu_swiglu_backward(mci_exec *exec, const mci_view *const *t, const void *) {
    if (mci_numel(t[0]) == 0) return MC_OK;
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        mci_view dgate = half_of(t[0], 0, sizeof(T)), dup = half_of(t[0], 1, sizeof(T));
        mci_view gate = half_of(t[2], 0, sizeof(T)), up = half_of(t[2], 1, sizeof(T));
        const mci_view *v[4] = {&dgate, t[1], &gate, &up};
        swiglu_backward_op<T> op;
        return each(exec, "swiglu_backward", op, op, v, T(), dup.data);
    });
}
