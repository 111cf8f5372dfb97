/* storage.c: refcounted blocks of device memory. Structs come from a free list: they live as short
 * as small results do. */
#include <pthread.h>
#include <stdlib.h>

#include "alloc.h"
#include "status.h"
#include "tensor.h"

enum { POOL_MAX = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mci_storage *pool[POOL_MAX];
static int pooled;
static int64_t last_id;

mc_status mci_storage_new(mci_storage **out, int device, int64_t bytes) {
    *out = NULL;
    mci_block block = {.bytes = bytes, .tag = mci_tag};
    mc_status status = mci_alloc(device, &block);
    if (status != MC_OK) return status;
    pthread_mutex_lock(&lock);
    mci_storage *s = pooled > 0 ? pool[--pooled] : NULL;
    int64_t id = ++last_id;
    pthread_mutex_unlock(&lock);
    if (!s) s = malloc(sizeof *s);
    if (!s) {
        mci_free(device, &block);
        return mci_fail(MC_ENOMEM, "out of memory: no room for a storage's header");
    }
    *s = (mci_storage){.refs = 1,
                       .device = device,
                       .pool = block.pool,
                       .tag = block.tag,
                       .data = block.data,
                       .bytes = bytes,
                       .id = id};
    mci_count_storages(1);
    *out = s;
    return MC_OK;
}

void mci_storage_retain(mci_storage *s) {
    __atomic_add_fetch(&s->refs, 1, __ATOMIC_RELAXED);
}

void mci_storage_release(mci_storage *s) {
    if (!s || __atomic_sub_fetch(&s->refs, 1, __ATOMIC_ACQ_REL) > 0) return;
    mci_free(s->device,
             &(mci_block){.data = s->data, .bytes = s->bytes, .pool = s->pool, .tag = s->tag});
    mci_count_storages(-1);
    pthread_mutex_lock(&lock);
    if (pooled < POOL_MAX) {
        pool[pooled++] = s;
        s = NULL;
    }
    pthread_mutex_unlock(&lock);
    free(s);
}
