/* test_attention.c: rope and attention. */
#include "gradcheck.h"

typedef struct attn {
    mc_tensor *q, *k, *v, *out, *lse, *dout, *dq, *dk, *dv;
    double scale;
    int causal;
} attn;

static mc_status forward(attn *a) {
    return mc_attention(a->out, a->lse, a->q, a->k, a->v, a->scale, a->causal);
}
static mc_status backward(attn *a) {
    return mc_attention_backward(a->dq, a->dk, a->dv, a->dout, a->q, a->k, a->v, a->out, a->lse,
                                 a->scale, a->causal);
}

typedef struct size {
    int64_t B, T, S, H, Hkv, D;
    int causal;
} size;

static attn outputs(attn a) {
    a.out = empty(), a.lse = empty();
    a.dq = empty(), a.dk = empty(), a.dv = empty();
    return a;
}
static attn make_attn(int dtype, int layout, size z) {
    attn a = {.scale = 1.7 / sqrt(z.D > 0 ? (double)z.D : 1), .causal = z.causal};
    a.q = make_in(dtype, layout, SHAPE(z.B, z.T, z.H, z.D));
    a.k = make_in(dtype, layout, SHAPE(z.B, z.S, z.Hkv, z.D));
    a.v = make_in(dtype, layout, SHAPE(z.B, z.S, z.Hkv, z.D));
    a.dout = make_in(dtype, layout, SHAPE(z.B, z.T, z.H, z.D));
    return outputs(a);
}
static attn exact(const attn *a) {
    attn e = *a;
    e.q = cast(a->q, MC_FLOAT64), e.k = cast(a->k, MC_FLOAT64), e.v = cast(a->v, MC_FLOAT64);
    e.dout = cast(a->dout, MC_FLOAT64);
    return outputs(e);
}

static double total(void *ctx) {
    attn *a = ctx;
    CHECK_OK(forward(a));
    check_passed--;
    return weigh(a->out, a->dout);
}

static void plain_float64_is_the_formula(void) {
    TITLE("plain attention in float64 is the formula, with shared heads and causal");
    mc_cpu_set_plain(1);
    for (int causal = 0; causal < 2; causal++) {
        size z = {2, 3, 5, 4, 2, 3, causal};
        attn a = make_attn(MC_FLOAT64, CONTIGUOUS, z);
        CHECK_OK(forward(&a));
        for (int64_t b = 0; b < z.B; b++) {
            for (int64_t t = 0; t < z.T * z.H; t++) {
                int64_t h = t % z.H, time = t / z.H, keys = causal ? time + z.S - z.T + 1 : z.S;
                double p[5], sum = 0;
                for (int64_t s = 0; s < keys; s++) {
                    double dot = 0;
                    for (int64_t d = 0; d < z.D; d++)
                        dot += get(a.q, ((b * z.T + time) * z.H + h) * z.D + d) *
                               get(a.k, ((b * z.S + s) * z.Hkv + h / 2) * z.D + d);
                    sum += p[s] = exp(a.scale * dot);
                }
                CHECK_NEAR(get(a.lse, (b * z.H + h) * z.T + time), log(sum), 1e-14);
                for (int64_t d = 0; d < z.D; d++) {
                    double want = 0;
                    for (int64_t s = 0; s < keys; s++)
                        want += p[s] / sum * get(a.v, ((b * z.S + s) * z.Hkv + h / 2) * z.D + d);
                    CHECK_NEAR(get(a.out, ((b * z.T + time) * z.H + h) * z.D + d), want, 1e-14);
                }
            }
        }
        drop_all();
    }
    mc_cpu_set_plain(0);
}

static void gradients(void) {
    TITLE("gradients of attention agree with central differences, plain and fast");
    for (int k = 0; k < 4; k++) {
        mc_cpu_set_plain(k & 1);
        attn a = make_attn(MC_FLOAT64, CONTIGUOUS, (size){1, 3, 4, 4, 2, 3, k >> 1});
        CHECK_OK(forward(&a));
        CHECK_OK(backward(&a));
        GRADCHECK(total, &a, a.q, a.dq);
        GRADCHECK(total, &a, a.k, a.dk);
        GRADCHECK(total, &a, a.v, a.dv);
        drop_all();
    }
    mc_cpu_set_plain(0);
}

