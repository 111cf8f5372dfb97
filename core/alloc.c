#include "alloc.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend_room.h"
#include "status.h"

enum {
    ALIGN = 64,
    SMALL_CLASSES = 16, /* multiples of 64 bytes up to 1 KiB */
    CLASSES = SMALL_CLASSES + 8 * 40,
    DEVICES = 48, /* 16 of each backend: all that have a code */
    SLAB_BLOCK_MAX =
        16 << 10, /* blocks of devices up to here come from the device many at a time */
    SLAB_BYTES = 256 << 10,
    TAGS = 256,
    TAGS_SHOWN = 4
};
static const int64_t CACHE_MIN = 64LL << 20;

/* A cached block's address; the list stands apart from the blocks, which the host may not write. */
typedef struct freelist {
    void **blocks;
    int n, capacity;
} freelist;

typedef struct pool {
    struct pool *next;
    int id;
    int64_t bytes; /* of all its blocks, in use or not */
    int64_t used;  /* blocks in use */
    int64_t replays;
    int released; /* it lives for the storages that still count its replays */
    freelist lists[CLASSES];
} pool;

typedef struct device_memory {
    int device;
    mc_device_memory_stats stats;
    pool common;
    pool *graphs; /* pools of graphs, or of storages, that live */
    pool *open;   /* the one of the graph that is being recorded, or NULL */
} device_memory;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static device_memory devices[DEVICES];
static int n_devices, last_pool;
static int64_t fail_countdown;
static mc_memory memory = {.soft_limit = 64LL << 20};
static struct {
    const char *tag;
    int64_t bytes;
} tags[TAGS];

_Thread_local const char *mci_tag;

const mc_memory *mc_memory_stats(void) {
    return &memory;
}

void mc_memory_set_soft_limit(int64_t bytes) {
    pthread_mutex_lock(&lock);
    memory.soft_limit = bytes;
    memory.pressure = memory.live_bytes > bytes;
    pthread_mutex_unlock(&lock);
}

void mc_memory_reset_peak(void) {
    pthread_mutex_lock(&lock);
    memory.peak_bytes = memory.live_bytes;
    for (int d = 0; d < n_devices; d++) devices[d].stats.peak_bytes = devices[d].stats.live_bytes;
    pthread_mutex_unlock(&lock);
}

void mc_memory_fail_at(int64_t nth) {
    pthread_mutex_lock(&lock);
    fail_countdown = nth;
    pthread_mutex_unlock(&lock);
}

int mci_alloc_must_fail(void) {
    /* Read without the lock: tests alone set it, and no other thread allocates meanwhile. */
    return fail_countdown > 0 && --fail_countdown == 0;
}

void mci_count_storages(int change) {
    __atomic_add_fetch(&memory.live_storages, change, __ATOMIC_RELAXED);
}

/* The class of a size, and the size of its blocks. */
static int class_of(int64_t bytes, int64_t *block) {
    if (bytes <= ALIGN * SMALL_CLASSES) {
        int64_t n = (bytes + ALIGN - 1) / ALIGN;
        *block = n * ALIGN;
        return (int)n - 1;
    }
    int octave = 63 - __builtin_clzll(
                          (unsigned long long)(bytes - 1)); /* 2^octave < bytes <= 2^(octave + 1) */
    int64_t step = 1LL << (octave - 3);
    int64_t eighths = (bytes - (1LL << octave) + step - 1) / step; /* 1 .. 8 */
    *block = (1LL << octave) + eighths * step;
    return SMALL_CLASSES + (octave - 10) * 8 + (int)eighths - 1;
}

static int64_t block_of_class(int c) {
    return c < SMALL_CLASSES
               ? (c + 1) * (int64_t)ALIGN
               : (1LL << ((c - SMALL_CLASSES) / 8 + 10)) / 8 * (8 + (c - SMALL_CLASSES) % 8 + 1);
}

