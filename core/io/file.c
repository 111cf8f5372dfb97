/* file.c: opening HDF5 files for reading, and the bytes of their datasets.
 *
 * The file is opened once, here; the reading helper (spawn.c, h5main.c) gets the descriptor and
 * sends a listing, which reply.c checks. So a save that renames a new file over the path meanwhile
 * changes nothing. Plain datasets come by pread from where the listing says they lie; what must be
 * decoded comes from the helper, which stays for that as long as the file is open.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/bytes.h"
#include "io/h5.h"
#include "prefetch.h"
#include "reply.h"
#include "scan.h"
#include "spawn.h"
#include "status.h"
#include "superblock.h"

enum {
    STAGE = 1 << 26,      /* bytes for another device, and for digests of decoded datasets */
    REPLY_BASE = 1 << 26, /* bytes of a listing: so many, */
    REPLY_MORE = 1 << 30, /* and as many as the file has, at most this */
    RECEIVE_FIRST = 1 << 18,
    LIST_SECONDS = 120,
    DECODE_SECONDS = 60 /* without a byte */
};
static const int64_t MEMORY_BASE = INT64_C(1) << 30, MEMORY_FILE = INT64_C(1) << 32;

struct mc_h5_file {
    int fd;
    char *path;    /* as the caller gave it */
    int64_t bytes; /* the file's length */
    int64_t decode_limit;
    mci_superblock superblock;
    mci_h5_table table;
    mci_prefetch *prefetch;
    pthread_mutex_t lock; /* of what follows */
    mci_child helper;
};

/* -- the helper -------------------------------------------------------------------------------- */

static mc_status bad_reply(mc_h5_file *f, const char *why) {
    mci_child_stop(&f->helper);
    if (why == mci_reply_no_memory) return mci_fail(MC_ENOMEM, "%s: out of memory", f->path);
    return mci_fail(MC_EFORMAT, "%s: the reading helper's reply makes no sense: %s", f->path, why);
}

/* Starts the helper and tells it its limits. */
static mc_status start_helper(mc_h5_file *f, double seconds) {
    mc_status status = mci_child_start(&f->helper, f->fd, f->path);
    if (status != MC_OK) return status;
    int64_t file = f->bytes < MEMORY_FILE ? f->bytes : MEMORY_FILE;
    mci_scan_start start = {.magic = MCI_SCAN_MAGIC,
                            .version = f->superblock.version,
                            .extended = f->superblock.extended,
                            .seconds = seconds < 1e6 ? (int32_t)seconds + 1 : 1000000,
                            .file_bytes = f->bytes,
                            .base = f->superblock.base,
                            .memory = MEMORY_BASE + 4 * file};
    int error = mci_child_send(&f->helper, &start, sizeof start);
    return error == 0 ? MC_OK : mci_child_failed(&f->helper, error, seconds, f->path);
}

/* The next header; one with a failure ends here with the helper's message. most: bytes that may
 * follow. */
static mc_status receive_header(mc_h5_file *f, mci_scan_header *header, int64_t most, int64_t until,
                                double seconds) {
    int error = mci_child_receive(&f->helper, header, sizeof *header, until);
    if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
    if (header->magic != MCI_SCAN_MAGIC) return bad_reply(f, "it begins with something else");
    if (header->status == MC_OK) {
        if (header->bytes < 0 || header->bytes > most) return bad_reply(f, "it is too long");
        return MC_OK;
    }
    if (header->status != MC_EFORMAT && header->status != MC_ENOMEM &&
        header->status != MC_EUNSUPPORTED && header->status != MC_EIO &&
        header->status != MC_EINTERNAL)
        return bad_reply(f, "its status is none");
    char message[MCI_SCAN_MESSAGE + 1];
    if (header->bytes < 1 || header->bytes > MCI_SCAN_MESSAGE)
        return bad_reply(f, "its message is too long");
    error = mci_child_receive(&f->helper, message, (size_t)header->bytes, until);
    if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
    message[header->bytes] = '\0';
    mci_reply_plain(message);
    return mci_fail(header->status, "%s: %s", f->path, message);
}

/* n bytes into a block that grows as they come. */
static mc_status receive_all(mc_h5_file *f, unsigned char **block, int64_t n, int64_t until,
                             double seconds) {
    int64_t room = 0, got = 0;
    while (got < n) {
        room = room ? room * 2 : RECEIVE_FIRST;
        if (room > n) room = n;
        unsigned char *more = realloc(*block, (size_t)room);
        if (!more) return bad_reply(f, mci_reply_no_memory);
        *block = more;
        int error = mci_child_receive(&f->helper, *block + got, (size_t)(room - got), until);
        if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
        got = room;
    }
    return MC_OK;
}