static void compare(int dtype, int layout, size z, int plain) {
    attn a = make_attn(dtype, layout, z), e = exact(&a);
    mc_cpu_set_plain(plain);
    CHECK_OK(forward(&a));
    CHECK_OK(backward(&a));
    mc_cpu_set_plain(1);
    CHECK_OK(forward(&e));
    CHECK_OK(backward(&e));
    mc_cpu_set_plain(0);
    double S = (double)z.S, T = (double)(z.T * z.H);
    /* the stored out, rounded to dtype, enters the backward pass */
    double round = 4 * rounding(dtype) / rounding(dtype == MC_FLOAT64 ? dtype : MC_FLOAT32);
    CHECK_CLOSE_TO(a.out, e.out, 16 + S / 8, 1);
    CHECK_CLOSE_TO(a.lse, e.lse, 16 + S / 8, 1);
    CHECK_CLOSE_TO(a.dq, e.dq, 32 + S / 8 + round, 2);
    CHECK_CLOSE_TO(a.dk, e.dk, 32 + T / 8 + round, 2);
    CHECK_CLOSE_TO(a.dv, e.dv, 32 + T / 8, 1);
    drop_all();
}

static void dtypes_and_layouts(void) {
    TITLE("attention of every dtype and layout agrees with plain float64, plain and fast");
    static const size sizes[] = {{2, 5, 5, 2, 1, 8, 1},   {1, 1, 1, 1, 1, 1, 1},
                                 {1, 1, 9, 4, 2, 16, 1},  {2, 9, 1, 2, 2, 3, 0},
                                 {1, 7, 3, 2, 2, 4, 1},   {1, 63, 63, 1, 1, 5, 1},
                                 {1, 66, 130, 3, 1, 7, 1}};
    for (int k = 0; k < FLOATS * LAYOUTS * 2; k++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            compare(floats[k / 2 % FLOATS], k / 2 / FLOATS, sizes[i], k % 2);
}

static void block_edges(void) {
    TITLE("attention agrees with plain float64 on either side of its blocks");
    static const int64_t times[] = {63, 64, 65, 128, 129};
    for (int i = 0; i < 5; i++) {
        for (int causal = 0; causal < 2; causal++) {
            compare(MC_FLOAT32, CONTIGUOUS, (size){1, times[i], times[i], 2, 1, 32, causal}, 0);
            compare(MC_FLOAT32, CONTIGUOUS, (size){1, times[i], 70, 1, 1, 33, causal}, 0);
            compare(MC_BFLOAT16, CONTIGUOUS, (size){1, 64, times[i], 1, 1, 64, causal}, 0);
        }
    }
}

static void empty_sizes(void) {
    TITLE("attention without batches, queries, keys or width gives zeros or nothing");
    static const size sizes[] = {{0, 3, 3, 2, 1, 4, 1},
                                 {1, 0, 3, 2, 1, 4, 1},
                                 {1, 3, 0, 2, 1, 4, 0},
                                 {1, 3, 3, 2, 1, 0, 0},
                                 {1, 3, 3, 0, 1, 4, 1}};
    for (int plain = 0; plain < 2; plain++) {
        mc_cpu_set_plain(plain);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            attn a = make_attn(MC_FLOAT32, CONTIGUOUS, sizes[i]);
            CHECK_OK(forward(&a));
            CHECK_OK(backward(&a));
            CHECK(largest(a.out) == 0 && largest(a.dk) == 0 && largest(a.dq) == 0);
            if (sizes[i].H == 0) CHECK(largest(a.dv) == 0);
            drop_all();
        }
    }
    mc_cpu_set_plain(0);
}

static void blind_queries(void) {
    TITLE("a causal query that sees no key gives zeros, lse -inf and no gradient");
    for (int plain = 0; plain < 2; plain++) {
        mc_cpu_set_plain(plain);
        attn a = make_attn(MC_FLOAT32, CONTIGUOUS, (size){1, 70, 2, 1, 1, 4, 1});
        CHECK_OK(forward(&a));
        CHECK_OK(backward(&a));
        for (int64_t t = 0; t < 68; t++) {
            CHECK(get(a.lse, t) == -(double)INFINITY);
            for (int64_t d = 0; d < 4; d++)
                CHECK(get(a.out, t * 4 + d) == 0 && get(a.dq, t * 4 + d) == 0);
        }
        CHECK(get(a.out, 68 * 4) == get(a.v, 0) && largest(a.dq) > 0 && largest(a.dk) > 0);
        drop_all();
    }
    mc_cpu_set_plain(0);
}

