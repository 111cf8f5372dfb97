/* chunks.cuh: many tensors in one launch. Each is cut into chunks of MCU_CHUNK elements, and blocks
 * take chunks in turn, so that a few large tensors and many small ones load the device evenly.
 *
 * The table of tensors travels in the kernel's parameters (at most 32764 bytes since CUDA 12.1), in
 * constant memory: nothing is uploaded, and a captured graph holds its own copy. Which tensor a
 * chunk belongs to is found by bisection, the same for all threads of a block.
 */
#ifndef MCU_CHUNKS_CUH
#define MCU_CHUNKS_CUH

#include "common.cuh"

enum {
    MCU_CHUNK = 16384, /* elements, 32 KB or more: finding its tensor is nothing beside that */
    MCU_CHUNK_THREADS = 256,
#ifdef MCU_EMULATED
    MCU_CHUNK_TENSORS = 8 /* fibers copy the parameters; and so tests see tables that are full */
#else
    MCU_CHUNK_TENSORS = 600 /* with 5 pointers 31 KB */
#endif
};

/* P pointers for each tensor; contiguous, n[i] elements. */
template <int P>
struct mcu_chunks {
    int tensors;
    uint32_t first[MCU_CHUNK_TENSORS + 1]; /* chunk of tensor i; [tensors]: of all */
    int64_t n[MCU_CHUNK_TENSORS];
    void *at[P][MCU_CHUNK_TENSORS];

    /* The tensor of a chunk. */
    __device__ inline int owner(uint32_t chunk) const {
        int low = 0, high = tensors; /* first[low] <= chunk < first[high] */
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (first[middle] <= chunk)
                low = middle;
            else
                high = middle;
        }
        return low;
    }

    /* Room for one of n elements, and for its chunks' numbers? */
    bool takes(int64_t elements) const {
        return tensors < MCU_CHUNK_TENSORS &&
               first[tensors] + (elements + MCU_CHUNK - 1) / MCU_CHUNK <= INT32_MAX;
    }
    void add(const void *const *pointers, int64_t elements) {
        for (int p = 0; p < P; p++) at[p][tensors] = const_cast<void *>(pointers[p]);
        n[tensors] = elements;
        uint32_t next = first[tensors] + (uint32_t)((elements + MCU_CHUNK - 1) / MCU_CHUNK);
        first[++tensors] = next;
    }
    void clear() {
        tensors = 0;
        first[0] = 0;
    }
};

/* V consecutive elements at p, which is aligned to all of them or to 16 bytes, as what arithmetic
 * runs in, and back. */
template <int V, typename T>
__device__ inline void mcu_load(mcu_real_t<T> (&x)[V], const T *p) {
    constexpr int each = 16 / (int)sizeof(T) < V ? 16 / (int)sizeof(T) : V;
    for (int j = 0; j < V; j += each) {
        mcu_vector<T, each> part = *reinterpret_cast<const mcu_vector<T, each> *>(p + j);
        for (int i = 0; i < each; i++) x[j + i] = mcu_up(part.v[i]);
    }
}
template <int V, typename T>
__device__ inline void mcu_store(T *p, const mcu_real_t<T> (&x)[V]) {
    constexpr int each = 16 / (int)sizeof(T) < V ? 16 / (int)sizeof(T) : V;
    for (int j = 0; j < V; j += each) {
        mcu_vector<T, each> part;
        for (int i = 0; i < each; i++) part.v[i] = mcu_down<T>(x[j + i]);
        *reinterpret_cast<mcu_vector<T, each> *>(p + j) = part;
    }
}

#endif
