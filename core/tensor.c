/* tensor.c: handles, views, and what moves bytes: copy, fill, read, write, equal.
 *
 * Every view is made by mc_as_strided's checks; no view reaches outside its storage.
 */
#include "tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "backend_room.h"
#include "call.h"

/* -- handles ----------------------------------------------------------------------------------- */

mc_tensor *mc_tensor_new(void) {
    if (mci_alloc_must_fail()) {
        mci_fail(MC_ENOMEM, "out of memory: no tensor handle (failure asked for by a test)");
        return NULL;
    }
    mc_tensor *t = calloc(1, sizeof *t);
    if (!t) mci_fail(MC_ENOMEM, "out of memory: no tensor handle");
    return t;
}

void mc_tensor_release(mc_tensor *t) {
    if (!t || !t->storage) return;
    mci_storage_release(t->storage);
    t->storage = NULL;
    t->sharing = 0;
}

void mc_tensor_free(mc_tensor *t) {
    mc_tensor_release(t);
    free(t);
}

int mc_tensor_defined(const mc_tensor *t) {
    return t && t->storage;
}
int mc_tensor_dtype(const mc_tensor *t) {
    return t->v.dtype;
}
int mc_tensor_device(const mc_tensor *t) {
    return t->storage->device;
}
int mc_tensor_ndim(const mc_tensor *t) {
    return t->v.ndim;
}
const int64_t *mc_tensor_shape(const mc_tensor *t) {
    return t->v.shape;
}
const int64_t *mc_tensor_strides(const mc_tensor *t) {
    return t->v.stride;
}
int64_t mc_tensor_numel(const mc_tensor *t) {
    return mci_numel(&t->v);
}
int mc_tensor_is_contiguous(const mc_tensor *t) {
    return mci_is_contiguous(&t->v);
}
void *mc_tensor_data(const mc_tensor *t) {
    return t->v.data;
}
int64_t mc_tensor_storage_bytes(const mc_tensor *t) {
    return t->storage->bytes;
}
int64_t mc_tensor_storage_id(const mc_tensor *t) {
    return t->storage->id;
}
int64_t mc_tensor_version(const mc_tensor *t) {
    const mci_storage *s = t->storage;
    return s->pool == 0 ? s->version : s->version + mci_pool_replays(s->device, s->pool);
}
int mc_tensor_storage_refs(const mc_tensor *t) {
    return t->storage->refs;
}
int mc_tensor_same_shape(const mc_tensor *a, const mc_tensor *b) {
    return mci_same_shape(a, b);
}
int mc_tensor_sharing(const mc_tensor *t) {
    return t->sharing;
}
void mc_tensor_bump_version(mc_tensor *t) {
    t->storage->version++;
}

int64_t mc_tensor_storage_offset(const mc_tensor *t) {
    return t->v.data ? (char *)t->v.data - (char *)t->storage->data : 0;
}

static mc_status want_defined(const char *op, const mc_tensor *t) {
    if (t && t->storage) return MC_OK;
    return mci_fail(MC_EINVAL, "%s: the tensor is %s", op, t ? "an empty handle" : "missing");
}

static mc_status want_empty(const char *op, const mc_tensor *out) {
    if (out && !out->storage) return MC_OK;
    return mci_fail(MC_EINVAL, "%s: the output handle is %s", op, out ? "in use" : "missing");
}

static mc_status check_shape(const char *op, int ndim, const int64_t *shape, int dtype,
                             int64_t *n) {
    if (ndim < 0 || ndim > MC_MAX_DIMS)
        return mci_fail(MC_EINVAL, "%s: %d axes, at most %d are possible", op, ndim, MC_MAX_DIMS);
    int size = mc_dtype_size(dtype);
    if (!size) return mci_fail(MC_EINVAL, "%s: no dtype has the code %d", op, dtype);
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0)
            return mci_fail(MC_EINVAL, "%s: sizes must be 0 or more, shape is %s", op,
                            mci_shape_text(ndim, shape));
    int64_t bytes;
    if (mci_checked_numel(ndim, shape, n) || __builtin_mul_overflow(*n, (int64_t)size, &bytes))
        return mci_fail(MC_EINVAL, "%s: shape %s is too large", op, mci_shape_text(ndim, shape));
    return MC_OK;
}

mc_status mc_empty(mc_tensor *out, int dtype, int device, int ndim, const int64_t *shape) {
    int64_t n;
    mc_status status = want_empty("empty", out);
    if (status == MC_OK) status = check_shape("empty", ndim, shape, dtype, &n);
    if (status == MC_OK && device) status = mci_check_device("empty", device);
    if (status != MC_OK) return status;
    mci_storage *s;
    status = mci_storage_new(&s, device, n * mc_dtype_size(dtype));
    if (status != MC_OK) return status;
    out->storage = s;
    out->v.data = s->data;
    out->v.dtype = dtype;
    out->v.ndim = ndim;
    for (int i = 0; i < ndim; i++) out->v.shape[i] = shape[i];
    mci_contiguous_strides(ndim, out->v.shape, out->v.stride);
    return MC_OK;
}

