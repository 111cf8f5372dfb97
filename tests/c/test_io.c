/* test_io.c: HDF5 files through the C API: what goes in comes out, and what is wrong is refused.
 *
 * With arguments it exchanges files with h5py: see io_files.h.
 */
#include <fcntl.h>

#include "io_files.h"

static void round_trip(void) {
    static const int64_t shapes[][4] = {{0},       {1},          {3, 5},  {0, 3},
                                        {3, 0, 2}, {2, 1, 3, 7}, {300001}};
    static const int ndims[] = {0, 1, 2, 2, 3, 4, 1};
    const char *path = in_folder("all.h5");
    int fake = 0;
    CHECK_OK(mc_device_parse("fake", &fake));
    for (int device = 0; device < 2; device++) {
        TITLE(device ? "tensors of a device the host cannot read come back bit for bit"
                     : "every dtype and shape comes back bit for bit");
        mc_h5_writer *w = NULL;
        mc_tensor *kept[MC_DTYPE_COUNT][7];
        char name[64];
        CHECK_OK(mc_h5_create(&w, path));
        for (int dtype = 0; dtype < MC_DTYPE_COUNT; dtype++) {
            for (int s = 0; s < 7; s++) {
                mc_tensor *t = patterned(dtype, ndims[s], shapes[s], (unsigned)(dtype * 7 + s));
                mc_tensor *there = mc_tensor_new();
                kept[dtype][s] = t;
                if (device) {
                    CHECK_OK(mc_empty(there, dtype, fake, ndims[s], shapes[s]));
                    CHECK_OK(mc_copy(there, t));
                } else {
                    CHECK_OK(mc_alias(there, t));
                }
                snprintf(name, sizeof name, "/%d/%s", s, mc_dtype_name(dtype));
                CHECK_OK(mc_h5_tensor(w, name, there));
                mc_tensor_free(there); /* before commit: the writer has its own handle */
            }
        }
        CHECK_OK(mc_h5_commit(w));
        mc_h5_file *f = NULL;
        CHECK_OK(mc_h5_open(&f, path, NULL));
        CHECK(mc_h5_count(f) == 1 + 7 + 7 * MC_DTYPE_COUNT);
        for (int dtype = 0; f && dtype < MC_DTYPE_COUNT; dtype++) {
            for (int s = 0; s < 7; s++) {
                int64_t index = -1;
                snprintf(name, sizeof name, "/%d/%s", s, mc_dtype_name(dtype));
                const mc_h5_entry *e = io_find(f, name, &index);
                const mc_tensor *t = kept[dtype][s];
                int64_t bytes = mc_tensor_numel(t) * mc_dtype_size(dtype);
                if (!CHECK(e) || !CHECK(e->dtype == dtype && e->ndim == ndims[s])) continue;
                CHECK(memcmp(e->shape, shapes[s], (size_t)ndims[s] * sizeof e->shape[0]) == 0);
                CHECK(e->bytes == bytes && !e->decode && !e->problem);
                CHECK((e->offset >= 0) == (bytes > 0));
                CHECK(bytes < 65536 || e->offset % 4096 == 0);
                mc_tensor *got = mc_tensor_new(), *host = mc_tensor_new();
                CHECK_OK(mc_empty(got, dtype, device ? fake : 0, ndims[s], shapes[s]));
                CHECK_OK(mc_h5_read(f, index, 0, got));
                CHECK_OK(mc_empty(host, dtype, 0, ndims[s], shapes[s]));
                CHECK_OK(mc_copy(host, got));
                int equal = 0;
                CHECK_OK(mc_equal(t, host, &equal));
                CHECK(equal);
                char digest[33];
                CHECK_OK(mc_h5_digest(f, index, digest));
                const mc_h5_attr *a = io_attr(f, name, "digest");
                CHECK(a && a->size == 32 && strcmp(a->s, digest) == 0);
                a = io_attr(f, name, "dtype");
                CHECK(a && strcmp(a->s, mc_dtype_name(dtype)) == 0);
                mc_tensor_free(got);
                mc_tensor_free(host);
            }
        }
        for (int i = 0; i < 7 * MC_DTYPE_COUNT; i++) mc_tensor_free(kept[i / 7][i % 7]);
        mc_h5_close(f);
    }
    unlink(path);
}

