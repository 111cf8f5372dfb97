/* streams.cpp: streams, events, captures and graphs of the emulated runtime.
 *
 * Work put into a stream runs at once, or, under MCU_EMULATOR_LAZY, when somebody waits for it. In
 * a capture it is recorded instead. A capture has members: the stream where it began and those that
 * waited for its events. Each member has a line of nodes; a wait is a node that names a member and
 * how far that one must have come. So a replay can run the lines as lazily as streams. Whether all
 * work was joined again is known from vector clocks: how far each member has seen the others.
 */
#include <time.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <thread>
#include <unordered_set>
#include <vector>

#include "room.h"

namespace {

struct node {
    std::function<void()> run; /* none: a wait */
    size_t member, upto;
};
typedef std::vector<size_t> clock_of_members;

struct recording {
    std::vector<std::vector<node>> lines;            /* by member */
    std::vector<std::pair<size_t, size_t>> sequence; /* member, index: as recorded */
};

struct capture {
    unsigned long long id;
    cudaStreamCaptureMode mode;
    std::thread::id owner;
    bool spoiled = false;
    std::vector<cudaStream_t> members;
    std::vector<clock_of_members> seen; /* by member */
    std::vector<size_t> last_work;      /* by member: its line's length after its last real node */
    std::shared_ptr<recording> made = std::make_shared<recording>();
};

}  // namespace

struct CUstream_st {
    int device;
    unsigned flags;
    std::deque<std::function<void()>> queue;
    uint64_t given = 0, done = 0;
    capture *in = nullptr;
    size_t member = 0;
};
struct CUevent_st {
    unsigned flags;
    int device;
    CUevent_st(unsigned flags_, int device_) : flags(flags_), device(device_) {}
    cudaStream_t stream = nullptr; /* where it was recorded, unless in a capture */
    uint64_t ticket = 0;
    unsigned long long captured = 0; /* the capture's id */
    size_t member = 0;
    clock_of_members seen;
    std::shared_ptr<double> time = std::make_shared<double>(0.0); /* ms */
};
struct CUgraph_st {
    std::shared_ptr<recording> made;
};
struct CUgraphExec_st {
    std::shared_ptr<recording> made;
};

