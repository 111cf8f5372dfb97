/* test_norm.c: rms_norm and layer_norm. */
#include "gradcheck.h"

typedef struct norm {
    int centred; /* layer_norm */
    mc_tensor *x, *w, *b, *y, *mean, *rstd, *dy, *dx, *dw, *db;
} norm;

static const double eps = 1e-5;

static mc_status forward(norm *n) {
    if (n->centred) return mc_layer_norm(n->y, n->mean, n->rstd, n->x, n->w, n->b, eps);
    return mc_rms_norm(n->y, n->rstd, n->x, n->w, eps);
}
static mc_status backward(norm *n) {
    if (n->centred)
        return mc_layer_norm_backward(n->dx, n->dw, n->db, n->dy, n->x, n->w, n->mean, n->rstd);
    return mc_rms_norm_backward(n->dx, n->dw, n->dy, n->x, n->w, n->rstd);
}

/* params: bit 0 weight, bit 1 bias */
static norm make_norm(int centred, int params, int dtype, int layout, int ndim,
                      const int64_t *shape) {
    int64_t last = shape[ndim - 1];
    norm n = {.centred = centred};
    n.x = make_in(dtype, layout, ndim, shape);
    n.dy = make_in(dtype, layout, ndim, shape);
    n.w = params & 1 ? make_in(dtype, layout, 1, &last) : NULL;
    n.b = params & 2 ? make_in(dtype, layout, 1, &last) : NULL;
    n.y = empty();
    n.mean = empty();
    n.rstd = empty();
    n.dx = empty();
    n.dw = n.w ? empty() : NULL;
    n.db = n.b ? empty() : NULL;
    return n;
}
/* The same in contiguous float64. */
static norm exact(const norm *n) {
    norm e = make_norm(n->centred, (n->w ? 1 : 0) | (n->b ? 2 : 0), MC_FLOAT64, CONTIGUOUS,
                       mc_tensor_ndim(n->x), mc_tensor_shape(n->x));
    e.x = cast(n->x, MC_FLOAT64);
    e.dy = cast(n->dy, MC_FLOAT64);
    if (n->w) e.w = cast(n->w, MC_FLOAT64);
    if (n->b) e.b = cast(n->b, MC_FLOAT64);
    return e;
}

static double loss(void *ctx) {
    norm *n = ctx;
    CHECK_OK(forward(n));
    check_passed--;
    return weigh(n->y, n->dy);
}

static void float64_is_the_formula(void) {
    TITLE("norms in float64 are the formulas, with and without weight and bias");
    for (int centred = 0; centred < 2; centred++) {
        for (int params = 0; params < (centred ? 4 : 2); params++) {
            norm n = make_norm(centred, params, MC_FLOAT64, CONTIGUOUS, SHAPE(2, 3, 7));
            CHECK_OK(forward(&n));
            for (int64_t r = 0; r < 6; r++) {
                double mean = 0, square = 0;
                for (int64_t j = 0; j < 7 && centred; j++) mean += get(n.x, r * 7 + j) / 7;
                for (int64_t j = 0; j < 7; j++) square += pow(get(n.x, r * 7 + j) - mean, 2) / 7;
                double rstd = 1 / sqrt(square + eps);
                CHECK_NEAR(get(n.rstd, r), rstd, 1e-14);
                if (centred) CHECK_NEAR(get(n.mean, r), mean, 1e-14);
                for (int64_t j = 0; j < 7; j++) {
                    double y = (get(n.x, r * 7 + j) - mean) * rstd;
                    if (n.w) y *= get(n.w, j);
                    if (n.b) y += get(n.b, j);
                    CHECK_NEAR(get(n.y, r * 7 + j), y, 1e-14);
                }
            }
            CHECK(mc_tensor_ndim(n.rstd) == 1);
            drop_all();
        }
    }
}

