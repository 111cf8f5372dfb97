/* commit.c: a written file goes to the disk and gets its name, whole or not at all; and the
 * plugin's door.
 *
 * The whole size is claimed first; then come the tensors' bytes by threads, their digests into the
 * structure, the structure itself with the first 4 KiB last, fsync, and only when all of that went
 * well the name. So a killed writer leaves a file without signature under a name nobody reads, and
 * any failure leaves an old file as it was. A commit may run on a thread of its own; the end of the
 * process waits for those that run.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/device.h"
#include "plugin.h"
#include "status.h"
#include "writer.h"

/* WINDOW: the most that is copied at once; AHEAD: the least that is read, for gaps that follow. */
enum { HEAD = 4096, WINDOW = 1 << 20, AHEAD = 1 << 14 };

const mci_hdf5_api *mci_hdf5(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static const mci_hdf5_api *api;
    static const mci_hdf5_services services = {.abi = MCI_HDF5_ABI,
                                               .fail = mci_fail,
                                               .dtype_name = mc_dtype_name,
                                               .dtype_size = mc_dtype_size};
    pthread_mutex_lock(&lock);
    if (!api) {
        char reason[512] = "";
        void *symbol = mci_plugin_symbol("hdf5", "mascon_hdf5_api", reason, sizeof reason);
        if (symbol) {
            mci_hdf5_entry entry;
            memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast for it */
            api = entry(&services);
            if (api && api->abi != MCI_HDF5_ABI) {
                mci_fail(MC_EINTERNAL, "hdf5: libmascon_hdf5.so is of another build");
                api = NULL;
            }
        } else {
            mci_fail(MC_EUNSUPPORTED, "hdf5: the HDF5 plugin cannot be opened: %s", reason);
        }
    }
    const mci_hdf5_api *found = api;
    pthread_mutex_unlock(&lock);
    return found;
}

/* -- the structure ----------------------------------------------------------------------------- */

/* A copy of the memory file's bytes around `at`. */
typedef struct window {
    char *bytes;
    int64_t from, to;
} window;

/* Copies bytes [from, to) of the memory file to the same place in the real one; 0 or an errno. */
static int copy_gap(const mc_h5_writer *w, window *in, int64_t from, int64_t to, int64_t length) {
    while (from < to) {
        if (from < in->from || from >= in->to) {
            int64_t n = to - from < AHEAD ? AHEAD : to - from < WINDOW ? to - from : WINDOW;
            in->from = from;
            in->to = length - from < n ? length : from + n;
            int error = mci_pread(w->memory, in->bytes, in->to - from, from);
            if (error != 0) return error;
        }
        int64_t end = to < in->to ? to : in->to;
        int error = mci_pwrite(w->file.fd, in->bytes + (from - in->from), end - from, from);
        if (error != 0) return error;
        from = end;
    }
    return 0;
}