static void known_digests(void) {
    TITLE("digests are xxh3-128 in canonical form");
    const char *path = in_folder("digest.h5");
    mc_h5_writer *w = NULL;
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_bytes(w, "/empty", NULL, 0));
    CHECK_OK(mc_h5_bytes(w, "/a", "a", 1));
    CHECK_OK(mc_h5_commit(w));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    const mc_h5_attr *a = io_attr(f, "/empty", "digest");
    CHECK(a && strcmp(a->s, "99aa06d3014798d86001c324468d497f") == 0);
    a = io_attr(f, "/a", "digest");
    CHECK(a && strcmp(a->s, "a96faf705af16834e6c632b61e964e1f") == 0);
    mc_h5_close(f);
    unlink(path);
}

static void attributes(void) {
    const char *path = in_folder("attributes.h5");
    char *text = malloc(65537), name[32];
    memset(text, 'x', 65537);
    mc_h5_writer *w = NULL;
    TITLE("attributes of every kind come back, long and empty text too");
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_attr_int(w, "/", "least", INT64_MIN));
    CHECK_OK(mc_h5_attr_double(w, "/", "minus zero", -0.0));
    CHECK_OK(mc_h5_attr_bool(w, "/", "yes", 7));
    CHECK_OK(mc_h5_attr_string(w, "/", "empty", "", 0));
    CHECK_OK(mc_h5_attr_string(w, "/", "nul inside", "a\0b", 3));
    CHECK_OK(mc_h5_attr_string(w, "/", "spaces ", " s ", 3));
    CHECK_OK(mc_h5_group(w, "/many"));
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "n%d", i);
        CHECK_OK(mc_h5_attr_int(w, "/many", name, i));
    }
    CHECK_OK(mc_h5_attr_string(w, "/many", "long", text, 65536));
    CHECK_OK(mc_h5_bytes(w, "/d", text, 10));
    CHECK_OK(mc_h5_attr_string(w, "/d", "note", "on a tensor", 11));
    CHECK_OK(mc_h5_commit(w));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    const mc_h5_attr *a = io_attr(f, "/", "least");
    CHECK(a && a->kind == MC_H5_INT && a->i == INT64_MIN);
    a = io_attr(f, "/", "minus zero");
    CHECK(a && a->kind == MC_H5_DOUBLE && a->d == 0 && signbit(a->d));
    a = io_attr(f, "/", "yes");
    CHECK(a && a->kind == MC_H5_BOOL && a->i == 1);
    a = io_attr(f, "/", "empty");
    CHECK(a && a->kind == MC_H5_STRING && a->size == 0 && a->s && !*a->s);
    a = io_attr(f, "/", "nul inside");
    CHECK(a && a->size == 3 && memcmp(a->s, "a\0b", 4) == 0);
    a = io_attr(f, "/", "spaces ");
    CHECK(a && a->size == 3 && strcmp(a->s, " s ") == 0);
    a = io_attr(f, "/many", "n199");
    CHECK(a && a->i == 199);
    a = io_attr(f, "/many", "long");
    CHECK(a && a->size == 65536 && a->s[65535] == 'x' && a->s[65536] == '\0');
    a = io_attr(f, "/d", "note");
    CHECK(a && strcmp(a->s, "on a tensor") == 0);
    const mc_h5_entry *many = io_find(f, "/many", NULL);
    CHECK(many && many->n_attrs == 201);
    mc_h5_close(f);
    unlink(path);

    TITLE("every NaN attribute comes back as the one NaN that LuaJIT can hold");
    static const uint64_t patterns[] = {UINT64_C(0xffffffffffffffff), UINT64_C(0xfffb7fff12345678),
                                        UINT64_C(0xfff8000000000001), UINT64_C(0x7ff0000000000001)};
    static const char *const names[] = {"a", "b", "c", "d"};
    CHECK_OK(mc_h5_create(&w, path));
    for (int i = 0; i < 4; i++) {
        double value;
        memcpy(&value, &patterns[i], sizeof value);
        CHECK_OK(mc_h5_attr_double(w, "/", names[i], value));
    }
    CHECK_OK(mc_h5_commit(w));
    CHECK_OK(mc_h5_open(&f, path, NULL));
    for (int i = 0; i < 4; i++) {
        uint64_t bits = 0;
        a = io_attr(f, "/", names[i]);
        if (CHECK(a && a->kind == MC_H5_DOUBLE)) memcpy(&bits, &a->d, sizeof bits);
        CHECK(bits == UINT64_C(0x7ff8000000000000) || bits == UINT64_C(0xfff8000000000000));
    }
    mc_h5_close(f);
    unlink(path);

    TITLE("attributes that cannot be kept are refused, and then the file is not saved");
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_STATUS(mc_h5_attr_string(w, "/", "long", text, 65537), MC_EINVAL, "has 65537 bytes");
    CHECK_STATUS(mc_h5_attr_string(w, "/", "x", "a\0", 2), MC_EINVAL, "ends in a NUL byte");
    CHECK_STATUS(mc_h5_attr_int(w, "/none", "x", 1), MC_EINVAL, "no group or tensor '/none'");
    CHECK_STATUS(mc_h5_attr_int(w, "/", "", 1), MC_EINVAL, "name has 1 to");
    CHECK_OK(mc_h5_attr_int(w, "/", "x", 1));
    CHECK_STATUS(mc_h5_attr_int(w, "/", "x", 2), MC_EINVAL, "has an attribute 'x' already");
    CHECK_STATUS(mc_h5_commit(w), MC_EINVAL, "a call before failed: h5_attr_string");
    CHECK(count_files("attributes.h5") == 0);
    free(text);
}

