/* backend.c: device codes, the table of each backend, the default stream and its scratch. */
#include "backend_room.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "graph.h"
#include "cpu/host.h"
#include "plugin.h"
#include "status.h"

enum { MAX_ORDINAL = 16, BACKENDS = 3, SCRATCH_MIN = 1 << 20 };

typedef struct {
    mci_exec exec;
    void *data;
    size_t bytes;
    int device;
    mci_held *held; /* while a graph is recorded: where scratch goes that it uses; else NULL */
} device_state;

static const char *const names[BACKENDS] = {"cpu", "fake", "cuda"};
static const mci_backend *backends[BACKENDS];
static device_state states[BACKENDS][MAX_ORDINAL];

static const mci_backend *open_cuda(void) {
    char reason[512];
    mci_backend_entry entry;
    void *symbol = mci_plugin_symbol("cuda", "mascon_backend_cuda", reason, sizeof reason);
    if (!symbol) {
        mci_fail(MC_EDEVICE,
                 "device cuda: the CUDA plugin cannot be opened: %s; build with CUDA, or use "
                 "device = \"cpu\"",
                 reason);
        return NULL;
    }
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from void * to a function */
    const mci_backend *backend = entry(mci_plugin_services());
    if (backend && backend->abi != MCI_BACKEND_ABI) {
        mci_fail(MC_EDEVICE,
                 "device cuda: the plugin is of another version (ABI %u, wanted %d); install both "
                 "together",
                 backend->abi, MCI_BACKEND_ABI);
        return NULL;
    }
    return backend;
}

static const mci_backend *open_backend(int i) {
    if (!backends[i]) {
        const mci_backend *b = i == 0   ? mci_cpu_backend()
                               : i == 1 ? mci_fake_backend()
                                        : open_cuda();
        backends[i] = b;
    }
    return backends[i];
}

mc_status mci_check_device(const char *op, int device) {
    int backend = device >> 8;
    if (device >= 0 && backend < BACKENDS && (device & 255) < MAX_ORDINAL && open_backend(backend))
        return MC_OK;
    return mci_fail(MC_EINVAL, "%s: no device has the code %d", op, device);
}

const mci_backend *mci_backend_of(int device) {
    return open_backend(device >> 8);
}

static void hold(mci_held *held, void *data, size_t bytes) {
    if (!data) return;
    held->block[held->n].data = data;
    held->block[held->n++].bytes = bytes;
}

static void *scratch(mci_exec *exec, size_t bytes) {
    device_state *s = exec->owner;
    if (mci_alloc_must_fail()) return NULL;
    if (bytes > s->bytes) {
        const mci_backend *b = mci_backend_of(s->device);
        size_t want = bytes < SCRATCH_MIN ? (size_t)SCRATCH_MIN : bytes + bytes / 4;
        if (s->held) { /* what has been recorded uses the old one at each replay */
            if (s->held->n == MCI_HELD_MAX - 1) return NULL; /* one place is for the last */
            hold(s->held, s->data, s->bytes);
        } else if (s->data) {
            b->free(exec, s->data, s->bytes); /* first: never two at a time */
        }
        s->data = NULL;
        s->bytes = 0;
        if (b->alloc(exec, want, &s->data) != MC_OK) {
            mc_memory_trim();
            if (b->alloc(exec, want, &s->data) != MC_OK) return NULL;
        }
        s->bytes = want;
    }
    return s->data;
}

void mci_scratch_begin(int device, mci_held *held) {
    device_state *s = mci_exec_of(device)->owner;
    held->n = 0;
    held->outer = s->data;
    held->outer_bytes = s->bytes;
    s->data = NULL;
    s->bytes = 0;
    s->held = held;
}

void mci_scratch_end(int device) {
    device_state *s = mci_exec_of(device)->owner;
    mci_held *held = s->held;
    hold(held, s->data, s->bytes);
    s->data = held->outer;
    s->bytes = held->outer_bytes;
    s->held = NULL;
}

void mci_held_free(int device, mci_held *held) {
    const mci_backend *b = mci_backend_of(device);
    for (int i = 0; i < held->n; i++)
        b->free(mci_exec_of(device), held->block[i].data, held->block[i].bytes);
    held->n = 0;
}

mci_exec *mci_exec_of(int device) {
    device_state *s = &states[device >> 8][device & 255];
    if (!s->exec.owner) {
        s->device = device;
        s->exec = (mci_exec){.ordinal = device & 255, .scratch = scratch, .owner = s};
    }
    return &s->exec;
}

