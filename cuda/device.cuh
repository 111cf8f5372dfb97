/* device.cuh: the part of the table that is no kernel: devices, memory, streams, graphs. */
#ifndef MCU_DEVICE_CUH
#define MCU_DEVICE_CUH

#include "common.cuh"

enum { MCU_DEVICES = 16 };

/* 1, with the message set, when this machine has no driver, or one that is too old for the plugin.
 */
int mcu_driver_missing(void);
void mcu_fill_device(mci_backend *table);

/* One GPU, made at its first use. Streams are non-blocking ones: the legacy default stream cannot
 * be recorded into a graph. */
typedef struct mcu_device {
    int ready;
    int processors, major, minor;
    cudaStream_t stream, side[MCU_SIDE_STREAMS];
    cudaEvent_t forked, joined[MCU_SIDE_STREAMS];
    mcu_blame_record *blame; /* pinned, and written by kernels */
    int recording;
    char name[256];
} mcu_device;

/* While it lives, this thread may make and wait for things although it records a graph. */
struct mcu_relaxed {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    mcu_relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
    ~mcu_relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
};

/* Makes it the thread's current device. NULL with the message set when it cannot be made ready. */
mcu_device *mcu_device_of(int ordinal);
/* Raises what kernels have blamed since the last time, once. */
mc_status mcu_blamed(mcu_device *device);
/* profile.cu. timed: 1 while calls are timed; each call then lies between start and stop. */
extern int mcu_timed;
void mcu_time_start(mci_exec *exec, int op);
void mcu_time_stop(mci_exec *exec);
mc_status mcu_profile_begin(mci_exec *exec);
mc_status mcu_profile_end(mci_exec *exec, int64_t *calls, double *seconds);
/* The version text of cuBLASLt; NULL without it (gemm_lt.cu). */
const char *mcu_blas_version(void);

#endif
