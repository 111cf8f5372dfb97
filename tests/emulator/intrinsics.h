/* intrinsics.h: CUDA's vector types, conversions, bit and rounding intrinsics, fast functions and
 * atomics, as plain C++. The fast functions are the exact ones; what CUDA leaves undefined or makes
 * coarse on purpose (__fdividef of a huge divisor, conversions out of range) follows CUDA.
 *
 * Names that C libraries declare too (__expf, sinpif, ...) are macros, so that they meet nobody.
 */
#ifndef MCU_EMULATOR_INTRINSICS_H
#define MCU_EMULATOR_INTRINSICS_H

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* -- vector types
 * ------------------------------------------------------------------------------------- */

#define MCU_EMULATOR_VECTORS(type, name, align2, align4)            \
    struct name##1 {                                                \
        type x;                                                     \
    };                                                              \
    struct alignas(align2) name##2 {                                \
        type x, y;                                                  \
    };                                                              \
    struct name##3 {                                                \
        type x, y, z;                                               \
    };                                                              \
    struct alignas(align4) name##4 {                                \
        type x, y, z, w;                                            \
    };                                                              \
    inline name##1 make_##name##1(type x) {                         \
        return {x};                                                 \
    }                                                               \
    inline name##2 make_##name##2(type x, type y) {                 \
        return {x, y};                                              \
    }                                                               \
    inline name##3 make_##name##3(type x, type y, type z) {         \
        return {x, y, z};                                           \
    }                                                               \
    inline name##4 make_##name##4(type x, type y, type z, type w) { \
        return {x, y, z, w};                                        \
    }
MCU_EMULATOR_VECTORS(signed char, char, 2, 4)
MCU_EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
MCU_EMULATOR_VECTORS(short, short, 4, 8)
MCU_EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
MCU_EMULATOR_VECTORS(int, int, 8, 16)
MCU_EMULATOR_VECTORS(unsigned, uint, 8, 16)
MCU_EMULATOR_VECTORS(float, float, 8, 16)
MCU_EMULATOR_VECTORS(long long, longlong, 16, 16)
MCU_EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)
MCU_EMULATOR_VECTORS(double, double, 16, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return uint3{x, y, z}; }
};

/* -- bits
 * --------------------------------------------------------------------------------------------- */

template <typename To, typename From>
inline To mcu_emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "equal sizes");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __int_as_float(int x) {
    return mcu_emulator_bits<float>(x);
}
inline int __float_as_int(float x) {
    return mcu_emulator_bits<int>(x);
}
inline float __uint_as_float(unsigned x) {
    return mcu_emulator_bits<float>(x);
}
inline unsigned __float_as_uint(float x) {
    return mcu_emulator_bits<unsigned>(x);
}
inline double __longlong_as_double(long long x) {
    return mcu_emulator_bits<double>(x);
}
inline long long __double_as_longlong(double x) {
    return mcu_emulator_bits<long long>(x);
}

inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
    return __builtin_popcountll(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline int __clzll(long long x) {
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
    return __builtin_ffsll(x);
}
inline unsigned long long __brevll(unsigned long long x) {
    unsigned long long y = 0;
    for (int i = 0; i < 64; i++) y = y << 1 | (x >> i & 1U);
    return y;
}
inline unsigned __brev(unsigned x) {
    return (unsigned)(__brevll(x) >> 32);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
inline int __mulhi(int a, int b) {
    return (int)((long long)a * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline long long __mul64hi(long long a, long long b) {
    return (long long)((__int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((unsigned long long)high << 32 | low) << (n & 31U) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (n & 31U));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long all = (unsigned long long)b << 32 | a;
    unsigned y = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> 4 * i & 15U, byte = (unsigned)(all >> 8 * (pick & 7U)) & 255U;
        if (pick & 8U) byte = byte & 128U ? 255U : 0U;
        y |= byte << 8 * i;
    }
    return y;
}

/* -- numbers
 * ------------------------------------------------------------------------------------------ */

/* x, already integral, as an integer: NaN is 0 (INT64_MIN from a double), the rest saturates. */
template <typename To, typename From>
inline To mcu_emulator_saturate(From x) {
    if (x != x) return sizeof(To) == 8 && sizeof(From) == 8 ? (To)(1ULL << 63) : (To)0;
    const bool is_signed = (To)-1 < (To)0;
    const int bits = (int)sizeof(To) * 8;
    From beyond = (From)ldexp(1.0, is_signed ? bits - 1 : bits);
    if (x >= beyond) return (To)(is_signed ? ~0ULL >> (65 - bits) : ~0ULL >> (64 - bits));
    if (x < (is_signed ? -beyond : (From)0)) return (To)(is_signed ? 1ULL << (bits - 1) : 0);
    return (To)x;
}
#define MCU_EMULATOR_TO(name, to, from)             \
    inline to __##name##_rn(from x) {               \
        return mcu_emulator_saturate<to>(rint(x));  \
    }                                               \
    inline to __##name##_rz(from x) {               \
        return mcu_emulator_saturate<to>(trunc(x)); \
    }                                               \
    inline to __##name##_rd(from x) {               \
        return mcu_emulator_saturate<to>(floor(x)); \
    }                                               \
    inline to __##name##_ru(from x) {               \
        return mcu_emulator_saturate<to>(ceil(x));  \
    }
