/* io_files.h: files exchanged with h5py, for the two modes of test_io that tests/interop runs:
 * "write PATH" makes the file that read_with_h5py.py checks, "read FOLDER" checks the files that
 * write_with_h5py.py has made. The values are agreed on here and there. */
#ifndef MASCON_IO_FILES_H
#define MASCON_IO_FILES_H

#include "io_helpers.h"

static inline int io_write_file(const char *path) {
    TITLE("writes a file for h5py");
    mc_h5_writer *w = NULL;
    if (!CHECK_OK(mc_h5_create(&w, path))) return check_report();
    CHECK_OK(mc_h5_attr_string(w, "/", "format", "mascon", 6));
    CHECK_OK(mc_h5_attr_string(w, "/", "empty", "", 0));
    CHECK_OK(mc_h5_attr_string(w, "/", "umlaut", "M\xc3\xa4re", 5));
    CHECK_OK(mc_h5_attr_int(w, "/", "most", INT64_MAX));
    CHECK_OK(mc_h5_attr_double(w, "/", "third", 1.0 / 3));
    CHECK_OK(mc_h5_attr_bool(w, "/", "yes", 1));
    CHECK_OK(mc_h5_attr_bool(w, "/", "no", 0));
    CHECK_OK(mc_h5_group(w, "/bare/group"));
    /* -2, -1.5 .. 0.5 in [2, 3] of each dtype that has these values; bytes 0 .. 5 for the others */
    double values[6];
    int64_t shape[2] = {2, 3}, none[2] = {0, 3}, all = 65536;
    for (int i = 0; i < 6; i++) values[i] = -2 + 0.5 * i;
    for (int dtype = 0; dtype < MC_DTYPE_COUNT; dtype++) {
        unsigned char bytes[48] = {0, 1, 2, 3, 4, 5};
        char name[64];
        if (mc_dtype_size(dtype) > 1 || dtype == MC_BOOL)
            CHECK_OK(mc_convert(bytes, dtype, values, MC_FLOAT64, 6));
        mc_tensor *t = io_tensor(dtype, 2, shape, bytes);
        mc_tensor *scalar = io_tensor(dtype, 0, NULL, bytes);
        mc_tensor *empty = io_tensor(dtype, 2, none, bytes);
        snprintf(name, sizeof name, "/matrix/%s", mc_dtype_name(dtype));
        CHECK_OK(mc_h5_tensor(w, name, t));
        snprintf(name, sizeof name, "/scalar/%s", mc_dtype_name(dtype));
        CHECK_OK(mc_h5_tensor(w, name, scalar));
        snprintf(name, sizeof name, "/empty/%s", mc_dtype_name(dtype));
        CHECK_OK(mc_h5_tensor(w, name, empty));
        mc_tensor_free(t);
        mc_tensor_free(scalar);
        mc_tensor_free(empty);
    }
    uint16_t *codes = malloc(2 * 65536);
    for (int i = 0; i < 65536; i++) codes[i] = (uint16_t)i;
    mc_tensor *t = io_tensor(MC_BFLOAT16, 1, &all, codes);
    CHECK_OK(mc_h5_tensor(w, "/every/bfloat16", t));
    mc_tensor_free(t);
    t = io_tensor(MC_FLOAT16, 1, &all, codes);
    CHECK_OK(mc_h5_tensor(w, "/every/float16", t));
    mc_tensor_free(t);
    free(codes);
    CHECK_OK(mc_h5_link(w, "/tied/again", "/every/bfloat16"));
    CHECK_OK(mc_h5_bytes(w, "/text", "{\"a\": 1}", 8));
    CHECK_OK(mc_h5_commit(w));
    return check_report();
}

/* -- what write_with_h5py.py makes ------------------------------------------------------------- */

/* Dataset `path` is readable, is decoded or not as said, and its values are value(i) for every
 * element i, read whole and as a stretch out of the middle. */
