/* inline.h: MCI_INLINE marks small functions of a header that kernels of a device compile too. */
#ifndef MCI_INLINE_H
#define MCI_INLINE_H

#ifdef __CUDACC__
#define MCI_INLINE static inline __host__ __device__
#else
#define MCI_INLINE static inline
#endif

#endif
