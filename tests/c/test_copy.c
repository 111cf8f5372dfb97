/* test_copy.c: copy, arange and where, which move elements of every dtype between layouts. */
#include "gradcheck.h"

static void copies(void) {
    TITLE("copy goes between all layouts and dtypes, transposes and broadcasts");
    for (int from = 0; from < MC_DTYPE_COUNT; from++) {
        for (int trial = 0; trial < LAYOUTS * LAYOUTS; trial++) {
            int to = trial % 3 ? from : (from + trial) % MC_DTYPE_COUNT, wrong = 0;
            mc_tensor *a = make_empty(from, trial % LAYOUTS, SHAPE(3, 41, 70));
            mc_tensor *b = make_empty(to, trial / LAYOUTS, SHAPE(3, 41, 70));
            for (int64_t i = 0; i < 3 * 41 * 70; i++) set(a, i, 1 + (double)(i * i % 3 == 1));
            CHECK_OK(mc_copy(b, a));
            for (int64_t i = 0; i < 3 * 41 * 70; i++) {
                double x = get(a, i);
                wrong += get(b, i) != (to == MC_BOOL ? 1 : x);
            }
            CHECK(wrong == 0);
            drop_all();
        }
        mc_tensor *a = make_in(from, CONTIGUOUS, SHAPE(5, 1)),
                  *b = make_empty(from, PADDED, SHAPE(2, 5, 3));
        CHECK_OK(mc_copy(b, a));
        int wrong = 0;
        for (int64_t i = 0; i < 30; i++)
            wrong += memcmp(address(b, i), address(a, i / 3 % 5), (size_t)mc_dtype_size(from)) != 0;
        CHECK(wrong == 0);
        drop_all();
    }
    mc_tensor *r = make_empty(MC_BFLOAT16, SPREAD, SHAPE(300)),
              *i = make_empty(MC_INT64, CONTIGUOUS, SHAPE(9));
    CHECK_OK(mc_arange(r, 2, 0.5));
    CHECK_OK(mc_arange(i, 5, -2));
    int wrong = 0;
    for (int k = 0; k < 300; k++) wrong += fabs(get(r, k) - (2 + 0.5 * k)) > (2 + 0.5 * k) * 0x1p-8;
    for (int k = 0; k < 9; k++) wrong += get(i, k) != 5 - 2 * k;
    CHECK(wrong == 0);
    drop_all();
}

static void numbers_fit(void) {
    TITLE("fill and arange refuse numbers that an integer tensor cannot hold");
    mc_tensor *u = make_empty(MC_UINT8, CONTIGUOUS, SHAPE(300)),
              *i = make_empty(MC_INT32, CONTIGUOUS, SHAPE(3));
    CHECK_OK(mc_fill(u, 255));
    CHECK_STATUS(mc_fill(u, 256), MC_EINVAL, "fill: 256 does not fit in a tensor of uint8");
    CHECK_STATUS(mc_fill(u, -1), MC_EINVAL, "fill: -1 does not fit in a tensor of uint8");
    CHECK_STATUS(mc_fill(i, 0.5), MC_EINVAL, "fill: 0.5 is not an integer");
    CHECK_STATUS(mc_fill(i, NAN), MC_EINVAL, "fill: nan is not an integer");
    CHECK_STATUS(mc_arange(u, 0, 1), MC_EINVAL, "arange: 299 does not fit in a tensor of uint8");
    CHECK_STATUS(mc_arange(i, 0, 0.5), MC_EINVAL, "arange: 0.5 is not an integer");
    CHECK(get(u, 299) == 255); /* nothing was written */
    CHECK_OK(mc_arange(i, 0x1p31 - 3, 1));
    CHECK(get(i, 2) == 0x1p31 - 1);
    drop_all();
}

static void where_moves_bits(void) {
    TITLE("where moves the bits of every dtype, with a broadcast condition");
    for (int dtype = 0; dtype < MC_DTYPE_COUNT; dtype++) {
        for (int layout = 0; layout < LAYOUTS; layout++) {
            mc_tensor *a = make_in(dtype, layout, SHAPE(4, 6)),
                      *b = make_in(dtype, layout, SHAPE(6));
            mc_tensor *c = make_empty(MC_BOOL, layout, SHAPE(4, 1)), *y = empty();
            int wrong = 0, size = mc_dtype_size(dtype);
            for (int i = 0; i < 4; i++) set(c, i, i % 2);
            CHECK_OK(mc_where(y, c, a, b));
            for (int i = 0; i < 24; i++)
                wrong += memcmp(address(y, i), i / 6 % 2 ? address(a, i) : address(b, i % 6),
                                (size_t)size) != 0;
            CHECK(wrong == 0);
            drop_all();
        }
    }
}

int main(void) {
    copies();
    numbers_fit();
    where_moves_bits();
    return check_report();
}
