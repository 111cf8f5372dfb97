/* bytes.c: tensors' bytes come from their offsets by plain pread, and small things go there by
 * plain pwrite; snapshots of tensors in memory. (The bulk of a save goes through pump.c.)
 *
 * Faster than moving them through libhdf5, which runs one thread at a time and copies once more.
 */
#include "bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cpu.h"
#include "device.h"
#include "status.h"

/* Small enough to stay in a core's cache between read and hash, large enough for few calls. */
enum { PIECE = 1 << 20 };
/* Of reads by threads, bytes that one takes at a time: enough for few calls, and so little that all
 * end together, after at least so many takes each. */
enum { TAKE_LEAST = 1 << 19, TAKE_MOST = 1 << 22, TAKES = 8 };
/* Of a snapshot, what a thread copies at a time. */
enum { STAGE = 1 << 24 };

enum { PAGE = 4096 };

static int64_t pages(int64_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

const char *mci_io_reason(int error, char *text, int64_t size) {
    if (error == MCI_IO_EOF) {
        snprintf(text, (size_t)size, "the file ends too early");
    } else {
        /* the GNU form: may return a constant string instead of filling `text` */
        const char *reason = strerror_r(error, text, (size_t)size);
        if (reason != text) snprintf(text, (size_t)size, "%s", reason);
    }
    return text;
}

void mci_hold_signal(sigset_t *before) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &set, before);
}

void mci_release_signal(const sigset_t *before) {
    if (sigismember(before, SIGXFSZ)) return;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGXFSZ);
    struct timespec now = {0};
    while (sigtimedwait(&set, NULL, &now) > 0) {
    }
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

int mci_pwrite(int fd, const void *src, int64_t n, int64_t offset) {
    const char *p = src;
    int error = 0;
    sigset_t before;
    mci_hold_signal(&before);
    while (n > 0 && error == 0) {
        ssize_t done = pwrite(fd, p, (size_t)(n < PIECE ? n : PIECE), offset);
        if (done < 0) {
            if (errno != EINTR) error = errno;
            continue;
        }
        if (done == 0) error = ENOSPC; /* POSIX leaves it open; asking again would not end */
        p += done;
        n -= done;
        offset += done;
    }
    mci_release_signal(&before);
    return error;
}

int mci_pread(int fd, void *dst, int64_t n, int64_t offset) {
    char *p = dst;
    while (n > 0) {
        ssize_t done = pread(fd, p, (size_t)(n < STAGE ? n : STAGE), offset);
        if (done < 0) {
            if (errno == EINTR) continue;
            return errno;
        }
        if (done == 0) return MCI_IO_EOF;
        p += done;
        n -= done;
        offset += done;
    }
    return 0;
}

/* -- many reads ---------------------------------------------------------------------------------
 */

/* What is left of a list of extents; threads take from it in the order of the file. */
typedef struct reads {
    int fd;
    const mci_extent *list;
    int64_t n, take; /* bytes at a time */
    int64_t next, within;
    int64_t failed; /* the lowest number of a failure, and its error */
    int error;
} reads;

/* The next bytes to be read: *from bytes into extent *first and on, *bytes in all; 0 when there
 * are no more. */
static int take_reads(reads *r, int64_t *first, int64_t *from, int64_t *bytes) {
    *first = r->next;
    *from = r->within;
    *bytes = 0;
    if (r->error != 0) return 0;
    while (r->next < r->n && *bytes < r->take) {
        int64_t left = r->list[r->next].bytes - r->within, room = r->take - *bytes;
        if (left > room) {
            r->within += room;
            *bytes += room;
        } else {
            r->next++;
            r->within = 0;
            *bytes += left;
        }
    }
    return *bytes > 0;
}

/* What take_reads gave. 0, or an error with *failed. */
static int do_reads(const reads *r, int64_t i, int64_t from, int64_t bytes, int64_t *failed) {
    while (bytes > 0) {
        const mci_extent *e = &r->list[i];
        char *dst = e->dst + from;
        int64_t offset = e->offset + from, run = 0, whole = i;
        /* neighbours in the file and in memory are one read */
        do {
            int64_t left = e->bytes - from;
            run += left < bytes - run ? left : bytes - run;
            from = 0;
            e = &r->list[++i < r->n ? i : whole];
        } while (run < bytes && e->offset == offset + run && e->dst == dst + run);
        for (int64_t done = 0; done < run;) {
            ssize_t got = pread(r->fd, dst + done, (size_t)(run - done), offset + done);
            if (got > 0) done += got;
            if (got > 0 || (got < 0 && errno == EINTR)) continue;
            while (whole + 1 < i && r->list[whole + 1].offset <= offset + done) whole++;
            *failed = r->list[whole].number;
            return got < 0 ? errno : MCI_IO_EOF;
        }
        bytes -= run;
    }
    return 0;
}

static int by_offset(const void *a, const void *b) {
    int64_t x = ((const mci_extent *)a)->offset, y = ((const mci_extent *)b)->offset;
    return (x > y) - (x < y);
}

void mci_extents_sort(mci_extent *list, int64_t n) {
    int sorted = 1;
    for (int64_t i = 1; i < n; i++) sorted &= list[i - 1].offset <= list[i].offset;
    if (!sorted) qsort(list, (size_t)n, sizeof *list, by_offset);
}