static void paths(void) {
    TITLE("paths that are no names, taken, or too deep are refused");
    const char *path = in_folder("paths.h5");
    mc_h5_writer *w = NULL;
    char deep[128] = "";
    for (int i = 0; i < 32; i++) strcat(deep, "/g");
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_bytes(w, "/a/b", "x", 1));
    CHECK_OK(mc_h5_group(w, "/a"));
    CHECK_OK(mc_h5_group(w, "/"));
    CHECK_OK(mc_h5_bytes(w, "/..", "x", 1));
    CHECK_OK(mc_h5_bytes(w, deep, "x", 1));
    CHECK_OK(mc_h5_commit(w));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    CHECK(io_find(f, deep, NULL) && io_find(f, "/..", NULL));
    mc_h5_close(f);

    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_bytes(w, "/a/b", "x", 1));
    CHECK_STATUS(mc_h5_bytes(w, "/a/b", "x", 1), MC_EINVAL, "'/a/b' is there already");
    CHECK_STATUS(mc_h5_bytes(w, "/a", "x", 1), MC_EINVAL, "'/a' is there already");
    CHECK_STATUS(mc_h5_bytes(w, "/a/b/c", "x", 1), MC_EINVAL, "'/a/b' is a tensor, not a group");
    CHECK_STATUS(mc_h5_bytes(w, "a", "x", 1), MC_EINVAL, "does not begin with '/'");
    CHECK_STATUS(mc_h5_bytes(w, "/", "x", 1), MC_EINVAL, "'/' is a group");
    CHECK_STATUS(mc_h5_bytes(w, "/x//y", "x", 1), MC_EINVAL, "has a part ''");
    CHECK_STATUS(mc_h5_bytes(w, "/x/./y", "x", 1), MC_EINVAL, "has a part '.'");
    CHECK_STATUS(mc_h5_bytes(w, "/x/", "x", 1), MC_EINVAL, "has a part ''");
    CHECK_STATUS(mc_h5_group(w, strcat(deep, "/g")), MC_EINVAL, "has 33 parts");
    CHECK_STATUS(mc_h5_link(w, "/l", "/none"), MC_EINVAL, "no group or tensor '/none'");
    CHECK_STATUS(mc_h5_link(w, "/l", "/a"), MC_EINVAL, "'/a' is a group");
    CHECK_STATUS(mc_h5_link(w, "/a/b", "/a/b"), MC_EINVAL, "'/a/b' is there already");
    CHECK_STATUS(mc_h5_bytes(w, "/n", NULL, -1), MC_EINVAL, "a length of -1");
    mc_h5_discard(w);
    CHECK(count_files("tmp") == 0);

    TITLE("tensors that are empty handles or not contiguous are refused");
    int64_t shape[2] = {4, 6}, axes[2] = {1, 0};
    mc_tensor *t = patterned(MC_FLOAT32, 2, shape, 1), *turned = mc_tensor_new();
    CHECK_OK(mc_permute(turned, t, 2, axes));
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_STATUS(mc_h5_tensor(w, "/t", turned), MC_EINVAL, "'/t': the tensor is not contiguous");
    CHECK_STATUS(mc_h5_tensor(w, "/t", NULL), MC_EINVAL, "'/t': the tensor is empty");
    mc_h5_discard(w);
    mc_tensor_free(t);
    mc_tensor_free(turned);
    unlink(path);
}