static int by_offset(const void *a, const void *b) {
    const mci_write_job *x = *(const mci_write_job *const *)a,
                        *y = *(const mci_write_job *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* What lies between the tensors within [low, high). jobs: those with bytes, by offset. */
static int copy_gaps(const mc_h5_writer *w, window *in, const mci_write_job *const *jobs, int64_t n,
                     int64_t low, int64_t high, int64_t length) {
    int64_t at = low;
    int error = 0;
    for (int64_t i = 0; i < n && error == 0 && at < high; i++) {
        int64_t end = jobs[i]->offset + jobs[i]->bytes;
        if (end <= at) continue;
        if (jobs[i]->offset > at)
            error = copy_gap(w, in, at, jobs[i]->offset < high ? jobs[i]->offset : high, length);
        at = end;
    }
    return error != 0 || at >= high ? error : copy_gap(w, in, at, high, length);
}

/* Everything that is no tensor, the file's beginning last; then the file is as long as it should
 * be. */
static mc_status write_structure(mc_h5_writer *w) {
    struct stat st;
    window in = {.bytes = malloc(WINDOW)};
    const mci_write_job **jobs = malloc((size_t)(w->n + 1) * sizeof *jobs);
    int error = in.bytes && jobs ? 0 : ENOMEM;
    if (error == 0 && fstat(w->memory, &st) != 0) error = errno;
    if (error == 0) {
        int64_t n = 0, length = st.st_size, head = length < HEAD ? length : HEAD;
        for (int64_t i = 0; i < w->n; i++) {
            if (w->jobs[i].bytes > 0) jobs[n++] = &w->jobs[i];
        }
        qsort(jobs, (size_t)n, sizeof *jobs, by_offset);
        error = copy_gaps(w, &in, jobs, n, head, length, length);
        if (error == 0) error = copy_gaps(w, &in, jobs, n, 0, head, length);
        if (error == 0 && ftruncate(w->file.fd, length) != 0) error = errno;
    }
    free(jobs);
    free(in.bytes);
    return error == 0 ? MC_OK
                      : mci_os_failure(w->file.name, "cannot write the file's structure: ", error);
}

/* -- checking ---------------------------------------------------------------------------------- */

static int by_path(const void *a, const void *b) {
    return strcmp((*(const mc_h5_entry *const *)a)->path, (*(const mc_h5_entry *const *)b)->path);
}

/* NULL, or what differs between a listed entry and what was written. */
static const char *difference(const mc_h5_file *f, const mc_h5_entry *e, const mci_item *it,
                              const mci_write_job *job) {
    if (e->kind != MC_H5_DATASET) return "it is no dataset";
    if (e->problem) return e->problem;
    if (e->dtype != it->dtype) return "its dtype differs";
    if (e->ndim != it->ndim ||
        memcmp(e->shape, it->shape, (size_t)it->ndim * sizeof e->shape[0]) != 0)
        return "its shape differs";
    if (e->bytes != job->bytes || e->offset != job->offset) return "its place differs";
    for (int32_t i = 0; i < e->n_attrs; i++) {
        const mc_h5_attr *a = mc_h5_get_attr(f, e->first_attr + i);
        if (strcmp(a->name, "digest") == 0)
            return a->kind == MC_H5_STRING && strcmp(a->s, job->digest) == 0 ? NULL
                                                                             : "its digest differs";
    }
    return "it has no digest";
}

static mc_status check_listing(const mc_h5_writer *w, const mc_h5_file *f) {
    int64_t count = mc_h5_count(f), n = 0;
    const mc_h5_entry **sets = malloc((size_t)(count + 1) * sizeof *sets);
    if (!sets) return mci_os_failure(w->file.name, "", ENOMEM);
    for (int64_t i = 0; i < count; i++) {
        const mc_h5_entry *e = mc_h5_get(f, i);
        if (e->kind == MC_H5_DATASET) sets[n++] = e;
    }
    qsort(sets, (size_t)n, sizeof *sets, by_path);
    mc_status status = MC_OK;
    if (n != w->n + w->links)
        status = mci_fail(MC_EIO, "%s: not saved: %lld datasets were written, %lld read back",
                          w->file.name, (long long)(w->n + w->links), (long long)n);
    for (int64_t i = 0; i < w->n && status == MC_OK; i++) {
        mc_h5_entry wanted = {.path = w->items[i].path};
        const mc_h5_entry *key = &wanted;
        const mc_h5_entry **found = bsearch(&key, sets, (size_t)n, sizeof *sets, by_path);
        const char *what =
            found ? difference(f, *found, &w->items[i], &w->jobs[i]) : "it is missing";
        if (what)
            status = mci_fail(MC_EIO, "%s: not saved: '%s' does not read back: %s", w->file.name,
                              w->items[i].path, what);
    }
    free(sets);
    return status;
}

/* As mci_fail with what a pump says of its failure. */
static mc_status pump_failure(const mc_h5_writer *w, mc_status status, const mci_pump *pump) {
    char text[128] = "";
    const char *path = pump->failed >= 0 && pump->failed < w->n ? w->items[pump->failed].path : "";
    if (pump->error != 0) mci_io_reason(pump->error, text, sizeof text);
    return mci_fail(pump->error == ENOMEM ? MC_ENOMEM : status, "%s: '%s': %s%s%s", w->file.name,
                    path, pump->message, *text ? ": " : "", text);
}

static mc_status check_written(mc_h5_writer *w) {
    mc_status status = mci_check_jobs(w->file.fd, w->jobs, w->n, &w->check_pump);
    if (status != MC_OK) return pump_failure(w, status, &w->check_pump);
    mc_h5_file *f = NULL;
    status = mc_h5_open(&f, w->file.temp, NULL);
    if (status == MC_OK) {
        status = check_listing(w, f);
    } else {
        char *why = strdup(mc_last_error());
        mci_fail(status, "%s: not saved: what was written cannot be read back: %s", w->file.name,
                 why ? why : "");
        free(why);
    }
    mc_h5_close(f);
    return status;
}

/* -- afterwards -------------------------------------------------------------------------------- */

static mc_status point(const mci_then *t) {
    mci_newfile f = {.fd = -1};
    int64_t swept;
    mci_newfile_sweep(t->path, &swept);
    mc_status status = mci_newfile_open(&f, t->path);
    if (status == MC_OK) {
        int error = mci_pwrite(f.fd, t->text, (int64_t)strlen(t->text), 0);
        if (error != 0) status = mci_os_failure(t->path, "", error);
    }
    if (status == MC_OK) status = mci_newfile_sync(&f);
    if (status == MC_OK) status = mci_newfile_publish(&f);
    mci_newfile_discard(&f);
    return status;
}

/* saved: what was just published, which is not removed under any name. */
static mc_status remove_file(const mci_then *t, const struct stat *saved) {
    struct stat st;
    if (lstat(t->path, &st) == 0) {
        if (S_ISDIR(st.st_mode)) return mci_fail(MC_EIO, "%s: it is a folder", t->path);
        if (st.st_ino == saved->st_ino && st.st_dev == saved->st_dev)
            return mci_fail(MC_EIO, "%s: it is the file just saved", t->path);
        if (unlink(t->path) == 0) return MC_OK;
    }
    return errno == ENOENT ? MC_OK : mci_os_failure(t->path, "cannot remove it: ", errno);
}

/* Everything that was asked for, the pointer first; the first failure counts, and one of a pointer
 * keeps the files that it may still point at. */
static mc_status run_thens(mc_h5_writer *w, const struct stat *saved) {
    mc_status status = MC_OK;
    char *why = NULL;
    for (const mci_then *t = w->points; t && status == MC_OK; t = t->next) status = point(t);
    if (status != MC_OK) {
        why = strdup(mc_last_error());
    } else {
        for (const mci_then *t = w->removals; t; t = t->next) {
            mc_status one = remove_file(t, saved);
            if (one == MC_OK || status != MC_OK) continue;
            status = one;
            why = strdup(mc_last_error());
        }
    }
    if (status != MC_OK)
        status = mci_fail(MC_EIO, "%s: saved, but %s", w->file.name, why ? why : "out of memory");
    free(why);
    return status;
}

static mc_status add_then(mc_h5_writer *w, const char *op, mci_then **list, const char *path,
                          const char *text, int has_text) {
    mc_status status = mci_writer_usable(w, op);
    if (status != MC_OK) return status;
    mci_then *t = NULL;
    if (!path || !*path || (has_text && !text)) {
        status = mci_fail(MC_EINVAL, "%s: %s: no path%s", op, w->file.name,
                          has_text ? ", or no text" : "");
    } else {
        t = calloc(1, sizeof *t);
        if (t) t->path = mci_absolute(path);
        if (t && has_text) t->text = strdup(text);
        if (!t || !t->path || (has_text && !t->text)) {
            if (t) free(t->path);
            free(t);
            status = mci_os_failure(w->file.name, "", ENOMEM);
        }
    }
    if (status != MC_OK) return mci_writer_noted(w, status);
    while (*list) list = &(*list)->next;
    *list = t;
    return MC_OK;
}

mc_status mc_h5_then_point(mc_h5_writer *w, const char *pointer, const char *text) {
    return add_then(w, "h5_then_point", w ? &w->points : NULL, pointer, text, 1);
}

mc_status mc_h5_then_remove(mc_h5_writer *w, const char *path) {
    return add_then(w, "h5_then_remove", w ? &w->removals : NULL, path, NULL, 0);
}

mc_status mc_h5_check_written(mc_h5_writer *w) {
    mc_status status = mci_writer_usable(w, "h5_check_written");
    if (status == MC_OK) w->check = 1;
    return status;
}

/* -- commit ------------------------------------------------------------------------------------ */

static int note_job(void *data, int64_t job) {
    mc_h5_writer *w = data;
    if (w->jobs[job].bytes == 0 || w->items[job].running) return 0;
    return mci_journal_note(w->journal, job, &w->jobs[job]);
}

/* The structure learns item i's digest, if it does not have it. */
static mc_status say_digest(mc_h5_writer *w, int64_t i) {
    mci_item *it = &w->items[i];
    const char *digest = w->jobs[i].digest;
    if (strcmp(it->said, digest) == 0) return MC_OK;
    mc_status status = w->api->digest(w->out, it->path, digest);
    if (status == MC_OK) memcpy(it->said, digest, sizeof it->said);
    return status;
}

static int make_view_meanwhile(void *data) {
    mc_h5_writer *w = data;
    return mci_views_left(w) && mci_views_make_next(w) == MC_OK && mci_views_left(w);
}

/* Digests are written in the items' order, whatever order their bytes come in: so libhdf5 gets the
 * same calls at any timing. A failure comes again when all are gone through. */
static void say_digests_meanwhile(void *data, int64_t job) {
    mc_h5_writer *w = data;
    w->items[job].written = 1;
    while (w->n_said < w->n && (w->items[w->n_said].written || w->jobs[w->n_said].done)) {
        if (mci_views_left(w) || say_digest(w, w->n_said) != MC_OK) return;
        w->n_said++;
    }
}

static mc_status write_tensors(mc_h5_writer *w) {
    int64_t size = 0;
    mc_status status = w->api->size(w->out, &size);
    if (status != MC_OK) return status;
    int error = mci_claim(w->file.fd, size);
    if (error != 0) return mci_os_failure(w->file.name, "", error);
    if (w->journal) {
        mci_journal_take_over(w->journal, w->file.fd, w->jobs, w->n);
        w->pump.on_job = note_job;
    }
    w->pump.at_first = make_view_meanwhile;
    w->pump.meanwhile = say_digests_meanwhile;
    w->pump.data = w;
    status = mci_write_jobs(w->file.fd, w->file.temp, w->jobs, w->n, &w->pump);
    mci_moments_free(&w->moments); /* a device's memory is dear, and fsync may take long */
    error = w->journal ? mci_journal_flush(w->journal) : 0;
    if (status != MC_OK) return pump_failure(w, status, &w->pump);
    return error == 0 ? MC_OK : mci_os_failure(w->file.name, "cannot write its journal: ", error);
}

/* The first call's failure, what is missing, and where bytes come from: with `snapshot`, from
 * copies of the tensors. */
static mc_status prepare(mc_h5_writer *w, int snapshot) {
    if (w->failed != MC_OK)
        return mci_fail(w->failed, "%s: not saved, since a call before failed: %s", w->file.name,
                        w->failure ? w->failure : "");
    mc_status status = mci_writer_gather(w);
    if (w->check) w->total *= 2;
    if (status == MC_OK) status = mci_moments_take(&w->moments, w->sources, w->n_sources, snapshot);
    if (status == MC_OK && snapshot)
        status = mci_snapshot(w->sources, w->n_sources, &w->block, &w->block_size);
    return status;
}

static mc_status save(mc_h5_writer *w) {
    mc_status status = write_tensors(w);
    if (status == MC_OK) status = mci_views_make(w);
    for (; w->n_said < w->n && status == MC_OK; w->n_said++) status = say_digest(w, w->n_said);
    if (status != MC_OK) return status;
    mci_h5_out *out = w->out;
    w->out = NULL;
    status = w->api->close(out);
    if (status == MC_OK) status = write_structure(w);
    if (status == MC_OK) status = mci_newfile_sync(&w->file);
    if (status == MC_OK && w->check) status = check_written(w);
    struct stat st = {0};
    if (status == MC_OK && fstat(w->file.fd, &st) != 0)
        status = mci_os_failure(w->file.name, "", errno);
    if (status == MC_OK) status = mci_newfile_publish(&w->file);
    if (w->journal && !w->file.temp) mci_journal_remove(w->journal);
    return status == MC_OK ? run_thens(w, &st) : status;
}

mc_status mc_h5_commit(mc_h5_writer *w) {
    mc_status status = mci_writer_usable(w, "h5_commit");
    if (status != MC_OK) return status;
    status = prepare(w, 0);
    if (status == MC_OK) status = save(w);
    mc_h5_discard(w);
    return status;
}

/* -- on a thread of its own -------------------------------------------------------------------- */

/* Commits that run in this process, and `through` of their writers. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static int running;

static void wait_for_all(void) {
    pthread_mutex_lock(&lock);
    while (running > 0) pthread_cond_wait(&ended, &lock);
    pthread_mutex_unlock(&lock);
}

static void before_fork(void) {
    pthread_mutex_lock(&lock);
}

static void in_parent(void) {
    pthread_mutex_unlock(&lock);
}

/* The threads stay with the parent. */
static void in_child(void) {
    static const pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;
    running = 0;
    memcpy(&ended, &fresh, sizeof ended);
    pthread_mutex_unlock(&lock);
}

static int watching;

static void watch(void) {
    watching = pthread_atfork(before_fork, in_parent, in_child) == 0 && atexit(wait_for_all) == 0;
}

static void *run(void *data) {
    mc_h5_writer *w = data;
    w->status = save(w);
    if (w->status != MC_OK) w->message = strdup(mc_last_error());
    pthread_mutex_lock(&lock);
    w->through = 1;
    running--;
    pthread_cond_broadcast(&ended);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* The end of the process waits from here on; signals are for the caller's threads. */
static mc_status start_thread(mc_h5_writer *w) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch);
    if (!watching) return mci_os_failure(w->file.name, "", ENOMEM);
    sigset_t all, before;
    sigfillset(&all);
    pthread_mutex_lock(&lock);
    running++;
    pthread_mutex_unlock(&lock);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&w->thread, NULL, run, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) return MC_OK;
    pthread_mutex_lock(&lock);
    running--;
    pthread_mutex_unlock(&lock);
    return mci_os_failure(w->file.name, "cannot start a thread: ", error);
}

