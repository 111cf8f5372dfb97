/* pump.c: the bytes of all jobs to their offsets in one file, hashed on the way; and back again, to
 * see that they are there.
 *
 * Jobs are cut into pieces, which threads take in the order of jobs and offsets. A thread brings
 * its piece into memory if it is not there, waits until the job's digest has reached the piece,
 * hashes it and then writes it. So one large job is written by all threads as many small ones are,
 * its digest is that of its bytes in order, and no wait can last: the first unfinished piece of a
 * job waits for nothing.
 *
 * Whole pages are written past the page cache (O_DIRECT, a descriptor of its own), which saves a
 * copy and leaves little to fsync; small jobs, the last part of a page and file systems without
 * O_DIRECT go through the cache. No page is ever written in both ways, for the extents do not
 * overlap. The threads are made per call and are not OpenMP's: they wait for a disk, maybe while
 * the training uses that pool.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "device.h"
#include "status.h"

enum {
    PIECE = 1 << 22, /* the least with which four threads reach the disk's rate */
    PAGE = 4096,     /* what O_DIRECT wants offsets, lengths and addresses to be multiples of */
    BUFFER = PIECE + 2 * PAGE,
    THREADS_MIN = 4,        /* even on fewer cores: they wait more than they work */
    THREADS_MAX = 7,        /* their buffers together stay under 32 MiB */
    HUGE_PAGE = 1 << 21,    /* buffers of such pages: fewer, larger requests to the disk */
    DIRECT_MIN = 1 << 20,   /* smaller jobs are cheaper through the page cache */
    THREADED_MIN = 1 << 22, /* less in all is done by the calling thread */
    WRITEBACK = 1 << 23     /* the kernel is told to begin with that much of its cache */
};

int mci_io_threads;

/* A job of which some pieces are handed out. */
typedef struct active {
    struct active *next;
    int64_t job;
    mci_digest *digest, *part; /* of the job; of the source that is being hashed, if it wants one */
    int64_t hashed, left;      /* bytes hashed; bytes not yet written */
} active;

/* Bytes [at, at + n) of a job; the first is byte `within` of source `source`. */
typedef struct piece {
    active *job;
    int64_t at, n, source, within;
} piece;

typedef struct run {
    int fd, direct_fd; /* direct_fd: opened for O_DIRECT, or -1 */
    int refused;       /* atomic: O_DIRECT was refused after all */
    int check;         /* 1: pieces come from the file and nothing is written */
    mci_write_job *jobs;
    int64_t n;
    mci_pump *pump;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t moved; /* a digest went on, or stop */
    pthread_cond_t asked; /* for the calling thread: a finished job, or a thread's end */
    int64_t *finished;    /* jobs for pump->meanwhile, in a room for all; or NULL */
    int64_t n_finished, n_told;
    int64_t next_job;
    piece next;       /* of next_job; next.job is NULL before its first piece */
    active *jobs_out; /* all that are not finished */
    int threads;      /* that have not ended; 0: the calling thread works itself */
    int stop;
    mc_status status;
    pthread_mutex_t telling; /* held while on_job runs */
} run;

/* What one thread has for itself. */
typedef struct worker {
    run *r;
    char *buffer;                   /* of BUFFER bytes, or NULL until one is needed */
    int64_t cached;                 /* bytes in the page cache whose writeback has not begun, */
    int64_t cached_from, cached_to; /* which lie somewhere in here */
} worker;

/* -- failures ---------------------------------------------------------------------------------- */

/* The first failure counts. error: an errno, whose text the caller adds to the message, or 0. */
__attribute__((format(printf, 5, 6))) static int fail(run *r, int64_t job, mc_status status,
                                                      int error, const char *format, ...) {
    pthread_mutex_lock(&r->lock);
    if (!r->stop) {
        r->stop = 1;
        r->status = status;
        r->pump->failed = job;
        r->pump->error = error;
        va_list args;
        va_start(args, format);
        vsnprintf(r->pump->message, sizeof r->pump->message, format, args);
        va_end(args);
    }
    pthread_cond_broadcast(&r->moved);
    pthread_cond_broadcast(&r->asked);
    pthread_mutex_unlock(&r->lock);
    return -1;
}