static void ties_and_order(void) {
    TITLE("a tie is one object under two names, and entries come in the order of their names");
    const char *path = in_folder("ties.h5");
    const char *order[] = {"/", "/a", "/a/x", "/a-b", "/b", "/b/1", "/b/10", "/b/2", "/c"};
    mc_h5_writer *w = NULL;
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_bytes(w, "/c", "123", 3));
    CHECK_OK(mc_h5_bytes(w, "/b/2", "2", 1));
    CHECK_OK(mc_h5_bytes(w, "/b/10", "10", 2));
    CHECK_OK(mc_h5_bytes(w, "/b/1", "1", 1));
    CHECK_OK(mc_h5_group(w, "/a-b"));
    CHECK_OK(mc_h5_link(w, "/a/x", "/c"));
    CHECK_OK(mc_h5_attr_int(w, "/a/x", "seen", 1));
    CHECK_OK(mc_h5_commit(w));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    CHECK(mc_h5_count(f) == 9);
    for (int i = 0; i < 9 && i < mc_h5_count(f); i++)
        CHECK(strcmp(mc_h5_get(f, i)->path, order[i]) == 0);
    const mc_h5_entry *a = io_find(f, "/a/x", NULL), *c = io_find(f, "/c", NULL);
    CHECK(a && c && a->object == c->object && a->offset == c->offset && a->bytes == 3);
    CHECK(io_attr(f, "/c", "seen") && io_attr(f, "/a/x", "seen"));
    CHECK(!mc_h5_get(f, -1) && !mc_h5_get(f, 9) && !mc_h5_get_attr(f, 1 << 20));
    mc_h5_close(f);
    unlink(path);
}

static void parts(void) {
    TITLE("a read takes any stretch of a tensor and refuses what does not fit");
    const char *path = in_folder("parts.h5");
    CHECK_OK(save(path, 3));
    mc_h5_file *f = NULL;
    int64_t index = -1, n = 1000, none = 0, group = -1;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    io_find(f, "/x/b", &index);
    io_find(f, "/x", &group);
    int64_t large = 40000;
    mc_tensor *all = patterned(MC_BFLOAT16, 1, &large, 3), *want = mc_tensor_new();
    mc_tensor *t = mc_tensor_new(), *other = mc_tensor_new(), *empty = mc_tensor_new();
    CHECK_OK(mc_empty(t, MC_BFLOAT16, 0, 1, &n));
    CHECK_OK(mc_empty(empty, MC_BFLOAT16, 0, 1, &none));
    CHECK_OK(mc_empty(other, MC_FLOAT16, 0, 1, &n));
    int64_t before = mc_tensor_version(t);
    int equal = 0;
    CHECK_OK(mc_h5_read(f, index, 39000, t));
    CHECK(mc_tensor_version(t) > before);
    CHECK_OK(mc_narrow(want, all, 0, 39000, n));
    CHECK_OK(mc_equal(want, t, &equal));
    CHECK(equal);
    CHECK_OK(mc_h5_read(f, index, 40000, empty));
    CHECK_STATUS(mc_h5_read(f, index, 39001, t), MC_EINVAL, "wanted are 1000 from 39001");
    CHECK_STATUS(mc_h5_read(f, index, -1, t), MC_EINVAL, "has 40000 elements");
    CHECK_STATUS(mc_h5_read(f, index, INT64_MAX, t), MC_EINVAL, "has 40000 elements");
    CHECK_STATUS(mc_h5_read(f, index, 0, other), MC_EINVAL,
                 "'/x/b' is bfloat16 and the tensor is float16");
    CHECK_STATUS(mc_h5_read(f, group, 0, t), MC_EINVAL, "'/x' is a group");
    CHECK_STATUS(mc_h5_read(f, 99, 0, t), MC_EINVAL, "there is no 99");
    CHECK_STATUS(mc_h5_read(f, index, 0, NULL), MC_EINVAL, "the tensor is empty");
    mc_tensor_free(all);
    mc_tensor_free(want);
    mc_tensor_free(t);
    mc_tensor_free(other);
    mc_tensor_free(empty);
    TITLE("an open file stays what it was when a save replaces it");
    CHECK_OK(save(path, 4));
    char digest[33];
    CHECK_OK(mc_h5_digest(f, index, digest));
    const mc_h5_attr *a = io_attr(f, "/x/b", "digest");
    CHECK(a && strcmp(a->s, digest) == 0);
    mc_h5_close(f);
    CHECK(is_saved(path, 4));
    unlink(path);
}

