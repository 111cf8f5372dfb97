/* test_tensor.c: handles, views, memory accounting, failing allocations, devices. */
#include <stdint.h>
#include <stdlib.h>

#include "check.h"

static mc_tensor *make(int dtype, int device, int ndim, const int64_t *shape) {
    mc_tensor *t = mc_tensor_new();
    CHECK_OK(mc_empty(t, dtype, device, ndim, shape));
    return t;
}

static mc_tensor *counting(int64_t n, int device) {
    mc_tensor *t = make(MC_FLOAT32, device, 1, &n);
    CHECK_OK(mc_arange(t, 0, 1));
    return t;
}

/* Element i of t in row-major order, on any device. */
static double at(const mc_tensor *t, int64_t i) {
    int64_t numel = mc_tensor_numel(t);
    mc_tensor *dense = make(MC_FLOAT64, 0, mc_tensor_ndim(t), mc_tensor_shape(t));
    CHECK_OK(mc_copy(dense, t));
    double *values = malloc((size_t)numel * sizeof *values);
    CHECK_OK(mc_read(dense, values, numel * 8));
    double v = values[i];
    free(values);
    mc_tensor_free(dense);
    return v;
}

static void test_handles(void) {
    TITLE("a handle is empty, filled, released and used again");
    mc_tensor *t = mc_tensor_new();
    int64_t shape[2] = {2, 3};
    CHECK(!mc_tensor_defined(t));
    int64_t before = mc_memory_stats()->live_bytes;
    CHECK_OK(mc_empty(t, MC_FLOAT32, 0, 2, shape));
    CHECK(mc_memory_stats()->live_bytes == before + 64);
    CHECK(mc_tensor_ndim(t) == 2 && mc_tensor_shape(t)[1] == 3 && mc_tensor_strides(t)[0] == 3);
    CHECK(((uintptr_t)mc_tensor_data(t) & 63) == 0);
    CHECK_STATUS(mc_empty(t, MC_FLOAT32, 0, 2, shape), MC_EINVAL,
                 "empty: the output handle is in use");
    int64_t id = mc_tensor_storage_id(t);
    mc_tensor_release(t);
    CHECK(mc_memory_stats()->live_bytes == before);
    CHECK_OK(mc_empty(t, MC_INT64, 0, 0, NULL));
    CHECK(mc_tensor_numel(t) == 1 && mc_tensor_storage_id(t) != id);
    mc_tensor_free(t);
    mc_tensor_free(NULL);
    CHECK(mc_memory_stats()->live_bytes == before);
}

