/* convert.cuh: single elements of every dtype, by its code, to and from the type that computes with
 * them: double for float64, float for the other floats, int64_t for integers and bool.
 *
 * The conversions are those of core/dtype.h, bit for bit as the CPU's copy has them: one rounding
 * to nearest even, integers wrap, floats become integers towards zero and saturate, bool is x != 0.
 * They run on the host too, where a number takes a tensor's dtype.
 */
#ifndef MCU_CONVERT_CUH
#define MCU_CONVERT_CUH

#include "common.cuh"

namespace {

inline int dtype_size(int dtype) {
#define SIZE_CASE(code, name, type, kind) \
    case code:                            \
        return sizeof(type);
    switch (dtype) {
        MCI_DTYPES(SIZE_CASE)
        default:
            return 0;
    }
#undef SIZE_CASE
}

/* Calls fn with a value of the type that computes with dtype. */
template <typename F>
mc_status for_wide(int dtype, F fn) {
    switch (dtype) {
        case MC_FLOAT64:
            return fn(double());
        case MC_INT64:
        case MC_INT32:
        case MC_UINT8:
        case MC_BOOL:
            return fn(int64_t());
        default:
            return fn(float());
    }
}

template <typename W>
__host__ __device__ inline W load_as(const void *p, int64_t i, int dtype);
template <>
__host__ __device__ inline double load_as<double>(const void *p, int64_t i, int) {
    return static_cast<const double *>(p)[i];
}
template <>
__host__ __device__ inline float load_as<float>(const void *p, int64_t i, int dtype) {
    switch (dtype) {
        case MC_FLOAT32:
            return static_cast<const float *>(p)[i];
        case MC_FLOAT16:
            return mci_f16_to_f32(static_cast<const uint16_t *>(p)[i]);
        case MC_BFLOAT16:
            return mci_bf16_to_f32(static_cast<const uint16_t *>(p)[i]);
        case MC_FLOAT8_E4M3FN:
            return mci_e4m3_to_f32(static_cast<const uint8_t *>(p)[i]);
        case MC_FLOAT8_E5M2:
            return mci_e5m2_to_f32(static_cast<const uint8_t *>(p)[i]);
        default:
            return mci_e8m0_to_f32(static_cast<const uint8_t *>(p)[i]);
    }
}
template <>
__host__ __device__ inline int64_t load_as<int64_t>(const void *p, int64_t i, int dtype) {
    switch (dtype) {
        case MC_INT64:
            return static_cast<const int64_t *>(p)[i];
        case MC_INT32:
            return static_cast<const int32_t *>(p)[i];
        case MC_UINT8:
            return static_cast<const uint8_t *>(p)[i];
        default:
            return static_cast<const uint8_t *>(p)[i] != 0;
    }
}

/* x as a float and as a double that round to every shorter float as x does, and as integers. */
__host__ __device__ inline float odd_of(float x) {
    return x;
}
__host__ __device__ inline float odd_of(double x) {
    return mci_f32_odd(x);
}
__host__ __device__ inline float odd_of(int64_t x) {
    return mci_f32_odd(mci_i64_sticky(x));
}
__host__ __device__ inline double sticky_of(float x) {
    return (double)x;
}
__host__ __device__ inline double sticky_of(double x) {
    return x;
}
__host__ __device__ inline double sticky_of(int64_t x) {
    return mci_i64_sticky(x);
}
__host__ __device__ inline int64_t int64_of(double x) {
    return mci_f64_to_i64(x);
}
__host__ __device__ inline int64_t int64_of(int64_t x) {
    return x;
}
__host__ __device__ inline int32_t int32_of(double x) {
    return mci_f64_to_i32(x);
}
__host__ __device__ inline int32_t int32_of(int64_t x) {
    return (int32_t)x;
}
__host__ __device__ inline uint8_t uint8_of(double x) {
    return mci_f64_to_u8(x);
}
__host__ __device__ inline uint8_t uint8_of(int64_t x) {
    return (uint8_t)x;
}

template <typename W>
__host__ __device__ inline void store_as(void *p, int64_t i, int dtype, W x) {
    switch (dtype) {
        case MC_FLOAT64:
            static_cast<double *>(p)[i] = (double)x;
            break;
        case MC_FLOAT32:
            static_cast<float *>(p)[i] = (float)x;
            break;
        case MC_FLOAT16:
            static_cast<uint16_t *>(p)[i] = mci_f32_to_f16(odd_of(x));
            break;
        case MC_BFLOAT16:
            static_cast<uint16_t *>(p)[i] = mci_f32_to_bf16(odd_of(x));
            break;
        case MC_INT64:
            static_cast<int64_t *>(p)[i] = int64_of(x);
            break;
        case MC_INT32:
            static_cast<int32_t *>(p)[i] = int32_of(x);
            break;
        case MC_UINT8:
            static_cast<uint8_t *>(p)[i] = uint8_of(x);
            break;
        case MC_BOOL:
            static_cast<uint8_t *>(p)[i] = x != 0;
            break;
        case MC_FLOAT8_E4M3FN:
            static_cast<uint8_t *>(p)[i] = mci_f32_to_e4m3(odd_of(x));
            break;
        case MC_FLOAT8_E5M2:
            static_cast<uint8_t *>(p)[i] = mci_f32_to_e5m2(odd_of(x));
            break;
        case MC_FLOAT8_E8M0FNU:
            static_cast<uint8_t *>(p)[i] = mci_f64_to_e8m0(sticky_of(x));
            break;
        default:
            break;
    }
}

}  // namespace

#endif
