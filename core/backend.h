/* backend.h: what a backend (CPU, CUDA plugin, the fake one of the tests) gives to the core, and
 * what the core gives to it. A plugin includes this header and nothing else of the core.
 *
 * A kernel takes views: outputs first, then inputs, NULL for an absent one, in the order of
 * ops.def. The core has checked shapes, dtypes and devices and has allocated the outputs. A kernel
 * allocates nothing; scratch comes from exec->scratch. It runs in stream order and reads no device
 * value on the host.
 */
#ifndef MCI_BACKEND_H
#define MCI_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "mascon.h"

enum { MCI_BACKEND_ABI = 2 };

typedef struct mci_view {
    void *data; /* first element; NULL only when the view has no elements */
    int32_t dtype;
    int32_t ndim;
    int64_t shape[MC_MAX_DIMS];
    int64_t stride[MC_MAX_DIMS]; /* elements */
} mci_view;

static inline int64_t mci_numel(const mci_view *v) {
    int64_t n = 1;
    for (int i = 0; i < v->ndim; i++) n *= v->shape[i];
    return n;
}

static inline int mci_is_contiguous(const mci_view *v) {
    int64_t want = 1;
    int dense = 1;
    for (int i = v->ndim - 1; i >= 0; i--) {
        if (v->shape[i] == 0) return 1; /* nothing lies anywhere */
        dense = dense && (v->shape[i] == 1 || v->stride[i] == want);
        want *= v->shape[i];
    }
    return dense;
}

/* Where a kernel runs. */
typedef struct mci_exec {
    int ordinal;  /* device number within the backend */
    void *stream; /* the backend's own; NULL = its default stream */
    /* `bytes` of 64-byte aligned memory of the device, owned by (device, stream), valid until the
     * kernel's work in this stream is done; NULL when out of memory. One call per kernel. */
    void *(*scratch)(struct mci_exec *exec, size_t bytes);
    void *owner;
} mci_exec;

/* The core's services for a plugin. */
typedef struct mci_services {
    uint32_t abi;
    mc_status (*fail)(mc_status code, const char *format, ...)
        __attribute__((format(printf, 2, 3)));
} mci_services;

/* -- parameters of the ops, by the name in ops.def --------------------------------------------- */

typedef struct mci_none {
    int unused;
} mci_none;
typedef struct mci_fill_params {
    double value, step;
} mci_fill_params;
typedef struct mci_random_params {
    double a, b;
    int64_t low, high;
} mci_random_params;
typedef struct mci_scalar_params {
    double scalar;
    int has_scalar, reverse;
} mci_scalar_params;
typedef struct mci_clamp_params {
    double low, high;
} mci_clamp_params;
/* reduced[i] = 1 when axis i of the input is reduced; the output view keeps those axes with size 1.
 */
typedef struct mci_reduce_params {
    int reduced[MC_MAX_DIMS];
    int axis;
} mci_reduce_params;
typedef struct mci_axis_params {
    int axis;
} mci_axis_params;
/* tf32: float32 operands may be rounded to tf32 first. gelu: of the sum with the bias. */
typedef struct mci_matmul_params {
    int tf32, gelu;
} mci_matmul_params;
typedef struct mci_norm_params {
    double eps;
} mci_norm_params;
typedef struct mci_loss_params {
    int64_t ignore_index;
} mci_loss_params;
typedef struct mci_rope_params {
    double theta;
    int64_t first;
    int inverse;
} mci_rope_params;
typedef struct mci_attention_params {
    double scale;
    int causal;
} mci_attention_params;
typedef struct mci_router_params {
    double scale;
    int64_t k, groups, group_topk;
    int score_function;
} mci_router_params;
typedef struct mci_moe_params {
    double coefficient;
    int64_t k, experts;
} mci_moe_params;
typedef struct mci_optim_params {
    double beta1, beta2, eps, weight_decay, momentum, dampening;
    int decoupled, nesterov;
} mci_optim_params;
/* zero_tail: rows beyond the splits' sum are zeroed. accumulate: add to the output. host_splits:
 * the splits [G], checked, where the host knows them; else NULL, and the splits operand holds them.
 * Where both are there they are equal. */
