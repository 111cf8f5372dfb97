/* test_matmul.c: mc_matmul and mc_linear against their definitions in float64, and the products
 * below them. */
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "cpu/gemm.h"
#include "gradcheck.h"

/* Sums of k products of numbers in [-1, 1): partial sums and their k roundings grow as sqrt(k). */
static double steps_of(int64_t k) {
    return sqrt((double)k) + 4;
}
#define CHECK_PRODUCT(got, want, k) CHECK_CLOSE_TO(got, want, steps_of(k), sqrt((double)(k)) + 1)

/* The definition in float64 on the same numbers. */
static mc_tensor *exact(const mc_tensor *a, const mc_tensor *b) {
    mc_tensor *c = empty();
    mc_cpu_set_plain(1);
    CHECK_OK(mc_matmul(c, cast(a, MC_FLOAT64), cast(b, MC_FLOAT64)));
    mc_cpu_set_plain(0);
    return c;
}

static void definition_by_hand(void) {
    TITLE("a product of small integers is exact in every dtype, plain and fast");
    static const double a[6] = {1, 2, 3, 4, 5, 6}, b[6] = {7, 8, 9, 10, 11, 12};
    static const double want[4] = {58, 64, 139, 154};
    for (int f = 0; f < FLOATS; f++)
        for (int plain = 0; plain < 2; plain++) {
            mc_tensor *x = make(floats[f], SHAPE(2, 3)), *y = make(floats[f], SHAPE(3, 2));
            mc_tensor *c = empty();
            for (int i = 0; i < 6; i++) set(x, i, a[i]), set(y, i, b[i]);
            mc_cpu_set_plain(plain);
            CHECK_OK(mc_matmul(c, x, y));
            mc_cpu_set_plain(0);
            for (int i = 0; i < 4; i++) CHECK(get(c, i) == want[i]);
        }
    drop_all();
}

static void sizes(void) {
    TITLE("every dtype agrees with the definition at sizes 1, odd and either side of a tile");
    static const int64_t size[][3] = {{1, 1, 1},    {1, 37, 5},    {5, 1, 3},     {3, 5, 1},
                                      {15, 17, 33}, {16, 64, 16},  {17, 65, 31},  {64, 16, 130},
                                      {129, 20, 7}, {127, 33, 12}, {200, 9, 70},  {513, 6, 5},
                                      {7, 260, 9},  {20, 12, 515}, {530, 530, 3}, {3, 11, 1030}};
    for (int f = 0; f < FLOATS; f++)
        for (size_t s = 0; s < sizeof size / sizeof size[0]; s++) {
            int64_t m = size[s][0], n = size[s][1], k = size[s][2];
            mc_tensor *a = make(floats[f], SHAPE(m, k)), *b = make(floats[f], SHAPE(k, n));
            mc_tensor *c = empty(), *plain = empty(), *want = exact(a, b);
            CHECK_OK(mc_matmul(c, a, b));
            CHECK_PRODUCT(c, want, k);
            mc_cpu_set_plain(1);
            CHECK_OK(mc_matmul(plain, a, b));
            mc_cpu_set_plain(0);
            CHECK_PRODUCT(plain, want, k);
            drop_all();
        }
}

static void layouts(void) {
    TITLE("operands and outputs may lie in memory in any way");
    for (int f = 0; f < FLOATS; f++)
        for (int la = 0; la < LAYOUTS; la++)
            for (int lb = 0; lb < LAYOUTS; lb++)
                for (int lc = 0; lc < LAYOUTS; lc++) {
                    mc_tensor *a = make_in(floats[f], la, SHAPE(2, 19, 21));
                    mc_tensor *b = make_in(floats[f], lb, SHAPE(2, 21, 18));
                    mc_tensor *c = make_in(floats[f], lc, SHAPE(2, 19, 18));
                    CHECK_OK(mc_matmul(c, a, b));
                    CHECK_PRODUCT(c, exact(a, b), 21);
                    drop_all();
                }
}

