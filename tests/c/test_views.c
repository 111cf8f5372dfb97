/* test_views.c: virtual datasets as they are made and listed. That other programs read the right
 * values through them is shown by the interop tests. */
#include "io/bytes.h"
#include "io_helpers.h"

static void made_and_listed(void) {
    TITLE("views of every dtype are listed with their shape and dtype, and have no bytes");
    const char *path = in_folder("views.h5");
    int64_t shape[2] = {3, 5}, stacked[3] = {4, 3, 5};
    char name[64], names[4][64];
    const char *sources[4];
    mc_h5_writer *w = NULL;
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_attr_string(w, "/", "format", "mascon", 6));
    for (int dtype = 0; dtype < MC_DTYPE_COUNT; dtype++) {
        mc_tensor *one = patterned(dtype, 2, shape, 1), *all = patterned(dtype, 3, stacked, 2);
        for (int i = 0; i < 4; i++) {
            snprintf(names[i], sizeof names[i], "/each/%d/weight%d", dtype, i);
            sources[i] = names[i];
            CHECK_OK(mc_h5_tensor(w, names[i], one));
        }
        snprintf(name, sizeof name, "/each/%d/weight", dtype);
        CHECK_OK(mc_h5_view_stack(w, name, 4, sources));
        CHECK_OK(mc_h5_attr_int(w, name, "note", 7));
        snprintf(names[0], sizeof names[0], "/all/%d/weight", dtype);
        CHECK_OK(mc_h5_tensor(w, names[0], all));
        for (int i = 0; i < 4; i++) {
            snprintf(name, sizeof name, "/all/%d/weight%d", dtype, i);
            CHECK_OK(mc_h5_view_select(w, name, names[0], i));
        }
        mc_tensor_free(one);
        mc_tensor_free(all);
    }
    CHECK_OK(mc_h5_check_written(w));
    CHECK_OK(mc_h5_commit(w));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    CHECK(mc_h5_is_own(f));
    for (int dtype = 0; dtype < MC_DTYPE_COUNT; dtype++) {
        for (int i = -1; i < 4; i++) {
            if (i < 0)
                snprintf(name, sizeof name, "/each/%d/weight", dtype);
            else
                snprintf(name, sizeof name, "/all/%d/weight%d", dtype, i);
            const mc_h5_entry *e = io_find(f, name, NULL);
            const mc_h5_attr *a = io_attr(f, name, "dtype"), *kind = io_attr(f, name, "kind");
            if (!CHECK(e && a && kind && strcmp(kind->s, "view") == 0)) continue;
            CHECK(e->kind == MC_H5_VIEW && e->dtype == dtype && e->offset == -1 && !e->problem);
            CHECK(strcmp(a->s, mc_dtype_name(dtype)) == 0 && !io_attr(f, name, "digest"));
            CHECK(i < 0 ? e->ndim == 3 && memcmp(e->shape, stacked, sizeof stacked) == 0
                        : e->ndim == 2 && memcmp(e->shape, shape, sizeof shape) == 0);
        }
        snprintf(name, sizeof name, "/each/%d/weight3", dtype);
        CHECK(io_find(f, name, NULL) && io_find(f, name, NULL)->kind == MC_H5_DATASET);
    }
    CHECK(io_attr(f, "/each/0/weight", "note"));
    mc_h5_close(f);
    unlink(path);
}

static void odd_names_and_shapes(void) {
    TITLE("sources may have one element, no axes, second names, and names with a percent sign");
    const char *path = in_folder("odd.h5");
    const char *odd[] = {"/100%b/%%/x%", "/100%b/%%/y %d"}, *one[] = {"/scalar"};
    int64_t three = 3;
    mc_tensor *scalar = patterned(MC_FLOAT32, 0, NULL, 1), *t = patterned(MC_INT32, 1, &three, 1);
    mc_h5_writer *w = NULL;
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_attr_string(w, "/", "format", "mascon", 6));
    CHECK_OK(mc_h5_tensor(w, "/scalar", scalar));
    CHECK_OK(mc_h5_tensor(w, odd[0], t));
    CHECK_OK(mc_h5_link(w, odd[1], odd[0]));
    CHECK_OK(mc_h5_view_stack(w, "/scalars", 1, one));
    CHECK_OK(mc_h5_view_stack(w, "/100%b/both", 2, odd));
    CHECK_OK(mc_h5_view_select(w, "/element", odd[0], 2));
    CHECK_OK(mc_h5_commit(w));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    const mc_h5_entry *e = io_find(f, "/scalars", NULL);
    CHECK(e && e->kind == MC_H5_VIEW && e->ndim == 1 && e->shape[0] == 1 && !e->problem);
    e = io_find(f, "/100%b/both", NULL);
    CHECK(e && e->kind == MC_H5_VIEW && e->ndim == 2 && e->shape[0] == 2 && e->shape[1] == 3);
    CHECK(e && !e->problem);
    e = io_find(f, "/element", NULL);
    CHECK(e && e->kind == MC_H5_VIEW && e->ndim == 0 && !e->problem);
    mc_h5_close(f);
    mc_tensor_free(scalar);
    mc_tensor_free(t);
    unlink(path);
}

