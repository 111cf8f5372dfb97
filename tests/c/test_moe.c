/* test_moe.c: the way of rows to their experts and back. */
#include "gradcheck.h"

typedef struct sorted {
    mc_tensor *ids, *counts, *rows, *slots;
    int64_t T, k, E;
} sorted;

static mc_status sort(sorted *s) {
    return mc_moe_sort(s->counts, s->rows, s->slots, s->ids, s->E);
}

/* fate: 0 mixed, every seventh slot not routed; 1 one expert takes all; 2 nothing routed. */
static sorted make_sorted(int dtype, int layout, int64_t T, int64_t k, int64_t E, int fate) {
    sorted s = {.counts = empty(), .rows = empty(), .slots = empty(), .T = T, .k = k, .E = E};
    s.ids = make_empty(dtype, layout, SHAPE(T, k));
    for (int64_t i = 0; i < T * k; i++) {
        double id = floor((next_number() + 1) / 2 * (double)E);
        set(s.ids, i, fate == 2 ? -1 : fate == 1 ? (double)(E - 1) : i % 7 == 6 ? -3 : id);
    }
    CHECK_OK(sort(&s));
    return s;
}

static void sort_is_stable(void) {
    TITLE("moe_sort is a stable sort with counts, for any sizes, strides and fates");
    static const int64_t rows[] = {0, 1, 2, 33, 130};
    for (int n = 0; n < 5 * 3 * LAYOUTS * 3; n++) {
        int64_t T = rows[n % 5], k = n / 5 % 3 + 1, E = n % 2 ? 7 : 1, next = 0;
        sorted s =
            make_sorted(n % 2 ? MC_INT32 : MC_INT64, n / 15 % LAYOUTS, T, k, E, n / 15 / LAYOUTS);
        int fine = 1;
        for (int64_t e = 0; e < E; e++) {
            int64_t count = 0;
            for (int64_t i = 0; i < T * k; i++) {
                if ((int64_t)get(s.ids, i) != e) continue;
                if ((int64_t)get(s.rows, i) != next || (int64_t)get(s.slots, next) != i) fine = 0;
                next++, count++;
            }
            if ((int64_t)get(s.counts, e) != count) fine = 0;
        }
        for (int64_t i = 0; i < T * k; i++)
            if (get(s.ids, i) < 0 && get(s.rows, i) != -1) fine = 0;
        for (int64_t r = next; r < T * k; r++)
            if (get(s.slots, r) != -1) fine = 0;
        CHECK(fine);
        CHECK(mc_tensor_ndim(s.rows) == 2 && mc_tensor_ndim(s.slots) == 1);
        drop_all();
    }
}

static void duplicates(void) {
    TITLE("a token may go to one expert twice");
    sorted s = {.counts = empty(), .rows = empty(), .slots = empty(), .E = 3};
    s.ids = make_empty(MC_INT32, CONTIGUOUS, SHAPE(1, 2));
    CHECK_OK(mc_fill(s.ids, 1));
    CHECK_OK(sort(&s));
    CHECK(get(s.counts, 1) == 2 && get(s.rows, 0) == 0 && get(s.rows, 1) == 1);
    drop_all();
}

typedef struct move {
    sorted s;
    mc_tensor *h, *weights, *y, *dy, *dh, *dweights;
} move;

static mc_status unpermute(move *m) {
    return mc_moe_unpermute(m->y, m->h, m->s.rows, m->weights);
}
static mc_status unpermute_backward(move *m) {
    return mc_moe_unpermute_backward(m->dh, m->dweights, m->dy, m->h, m->s.rows, m->s.slots,
                                     m->weights);
}

