/* read.c: the bytes of the datasets of an open HDF5 file.
 *
 * Plain datasets come by pread from where the listing says they lie, many at a time, straight into
 * the tensors of the host; for a device's, into one of its page-locked buffers while the copies out
 * of the others run. What must be decoded comes from the helper, in a time bounded by what is asked
 * for: a file that has taken the helper over must not hold up its reader. A dataset that failed to
 * decode is not tried again, as each try may take that time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"
#include "graph.h"
#include "io/bytes.h"
#include "io/device.h"
#include "scan.h"
#include "status.h"

enum {
    STAGE = 1 << 26,        /* bytes for digests of decoded datasets */
    ALIGN = 64,             /* of a dataset's beginning in a device's buffer */
    START_SECONDS = 120,    /* of processor time for a helper that was started again */
    DECODE_RATE = 1000000,  /* bytes/s: a tenth of what the slowest filter gives on an old core */
    RECEIVE_PIECE = 1 << 20 /* bytes between two looks at the clock */
};

double mci_decode_seconds = 10;

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

static mc_status unreadable(const mc_h5_file *f, const mc_h5_entry *e, int error) {
    char text[128];
    return mci_fail(error == ENOMEM ? MC_ENOMEM : MC_EIO, "%s: cannot read '%s': %s", f->path,
                    e->path, mci_io_reason(error, text, sizeof text));
}

/* A bool that is neither 0 nor 1 would follow no rule afterwards. n elements from `first` on. */
static mc_status check_bools(const mc_h5_file *f, const mc_h5_entry *e, int64_t first, int64_t n,
                             const unsigned char *values) {
    unsigned char all = 0;
    if (e->dtype != MC_BOOL) return MC_OK;
    for (int64_t i = 0; i < n; i++) all |= values[i];
    for (int64_t i = 0; all > 1 && i < n; i++) {
        if (values[i] > 1)
            return mci_fail(MC_EFORMAT, "%s: '%s' holds %d as a bool at position %lld (0-based)",
                            f->path, e->path, values[i], (long long)(first + i));
    }
    return MC_OK;
}

/* -- decoding ---------------------------------------------------------------------------------- */

void mci_file_forget_failures(mc_h5_file *f) {
    while (f->failures) {
        mci_decode_failure *next = f->failures->next;
        free(f->failures);
        f->failures = next;
    }
}

/* Notes the thread's message as what came of `object`; advice, so memory may be short. */
static void remember_failure(mc_h5_file *f, int64_t object, mc_status status) {
    size_t n = strlen(mc_last_error()) + 1;
    mci_decode_failure *failure = malloc(sizeof *failure + n);
    if (!failure) return;
    *failure = (mci_decode_failure){.next = f->failures, .object = object, .status = status};
    memcpy(failure->text, mc_last_error(), n);
    f->failures = failure;
}

/* Elements [first, first + n) from the running helper until the time `until`, `seconds` from the
 * beginning. */
static mc_status ask_helper(mc_h5_file *f, const mc_h5_entry *e, int64_t first, int64_t n,
                            char *dst, int64_t until, double seconds) {
    mci_scan_request request = {.magic = MCI_SCAN_MAGIC,
                                .op = MCI_SCAN_DECODE,
                                .dtype = e->dtype,
                                .path = (uint32_t)strlen(e->path) + 1,
                                .first = first,
                                .n = n,
                                .seconds = (int64_t)seconds + 1};
    int error = mci_child_send(&f->helper, &request, sizeof request);
    if (error == 0) error = mci_child_send(&f->helper, e->path, request.path);
    if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
    for (int64_t left = n * mc_dtype_size(e->dtype); left > 0;) {
        mci_scan_header header;
        mc_status status = mci_file_receive_header(f, &header, left, until, seconds);
        if (status != MC_OK) return status;
        if (header.bytes == 0) return mci_file_bad_reply(f, "a part of a dataset has no bytes");
        for (int64_t part = header.bytes; part > 0;) {
            int64_t piece = part < RECEIVE_PIECE ? part : RECEIVE_PIECE;
            error = mci_child_receive(&f->helper, dst, (size_t)piece, until);
            /* it waits no longer than that, but small parts may keep coming */
            if (error == 0 && mci_child_clock() > until) error = ETIMEDOUT;
            if (error != 0) return mci_child_failed(&f->helper, error, seconds, f->path);
            dst += piece;
            part -= piece;
        }
        left -= header.bytes;
    }
    return MC_OK;
}

