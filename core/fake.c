/* fake.c: a second backend without hardware, for tests: the CPU's kernels on memory that nobody
 * else can read.
 *
 * Its memory is one file mapped twice: "device" addresses, which the core sees, have no access
 * rights at all, so a host read is a fault at once; kernels get the same bytes at addresses a fixed
 * distance away. What runs here obeys the rules that a GPU will need.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "backend_room.h"
#include "call.h"
#include "cpu/host.h"
#include "status.h"

enum { PAGE = 4096, PAGES = 1 << 18 }; /* 1 GiB */

static char *device_base, *host_base;
static unsigned char used[PAGES];

static int map_arena(void) {
    if (device_base) return 1;
    size_t bytes = (size_t)PAGE * PAGES;
    int fd = memfd_create("mascon-fake-device", MFD_CLOEXEC);
    if (fd < 0) return 0;
    void *d = MAP_FAILED, *h = MAP_FAILED;
    if (ftruncate(fd, (off_t)bytes) == 0) {
        d = mmap(NULL, bytes, PROT_NONE, MAP_SHARED, fd, 0);
        h = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    close(fd);
    if (d == MAP_FAILED || h == MAP_FAILED) return 0;
    device_base = d;
    host_base = h;
    return 1;
}

static void *to_host(const void *device) {
    return device ? host_base + ((const char *)device - device_base) : NULL;
}

static mc_status fake_count(int *count) {
    *count = 1;
    return MC_OK;
}

/* First fit over pages; the core's cache keeps calls rare. */
static mc_status fake_alloc(mci_exec *exec, size_t bytes, void **out) {
    (void)exec;
    *out = NULL;
    if (!map_arena()) return mci_fail(MC_EDEVICE, "device fake: its memory cannot be mapped");
    int64_t want = (int64_t)((bytes + PAGE - 1) / PAGE), run = 0;
    for (int64_t i = 0; i < PAGES; i++) {
        run = used[i] ? 0 : run + 1;
        if (run < want) continue;
        for (int64_t j = i - want + 1; j <= i; j++) used[j] = 1;
        *out = device_base + (i - want + 1) * PAGE;
        return MC_OK;
    }
    return MC_ENOMEM;
}

static void fake_free(mci_exec *exec, void *data, size_t bytes) {
    (void)exec;
    size_t first = (size_t)((char *)data - device_base) / PAGE;
    for (size_t i = 0; i < (bytes + PAGE - 1) / PAGE; i++) used[first + i] = 0;
}

static mc_status copy_from_host(mci_exec *exec, void *dst, const void *src, size_t bytes) {
    return mci_host_copy(exec, to_host(dst), src, bytes);
}

static mc_status copy_to_host(mci_exec *exec, void *dst, const void *src, size_t bytes) {
    return mci_host_copy(exec, dst, to_host(src), bytes);
}

static mc_status copy_begin(int ordinal, void *stream, void *dst, const void *src, size_t bytes,
                            int to_device) {
    return mci_host_copy_begin(ordinal, stream, to_device ? to_host(dst) : dst,
                               to_device ? src : to_host(src), bytes, to_device);
}

static void *host_scratch(mci_exec *exec, size_t bytes) {
    mci_exec *device_exec = exec->owner;
    return to_host(device_exec->scratch(device_exec, bytes));
}

static mc_status run(mci_exec *exec, const mci_view *const *t, const void *params, int op,
                     int operands) {
    mci_view views[MCI_MAX_OPERANDS];
    const mci_view *translated[MCI_MAX_OPERANDS] = {NULL};
    for (int i = 0; i < operands; i++) {
        if (!t[i]) continue;
        views[i] = *t[i];
        views[i].data = to_host(t[i]->data);
        translated[i] = &views[i];
    }
    mci_exec host_exec = *exec;
    host_exec.scratch = host_scratch;
    host_exec.owner = exec;
    return mci_cpu_backend()->kernels[op](&host_exec, translated, params);
}

#define MC_OP(name, outputs, inputs, params)                                                \
    static mc_status fake_##name(mci_exec *exec, const mci_view *const *t, const void *p) { \
        return run(exec, t, p, MCI_OP_##name, outputs + inputs);                            \
    }
#include "ops.def"
#undef MC_OP

const mci_backend *mci_fake_backend(void) {
    static const mci_backend table = {
        .abi = MCI_BACKEND_ABI,
        .name = "fake",
        .device_count = fake_count,
        .alloc = fake_alloc,
        .free = fake_free,
        .copy_from_host = copy_from_host,
        .copy_to_host = copy_to_host,
        .pinned_alloc = mci_host_pinned_alloc,
        .pinned_free = mci_host_pinned_free,
        .copy_begin = copy_begin,
        .stream_wait = mci_host_stream_wait,
        .stream_synchronize = mci_host_stream_synchronize,
        .stream_new = mci_host_stream_new,
        .stream_free = mci_host_stream_free,
        .synchronize = mci_host_synchronize,
        .host_readable = 0,
        .kernels =
            {
#define MC_OP(name, outputs, inputs, params) [MCI_OP_##name] = fake_##name,
#include "ops.def"
#undef MC_OP
            },
    };
    return &table;
}
