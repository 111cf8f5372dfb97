/* runtime.cpp: devices, memory and copies of the emulated runtime.
 *
 * Device memory is a heap block of exactly the size asked for under AddressSanitizer, else with
 * guard bytes behind it that cudaFree and cudaDeviceSynchronize look at; under MCU_EMULATOR_PROTECT
 * it is whole pages of a region that has no access rights while nothing runs (slow: two system
 * calls a kernel). A copy's two ends must be of the kinds it names.
 */
#include <stdio.h>
#include <sys/mman.h>

#include <map>
#include <vector>

#include "room.h"

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif

namespace {

const size_t ALIGNMENT = 256, PAGE_BYTES = 4096, REGION_BYTES = 1ULL << 36;
const int PROCESSORS = 4;
#ifdef WITH_ASAN
const size_t GUARD_BYTES = 0;
#else
const size_t GUARD_BYTES = 64;
#endif
const int GUARD = 0xA5, FRESH = 0xFF;

struct block {
    size_t bytes;
    int device;
};

struct state {
    std::recursive_mutex lock;
    int devices = 1;
    size_t total = 0;
    std::vector<size_t> used;
    bool protect = false;
    char *region = nullptr;
    int touching = 0;                     /* how many mcu_emulator_access live */
    std::map<const char *, block> blocks; /* of the devices */
    std::map<const char *, size_t> pinned;
    state() {
        devices = (int)mcu_emulator_setting("MCU_EMULATOR_DEVICES", 1);
        total = (size_t)mcu_emulator_setting("MCU_EMULATOR_MEMORY", 8LL << 30);
        protect = mcu_emulator_setting("MCU_EMULATOR_PROTECT", 0) != 0;
        used.resize(devices > 0 ? (size_t)devices : 0);
    }
};
state &the() {
    static state *s = new state(); /* lives to the very end */
    return *s;
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

const struct {
    cudaError_t code;
    const char *name, *text;
} error_table[] = {
#define ERROR(code, text) {code, #code, text},
    ERROR(cudaSuccess, "no error") ERROR(cudaErrorInvalidValue, "invalid argument") ERROR(
        cudaErrorMemoryAllocation,
        "out of memory") ERROR(cudaErrorInitializationError,
                               "initialization error") ERROR(cudaErrorInvalidConfiguration,
                                                             "invalid configuration argument")
        ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy") ERROR(
            cudaErrorInsufficientDriver,
            "CUDA driver version is insufficient for CUDA runtime version")
            ERROR(cudaErrorInvalidDeviceFunction, "invalid device function") ERROR(
                cudaErrorNoDevice,
                "no CUDA-capable device is detected") ERROR(cudaErrorInvalidDevice,
                                                            "invalid device ordinal")
                ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle") ERROR(
                    cudaErrorIllegalState, "the operation cannot be performed in the present state")
                    ERROR(cudaErrorNotReady, "device not ready") ERROR(
                        cudaErrorIllegalAddress, "an illegal memory access was encountered")
                        ERROR(cudaErrorLaunchFailure, "unspecified launch failure") ERROR(
                            cudaErrorNotPermitted, "operation not permitted")
                            ERROR(cudaErrorNotSupported, "operation not supported") ERROR(
                                cudaErrorStreamCaptureUnsupported,
                                "operation not permitted when stream is capturing")
                                ERROR(cudaErrorStreamCaptureInvalidated,
                                      "operation failed due to a previous error during capture")
                                    ERROR(cudaErrorStreamCaptureMerge,
                                          "operation would result in a merge of separate capture "
                                          "sequences") ERROR(cudaErrorStreamCaptureUnmatched,
                                                             "capture was not ended in the same "
                                                             "stream as it began")
                                        ERROR(cudaErrorStreamCaptureUnjoined,
                                              "capturing stream has unjoined work")
                                            ERROR(cudaErrorStreamCaptureIsolation,
                                                  "dependency created on uncaptured work in "
                                                  "another stream")
                                                ERROR(cudaErrorStreamCaptureImplicit,
                                                      "operation would make the legacy stream "
                                                      "depend on a capturing blocking stream")
                                                    ERROR(cudaErrorCapturedEvent,
                                                          "operation not permitted on an event "
                                                          "last recorded in a capturing stream")
                                                        ERROR(
                                                            cudaErrorStreamCaptureWrongThread,
                                                            "attempt to terminate a thread-local "
                                                            "capture sequence from another thread")
                                                            ERROR(cudaErrorUnknown, "unknown error")
#undef ERROR
};

