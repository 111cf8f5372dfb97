/* device.cu: devices, memory, copies, streams and graphs of the CUDA plugin.
 *
 * A device has one main stream, into which all ops go in order, and a few side streams that fork
 * from it and join it. Allocation is cudaMalloc: the core caches blocks, so a training loop
 * allocates in its first step only.
 */
#include "device.cuh"

#include <cstdio>
#include <cstring>

static mcu_device devices[MCU_DEVICES];

/* -- errors
 * ------------------------------------------------------------------------------------------ */

mc_status mcu_check(const char *op, cudaError_t error) {
    if (error == cudaSuccess) return MC_OK;
    cudaGetLastError(); /* forget it; a broken context reports itself again */
    return mcu_fail(error == cudaErrorMemoryAllocation ? MC_ENOMEM : MC_EDEVICE,
                    "%s: CUDA: %s (%s)", op, cudaGetErrorString(error), cudaGetErrorName(error));
}

#ifdef MCU_EMULATED
mc_status mcu_launched(const char *op) {
    return mcu_check(op, cudaGetLastError());
}
#else
static thread_local cudaError_t launch_error;

void mcu_launch_failed(cudaError_t error) {
    if (launch_error == cudaSuccess) launch_error = error;
}

mc_status mcu_launched(const char *op) {
    cudaError_t error = launch_error;
    launch_error = cudaSuccess;
    return mcu_check(op, error);
}
#endif

mc_status mcu_no_scratch(const char *op, size_t bytes) {
    return mcu_fail(MC_ENOMEM, "%s: no %zu bytes of scratch on the device", op, bytes);
}

mc_status mcu_blamed(mcu_device *d) {
    volatile mcu_blame_record *r = d->blame;
    if (!r->ready) return MC_OK;
    const char *format = (const char *)r->format;
    mc_status status =
        mcu_fail(MC_EINVAL, format, r->value[0], r->value[1], r->value[2], r->value[3]);
    r->ready = 0;
    r->taken = 0;
    return status;
}

mcu_guard mcu_guard_of(const mci_exec *exec, const char *format) {
    mcu_guard guard = {devices[exec->ordinal].blame, format};
    return guard;
}

/* -- devices
 * ----------------------------------------------------------------------------------------- */

int mcu_driver_missing(void) {
    int driver = 0, runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        cudaGetLastError();
        mcu_fail(
            MC_EDEVICE,
            "device cuda: no NVIDIA driver (libcuda.so.1) on this machine; install one for CUDA "
            "%d.%d or newer, or use device = \"cpu\"",
            runtime / 1000, runtime % 1000 / 10);
        return 1;
    }
    if (driver / 1000 < runtime / 1000) {
        mcu_fail(
            MC_EDEVICE,
            "device cuda: the NVIDIA driver is for CUDA %d.%d, wanted %d.0 or newer; update it, or "
            "use device = \"cpu\"",
            driver / 1000, driver % 1000 / 10, runtime / 1000);
        return 1;
    }
    return 0;
}

static mc_status device_count(int *count) {
    cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaErrorNoDevice) {
        cudaGetLastError();
        *count = 0;
        return MC_OK;
    }
    if (*count > MCU_DEVICES) *count = MCU_DEVICES;
    return mcu_check("device_count", error);
}

static cudaError_t make_ready(mcu_device *d, int ordinal) {
    mcu_relaxed scope; /* another device may be recording */
    cudaDeviceProp properties;
    cudaError_t e = cudaGetDeviceProperties(&properties, ordinal);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&d->forked, cudaEventDisableTiming);
    for (int i = 0; i < MCU_SIDE_STREAMS && e == cudaSuccess; i++) {
        e = cudaStreamCreateWithFlags(&d->side[i], cudaStreamNonBlocking);
        if (e == cudaSuccess) e = cudaEventCreateWithFlags(&d->joined[i], cudaEventDisableTiming);
    }
    if (e == cudaSuccess)
        e = cudaHostAlloc((void **)&d->blame, sizeof *d->blame,
                          cudaHostAllocMapped | cudaHostAllocPortable);
    if (e != cudaSuccess) return e;
    memset(d->blame, 0, sizeof *d->blame);
    d->processors = properties.multiProcessorCount;
    d->major = properties.major;
    d->minor = properties.minor;
    snprintf(d->name, sizeof d->name, "%s", properties.name);
    d->ready = 1;
    return cudaSuccess;
}

mcu_device *mcu_device_of(int ordinal) {
    static thread_local int current = -1;
    mcu_device *d = &devices[ordinal];
    if (current != ordinal) {
        if (mcu_check("device cuda", cudaSetDevice(ordinal)) != MC_OK) return NULL;
        current = ordinal;
    }
    if (!d->ready && mcu_check("device cuda", make_ready(d, ordinal)) != MC_OK) return NULL;
    return d;
}