mc_status mc_h5_commit_start(mc_h5_writer *w, int snapshot) {
    mc_status status = mci_writer_usable(w, "h5_commit_start");
    if (status != MC_OK) return status;
    status = prepare(w, snapshot);
    for (int64_t i = 0; i < w->n && status == MC_OK && snapshot; i++) {
        mc_tensor_free(w->items[i].tensor);
        w->items[i].tensor = NULL;
    }
    w->started = status == MC_OK;
    if (status == MC_OK) status = start_thread(w);
    if (status != MC_OK) {
        w->started = 0;
        mc_h5_discard(w);
    }
    return status;
}

/* MC_OK when w's commit was started by this process. */
static mc_status check_started(const mc_h5_writer *w, const char *op) {
    if (!w) return mci_fail(MC_EINVAL, "%s: no writer", op);
    if (w->file.owner != getpid())
        return mci_fail(MC_EINVAL, "%s: %s: the writer belongs to the process that made it", op,
                        w->file.name);
    if (!w->started)
        return mci_fail(MC_EINVAL, "%s: %s: its commit has not begun", op, w->file.name);
    return MC_OK;
}

int mc_h5_commit_poll(mc_h5_writer *w, int64_t *done, int64_t *total) {
    if (done) *done = 0;
    if (total) *total = 0;
    if (check_started(w, "h5_commit_poll") != MC_OK) return -1;
    if (done)
        *done = __atomic_load_n(&w->pump.done, __ATOMIC_RELAXED) +
                __atomic_load_n(&w->check_pump.done, __ATOMIC_RELAXED);
    if (total) *total = w->total;
    pthread_mutex_lock(&lock);
    int through = w->through;
    pthread_mutex_unlock(&lock);
    return through;
}

mc_status mc_h5_commit_wait(mc_h5_writer *w) {
    mc_status status = check_started(w, "h5_commit_wait");
    if (status != MC_OK) return status;
    pthread_join(w->thread, NULL);
    w->started = 0;
    status = w->status;
    if (status != MC_OK) mci_fail(status, "%s", w->message ? w->message : "out of memory");
    mc_h5_discard(w);
    return status;
}

/* Of a writer whose commit was started: waits for it first. */
void mc_h5_discard(mc_h5_writer *w) {
    if (!w) return;
    char *message = strdup(mc_last_error()); /* closing may fail too; the first failure counts */
    if (w->started && w->file.owner == getpid()) pthread_join(w->thread, NULL);
    mci_writer_free(w);
    if (message) mci_fail(MC_OK, "%s", message);
    free(message);
}
