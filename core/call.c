#include "call.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "backend_room.h"
#include "dtype.h"
#include "graph.h"

mci_call mci_begin(const char *name, int op, int n_out) {
    return (mci_call){.name = name, .op = op, .n_out = n_out, .device = -1};
}

void mci_bad(mci_call *c, const char *format, ...) {
    if (c->status != MC_OK) return;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (c->each)
        c->status =
            mci_fail(MC_EINVAL, "%s: %s %lld: %s", c->name, c->each, (long long)c->number, text);
    else
        c->status = mci_fail(MC_EINVAL, "%s: %s", c->name, text);
}

static void same_device(mci_call *c, const mc_tensor *t) {
    int device = t->storage->device;
    if (c->device == -1) c->device = device;
    if (c->device == device) return;
    char a[32], b[32];
    mc_device_name(c->device, a, sizeof a);
    mc_device_name(device, b, sizeof b);
    mci_bad(c, "operands are on %s and %s; move one with t:to(\"%s\")", a, b, a);
}

void mci_in(mci_call *c, int i, const mc_tensor *t) {
    if (!mci_ok(c)) return;
    if (!t || !t->storage) {
        mci_bad(c, "operand %d is %s (operands count from 1)", i + 1,
                t ? "an empty tensor handle" : "missing");
        return;
    }
    same_device(c, t);
    if (mci_recording) mci_graph_use(t->storage, 0);
    c->t[c->n_out + i] = &t->v;
}

void mci_in_optional(mci_call *c, int i, const mc_tensor *t) {
    if (t) mci_in(c, i, t);
}

void mci_out(mci_call *c, int i, mc_tensor *t, int dtype, int ndim, const int64_t *shape) {
    if (!mci_ok(c)) return;
    if (!t) {
        mci_bad(c, "output %d is missing", i + 1);
        return;
    }
    c->out[i] = t;
    if (!t->storage) {
        mci_tag = c->name;
        c->status = mc_empty(t, dtype, c->device < 0 ? MCI_DEVICE_CPU : c->device, ndim, shape);
        mci_tag = NULL;
        if (mci_ok(c)) c->fresh |= 1U << i;
    } else {
        same_device(c, t);
        if (t->v.dtype != dtype)
            mci_bad(c, "the output given is %s, the result is %s", mc_dtype_name(t->v.dtype),
                    mc_dtype_name(dtype));
        int same = t->v.ndim == ndim;
        for (int d = 0; same && d < ndim; d++) same = t->v.shape[d] == shape[d];
        if (!same)
            mci_bad(c, "the output given is %s, the result is %s", mci_shape_of(t),
                    mci_shape_text(ndim, shape));
        c->written |= 1U << i;
    }
    c->t[i] = &t->v;
}

void mci_inout(mci_call *c, int i, mc_tensor *t, int optional) {
    if (!mci_ok(c) || (optional && !t)) return;
    if (!t || !t->storage) {
        mci_bad(c, "operand %d, which is written in place, is missing", i + 1);
        return;
    }
    same_device(c, t);
    c->out[i] = t;
    c->t[i] = &t->v;
    c->written |= 1U << i;
}

/* First and one-past-last byte that a view touches. */
static void extent(const mci_view *v, uintptr_t *first, uintptr_t *last) {
    int64_t low = 0, high = 0;
    int size = mc_dtype_size(v->dtype);
    for (int i = 0; i < v->ndim; i++) {
        int64_t reach = (v->shape[i] - 1) * v->stride[i];
        if (reach < 0)
            low += reach;
        else
            high += reach;
    }
    *first = (uintptr_t)v->data + (uintptr_t)(low * size);
    *last = (uintptr_t)v->data + (uintptr_t)((high + 1) * size);
}

static int extents_meet(const mci_view *a, const mci_view *b) {
    if (mci_numel(a) == 0 || mci_numel(b) == 0) return 0;
    uintptr_t a0, a1, b0, b1;
    extent(a, &a0, &a1);
    extent(b, &b0, &b1);
    return a0 < b1 && b0 < a1;
}

static int same_layout(const mci_view *a, const mci_view *b) {
    if (a->ndim != b->ndim || a->dtype != b->dtype) return 0;
    for (int i = 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i] || (a->shape[i] > 1 && a->stride[i] != b->stride[i]))
            return 0;
    return 1;
}

/* 1 when two views may share an element; for the very same view 0, exactly in place, or 1 when they
 * are to be `apart`. Views of one layout that lie side by side in a packed buffer (columns of a qkv
 * product) are told apart by writing their distance in their strides; other pairs count as
 * overlapping when their extents do. */
