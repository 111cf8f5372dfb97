/* writer.c: what goes into a file that is being written: groups, datasets, links and attributes.
 *
 * Each call makes its part of the structure at once (views: views.c) and only remembers where the
 * bytes will come from, save for mc_h5_part. The first call that fails is remembered too: what is
 * written by then may be half of something.
 */
#include "writer.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/device.h"
#include "status.h"

/* Parts are moved in pieces: from files and other devices through memory of this size. Up to
 * HASHED_FIRST bytes, an item's digest is known before its dataset is made. */
enum { PIECE = 1 << 22, HASHED_FIRST = 1 << 17 };

/* -- begin and end ----------------------------------------------------------------------------- */

static void free_item(mci_item *it) {
    free(it->path);
    mc_tensor_free(it->tensor);
    free(it->copy);
    free(it->sources);
    mci_digest_free(it->running);
}

static void free_thens(mci_then *t) {
    while (t) {
        mci_then *next = t->next;
        free(t->path);
        free(t->text);
        free(t);
        t = next;
    }
}

void mci_writer_free(mc_h5_writer *w) {
    /* a child of fork shares the file in memory with its parent, who may go on with it */
    if (w->out && w->file.owner == getpid()) w->api->abandon(w->out);
    if (w->memory >= 0) close(w->memory);
    mci_newfile_discard(&w->file);
    mci_journal_close(w->journal);
    for (int64_t i = 0; i < w->n; i++) free_item(&w->items[i]);
    free(w->items);
    free(w->jobs);
    mci_views_free(&w->views);
    free(w->sources);
    mci_moments_free(&w->moments);
    mci_snapshot_free(w->block, w->block_size);
    free_thens(w->points);
    free_thens(w->removals);
    free(w->failure);
    free(w->message);
    free(w);
}

/* The file that libhdf5 works on, in memory. */
static mc_status open_memory(mc_h5_writer *w) {
    char name[40];
    w->memory = memfd_create("mascon", MFD_CLOEXEC);
    if (w->memory < 0) return mci_os_failure(w->file.name, "cannot make a file in memory: ", errno);
    snprintf(name, sizeof name, "/proc/self/fd/%d", w->memory);
    if (access(name, F_OK) != 0)
        return mci_fail(MC_EUNSUPPORTED, "%s: writing HDF5 files needs /proc, which is not there",
                        w->file.name);
    return w->api->create(&w->out, name, w->file.name);
}

static mc_status create(mc_h5_writer **out, const char *path, const char *key) {
    const mci_hdf5_api *api = mci_hdf5();
    if (!api) return MC_EUNSUPPORTED;
    mc_h5_writer *w = calloc(1, sizeof *w);
    if (!w) return mci_os_failure(path, "", ENOMEM);
    w->api = api;
    w->memory = w->file.fd = -1;
    int64_t swept;
    mc_status status;
    if (key) {
        int fresh = 1;
        status = mci_newfile_open_partial(&w->file, path);
        if (status == MC_OK) status = mci_journal_open(&w->journal, &w->file, key, &fresh);
        /* what an earlier process left: nothing, or not yet a file that anybody can open */
        int error = 0;
        if (status == MC_OK && fresh) error = ftruncate(w->file.fd, 0) == 0 ? 0 : errno;
        if (status == MC_OK && !fresh) error = mci_pwrite(w->file.fd, "\0\0\0\0\0\0\0", 8, 0);
        if (error != 0) status = mci_os_failure(path, "", error);
    } else {
        mci_newfile_sweep(path, &swept); /* leftovers do no harm but fill the disk */
        status = mci_newfile_open(&w->file, path);
    }
    if (status == MC_OK) status = open_memory(w);
    if (status != MC_OK) {
        mc_h5_discard(w);
        return status;
    }
    *out = w;
    return MC_OK;
}

mc_status mc_h5_create(mc_h5_writer **out, const char *path) {
    if (!out) return mci_fail(MC_EINVAL, "h5_create: no place for the writer");
    *out = NULL;
    if (!path || !*path) return mci_fail(MC_EINVAL, "h5_create: no path");
    return create(out, path, NULL);
}

