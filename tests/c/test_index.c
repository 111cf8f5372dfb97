/* test_index.c: index_select, index_add, gather and scatter_add, against plain loops. */
#include "gradcheck.h"

/* Positions in [0, limit) with repeats, int32 or int64, in a layout. */
static mc_tensor *positions(int dtype, int layout, int64_t limit, int ndim, const int64_t *shape) {
    mc_tensor *t = make_empty(dtype, layout, ndim, shape);
    for (int64_t i = 0; i < mc_tensor_numel(t); i++)
        set(t, i, floor((next_number() + 1) / 2 * (double)limit));
    return t;
}

static mc_tensor *numbered(int dtype, int layout, int ndim, const int64_t *shape) {
    mc_tensor *t = make_empty(dtype, layout, ndim, shape);
    for (int64_t i = 0; i < mc_tensor_numel(t); i++) set(t, i, (double)(i * 7 % 4));
    return t;
}

static void select_and_add(void) {
    TITLE("index_select takes rows along each axis, index_add puts them back in index order");
    static const int64_t shape[3] = {6, 5, 70};
    for (int dtype = 0; dtype < MC_DTYPE_COUNT; dtype++) {
        for (int layout = 0; layout < LAYOUTS; layout++) {
            for (int axis = 0; axis < 3; axis++) {
                int64_t m = 9, wrong = 0, out_shape[3] = {6, 5, 70};
                out_shape[axis] = m;
                mc_tensor *a = numbered(dtype, layout, 3, shape), *y = empty();
                mc_tensor *ix = positions(axis ? MC_INT32 : MC_INT64, layout, shape[axis], 1, &m);
                CHECK_OK(mc_index_select(y, a, axis, ix));
                int64_t inner = axis == 0 ? 350 : axis == 1 ? 70 : 1, n = shape[axis];
                for (int64_t i = 0; i < mc_tensor_numel(y); i++) {
                    int64_t from =
                        (i / inner / m * n + (int64_t)get(ix, i / inner % m)) * inner + i % inner;
                    wrong +=
                        memcmp(address(y, i), address(a, from), (size_t)mc_dtype_size(dtype)) != 0;
                }
                if (dtype < MC_BOOL) {
                    mc_tensor *da = numbered(dtype, layout, 3, shape), *want = cast(da, MC_FLOAT64);
                    mc_tensor *dout = numbered(dtype, LAYOUTS - 1 - layout, 3, out_shape);
                    for (int64_t i = 0; i < mc_tensor_numel(dout); i++) {
                        int64_t to = (i / inner / m * n + (int64_t)get(ix, i / inner % m)) * inner +
                                     i % inner;
                        set(want, to, get(want, to) + get(dout, i));
                    }
                    CHECK_OK(mc_index_add(da, dout, axis, ix));
                    for (int64_t i = 0; i < mc_tensor_numel(da); i++)
                        wrong += get(da, i) != get(want, i);
                }
                CHECK(wrong == 0);
                drop_all();
            }
        }
    }
}

static void index_shapes(void) {
    TITLE("an index of any rank selects along axis 0; empty ones give empty results");
    mc_tensor *a = numbered(MC_FLOAT32, CONTIGUOUS, SHAPE(5, 4)), *y = empty(), *z = empty(),
              *e = empty();
    mc_tensor *ix = positions(MC_INT32, REVERSED, 5, SHAPE(2, 3));
    int wrong = 0;
    CHECK_OK(mc_index_select(y, a, 0, ix));
    CHECK(mc_tensor_ndim(y) == 3 && mc_tensor_shape(y)[0] == 2 && mc_tensor_shape(y)[2] == 4);
    for (int i = 0; i < 24; i++) wrong += get(y, i) != get(a, (int64_t)get(ix, i / 4) * 4 + i % 4);
    CHECK(wrong == 0);
    mc_tensor *one = positions(MC_INT64, CONTIGUOUS, 5, 0, NULL);
    CHECK_OK(mc_index_select(z, a, 0, one));
    CHECK(mc_tensor_ndim(z) == 1 && get(z, 2) == get(a, (int64_t)get(one, 0) * 4 + 2));
    mc_tensor *none = make_empty(MC_INT64, CONTIGUOUS, SHAPE(0));
    CHECK_OK(mc_index_select(e, a, 1, none));
    CHECK(mc_tensor_numel(e) == 0 && mc_tensor_shape(e)[0] == 5);
    drop_all();
}

