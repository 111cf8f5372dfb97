/* both_reals.h: includes IN_BOTH_REALS, a file <name>_real.h, once for float32 and once for
 * float64: REAL, REAL_DTYPE   float and MC_FLOAT32, then double and MC_FLOAT64 R(f) f_f32, then
 * f_f64 No include guard on purpose.
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
