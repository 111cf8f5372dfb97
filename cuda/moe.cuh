/* moe.cuh: what the kernels for mixtures of experts share: matrices by their strides, tables of
 * indices by the flat number of their entry, and reals of a dtype known at run time only.
 */
#ifndef MCU_MOE_CUH
#define MCU_MOE_CUH

#include "common.cuh"

/* [rows, columns], or [rows] with step 0; strides in elements. data NULL: absent. */
struct moe_matrix {
    void *data;
    int64_t row, step;
    int dtype;
};
inline moe_matrix moe_matrix_of(const mci_view *v) {
    moe_matrix m = {};
    if (!v) return m;
    m.data = v->data;
    m.dtype = v->dtype;
    if (v->ndim > 0) m.row = v->stride[0];
    if (v->ndim > 1) m.step = v->stride[1];
    return m;
}
template <typename T>
__device__ inline T *moe_row(const moe_matrix &m, int64_t r) {
    return static_cast<T *>(m.data) + r * m.row;
}

/* i = q * n + r; 32-bit division, a third of the cost, where it will do. */
__device__ inline int64_t moe_divide(int64_t i, int64_t n, int64_t *r) {
    if (i <= INT32_MAX && n <= INT32_MAX) {
        uint32_t q = (uint32_t)i / (uint32_t)n;
        *r = (uint32_t)i - q * (uint32_t)n;
        return q;
    }
    *r = i % n;
    return i / n;
}

/* int32 or int64 [width] or [n, width]; entry i is the i-th in row-major order. */
struct moe_indices {
    void *data;
    int64_t row, step, width;
    int wide, dense; /* int64; entry i lies at i */
    __device__ inline int64_t offset(int64_t i) const {
        if (dense) return i;
        int64_t column, r = moe_divide(i, width, &column);
        return r * row + column * step;
    }
    __device__ inline int64_t operator[](int64_t i) const {
        int64_t at = offset(i);
        return wide ? static_cast<const int64_t *>(data)[at]
                    : (int64_t) static_cast<const int32_t *>(data)[at];
    }
    __device__ inline void put(int64_t i, int64_t x) const { /* int64 tables only */
        static_cast<int64_t *>(data)[offset(i)] = x;
    }
};
inline moe_indices moe_indices_of(const mci_view *v) {
    moe_indices m = {};
    int last = v->ndim - 1;
    m.data = v->data;
    m.wide = v->dtype == MC_INT64;
    m.dense = mci_is_contiguous(v);
    m.width = v->shape[last] > 0 ? v->shape[last] : 1;
    m.step = v->stride[last];
    m.row = last > 0 ? v->stride[0] : 0;
    return m;
}

/* Element `at` of an array of a dtype that goes with R: float64 with double, the others with float.
 */
template <typename R>
__device__ inline R moe_load(const void *data, int dtype, int64_t at);
template <>
__device__ inline double moe_load<double>(const void *data, int, int64_t at) {
    return static_cast<const double *>(data)[at];
}
template <>
__device__ inline float moe_load<float>(const void *data, int dtype, int64_t at) {
    if (dtype == MC_FLOAT32) return static_cast<const float *>(data)[at];
    if (dtype == MC_BFLOAT16) return mcu_up(static_cast<const mcu_bf16 *>(data)[at]);
    return mcu_up(static_cast<const mcu_half *>(data)[at]);
}
__device__ inline void moe_store(void *data, int, int64_t at, double x) {
    static_cast<double *>(data)[at] = x;
}
__device__ inline void moe_store(void *data, int dtype, int64_t at, float x) {
    if (dtype == MC_FLOAT32)
        static_cast<float *>(data)[at] = x;
    else if (dtype == MC_BFLOAT16)
        static_cast<mcu_bf16 *>(data)[at] = mcu_down<mcu_bf16>(x);
    else
        static_cast<mcu_half *>(data)[at] = mcu_down<mcu_half>(x);
}

/* x, or the lowest value where it is NaN: for maxima that pass over NaN. */
template <typename R>
__device__ inline R moe_number(R x) {
    return x == x ? x : (R)-INFINITY;
}
/* What to take from numbers before exp so that nothing overflows: the largest, or 0 for -inf. */
template <typename R>
__device__ inline R moe_shift(R largest) {
    return largest == (R)-INFINITY ? (R)0 : largest;
}

__device__ inline float moe_exp(float x) {
    return expf(x);
}
__device__ inline double moe_exp(double x) {
    return exp(x);
}
__device__ inline float moe_log(float x) {
    return logf(x);
}
__device__ inline double moe_log(double x) {
    return log(x);
}

#endif