static void transposed_views(void) {
    TITLE("transposed views of either operand, or both, multiply as their copies do");
    static const int64_t swap[2] = {1, 0};
    for (int f = 0; f < FLOATS; f++)
        for (int which = 0; which < 4; which++) {
            mc_tensor *a = make(floats[f], SHAPE(40, 140)), *b = make(floats[f], SHAPE(140, 33));
            mc_tensor *at = empty(), *bt = empty(), *a2 = empty(), *b2 = empty(), *c = empty();
            CHECK_OK(mc_permute(at, a, 2, swap));
            CHECK_OK(mc_permute(bt, b, 2, swap));
            at = cast(at, floats[f]);
            bt = cast(bt, floats[f]);
            CHECK_OK(mc_permute(a2, at, 2, swap));
            CHECK_OK(mc_permute(b2, bt, 2, swap));
            CHECK_OK(mc_matmul(c, which & 1 ? a2 : a, which & 2 ? b2 : b));
            CHECK_PRODUCT(c, exact(a, b), 140);
            drop_all();
        }
}

typedef struct ranks {
    int na, nb, nc;
    int64_t a[4], b[4], c[4];
} ranks;

static void ranks_broadcast(void) {
    TITLE("batch axes broadcast and 1-D operands lose their axis, as in torch.matmul");
    static const ranks cases[] = {{1, 1, 0, {5}, {5}, {0}},
                                  {1, 2, 1, {5}, {5, 3}, {3}},
                                  {2, 1, 1, {4, 5}, {5}, {4}},
                                  {1, 3, 2, {5}, {2, 5, 3}, {2, 3}},
                                  {3, 1, 2, {2, 4, 5}, {5}, {2, 4}},
                                  {3, 2, 3, {2, 4, 5}, {5, 3}, {2, 4, 3}},
                                  {2, 3, 3, {4, 5}, {2, 5, 3}, {2, 4, 3}},
                                  {4, 3, 4, {3, 1, 4, 5}, {2, 5, 3}, {3, 2, 4, 3}},
                                  {3, 4, 4, {3, 4, 5}, {2, 1, 5, 3}, {2, 3, 4, 3}},
                                  {4, 4, 4, {2, 3, 1, 5}, {2, 1, 5, 3}, {2, 3, 1, 3}},
                                  {4, 2, 4, {2, 3, 1, 5}, {5, 3}, {2, 3, 1, 3}}};
    for (int f = 0; f < FLOATS; f++)
        for (int layout = 0; layout < LAYOUTS; layout++)
            for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
                const ranks *r = &cases[i];
                mc_tensor *a = make_in(floats[f], layout, r->na, r->a);
                mc_tensor *b = make_in(floats[f], layout, r->nb, r->b);
                mc_tensor *c = empty();
                CHECK_OK(mc_matmul(c, a, b));
                CHECK(mc_tensor_ndim(c) == r->nc);
                for (int d = 0; d < r->nc; d++) CHECK(mc_tensor_shape(c)[d] == r->c[d]);
                CHECK_PRODUCT(c, exact(a, b), 5);
                drop_all();
            }
}

static void one_batch_item_by_hand(void) {
    TITLE("each batch item is the product of its own matrices");
    mc_tensor *a = make(MC_FLOAT64, SHAPE(3, 4, 5)), *b = make(MC_FLOAT64, SHAPE(3, 5, 2));
    mc_tensor *c = empty();
    CHECK_OK(mc_matmul(c, a, b));
    for (int64_t i = 0; i < 3; i++)
        for (int64_t r = 0; r < 4; r++)
            for (int64_t j = 0; j < 2; j++) {
                double sum = 0;
                for (int64_t p = 0; p < 5; p++)
                    sum += get(a, (i * 4 + r) * 5 + p) * get(b, (i * 5 + p) * 2 + j);
                CHECK_NEAR(get(c, (i * 4 + r) * 2 + j), sum, 1e-14);
            }
    drop_all();
}

