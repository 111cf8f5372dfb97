/* math.cu: elementwise ops of two operands or of one and a number, comparisons, and where.
 *
 * Formulas as in core/cpu/math_real.h: bfloat16 and half compute in float32, integers in int64 and
 * wrap, NaN wins in maximum and minimum. elementwise.cuh says which thread has which element; each
 * float op has its own kernel over vectors, while integers, comparisons and the plain way choose
 * the op at run time. A number takes its tensor's dtype on the host.
 */
#include "convert.cuh"
#include "elementwise.cuh"

namespace {

__device__ inline float power(float x, float y) {
    return powf(x, y);
}
__device__ inline double power(double x, double y) {
    return pow(x, y);
}

template <int code>
__device__ inline int64_t combine(int64_t x, int64_t y) {
    if constexpr (code == MCI_OP_add) return (int64_t)((uint64_t)x + (uint64_t)y);
    if constexpr (code == MCI_OP_sub) return (int64_t)((uint64_t)x - (uint64_t)y);
    if constexpr (code == MCI_OP_mul) return (int64_t)((uint64_t)x * (uint64_t)y);
    if constexpr (code == MCI_OP_maximum) return x > y ? x : y;
    return x < y ? x : y;
}

template <int code, typename R>
__device__ inline R combine(R x, R y) {
    if constexpr (code == MCI_OP_add) return x + y;
    if constexpr (code == MCI_OP_sub) return x - y;
    if constexpr (code == MCI_OP_mul) return x * y;
    if constexpr (code == MCI_OP_div) return x / y;
    if constexpr (code == MCI_OP_pow) return power(x, y);
    if constexpr (code == MCI_OP_maximum) return (x > y) | (x != x) ? x : y;
    return (x < y) | (x != x) ? x : y;
}

template <typename T>
struct binary_types {
    typedef T Out;
    typedef T A;
    typedef T B;
    typedef T C;
    static const int inputs = 2, outputs = 1;
};

/* reverse: the second operand stands first. */
template <int code, typename T>
struct binary_one : binary_types<T> {
    int reverse;
    __device__ T operator()(T a, T b) const {
        wide_t<T> x = lift(reverse ? b : a), y = lift(reverse ? a : b);
        return lower<T>(combine<code>(x, y));
    }
};

template <typename T>
struct binary_any : binary_types<T> {
    int code, reverse;
    __device__ T operator()(T a, T b) const {
        wide_t<T> x = lift(reverse ? b : a), y = lift(reverse ? a : b), z;
        switch (code) {
            case MCI_OP_add:
                z = combine<MCI_OP_add>(x, y);
                break;
            case MCI_OP_sub:
                z = combine<MCI_OP_sub>(x, y);
                break;
            case MCI_OP_mul:
                z = combine<MCI_OP_mul>(x, y);
                break;
            case MCI_OP_div:
                z = combine<MCI_OP_div>(x, y);
                break;
            case MCI_OP_pow:
                z = combine<MCI_OP_pow>(x, y);
                break;
            case MCI_OP_maximum:
                z = combine<MCI_OP_maximum>(x, y);
                break;
            default:
                z = combine<MCI_OP_minimum>(x, y);
                break;
        }
        return lower<T>(z);
    }
};

/* A comparison is the set of orders of which it holds. */
enum { LESS = 1, EQUAL = 2, GREATER = 4, UNORDERED = 8 };

template <typename T>
struct compare_any : binary_types<T> {
    typedef mcu_bool Out;
    unsigned orders;
    __device__ mcu_bool operator()(T a, T b) const {
        wide_t<T> x = lift(a), y = lift(b);
        unsigned order = x < y ? LESS : x > y ? GREATER : x == y ? EQUAL : UNORDERED;
        return mcu_bool{(uint8_t)((orders & order) != 0)};
    }
};

/* The views with b = NULL for a number, and that number as a T. */
template <typename T>
struct operands {
    const mci_view *v[3];
    T number;
    int reverse;
};

template <typename T>
operands<T> operands_of(const mci_view *const *t, const void *params) {
    const mci_scalar_params *p = static_cast<const mci_scalar_params *>(params);
    operands<T> o = {{t[0], t[1], t[2]}, T(), 0};
    if (p && p->has_scalar) {
        o.v[2] = nullptr;
        o.reverse = p->reverse;
        store_as<double>(&o.number, 0, t[1]->dtype, p->scalar);
    }
    return o;
}

template <int code>
struct binary_of {
    template <typename T>
    static mc_status run(mci_exec *exec, const char *name, const mci_view *const *t,
                         const void *params) {
        operands<T> o = operands_of<T>(t, params);
        binary_any<T> any = {{}, code, o.reverse};
        if constexpr (is_integer<wide_t<T>>::value) {
            return each(exec, name, any, any, o.v, o.number);
        } else {
            binary_one<code, T> one = {{}, o.reverse};
            return each(exec, name, one, any, o.v, o.number);
        }
    }
};

/* The other way round: what holds of (y, x). */
unsigned mirrored(unsigned orders) {
    return (orders & (EQUAL | UNORDERED)) | (orders & LESS ? GREATER : 0) |
           (orders & GREATER ? LESS : 0);
}

mc_status compare(mci_exec *exec, const char *name, unsigned orders, const mci_view *const *t,
                  const void *params) {
    return for_ordered(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        operands<T> o = operands_of<T>(t, params);
        compare_any<T> op = {{}, o.reverse ? mirrored(orders) : orders};
        return each(exec, name, op, op, o.v, o.number);
    });
}