static mc_status list(mc_h5_file *f, double seconds) {
    int64_t until = mci_child_clock() + (int64_t)(seconds * 1e9);
    mc_status status = start_helper(f, seconds);
    if (status != MC_OK) return status;
    mci_scan_request request = {
        .magic = MCI_SCAN_MAGIC,
        .op = MCI_SCAN_LIST,
        .decode_limit = f->decode_limit,
        .reply_limit = REPLY_BASE + (f->bytes < REPLY_MORE ? f->bytes : REPLY_MORE)};
    int error = mci_child_send(&f->helper, &request, sizeof request);
    if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
    mci_scan_header header;
    status = receive_header(f, &header, request.reply_limit, until, seconds);
    unsigned char *block = NULL;
    if (status == MC_OK) status = receive_all(f, &block, header.bytes, until, seconds);
    if (status == MC_OK) {
        mci_reply_facts facts = {.file_bytes = f->bytes,
                                 .base = f->superblock.base,
                                 .decode_limit = f->decode_limit,
                                 .version = f->superblock.version};
        char text[256];
        const char *wrong =
            mci_reply_parse(&f->table, block, (size_t)header.bytes, &facts, text, sizeof text);
        if (wrong) status = bad_reply(f, wrong);
    }
    free(block);
    return status;
}

/* -- open and close ---------------------------------------------------------------------------- */

void mc_h5_close(mc_h5_file *f) {
    if (!f) return;
    mci_prefetch_stop(f->prefetch);
    mci_child_stop(&f->helper);
    if (f->fd >= 0) close(f->fd);
    pthread_mutex_destroy(&f->lock);
    mci_reply_free(&f->table);
    free(f->path);
    free(f);
}

static mc_status open_file(mc_h5_file *f, const mc_h5_open_options *opts) {
    do {
        f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not block us */
    } while (f->fd < 0 && errno == EINTR);
    struct stat st;
    if (f->fd < 0 || fstat(f->fd, &st) != 0) {
        char text[128];
        return mci_fail(MC_EIO, "%s: %s", f->path, mci_io_reason(errno, text, sizeof text));
    }
    if (S_ISDIR(st.st_mode)) return mci_fail(MC_EIO, "%s: it is a folder", f->path);
    if (!S_ISREG(st.st_mode))
        return mci_fail(MC_EFORMAT, "%s: not an HDF5 file: it is not a regular file", f->path);
    f->bytes = st.st_size;
    mc_status status = mci_superblock_check(&f->superblock, f->fd, f->bytes, f->path);
    if (status != MC_OK) return status;
    f->decode_limit = opts->decode_limit;
    if (f->decode_limit == 0 &&
        (__builtin_mul_overflow(f->bytes, MCI_H5_EXPANSION, &f->decode_limit) ||
         __builtin_add_overflow(f->decode_limit, MCI_H5_EXPANSION_BASE, &f->decode_limit)))
        f->decode_limit = INT64_MAX;
    if (opts->prefetch) f->prefetch = mci_prefetch_start(f->fd, f->bytes);
    status = list(f, opts->seconds > 0 ? opts->seconds : LIST_SECONDS);
    if (status != MC_OK) return status;
    int decodes = 0;
    for (int64_t i = 0; i < f->table.n_entries; i++) decodes |= f->table.entries[i].decode;
    if (!decodes) mci_child_stop(&f->helper);
    return MC_OK;
}

mc_status mc_h5_open(mc_h5_file **out, const char *path, const mc_h5_open_options *opts) {
    static const mc_h5_open_options defaults = {.size = sizeof defaults};
    if (!out) return mci_fail(MC_EINVAL, "h5_open: no place for the file");
    *out = NULL;
    if (!path || !*path) return mci_fail(MC_EINVAL, "h5_open: no path");
    if (!opts) opts = &defaults;
    if (opts->size != sizeof *opts)
        return mci_fail(MC_EINVAL, "h5_open: %s: options of %u bytes; %zu are wanted", path,
                        opts->size, sizeof *opts);
    if (opts->decode_limit < 0 || !(opts->seconds >= 0) || opts->seconds > 1e9)
        return mci_fail(MC_EINVAL,
                        "h5_open: %s: a decode_limit of %lld and %g seconds; neither can be "
                        "negative, seconds at most 1e9",
                        path, (long long)opts->decode_limit, opts->seconds);
    mc_h5_file *f = calloc(1, sizeof *f);
    if (!f) return mci_fail(MC_ENOMEM, "%s: out of memory", path);
    f->fd = f->helper.socket = -1;
    f->path = strdup(path);
    if (!f->path || pthread_mutex_init(&f->lock, NULL) != 0) {
        free(f->path);
        free(f);
        return mci_fail(MC_ENOMEM, "%s: out of memory", path);
    }
    mc_status status = open_file(f, opts);
    if (status != MC_OK) {
        mc_h5_close(f);
        return status;
    }
    *out = f;
    return MC_OK;
}

