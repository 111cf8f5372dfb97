/* bytes.c: the tensors' bytes go to their offsets, and come from them, by plain pwrite and pread.
 *
 * Faster than moving them through libhdf5, which runs one thread at a time and copies once more. A
 * job is hashed and written piece by piece while the piece is in the cache. Threads take whole
 * jobs, so a digest does not depend on their number.
 */
#include "bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cpu.h"

/* Small enough to stay in a core's cache between hash and write, large enough for few calls. */
enum { PIECE = 1 << 20 };
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

int mci_pwrite(int fd, const void *src, int64_t n, int64_t offset) {
    const char *p = src;
    while (n > 0) {
        ssize_t done = pwrite(fd, p, (size_t)(n < PIECE ? n : PIECE), offset);
        if (done < 0) {
            if (errno == EINTR) continue;
            return errno;
        }
        if (done == 0) return ENOSPC; /* POSIX leaves it open; asking again would not end */
        p += done;
        n -= done;
        offset += done;
    }
    return 0;
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
    int64_t pieces = (n + PIECE - 1) / PIECE;
    if (pieces <= 1) return mci_pread(fd, dst, n, offset);
    int error = 0;
#pragma omp parallel for schedule(static) num_threads(mci_threads(n))
    for (int64_t i = 0; i < pieces; i++) {
        int64_t first = i * PIECE;
        int one = mci_pread(fd, (char *)dst + first, n - first < PIECE ? n - first : PIECE,
                            offset + first);
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

/* One job from host memory. */
static int write_host(int fd, const char *src, mci_write_job *job) {
    mci_digest *digest = mci_digest_new();
    if (!digest) return ENOMEM;
    int error = 0;
    for (int64_t at = 0; at < job->bytes && error == 0; at += PIECE) {
        int64_t bytes = job->bytes - at < PIECE ? job->bytes - at : PIECE;
        mci_digest_update(digest, src + at, bytes);
        error = mci_pwrite(fd, src + at, bytes, job->offset + at);
    }
    mci_digest_text(digest, job->digest);
    mci_digest_free(digest);
    return error;
}

/* One job from another device's memory, in stages. */
static mc_status write_device(int fd, mci_write_job *job) {
    int size = mc_dtype_size(mc_tensor_dtype(job->tensor));
    int64_t step = STAGE / size, numel = job->bytes / size, one = 1;
    mci_digest *digest = mci_digest_new();
    char *stage = malloc((size_t)(job->bytes < STAGE ? job->bytes + 1 : STAGE));
    mc_tensor *view = mc_tensor_new();
    mc_status status = MC_OK;
    if (!digest || !stage || !view) {
        job->error = ENOMEM;
        status = MC_EIO;
    }
    for (int64_t at = 0; status == MC_OK && at < numel; at += step) {
        int64_t count = numel - at < step ? numel - at : step;
        mc_tensor_release(view);
        status = mc_as_strided(view, job->tensor, 1, &count, &one, at);
        if (status == MC_OK) status = mc_read(view, stage, count * size);
        if (status != MC_OK) break;
        mci_digest_update(digest, stage, count * size);
        job->error = mci_pwrite(fd, stage, count * size, job->offset + at * size);
        if (job->error != 0) status = MC_EIO;
    }
    if (status == MC_OK) mci_digest_text(digest, job->digest);
    mc_tensor_free(view);
    free(stage);
    mci_digest_free(digest);
    return status;
}

static int on_host(const mci_write_job *job) {
    return !job->tensor || mc_tensor_device(job->tensor) == 0;
}

mc_status mci_write_jobs(int fd, mci_write_job *jobs, int64_t n, int64_t *failed) {
    int64_t total = 0, first_failed = -1;
    for (int64_t i = 0; i < n; i++) total += on_host(&jobs[i]) ? jobs[i].bytes : 0;
    int threads = mci_threads(total);
    if (threads > n) threads = n > 0 ? (int)n : 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        int64_t stop;
#pragma omp atomic read
        stop = first_failed;
        if (stop >= 0 || !on_host(&jobs[i])) continue;
        const void *src = jobs[i].tensor ? mc_tensor_data(jobs[i].tensor) : jobs[i].host;
        jobs[i].error = write_host(fd, src, &jobs[i]);
        if (jobs[i].error != 0) {
#pragma omp atomic write
            first_failed = i;
        }
    }
    if (first_failed >= 0) {
        *failed = first_failed;
        return MC_EIO;
    }
    for (int64_t i = 0; i < n; i++) {
        if (on_host(&jobs[i])) continue;
        mc_status status = write_device(fd, &jobs[i]);
        if (status != MC_OK) {
            *failed = i;
            return status;
        }
    }
    return MC_OK;
}
