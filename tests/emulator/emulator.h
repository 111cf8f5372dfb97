/* emulator.h: the CUDA plugin's sources as plain C++17 on the CPU, so that all logic of the kernels
 * is tested without a GPU, and under AddressSanitizer. cuda/common.cuh includes this in place of
 * <cuda_runtime.h> when MCU_EMULATED is defined.
 *
 * A launch runs at once on the calling OS thread. Blocks run one after another; the threads of a
 * block are fibers, each with a stack of its own, that change places only where a thread waits: at
 * __syncthreads, at a warp's shuffles and votes, and at its end (fibers.cpp). So a kernel without
 * barriers costs about as much as the loop it stands for.
 *
 * Dynamic shared memory is exactly as long as asked for and filled with 0xFF before each block, new
 * device memory likewise; `__shared__` arrays are static ones and keep what the last block left.
 * Threads of a block (or of a warp) that wait for one another at different places end the process,
 * with the kernel and the places named. Launch limits are those of a GPU of compute capability 9.0.
 *
 * Streams, events, captures and graphs behave as CUDA documents them (streams.cpp); copies are
 * checked against the list of device allocations (runtime.cpp). Each .cpp is part of the plugin.
 *
 * Environment, read when the plugin is first used:
 *   MCU_EMULATOR_ORDER=reverse|shuffle  threads between barriers, and blocks, in this order: what
 *                                       works only in rising order lacks a barrier
 *   MCU_EMULATOR_LAZY=1                 a stream's work runs only when somebody waits for it: what
 *                                       lacks an event or a synchronisation shows as wrong results
 *   MCU_EMULATOR_PROTECT=1              device memory can be touched by kernels and copies alone
 *   MCU_EMULATOR_MEMORY=BYTES           memory of a device (default 8 GiB)
 *   MCU_EMULATOR_DEVICES=N              number of devices (default 1; 0: cudaErrorNoDevice)
 *   MCU_EMULATOR_GEMM=none              mcu_gemm_run takes no product (gemm.cpp)
 */
#ifndef MCU_EMULATOR_H
#define MCU_EMULATOR_H

#include <tuple>
#include <type_traits>
#include <utility>

#include "intrinsics.h"
#include "runtime.h"

#pragma GCC diagnostic ignored "-Wunknown-pragmas" /* unroll */

/* -- words
 * -------------------------------------------------------------------------------------------- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
/* One block runs at a time, whichever thread launched it; plain statics are seen by ASan. */
#define __shared__ static
#ifndef __clang__
#define __builtin_assume(condition) ((void)0)
#endif

#define MCU_EMULATOR_HIDDEN __attribute__((visibility("hidden")))
extern uint3 threadIdx MCU_EMULATOR_HIDDEN, blockIdx MCU_EMULATOR_HIDDEN;
extern dim3 blockDim MCU_EMULATOR_HIDDEN, gridDim MCU_EMULATOR_HIDDEN;
static const int warpSize = 32;

/* -- launches
 * ----------------------------------------------------------------------------------------- */

struct mcu_emulator_launch {
    const char *name, *file;
    int line;
    dim3 grid, block;
    size_t shared;
    const void *kernel;
    void (*call)(const void *held); /* one thread */
    const void *held;               /* the kernel's address and its arguments */
    size_t held_bytes;
};

/* Checks the launch, then runs it, or records it when the stream is captured. An error is the next
 * cudaGetLastError. */
void mcu_emulator_start(const mcu_emulator_launch &launch, cudaStream_t stream);
/* Runs all blocks. The caller holds the emulator's lock. */
void mcu_emulator_run(const mcu_emulator_launch &launch);
/* Prints and aborts; under a kernel with its name and the thread. */
[[noreturn]] void mcu_emulator_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