static move make_move(int dtype, int layout, sorted s, int64_t d, int weighted) {
    move m = {.s = s, .y = empty(), .dh = empty()};
    m.h = make_in(dtype, layout, SHAPE(s.T * s.k, d));
    m.dy = make_in(dtype, layout, SHAPE(s.T, d));
    if (weighted) {
        int wide = dtype == MC_FLOAT64 ? dtype : MC_FLOAT32;
        m.weights = make_in(weighted == 1 ? wide : dtype, layout, SHAPE(s.T, s.k));
        m.dweights = empty();
    }
    return m;
}

static void permute_moves_rows(void) {
    TITLE("moe_permute moves rows bit for bit in any dtype and layout, zeros where none belongs");
    static const int dtypes[] = {MC_FLOAT64, MC_FLOAT32, MC_BFLOAT16, MC_UINT8, MC_INT64};
    for (int n = 0; n < 5 * LAYOUTS * 3; n++) {
        sorted s = make_sorted(MC_INT32, CONTIGUOUS, 37, 3, 5, n / 5 / LAYOUTS);
        mc_tensor *x = make_in(dtypes[n % 5], n / 5 % LAYOUTS, SHAPE(37, 11)), *out = empty();
        for (int64_t i = 0; i < 37 * 11; i++) set(x, i, (double)(i % 200 + 1));
        CHECK_OK(mc_moe_permute(out, x, s.slots, 3));
        int fine = 1;
        for (int64_t r = 0; r < 37 * 3; r++) {
            int64_t slot = (int64_t)get(s.slots, r);
            for (int64_t j = 0; j < 11; j++)
                if (get(out, r * 11 + j) != (slot < 0 ? 0 : get(x, slot / 3 * 11 + j))) fine = 0;
        }
        CHECK(fine);
        mc_tensor *strided = make_empty(dtypes[n % 5], SPREAD, SHAPE(37 * 3, 11));
        CHECK_OK(mc_moe_permute(strided, x, s.slots, 3));
        CHECK_SAME(strided, out);
        drop_all();
    }
}

static void unpermute_is_the_formula(void) {
    TITLE("moe_unpermute in float64 is the weighted sum of each token's rows");
    for (int weighted = 0; weighted < 2; weighted++) {
        sorted s = make_sorted(MC_INT32, CONTIGUOUS, 9, 3, 4, 0);
        move m = make_move(MC_FLOAT64, CONTIGUOUS, s, 5, weighted);
        CHECK_OK(unpermute(&m));
        for (int64_t t = 0; t < 9; t++) {
            for (int64_t c = 0; c < 5; c++) {
                double want = 0;
                for (int64_t j = 0; j < 3; j++) {
                    int64_t row = (int64_t)get(s.rows, t * 3 + j);
                    if (row >= 0)
                        want += (weighted ? get(m.weights, t * 3 + j) : 1) * get(m.h, row * 5 + c);
                }
                CHECK_NEAR(get(m.y, t * 5 + c), want, 1e-15);
            }
        }
        drop_all();
    }
}

static double total(void *ctx) {
    move *m = ctx;
    CHECK_OK(unpermute(m));
    check_passed--;
    return weigh(m->y, m->dy);
}

static void gradients(void) {
    TITLE("gradients of moe_unpermute agree with central differences");
    for (int n = 0; n < 6; n++) {
        move m = make_move(MC_FLOAT64, CONTIGUOUS,
                           make_sorted(MC_INT64, CONTIGUOUS, 4, 2, 3, n % 3), 3, n / 3);
        CHECK_OK(unpermute(&m));
        CHECK_OK(unpermute_backward(&m));
        GRADCHECK(total, &m, m.h, m.dh);
        if (m.weights) GRADCHECK(total, &m, m.weights, m.dweights);
        drop_all();
    }
}

