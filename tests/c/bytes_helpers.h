/* bytes_helpers.h: what test_bytes.c plays on: system calls, an open file, and plans of jobs.
 *
 * The system calls are replaced by ones that keep a record and fail when asked. O_DIRECT is played:
 * its descriptor is an ordinary one whose calls must be aligned, so that the rules are tested on
 * any file system. The open HDF5 file, which file.c would give, is played as well.
 */
#ifndef MASCON_BYTES_HELPERS_H
#define MASCON_BYTES_HELPERS_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "io/bytes.h"
#include "io_helpers.h"
#include "status.h"

enum { PIECE = 1 << 22, PAGE = 4096, MIB = 1 << 20 };

/* -- system calls ------------------------------------------------------------------------------ */

enum { PLAYED, REAL, REFUSED };

static struct {
    int direct;      /* O_DIRECT: PLAYED, REAL or REFUSED when opened */
    int einval_from; /* from that played write on: EINVAL; 0: never */
    int at;          /* the at-th pwrite from now on fails; 0: none */
    int error;       /* with this errno; 0: it writes nothing */
    int truncate;    /* errno of ftruncate */
    int short_most;  /* pwrite and pread move at most this many bytes; 0: all */
    int interrupt;   /* every other pwrite and pread is interrupted */
} fault;

static struct {
    pthread_mutex_t lock;
    int direct_fd;
    int direct_writes, buffered_writes, misaligned, mixed_pages;
    unsigned char pages[1 << 16]; /* 1: written through the page cache, 2: past it */
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .direct_fd = -1};

static void forget(void) {
    memset(seen.pages, 0, sizeof seen.pages);
    seen.direct_writes = seen.buffered_writes = seen.misaligned = seen.mixed_pages = 0;
    memset(&fault, 0, sizeof fault);
}

static int interrupted(void) {
    static int odd;
    if (!fault.interrupt || !(odd = !odd)) return 0;
    errno = EINTR;
    return 1;
}

static int aligned(const void *p, size_t n, off_t at) {
    return (uintptr_t)p % PAGE == 0 && n % PAGE == 0 && at % PAGE == 0;
}

/* What a write does before the system sees it: 0 go on, 1 it is done and *result is its result. */
static int write_seen(int fd, const void *p, size_t *n, off_t at, ssize_t *result) {
    int direct = fd == seen.direct_fd;
    *result = -1;
    if (interrupted()) return 1;
    if (direct) {
        seen.direct_writes++;
        seen.misaligned += !aligned(p, *n, at);
        if (fault.einval_from && seen.direct_writes >= fault.einval_from) {
            errno = EINVAL;
            return 1;
        }
    } else {
        seen.buffered_writes++;
    }
    if (fault.at && --fault.at == 0) {
        if (fault.error == 0) *result = 0;
        errno = fault.error;
        return 1;
    }
    if (fault.short_most && *n > (size_t)fault.short_most) *n = (size_t)fault.short_most;
    for (off_t i = at / PAGE; i <= (at + (off_t)*n - 1) / PAGE && i < (1 << 16); i++) {
        seen.pages[i] |= direct ? 2 : 1;
        /* what was begun past the cache may end in it */
        seen.mixed_pages += seen.pages[i] == 3 && !fault.einval_from && !fault.short_most;
    }
    return 0;
}

#pragma GCC visibility push(default)
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    ssize_t result;
    pthread_mutex_lock(&seen.lock);
    int done = write_seen(fd, p, &n, at, &result);
    pthread_mutex_unlock(&seen.lock);
    return done ? result : syscall(SYS_pwrite64, fd, p, n, at);
}
ssize_t pread(int fd, void *p, size_t n, off_t at) {
    pthread_mutex_lock(&seen.lock);
    int stop = interrupted();
    if (fd == seen.direct_fd) seen.misaligned += !aligned(p, n, at);
    if (fault.short_most && n > (size_t)fault.short_most) n = (size_t)fault.short_most;
    pthread_mutex_unlock(&seen.lock);
    return stop ? -1 : syscall(SYS_pread64, fd, p, n, at);
}
static int open_one(const char *path, int flags, int mode) {
    if ((flags & O_DIRECT) && fault.direct == REFUSED) {
        errno = EINVAL;
        return -1;
    }
    if (!(flags & O_DIRECT) || fault.direct == REAL)
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    seen.direct_fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags & ~O_DIRECT, mode);
    return seen.direct_fd;
}
int open(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    int mode = flags & O_CREAT ? va_arg(args, int) : 0;
    va_end(args);
    return open_one(path, flags, mode);
}
/* what glibc's headers make of open(path, flags) where _FORTIFY_SOURCE is on */
int __open_2(const char *path, int flags);
int __open_2(const char *path, int flags) {
    return open_one(path, flags, 0);
}
int close(int fd) {
    if (fd == seen.direct_fd) seen.direct_fd = -1;
    return (int)syscall(SYS_close, fd);
}
int ftruncate(int fd, off_t n) {
    if (fault.truncate) {
        errno = fault.truncate;
        return -1;
    }
    return (int)syscall(SYS_ftruncate, fd, n);
}
#pragma GCC visibility pop