template <typename... P>
struct mcu_emulator_held {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
};
template <typename... P>
void mcu_emulator_call(const void *held) {
    const mcu_emulator_held<P...> *h = (const mcu_emulator_held<P...> *)held;
    std::apply(h->kernel, h->arguments);
}
template <typename P, typename A>
P mcu_emulator_convert(A &&a) {
    if constexpr (std::is_pointer_v<P> && std::is_integral_v<std::decay_t<A>>) {
        if (a) mcu_emulator_die("an integer as a pointer"); /* NULL is one */
        return nullptr;
    } else {
        return std::forward<A>(a);
    }
}
template <typename... P, typename... A>
void mcu_emulator_launch_kernel(const char *name, const char *file, int line, void (*kernel)(P...),
                                dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                                A &&...a) {
    static_assert(sizeof...(P) == sizeof...(A), "as many arguments as parameters");
    static_assert((std::is_trivially_copyable_v<P> && ...), "arguments are copied as bytes");
    static_assert((sizeof(P) + ... + 0) <= 32764, "parameters of a kernel: at most 32764 bytes");
    const mcu_emulator_held<P...> held = {
        kernel, std::tuple<P...>(mcu_emulator_convert<P>(std::forward<A>(a))...)};
    static_assert(alignof(mcu_emulator_held<P...>) <= 64, "as the copy for a graph is aligned");
    mcu_emulator_start({name, file, line, grid, block, shared, (const void *)kernel,
                        mcu_emulator_call<P...>, &held, sizeof held},
                       stream);
}
#define MCU_LAUNCH_IN(stream, kernel, grid, block, shared_bytes, ...)                \
    mcu_emulator_launch_kernel(#kernel, __FILE__, __LINE__, kernel, (grid), (block), \
                               (size_t)(shared_bytes), (stream)__VA_OPT__(, ) __VA_ARGS__)
#define MCU_LAUNCH(kernel, grid, block, shared_bytes, exec, ...) \
    MCU_LAUNCH_IN(mcu_stream(exec), kernel, grid, block, shared_bytes __VA_OPT__(, ) __VA_ARGS__)

/* The running block's dynamic shared memory, 128-byte aligned. */
extern void *mcu_emulator_shared MCU_EMULATOR_HIDDEN;
#define MCU_SHARED(type, name) type *name = static_cast<type *>(mcu_emulator_shared)

/* -- threads that wait for one another
 * ------------------------------------------------------------------ */

/* Where a thread waits; all that meet must have come by the same line. */
struct mcu_emulator_place {
    const char *what, *file;
    int line;
};
#define MCU_EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* Waits for the whole block; gives how many of its threads came with a predicate of not 0. */
unsigned mcu_emulator_barrier(int predicate, const mcu_emulator_place &place);
/* Waits for the warp's lanes in mask that still run. The last to come calls complete on the
 * arguments of all (args[lane] for the lanes in `lanes`) while the others still wait. */
void mcu_emulator_meet(unsigned mask, void *arg,
                       void (*complete)(void *const *args, unsigned lanes),
                       const mcu_emulator_place &place);
/* Lets other threads run. */
void mcu_emulator_yield();
int mcu_emulator_thread(); /* the running thread's number within its block */

inline void __syncthreads(MCU_EMULATOR_PLACE) {
    mcu_emulator_barrier(0, {"__syncthreads", file, line});
}
inline int __syncthreads_count(int predicate, MCU_EMULATOR_PLACE) {
    return (int)mcu_emulator_barrier(predicate, {"__syncthreads_count", file, line});
}
inline int __syncthreads_or(int predicate, MCU_EMULATOR_PLACE) {
    return mcu_emulator_barrier(predicate, {"__syncthreads_or", file, line}) != 0;
}
inline int __syncthreads_and(int predicate, MCU_EMULATOR_PLACE) {
    return mcu_emulator_barrier(!predicate, {"__syncthreads_and", file, line}) == 0;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFU, MCU_EMULATOR_PLACE) {
    mcu_emulator_meet(mask, nullptr, nullptr, {"__syncwarp", file, line});
}
inline void __nanosleep(unsigned) {
    mcu_emulator_yield();
}
#define __trap() mcu_emulator_die("__trap")

/* A value from lane `source`; where that lane takes no part, all bits are 1. */
struct mcu_emulator_exchange {
    uint64_t value;
    int source;
    unsigned lanes; /* out: who took part */
};
void mcu_emulator_exchange_all(void *const *args, unsigned lanes);
[[noreturn]] void mcu_emulator_bad_width(int width);

