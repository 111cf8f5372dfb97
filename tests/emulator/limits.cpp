/* limits.cpp: what a launch may ask for, by compute capability 9.0, and what is known of a
 * kernel.
 */
#include <unordered_map>

#include "room.h"

/* Bytes of dynamic shared memory by kernel, where cudaFuncSetAttribute has set them. */
static std::unordered_map<const void *, int> &raised_limits() {
    static std::unordered_map<const void *, int> *m = new std::unordered_map<const void *, int>();
    return *m;
}

cudaError_t mcu_emulator_check_launch(const mcu_emulator_launch &l) {
    uint64_t threads = (uint64_t)l.block.x * l.block.y * l.block.z;
    if (threads == 0 || l.block.x > (unsigned)MCU_EMULATOR_THREADS ||
        l.block.y > (unsigned)MCU_EMULATOR_THREADS || l.block.z > 64 ||
        threads > (uint64_t)MCU_EMULATOR_THREADS)
        return cudaErrorInvalidConfiguration;
    if (l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0 || l.grid.x > (unsigned)INT_MAX ||
        l.grid.y > 65535 || l.grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    auto raised = raised_limits().find(l.kernel);
    size_t most = MCU_EMULATOR_SHARED;
    if (raised != raised_limits().end() && (size_t)raised->second > most)
        most = (size_t)raised->second;
    return l.shared <= most ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t mcu_emulator_function(const void *function, cudaFuncAttribute attribute, int value) {
    MCU_EMULATOR_LOCKED;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        (size_t)value > MCU_EMULATOR_SHARED_MOST)
        return mcu_emulator_error(cudaErrorInvalidValue);
    raised_limits()[function] = value;
    return cudaSuccess;
}
cudaError_t mcu_emulator_attributes(cudaFuncAttributes *attributes, const void *function) {
    MCU_EMULATOR_LOCKED;
    auto raised = raised_limits().find(function);
    *attributes = cudaFuncAttributes();
    attributes->maxThreadsPerBlock = MCU_EMULATOR_THREADS;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    attributes->maxDynamicSharedSizeBytes =
        raised == raised_limits().end() ? (int)MCU_EMULATOR_SHARED : raised->second;
    return cudaSuccess;
}
/* Of threads and shared memory alone: nothing is known of registers. */
cudaError_t mcu_emulator_occupancy(int *blocks, const void *, int threads, size_t shared) {
    if (threads < 1 || threads > MCU_EMULATOR_THREADS || shared > MCU_EMULATOR_SHARED_MOST)
        return mcu_emulator_error(cudaErrorInvalidValue);
    int by_threads = 2048 / ((threads + 31) / 32 * 32);
    *blocks = min(min(by_threads, 32), (int)(MCU_EMULATOR_SHARED_ALL / (shared + 1024)));
    return cudaSuccess;
}