cudaStream_t mcu_stream(const mci_exec *exec) {
    mcu_device *d = mcu_device_of(exec->ordinal); /* launches go to the thread's current device */
    return exec->stream || !d ? (cudaStream_t)exec->stream : d->stream;
}

int mcu_processors(const mci_exec *exec) {
    return devices[exec->ordinal].processors;
}

unsigned mcu_blocks(const mci_exec *exec, int64_t n, int64_t per_block, int waves) {
    int64_t blocks = (n + per_block - 1) / per_block, most = (int64_t)mcu_processors(exec) * waves;
    return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

static const char *info(int ordinal, const char *key) {
    static thread_local char text[64];
    int version = 0;
    mcu_device *d = mcu_device_of(ordinal);
    if (!d) return NULL;
    if (strcmp(key, "name") == 0) return d->name;
    if (strcmp(key, "blas") == 0) return mcu_blas_version();
    if (strcmp(key, "attention") == 0)
        return d->major >= 8
                   ? "own tensor core kernels (head sizes 64 and 128), plain ones otherwise"
                   : "plain kernels";
    if (strcmp(key, "capability") == 0) {
        snprintf(text, sizeof text, "%d.%d, %d multiprocessors", d->major, d->minor, d->processors);
        return text;
    }
    if (strcmp(key, "driver") == 0)
        cudaDriverGetVersion(&version);
    else if (strcmp(key, "runtime") == 0)
        cudaRuntimeGetVersion(&version);
    else
        return NULL;
    snprintf(text, sizeof text, "%d.%d", version / 1000, version % 1000 / 10);
    return text;
}

/* -- memory
 * ------------------------------------------------------------------------------------------ */

static mc_status alloc(mci_exec *exec, size_t bytes, void **out) {
    *out = NULL;
    if (!mcu_device_of(exec->ordinal)) return MC_EDEVICE;
    mcu_relaxed scope;
    cudaError_t error = cudaMalloc(out, bytes);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return MC_ENOMEM; /* the core has the words */
    }
    return mcu_check("alloc", error);
}

static void free_block(mci_exec *exec, void *data, size_t) {
    mcu_relaxed scope;
    if (mcu_device_of(exec->ordinal)) cudaFree(data);
}

static mc_status memory(int ordinal, int64_t *free_bytes, int64_t *total_bytes) {
    size_t available = 0, total = 0;
    if (!mcu_device_of(ordinal)) return MC_EDEVICE;
    mc_status status = mcu_check("device_memory", cudaMemGetInfo(&available, &total));
    *free_bytes = (int64_t)available;
    *total_bytes = (int64_t)total;
    return status;
}

static mc_status pinned_alloc(int ordinal, size_t bytes, void **out) {
    *out = NULL;
    if (!mcu_device_of(ordinal)) return MC_EDEVICE;
    mcu_relaxed scope;
    return mcu_check("pinned_alloc", cudaHostAlloc(out, bytes, cudaHostAllocPortable));
}

static void pinned_free(int ordinal, void *data) {
    mcu_relaxed scope;
    if (mcu_device_of(ordinal)) cudaFreeHost(data);
}

/* -- copies and streams
 * ------------------------------------------------------------------------------ */

static cudaStream_t stream_of(mcu_device *d, void *stream) {
    return stream ? (cudaStream_t)stream : d->stream;
}

static mc_status copy(mci_exec *exec, void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                      const char *op) {
    mcu_device *d = mcu_device_of(exec->ordinal);
    if (!d) return MC_EDEVICE;
    cudaStream_t stream = stream_of(d, exec->stream);
    mc_status status = mcu_check(op, cudaMemcpyAsync(dst, src, bytes, kind, stream));
    if (status == MC_OK) status = mcu_check(op, cudaStreamSynchronize(stream));
    return status == MC_OK ? mcu_blamed(d) : status;
}

static mc_status copy_from_host(mci_exec *exec, void *dst, const void *src, size_t bytes) {
    return copy(exec, dst, src, bytes, cudaMemcpyHostToDevice, "write");
}

static mc_status copy_to_host(mci_exec *exec, void *dst, const void *src, size_t bytes) {
    return copy(exec, dst, src, bytes, cudaMemcpyDeviceToHost, "read");
}

static mc_status copy_begin(int ordinal, void *stream, void *dst, const void *src, size_t bytes,
                            int to_device) {
    mcu_device *d = mcu_device_of(ordinal);
    if (!d) return MC_EDEVICE;
    cudaMemcpyKind kind = to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    return mcu_check("copy", cudaMemcpyAsync(dst, src, bytes, kind, stream_of(d, stream)));
}

static mc_status stream_new(int ordinal, void **stream) {
    *stream = NULL;
    if (!mcu_device_of(ordinal)) return MC_EDEVICE;
    return mcu_check("stream",
                     cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking));
}

