/* hostile_files.h: makes HDF5 files that mc_h5_create never would, with libhdf5 itself. */
#ifndef MASCON_HOSTILE_FILES_H
#define MASCON_HOSTILE_FILES_H

#include <hdf5.h>
#include <time.h>

#include "io_helpers.h"

#ifdef MASCON_SANITIZE
enum { SECONDS = 20, GROWTH = 1 << 20 };
#else
enum { SECONDS = 1, GROWTH = 64 }; /* for one open: s, MiB */
#endif

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline long resident_mib(void) {
    long pages = 0, all = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &all, &pages) != 2) pages = 0;
    if (f) fclose(f);
    return pages * (sysconf(_SC_PAGESIZE) / 1024) / 1024;
}

static inline mc_status timed_open(mc_h5_file **f, const char *path,
                                   const mc_h5_open_options *opts) {
    long before = resident_mib();
    double start = now();
    mc_status status = mc_h5_open(f, path, opts);
    double took = now() - start;
    if (!CHECK(took < SECONDS)) printf("it took %.2f s\n", took);
    CHECK(resident_mib() - before < GROWTH);
    return status;
}

/* The file being built: hf_begin(how), calls of libhdf5 and of what is here, hf_end(). */
static hid_t hf;

enum { HF_OLD = 0, HF_NEW = 1, HF_OWN = 2, HF_BLOCK = 3 }; /* OWN: it says that mascon wrote it */

/* An attribute of n bytes of text; n 0: of variable length. */
static inline void hf_text(hid_t object, const char *name, const char *text, size_t n) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, n ? n : H5T_VARIABLE);
    if (n) H5Tset_strpad(type, H5T_STR_NULLPAD);
    hid_t attr = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    CHECK(H5Awrite(attr, type, n ? (const void *)text : (const void *)&text) >= 0);
    H5Aclose(attr);
    H5Sclose(space);
    H5Tclose(type);
}

static inline void hf_begin(int how) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), create = H5Pcreate(H5P_FILE_CREATE);
    if (how == HF_OWN || how == HF_NEW)
        H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    if (how == HF_BLOCK) H5Pset_userblock(create, 1024);
    hf = H5Fcreate(in_folder("hostile.h5"), H5F_ACC_TRUNC, create, access);
    CHECK(hf >= 0);
    H5Pclose(create);
    H5Pclose(access);
    if (how == HF_OWN) hf_text(hf, "format", "mascon", 6);
}

static inline void hf_end(void) {
    CHECK(H5Fclose(hf) >= 0);
}

/* A dataset of n elements (int32 0, 1, ...; `type` decides what they become in the file) with the
 * properties `props`, H5P_DEFAULT for contiguous. Its offset. */
static inline haddr_t hf_set(const char *path, hid_t type, hsize_t n, hid_t props) {
    hid_t space = H5Screate_simple(1, &n, NULL);
    hid_t set = H5Dcreate2(hf, path, type, space, H5P_DEFAULT, props, H5P_DEFAULT);
    int *values = malloc((n + 1) * sizeof *values);
    for (hsize_t i = 0; i < n; i++) values[i] = (int)i;
    CHECK(H5Dwrite(set, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
    haddr_t offset = props == H5P_DEFAULT ? H5Dget_offset(set) : HADDR_UNDEF;
    free(values);
    H5Dclose(set);
    H5Sclose(space);
    return offset;
}

/* The same without bytes: sizes as they are. */
static inline void hf_empty_set(const char *path, int ndim, const hsize_t *sizes, hid_t props) {
    hid_t space = H5Screate_simple(ndim, sizes, NULL);
    hid_t set = H5Dcreate2(hf, path, H5T_STD_I32LE, space, H5P_DEFAULT, props, H5P_DEFAULT);
    CHECK(set >= 0);
    H5Dclose(set);
    H5Sclose(space);
}

static inline hid_t hf_chunks(hsize_t n) {
    hid_t props = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(props, 1, &n);
    return props;
}

/* Makes `path` a view [rows, n] of `type` whose row i is all of sources[i] in `source_file`. */
static inline void hf_view(const char *path, hid_t type, hsize_t rows, hsize_t n,
                           const char *source_file, const char *const *sources) {
    hsize_t sizes[2] = {rows, n}, start[2] = {0, 0}, count[2] = {1, n};
    hid_t props = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(2, sizes, NULL);
    hid_t from = H5Screate_simple(1, &n, NULL);
    for (hsize_t i = 0; i < rows; i++) {
        start[0] = i;
        H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL);
        CHECK(H5Pset_virtual(props, space, source_file, sources[i], from) >= 0);
    }
    H5Sselect_all(space);
    hid_t set = H5Dcreate2(hf, path, type, space, H5P_DEFAULT, props, H5P_DEFAULT);
    CHECK(set >= 0);
    H5Dclose(set);
    H5Sclose(from);
    H5Sclose(space);
    H5Pclose(props);
}

/* A view that grows with its source, or by as many sources ("%b" in the name) as there are. */
static inline void hf_growing_view(const char *path, const char *source) {
    int many = strchr(source, '%') != NULL;
    hsize_t n = 4, block = many ? n : 1, start = 0, endless = H5S_UNLIMITED;
    hid_t props = H5Pcreate(H5P_DATASET_CREATE);
    hid_t space = H5Screate_simple(1, &n, &endless);
    hid_t from = H5Screate_simple(1, &n, many ? NULL : &endless);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, &block, &endless, &block);
    if (!many) H5Sselect_hyperslab(from, H5S_SELECT_SET, &start, &block, &endless, &block);
    CHECK(H5Pset_virtual(props, space, ".", source, from) >= 0);
    hid_t set = H5Dcreate2(hf, path, H5T_STD_I32LE, space, H5P_DEFAULT, props, H5P_DEFAULT);
    CHECK(set >= 0);
    H5Dclose(set);
    H5Sclose(from);
    H5Sclose(space);
    H5Pclose(props);
}

/* Overwrites the one place in the file where the n bytes `from` stand. */
static inline void hf_patch(const void *from, const void *to, size_t n) {
    size_t length = 0;
    char *bytes = slurp(in_folder("hostile.h5"), &length), *at = bytes;
    int found = 0;
    for (size_t i = 0; bytes && i + n <= length; i++) {
        if (memcmp(bytes + i, from, n) == 0) at = bytes + i, found++;
    }
    if (CHECK(found == 1)) memcpy(at, to, n);
    FILE *f = fopen(in_folder("hostile.h5"), "wb");
    CHECK(f && fwrite(bytes, 1, length, f) == length);
    if (f) fclose(f);
    free(bytes);
}

#endif