static int no_memory(run *r, int64_t job) {
    return fail(r, job, MC_EIO, ENOMEM, "no memory to move it");
}

/* -- handing out ------------------------------------------------------------------------------- */

static void active_free(active *a) {
    mci_digest_free(a->digest);
    mci_digest_free(a->part);
    free(a);
}

/* The next piece of all; 0 when there is none or the run has stopped. */
static int take(run *r, piece *p) {
    int64_t job = -1;
    pthread_mutex_lock(&r->lock);
    while (r->next_job < r->n && !r->check && r->jobs[r->next_job].done)
        __atomic_fetch_add(&r->pump->done, r->jobs[r->next_job++].bytes, __ATOMIC_RELAXED);
    if (!r->stop && r->next_job < r->n) {
        job = r->next_job;
        const mci_write_job *j = &r->jobs[job];
        if (!r->next.job) {
            active *a = calloc(1, sizeof *a);
            if (a && !(a->digest = mci_digest_new())) {
                free(a);
                a = NULL;
            }
            if (a) {
                a->job = job;
                a->left = j->bytes;
                a->next = r->jobs_out;
                r->jobs_out = a;
                r->next = (piece){.job = a};
            }
        }
        *p = r->next;
        p->n = j->bytes - p->at < PIECE ? j->bytes - p->at : PIECE;
        r->next.at += p->n;
        r->next.within += p->n;
        while (!r->check && r->next.source < j->n_sources &&
               r->next.within >= j->sources[r->next.source].bytes)
            r->next.within -= j->sources[r->next.source++].bytes;
        if (r->next.at >= j->bytes) {
            r->next_job++;
            r->next.job = NULL;
        }
    }
    pthread_mutex_unlock(&r->lock);
    if (job < 0) return 0;
    if (!p->job) {
        no_memory(r, job);
        return 0;
    }
    return 1;
}

/* The part of source `source` that lies in the piece from its byte `at` on, as bytes of that source
 * from `within` on; 0 when there are no more sources. */
static int64_t stretch(const mci_write_job *j, const piece *p, int64_t source, int64_t within,
                       int64_t at) {
    if (source >= j->n_sources) return 0;
    int64_t n = j->sources[source].bytes - within;
    return n < p->n - at ? n : p->n - at;
}

/* -- sources ----------------------------------------------------------------------------------- */

/* Bytes [within, within + n) of a source to dst; 0, or -1 after fail. */
static int collect(run *r, int64_t job, const mci_source *s, int64_t within, int64_t n, char *dst) {
    const char *host = mci_source_host(s);
    if (host) {
        memcpy(dst, host + within, (size_t)n);
        return 0;
    }
    mc_status status = s->tensor ? mci_source_read(s, within, n, dst)
                                 : mci_h5_fetch(s->file, s->entry, s->first + within, n, dst);
    return status == MC_OK ? 0 : fail(r, job, status, 0, "%s", mc_last_error());
}

static char *buffer_of(worker *w, int64_t job) {
    void *p = NULL;
    if (!w->buffer && posix_memalign(&p, HUGE_PAGE, BUFFER) == 0) {
        madvise(p, PIECE, MADV_HUGEPAGE);
        w->buffer = p;
    }
    if (!w->buffer) no_memory(w->r, job);
    return w->buffer;
}

/* The piece's bytes in memory, on a page's boundary where `aligned` asks for it; NULL after fail.
 */
static const char *bring(worker *w, const piece *p, int aligned) {
    run *r = w->r;
    const mci_write_job *j = &r->jobs[p->job->job];
    const char *host = NULL;
    if (p->n == 0) return "";
    if (stretch(j, p, p->source, p->within, 0) == p->n)
        host = mci_source_host(&j->sources[p->source]);
    if (host) host += p->within;
    if (host && (!aligned || (uintptr_t)host % PAGE == 0)) return host;
    char *buffer = buffer_of(w, p->job->job);
    int64_t source = p->source, within = p->within;
    for (int64_t at = 0; buffer && at < p->n; source++, within = 0) {
        int64_t n = stretch(j, p, source, within, at);
        if (source >= j->n_sources) {
            fail(r, p->job->job, MC_EINTERNAL, 0, "its sources have too few bytes");
            return NULL;
        }
        if (n > 0 && collect(r, p->job->job, &j->sources[source], within, n, buffer + at) != 0)
            return NULL;
        at += n;
    }
    return buffer;
}

