/* table.c: the CPU backend's table for one instruction set, straight from ops.def. */
#include "cpu.h"
#include "host.h"

const mci_backend MCI_CPU(table) = {
    .abi = MCI_BACKEND_ABI,
    .name = "cpu",
    .device_count = mci_host_device_count,
    .alloc = mci_host_alloc,
    .free = mci_host_free,
    .copy_from_host = mci_host_copy,
    .copy_to_host = mci_host_copy,
    .pinned_alloc = mci_host_pinned_alloc,
    .pinned_free = mci_host_pinned_free,
    .copy_begin = mci_host_copy_begin,
    .stream_wait = mci_host_stream_wait,
    .stream_synchronize = mci_host_stream_synchronize,
    .stream_new = mci_host_stream_new,
    .stream_free = mci_host_stream_free,
    .synchronize = mci_host_synchronize,
    .host_readable = 1,
    .kernels =
        {
#define MC_OP(name, outputs, inputs, params) [MCI_OP_##name] = MCI_CPU(name),
#include "ops.def"
#undef MC_OP
        },
};