/* The file at `path` has datasets /a (int32 0, 1, ... of 3,000,000), /b (1000 of them) and /c (10
 * bools); fills tensors of `device` by one call. */
static void many_into(mc_h5_file *f, int device) {
    int64_t a = -1, b = -1, c = -1, n = 2000500, m = 1000, k = 10, zero = 0;
    io_find(f, "/a", &a);
    io_find(f, "/b", &b);
    io_find(f, "/c", &c);
    mc_tensor *all = mc_tensor_new(), *one = mc_tensor_new(), *bits = mc_tensor_new();
    CHECK_OK(mc_empty(all, MC_INT32, device, 1, &n));
    CHECK_OK(mc_fill(all, -1));
    CHECK_OK(mc_empty(one, MC_INT32, device, 1, &m));
    CHECK_OK(mc_empty(bits, MC_BOOL, device, 1, &k));
    mc_h5_stretch list[] = {
        {c, 0, 10, bits, 0},       {a, 1000000, 2000000, all, 500},
        {b, 999, 1, all, 499},     {b, 0, 498, all, 0},
        {b, 499, 501, one, 499},   {b, 0, 499, one, 0},
        {a, 2999999, 1, all, 498}, {a, 7, 0, one, 1000},
    };
    int64_t before = mc_tensor_version(one);
    CHECK_OK(mc_h5_read_many(f, list, sizeof list / sizeof *list));
    CHECK(mc_tensor_version(one) > before);
    int32_t *got = malloc((size_t)n * sizeof *got);
    CHECK_OK(mc_read(all, got, n * 4));
    int64_t wrong = (got[498] != 2999999) + (got[499] != 999);
    for (int i = 0; i < 498; i++) wrong += got[i] != i;
    for (int i = 500; i < n; i++) wrong += got[i] != 1000000 + i - 500;
    CHECK_OK(mc_read(one, got, m * 4));
    for (int i = 0; i < m; i++) wrong += got[i] != i;
    CHECK(wrong == 0);
    unsigned char truth[10];
    CHECK_OK(mc_read(bits, truth, k));
    for (int i = 0; i < k; i++) CHECK(truth[i] == i % 2);

    mc_h5_stretch bad[] = {{b, 0, 1000, one, 0}, {b, 0, 1000, one, 0}};
    CHECK_OK(mc_fill(one, 0));
    before = mc_tensor_version(one);
#define REFUSED(part) CHECK_STATUS(mc_h5_read_many(f, bad, 2), MC_EINVAL, part)
    bad[1].target_first = 1;
    REFUSED("'/b': the tensor has 1000 elements, to be filled are 1000 from 1 (0-based)");
    bad[1].target_first = -1;
    REFUSED("to be filled are 1000 from -1");
    bad[1].target_first = INT64_MAX;
    REFUSED("the tensor has 1000 elements");
    bad[1] = (mc_h5_stretch){a, 3000000, 1, one, 0};
    REFUSED("'/a' has 3000000 elements, wanted are 1 from 3000000 (0-based)");
    bad[1] = (mc_h5_stretch){a, 0, -1, one, 0};
    REFUSED("wanted are -1 from 0");
    bad[1] = (mc_h5_stretch){c, 0, 1, one, 0};
    REFUSED("'/c' is bool and the tensor is int32");
    bad[1] = (mc_h5_stretch){c, 0, 1, NULL, 0};
    REFUSED("'/c': the tensor is empty");
    bad[1] = (mc_h5_stretch){0, 0, 1, one, 0};
    REFUSED("'/' is a group");
#undef REFUSED
    CHECK_STATUS(mc_h5_read_many(f, NULL, 1), MC_EINVAL, "no list");
    CHECK_STATUS(mc_h5_read_many(NULL, bad, 1), MC_EINVAL, "no file");
    CHECK_OK(mc_h5_read_many(f, NULL, zero));
    CHECK_OK(mc_read(one, got, m * 4));
    for (int i = 0; i < m; i++) wrong += got[i] != 0;
    CHECK(wrong == 0 && mc_tensor_version(one) == before);
    free(got);
    mc_tensor_free(all);
    mc_tensor_free(one);
    mc_tensor_free(bits);
}