static void refused(void) {
    TITLE("views over what is no tensor, differs, or is not there are refused");
    const char *path = in_folder("refused.h5");
    int64_t a[2] = {3, 5}, b[2] = {5, 3}, none[2] = {0, 5}, most[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    mc_tensor *x = patterned(MC_UINT8, 2, a, 1), *turned = patterned(MC_UINT8, 2, b, 1);
    mc_tensor *fp8 = patterned(MC_FLOAT8_E4M3FN, 2, a, 1), *empty = patterned(MC_UINT8, 2, none, 1);
    mc_tensor *deep = patterned(MC_UINT8, 8, most, 1), *scalar = patterned(MC_UINT8, 0, NULL, 1);
    mc_h5_writer *w = NULL;
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_tensor(w, "/g/x", x));
    CHECK_OK(mc_h5_tensor(w, "/turned", turned));
    CHECK_OK(mc_h5_tensor(w, "/fp8", fp8));
    CHECK_OK(mc_h5_tensor(w, "/empty", empty));
    CHECK_OK(mc_h5_tensor(w, "/deep", deep));
    CHECK_OK(mc_h5_tensor(w, "/scalar", scalar));
    CHECK_OK(mc_h5_view_select(w, "/view", "/g/x", 0));
    const char *pair[2] = {"/g/x", "/turned"};
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 2, pair), MC_EINVAL,
                 "refused.h5: view '/v': '/g/x' and '/turned' differ in dtype or shape");
    pair[1] = "/fp8"; /* bytes in the file, too, but of another dtype */
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 2, pair), MC_EINVAL, "differ in dtype or shape");
    pair[1] = "/missing";
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 2, pair), MC_EINVAL, "no group or tensor '/missing'");
    pair[1] = "/g";
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 2, pair), MC_EINVAL, "'/g' is a group");
    pair[1] = "/view";
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 2, pair), MC_EINVAL, "'/view' is a view itself");
    pair[0] = "/empty";
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 1, pair), MC_EINVAL,
                 "'/empty' has no elements, so it has no views");
    pair[0] = "/deep";
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 1, pair), MC_EINVAL, "9 axes; 8 are the limit");
    pair[0] = "relative";
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 1, pair), MC_EINVAL, "does not begin with '/'");
    pair[0] = NULL;
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 1, pair), MC_EINVAL, "does not begin with '/'");
    pair[0] = "/g/x";
    CHECK_STATUS(mc_h5_view_stack(w, "/turned", 1, pair), MC_EINVAL, "'/turned' is there already");
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 0, pair), MC_EINVAL, "0 sources; 1 to 65536");
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 65537, pair), MC_EINVAL, "65537 sources");
    CHECK_STATUS(mc_h5_view_stack(w, "/v", 1, NULL), MC_EINVAL, "sources; 1 to 65536");
    CHECK_STATUS(mc_h5_view_select(w, "/v", "/g/x", 3), MC_EINVAL,
                 "view '/v': '/g/x' has 3 positions, there is no 3 (0-based)");
    CHECK_STATUS(mc_h5_view_select(w, "/v", "/g/x", -1), MC_EINVAL, "there is no -1");
    CHECK_STATUS(mc_h5_view_select(w, "/v", "/scalar", 0), MC_EINVAL, "has no axis to select");
    CHECK_STATUS(mc_h5_view_select(w, "/v", "/empty", 0), MC_EINVAL, "has no elements");
    CHECK_STATUS(mc_h5_view_select(w, "/v", NULL, 0), MC_EINVAL, "does not begin with '/'");
    CHECK_STATUS(mc_h5_view_select(NULL, "/v", "/g/x", 0), MC_EINVAL, "no writer");
    CHECK_STATUS(mc_h5_commit(w), MC_EINVAL, "a call before failed: ");
    CHECK(count_files("refused") == 0);
    mc_tensor_free(x);
    mc_tensor_free(turned);
    mc_tensor_free(fp8);
    mc_tensor_free(empty);
    mc_tensor_free(deep);
    mc_tensor_free(scalar);
}

