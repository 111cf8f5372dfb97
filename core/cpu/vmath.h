/* vmath.h: elementary functions of float32 without branches, so that loops over them vectorise, and
 * the float64 ones of libm under like names.
 *
 * Errors stay under 2 ulp (sigmoid: 2.5) over the whole range, subnormals included; NaN, infinities
 * and domain errors give what C99 annex F asks for. Polynomials are minimax (Remez) fits made for
 * this file; the reductions are those of Cody & Waite 1980, "Software Manual for the Elementary
 * Functions". No fused multiply-adds: every instruction set gives the same bits.
 */
#ifndef MCI_VMATH_H
#define MCI_VMATH_H

#include <math.h>

#include "dtype.h"

/* ln 2 in two parts; the first has 12 bits, so that its product with an exponent is exact */
#define MCI_LN2_HI 0x1.62ep-1f
#define MCI_LN2_LO 0x1.0bfbe8p-15f

static inline float mci_exp_f32(float x) {
    const float round = 0x1.8p23f; /* adding it rounds to an integer, held in the low bits */
    float c = x < -104.0f ? -104.0f : x;
    c = c > 89.0f ? 89.0f : c;
    float k = c * 0x1.715476p0f + round;
    int32_t q = (int32_t)(mci_f32_bits(k) - mci_f32_bits(round)), half = q >> 1;
    k -= round;
    float r = (c - k * MCI_LN2_HI) - k * MCI_LN2_LO;
    float p = 0x1.6d9e28p-10f + r * 0x1.a1c02p-13f;
    p = 0x1.111078p-7f + r * p;
    p = 0x1.555478p-5f + r * p;
    p = 0x1.555556p-3f + r * p;
    p = 1.0f + (r + r * r * (0.5f + r * p));
    /* 2^q in two factors: each is normal also where the result overflows or is subnormal */
    float a = mci_bits_f32((uint32_t)(half + 127) << 23);
    float b = mci_bits_f32((uint32_t)(q - half + 127) << 23);
    return p * a * b;
}

static inline float mci_log_f32(float x) {
    int subnormal = x < 0x1p-126f;
    uint32_t u = mci_f32_bits(subnormal ? x * 0x1p23f : x);
    int32_t e = (int32_t)(u - 0x3F3504F3U) >> 23; /* x = m 2^e, m from sqrt(1/2) */
    float f = mci_bits_f32(u - ((uint32_t)e << 23)) - 1.0f, z = f * f;
    float k = (float)(e - (subnormal ? 23 : 0));
    float p = -0x1.e2e84ep-4f + f * 0x1.1b4090p-4f;
    p = 0x1.e650dcp-4f + f * p;
    p = -0x1.fb436ap-4f + f * p;
    p = 0x1.2332c0p-3f + f * p;
    p = -0x1.5562e2p-3f + f * p;
    p = 0x1.99a546p-3f + f * p;
    p = -0x1.ffffeep-3f + f * p;
    p = 0x1.555546p-2f + f * p;
    float y = (f * z * p + k * MCI_LN2_LO) - 0.5f * z;
    y = (f + y) + k * MCI_LN2_HI;
    y = x == 0.0f ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    return x < INFINITY ? y : x; /* +inf and NaN are their own logarithms */
}

static inline float mci_tanh_f32(float x) {
    float a = fabsf(x), z = x * x;
    float p = 0x1.5215c0p-6f + z * -0x1.756dfcp-8f;
    p = -0x1.b83b74p-5f + z * p;
    p = 0x1.110730p-3f + z * p;
    p = -0x1.555534p-2f + z * p;
    float small = x + x * z * p;
    float large = 1.0f - 2.0f / (mci_exp_f32(a + a) + 1.0f);
    return a < 0.625f ? small : copysignf(large, x);
}

static inline float mci_sigmoid_f32(float x) {
    float e = mci_exp_f32(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* Beyond this the reduction below loses bits; such elements go to libm. */
#define MCI_TRIG_MAX 0x1p20f

/* sin(x + quadrants pi/2); the reduction is done in double, with pi/2 in two parts of which the
 * first has 33 bits */
static inline float mci_trig_f32(float x, uint32_t quadrants) {
    const double round = 0x1.8p52;
    double d = (double)x, k = d * 0x1.45f306dc9c883p-1 + round;
    uint32_t q = (uint32_t)mci_f64_bits(k) + quadrants;
    k -= round;
    float r = (float)((d - k * 0x1.921fb544p0) - k * 0x1.0b4611a626331p-34), z = r * r;
    float s = 0x1.110734p-7f + z * -0x1.993efap-13f;
    s = r + r * z * (-0x1.555546p-3f + z * s);
    float c = -0x1.6c0c6ap-10f + z * 0x1.99f736p-16f;
    c = (1.0f - 0.5f * z) + z * z * (0x1.55554ap-5f + z * c);
    float y = q & 1U ? c : s;
    return mci_bits_f32(mci_f32_bits(y) ^ (q & 2U) << 30);
}
static inline float mci_sin_f32(float x) {
    return fabsf(x) <= MCI_TRIG_MAX ? mci_trig_f32(x, 0) : sinf(x);
}
static inline float mci_cos_f32(float x) {
    return fabsf(x) <= MCI_TRIG_MAX ? mci_trig_f32(x, 1) : cosf(x);
}

static inline double mci_exp_f64(double x) {
    return exp(x);
}
static inline double mci_log_f64(double x) {
    return log(x);
}
static inline double mci_tanh_f64(double x) {
    return tanh(x);
}
static inline double mci_sigmoid_f64(double x) {
    double e = exp(-fabs(x));
    return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

#endif