int mc_h5_is_own(const mc_h5_file *f) {
    return f ? f->table.own : 0;
}

int64_t mc_h5_count(const mc_h5_file *f) {
    return f ? f->table.n_entries : 0;
}

const mc_h5_entry *mc_h5_get(const mc_h5_file *f, int64_t i) {
    return f && i >= 0 && i < f->table.n_entries ? &f->table.entries[i] : NULL;
}

const mc_h5_attr *mc_h5_get_attr(const mc_h5_file *f, int64_t i) {
    return f && i >= 0 && i < f->table.n_attrs ? &f->table.attrs[i] : NULL;
}

/* -- reading ----------------------------------------------------------------------------------- */

/* Entry i when it is a readable dataset. */
static mc_status readable(const mc_h5_file *f, int64_t i, const char *op, const mc_h5_entry **out) {
    if (!f) return mci_fail(MC_EINVAL, "%s: no file", op);
    const mc_h5_entry *e = mc_h5_get(f, i);
    if (!e)
        return mci_fail(MC_EINVAL, "%s: %s has %lld entries, there is no %lld (0-based)", op,
                        f->path, (long long)f->table.n_entries, (long long)i);
    if (e->kind == MC_H5_GROUP)
        return mci_fail(MC_EINVAL, "%s: %s: '%s' is a group", op, f->path, e->path);
    if (e->kind == MC_H5_VIEW)
        return mci_fail(MC_EINVAL,
                        "%s: %s: '%s' is a view; its bytes are those of the datasets it shows", op,
                        f->path, e->path);
    if (e->problem)
        return mci_fail(MC_EFORMAT, "%s: '%s' cannot be read: %s", f->path, e->path, e->problem);
    *out = e;
    return MC_OK;
}

/* Elements [first, first + n) from the helper, whose lock is held. */
static mc_status decode(mc_h5_file *f, const mc_h5_entry *e, int64_t first, int64_t n, char *dst) {
    mc_status status = f->helper.pid > 0 ? MC_OK : start_helper(f, LIST_SECONDS);
    if (status != MC_OK) return status;
    mci_scan_request request = {.magic = MCI_SCAN_MAGIC,
                                .op = MCI_SCAN_DECODE,
                                .dtype = e->dtype,
                                .path = (uint32_t)strlen(e->path) + 1,
                                .first = first,
                                .n = n};
    int error = mci_child_send(&f->helper, &request, sizeof request);
    if (error == 0) error = mci_child_send(&f->helper, e->path, request.path);
    if (error != 0) return mci_child_failed(&f->helper, error, DECODE_SECONDS, f->path);
    for (int64_t left = n * mc_dtype_size(e->dtype); left > 0;) {
        mci_scan_header header;
        const int64_t patience = (int64_t)DECODE_SECONDS * 1000000000;
        status = receive_header(f, &header, left, mci_child_clock() + patience, DECODE_SECONDS);
        if (status != MC_OK) return status;
        if (header.bytes == 0) return bad_reply(f, "a part of a dataset has no bytes");
        for (int64_t part = header.bytes; part > 0;) {
            int64_t piece = part < 1 << 20 ? part : 1 << 20;
            error = mci_child_receive(&f->helper, dst, (size_t)piece, mci_child_clock() + patience);
            if (error != 0) return mci_child_failed(&f->helper, error, DECODE_SECONDS, f->path);
            dst += piece;
            part -= piece;
        }
        left -= header.bytes;
    }
    return MC_OK;
}

/* Elements [first, first + n) into host memory. threads: by several where that helps. */
static mc_status read_host(mc_h5_file *f, const mc_h5_entry *e, int64_t first, int64_t n, void *dst,
                           int threads) {
    if (n == 0) return MC_OK;
    int64_t size = mc_dtype_size(e->dtype);
    if (e->decode) {
        pthread_mutex_lock(&f->lock);
        mc_status status = decode(f, e, first, n, dst);
        pthread_mutex_unlock(&f->lock);
        if (status != MC_OK) return status;
    } else {
        int error = (threads ? mci_pread_threads : mci_pread)(f->fd, dst, n * size,
                                                              e->offset + first * size);
        if (error != 0) {
            char text[128];
            return mci_fail(MC_EIO, "%s: cannot read '%s': %s", f->path, e->path,
                            mci_io_reason(error, text, sizeof text));
        }
    }
    /* a bool that is neither 0 nor 1 would follow no rule afterwards */
    for (int64_t i = 0; e->dtype == MC_BOOL && i < n; i++) {
        if (((const unsigned char *)dst)[i] > 1)
            return mci_fail(MC_EFORMAT, "%s: '%s' holds %d as a bool at position %lld (0-based)",
                            f->path, e->path, ((const unsigned char *)dst)[i],
                            (long long)(first + i));
    }
    return MC_OK;
}