static void small_and_equal(void) {
    TITLE("views cost little, and equal content still gives equal files");
    enum { EXPERTS = 64 };
    int64_t shape[2] = {64, 64};
    mc_tensor *t = patterned(MC_FLOAT32, 2, shape, 1);
    static char names[EXPERTS][32];
    const char *sources[EXPERTS];
    size_t size[3];
    char *bytes[3];
    for (int file = 0; file < 3; file++) { /* the first without the view */
        mc_h5_writer *w = NULL;
        const char *path = in_folder("size.h5");
        CHECK_OK(mc_h5_create(&w, path));
        for (int i = 0; i < EXPERTS; i++) {
            snprintf(names[i], sizeof names[i], "/experts/weight%d", i);
            sources[i] = names[i];
            CHECK_OK(mc_h5_tensor(w, names[i], t));
        }
        if (file > 0) CHECK_OK(mc_h5_view_stack(w, "/experts/weight", EXPERTS, sources));
        CHECK_OK(mc_h5_commit(w));
        bytes[file] = slurp(path, &size[file]);
        unlink(path);
    }
    CHECK(size[1] - size[0] < 160 * EXPERTS);
    CHECK(size[1] == size[2] && memcmp(bytes[1], bytes[2], size[1]) == 0);
    for (int i = 0; i < 3; i++) free(bytes[i]);
    mc_tensor_free(t);
}

/* Many datasets whose digests are known only as their bytes come, from file f, and many views. */
static void save_mixed(const char *path, mc_h5_file *f, int64_t source, const mc_tensor *large,
                       int layers) {
    enum { EXPERTS = 8 };
    int64_t one[2] = {16, 32}, all[3] = {EXPERTS, 16, 32}, index;
    char name[64], names[EXPERTS][64];
    const char *sources[EXPERTS];
    mc_h5_writer *w = NULL;
    CHECK_OK(mc_h5_create(&w, path));
    for (int layer = 0; layer < layers; layer++) {
        snprintf(name, sizeof name, "/%d/one", layer);
        CHECK_OK(mc_h5_dataset(w, name, MC_UINT8, 3, all, &index));
        CHECK_OK(mc_h5_part_file(w, index, f, source, layer, EXPERTS * 16 * 32));
        for (int i = 0; i < EXPERTS; i++) {
            snprintf(names[i], sizeof names[i], "/%d/one%d", layer, i);
            CHECK_OK(mc_h5_view_select(w, names[i], name, i));
        }
        for (int i = 0; i < EXPERTS; i++) {
            snprintf(names[i], sizeof names[i], "/%d/each%d", layer, i);
            sources[i] = names[i];
            CHECK_OK(mc_h5_dataset(w, names[i], MC_UINT8, 2, one, &index));
            CHECK_OK(mc_h5_part_file(w, index, f, source, layer * i, 16 * 32));
        }
        snprintf(name, sizeof name, "/%d/each", layer);
        CHECK_OK(mc_h5_view_stack(w, name, EXPERTS, sources));
        snprintf(name, sizeof name, "/%d/large", layer);
        if (layer % 16 == 0) CHECK_OK(mc_h5_tensor(w, name, large));
    }
    CHECK_OK(mc_h5_commit(w));
}