mc_status mc_device_count(const char *backend, int *count) {
    *count = 0;
    for (int i = 0; i < BACKENDS; i++) {
        if (strcmp(backend, names[i]) != 0) continue;
        const mci_backend *b = open_backend(i);
        return b ? b->device_count(count) : MC_OK;
    }
    return mci_fail(MC_EINVAL, "device_count: no backend \"%s\"; there are cpu, cuda and fake",
                    backend);
}

mc_status mc_device_parse(const char *name, int *device) {
    const char *colon = strchr(name, ':');
    size_t n = colon ? (size_t)(colon - name) : strlen(name);
    for (int i = 0; i < BACKENDS; i++) {
        if (strlen(names[i]) != n || strncmp(name, names[i], n) != 0) continue;
        long ordinal = 0;
        char *end = NULL;
        if (colon) ordinal = strtol(colon + 1, &end, 10);
        if (colon && (end == colon + 1 || *end || ordinal < 0)) break;
        const mci_backend *b = open_backend(i);
        if (!b) return MC_EDEVICE;
        int count = 0;
        mc_status status = b->device_count(&count);
        if (status != MC_OK) return status;
        if (ordinal >= count || ordinal >= MAX_ORDINAL)
            return mci_fail(MC_EDEVICE, "device %s: there are %d %s devices, numbered from 0", name,
                            count, names[i]);
        *device = i * 256 + (int)ordinal;
        return MC_OK;
    }
    return mci_fail(MC_EINVAL, "device \"%s\": wanted \"cpu\", \"cuda\" or \"cuda:N\"", name);
}

mc_status mc_device_name(int device, char *buffer, int64_t size) {
    mc_status status = mci_check_device("device_name", device);
    if (status != MC_OK) return status;
    if (device & 255)
        snprintf(buffer, (size_t)size, "%s:%d", names[device >> 8], device & 255);
    else
        snprintf(buffer, (size_t)size, "%s", names[device >> 8]);
    return MC_OK;
}

const char *mc_device_info(int device, const char *key) {
    if (mci_check_device("device_info", device) != MC_OK) return NULL;
    const mci_backend *b = mci_backend_of(device);
    return b->info ? b->info(device & 255, key) : NULL;
}

mc_status mc_device_memory(int device, int64_t *free_bytes, int64_t *total_bytes) {
    *free_bytes = *total_bytes = 0;
    mc_status status = mci_check_device("device_memory", device);
    if (status != MC_OK) return status;
    const mci_backend *b = mci_backend_of(device);
    if (!b->memory)
        return mci_fail(MC_EUNSUPPORTED, "device_memory: %s does not tell its memory", b->name);
    return b->memory(device & 255, free_bytes, total_bytes);
}

mc_status mc_profile_begin(int device) {
    mc_status status = mci_check_device("profile", device);
    if (status != MC_OK) return status;
    const mci_backend *b = mci_backend_of(device);
    if (!b->profile_begin)
        return mci_fail(MC_EUNSUPPORTED, "profile: %s has no clocks of its own", b->name);
    status = mci_graph_forbids(device, "profile");
    if (status != MC_OK) return status;
    return b->profile_begin(mci_exec_of(device));
}

static int longer(const void *a, const void *b) {
    double x = ((const mc_profile_row *)a)->seconds, y = ((const mc_profile_row *)b)->seconds;
    return (x < y) - (x > y);
}

mc_status mc_profile_end(int device, mc_profile_row *rows, int64_t room, int64_t *n) {
    static const char *const ops[MCI_OP_COUNT] = {
#define MC_OP(name, outputs, inputs, params) [MCI_OP_##name] = #name,
#include "ops.def"
#undef MC_OP
    };
    int64_t calls[MCI_OP_COUNT] = {0};
    double seconds[MCI_OP_COUNT] = {0};
    mc_profile_row all[MCI_OP_COUNT];
    *n = 0;
    mc_status status = mci_check_device("profile", device);
    if (status != MC_OK) return status;
    const mci_backend *b = mci_backend_of(device);
    if (!b->profile_end)
        return mci_fail(MC_EUNSUPPORTED, "profile: %s has no clocks of its own", b->name);
    status = b->profile_end(mci_exec_of(device), calls, seconds);
    for (int i = 0; i < MCI_OP_COUNT; i++)
        if (calls[i] > 0)
            all[(*n)++] = (mc_profile_row){.op = ops[i], .calls = calls[i], .seconds = seconds[i]};
    qsort(all, (size_t)*n, sizeof *all, longer);
    for (int64_t i = 0; i < *n && i < room; i++) rows[i] = all[i];
    return status;
}

mc_status mc_device_synchronize(int device) {
    mc_status status = mci_check_device("device_synchronize", device);
    return status == MC_OK ? mci_backend_of(device)->synchronize(device & 255) : status;
}
