/* mascon.h: the one public header.
 *
 * A tensor is a handle on a view of a storage. Handles are made empty by mc_tensor_new and filled
 * by the call that has them as an output; an output that is already filled is written in place and
 * must have the right shape, dtype and device. mc_tensor_release empties a handle for its next use,
 * so a binding can keep a pool of them.
 *
 * Every call that can fail returns an mc_status and leaves a message in a buffer of the thread
 * (mc_last_error). After a failure no output has changed. Nothing here prints, aborts or raises.
 * MC_EINVAL is for wrong shapes, dtypes and values, MC_ENOMEM for outputs or scratch; only what
 * goes beyond that is said below.
 *
 * Threads: ops on one device run from one thread at a time, for they share its scratch. Other
 * threads may meanwhile read tensors (mc_read, mc_tensor_data), make and release handles of their
 * own, and write files. An output may be the very tensor of an input where each result depends on
 * inputs at its own place only; other overlaps are refused.
 *
 * Axes and positions are 0-based here. Letters: T tokens (rows), G groups (experts), K in features,
 * N out features, B batch, H heads, D head size, E experts, V vocabulary.
 *
 * The part between the marks is also the cdef of the LuaJIT binding: no macro, no callback, no
 * struct by value and no enum-typed result in it.
 */
#ifndef MASCON_H
#define MASCON_H

#include <stdint.h>

#pragma GCC visibility push(default)

/* >>> cdef */

typedef int mc_status;
enum {
    MC_OK = 0,
    MC_EINVAL = 1,       /* an argument is wrong: the caller's mistake */
    MC_ENOMEM = 2,       /* no memory; collecting garbage and trying again may help */
    MC_EUNSUPPORTED = 3, /* right, but this backend or build cannot do it */
    MC_EIO = 4,          /* the operating system refused: disk full, permission, short write */
    MC_EFORMAT = 5,      /* a file is not what it claims to be */
    MC_EDEVICE = 6,      /* no such device, or it failed */
    MC_EINTERNAL = 7     /* a broken promise inside the library */
};

enum {
    MC_FLOAT64 = 0,
    MC_FLOAT32 = 1,
    MC_FLOAT16 = 2,
    MC_BFLOAT16 = 3,
    MC_INT64 = 4,
    MC_INT32 = 5,
    MC_UINT8 = 6,
    MC_BOOL = 7,
    MC_FLOAT8_E4M3FN = 8, /* storage only, as the next two */
    MC_FLOAT8_E5M2 = 9,
    MC_FLOAT8_E8M0FNU = 10,
    MC_DTYPE_COUNT = 11
};

enum { MC_MAX_DIMS = 8 };

typedef struct mc_tensor mc_tensor;

const char *mc_version(void);
/* The message of this thread's last failure; valid until its next failure. Never NULL. */
const char *mc_last_error(void);

/* -- dtypes ------------------------------------------------------------------------------------ */

const char *mc_dtype_name(int dtype); /* NULL for an unknown code */
int mc_dtype_size(int dtype);         /* bytes per element; 0 for an unknown code */
int mc_dtype_is_float(int dtype);     /* 1 for every floating type, storage types included */
/* n elements from `src` to `dst`, both contiguous host memory; floats round to nearest even in one
 * step; float to integer truncates towards zero and saturates, NaN gives 0; bool is x != 0. */
mc_status mc_convert(void *dst, int dst_dtype, const void *src, int src_dtype, int64_t n);
/* To float64, with one positive quiet NaN for every NaN: a language that boxes its values in NaNs
 * may load the result, whatever bits a file or a cast has left. */
mc_status mc_to_numbers(double *dst, const void *src, int src_dtype, int64_t n);

/* -- devices, threads, streams ----------------------------------------------------------------- */

/* A device code: 0 is the CPU. "cpu", "cuda", "cuda:1", and "fake" (tests: plain memory that the
 * host may not read). Opens the backend's plugin on first use; MC_EDEVICE says what is missing. */
mc_status mc_device_parse(const char *name, int *device);
mc_status mc_device_name(int device, char *buffer, int64_t size);
mc_status mc_device_count(const char *backend, int *count); /* 0 where the plugin is missing */
/* Waits for all work of the device. MC_EINVAL for a bad id or split that a kernel there has met
 * since the last time: the result of that op is not to be used, the device stays usable. */
mc_status mc_device_synchronize(int device);
/* Facts for `doctor`: "name", "capability", "driver", "runtime", "blas", "attention"; NULL for a
 * key that this device does not know. */
const char *mc_device_info(int device, const char *key);
mc_status mc_device_memory(int device, int64_t *free_bytes, int64_t *total_bytes);
/* Threads of an op: MASCON_NUM_THREADS, else the cores this process may use; 1 to 1024. */
int mc_get_num_threads(void);
mc_status mc_set_num_threads(int n);
/* CPU facts for `doctor`: "isa", "gemm", "gemm_reason", "threads"; NULL for an unknown key. */
const char *mc_cpu_info(const char *key);
/* 1: every CPU op runs its plain definition; 0 (default): the fast paths. For tests. */
void mc_cpu_set_plain(int plain);

/* Where a device's time goes: from begin on each op is timed on the device. end waits for the
 * device and writes the ops that ran, longest first, to rows[room]; *n is their number. Not while a
 * graph is recorded; replays are not seen. */