static void empty_sizes(void) {
    TITLE("size 0 gives an empty product, and an empty sum is zero, whatever the output held");
    for (int f = 0; f < FLOATS; f++) {
        mc_tensor *c = empty();
        CHECK_OK(mc_matmul(c, make(floats[f], SHAPE(0, 3)), make(floats[f], SHAPE(3, 2))));
        CHECK(mc_tensor_numel(c) == 0 && mc_tensor_shape(c)[1] == 2);
        c = empty();
        CHECK_OK(mc_matmul(c, make(floats[f], SHAPE(0, 2, 3)), make(floats[f], SHAPE(3, 2))));
        CHECK(mc_tensor_numel(c) == 0 && mc_tensor_ndim(c) == 3);
        for (int transposed = 0; transposed < 2; transposed++) {
            c = make(floats[f], SHAPE(2, 3));
            CHECK_OK(mc_fill(c, NAN));
            mc_tensor *a = make_in(floats[f], transposed ? REVERSED : CONTIGUOUS, SHAPE(2, 0));
            CHECK_OK(mc_matmul(c, a, make(floats[f], SHAPE(0, 3))));
            for (int i = 0; i < 6; i++) CHECK(get(c, i) == 0);
        }
        drop_all();
    }
}

static void nan_and_infinity(void) {
    TITLE("NaN spoils its own row only, infinity times zero is NaN, and an old NaN is overwritten");
    for (int f = 0; f < FLOATS; f++) {
        mc_tensor *a = make(floats[f], SHAPE(20, 24)), *b = make(floats[f], SHAPE(24, 18));
        mc_tensor *c = make(floats[f], SHAPE(20, 18));
        CHECK_OK(mc_fill(c, NAN));
        set(a, 3 * 24 + 7, NAN);
        set(a, 5 * 24 + 2, INFINITY);
        for (int64_t j = 0; j < 18; j++) set(b, 2 * 18 + j, j == 4 ? 0.0 : 1.0);
        CHECK_OK(mc_matmul(c, a, b));
        int right = 1;
        for (int64_t i = 0; i < 20; i++)
            for (int64_t j = 0; j < 18; j++) {
                double x = get(c, i * 18 + j);
                right &= i == 3   ? isnan(x)
                         : i != 5 ? isfinite(x)
                         : j == 4 ? isnan(x)
                                  : isinf(x) && x > 0;
            }
        CHECK(right);
        drop_all();
    }
}

static void one_rounding(void) {
    TITLE("16-bit results are the float32 sum rounded once, ties to even");
    /* 1 + half of its spacing is a tie that goes to 1; one spacing higher it goes up; with a bit
     * more it always goes up. A second rounding, or truncation, would give others. */
    for (int plain = 0; plain < 2; plain++)
        for (int f = 2; f < FLOATS; f++) {
            double spacing = 2 * rounding(floats[f]);
            const double low[3] = {1, 1 + spacing, 1}, more[3] = {0, 0, spacing * spacing};
            const double want[3] = {1, 1 + 2 * spacing, 1 + spacing};
            mc_tensor *a = make(floats[f], SHAPE(3, 3)), *b = make(floats[f], SHAPE(3, 1));
            mc_tensor *c = empty();
            CHECK_OK(mc_fill(b, 1));
            for (int i = 0; i < 3; i++) {
                set(a, i * 3, low[i]);
                set(a, i * 3 + 1, spacing / 2);
                set(a, i * 3 + 2, more[i]);
            }
            mc_cpu_set_plain(plain);
            CHECK_OK(mc_matmul(c, a, b));
            mc_cpu_set_plain(0);
            for (int i = 0; i < 3; i++) CHECK(get(c, i) == want[i]);
            drop_all();
        }
}

