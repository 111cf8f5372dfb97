/* common.cuh: what every kernel file of the plugin uses: launches, element types, fixed-order block
 * sums, reports of bad values.
 *
 * The files are CUDA C++ and, under tests/emulator, plain C++ that runs a block's threads as
 * fibers: so kernels are started with MCU_LAUNCH, dynamic shared memory is asked for with
 * MCU_SHARED, and PTX stands here (conversions) and in ptx.cuh alone.
 *
 * A kernel function of the table (mcu_<op>) checks nothing that the core has checked, launches into
 * mcu_stream(exec), and returns mcu_launched("op"). It never waits and never reads a device value.
 */
#ifndef MCU_COMMON_CUH
#define MCU_COMMON_CUH

#ifdef MCU_EMULATED
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <tuple>

#include "backend.h"
#include "dtype.h"

/* -- launches
 * --------------------------------------------------------------------------------------- */

/* The parenthesised kernel of a template: MCU_LAUNCH((fill_kernel<float>), grid, block, 0, exec, p,
 * n) */
#ifndef MCU_EMULATED
#define MCU_LAUNCH(kernel, grid, block, shared_bytes, exec, ...) \
    mcu_launch(kernel, (grid), (block), (shared_bytes), mcu_stream(exec), __VA_ARGS__)
#define MCU_SHARED(type, name)                                   \
    extern __shared__ __align__(128) unsigned char mcu_shared[]; \
    type *name = reinterpret_cast<type *>(mcu_shared)
#endif

#ifndef MCU_EMULATED
/* Kept for mcu_launched. */
void mcu_launch_failed(cudaError_t error);

/* What <<<>>> does, without its detour over the runtime's own copy of the configuration, and with
 * the error at hand: 0.3 us less of the host's time. Arguments become the kernel's parameter types.
 */
template <typename... P, typename... A>
inline void mcu_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                       cudaStream_t stream, A... args) {
    std::tuple<P...> values(static_cast<P>(args)...);
    cudaError_t error = std::apply(
        [&](P &...value) {
            void *pointers[] = {(void *)&value...};
            return cudaLaunchKernel((const void *)kernel, grid, block, pointers, shared_bytes,
                                    stream);
        },
        values);
    if (error != cudaSuccess) mcu_launch_failed(error);
}
#endif

/* The core's services, set before anything else runs. */
extern const mci_services *mcu_core;
#define mcu_fail(...) mcu_core->fail(__VA_ARGS__)

cudaStream_t mcu_stream(const mci_exec *exec);
/* Multiprocessors of the exec's device; read once. */
int mcu_processors(const mci_exec *exec);
/* MC_OK, or MC_EDEVICE with the runtime's words: the last launch failed to start. */
mc_status mcu_launched(const char *op);
/* The same for the result of a call of the runtime. */
mc_status mcu_check(const char *op, cudaError_t error);
/* MC_ENOMEM, for a NULL from exec->scratch. */
mc_status mcu_no_scratch(const char *op, size_t bytes);

/* Blocks for n items of `per_block` each, at most `waves` per multiprocessor: for grid-stride
 * loops. */
unsigned mcu_blocks(const mci_exec *exec, int64_t n, int64_t per_block, int waves);

/* Every kernel of the table. */
#define MC_OP(name, outputs, inputs, params) \
    mc_status mcu_##name(mci_exec *exec, const mci_view *const *t, const void *params_);
#include "ops.def"
#undef MC_OP

/* -- bad values
 * ------------------------------------------------------------------------------------- */

/* A kernel that meets a bad id or split leaves it out, goes on within bounds, and blames it here;
 * the first of them is raised at the next synchronisation, as MC_EINVAL with the text of `format`
 * (a literal with up to four %lld). The struct is passed to kernels by value. */
typedef struct mcu_blame_record {
    int taken, ready;
    const char *format; /* a host address */
    long long value[4];
} mcu_blame_record;
typedef struct mcu_guard {
    mcu_blame_record *record; /* host memory that the device writes */
    const char *format;
} mcu_guard;