static void gather_and_scatter(void) {
    TITLE("gather and scatter_add are torch's, along each axis");
    static const int dtypes[] = {MC_FLOAT64, MC_FLOAT32, MC_FLOAT16, MC_BFLOAT16,
                                 MC_INT64,   MC_INT32,   MC_UINT8};
    for (int d = 0; d < 7; d++) {
        for (int layout = 0; layout < LAYOUTS; layout++) {
            for (int axis = 0; axis < 2; axis++) {
                int64_t shape[2] = {6, 8}, ishape[2] = {axis ? 5 : 11, axis ? 11 : 7}, wrong = 0;
                mc_tensor *a = numbered(dtypes[d], layout, 2, shape), *y = empty();
                mc_tensor *ix =
                    positions(d % 2 ? MC_INT32 : MC_INT64, layout, shape[axis], 2, ishape);
                mc_tensor *da = numbered(dtypes[d], layout, 2, shape), *want = cast(da, MC_FLOAT64);
                mc_tensor *dout = numbered(dtypes[d], LAYOUTS - 1 - layout, 2, ishape);
                CHECK_OK(mc_gather(y, a, axis, ix));
                for (int64_t i = 0; i < ishape[0] * ishape[1]; i++) {
                    int64_t r = i / ishape[1], c = i % ishape[1], k = (int64_t)get(ix, i);
                    int64_t at = axis ? r * 8 + k : k * 8 + c;
                    wrong += get(y, i) != get(a, at);
                    set(want, at, get(want, at) + get(dout, i));
                }
                CHECK_OK(mc_scatter_add(da, dout, axis, ix));
                for (int64_t i = 0; i < 48; i++) wrong += get(da, i) != get(want, i);
                CHECK(wrong == 0);
                drop_all();
            }
        }
    }
}

static void threads(void) {
    TITLE("additions that round give the same bits for every thread count");
    for (int wide = 0; wide < 2; wide++) {
        int64_t rows = wide ? 300 : 20000, width = wide ? 700 : 9;
        mc_tensor *dout = make(MC_BFLOAT16, SHAPE(rows, width)), *da[3];
        mc_tensor *ix = positions(MC_INT64, CONTIGUOUS, 13, 1, &rows);
        for (int n = 1; n <= 3; n++) {
            CHECK_OK(mc_set_num_threads(n));
            da[n - 1] = make_empty(MC_BFLOAT16, CONTIGUOUS, SHAPE(13, width));
            CHECK_OK(mc_fill(da[n - 1], 0));
            CHECK_OK(mc_index_add(da[n - 1], dout, 0, ix));
        }
        CHECK_SAME(da[0], da[1]);
        CHECK_SAME(da[0], da[2]);
        drop_all();
    }
    CHECK_OK(mc_set_num_threads(2));
}

static void errors(void) {
    TITLE("a bad index is named with position and range, and nothing is written");
    mc_tensor *a = numbered(MC_FLOAT32, CONTIGUOUS, SHAPE(256, 2)), *y = empty();
    int64_t values[9] = {0, 1, 2, 3, 4, 5, 6, 300, -1};
    mc_tensor *ix = make_int(MC_INT32, 9, values), *f = make(MC_FLOAT32, SHAPE(9));
    CHECK_STATUS(mc_index_select(y, a, 0, ix), MC_EINVAL,
                 "index_select: index[7] is 300, legal are 0 to 255 (0-based)");
    CHECK(!mc_tensor_defined(y));
    mc_tensor *dout = numbered(MC_FLOAT32, CONTIGUOUS, SHAPE(9, 2)), *before = cast(a, MC_FLOAT32);
    CHECK_STATUS(mc_index_add(a, dout, 0, ix), MC_EINVAL, "index_add: index[7] is 300");
    CHECK_SAME(a, before);
    mc_tensor *two = positions(MC_INT64, CONTIGUOUS, 2, SHAPE(3, 2));
    set(two, 5, -1);
    CHECK_STATUS(mc_gather(y, a, 1, two), MC_EINVAL,
                 "gather: index[2, 1] is -1, legal are 0 to 1 (0-based)");
    mc_tensor *d2 = numbered(MC_FLOAT32, CONTIGUOUS, SHAPE(3, 2));
    CHECK_STATUS(mc_scatter_add(a, d2, 1, two), MC_EINVAL, "scatter_add: index[2, 1] is -1");
    CHECK_SAME(a, before);
    CHECK_STATUS(mc_index_select(y, a, 0, f), MC_EINVAL,
                 "index_select: index is float32; wanted int32 or int64");
    CHECK_STATUS(mc_index_select(y, a, 2, ix), MC_EINVAL,
                 "index_select: axis 2 of a tensor of shape [256, 2]");
    CHECK_STATUS(mc_index_select(y, a, 1, two), MC_EINVAL, "a 1-D index is wanted");
    CHECK_STATUS(mc_gather(y, a, 0, ix), MC_EINVAL, "gather: index is [9] and a is [256, 2]");
    mc_tensor *none = make_empty(MC_FLOAT32, CONTIGUOUS, SHAPE(0, 2));
    CHECK_STATUS(mc_index_select(y, none, 0, ix), MC_EINVAL, "none is legal: the axis has size 0");
    drop_all();
}

int main(void) {
    select_and_add();
    index_shapes();
    gather_and_scatter();
    threads();
    errors();
    return check_report();
}
