/* prefetch.c: reading ahead while the helper lists a file.
 *
 * posix_fadvise(WILLNEED) queues the reads and comes back, or waits where the disk's queue is full;
 * in steps, so that closing the file ends it soon.
 */
#include "prefetch.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { STEP = 1 << 23, STACK = 1 << 16 };

struct mci_prefetch {
    pthread_t thread;
    atomic_int stop;
    int fd;
    int64_t bytes;
};

/* Bytes that the kernel can take without pushing out what is in use. */
static int64_t free_memory(void) {
    long long kib = -1;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && kib < 0 && fgets(line, sizeof line, f)) {
        if (sscanf(line, "MemAvailable: %lld kB", &kib) != 1) kib = -1;
    }
    if (f) fclose(f);
    if (kib >= 0) return kib * 1024;
    return (int64_t)sysconf(_SC_AVPHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
}

static void *run(void *data) {
    mci_prefetch *p = data;
    for (int64_t at = 0; at < p->bytes && !atomic_load(&p->stop); at += STEP) {
        int64_t n = p->bytes - at < STEP ? p->bytes - at : STEP;
        if (posix_fadvise(p->fd, at, n, POSIX_FADV_WILLNEED) != 0) break;
    }
    return NULL;
}

mci_prefetch *mci_prefetch_start(int fd, int64_t bytes) {
    int64_t most = free_memory() / 2;
    mci_prefetch *p = bytes > 0 && most > 0 ? malloc(sizeof *p) : NULL;
    if (!p) return NULL;
    p->fd = fd;
    p->bytes = bytes < most ? bytes : most;
    atomic_init(&p->stop, 0);
    pthread_attr_t attributes;
    sigset_t all, before;
    sigfillset(&all);
    int error = pthread_attr_init(&attributes);
    if (error == 0) {
        pthread_attr_setstacksize(&attributes, STACK);
        /* signals are for the threads that are the program's */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&p->thread, &attributes, run, p);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
    }
    if (error == 0) return p;
    free(p);
    return NULL;
}

void mci_prefetch_stop(mci_prefetch *p) {
    if (!p) return;
    atomic_store(&p->stop, 1);
    pthread_join(p->thread, NULL);
    free(p);
}
