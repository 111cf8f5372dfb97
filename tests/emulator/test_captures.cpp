/* Streams, events, captures and graphs of the emulator. */
#include <thread>

#include "test_emulator.h"

static __global__ void add_kernel(int *x, int amount) {
    x[threadIdx.x] += amount;
}
static __global__ void scale_kernel(int *x, const int *factor) {
    x[threadIdx.x] *= *factor;
}

static cudaStream_t new_stream() {
    cudaStream_t stream;
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    return stream;
}
static cudaEvent_t new_event() {
    cudaEvent_t event;
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
    return event;
}
static int is_lazy() {
    const char *text = getenv("MCU_EMULATOR_LAZY");
    return text && atoi(text);
}

/* The fork and join that ops use: what `from` holds now comes before what `to` gets. */
static void order(cudaStream_t from, cudaStream_t to) {
    cudaEvent_t event = new_event();
    CHECK(cudaEventRecord(event, from) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(to, event) == cudaSuccess);
    CHECK(cudaEventDestroy(event) == cudaSuccess);
}

static void streams_keep_order() {
    TITLE("work runs in the order of its stream and of the events it waits for");
    cudaStream_t a = new_stream(), b = new_stream();
    device_array<int> x(8, 1), two(1, 2);
    int *pinned;
    CHECK(cudaHostAlloc(&pinned, 32, cudaHostAllocMapped) == cudaSuccess);
    MCU_LAUNCH_IN(a, add_kernel, 1, 8, 0, x.data, 1);
    order(a, b);
    MCU_LAUNCH_IN(b, scale_kernel, 1, 8, 0, x.data, two.data);
    order(b, a);
    MCU_LAUNCH_IN(a, add_kernel, 1, 8, 0, x.data, 3);
    pinned[0] = 0;
    CHECK(cudaMemcpyAsync(pinned, x.data, 32, cudaMemcpyDeviceToHost, a) == cudaSuccess);
    if (is_lazy()) CHECK(pinned[0] == 0 && cudaStreamQuery(a) == cudaErrorNotReady);
    CHECK(cudaStreamSynchronize(a) == cudaSuccess);
    CHECK(cudaStreamQuery(a) == cudaSuccess);
    for (int i = 0; i < 8; i++) CHECK(pinned[i] == 7);
    CHECK(cudaFreeHost(pinned) == cudaSuccess);
    CHECK(cudaStreamDestroy(a) == cudaSuccess && cudaStreamDestroy(b) == cudaSuccess);
    CHECK(cudaStreamSynchronize(a) == cudaErrorInvalidResourceHandle);
    cudaGetLastError();
}

static void missing_event_shows() {
    if (!is_lazy()) return;
    TITLE("under MCU_EMULATOR_LAZY a missing wait gives the value from before");
    cudaStream_t a = new_stream(), b = new_stream();
    device_array<int> x(1, 1);
    int *pinned;
    CHECK(cudaMallocHost(&pinned, 4) == cudaSuccess);
    MCU_LAUNCH_IN(a, add_kernel, 1, 1, 0, x.data, 1);
    CHECK(cudaMemcpyAsync(pinned, x.data, 4, cudaMemcpyDeviceToHost, b) == cudaSuccess);
    CHECK(cudaStreamSynchronize(b) == cudaSuccess);
    CHECK(*pinned == 1);
    CHECK(cudaFreeHost(pinned) == cudaSuccess);
    CHECK(cudaStreamDestroy(a) == cudaSuccess && cudaStreamDestroy(b) == cudaSuccess);
}

static void host_functions_and_times() {
    TITLE("host functions run in order, and events tell the time between them");
    cudaStream_t a = new_stream();
    cudaEvent_t start = nullptr, end = nullptr;
    int calls = 0;
    float ms = -1;
    CHECK(cudaEventCreate(&start) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess);
    CHECK(cudaEventRecord(start, a) == cudaSuccess);
    CHECK(cudaLaunchHostFunc(
              a, [](void *p) { ++*(int *)p; }, &calls) == cudaSuccess);
    CHECK(cudaEventRecord(end, a) == cudaSuccess);
    CHECK(cudaEventSynchronize(end) == cudaSuccess && calls == 1);
    CHECK(cudaEventElapsedTime(&ms, start, end) == cudaSuccess && ms >= 0 && ms < 1e4F);
    CHECK(cudaEventDestroy(start) == cudaSuccess && cudaEventDestroy(end) == cudaSuccess);
    CHECK(cudaStreamDestroy(a) == cudaSuccess);
}

