/* table.cu: the plugin's one door, and its table straight from ops.def. */
#include "attention.cuh"
#include "device.cuh"
#include "grouped.cuh"
#include "many.cuh"

#include <cstdio>

const mci_services *mcu_core;

/* The way of an op in words, for mc_grouped_linear_path and tests. */
static void path(int op, const mci_view *const *t, const void *params, char *text, size_t size) {
    const mci_attention_params *attention = (const mci_attention_params *)params;
    if (op == MCI_OP_attention)
        snprintf(text, size, "%s", mcu_attention_path(t, attention));
    else if (op == MCI_OP_attention_backward)
        snprintf(text, size, "%s", mcu_attention_backward_path(t, attention));
    else
        mcu_grouped_path(op, t, params, text, size);
}

/* What stands in the table: the kernel, between two events while a profile runs. */
#define MC_OP(name, outputs, inputs, params)                                                      \
    static mc_status call_##name(mci_exec *exec, const mci_view *const *t, const void *params_) { \
        if (!mcu_timed) return mcu_##name(exec, t, params_);                                      \
        mcu_time_start(exec, MCI_OP_##name);                                                      \
        mc_status status = mcu_##name(exec, t, params_);                                          \
        mcu_time_stop(exec);                                                                      \
        return status;                                                                            \
    }
#include "ops.def"
#undef MC_OP

static mc_status many(mci_exec *exec, int op, int64_t n, const mci_view *const *const *t,
                      const void *params_) {
    if (mcu_timed) mcu_time_start(exec, op);
    mc_status status = mcu_many(exec, op, n, t, params_);
    if (mcu_timed) mcu_time_stop(exec);
    return status;
}

extern "C" __attribute__((visibility("default"))) const mci_backend *mascon_backend_cuda(
    const mci_services *services) {
    static mci_backend table;
    mcu_core = services;
    if (services->abi != MCI_BACKEND_ABI) {
        services->fail(
            MC_EDEVICE,
            "device cuda: the plugin has ABI %d and the library %u; install both together",
            MCI_BACKEND_ABI, services->abi);
        return NULL;
    }
    if (mcu_driver_missing()) return NULL;
    mcu_fill_device(&table);
    table.path = path;
    table.many = many;
    table.profile_begin = mcu_profile_begin;
    table.profile_end = mcu_profile_end;
    table.takes_host_splits = 1;
#define MC_OP(name, outputs, inputs, params) table.kernels[MCI_OP_##name] = call_##name;
#include "ops.def"
#undef MC_OP
    return &table;
}
