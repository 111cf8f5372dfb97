/* host.c: host memory, threads, and the choice of instruction set. */
#include "host.h"

#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "gemm.h"
#include "status.h"

int mci_cpu_plain;

void mc_cpu_set_plain(int plain) {
    mci_cpu_plain = plain;
}

/* -- memory ------------------------------------------------------------------------------------ */

mc_status mci_host_device_count(int *count) {
    *count = 1;
    return MC_OK;
}

mc_status mci_host_alloc(mci_exec *exec, size_t bytes, void **out) {
    (void)exec;
    *out = aligned_alloc(64, (bytes + 63) / 64 * 64);
    return *out ? MC_OK : MC_ENOMEM;
}

void mci_host_free(mci_exec *exec, void *data, size_t bytes) {
    (void)exec, (void)bytes;
    free(data);
}

mc_status mci_host_copy(mci_exec *exec, void *dst, const void *src, size_t bytes) {
    (void)exec;
    memcpy(dst, src, bytes);
    return MC_OK;
}

mc_status mci_host_pinned_alloc(int ordinal, size_t bytes, void **out) {
    (void)ordinal;
    *out = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *out ? MC_OK : MC_ENOMEM;
}

void mci_host_pinned_free(int ordinal, void *data) {
    (void)ordinal;
    free(data);
}

mc_status mci_host_copy_begin(int ordinal, void *stream, void *dst, const void *src, size_t bytes,
                              int to_device) {
    (void)ordinal, (void)stream, (void)to_device;
    memcpy(dst, src, bytes);
    return MC_OK;
}

mc_status mci_host_stream_wait(int ordinal, void *waiter, void *other) {
    (void)ordinal, (void)waiter, (void)other;
    return MC_OK;
}

mc_status mci_host_stream_synchronize(int ordinal, void *stream) {
    (void)ordinal, (void)stream;
    return MC_OK;
}

mc_status mci_host_stream_new(int ordinal, void **stream) {
    (void)ordinal;
    *stream = NULL; /* the CPU has one stream: calls run as they come */
    return MC_OK;
}

void mci_host_stream_free(int ordinal, void *stream) {
    (void)ordinal, (void)stream;
}

mc_status mci_host_synchronize(int ordinal) {
    (void)ordinal;
    return MC_OK;
}

/* -- threads ----------------------------------------------------------------------------------- */

/* Cores that this process may use: its affinity mask, and a container's quota (cgroup v2). */
static int cores_available(void) {
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) {
        long quota, period;
        if (fscanf(f, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0) {
            long limit = (quota + period - 1) / period;
            if (limit < cores) cores = limit < 1 ? 1 : (int)limit;
        }
        fclose(f);
    }
    return cores;
}

enum { MOST_THREADS = 1024 };
static int threads;

int mc_get_num_threads(void) {
    if (threads == 0) {
        const char *text = getenv("MASCON_NUM_THREADS");
        int n = text ? atoi(text) : 0;
        threads = n < 1 ? cores_available() : n < MOST_THREADS ? n : MOST_THREADS;
        omp_set_num_threads(threads);
    }
    return threads;
}

mc_status mc_set_num_threads(int n) {
    if (n < 1 || n > MOST_THREADS)
        return mci_fail(MC_EINVAL, "set_num_threads: %d, wanted 1 to %d", n, MOST_THREADS);
    threads = n;
    omp_set_num_threads(n);
    return MC_OK;
}

int mci_threads(int64_t work) {
    if (work < MCI_PARALLEL_MIN || omp_in_parallel()) return 1;
    int64_t most = work / (MCI_PARALLEL_MIN / 2);
    int n = mc_get_num_threads();
    return most < n ? (int)most : n;
}

/* -- instruction sets -------------------------------------------------------------------------- */

extern const mci_backend mci_cpu_table_base;
#ifdef __x86_64__
extern const mci_backend mci_cpu_table_avx2, mci_cpu_table_avx512;
#endif

static const mci_backend *best;
static const char *isa = "base";

const mci_backend *mci_cpu_backend(void) {
    if (best) return best;
    best = &mci_cpu_table_base;
#ifdef __x86_64__
    const char *most = getenv("MASCON_ISA");
    int level = !most ? 2 : strcmp(most, "base") == 0 ? 0 : strcmp(most, "avx2") == 0 ? 1 : 2;
    __builtin_cpu_init();
    if (level >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        best = &mci_cpu_table_avx2;
        isa = "avx2";
    }
    if (level >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
        best = &mci_cpu_table_avx512;
        isa = "avx512";
    }
#endif
    return best;
}

const char *mci_cpu_isa(void) {
    mci_cpu_backend();
    return isa;
}

const char *mc_cpu_info(const char *key) {
    static char text[16];
    if (strcmp(key, "isa") == 0) return mci_cpu_isa();
    if (strcmp(key, "gemm") == 0) return mci_gemm_provider();
    if (strcmp(key, "gemm_reason") == 0) return mci_gemm_reason();
    if (strcmp(key, "threads") == 0) {
        snprintf(text, sizeof text, "%d", mc_get_num_threads());
        return text;
    }
    return NULL;
}