/* q, k, v as views of one [B, T, (H + 2 Hkv) * D]. */
static void split_heads(mc_tensor *packed, size z, mc_tensor **q, mc_tensor **k, mc_tensor **v) {
    int64_t wide = (z.H + 2 * z.Hkv) * z.D, strides[4] = {z.T * wide, wide, z.D, 1};
    *q = empty(), *k = empty(), *v = empty();
    CHECK_OK(mc_as_strided(*q, packed, SHAPE(z.B, z.T, z.H, z.D), strides, 0));
    CHECK_OK(mc_as_strided(*k, packed, SHAPE(z.B, z.T, z.Hkv, z.D), strides, z.H * z.D));
    CHECK_OK(mc_as_strided(*v, packed, SHAPE(z.B, z.T, z.Hkv, z.D), strides, (z.H + z.Hkv) * z.D));
}

static void packed_heads(void) {
    TITLE(
        "attention reads and writes views of packed tensors, with the same bits on 1 and 2 "
        "threads");
    size z = {3, 130, 130, 4, 2, 32, 1};
    int before = mc_get_num_threads();
    int64_t wide = (z.H + 2 * z.Hkv) * z.D;
    attn a = make_attn(MC_FLOAT32, CONTIGUOUS, z);
    mc_tensor *qkv = make(MC_FLOAT32, SHAPE(z.B, z.T, wide)), *dqkv = empty(), *again = empty();
    CHECK_OK(mc_empty(dqkv, MC_FLOAT32, 0, SHAPE(z.B, z.T, wide)));
    CHECK_OK(mc_empty(again, MC_FLOAT32, 0, SHAPE(z.B, z.T, wide)));
    split_heads(qkv, z, &a.q, &a.k, &a.v);
    split_heads(dqkv, z, &a.dq, &a.dk, &a.dv);
    CHECK_OK(mc_set_num_threads(1));
    CHECK_OK(forward(&a));
    CHECK_OK(backward(&a));
    attn e = exact(&a), b = outputs(a);
    mc_cpu_set_plain(1);
    CHECK_OK(forward(&e));
    CHECK_OK(backward(&e));
    mc_cpu_set_plain(0);
    CHECK_CLOSE_TO(a.out, e.out, 32, 1);
    CHECK_CLOSE_TO(a.dq, e.dq, 64, 1);
    CHECK_CLOSE_TO(a.dk, e.dk, 64, 1);
    CHECK_CLOSE_TO(a.dv, e.dv, 64, 1);
    split_heads(again, z, &b.dq, &b.dk, &b.dv);
    CHECK_OK(mc_set_num_threads(2));
    CHECK_OK(forward(&b));
    CHECK_OK(backward(&b));
    CHECK_SAME(a.out, b.out);
    CHECK_SAME(a.lse, b.lse);
    CHECK_SAME(dqkv, again);
    CHECK_OK(mc_set_num_threads(before));
    drop_all();
}

static void attention_errors(void) {
    TITLE("attention refuses wrong arguments and says why");
    attn a = make_attn(MC_FLOAT32, CONTIGUOUS, (size){2, 3, 5, 4, 2, 8, 0}), w = a;
    w.q = make(MC_FLOAT32, SHAPE(2, 3, 8));
    CHECK_STATUS(forward(&w), MC_EINVAL, "attention: q is [2, 3, 8], wanted [B, T, H, D]");
    w = a, w.k = make(MC_FLOAT32, SHAPE(5, 8));
    CHECK_STATUS(forward(&w), MC_EINVAL, "attention: k is [5, 8], wanted [B, S, Hkv, D]");
    w = a, w.v = make(MC_FLOAT32, SHAPE(2, 4, 2, 8));
    CHECK_STATUS(forward(&w), MC_EINVAL,
                 "attention: k is [2, 5, 2, 8] and v is [2, 4, 2, 8], wanted equal");
    w = a, w.k = w.v = make(MC_FLOAT32, SHAPE(2, 5, 2, 4));
    CHECK_STATUS(forward(&w), MC_EINVAL, "q is [2, 3, 4, 8] and k is [2, 5, 2, 4]");
    w = a, w.k = w.v = make(MC_FLOAT32, SHAPE(2, 5, 3, 8));
    CHECK_STATUS(forward(&w), MC_EINVAL, "attention: q has 4 heads, wanted a multiple of k's 3");
    w = a, w.k = make(MC_FLOAT64, SHAPE(2, 5, 2, 8));
    CHECK_STATUS(forward(&w), MC_EINVAL, "float64");
    w = a, w.out = a.q;
    CHECK_STATUS(forward(&w), MC_EINVAL,
                 "attention: the output given overlaps operand 1; clone the operand first");
    CHECK(!mc_tensor_defined(a.out) && !mc_tensor_defined(a.lse));
    CHECK_OK(forward(&a));
    w = a, w.dk = a.k;
    CHECK_STATUS(
        backward(&w), MC_EINVAL,
        "attention_backward: the output given overlaps operand 3; clone the operand first");
    w = a, w.lse = make(MC_FLOAT32, SHAPE(2, 3, 4));
    CHECK_STATUS(backward(&w), MC_EINVAL, "[2, 3, 4]");
    CHECK(!mc_tensor_defined(a.dq));
    drop_all();
}

