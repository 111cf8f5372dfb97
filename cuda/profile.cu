/* profile.cu: the device's time by op: an event before and after each call. Events are read when
 * the profile ends, so that the work in between runs as it does without one.
 */
#include "device.cuh"

#include <cstdlib>

namespace {

struct span {
    int op;
    cudaEvent_t start, stop;
};

enum { SPANS_MAX = 1 << 20 }; /* events cost memory of the driver */
span *spans;
int64_t used, room;
int open_call; /* a call was begun and not ended */

int make_room() {
    if (used < room) return 1;
    int64_t bigger = room ? 2 * room : 1024;
    if (bigger > SPANS_MAX) return 0;
    span *grown = (span *)realloc(spans, (size_t)bigger * sizeof *spans);
    if (!grown) return 0;
    spans = grown;
    room = bigger;
    return 1;
}

void drop_all() {
    for (int64_t i = 0; i < used; i++) {
        cudaEventDestroy(spans[i].start);
        cudaEventDestroy(spans[i].stop);
    }
    free(spans);
    spans = NULL;
    used = room = 0;
}

} /* namespace */

int mcu_timed;

void mcu_time_start(mci_exec *exec, int op) {
    open_call = 0;
    mcu_device *d = mcu_device_of(exec->ordinal);
    if (!d || d->recording || !make_room()) return;
    span s = {op, NULL, NULL};
    if (cudaEventCreate(&s.start) != cudaSuccess) return;
    if (cudaEventCreate(&s.stop) != cudaSuccess) {
        cudaEventDestroy(s.start);
        return;
    }
    cudaEventRecord(s.start, mcu_stream(exec));
    spans[used++] = s;
    open_call = 1;
}

void mcu_time_stop(mci_exec *exec) {
    if (open_call) cudaEventRecord(spans[used - 1].stop, mcu_stream(exec));
    open_call = 0;
}

mc_status mcu_profile_begin(mci_exec *exec) {
    if (mcu_timed) return mcu_fail(MC_EINVAL, "profile: one is running already");
    if (!mcu_device_of(exec->ordinal)) return MC_EDEVICE;
    mcu_timed = 1;
    return MC_OK;
}

mc_status mcu_profile_end(mci_exec *exec, int64_t *calls, double *seconds) {
    if (!mcu_timed) return mcu_fail(MC_EINVAL, "profile: none is running");
    mcu_timed = 0;
    if (!mcu_device_of(exec->ordinal)) return MC_EDEVICE;
    mc_status status = MC_OK;
    for (int64_t i = 0; i < used && status == MC_OK; i++) {
        float ms = 0;
        status = mcu_check("profile", cudaEventSynchronize(spans[i].stop));
        if (status == MC_OK)
            status = mcu_check("profile", cudaEventElapsedTime(&ms, spans[i].start, spans[i].stop));
        calls[spans[i].op]++;
        seconds[spans[i].op] += ms * 1e-3;
    }
    drop_all();
    return status;
}