static int overlaps(const mci_view *a, const mci_view *b, int apart) {
    if (!extents_meet(a, b)) return 0;
    if (!same_layout(a, b)) return 1;
    if (a->data == b->data) return apart;
    int64_t distance = ((intptr_t)a->data - (intptr_t)b->data) / mc_dtype_size(a->dtype);
    if (distance < 0) distance = -distance;
    int used[MC_MAX_DIMS] = {0};
    for (int n = 0; n < a->ndim; n++) {
        int widest = -1;
        for (int i = 0; i < a->ndim; i++)
            if (!used[i] && a->shape[i] > 1 && (widest < 0 || a->stride[i] > a->stride[widest]))
                widest = i;
        if (widest < 0) break;
        used[widest] = 1;
        if (a->stride[widest] <= 0) return 1;
        int64_t steps = distance / a->stride[widest];
        if (steps >= a->shape[widest]) return 0;
        distance -= steps * a->stride[widest];
    }
    return distance == 0;
}

/* 1 when two outputs surely share an element: parts of one packed buffer (dq, dk, dv) may lie
 * between each other. */
static int clash(const mci_view *a, const mci_view *b) {
    if (!extents_meet(a, b)) return 0;
    return a->data == b->data || (mci_is_contiguous(a) && mci_is_contiguous(b));
}

static void check_aliases(mci_call *c) {
    for (int i = 0; i < c->n_out; i++) {
        if (!((c->written >> i) & 1U)) continue;
        for (int d = 0; d < c->t[i]->ndim && mci_numel(c->t[i]) > 0; d++)
            if (c->t[i]->stride[d] == 0 && c->t[i]->shape[d] > 1)
                mci_bad(
                    c,
                    "the output given is an expanded view, whose elements share memory; clone it");
        for (int j = 0; j < i; j++)
            if (c->t[j] && clash(c->t[i], c->t[j]))
                mci_bad(c, "outputs %d and %d overlap; each needs its own memory", j + 1, i + 1);
        for (int j = c->n_out; j < MCI_MAX_OPERANDS; j++)
            if (c->t[j] && overlaps(c->t[i], c->t[j], c->apart))
                mci_bad(c, "the output given overlaps operand %d; clone the operand first",
                        j - c->n_out + 1);
    }
}

/* MASCON_SYNC=1: wait for each op, so that a failure on a device is reported by the op that caused
 * it. */
static int sync_each(void) {
    static int sync = -1;
    if (sync < 0) {
        const char *text = getenv("MASCON_SYNC");
        sync = text && text[0] == '1';
    }
    return sync;
}

/* With MASCON_SYNC=1, waits for the op that has just been started. */
static mc_status settle(const mci_call *c) {
    if (mci_recording || !sync_each()) return MC_OK;
    mc_status status = mc_device_synchronize(c->device);
    size_t n = strlen(c->name);
    int named = strncmp(mc_last_error(), c->name, n) == 0 && mc_last_error()[n] == ':';
    return status == MC_OK || named ? status : mci_fail(status, "%s: %s", c->name, mc_last_error());
}

/* Runs the kernel; c->device stands. */
static mc_status run(mci_call *c, const void *params) {
    mci_exec *exec = mci_exec_of(c->device);
    mc_status status = mci_backend_of(c->device)->kernels[c->op](exec, c->t, params);
    return status == MC_OK ? settle(c) : status;
}

/* The outputs written in place have changed. */
static void note_written(mci_call *c) {
    for (int i = 0; i < c->n_out; i++) {
        if (!((c->written >> i) & 1U)) continue;
        c->out[i]->storage->version++;
        if (mci_recording) mci_graph_use(c->out[i]->storage, 1);
    }
}

mc_status mci_end(mci_call *c, const void *params) {
    if (mci_ok(c) && c->written) check_aliases(c);
    if (mci_ok(c)) {
        if (c->device < 0) c->device = MCI_DEVICE_CPU;
        c->status = run(c, params);
    }
    if (mci_ok(c)) {
        note_written(c);
        return MC_OK;
    }
    for (int i = 0; i < c->n_out; i++)
        if (mci_is_fresh(c, i)) mc_tensor_release(c->out[i]);
    return c->status;
}

typedef struct range {
    uintptr_t first, last;
    int written;
} range;

static int by_first(const void *a, const void *b) {
    uintptr_t x = ((const range *)a)->first, y = ((const range *)b)->first;
    return (x > y) - (x < y);
}

/* 1 when bytes that one operand writes lie in another's extent, or memory is short to tell. */
static int calls_meet(const mci_call *c, int64_t n) {
    range *r = malloc((size_t)n * MCI_MAX_OPERANDS * sizeof *r);
    if (!r) return 1;
    size_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        for (int k = 0; k < MCI_MAX_OPERANDS; k++) {
            const mci_view *v = c[i].t[k];
            int shared = i > 0 && k >= c[i].n_out && v == c[0].t[k]; /* step, lr, ... */
            if (!v || shared || mci_numel(v) == 0) continue;
            r[count].written = k < c[i].n_out;
            extent(v, &r[count].first, &r[count].last);
            count++;
        }
    }
    qsort(r, count, sizeof *r, by_first);
    uintptr_t any = 0, written = 0; /* where the ranges so far end, and those that are written */
    int meet = 0;
    for (size_t i = 0; i < count && !meet; i++) {
        meet = r[i].first < written || (r[i].written && r[i].first < any);
        if (r[i].last > any) any = r[i].last;
        if (r[i].written && r[i].last > written) written = r[i].last;
    }
    free(r);
    return meet;
}