static void rope_is_the_formula(void) {
    TITLE("rope in float64 is the formula, for any first position");
    int64_t T = 3, H = 2, D = 6;
    mc_tensor *x = make(MC_FLOAT64, SHAPE(2, T, H, D)), *y = empty();
    CHECK_OK(mc_rope(y, x, 10000, 5, 0));
    for (int64_t r = 0; r < 2 * T * H; r++) {
        for (int64_t d = 0; d < D / 2; d++) {
            double angle = (double)(5 + r / H % T) * pow(10000, -2 * (double)d / (double)D);
            double a = get(x, r * D + d), b = get(x, r * D + d + D / 2);
            CHECK_NEAR(get(y, r * D + d), a * cos(angle) - b * sin(angle), 1e-14);
            CHECK_NEAR(get(y, r * D + d + D / 2), a * sin(angle) + b * cos(angle), 1e-14);
        }
    }
    drop_all();
}

static void rope_turns_back(void) {
    TITLE("inverse rope turns back what rope turned, so it is its backward pass");
    mc_tensor *x = make(MC_FLOAT64, SHAPE(1, 40, 1, 8)), *y = empty(), *z = empty();
    CHECK_OK(mc_rope(y, x, 500, 100000, 0));
    CHECK_OK(mc_rope(z, y, 500, 100000, 1));
    CHECK_CLOSE(z, x, 8);
    CHECK(fabs(get(y, 0) - get(x, 0)) > 1e-3);
    drop_all();
}

static void rope_dtypes(void) {
    TITLE("rope of every dtype, layout and size agrees with float64, and works in place");
    static const int64_t widths[] = {0, 2, 30, 64};
    int before = mc_get_num_threads();
    CHECK_OK(mc_set_num_threads(2));
    for (int k = 0; k < FLOATS * LAYOUTS * 4; k++) {
        int64_t D = widths[k % 4];
        mc_tensor *x = make_in(floats[k / 4 % FLOATS], k / 4 / FLOATS, SHAPE(2, 33, 9, D));
        mc_tensor *y = empty(), *e = empty();
        CHECK_OK(mc_rope(y, x, 10000, 1000, 0));
        CHECK_OK(mc_rope(e, cast(x, MC_FLOAT64), 10000, 1000, 0));
        CHECK_CLOSE_TO(y, e, 4, 2);
        CHECK_OK(mc_rope(x, x, 10000, 1000, 0));
        CHECK_SAME(x, y);
        drop_all();
    }
    CHECK_OK(mc_set_num_threads(before));
}

static void rope_errors(void) {
    TITLE("rope refuses wrong arguments and says why");
    mc_tensor *y = empty(), *odd = make(MC_FLOAT32, SHAPE(1, 2, 3, 5));
    CHECK_STATUS(mc_rope(y, odd, 10000, 0, 0), MC_EINVAL,
                 "rope: x is [1, 2, 3, 5], its last axis must be even: it is rotated in pairs");
    CHECK_STATUS(mc_rope(y, make(MC_FLOAT32, SHAPE(2, 4)), 10000, 0, 0), MC_EINVAL,
                 "rope: x is [2, 4], wanted [B, T, H, D]");
    CHECK_STATUS(mc_rope(y, make(MC_FLOAT32, SHAPE(1, 1, 1, 2)), 0, 0, 0), MC_EINVAL,
                 "rope: theta is 0, wanted more than 0");
    CHECK(!mc_tensor_defined(y));
    drop_all();
}

int main(void) {
    plain_float64_is_the_formula();
    gradients();
    dtypes_and_layouts();
    block_edges();
    empty_sizes();
    blind_queries();
    packed_heads();
    attention_errors();
    rope_is_the_formula();
    rope_turns_back();
    rope_dtypes();
    rope_errors();
    return check_report();
}