/* The same from a helper that is started if need be; f's lock is held. */
static mc_status decode_locked(mc_h5_file *f, const mc_h5_entry *e, int64_t first, int64_t n,
                               char *dst) {
    for (const mci_decode_failure *known = f->failures; known; known = known->next) {
        if (known->object == e->object) return mci_fail(known->status, "%s", known->text);
    }
    mc_status status = f->helper.pid > 0 ? MC_OK : mci_file_start_helper(f, START_SECONDS);
    if (status != MC_OK) return status;
    double bytes = (double)(n * mc_dtype_size(e->dtype));
    double seconds = mci_decode_seconds + bytes / DECODE_RATE;
    int64_t until = mci_child_clock() + (seconds < 1e9 ? (int64_t)(seconds * 1e9) : INT64_MAX / 2);
    status = ask_helper(f, e, first, n, dst, until, seconds);
    if (status != MC_OK) remember_failure(f, e->object, status);
    return status;
}

static mc_status decode(mc_h5_file *f, const mc_h5_entry *e, int64_t first, int64_t n, void *dst) {
    pthread_mutex_lock(&f->lock);
    mc_status status = decode_locked(f, e, first, n, dst);
    pthread_mutex_unlock(&f->lock);
    return status == MC_OK ? check_bools(f, e, first, n, dst) : status;
}

/* -- one dataset ------------------------------------------------------------------------------- */

/* Elements [first, first + n) into host memory. */
static mc_status read_host(mc_h5_file *f, const mc_h5_entry *e, int64_t first, int64_t n, void *dst,
                           int (*read)(int fd, void *dst, int64_t n, int64_t offset)) {
    if (n == 0) return MC_OK;
    if (e->decode) return decode(f, e, first, n, dst);
    int64_t size = mc_dtype_size(e->dtype);
    int error = read(f->fd, dst, n * size, e->offset + first * size);
    return error == 0 ? check_bools(f, e, first, n, dst) : unreadable(f, e, error);
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
    return read_host(f, e, first / size, n / size, dst, mci_pread);
}

mc_status mc_h5_digest(mc_h5_file *f, int64_t i, char *digest) {
    const mc_h5_entry *e = NULL;
    mc_status status = readable(f, i, "h5_digest", &e);
    if (status != MC_OK) return status;
    if (!e->decode) {
        int error = mci_digest_file(f->fd, e->bytes, e->offset, digest);
        return error == 0 ? MC_OK : unreadable(f, e, error);
    }
    int64_t size = mc_dtype_size(e->dtype), all = e->bytes / size, step = STAGE / size;
    void *stage = malloc((size_t)((all < step ? all : step) * size));
    mci_digest *state = mci_digest_new();
    if (!stage || !state) status = mci_fail(MC_ENOMEM, "%s: '%s': out of memory", f->path, e->path);
    for (int64_t at = 0; at < all && status == MC_OK; at += step) {
        int64_t n = all - at < step ? all - at : step;
        status = decode(f, e, at, n, stage);
        if (status == MC_OK) mci_digest_update(state, stage, n * size);
    }
    if (status == MC_OK) mci_digest_text(state, digest);
    mci_digest_free(state);
    free(stage);
    return status;
}

/* -- many -------------------------------------------------------------------------------------- */

