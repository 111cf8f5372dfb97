/* Files that are made to harm their reader: what they are refused with, or listed as, and that
 * neither the time nor the memory of this process suffers. */
#include "hostile_files.h"
#include "io/bytes.h"

static const char plain_way_out[] = "remove the root attribute 'format' to read it as a plain HDF5";

/* The file built last is refused with a message that holds `part`. */
static void refused(const char *part) {
    mc_h5_file *f = NULL;
    CHECK_STATUS(timed_open(&f, in_folder("hostile.h5"), NULL), MC_EFORMAT, part);
    CHECK(!f);
    mc_h5_close(f);
}

static mc_h5_file *opened(void) {
    mc_h5_file *f = NULL;
    CHECK_OK(timed_open(&f, in_folder("hostile.h5"), NULL));
    return f;
}

/* Its one dataset or view `path` is listed with a problem that holds `part`, and cannot be read. */
static void has_problem(const char *path, const char *part) {
    mc_h5_file *f = opened();
    int64_t index = -1;
    const mc_h5_entry *e = io_find(f, path, &index);
    if (CHECK(e && e->problem)) {
        char byte;
        if (!CHECK(strstr(e->problem, part))) printf("it says: %s\n", e->problem);
        CHECK(e->offset == -1 && !e->decode);
        CHECK(mci_h5_fetch(f, index, 0, 0, &byte) != MC_OK);
    }
    mc_h5_close(f);
}

/* -- out of the file ----------------------------------------------------------------------------
 */

