/* move.c: what moves bytes without arithmetic: copy, fill, arange, read, write, item, equal. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend_room.h"
#include "call.h"
#include "graph.h"
#include "io/device.h"

static mc_status copy_on_device(mc_tensor *dst, const mc_tensor *src) {
    mci_call c = mci_begin("copy", MCI_OP_copy, 1);
    mci_in(&c, 0, src);
    mci_inout(&c, 0, dst, 0);
    return mci_end(&c, NULL);
}

/* Plain bytes between contiguous tensors of two devices; straight where the host reads one of them.
 */
static mc_status carry(mc_tensor *to, const mc_tensor *from) {
    int64_t bytes = mci_numel(&from->v) * mc_dtype_size(from->v.dtype);
    if (bytes == 0) return MC_OK;
    if (mci_backend_of(from->storage->device)->host_readable)
        return mc_write(to, from->v.data, bytes);
    if (mci_backend_of(to->storage->device)->host_readable) {
        mc_status status = mc_read(from, to->v.data, bytes);
        if (status == MC_OK) to->storage->version++;
        return status;
    }
    void *host = malloc((size_t)bytes);
    if (!host) return mci_fail(MC_ENOMEM, "copy: no %lld bytes of host memory", (long long)bytes);
    mc_status status = mc_read(from, host, bytes);
    if (status == MC_OK) status = mc_write(to, host, bytes);
    free(host);
    return status;
}

/* src of another device: convert and pack where it is, carry plain bytes, spread where dst is. */
static mc_status copy_across(mc_tensor *dst, const mc_tensor *src) {
    mc_tensor packed = {.storage = NULL}, landed = {.storage = NULL};
    const mc_tensor *from = src;
    mc_status status = MC_OK;
    if (src->v.dtype != dst->v.dtype || !mci_is_contiguous(&src->v)) {
        status = mc_empty(&packed, dst->v.dtype, src->storage->device, src->v.ndim, src->v.shape);
        if (status == MC_OK) status = copy_on_device(&packed, src);
        from = &packed;
    }
    int direct = mci_same_shape(dst, src) && mci_is_contiguous(&dst->v);
    mc_tensor *to = direct ? dst : &landed;
    if (status == MC_OK && !direct)
        status = mc_empty(&landed, dst->v.dtype, dst->storage->device, src->v.ndim, src->v.shape);
    if (status == MC_OK) status = carry(to, from);
    if (status == MC_OK && !direct) status = copy_on_device(dst, &landed);
    mc_tensor_release(&packed);
    mc_tensor_release(&landed);
    return status;
}

mc_status mc_copy(mc_tensor *dst, const mc_tensor *src) {
    if (!dst || !dst->storage || !src || !src->storage)
        return mci_fail(MC_EINVAL, "copy: the %s is missing",
                        dst && dst->storage ? "source" : "destination");
    int n;
    int64_t shape[MC_MAX_DIMS];
    int fits = mci_broadcast(dst->v.ndim, dst->v.shape, src->v.ndim, src->v.shape, &n, shape) &&
               n == dst->v.ndim;
    for (int i = 0; fits && i < n; i++) fits = shape[i] == dst->v.shape[i];
    if (!fits)
        return mci_fail(MC_EINVAL, "copy: a source of shape %s does not broadcast to %s",
                        mci_shape_of(src), mci_shape_of(dst));
    if (dst->storage->device == src->storage->device) return copy_on_device(dst, src);
    return copy_across(dst, src);
}

mc_status mc_fill(mc_tensor *t, double value) {
    mci_call c = mci_begin("fill", MCI_OP_fill, 1);
    mci_inout(&c, 0, t, 0);
    if (mci_ok(&c) && t->v.dtype != MC_BOOL) mci_want_number(&c, value, t->v.dtype);
    return mci_end(&c, &(mci_fill_params){.value = value});
}

mc_status mc_arange(mc_tensor *t, double start, double step) {
    mci_call c = mci_begin("arange", MCI_OP_arange, 1);
    mci_inout(&c, 0, t, 0);
    if (mci_ok(&c) && t->v.ndim != 1)
        mci_bad(&c, "wanted a 1-D tensor, got shape %s", mci_shape_of(t));
    int64_t n = mci_ok(&c) ? t->v.shape[0] : 0;
    if (n > 0) mci_want_number(&c, start, t->v.dtype);
    if (n > 1) mci_want_number(&c, start + step, t->v.dtype);
    if (n > 1) mci_want_number(&c, start + (double)(n - 1) * step, t->v.dtype);
    return mci_end(&c, &(mci_fill_params){.value = start, .step = step});
}

static mc_status want_bytes(const char *op, const mc_tensor *t, int64_t bytes) {
    if (!t || !t->storage) return mci_fail(MC_EINVAL, "%s: the tensor is missing", op);
    if (!mci_is_contiguous(&t->v))
        return mci_fail(MC_EINVAL, "%s: the tensor is not contiguous (shape %s, strides %s)", op,
                        mci_shape_of(t), mci_shape_text(t->v.ndim, t->v.stride));
    int64_t own = mci_numel(&t->v) * mc_dtype_size(t->v.dtype);
    if (own == bytes) return MC_OK;
    return mci_fail(MC_EINVAL, "%s: %lld bytes for a tensor of %lld bytes", op, (long long)bytes,
                    (long long)own);
}

/* How many bytes of a transfer go through page-locked buffers: of a large one all but the last few,
 * which go by the backend's own call, for there an error of earlier work shows. */
