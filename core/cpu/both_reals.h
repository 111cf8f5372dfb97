/* both_reals.h: includes IN_BOTH_REALS, a file <name>_real.h, twice. REAL is float, then double;
 * REAL_DTYPE is MC_FLOAT32, then MC_FLOAT64; R(f) is f_f32, then f_f64. No include guard on
 * purpose.
 */
#define REAL float
#define REAL_DTYPE MC_FLOAT32
#define R(name) name##_f32
#include IN_BOTH_REALS
#undef REAL
#undef REAL_DTYPE
#undef R
#define REAL double
#define REAL_DTYPE MC_FLOAT64
#define R(name) name##_f64
#include IN_BOTH_REALS
#undef REAL
#undef REAL_DTYPE
#undef R
#undef IN_BOTH_REALS