namespace {

struct state {
    bool lazy = mcu_emulator_setting("MCU_EMULATOR_LAZY", 0) != 0;
    std::unordered_set<cudaStream_t> streams; /* that live; their memory is kept for good */
    std::unordered_set<cudaEvent_t> events;
    std::vector<capture *> captures; /* under way */
    unsigned long long ids = 0;
};
state &the() {
    static state *s = new state(); /* lives to the very end */
    return *s;
}
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool is_legacy(cudaStream_t stream) {
    return stream == nullptr || stream == cudaStreamLegacy;
}

cudaError_t check_stream(cudaStream_t stream) {
    return is_legacy(stream) || the().streams.count(stream) ? cudaSuccess
                                                            : cudaErrorInvalidResourceHandle;
}

void run_until(cudaStream_t stream, uint64_t ticket) {
    while (stream->done < ticket && !stream->queue.empty()) {
        std::function<void()> work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        work();
    }
}

/* The legacy stream waits for all blocking streams, and none of them may be captured. */
cudaError_t enter_legacy() {
    for (capture *c : the().captures)
        for (cudaStream_t member : c->members)
            if (!(member->flags & cudaStreamNonBlocking)) {
                c->spoiled = true;
                return cudaErrorStreamCaptureImplicit;
            }
    for (cudaStream_t s : the().streams)
        if (!(s->flags & cudaStreamNonBlocking)) run_until(s, s->given);
    return cudaSuccess;
}

void see(clock_of_members &to, const clock_of_members &from) {
    if (to.size() < from.size()) to.resize(from.size());
    for (size_t i = 0; i < from.size(); i++) to[i] = std::max(to[i], from[i]);
}

void record(capture *c, size_t member, node n) {
    std::vector<node> &line = c->made->lines[member];
    bool real = (bool)n.run;
    c->made->sequence.push_back({member, line.size()});
    line.push_back(std::move(n));
    if (real) c->last_work[member] = line.size();
}

void add_member(capture *c, cudaStream_t stream) {
    stream->in = c;
    stream->member = c->members.size();
    c->members.push_back(stream);
    c->seen.push_back({});
    c->last_work.push_back(0);
    c->made->lines.push_back({});
}

capture *find_capture(unsigned long long id) {
    for (capture *c : the().captures)
        if (c->id == id) return c;
    return nullptr;
}

void end_capture(capture *c) {
    for (cudaStream_t s : c->members) s->in = nullptr;
    the().captures.erase(std::find(the().captures.begin(), the().captures.end(), c));
    delete c;
}

/* Host calls that wait are errors while the stream is captured, and spoil the capture. */
cudaError_t refuse_captured(cudaStream_t stream) {
    if (is_legacy(stream) || !stream->in) return cudaSuccess;
    stream->in->spoiled = true;
    return cudaErrorStreamCaptureUnsupported;
}

void replay_line(const recording &r, std::vector<size_t> &at, size_t member, size_t upto) {
    while (at[member] < upto) {
        const node &n = r.lines[member][at[member]++];
        if (n.run)
            n.run();
        else
            replay_line(r, at, n.member, n.upto);
    }
}

void replay(const recording &r) {
    if (the().lazy) {
        std::vector<size_t> at(r.lines.size());
        replay_line(r, at, 0, r.lines[0].size());
        return;
    }
    for (const auto &step : r.sequence) {
        const node &n = r.lines[step.first][step.second];
        if (n.run) n.run();
    }
}

double now_ms() {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

void run_kernel(const mcu_emulator_launch &launch) {
    mcu_emulator_access access;
    mcu_emulator_run(launch);
}

cudaError_t new_stream(cudaStream_t *stream, unsigned flags) {
    MCU_EMULATOR_LOCKED;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    *stream = new CUstream_st{device, flags, {}};
    the().streams.insert(*stream);
    return cudaSuccess;
}

}  // namespace

/* -- work
 * -------------------------------------------------------------------------------------------------
 */

cudaError_t mcu_emulator_enqueue(cudaStream_t stream, std::function<void()> work) {
    cudaError_t error = check_stream(stream);
    if (error == cudaSuccess && is_legacy(stream)) error = enter_legacy();
    if (error != cudaSuccess) return error;
    if (is_legacy(stream)) {
        work();
    } else if (stream->in) {
        if (stream->in->spoiled) return cudaErrorStreamCaptureInvalidated;
        record(stream->in, stream->member, {std::move(work), 0, 0});
    } else {
        stream->given++;
        stream->queue.push_back(std::move(work));
        if (!the().lazy) run_until(stream, stream->given);
    }
    return cudaSuccess;
}

cudaError_t mcu_emulator_unsafe() {
    cudaError_t error = cudaSuccess;
    for (capture *c : the().captures) {
        bool own = c->owner == std::this_thread::get_id();
        bool forbids = thread_mode != cudaStreamCaptureModeRelaxed &&
                       (own ? c->mode != cudaStreamCaptureModeRelaxed
                            : c->mode == cudaStreamCaptureModeGlobal &&
                                  thread_mode == cudaStreamCaptureModeGlobal);
        if (!forbids) continue;
        c->spoiled = true;
        error = cudaErrorStreamCaptureUnsupported;
    }
    return error;
}

int mcu_emulator_is_lazy(cudaStream_t stream) {
    return the().lazy && !is_legacy(stream) && the().streams.count(stream) && !stream->in;
}

void mcu_emulator_flush() {
    for (cudaStream_t s : the().streams) run_until(s, s->given);
}

void mcu_emulator_flush_stream(cudaStream_t stream) {
    run_until(stream, stream->given);
}

void mcu_emulator_start(const mcu_emulator_launch &launch, cudaStream_t stream) {
    MCU_EMULATOR_LOCKED;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = check_stream(stream);
    if (error == cudaSuccess && !is_legacy(stream) && stream->device != device)
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess) error = mcu_emulator_check_launch(launch);
    if (error == cudaSuccess && !is_legacy(stream) && !stream->in && !the().lazy) {
        run_kernel(launch); /* nothing need be copied */
    } else if (error == cudaSuccess) {
        void *copy = nullptr;
        if (posix_memalign(&copy, 64, launch.held_bytes)) abort();
        memcpy(copy, launch.held, launch.held_bytes);
        std::shared_ptr<void> kept(copy, free);
        error = mcu_emulator_enqueue(stream, [launch, kept] {
            mcu_emulator_launch own = launch;
            own.held = kept.get();
            run_kernel(own);
        });
    }
    mcu_emulator_error(error);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    MCU_EMULATOR_LOCKED;
    return mcu_emulator_error(mcu_emulator_enqueue(stream, [=] { function(data); }));
}

