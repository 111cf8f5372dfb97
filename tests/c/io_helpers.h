/* io_helpers.h: what the tests of files share: a folder of their own, tensors with known bytes, and
 * a small save that can be recognised. */
#ifndef MASCON_IO_HELPERS_H
#define MASCON_IO_HELPERS_H

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"

/* A tensor of `dtype` filled from `bytes` (as many as it takes). */
static inline mc_tensor *io_tensor(int dtype, int ndim, const int64_t *shape, const void *bytes) {
    mc_tensor *t = mc_tensor_new();
    CHECK_OK(mc_empty(t, dtype, 0, ndim, shape));
    CHECK_OK(mc_write(t, bytes, mc_tensor_numel(t) * mc_dtype_size(dtype)));
    return t;
}

static inline const mc_h5_entry *io_find(const mc_h5_file *f, const char *path, int64_t *index) {
    for (int64_t i = 0; i < mc_h5_count(f); i++) {
        if (strcmp(mc_h5_get(f, i)->path, path) == 0) {
            if (index) *index = i;
            return mc_h5_get(f, i);
        }
    }
    return NULL;
}

static inline const mc_h5_attr *io_attr(const mc_h5_file *f, const char *path, const char *name) {
    const mc_h5_entry *e = io_find(f, path, NULL);
    for (int32_t i = 0; e && i < e->n_attrs; i++) {
        const mc_h5_attr *a = mc_h5_get_attr(f, e->first_attr + i);
        if (strcmp(a->name, name) == 0) return a;
    }
    return NULL;
}

static char folder[256];

static inline const char *in_folder(const char *name) {
    static char text[4][512];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(text[turn], sizeof text[turn], "%s/%s", folder, name);
    return text[turn];
}

/* Files in the folder whose names hold `part`. */
static inline int count_files(const char *part) {
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        n += e->d_name[0] != '.' && strstr(e->d_name, part) != NULL;
    }
    if (d) closedir(d);
    return n;
}

static inline char *slurp(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    *n = 0;
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(*n + 1);
    *n = fread(bytes, 1, *n, f);
    fclose(f);
    return bytes;
}

static inline mc_tensor *patterned(int dtype, int ndim, const int64_t *shape, unsigned seed) {
    int64_t n = mc_dtype_size(dtype);
    for (int i = 0; i < ndim; i++) n *= shape[i];
    unsigned char *bytes = malloc((size_t)n + 1);
    for (int64_t i = 0; i < n; i++) {
        bytes[i] = (unsigned char)((unsigned)(i * 131 + i / 251) + seed);
        if (dtype == MC_BOOL) bytes[i] &= 1;
    }
    mc_tensor *t = io_tensor(dtype, ndim, shape, bytes);
    free(bytes);
    return t;
}

/* A small file with two tensors, one of them large enough to be aligned. */
static inline mc_status save(const char *path, unsigned seed) {
    int64_t small[2] = {3, 5}, large = 40000;
    mc_tensor *a = patterned(MC_FLOAT32, 2, small, seed);
    mc_tensor *b = patterned(MC_BFLOAT16, 1, &large, seed);
    mc_h5_writer *w = NULL;
    mc_status status = mc_h5_create(&w, path);
    if (status == MC_OK) status = mc_h5_tensor(w, "/x/a", a);
    if (status == MC_OK) status = mc_h5_tensor(w, "/x/b", b);
    if (status == MC_OK) status = mc_h5_attr_int(w, "/x", "seed", seed);
    mc_tensor_free(a);
    mc_tensor_free(b);
    if (status != MC_OK) {
        mc_h5_discard(w);
        return status;
    }
    return mc_h5_commit(w);
}

/* 1 when the file at `path` is the one save(path, seed) makes, digests and bytes. */
static inline int is_saved(const char *path, unsigned seed) {
    mc_h5_file *f = NULL;
    if (mc_h5_open(&f, path, NULL) != MC_OK) return 0;
    const mc_h5_attr *said = io_attr(f, "/x", "seed");
    int ok = said && said->i == seed;
    int64_t index = -1, large = 40000;
    mc_tensor *want = patterned(MC_BFLOAT16, 1, &large, seed), *got = mc_tensor_new();
    const char *names[] = {"/x/a", "/x/b"};
    for (int i = 0; i < 2; i++) {
        char digest[33];
        const mc_h5_attr *a = io_attr(f, names[i], "digest");
        ok = ok && a && io_find(f, names[i], &index) && mc_h5_digest(f, index, digest) == MC_OK &&
             strcmp(a->s, digest) == 0;
    }
    int equal = 0;
    ok = ok && mc_empty(got, MC_BFLOAT16, 0, 1, &large) == MC_OK &&
         mc_h5_read(f, index, 0, got) == MC_OK && mc_equal(want, got, &equal) == MC_OK && equal;
    mc_tensor_free(want);
    mc_tensor_free(got);
    mc_h5_close(f);
    return ok;
}

static inline int make_folder(void) {
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/mascon_io_XXXXXX", base && *base ? base : "/tmp");
    if (mkdtemp(folder)) return 1;
    perror(folder);
    return 0;
}

static inline void remove_folder(void) {
    TITLE("nothing is left in the folder");
    if (!CHECK(rmdir(folder) == 0)) perror(folder);
}

#endif
