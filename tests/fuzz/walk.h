/* walk.h: what both targets check of a listing that passed: everything that others rely on. A
 * breach traps, which the fuzzer reports. */
#ifndef MASCON_FUZZ_WALK_H
#define MASCON_FUZZ_WALK_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "io/h5.h"

#define MUST(what)                     \
    do {                               \
        if (!(what)) __builtin_trap(); \
    } while (0)

/* Reads every byte of a text: the address sanitizer knows where it ends. */
static inline size_t walk_text(const char *s) {
    MUST(s);
    return strlen(s);
}

static inline void walk_attr(const mc_h5_attr *a) {
    MUST(walk_text(a->name) > 0);
    MUST(a->kind >= MC_H5_INT && a->kind <= MC_H5_STRING);
    if (a->kind == MC_H5_STRING) {
        MUST(a->size >= 0 && a->size <= MCI_H5_MAX_ATTR_BYTES && a->s[a->size] == '\0');
    } else {
        MUST(!a->s && a->size == 0);
    }
    if (a->kind == MC_H5_BOOL) MUST(a->i == 0 || a->i == 1);
    /* the one NaN that LuaJIT has no other meaning for */
    double nan = (double)NAN;
    if (isnan(a->d)) MUST(memcmp(&a->d, &nan, sizeof nan) == 0);
}

/* An entry of a file of `file_bytes` bytes that holds n_attrs attributes in all. */
static inline void walk_entry(const mc_h5_entry *e, int64_t i, int64_t n_attrs,
                              int64_t file_bytes) {
    size_t length = walk_text(e->path);
    MUST(e->path[0] == '/' && length < MCI_H5_MAX_PATH && (i == 0) == (length == 1));
    MUST(e->kind >= MC_H5_GROUP && e->kind <= MC_H5_VIEW && (i > 0 || e->kind == MC_H5_GROUP));
    MUST(e->n_attrs >= 0 && e->first_attr >= 0 && e->first_attr <= n_attrs - e->n_attrs);
    MUST(e->dtype >= -1 && e->dtype < MC_DTYPE_COUNT && e->ndim >= 0 && e->ndim <= MC_MAX_DIMS);
    if (e->problem) MUST(walk_text(e->problem) > 0);
    if (e->kind == MC_H5_GROUP) return;
    int64_t bytes = e->dtype < 0 ? 0 : mc_dtype_size(e->dtype), room = bytes;
    for (int k = 0; k < e->ndim; k++) {
        MUST(e->shape[k] >= 0);
        if (e->dtype < 0) continue;
        MUST(!__builtin_mul_overflow(bytes, e->shape[k], &bytes));
        if (e->shape[k] > 0) MUST(!__builtin_mul_overflow(room, e->shape[k], &room));
    }
    MUST(e->dtype < 0 || e->bytes == bytes);
    if (e->offset >= 0) MUST(e->bytes <= file_bytes && e->offset <= file_bytes - e->bytes);
    MUST(e->decode == 0 || (e->decode == 1 && e->offset == -1 && e->kind == MC_H5_DATASET));
    if (e->kind == MC_H5_DATASET && !e->problem && !e->decode && e->bytes > 0) MUST(e->offset >= 0);
}

/* No two datasets share bytes, links on one object aside. n is small in what fuzzers make. */
static inline void walk_pair(const mc_h5_entry *a, const mc_h5_entry *b) {
    MUST(strcmp(a->path, b->path) != 0);
    if (a->offset < 0 || b->offset < 0 || a->object == b->object) return;
    MUST(a->offset + a->bytes <= b->offset || b->offset + b->bytes <= a->offset);
}

#endif