mc_status mc_h5_create_resumable(mc_h5_writer **out, const char *path, const char *key) {
    if (!out) return mci_fail(MC_EINVAL, "h5_create_resumable: no place for the writer");
    *out = NULL;
    if (!path || !*path) return mci_fail(MC_EINVAL, "h5_create_resumable: no path");
    if (!key) return mci_fail(MC_EINVAL, "h5_create_resumable: %s: no key", path);
    return create(out, path, key);
}

/* -- checks ------------------------------------------------------------------------------------ */

mc_status mci_writer_noted(mc_h5_writer *w, mc_status status) {
    if (status != MC_OK && w->failed == MC_OK) {
        w->failed = status;
        w->failure = strdup(mc_last_error());
    }
    return status;
}

mc_status mci_writer_usable(const mc_h5_writer *w, const char *op) {
    if (!w) return mci_fail(MC_EINVAL, "%s: no writer", op);
    if (w->file.owner != getpid())
        return mci_fail(MC_EINVAL, "%s: %s: the writer belongs to the process that made it", op,
                        w->file.name);
    if (w->started) return mci_fail(MC_EINVAL, "%s: %s: its commit has begun", op, w->file.name);
    return MC_OK;
}

static mc_status check_path(const mc_h5_writer *w, const char *op, const char *path) {
    const char *file = w->file.name;
    if (!path || path[0] != '/')
        return mci_fail(MC_EINVAL, "%s: %s: '%s' does not begin with '/'", op, file,
                        path ? path : "");
    size_t length = strlen(path);
    if (length >= MCI_H5_MAX_PATH)
        return mci_fail(MC_EINVAL, "%s: %s: a path of %zu bytes; at most %d are wanted", op, file,
                        length, MCI_H5_MAX_PATH - 1);
    if (length == 1) return MC_OK;
    int depth = 0;
    for (const char *p = path; *p == '/'; depth++) {
        const char *part = p + 1;
        p = part + strcspn(part, "/");
        if (p == part || (p == part + 1 && *part == '.'))
            return mci_fail(MC_EINVAL, "%s: %s: '%s' has a part '%.*s', which is no name", op, file,
                            path, (int)(p - part), part);
    }
    if (depth > MCI_H5_MAX_DEPTH)
        return mci_fail(MC_EINVAL, "%s: %s: '%s' has %d parts; at most %d are wanted", op, file,
                        path, depth, MCI_H5_MAX_DEPTH);
    return MC_OK;
}

mc_status mci_writer_check_leaf(const mc_h5_writer *w, const char *op, const char *path) {
    mc_status status = check_path(w, op, path);
    if (status == MC_OK && path[1] == '\0')
        return mci_fail(MC_EINVAL, "%s: %s: '/' is a group", op, w->file.name);
    return status;
}

/* -- groups and datasets ----------------------------------------------------------------------- */

mc_status mc_h5_group(mc_h5_writer *w, const char *path) {
    mc_status status = mci_writer_usable(w, "h5_group");
    if (status != MC_OK) return status;
    status = check_path(w, "h5_group", path);
    if (status == MC_OK) status = mci_views_settle(w, path);
    if (status == MC_OK) status = w->api->group(w->out, path);
    return mci_writer_noted(w, status);
}

/* What the structure says at first: of small items their digest, for hashing them twice costs less
 * than opening them at commit to change it; else zeros. */
static void guess_digest(mci_item *it, int64_t bytes) {
    const void *host = it->copy;
    if (it->tensor && mc_tensor_device(it->tensor) == 0) host = mc_tensor_data(it->tensor);
    char digest[MCI_DIGEST_TEXT] = "";
    memset(it->said, '0', MCI_DIGEST_TEXT - 1);
    if (bytes == 0 || (host && bytes <= HASHED_FIRST)) mci_digest_bytes(host, bytes, digest);
    if (*digest) memcpy(it->said, digest, sizeof digest);
}