/* NULL when there are too many devices. */
static device_memory *memory_of(int device) {
    for (int i = 0; i < n_devices; i++)
        if (devices[i].device == device) return &devices[i];
    if (n_devices == DEVICES) return NULL;
    devices[n_devices].device = device;
    return &devices[n_devices++];
}

/* -- tags -------------------------------------------------------------------------------------- */

static void count_tag(const char *tag, int64_t bytes) {
    size_t at = ((uintptr_t)tag >> 3) % TAGS;
    for (int i = 0; i < TAGS; i++, at = (at + 1) % TAGS) {
        if (tags[at].tag && tags[at].tag != tag) continue;
        tags[at].tag = tag;
        tags[at].bytes += bytes;
        return;
    }
}

/* "; largest: linear 2.1 GiB, ..." Ops of one name may stand at several addresses. */
static void describe_tags(char *text, size_t size) {
    const char *shown[TAGS_SHOWN];
    size_t used = 0;
    text[0] = 0;
    for (int n = 0; n < TAGS_SHOWN; n++) {
        const char *best = NULL;
        int64_t most = 0;
        for (int i = 0; i < TAGS; i++) {
            int64_t sum = 0;
            int known = !tags[i].tag;
            for (int j = 0; j < n && !known; j++) known = strcmp(shown[j], tags[i].tag) == 0;
            for (int j = 0; j < TAGS && !known; j++)
                if (tags[j].tag && strcmp(tags[j].tag, tags[i].tag) == 0) sum += tags[j].bytes;
            if (known || sum <= most) continue;
            most = sum;
            best = tags[i].tag;
        }
        if (!best || used >= size) return;
        shown[n] = best;
        used +=
            (size_t)snprintf(text + used, size - used, "%s%s %" PRId64,
                             n == 0 ? "; largest, by the op that made them: " : ", ", best, most);
    }
}

/* -- the cache --------------------------------------------------------------------------------- */

static freelist *list_of(pool *p, int class) {
    return p && class < CLASSES ? &p->lists[class] : NULL;
}

/* What a device's cache may keep. */
static int may_keep(const device_memory *m, int64_t block) {
#ifdef MASCON_SANITIZE
    if (m->device == MCI_DEVICE_CPU) return 0;
#endif
    if (!mci_backend_of(m->device)->host_readable && m->device != MCI_DEVICE_FAKE) return 1;
    return m->stats.cached_bytes + block <= CACHE_MIN + m->stats.peak_bytes / 2;
}

/* Room for one more block in the list; 0 when the system has no memory for it. */
static int reserve(freelist *list) {
    if (list->n < list->capacity) return 1;
    int capacity = list->capacity ? 2 * list->capacity : 16;
    void **blocks = realloc(list->blocks, (size_t)capacity * sizeof *blocks);
    if (!blocks) return 0;
    list->blocks = blocks;
    list->capacity = capacity;
    return 1;
}

static void change_cached(device_memory *m, int64_t bytes) {
    m->stats.cached_bytes += bytes;
    memory.cached_bytes += bytes;
}

/* An allocation on a device takes microseconds, so small ones are made many at a time. Such blocks
 * cannot be given back one by one, and are not. */
static int in_slab(const device_memory *m, int64_t block) {
    return block <= SLAB_BLOCK_MAX && !mci_backend_of(m->device)->host_readable;
}

static void give_back(int device, void *data, int64_t block) {
    mci_backend_of(device)->free(mci_exec_of(device), data, (size_t)block);
}

static void keep_or_give_back(device_memory *m, int class, void *data, int64_t block) {
    freelist *list = m ? list_of(&m->common, class) : NULL;
    int whole = !in_slab(m, block);
    if (list && (!whole || may_keep(m, block)) && reserve(list)) {
        list->blocks[list->n++] = data;
        change_cached(m, block);
    } else if (whole) {
        give_back(m->device, data, block);
    }
}