typedef struct mc_profile_row {
    const char *op; /* as in error messages */
    int64_t calls;
    double seconds;
} mc_profile_row;
mc_status mc_profile_begin(int device);
mc_status mc_profile_end(int device, mc_profile_row *rows, int64_t room, int64_t *n);

/* -- memory ------------------------------------------------------------------------------------ */

typedef struct mc_memory {
    int64_t live_bytes;   /* held by storages, over all devices */
    int64_t peak_bytes;   /* highest live_bytes since mc_memory_reset_peak */
    int64_t cached_bytes; /* freed blocks kept for reuse */
    int64_t soft_limit;   /* see mc_memory_set_soft_limit */
    int32_t pressure;     /* 1 when live_bytes passed soft_limit: collect garbage */
    int32_t live_storages;
} mc_memory;
const mc_memory *mc_memory_stats(void); /* one struct for the process, always current */
void mc_memory_set_soft_limit(int64_t bytes);
void mc_memory_reset_peak(void);
void mc_memory_trim(void); /* gives cached blocks back to the system */
/* The same numbers for one device, and how many blocks came from the device itself (an allocation
 * there costs far more than one from the cache). */
typedef struct mc_device_memory_stats {
    int64_t live_bytes, peak_bytes, cached_bytes, graph_bytes; /* graph_bytes: kept for graphs */
    int64_t allocations, device_allocations;
} mc_device_memory_stats;
mc_status mc_memory_device_stats(int device, mc_device_memory_stats *out);
/* The nth allocation from now (1 = the next) fails with MC_ENOMEM, once; 0 turns it off. For tests.
 */
void mc_memory_fail_at(int64_t nth);

/* -- graphs (graph.c) ---------------------------------------------------------------------------
 */

/* A sequence of ops of one device, recorded once and replayed as a whole. What is allocated while
 * it is recorded comes from memory of the graph's own; tensors from before that its ops use are
 * kept alive by it. While one is recorded, reading or writing host values fails (MC_EUNSUPPORTED).
 */
typedef struct mc_graph mc_graph;
mc_status mc_graph_begin(int device);
mc_status mc_graph_end(mc_graph **out, int device);
int mc_graph_recording(void);    /* 1 while one is recorded */
void mc_graph_abort(int device); /* ends without a graph; nothing has run */
mc_status mc_graph_replay(mc_graph *g);
/* Waits for its replays; while another graph is recorded, for the end of that. NULL is fine. */
void mc_graph_free(mc_graph *g);

/* -- tensors ----------------------------------------------------------------------------------- */

mc_tensor *mc_tensor_new(void); /* an empty handle; NULL when out of memory */
void mc_tensor_release(
    mc_tensor *t);                 /* drops the storage; the handle is empty again. NULL is fine */
void mc_tensor_free(mc_tensor *t); /* releases, then frees the handle. NULL is fine */

int mc_tensor_defined(const mc_tensor *t); /* 1 when t holds a storage; NULL is fine */
/* From here to mc_tensor_bump_version t must be defined. */
int mc_tensor_dtype(const mc_tensor *t);
int mc_tensor_device(const mc_tensor *t);
int mc_tensor_ndim(const mc_tensor *t);
const int64_t *mc_tensor_shape(const mc_tensor *t);   /* ndim sizes */
const int64_t *mc_tensor_strides(const mc_tensor *t); /* ndim strides, in elements */
int64_t mc_tensor_numel(const mc_tensor *t);
int mc_tensor_is_contiguous(const mc_tensor *t);
void *mc_tensor_data(const mc_tensor *t);             /* first element, device address */
int64_t mc_tensor_storage_offset(const mc_tensor *t); /* bytes from the storage's start */
int64_t mc_tensor_storage_bytes(const mc_tensor *t);
int64_t mc_tensor_storage_id(const mc_tensor *t); /* never reused while the process lives */
int mc_tensor_storage_refs(const mc_tensor *t);   /* handles and internal holders of the storage */
enum { MC_IS_VIEW = 1, MC_HAS_VIEWS = 2 };
/* Bits: t was made by a view function (mc_alias is none); such a view was made of t. */
int mc_tensor_sharing(const mc_tensor *t);
int mc_tensor_same_shape(const mc_tensor *a, const mc_tensor *b);
int64_t mc_tensor_version(const mc_tensor *t); /* of the storage: bumped by every in-place write */
void mc_tensor_bump_version(mc_tensor *t);

mc_status mc_empty(mc_tensor *out, int dtype, int device, int ndim, const int64_t *shape);
/* `out` becomes a second handle on the same view. */
mc_status mc_alias(mc_tensor *out, const mc_tensor *t);
/* A view with these sizes and strides (elements), starting `offset` elements after t's first. Stays
 * inside t's storage or fails. All other views are made of this one. */
mc_status mc_as_strided(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *shape,
                        const int64_t *strides, int64_t offset);
/* t's elements, row-major, in another shape, one size of which may be -1; MC_EINVAL where t's
 * strides allow no such view. */
mc_status mc_view(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *shape);
/* Axes of size 1 grow, with stride 0; new axes stand in front; -1 keeps a size. */
mc_status mc_expand(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *shape);
/* Axis i of the view is axis axes[i] of t; each must be named once. */
mc_status mc_permute(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *axes);
/* Positions first .. first + n - 1 of an axis. */
mc_status mc_narrow(mc_tensor *out, const mc_tensor *t, int axis, int64_t first, int64_t n);
/* One position of an axis, which disappears. */
mc_status mc_select(mc_tensor *out, const mc_tensor *t, int axis, int64_t index);
/* dst[...] = src, with src broadcast to dst's shape and converted to its dtype; devices may differ.
 */
