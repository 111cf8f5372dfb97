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

/* The fake backend: the CPU's kernels on memory that the host cannot read outside a kernel
 * (fake.c). */
const mci_backend *mci_fake_backend(void);

#endif