static mc_status check_stretch(const mc_h5_file *f, const mc_h5_stretch *s) {
    const mc_h5_entry *e = NULL;
    mc_status status = readable(f, s->entry, "h5_read", &e);
    if (status != MC_OK) return status;
    const mc_tensor *t = s->target;
    if (!mc_tensor_defined(t))
        return mci_fail(MC_EINVAL, "h5_read: %s: '%s': the tensor is empty", f->path, e->path);
    if (!mc_tensor_is_contiguous(t))
        return mci_fail(MC_EINVAL, "h5_read: %s: '%s': the tensor is not contiguous", f->path,
                        e->path);
    if (mc_tensor_dtype(t) != e->dtype)
        return mci_fail(MC_EINVAL, "h5_read: %s: '%s' is %s and the tensor is %s", f->path, e->path,
                        mc_dtype_name(e->dtype), mc_dtype_name(mc_tensor_dtype(t)));
    int64_t all = e->bytes / mc_dtype_size(e->dtype), room = mc_tensor_numel(t);
    if (s->first < 0 || s->count < 0 || s->first > all || s->count > all - s->first)
        return mci_fail(MC_EINVAL,
                        "h5_read: %s: '%s' has %lld elements, wanted are %lld from %lld (0-based)",
                        f->path, e->path, (long long)all, (long long)s->count, (long long)s->first);
    if (s->target_first < 0 || s->target_first > room || s->count > room - s->target_first)
        return mci_fail(MC_EINVAL,
                        "h5_read: %s: '%s': the tensor has %lld elements, to be filled are %lld "
                        "from %lld (0-based)",
                        f->path, e->path, (long long)room, (long long)s->count,
                        (long long)s->target_first);
    return mci_graph_forbids(mc_tensor_device(t), "h5_read");
}

/* 1 when a stretch fills memory of the device. */
static int is_for(const mc_h5_stretch *s, int device) {
    return s->count > 0 && mc_tensor_device(s->target) == device;
}

/* 1 when it is read beside others: plain bytes of the file. */
static int is_plain(const mc_h5_file *f, const mc_h5_stretch *s) {
    return !mc_h5_get(f, s->entry)->decode;
}

/* Its address in its device's memory. */
static char *target_of(const mc_h5_stretch *s) {
    int64_t size = mc_dtype_size(mc_tensor_dtype(s->target));
    return (char *)mc_tensor_data(s->target) + s->target_first * size;
}

/* The plain stretches for a device: *n of them in *out, which is to be freed. */
static mc_status list_plain(const mc_h5_file *f, const mc_h5_stretch *list, int64_t n, int device,
                            mci_extent **out, int64_t *plain) {
    *out = NULL;
    *plain = 0;
    for (int64_t i = 0; i < n; i++) *plain += is_for(&list[i], device) && is_plain(f, &list[i]);
    if (*plain == 0) return MC_OK;
    mci_extent *to = *out = malloc((size_t)*plain * sizeof **out);
    if (!to)
        return mci_fail(MC_ENOMEM, "%s: no memory to list %lld reads", f->path, (long long)*plain);
    for (int64_t i = 0; i < n; i++) {
        const mc_h5_stretch *s = &list[i];
        if (!is_for(s, device) || !is_plain(f, s)) continue;
        const mc_h5_entry *e = mc_h5_get(f, s->entry);
        int64_t size = mc_dtype_size(e->dtype);
        *to++ = (mci_extent){.offset = e->offset + s->first * size,
                             .bytes = s->count * size,
                             .dst = target_of(s),
                             .number = i};
    }
    return MC_OK;
}

static mc_status read_extents(const mc_h5_file *f, const mc_h5_stretch *list, mci_extent *extents,
                              int64_t n) {
    int64_t failed = -1;
    int error = mci_pread_many(f->fd, extents, n, &failed);
    return error == 0 ? MC_OK : unreadable(f, mc_h5_get(f, list[failed].entry), error);
}

