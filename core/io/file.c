/* file.c: opening HDF5 files for reading: the plugin's door, the superblock, and plain bytes.
 *
 * The file is checked and opened here and handed to the plugin by its descriptor, so that a save
 * that renames a new file over the path meanwhile changes nothing. Tensors come by pread from where
 * the plugin's listing says they lie. The superblock is described in the "HDF5 File Format
 * Specification", section II.A; its checksum is Bob Jenkins' lookup3.
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
#include "plugin.h"
#include "status.h"

/* Decoded bytes for another device, and for digests of decoded datasets. */
enum { STAGE = 1 << 26 };

struct mc_h5_file {
    int fd;
    char *path;      /* as the caller gave it */
    char handle[40]; /* a name of fd */
    int64_t bytes;   /* the file's length */
    mci_h5_table table;
};

/* -- the plugin -------------------------------------------------------------------------------- */

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

/* -- the superblock ---------------------------------------------------------------------------- */

static uint32_t rotate(uint32_t x, int n) {
    return x << n | x >> (32 - n);
}

/* lookup3 of n bytes, 0 < n, initial value 0: three words take in 12 bytes at a time. */
static uint32_t lookup3(const unsigned char *p, size_t n) {
    uint32_t w[3];
    w[0] = w[1] = w[2] = 0xdeadbeefU + (uint32_t)n;
    for (;;) {
        for (size_t i = 0; i < 12 && i < n; i++) w[i / 4] += (uint32_t)p[i] << (i % 4 * 8);
        if (n <= 12) break;
        static const int turn[6] = {4, 6, 8, 16, 19, 4};
        for (int i = 0; i < 6; i++) {
            uint32_t *x = &w[i % 3], *y = &w[(i + 1) % 3], *z = &w[(i + 2) % 3];
            *x = (*x - *z) ^ rotate(*z, turn[i]);
            *z += *y;
        }
        p += 12;
        n -= 12;
    }
    static const int turn[7] = {14, 11, 25, 16, 4, 14, 24};
    for (int i = 0; i < 7; i++) {
        uint32_t *x = &w[(i + 2) % 3], *y = &w[(i + 1) % 3];
        *x = (*x ^ *y) - rotate(*y, turn[i]);
    }
    return w[2];
}

static uint64_t little_endian(const unsigned char *p, int n) {
    uint64_t value = 0;
    for (int i = 0; i < n; i++) value |= (uint64_t)p[i] << (8 * i);
    return value;
}

/* What the first bytes say, before libhdf5 sees the file: *base is where the HDF5 part starts (a
 * user block of a power of two from 512 on may lie before it). */
static mc_status check_superblock(const mc_h5_file *f, int64_t *base) {
    static const unsigned char signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char block[48] = {0};
    int64_t at = 0;
    for (;; at = at == 0 ? 512 : at * 2) {
        int64_t left = f->bytes - at;
        if (left < 9)
            return mci_fail(MC_EFORMAT, "%s: not an HDF5 file: it lacks the signature", f->path);
        int error = mci_pread(f->fd, block, left < 48 ? left : 48, at);
        if (error != 0) {
            char text[128];
            return mci_fail(MC_EIO, "%s: %s", f->path, mci_io_reason(error, text, sizeof text));
        }
        if (memcmp(block, signature, sizeof signature) == 0) break;
    }
    *base = at;
    int version = block[8];
    if (f->bytes - at < 48)
        return mci_fail(MC_EFORMAT, "%s: truncated: %lld bytes are less than a header", f->path,
                        (long long)f->bytes);
    if (version > 3)
        return mci_fail(MC_EFORMAT, "%s: HDF5 superblock version %d is not known", f->path,
                        version);
    if (version < 2) return MC_OK; /* no checksum, no closed mark; libhdf5 checks its length */
    if (lookup3(block, 44) != (uint32_t)little_endian(block + 44, 4))
        return mci_fail(MC_EFORMAT, "%s: damaged: the superblock's checksum is wrong", f->path);
    if (block[9] != 8 || block[10] != 8)
        return mci_fail(MC_EFORMAT, "%s: offsets of %d and lengths of %d bytes; 8 are wanted",
                        f->path, block[9], block[10]);
    if (version == 3 && block[11] != 0)
        return mci_fail(MC_EFORMAT, "%s: it was never closed: its writer is still at work, or died",
                        f->path);
    int64_t end = (int64_t)little_endian(block + 28, 8);
    if (end < 0 || end > f->bytes)
        return mci_fail(MC_EFORMAT, "%s: truncated: %lld bytes, it was written with %lld", f->path,
                        (long long)f->bytes, (long long)end);
    if (version == 3 && at == 0 && end < f->bytes)
        return mci_fail(MC_EFORMAT, "%s: damaged: %lld bytes follow its end", f->path,
                        (long long)(f->bytes - end));
    return MC_OK;
}

/* -- open and close ---------------------------------------------------------------------------- */

void mc_h5_close(mc_h5_file *f) {
    if (!f) return;
    if (f->fd >= 0) close(f->fd);
    free(f->table.rows);
    free(f->table.attrs);
    free(f->table.chars);
    free(f->path);
    free(f);
}