static void trim_locked(void) {
    for (int d = 0; d < n_devices; d++) {
        for (int c = 0; c < CLASSES; c++) {
            freelist *list = &devices[d].common.lists[c];
            while (list->n > 0 && !in_slab(&devices[d], block_of_class(c))) {
                give_back(devices[d].device, list->blocks[--list->n], block_of_class(c));
                change_cached(&devices[d], -block_of_class(c));
            }
        }
    }
}

void mc_memory_trim(void) {
    pthread_mutex_lock(&lock);
    trim_locked();
    pthread_mutex_unlock(&lock);
}

/* -- blocks ------------------------------------------------------------------------------------ */

static mc_status from_device(device_memory *m, int64_t block, void **out) {
    mc_status status = mci_backend_of(m->device)->alloc(mci_exec_of(m->device), (size_t)block, out);
    if (status == MC_ENOMEM) {
        trim_locked();
        status = mci_backend_of(m->device)->alloc(mci_exec_of(m->device), (size_t)block, out);
    }
    if (status == MC_OK) m->stats.device_allocations++;
    return status;
}

/* One block for the caller, and in a slab its neighbours for the list. */
static mc_status new_blocks(device_memory *m, pool *from, freelist *list, int64_t block,
                            void **out) {
    int64_t n = list && in_slab(m, block) ? SLAB_BYTES / block : 1;
    mc_status status = from_device(m, n * block, out);
    if (status == MC_ENOMEM && n > 1) {
        n = 1;
        status = from_device(m, block, out);
    }
    if (status != MC_OK) return status;
    int64_t made = 1;
    for (; made < n && reserve(list); made++) list->blocks[list->n++] = (char *)*out + made * block;
    if (from == &m->common) {
        change_cached(m, (made - 1) * block);
    } else {
        from->bytes += made * block;
        m->stats.graph_bytes += made * block;
    }
    return MC_OK;
}

static mc_status full(const device_memory *m, int64_t wanted) {
    char largest[512], name[32];
    describe_tags(largest, sizeof largest);
    mc_device_name(m->device, name, sizeof name);
    return mci_fail(MC_ENOMEM,
                    "out of memory: wanted %lld bytes on %s, %lld are live, %lld was the peak, "
                    "%lld are cached, %lld belong to graphs%s",
                    (long long)wanted, name, (long long)m->stats.live_bytes,
                    (long long)m->stats.peak_bytes, (long long)m->stats.cached_bytes,
                    (long long)m->stats.graph_bytes, largest);
}

static void count_live(device_memory *m, int64_t bytes, const char *tag) {
    memory.live_bytes += bytes;
    if (memory.live_bytes > memory.peak_bytes) memory.peak_bytes = memory.live_bytes;
    if (memory.live_bytes > memory.soft_limit) memory.pressure = 1;
    m->stats.live_bytes += bytes;
    if (m->stats.live_bytes > m->stats.peak_bytes) m->stats.peak_bytes = m->stats.live_bytes;
    count_tag(tag, bytes);
}

