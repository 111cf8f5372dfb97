/* graph.c: graphs: the ops of a training step, recorded once by the backend and replayed as a
 * whole.
 *
 * A replay reads and writes the addresses that were recorded. So a graph owns what lies there:
 * storages from before the recording that its ops used (one reference each), a pool for what is
 * allocated meanwhile, and the scratch of its ops. A replay counts as a write to every storage of
 * that pool and every other one that was written in place.
 */
#include "graph.h"

#include <stdlib.h>

#include "alloc.h"
#include "backend_room.h"
#include "status.h"

typedef struct use {
    mci_storage *storage;
    int written;
} use;

struct mc_graph {
    int device, pool;
    void *recorded; /* the backend's */
    mci_held scratch;
    use *uses;
    int64_t n, capacity;
    int complete;   /* 0: a use could not be noted, memory was short */
    mc_graph *next; /* of those that wait to be freed */
};

int mci_recording;
static mc_graph *current; /* one at a time: ops come from one thread */
static mc_graph *waiting; /* freed while another was recorded, which a backend does not bear */

mc_status mci_graph_forbids(int device, const char *what) {
    if (!current || current->device != device) return MC_OK;
    return mci_fail(
        MC_EUNSUPPORTED,
        "%s: a graph is being recorded, and its replays would not do this; keep values of the "
        "host out of the function, or in tensors that are filled before a replay",
        what);
}

int mc_graph_recording(void) {
    return mci_recording;
}

/* The place of a storage in the table, which is open-addressed and at most half full. */
static use *find(const mc_graph *g, const mci_storage *s) {
    size_t at = ((uintptr_t)s >> 4) * 0x9E3779B97F4A7C15ULL >> 20;
    for (;; at++) {
        use *u = &g->uses[at & (size_t)(g->capacity - 1)];
        if (!u->storage || u->storage == s) return u;
    }
}

static int grow(mc_graph *g) {
    mc_graph bigger = *g;
    bigger.capacity = g->capacity ? 2 * g->capacity : 256;
    bigger.uses = calloc((size_t)bigger.capacity, sizeof *bigger.uses);
    if (!bigger.uses) return 0;
    for (int64_t i = 0; i < g->capacity; i++)
        if (g->uses[i].storage) *find(&bigger, g->uses[i].storage) = g->uses[i];
    free(g->uses);
    *g = bigger;
    return 1;
}

void mci_graph_use(mci_storage *storage, int written) {
    mc_graph *g = current;
    /* What the graph's own pool gave stays there without being held, so that its bytes can be used
     * again later in the same graph. */
    if (!g || storage->device != g->device || storage->pool == g->pool) return;
    if (2 * (g->n + 1) > g->capacity && !grow(g)) {
        g->complete = 0;
        return;
    }
    use *u = find(g, storage);
    if (!u->storage) {
        u->storage = storage;
        mci_storage_retain(storage);
        g->n++;
    }
    u->written = u->written || written;
}

static void drop(mc_graph *g) {
    mci_held_free(g->device, &g->scratch);
    mci_pool_release(g->device, g->pool);
    for (int64_t i = 0; i < g->capacity; i++) mci_storage_release(g->uses[i].storage);
    free(g->uses);
    free(g);
}

mc_status mc_graph_begin(int device) {
    mc_status status = mci_check_device("graph", device);
    if (status != MC_OK) return status;
    const mci_backend *b = mci_backend_of(device);
    if (!b->graph_begin)
        return mci_fail(MC_EUNSUPPORTED, "graph: %s has no graphs; they need a CUDA device",
                        b->name);
    if (current) return mci_fail(MC_EINVAL, "graph: one is being recorded already");
    mc_graph *g = calloc(1, sizeof *g);
    if (!g || !grow(g)) {
        free(g);
        return mci_fail(MC_ENOMEM, "graph: out of memory");
    }
    g->device = device;
    g->complete = 1;
    g->pool = mci_pool_open(device);
    if (g->pool == 0) {
        free(g->uses);
        free(g);
        return mci_fail(MC_ENOMEM, "graph: out of memory");
    }
    mci_scratch_begin(device, &g->scratch);
    current = g;
    mci_recording = 1;
    status = b->graph_begin(mci_exec_of(device));
    if (status != MC_OK) mc_graph_abort(device);
    return status;
}

static void free_now(mc_graph *g) {
    const mci_backend *b = mci_backend_of(g->device);
    /* Not `synchronize`, which would take what the replays found wrong from who asks for it. */
    b->stream_synchronize(g->device & 255, NULL);
    b->graph_free(mci_exec_of(g->device), g->recorded);
    drop(g);
}

void mc_graph_free(mc_graph *g) {
    if (!g) return;
    if (current) {
        g->next = waiting;
        waiting = g;
    } else {
        free_now(g);
    }
}

/* Nothing is recorded any more, in the backend too; returns what was. */
static mc_graph *stop(void) {
    mc_graph *g = current;
    mci_scratch_end(g->device);
    mci_pool_close(g->device);
    current = NULL;
    mci_recording = 0;
    while (waiting) {
        mc_graph *next = waiting->next;
        free_now(waiting);
        waiting = next;
    }
    return g;
}

mc_status mc_graph_end(mc_graph **out, int device) {
    *out = NULL;
    if (!current || current->device != device)
        return mci_fail(MC_EINVAL, "graph: none is being recorded on this device");
    mc_status status = mci_backend_of(device)->graph_end(mci_exec_of(device), &current->recorded);
    mc_graph *g = stop();
    if (status == MC_OK && !g->complete)
        status = mci_fail(MC_ENOMEM, "graph: out of memory while it was recorded");
    if (status == MC_OK) {
        *out = g;
        return MC_OK;
    }
    if (g->recorded) mci_backend_of(device)->graph_free(mci_exec_of(device), g->recorded);
    drop(g);
    return status;
}

void mc_graph_abort(int device) {
    if (!current || current->device != device) return;
    mci_backend_of(device)->graph_end(mci_exec_of(device), NULL);
    drop(stop());
}

mc_status mc_graph_replay(mc_graph *g) {
    if (!g) return mci_fail(MC_EINVAL, "graph: it was freed");
    if (current)
        return mci_fail(MC_EINVAL, "graph: a replay cannot be recorded into another graph");
    mc_status status = mci_backend_of(g->device)->graph_replay(mci_exec_of(g->device), g->recorded);
    if (status != MC_OK) return status;
    for (int64_t i = 0; i < g->capacity; i++)
        if (g->uses[i].written) g->uses[i].storage->version++;
    mci_pool_replayed(g->device, g->pool);
    return MC_OK;
}
