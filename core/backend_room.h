/* backend_room.h: finds the backend, and the default stream, behind a device code. */
#ifndef MCI_BACKEND_ROOM_H
#define MCI_BACKEND_ROOM_H

#include "backend.h"

/* Device code: backend index * 256 + device number. 0 is the CPU. */
enum { MCI_DEVICE_CPU = 0, MCI_DEVICE_FAKE = 256, MCI_DEVICE_CUDA = 512 };

/* MC_EINVAL for a code that mc_device_parse never gave. */
mc_status mci_check_device(const char *op, int device);
/* Both are valid for any code that it did give. */
const mci_backend *mci_backend_of(int device);
mci_exec *mci_exec_of(int device);

/* Scratch that a recorded graph uses. It grows by a quarter at least, so there are few. */
enum { MCI_HELD_MAX = 64 };
typedef struct mci_held {
    int n;
    struct {
        void *data;
        size_t bytes;
    } block[MCI_HELD_MAX];
    void *outer; /* what stood there before */
    size_t outer_bytes;
} mci_held;
/* From begin to end the device's scratch is memory of its own, all of which *held gets. */
void mci_scratch_begin(int device, mci_held *held);
void mci_scratch_end(int device);
void mci_held_free(int device, mci_held *held);

/* The fake backend: the CPU's kernels on memory that the host cannot read outside a kernel
 * (fake.c). */
const mci_backend *mci_fake_backend(void);

#endif