/* -- views ------------------------------------------------------------------------------------- */

/* `out` becomes a handle on t's storage; the caller has proved that it stays inside. */
static void set_handle(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *shape,
                       const int64_t *strides, int64_t offset) {
    mci_view v = {.dtype = t->v.dtype, .ndim = ndim};
    memcpy(v.shape, shape, (size_t)ndim * sizeof *shape);
    memcpy(v.stride, strides, (size_t)ndim * sizeof *strides);
    v.data = t->v.data ? (char *)t->v.data + offset * mc_dtype_size(t->v.dtype) : NULL;
    mci_storage_retain(t->storage);
    out->storage = t->storage;
    out->v = v;
}

/* As set_handle, and both handles remember it. t is const for what it holds; this says who else
 * does. */
static void set_view(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *shape,
                     const int64_t *strides, int64_t offset) {
    set_handle(out, t, ndim, shape, strides, offset);
    out->sharing = MC_IS_VIEW;
    ((mc_tensor *)t)->sharing |= MC_HAS_VIEWS;
}

mc_status mc_alias(mc_tensor *out, const mc_tensor *t) {
    mc_status status = want_defined("alias", t);
    if (status == MC_OK) status = want_empty("alias", out);
    if (status == MC_OK) set_handle(out, t, t->v.ndim, t->v.shape, t->v.stride, 0);
    return status;
}

mc_status mc_as_strided(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *shape,
                        const int64_t *strides, int64_t offset) {
    int64_t n;
    mc_status status = want_defined("as_strided", t);
    if (status == MC_OK) status = want_empty("as_strided", out);
    if (status == MC_OK) status = check_shape("as_strided", ndim, shape, t->v.dtype, &n);
    if (status != MC_OK) return status;
    int64_t size = mc_dtype_size(t->v.dtype);
    int64_t first = mc_tensor_storage_offset(t) / size, low, high;
    int bad = __builtin_add_overflow(first, offset, &low);
    high = low;
    for (int i = 0; i < ndim && n > 0; i++) {
        int64_t reach;
        bad |= __builtin_mul_overflow(shape[i] - 1, strides[i], &reach);
        bad |= reach < 0 ? __builtin_add_overflow(low, reach, &low)
                         : __builtin_add_overflow(high, reach, &high);
    }
    if (n == 0) offset = 0;
    if (bad || (n > 0 && (low < 0 || high >= t->storage->bytes / size)))
        return mci_fail(
            MC_EINVAL,
            "as_strided: shape %s with strides %s reaches outside the storage of %lld elements",
            mci_shape_text(ndim, shape), mci_shape_text(ndim, strides),
            (long long)(t->storage->bytes / size));
    set_view(out, t, ndim, shape, strides, offset);
    return MC_OK;
}

/* Strides of `shape` over t's elements without moving any: groups of axes that are dense together
 * can be cut anew. 0 when the view is impossible. */
static int view_strides(const mci_view *v, int ndim, const int64_t *shape, int64_t *strides) {
    int64_t old_shape[MC_MAX_DIMS], old_stride[MC_MAX_DIMS];
    int n = 0;
    for (int i = 0; i < v->ndim; i++) {
        if (v->shape[i] == 1) continue;
        if (n > 0 && old_stride[n - 1] == v->shape[i] * v->stride[i]) {
            old_shape[n - 1] *= v->shape[i];
            old_stride[n - 1] = v->stride[i];
        } else {
            old_shape[n] = v->shape[i];
            old_stride[n++] = v->stride[i];
        }
    }
    int d = ndim - 1;
    for (int g = n - 1; g >= 0; g--) {
        int64_t left = old_shape[g], stride = old_stride[g];
        while (left > 1 || (d >= 0 && shape[d] == 1)) {
            if (d < 0 || left % shape[d] != 0) return 0;
            strides[d] = stride;
            stride *= shape[d];
            left /= shape[d--];
        }
    }
    for (; d >= 0; d--) strides[d] = 1; /* only sizes of 1 are left */
    return 1;
}

mc_status mc_view(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *wanted) {
    int64_t shape[MC_MAX_DIMS], strides[MC_MAX_DIMS], n = 1, numel;
    int free_axis = -1;
    mc_status status = want_defined("view", t);
    if (status == MC_OK) status = want_empty("view", out);
    if (status != MC_OK) return status;
    if (ndim < 0 || ndim > MC_MAX_DIMS)
        return mci_fail(MC_EINVAL, "view: %d axes, at most %d are possible", ndim, MC_MAX_DIMS);
    for (int i = 0; i < ndim; i++) {
        shape[i] = wanted[i];
        if (wanted[i] == -1 && free_axis < 0) {
            free_axis = i;
            shape[i] = 1;
        }
    }
    numel = mci_numel(&t->v);
    int bad = mci_checked_numel(ndim, shape, &n);
    if (!bad && free_axis >= 0) {
        bad = n == 0 || numel % n != 0;
        if (!bad) shape[free_axis] = numel / n;
    } else {
        bad = bad || n != numel;
    }
    if (bad)
        return mci_fail(MC_EINVAL, "view: %s has %lld elements, they do not fit %s",
                        mci_shape_of(t), (long long)numel, mci_shape_text(ndim, wanted));
    if (numel == 0)
        mci_contiguous_strides(ndim, shape, strides);
    else if (!view_strides(&t->v, ndim, shape, strides))
        return mci_fail(
            MC_EINVAL,
            "view: %s with strides %s cannot be seen as %s without a copy; use t:reshape(...)",
            mci_shape_of(t), mci_shape_text(t->v.ndim, t->v.stride), mci_shape_text(ndim, wanted));
    set_view(out, t, ndim, shape, strides, 0);
    return MC_OK;
}