static void many(void) {
    TITLE("many stretches are read at once; one that is wrong leaves all unread");
    const char *path = in_folder("many.h5");
    int64_t n = 3000000, m = 1000, k = 10;
    int32_t *values = malloc((size_t)n * sizeof *values);
    unsigned char truth[10];
    for (int i = 0; i < n; i++) values[i] = i;
    for (int i = 0; i < k; i++) truth[i] = (unsigned char)(i % 2);
    mc_tensor *a = io_tensor(MC_INT32, 1, &n, values), *b = io_tensor(MC_INT32, 1, &m, values);
    mc_tensor *c = io_tensor(MC_BOOL, 1, &k, truth);
    mc_h5_writer *w = NULL;
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_tensor(w, "/a", a));
    CHECK_OK(mc_h5_tensor(w, "/b", b));
    CHECK_OK(mc_h5_tensor(w, "/c", c));
    CHECK_OK(mc_h5_commit(w));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    int fake = 0;
    CHECK_OK(mc_device_parse("fake", &fake));
    many_into(f, 0);
    many_into(f, fake);

    TITLE("a failure among many names its dataset");
    int64_t at[3] = {-1, -1, -1};
    const mc_h5_entry *e = io_find(f, "/c", &at[2]);
    io_find(f, "/b", &at[1]);
    io_find(f, "/a", &at[0]);
    mc_h5_stretch list[] = {{at[0], 0, n, a, 0}, {at[1], 0, m, b, 0}, {at[2], 0, k, c, 0}};
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && e && pwrite(fd, "\7", 1, e->offset + 4) == 1);
    CHECK_STATUS(mc_h5_read_many(f, list, 3), MC_EFORMAT,
                 "many.h5: '/c' holds 7 as a bool at position 4 (0-based)");
    e = io_find(f, "/a", NULL);
    const mc_h5_entry *last = e;
    for (int i = 0; i < 3; i++) {
        if (mc_h5_get(f, at[i])->offset > last->offset) last = mc_h5_get(f, at[i]);
    }
    char part[128];
    snprintf(part, sizeof part, "many.h5: cannot read '%s': the file ends too early", last->path);
    CHECK(ftruncate(fd, last->offset + last->bytes - 1) == 0);
    CHECK_STATUS(mc_h5_read_many(f, list, 3), MC_EIO, part);
    CHECK(ftruncate(fd, e->offset + 8000000) == 0);
    CHECK_STATUS(mc_h5_read_many(f, list, 1), MC_EIO, "cannot read '/a': the file ends too early");
    close(fd);
    mc_h5_close(f);
    mc_tensor_free(a);
    mc_tensor_free(b);
    mc_tensor_free(c);
    free(values);
    unlink(path);
}

static void equal_files(void) {
    TITLE("equal content gives equal files, whenever and wherever it is written");
    size_t n = 0, m = 0;
    CHECK_OK(save(in_folder("one.h5"), 5));
    sleep(1); /* a stored time would differ now */
    int threads = mc_get_num_threads();
    CHECK_OK(mc_set_num_threads(threads == 1 ? 2 : 1));
    CHECK_OK(save(in_folder("another name.h5"), 5));
    CHECK_OK(mc_set_num_threads(threads));
    char *a = slurp(in_folder("one.h5"), &n), *b = slurp(in_folder("another name.h5"), &m);
    CHECK(n > 0 && n == m && memcmp(a, b, n) == 0);
    free(b);
    CHECK_OK(save(in_folder("one.h5"), 6));
    b = slurp(in_folder("one.h5"), &m);
    CHECK(n == m && memcmp(a, b, n) != 0);
    free(a);
    free(b);
    unlink(in_folder("one.h5"));
    unlink(in_folder("another name.h5"));
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "write") == 0) return io_write_file(argv[2]);
    if (argc == 3 && strcmp(argv[1], "read") == 0) return io_read_folder(argv[2]);
    if (!make_folder()) return 1;
    round_trip();
    known_digests();
    attributes();
    paths();
    ties_and_order();
    parts();
    many();
    equal_files();
    remove_folder();
    return check_report();
}