MCU_EMULATOR_TO(float2int, int, float)
MCU_EMULATOR_TO(float2uint, unsigned, float)
MCU_EMULATOR_TO(float2ll, long long, float)
MCU_EMULATOR_TO(float2ull, unsigned long long, float)
MCU_EMULATOR_TO(double2int, int, double)
MCU_EMULATOR_TO(double2uint, unsigned, double)
MCU_EMULATOR_TO(double2ll, long long, double)
MCU_EMULATOR_TO(double2ull, unsigned long long, double)

#define MCU_EMULATOR_FROM(name, to, from) \
    inline to __##name##_rn(from x) {     \
        return (to)x;                     \
    }
MCU_EMULATOR_FROM(int2float, float, int)
MCU_EMULATOR_FROM(uint2float, float, unsigned)
MCU_EMULATOR_FROM(ll2float, float, long long)
MCU_EMULATOR_FROM(ull2float, float, unsigned long long)
MCU_EMULATOR_FROM(ll2double, double, long long)
MCU_EMULATOR_FROM(ull2double, double, unsigned long long)
MCU_EMULATOR_FROM(double2float, float, double)
inline double __int2double_rn(int x) {
    return x;
}
inline double __uint2double_rn(unsigned x) {
    return x;
}

/* Rounded to nearest and never contracted; the emulator is compiled with -ffp-contract=off. */
#define MCU_EMULATOR_ARITHMETIC(letter, type)        \
    inline type __##letter##add_rn(type a, type b) { \
        return a + b;                                \
    }                                                \
    inline type __##letter##sub_rn(type a, type b) { \
        return a - b;                                \
    }                                                \
    inline type __##letter##mul_rn(type a, type b) { \
        return a * b;                                \
    }                                                \
    inline type __##letter##div_rn(type a, type b) { \
        return a / b;                                \
    }                                                \
    inline type __##letter##rcp_rn(type a) {         \
        return (type)1 / a;                          \
    }
MCU_EMULATOR_ARITHMETIC(f, float)
MCU_EMULATOR_ARITHMETIC(d, double)
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline double __dsqrt_rn(double x) {
    return sqrt(x);
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}
inline float __saturatef(float x) {
    return x >= 1.0F ? 1.0F : x > 0.0F ? x : 0.0F; /* NaN is 0 */
}
inline float mcu_emulator_divide(float a, float b) {
    return fabsf(b) > 0x1p126F && !isinf(b) ? (isinf(a) ? NAN : 0.0F * a) : a / b;
}
inline float mcu_emulator_rsqrtf(float x) {
    return (float)(1.0 / sqrt((double)x));
}
inline double mcu_emulator_rsqrt(double x) {
    return 1.0 / sqrt(x);
}

/* sin and cos of pi x, exact at multiples of a half: x is first brought into [-1/4, 1/4] and a
 * quarter turn q. */
inline void mcu_emulator_sincospi(double x, double *s, double *c) {
    const double pi = 3.14159265358979323846;
    double halves = rint(2 * x), r = x - halves / 2;
    int q = isfinite(x) ? (int)((long long)fmod(halves, 4.0) & 3) : 0;
    double sr = sin(pi * r), cr = cos(pi * r);
    *s = q == 0 ? sr : q == 1 ? cr : q == 2 ? -sr : -cr;
    *c = q == 0 ? cr : q == 1 ? -sr : q == 2 ? -cr : sr;
}
inline void mcu_emulator_sincospif(float x, float *s, float *c) {
    double ds, dc;
    mcu_emulator_sincospi(x, &ds, &dc);
    *s = (float)ds;
    *c = (float)dc;
}
inline double mcu_emulator_sinpi(double x) {
    double s, c;
    mcu_emulator_sincospi(x, &s, &c);
    return s;
}
inline double mcu_emulator_cospi(double x) {
    double s, c;
    mcu_emulator_sincospi(x, &s, &c);
    return c;
}
inline void mcu_emulator_sincosf(float x, float *s, float *c) {
    *s = sinf(x);
    *c = cosf(x);
}
#define __fdividef(a, b) mcu_emulator_divide(a, b)
#define fdividef(a, b) ((float)(a) / (float)(b))
#define rsqrtf(x) mcu_emulator_rsqrtf(x)
#define rsqrt(x) mcu_emulator_rsqrt(x)
#define __frsqrt_rn(x) mcu_emulator_rsqrtf(x)
#define sincospi(x, s, c) mcu_emulator_sincospi(x, s, c)
#define sincospif(x, s, c) mcu_emulator_sincospif(x, s, c)
#define sinpi(x) mcu_emulator_sinpi(x)
#define cospi(x) mcu_emulator_cospi(x)
#define sinpif(x) ((float)mcu_emulator_sinpi((float)(x)))
#define cospif(x) ((float)mcu_emulator_cospi((float)(x)))
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0F, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __sincosf(x, s, c) mcu_emulator_sincosf(x, s, c)
#define __powf(x, y) powf(x, y)

