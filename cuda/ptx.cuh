/* ptx.cuh: the instructions that CUDA C++ has no words for: asynchronous copies to shared memory,
 * ldmatrix, and the tensor cores' mma.sync (sm_80 and newer).
 *
 * Fragments of mma.m16n8k16, by lane l (PTX ISA, "Matrix fragments for mma.m16n8k16"), g = l / 4, q
 * = l % 4: a (16 x 16, row): a0 = (g, 2q..2q+1), a1 = (g + 8, 2q..), a2 = (g, 2q + 8..), a3 = (g +
 * 8, 2q + 8..) b (16 x 8, col):  b0 = (k = 2q..2q+1, n = g), b1 = (k = 2q + 8.., n = g) c, d (16 x
 * 8):    d0, d1 = (g, 2q), (g, 2q + 1); d2, d3 = (g + 8, 2q), (g + 8, 2q + 1)
 */
#ifndef MCU_PTX_CUH
#define MCU_PTX_CUH

#ifdef MCU_EMULATED
#include "ptx_emulated.h" /* the same functions */
#else

__device__ inline uint32_t mcu_shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes from device memory to shared memory, in the background; only the first `bytes` (0 .. 16)
 * are read, the rest is zero. */
__device__ inline void mcu_copy_async(void *shared, const void *global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(mcu_shared_address(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
}
__device__ inline void mcu_copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until all but the newest `pending` groups of this thread have landed; others see them after a
 * __syncthreads. */
template <int pending>
__device__ inline void mcu_copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 (16
 * bytes each) and gets of matrix i the elements (l / 4, 2 (l % 4)) and the next one, in r[i]. */
__device__ inline void mcu_load_matrix(uint32_t (&r)[4], const void *shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(mcu_shared_address(shared))
                 : "memory");
}
/* Each of the four transposed on the way. */
__device__ inline void mcu_load_matrix_t(uint32_t (&r)[4], const void *shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(mcu_shared_address(shared))
                 : "memory");
}

/* d += a b, 16 x 8 x 16, for bfloat16 and half operands (T), accumulated in float32. */
template <typename T>
__device__ inline void mcu_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mcu_mma<mcu_bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mcu_mma<mcu_half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
#endif