/* Makes the dataset and takes over the item, also when it fails. shape has it->ndim sizes. */
static mc_status add_item(mc_h5_writer *w, mci_item *it, const int64_t *shape) {
    mc_status status = MC_OK;
    if (w->n == w->room) {
        int64_t more = w->room ? w->room * 2 : 64;
        mci_item *items = realloc(w->items, (size_t)more * sizeof *items);
        if (items) w->items = items;
        mci_write_job *jobs = realloc(w->jobs, (size_t)more * sizeof *jobs);
        if (jobs) w->jobs = jobs;
        if (items && jobs) w->room = more;
    }
    it->numel = 1;
    for (int i = 0; i < it->ndim; i++) it->numel *= it->shape[i] = shape[i];
    mci_write_job job = {.bytes = it->numel * mc_dtype_size(it->dtype), .offset = -1};
    if (w->n == w->room || !it->path || (!it->tensor && !it->copy && !it->in_parts))
        status = mci_os_failure(w->file.name, "", ENOMEM);
    if (status == MC_OK) {
        guess_digest(it, job.bytes);
        status = mci_views_settle(w, it->path);
    }
    if (status == MC_OK)
        status =
            w->api->dataset(w->out, it->path, it->dtype, it->ndim, shape, it->said, &job.offset);
    if (status != MC_OK) {
        free_item(it);
        return status;
    }
    w->items[w->n] = *it;
    w->jobs[w->n++] = job;
    return MC_OK;
}

static mc_status check_tensor(const mc_h5_writer *w, const char *op, const char *path,
                              const mc_tensor *t) {
    if (!mc_tensor_defined(t))
        return mci_fail(MC_EINVAL, "%s: %s: '%s': the tensor is empty", op, w->file.name, path);
    if (!mc_tensor_is_contiguous(t))
        return mci_fail(MC_EINVAL, "%s: %s: '%s': the tensor is not contiguous", op, w->file.name,
                        path);
    return MC_OK;
}

mc_status mc_h5_tensor(mc_h5_writer *w, const char *path, const mc_tensor *t) {
    mc_status status = mci_writer_usable(w, "h5_tensor");
    if (status != MC_OK) return status;
    status = mci_writer_check_leaf(w, "h5_tensor", path);
    if (status == MC_OK) status = check_tensor(w, "h5_tensor", path, t);
    if (status != MC_OK) return mci_writer_noted(w, status);
    mci_item it = {.path = strdup(path),
                   .tensor = mc_tensor_new(),
                   .dtype = mc_tensor_dtype(t),
                   .ndim = mc_tensor_ndim(t)};
    if (it.tensor) status = mc_alias(it.tensor, t);
    if (status != MC_OK) {
        free_item(&it);
        return mci_writer_noted(w, status);
    }
    return mci_writer_noted(w, add_item(w, &it, mc_tensor_shape(t)));
}

mc_status mc_h5_bytes(mc_h5_writer *w, const char *path, const void *data, int64_t n) {
    mc_status status = mci_writer_usable(w, "h5_bytes");
    if (status != MC_OK) return status;
    status = mci_writer_check_leaf(w, "h5_bytes", path);
    if (status == MC_OK && (n < 0 || (n > 0 && !data)))
        status = mci_fail(MC_EINVAL, "h5_bytes: %s: '%s': no data, or a length of %lld",
                          w->file.name, path, (long long)n);
    if (status != MC_OK) return mci_writer_noted(w, status);
    mci_item it = {
        .path = strdup(path), .copy = malloc((size_t)n + 1), .dtype = MC_UINT8, .ndim = 1};
    if (it.copy && n > 0) memcpy(it.copy, data, (size_t)n);
    return mci_writer_noted(w, add_item(w, &it, &n));
}

