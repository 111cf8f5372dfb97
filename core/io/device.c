/* device.c: bytes between the host's memory and a device's, through page-locked buffers.
 *
 * A device has a few lanes: a buffer and a stream each, made when they are first needed and kept
 * for the process. A caller goes round a few of them: while one buffer is filled, the copies out of
 * the others run. Lanes are held for single calls only, so a caller who finds none free waits for a
 * moment. The lanes' streams wait for the main one, or for a moment of it that was noted before,
 * and never the other way round: who needs the bytes waits here, on the host.
 */
#include "device.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "backend_room.h"
#include "cpu.h"
#include "graph.h"
#include "status.h"
#include "tensor.h"

enum {
    BLOCK = 1 << 19, /* of a copy by threads */
    ALIGN = 256      /* of tensors in a copy of many: whole sectors of a device */
};

struct mci_lane {
    mci_lane *next;
    char *data;
    void *stream;
    char *to; /* where the buffer's first n bytes go once they have come, or NULL */
    int64_t n;
};

typedef struct pool {
    struct pool *next;
    int device, made;
    mci_lane *idle;
} pool;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t returned = PTHREAD_COND_INITIALIZER;
static pool *pools;

/* -- lanes ------------------------------------------------------------------------------------- */

/* With the lock. */
static pool *pool_of(int device) {
    pool *p = pools;
    while (p && p->device != device) p = p->next;
    if (p) return p;
    p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->device = device;
    p->next = pools;
    return pools = p;
}

static mc_status make_lane(int device, mci_lane **out) {
    const mci_backend *b = mci_backend_of(device);
    int ordinal = mci_exec_of(device)->ordinal;
    void *data = NULL;
    *out = calloc(1, sizeof **out);
    mc_status status = *out ? b->pinned_alloc(ordinal, MCI_STAGE_BYTES, &data) : MC_ENOMEM;
    if (status == MC_OK) {
        (*out)->data = data;
        status = b->stream_new(ordinal, &(*out)->stream);
    }
    if (status == MC_OK) return MC_OK;
    if (data) b->pinned_free(ordinal, data);
    free(*out);
    *out = NULL;
    return status != MC_ENOMEM ? status
                               : mci_fail(MC_ENOMEM,
                                          "no %d bytes of page-locked memory for copies between "
                                          "host and device",
                                          MCI_STAGE_BYTES);
}

/* A lane for nobody else. may_wait = 0: NULL when there is none at once. */
static mc_status take_lane(int device, int may_wait, mci_lane **out) {
    mc_status status = MC_OK;
    *out = NULL;
    pthread_mutex_lock(&lock);
    pool *p = pool_of(device);
    if (!p) status = mci_fail(MC_ENOMEM, "no memory to list a device's buffers");
    while (p && !p->idle) {
        status = p->made < MCI_STAGE_LANES ? make_lane(device, &p->idle) : MC_OK;
        if (p->idle) p->made++;
        if (p->idle || !may_wait || p->made == 0) break;
        pthread_cond_wait(&returned, &lock);
        status = MC_OK;
    }
    if (p && p->idle) {
        *out = p->idle;
        p->idle = (*out)->next;
    }
    pthread_mutex_unlock(&lock);
    return may_wait ? status : MC_OK;
}

static void return_lane(int device, mci_lane *l) {
    pthread_mutex_lock(&lock);
    pool *p = pool_of(device); /* there since it was taken */
    l->next = p->idle;
    p->idle = l;
    pthread_cond_broadcast(&returned);
    pthread_mutex_unlock(&lock);
}

/* -- stages ------------------------------------------------------------------------------------ */

static void move(char *dst, const char *src, int64_t n, int threads) {
    if (threads < 2) {
        memcpy(dst, src, (size_t)n);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t at = 0; at < n; at += BLOCK)
        memcpy(dst + at, src + at, (size_t)(n - at < BLOCK ? n - at : BLOCK));
}

void mci_stage_begin(mci_stage *s, int device, void *after) {
    *s = (mci_stage){.device = device, .threads = 1, .after = after};
}