static mc_status read_to_host(mc_h5_file *f, const mc_h5_stretch *list, int64_t n) {
    mci_extent *extents = NULL;
    int64_t plain = 0;
    mc_status status = list_plain(f, list, n, 0, &extents, &plain);
    if (status == MC_OK && plain > 0) status = read_extents(f, list, extents, plain);
    free(extents);
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        const mc_h5_stretch *s = &list[i];
        if (is_for(s, 0) && is_plain(f, s))
            status = check_bools(f, mc_h5_get(f, s->entry), s->first, s->count,
                                 (const unsigned char *)target_of(s));
    }
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        const mc_h5_stretch *s = &list[i];
        if (is_for(s, 0) && !is_plain(f, s))
            status = decode(f, mc_h5_get(f, s->entry), s->first, s->count, target_of(s));
    }
    return status;
}

/* -- to a device ------------------------------------------------------------------------------- */

/* How far a list of extents for a device has come: byte `within` of extent `at`. */
typedef struct progress {
    int64_t at, within;
} progress;

/* Parts for one buffer, as many as it takes, each of another extent. Returns how many. */
static int64_t cut_parts(const mci_extent *extents, int64_t n, progress *p, char *buffer,
                         mci_extent *parts) {
    int64_t count = 0, used = 0;
    while (p->at < n && used < MCI_STAGE_BYTES) {
        const mci_extent *e = &extents[p->at];
        int64_t left = e->bytes - p->within, room = MCI_STAGE_BYTES - used;
        int64_t bytes = left < room ? left : room; /* ALIGN is a multiple of any element's size */
        parts[count++] = (mci_extent){.offset = e->offset + p->within,
                                      .bytes = bytes,
                                      .dst = buffer + used,
                                      .number = e->number};
        used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
        p->within += bytes;
        if (bytes < left) break;
        p->at++;
        p->within = 0;
    }
    return count;
}

static int64_t storage_of(const mc_h5_stretch *list, const mci_extent *e) {
    return mc_tensor_storage_id(list[e->number].target);
}

/* Begins the copies of parts that have been read. to: the extent of the first, of which the part
 * begins at byte `within`. What is side by side in the buffer and in one storage is one copy; a
 * copy over the seam of two allocations is refused by CUDA, though their addresses meet. */
static mc_status send_parts(const mc_h5_stretch *list, mci_stage *stage, const mci_extent *parts,
                            int64_t n, const mci_extent *to, int64_t within) {
    mc_status status = MC_OK;
    for (int64_t i = 0, next = 0; i < n && status == MC_OK; i = next) {
        char *dst = to[i].dst + (i == 0 ? within : 0);
        int64_t bytes = parts[i].bytes, storage = storage_of(list, &to[i]);
        for (next = i + 1; next < n && to[next].dst == dst + bytes &&
                           parts[next].dst == parts[i].dst + bytes &&
                           storage_of(list, &to[next]) == storage;)
            bytes += parts[next++].bytes;
        status = mci_stage_send(stage, dst, parts[i].dst, bytes);
    }
    return status;
}

static mc_status check_parts(const mc_h5_file *f, const mc_h5_stretch *list,
                             const mci_extent *parts, int64_t n) {
    mc_status status = MC_OK;
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        const mc_h5_entry *e = mc_h5_get(f, list[parts[i].number].entry);
        status = check_bools(f, e, parts[i].offset - e->offset, parts[i].bytes,
                             (const unsigned char *)parts[i].dst);
    }
    return status;
}