mc_status mci_alloc(int device, mci_block *b) {
    b->data = NULL;
    b->pool = 0;
    if (!b->tag) b->tag = "tensors made directly";
    if (mci_alloc_must_fail())
        return mci_fail(MC_ENOMEM, "out of memory: wanted %lld bytes (failure asked for by a test)",
                        (long long)b->bytes);
    if (b->bytes == 0) return MC_OK;
    int64_t block, wanted = b->bytes;
    if (wanted > INT64_MAX / 2)
        return mci_fail(MC_ENOMEM, "out of memory: wanted %lld bytes", (long long)wanted);
    int class = class_of(wanted, &block);
    mc_status status = MC_OK;
    pthread_mutex_lock(&lock);
    device_memory *m = memory_of(device);
    if (!m) {
        pthread_mutex_unlock(&lock);
        return mci_fail(MC_EUNSUPPORTED, "memory of more than %d devices in one process", DEVICES);
    }
    pool *from = m->open ? m->open : &m->common;
    freelist *list = list_of(from, class), *common = list_of(&m->common, class);
    if (list && list->n > 0) {
        b->data = list->blocks[--list->n];
        if (from == &m->common) change_cached(m, -block);
    } else if (common && common->n > 0) { /* becomes the graph's */
        b->data = common->blocks[--common->n];
        change_cached(m, -block);
        from->bytes += block;
        m->stats.graph_bytes += block;
    } else {
        status = new_blocks(m, from, list, block, &b->data);
    }
    if (status == MC_OK) {
        count_live(m, block, b->tag);
        m->stats.allocations++;
        b->bytes = block;
        b->pool = from->id;
        from->used++;
    } else if (status == MC_ENOMEM) {
        status = full(m, wanted);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

static pool *graph_pool(device_memory *m, int id) {
    pool *p = m->graphs;
    while (p && p->id != id) p = p->next;
    return p;
}

static void remove_pool(device_memory *m, pool *p) {
    pool **at = &m->graphs;
    while (*at != p) at = &(*at)->next;
    *at = p->next;
    free(p);
}

void mci_free(int device, const mci_block *b) {
    if (!b->data) return;
    int64_t block;
    int class = class_of(b->bytes, &block);
    pthread_mutex_lock(&lock);
    device_memory *m = memory_of(device);
    memory.live_bytes -= block;
    m->stats.live_bytes -= block;
    count_tag(b->tag, -block);
    pool *home = b->pool != 0 ? graph_pool(m, b->pool) : &m->common;
    home->used--;
    freelist *list = list_of(home, class);
    if (home == &m->common || home->released)
        keep_or_give_back(m, class, b->data, block);
    else if (list && reserve(list))
        list->blocks[list->n++] = b->data; /* without room it is lost until the process ends */
    if (home->released && home->used == 0) remove_pool(m, home);
    pthread_mutex_unlock(&lock);
}

/* -- pools ------------------------------------------------------------------------------------- */

int mci_pool_open(int device) {
    pool *p = calloc(1, sizeof *p);
    if (!p) return 0;
    pthread_mutex_lock(&lock);
    device_memory *m = memory_of(device);
    if (m) {
        p->id = ++last_pool;
        p->next = m->graphs;
        m->graphs = m->open = p;
    }
    pthread_mutex_unlock(&lock);
    if (m) return p->id;
    free(p);
    return 0;
}

void mci_pool_close(int device) {
    pthread_mutex_lock(&lock);
    memory_of(device)->open = NULL;
    pthread_mutex_unlock(&lock);
}

void mci_pool_release(int device, int id) {
    pthread_mutex_lock(&lock);
    device_memory *m = memory_of(device);
    pool *p = graph_pool(m, id);
    m->stats.graph_bytes -= p->bytes;
    p->released = 1;
    for (int c = 0; c < CLASSES; c++) {
        freelist *list = &p->lists[c];
        int64_t block = block_of_class(c);
        while (list->n > 0) keep_or_give_back(m, c, list->blocks[--list->n], block);
        free(list->blocks);
    }
    if (p->used == 0) remove_pool(m, p);
    pthread_mutex_unlock(&lock);
}

void mci_pool_replayed(int device, int id) {
    pthread_mutex_lock(&lock);
    graph_pool(memory_of(device), id)->replays++;
    pthread_mutex_unlock(&lock);
}

int64_t mci_pool_replays(int device, int id) {
    pthread_mutex_lock(&lock);
    int64_t replays = graph_pool(memory_of(device), id)->replays;
    pthread_mutex_unlock(&lock);
    return replays;
}

mc_status mc_memory_device_stats(int device, mc_device_memory_stats *out) {
    mc_status status = mci_check_device("memory_device_stats", device);
    if (status != MC_OK) return status;
    pthread_mutex_lock(&lock);
    const device_memory *m = memory_of(device);
    *out = m ? m->stats : (mc_device_memory_stats){.live_bytes = 0};
    pthread_mutex_unlock(&lock);
    return MC_OK;
}