static void repeats(void) {
    TITLE("a product repeated gives the same bits, and makes nothing new in the library");
    for (int f = 0; f < FLOATS; f++) {
        mc_tensor *a = make(floats[f], SHAPE(3, 300, 200)), *b = make(floats[f], SHAPE(200, 150));
        mc_tensor *first = empty(), *again = empty();
        CHECK_OK(mc_matmul(first, a, b));
        int64_t created = mci_gemm_created();
        for (int i = 0; i < 3; i++) {
            mc_tensor_release(again);
            CHECK_OK(mc_matmul(again, a, b));
            CHECK_SAME(first, again);
        }
        CHECK(mci_gemm_created() == created);
        drop_all();
    }
}

static void one_thread_agrees(void) {
    TITLE("one thread and several agree within the tolerance of the dtype");
    int threads = mc_get_num_threads();
    for (int f = 0; f < FLOATS; f++) {
        mc_tensor *a = make(floats[f], SHAPE(260, 150)), *b = make(floats[f], SHAPE(150, 270));
        mc_tensor *many = empty(), *one = empty();
        CHECK_OK(mc_set_num_threads(3));
        CHECK_OK(mc_matmul(many, a, b));
        CHECK_OK(mc_set_num_threads(1));
        CHECK_OK(mc_matmul(one, a, b));
        CHECK_OK(mc_set_num_threads(threads));
        CHECK_CLOSE_TO(many, cast(one, MC_FLOAT64), steps_of(150), 13);
        drop_all();
    }
}

static void errors(void) {
    TITLE("wrong operands are named with their shapes and dtypes");
    mc_tensor *c = empty(), *a = make(MC_FLOAT32, SHAPE(2, 3)), *b = make(MC_FLOAT32, SHAPE(4, 5));
    CHECK_STATUS(mc_matmul(c, a, b), MC_EINVAL,
                 "matmul: inner sizes differ: a is [2, 3], b is [4, 5]");
    CHECK_STATUS(mc_matmul(c, a, make(MC_FLOAT32, SHAPE(4))), MC_EINVAL,
                 "matmul: inner sizes differ: a is [2, 3], b is [4]");
    CHECK_STATUS(mc_matmul(c, make(MC_FLOAT32, SHAPE(2, 4, 3)), make(MC_FLOAT32, SHAPE(5, 3, 2))),
                 MC_EINVAL, "matmul: batch sizes do not broadcast: a is [2, 4, 3], b is [5, 3, 2]");
    CHECK_STATUS(mc_matmul(c, make(MC_FLOAT32, 0, NULL), a), MC_EINVAL,
                 "matmul: a is [], b is [2, 3], each needs at least 1 axis");
    CHECK_STATUS(mc_matmul(c, a, make(MC_BFLOAT16, SHAPE(3, 2))), MC_EINVAL,
                 "matmul: a is float32 and b is bfloat16");
    CHECK_STATUS(mc_matmul(c, make(MC_INT32, SHAPE(2, 2)), make(MC_INT32, SHAPE(2, 2))), MC_EINVAL,
                 "matmul: a is int32");
    CHECK(!mc_tensor_defined(c));
    CHECK_STATUS(mc_matmul(make(MC_FLOAT32, SHAPE(2, 2)), a, make(MC_FLOAT32, SHAPE(3, 5))),
                 MC_EINVAL, "matmul: the output given is [2, 2], the result is [2, 5]");
    mc_tensor *square = make(MC_FLOAT32, SHAPE(3, 3));
    CHECK_STATUS(mc_matmul(square, square, square), MC_EINVAL,
                 "matmul: the output given overlaps operand 1; clone the operand first");
    drop_all();
}

/* -- linear ------------------------------------------------------------------------------------ */

/* y = x weight^T (+ bias) (gelu of it) from other ops in float64 */
static mc_tensor *exact_linear(const mc_tensor *x, const mc_tensor *weight, const mc_tensor *bias,
                               int gelu) {
    static const int64_t swap[2] = {1, 0};
    mc_tensor *w = empty(), *y, *sum = empty(), *out = empty();
    CHECK_OK(mc_permute(w, weight, 2, swap));
    y = exact(x, w);
    if (bias) CHECK_OK(mc_add(sum, y, cast(bias, MC_FLOAT64)));
    if (bias) y = sum;
    if (!gelu) return y;
    CHECK_OK(mc_gelu(out, y));
    return out;
}

