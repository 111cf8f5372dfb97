/* test_loss.c: cross_entropy. */
#include "gradcheck.h"

enum { IGNORE = -100 };

typedef struct loss {
    mc_tensor *x, *target, *losses, *lse, *dlosses, *dx;
} loss;

static mc_status forward(loss *l) {
    return mc_cross_entropy(l->losses, l->lse, l->x, l->target, IGNORE);
}
static mc_status backward(loss *l) {
    return mc_cross_entropy_backward(l->dx, l->dlosses, l->x, l->target, l->lse, IGNORE);
}

/* Targets 3t mod V, every fifth ignored. */
static loss make_loss(int dtype, int index_dtype, int layout, int64_t T, int64_t V) {
    loss l = {.losses = empty(), .lse = empty(), .dx = empty()};
    l.x = make_in(dtype, layout, SHAPE(T, V));
    for (int64_t i = 0; i < T * V; i++) set(l.x, i, 8 * get(l.x, i));
    l.target = make_empty(index_dtype, layout, SHAPE(T));
    for (int64_t t = 0; t < T; t++) set(l.target, t, t % 5 == 4 ? IGNORE : (double)(3 * t % V));
    l.dlosses = make_in(dtype == MC_FLOAT64 ? dtype : MC_FLOAT32, layout, SHAPE(T));
    return l;
}

static double total(void *ctx) {
    loss *l = ctx;
    CHECK_OK(forward(l));
    check_passed--;
    return weigh(l->losses, l->dlosses);
}

static void float64_is_the_formula(void) {
    TITLE("cross_entropy in float64 is the formula, and 0 for ignored rows");
    loss l = make_loss(MC_FLOAT64, MC_INT64, CONTIGUOUS, 6, 9);
    CHECK_OK(forward(&l));
    for (int64_t t = 0; t < 6; t++) {
        double sum = 0;
        for (int64_t v = 0; v < 9; v++) sum += exp(get(l.x, t * 9 + v));
        CHECK_NEAR(get(l.lse, t), log(sum), 1e-14);
        double want = t == 4 ? 0 : log(sum) - get(l.x, t * 9 + 3 * t % 9);
        CHECK_NEAR(get(l.losses, t), want, 1e-14);
    }
    CHECK_OK(backward(&l));
    GRADCHECK(total, &l, l.x, l.dx);
    for (int64_t v = 0; v < 9; v++) CHECK(get(l.dx, 4 * 9 + v) == 0);
    drop_all();
}

static void dtypes_and_layouts(void) {
    TITLE("cross_entropy of every dtype, layout and size agrees with float64");
    static const int64_t classes[] = {1, 2, 31, 32, 33, 100};
    static const int64_t rows[] = {0, 1, 11};
    for (int k = 0; k < FLOATS * LAYOUTS; k++) {
        for (int i = 0; i < 6 * 3; i++) {
            int64_t T = rows[i / 6], V = classes[i % 6];
            loss l = make_loss(floats[k % FLOATS], i % 2 ? MC_INT32 : MC_INT64, k / FLOATS, T, V);
            loss e = {cast(l.x, MC_FLOAT64),       l.target, empty(), empty(),
                      cast(l.dlosses, MC_FLOAT64), empty()};
            CHECK_OK(forward(&l));
            CHECK_OK(backward(&l));
            CHECK_OK(forward(&e));
            CHECK_OK(backward(&e));
            CHECK_CLOSE_TO(l.losses, e.losses, 8, 16);
            CHECK_CLOSE_TO(l.lse, e.lse, 8, 8);
            CHECK_CLOSE_TO(l.dx, e.dx, 32, 1); /* the error of lse, up to 8, goes through exp */
            drop_all();
        }
    }
}

static void extremes(void) {
    TITLE("cross_entropy does not overflow, masks -inf, and lets NaN show");
    loss l = make_loss(MC_FLOAT32, MC_INT64, CONTIGUOUS, 4, 3);
    static const float rows[12] = {3e38f, -3e38f, 0, -INFINITY, 1,         1,
                                   NAN,   0,      0, -INFINITY, -INFINITY, -INFINITY};
    for (int64_t i = 0; i < 12; i++) set(l.x, i, (double)rows[i]);
    for (int64_t t = 0; t < 4; t++) set(l.target, t, t == 1 ? 1 : 0);
    CHECK_OK(forward(&l));
    CHECK_NEAR(get(l.losses, 0), 0, 0);
    CHECK_NEAR(get(l.losses, 1), log(2), 1e-6);
    CHECK(isnan(get(l.losses, 2)) && isnan(get(l.losses, 3)));
    CHECK(get(l.lse, 3) == -(double)INFINITY);
    CHECK_OK(backward(&l));
    CHECK_NEAR(get(l.dx, 3), 0, 0);
    CHECK_NEAR(get(l.dx, 4), -0.5 * get(l.dlosses, 1), 1e-6);
    drop_all();
}