mc_status mc_h5_link(mc_h5_writer *w, const char *path, const char *target) {
    mc_status status = mci_writer_usable(w, "h5_link");
    if (status != MC_OK) return status;
    status = mci_writer_check_leaf(w, "h5_link", path);
    if (status == MC_OK) status = mci_writer_check_leaf(w, "h5_link", target);
    if (status == MC_OK) status = mci_views_settle(w, path);
    if (status == MC_OK) status = mci_views_settle(w, target);
    if (status == MC_OK) status = w->api->link(w->out, path, target);
    w->links += status == MC_OK;
    return mci_writer_noted(w, status);
}

/* -- datasets in parts ------------------------------------------------------------------------- */

mc_status mc_h5_dataset(mc_h5_writer *w, const char *path, int dtype, int ndim,
                        const int64_t *shape, int64_t *index) {
    static const char op[] = "h5_dataset";
    mc_status status = mci_writer_usable(w, op);
    if (status != MC_OK) return status;
    const char *file = w->file.name;
    status = mci_writer_check_leaf(w, op, path);
    if (status != MC_OK) return mci_writer_noted(w, status);
    if (!index)
        return mci_writer_noted(w, mci_fail(MC_EINVAL, "%s: %s: no place for the index", op, file));
    *index = -1;
    if (dtype < 0 || dtype >= MC_DTYPE_COUNT)
        return mci_writer_noted(
            w, mci_fail(MC_EINVAL, "%s: %s: '%s': there is no dtype %d", op, file, path, dtype));
    if (ndim < 0 || ndim > MC_MAX_DIMS || (ndim > 0 && !shape))
        return mci_writer_noted(w, mci_fail(MC_EINVAL, "%s: %s: '%s': %d axes; 0 to %d are wanted",
                                            op, file, path, ndim, MC_MAX_DIMS));
    int64_t bytes = mc_dtype_size(dtype);
    int fits = 1;
    for (int i = 0; i < ndim; i++) {
        fits &=
            shape[i] >= 0 && !__builtin_mul_overflow(bytes, shape[i] > 0 ? shape[i] : 1, &bytes);
    }
    /* no file system holds more, and libhdf5 adds offsets to it */
    if (!fits || bytes > INT64_MAX / 4)
        return mci_writer_noted(
            w,
            mci_fail(MC_EINVAL, "%s: %s: '%s': a size is negative or too large", op, file, path));
    mci_item it = {.path = strdup(path), .in_parts = 1, .dtype = dtype, .ndim = ndim};
    status = add_item(w, &it, shape);
    if (status == MC_OK) *index = w->n - 1;
    return mci_writer_noted(w, status);
}

/* Item `index` when n more elements of `dtype` fit into it. */
static mc_status check_part(mc_h5_writer *w, const char *op, int64_t index, mci_item **out) {
    if (index < 0 || index >= w->n || !w->items[index].in_parts)
        return mci_fail(MC_EINVAL, "%s: %s: no dataset %lld (0-based) that takes parts", op,
                        w->file.name, (long long)index);
    *out = &w->items[index];
    return MC_OK;
}

static mc_status check_fit(const mc_h5_writer *w, const char *op, const mci_item *it, int dtype,
                           int64_t n) {
    if (dtype != it->dtype)
        return mci_fail(MC_EINVAL, "%s: %s: '%s': a part of %s came, %s is wanted", op,
                        w->file.name, it->path, mc_dtype_name(dtype), mc_dtype_name(it->dtype));
    if (n > it->numel - it->come)
        return mci_fail(MC_EINVAL,
                        "%s: %s: '%s': %lld elements have come and %lld more came now, of %lld "
                        "that are wanted",
                        op, w->file.name, it->path, (long long)it->come, (long long)n,
                        (long long)it->numel);
    return MC_OK;
}

/* The next n bytes of an item that is written at once. */
static mc_status put(mc_h5_writer *w, mci_item *it, int64_t at, const char *src, int64_t n) {
    const mci_write_job *job = &w->jobs[it - w->items];
    int error = 0;
    mci_digest_update(it->running, src, n);
    if (n > 0) error = mci_pwrite(w->file.fd, src, n, job->offset + at);
    if (error == 0) return MC_OK;
    char what[MCI_H5_MAX_PATH + 32];
    snprintf(what, sizeof what, "cannot write '%s': ", it->path);
    return mci_os_failure(w->file.name, what, error);
}