static void linear_sizes(void) {
    TITLE("linear agrees with a product, a sum and gelu in float64, at any size, plain and fast");
    static const int64_t size[][3] = {{1, 1, 1},    {2, 3, 0},    {70, 80, 0},  {3, 65, 4},
                                      {17, 65, 31}, {129, 20, 7}, {40, 260, 9}, {530, 70, 33}};
    for (int f = 0; f < FLOATS; f++)
        for (size_t s = 0; s < sizeof size / sizeof size[0]; s++)
            for (int way = 0; way < 8; way++) {
                int64_t r = size[s][0], n = size[s][1], k = size[s][2];
                mc_tensor *x = make(floats[f], SHAPE(r, k)), *w = make(floats[f], SHAPE(n, k));
                mc_tensor *bias = way & 1 ? make(floats[f], SHAPE(n)) : NULL, *y = empty();
                mc_cpu_set_plain(way >> 2);
                CHECK_OK(mc_linear(y, x, w, bias, way >> 1 & 1));
                mc_cpu_set_plain(0);
                CHECK_PRODUCT(y, exact_linear(x, w, bias, way >> 1 & 1), k + 2);
                drop_all();
            }
}

static void linear_layouts(void) {
    TITLE("linear's operands and output may lie in memory in any way");
    for (int f = 0; f < FLOATS; f++)
        for (int i = 0; i < LAYOUTS * LAYOUTS * LAYOUTS; i++)
            for (int gelu = 0; gelu < 2; gelu++) {
                int lx = i % LAYOUTS, lw = i / LAYOUTS % LAYOUTS, ly = i / LAYOUTS / LAYOUTS;
                mc_tensor *x = make_in(floats[f], lx, SHAPE(19, 21));
                mc_tensor *w = make_in(floats[f], lw, SHAPE(18, 21));
                mc_tensor *y = make_in(floats[f], ly, SHAPE(19, 18));
                mc_tensor *bias = make_in(floats[f], lx == SPREAD ? SPREAD : lw, SHAPE(18));
                CHECK_OK(mc_linear(y, x, w, bias, gelu));
                CHECK_PRODUCT(y, exact_linear(x, w, bias, gelu), 23);
                drop_all();
            }
}

static void linear_one_rounding(void) {
    TITLE("linear adds the bias before its one rounding, and takes gelu before it too");
    for (int plain = 0; plain < 2; plain++)
        for (int f = 2; f < FLOATS; f++)
            for (int gelu = 0; gelu < 2; gelu++) {
                double spacing = 2 * rounding(floats[f]);
                mc_tensor *x = make(floats[f], SHAPE(20, 3)), *w = make(floats[f], SHAPE(20, 3));
                mc_tensor *bias = make(floats[f], SHAPE(20)), *y = empty(), *wide = empty();
                CHECK_OK(mc_fill(x, 1));
                CHECK_OK(mc_fill(w, 0));
                CHECK_OK(mc_fill(bias, spacing / 2));
                for (int i = 0; i < 20; i++) set(w, i * 3, 8 + 8 * spacing * i);
                for (int i = 0; i < 20; i++) set(w, i * 3 + 1, 4 * spacing);
                mc_cpu_set_plain(plain);
                CHECK_OK(mc_linear(y, x, w, bias, gelu));
                CHECK_OK(mc_linear(wide, cast(x, MC_FLOAT32), cast(w, MC_FLOAT32),
                                   cast(bias, MC_FLOAT32), gelu));
                mc_cpu_set_plain(0);
                CHECK_SAME(y, cast(wide, floats[f]));
                drop_all();
            }
}

