/* commit.c: writing a file whole or not at all.
 *
 * Everything goes to a temporary file in the same folder, "<path>.tmp-<process>-<n>". The plugin
 * makes the structure while tensors are only remembered; commit then claims the whole size on the
 * disk, lets threads write and hash the bytes at the offsets the plugin gave, puts the digests in,
 * closes, and only when all of that and fsync went well renames the file over `path` and syncs the
 * folder. A killed writer leaves a file that is marked as open for write, under a name nobody
 * reads; any failure removes it and leaves an old file at `path` as it was.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/bytes.h"
#include "io/h5.h"
#include "status.h"

/* A dataset whose bytes are to come. */
typedef struct item {
    char *path;
    mc_tensor *tensor; /* own handle: the caller's may be released before commit; or NULL */
    void *copy;        /* or own bytes */
} item;

struct mc_h5_writer {
    const mci_hdf5_api *api;
    mci_h5_out *out;
    int fd; /* of the temporary file, beside libhdf5's own */
    char *path, *temp, *folder;
    item *items; /* jobs[i] is where items[i] goes */
    mci_write_job *jobs;
    int64_t n, room;
    char *failure; /* message of the first failed call; the file cannot be committed then */
    mc_status failed;
};

/* -- the temporary file ------------------------------------------------------------------------ */

static mc_status os_failure(const char *path, const char *what, int error) {
    char text[128];
    mci_io_reason(error, text, sizeof text);
    return mci_fail(error == ENOMEM ? MC_ENOMEM : MC_EIO, "%s: %s%s", path, what, text);
}

static mc_status open_temp(mc_h5_writer *w) {
    static atomic_int counter;
    struct stat st;
    int there = stat(w->path, &st) == 0;
    /* rename would say so too, after all the work */
    if (there && !S_ISREG(st.st_mode))
        return mci_fail(MC_EIO, "%s: it is %s", w->path,
                        S_ISDIR(st.st_mode) ? "a folder" : "there already and no regular file");
    /* rename asks the folder only */
    if (there && ((st.st_mode & 0222) == 0 || access(w->path, W_OK) != 0))
        return mci_fail(MC_EIO, "%s: it is write-protected", w->path);
    size_t room = strlen(w->path) + 48;
    char *name = malloc(room);
    if (!name) return os_failure(w->path, "", ENOMEM);
    int error = EEXIST;
    /* a name may be left of a killed process that had our number */
    for (int tries = 0; tries < 1000 && (error == EEXIST || error == EINTR); tries++) {
        snprintf(name, room, "%s.tmp-%ld-%d", w->path, (long)getpid(),
                 atomic_fetch_add(&counter, 1));
        w->fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        error = w->fd < 0 ? errno : 0;
    }
    if (error != 0) {
        free(name);
        return os_failure(w->path, "cannot create a file in its folder: ", error);
    }
    w->temp = name;                              /* from here on there is something to remove */
    if (there) fchmod(w->fd, st.st_mode & 0777); /* where the file system has permissions */
    /* A full disk is met here, and in commit, before libhdf5 writes: it survives that badly. */
    error = mci_claim(w->fd, 4096);
    return error == 0 ? MC_OK : os_failure(w->path, "", error);
}

static int sync_fd(int fd) {
    while (fsync(fd) != 0) {
        if (errno != EINTR) return errno;
    }
    return 0;
}