/* A stretch of a file, likewise. */
static mc_status put_file(mc_h5_writer *w, mci_item *it, int64_t at, const mci_source *s) {
    char *piece = malloc(PIECE), digest[MCI_DIGEST_TEXT];
    mci_digest *own = mci_digest_new();
    mc_status status = piece && own ? MC_OK : mci_os_failure(w->file.name, "", ENOMEM);
    for (int64_t done = 0; done < s->bytes && status == MC_OK; done += PIECE) {
        int64_t n = s->bytes - done < PIECE ? s->bytes - done : PIECE;
        status = mci_h5_fetch(s->file, s->entry, s->first + done, n, piece);
        if (status != MC_OK) break;
        mci_digest_update(own, piece, n);
        status = put(w, it, at + done, piece, n);
    }
    if (status == MC_OK) mci_digest_text(own, digest);
    if (status == MC_OK && s->digest && strcmp(digest, s->digest) != 0)
        status = mci_fail(MC_EFORMAT,
                          "%s: '%s': the source is damaged: its bytes do not match their "
                          "digest",
                          w->file.name, it->path);
    mci_digest_free(own);
    free(piece);
    return status;
}

/* From here on the item is written at once: begins with what is remembered of it. */
static mc_status write_at_once(mc_h5_writer *w, mci_item *it) {
    if (it->running) return MC_OK;
    int64_t size = 0, at = 0, index = it - w->items;
    if (w->jobs[index].offset + w->jobs[index].bytes > w->claimed) {
        mc_status status = w->api->size(w->out, &size);
        if (status != MC_OK) return status;
        int error = mci_claim(w->file.fd, size);
        if (error != 0) return mci_os_failure(w->file.name, "", error);
        w->claimed = size;
    }
    it->running = mci_digest_new();
    if (!it->running) return mci_os_failure(w->file.name, "", ENOMEM);
    for (int64_t i = 0; i < it->n_sources; i++) {
        mc_status status = put_file(w, it, at, &it->sources[i]);
        if (status != MC_OK) return status;
        at += it->sources[i].bytes;
    }
    it->n_sources = 0;
    return MC_OK;
}

/* A part from another device, in pieces. */
static mc_status put_device(mc_h5_writer *w, mci_item *it, int64_t at, const mc_tensor *t) {
    int64_t size = mc_dtype_size(it->dtype), step = PIECE / size, n = mc_tensor_numel(t), one = 1;
    char *piece = malloc(PIECE);
    mc_tensor *view = mc_tensor_new();
    mc_status status = piece && view ? MC_OK : mci_os_failure(w->file.name, "", ENOMEM);
    for (int64_t done = 0; done < n && status == MC_OK; done += step) {
        int64_t count = n - done < step ? n - done : step;
        mc_tensor_release(view);
        status = mc_as_strided(view, t, 1, &count, &one, done);
        if (status == MC_OK) status = mc_read(view, piece, count * size);
        if (status == MC_OK) status = put(w, it, at + done * size, piece, count * size);
    }
    mc_tensor_free(view);
    free(piece);
    return status;
}

mc_status mc_h5_part(mc_h5_writer *w, int64_t index, const mc_tensor *t) {
    static const char op[] = "h5_part";
    mci_item *it = NULL;
    mc_status status = mci_writer_usable(w, op);
    if (status != MC_OK) return status;
    status = check_part(w, op, index, &it);
    if (status == MC_OK) status = check_tensor(w, op, it->path, t);
    if (status == MC_OK) status = check_fit(w, op, it, mc_tensor_dtype(t), mc_tensor_numel(t));
    if (status == MC_OK) status = write_at_once(w, it);
    if (status != MC_OK) return mci_writer_noted(w, status);
    int64_t size = mc_dtype_size(it->dtype), at = it->come * size, n = mc_tensor_numel(t) * size;
    if (mc_tensor_device(t) != 0)
        status = put_device(w, it, at, t);
    else
        status = put(w, it, at, mc_tensor_data(t), n);
    if (status == MC_OK) it->come += mc_tensor_numel(t);
    return mci_writer_noted(w, status);
}