static void outward(void) {
    TITLE("links, storage and views that leave the file refuse it");
    for (int how = HF_OLD; how <= HF_OWN; how++) {
        hf_begin(how);
        H5Lcreate_external("/etc/other.h5", "/x", hf, "/out", H5P_DEFAULT, H5P_DEFAULT);
        hf_end();
        refused("'/out' is a link into another file");
        hf_begin(how);
        H5Gclose(H5Gcreate2(hf, "/a", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
        H5Lcreate_external("/etc/other.h5", "/", hf, "/a/b", H5P_DEFAULT, H5P_DEFAULT);
        hf_end();
        refused("'/a/b' is a link into another file");
        hf_begin(how);
        hsize_t n = 16;
        hid_t props = H5Pcreate(H5P_DATASET_CREATE);
        H5Pset_external(props, "/etc/passwd", 0, 64);
        hf_empty_set("/stolen", 1, &n, props);
        H5Pclose(props);
        hf_end();
        refused("'/stolen' keeps its bytes in another file");
        hf_begin(how);
        const char *source = "/a";
        hf_view("/seen", H5T_STD_I32LE, 1, 4, "/etc/other.h5", &source);
        hf_end();
        refused("'/seen' is a view of another file");
    }
}

static void links(void) {
    TITLE("groups with two links, depths and rings are refused, soft links left out");
    hf_begin(HF_OLD);
    H5Gclose(H5Gcreate2(hf, "/a", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Lcreate_hard(hf, "/a", hf, "/a/self", H5P_DEFAULT, H5P_DEFAULT);
    hf_end();
    refused("'/a': it is a group and has 2 links");

    hf_begin(HF_OLD);
    H5Lcreate_soft("/two", hf, "/one", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/one", hf, "/two", H5P_DEFAULT, H5P_DEFAULT);
    hf_end();
    mc_h5_file *f = opened();
    CHECK(mc_h5_count(f) == 1 && !mc_h5_is_own(f));
    mc_h5_close(f);

    hf_begin(HF_NEW);
    hid_t at = H5Gcreate2(hf, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    for (int i = 1; i < 20000; i++) {
        hid_t next = H5Gcreate2(at, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        H5Gclose(at);
        at = next;
    }
    H5Gclose(at);
    hf_end();
    refused("its members lie more than 32 groups deep");
}

/* -- sizes --------------------------------------------------------------------------------------
 */

static void sizes(void) {
    TITLE("sizes that the file does not have are a problem of their dataset");
    hsize_t huge = (hsize_t)1 << 44, square[2] = {(hsize_t)1 << 40, (hsize_t)1 << 40};
    hsize_t chunk[2] = {1, 1}, large[2] = {1 << 15, 1 << 14};
    hf_begin(HF_OLD);
    hf_empty_set("/huge", 1, &huge, H5P_DEFAULT);
    hf_end();
    has_problem("/huge", "too many for a file of");
    hf_begin(HF_OLD);
    hid_t props = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(props, 2, chunk);
    hf_empty_set("/square", 2, square, props);
    hf_end();
    has_problem("/square", "its size overflows");
    hf_begin(HF_OLD);
    H5Pset_chunk(props, 2, large);
    hf_empty_set("/chunk", 2, large, props);
    H5Pclose(props);
    hf_end();
    has_problem("/chunk", "one chunk of it is 2147483648 bytes, far more than the file");

    TITLE("what decodes to far more than its file is a problem, unless it is asked for");
    hf_begin(HF_OLD);
    props = hf_chunks(1 << 22);
    H5Pset_deflate(props, 9);
    H5Pset_fill_time(props, H5D_FILL_TIME_NEVER);
    hsize_t n = 24 << 20, part = 1 << 22, start = 0;
    hid_t space = H5Screate_simple(1, &n, NULL), memory = H5Screate_simple(1, &part, NULL);
    hid_t set = H5Dcreate2(hf, "/bomb", H5T_STD_I32LE, space, H5P_DEFAULT, props, H5P_DEFAULT);
    int *zeros = calloc((size_t)part, sizeof *zeros);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &part, NULL);
    CHECK(H5Dwrite(set, H5T_NATIVE_INT, memory, space, H5P_DEFAULT, zeros) >= 0);
    free(zeros);
    H5Dclose(set);
    H5Sclose(memory);
    H5Sclose(space);
    H5Pclose(props);
    hf_end();
    has_problem("/bomb", "decodes to 100663296 bytes, too many");
    mc_h5_file *f = NULL;
    mc_h5_open_options opts = {.size = sizeof opts, .decode_limit = 100663296};
    CHECK_OK(timed_open(&f, in_folder("hostile.h5"), &opts));
    const mc_h5_entry *e = io_find(f, "/bomb", NULL);
    CHECK(e && !e->problem && e->decode);
    mc_h5_close(f);
    opts.decode_limit--;
    CHECK_OK(timed_open(&f, in_folder("hostile.h5"), &opts));
    e = io_find(f, "/bomb", NULL);
    CHECK(e && e->problem);
    mc_h5_close(f);

    TITLE("a filter that would have to be loaded is a problem");
    hf_begin(HF_OLD);
    props = hf_chunks(16);
    H5Pset_filter(props, 40000, H5Z_FLAG_OPTIONAL, 0, NULL);
    hf_set("/plugin", H5T_STD_I32LE, 64, props);
    H5Pclose(props);
    hf_end();
    has_problem("/plugin", "it needs filter 40000");

    TITLE("two datasets that share bytes refuse the file");
    hf_begin(HF_OLD);
    uint64_t first[2] = {0, 4000}, second[2] = {0, 4000};
    first[0] = hf_set("/a", H5T_STD_I32LE, 1000, H5P_DEFAULT);
    second[0] = hf_set("/b", H5T_STD_I32LE, 1000, H5P_DEFAULT);
    hf_end();
    CHECK(first[0] != second[0]);
    uint64_t between[2] = {first[0] + 3999, 4000};
    hf_patch(second, between, sizeof second);
    refused("'/a' and '/b' share bytes");
    uint64_t outside[2] = {(uint64_t)1 << 40, 4000};
    hf_patch(between, outside, sizeof between);
    has_problem("/b", "its bytes are not all in the file");
}

/* A file with n + 1 links on one dataset. */
static void make_links(int n) {
    hf_begin(HF_NEW);
    hf_set("/x", H5T_STD_I32LE, 8, H5P_DEFAULT);
    hid_t group = H5Gcreate2(hf, "/g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    for (int i = 0; i < n; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        H5Lcreate_hard(hf, "/x", group, name, H5P_DEFAULT, H5P_DEFAULT);
    }
    H5Gclose(group);
    hf_end();
}

static void counts(void) {
    TITLE("more links than a file of its size may have refuse it");
    make_links(190000);
    mc_h5_file *f = NULL;
    long before = resident_mib();
    CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), NULL), MC_EFORMAT,
                 "and attributes (0) than a file of its size may have: listing them would take "
                 "over");
    CHECK(strstr(mc_last_error(), "hostile.h5: more objects (") != NULL);
    CHECK(!f && resident_mib() - before < GROWTH);
    TITLE("as many links as nobody needs are listed");
    make_links(50000);
    CHECK_OK(mc_h5_open(&f, in_folder("hostile.h5"), NULL));
    CHECK(mc_h5_count(f) == 50003);
    mc_h5_close(f);
}

static void attributes(void) {
    TITLE("attributes of variable length and of 60 MB are passed over unread, at any object");
    size_t n = 60 << 20;
    char *text = malloc(n);
    memset(text, 'x', n);
    static const char *const paths[] = {"/", "/g", "/g/d"};
    for (int large = 0; large < 2; large++) {
        for (int i = 0; i < 3; i++) {
            hf_begin(HF_NEW);
            H5Gclose(H5Gcreate2(hf, "/g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
            hf_set("/g/d", H5T_STD_I32LE, 4, H5P_DEFAULT);
            hid_t object = H5Oopen(hf, paths[i], H5P_DEFAULT);
            hf_text(object, "a", "small", 5);
            hf_text(object, "b", large ? text : "any length", large ? n : 0);
            H5Oclose(object);
            hf_end();
            mc_h5_file *f = opened();
            CHECK(mc_h5_count(f) == 3 && io_attr(f, paths[i], "a") && !io_attr(f, paths[i], "b"));
            mc_h5_close(f);
        }
    }
    TITLE("in a file of mascon's own they refuse it");
    for (int large = 0; large < 2; large++) {
        hf_begin(HF_OWN);
        hf_text(hf, "b", large ? text : "any length", large ? n : 0);
        hf_end();
        refused(large ? "'/': its attribute 'b' has 62914560 bytes; at most 65536 are wanted"
                      : "'/': its attribute 'b' is of variable length");
        CHECK(strstr(mc_last_error(), plain_way_out));
    }
    free(text);
}

/* -- views --------------------------------------------------------------------------------------
 */

static void views(void) {
    TITLE("views are listed with what is wrong with their sources, and never read");
    static const struct {
        const char *sources[2], *problem;
        int dtype;
    } cases[] = {
        {{"/a", "/b"}, NULL, MC_INT32},
        {{"/a", "/none"}, "its source '/none' is missing", MC_INT32},
        {{"a", "/b"}, "its source 'a' is no absolute path", MC_INT32},
        {{"/f", "/b"}, "its source '/f' is of another dtype", MC_INT32},
        {{"/short", "/b"}, "its source '/short' is of another shape", MC_INT32},
        {{"/v", "/b"}, "its source '/v' is a view itself", MC_INT32},
        {{"/w", "/b"}, "its source '/w' is a view itself", MC_INT32},
        {{"/g", "/b"}, "its source '/g' is a group", MC_INT32},
        {{"/odd", "/b"}, "its source '/odd' cannot be read", MC_INT32},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hf_begin(HF_OLD);
        hf_set("/a", H5T_STD_I32LE, 4, H5P_DEFAULT);
        hf_set("/b", H5T_STD_I32LE, 4, H5P_DEFAULT);
        hf_set("/f", H5T_IEEE_F32LE, 4, H5P_DEFAULT);
        hf_set("/odd", H5T_STD_I16LE, 4, H5P_DEFAULT);
        hf_set("/short", H5T_STD_I32LE, 3, H5P_DEFAULT);
        H5Gclose(H5Gcreate2(hf, "/g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
        const char *back[1] = {"/v"};
        hf_view("/v", H5T_STD_I32LE, 2, 4, ".", cases[i].sources);
        hf_view("/w", H5T_STD_I32LE, 1, 4, ".", back); /* with "/w" above, each shows the other */
        hf_end();
        mc_h5_file *f = opened();
        int64_t index = -1;
        const mc_h5_entry *e = io_find(f, "/v", &index);
        if (CHECK(e)) {
            char digest[33];
            CHECK(e->kind == MC_H5_VIEW && e->dtype == cases[i].dtype && e->offset == -1);
            CHECK(e->ndim == 2 && e->shape[0] == 2 && e->shape[1] == 4 && e->bytes == 32);
            if (cases[i].problem)
                CHECK(e->problem && strcmp(e->problem, cases[i].problem) == 0);
            else
                CHECK(!e->problem);
            CHECK_STATUS(mc_h5_digest(f, index, digest), MC_EINVAL, "'/v' is a view");
        }
        mc_h5_close(f);
    }
    TITLE("a view that grows has a problem, of itself or not, and refuses a file of mascon's own");
    for (int self = 0; self < 2; self++) {
        hf_begin(HF_NEW);
        hf_growing_view("/v", self ? "/v" : "/block%b");
        hf_end();
        has_problem("/v", "it grows with its sources");
    }
    hf_begin(HF_OWN);
    hf_growing_view("/v", "/block%b");
    hf_end();
    refused("'/v': it grows with its sources");
}

/* -- the two profiles ---------------------------------------------------------------------------
 */

static void build_late(void) {
    hsize_t n = 8;
    hf_empty_set("/x", 1, &n, H5P_DEFAULT);
}
static void build_chunked(void) {
    hid_t props = hf_chunks(4);
    hf_set("/x", H5T_STD_I32LE, 8, props);
    H5Pclose(props);
}
static void build_compact(void) {
    hid_t props = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_layout(props, H5D_COMPACT);
    hf_set("/x", H5T_STD_I32LE, 8, props);
    H5Pclose(props);
}
static void build_big(void) {
    hf_set("/x", H5T_STD_I32BE, 8, H5P_DEFAULT);
}
static void build_odd(void) {
    hf_set("/x", H5T_STD_I16LE, 8, H5P_DEFAULT);
}
static void build_soft(void) {
    H5Lcreate_soft("/y", hf, "/x", H5P_DEFAULT, H5P_DEFAULT);
}
static void build_type(void) {
    hid_t type = H5Tcopy(H5T_STD_I32LE);
    H5Tcommit2(hf, "/x", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Tclose(type);
}
static void build_list(void) {
    hsize_t n = 3;
    hid_t space = H5Screate_simple(1, &n, NULL);
    H5Aclose(H5Acreate2(hf, "list", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT));
    H5Sclose(space);
}

static void profiles(void) {
    TITLE("a file that says it is mascon's is held to what mascon writes; any other is not");
    static const struct {
        void (*build)(void);
        const char *part;
        int64_t entries;
    } cases[] = {
        {build_late, "'/x' has no bytes in the file; ", 2},
        {build_chunked, "'/x' is stored in chunks; ", 2},
        {build_compact, "'/x' is stored in its header; ", 2},
        {build_big, "'/x' is big-endian; ", 2},
        {build_odd, "'/x': int16 has no dtype here; ", 2},
        {build_soft, "'/x' is a soft link; ", 1},
        {build_type, "'/x' is neither a group nor a dataset; ", 1},
        {build_list, "'/': its attribute 'list' has not one value; ", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hf_begin(HF_OWN);
        cases[i].build();
        hf_end();
        refused(cases[i].part);
        CHECK(strstr(mc_last_error(), plain_way_out));
        hf_begin(HF_NEW);
        cases[i].build();
        hf_end();
        mc_h5_file *f = opened();
        CHECK(mc_h5_count(f) == cases[i].entries && !mc_h5_is_own(f));
        mc_h5_close(f);
    }
    TITLE("a file of mascon's own is known as such, with one byte more it is refused");
    hf_begin(HF_OWN);
    hf_set("/x", H5T_STD_I32LE, 8, H5P_DEFAULT);
    hf_end();
    mc_h5_file *f = opened();
    CHECK(mc_h5_is_own(f));
    mc_h5_close(f);
    FILE *more = fopen(in_folder("hostile.h5"), "ab");
    if (CHECK(more)) {
        fputc(0, more);
        fclose(more);
    }
    refused("damaged: 1 bytes follow its end");
    TITLE("behind a user block everything is decoded");
    hf_begin(HF_BLOCK);
    hf_set("/x", H5T_STD_I32LE, 8, H5P_DEFAULT);
    hf_end();
    f = opened();
    int64_t index = -1;
    const mc_h5_entry *e = io_find(f, "/x", &index);
    int values[3] = {0};
    CHECK(e && e->decode && e->offset == -1 && !mc_h5_is_own(f));
    CHECK_OK(mci_h5_fetch(f, index, 8, 12, values));
    CHECK(values[0] == 2 && values[1] == 3 && values[2] == 4);
    CHECK_STATUS(mci_h5_fetch(f, index, 24, 12, values), MC_EINVAL, "wanted are 12 from 24");
    CHECK_STATUS(mci_h5_fetch(f, index, 2, 4, values), MC_EINVAL, "whole elements of 4");
    mc_h5_close(f);
}

/* -- decoding -----------------------------------------------------------------------------------
 */

static void decoding(void) {
    TITLE("decoded datasets come in any stretches, many of them from one helper");
    hf_begin(HF_OLD);
    hid_t props = hf_chunks(1000);
    H5Pset_shuffle(props);
    H5Pset_deflate(props, 1);
    hf_set("/x", H5T_STD_I32LE, 100000, props);
    hf_set("/y", H5T_STD_I32BE, 100000, props);
    H5Pclose(props);
    hf_end();
    mc_h5_file *f = opened();
    const char *paths[2] = {"/x", "/y"};
    int *values = malloc(400000);
    for (int k = 0; k < 2; k++) {
        int64_t index = -1, wrong = 0;
        const mc_h5_entry *e = io_find(f, paths[k], &index);
        if (!CHECK(e && e->decode)) continue;
        CHECK_OK(mci_h5_fetch(f, index, 0, 400000, values));
        for (int i = 0; i < 100000; i++) wrong += values[i] != i;
        double start = now();
        for (int i = 0; i < 2000 && wrong == 0; i++) {
            int first = i * 7919 % 99990;
            wrong += mci_h5_fetch(f, index, first * 4, 40, values) != MC_OK;
            for (int j = 0; j < 10; j++) wrong += values[j] != first + j;
        }
        CHECK(wrong == 0);
        CHECK(now() - start < 10 * SECONDS);
    }
    TITLE("a file that is replaced while it is open is still decoded");
    CHECK(unlink(in_folder("hostile.h5")) == 0);
    int64_t index = -1;
    io_find(f, "/y", &index);
    CHECK_OK(mci_h5_fetch(f, index, 4, 4, values));
    CHECK(values[0] == 1);
    mc_h5_close(f);
    free(values);
}

static void decoding_for_a_device(void) {
    TITLE("decoded datasets of any size come to a device, beside plain ones");
    int64_t counts[3] = {5000003, 70, 300}, versions[3] = {0};
    const char *paths[3] = {"/large", "/plain", "/small"};
    hf_begin(HF_OLD);
    hf_set(paths[0], H5T_STD_I32BE, (hsize_t)counts[0], H5P_DEFAULT);
    hf_set(paths[1], H5T_STD_I32LE, (hsize_t)counts[1], H5P_DEFAULT);
    hf_set(paths[2], H5T_STD_I32BE, (hsize_t)counts[2], H5P_DEFAULT);
    hf_end();
    mc_h5_file *f = opened();
    mc_h5_stretch list[3];
    int device = 0;
    CHECK_OK(mc_device_parse("fake", &device));
    for (int k = 0; k < 3; k++) {
        mc_tensor *t = mc_tensor_new();
        CHECK_OK(mc_empty(t, MC_INT32, device, 1, &counts[k]));
        list[k] = (mc_h5_stretch){.count = counts[k], .target = t};
        CHECK(io_find(f, paths[k], &list[k].entry)->decode == (k != 1));
        versions[k] = mc_tensor_version(t);
    }
    CHECK_OK(mc_h5_read_many(f, list, 3));
    for (int k = 0; k < 3; k++) {
        mc_tensor *want = mc_tensor_new();
        int equal = 0;
        CHECK_OK(mc_empty(want, MC_INT32, device, 1, &counts[k]));
        CHECK_OK(mc_arange(want, 0, 1));
        CHECK_OK(mc_equal(want, list[k].target, &equal));
        CHECK(equal && mc_tensor_version(list[k].target) == versions[k] + 1);
        mc_tensor_free(want);
        mc_tensor_free(list[k].target);
    }
    mc_h5_close(f);
}

/* Any bytes may be wrong where no checksum tells: then it opens, or is refused in words. */
static void damage(void) {
    TITLE("damaged structure gives errors and no crash");
    hf_begin(HF_OLD);
    hid_t props = hf_chunks(16);
    H5Pset_deflate(props, 1);
    hf_set("/x", H5T_STD_I32LE, 64, props);
    hf_set("/g", H5T_STD_I32BE, 64, H5P_DEFAULT);
    hf_text(hf, "a", "small", 5);
    H5Pclose(props);
    hf_end();
    size_t n = 0;
    char *bytes = slurp(in_folder("hostile.h5"), &n);
    unsigned random = 1;
    int opens = 0;
    for (int round = 0; round < 60; round++) {
        char *copy = malloc(n);
        memcpy(copy, bytes, n);
        for (int i = 0; i < 4; i++) {
            random = random * 1664525 + 1013904223;
            copy[96 + (random >> 8) % (n - 96)] ^= (char)(1 << (random & 7));
        }
        FILE *f = fopen(in_folder("hostile.h5"), "wb");
        CHECK(f && fwrite(copy, 1, n, f) == n);
        if (f) fclose(f);
        free(copy);
        mc_h5_file *file = NULL;
        mc_status status = timed_open(&file, in_folder("hostile.h5"), NULL);
        CHECK(status == MC_OK || status == MC_EFORMAT || status == MC_ENOMEM);
        CHECK((status == MC_OK) == (file != NULL));
        for (int64_t i = 0; i < mc_h5_count(file); i++) {
            char digest[33];
            if (mc_h5_get(file, i)->kind == MC_H5_DATASET) mc_h5_digest(file, i, digest);
        }
        opens += status == MC_OK;
        mc_h5_close(file);
    }
    CHECK(opens > 0 && opens < 60);
    free(bytes);
}

int main(void) {
    if (!make_folder()) return 1;
    outward();
    links();
    sizes();
    counts();
    attributes();
    views();
    profiles();
    decoding();
    decoding_for_a_device();
    damage();
    unlink(in_folder("hostile.h5"));
    remove_folder();
    return check_report();
}
