/* load.h: blocks of float32 from bfloat16, float16 or float32 rows, for kernels that compute in
 * float32 (the conversions themselves: iter.h). */
#ifndef MCI_LOAD_H
#define MCI_LOAD_H

#include "iter.h"

/* n contiguous elements as floats: the array itself when it is float32, else converted into buf. */
static inline const float *mci_block_f32(const void *src, int dtype, int64_t n, float *buf) {
    if (dtype == MC_FLOAT32) return src;
    MCI_CPU(load_f32)(buf, src, dtype, mci_dtypes[dtype].size, n);
    return buf;
}
static inline const double *mci_block_f64(const void *src, int dtype, int64_t n, double *buf) {
    if (dtype == MC_FLOAT64) return src;
    MCI_CPU(load_f64)(buf, src, dtype, mci_dtypes[dtype].size, n);
    return buf;
}
/* n floats to contiguous elements of dtype. */
static inline void mci_unblock_f32(void *dst, int dtype, const float *src, int64_t n) {
    MCI_CPU(store_f32)(dst, dtype, mci_dtypes[dtype].size, src, n);
}
static inline void mci_unblock_f64(void *dst, int dtype, const double *src, int64_t n) {
    MCI_CPU(store_f64)(dst, dtype, mci_dtypes[dtype].size, src, n);
}

#endif
