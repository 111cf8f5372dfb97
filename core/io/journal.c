/* journal.c: which datasets of a partial file are complete, so that a save that was killed goes on
 * where it was.
 *
 * A text file beside the partial one. Its first line names the work by the digest of its key, each
 * further one a dataset: "index offset bytes digest check", the last being the start of the digest
 * of the line before it. A line is written only after its bytes are on the disk, and whoever goes
 * on hashes those bytes again: a wrong journal costs time, never data.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cpu.h"
#include "status.h"
#include "writer.h"

/* A batch is noted when it has so many bytes or is so old: what a kill can cost. */
enum { BATCH_BYTES = 1 << 28, BATCH_SECONDS = 2 };
enum { LINE = 160, CHECK_DIGITS = 8, MAX_JOURNAL = 1 << 28 };

typedef struct note {
    int64_t index, offset, bytes;
    char digest[MCI_DIGEST_TEXT];
} note;

struct mci_journal {
    char *path;
    int fd, data; /* of the journal; of the partial file, the writer's */
    int64_t end;  /* of the journal's good lines */
    note *found;  /* what was in it */
    int64_t n_found;
    note *batch; /* to be noted */
    int64_t n_batch, room, batch_bytes;
    struct timespec last;
};

/* One line with its check and newline into `line`; its length. */
static int write_line(char *line, const note *e) {
    char check[MCI_DIGEST_TEXT];
    int n = snprintf(line, LINE, "%lld %lld %lld %s", (long long)e->index, (long long)e->offset,
                     (long long)e->bytes, e->digest);
    mci_digest_bytes(line, n, check);
    return n + snprintf(line + n, (size_t)(LINE - n), " %.*s\n", CHECK_DIGITS, check);
}

/* 1 when the text up to `end` is a line as write_line makes it. */
static int read_line(const char *text, const char *end, note *e) {
    char line[LINE], again[LINE];
    size_t n = (size_t)(end - text);
    long long index, offset, bytes;
    if (n >= sizeof line) return 0;
    memcpy(line, text, n);
    line[n] = '\0';
    if (sscanf(line, "%lld %lld %lld %32[0-9a-f]", &index, &offset, &bytes, e->digest) != 4)
        return 0;
    e->index = index;
    e->offset = offset;
    e->bytes = bytes;
    return write_line(again, e) == (int)n + 1 && memcmp(again, line, n) == 0;
}

/* Takes the good lines of `text`; 0 when out of memory. */
static int parse(mci_journal *j, const char *text, size_t n, const char *head) {
    size_t at = strlen(head);
    if (n < at || memcmp(text, head, at) != 0) return 1;
    int64_t room = 0;
    for (const char *end; (end = memchr(text + at, '\n', n - at)); at = (size_t)(end - text) + 1) {
        if (j->n_found == room) {
            room = room ? room * 2 : 256;
            note *found = realloc(j->found, (size_t)room * sizeof *found);
            if (!found) return 0;
            j->found = found;
        }
        if (!read_line(text + at, end, &j->found[j->n_found])) break;
        j->n_found++;
    }
    j->end = (int64_t)at;
    return 1;
}

static int read_journal(mci_journal *j, const char *head) {
    struct stat st;
    if (fstat(j->fd, &st) != 0) return errno;
    if (!S_ISREG(st.st_mode)) return EINVAL;
    if (st.st_size == 0 || st.st_size > MAX_JOURNAL) return 0;
    char *text = malloc((size_t)st.st_size);
    int error = text ? mci_pread(j->fd, text, st.st_size, 0) : ENOMEM;
    if (error == 0 && !parse(j, text, (size_t)st.st_size, head)) error = ENOMEM;
    free(text);
    return error;
}

mc_status mci_journal_open(mci_journal **out, const mci_newfile *partial, const char *key,
                           int *fresh) {
    *out = NULL;
    *fresh = 1;
    char head[64], digest[MCI_DIGEST_TEXT];
    mci_digest_bytes(key, (int64_t)strlen(key), digest);
    int head_bytes = snprintf(head, sizeof head, "mascon journal 1 %s\n", digest);
    mci_journal *j = calloc(1, sizeof *j);
    size_t room = strlen(partial->path) + sizeof ".journal";
    char *path = malloc(room);
    if (!j || !path || !*digest) {
        free(j);
        free(path);
        return mci_os_failure(partial->name, "", ENOMEM);
    }
    snprintf(path, room, "%s.journal", partial->path);
    j->path = path;
    j->data = partial->fd;
    clock_gettime(CLOCK_MONOTONIC, &j->last);
    j->fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    int error = j->fd >= 0 ? read_journal(j, head) : errno;
    /* a torn line goes, so that the next one begins a line */
    if (error == 0 && ftruncate(j->fd, j->end) != 0) error = errno;
    if (error == 0 && j->end == 0) {
        error = mci_pwrite(j->fd, head, head_bytes, 0);
        j->end = head_bytes;
    }
    if (error != 0) {
        mc_status status = mci_os_failure(path, "", error);
        mci_journal_close(j);
        return status;
    }
    *fresh = j->n_found == 0;
    *out = j;
    return MC_OK;
}

