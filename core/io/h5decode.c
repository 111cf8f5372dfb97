/* h5decode.c: datasets that are not plain bytes: chunked, compressed, compact, big-endian, never
 * written, or behind a user block.
 *
 * libhdf5 reads stretches in row-major order into a bounded buffer. It decodes a chunk as a whole,
 * so its chunk cache takes all chunks along the first one of their rows, where that is bounded;
 * else the stretches are made large. The dataset read last stays open: reads come in runs.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h5walk.h"

enum { CACHE = 1 << 27, PIECE = 1 << 22, LARGE_PIECE = 1 << 28 };

const char *mci_h5_chunk_problem(hid_t props, size_t type_size, const mci_scan_start *start,
                                 char *why, size_t size) {
    int filters = H5Pget_nfilters(props);
    for (int i = 0; i < filters; i++) {
        unsigned flags, config;
        size_t values = 0;
        char name[64] = "";
        H5Z_filter_t filter =
            H5Pget_filter2(props, (unsigned)i, &flags, &values, NULL, sizeof name, name, &config);
        if (filter >= H5Z_FILTER_DEFLATE && filter <= H5Z_FILTER_SCALEOFFSET &&
            H5Zfilter_avail(filter) > 0)
            continue;
        snprintf(why, size, "it needs filter %d (%s), which libhdf5 has not built in", (int)filter,
                 name);
        return why;
    }
    hsize_t chunk[H5S_MAX_RANK];
    int ndim = H5Pget_chunk(props, H5S_MAX_RANK, chunk);
    int64_t bytes = (int64_t)type_size, most = 0;
    for (int i = 0; i < ndim; i++) {
        if (__builtin_mul_overflow(bytes, (int64_t)chunk[i], &bytes)) bytes = INT64_MAX;
    }
    /* libhdf5 allocates whole chunks, and one or two more while it decodes them */
    if (__builtin_mul_overflow(start->file_bytes, MCI_H5_EXPANSION, &most) ||
        __builtin_add_overflow(most, MCI_H5_EXPANSION_BASE, &most) || most > start->memory / 4)
        most = start->memory / 4;
    if (ndim < 1 || bytes > most) {
        snprintf(why, size, "one chunk of it is %" PRId64 " bytes, far more than the file", bytes);
        return why;
    }
    return NULL;
}

typedef struct decoding {
    hid_t set, space, type;
    int ndim;
    hsize_t shape[MC_MAX_DIMS], start[MC_MAX_DIMS], count[MC_MAX_DIMS];
    char *dst; /* of the next element */
    size_t size;
    int64_t piece; /* elements to be read at a time */
    char path[MCI_H5_MAX_PATH];
    int dtype;
} decoding;

static int read_box(decoding *d, hsize_t elements) {
    /* of the same shape as in the file: otherwise libhdf5 maps chunks element by element */
    hid_t memory = H5Screate_simple(d->ndim, d->count, NULL);
    int ok =
        mci_h5_ok(memory) &&
        mci_h5_ok(H5Sselect_hyperslab(d->space, H5S_SELECT_SET, d->start, NULL, d->count, NULL)) &&
        mci_h5_ok(H5Dread(d->set, d->type, memory, d->space, H5P_DEFAULT, d->dst));
    if (memory >= 0) H5Sclose(memory);
    d->dst += elements * d->size;
    return ok;
}

/* Elements [first, first + n) of the box that start and count leave open from `axis` on: a part of
 * the first row, whole rows, a part of the last one. */
static int read_range(decoding *d, int axis, hsize_t first, hsize_t n) {
    hsize_t inner = 1;
    for (int i = axis + 1; i < d->ndim; i++) inner *= d->shape[i];
    if (n > 0 && (first % inner != 0 || n < inner)) {
        hsize_t part = inner - first % inner < n ? inner - first % inner : n;
        d->start[axis] = first / inner;
        d->count[axis] = 1;
        if (!read_range(d, axis + 1, first % inner, part)) return 0;
        first += part;
        n -= part;
    }
    if (n >= inner) {
        d->start[axis] = first / inner;
        d->count[axis] = n / inner;
        for (int i = axis + 1; i < d->ndim; i++) {
            d->start[i] = 0;
            d->count[i] = d->shape[i];
        }
        hsize_t rows = n / inner * inner;
        if (!read_box(d, rows)) return 0;
        first += rows;
        n -= rows;
    }
    if (n == 0) return 1;
    d->start[axis] = first / inner;
    d->count[axis] = 1;
    return read_range(d, axis + 1, 0, n);
}

static void close_decoding(decoding *d) {
    if (d->space >= 0) H5Sclose(d->space);
    if (d->set >= 0) H5Dclose(d->set);
    d->set = d->space = H5I_INVALID_HID;
    d->path[0] = '\0';
}