/* Moves bits: T is an unsigned integer of the dtype's size. */
template <typename T>
struct choose {
    typedef T Out;
    typedef uint8_t A;
    typedef T B;
    typedef T C;
    static const int inputs = 3, outputs = 1;
    __device__ T operator()(uint8_t condition, T a, T b) const { return condition ? a : b; }
};

}  // namespace

#define FLOAT_OP(op)                                                                   \
    mc_status mcu_##op(mci_exec *exec, const mci_view *const *t, const void *params) { \
        return mcu_for_float(t[1]->dtype, [&](auto tag) {                              \
            return binary_of<MCI_OP_##op>::run<decltype(tag)>(exec, #op, t, params);   \
        });                                                                            \
    }
#define NUMBER_OP(op)                                                                  \
    mc_status mcu_##op(mci_exec *exec, const mci_view *const *t, const void *params) { \
        return mcu_for_number(t[1]->dtype, [&](auto tag) {                             \
            return binary_of<MCI_OP_##op>::run<decltype(tag)>(exec, #op, t, params);   \
        });                                                                            \
    }
#define ORDERED_OP(op)                                                                 \
    mc_status mcu_##op(mci_exec *exec, const mci_view *const *t, const void *params) { \
        return for_ordered(t[1]->dtype, [&](auto tag) {                                \
            return binary_of<MCI_OP_##op>::run<decltype(tag)>(exec, #op, t, params);   \
        });                                                                            \
    }
#define COMPARISON(op, orders)                                                         \
    mc_status mcu_##op(mci_exec *exec, const mci_view *const *t, const void *params) { \
        return compare(exec, #op, orders, t, params);                                  \
    }
NUMBER_OP(add)
NUMBER_OP(sub)
NUMBER_OP(mul)
FLOAT_OP(div)
FLOAT_OP(pow)
ORDERED_OP(maximum)
ORDERED_OP(minimum)
COMPARISON(eq, EQUAL)
COMPARISON(ne, LESS | GREATER | UNORDERED)
COMPARISON(lt, LESS)
COMPARISON(le, LESS | EQUAL)
COMPARISON(gt, GREATER)
COMPARISON(ge, GREATER | EQUAL)

/* t: out, condition (bool), a, b. */
mc_status mcu_where(mci_exec *exec, const mci_view *const *t, const void *) {
    switch (dtype_size(t[0]->dtype)) {
        case 1:
            return each(exec, "where", choose<uint8_t>(), choose<uint8_t>(), t);
        case 2:
            return each(exec, "where", choose<uint16_t>(), choose<uint16_t>(), t);
        case 4:
            return each(exec, "where", choose<uint32_t>(), choose<uint32_t>(), t);
        default:
            return each(exec, "where", choose<uint64_t>(), choose<uint64_t>(), t);
    }
}