static mc_status open_file(mc_h5_file *f) {
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
    snprintf(f->handle, sizeof f->handle, "/proc/self/fd/%d", f->fd);
    int64_t base = 0;
    mc_status status = check_superblock(f, &base);
    if (status != MC_OK) return status;
    const mci_hdf5_api *api = mci_hdf5();
    if (!api) return MC_EUNSUPPORTED;
    const char *name = access(f->handle, F_OK) == 0 ? f->handle : f->path;
    status = api->scan(&f->table, name, f->path, f->bytes, base);
    if (status != MC_OK) return status;
    mci_h5_table *t = &f->table;
    for (int64_t i = 0; i < t->n_rows; i++) {
        t->rows[i].entry.path = t->chars + t->rows[i].path;
        if (t->rows[i].problem >= 0) t->rows[i].entry.problem = t->chars + t->rows[i].problem;
    }
    for (int64_t i = 0; i < t->n_attrs; i++) {
        t->attrs[i].attr.name = t->chars + t->attrs[i].name;
        if (t->attrs[i].text >= 0) t->attrs[i].attr.s = t->chars + t->attrs[i].text;
    }
    return MC_OK;
}

/* 1 when the open file has lost its name. */
static int is_replaced(const mc_h5_file *f) {
    struct stat st;
    return f->fd >= 0 && fstat(f->fd, &st) == 0 && st.st_nlink == 0;
}

mc_status mc_h5_open(mc_h5_file **out, const char *path) {
    if (!out) return mci_fail(MC_EINVAL, "h5_open: no place for the file");
    *out = NULL;
    if (!path || !*path) return mci_fail(MC_EINVAL, "h5_open: no path");
    mc_h5_file *f = calloc(1, sizeof *f);
    if (f) {
        f->fd = -1;
        f->path = strdup(path);
    }
    if (!f || !f->path) {
        mc_h5_close(f);
        return mci_fail(MC_ENOMEM, "%s: out of memory", path);
    }
    mc_status status = open_file(f);
    /* libhdf5 cannot open what a save has replaced since we opened it: take the new one */
    for (int tries = 0; status != MC_OK && tries < 100 && is_replaced(f); tries++) {
        close(f->fd);
        f->fd = -1;
        status = open_file(f);
    }
    if (status != MC_OK) {
        mc_h5_close(f);
        return status;
    }
    *out = f;
    return MC_OK;
}

int64_t mc_h5_count(const mc_h5_file *f) {
    return f ? f->table.n_rows : 0;
}

const mc_h5_entry *mc_h5_get(const mc_h5_file *f, int64_t i) {
    return f && i >= 0 && i < f->table.n_rows ? &f->table.rows[i].entry : NULL;
}

const mc_h5_attr *mc_h5_get_attr(const mc_h5_file *f, int64_t i) {
    return f && i >= 0 && i < f->table.n_attrs ? &f->table.attrs[i].attr : NULL;
}

/* -- reading ----------------------------------------------------------------------------------- */

/* Entry i when it is a readable dataset. */
static mc_status readable(const mc_h5_file *f, int64_t i, const char *op, const mc_h5_entry **out) {
    if (!f) return mci_fail(MC_EINVAL, "%s: no file", op);
    const mc_h5_entry *e = mc_h5_get(f, i);
    if (!e)
        return mci_fail(MC_EINVAL, "%s: %s has %lld entries, there is no %lld (0-based)", op,
                        f->path, (long long)f->table.n_rows, (long long)i);
    if (e->kind != MC_H5_DATASET)
        return mci_fail(MC_EINVAL, "%s: %s: '%s' is a group", op, f->path, e->path);
    if (e->problem)
        return mci_fail(MC_EFORMAT, "%s: '%s' cannot be read: %s", f->path, e->path, e->problem);
    *out = e;
    return MC_OK;
}

/* Elements [first, first + n) into host memory. */
static mc_status read_host(const mc_h5_file *f, const mc_h5_entry *e, int64_t first, int64_t n,
                           void *dst) {
    if (n == 0) return MC_OK;
    int64_t size = mc_dtype_size(e->dtype);
    if (e->decode) {
        const mci_hdf5_api *api = mci_hdf5();
        if (!api) return MC_EUNSUPPORTED;
        /* libhdf5 opens by name, and a replaced file has none */
        if (is_replaced(f))
            return mci_fail(MC_EIO, "%s: '%s' needs decoding and the file was replaced meanwhile",
                            f->path, e->path);
        const char *name = access(f->handle, F_OK) == 0 ? f->handle : f->path;
        mc_status status = api->decode(name, f->path, e->path, e->dtype, first, n, dst);
        if (status != MC_OK) return status;
    } else {
        int error = mci_pread_threads(f->fd, dst, n * size, e->offset + first * size);
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

/* As read_host for a tensor of another device, in stages. */
static mc_status read_device(const mc_h5_file *f, const mc_h5_entry *e, int64_t first,
                             mc_tensor *t) {
    int64_t n = mc_tensor_numel(t), size = mc_dtype_size(e->dtype), step = STAGE / size, one = 1;
    void *stage = malloc((size_t)((n < step ? n : step) * size));
    mc_tensor *view = mc_tensor_new();
    mc_status status = MC_OK;
    if (!stage || !view) status = mci_fail(MC_ENOMEM, "%s: '%s': out of memory", f->path, e->path);
    for (int64_t at = 0; at < n && status == MC_OK; at += step) {
        int64_t count = n - at < step ? n - at : step;
        mc_tensor_release(view);
        status = mc_as_strided(view, t, 1, &count, &one, at);
        if (status == MC_OK) status = read_host(f, e, first + at, count, stage);
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
    status = read_host(f, e, first, n, mc_tensor_data(t));
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
        status = read_host(f, e, at, n, stage);
        if (status == MC_OK) mci_digest_update(state, stage, n * size);
    }
    if (status == MC_OK) mci_digest_text(state, digest);
    mci_digest_free(state);
    free(stage);
    return status;
}
