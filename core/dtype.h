/* dtype.h: the table of dtypes and the conversions of single elements.
 *
 * Every narrowing conversion rounds once, to nearest even, from the source's own value: a double
 * goes to a 16- or 8-bit float through mci_f32_odd, a float32 rounded to odd, whose last bit still
 * tells that something was lost (Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded
 * sums: proved algorithms using rounding to odd"). All functions are branch-free so that loops over
 * them vectorise. Formats: bfloat16; IEEE 754 binary16; OCP 8-bit floating point (OFP8) rev. 1.0
 * for E4M3 and E5M2; OCP microscaling formats (MX) rev. 1.0 for E8M0.
 */
#ifndef MCI_DTYPE_H
#define MCI_DTYPE_H

#include <stdint.h>
#include <string.h>

#include "inline.h"
#include "mascon.h"

/* X(code, name, C type of storage, kind) in the order of the codes */
#define MCI_DTYPES(X)                                    \
    X(MC_FLOAT64, "float64", double, FLOAT)              \
    X(MC_FLOAT32, "float32", float, FLOAT)               \
    X(MC_FLOAT16, "float16", uint16_t, FLOAT)            \
    X(MC_BFLOAT16, "bfloat16", uint16_t, FLOAT)          \
    X(MC_INT64, "int64", int64_t, INT)                   \
    X(MC_INT32, "int32", int32_t, INT)                   \
    X(MC_UINT8, "uint8", uint8_t, INT)                   \
    X(MC_BOOL, "bool", uint8_t, BOOL)                    \
    X(MC_FLOAT8_E4M3FN, "float8_e4m3fn", uint8_t, STORE) \
    X(MC_FLOAT8_E5M2, "float8_e5m2", uint8_t, STORE)     \
    X(MC_FLOAT8_E8M0FNU, "float8_e8m0fnu", uint8_t, STORE)

/* FLOAT: float64, 32, 16 and bfloat16. STORE: the 8-bit floats, no arithmetic. */
enum { MCI_KIND_FLOAT, MCI_KIND_INT, MCI_KIND_BOOL, MCI_KIND_STORE, MCI_KIND_NONE };

typedef struct mci_dtype_info {
    const char *name;
    int size, kind;
} mci_dtype_info;

extern const mci_dtype_info mci_dtypes[MC_DTYPE_COUNT];

static inline int mci_dtype_known(int dtype) {
    return dtype >= 0 && dtype < MC_DTYPE_COUNT;
}
static inline int mci_dtype_kind(int dtype) {
    return mci_dtype_known(dtype) ? mci_dtypes[dtype].kind : MCI_KIND_NONE;
}

