/* commit_helpers.h: what the tests of commits share: datasets that count, and small files. */
#ifndef MASCON_COMMIT_HELPERS_H
#define MASCON_COMMIT_HELPERS_H

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "io_helpers.h"

/* Children end in the midst of things, and what they hold then is no leak. Only the sanitizers call
 * this. */
static int is_child;
__attribute__((visibility("default"))) int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void) {
    return is_child;
}

/* int32 [n]: seed, seed + 1, ... */
static inline mc_tensor *counting(int64_t n, int seed) {
    mc_tensor *t = mc_tensor_new();
    CHECK_OK(mc_empty(t, MC_INT32, 0, 1, &n));
    for (int64_t i = 0; i < n; i++) ((int32_t *)mc_tensor_data(t))[i] = seed + (int32_t)i;
    return t;
}

/* 1 when `path` is a file whose dataset `name` counts from `seed` and has the digest it says. */
static inline int counts(const char *path, const char *name, int64_t n, int seed) {
    mc_h5_file *f = NULL;
    if (mc_h5_open(&f, path, NULL) != MC_OK) return 0;
    int64_t index = -1;
    const mc_h5_entry *e = io_find(f, name, &index);
    const mc_h5_attr *said = io_attr(f, name, "digest");
    mc_tensor *want = counting(n, seed), *got = mc_tensor_new();
    char digest[33];
    int equal = 0;
    int ok = e && e->dtype == MC_INT32 && e->bytes == n * 4 && said &&
             mc_empty(got, MC_INT32, 0, 1, &n) == MC_OK && mc_h5_read(f, index, 0, got) == MC_OK &&
             mc_equal(want, got, &equal) == MC_OK && equal &&
             mc_h5_digest(f, index, digest) == MC_OK && strcmp(digest, said->s) == 0;
    mc_tensor_free(want);
    mc_tensor_free(got);
    mc_h5_close(f);
    return ok;
}

static inline int has_text(const char *path, const char *text) {
    size_t n;
    char *got = slurp(path, &n);
    int ok = got && n == strlen(text) && memcmp(got, text, n) == 0;
    free(got);
    return ok;
}

static inline void put_file(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fputs(text, f) >= 0);
    if (f) fclose(f);
}

/* A new name for a file of this folder that outlives later in_folder calls. */
static inline char *name_of(const char *name) {
    return strdup(in_folder(name));
}

static inline void flip(const char *path, int64_t at) {
    char byte;
    int fd = open(path, O_RDWR);
    CHECK(pread(fd, &byte, 1, at) == 1);
    byte = (char)~byte;
    CHECK(pwrite(fd, &byte, 1, at) == 1);
    close(fd);
}

static inline int64_t offset_of(const char *path, const char *name) {
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    const mc_h5_entry *e = io_find(f, name, NULL);
    int64_t offset = e ? e->offset : -1;
    mc_h5_close(f);
    return offset;
}

static inline mc_h5_writer *begun(const char *path, int seed) {
    mc_h5_writer *w = NULL;
    mc_tensor *t = counting(100, seed);
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_tensor(w, "/x", t));
    mc_tensor_free(t);
    return w;
}

#endif