static mc_status settle(const mci_stage *s, mci_lane *l) {
    mc_status status =
        mci_backend_of(s->device)->stream_synchronize(mci_exec_of(s->device)->ordinal, l->stream);
    if (status == MC_OK && l->to) move(l->to, l->data, l->n, s->threads);
    l->to = NULL;
    return status;
}

mc_status mci_stage_next(mci_stage *s, char **buffer) {
    mci_lane *l = NULL;
    mc_status status = MC_OK;
    if (s->n < MCI_STAGE_MOST) status = take_lane(s->device, s->n == 0, &l);
    if (status != MC_OK) return status;
    if (l) {
        s->newest = s->n;
        s->lanes[s->n++] = l;
        status = mci_backend_of(s->device)->stream_wait(mci_exec_of(s->device)->ordinal, l->stream,
                                                        s->after);
    } else {
        s->newest = (s->newest + 1) % s->n;
        l = s->lanes[s->newest];
        status = settle(s, l);
    }
    *buffer = l->data;
    return status;
}

static mc_status begin(const mci_stage *s, void *dst, const void *src, int64_t bytes,
                       int to_device) {
    return mci_backend_of(s->device)->copy_begin(mci_exec_of(s->device)->ordinal,
                                                 s->lanes[s->newest]->stream, dst, src,
                                                 (size_t)bytes, to_device);
}

mc_status mci_stage_send(mci_stage *s, void *dst, const char *src, int64_t bytes) {
    return begin(s, dst, src, bytes, 1);
}

mc_status mci_stage_end(mci_stage *s, mc_status status) {
    for (int i = 0; i < s->n; i++) {
        if (status != MC_OK) s->lanes[i]->to = NULL;
        mc_status one = settle(s, s->lanes[i]);
        if (one != MC_OK) status = one;
        return_lane(s->device, s->lanes[i]);
    }
    s->n = 0;
    return status;
}

/* -- any bytes --------------------------------------------------------------------------------- */

static mc_status carry(mci_stage *s, char *dst, const char *src, int64_t bytes, int to_device) {
    mc_status status = MC_OK;
    if (bytes > MCI_STAGE_BYTES) s->threads = mci_threads(bytes);
    for (int64_t at = 0; at < bytes && status == MC_OK; at += MCI_STAGE_BYTES) {
        int64_t n = bytes - at < MCI_STAGE_BYTES ? bytes - at : MCI_STAGE_BYTES;
        char *buffer = NULL;
        status = mci_stage_next(s, &buffer);
        if (status != MC_OK) break;
        if (to_device) {
            move(buffer, src + at, n, s->threads);
            status = begin(s, dst + at, buffer, n, 1);
        } else {
            status = begin(s, buffer, src + at, n, 0);
            s->lanes[s->newest]->to = dst + at;
            s->lanes[s->newest]->n = n;
        }
    }
    return mci_stage_end(s, status);
}

mc_status mci_device_write(int device, void *dst, const void *src, int64_t bytes) {
    mci_stage s;
    mci_stage_begin(&s, device, NULL);
    return carry(&s, dst, src, bytes, 1);
}

mc_status mci_device_read(int device, void *dst, const void *src, int64_t bytes, void *after) {
    mci_stage s;
    mci_stage_begin(&s, device, after);
    return carry(&s, dst, src, bytes, 0);
}

/* -- moments ----------------------------------------------------------------------------------- */

/* The source's bytes [within, within + bytes) as a view. */
static mc_status view_source(mc_tensor *view, const mci_source *s, int64_t within, int64_t bytes) {
    int64_t size = mc_dtype_size(mc_tensor_dtype(s->tensor)), first = s->first + within, one = 1;
    int64_t count = bytes / size;
    if (first % size != 0 || bytes % size != 0)
        return mci_fail(MC_EINTERNAL, "a source that cuts an element of its tensor");
    return mc_as_strided(view, s->tensor, 1, &count, &one, first / size);
}

mc_status mci_source_read(const mci_source *s, int64_t within, int64_t bytes, void *dst) {
    mc_tensor view = {.storage = NULL};
    mc_status status = view_source(&view, s, within, bytes);
    if (status == MC_OK && bytes > 0)
        status = mci_device_read(view.storage->device, dst, view.v.data, bytes,
                                 s->moment ? s->moment->stream : NULL);
    mc_tensor_release(&view);
    return status;
}