/* The digest that a whole dataset of our own dialect says it has, or NULL. */
static const char *said_digest(const mc_h5_file *f, const mc_h5_entry *e) {
    for (int32_t i = 0; mc_h5_is_own(f) && i < e->n_attrs; i++) {
        const mc_h5_attr *a = mc_h5_get_attr(f, e->first_attr + i);
        if (strcmp(a->name, "digest") == 0 && a->kind == MC_H5_STRING &&
            a->size == MCI_DIGEST_TEXT - 1 &&
            strspn(a->s, "0123456789abcdef") == MCI_DIGEST_TEXT - 1)
            return a->s;
    }
    return NULL;
}

static mc_status add_source(mc_h5_writer *w, mci_item *it, const mci_source *s) {
    if (it->n_sources == it->room) {
        int64_t more = it->room ? it->room * 2 : 1;
        mci_source *sources = realloc(it->sources, (size_t)more * sizeof *sources);
        if (!sources) return mci_os_failure(w->file.name, "", ENOMEM);
        it->sources = sources;
        it->room = more;
    }
    it->sources[it->n_sources++] = *s;
    return MC_OK;
}

mc_status mc_h5_part_file(mc_h5_writer *w, int64_t index, mc_h5_file *f, int64_t entry,
                          int64_t first, int64_t n) {
    static const char op[] = "h5_part_file";
    mci_item *it = NULL;
    mc_status status = mci_writer_usable(w, op);
    if (status != MC_OK) return status;
    status = check_part(w, op, index, &it);
    if (status != MC_OK) return mci_writer_noted(w, status);
    const mc_h5_entry *e = mc_h5_get(f, entry);
    if (!e || e->kind != MC_H5_DATASET)
        return mci_writer_noted(w, mci_fail(MC_EINVAL,
                                            "%s: %s: '%s': no file, or entry %lld (0-based) of it "
                                            "is no dataset",
                                            op, w->file.name, it->path, (long long)entry));
    if (e->problem)
        return mci_writer_noted(w, mci_fail(MC_EFORMAT, "%s: %s: '%s': '%s' cannot be read: %s", op,
                                            w->file.name, it->path, e->path, e->problem));
    int64_t size = mc_dtype_size(it->dtype), all = 0;
    status = check_fit(w, op, it, e->dtype, n);
    if (status == MC_OK) all = e->bytes / size;
    if (status == MC_OK && (n < 0 || first < 0 || first > all || n > all - first))
        status = mci_fail(MC_EINVAL,
                          "%s: %s: '%s': '%s' has %lld elements, wanted are %lld from %lld "
                          "(0-based)",
                          op, w->file.name, it->path, e->path, (long long)all, (long long)n,
                          (long long)first);
    if (status != MC_OK || n == 0) return mci_writer_noted(w, status);
    mci_source s = {.file = f,
                    .entry = entry,
                    .first = first * size,
                    .bytes = n * size,
                    .digest = n == all ? said_digest(f, e) : NULL};
    status = it->running ? put_file(w, it, it->come * size, &s) : add_source(w, it, &s);
    if (status == MC_OK) it->come += n;
    return mci_writer_noted(w, status);
}

