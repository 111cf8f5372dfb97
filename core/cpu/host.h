/* host.h: what the CPU and the fake backend share: host memory with the signatures of the backend
 * table. */
#ifndef MCI_HOST_H
#define MCI_HOST_H

#include "backend.h"

mc_status mci_host_device_count(int *count);
mc_status mci_host_alloc(mci_exec *exec, size_t bytes, void **out);
void mci_host_free(mci_exec *exec, void *data, size_t bytes);
mc_status mci_host_copy(mci_exec *exec, void *dst, const void *src, size_t bytes);
mc_status mci_host_pinned_alloc(int ordinal, size_t bytes, void **out);
void mci_host_pinned_free(int ordinal, void *data);
mc_status mci_host_copy_begin(int ordinal, void *stream, void *dst, const void *src, size_t bytes,
                              int to_device);
mc_status mci_host_stream_wait(int ordinal, void *waiter, void *other);
mc_status mci_host_stream_synchronize(int ordinal, void *stream);
mc_status mci_host_stream_new(int ordinal, void **stream);
void mci_host_stream_free(int ordinal, void *stream);
mc_status mci_host_synchronize(int ordinal);

/* The table of the best instruction set this machine runs (MASCON_ISA=base|avx2|avx512 takes a
 * lower one). */
const mci_backend *mci_cpu_backend(void);
const char *mci_cpu_isa(void);

#endif