/* -- the file that sources come from ----------------------------------------------------------- */

struct mc_h5_file {
    const char *bytes; /* of its only entry, 3 */
    int64_t fail_at;   /* reads that hold this byte fail; -1: none */
    int reads;         /* so far; atomic */
};

mc_status mci_h5_fetch(mc_h5_file *f, int64_t entry, int64_t first, int64_t n, void *dst) {
    __atomic_fetch_add(&f->reads, 1, __ATOMIC_RELAXED);
    if (entry != 3 || (f->fail_at >= first && f->fail_at < first + n))
        return mci_fail(MC_EFORMAT, "source.h5: '/x' is broken");
    memcpy(dst, f->bytes + first, (size_t)n);
    return MC_OK;
}

/* -- a plan of jobs and what the file must be -------------------------------------------------- */

enum { MOST = 2000, POOL = 24 << 20, MODEL = 64 << 20 };

static char *pool; /* bytes that sources are stretches of */
static mci_source sources[MOST];
static mci_write_job jobs[MOST];
static int64_t n_sources, n_jobs, file_bytes;
static char *model; /* the file as it must become: 0xa5 between the jobs */
static int fd;
static char path[512];

static void begin(void) {
    memset(model, 0xa5, (size_t)file_bytes + 5000);
    n_sources = n_jobs = file_bytes = 0;
    forget();
}

/* The next bytes of the job under way; `bytes` is where the test knows them. */
static void append(mci_source s, const char *bytes) {
    mci_write_job *j = &jobs[n_jobs - 1];
    memcpy(model + j->offset + j->bytes, bytes, (size_t)s.bytes);
    sources[n_sources++] = s;
    j->n_sources++;
    j->bytes += s.bytes;
    file_bytes = j->offset + j->bytes;
}

static void job_at(int64_t offset) {
    jobs[n_jobs++] = (mci_write_job){.sources = &sources[n_sources], .offset = offset};
}

/* A job of n bytes of the pool from byte `first` on. */
static void job_of(int64_t offset, int64_t n, int64_t first) {
    job_at(offset);
    append((mci_source){.host = pool, .first = first, .bytes = n}, pool + first);
}

static int64_t page_after(int64_t at) {
    return (at + PAGE - 1) / PAGE * PAGE;
}

static void file_digest(int64_t i, char *text) {
    mci_digest *d = mci_digest_new();
    mci_digest_update(d, model + jobs[i].offset, jobs[i].bytes);
    mci_digest_text(d, text);
    mci_digest_free(d);
}

/* A new file of poison, a little longer than the jobs. */
static void make_file(void) {
    unlink(path);
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    char *poison = malloc((size_t)file_bytes + 5000);
    memset(poison, 0xa5, (size_t)file_bytes + 5000);
    CHECK(syscall(SYS_pwrite64, fd, poison, file_bytes + 5000, 0) == file_bytes + 5000);
    free(poison);
}

/* 1 when the file is the model and jobs that were not done have the right digests. */
static int is_right(void) {
    char *bytes = malloc((size_t)file_bytes + 5000), text[MCI_DIGEST_TEXT];
    ssize_t n = syscall(SYS_pread64, fd, bytes, file_bytes + 5000, 0);
    memset(model + file_bytes, 0xa5, 5000);
    int ok = n == file_bytes + 5000 && memcmp(bytes, model, (size_t)n) == 0;
    for (int64_t i = 0; i < n_jobs; i++) {
        file_digest(i, text);
        ok = ok && strcmp(text, jobs[i].digest) == 0;
    }
    free(bytes);
    return ok;
}

static mc_status write_jobs(mci_pump *pump) {
    for (int64_t i = 0; i < n_jobs; i++) {
        if (!jobs[i].done) memset(jobs[i].digest, 'x', MCI_DIGEST_TEXT - 1);
    }
    make_file();
    return mci_write_jobs(fd, path, jobs, n_jobs, pump);
}

static int64_t all_bytes(void) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_jobs; i++) n += jobs[i].bytes;
    return n;
}

/* Writes, and all must be right. */
static void expect_right(void) {
    mci_pump pump = {0};
    if (!CHECK(write_jobs(&pump) == MC_OK)) printf("%d %s\n", pump.error, pump.message);
    CHECK(is_right() && pump.done == all_bytes());
    CHECK(seen.misaligned == 0 && seen.mixed_pages == 0 && seen.direct_fd == -1);
    close(fd);
}

static int count_descriptors(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n;
}

#endif