mc_status mc_expand(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *wanted) {
    mc_status status = want_defined("expand", t);
    if (status == MC_OK) status = want_empty("expand", out);
    if (status != MC_OK) return status;
    int64_t shape[MC_MAX_DIMS], strides[MC_MAX_DIMS], n;
    int extra = ndim - t->v.ndim, fits = extra >= 0 && ndim <= MC_MAX_DIMS;
    for (int i = 0; fits && i < ndim; i++) {
        int64_t own = i < extra ? 1 : t->v.shape[i - extra];
        shape[i] = wanted[i] == -1 && i >= extra ? own : wanted[i];
        strides[i] = i < extra || (own == 1 && shape[i] != 1) ? 0 : t->v.stride[i - extra];
        fits = own == shape[i] || (own == 1 && shape[i] >= 0);
    }
    if (!fits)
        return mci_fail(MC_EINVAL, "expand: %s does not expand to %s; only axes of size 1 grow",
                        mci_shape_of(t), mci_shape_text(ndim, wanted));
    status = check_shape("expand", ndim, shape, t->v.dtype, &n);
    if (status == MC_OK) set_view(out, t, ndim, shape, strides, 0);
    return status;
}

mc_status mc_permute(mc_tensor *out, const mc_tensor *t, int ndim, const int64_t *axes) {
    mc_status status = want_defined("permute", t);
    if (status == MC_OK) status = want_empty("permute", out);
    if (status != MC_OK) return status;
    int64_t shape[MC_MAX_DIMS], strides[MC_MAX_DIMS];
    unsigned seen = 0;
    int fits = ndim == t->v.ndim;
    for (int i = 0; fits && i < ndim; i++) {
        fits = axes[i] >= 0 && axes[i] < ndim && !((seen >> axes[i]) & 1U);
        if (!fits) break;
        seen |= 1U << axes[i];
        shape[i] = t->v.shape[axes[i]];
        strides[i] = t->v.stride[axes[i]];
    }
    if (!fits)
        return mci_fail(MC_EINVAL,
                        "permute: axes %s (0-based) do not name each of the %d axes once",
                        mci_shape_text(ndim > MC_MAX_DIMS ? MC_MAX_DIMS : ndim, axes), t->v.ndim);
    set_view(out, t, ndim, shape, strides, 0);
    return MC_OK;
}

static mc_status want_axis(const char *op, const mc_tensor *t, int axis) {
    if (axis >= 0 && axis < t->v.ndim) return MC_OK;
    return mci_fail(MC_EINVAL, "%s: axis %d (0-based) of a tensor of shape %s", op, axis,
                    mci_shape_of(t));
}

mc_status mc_narrow(mc_tensor *out, const mc_tensor *t, int axis, int64_t first, int64_t n) {
    mc_status status = want_defined("narrow", t);
    if (status == MC_OK) status = want_empty("narrow", out);
    if (status == MC_OK) status = want_axis("narrow", t, axis);
    if (status != MC_OK) return status;
    if (first < 0 || n < 0 || first > t->v.shape[axis] - n)
        return mci_fail(MC_EINVAL,
                        "narrow: %lld positions from %lld (0-based) on axis %d of size %lld",
                        (long long)n, (long long)first, axis, (long long)t->v.shape[axis]);
    int64_t shape[MC_MAX_DIMS];
    memcpy(shape, t->v.shape, sizeof shape);
    shape[axis] = n;
    set_view(out, t, t->v.ndim, shape, t->v.stride, n > 0 ? first * t->v.stride[axis] : 0);
    return MC_OK;
}

mc_status mc_select(mc_tensor *out, const mc_tensor *t, int axis, int64_t index) {
    mc_status status = want_defined("select", t);
    if (status == MC_OK) status = want_empty("select", out);
    if (status == MC_OK) status = want_axis("select", t, axis);
    if (status != MC_OK) return status;
    if (index < 0 || index >= t->v.shape[axis])
        return mci_fail(MC_EINVAL, "select: index %lld (0-based) on axis %d of size %lld",
                        (long long)index, axis, (long long)t->v.shape[axis]);
    int64_t shape[MC_MAX_DIMS], strides[MC_MAX_DIMS];
    for (int i = 0, d = 0; i < t->v.ndim; i++) {
        if (i == axis) continue;
        shape[d] = t->v.shape[i];
        strides[d++] = t->v.stride[i];
    }
    set_view(out, t, t->v.ndim - 1, shape, strides, index * t->v.stride[axis]);
    return MC_OK;
}