/* Down to the disk, then to its name, then the name down to the disk. */
static mc_status publish(mc_h5_writer *w) {
    int error = sync_fd(w->fd);
    int fd = w->fd;
    w->fd = -1;
    if (error != 0) {
        close(fd);
        return os_failure(w->path, "cannot bring it to the disk: ", error);
    }
    /* close may report what a network file system kept back */
    if (close(fd) != 0 && errno != EINTR)
        return os_failure(w->path, "cannot close the file: ", errno);
    int folder = open(w->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return os_failure(w->path, "cannot open its folder: ", errno);
    if (rename(w->temp, w->path) != 0) {
        error = errno;
        close(folder);
        return os_failure(w->path, "cannot give the file its name: ", error);
    }
    free(w->temp);
    w->temp = NULL;
    error = sync_fd(folder);
    close(folder);
    /* some file systems cannot sync folders and need not */
    if (error != 0 && error != EINVAL && error != ENOTSUP)
        return os_failure(w->path, "the file is in place, but its folder did not sync: ", error);
    return MC_OK;
}

/* -- the writer -------------------------------------------------------------------------------- */

/* Removes what is left: everything after a failure, nothing after publish. */
static void writer_free(mc_h5_writer *w) {
    if (w->out) w->api->abandon(w->out);
    if (w->fd >= 0) close(w->fd);
    if (w->temp) unlink(w->temp);
    for (int64_t i = 0; i < w->n; i++) {
        free(w->items[i].path);
        mc_tensor_free(w->items[i].tensor);
        free(w->items[i].copy);
    }
    free(w->items);
    free(w->jobs);
    free(w->failure);
    free(w->temp);
    free(w->folder);
    free(w->path);
    free(w);
}

void mc_h5_discard(mc_h5_writer *w) {
    if (!w) return;
    char *message = strdup(mc_last_error()); /* closing may fail too; the first failure counts */
    writer_free(w);
    if (message) mci_fail(MC_OK, "%s", message);
    free(message);
}

mc_status mc_h5_create(mc_h5_writer **out, const char *path) {
    if (!out) return mci_fail(MC_EINVAL, "h5_create: no place for the writer");
    *out = NULL;
    if (!path || !*path) return mci_fail(MC_EINVAL, "h5_create: no path");
    const mci_hdf5_api *api = mci_hdf5();
    if (!api) return MC_EUNSUPPORTED;
    mc_h5_writer *w = calloc(1, sizeof *w);
    if (!w) return os_failure(path, "", ENOMEM);
    w->api = api;
    w->fd = -1;
    w->path = strdup(path);
    w->folder = strdup(path);
    mc_status status = w->path && w->folder ? MC_OK : os_failure(path, "", ENOMEM);
    if (status == MC_OK) {
        char *slash = strrchr(w->folder, '/');
        if (!slash)
            strcpy(w->folder, "."); /* a path has one byte at least */
        else
            slash[slash == w->folder] = '\0';
        status = open_temp(w);
    }
    if (status == MC_OK) status = api->create(&w->out, w->temp, w->path);
    if (status != MC_OK) {
        mc_h5_discard(w);
        return status;
    }
    *out = w;
    return MC_OK;
}

/* Remembers a failed call: what is written so far may be half of something. */
static mc_status noted(mc_h5_writer *w, mc_status status) {
    if (status != MC_OK && w->failed == MC_OK) {
        w->failed = status;
        w->failure = strdup(mc_last_error());
    }
    return status;
}

static mc_status check_path(const mc_h5_writer *w, const char *op, const char *path) {
    if (!w) return mci_fail(MC_EINVAL, "%s: no writer", op);
    if (!path || path[0] != '/')
        return mci_fail(MC_EINVAL, "%s: %s: '%s' does not begin with '/'", op, w->path,
                        path ? path : "");
    size_t length = strlen(path);
    if (length >= MCI_H5_MAX_PATH)
        return mci_fail(MC_EINVAL, "%s: %s: a path of %zu bytes; at most %d are wanted", op,
                        w->path, length, MCI_H5_MAX_PATH - 1);
    if (length == 1) return MC_OK;
    int depth = 0;
    for (const char *p = path; *p == '/'; depth++) {
        const char *part = p + 1;
        p = part + strcspn(part, "/");
        if (p == part || (p == part + 1 && *part == '.'))
            return mci_fail(MC_EINVAL, "%s: %s: '%s' has a part '%.*s', which is no name", op,
                            w->path, path, (int)(p - part), part);
    }
    if (depth > MCI_H5_MAX_DEPTH)
        return mci_fail(MC_EINVAL, "%s: %s: '%s' has %d parts; at most %d are wanted", op, w->path,
                        path, depth, MCI_H5_MAX_DEPTH);
    return MC_OK;
}

/* The same for a path that must not be the root. */
static mc_status check_leaf(const mc_h5_writer *w, const char *op, const char *path) {
    mc_status status = check_path(w, op, path);
    if (status == MC_OK && path[1] == '\0')
        return mci_fail(MC_EINVAL, "%s: %s: '/' is a group", op, w->path);
    return status;
}

mc_status mc_h5_group(mc_h5_writer *w, const char *path) {
    mc_status status = check_path(w, "h5_group", path);
    if (!w) return status;
    if (status == MC_OK) status = w->api->group(w->out, path);
    return noted(w, status);
}

/* Makes the dataset and takes over the item, also when it fails. */
static mc_status add_item(mc_h5_writer *w, item it, int dtype, int ndim, const int64_t *shape,
                          int64_t bytes) {
    mc_status status = MC_OK;
    if (w->n == w->room) {
        int64_t more = w->room ? w->room * 2 : 64;
        item *items = realloc(w->items, (size_t)more * sizeof *items);
        if (items) w->items = items;
        mci_write_job *jobs = realloc(w->jobs, (size_t)more * sizeof *jobs);
        if (jobs) w->jobs = jobs;
        if (items && jobs) w->room = more;
    }
    mci_write_job job = {.tensor = it.tensor, .host = it.copy, .bytes = bytes, .offset = -1};
    if (w->n == w->room || !it.path || (!it.tensor && !it.copy))
        status = os_failure(w->path, "", ENOMEM);
    if (status == MC_OK) status = w->api->dataset(w->out, it.path, dtype, ndim, shape, &job.offset);
    if (status != MC_OK) {
        free(it.path);
        mc_tensor_free(it.tensor);
        free(it.copy);
        return status;
    }
    w->items[w->n] = it;
    w->jobs[w->n++] = job;
    return MC_OK;
}

mc_status mc_h5_tensor(mc_h5_writer *w, const char *path, const mc_tensor *t) {
    mc_status status = check_leaf(w, "h5_tensor", path);
    if (!w) return status;
    if (status == MC_OK && !mc_tensor_defined(t))
        status = mci_fail(MC_EINVAL, "h5_tensor: %s: '%s': the tensor is empty", w->path, path);
    if (status == MC_OK && !mc_tensor_is_contiguous(t))
        status =
            mci_fail(MC_EINVAL, "h5_tensor: %s: '%s': the tensor is not contiguous", w->path, path);
    if (status != MC_OK) return noted(w, status);
    item it = {.path = strdup(path), .tensor = mc_tensor_new()};
    if (it.tensor) status = mc_alias(it.tensor, t);
    if (status != MC_OK) {
        free(it.path);
        mc_tensor_free(it.tensor);
        return noted(w, status);
    }
    int dtype = mc_tensor_dtype(t);
    int64_t bytes = mc_tensor_numel(t) * mc_dtype_size(dtype);
    return noted(w, add_item(w, it, dtype, mc_tensor_ndim(t), mc_tensor_shape(t), bytes));
}

mc_status mc_h5_bytes(mc_h5_writer *w, const char *path, const void *data, int64_t n) {
    mc_status status = check_leaf(w, "h5_bytes", path);
    if (!w) return status;
    if (status == MC_OK && (n < 0 || (n > 0 && !data)))
        status = mci_fail(MC_EINVAL, "h5_bytes: %s: '%s': no data, or a length of %lld", w->path,
                          path, (long long)n);
    if (status != MC_OK) return noted(w, status);
    item it = {.path = strdup(path), .copy = malloc((size_t)n + 1)};
    if (it.copy && n > 0) memcpy(it.copy, data, (size_t)n);
    return noted(w, add_item(w, it, MC_UINT8, 1, &n, n));
}

mc_status mc_h5_link(mc_h5_writer *w, const char *path, const char *target) {
    mc_status status = check_leaf(w, "h5_link", path);
    if (!w) return status;
    if (status == MC_OK) status = check_leaf(w, "h5_link", target);
    if (status == MC_OK) status = w->api->link(w->out, path, target);
    return noted(w, status);
}

/* -- attributes -------------------------------------------------------------------------------- */

static mc_status put_attr(mc_h5_writer *w, const char *op, const char *path,
                          const mc_h5_attr *attr) {
    mc_status status = check_path(w, op, path);
    if (!w) return status;
    if (status == MC_OK &&
        (!attr->name || !*attr->name || strlen(attr->name) > MCI_H5_MAX_ATTR_NAME))
        status = mci_fail(MC_EINVAL, "%s: %s: '%s': an attribute's name has 1 to %d bytes", op,
                          w->path, path, MCI_H5_MAX_ATTR_NAME);
    if (status == MC_OK) status = w->api->attr(w->out, path, attr);
    return noted(w, status);
}

mc_status mc_h5_attr_int(mc_h5_writer *w, const char *path, const char *name, int64_t value) {
    mc_h5_attr attr = {.name = name, .kind = MC_H5_INT, .i = value};
    return put_attr(w, "h5_attr_int", path, &attr);
}

mc_status mc_h5_attr_double(mc_h5_writer *w, const char *path, const char *name, double value) {
    mc_h5_attr attr = {.name = name, .kind = MC_H5_DOUBLE, .d = value};
    return put_attr(w, "h5_attr_double", path, &attr);
}

mc_status mc_h5_attr_bool(mc_h5_writer *w, const char *path, const char *name, int value) {
    mc_h5_attr attr = {.name = name, .kind = MC_H5_BOOL, .i = value != 0};
    return put_attr(w, "h5_attr_bool", path, &attr);
}

mc_status mc_h5_attr_string(mc_h5_writer *w, const char *path, const char *name, const char *value,
                            int64_t n) {
    if (w && (n < 0 || (n > 0 && !value)))
        return noted(w, mci_fail(MC_EINVAL, "h5_attr_string: %s: no text, or a length of %lld",
                                 w->path, (long long)n));
    if (w && n > MCI_H5_MAX_ATTR_BYTES)
        return noted(w, mci_fail(MC_EINVAL,
                                 "h5_attr_string: %s: '%s' of '%s' has %lld bytes; an attribute "
                                 "holds %d, longer text belongs in a dataset",
                                 w->path, name ? name : "", path ? path : "", (long long)n,
                                 MCI_H5_MAX_ATTR_BYTES));
    /* the padding is NUL, so a reader could not tell where the text ends */
    if (w && n > 0 && value[n - 1] == '\0')
        return noted(w, mci_fail(MC_EINVAL,
                                 "h5_attr_string: %s: '%s' of '%s' ends in a NUL byte; such text "
                                 "belongs in a dataset",
                                 w->path, name ? name : "", path ? path : ""));
    mc_h5_attr attr = {.name = name, .kind = MC_H5_STRING, .size = (int32_t)n, .s = value};
    return put_attr(w, "h5_attr_string", path, &attr);
}

/* -- commit ------------------------------------------------------------------------------------ */

static mc_status write_all(mc_h5_writer *w) {
    if (w->failed != MC_OK)
        return mci_fail(w->failed, "%s: not saved, since a call before failed: %s", w->path,
                        w->failure ? w->failure : "");
    int64_t size = 0, failed = -1;
    mc_status status = w->api->size(w->out, &size);
    if (status != MC_OK) return status;
    int error = mci_claim(w->fd, size);
    if (error != 0) return os_failure(w->path, "", error);
    status = w->api->flush(w->out);
    if (status == MC_OK) status = mci_write_jobs(w->fd, w->jobs, w->n, &failed);
    if (status == MC_EIO && failed >= 0 && w->jobs[failed].error != 0) {
        char text[128];
        error = w->jobs[failed].error;
        mci_io_reason(error, text, sizeof text);
        return mci_fail(error == ENOMEM ? MC_ENOMEM : MC_EIO, "%s: cannot write '%s': %s", w->path,
                        w->items[failed].path, text);
    }
    for (int64_t i = 0; i < w->n && status == MC_OK; i++)
        status = w->api->digest(w->out, w->items[i].path, w->jobs[i].digest);
    if (status != MC_OK) return status;
    mci_h5_out *out = w->out;
    w->out = NULL;
    status = w->api->close(out);
    return status == MC_OK ? publish(w) : status;
}

mc_status mc_h5_commit(mc_h5_writer *w) {
    if (!w) return mci_fail(MC_EINVAL, "h5_commit: no writer");
    mc_status status = write_all(w);
    mc_h5_discard(w);
    return status;
}
