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
#include "status.h"

/* Small enough to stay in a core's cache between read and hash, large enough for few calls. */
enum { PIECE = 1 << 20 };
/* Of a read by threads, taken one by one: they wake one after the other, and 4 MB last no longer
 * than 20 wakings. */
enum { READ_PIECE = 1 << 19 };
/* Host memory for tensors of other devices. */
enum { STAGE = 1 << 24 };

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

int mci_pread_threads(int fd, void *dst, int64_t n, int64_t offset) {
    int64_t pieces = (n + READ_PIECE - 1) / READ_PIECE;
    if (pieces <= 2) return mci_pread(fd, dst, n, offset);
    int error = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(mci_threads(n))
    for (int64_t i = 0; i < pieces; i++) {
        int64_t first = i * READ_PIECE;
        int64_t bytes = n - first < READ_PIECE ? n - first : READ_PIECE;
        int one = mci_pread(fd, (char *)dst + first, bytes, offset + first);
        if (one != 0) {
#pragma omp atomic write
            error = one;
        }
    }
    return error;
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

/* -- snapshot ---------------------------------------------------------------------------------- */

enum { PAGE = 4096 };

static int64_t pages(int64_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

static const char *host_bytes(const mci_source *s) {
    const char *base = s->host;
    if (!base && s->tensor && mc_tensor_device(s->tensor) == 0) base = mc_tensor_data(s->tensor);
    return base ? base + s->first : NULL;
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
        const char *src = host_bytes(&sources[i]);
        int64_t a = from > at[i] ? from : at[i], end = at[i] + sources[i].bytes;
        int64_t b = to < end ? to : end;
        if (src && !sources[i].file && b > a) memcpy(block + a, src + (a - at[i]), (size_t)(b - a));
    }
}

static mc_status copy_device(char *dst, const mci_source *s) {
    int64_t size = mc_dtype_size(mc_tensor_dtype(s->tensor)), count = s->bytes / size, one = 1;
    mc_tensor *view = mc_tensor_new();
    mc_status status = view ? MC_OK : mci_fail(MC_ENOMEM, "snapshot: no memory for a view");
    if (status == MC_OK) status = mc_as_strided(view, s->tensor, 1, &count, &one, s->first / size);
    if (status == MC_OK) status = mc_read(view, dst, s->bytes);
    mc_tensor_free(view);
    return status;
}

mc_status mci_snapshot(mci_source *sources, int64_t n, void **block, int64_t *size) {
    int64_t *at = malloc((size_t)(n + 1) * sizeof *at), total = 0, host = 0;
    *block = NULL;
    *size = 0;
    if (!at) return mci_fail(MC_ENOMEM, "snapshot: no memory to list %lld sources", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        at[i] = total;
        if (!sources[i].file) total += pages(sources[i].bytes);
        if (host_bytes(&sources[i])) host += sources[i].bytes;
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
#pragma omp parallel for schedule(dynamic, 1) num_threads(mci_threads(host))
    for (int64_t i = 0; i < pieces; i++)
        copy_stretch(p, i * STAGE, i + 1 < pieces ? (i + 1) * STAGE : total, sources, at, n);
    mc_status status = MC_OK;
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        if (!sources[i].file && !host_bytes(&sources[i]) && sources[i].bytes > 0)
            status = copy_device((char *)p + at[i], &sources[i]);
    }
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        if (sources[i].file) continue;
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