/* 1 unless a source of the job says that its stretch of the bytes in fd, which have `digest`, has
 * another digest: it has changed since. */
static int as_sources_say(int fd, const mci_write_job *job, const char *digest) {
    int64_t at = job->offset;
    for (int64_t i = 0; i < job->n_sources; at += job->sources[i++].bytes) {
        const mci_source *s = &job->sources[i];
        char own[MCI_DIGEST_TEXT];
        if (!s->digest) continue;
        if (s->bytes == job->bytes)
            memcpy(own, digest, sizeof own);
        else if (mci_digest_file(fd, s->bytes, at, own) != 0)
            return 0;
        if (strcmp(own, s->digest) != 0) return 0;
    }
    return 1;
}

void mci_journal_take_over(mci_journal *j, int fd, mci_write_job *jobs, int64_t n) {
    int64_t total = 0;
    for (int64_t i = 0; i < j->n_found; i++) total += j->found[i].bytes;
#pragma omp parallel for schedule(dynamic, 1) num_threads(mci_threads(total))
    for (int64_t i = 0; i < j->n_found; i++) {
        const note *e = &j->found[i];
        char digest[MCI_DIGEST_TEXT];
        if (e->index < 0 || e->index >= n || e->bytes <= 0) continue;
        mci_write_job *job = &jobs[e->index];
        int done;
#pragma omp atomic read
        done = job->done;
        if (done || job->offset != e->offset || job->bytes != e->bytes) continue;
        /* what cannot be read will be written again */
        if (mci_digest_file(fd, e->bytes, e->offset, digest) != 0) continue;
        if (strcmp(digest, e->digest) != 0 || !as_sources_say(fd, job, digest)) continue;
#pragma omp critical(mci_journal)
        if (!job->done) {
            memcpy(job->digest, digest, sizeof digest);
#pragma omp atomic write
            job->done = 1;
        }
    }
}

int mci_journal_flush(mci_journal *j) {
    clock_gettime(CLOCK_MONOTONIC, &j->last);
    if (j->n_batch == 0) return 0;
    char *text = malloc((size_t)j->n_batch * LINE), *p = text;
    if (!text) return ENOMEM;
    for (int64_t i = 0; i < j->n_batch; i++) p += write_line(p, &j->batch[i]);
    int error = 0;
    while (fdatasync(j->data) != 0) {
        if (errno == EINTR) continue;
        error = errno;
        break;
    }
    if (error == 0) error = mci_pwrite(j->fd, text, p - text, j->end);
    if (error == 0) {
        j->end += p - text;
        j->n_batch = j->batch_bytes = 0;
    }
    free(text);
    return error;
}

int mci_journal_note(mci_journal *j, int64_t index, const mci_write_job *job) {
    if (j->n_batch == j->room) {
        int64_t more = j->room ? j->room * 2 : 64;
        note *batch = realloc(j->batch, (size_t)more * sizeof *batch);
        if (!batch) return ENOMEM;
        j->batch = batch;
        j->room = more;
    }
    note *e = &j->batch[j->n_batch++];
    *e = (note){.index = index, .offset = job->offset, .bytes = job->bytes};
    memcpy(e->digest, job->digest, sizeof e->digest);
    j->batch_bytes += job->bytes;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (j->batch_bytes < BATCH_BYTES && now.tv_sec - j->last.tv_sec < BATCH_SECONDS) return 0;
    return mci_journal_flush(j);
}

void mci_journal_remove(mci_journal *j) {
    unlink(j->path);
}

void mci_journal_close(mci_journal *j) {
    if (!j) return;
    if (j->fd >= 0) close(j->fd);
    free(j->found);
    free(j->batch);
    free(j->path);
    free(j);
}