static void linear_errors(void) {
    TITLE("linear names wrong operands with their shapes and dtypes");
    mc_tensor *y = empty(), *x = make(MC_FLOAT32, SHAPE(2, 3)), *w = make(MC_FLOAT32, SHAPE(5, 3));
    CHECK_STATUS(mc_linear(y, x, make(MC_FLOAT32, SHAPE(3, 5)), NULL, 0), MC_EINVAL,
                 "linear: x is [2, 3] and weight is [3, 5], wanted [R, K] and [N, K]");
    CHECK_STATUS(mc_linear(y, make(MC_FLOAT32, SHAPE(3)), w, NULL, 0), MC_EINVAL,
                 "linear: x is [3] and weight is [5, 3], wanted [R, K] and [N, K]");
    CHECK_STATUS(mc_linear(y, x, w, make(MC_FLOAT32, SHAPE(3)), 0), MC_EINVAL,
                 "linear: bias is [3], wanted [5]");
    CHECK_STATUS(mc_linear(y, x, make(MC_FLOAT16, SHAPE(5, 3)), NULL, 0), MC_EINVAL,
                 "linear: x is float32 and weight is float16");
    CHECK_STATUS(mc_linear(y, x, w, make(MC_FLOAT64, SHAPE(5)), 0), MC_EINVAL,
                 "linear: x is float32 and bias is float64");
    CHECK_STATUS(mc_linear(y, NULL, w, NULL, 0), MC_EINVAL, "linear: operand 1 is missing");
    CHECK_STATUS(mc_linear(make(MC_FLOAT32, SHAPE(2, 2)), x, w, NULL, 0), MC_EINVAL,
                 "linear: the output given is [2, 2], the result is [2, 5]");
    CHECK(!mc_tensor_defined(y));
    CHECK_OK(mc_linear(y, make(MC_FLOAT32, SHAPE(0, 3)), w, NULL, 1));
    CHECK(mc_tensor_numel(y) == 0 && mc_tensor_shape(y)[1] == 5);
    drop_all();
}

static void tf32_is_a_choice(void) {
    TITLE("tf32 is off until it is allowed, and changes nothing on the CPU");
    mc_tensor *x = make(MC_FLOAT32, SHAPE(30, 20)), *w = make(MC_FLOAT32, SHAPE(10, 20));
    mc_tensor *full = empty(), *allowed = empty();
    CHECK(mc_get_allow_tf32() == 0);
    CHECK_OK(mc_linear(full, x, w, NULL, 0));
    mc_set_allow_tf32(7);
    CHECK(mc_get_allow_tf32() == 1);
    CHECK_OK(mc_linear(allowed, x, w, NULL, 0));
    mc_set_allow_tf32(0);
    CHECK(mc_get_allow_tf32() == 0);
    CHECK_SAME(full, allowed);
    drop_all();
}

static void no_memory(void) {
    TITLE("a product without memory for its result fails whole, and works the next time");
    mc_tensor *a = make(MC_FLOAT32, SHAPE(3, 4)), *b = make(MC_FLOAT32, SHAPE(4, 5));
    mc_tensor *c = empty();
    mc_memory_fail_at(1);
    CHECK_STATUS(mc_matmul(c, a, b), MC_ENOMEM, "");
    CHECK(!mc_tensor_defined(c));
    CHECK_OK(mc_matmul(c, a, b));
    mc_memory_fail_at(0);
    drop_all();
}

enum { SIDE = 70 };