static mc_status send_plain(const mc_h5_file *f, const mc_h5_stretch *list, mci_extent *extents,
                            int64_t n, mci_stage *stage) {
    mc_status status = MC_OK;
    /* the parts of a buffer in their order there, and again for those who put them into the file's:
     * one dataset may be wanted twice */
    mci_extent *parts = malloc(2 * (size_t)n * sizeof *parts), *reads;
    if (!parts)
        return mci_fail(MC_ENOMEM, "%s: no memory to list %lld reads", f->path, (long long)n);
    reads = parts + n;
    mci_extents_sort(extents, n);
    for (progress p = {0, 0}; p.at < n && status == MC_OK;) {
        progress from = p;
        char *buffer = NULL;
        status = mci_stage_next(stage, &buffer);
        if (status != MC_OK) break;
        int64_t count = cut_parts(extents, n, &p, buffer, parts);
        memcpy(reads, parts, (size_t)count * sizeof *parts);
        status = read_extents(f, list, reads, count);
        if (status == MC_OK) status = check_parts(f, list, parts, count);
        if (status == MC_OK)
            status = send_parts(list, stage, parts, count, &extents[from.at], from.within);
    }
    free(parts);
    return status;
}

/* A dataset that must be decoded. */
static mc_status send_decoded(mc_h5_file *f, const mc_h5_stretch *s, mci_stage *stage) {
    const mc_h5_entry *e = mc_h5_get(f, s->entry);
    int64_t size = mc_dtype_size(e->dtype), step = MCI_STAGE_BYTES / size;
    mc_status status = MC_OK;
    for (int64_t at = 0; at < s->count && status == MC_OK; at += step) {
        int64_t n = s->count - at < step ? s->count - at : step;
        char *buffer = NULL;
        status = mci_stage_next(stage, &buffer);
        if (status == MC_OK) status = decode(f, e, s->first + at, n, buffer);
        if (status == MC_OK)
            status = mci_stage_send(stage, target_of(s) + at * size, buffer, n * size);
    }
    return status;
}

static mc_status read_to_device(mc_h5_file *f, const mc_h5_stretch *list, int64_t n, int device) {
    mci_extent *extents = NULL;
    int64_t plain = 0;
    mci_stage stage;
    mci_stage_begin(&stage, device, NULL);
    mc_status status = list_plain(f, list, n, device, &extents, &plain);
    if (status == MC_OK && plain > 0) status = send_plain(f, list, extents, plain, &stage);
    for (int64_t i = 0; i < n && status == MC_OK; i++) {
        if (is_for(&list[i], device) && !is_plain(f, &list[i]))
            status = send_decoded(f, &list[i], &stage);
    }
    free(extents);
    return mci_stage_end(&stage, status);
}

/* The first device after `device` that something is read to; -1: none. */
static int next_device(const mc_h5_stretch *list, int64_t n, int device) {
    int next = -1;
    for (int64_t i = 0; i < n; i++) {
        int one = mc_tensor_device(list[i].target);
        if (list[i].count > 0 && one > device && (next < 0 || one < next)) next = one;
    }
    return next;
}

mc_status mc_h5_read_many(mc_h5_file *f, const mc_h5_stretch *list, int64_t n) {
    mc_status status = MC_OK;
    if (!f) return mci_fail(MC_EINVAL, "h5_read: no file");
    if (n < 0 || (n > 0 && !list)) return mci_fail(MC_EINVAL, "h5_read: %s: no list", f->path);
    for (int64_t i = 0; i < n; i++) {
        status = check_stretch(f, &list[i]);
        if (status != MC_OK) return status;
    }
    status = read_to_host(f, list, n);
    for (int device = next_device(list, n, 0); device > 0 && status == MC_OK;
         device = next_device(list, n, device))
        status = read_to_device(f, list, n, device);
    for (int64_t i = 0; i < n; i++) { /* those of a failure too: some bytes may be there */
        if (list[i].count > 0) mc_tensor_bump_version(list[i].target);
    }
    return status;
}

mc_status mc_h5_read(mc_h5_file *f, int64_t i, int64_t first, mc_tensor *t) {
    int64_t n = mc_tensor_defined(t) ? mc_tensor_numel(t) : 0;
    mc_h5_stretch all = {.entry = i, .first = first, .count = n, .target = t};
    return mc_h5_read_many(f, &all, 1);
}