/* -- streams
 * ---------------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return mcu_emulator_error(new_stream(stream, cudaStreamDefault));
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return mcu_emulator_error(new_stream(stream, flags));
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return mcu_emulator_error(new_stream(stream, flags));
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    MCU_EMULATOR_LOCKED;
    if (is_legacy(stream) || !the().streams.count(stream))
        return mcu_emulator_error(cudaErrorInvalidResourceHandle);
    cudaError_t error = refuse_captured(stream);
    if (error != cudaSuccess) return mcu_emulator_error(error);
    run_until(stream, stream->given);
    the().streams.erase(stream); /* events may still name it */
    static std::vector<cudaStream_t> *gone = new std::vector<cudaStream_t>();
    gone->push_back(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_stream(stream);
    if (error == cudaSuccess) error = is_legacy(stream) ? enter_legacy() : refuse_captured(stream);
    if (error == cudaSuccess && !is_legacy(stream)) run_until(stream, stream->given);
    return mcu_emulator_error(error);
}
/* Each query runs one piece of lazy work, so that polling ends. */
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_stream(stream);
    if (error == cudaSuccess) error = is_legacy(stream) ? enter_legacy() : refuse_captured(stream);
    if (error == cudaSuccess && !is_legacy(stream) && stream->done < stream->given) {
        run_until(stream, stream->done + 1);
        error = cudaErrorNotReady;
    }
    return mcu_emulator_error(error);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_stream(stream);
    if (error == cudaSuccess && !the().events.count(event)) error = cudaErrorInvalidResourceHandle;
    if (error != cudaSuccess) return mcu_emulator_error(error);
    if (event->captured) {
        capture *c = find_capture(event->captured);
        if (!c) return mcu_emulator_error(cudaErrorCapturedEvent);
        if (c->spoiled) return mcu_emulator_error(cudaErrorStreamCaptureInvalidated);
        if (is_legacy(stream)) return mcu_emulator_error(cudaErrorStreamCaptureImplicit);
        if (stream->in && stream->in != c) {
            c->spoiled = stream->in->spoiled = true;
            return mcu_emulator_error(cudaErrorStreamCaptureMerge);
        }
        if (!stream->in) add_member(c, stream);
        size_t upto = event->member < event->seen.size() ? event->seen[event->member] : 0;
        if (event->member != stream->member)
            record(c, stream->member, {nullptr, event->member, upto});
        see(c->seen[stream->member], event->seen);
        return cudaSuccess;
    }
    if (!event->stream) return cudaSuccess; /* never recorded */
    if (!is_legacy(stream) && stream->in) {
        stream->in->spoiled = true;
        return mcu_emulator_error(cudaErrorStreamCaptureIsolation);
    }
    cudaStream_t other = event->stream;
    uint64_t ticket = event->ticket;
    return mcu_emulator_error(mcu_emulator_enqueue(stream, [=] { run_until(other, ticket); }));
}

/* -- events
 * -----------------------------------------------------------------------------------------------
 */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    MCU_EMULATOR_LOCKED;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    *event = new CUevent_st(flags, device);
    the().events.insert(*event);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    MCU_EMULATOR_LOCKED;
    if (!the().events.erase(event)) return mcu_emulator_error(cudaErrorInvalidResourceHandle);
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_stream(stream);
    if (error == cudaSuccess && !the().events.count(event)) error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && !is_legacy(stream) && stream->device != event->device)
        error = cudaErrorInvalidResourceHandle;
    if (error != cudaSuccess) return mcu_emulator_error(error);
    if (!is_legacy(stream) && stream->in) {
        capture *c = stream->in;
        if (c->spoiled) return mcu_emulator_error(cudaErrorStreamCaptureInvalidated);
        clock_of_members &own = c->seen[stream->member];
        if (own.size() <= stream->member) own.resize(stream->member + 1);
        own[stream->member] = c->made->lines[stream->member].size();
        event->captured = c->id;
        event->member = stream->member;
        event->seen = own;
        return cudaSuccess;
    }
    event->captured = 0;
    std::shared_ptr<double> time = event->time;
    error = mcu_emulator_enqueue(stream, [time] { *time = now_ms(); });
    event->stream = is_legacy(stream) ? nullptr : stream; /* legacy work is done already */
    event->ticket = is_legacy(stream) ? 0 : stream->given;
    return mcu_emulator_error(error);
}
static cudaError_t check_waitable(cudaEvent_t event) {
    if (!the().events.count(event)) return cudaErrorInvalidResourceHandle;
    if (!event->captured) return cudaSuccess;
    capture *c = find_capture(event->captured);
    if (c) c->spoiled = true;
    return cudaErrorCapturedEvent;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = mcu_emulator_unsafe();
    if (error == cudaSuccess) error = check_waitable(event);
    if (error == cudaSuccess && event->stream && event->stream->done < event->ticket) {
        run_until(event->stream, event->stream->done + 1);
        error = cudaErrorNotReady;
    }
    return mcu_emulator_error(error);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_waitable(event);
    if (error == cudaSuccess && event->stream) run_until(event->stream, event->ticket);
    return mcu_emulator_error(error);
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_waitable(start);
    if (error == cudaSuccess) error = check_waitable(end);
    if (error == cudaSuccess && ((start->flags | end->flags) & cudaEventDisableTiming))
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && (*start->time == 0.0 || *end->time == 0.0))
        error = start->stream && end->stream ? cudaErrorNotReady : cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess) *milliseconds = (float)(*end->time - *start->time);
    return mcu_emulator_error(error);
}

