#include "alloc.h"

#include <pthread.h>
#include <stdlib.h>

#include "backend_room.h"
#include "status.h"

enum {
    ALIGN = 64,
    SMALL_CLASSES = 16, /* multiples of 64 bytes up to 1 KiB */
    CLASSES = SMALL_CLASSES + 8 * 40,
    CACHED_DEVICES = 4
};
static const int64_t CACHE_MIN = 64LL << 20;

/* A cached block's address; the list stands apart from the blocks, which the host may not write. */
typedef struct {
    void **blocks;
    int n, capacity;
} freelist;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static freelist cache[CACHED_DEVICES][CLASSES];
static int device_of_slot[CACHED_DEVICES];
static int device_slots;
static int64_t fail_countdown;
static mc_memory memory = {.soft_limit = 64LL << 20};

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

static freelist *list_of(int device, int class) {
#ifdef MASCON_SANITIZE
    (void)device, (void)class;
    return NULL;
#else
    if (class >= CLASSES) return NULL;
    for (int i = 0; i < device_slots; i++)
        if (device_of_slot[i] == device) return &cache[i][class];
    if (device_slots == CACHED_DEVICES) return NULL;
    device_of_slot[device_slots] = device;
    return &cache[device_slots++][class];
#endif
}

static void trim_locked(void) {
    for (int d = 0; d < device_slots; d++) {
        mci_exec *exec = mci_exec_of(device_of_slot[d]);
        for (int c = 0; c < CLASSES; c++) {
            freelist *list = &cache[d][c];
            int64_t block = c < SMALL_CLASSES ? (c + 1) * (int64_t)ALIGN
                                              : (1LL << ((c - SMALL_CLASSES) / 8 + 10)) / 8 *
                                                    (8 + (c - SMALL_CLASSES) % 8 + 1);
            while (list->n > 0) {
                mci_backend_of(device_of_slot[d])
                    ->free(exec, list->blocks[--list->n], (size_t)block);
                memory.cached_bytes -= block;
            }
        }
    }
}

void mc_memory_trim(void) {
    pthread_mutex_lock(&lock);
    trim_locked();
    pthread_mutex_unlock(&lock);
}

mc_status mci_alloc(int device, int64_t *bytes, void **out) {
    *out = NULL;
    if (mci_alloc_must_fail())
        return mci_fail(MC_ENOMEM, "out of memory: wanted %lld bytes (failure asked for by a test)",
                        (long long)*bytes);
    if (*bytes == 0) return MC_OK;
    int64_t block, wanted = *bytes;
    if (wanted > INT64_MAX / 2)
        return mci_fail(MC_ENOMEM, "out of memory: wanted %lld bytes", (long long)wanted);
    int class = class_of(wanted, &block);
    mc_status status = MC_OK;
    pthread_mutex_lock(&lock);
    freelist *list = list_of(device, class);
    if (list && list->n > 0) {
        *out = list->blocks[--list->n];
        memory.cached_bytes -= block;
    } else {
        status = mci_backend_of(device)->alloc(mci_exec_of(device), (size_t)block, out);
        if (status == MC_ENOMEM) {
            trim_locked();
            status = mci_backend_of(device)->alloc(mci_exec_of(device), (size_t)block, out);
        }
    }
    if (status == MC_OK) {
        memory.live_bytes += block;
        if (memory.live_bytes > memory.peak_bytes) memory.peak_bytes = memory.live_bytes;
        if (memory.live_bytes > memory.soft_limit) memory.pressure = 1;
        *bytes = block;
    }
    pthread_mutex_unlock(&lock);
    if (status == MC_ENOMEM)
        return mci_fail(
            MC_ENOMEM, "out of memory: wanted %lld bytes, %lld are live, %lld was the peak",
            (long long)wanted, (long long)memory.live_bytes, (long long)memory.peak_bytes);
    return status;
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

void mci_free(int device, void *data, int64_t bytes) {
    if (!data) return;
    int64_t block;
    int class = class_of(bytes, &block);
    pthread_mutex_lock(&lock);
    memory.live_bytes -= block;
    freelist *list = list_of(device, class);
    if (list && memory.cached_bytes + block <= CACHE_MIN + memory.peak_bytes / 2 && reserve(list)) {
        list->blocks[list->n++] = data;
        memory.cached_bytes += block;
        data = NULL;
    }
    if (data) mci_backend_of(device)->free(mci_exec_of(device), data, (size_t)block);
    pthread_mutex_unlock(&lock);
}