static void made_meanwhile(void) {
    TITLE("views and digests, made while bytes are written, give one file at any timing");
    enum { SAVES = 20, LAYERS = 100 };
    char *from = strdup(in_folder("from.h5")), *path = strdup(in_folder("mixed.h5"));
    int64_t n = 1 << 21, source = -1;
    mc_tensor *large = patterned(MC_UINT8, 1, &n, 1);
    mc_h5_writer *w = NULL;
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_create(&w, from));
    CHECK_OK(mc_h5_tensor(w, "/s", large));
    CHECK_OK(mc_h5_commit(w));
    CHECK_OK(mc_h5_open(&f, from, NULL));
    CHECK(io_find(f, "/s", &source));
    size_t size = 0, again = 0;
    char *bytes = NULL;
    for (int i = 0; i < SAVES; i++) {
        mci_io_threads = i % 8; /* 0: as many as it takes */
        save_mixed(path, f, source, large, LAYERS);
        char *now = slurp(path, i == 0 ? &size : &again);
        if (i == 0)
            bytes = now;
        else
            CHECK(size == again && memcmp(bytes, now, size) == 0);
        if (i > 0) free(now);
    }
    mci_io_threads = 0;
    mc_h5_close(f);
    CHECK_OK(mc_h5_open(&f, path, NULL));
    int found = 0, broken = 0;
    for (int64_t i = 0; i < mc_h5_count(f); i++) {
        found += mc_h5_get(f, i)->kind == MC_H5_VIEW;
        broken += mc_h5_get(f, i)->problem != NULL;
    }
    CHECK(found == 9 * LAYERS && broken == 0);
    mc_h5_close(f);
    mc_tensor_free(large);
    free(bytes);
    unlink(from);
    unlink(path);
    free(from);
    free(path);
}

static void remembered(void) {
    TITLE("a view can be asked for like any other object, before the file is written");
    const char *path = in_folder("remembered.h5");
    int64_t shape[2] = {3, 5};
    mc_tensor *x = patterned(MC_UINT8, 2, shape, 1);
    const char *one[] = {"/g/x"};
    mc_h5_writer *w = NULL;
    for (int way = 0; way < 8; way++) {
        CHECK_OK(mc_h5_create(&w, path));
        CHECK_OK(mc_h5_group(w, "/empty"));
        CHECK_OK(mc_h5_tensor(w, "/g/x", x));
        CHECK_OK(mc_h5_view_select(w, "/g/v", "/g/x", 0));
        CHECK_OK(mc_h5_view_stack(w, "/g/u", 1, one));
        switch (way) {
            case 0:
                CHECK_STATUS(mc_h5_tensor(w, "/g/v", x), MC_EINVAL, "'/g/v' is there already");
                break;
            case 1:
                CHECK_STATUS(mc_h5_bytes(w, "/g/u", "", 0), MC_EINVAL, "'/g/u' is there already");
                break;
            case 2:
                CHECK_STATUS(mc_h5_link(w, "/g/v", "/g/x"), MC_EINVAL, "'/g/v' is there already");
                break;
            case 3:
                CHECK_STATUS(mc_h5_group(w, "/g/v"), MC_EINVAL, "'/g/v' is a tensor, not a group");
                break;
            case 4:
                CHECK_STATUS(mc_h5_view_select(w, "/g/u", "/g/x", 0), MC_EINVAL,
                             "'/g/u' is there already");
                break;
            case 5:
                CHECK_STATUS(mc_h5_view_select(w, "/g", "/g/x", 0), MC_EINVAL,
                             "'/g' is there already");
                break;
            case 6: /* known only when it is made */
                CHECK_OK(mc_h5_view_select(w, "/empty", "/g/x", 0));
                CHECK_OK(mc_h5_view_select(w, "/g/w", "/g/x", 0));
                break;
            default:
                CHECK_OK(mc_h5_view_select(w, "/g/y/v", "/g/x", 1)); /* and its group with it */
                CHECK_OK(mc_h5_attr_int(w, "/g/y", "note", 1));
                CHECK_OK(mc_h5_attr_int(w, "/g/u", "note", 2));
                CHECK_STATUS(mc_h5_view_select(w, "/g/x/v", "/g/x", 1), MC_EINVAL,
                             "'/g/x' is a tensor, not a group");
                break;
        }
        CHECK_STATUS(mc_h5_commit(w), MC_EINVAL,
                     way == 6 ? "remembered.h5: '/empty' is there already" : "a call before");
        CHECK(count_files("remembered") == 0);
    }
    mc_tensor_free(x);
}

int main(void) {
    if (!make_folder()) return 1;
    made_and_listed();
    odd_names_and_shapes();
    refused();
    small_and_equal();
    made_meanwhile();
    remembered();
    remove_folder();
    return check_report();
}
