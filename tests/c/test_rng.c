/* test_rng.c: Philox by its published vectors, and every fill against its definition (rng.h). */
#include "gradcheck.h"
#include "rng.h"

static mc_tensor *state_of(int64_t seed, int64_t offset) {
    mc_tensor *s = make_empty(MC_INT64, CONTIGUOUS, SHAPE(2));
    CHECK_OK(mc_write(s, (int64_t[]){seed, offset}, 16));
    return s;
}

static int64_t part(const mc_tensor *state, int i) {
    return *(const int64_t *)address(state, i);
}

/* The word of element i. */
static uint32_t word(int64_t seed, int64_t offset, int64_t i) {
    uint64_t counter = (uint64_t)offset + (uint64_t)i / 4;
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), 0, 0};
    mci_philox(c, (uint32_t)seed, (uint32_t)((uint64_t)seed >> 32));
    return c[i % 4];
}

static void known_answers(void) {
    TITLE("Philox4x32-10 gives the known answers of its authors");
    static const uint32_t vectors[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
         0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t c[4];
        memcpy(c, vectors[i], sizeof c);
        mci_philox(c, vectors[i][4], vectors[i][5]);
        CHECK(!memcmp(c, vectors[i] + 6, sizeof c));
    }
}

static const int64_t sizes[] = {0, 1, 2, 3, 4, 5, 511, 513, 4099, 70001};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static void uniforms(void) {
    TITLE("uniforms are (word >> 8) 2^-24, and the state moves on by the blocks used");
    for (int k = 0; k < SIZES; k++) {
        int64_t n = sizes[k], seed = 0x123456789abcdefLL, offset = 0xfffffffffLL, wrong = 0;
        mc_tensor *s = state_of(seed, offset);
        mc_tensor *x = make_empty(MC_FLOAT32, CONTIGUOUS, 1, &n);
        mc_tensor *y = make_empty(MC_FLOAT64, CONTIGUOUS, 1, &n);
        CHECK_OK(mc_random_uniform(x, s, 0, 1));
        CHECK(part(s, 1) == offset + (n + 3) / 4 && part(s, 0) == seed);
        CHECK_OK(mc_random_uniform(y, s, -2, 6));
        for (int64_t i = 0; i < n; i++) {
            wrong += get(x, i) != (double)(word(seed, offset, i) >> 8) * 0x1p-24;
            wrong += get(y, i) !=
                     -2 + 8 * ((double)(word(seed, offset + (n + 3) / 4, i) >> 8) * 0x1p-24);
        }
        CHECK(wrong == 0);
        drop_all();
    }
}

static void below_high(void) {
    TITLE("a uniform never reaches its upper bound, in no dtype");
    static const double bounds[][2] = {{0, 1}, {1, 2}, {-1, 0}, {-3, -2.9}, {0.1, 0.3}};
    for (int f = 0; f < FLOATS; f++) {
        for (int b = 0; b < 5; b++) {
            mc_tensor *x = make_empty(floats[f], CONTIGUOUS, SHAPE(20000));
            double low = bounds[b][0], high = bounds[b][1], most = -INFINITY, least = INFINITY;
            CHECK_OK(mc_random_uniform(x, state_of(3, 0), low, high));
            for (int i = 0; i < 20000; i++) {
                most = fmax(most, get(x, i));
                least = fmin(least, get(x, i));
            }
            CHECK(most < high && least >= low - fabs(low) * rounding(floats[f]));
            drop_all();
        }
    }
}

static void normals(void) {
    TITLE("normals are Box-Muller of word pairs, right to the last place");
    for (int k = 0; k < SIZES; k++) {
        int64_t n = sizes[k], seed = -77, wrong = 0;
        mc_tensor *s = state_of(seed, 5), *x = make_empty(MC_FLOAT32, CONTIGUOUS, 1, &n);
        mc_tensor *y = make_empty(MC_FLOAT64, CONTIGUOUS, 1, &n);
        CHECK_OK(mc_random_normal(x, s, 0, 1));
        CHECK(part(s, 1) == 5 + (n + 3) / 4);
        CHECK_OK(mc_random_normal(y, state_of(seed, 5), 10, 0.5));
        for (int64_t i = 0; i < n; i++) {
            double u = ((double)(word(seed, 5, i / 2 * 2) >> 8) + 1) * 0x1p-24;
            double v = (double)(word(seed, 5, i / 2 * 2 + 1) >> 8) * 0x1p-24;
            double z = sqrt(-2 * log(u)) * (i % 2 ? sin(2 * M_PI * v) : cos(2 * M_PI * v));
            wrong += fabs(get(x, i) - z) > fabs(z) * 0x1.01p-24 + 1e-15;
            wrong += fabs(get(y, i) - (10 + 0.5 * z)) > 1e-14;
        }
        CHECK(wrong == 0);
        drop_all();
    }
    mc_tensor *x = make_empty(MC_FLOAT32, CONTIGUOUS, SHAPE(200000));
    CHECK_OK(mc_random_normal(x, state_of(1, 0), 0, 1));
    double sum = 0, squares = 0, fourth = 0, n = 200000;
    for (int i = 0; i < 200000; i++) {
        double v = get(x, i);
        sum += v, squares += v * v, fourth += v * v * v * v;
    }
    CHECK_NEAR(sum / n, 0, 5 / sqrt(n)); /* five standard errors */
    CHECK_NEAR(squares / n, 1, 5 * sqrt(2 / n));
    CHECK_NEAR(fourth / n, 3, 5 * sqrt(96 / n));
    drop_all();
}