int mci_pread_many(int fd, mci_extent *list, int64_t n, int64_t *failed) {
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) total += list[i].bytes;
    mci_extents_sort(list, n);
    int threads = total < 2 * TAKE_LEAST ? 1 : mci_threads(total);
    reads r = {.fd = fd, .list = list, .n = n, .take = total / (threads * TAKES)};
    if (r.take < TAKE_LEAST) r.take = TAKE_LEAST;
    if (r.take > TAKE_MOST) r.take = TAKE_MOST;
    r.take = pages(r.take);
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int more = 1; more;) {
        int64_t first, from, bytes, one = -1;
#pragma omp critical(mascon_reads)
        more = take_reads(&r, &first, &from, &bytes);
        int error = more ? do_reads(&r, first, from, bytes, &one) : 0;
        if (error != 0) {
#pragma omp critical(mascon_reads)
            if (r.error == 0 || one < r.failed) {
                r.error = error;
                r.failed = one;
            }
        }
    }
    *failed = r.failed;
    return r.error;
}

int mci_pread_threads(int fd, void *dst, int64_t n, int64_t offset) {
    mci_extent all = {.offset = offset, .bytes = n, .dst = dst};
    int64_t failed;
    return mci_pread_many(fd, &all, 1, &failed);
}

int mci_claim(int fd, int64_t n) {
    if (n <= 0) return 0;
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        (uint64_t)n > limit.rlim_cur)
        return EFBIG; /* fallocate looks at it only when it changes the length */
    for (;;) {
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, n) == 0) return 0;
        if (errno == EINTR) continue;
        if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO) return errno;
        return 0;
    }
}

int mci_digest_file(int fd, int64_t n, int64_t offset, char *text) {
    mci_digest *digest = mci_digest_new();
    char *piece = malloc(PIECE);
    int error = digest && piece ? 0 : ENOMEM;
    while (error == 0 && n > 0) {
        int64_t bytes = n < PIECE ? n : PIECE;
        error = mci_pread(fd, piece, bytes, offset);
        if (error == 0) mci_digest_update(digest, piece, bytes);
        n -= bytes;
        offset += bytes;
    }
    if (error == 0) mci_digest_text(digest, text);
    free(piece);
    mci_digest_free(digest);
    return error;
}

/* -- sources ----------------------------------------------------------------------------------- */

const char *mci_source_host(const mci_source *s) {
    const char *base = s->host;
    if (!base && s->tensor && mc_tensor_device(s->tensor) == 0) base = mc_tensor_data(s->tensor);
    return base ? base + s->first : NULL;
}

/* -- snapshot ---------------------------------------------------------------------------------- */

/* 1 when the source is none of the snapshot's: it stays as it is. */
static int stays(const mci_source *s) {
    return s->file || (s->moment && s->moment->copy);
}

/* Bytes [from, to) of the block, where source i stands at [at[i], at[i] + its bytes), from host
 * memory. */
static void copy_stretch(char *block, int64_t from, int64_t to, const mci_source *sources,
                         const int64_t *at, int64_t n) {
    int64_t low = 0, high = n; /* the first source that ends behind `from` */
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (at[middle + 1] > from)
            high = middle;
        else
            low = middle + 1;
    }
    for (int64_t i = low; i < n && at[i] < to; i++) {
        const char *src = mci_source_host(&sources[i]);
        int64_t a = from > at[i] ? from : at[i], end = at[i] + sources[i].bytes;
        int64_t b = to < end ? to : end;
        if (src && !stays(&sources[i]) && b > a)
            memcpy(block + a, src + (a - at[i]), (size_t)(b - a));
    }
}

mc_status mci_snapshot(mci_source *sources, int64_t n, void **block, int64_t *size) {
    int64_t *at = malloc((size_t)(n + 1) * sizeof *at), total = 0;
    *block = NULL;
    *size = 0;
    if (!at) return mci_fail(MC_ENOMEM, "snapshot: no memory to list %lld sources", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        at[i] = total;
        if (!stays(&sources[i])) total += pages(sources[i].bytes);
    }
    at[n] = total;
    void *p = total > 0 ? mmap(NULL, (size_t)total, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                        : NULL;
    if (p == MAP_FAILED) {
        free(at);
        return mci_fail(MC_ENOMEM,
                        "snapshot: no memory for a copy of %lld bytes (%lld tensors); save "
                        "without a snapshot, or in parts",
                        (long long)total, (long long)n);
    }
    if (total > 0) madvise(p, (size_t)total, MADV_HUGEPAGE); /* else a page fault per 4 KiB */
    int64_t pieces = (total + STAGE - 1) / STAGE;
#pragma omp parallel for schedule(dynamic, 1) num_threads(mci_threads(total))
    for (int64_t i = 0; i < pieces; i++)
        copy_stretch(p, i * STAGE, i + 1 < pieces ? (i + 1) * STAGE : total, sources, at, n);
    mc_status status = MC_OK;
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        if (!stays(&sources[i]) && !mci_source_host(&sources[i]) && sources[i].bytes > 0)
            status = mci_source_read(&sources[i], 0, sources[i].bytes, (char *)p + at[i]);
    }
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        if (stays(&sources[i])) continue;
        sources[i].host = p ? (char *)p + at[i] : NULL;
        sources[i].tensor = NULL;
        sources[i].first = 0;
    }
    free(at);
    if (status != MC_OK) {
        mci_snapshot_free(p, total);
        return status;
    }
    *block = p;
    *size = total;
    return MC_OK;
}

void mci_snapshot_free(void *block, int64_t size) {
    if (block) munmap(block, (size_t)size);
}
