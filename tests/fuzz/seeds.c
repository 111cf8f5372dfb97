/* seeds.c: makes the files that the fuzzers begin with.
 *
 *   fuzz_seeds FOLDER [FILE.h5...]
 *
 * FOLDER/open/ gets HDF5 files: mascon's own, with views where asked, and what libhdf5 writes for
 * others in its older and newer formats, plus copies of each FILE. FOLDER/reply/ gets the listing
 * of each of them that can be opened, as the helper sends it (io/scan.h), behind the parent's
 * facts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <hdf5.h>

#include "io/scan.h"
#include "mascon.h"

static const char *folder;
static int failures;

#define DO(call)                                                           \
    do {                                                                   \
        if ((call) < 0) {                                                  \
            fprintf(stderr, "fuzz_seeds: line %d: %s\n", __LINE__, #call); \
            failures++;                                                    \
        }                                                                  \
    } while (0)
/* of the core */
#define OK(call)                                                                                \
    do {                                                                                        \
        if ((call) != MC_OK) {                                                                  \
            fprintf(stderr, "fuzz_seeds: line %d: %s: %s\n", __LINE__, #call, mc_last_error()); \
            failures++;                                                                         \
        }                                                                                       \
    } while (0)

static const char *in(const char *kind, const char *name) {
    static char text[4096];
    snprintf(text, sizeof text, "%s/%s/%s", folder, kind, name);
    return text;
}

/* -- mascon's own ------------------------------------------------------------------------------ */

static void make_own(const char *name, int experts, int views) {
    mc_h5_writer *w = NULL;
    int64_t member[2] = {3, 5}, all[3] = {experts, 3, 5}, none[2] = {0, 4};
    mc_tensor *one = mc_tensor_new(), *stack = mc_tensor_new(), *empty = mc_tensor_new();
    OK(mc_empty(one, MC_FLOAT32, 0, 2, member));
    OK(mc_empty(stack, MC_BFLOAT16, 0, 3, all));
    OK(mc_empty(empty, MC_INT64, 0, 2, none));
    OK(mc_fill(one, 1.5));
    OK(mc_fill(stack, 2));
    OK(mc_h5_create(&w, in("open", name)));
    OK(mc_h5_attr_string(w, "/", "format", "mascon", 6));
    OK(mc_h5_attr_int(w, "/", "format_version", 1));
    OK(mc_h5_attr_bool(w, "/", "table", 1));
    OK(mc_h5_attr_double(w, "/", "rate", 0.5));
    char path[64], paths[64][64];
    const char *sources[64];
    for (int i = 0; i < experts; i++) {
        snprintf(paths[i], sizeof paths[i], "/m/a/weight%d", i);
        sources[i] = paths[i];
        OK(mc_h5_tensor(w, paths[i], one));
    }
    OK(mc_h5_attr_string(w, "/m/a", "type", "GroupedLinear", 13));
    OK(mc_h5_attr_int(w, "/m/a", "num_gemms", experts));
    OK(mc_h5_tensor(w, "/m/b/weight", stack));
    OK(mc_h5_tensor(w, "/m/empty", empty));
    OK(mc_h5_link(w, "/m/tied", "/m/a/weight0"));
    OK(mc_h5_bytes(w, "/text", "{\"a\": 1}", 8));
    OK(mc_h5_group(w, "/bare/group"));
    if (views) {
        OK(mc_h5_view_stack(w, "/m/a/weight", experts, sources));
        for (int i = 0; i < experts; i++) {
            snprintf(path, sizeof path, "/m/b/weight%d", i);
            OK(mc_h5_view_select(w, path, "/m/b/weight", i));
        }
    }
    OK(mc_h5_commit(w));
    mc_tensor_free(one);
    mc_tensor_free(stack);
    mc_tensor_free(empty);
}

/* -- other people's ---------------------------------------------------------------------------- */

static void put(hid_t where, const char *name, hid_t type, hid_t props, int ndim,
                const hsize_t *shape) {
    static float zeros[4096];
    hid_t space = H5Screate_simple(ndim, shape, NULL);
    hid_t set = H5Dcreate2(where, name, type, space, H5P_DEFAULT, props, H5P_DEFAULT);
    DO(set);
    DO(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros));
    H5Dclose(set);
    H5Sclose(space);
}