/* -- the disk ---------------------------------------------------------------------------------- */

static int may_direct(const run *r, const mci_write_job *j) {
    return r->direct_fd >= 0 && j->bytes >= DIRECT_MIN &&
           !__atomic_load_n(&r->refused, __ATOMIC_RELAXED);
}

static void refuse_direct(run *r) {
    __atomic_store_n(&r->refused, 1, __ATOMIC_RELAXED);
}

/* Whole pages at a page's offset from a page's address, past the page cache. Returns how many bytes
 * are left to the page cache, with *error 0 or an errno. */
static int64_t write_direct(run *r, const char *p, int64_t n, int64_t offset, int *error) {
    *error = 0;
    while (n > 0) {
        ssize_t done = pwrite(r->direct_fd, p, (size_t)n, offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && errno == EINVAL) /* the file system had it opened and does not do it */
            refuse_direct(r);
        else if (done < 0)
            *error = errno;
        if (done < PAGE) break; /* a part of a page cannot be gone on from in this way */
        done -= done % PAGE;
        p += done;
        n -= done;
        offset += done;
    }
    return n;
}

/* The piece's bytes at p to their place; 0, or -1 after fail. */
static int put(worker *w, const piece *p, const char *bytes, int direct) {
    run *r = w->r;
    int64_t offset = r->jobs[p->job->job].offset + p->at, n = p->n, left = n;
    int error = 0;
    if (direct) {
        int64_t tail = n % PAGE;
        left = write_direct(r, bytes, n - tail, offset, &error) + tail;
    }
    if (error == 0 && left > 0) {
        int64_t from = offset + n - left, to = offset + n;
        error = mci_pwrite(r->fd, bytes + n - left, left, from);
        if (w->cached == 0 || from < w->cached_from) w->cached_from = from;
        if (w->cached == 0 || to > w->cached_to) w->cached_to = to;
        w->cached += left;
        if (w->cached >= WRITEBACK) {
            /* a hint: fsync tells what went wrong */
            sync_file_range(r->fd, w->cached_from, w->cached_to - w->cached_from,
                            SYNC_FILE_RANGE_WRITE);
            w->cached = 0;
        }
    }
    return error == 0 ? 0 : fail(r, p->job->job, MC_EIO, error, "cannot write");
}

/* The piece's bytes as the file has them; NULL after fail. */
static const char *read_back(worker *w, const piece *p) {
    run *r = w->r;
    const mci_write_job *j = &r->jobs[p->job->job];
    int64_t from = j->offset + p->at, lead = from % PAGE, want = lead + p->n, got = 0;
    int64_t room = (want + PAGE - 1) / PAGE * PAGE;
    int error = 0;
    if (p->n == 0) return "";
    char *buffer = buffer_of(w, p->job->job);
    if (!buffer) return NULL;
    while (may_direct(r, j) && got < want && got % PAGE == 0) {
        ssize_t done = pread(r->direct_fd, buffer + got, (size_t)(room - got), from - lead + got);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && errno == EINVAL)
            refuse_direct(r);
        else if (done <= 0)
            error = done < 0 ? errno : MCI_IO_EOF;
        if (done <= 0) break;
        got += done;
    }
    if (error == 0 && got < want) {
        lead = 0;
        error = mci_pread(r->fd, buffer, p->n, from);
    }
    if (error == 0) return buffer + lead;
    fail(r, p->job->job, MC_EIO, error, "cannot read back");
    return NULL;
}

/* -- the work ---------------------------------------------------------------------------------- */

static int damaged(run *r, int64_t job) {
    return fail(r, job, MC_EFORMAT, 0,
                "the source is damaged: its bytes do not match their digest");
}