static void gradients(void) {
    TITLE("gradients of norms agree with central differences");
    for (int centred = 0; centred < 2; centred++) {
        for (int params = 0; params < (centred ? 4 : 2); params++) {
            norm n = make_norm(centred, params, MC_FLOAT64, CONTIGUOUS, SHAPE(19, 5));
            CHECK_OK(forward(&n));
            CHECK_OK(backward(&n));
            GRADCHECK(loss, &n, n.x, n.dx);
            if (n.w) GRADCHECK(loss, &n, n.w, n.dw);
            if (n.b) GRADCHECK(loss, &n, n.b, n.db);
            drop_all();
        }
    }
}

static void dtypes_and_layouts(void) {
    TITLE("norms of every dtype, layout and size agree with float64");
    static const int64_t sizes[] = {0, 1, 2, 31, 32, 33, 127};
    static const int64_t rows[] = {0, 1, 17, 70};
    for (int k = 0; k < FLOATS * LAYOUTS * 2; k++) {
        int dtype = floats[k / 2 % FLOATS], layout = k / 2 / FLOATS, centred = k % 2;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (size_t j = 0; j < sizeof rows / sizeof *rows; j++) {
                norm n =
                    make_norm(centred, centred ? 3 : 1, dtype, layout, SHAPE(rows[j], 1, sizes[i]));
                norm e = exact(&n);
                CHECK_OK(forward(&n));
                CHECK_OK(backward(&n));
                CHECK_OK(forward(&e));
                CHECK_OK(backward(&e));
                /* x - mean cancels, then is scaled up by rstd; so do the terms of dx */
                double rstd = largest(e.rstd);
                CHECK_CLOSE_TO(n.y, e.y, 16, rstd);
                CHECK_CLOSE_TO(n.rstd, e.rstd, 16, rstd * rstd);
                CHECK_CLOSE_TO(n.dx, e.dx, 16, rstd * rstd);
                CHECK_CLOSE_TO(n.dw, e.dw, 64, rstd);
                if (n.db) CHECK_CLOSE(n.db, e.db, 64);
                drop_all();
            }
        }
        drop_all();
    }
}

static void one_element(void) {
    TITLE("layer_norm of one element is the bias, and its dx is zero");
    norm n = make_norm(1, 3, MC_FLOAT32, CONTIGUOUS, SHAPE(3, 1));
    CHECK_OK(forward(&n));
    CHECK_OK(backward(&n));
    for (int64_t r = 0; r < 3; r++) {
        CHECK_NEAR(get(n.y, r), get(n.b, 0), 0);
        CHECK_NEAR(get(n.dx, r), 0, 0);
    }
    drop_all();
}

static void large_mean(void) {
    TITLE("layer_norm keeps its precision when the mean is large");
    norm n = make_norm(1, 0, MC_FLOAT32, CONTIGUOUS, SHAPE(1, 64));
    for (int64_t i = 0; i < 64; i++) set(n.x, i, 4096 + get(n.x, i));
    norm e = exact(&n);
    CHECK_OK(forward(&n));
    CHECK_OK(forward(&e));
    CHECK_CLOSE(n.y, e.y, 4096); /* one rounding of the mean against a spread of 1 */
    drop_all();
}

static void threads_and_place(void) {
    TITLE("norms give the same bits with 1 and 2 threads, in place, and into a strided output");
    int before = mc_get_num_threads();
    for (int centred = 0; centred < 2; centred++) {
        norm a = make_norm(centred, centred ? 3 : 1, MC_FLOAT32, CONTIGUOUS, SHAPE(701, 67));
        norm b = a;
        b.y = empty(), b.dx = empty(), b.dw = empty(), b.db = centred ? empty() : NULL;
        CHECK_OK(mc_set_num_threads(1));
        CHECK_OK(forward(&a));
        CHECK_OK(backward(&a));
        CHECK_OK(mc_set_num_threads(2));
        CHECK_OK(forward(&b));
        CHECK_OK(backward(&b));
        CHECK_SAME(a.y, b.y);
        CHECK_SAME(a.dx, b.dx);
        CHECK_SAME(a.dw, b.dw);
        if (centred) CHECK_SAME(a.db, b.db);
        norm c = a;
        c.y = make_empty(MC_FLOAT32, REVERSED, SHAPE(701, 67));
        c.dx = make_empty(MC_FLOAT32, PADDED, SHAPE(701, 67));
        CHECK_OK(forward(&c));
        CHECK_OK(backward(&c));
        CHECK_SAME(c.y, a.y);
        CHECK_SAME(c.dx, a.dx);
        norm d = a;
        d.dx = d.dy = cast(a.dy, MC_FLOAT32);
        CHECK_OK(backward(&d));
        CHECK_SAME(d.dx, a.dx);
        d.x = d.y = cast(a.x, MC_FLOAT32);
        CHECK_OK(forward(&d));
        CHECK_SAME(d.y, a.y);
        drop_all();
    }
    CHECK_OK(mc_set_num_threads(before));
}