static void integers(void) {
    TITLE("integers are low + (word * range >> 32), in every dtype");
    static const int dtypes[] = {MC_INT64, MC_INT32, MC_UINT8, MC_BOOL, MC_FLOAT32, MC_FLOAT64};
    for (int d = 0; d < 6; d++) {
        int dtype = dtypes[d], wrong = 0;
        int64_t low = dtype == MC_BOOL || dtype == MC_UINT8 ? 0 : -5,
                high = dtype == MC_BOOL ? 2 : 100;
        mc_tensor *x = make_empty(dtype, CONTIGUOUS, SHAPE(3001));
        CHECK_OK(mc_random_integers(x, state_of(9, 1), low, high));
        for (int i = 0; i < 3001; i++)
            wrong += (int64_t)get(x, i) !=
                     low + (int64_t)((uint64_t)word(9, 1, i) * (uint64_t)(high - low) >> 32);
        CHECK(wrong == 0);
    }
    mc_tensor *x = make_empty(MC_INT64, CONTIGUOUS, SHAPE(100));
    CHECK_OK(mc_random_integers(x, state_of(9, 1), INT64_MIN, INT64_MIN + (1LL << 32)));
    CHECK(*(int64_t *)address(x, 7) == INT64_MIN + (int64_t)word(9, 1, 7));
    drop_all();
}

static void layouts_and_threads(void) {
    TITLE("an element depends on its logical index alone, not on layout or threads");
    static mc_status (*const fills[])(mc_tensor *, mc_tensor *, double, double) = {
        mc_random_uniform, mc_random_normal};
    for (int f = 0; f < FLOATS; f++) {
        for (int kind = 0; kind < 2; kind++) {
            mc_tensor *plain = make_empty(floats[f], CONTIGUOUS, SHAPE(7, 93, 103));
            CHECK_OK(mc_set_num_threads(1));
            CHECK_OK(fills[kind](plain, state_of(4, 2), -1, 1));
            CHECK_OK(mc_set_num_threads(3));
            for (int layout = 0; layout < LAYOUTS; layout++) {
                mc_tensor *x = make_empty(floats[f], layout, SHAPE(7, 93, 103));
                CHECK_OK(fills[kind](x, state_of(4, 2), -1, 1));
                CHECK_SAME(x, plain);
            }
        }
        drop_all();
    }
    CHECK_OK(mc_set_num_threads(2));
}

static void dropout(void) {
    TITLE("dropout keeps where the uniform is at least p, scales, and its backward does the same");
    for (int f = 0; f < FLOATS; f++) {
        for (int layout = 0; layout < LAYOUTS; layout++) {
            mc_tensor *x = make_in(floats[f], layout, SHAPE(5, 37)), *y = empty(), *keep = empty();
            mc_tensor *s = state_of(11, 3), *dx = empty();
            double p = 0.25, scale = floats[f] == MC_FLOAT64 ? 1 / 0.75 : (double)(float)(1 / 0.75);
            int wrong = 0;
            CHECK_OK(mc_dropout(y, keep, x, s, p));
            CHECK_OK(mc_dropout_backward(dx, x, keep, p));
            CHECK_SAME(dx, y);
            CHECK(part(s, 1) == 3 + (185 + 3) / 4);
            for (int i = 0; i < 185; i++) {
                int kept = (double)(word(11, 3, i) >> 8) * 0x1p-24 >= p;
                double want = kept ? get(x, i) * scale : 0;
                wrong += get(keep, i) != kept;
                wrong += fabs(get(y, i) - want) > fabs(want) * rounding(floats[f]);
            }
            CHECK(wrong == 0);
            drop_all();
        }
    }
    mc_tensor *x = make(MC_FLOAT32, SHAPE(9)), *y = empty(), *keep = empty();
    CHECK_OK(mc_dropout(y, keep, x, state_of(1, 1), 1));
    CHECK(largest(y) == 0);
    CHECK_OK(mc_dropout(y, keep, x, state_of(1, 1), 0));
    CHECK_SAME(x, y);
    drop_all();
}

static void errors(void) {
    TITLE("wrong arguments are named, and leave tensor and state as they were");
    mc_tensor *x = make(MC_FLOAT32, SHAPE(4)), *i = make_int(MC_INT64, 2, (int64_t[]){1, 2});
    mc_tensor *u = make_empty(MC_UINT8, CONTIGUOUS, SHAPE(3)), *s = state_of(1, 2), *y = empty();
    mc_tensor *k = empty();
    CHECK_STATUS(mc_random_uniform(x, s, 2, 1), MC_EINVAL, "random_uniform: low 2 is above high 1");
    CHECK_STATUS(mc_random_uniform(i, s, 0, 1), MC_EINVAL, "random_uniform: the tensor is int64");
    CHECK_STATUS(mc_random_normal(x, s, 0, -1), MC_EINVAL, "random_normal: std is -1");
    CHECK_STATUS(mc_random_normal(x, s, NAN, 1), MC_EINVAL, "must be finite");
    CHECK_STATUS(mc_random_normal(x, x, 0, 1), MC_EINVAL,
                 "random_normal: the state is [4], wanted [2]");
    CHECK_STATUS(mc_random_integers(i, s, 5, 5), MC_EINVAL, "no integer from 5 up to below 5");
    CHECK_STATUS(mc_random_integers(i, s, 0, 1LL << 33), MC_EINVAL, "spans more than 2^32");
    CHECK_STATUS(mc_random_integers(u, s, 0, 300), MC_EINVAL,
                 "0 to 299 does not fit in a tensor of uint8");
    CHECK_STATUS(mc_dropout(y, k, x, s, 1.5), MC_EINVAL, "dropout: p is 1.5, wanted 0 to 1");
    CHECK(get(s, 1) == 2 && !mc_tensor_defined(y));
    drop_all();
}

int main(void) {
    known_answers();
    uniforms();
    below_high();
    normals();
    integers();
    layouts_and_threads();
    dropout();
    errors();
    return check_report();
}