static void permute_and_back(void) {
    TITLE("unpermute without weights is permute's backward: the sum of the slots' rows");
    sorted s = make_sorted(MC_INT32, CONTIGUOUS, 20, 2, 4, 0);
    mc_tensor *x = make(MC_FLOAT64, SHAPE(20, 6)), *out = empty(), *dx = empty();
    CHECK_OK(mc_moe_permute(out, x, s.slots, 2));
    CHECK_OK(mc_moe_unpermute(dx, out, s.rows, NULL));
    for (int64_t t = 0; t < 20; t++) {
        double times = (get(s.rows, t * 2) >= 0) + (get(s.rows, t * 2 + 1) >= 0);
        for (int64_t j = 0; j < 6; j++)
            CHECK_NEAR(get(dx, t * 6 + j), times * get(x, t * 6 + j), 1e-15);
    }
    drop_all();
}

static void dtypes_and_layouts(void) {
    TITLE("unpermute of every dtype, layout and size agrees with float64");
    static const int64_t widths[] = {0, 1, 32, 67}, rows[] = {0, 1, 41};
    for (int n = 0; n < FLOATS * LAYOUTS * 3 * 12; n++) {
        int dtype = floats[n % FLOATS], layout = n / FLOATS % LAYOUTS;
        int weighted = n / FLOATS / LAYOUTS % 3, i = n / FLOATS / LAYOUTS / 3;
        sorted s = make_sorted(MC_INT32, CONTIGUOUS, rows[i % 3], 2, 5, 0);
        move m = make_move(dtype, layout, s, widths[i / 3], weighted), e = m;
        e.h = cast(m.h, MC_FLOAT64), e.dy = cast(m.dy, MC_FLOAT64);
        e.y = empty(), e.dh = empty();
        if (weighted) e.weights = cast(m.weights, MC_FLOAT64), e.dweights = empty();
        CHECK_OK(unpermute(&m));
        CHECK_OK(unpermute(&e));
        CHECK_CLOSE_TO(m.y, e.y, 4, 1);
        CHECK_OK(unpermute_backward(&m));
        CHECK_OK(unpermute_backward(&e));
        CHECK_CLOSE(m.dh, e.dh, 4);
        if (weighted) CHECK_CLOSE_TO(m.dweights, e.dweights, 32, 1);
        drop_all();
    }
}

static void threads(void) {
    TITLE("moves give the same bits with 1 and 2 threads");
    int before = mc_get_num_threads();
    sorted s = make_sorted(MC_INT32, CONTIGUOUS, 700, 2, 8, 0);
    move a = make_move(MC_FLOAT32, CONTIGUOUS, s, 67, 1), b = a;
    b.y = empty(), b.dh = empty(), b.dweights = empty();
    mc_tensor *p = empty(), *q = empty();
    CHECK_OK(mc_set_num_threads(1));
    CHECK_OK(unpermute(&a));
    CHECK_OK(unpermute_backward(&a));
    CHECK_OK(mc_moe_permute(p, a.dy, s.slots, 2));
    CHECK_OK(mc_set_num_threads(2));
    CHECK_OK(unpermute(&b));
    CHECK_OK(unpermute_backward(&b));
    CHECK_OK(mc_moe_permute(q, a.dy, s.slots, 2));
    CHECK_SAME(a.y, b.y);
    CHECK_SAME(a.dh, b.dh);
    CHECK_SAME(a.dweights, b.dweights);
    CHECK_SAME(p, q);
    CHECK_OK(mc_set_num_threads(before));
    drop_all();
}

static void sort_errors(void) {
    TITLE("moe_sort refuses an id beyond the experts before it writes");
    sorted s = make_sorted(MC_INT32, CONTIGUOUS, 5, 2, 8, 1);
    mc_tensor *rows = cast(s.rows, MC_INT64);
    set(s.ids, 7, 8);
    CHECK_STATUS(sort(&s), MC_EINVAL,
                 "moe_sort: ids[3, 1] is 8, legal are 0 to 7 (0-based), or negative for none");
    CHECK_SAME(rows, s.rows);
    mc_tensor *c = empty(), *r = empty(), *l = empty();
    CHECK_STATUS(mc_moe_sort(c, r, l, s.ids, 4), MC_EINVAL, "moe_sort: ids[0, 0] is 7");
    CHECK_STATUS(mc_moe_sort(c, r, l, s.ids, 0), MC_EINVAL,
                 "moe_sort: 0 experts, wanted at least 1");
    CHECK_STATUS(mc_moe_sort(c, r, l, s.slots, 4), MC_EINVAL,
                 "moe_sort: ids is [10], wanted [T, k]");
    CHECK_STATUS(mc_moe_sort(c, r, l, make(MC_FLOAT32, SHAPE(2, 2)), 4), MC_EINVAL, "float32");
    CHECK(!mc_tensor_defined(c) && !mc_tensor_defined(r) && !mc_tensor_defined(l));
    drop_all();
}