static void put_attr(hid_t where, const char *name, hid_t type, hid_t space, const void *value) {
    hid_t attr = H5Acreate2(where, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    DO(attr);
    DO(H5Awrite(attr, type, value));
    H5Aclose(attr);
}

static void make_foreign(const char *name, H5F_libver_t low, int userblock) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), create = H5Pcreate(H5P_FILE_CREATE);
    DO(H5Pset_libver_bounds(access, low, H5F_LIBVER_LATEST));
    if (userblock) DO(H5Pset_userblock(create, 512));
    hid_t file = H5Fcreate(in("open", name), H5F_ACC_TRUNC, create, access);
    DO(file);
    hsize_t shape[3] = {6, 5, 4}, chunk[3] = {4, 5, 2}, one = 1, many = 40;
    hid_t scalar = H5Screate(H5S_SCALAR), list = H5Screate_simple(1, &many, NULL);
    hid_t fixed = H5Tcopy(H5T_C_S1), text = H5Tcopy(H5T_C_S1);
    DO(H5Tset_size(fixed, 7));
    DO(H5Tset_size(text, H5T_VARIABLE));
    hid_t g = H5Gcreate2(file, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    put(g, "plain", H5T_IEEE_F32LE, H5P_DEFAULT, 3, shape);
    put(g, "big", H5T_STD_I32BE, H5P_DEFAULT, 2, shape);
    put(g, "int16", H5T_STD_I16LE, H5P_DEFAULT, 1, shape);
    put(g, "one", H5T_IEEE_F64LE, H5P_DEFAULT, 1, &one);

    hid_t p = H5Pcreate(H5P_DATASET_CREATE);
    DO(H5Pset_chunk(p, 3, chunk));
    put(g, "chunked", H5T_IEEE_F32LE, p, 3, shape);
    DO(H5Pset_shuffle(p));
    DO(H5Pset_deflate(p, 4));
    DO(H5Pset_fletcher32(p));
    put(g, "gzip", H5T_IEEE_F32LE, p, 3, shape);
    H5Pclose(p);
    p = H5Pcreate(H5P_DATASET_CREATE);
    DO(H5Pset_layout(p, H5D_COMPACT));
    put(g, "compact", H5T_STD_U8LE, p, 2, shape);
    H5Pclose(p);
    p = H5Pcreate(H5P_DATASET_CREATE); /* never written: its fill value */
    float seven = 7;
    DO(H5Pset_fill_value(p, H5T_NATIVE_FLOAT, &seven));
    hid_t space = H5Screate_simple(3, shape, NULL);
    hid_t set = H5Dcreate2(g, "unwritten", H5T_IEEE_F32LE, space, H5P_DEFAULT, p, H5P_DEFAULT);
    DO(set);
    H5Dclose(set);
    H5Pclose(p);
    p = H5Pcreate(H5P_DATASET_CREATE); /* a view of the file's own */
    DO(H5Pset_virtual(p, space, ".", "/g/plain", space));
    set = H5Dcreate2(g, "view", H5T_IEEE_F32LE, space, H5P_DEFAULT, p, H5P_DEFAULT);
    DO(set);
    H5Dclose(set);
    H5Pclose(p);
    H5Sclose(space);

    hid_t truth = H5Tenum_create(H5T_NATIVE_INT8);
    signed char no = 0, yes = 1;
    DO(H5Tenum_insert(truth, "FALSE", &no));
    DO(H5Tenum_insert(truth, "TRUE", &yes));
    put(g, "bool", truth, H5P_DEFAULT, 1, shape);
    int number = 5;
    int numbers[40] = {0};
    const char *words = "text";
    put_attr(file, "title", text, scalar, &words);
    put_attr(g, "int", H5T_NATIVE_INT, scalar, &number);
    put_attr(g, "list", H5T_NATIVE_INT, list, numbers);
    put_attr(g, "fixed", fixed, scalar, "abc\0\0\0");
    put_attr(g, "bool", truth, scalar, &yes);
    put_attr(g, "real", H5T_NATIVE_FLOAT, scalar, &seven);
    hid_t dense = H5Gcreate2(file, "dense", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    for (int i = 0; i < 12; i++) { /* over 8, new files keep links and attributes in a heap */
        char label[32];
        snprintf(label, sizeof label, "%d", i);
        put(dense, label, H5T_STD_I64LE, H5P_DEFAULT, 1, shape);
        put_attr(dense, label, H5T_NATIVE_INT, scalar, &number);
    }
    DO(H5Lcreate_hard(file, "g/plain", file, "again", H5P_DEFAULT, H5P_DEFAULT));
    DO(H5Lcreate_soft("/g/plain", file, "soft", H5P_DEFAULT, H5P_DEFAULT));
    H5Gclose(dense);
    H5Tclose(truth);
    H5Tclose(fixed);
    H5Tclose(text);
    H5Sclose(scalar);
    H5Sclose(list);
    H5Gclose(g);
    DO(H5Fclose(file));
    H5Pclose(access);
    H5Pclose(create);
}

static void copy_file(const char *from, const char *to) {
    static char block[1 << 20];
    FILE *source = fopen(from, "rb"), *target = fopen(to, "wb");
    size_t n = source ? fread(block, 1, sizeof block, source) : 0;
    if (!target || n == 0 || fwrite(block, 1, n, target) != n) {
        fprintf(stderr, "fuzz_seeds: %s: cannot copy it\n", from);
        failures++;
    }
    if (source) fclose(source);
    if (target && fclose(target) != 0) failures++;
}

/* -- listings ---------------------------------------------------------------------------------- */

/* Writes what the helper would have said of an open file, behind what is in `out` already. */
static void write_listing(const mc_h5_file *f, FILE *out) {
    long start = ftell(out);
    mci_scan_listing head = {.own = (uint32_t)mc_h5_is_own(f), .n_rows = (uint32_t)mc_h5_count(f)};
    fwrite(&head, sizeof head, 1, out);
    for (int64_t i = 0; i < mc_h5_count(f); i++) {
        const mc_h5_entry *e = mc_h5_get(f, i);
        mci_scan_row row = {.kind = (int8_t)e->kind,
                            .dtype = (int8_t)e->dtype,
                            .decode = (int8_t)e->decode,
                            .path = (uint16_t)(strlen(e->path) + 1),
                            .offset = e->offset,
                            .bytes = e->bytes,
                            .object = e->object};
        for (int64_t k = 0; k < i && e->kind != MC_H5_GROUP && !row.same; k++) {
            if (mc_h5_get(f, k)->object == e->object) row.same = (uint32_t)k + 1;
        }
        if (!row.same) {
            row.ndim = (int8_t)e->ndim;
            row.problem = (uint16_t)(e->problem ? strlen(e->problem) + 1 : 0);
            row.n_attrs = (uint32_t)e->n_attrs;
        }
        fwrite(&row, sizeof row, 1, out);
        fwrite(e->shape, sizeof *e->shape, (size_t)row.ndim, out);
        fwrite(e->path, 1, row.path, out);
        if (row.problem) fwrite(e->problem, 1, row.problem, out);
        head.n_chars += row.path + (uint32_t)row.problem;
        for (uint32_t k = 0; k < row.n_attrs; k++) {
            const mc_h5_attr *a = mc_h5_get_attr(f, e->first_attr + (int64_t)k);
            mci_scan_attr raw = {.name = (uint16_t)(strlen(a->name) + 1),
                                 .kind = (uint16_t)a->kind,
                                 .size = (uint32_t)a->size,
                                 .i = a->i,
                                 .d = a->d};
            fwrite(&raw, sizeof raw, 1, out);
            fwrite(a->name, 1, raw.name, out);
            head.n_chars += raw.name;
            if (a->kind == MC_H5_STRING) {
                fwrite(a->s, 1, (size_t)a->size + 1, out);
                head.n_chars += raw.size + 1;
            }
            head.n_attrs++;
        }
    }
    fseek(out, start, SEEK_SET);
    fwrite(&head, sizeof head, 1, out);
    fseek(out, 0, SEEK_END);
}

static void write_reply(const mc_h5_file *f, const char *name, int64_t file_bytes) {
    int base = strstr(name, "userblock") != NULL;
    int64_t facts[3] = {file_bytes, file_bytes * 16 + (1 << 26), base | 3 << 8};
    mci_scan_header header = {.magic = MCI_SCAN_MAGIC, .status = MC_OK};
    FILE *reply = fopen(in("reply", name), "wb"), *talk = fopen(in("talk", name), "wb");
    if (!reply || !talk) {
        perror(folder);
        exit(1);
    }
    fwrite(facts, sizeof facts, 1, reply);
    write_listing(f, reply);
    fwrite(&header, sizeof header, 1, talk);
    write_listing(f, talk);
    header.bytes = ftell(talk) - (long)sizeof header;
    for (int64_t i = 0; i < file_bytes; i++) fputc(0, talk);
    rewind(talk);
    fwrite(&header, sizeof header, 1, talk);
    if (fclose(reply) != 0 || fclose(talk) != 0) failures++;
}

static void make_reply(const char *name) {
    mc_h5_file *f = NULL;
    struct stat st;
    char path[4096];
    snprintf(path, sizeof path, "%s", in("open", name));
    if (stat(path, &st) != 0) return;
    OK(mc_h5_open(&f, path, NULL));
    if (f) write_reply(f, name, st.st_size);
    mc_h5_close(f);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"own.h5", "views.h5",  "many.h5",
                                        "old.h5", "latest.h5", "userblock.h5"};
    if (argc < 2) {
        fputs("usage: fuzz_seeds FOLDER [FILE.h5...]\n", stderr);
        return 2;
    }
    folder = argv[1];
    mkdir(folder, 0755);
    mkdir(in("open", ""), 0755);
    mkdir(in("reply", ""), 0755);
    mkdir(in("talk", ""), 0755);
    make_own(names[0], 2, 0);
    make_own(names[1], 3, 1);
    make_own(names[2], 12, 1);
    make_foreign(names[3], H5F_LIBVER_EARLIEST, 0);
    make_foreign(names[4], H5F_LIBVER_LATEST, 0);
    make_foreign(names[5], H5F_LIBVER_EARLIEST, 1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) make_reply(names[i]);
    for (int i = 2; i < argc; i++) {
        char name[32];
        snprintf(name, sizeof name, "given%d.h5", i);
        copy_file(argv[i], in("open", name));
        make_reply(name);
    }
    return failures > 0;
}