mc_status mci_writer_gather(mc_h5_writer *w) {
    int64_t n = 0;
    for (int64_t i = 0; i < w->n; i++) {
        const mci_item *it = &w->items[i];
        if (it->in_parts && it->come != it->numel)
            return mci_fail(MC_EINVAL,
                            "h5_part: %s: '%s': %lld elements have come, of %lld that "
                            "are wanted",
                            w->file.name, it->path, (long long)it->come, (long long)it->numel);
        n += it->in_parts ? it->n_sources : 1;
    }
    w->sources = malloc((size_t)(n + 1) * sizeof *w->sources);
    if (!w->sources) return mci_os_failure(w->file.name, "", ENOMEM);
    w->n_sources = n;
    mci_source *s = w->sources;
    for (int64_t i = 0; i < w->n; i++) {
        mci_item *it = &w->items[i];
        mci_write_job *job = &w->jobs[i];
        job->sources = s;
        job->n_sources = it->in_parts ? it->n_sources : 1;
        if (it->in_parts && it->n_sources > 0)
            memcpy(s, it->sources, (size_t)it->n_sources * sizeof *s);
        else if (!it->in_parts)
            *s = (mci_source){.host = it->copy, .tensor = it->tensor, .bytes = job->bytes};
        if (it->running) mci_digest_text(it->running, job->digest);
        job->done = it->running != NULL;
        w->total += job->bytes;
        s += job->n_sources;
    }
    return MC_OK;
}

/* -- attributes -------------------------------------------------------------------------------- */

static mc_status put_attr(mc_h5_writer *w, const char *op, const char *path,
                          const mc_h5_attr *attr) {
    mc_status status = mci_writer_usable(w, op);
    if (status != MC_OK) return status;
    status = check_path(w, op, path);
    if (status == MC_OK &&
        (!attr->name || !*attr->name || strlen(attr->name) > MCI_H5_MAX_ATTR_NAME))
        status = mci_fail(MC_EINVAL, "%s: %s: '%s': an attribute's name has 1 to %d bytes", op,
                          w->file.name, path, MCI_H5_MAX_ATTR_NAME);
    if (status == MC_OK) status = mci_views_settle(w, path);
    if (status == MC_OK) status = w->api->attr(w->out, path, attr);
    return mci_writer_noted(w, status);
}

mc_status mc_h5_attr_int(mc_h5_writer *w, const char *path, const char *name, int64_t value) {
    mc_h5_attr attr = {.name = name, .kind = MC_H5_INT, .i = value};
    return put_attr(w, "h5_attr_int", path, &attr);
}

mc_status mc_h5_attr_double(mc_h5_writer *w, const char *path, const char *name, double value) {
    /* NaN differs in sign between one that was computed and one that was read as text */
    mc_h5_attr attr = {.name = name, .kind = MC_H5_DOUBLE, .d = isnan(value) ? (double)NAN : value};
    return put_attr(w, "h5_attr_double", path, &attr);
}

mc_status mc_h5_attr_bool(mc_h5_writer *w, const char *path, const char *name, int value) {
    mc_h5_attr attr = {.name = name, .kind = MC_H5_BOOL, .i = value != 0};
    return put_attr(w, "h5_attr_bool", path, &attr);
}

mc_status mc_h5_attr_string(mc_h5_writer *w, const char *path, const char *name, const char *value,
                            int64_t n) {
    static const char op[] = "h5_attr_string";
    mc_status status = mci_writer_usable(w, op);
    if (status != MC_OK) return status;
    const char *file = w->file.name, *of = path ? path : "", *called = name ? name : "";
    if (n < 0 || (n > 0 && !value))
        return mci_writer_noted(
            w, mci_fail(MC_EINVAL, "%s: %s: no text, or a length of %lld", op, file, (long long)n));
    if (n > MCI_H5_MAX_ATTR_BYTES)
        return mci_writer_noted(
            w, mci_fail(MC_EINVAL,
                        "%s: %s: '%s' of '%s' has %lld bytes; an attribute holds %d, "
                        "longer text belongs in a dataset",
                        op, file, called, of, (long long)n, MCI_H5_MAX_ATTR_BYTES));
    /* the padding is NUL, so a reader could not tell where the text ends */
    if (n > 0 && value[n - 1] == '\0')
        return mci_writer_noted(
            w, mci_fail(MC_EINVAL,
                        "%s: %s: '%s' of '%s' ends in a NUL byte; such text belongs in a "
                        "dataset",
                        op, file, called, of));
    mc_h5_attr attr = {.name = name, .kind = MC_H5_STRING, .size = (int32_t)n, .s = value};
    return put_attr(w, op, path, &attr);
}