template <typename T>
T mcu_emulator_shuffle(unsigned mask, T x, int source, const mcu_emulator_place &place) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "1 to 8 bytes");
    mcu_emulator_exchange e = {0, source, 0};
    memcpy(&e.value, &x, sizeof x);
    mcu_emulator_meet(mask, &e, mcu_emulator_exchange_all, place);
    memcpy(&x, &e.value, sizeof x);
    return x;
}
inline int mcu_emulator_lane() {
    return mcu_emulator_thread() & 31;
}
inline void mcu_emulator_check_width(int width) {
    if (width < 1 || width > 32 || (width & (width - 1))) mcu_emulator_bad_width(width);
}
template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, MCU_EMULATOR_PLACE) {
    mcu_emulator_check_width(width);
    int from = (mcu_emulator_lane() & ~(width - 1)) | (source & (width - 1));
    return mcu_emulator_shuffle(mask, x, from, {"__shfl_sync", file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, unsigned delta, int width = 32, MCU_EMULATOR_PLACE) {
    mcu_emulator_check_width(width);
    int lane = mcu_emulator_lane(), from = lane - (int)(delta & 31U);
    from = from >= (lane & ~(width - 1)) ? from : lane;
    return mcu_emulator_shuffle(mask, x, from, {"__shfl_up_sync", file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T x, unsigned delta, int width = 32, MCU_EMULATOR_PLACE) {
    mcu_emulator_check_width(width);
    int lane = mcu_emulator_lane(), from = lane + (int)(delta & 31U);
    from = from <= (lane | (width - 1)) ? from : lane;
    return mcu_emulator_shuffle(mask, x, from, {"__shfl_down_sync", file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32, MCU_EMULATOR_PLACE) {
    mcu_emulator_check_width(width);
    int lane = mcu_emulator_lane(), from = lane ^ (bits & 31);
    from = from <= (lane | (width - 1)) ? from : lane;
    return mcu_emulator_shuffle(mask, x, from, {"__shfl_xor_sync", file, line});
}

void mcu_emulator_vote(void *const *args, unsigned lanes);
inline unsigned __ballot_sync(unsigned mask, int predicate, MCU_EMULATOR_PLACE) {
    mcu_emulator_exchange e = {predicate != 0, 0, 0};
    mcu_emulator_meet(mask, &e, mcu_emulator_vote, {"__ballot_sync", file, line});
    return (unsigned)e.value;
}
inline int __any_sync(unsigned mask, int predicate, MCU_EMULATOR_PLACE) {
    mcu_emulator_exchange e = {predicate != 0, 0, 0};
    mcu_emulator_meet(mask, &e, mcu_emulator_vote, {"__any_sync", file, line});
    return e.value != 0;
}
inline int __all_sync(unsigned mask, int predicate, MCU_EMULATOR_PLACE) {
    mcu_emulator_exchange e = {predicate != 0, 0, 0};
    mcu_emulator_meet(mask, &e, mcu_emulator_vote, {"__all_sync", file, line});
    return e.value == e.lanes;
}
void mcu_emulator_match(void *const *args, unsigned lanes);
template <typename T>
unsigned __match_any_sync(unsigned mask, T x, MCU_EMULATOR_PLACE) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "1 to 8 bytes");
    mcu_emulator_exchange e = {0, 0, 0};
    memcpy(&e.value, &x, sizeof x);
    mcu_emulator_meet(mask, &e, mcu_emulator_match, {"__match_any_sync", file, line});
    return e.lanes;
}

template <typename T, typename F>
void mcu_emulator_reduce(void *const *args, unsigned lanes) {
    T all = *(T *)args[__builtin_ctz(lanes)];
    for (unsigned left = lanes & (lanes - 1); left; left &= left - 1)
        all = F()(all, *(T *)args[__builtin_ctz(left)]);
    for (unsigned left = lanes; left; left &= left - 1) *(T *)args[__builtin_ctz(left)] = all;
}
#define MCU_EMULATOR_REDUCE(name, type, operation)                                            \
    inline type name(unsigned mask, type x, MCU_EMULATOR_PLACE) {                             \
        struct combine {                                                                      \
            type operator()(type a, type b) const { return operation; }                       \
        };                                                                                    \
        mcu_emulator_meet(mask, &x, mcu_emulator_reduce<type, combine>, {#name, file, line}); \
        return x;                                                                             \
    }
MCU_EMULATOR_REDUCE(__reduce_add_sync, unsigned, a + b)
MCU_EMULATOR_REDUCE(__reduce_add_sync, int, (int)((unsigned)a + (unsigned)b))
MCU_EMULATOR_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
MCU_EMULATOR_REDUCE(__reduce_min_sync, int, a < b ? a : b)
MCU_EMULATOR_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
MCU_EMULATOR_REDUCE(__reduce_max_sync, int, a > b ? a : b)
MCU_EMULATOR_REDUCE(__reduce_and_sync, unsigned, a &b)
MCU_EMULATOR_REDUCE(__reduce_or_sync, unsigned, a | b)
MCU_EMULATOR_REDUCE(__reduce_xor_sync, unsigned, a ^ b)

#endif