static void test_shapes(void) {
    TITLE("impossible shapes are refused before any memory is taken");
    mc_tensor *t = mc_tensor_new();
    int64_t negative[2] = {2, -3}, huge[3] = {1LL << 40, 1LL << 40, 0},
            overflow[2] = {1LL << 40, 1LL << 40};
    int64_t nine[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    CHECK_STATUS(mc_empty(t, MC_FLOAT32, 0, 2, negative), MC_EINVAL,
                 "sizes must be 0 or more, shape is [2, -3]");
    CHECK_STATUS(mc_empty(t, MC_FLOAT32, 0, 2, overflow), MC_EINVAL, "is too large");
    CHECK_STATUS(mc_empty(t, MC_FLOAT32, 0, 9, nine), MC_EINVAL, "9 axes, at most 8");
    CHECK_STATUS(mc_empty(t, 77, 0, 1, nine), MC_EINVAL, "no dtype has the code 77");
    huge[1] = 3;
    CHECK_OK(mc_empty(t, MC_FLOAT32, 0, 3, huge)); /* a zero makes it empty */
    CHECK(mc_tensor_numel(t) == 0);
    mc_tensor_free(t);
}

static void test_views(void) {
    TITLE("views share memory, keep it alive, and never reach outside");
    int64_t before = mc_memory_stats()->live_bytes;
    mc_tensor *t = counting(24, 0), *v = mc_tensor_new(), *w = mc_tensor_new(),
              *x = mc_tensor_new();
    int64_t shape[3] = {2, -1, 4}, axes[3] = {2, 0, 1}, bad_axes[3] = {0, 0, 1}, flat[1] = {-1};
    CHECK_OK(mc_alias(v, t));
    CHECK(mc_tensor_sharing(t) == 0 && mc_tensor_sharing(v) == 0);
    mc_tensor_release(v);
    CHECK_OK(mc_view(v, t, 3, shape));
    CHECK(mc_tensor_shape(v)[1] == 3 && mc_tensor_storage_refs(t) == 2);
    CHECK(mc_tensor_sharing(t) == MC_HAS_VIEWS && mc_tensor_sharing(v) == MC_IS_VIEW);
    CHECK_OK(mc_permute(w, v, 3, axes)); /* [4, 2, 3] */
    CHECK(at(w, 0) == 0 && at(w, 1) == 4 && at(w, 3) == 12 && at(w, 6) == 1);
    CHECK_STATUS(mc_view(x, w, 1, flat), MC_EINVAL, "cannot be seen as [-1] without a copy");
    CHECK_STATUS(mc_permute(x, v, 3, bad_axes), MC_EINVAL, "do not name each of the 3 axes once");
    CHECK_OK(mc_narrow(x, v, 1, 1, 2));
    CHECK(at(x, 0) == 4 && at(x, 8) == 16);
    CHECK(mc_tensor_sharing(v) == (MC_IS_VIEW | MC_HAS_VIEWS));
    mc_tensor_release(x);
    CHECK(mc_tensor_sharing(x) == 0);
    CHECK_STATUS(mc_narrow(x, v, 1, 2, 2), MC_EINVAL,
                 "2 positions from 2 (0-based) on axis 1 of size 3");
    CHECK_STATUS(mc_narrow(x, v, 1, INT64_MAX, 1), MC_EINVAL, "narrow:");
    CHECK_STATUS(mc_select(x, v, 0, 2), MC_EINVAL, "index 2 (0-based) on axis 0 of size 2");
    CHECK_OK(mc_select(x, v, 2, 3));
    CHECK(mc_tensor_ndim(x) == 2 && at(x, 0) == 3 && at(x, 5) == 23);
    mc_tensor_release(x);
    int64_t s2[2] = {4, 4}, st2[2] = {7, 1}, st3[2] = {6, -1};
    CHECK_STATUS(mc_as_strided(x, t, 2, s2, st2, 1), MC_EINVAL,
                 "reaches outside the storage of 24 elements");
    CHECK_STATUS(mc_as_strided(x, t, 2, s2, st3, 2), MC_EINVAL, "reaches outside");
    CHECK_OK(mc_as_strided(x, t, 2, s2, st3, 3));
    CHECK(at(x, 3) == 0 && at(x, 12) == 21);
    mc_tensor_release(x);
    int64_t none[2] = {0, 3}, apart[2] = {5, 2};
    CHECK_OK(mc_as_strided(x, t, 2, none, apart, 0));
    CHECK(mc_tensor_is_contiguous(x)); /* it has no element out of place */
    CHECK_OK(mc_read(x, NULL, 0));
    mc_tensor_release(x);
    int64_t wide[3] = {5, 24, -1}, expanded[2] = {5, 24};
    CHECK_OK(mc_expand(x, t, 2, expanded));
    CHECK(mc_tensor_strides(x)[0] == 0 && at(x, 24 + 7) == 7);
    CHECK_STATUS(mc_fill(x, 1), MC_EINVAL, "fill: the output given is an expanded view");
    mc_tensor_release(x);
    CHECK_STATUS(mc_expand(x, v, 3, wide), MC_EINVAL, "only axes of size 1 grow");
    mc_tensor_free(t);
    CHECK(at(v, 23) == 23); /* the view holds the storage */
    mc_tensor_free(v);
    mc_tensor_free(w);
    mc_tensor_free(x);
    CHECK(mc_memory_stats()->live_bytes == before);
}

static void test_view_strides(void) {
    TITLE("a view that needs no copy is found also behind permutes and sizes of 1");
    mc_tensor *t = counting(24, 0), *v = mc_tensor_new(), *w = mc_tensor_new(),
              *x = mc_tensor_new();
    int64_t shape[4] = {2, 3, 1, 4}, axes[4] = {1, 2, 0, 3}, merged[3] = {3, 2, 4},
            split[5] = {3, 1, 2, 2, 2};
    CHECK_OK(mc_view(v, t, 4, shape));
    CHECK_OK(mc_permute(w, v, 4, axes)); /* [3, 1, 2, 4] */
    CHECK_OK(mc_view(x, w, 3, merged));
    CHECK(at(x, 4) == 12 && at(x, 8) == 4);
    mc_tensor_release(x);
    CHECK_OK(mc_view(x, w, 5, split));
    CHECK(at(x, 5) == 13);
    mc_tensor_free(t), mc_tensor_free(v), mc_tensor_free(w), mc_tensor_free(x);
}

static void test_versions(void) {
    TITLE("in-place writes raise the version of the storage, reads and views do not");
    mc_tensor *t = counting(8, 0), *v = mc_tensor_new();
    int64_t version = mc_tensor_version(t);
    CHECK_OK(mc_narrow(v, t, 0, 2, 3));
    CHECK(mc_tensor_version(t) == version);
    CHECK_OK(mc_fill(v, 9));
    CHECK(mc_tensor_version(t) == version + 1 && at(t, 2) == 9 && at(t, 1) == 1 && at(t, 5) == 5);
    CHECK_STATUS(mc_copy(t, v), MC_EINVAL, "a source of shape [3] does not broadcast to [8]");
    CHECK(mc_tensor_version(t) == version + 1);
    mc_tensor_free(t), mc_tensor_free(v);
}

static void test_overlap(void) {
    TITLE("a copy between overlapping views is refused, between neighbours it is not");
    mc_tensor *t = counting(24, 0), *m = mc_tensor_new(), *a = mc_tensor_new(),
              *b = mc_tensor_new();
    int64_t shape[2] = {4, 6};
    CHECK_OK(mc_view(m, t, 2, shape));
    CHECK_OK(mc_narrow(a, m, 1, 0, 3));
    CHECK_OK(mc_narrow(b, m, 1, 3, 3));
    CHECK_OK(mc_copy(a, b)); /* columns side by side in the same rows */
    CHECK(at(a, 0) == 3 && at(a, 11) == 23);
    mc_tensor_release(b);
    CHECK_OK(mc_narrow(b, m, 1, 1, 3));
    CHECK_STATUS(mc_copy(a, b), MC_EINVAL,
                 "copy: the output given overlaps operand 1; clone the operand first");
    mc_tensor_free(t), mc_tensor_free(m), mc_tensor_free(a), mc_tensor_free(b);
}

static void test_failing_allocations(void) {
    TITLE("each allocation that fails leaves everything as it was");
    int64_t before = mc_memory_stats()->live_bytes, n = 1000;
    int32_t storages = mc_memory_stats()->live_storages;
    mc_tensor *a = counting(n, 0), *out = mc_tensor_new();
    int failures = 0;
    for (int64_t nth = 1; nth < 10; nth++) {
        mc_memory_fail_at(nth);
        mc_status status = mc_add(out, a, a);
        mc_memory_fail_at(0);
        if (status == MC_OK) break;
        failures++;
        CHECK(status == MC_ENOMEM && strstr(mc_last_error(), "out of memory"));
        CHECK(!mc_tensor_defined(out));
        CHECK(mc_memory_stats()->live_storages == storages + 1);
    }
    CHECK(failures >= 1 && mc_tensor_defined(out));
    mc_memory_fail_at(1);
    CHECK(mc_tensor_new() == NULL);
    mc_tensor_free(a), mc_tensor_free(out);
    CHECK(mc_memory_stats()->live_bytes == before);
}

static void test_memory_stats(void) {
    TITLE("live bytes, peak, pressure and the cache are counted");
    int64_t n = 1 << 20, before = mc_memory_stats()->live_bytes;
    mc_memory_trim();
    CHECK(mc_memory_stats()->cached_bytes == 0);
    mc_memory_reset_peak();
    mc_memory_set_soft_limit(before + n * 6);
    mc_tensor *a = make(MC_FLOAT32, 0, 1, &n);
    CHECK(mc_memory_stats()->live_bytes == before + n * 4 && !mc_memory_stats()->pressure);
    mc_tensor *b = make(MC_FLOAT32, 0, 1, &n);
    CHECK(mc_memory_stats()->pressure == 1 && mc_memory_stats()->peak_bytes == before + n * 8);
    mc_tensor_free(b);
    mc_memory_set_soft_limit(before + n * 6);
    CHECK(!mc_memory_stats()->pressure);
#ifndef MASCON_SANITIZE
    CHECK(mc_memory_stats()->cached_bytes == n * 4);
    b = make(MC_FLOAT32, 0, 1, &n);
    CHECK(mc_memory_stats()->cached_bytes == 0); /* the freed block served again */
    mc_tensor_free(b);
#endif
    mc_tensor_free(a);
    mc_memory_set_soft_limit(64LL << 20);
}

static void test_too_much(void) {
    TITLE("a real lack of memory is an error that names the sizes");
    mc_tensor *t = mc_tensor_new();
    int64_t n = 1LL << 45;
    CHECK_STATUS(mc_empty(t, MC_FLOAT32, 0, 1, &n), MC_ENOMEM,
                 "out of memory: wanted 140737488355328 bytes");
    CHECK(!mc_tensor_defined(t));
    mc_tensor_free(t);
}

static void test_devices(void) {
    TITLE("device names are parsed, unknown ones are refused with what there is");
    int device = -1;
    char name[32];
    CHECK_OK(mc_device_parse("cpu", &device));
    CHECK(device == 0);
    CHECK_OK(mc_device_parse("fake:0", &device));
    CHECK_OK(mc_device_name(device, name, sizeof name));
    CHECK(strcmp(name, "fake") == 0);
    CHECK_STATUS(mc_device_parse("gpu", &device), MC_EINVAL,
                 "device \"gpu\": wanted \"cpu\", \"cuda\" or \"cuda:N\"");
    CHECK_STATUS(mc_device_parse("cpu:1", &device), MC_EDEVICE, "there are 1 cpu devices");
    mc_tensor *t = mc_tensor_new();
    int64_t two = 2;
    CHECK_STATUS(mc_empty(t, MC_FLOAT32, 9999, 1, &two), MC_EINVAL,
                 "empty: no device has the code 9999");
    CHECK_STATUS(mc_device_synchronize(-1), MC_EINVAL, "no device has the code -1");
    CHECK_STATUS(mc_device_name(9999, name, sizeof name), MC_EINVAL, "no device has the code 9999");
    mc_tensor_free(t);
}

static void test_fake_device(void) {
    TITLE("the fake device computes, and its memory is moved only by copies");
    int fake;
    CHECK_OK(mc_device_parse("fake", &fake));
    mc_tensor *a = counting(10, fake), *c = counting(10, 0), *out = mc_tensor_new();
    CHECK(at(a, 9) == 9);
    CHECK_STATUS(mc_add(out, a, c), MC_EINVAL,
                 "add: operands are on fake and cpu; move one with t:to(\"fake\")");
    CHECK_OK(mc_add(out, a, a));
    CHECK(mc_tensor_device(out) == fake && at(out, 7) == 14);
    mc_tensor *narrow = mc_tensor_new(), *half = mc_tensor_new();
    CHECK_OK(mc_narrow(narrow, a, 0, 3, 4));
    int64_t n = 4;
    CHECK_OK(mc_empty(half, MC_BFLOAT16, 0, 1, &n));
    CHECK_OK(mc_copy(half, narrow)); /* device to host with a conversion, from a view */
    CHECK(at(half, 3) == 6);
    double value = 0;
    mc_tensor_release(narrow);
    CHECK_OK(mc_select(narrow, a, 0, 5));
    CHECK_OK(mc_item(narrow, &value));
    CHECK(value == 5);
    int equal = -1;
    CHECK_OK(mc_equal(a, c, &equal)); /* bits, wherever they are */
    CHECK(equal == 1);
    mc_tensor_free(a), mc_tensor_free(c), mc_tensor_free(out), mc_tensor_free(narrow),
        mc_tensor_free(half);
}

static void test_equal(void) {
    TITLE("equal compares bits: the same NaN is equal, -0 is not 0");
    double x[3] = {NAN, 0.0, 1}, y[3] = {NAN, -0.0, 1};
    int64_t n = 3;
    int equal = -1;
    mc_tensor *a = make(MC_FLOAT64, 0, 1, &n), *b = make(MC_FLOAT64, 0, 1, &n);
    CHECK_OK(mc_write(a, x, sizeof x));
    CHECK_OK(mc_write(b, x, sizeof x));
    CHECK_OK(mc_equal(a, b, &equal));
    CHECK(equal == 1);
    CHECK_OK(mc_write(b, y, sizeof y));
    CHECK_OK(mc_equal(a, b, &equal));
    CHECK(equal == 0);
    CHECK_STATUS(mc_write(b, y, 16), MC_EINVAL, "write: 16 bytes for a tensor of 24 bytes");
    mc_tensor_free(a), mc_tensor_free(b);
}

int main(void) {
    test_handles();
    test_shapes();
    test_views();
    test_view_strides();
    test_versions();
    test_overlap();
    test_failing_allocations();
    test_memory_stats();
    test_too_much();
    test_devices();
    test_fake_device();
    test_equal();
    mc_memory_trim();
    return check_report();
}