mc_status mc_copy(mc_tensor *dst, const mc_tensor *src);
/* Rounds to t's dtype; MC_EINVAL for a number that an integer tensor cannot hold. bool: value != 0.
 */
mc_status mc_fill(mc_tensor *t, double value);
/* t[i] = start + i * step, computed in float64, t 1-D; numbers as in mc_fill. */
mc_status mc_arange(mc_tensor *t, double start, double step);
/* Host memory <-> a contiguous tensor of any device; bytes must match exactly. */
mc_status mc_read(const mc_tensor *t, void *dst, int64_t bytes);
mc_status mc_write(mc_tensor *t, const void *src, int64_t bytes);
mc_status mc_item(const mc_tensor *t, double *value);        /* one element, any dtype */
mc_status mc_item_int64(const mc_tensor *t, int64_t *value); /* one element of an integer tensor */
/* 1 when shapes, dtypes and bits are equal (a NaN equals the same NaN, -0 differs from 0). */
mc_status mc_equal(const mc_tensor *a, const mc_tensor *b, int *equal);

/* -- random numbers ---------------------------------------------------------------------------- */
/* `state` is an int64 tensor [2] on the output's device: {seed, offset in blocks of four words}.
 * Philox 4x32-10; element i takes word i % 4 of counter offset + i / 4. Each call adds ceil(n / 4)
 * to it (mc_random_normal too: element pairs (2j, 2j+1) come from word pairs by Box-Muller). */
mc_status mc_random_uniform(mc_tensor *t, mc_tensor *state, double low, double high);
mc_status mc_random_normal(mc_tensor *t, mc_tensor *state, double mean, double std);
mc_status mc_random_integers(mc_tensor *t, mc_tensor *state, int64_t low,
                             int64_t high); /* [low, high) */
/* y = x * keep / (1 - p), keep [uint8, x's shape] = uniform >= p. */
mc_status mc_dropout(mc_tensor *y, mc_tensor *keep, const mc_tensor *x, mc_tensor *state, double p);
mc_status mc_dropout_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *keep, double p);

/* -- elementwise (ops/math.c) ------------------------------------------------------------------ */
/* Inputs broadcast and have one dtype, which out has too. bfloat16 and float16 are computed in
 * float32 and rounded once; integers wrap; bool has maximum, minimum and comparisons, no
 * arithmetic; 8-bit floats have nothing. */