static void stream_free(int ordinal, void *stream) {
    if (stream && mcu_device_of(ordinal)) cudaStreamDestroy((cudaStream_t)stream);
}

static mc_status stream_wait(int ordinal, void *waiter, void *other) {
    mcu_device *d = mcu_device_of(ordinal);
    if (!d) return MC_EDEVICE;
    cudaEvent_t event;
    cudaError_t e = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (e != cudaSuccess) return mcu_check("stream", e);
    e = cudaEventRecord(event, stream_of(d, other));
    if (e == cudaSuccess) e = cudaStreamWaitEvent(stream_of(d, waiter), event, 0);
    cudaEventDestroy(event); /* the wait keeps what it needs of it */
    return mcu_check("stream", e);
}

static mc_status stream_synchronize(int ordinal, void *stream) {
    mcu_device *d = mcu_device_of(ordinal);
    return d ? mcu_check("stream", cudaStreamSynchronize(stream_of(d, stream))) : MC_EDEVICE;
}

static mc_status synchronize(int ordinal) {
    mcu_device *d = mcu_device_of(ordinal);
    if (!d) return MC_EDEVICE;
    if (d->recording)
        return mcu_fail(
            MC_EUNSUPPORTED,
            "synchronize: a graph is being recorded; nothing runs until it is replayed");
    mcu_relaxed scope;
    mc_status status = mcu_check("synchronize", cudaDeviceSynchronize());
    return status == MC_OK ? mcu_blamed(d) : status;
}

cudaStream_t mcu_side_stream(mci_exec *exec, int stream) {
    return stream == 0 ? mcu_stream(exec) : devices[exec->ordinal].side[stream - 1];
}

mc_status mcu_fork(mci_exec *exec, int streams) {
    mcu_device *d = &devices[exec->ordinal];
    cudaError_t e = cudaEventRecord(d->forked, mcu_stream(exec));
    for (int i = 0; i < streams && e == cudaSuccess; i++)
        e = cudaStreamWaitEvent(d->side[i], d->forked, 0);
    return mcu_check("fork", e);
}

mc_status mcu_join(mci_exec *exec, int streams) {
    mcu_device *d = &devices[exec->ordinal];
    cudaError_t e = cudaSuccess;
    for (int i = 0; i < streams && e == cudaSuccess; i++) {
        e = cudaEventRecord(d->joined[i], d->side[i]);
        if (e == cudaSuccess) e = cudaStreamWaitEvent(mcu_stream(exec), d->joined[i], 0);
    }
    return mcu_check("join", e);
}

/* -- graphs
 * ------------------------------------------------------------------------------------------ */

static mc_status graph_begin(mci_exec *exec) {
    mcu_device *d = mcu_device_of(exec->ordinal);
    if (!d) return MC_EDEVICE;
    mc_status status =
        mcu_check("graph", cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    d->recording = status == MC_OK;
    return status;
}

static mc_status graph_end(mci_exec *exec, void **graph) {
    mcu_device *d = mcu_device_of(exec->ordinal);
    if (!d) return MC_EDEVICE;
    if (graph) *graph = NULL;
    if (!d->recording) return MC_OK;
    d->recording = 0;
    cudaGraph_t recorded = NULL;
    cudaError_t e = cudaStreamEndCapture(d->stream, &recorded);
    cudaGraphExec_t made = NULL;
    if (e == cudaSuccess && graph) e = cudaGraphInstantiateWithFlags(&made, recorded, 0);
    if (recorded) cudaGraphDestroy(recorded);
    if (!graph) {
        cudaGetLastError();
        return MC_OK;
    }
    *graph = made;
    return mcu_check("graph", e);
}

static mc_status graph_replay(mci_exec *exec, void *graph) {
    mcu_device *d = mcu_device_of(exec->ordinal);
    return d ? mcu_check("graph", cudaGraphLaunch((cudaGraphExec_t)graph, d->stream)) : MC_EDEVICE;
}

static void graph_free(mci_exec *exec, void *graph) {
    if (mcu_device_of(exec->ordinal) && graph) cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

void mcu_fill_device(mci_backend *table) {
    table->abi = MCI_BACKEND_ABI;
    table->name = "cuda";
    table->device_count = device_count;
    table->info = info;
    table->alloc = alloc;
    table->free = free_block;
    table->memory = memory;
    table->copy_from_host = copy_from_host;
    table->copy_to_host = copy_to_host;
    table->pinned_alloc = pinned_alloc;
    table->pinned_free = pinned_free;
    table->copy_begin = copy_begin;
    table->stream_new = stream_new;
    table->stream_free = stream_free;
    table->stream_wait = stream_wait;
    table->stream_synchronize = stream_synchronize;
    table->synchronize = synchronize;
    table->graph_begin = graph_begin;
    table->graph_end = graph_end;
    table->graph_replay = graph_replay;
    table->graph_free = graph_free;
}