#define MCU_EMULATOR_MIN_MAX(to, a_type, b_type) \
    inline to min(a_type a, b_type b) {          \
        return (to)a < (to)b ? (to)a : (to)b;    \
    }                                            \
    inline to max(a_type a, b_type b) {          \
        return (to)a > (to)b ? (to)a : (to)b;    \
    }
#define MCU_EMULATOR_MIN_MAX_OF(type)                                 \
    MCU_EMULATOR_MIN_MAX(type, type, type)                            \
    MCU_EMULATOR_MIN_MAX(unsigned type, unsigned type, unsigned type) \
    MCU_EMULATOR_MIN_MAX(unsigned type, type, unsigned type)          \
    MCU_EMULATOR_MIN_MAX(unsigned type, unsigned type, type)
MCU_EMULATOR_MIN_MAX_OF(int)
MCU_EMULATOR_MIN_MAX_OF(long)
MCU_EMULATOR_MIN_MAX_OF(long long)
/* of a NaN and a number: the number */
inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}
inline double min(double a, double b) {
    return fmin(a, b);
}
inline double max(double a, double b) {
    return fmax(a, b);
}
inline double min(float a, double b) {
    return fmin((double)a, b);
}
inline double min(double a, float b) {
    return fmin(a, (double)b);
}
inline double max(float a, double b) {
    return fmax((double)a, b);
}
inline double max(double a, float b) {
    return fmax(a, (double)b);
}

/* -- memory
 * ------------------------------------------------------------------------------------------- */

#define MCU_EMULATOR_LOAD(name) \
    template <typename T>       \
    inline T name(const T *p) { \
        return *p;              \
    }
#define MCU_EMULATOR_STORE(name)  \
    template <typename T>         \
    inline void name(T *p, T x) { \
        *p = x;                   \
    }
MCU_EMULATOR_LOAD(__ldg)
MCU_EMULATOR_LOAD(__ldca)
MCU_EMULATOR_LOAD(__ldcg)
MCU_EMULATOR_LOAD(__ldcs)
MCU_EMULATOR_LOAD(__ldlu)
MCU_EMULATOR_LOAD(__ldcv)
MCU_EMULATOR_STORE(__stwb)
MCU_EMULATOR_STORE(__stcg)
MCU_EMULATOR_STORE(__stcs)
MCU_EMULATOR_STORE(__stwt)

inline void __threadfence_block() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_system() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Each gives the value before. There are none for floats: their sums would have no fixed order. */
template <typename T, typename F>
inline T mcu_emulator_atomic(T *p, F change) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, change(old), false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED)) {
    }
    return old;
}
#define MCU_EMULATOR_ATOMIC(name, type, operation)                                  \
    inline type name(type *p, type x) {                                             \
        return mcu_emulator_atomic(p, [x](type old) -> type { return operation; }); \
    }                                                                               \
    inline type name##_block(type *p, type x) {                                     \
        return name(p, x);                                                          \
    }                                                                               \
    inline type name##_system(type *p, type x) {                                    \
        return name(p, x);                                                          \
    }
#define MCU_EMULATOR_ATOMICS(type)                                                               \
    MCU_EMULATOR_ATOMIC(atomicMax, type, old > x ? old : x)                                      \
    MCU_EMULATOR_ATOMIC(atomicMin, type, old < x ? old : x)                                      \
    MCU_EMULATOR_ATOMIC(atomicExch, type, ((void)old, x))                                        \
    MCU_EMULATOR_ATOMIC(atomicAnd, type, old &x)                                                 \
    MCU_EMULATOR_ATOMIC(atomicOr, type, old | x)                                                 \
    MCU_EMULATOR_ATOMIC(atomicXor, type, old ^ x)                                                \
    inline type atomicCAS(type *p, type expected, type x) {                                      \
        __atomic_compare_exchange_n(p, &expected, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        return expected;                                                                         \
    }                                                                                            \
    inline type atomicCAS_system(type *p, type expected, type x) {                               \
        return atomicCAS(p, expected, x);                                                        \
    }
MCU_EMULATOR_ATOMICS(int)
MCU_EMULATOR_ATOMICS(unsigned)
MCU_EMULATOR_ATOMICS(unsigned long long)
MCU_EMULATOR_ATOMIC(atomicMax, long long, old > x ? old : x)
MCU_EMULATOR_ATOMIC(atomicMin, long long, old < x ? old : x)
MCU_EMULATOR_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)x))
MCU_EMULATOR_ATOMIC(atomicAdd, unsigned, old + x)
MCU_EMULATOR_ATOMIC(atomicAdd, unsigned long long, old + x)
MCU_EMULATOR_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)x))
MCU_EMULATOR_ATOMIC(atomicSub, unsigned, old - x)
MCU_EMULATOR_ATOMIC(atomicInc, unsigned, old >= x ? 0U : old + 1U)
MCU_EMULATOR_ATOMIC(atomicDec, unsigned, old == 0U || old > x ? x : old - 1U)

inline long long clock64() {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000000000LL + now.tv_nsec;
}

#endif