/* 1 when the device has so many bytes beside what its tensors take at their most. */
static int has_room(int device, int64_t bytes) {
    mc_device_memory_stats stats;
    int64_t available = 0, total = 0;
    if (!mci_backend_of(device)->memory) return 1; /* it will say so itself */
    if (mc_memory_device_stats(device, &stats) != MC_OK ||
        mc_device_memory(device, &available, &total) != MC_OK)
        return 0;
    /* a block may be an eighth larger than what is asked for */
    return available + stats.cached_bytes - (stats.peak_bytes - stats.live_bytes) >=
           bytes + bytes / 8;
}

static mc_tensor flat_bytes(mci_storage *storage, void *data, int64_t n) {
    return (mc_tensor){
        .v = {.data = data, .dtype = MC_UINT8, .ndim = 1, .shape = {n}, .stride = {1}},
        .storage = storage};
}

static mc_status copy_source(mci_source *s, mc_tensor *block, int64_t at) {
    mc_tensor view = {.storage = NULL};
    mc_status status = view_source(&view, s, 0, s->bytes);
    if (status == MC_OK) {
        mc_tensor from = flat_bytes(view.storage, view.v.data, s->bytes);
        mc_tensor to = flat_bytes(block->storage, (char *)block->v.data + at, s->bytes);
        status = mc_copy(&to, &from);
    }
    mc_tensor_release(&view);
    if (status != MC_OK) return status;
    s->tensor = block;
    s->first = at;
    return MC_OK;
}

/* The bytes of all sources of the moment into one block of its device, if there is room for it. */
static mc_status copy_sources(mci_moment *m, mci_source *sources, int64_t n) {
    int64_t total = 0, at = 0;
    for (int64_t i = 0; i < n; i++)
        if (sources[i].moment == m) total += (sources[i].bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (!has_room(m->device, total)) return MC_OK;
    mc_tensor *block = mc_tensor_new();
    if (!block) return MC_ENOMEM;
    mci_tag = "a save's copy";
    mc_status status = mc_empty(block, MC_UINT8, m->device, 1, &total);
    mci_tag = NULL;
    if (status != MC_OK) {
        mc_tensor_free(block);
        return status == MC_ENOMEM ? MC_OK : status;
    }
    m->copy = block;
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        if (sources[i].moment != m) continue;
        status = copy_source(&sources[i], block, at);
        at += (sources[i].bytes + ALIGN - 1) / ALIGN * ALIGN;
    }
    return status;
}

static mci_moment *moment_of(mci_moment **list, int device) {
    mci_moment *m = *list;
    while (m && m->device != device) m = m->next;
    if (m) return m;
    m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->device = device;
    m->next = *list;
    return *list = m;
}

mc_status mci_moments_take(mci_moment **list, mci_source *sources, int64_t n, int copy) {
    mc_status status = MC_OK;
    for (int64_t i = 0; i < n; i++) {
        mci_source *s = &sources[i];
        if (!s->tensor || s->bytes == 0 || mc_tensor_device(s->tensor) == 0) continue;
        s->moment = moment_of(list, mc_tensor_device(s->tensor));
        if (!s->moment) return mci_fail(MC_ENOMEM, "no memory to list the devices");
    }
    for (mci_moment *m = *list; m && status == MC_OK; m = m->next) {
        const mci_backend *b = mci_backend_of(m->device);
        int ordinal = mci_exec_of(m->device)->ordinal;
        status = mci_graph_forbids(m->device, "save");
        if (status == MC_OK && copy) status = copy_sources(m, sources, n);
        if (status == MC_OK) status = b->stream_new(ordinal, &m->stream);
        if (status == MC_OK) status = b->stream_wait(ordinal, m->stream, NULL);
    }
    return status;
}

void mci_moments_free(mci_moment **list) {
    while (*list) {
        mci_moment *m = *list;
        *list = m->next;
        mc_tensor_free(m->copy);
        mci_backend_of(m->device)->stream_free(mci_exec_of(m->device)->ordinal, m->stream);
        free(m);
    }
}