static void nan_stays_in_its_row(void) {
    TITLE("a NaN fills its own row and no other");
    norm n = make_norm(0, 1, MC_FLOAT32, CONTIGUOUS, SHAPE(3, 40));
    set(n.x, 45, NAN);
    CHECK_OK(forward(&n));
    for (int64_t i = 0; i < 120; i++) CHECK(isnan(get(n.y, i)) == (i / 40 == 1));
    drop_all();
}

static void errors(void) {
    TITLE("norms refuse wrong arguments and say why");
    mc_tensor *x = make(MC_FLOAT32, SHAPE(2, 4)), *y = empty(), *mean = empty(), *rstd = empty();
    mc_tensor *w5 = make(MC_FLOAT32, SHAPE(5)), *w64 = make(MC_FLOAT64, SHAPE(4));
    mc_tensor *ids = make_empty(MC_INT32, CONTIGUOUS, SHAPE(2, 4));
    mc_tensor *scalar = make(MC_FLOAT32, 0, NULL);
    CHECK_STATUS(mc_rms_norm(y, rstd, x, w5, eps), MC_EINVAL,
                 "rms_norm: weight is [5], x's last axis is 4");
    CHECK_STATUS(mc_layer_norm(y, mean, rstd, x, NULL, w5, eps), MC_EINVAL,
                 "layer_norm: bias is [5], x's last axis is 4");
    CHECK_STATUS(mc_rms_norm(y, rstd, x, w64, eps), MC_EINVAL, "float64");
    CHECK_STATUS(mc_rms_norm(y, rstd, ids, NULL, eps), MC_EINVAL, "int32");
    CHECK_STATUS(mc_rms_norm(y, rstd, scalar, NULL, eps), MC_EINVAL,
                 "rms_norm: x has no axis, at least 1 is wanted");
    CHECK_STATUS(mc_rms_norm(y, rstd, x, NULL, -1), MC_EINVAL, "rms_norm: eps is -1");
    CHECK(!mc_tensor_defined(y) && !mc_tensor_defined(rstd));
    CHECK_OK(mc_rms_norm(y, rstd, x, NULL, eps));
    mc_tensor *dx = empty(), *dw = empty(), *dy3 = make(MC_FLOAT32, SHAPE(2, 3));
    CHECK_STATUS(mc_rms_norm_backward(dx, dw, x, x, NULL, rstd), MC_EINVAL,
                 "rms_norm_backward: dweight is asked for without a weight");
    CHECK_STATUS(mc_rms_norm_backward(dx, NULL, dy3, x, NULL, rstd), MC_EINVAL, "[2, 3]");
    CHECK_STATUS(mc_rms_norm_backward(dx, NULL, x, x, NULL, w5), MC_EINVAL, "[5]");
    CHECK(!mc_tensor_defined(dx) && !mc_tensor_defined(dw));
    drop_all();
}

int main(void) {
    float64_is_the_formula();
    gradients();
    dtypes_and_layouts();
    one_element();
    large_mean();
    threads_and_place();
    nan_stays_in_its_row();
    errors();
    return check_report();
}