static void from_a_parallel_region(void) {
    TITLE("products called from inside a parallel region are right on every thread");
    static float a[SIDE * SIDE], b[SIDE * SIDE], want[SIDE * SIDE];
    static double a64[SIDE * SIDE], b64[SIDE * SIDE], want64[SIDE * SIDE];
    for (int i = 0; i < SIDE * SIDE; i++) {
        a64[i] = a[i] = (float)next_number();
        b64[i] = b[i] = (float)next_number();
    }
    for (int trans = 0; trans < 4; trans++) {
        int ta = trans & 1, tb = trans >> 1, wrong = 0;
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j++) {
                double sum = 0;
                for (int p = 0; p < SIDE; p++)
                    sum += a64[ta ? p * SIDE + i : i * SIDE + p] *
                           b64[tb ? j * SIDE + p : p * SIDE + j];
                want64[i * SIDE + j] = 2 * sum + 0.5;
                want[i * SIDE + j] = (float)want64[i * SIDE + j];
            }
#pragma omp parallel num_threads(4) reduction(+ : wrong)
        {
            float c[SIDE * SIDE];
            double c64[SIDE * SIDE];
            for (int i = 0; i < SIDE * SIDE; i++) c[i] = 1, c64[i] = 1;
            wrong += mci_gemm_f32(ta, tb, SIDE, SIDE, SIDE, 2, a, SIDE, b, SIDE, 0.5F, c, SIDE);
            wrong +=
                mci_gemm_f64(ta, tb, SIDE, SIDE, SIDE, 2, a64, SIDE, b64, SIDE, 0.5, c64, SIDE);
            for (int i = 0; i < SIDE * SIDE; i++) {
                wrong += !(fabsf(c[i] - want[i]) < 1e-5F);
                wrong += !(fabs(c64[i] - want64[i]) < 1e-13);
            }
        }
        CHECK(wrong == 0);
    }
}

static void on_signal(int number) {
    (void)number;
}

static void *interrupt(void *done) {
    while (!__atomic_load_n((int *)done, __ATOMIC_RELAXED)) kill(getpid(), SIGUSR1);
    return NULL;
}

static void signals_do_no_harm(void) {
    TITLE("signals that arrive during products change nothing");
    /* The memory of every product's neighbours is the heap: a broken one ends the process. */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    static const int dtypes[] = {MC_FLOAT32, MC_BFLOAT16};
    pthread_t thread;
    int done = 0;
    sigaction(SIGUSR1, &action, &before);
    CHECK(pthread_create(&thread, NULL, interrupt, &done) == 0);
    for (int i = 0; i < 200; i++) {
        int64_t m = 64 + i * 37 % 300;
        mc_tensor *a = empty(), *b = empty(), *c = empty(), *want = empty();
        int same = 0;
        CHECK_OK(mc_empty(a, dtypes[i % 2], 0, SHAPE(m, 128)));
        CHECK_OK(mc_empty(b, dtypes[i % 2], 0, SHAPE(128, 256)));
        CHECK_OK(mc_empty(want, dtypes[i % 2], 0, SHAPE(m, 256)));
        CHECK_OK(mc_fill(a, 1));
        CHECK_OK(mc_fill(b, 1));
        CHECK_OK(mc_fill(want, 128));
        CHECK_OK(mc_matmul(c, a, b));
        CHECK_OK(mc_equal(c, want, &same));
        CHECK(same);
        drop_all();
    }
    __atomic_store_n(&done, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    sigaction(SIGUSR1, &before, NULL);
}

static void provider_is_known(void) {
    TITLE("the provider of products has a name");
    const char *name = mc_cpu_info("gemm");
    CHECK(name && name[0]);
    CHECK(mc_cpu_info("gemm_reason") != NULL);
    if (strcmp(name, "plain loops") == 0) CHECK(mc_cpu_info("gemm_reason")[0]);
}

int main(void) {
    definition_by_hand();
    sizes();
    layouts();
    transposed_views();
    ranks_broadcast();
    one_batch_item_by_hand();
    empty_sizes();
    nan_and_infinity();
    one_rounding();
    repeats();
    one_thread_agrees();
    errors();
    linear_sizes();
    linear_layouts();
    linear_one_rounding();
    linear_errors();
    tf32_is_a_choice();
    no_memory();
    from_a_parallel_region();
    signals_do_no_harm();
    provider_is_known();
    return check_report();
}
