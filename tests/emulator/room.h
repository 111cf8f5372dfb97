/* room.h: what runtime.cpp and streams.cpp share. */
#ifndef MCU_EMULATOR_ROOM_H
#define MCU_EMULATOR_ROOM_H

#include <functional>
#include <mutex>

#include "emulator.h"

enum {
    MCU_EMULATOR_THREADS = 1024,          /* of a block */
    MCU_EMULATOR_SHARED = 48 << 10,       /* bytes of a block, unless its kernel has raised them */
    MCU_EMULATOR_SHARED_MOST = 227 << 10, /* to at most this */
    MCU_EMULATOR_SHARED_ALL = 228 << 10   /* of a multiprocessor */
};

/* Held by every call of the runtime, and so by every kernel that runs. What it guards is never
 * destroyed: libraries call in while the process ends. */
std::recursive_mutex &mcu_emulator_lock();
#define MCU_EMULATOR_LOCKED std::lock_guard<std::recursive_mutex> locked(mcu_emulator_lock())

/* Keeps `error` for cudaGetLastError and gives it back. */
cudaError_t mcu_emulator_error(cudaError_t error);
/* A number in the environment, or `otherwise`. */
long long mcu_emulator_setting(const char *name, long long otherwise);

/* While one lives, MCU_EMULATOR_PROTECT's memory can be touched. */
struct mcu_emulator_access {
    mcu_emulator_access();
    ~mcu_emulator_access();
};

/* The launch against the device's limits, and the kernel's own for shared memory. */
cudaError_t mcu_emulator_check_launch(const mcu_emulator_launch &launch);

/* Runs, queues or records what is put into the stream. */
cudaError_t mcu_emulator_enqueue(cudaStream_t stream, std::function<void()> work);
/* A call that a capture forbids (cudaMalloc, for one): spoils the captures that forbid it. */
cudaError_t mcu_emulator_unsafe();
/* 1: the stream runs its work later, and is not being captured */
int mcu_emulator_is_lazy(cudaStream_t stream);
/* All work of all streams; of one. */
void mcu_emulator_flush();
void mcu_emulator_flush_stream(cudaStream_t stream);

#endif