static inline void io_expect(mc_h5_file *f, const char *path, int dtype, int decode, int64_t numel,
                             double (*value)(int64_t)) {
    int64_t index = -1;
    const mc_h5_entry *e = io_find(f, path, &index);
    check_title = path;
    if (!CHECK(e)) return;
    if (e->problem) printf("%s: %s\n", path, e->problem);
    if (!CHECK(!e->problem && e->dtype == dtype && e->decode == decode)) return;
    CHECK(e->bytes == numel * mc_dtype_size(dtype));
    CHECK((e->offset >= 0) == (!decode && numel > 0));
    for (int part = 0; part < 2; part++) {
        int64_t first = part ? numel / 3 : 0, n = part ? numel / 2 : numel;
        mc_tensor *t = mc_tensor_new();
        double *got = malloc((size_t)n * sizeof *got + 1);
        CHECK_OK(mc_empty(t, dtype, 0, 1, &n));
        if (CHECK_OK(mc_h5_read(f, index, first, t))) {
            CHECK_OK(mc_convert(got, MC_FLOAT64, mc_tensor_data(t), dtype, n));
            int64_t wrong = 0;
            for (int64_t i = 0; i < n; i++) wrong += got[i] != value(first + i);
            CHECK(wrong == 0);
        }
        free(got);
        mc_tensor_free(t);
    }
    char digest[33];
    CHECK_OK(mc_h5_digest(f, index, digest));
}

static inline void io_expect_problem(const mc_h5_file *f, const char *path, const char *part) {
    const mc_h5_entry *e = io_find(f, path, NULL);
    check_title = path;
    if (!CHECK(e) || !CHECK(e->problem)) return;
    if (!CHECK(strstr(e->problem, part))) printf("it says: %s\n", e->problem);
    CHECK(e->dtype == -1 && e->offset == -1 && !e->decode);
}

static inline double io_ramp(int64_t i) {
    return (double)i;
}
static inline double io_small(int64_t i) {
    return (double)(i % 100);
}
static inline double io_halves(int64_t i) {
    return (double)i / 2 - 10;
}
static inline double io_parity(int64_t i) {
    return (double)(i % 3 == 0);
}
static inline double io_seven(int64_t i) {
    (void)i;
    return 7;
}
static inline double io_one(int64_t i) {
    (void)i;
    return 1;
}

static inline mc_h5_file *io_open(const char *where, const char *name) {
    char path[4096];
    mc_h5_file *f = NULL;
    snprintf(path, sizeof path, "%s/%s", where, name);
    CHECK_OK(mc_h5_open(&f, path, NULL));
    return f;
}

static inline void io_refused(const char *where, const char *name, const char *part) {
    char path[4096];
    mc_h5_file *f = NULL;
    snprintf(path, sizeof path, "%s/%s", where, name);
    check_title = name;
    CHECK_STATUS(mc_h5_open(&f, path, NULL), MC_EFORMAT, part);
    CHECK(!f);
    mc_h5_close(f);
}