/* -- captures and graphs
 * ------------------------------------------------------------------------------------ */

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus *status,
                                     unsigned long long *id) {
    MCU_EMULATOR_LOCKED;
    cudaError_t error = check_stream(stream);
    if (error != cudaSuccess) return mcu_emulator_error(error);
    capture *c = is_legacy(stream) ? nullptr : stream->in;
    *status = !c           ? cudaStreamCaptureStatusNone
              : c->spoiled ? cudaStreamCaptureStatusInvalidated
                           : cudaStreamCaptureStatusActive;
    if (id && c) *id = c->id;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    return cudaStreamGetCaptureInfo(stream, status, nullptr);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
    std::swap(*mode, thread_mode);
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    MCU_EMULATOR_LOCKED;
    if (is_legacy(stream)) return mcu_emulator_error(cudaErrorStreamCaptureUnsupported);
    cudaError_t error = check_stream(stream);
    if (error == cudaSuccess && stream->in) error = cudaErrorIllegalState;
    if (error != cudaSuccess) return mcu_emulator_error(error);
    capture *c = new capture();
    c->id = ++the().ids;
    c->mode = mode;
    c->owner = std::this_thread::get_id();
    add_member(c, stream);
    the().captures.push_back(c);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    MCU_EMULATOR_LOCKED;
    *graph = nullptr;
    cudaError_t error = check_stream(stream);
    if (error == cudaSuccess && (is_legacy(stream) || !stream->in)) error = cudaErrorIllegalState;
    if (error != cudaSuccess) return mcu_emulator_error(error);
    capture *c = stream->in;
    if (stream->member != 0) {
        c->spoiled = true;
        return mcu_emulator_error(cudaErrorStreamCaptureUnmatched);
    }
    if (c->mode != cudaStreamCaptureModeRelaxed && c->owner != std::this_thread::get_id())
        return mcu_emulator_error(cudaErrorStreamCaptureWrongThread);
    if (c->spoiled) error = cudaErrorStreamCaptureInvalidated;
    clock_of_members seen = c->seen[0];
    seen.resize(c->members.size());
    for (size_t i = 1; i < c->members.size() && error == cudaSuccess; i++)
        if (seen[i] < c->last_work[i]) error = cudaErrorStreamCaptureUnjoined;
    if (error == cudaSuccess) *graph = new CUgraph_st{c->made};
    end_capture(c);
    return mcu_emulator_error(error);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    MCU_EMULATOR_LOCKED;
    *exec = nullptr;
    if (!graph) return mcu_emulator_error(cudaErrorInvalidValue);
    *exec = new CUgraphExec_st{graph->made};
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long flags) {
    return cudaGraphInstantiate(exec, graph, flags);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
    return mcu_emulator_error(exec ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    MCU_EMULATOR_LOCKED;
    if (!exec) return mcu_emulator_error(cudaErrorInvalidValue);
    std::shared_ptr<recording> made = exec->made;
    return mcu_emulator_error(mcu_emulator_enqueue(stream, [made] { replay(*made); }));
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    MCU_EMULATOR_LOCKED;
    if (!exec) return mcu_emulator_error(cudaErrorInvalidValue);
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    MCU_EMULATOR_LOCKED;
    if (!graph) return mcu_emulator_error(cudaErrorInvalidValue);
    delete graph;
    return cudaSuccess;
}