typedef struct mci_grouped_params {
    int zero_tail, accumulate;
    const int64_t *host_splits;
} mci_grouped_params;

typedef mc_status (*mci_kernel)(mci_exec *exec, const mci_view *const *t, const void *params);

enum {
#define MC_OP(name, outputs, inputs, params) MCI_OP_##name,
#include "ops.def"
#undef MC_OP
    MCI_OP_COUNT
};

typedef struct mci_backend {
    uint32_t abi;
    const char *name; /* "cpu", "cuda", "fake" */
    mc_status (*device_count)(int *count);
    /* Facts for `doctor` and for tests: "name", "driver", "runtime", "blas", "capability", ...;
     * NULL for an unknown key. */
    const char *(*info)(int ordinal, const char *key);
    /* Memory of the device in stream order; alloc gives MC_ENOMEM with *out = NULL when there is
     * none. Legal while a graph is captured. */
    mc_status (*alloc)(mci_exec *exec, size_t bytes, void **out);
    void (*free)(mci_exec *exec, void *data, size_t bytes);
    mc_status (*memory)(int ordinal, int64_t *free_bytes, int64_t *total_bytes);
    /* Plain bytes; host memory is ordinary. Each is complete when it returns; an error of earlier
     * work shows here. */
    mc_status (*copy_from_host)(mci_exec *exec, void *dst, const void *src, size_t bytes);
    mc_status (*copy_to_host)(mci_exec *exec, void *dst, const void *src, size_t bytes);
    /* Page-locked memory of the host. */
    mc_status (*pinned_alloc)(int ordinal, size_t bytes, void **out);
    void (*pinned_free)(int ordinal, void *data);
    /* Begins a copy in the order of `stream`; the host side is pinned and stays until
     * stream_synchronize. to_device: the direction. */
    mc_status (*copy_begin)(int ordinal, void *stream, void *dst, const void *src, size_t bytes,
                            int to_device);
    mc_status (*stream_new)(int ordinal, void **stream);
    void (*stream_free)(int ordinal, void *stream);
    /* What is put into `waiter` from now on runs after what is in `other` now. NULL: the default
     * stream. */
    mc_status (*stream_wait)(int ordinal, void *waiter, void *other);
    mc_status (*stream_synchronize)(int ordinal, void *stream);
    /* All work of the device; raises what kernels have found wrong with their operands' values. */
    mc_status (*synchronize)(int ordinal);
    /* Work given to the default stream between begin and end is recorded, not run. end with
     * graph = NULL throws it away. While it lasts nothing may be read from or written to the host.
     * All NULL where there are no graphs. */
    mc_status (*graph_begin)(mci_exec *exec);
    mc_status (*graph_end)(mci_exec *exec, void **graph);
    mc_status (*graph_replay)(mci_exec *exec, void *graph);
    void (*graph_free)(mci_exec *exec, void *graph);
    /* Time of the device by op: from begin on each call of an op notes when it starts and ends
     * there; end waits and gives the sums, calls and seconds [MCI_OP_COUNT]. NULL where there are
     * no clocks. */
    mc_status (*profile_begin)(mci_exec *exec);
    mc_status (*profile_end)(mci_exec *exec, int64_t *calls, double *seconds);
    /* n calls of one op in few launches, t[i] the operands of each; NULL, or an op it does not know
     * (MC_EUNSUPPORTED, nothing done): they run one by one. */
    mc_status (*many)(mci_exec *exec, int op, int64_t n, const mci_view *const *const *t,
                      const void *params);
    /* Which way an op would take for these operands and why, in words, to `text`. NULL: there is
     * only one. */
    void (*path)(int op, const mci_view *const *t, const void *params, char *text, size_t size);
    int host_readable;     /* 1: the host may follow view->data (the CPU only) */
    int takes_host_splits; /* 1: grouped ops may have host_splits and no splits operand */
    mci_kernel kernels[MCI_OP_COUNT];
} mci_backend;

/* A plugin's one entry: mascon_backend_<name>(services) gives its table, or NULL after
 * services->fail. */
typedef const mci_backend *(*mci_backend_entry)(const mci_services *services);

#endif