static inline int io_read_folder(const char *where) {
    static const char *const plain[] = {"default.h5", "latest.h5", "userblock.h5"};
    for (int k = 0; k < 3; k++) {
        TITLE(plain[k]);
        int block = k == 2; /* behind a user block nothing is read past libhdf5 */
        mc_h5_file *f = io_open(where, plain[k]);
        if (!f) continue;
        io_expect(f, "/plain/f4", MC_FLOAT32, block, 105, io_halves);
        io_expect(f, "/plain/f8", MC_FLOAT64, block, 105, io_halves);
        io_expect(f, "/plain/f2", MC_FLOAT16, block, 105, io_halves);
        io_expect(f, "/plain/i8", MC_INT64, block, 105, io_ramp);
        io_expect(f, "/plain/i4", MC_INT32, block, 105, io_ramp);
        io_expect(f, "/plain/u1", MC_UINT8, block, 105, io_small);
        io_expect(f, "/plain/bool", MC_BOOL, block, 105, io_parity);
        io_expect(f, "/plain/bf16", MC_BFLOAT16, block, 105, io_halves);
        io_expect(f, "/plain/fp8", MC_FLOAT8_E4M3FN, block, 105, io_one);
        io_expect(f, "/plain/scalar", MC_FLOAT32, block, 1, io_seven);
        io_expect(f, "/plain/empty", MC_FLOAT32, 0, 0, io_ramp);
        io_expect(f, "/big/f4", MC_FLOAT32, 1, 105, io_halves);
        io_expect(f, "/big/f2", MC_FLOAT16, 1, 105, io_halves);
        io_expect(f, "/big/i8", MC_INT64, 1, 105, io_ramp);
        io_expect(f, "/big/bf16", MC_BFLOAT16, 1, 105, io_halves);
        io_expect(f, "/chunked/gzip", MC_FLOAT32, 1, 37 * 5 * 11, io_halves);
        io_expect(f, "/chunked/big", MC_INT32, 1, 37 * 5 * 11, io_ramp);
        io_expect(f, "/chunked/bool", MC_BOOL, 1, 37 * 5 * 11, io_parity);
        io_expect(f, "/chunked/checksum", MC_FLOAT64, 1, 37 * 5 * 11, io_halves);
        io_expect(f, "/chunked/scaled", MC_INT32, 1, 37 * 5 * 11, io_small);
        io_expect(f, "/compact", MC_INT32, 1, 10, io_ramp);
        io_expect(f, "/unwritten", MC_FLOAT32, 1, 12, io_seven);
        io_expect(f, "/unwritten_chunks", MC_FLOAT32, 1, 1000, io_seven);
        io_expect_problem(f, "/odd/int16", "int16 has no dtype");
        io_expect_problem(f, "/odd/uint32", "uint32 has no dtype");
        io_expect_problem(f, "/odd/complex", "compound");
        io_expect_problem(f, "/odd/text", "string");
        io_expect_problem(f, "/odd/opaque", "opaque");
        io_expect_problem(f, "/odd/enum", "enum of 3 values");
        io_expect_problem(f, "/odd/long_double", "float of this kind");
        io_expect_problem(f, "/odd/null", "no elements");
        io_expect_problem(f, "/odd/rank9", "more than 8 axes");
        io_expect_problem(f, "/odd/lzf", "filter 32000 (lzf)");
        io_expect_problem(f, "/odd/huge", "too many for a file");
        io_expect_problem(f, "/odd/overflow", "overflows");
        io_expect_problem(f, "/odd/chunk", "one chunk of it");
        io_expect_problem(f, "/odd/contradiction", "dtype says 'int32', its HDF5 type is float32");
        io_expect_problem(f, "/odd/packed", "dtype says 'float4_e2m1fn_x2'");
        TITLE("lists views and leaves out soft links and named types");
        const mc_h5_entry *view = io_find(f, "/view", NULL);
        CHECK(view && view->kind == MC_H5_VIEW && view->dtype == MC_FLOAT64 && view->offset == -1);
        CHECK(view && view->ndim == 2 && view->shape[1] == 105);
        CHECK(view && !view->problem);
        CHECK(!io_find(f, "/soft", NULL));
        CHECK(!io_find(f, "/named_type", NULL) && !io_find(f, "/dangling", NULL));
        TITLE("reads attributes of fixed size and passes over the others");
        const mc_h5_attr *a = io_attr(f, "/plain", "i4");
        CHECK(a && a->kind == MC_H5_INT && a->i == -5);
        a = io_attr(f, "/plain", "u1");
        CHECK(a && a->kind == MC_H5_INT && a->i == 200);
        a = io_attr(f, "/plain", "f4");
        CHECK(a && a->kind == MC_H5_DOUBLE && a->d == 0.25);
        a = io_attr(f, "/plain", "bool");
        CHECK(a && a->kind == MC_H5_BOOL && a->i == 1);
        a = io_attr(f, "/plain", "fixed");
        CHECK(a && a->kind == MC_H5_STRING && a->size == 3 && strcmp(a->s, "abc") == 0);
        CHECK(!io_attr(f, "/plain", "text") && !io_attr(f, "/plain", "list"));
        CHECK(!io_attr(f, "/plain", "beyond_int64"));
        TITLE("two names of one dataset are one object");
        const mc_h5_entry *x = io_find(f, "/plain/f4", NULL), *y = io_find(f, "/tied/f4", NULL);
        CHECK(x && y && x->object == y->object && x->offset == y->offset && !y->problem);
        CHECK(x && y && x->object != io_find(f, "/plain/f8", NULL)->object);
        mc_h5_close(f);
    }
    TITLE("lists groups of thousands of links in the order of their names");
    mc_h5_file *f = io_open(where, "many.h5");
    CHECK(mc_h5_count(f) == 3002); /* and the root and the group */
    for (int64_t i = 3; i < mc_h5_count(f); i++)
        CHECK(strcmp(mc_h5_get(f, i - 1)->path, mc_h5_get(f, i)->path) < 0);
    mc_h5_close(f);
    io_refused(where, "external_link.h5", "'/out' is a link into another file");
    io_refused(where, "external_storage.h5", "'/stolen' keeps its bytes in another file");
    io_refused(where, "foreign_view.h5", "'/g/view' is a view of another file");
    io_refused(where, "unclosed.h5", "it was never closed");
    io_refused(where, "cycle.h5", "has 2 links");
    io_refused(where, "deep.h5", "more than 32 groups deep");
    io_refused(where, "attributes.h5", "attributes, over 1024");
    return check_report();
}

#endif