mc_status mci_h5_fetch(mc_h5_file *f, int64_t entry, int64_t first, int64_t n, void *dst) {
    const mc_h5_entry *e = NULL;
    mc_status status = readable(f, entry, "h5_fetch", &e);
    if (status != MC_OK) return status;
    int64_t size = mc_dtype_size(e->dtype);
    if (first < 0 || n < 0 || first > e->bytes || n > e->bytes - first || first % size != 0 ||
        n % size != 0)
        return mci_fail(MC_EINVAL,
                        "h5_fetch: %s: '%s' has %lld bytes, wanted are %lld from %lld, whole "
                        "elements of %lld",
                        f->path, e->path, (long long)e->bytes, (long long)n, (long long)first,
                        (long long)size);
    return read_host(f, e, first / size, n / size, dst, 0);
}

/* As read_host for a tensor of another device, in stages. */
static mc_status read_device(mc_h5_file *f, const mc_h5_entry *e, int64_t first, mc_tensor *t) {
    int64_t n = mc_tensor_numel(t), size = mc_dtype_size(e->dtype), step = STAGE / size, one = 1;
    void *stage = malloc((size_t)((n < step ? n : step) * size));
    mc_tensor *view = mc_tensor_new();
    mc_status status = MC_OK;
    if (!stage || !view) status = mci_fail(MC_ENOMEM, "%s: '%s': out of memory", f->path, e->path);
    for (int64_t at = 0; at < n && status == MC_OK; at += step) {
        int64_t count = n - at < step ? n - at : step;
        mc_tensor_release(view);
        status = mc_as_strided(view, t, 1, &count, &one, at);
        if (status == MC_OK) status = read_host(f, e, first + at, count, stage, 1);
        if (status == MC_OK) status = mc_write(view, stage, count * size);
    }
    mc_tensor_free(view);
    free(stage);
    return status;
}

mc_status mc_h5_read(mc_h5_file *f, int64_t i, int64_t first, mc_tensor *t) {
    const mc_h5_entry *e = NULL;
    mc_status status = readable(f, i, "h5_read", &e);
    if (status != MC_OK) return status;
    if (!mc_tensor_defined(t)) return mci_fail(MC_EINVAL, "h5_read: the tensor is empty");
    if (!mc_tensor_is_contiguous(t))
        return mci_fail(MC_EINVAL, "h5_read: the tensor is not contiguous");
    if (mc_tensor_dtype(t) != e->dtype)
        return mci_fail(MC_EINVAL, "h5_read: %s: '%s' is %s and the tensor is %s", f->path, e->path,
                        mc_dtype_name(e->dtype), mc_dtype_name(mc_tensor_dtype(t)));
    int64_t n = mc_tensor_numel(t), all = e->bytes / mc_dtype_size(e->dtype);
    if (first < 0 || first > all || n > all - first)
        return mci_fail(MC_EINVAL,
                        "h5_read: %s: '%s' has %lld elements, wanted are %lld from %lld (0-based)",
                        f->path, e->path, (long long)all, (long long)n, (long long)first);
    if (n == 0) return MC_OK;
    if (mc_tensor_device(t) != 0) return read_device(f, e, first, t);
    status = read_host(f, e, first, n, mc_tensor_data(t), 1);
    mc_tensor_bump_version(t);
    return status;
}

mc_status mc_h5_digest(mc_h5_file *f, int64_t i, char *digest) {
    const mc_h5_entry *e = NULL;
    mc_status status = readable(f, i, "h5_digest", &e);
    if (status != MC_OK) return status;
    if (!e->decode) {
        int error = mci_digest_file(f->fd, e->bytes, e->offset, digest);
        if (error == 0) return MC_OK;
        char text[128];
        return mci_fail(error == ENOMEM ? MC_ENOMEM : MC_EIO, "%s: cannot read '%s': %s", f->path,
                        e->path, mci_io_reason(error, text, sizeof text));
    }
    int64_t size = mc_dtype_size(e->dtype), all = e->bytes / size, step = STAGE / size;
    void *stage = malloc((size_t)((all < step ? all : step) * size));
    mci_digest *state = mci_digest_new();
    if (!stage || !state) status = mci_fail(MC_ENOMEM, "%s: '%s': out of memory", f->path, e->path);
    for (int64_t at = 0; at < all && status == MC_OK; at += step) {
        int64_t n = all - at < step ? all - at : step;
        status = read_host(f, e, at, n, stage, 1);
        if (status == MC_OK) mci_digest_update(state, stage, n * size);
    }
    if (status == MC_OK) mci_digest_text(state, digest);
    mci_digest_free(state);
    free(stage);
    return status;
}