static mc_status run_many(mci_call *c, int64_t n, const void *params, int in_order) {
    mc_status (*many)(mci_exec *, int, int64_t, const mci_view *const *const *, const void *) =
        mci_backend_of(c->device)->many;
    if (!many || n < 2 || (!in_order && calls_meet(c, n))) return MC_EUNSUPPORTED;
    const mci_view *const **t = malloc((size_t)n * sizeof *t);
    if (!t) return MC_EUNSUPPORTED;
    for (int64_t i = 0; i < n; i++) t[i] = c[i].t;
    mc_status status = many(mci_exec_of(c->device), c->op, n, t, params);
    free(t);
    return status == MC_OK ? settle(c) : status;
}

mc_status mci_end_many(mci_call *c, int64_t n, const void *params, int in_order) {
    for (int64_t i = 0; i < n; i++) {
        if (mci_ok(&c[i])) check_aliases(&c[i]);
        if (!mci_ok(&c[i])) return c[i].status;
    }
    mc_status status = n > 0 ? run_many(c, n, params, in_order) : MC_OK;
    int in_turn = status == MC_EUNSUPPORTED;
    for (int64_t i = 0; i < n; i++) {
        if (in_turn) status = run(&c[i], params);
        if (status != MC_OK) return status;
        note_written(&c[i]);
    }
    return status;
}

void mci_want_same_dtype(mci_call *c, const char *a_name, const mc_tensor *a, const char *b_name,
                         const mc_tensor *b) {
    if (!mci_ok(c) || a->v.dtype == b->v.dtype) return;
    const char *da = mc_dtype_name(a->v.dtype);
    mci_bad(c, "%s is %s and %s is %s; tensors are not promoted, convert one with t:to(\"%s\")",
            a_name, da, b_name, mc_dtype_name(b->v.dtype), da);
}

void mci_want_float(mci_call *c, const char *a_name, const mc_tensor *a) {
    if (!mci_ok(c) || a->v.dtype <= MC_BFLOAT16) return;
    const char *why = mc_dtype_is_float(a->v.dtype) ? ", a storage type" : "";
    mci_bad(c,
            "%s is %s%s; wanted float64, float32, float16 or bfloat16, convert it with "
            "t:to(\"float32\")",
            a_name, mc_dtype_name(a->v.dtype), why);
}

void mci_want_index(mci_call *c, const char *a_name, const mc_tensor *a) {
    if (!mci_ok(c) || a->v.dtype == MC_INT32 || a->v.dtype == MC_INT64) return;
    mci_bad(c, "%s is %s; wanted int32 or int64, make it with dtype = \"int32\"", a_name,
            mc_dtype_name(a->v.dtype));
}

void mci_want_shape(mci_call *c, const char *a_name, const mc_tensor *a, int ndim,
                    const int64_t *shape) {
    if (!mci_ok(c)) return;
    int same = a->v.ndim == ndim;
    for (int i = 0; same && i < ndim; i++) same = a->v.shape[i] == shape[i];
    if (!same)
        mci_bad(c, "%s is %s, wanted %s", a_name, mci_shape_of(a), mci_shape_text(ndim, shape));
}

void mci_want_number(mci_call *c, double s, int dtype) {
    static const struct {
        double low, high; /* low <= s < high */
    } values_of[MC_DTYPE_COUNT] = {
        [MC_INT64] = {-0x1p63, 0x1p63},
        [MC_INT32] = {-0x1p31, 0x1p31},
        [MC_UINT8] = {0, 256},
        [MC_BOOL] = {0, 2},
    };
    int kind = mci_dtype_kind(dtype);
    if (!mci_ok(c) || (kind != MCI_KIND_INT && kind != MCI_KIND_BOOL)) return;
    if (s != floor(s) || isinf(s))
        mci_bad(c,
                "%.14g is not an integer and the tensor is %s; convert it with t:to(\"float32\")",
                s, mc_dtype_name(dtype));
    else if (s < values_of[dtype].low || s >= values_of[dtype].high)
        mci_bad(c, "%.14g does not fit in a tensor of %s; convert it to a wider dtype with t:to", s,
                mc_dtype_name(dtype));
}

int mci_stat_dtype(int dtype) {
    return dtype == MC_FLOAT64 ? MC_FLOAT64 : MC_FLOAT32;
}