/* The device block that holds all of [p, p + bytes), or none. */
const block *device_block(const void *p, size_t bytes) {
    auto next = the().blocks.upper_bound((const char *)p);
    if (next == the().blocks.begin()) return nullptr;
    auto found = std::prev(next);
    size_t at = (size_t)((const char *)p - found->first);
    return at < found->second.bytes && bytes <= found->second.bytes - at ? &found->second : nullptr;
}
bool touches_device(const void *p) {
    return device_block(p, 1) != nullptr;
}
bool is_pinned(const void *p, size_t bytes) {
    auto next = the().pinned.upper_bound((const char *)p);
    if (next == the().pinned.begin()) return false;
    auto found = std::prev(next);
    size_t at = (size_t)((const char *)p - found->first);
    return at < found->second && bytes <= found->second - at;
}

size_t whole_pages(size_t bytes) {
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* Bytes behind a block that nobody may write. */
size_t guard_bytes(size_t bytes) {
    return !the().protect ? GUARD_BYTES : min(whole_pages(bytes) - bytes, (size_t)64);
}
/* Within an mcu_emulator_access. */
void check_guard(const char *data, const block &b) {
    for (size_t i = 0; i < guard_bytes(b.bytes); i++)
        if ((unsigned char)data[b.bytes + i] != GUARD)
            mcu_emulator_die("a device block of %zu bytes was written behind its end, at byte %zu",
                             b.bytes, b.bytes + i);
}

/* First fit in the region, whole pages. */
char *region_alloc(size_t bytes) {
    state &s = the();
    if (!s.region) {
        void *p = mmap(nullptr, REGION_BYTES, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return nullptr;
        s.region = (char *)p;
    }
    const char *at = s.region;
    for (const auto &b : s.blocks) {
        if ((size_t)(b.first - at) >= whole_pages(bytes)) break;
        at = b.first + whole_pages(b.second.bytes);
    }
    if ((size_t)(s.region + REGION_BYTES - at) < whole_pages(bytes)) return nullptr;
    char *data = (char *)at;
    if (mprotect(data, whole_pages(bytes), PROT_READ | PROT_WRITE) != 0) return nullptr;
    memset(data, FRESH, bytes);
    memset(data + bytes, GUARD, guard_bytes(bytes));
    if (!s.touching) mprotect(data, whole_pages(bytes), PROT_NONE);
    return data;
}

char *heap_alloc(size_t bytes) {
    void *data = nullptr;
    if (posix_memalign(&data, ALIGNMENT, bytes + GUARD_BYTES)) return nullptr;
    memset(data, FRESH, bytes);
    memset((char *)data + bytes, GUARD, GUARD_BYTES);
    return (char *)data;
}

/* One call for all blocks: the region up to the last one's end. */
void protect_all(int rights) {
    state &s = the();
    if (s.blocks.empty()) return;
    auto last = std::prev(s.blocks.end());
    mprotect(s.region, (size_t)(last->first - s.region) + whole_pages(last->second.bytes), rights);
}

cudaError_t check_device(int device) {
    if (the().devices < 1) return cudaErrorNoDevice;
    return device >= 0 && device < the().devices ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t check_ends(const void *to, size_t to_bytes, const void *from, size_t from_bytes,
                       cudaMemcpyKind kind) {
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind < 0 || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
    if (kind == cudaMemcpyDefault) {
        to_device = touches_device(to);
        from_device = touches_device(from);
    }
    bool good = to_device ? device_block(to, to_bytes) != nullptr : !touches_device(to);
    good =
        good && (from_device ? device_block(from, from_bytes) != nullptr : !touches_device(from));
    return good ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

std::recursive_mutex &mcu_emulator_lock() {
    return the().lock;
}

cudaError_t mcu_emulator_error(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

long long mcu_emulator_setting(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoll(text, nullptr, 10) : otherwise;
}

mcu_emulator_access::mcu_emulator_access() {
    if (the().protect && the().touching++ == 0) protect_all(PROT_READ | PROT_WRITE);
}
mcu_emulator_access::~mcu_emulator_access() {
    if (the().protect && --the().touching == 0) protect_all(PROT_NONE);
}

/* -- errors and versions
 * ---------------------------------------------------------------------------------- */

const char *cudaGetErrorName(cudaError_t error) {
    for (const auto &e : error_table)
        if (e.code == error) return e.name;
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t error) {
    for (const auto &e : error_table)
        if (e.code == error) return e.text;
    return "unrecognized error code";
}
cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError() {
    return last_error;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* -- devices
 * -------------------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = the().devices > 0 ? the().devices : 0;
    return mcu_emulator_error(*count ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
    cudaError_t error = check_device(device);
    if (error == cudaSuccess) current_device = device;
    return mcu_emulator_error(error);
}
cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return mcu_emulator_error(check_device(current_device));
}
cudaError_t cudaSetDeviceFlags(unsigned) {
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    cudaError_t error = check_device(device);
    if (error != cudaSuccess) return mcu_emulator_error(error);
    *p = cudaDeviceProp();
    snprintf(p->name, sizeof p->name, "emulated GPU");
    p->totalGlobalMem = the().total;
    p->sharedMemPerBlock = MCU_EMULATOR_SHARED;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = MCU_EMULATOR_THREADS;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = INT_MAX;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = 9;
    p->multiProcessorCount = PROCESSORS;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = 1;
    p->streamPrioritiesSupported = 1;
    p->pciBusID = device + 1;
    p->asyncEngineCount = 3;
    p->memoryBusWidth = 5120;
    p->l2CacheSize = 50 << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerMultiprocessor = MCU_EMULATOR_SHARED_ALL;
    p->sharedMemPerBlockOptin = MCU_EMULATOR_SHARED_MOST;
    p->maxBlocksPerMultiProcessor = 32;
    p->reservedSharedMemPerBlock = 1024;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess) return error;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
            *value = p.maxThreadsPerBlock;
            break;
        case cudaDevAttrMaxBlockDimX:
            *value = p.maxThreadsDim[0];
            break;
        case cudaDevAttrMaxBlockDimY:
            *value = p.maxThreadsDim[1];
            break;
        case cudaDevAttrMaxBlockDimZ:
            *value = p.maxThreadsDim[2];
            break;
        case cudaDevAttrMaxGridDimX:
            *value = p.maxGridSize[0];
            break;
        case cudaDevAttrMaxGridDimY:
            *value = p.maxGridSize[1];
            break;
        case cudaDevAttrMaxGridDimZ:
            *value = p.maxGridSize[2];
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = (int)p.sharedMemPerBlock;
            break;
        case cudaDevAttrTotalConstantMemory:
            *value = (int)p.totalConstMem;
            break;
        case cudaDevAttrWarpSize:
            *value = p.warpSize;
            break;
        case cudaDevAttrMaxRegistersPerBlock:
            *value = p.regsPerBlock;
            break;
        case cudaDevAttrClockRate:
            *value = 1000000;
            break; /* kHz */
        case cudaDevAttrMemoryClockRate:
            *value = 1000000;
            break; /* kHz */
        case cudaDevAttrMultiProcessorCount:
            *value = p.multiProcessorCount;
            break;
        case cudaDevAttrCanMapHostMemory:
            *value = p.canMapHostMemory;
            break;
        case cudaDevAttrConcurrentKernels:
            *value = p.concurrentKernels;
            break;
        case cudaDevAttrGlobalMemoryBusWidth:
            *value = p.memoryBusWidth;
            break;
        case cudaDevAttrL2CacheSize:
            *value = p.l2CacheSize;
            break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = p.maxThreadsPerMultiProcessor;
            break;
        case cudaDevAttrAsyncEngineCount:
            *value = p.asyncEngineCount;
            break;
        case cudaDevAttrUnifiedAddressing:
            *value = p.unifiedAddressing;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *value = p.major;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = p.minor;
            break;
        case cudaDevAttrStreamPrioritiesSupported:
            *value = p.streamPrioritiesSupported;
            break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = (int)MCU_EMULATOR_SHARED_ALL;
            break;
        case cudaDevAttrMaxRegistersPerMultiprocessor:
            *value = p.regsPerMultiprocessor;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = (int)MCU_EMULATOR_SHARED_MOST;
            break;
        case cudaDevAttrIntegrated:
        case cudaDevAttrComputeMode:
        case cudaDevAttrManagedMemory:
        case cudaDevAttrCooperativeLaunch:
        case cudaDevAttrMemoryPoolsSupported:
            *value = 0;
            break;
        default:
            return mcu_emulator_error(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, (size_t)size, "0000:%02X:00.0", device + 1);
    return mcu_emulator_error(check_device(device));
}
cudaError_t cudaDeviceSynchronize() {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = mcu_emulator_unsafe();
    if (error != cudaSuccess) return mcu_emulator_error(error);
    mcu_emulator_flush();
    mcu_emulator_access access;
    for (const auto &b : the().blocks) check_guard(b.first, b.second);
    return cudaSuccess;
}

/* -- memory
 * ---------------------------------------------------------------------------------------------- */

cudaError_t cudaMalloc(void **data, size_t bytes) {
    MCU_EMULATOR_LOCKED;
    state &s = the();
    cudaError_t error = check_device(current_device);
    if (error == cudaSuccess) error = mcu_emulator_unsafe();
    if (error != cudaSuccess) return mcu_emulator_error(error);
    *data = nullptr;
    if (bytes == 0) return cudaSuccess;
    size_t &used = s.used[(size_t)current_device];
    if (bytes > s.total || used > s.total - bytes)
        return mcu_emulator_error(cudaErrorMemoryAllocation);
    char *p = s.protect ? region_alloc(bytes) : heap_alloc(bytes);
    if (!p) return mcu_emulator_error(cudaErrorMemoryAllocation);
    used += bytes;
    s.blocks[p] = {bytes, current_device};
    *data = p;
    return cudaSuccess;
}
cudaError_t cudaFree(void *data) {
    MCU_EMULATOR_LOCKED;
    state &s = the();
    if (!data) return cudaSuccess;
    cudaError_t error = mcu_emulator_unsafe();
    if (error != cudaSuccess) return mcu_emulator_error(error);
    auto found = s.blocks.find((const char *)data);
    if (found == s.blocks.end()) return mcu_emulator_error(cudaErrorInvalidValue);
    mcu_emulator_flush(); /* it waits for the device */
    if (!s.protect) check_guard(found->first, found->second);
    s.used[(size_t)found->second.device] -= found->second.bytes;
    if (s.protect) {
        madvise(data, whole_pages(found->second.bytes), MADV_DONTNEED);
        mprotect(data, whole_pages(found->second.bytes), PROT_NONE);
    } else {
        free(data);
    }
    s.blocks.erase(found);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_device(current_device);
    if (error == cudaSuccess) error = mcu_emulator_unsafe();
    if (error != cudaSuccess) return mcu_emulator_error(error);
    *data = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(data, PAGE_BYTES, bytes))
        return mcu_emulator_error(cudaErrorMemoryAllocation);
    the().pinned[(const char *)*data] = bytes;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **data, size_t bytes, unsigned flags) {
    return cudaHostAlloc(data, bytes, flags);
}
cudaError_t cudaFreeHost(void *data) {
    MCU_EMULATOR_LOCKED;
    if (!data) return cudaSuccess;
    cudaError_t error = mcu_emulator_unsafe();
    if (error != cudaSuccess) return mcu_emulator_error(error);
    if (!the().pinned.erase((const char *)data)) return mcu_emulator_error(cudaErrorInvalidValue);
    mcu_emulator_flush();
    free(data);
    return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned) {
    MCU_EMULATOR_LOCKED;
    *device = is_pinned(host, 1) ? host : nullptr;
    return mcu_emulator_error(*device ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_device(current_device);
    if (error != cudaSuccess) return mcu_emulator_error(error);
    *total_bytes = the().total;
    *free_bytes = the().total - the().used[(size_t)current_device];
    return cudaSuccess;
}

/* -- copies
 * ---------------------------------------------------------------------------------------------- */

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    MCU_EMULATOR_LOCKED;
    if (width > to_pitch || width > from_pitch) return mcu_emulator_error(cudaErrorInvalidValue);
    if (width == 0 || height == 0) return cudaSuccess;
    size_t to_bytes = to_pitch * (height - 1) + width;
    size_t from_bytes = from_pitch * (height - 1) + width;
    cudaError_t error = check_ends(to, to_bytes, from, from_bytes, kind);
    if (error != cudaSuccess) return mcu_emulator_error(error);
    /* ordinary host memory is read or written before the call returns */
    std::vector<char> staged;
    bool waits = false;
    if (mcu_emulator_is_lazy(stream)) {
        if (!touches_device(from) && !is_pinned(from, from_bytes))
            staged.assign((const char *)from, (const char *)from + from_bytes);
        waits = !touches_device(to) && !is_pinned(to, to_bytes);
    }
    error = mcu_emulator_enqueue(stream, [=, staged = std::move(staged)] {
        mcu_emulator_access access;
        const char *source = staged.empty() ? (const char *)from : staged.data();
        for (size_t i = 0; i < height; i++)
            memmove((char *)to + i * to_pitch, source + i * from_pitch, width);
    });
    if (waits) mcu_emulator_flush_stream(stream);
    return mcu_emulator_error(error);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = mcu_emulator_unsafe();
    if (error == cudaSuccess) error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return mcu_emulator_error(error);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    MCU_EMULATOR_LOCKED;
    if (bytes == 0) return cudaSuccess;
    if (!device_block(to, bytes) && !is_pinned(to, bytes))
        return mcu_emulator_error(cudaErrorInvalidValue);
    return mcu_emulator_error(mcu_emulator_enqueue(stream, [=] {
        mcu_emulator_access access;
        memset(to, value, bytes);
    }));
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    return cudaMemsetAsync(to, value, bytes, nullptr);
}