static void replays_use_recorded_arguments() {
    TITLE("a graph runs at its launch, with the arguments of the recording, forks included");
    cudaStream_t a = new_stream(), b = new_stream();
    device_array<int> x(8, 1), factor(1, 2);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamCaptureStatus status;
    int amount = 1;
    CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    MCU_LAUNCH_IN(a, add_kernel, 1, 8, 0, x.data, amount);
    order(a, b);
    CHECK(cudaStreamIsCapturing(b, &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusActive);
    MCU_LAUNCH_IN(b, scale_kernel, 1, 8, 0, x.data, factor.data);
    order(b, a);
    amount = 3;
    MCU_LAUNCH_IN(a, add_kernel, 1, 8, 0, x.data, amount);
    amount = 100;
    CHECK(cudaMemsetAsync(factor.data, 0, 4, a) == cudaSuccess);
    CHECK(cudaStreamEndCapture(a, &graph) == cudaSuccess);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(cudaStreamIsCapturing(b, &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusNone);
    CHECK(x.host()[7] == 1);
    CHECK(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    CHECK(cudaGraphLaunch(exec, a) == cudaSuccess);
    CHECK(cudaStreamSynchronize(a) == cudaSuccess);
    CHECK(x.host()[7] == (1 + 1) * 2 + 3);
    CHECK(cudaGraphLaunch(exec, a) == cudaSuccess);
    CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);
    CHECK(cudaStreamSynchronize(a) == cudaSuccess);
    CHECK(x.host()[7] == 3); /* the factor is 0 now */
    CHECK(cudaStreamDestroy(a) == cudaSuccess && cudaStreamDestroy(b) == cudaSuccess);
}

/* A capture in which `call` fails with `error`, and which is then spoiled. */
template <typename F>
static void spoils(cudaError_t error, F call) {
    cudaStream_t a = new_stream();
    cudaGraph_t graph;
    CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    CHECK(call(a) == error);
    CHECK(cudaStreamEndCapture(a, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr && cudaGetLastError() == cudaErrorStreamCaptureInvalidated);
    CHECK(cudaStreamDestroy(a) == cudaSuccess);
}
static void forbidden_in_captures() {
    TITLE("calls that wait or allocate spoil a capture");
    void *p = nullptr;
    cudaEvent_t outside = new_event();
    cudaStream_t other = new_stream();
    CHECK(cudaEventRecord(outside, other) == cudaSuccess);
    spoils(cudaErrorStreamCaptureUnsupported,
           [](cudaStream_t a) { return cudaStreamSynchronize(a); });
    spoils(cudaErrorStreamCaptureUnsupported, [](cudaStream_t a) { return cudaStreamQuery(a); });
    spoils(cudaErrorStreamCaptureUnsupported, [](cudaStream_t) { return cudaDeviceSynchronize(); });
    spoils(cudaErrorStreamCaptureUnsupported, [&](cudaStream_t) { return cudaMalloc(&p, 8); });
    spoils(cudaErrorStreamCaptureIsolation,
           [&](cudaStream_t a) { return cudaStreamWaitEvent(a, outside); });
    spoils(cudaErrorCapturedEvent, [](cudaStream_t a) {
        cudaEvent_t event = new_event();
        CHECK(cudaEventRecord(event, a) == cudaSuccess);
        cudaError_t error = cudaEventSynchronize(event);
        CHECK(cudaEventDestroy(event) == cudaSuccess);
        return error;
    });
    CHECK(cudaEventDestroy(outside) == cudaSuccess && cudaStreamDestroy(other) == cudaSuccess);
}

static void allocating_in_relaxed_mode() {
    TITLE("a thread in relaxed mode, or another thread, may allocate during a capture");
    cudaStream_t a = new_stream();
    cudaGraph_t graph;
    void *p = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    CHECK(mode == cudaStreamCaptureModeGlobal);
    CHECK(cudaMalloc(&p, 8) == cudaSuccess && cudaFree(p) == cudaSuccess);
    CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    cudaError_t there = cudaErrorUnknown;
    std::thread([&] { there = cudaMalloc(&p, 8); }).join();
    CHECK(there == cudaSuccess);
    CHECK(cudaStreamEndCapture(a, &graph) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess && cudaFree(p) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal) == cudaSuccess);
    std::thread([&] { there = cudaMalloc(&p, 8); }).join();
    CHECK(there == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(a, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(cudaStreamDestroy(a) == cudaSuccess);
    cudaGetLastError();
}

static void unjoined_forks() {
    TITLE("a capture ends only where it began, with all forks joined");
    cudaStream_t a = new_stream(), b = new_stream();
    cudaGraph_t graph;
    device_array<int> x(1, 0);
    CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    order(a, b); /* a fork without work need not join */
    CHECK(cudaStreamEndCapture(a, &graph) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    order(a, b);
    MCU_LAUNCH_IN(b, add_kernel, 1, 1, 0, x.data, 1);
    order(b, a);
    MCU_LAUNCH_IN(b, add_kernel, 1, 1, 0, x.data, 1);
    CHECK(cudaStreamEndCapture(a, &graph) == cudaErrorStreamCaptureUnjoined);
    CHECK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    order(a, b);
    CHECK(cudaStreamEndCapture(b, &graph) == cudaErrorStreamCaptureUnmatched);
    CHECK(cudaStreamEndCapture(a, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(x.host()[0] == 0);
    CHECK(cudaStreamDestroy(a) == cudaSuccess && cudaStreamDestroy(b) == cudaSuccess);
    cudaGetLastError();
}

int test_captures() {
    streams_keep_order();
    missing_event_shows();
    host_functions_and_times();
    replays_use_recorded_arguments();
    forbidden_in_captures();
    allocating_in_relaxed_mode();
    unjoined_forks();
    return check_report();
}
