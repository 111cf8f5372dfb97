/* file.c: opening HDF5 files for reading. (Their datasets' bytes: read.c.)
 *
 * The file is opened once, here; the reading helper (spawn.c, h5main.c) gets the descriptor and
 * sends a listing, which reply.c checks. So a save that renames a new file over the path meanwhile
 * changes nothing. Where something must be decoded, the helper stays as long as the file is open.
 */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/bytes.h"
#include "prefetch.h"
#include "scan.h"
#include "status.h"

enum { RECEIVE_FIRST = 1 << 18, LIST_SECONDS = 120 };
static const int64_t MEMORY_FILE = INT64_C(1) << 32;
int64_t mci_helper_memory = INT64_C(1) << 30;

/* -- the helper -------------------------------------------------------------------------------- */

mc_status mci_file_bad_reply(mc_h5_file *f, const char *why) {
    mci_child_stop(&f->helper);
    if (why == mci_reply_no_memory) return mci_fail(MC_ENOMEM, "%s: out of memory", f->path);
    return mci_fail(MC_EFORMAT, "%s: the reading helper's reply makes no sense: %s", f->path, why);
}

mc_status mci_file_start_helper(mc_h5_file *f, double seconds) {
    mc_status status = mci_child_start(&f->helper, f->fd, f->path);
    if (status != MC_OK) return status;
    int64_t file = f->bytes < MEMORY_FILE ? f->bytes : MEMORY_FILE;
    mci_scan_start start = {.magic = MCI_SCAN_MAGIC,
                            .version = f->superblock.version,
                            .extended = f->superblock.extended,
                            .seconds = seconds < 1e6 ? (int32_t)seconds + 1 : 1000000,
                            .file_bytes = f->bytes,
                            .base = f->superblock.base,
                            .memory = mci_helper_memory + 4 * file};
    int error = mci_child_send(&f->helper, &start, sizeof start);
    return error == 0 ? MC_OK : mci_child_failed(&f->helper, error, seconds, f->path);
}

mc_status mci_file_receive_header(mc_h5_file *f, mci_scan_header *header, int64_t most,
                                  int64_t until, double seconds) {
    int error = mci_child_receive(&f->helper, header, sizeof *header, until);
    if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
    if (header->magic != MCI_SCAN_MAGIC)
        return mci_file_bad_reply(f, "it begins with something else");
    if (header->status == MC_OK) {
        if (header->bytes < 0 || header->bytes > most)
            return mci_file_bad_reply(f, "it is too long");
        return MC_OK;
    }
    if (header->status != MC_EFORMAT && header->status != MC_ENOMEM &&
        header->status != MC_EUNSUPPORTED && header->status != MC_EIO &&
        header->status != MC_EINTERNAL)
        return mci_file_bad_reply(f, "its status is none");
    char message[MCI_SCAN_MESSAGE + 1];
    if (header->bytes < 1 || header->bytes > MCI_SCAN_MESSAGE)
        return mci_file_bad_reply(f, "its message is too long");
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
        if (!more) return mci_file_bad_reply(f, mci_reply_no_memory);
        *block = more;
        int error = mci_child_receive(&f->helper, *block + got, (size_t)(room - got), until);
        if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
        got = room;
    }
    return MC_OK;
}

static mc_status list(mc_h5_file *f, double seconds) {
    int64_t until = mci_child_clock() + (int64_t)(seconds * 1e9);
    mc_status status = mci_file_start_helper(f, seconds);
    if (status != MC_OK) return status;
    mci_scan_request request = {.magic = MCI_SCAN_MAGIC,
                                .op = MCI_SCAN_LIST,
                                .decode_limit = f->decode_limit,
                                .memory_limit = mci_scan_memory(f->bytes)};
    int error = mci_child_send(&f->helper, &request, sizeof request);
    if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
    mci_scan_header header;
    /* what it may cost is more than its bytes */
    status = mci_file_receive_header(f, &header, request.memory_limit, until, seconds);
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
        if (wrong) status = mci_file_bad_reply(f, wrong);
    }
    free(block);
    return status;
}

/* -- open and close ---------------------------------------------------------------------------- */

void mc_h5_close(mc_h5_file *f) {
    if (!f) return;
    mci_prefetch_stop(f->prefetch);
    mci_child_stop(&f->helper);
    mci_file_forget_failures(f);
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