static int64_t staged_bytes(int device, int64_t bytes) {
    if (bytes <= MCI_STAGE_BYTES || mci_backend_of(device)->host_readable) return 0;
    return bytes - 64;
}

mc_status mc_read(const mc_tensor *t, void *dst, int64_t bytes) {
    mc_status status = want_bytes("read", t, bytes);
    if (status != MC_OK || bytes == 0) return status;
    int device = t->storage->device;
    if (mci_recording && (status = mci_graph_forbids(device, "read")) != MC_OK) return status;
    int64_t staged = staged_bytes(device, bytes);
    const char *src = t->v.data;
    if (staged > 0) status = mci_device_read(device, dst, src, staged, NULL);
    if (status == MC_ENOMEM) staged = 0; /* the other way needs no such buffers */
    if (status != MC_OK && status != MC_ENOMEM) return status;
    return mci_backend_of(device)->copy_to_host(mci_exec_of(device), (char *)dst + staged,
                                                src + staged, (size_t)(bytes - staged));
}

mc_status mc_write(mc_tensor *t, const void *src, int64_t bytes) {
    mc_status status = want_bytes("write", t, bytes);
    if (status != MC_OK || bytes == 0) return status;
    int device = t->storage->device;
    if (mci_recording && (status = mci_graph_forbids(device, "write")) != MC_OK) return status;
    int64_t staged = staged_bytes(device, bytes);
    char *dst = t->v.data;
    if (staged > 0) status = mci_device_write(device, dst, src, staged);
    if (status == MC_ENOMEM) staged = 0;
    if (status != MC_OK && status != MC_ENOMEM) return status;
    status = mci_backend_of(device)->copy_from_host(
        mci_exec_of(device), dst + staged, (const char *)src + staged, (size_t)(bytes - staged));
    if (status == MC_OK) t->storage->version++;
    return status;
}

mc_status mc_to_numbers(double *dst, const void *src, int src_dtype, int64_t n) {
    mc_status status = mc_convert(dst, MC_FLOAT64, src, src_dtype, n);
    for (int64_t i = 0; status == MC_OK && i < n; i++)
        if (isnan(dst[i])) dst[i] = (double)NAN;
    return status;
}

/* The one element of t in its own dtype. */
static mc_status read_one(const mc_tensor *t, void *value) {
    if (!t || !t->storage) return mci_fail(MC_EINVAL, "item: the tensor is missing");
    if (mci_numel(&t->v) != 1)
        return mci_fail(MC_EINVAL, "item: wanted a tensor of one element, got shape %s",
                        mci_shape_of(t));
    return mc_read(t, value, mc_dtype_size(t->v.dtype));
}

mc_status mc_item(const mc_tensor *t, double *value) {
    int64_t raw;
    mc_status status = read_one(t, &raw);
    return status == MC_OK ? mc_to_numbers(value, &raw, t->v.dtype, 1) : status;
}

mc_status mc_item_int64(const mc_tensor *t, int64_t *value) {
    int64_t raw;
    mc_status status = read_one(t, &raw);
    if (status == MC_OK && mc_dtype_is_float(t->v.dtype))
        return mci_fail(MC_EINVAL, "item: a tensor of %s has no int64 value",
                        mc_dtype_name(t->v.dtype));
    return status == MC_OK ? mc_convert(value, MC_INT64, &raw, t->v.dtype, 1) : status;
}

/* t's bytes on the host, row-major; *owned is set when they are a copy. */
static mc_status host_bytes(const mc_tensor *t, int64_t bytes, const void **out, void **owned) {
    *owned = NULL;
    mc_tensor packed = {.storage = NULL};
    mc_status status = MC_OK;
    int device = t->storage->device;
    int dense = mci_is_contiguous(&t->v);
    if (dense && mci_backend_of(device)->host_readable) {
        *out = t->v.data;
        return MC_OK;
    }
    if (!dense) {
        status = mc_empty(&packed, t->v.dtype, device, t->v.ndim, t->v.shape);
        if (status == MC_OK) status = copy_on_device(&packed, t);
    }
    if (status == MC_OK) {
        *owned = malloc((size_t)bytes);
        if (!*owned)
            status = mci_fail(MC_ENOMEM, "equal: no %lld bytes of host memory", (long long)bytes);
    }
    if (status == MC_OK) status = mc_read(dense ? t : &packed, *owned, bytes);
    *out = *owned;
    mc_tensor_release(&packed);
    return status;
}

mc_status mc_equal(const mc_tensor *a, const mc_tensor *b, int *equal) {
    *equal = 0;
    if (!mc_tensor_defined(a) || !mc_tensor_defined(b))
        return mci_fail(MC_EINVAL, "equal: a tensor is missing");
    if (a->v.dtype != b->v.dtype || !mci_same_shape(a, b)) return MC_OK;
    int64_t bytes = mci_numel(&a->v) * mc_dtype_size(a->v.dtype);
    if (bytes == 0) {
        *equal = 1;
        return MC_OK;
    }
    const void *pa = NULL, *pb = NULL;
    void *own_a = NULL, *own_b = NULL;
    mc_status status = host_bytes(a, bytes, &pa, &own_a);
    if (status == MC_OK) status = host_bytes(b, bytes, &pb, &own_b);
    if (status == MC_OK) *equal = memcmp(pa, pb, (size_t)bytes) == 0;
    free(own_a);
    free(own_b);
    return status;
}