mcu_guard mcu_guard_of(const mci_exec *exec, const char *format);

__device__ inline void mcu_blame(const mcu_guard &guard, long long a, long long b = 0,
                                 long long c = 0, long long d = 0) {
    volatile mcu_blame_record *record = guard.record;
    if (record->taken || atomicCAS(&guard.record->taken, 0, 1) != 0) return;
    record->format = guard.format;
    record->value[0] = a;
    record->value[1] = b;
    record->value[2] = c;
    record->value[3] = d;
    __threadfence_system();
    record->ready = 1;
}

/* -- elements
 * --------------------------------------------------------------------------------------- */

struct mcu_half {
    uint16_t bits;
};
struct mcu_bf16 {
    uint16_t bits;
};
struct mcu_bool {
    uint8_t bits;
};

/* The type that arithmetic on T runs in, and the exact way up and the once-rounded way down. */
template <typename T>
struct mcu_real {
    typedef T type; /* double, float, integers */
};
template <>
struct mcu_real<mcu_half> {
    typedef float type;
};
template <>
struct mcu_real<mcu_bf16> {
    typedef float type;
};
template <typename T>
using mcu_real_t = typename mcu_real<T>::type;

__device__ inline double mcu_up(double x) {
    return x;
}
__device__ inline float mcu_up(float x) {
    return x;
}
__device__ inline int64_t mcu_up(int64_t x) {
    return x;
}
__device__ inline int32_t mcu_up(int32_t x) {
    return x;
}
__device__ inline uint8_t mcu_up(uint8_t x) {
    return x;
}
__device__ inline float mcu_up(mcu_bf16 x) {
    return mci_bf16_to_f32(x.bits);
}
__device__ inline float mcu_up(mcu_half x) {
#ifdef MCU_EMULATED
    return mci_f16_to_f32(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

template <typename T>
__device__ inline T mcu_down(mcu_real_t<T> x) {
    return x;
}
template <>
__device__ inline mcu_bf16 mcu_down<mcu_bf16>(float x) {
#ifdef MCU_EMULATED
    return mcu_bf16{mci_f32_to_bf16(x)};
#else
    mcu_bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}
template <>
__device__ inline mcu_half mcu_down<mcu_half>(float x) {
#ifdef MCU_EMULATED
    return mcu_half{mci_f32_to_f16(x)};
#else
    mcu_half y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}

/* Two floats to two bfloat16 in one register, `low` in the lower half. */
__device__ inline uint32_t mcu_pack_bf16(float low, float high) {
#ifdef MCU_EMULATED
    return (uint32_t)mci_f32_to_bf16(low) | (uint32_t)mci_f32_to_bf16(high) << 16;
#else
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#endif
}

/* Two floats to two elements in one register, `low` in the lower half. */
template <typename T>
__device__ inline uint32_t mcu_pack(float low, float high);
template <>
__device__ inline uint32_t mcu_pack<mcu_bf16>(float low, float high) {
    return mcu_pack_bf16(low, high);
}
template <>
__device__ inline uint32_t mcu_pack<mcu_half>(float low, float high) {
#ifdef MCU_EMULATED
    return (uint32_t)mci_f32_to_f16(low) | (uint32_t)mci_f32_to_f16(high) << 16;
#else
    uint32_t y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#endif
}

/* 2^x, to about 2 ulp; numbers below 2^-126 are 0. */
__device__ inline float mcu_exp2(float x) {
#ifdef MCU_EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* N elements that are moved as one access: 16 bytes at most, and aligned to its size. */
template <typename T, int N>
struct alignas(sizeof(T) * N) mcu_vector {
    T v[N];
};

/* Calls fn.template operator()<T>() for the element type of a float dtype; the ops have no others
 * here. Use:  return mcu_for_float(dtype, [&](auto tag) { typedef decltype(tag) T; ... }); */
template <typename F>
mc_status mcu_for_float(int dtype, F fn) {
    switch (dtype) {
        case MC_FLOAT64:
            return fn(double());
        case MC_FLOAT32:
            return fn(float());
        case MC_FLOAT16:
            return fn(mcu_half());
        case MC_BFLOAT16:
            return fn(mcu_bf16());
        default:
            return mcu_fail(MC_EINTERNAL, "cuda: dtype %d where a float was promised", dtype);
    }
}
/* The same for floats and integers. */
template <typename F>
mc_status mcu_for_number(int dtype, F fn) {
    switch (dtype) {
        case MC_INT64:
            return fn(int64_t());
        case MC_INT32:
            return fn(int32_t());
        case MC_UINT8:
            return fn(uint8_t());
        default:
            return mcu_for_float(dtype, fn);
    }
}
/* The same for index tensors. */
template <typename F>
mc_status mcu_for_index(int dtype, F fn) {
    if (dtype == MC_INT64) return fn(int64_t());
    if (dtype == MC_INT32) return fn(int32_t());
    return mcu_fail(MC_EINTERNAL, "cuda: dtype %d where an index was promised", dtype);
}

/* -- where elements lie
 * ----------------------------------------------------------------------------- */

/* N views walked together, row-major over the first one's shape, to which the others broadcast; a
 * NULL view has offsets of 0. Axes that lie behind each other in all views are merged. */
template <int N>
struct mcu_walk {
    int ndim;
    int64_t n;
    int dense; /* 1: element i of every (non-NULL) view lies at i */
    int64_t shape[MC_MAX_DIMS];
    int64_t stride[N][MC_MAX_DIMS];

    /* Offsets in elements of item i of each view. */
    __device__ inline void at(int64_t i, int64_t *offset) const {
        for (int k = 0; k < N; k++) offset[k] = 0;
        for (int d = ndim - 1; d > 0; d--) {
            int64_t q, r;
            if (i <= INT32_MAX && shape[d] <= INT32_MAX) { /* a third of the cost of 64 bits */
                q = (uint32_t)i / (uint32_t)shape[d];
                r = (uint32_t)i - (uint32_t)q * (uint32_t)shape[d];
            } else {
                q = i / shape[d];
                r = i - q * shape[d];
            }
            for (int k = 0; k < N; k++) offset[k] += r * stride[k][d];
            i = q;
        }
        if (ndim > 0)
            for (int k = 0; k < N; k++) offset[k] += i * stride[k][0];
    }
};

template <int N>
mcu_walk<N> mcu_walk_of(const mci_view *const *v) {
    mcu_walk<N> w = {};
    int64_t shape[MC_MAX_DIMS], stride[N][MC_MAX_DIMS] = {};
    int n = 0;
    w.n = mci_numel(v[0]);
    for (int d = 0; d < v[0]->ndim; d++) {
        if (v[0]->shape[d] == 1) continue;
        shape[n] = v[0]->shape[d];
        for (int k = 0; k < N; k++) {
            int own = v[k] ? d - (v[0]->ndim - v[k]->ndim) : -1;
            stride[k][n] = own >= 0 && v[k]->shape[own] != 1 ? v[k]->stride[own] : 0;
        }
        n++;
    }
    for (int d = 0; d < n; d++) { /* w's last axis, and this one behind it */
        int merges = w.ndim > 0;
        for (int k = 0; merges && k < N; k++)
            merges = w.stride[k][w.ndim - 1] == stride[k][d] * shape[d];
        int to = merges ? w.ndim - 1 : w.ndim++;
        w.shape[to] = merges ? w.shape[to] * shape[d] : shape[d];
        for (int k = 0; k < N; k++) w.stride[k][to] = stride[k][d];
    }
    w.dense = w.ndim <= 1;
    for (int k = 0; k < N; k++) w.dense = w.dense && (!v[k] || w.ndim == 0 || w.stride[k][0] == 1);
    return w;
}

/* Rows of a view along `axis`: where row r begins, its length and the step within it (elements). */
struct mcu_rows {
    mcu_walk<1> outer;
    int64_t count, length, step;
    __device__ inline int64_t at(int64_t r) const {
        int64_t offset;
        outer.at(r, &offset);
        return offset;
    }
};
inline mcu_rows mcu_rows_of(const mci_view *v, int axis) {
    mci_view outer = *v;
    mcu_rows rows = {};
    rows.length = v->ndim > 0 ? v->shape[axis] : 1;
    rows.step = v->ndim > 0 ? v->stride[axis] : 1;
    if (v->ndim > 0) outer.shape[axis] = 1;
    const mci_view *list[1] = {&outer};
    rows.outer = mcu_walk_of<1>(list);
    rows.count = rows.outer.n;
    return rows;
}

inline bool mcu_aligned(const void *p, size_t bytes) {
    return (uintptr_t)p % bytes == 0;
}

/* -- sums of fixed order
 * ---------------------------------------------------------------------------- */

/* Over the warp's 32 lanes; every lane gets the result. */
template <typename T>
__device__ inline T mcu_warp_sum(T x) {
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xFFFFFFFFU, x, d);
    return x;
}
template <typename T>
__device__ inline T mcu_warp_max(T x) { /* NaN loses; callers that care look */
    for (int d = 16; d > 0; d /= 2) {
        T y = __shfl_xor_sync(0xFFFFFFFFU, x, d);
        x = y > x ? y : x;
    }
    return x;
}
/* Over the block (blockDim.x a multiple of 32, at most 1024); every thread gets the result.
 * `space`: 32 elements of shared memory, free again when the call returns. All threads must call
 * it. */
template <typename T>
__device__ inline T mcu_block_sum(T x, T *space) {
    x = mcu_warp_sum(x);
    int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    if (lane == 0) space[warp] = x;
    __syncthreads();
    T sum = space[0];
    for (int i = 1; i < warps; i++) sum += space[i];
    __syncthreads();
    return sum;
}
template <typename T>
__device__ inline T mcu_block_max(T x, T *space) {
    x = mcu_warp_max(x);
    int warps = (int)blockDim.x / 32, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    if (lane == 0) space[warp] = x;
    __syncthreads();
    T most = space[0];
    for (int i = 1; i < warps; i++) most = space[i] > most ? space[i] : most;
    __syncthreads();
    return most;
}

/* -- matrix products (gemm_lt.cu; under the emulator a plain loop)
 * ------------------------------------ */

/* Row-major: d [m, n] = a [m, k] b [k, n] (+ bias [n]) (+ d when accumulate), `batch` of them. A
 * transposed operand is stored [k, m] or [n, k]. Leading dimensions and batch strides in elements.
 * fp32 accumulation (fp64 for fp64); d may be float32 beside 16-bit operands. */
typedef struct mcu_gemm {
    const void *a, *b, *bias; /* bias: d's dtype, or NULL */
    void *d;
    int64_t m, n, k, batch;
    int64_t lda, ldb, ldd, stride_a, stride_b, stride_d;
    int dtype, d_dtype; /* of a and b; of d */
    int transpose_a, transpose_b, accumulate, gelu, tf32;
} mcu_gemm;
/* Into `stream` number 0 .. MCU_SIDE_STREAMS: 0 is the exec's own, the others fork from it (see
 * mcu_fork). *taken = 0 where the library has no such product: use the plain kernel. */
mc_status mcu_gemm_run(mci_exec *exec, int stream, const char *op, const mcu_gemm *g, int *taken);

enum { MCU_SIDE_STREAMS = 4 };
/* Work in side streams starts after what is in the exec's stream now; join: the reverse. */
mc_status mcu_fork(mci_exec *exec, int streams);
mc_status mcu_join(mci_exec *exec, int streams);
cudaStream_t mcu_side_stream(mci_exec *exec, int stream);

#endif