static void move_errors(void) {
    TITLE("permute and unpermute refuse wrong arguments and say why");
    sorted s = make_sorted(MC_INT32, CONTIGUOUS, 4, 2, 3, 1);
    move m = make_move(MC_FLOAT32, CONTIGUOUS, s, 6, 1), w = m;
    mc_tensor *x = make(MC_FLOAT32, SHAPE(4, 6)), *out = empty();
    CHECK_STATUS(mc_moe_permute(out, x, s.slots, 4), MC_EINVAL,
                 "moe_permute: slots is [8], wanted [T * k] with T = 4 and k = 4");
    CHECK_STATUS(mc_moe_permute(out, x, s.slots, 0), MC_EINVAL, "moe_permute: k is 0");
    CHECK_STATUS(mc_moe_permute(out, x, x, 2), MC_EINVAL, "float32");
    mc_tensor *same = make(MC_FLOAT32, SHAPE(8, 6));
    CHECK_STATUS(mc_moe_permute(same, same, s.slots, 1), MC_EINVAL,
                 "moe_permute: the output given overlaps operand 1; clone the operand first");
    w.weights = make(MC_FLOAT32, SHAPE(4, 3));
    CHECK_STATUS(unpermute(&w), MC_EINVAL, "[4, 3]");
    w.weights = make(MC_FLOAT64, SHAPE(4, 2));
    CHECK_STATUS(unpermute(&w), MC_EINVAL,
                 "moe_unpermute: weights is float64, float32 is wanted for float32 h");
    w = m, w.h = make(MC_FLOAT32, SHAPE(9, 6));
    CHECK_STATUS(unpermute_backward(&w), MC_EINVAL, "[9, 6]");
    w = m, w.weights = NULL;
    CHECK_STATUS(unpermute_backward(&w), MC_EINVAL,
                 "moe_unpermute_backward: dweights is asked for without weights");
    w = m, w.h = NULL;
    CHECK_STATUS(unpermute_backward(&w), MC_EINVAL, "moe_unpermute_backward");
    w.weights = w.dweights = NULL;
    CHECK_OK(unpermute_backward(&w));
    set(s.rows, 5, 8);
    CHECK_STATUS(unpermute(&m), MC_EINVAL, "moe_unpermute: rows[2, 1] is 8, legal are 0 to 7");
    set(s.rows, 5, 0);
    set(s.slots, 3, 8);
    CHECK_STATUS(mc_moe_permute(out, x, s.slots, 2), MC_EINVAL,
                 "moe_permute: slots[3] is 8, legal are 0 to 7 (0-based), or negative for none");
    CHECK_STATUS(mc_moe_unpermute_backward(out, NULL, m.dy, NULL, s.rows, s.slots, NULL), MC_EINVAL,
                 "moe_unpermute_backward: slots[3] is 8");
    CHECK(!mc_tensor_defined(out) && !mc_tensor_defined(m.y));
    drop_all();
}

int main(void) {
    sort_is_stable();
    duplicates();
    permute_moves_rows();
    unpermute_is_the_formula();
    gradients();
    permute_and_back();
    dtypes_and_layouts();
    threads();
    sort_errors();
    move_errors();
    return check_report();
}