/* The same bytes once more for sources that want a digest of their own. */
static int hash_parts(run *r, const piece *p, const char *bytes) {
    const mci_write_job *j = &r->jobs[p->job->job];
    active *a = p->job;
    int64_t source = p->source, within = p->within;
    for (int64_t at = 0; at < p->n; source++, within = 0) {
        const mci_source *s = &j->sources[source];
        int64_t n = stretch(j, p, source, within, at);
        if (s->digest && n > 0) {
            char text[MCI_DIGEST_TEXT];
            if (!a->part && !(a->part = mci_digest_new())) return no_memory(r, a->job);
            mci_digest_update(a->part, bytes + at, n);
            if (within + n == s->bytes) {
                mci_digest_text(a->part, text);
                mci_digest_free(a->part);
                a->part = NULL;
                if (strcmp(text, s->digest) != 0) return damaged(r, a->job);
            }
        }
        at += n;
    }
    return 0;
}

/* In its turn: after the pieces before it. */
static int hash(run *r, const piece *p, const char *bytes) {
    active *a = p->job;
    pthread_mutex_lock(&r->lock);
    while (!r->stop && a->hashed != p->at) pthread_cond_wait(&r->moved, &r->lock);
    int stop = r->stop;
    pthread_mutex_unlock(&r->lock);
    if (stop) return -1;
    mci_digest_update(a->digest, bytes, p->n);
    /* one source is the job, and has its digest */
    if (!r->check && r->jobs[a->job].n_sources > 1 && hash_parts(r, p, bytes) != 0) return -1;
    pthread_mutex_lock(&r->lock);
    a->hashed += p->n;
    if (a->hashed < r->jobs[a->job].bytes) pthread_cond_broadcast(&r->moved);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

/* All of the job is in its place, or was read. */
static void finish(run *r, active *a) {
    mci_write_job *j = &r->jobs[a->job];
    char text[MCI_DIGEST_TEXT];
    int error = 0;
    mci_digest_text(a->digest, text);
    if (r->check) {
        if (strcmp(text, j->digest) != 0)
            fail(r, a->job, MC_EIO, 0, "what was read back differs from what was written");
    } else if (j->n_sources == 1 && j->sources[0].digest &&
               strcmp(text, j->sources[0].digest) != 0) {
        damaged(r, a->job);
    } else {
        memcpy(j->digest, text, sizeof text);
        pthread_mutex_lock(&r->telling);
        if (r->pump->on_job) error = r->pump->on_job(r->pump->data, a->job);
        pthread_mutex_unlock(&r->telling);
        if (error != 0) fail(r, a->job, MC_EIO, error, "cannot note that it is written");
        if (r->finished) {
            pthread_mutex_lock(&r->lock);
            r->finished[r->n_finished++] = a->job;
            pthread_cond_signal(&r->asked);
            pthread_mutex_unlock(&r->lock);
        }
    }
    active_free(a);
}

static void do_piece(worker *w, const piece *p) {
    run *r = w->r;
    active *a = p->job;
    const mci_write_job *j = &r->jobs[a->job];
    int direct = j->offset % PAGE == 0 && may_direct(r, j);
    const char *bytes = r->check ? read_back(w, p) : bring(w, p, direct);
    if (!bytes || hash(r, p, bytes) != 0) return;
    if (!r->check && put(w, p, bytes, direct) != 0) return;
    __atomic_fetch_add(&r->pump->done, p->n, __ATOMIC_RELAXED);
    pthread_mutex_lock(&r->lock);
    a->left -= p->n;
    int last = a->left == 0;
    active **link = &r->jobs_out;
    while (last && *link != a) link = &(*link)->next;
    if (last) *link = a->next;
    pthread_mutex_unlock(&r->lock);
    if (last) finish(r, a);
}

static void work(run *r) {
    worker w = {.r = r};
    piece p;
    while (take(r, &p)) do_piece(&w, &p);
    free(w.buffer);
}

static void *thread_main(void *data) {
    run *r = data;
    work(r);
    pthread_mutex_lock(&r->lock);
    r->threads--;
    pthread_cond_signal(&r->asked);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

static int choose_threads(int64_t total) {
    cpu_set_t set;
    if (mci_io_threads > 0) return mci_io_threads < THREADS_MAX ? mci_io_threads : THREADS_MAX;
    if (total < THREADED_MIN) return 0;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : THREADS_MAX;
    return cores < THREADS_MIN ? THREADS_MIN : cores < THREADS_MAX ? cores : THREADS_MAX;
}

/* `total`: bytes to be moved. */
static void run_all(run *r, int64_t total) {
    pthread_t ids[THREADS_MAX];
    int wanted = choose_threads(total), n = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_mutex_init(&r->lock, NULL);
    pthread_mutex_init(&r->telling, NULL);
    pthread_cond_init(&r->moved, NULL);
    pthread_cond_init(&r->asked, NULL);
    pthread_mutex_lock(&r->lock);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the process's signals are not for our threads */
    while (n < wanted && pthread_create(&ids[n], NULL, thread_main, r) == 0) n++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    r->threads = n;
    if (n > 0 && r->pump->meanwhile && !r->check)
        r->finished = malloc((size_t)(r->n + 1) * sizeof *r->finished); /* NULL: then not */
    int more = r->pump->at_first && !r->check;
    while (r->threads > 0) {
        if (more || r->n_told < r->n_finished) {
            int64_t job = more ? -1 : r->finished[r->n_told++];
            pthread_mutex_unlock(&r->lock);
            if (more)
                more = r->pump->at_first(r->pump->data);
            else
                r->pump->meanwhile(r->pump->data, job);
            pthread_mutex_lock(&r->lock);
        } else {
            pthread_cond_wait(&r->asked, &r->lock);
        }
    }
    pthread_mutex_unlock(&r->lock);
    for (int i = 0; i < n; i++) pthread_join(ids[i], NULL);
    if (n == 0) work(r);
    while (r->jobs_out) { /* of a run that was stopped */
        active *a = r->jobs_out;
        r->jobs_out = a->next;
        active_free(a);
    }
    pthread_cond_destroy(&r->moved);
    pthread_cond_destroy(&r->asked);
    pthread_mutex_destroy(&r->lock);
    pthread_mutex_destroy(&r->telling);
    free(r->finished);
    if (r->direct_fd >= 0) close(r->direct_fd);
}

/* -- the two calls ----------------------------------------------------------------------------- */

/* The file that fd has open, once more and for O_DIRECT; -1 when that is refused. */
static int open_direct(int fd, const char *path, int mode) {
    char name[32];
    struct stat ours, st;
    if (fstat(fd, &ours) != 0) return -1;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    for (int i = 0; i < 2; i++, path = name) {
        int direct = path ? open(path, mode | O_DIRECT | O_CLOEXEC) : -1;
        if (direct < 0) continue;
        if (fstat(direct, &st) == 0 && st.st_dev == ours.st_dev && st.st_ino == ours.st_ino)
            return direct;
        close(direct);
    }
    return -1;
}

mc_status mci_write_jobs(int fd, const char *path, mci_write_job *jobs, int64_t n, mci_pump *pump) {
    run r = {.fd = fd, .direct_fd = -1, .jobs = jobs, .n = n, .pump = pump};
    int64_t total = 0, end = 0, last = 0;
    int large = 0;
    struct stat st;
    for (int64_t i = 0; i < n; i++) {
        if (jobs[i].done) continue;
        total += jobs[i].bytes;
        large |= jobs[i].bytes >= DIRECT_MIN && jobs[i].offset % PAGE == 0;
        if (jobs[i].bytes > 0 && jobs[i].offset + jobs[i].bytes > end) {
            end = jobs[i].offset + jobs[i].bytes;
            last = i;
        }
    }
    sigset_t before;
    mci_hold_signal(&before);
    if (large) r.direct_fd = open_direct(fd, path, O_WRONLY);
    /* Direct writes that lengthen a file run one after the other. */
    if (r.direct_fd >= 0 && fstat(fd, &st) == 0 && st.st_size < end && ftruncate(fd, end) != 0) {
        pump->failed = last;
        pump->error = errno;
        snprintf(pump->message, sizeof pump->message, "cannot write");
        r.status = MC_EIO;
        close(r.direct_fd);
    } else {
        run_all(&r, total);
    }
    mci_release_signal(&before);
    return r.status;
}

mc_status mci_check_jobs(int fd, const mci_write_job *jobs, int64_t n, mci_pump *pump) {
    /* a check changes no job */
    run r = {.fd = fd, .check = 1, .jobs = (mci_write_job *)(uintptr_t)jobs, .n = n, .pump = pump};
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) total += jobs[i].bytes;
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* pages that are down on the disk leave */
    r.direct_fd = open_direct(fd, NULL, O_RDONLY);
    run_all(&r, total);
    return r.status;
}