MCI_INLINE uint32_t mci_f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
MCI_INLINE float mci_bits_f32(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
MCI_INLINE uint64_t mci_f64_bits(double x) {
    uint64_t u;
    memcpy(&u, &x, 8);
    return u;
}

/* x as a float32: exact, or of its two neighbours the one whose last bit is 1. */
MCI_INLINE float mci_f32_odd(double x) {
    float f = (float)x;
    uint32_t u = mci_f32_bits(f);
    double back = (double)f, ax = x < 0 ? -x : x, af = back < 0 ? -back : back;
    uint32_t move = af > ax ? UINT32_MAX : 1U;
    return mci_bits_f32(u + (((back != x) & (x == x) & ((u & 1U) == 0)) ? move : 0U));
}

/* A double that rounds to every shorter float as x itself does. */
MCI_INLINE double mci_i64_sticky(int64_t x) {
    uint64_t sign = (uint64_t)(x >> 63), u = ((uint64_t)x ^ sign) - sign;
    uint64_t odd = ((u >> 11) | ((u & 2047U) != 0)) << 11;
    u = u >> 53 ? odd : u;
    double d = (double)u;
    return x < 0 ? -d : d;
}

/* -- bfloat16: the upper half of a float32 ----------------------------------------------------- */

MCI_INLINE float mci_bf16_to_f32(uint16_t h) {
    return mci_bits_f32((uint32_t)h << 16);
}
MCI_INLINE uint16_t mci_f32_to_bf16(float x) {
    uint32_t u = mci_f32_bits(x);
    uint32_t rounded = (u + 0x7FFFU + ((u >> 16) & 1U)) >> 16;
    uint32_t quiet = (u >> 16) | 0x40U;
    return (uint16_t)((u & 0x7FFFFFFFU) > 0x7F800000U ? quiet : rounded);
}

/* -- floats with m mantissa bits and exponent bias b, m <= 10, b <= 15 ------------------------- */

/* Magnitude code of |x|, by its bits a < 2^31: codes from `top` on become `top`, NaN `nan`. */
MCI_INLINE uint32_t mci_small_encode(uint32_t a, int m, int b, uint32_t top, uint32_t nan) {
    uint32_t odd = (a >> (23 - m)) & 1U;
    uint32_t normal = (a - ((uint32_t)(127 - b) << 23) + (1U << (22 - m)) - 1U + odd) >> (23 - m);
    /* the spacing of floats at `magic` is the format's smallest subnormal: the sum rounds there */
    uint32_t magic = (uint32_t)(151 - b - m) << 23;
    uint32_t subnormal = mci_f32_bits(mci_bits_f32(a) + mci_bits_f32(magic)) - magic;
    uint32_t code = a < (uint32_t)(128 - b) << 23 ? subnormal : normal;
    code = code > top ? top : code;
    return a > 0x7F800000U ? nan | ((a >> (23 - m)) & ((1U << m) - 1U)) : code;
}
/* Bits of the float32 with magnitude code c; codes from `special` on are inf and NaN. */
MCI_INLINE uint32_t mci_small_decode(uint32_t c, int m, int b, uint32_t special) {
    uint32_t u = c << (23 - m), one = (uint32_t)(128 - b) << 23;
    uint32_t subnormal = mci_f32_bits(mci_bits_f32(u + one) - mci_bits_f32(one));
    uint32_t normal = u + ((uint32_t)(127 - b) << 23);
    uint32_t r = c < 1U << m ? subnormal : normal;
    return c >= special ? u | 0x7F800000U : r;
}

MCI_INLINE float mci_f16_to_f32(uint16_t h) {
    uint32_t c = h & 0x7FFFU;
    return mci_bits_f32(mci_small_decode(c, 10, 15, 0x7C00) | (uint32_t)(h & 0x8000U) << 16);
}
MCI_INLINE uint16_t mci_f32_to_f16(float x) {
    uint32_t u = mci_f32_bits(x);
    return (uint16_t)(mci_small_encode(u & 0x7FFFFFFFU, 10, 15, 0x7C00, 0x7E00) |
                      (u >> 16 & 0x8000U));
}
MCI_INLINE float mci_e5m2_to_f32(uint8_t h) {
    uint32_t c = h & 0x7FU;
    return mci_bits_f32(mci_small_decode(c, 2, 15, 0x7C) | (uint32_t)(h & 0x80U) << 24);
}
MCI_INLINE uint8_t mci_f32_to_e5m2(float x) {
    uint32_t u = mci_f32_bits(x);
    return (uint8_t)(mci_small_encode(u & 0x7FFFFFFFU, 2, 15, 0x7C, 0x7E) | (u >> 24 & 0x80U));
}
/* No infinity: S.1111.111 is NaN, 448 the largest; what rounds beyond it, infinities too, is NaN.
 */
MCI_INLINE float mci_e4m3_to_f32(uint8_t h) {
    uint32_t c = h & 0x7FU;
    return mci_bits_f32(mci_small_decode(c, 3, 7, 0x7F) | (uint32_t)(h & 0x80U) << 24);
}
MCI_INLINE uint8_t mci_f32_to_e4m3(float x) {
    uint32_t u = mci_f32_bits(x);
    return (uint8_t)(mci_small_encode(u & 0x7FFFFFFFU, 3, 7, 0x7F, 0x7F) | (u >> 24 & 0x80U));
}

/* -- e8m0fnu: 2^(code - 127), 0xFF is NaN ------------------------------------------------------ */

MCI_INLINE float mci_e8m0_to_f32(uint8_t h) {
    uint32_t u = h == 0 ? 0x400000U : (uint32_t)h << 23;
    return mci_bits_f32(h == 0xFF ? 0x7FC00000U : u);
}
/* The nearest power of two, halfway upwards (as ml_dtypes); positive values below 2^-127 give
 * 2^-127; zero, negative numbers, 1.5 * 2^127 and more, and NaN give NaN. */
MCI_INLINE uint8_t mci_f64_to_e8m0(double x) {
    uint64_t u = mci_f64_bits(x);
    int64_t code = (int64_t)((u + (UINT64_C(1) << 51)) >> 52) - 1023 + 127;
    code = code < 0 ? 0 : code;
    code = code > 254 ? 255 : code;
    return (uint8_t)(x > 0 ? code : 255);
}

/* -- float to integer: towards zero, saturating, NaN to 0 -------------------------------------- */

MCI_INLINE int64_t mci_f64_to_i64(double x) {
    double in = x >= -0x1p63 ? x : -0x1p63; /* NaN too; replaced below */
    int64_t i = in < 0x1p63 ? (int64_t)(in < 0x1p63 ? in : 0.0) : INT64_MAX;
    return x == x ? i : 0;
}
MCI_INLINE int32_t mci_f64_to_i32(double x) {
    double in = x > -2147483648.0 ? x : -2147483648.0;
    int32_t i = (int32_t)(in < 2147483647.0 ? in : 2147483647.0);
    return x == x ? i : 0;
}
MCI_INLINE uint8_t mci_f64_to_u8(double x) {
    double in = x > 0 ? x : 0;
    return (uint8_t)(int32_t)(in < 255 ? in : 255);
}

#endif