static void no_classes(void) {
    TITLE("cross_entropy without classes takes only ignored rows, and has lse -inf");
    loss l = make_loss(MC_FLOAT32, MC_INT64, CONTIGUOUS, 2, 1);
    l.x = make(MC_FLOAT32, SHAPE(2, 0));
    CHECK_STATUS(forward(&l), MC_EINVAL, "cross_entropy: target[0] is 0, there are no classes");
    CHECK_OK(mc_fill(l.target, IGNORE));
    CHECK_OK(forward(&l));
    CHECK_OK(backward(&l));
    CHECK(get(l.losses, 1) == 0 && get(l.lse, 1) == -(double)INFINITY);
    drop_all();
}

static void threads_and_place(void) {
    TITLE("cross_entropy gives the same bits with 1 and 2 threads and in place");
    int before = mc_get_num_threads();
    loss a = make_loss(MC_FLOAT32, MC_INT64, CONTIGUOUS, 301, 257), b = a;
    b.losses = empty(), b.dx = empty(), b.lse = empty();
    CHECK_OK(mc_set_num_threads(1));
    CHECK_OK(forward(&a));
    CHECK_OK(backward(&a));
    CHECK_OK(mc_set_num_threads(2));
    CHECK_OK(forward(&b));
    CHECK_OK(backward(&b));
    CHECK_SAME(a.losses, b.losses);
    CHECK_SAME(a.dx, b.dx);
    b.x = b.dx = cast(a.x, MC_FLOAT32);
    CHECK_OK(backward(&b));
    CHECK_SAME(a.dx, b.dx);
    CHECK_OK(mc_set_num_threads(before));
    drop_all();
}

static void errors(void) {
    TITLE("cross_entropy refuses wrong arguments and says why, before it writes");
    loss l = make_loss(MC_FLOAT32, MC_INT64, CONTIGUOUS, 10, 256);
    set(l.target, 7, 300);
    CHECK_STATUS(forward(&l), MC_EINVAL,
                 "cross_entropy: target[7] is 300, legal are 0 to 255 (0-based)");
    CHECK(!mc_tensor_defined(l.losses) && !mc_tensor_defined(l.lse));
    set(l.target, 7, 1);
    CHECK_OK(forward(&l));
    set(l.target, 2, -1);
    mc_tensor *kept = cast(l.losses, MC_FLOAT32);
    set(l.x, 0, 5);
    CHECK_STATUS(forward(&l), MC_EINVAL, "cross_entropy: target[2] is -1, legal are 0 to 255");
    CHECK_SAME(kept, l.losses);
    CHECK_STATUS(backward(&l), MC_EINVAL, "cross_entropy_backward: target[2] is -1");
    CHECK(!mc_tensor_defined(l.dx));
    mc_tensor *flat = make(MC_FLOAT32, SHAPE(4)), *other = empty();
    mc_tensor *three = make_int(MC_INT64, 3, (int64_t[]){0, 0, 0});
    CHECK_STATUS(mc_cross_entropy(other, empty(), flat, three, IGNORE), MC_EINVAL,
                 "cross_entropy: logits is [4], wanted [T, V]");
    CHECK_STATUS(mc_cross_entropy(other, empty(), l.x, three, IGNORE), MC_EINVAL, "[3]");
    CHECK_STATUS(mc_cross_entropy(other, empty(), l.x, flat, IGNORE), MC_EINVAL, "float32");
    CHECK_STATUS(mc_cross_entropy(other, empty(), three, three, IGNORE), MC_EINVAL, "int64");
    CHECK_STATUS(
        mc_cross_entropy_backward(other, make(MC_FLOAT64, SHAPE(10)), l.x, l.target, l.lse, IGNORE),
        MC_EINVAL,
        "cross_entropy_backward: dlosses is float64, float32 is wanted for float32 logits");
    drop_all();
}

int main(void) {
    float64_is_the_formula();
    dtypes_and_layouts();
    extremes();
    no_classes();
    threads_and_place();
    errors();
    return check_report();
}