/* Chunks along one row of chunks, in bytes; INT64_MAX when that overflows. */
static int64_t band_bytes(const decoding *d, hid_t props) {
    hsize_t chunk[H5S_MAX_RANK];
    int ndim = H5Pget_chunk(props, H5S_MAX_RANK, chunk);
    int64_t bytes = (int64_t)d->size;
    if (ndim != d->ndim) return INT64_MAX;
    for (int i = 0; i < ndim; i++) {
        hsize_t n = i == 0 ? 1 : (d->shape[i] + chunk[i] - 1) / chunk[i];
        if (__builtin_mul_overflow(bytes, (int64_t)chunk[i], &bytes) ||
            __builtin_mul_overflow(bytes, (int64_t)n, &bytes))
            return INT64_MAX;
    }
    return bytes;
}

/* 1 when the open dataset is what the caller was told by the scan, as far as it can be. */
static int still_fits(decoding *d, hid_t props) {
    char why[192];
    int swapped;
    hid_t type = H5Dget_type(d->set);
    int found = type >= 0 ? mci_h5_dtype(type, &swapped, why, sizeof why) : -1;
    if (type >= 0) H5Tclose(type);
    if (found != d->dtype && !(found == MC_UINT8 && d->dtype >= MC_FLOAT8_E4M3FN)) return 0;
    if (H5Pget_layout(props) == H5D_VIRTUAL || H5Pget_external_count(props) != 0) return 0;
    d->space = H5Dget_space(d->set);
    d->ndim = H5Sget_simple_extent_ndims(d->space);
    if (d->ndim < 0 || d->ndim > MC_MAX_DIMS) return 0;
    return d->ndim == 0 || H5Sget_simple_extent_dims(d->space, d->shape, NULL) >= 0;
}

/* Opens the dataset and chooses cache and stretch. */
static mc_status open_decoding(decoding *d, hid_t file, const char *path, int dtype) {
    mc_status status = MC_OK;
    close_decoding(d);
    d->dtype = dtype;
    d->type = mci_h5_type(dtype);
    d->size = (size_t)mci_h5_core->dtype_size(dtype);
    d->piece = PIECE / (int64_t)d->size;
    d->set = H5Dopen2(file, path, H5P_DEFAULT);
    hid_t props = mci_h5_ok(d->set) ? H5Dget_create_plist(d->set) : H5I_INVALID_HID;
    if (!mci_h5_ok(props))
        status = mci_h5_fail(MC_EFORMAT, "cannot open '%s'", path);
    else if (!still_fits(d, props))
        status = mci_h5_core->fail(MC_EFORMAT, "'%s' has changed since it was opened", path);
    if (status == MC_OK && H5Pget_layout(props) == H5D_CHUNKED) {
        int64_t band = band_bytes(d, props);
        hid_t access = H5Pcreate(H5P_DATASET_ACCESS);
        if (band > CACHE) d->piece = LARGE_PIECE / (int64_t)d->size;
        /* the slots are a prime well above the number of chunks of a band, as libhdf5 advises */
        if (access >= 0 && band > 1 << 20 && band <= CACHE &&
            H5Pset_chunk_cache(access, 12421, (size_t)band + (1 << 20), 1) >= 0) {
            H5Dclose(d->set);
            d->set = H5Dopen2(file, path, access);
            if (!mci_h5_ok(d->set)) status = mci_h5_fail(MC_EFORMAT, "cannot open '%s'", path);
        }
        if (access >= 0) H5Pclose(access);
    }
    if (props >= 0) H5Pclose(props);
    if (status == MC_OK)
        snprintf(d->path, sizeof d->path, "%s", path);
    else
        close_decoding(d);
    return status;
}

mc_status mci_h5_decode(hid_t file, const char *path, int dtype, int64_t first, int64_t n,
                        void (*put)(const void *bytes, size_t n)) {
    static decoding d = {.set = H5I_INVALID_HID, .space = H5I_INVALID_HID};
    if (strcmp(d.path, path) != 0 || d.dtype != dtype) {
        mc_status status = open_decoding(&d, file, path, dtype);
        if (status != MC_OK) return status;
    }
    int64_t numel = 1;
    for (int i = 0; i < d.ndim; i++) {
        if (__builtin_mul_overflow(numel, (int64_t)d.shape[i], &numel)) numel = 0;
    }
    if (first < 0 || n < 0 || first > numel || n > numel - first)
        return mci_h5_core->fail(MC_EFORMAT, "'%s' has changed since it was opened", path);
    int64_t piece = n < d.piece ? n : d.piece;
    char *buffer = malloc((size_t)(piece > 0 ? piece : 1) * d.size);
    if (!buffer) return mci_h5_no_memory();
    mc_status status = MC_OK;
    for (int64_t at = 0; at < n && status == MC_OK; at += piece) {
        int64_t count = n - at < piece ? n - at : piece;
        /* what was never written and has no fill value is left alone by libhdf5 */
        memset(buffer, 0, (size_t)count * d.size);
        d.dst = buffer;
        int ok = d.ndim == 0
                     ? mci_h5_ok(H5Dread(d.set, d.type, H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer))
                     : read_range(&d, 0, (hsize_t)(first + at), (hsize_t)count);
        if (!ok)
            status = mci_h5_fail(MC_EFORMAT, "cannot decode '%s'", path);
        else
            put(buffer, (size_t)count * d.size);
    }
    free(buffer);
    return status;
}