mc_status mc_add(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_sub(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_mul(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_div(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);     /* floats only */
mc_status mc_pow(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);     /* floats only */
mc_status mc_maximum(mc_tensor *out, const mc_tensor *a, const mc_tensor *b); /* NaN wins */
mc_status mc_minimum(mc_tensor *out, const mc_tensor *a, const mc_tensor *b); /* NaN wins */
/* Tensor with number: the number takes the tensor's dtype, of which it must be a value if that is
 * an integer type. `reverse` swaps the operands. */
mc_status mc_add_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_sub_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_mul_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_div_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_pow_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_maximum_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_minimum_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
/* Comparisons give bool. */
mc_status mc_eq(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_ne(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_lt(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_le(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_gt(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_ge(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
mc_status mc_eq_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_ne_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_lt_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_le_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_gt_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);
mc_status mc_ge_scalar(mc_tensor *out, const mc_tensor *a, double s, int reverse);

mc_status mc_neg(mc_tensor *out, const mc_tensor *a);
mc_status mc_abs(mc_tensor *out, const mc_tensor *a);
mc_status mc_sign(mc_tensor *out, const mc_tensor *a);
mc_status mc_exp(mc_tensor *out, const mc_tensor *a); /* from here on floats only */
mc_status mc_log(mc_tensor *out, const mc_tensor *a);
mc_status mc_sqrt(mc_tensor *out, const mc_tensor *a);
mc_status mc_rsqrt(mc_tensor *out, const mc_tensor *a);
mc_status mc_sin(mc_tensor *out, const mc_tensor *a);
mc_status mc_cos(mc_tensor *out, const mc_tensor *a);
mc_status mc_tanh(mc_tensor *out, const mc_tensor *a);
mc_status mc_sigmoid(mc_tensor *out, const mc_tensor *a);
mc_status mc_relu(mc_tensor *out, const mc_tensor *a);
mc_status mc_gelu(
    mc_tensor *out,
    const mc_tensor *a); /* tanh form: 0.5 x (1 + tanh(sqrt(2/pi)(x + 0.044715 x^3))) */
mc_status mc_silu(mc_tensor *out, const mc_tensor *a); /* x sigmoid(x) */
mc_status mc_floor(mc_tensor *out, const mc_tensor *a);
mc_status mc_ceil(mc_tensor *out, const mc_tensor *a);
mc_status mc_round(mc_tensor *out, const mc_tensor *a); /* half to even */
mc_status mc_isnan(mc_tensor *out, const mc_tensor *a); /* bool, as isfinite and logical_not */
mc_status mc_isfinite(mc_tensor *out, const mc_tensor *a);
mc_status mc_logical_not(mc_tensor *out, const mc_tensor *a);
/* dx = dy * f'(x); relu's derivative at 0 is 0. */
mc_status mc_relu_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *x);
mc_status mc_gelu_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *x);
mc_status mc_silu_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *x);
/* out = min(max(a, low), high); NaN stays. */
mc_status mc_clamp(mc_tensor *out, const mc_tensor *a, double low, double high);
/* out = condition ? a : b; condition is bool; all three broadcast. */
mc_status mc_where(mc_tensor *out, const mc_tensor *condition, const mc_tensor *a,
                   const mc_tensor *b);
/* y [.., I] = silu(x[.., :I]) * x[.., I:], x [.., 2I]: gate half, then up half (Shazeer 2020, "GLU
 * variants improve transformer", eq. 6). */
mc_status mc_swiglu(mc_tensor *y, const mc_tensor *x);
mc_status mc_swiglu_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *x);

/* -- reductions (ops/reduce.c). axes: n_axes distinct axes, n_axes = 0 means all. -------------- */
/* Sums of floats run in float64 and are rounded once to a's dtype; of integers and bool they are
 * int64; the order is fixed. keepdim = 1 keeps reduced axes with size 1. mean: floats only; of no
 * element it is NaN. amax, amin: NaN wins; no element is an error. */

mc_status mc_sum(mc_tensor *out, const mc_tensor *a, int n_axes, const int64_t *axes, int keepdim);
mc_status mc_mean(mc_tensor *out, const mc_tensor *a, int n_axes, const int64_t *axes, int keepdim);
mc_status mc_amax(mc_tensor *out, const mc_tensor *a, int n_axes, const int64_t *axes, int keepdim);
mc_status mc_amin(mc_tensor *out, const mc_tensor *a, int n_axes, const int64_t *axes, int keepdim);
mc_status mc_prod(mc_tensor *out, const mc_tensor *a, int n_axes, const int64_t *axes, int keepdim);
/* int64 positions of the first maximum (minimum) along one axis; NaN counts as the largest
 * (smallest). */
mc_status mc_argmax(mc_tensor *out, const mc_tensor *a, int axis, int keepdim);
mc_status mc_argmin(mc_tensor *out, const mc_tensor *a, int axis, int keepdim);
/* Running sums along one axis, in float64; int64 for integers and bool. */
mc_status mc_cumsum(mc_tensor *out, const mc_tensor *a, int axis);
/* values [.., k] and int64 indices [.., k] of the k largest along the last axis, largest first;
 * ties go to the lowest index, NaN ranks last. */
mc_status mc_topk(mc_tensor *values, mc_tensor *indices, const mc_tensor *a, int64_t k);
/* y = exp(x - max) / sum(exp(x - max)) along one axis; dx = y (dy - sum(dy y)). Floats only. */
mc_status mc_softmax(mc_tensor *y, const mc_tensor *x, int axis);
mc_status mc_softmax_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *y, int axis);
/* y = x - max - log(sum(exp(x - max))); dx = dy - exp(y) sum(dy). */
mc_status mc_log_softmax(mc_tensor *y, const mc_tensor *x, int axis);
mc_status mc_log_softmax_backward(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *y, int axis);
/* acc [1] float64 += sum of x^2, in chunks of fixed size summed in order. For gradient norms. */
mc_status mc_sum_squares(mc_tensor *acc, const mc_tensor *x);

/* -- indexing (ops/index.c). Indices are int32 or int64, 0-based; a bad one is an error that names
 * its position, its value and the legal range. */

/* out = a with axis replaced by index's shape (index of any rank when axis is 0, else 1-D). */
mc_status mc_index_select(mc_tensor *out, const mc_tensor *a, int axis, const mc_tensor *index);
/* da (filled, a's shape) += dout rows, in index order. */
mc_status mc_index_add(mc_tensor *da, const mc_tensor *dout, int axis, const mc_tensor *index);
/* out[i][j] = a[index[i][j]][j] for axis 0, as torch.gather. */
mc_status mc_gather(mc_tensor *out, const mc_tensor *a, int axis, const mc_tensor *index);
/* da[index[i][j]][j] += dout[i][j] for axis 0, in the order of i: gather's backward. */
mc_status mc_scatter_add(mc_tensor *da, const mc_tensor *dout, int axis, const mc_tensor *index);

/* -- matrix products (ops/matmul.c) ------------------------------------------------------------ */

/* a [.., m, k] x b [.., k, n] -> [.., m, n]; batch sizes broadcast; 1-D operands as torch.matmul;
 * any strides. fp32 accumulation for bf16 and fp16. */
mc_status mc_matmul(mc_tensor *out, const mc_tensor *a, const mc_tensor *b);
/* y [R, N] = x [R, K] weight^T + bias, weight [N, K], bias [N] or NULL; gelu = 1: gelu (tanh form)
 * of it. The bias is added before the rounding. */
mc_status mc_linear(mc_tensor *y, const mc_tensor *x, const mc_tensor *weight,
                    const mc_tensor *bias, int gelu);
/* 1: devices may round float32 operands of products to tf32 (10 bits of mantissa); 0, the default:
 * full float32. */
void mc_set_allow_tf32(int allow);
int mc_get_allow_tf32(void);

/* -- norms (ops/norm.c), over the last axis; weight and bias [n] ------------------------------- */

/* y = x * rstd * weight, rstd [rows, fp32 or fp64] = 1/sqrt(mean(x^2) + eps); weight may be NULL.
 * (Zhang & Sennrich 2019, eq. 4) */
mc_status mc_rms_norm(mc_tensor *y, mc_tensor *rstd, const mc_tensor *x, const mc_tensor *weight,
                      double eps);
/* dx of x's shape; dweight [n] is the sum over rows, NULL when it is not wanted. */
mc_status mc_rms_norm_backward(mc_tensor *dx, mc_tensor *dweight, const mc_tensor *dy,
                               const mc_tensor *x, const mc_tensor *weight, const mc_tensor *rstd);
/* y = (x - mean) * rstd * weight + bias, rstd = 1/sqrt(mean((x - mean)^2) + eps); mean and rstd
 * [rows] as above; weight and bias may be NULL, as their gradients. (Ba, Kiros & Hinton 2016, eq.
 * 4) */
mc_status mc_layer_norm(mc_tensor *y, mc_tensor *mean, mc_tensor *rstd, const mc_tensor *x,
                        const mc_tensor *weight, const mc_tensor *bias, double eps);
mc_status mc_layer_norm_backward(mc_tensor *dx, mc_tensor *dweight, mc_tensor *dbias,
                                 const mc_tensor *dy, const mc_tensor *x, const mc_tensor *weight,
                                 const mc_tensor *mean, const mc_tensor *rstd);

/* -- losses (ops/loss.c) ----------------------------------------------------------------------- */

/* losses [T, fp32 or fp64] = logsumexp(logits[t]) - logits[t, target[t]], 0 where target =
 * ignore_index; lse [T] is kept for backward. logits [T, V], target int32 or int64 [T]. */
mc_status mc_cross_entropy(mc_tensor *losses, mc_tensor *lse, const mc_tensor *logits,
                           const mc_tensor *target, int64_t ignore_index);
/* dlogits[t] = dlosses[t] * (softmax(logits[t]) - onehot(target[t])) */
mc_status mc_cross_entropy_backward(mc_tensor *dlogits, const mc_tensor *dlosses,
                                    const mc_tensor *logits, const mc_tensor *target,
                                    const mc_tensor *lse, int64_t ignore_index);

/* -- attention (ops/attention.c) --------------------------------------------------------------- */

/* Rotates pairs (x[d], x[d + D/2]) of x [B, T, H, D] by position * theta^(-2d/D), position = first
 * + t. inverse = 1 rotates back (the backward pass). Formula: RoFormer (Su et al. 2021), half-split
 * form. */
mc_status mc_rope(mc_tensor *y, const mc_tensor *x, double theta, int64_t first, int inverse);
/* q [B, T, H, D], k and v [B, S, Hkv, D], H % Hkv = 0; out [B, T, H, D]; lse [B, H, T] fp32 or
 * fp64. softmax(scale * q k^T) v; causal: query t sees keys up to t + S - T. */
mc_status mc_attention(mc_tensor *out, mc_tensor *lse, const mc_tensor *q, const mc_tensor *k,
                       const mc_tensor *v, double scale, int causal);
/* dq, dk, dv of q's, k's and v's shapes, from attention's own out and lse; a query that sees no key
 * has out 0, lse -inf and no gradient. (FlashAttention-2, Dao 2023, section 2) */
mc_status mc_attention_backward(mc_tensor *dq, mc_tensor *dk, mc_tensor *dv, const mc_tensor *dout,
                                const mc_tensor *q, const mc_tensor *k, const mc_tensor *v,
                                const mc_tensor *out, const mc_tensor *lse, double scale,
                                int causal);

/* -- mixture of experts (ops/moe.c) ------------------------------------------------------------ */

enum { MC_SCORE_SOFTMAX_PRE = 0, MC_SCORE_SOFTMAX_POST = 1, MC_SCORE_SIGMOID = 2 };
/* logits [T, E]; weights [T, k] and scores [T, E] in fp32 (fp64 for fp64 logits), ids int32 [T, k],
 * best first, ties to the lowest id, never one twice. bias [E] or NULL is added to the selection
 * key only. scores: softmax over E, or sigmoid. Post: softmax over the k chosen logits. Sigmoid
 * with k > 1: weights divided by their sum + 1e-20. All weights times `scale`. groups > 1: only the
 * best `group_topk` groups (by the sum of their best k / group_topk keys) take part. */
mc_status mc_router_topk(mc_tensor *weights, mc_tensor *ids, mc_tensor *scores,
                         const mc_tensor *logits, const mc_tensor *bias, int64_t k,
                         int score_function, double scale, int64_t groups, int64_t group_topk);
/* dlogits from dweights and dscores; either may be NULL. */
mc_status mc_router_topk_backward(mc_tensor *dlogits, const mc_tensor *dweights,
                                  const mc_tensor *dscores, const mc_tensor *scores,
                                  const mc_tensor *weights, const mc_tensor *ids,
                                  const mc_tensor *logits, int score_function, double scale);
/* Stable sort of the T * k slots by expert: counts int64 [E]; rows int64 [T, k], the row each slot
 * goes to, -1 where its id is negative (not routed); slots int64 [T * k], the slot behind each row,
 * -1 past the last. An id >= E is an error. */
mc_status mc_moe_sort(mc_tensor *counts, mc_tensor *rows, mc_tensor *slots, const mc_tensor *ids,
                      int64_t experts);
/* out[r] = x[slots[r] / k], zero where slots[r] < 0. x [T, d], out [T * k, d]. */
mc_status mc_moe_permute(mc_tensor *out, const mc_tensor *x, const mc_tensor *slots, int64_t k);
/* y[t] = sum_j (weights[t, j] or 1) * h[rows[t, j]], fp32 accumulation in slot order. Also
 * permute's backward. */
mc_status mc_moe_unpermute(mc_tensor *y, const mc_tensor *h, const mc_tensor *rows,
                           const mc_tensor *weights);
/* dh[r] = (weight of its slot or 1) * dy[t]; dweights[t, j] = dot(dy[t], h[rows[t, j]]), NULL
 * without weights. */
mc_status mc_moe_unpermute_backward(mc_tensor *dh, mc_tensor *dweights, const mc_tensor *dy,
                                    const mc_tensor *h, const mc_tensor *rows,
                                    const mc_tensor *slots, const mc_tensor *weights);
/* loss [] = coefficient * E * sum_e f_e * P_e, f_e = counts[e] / sum(counts), P_e = mean over T of
 * scores[t, e] / sum_e scores[t, e] (Switch Transformer, Fedus et al. 2021, eq. 4; 1 at balance).
 */
mc_status mc_moe_aux_loss(mc_tensor *loss, const mc_tensor *scores, const mc_tensor *counts,
                          double coefficient);
mc_status mc_moe_aux_loss_backward(mc_tensor *dscores, const mc_tensor *dloss,
                                   const mc_tensor *scores, const mc_tensor *counts,
                                   double coefficient);
/* loss [] = coefficient * mean over T of logsumexp(logits[t])^2 (ST-MoE, Zoph et al. 2022, eq. 5).
 */
mc_status mc_moe_z_loss(mc_tensor *loss, mc_tensor *lse, const mc_tensor *logits,
                        double coefficient);
mc_status mc_moe_z_loss_backward(mc_tensor *dlogits, const mc_tensor *dloss,
                                 const mc_tensor *logits, const mc_tensor *lse, double coefficient);

/* -- optimizer steps (ops/optim.c), in place --------------------------------------------------- */
/* step, lr and grad_scale are one-element float32 tensors on the parameter's device, so that a
 * captured graph replays right; grad_scale (NULL = 1) multiplies the gradient; a grad_scale that is
 * not finite skips the update. master (NULL for none) holds the parameter in float32. Moments are
 * float32 (float64 for a float64 parameter), or both bfloat16 beside a bfloat16 parameter. */

/* Adam (Kingma & Ba 2015, alg. 1); decoupled = 1: AdamW (Loshchilov & Hutter 2019, alg. 2). step
 * counts from 1. */
mc_status mc_adam_step(mc_tensor *param, mc_tensor *exp_avg, mc_tensor *exp_avg_sq,
                       mc_tensor *master, const mc_tensor *grad, const mc_tensor *step,
                       const mc_tensor *lr, const mc_tensor *grad_scale, double beta1, double beta2,
                       double eps, double weight_decay, int decoupled);
/* momentum buffer may be NULL; nesterov as in PyTorch. buf = momentum * buf + (1 - dampening) * g,
 * buf = g at step 1. */
mc_status mc_sgd_step(mc_tensor *param, mc_tensor *momentum_buffer, mc_tensor *master,
                      const mc_tensor *grad, const mc_tensor *step, const mc_tensor *lr,
                      const mc_tensor *grad_scale, double momentum, double dampening,
                      double weight_decay, int nesterov);

/* n steps at once, all on one device; entries of `master` may be NULL. Moments may have the
 * parameter's dtype too (bfloat16 state). step, lr, grad_scale are those of all. */
mc_status mc_adam_step_many(int64_t n, mc_tensor *const *param, mc_tensor *const *exp_avg,
                            mc_tensor *const *exp_avg_sq, mc_tensor *const *master,
                            mc_tensor *const *grad, const mc_tensor *step, const mc_tensor *lr,
                            const mc_tensor *grad_scale, double beta1, double beta2, double eps,
                            double weight_decay, int decoupled);
/* acc [1] float64 += the sum of all squares, tensor after tensor in the order given. */
mc_status mc_sum_squares_many(mc_tensor *acc, int64_t n, mc_tensor *const *x);
/* x[i] *= factor, one element of x[i]'s dtype or float32. */
mc_status mc_scale_many(int64_t n, mc_tensor *const *x, const mc_tensor *factor);

/* -- grouped linear layers (grouped/) ---------------------------------------------------------- */
/* x [R, K], y [R, N], weight [G, N, K], bias [G, N] or NULL; splits int32 or int64 [G] on x's
 * device, or on the CPU where the host knows them: rows of each group, in order, zeros anywhere,
 * none negative, sum M <= R. Rows from M on are zeroed in a fresh output and untouched in a filled
 * one. Products accumulate in fp32 (fp64 for fp64); the bias is added before the one rounding. */

/* Group g owns rows o_g .. o_g + M_g - 1, o_g = the sum of the splits before it.
 * y_g = x_g weight[g]^T + bias[g] */
mc_status mc_grouped_linear(mc_tensor *y, const mc_tensor *x, const mc_tensor *weight,
                            const mc_tensor *bias, const mc_tensor *splits);
/* dx_g = dy_g weight[g] */
mc_status mc_grouped_linear_dgrad(mc_tensor *dx, const mc_tensor *dy, const mc_tensor *weight,
                                  const mc_tensor *splits);
/* dw[g] (+)= dy_g^T x_g, dw [G, N, K] (a filled one may be fp32 for bf16 and fp16 operands:
 * main_grad); accumulate = 1 adds to a filled dw, else overwrites: exact zeros for groups without
 * rows. Contracts over a group's own rows only. */
mc_status mc_grouped_linear_wgrad(mc_tensor *dw, const mc_tensor *dy, const mc_tensor *x,
                                  const mc_tensor *splits, int accumulate);
/* db[g] (+)= the sum of dy_g's rows, db [G, N]; dtypes and accumulate as dw's. */
mc_status mc_grouped_linear_bias_grad(mc_tensor *db, const mc_tensor *dy, const mc_tensor *splits,
                                      int accumulate);
/* Which way a device takes for these sizes and why, in words: pass "forward", "dgrad" or "wgrad".
 * host_splits: 1 when the splits come from the host. */
mc_status mc_grouped_linear_path(const char *pass, int device, int dtype, int64_t groups, int64_t k,
                                 int64_t n, int host_splits, char *text, int64_t size);
/* offsets int64 [G + 1]: 0, then the running sum of first_dims. */
mc_status mc_grouped_offsets(mc_tensor *offsets, const mc_tensor *first_dims);

/* -- HDF5 files: writing (io/commit.c) ----------------------------------------------------------
 */
/* Paths are absolute ("/a/b"); groups on the way are made. Tensors and files that are handed in are
 * borrowed until the writer is gone, unless a call says that it writes at once. Any call may fail;
 * then commit fails with that first failure. Nothing is visible at the file's path before commit.
 */

typedef struct mc_h5_writer mc_h5_writer;
/* A new file for `path` (a symbolic link: for what it points at): written under a temporary name in
 * the same folder, which leftovers of dead writers of this path are removed from first. */
mc_status mc_h5_create(mc_h5_writer **out, const char *path);
/* The same under the lasting name "<path>.partial", with the finished datasets noted in
 * "<path>.journal". A later writer with an equal `key`, which is given the same calls, goes on
 * where that one was killed: commit takes over what is noted after checking its digest. Another key
 * starts afresh. Fails while another process writes there (one that was just killed is waited for,
 * up to a second). */
mc_status mc_h5_create_resumable(mc_h5_writer **out, const char *path, const char *key);
mc_status mc_h5_group(mc_h5_writer *w, const char *path);
/* A dataset with the tensor's bytes: contiguous, any device. */
mc_status mc_h5_tensor(mc_h5_writer *w, const char *path, const mc_tensor *t);
/* uint8 [n], copied. */
mc_status mc_h5_bytes(mc_h5_writer *w, const char *path, const void *data, int64_t n);
/* A dataset whose bytes come in parts, in order, by the two calls below; *index names it there. All
 * of them must have come at commit. */
mc_status mc_h5_dataset(mc_h5_writer *w, const char *path, int dtype, int ndim,
                        const int64_t *shape, int64_t *index);
/* The next elements of dataset `index`: those of contiguous t of its dtype, written at once. */
mc_status mc_h5_part(mc_h5_writer *w, int64_t index, const mc_tensor *t);
/* The next n elements of dataset `index`: elements [first, first + n) of entry `entry` of an open
 * file, same dtype; copied at commit, by bounded memory. Where they are a whole dataset of that
 * file with a digest and do not match it, commit fails with MC_EFORMAT. */
typedef struct mc_h5_file mc_h5_file;
mc_status mc_h5_part_file(mc_h5_writer *w, int64_t index, mc_h5_file *f, int64_t entry,
                          int64_t first, int64_t n);
/* A second hard link on a dataset. */
mc_status mc_h5_link(mc_h5_writer *w, const char *path, const char *target);
/* Virtual datasets over datasets that were made before: [n, ...] of n sources of one dtype and
 * shape, and source[position] (0-based along its first axis). Their attribute kind = "view" tells
 * them from data where another tool has made them real. */
mc_status mc_h5_view_stack(mc_h5_writer *w, const char *path, int64_t n,
                           const char *const *sources);
mc_status mc_h5_view_select(mc_h5_writer *w, const char *path, const char *source,
                            int64_t position);
mc_status mc_h5_attr_int(mc_h5_writer *w, const char *path, const char *name, int64_t value);
mc_status mc_h5_attr_double(mc_h5_writer *w, const char *path, const char *name, double value);
mc_status mc_h5_attr_bool(mc_h5_writer *w, const char *path, const char *name, int value);
mc_status mc_h5_attr_string(mc_h5_writer *w, const char *path, const char *name, const char *value,
                            int64_t n);
/* For commit: after the sync and before the file gets its name, reads everything back and compares
 * digests, then lists the file as mc_h5_open does and compares that. */
mc_status mc_h5_check_written(mc_h5_writer *w);
/* For commit, once the file has its name, in this order: the file `pointer` is replaced, as
 * durably, by one that holds `text`; each of the files is removed (one that is not there is fine).
 */
mc_status mc_h5_then_point(mc_h5_writer *w, const char *pointer, const char *text);
mc_status mc_h5_then_remove(mc_h5_writer *w, const char *path);
/* Bytes, digests, structure, fsync, rename, fsync of the folder; frees w, whatever happens, save
 * for MC_EINVAL of a writer that is not to be committed here: its commit has begun, or it belongs
 * to the parent of this process. That goes for start and wait too. */
mc_status mc_h5_commit(mc_h5_writer *w);
/* The same on a thread of its own. snapshot: the tensors are copied first, so that they may change
 * and be freed once this returns; without it they must be left alone until wait. On failure w is
 * freed and nothing runs. The end of the process waits for the thread. */
mc_status mc_h5_commit_start(mc_h5_writer *w, int snapshot);
/* 1 when the thread is through, 0 before, -1 with a message when none was started in this process;
 * bytes done and to do. Either pointer may be NULL. */
int mc_h5_commit_poll(mc_h5_writer *w, int64_t *done, int64_t *total);
/* Waits for the thread, gives commit's result and frees w. */
mc_status mc_h5_commit_wait(mc_h5_writer *w);
/* Removes what was written (a resumable file is kept); frees w; NULL is fine. After start: waits
 * for the thread, whose file stays. In a child of fork: frees w's memory only. */
void mc_h5_discard(mc_h5_writer *w);
/* Removes what dead writers of `path` left beside it; *removed is their number. Partial files of
 * resumable writers stay. */
mc_status mc_h5_sweep(const char *path, int64_t *removed);

/* -- HDF5 files: reading (io/file.c, io/read.c) ------------------------------------------------
 */
/* Files are untrusted: a helper program reads their structure, under limits. */

enum { MC_H5_GROUP = 0, MC_H5_DATASET = 1, MC_H5_VIEW = 2 };
enum { MC_H5_INT = 0, MC_H5_DOUBLE = 1, MC_H5_BOOL = 2, MC_H5_STRING = 3 };
typedef struct mc_h5_entry {
    const char *path; /* "/a/b", "/" for the root; valid until mc_h5_close, as all pointers here */
    int32_t kind;     /* MC_H5_GROUP, MC_H5_DATASET, or MC_H5_VIEW: a virtual dataset over datasets
                         of this file, never read through */
    int32_t dtype;    /* datasets: an MC_ dtype, -1 when it has no counterpart (see problem) */
    int32_t ndim;
    int32_t n_attrs;
    int64_t shape[8];
    int64_t offset; /* of the first byte in the file; -1: no plain extent (empty, or see decode) */
    int64_t bytes;
    int64_t object; /* equal for two links to one dataset */
    int32_t decode; /* 1: chunked, compressed or big-endian: mc_h5_read goes through the helper */
    int32_t first_attr; /* attributes first_attr .. first_attr + n_attrs - 1 */
    const char
        *problem; /* NULL, or why this dataset cannot be read, or what is wrong with a view */
} mc_h5_entry;
typedef struct mc_h5_attr {
    const char *name;
    int32_t kind; /* MC_H5_INT .. MC_H5_STRING */
    int32_t size; /* strings: bytes */
    int64_t i;    /* ints and bools */
    double d;
    const char *s;
} mc_h5_attr;
typedef struct mc_h5_open_options {
    uint32_t size;        /* sizeof(mc_h5_open_options) */
    int32_t prefetch;     /* 1: begins to read the file into the page cache while it is listed */
    int64_t decode_limit; /* bytes that all datasets which need decoding may have together; 0: 16
                             times the file's size, and 64 MiB for the sake of small files */
    double seconds;       /* that the helper may take to list the file; 0: 120 */
} mc_h5_open_options;
/* Lists the tree as one flat table; no payload is read. opts: NULL for the defaults. */
mc_status mc_h5_open(mc_h5_file **out, const char *path, const mc_h5_open_options *opts);
void mc_h5_close(mc_h5_file *f); /* NULL is fine */
/* 1 for the dialect that mascon writes (superblock 3 and the root attribute format = "mascon"),
 * which is held to its rules; 0 for any other HDF5 file. */
int mc_h5_is_own(const mc_h5_file *f);
int64_t mc_h5_count(const mc_h5_file *f);
const mc_h5_entry *mc_h5_get(const mc_h5_file *f, int64_t i);
const mc_h5_attr *mc_h5_get_attr(const mc_h5_file *f, int64_t i);
/* Elements [first, first + t's count) of entry i, row-major, into contiguous t of the same dtype,
 * straight from the file's bytes. Decoding may take 10 s and a second for each MB; a dataset that
 * failed to decode fails the same way from then on. */
mc_status mc_h5_read(mc_h5_file *f, int64_t i, int64_t first, mc_tensor *t);
/* Elements [first, first + count) of an entry (0-based, as in mc_h5_get) into elements
 * [target_first, target_first + count) of a contiguous target of the same dtype. */
typedef struct mc_h5_stretch {
    int64_t entry, first, count;
    mc_tensor *target;
    int64_t target_first;
} mc_h5_stretch;
/* Many of them, in the order of the file and by all threads; what they fill must lie apart. All are
 * checked before the first byte is read; after a later failure any of them may be filled. */
mc_status mc_h5_read_many(mc_h5_file *f, const mc_h5_stretch *list, int64_t n);
/* xxh3-128 of the entry's bytes as 32 hex digits into digest[33]. */
mc_status mc_h5_digest(mc_h5_file *f, int64_t i, char *digest);

/* <<< cdef */

#pragma GCC visibility pop

#endif
