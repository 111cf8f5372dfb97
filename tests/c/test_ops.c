/* test_ops.c: what every op owes, whatever it computes: each op of ops.def runs here on small
 * operands, on the CPU and on the fake device, with memory that runs out, in place and on nothing.
 *
 * `test_ops --bits` prints a checksum of each op's results instead; isa_test.sh compares those of
 * the instruction sets.
 */
#include "backend.h"
#include "gradcheck.h"

/* The operands of an op in the order of ops.def, outputs first. `*`: an output that the call makes;
 * `-`: absent; else a type and sizes, and an output so given is read and written:
 *     x  the dtype of the run, numbers in [-1, 1)     p  the same, in [1/4, 1)
 *     s  its dtype of statistics                      q  the same, in [1/4, 1)
 *     f  float32      d  float64      b  bool      u  uint8, 0 or 1      r  a random state
 *     iN, lN  int32 and int64, 0 .. N - 1
 * T is the number of rows: 5, or 0 in the test of empty tensors.
 */
enum { ROWS = 5, MAX_OPERANDS = 9 };

/* How to call an op: by its own signature when that is a common one, else in call(). */
typedef struct op_case {
    const char *operands;
    mc_status (*two)(mc_tensor *, const mc_tensor *);
    mc_status (*three)(mc_tensor *, const mc_tensor *, const mc_tensor *);
    mc_status (*reduce)(mc_tensor *, const mc_tensor *, int, const int64_t *, int);
    mc_status (*arg)(mc_tensor *, const mc_tensor *, int, int);
    mc_status (*axis)(mc_tensor *, const mc_tensor *, int);
    mc_status (*axis_backward)(mc_tensor *, const mc_tensor *, const mc_tensor *, int);
} op_case;

#define AS(signature, op, text) [MCI_OP_##op] = {.operands = (text), .signature = mc_##op}

static const op_case cases[MCI_OP_COUNT] = {
    AS(three, add, "*, x T 37, x T 37"),
    AS(three, sub, "*, x T 37, x T 37"),
    AS(three, mul, "*, x T 37, x T 37"),
    AS(three, div, "*, x T 37, x T 37"),
    AS(three, maximum, "*, x T 37, x T 37"),
    AS(three, minimum, "*, x T 37, x T 37"),
    AS(three, eq, "*, x T 37, x T 37"),
    AS(three, ne, "*, x T 37, x T 37"),
    AS(three, lt, "*, x T 37, x T 37"),
    AS(three, le, "*, x T 37, x T 37"),
    AS(three, gt, "*, x T 37, x T 37"),
    AS(three, ge, "*, x T 37, x T 37"),
    AS(three, relu_backward, "*, x T 37, x T 37"),
    AS(three, gelu_backward, "*, x T 37, x T 37"),
    AS(three, silu_backward, "*, x T 37, x T 37"),
    AS(two, neg, "*, x T 37"),
    AS(two, abs, "*, x T 37"),
    AS(two, sign, "*, x T 37"),
    AS(two, exp, "*, x T 37"),
    AS(two, sin, "*, x T 37"),
    AS(two, cos, "*, x T 37"),
    AS(two, tanh, "*, x T 37"),
    AS(two, sigmoid, "*, x T 37"),
    AS(two, relu, "*, x T 37"),
    AS(two, gelu, "*, x T 37"),
    AS(two, silu, "*, x T 37"),
    AS(two, floor, "*, x T 37"),
    AS(two, ceil, "*, x T 37"),
    AS(two, round, "*, x T 37"),
    AS(two, isnan, "*, x T 37"),
    AS(two, isfinite, "*, x T 37"),
    AS(two, logical_not, "*, x T 37"),
    AS(reduce, sum, "*, x T 37"),
    AS(reduce, mean, "*, x T 37"),
    AS(reduce, amax, "*, x T 37"),
    AS(reduce, amin, "*, x T 37"),
    AS(reduce, prod, "*, x T 37"),
    AS(arg, argmax, "*, x T 37"),
    AS(arg, argmin, "*, x T 37"),
    AS(axis, cumsum, "*, x T 37"),
    AS(axis, softmax, "*, x T 37"),
    AS(axis, log_softmax, "*, x T 37"),
    AS(axis_backward, softmax_backward, "*, x T 37, x T 37"),
    AS(axis_backward, log_softmax_backward, "*, x T 37, x T 37"),
    AS(two, log, "*, p T 37"),
    AS(two, sqrt, "*, p T 37"),
    AS(two, rsqrt, "*, p T 37"),
    AS(three, pow, "*, p T 37, x 37"),
    [MCI_OP_copy] = {"x T 37, d 37"},
    [MCI_OP_fill] = {"x T 37"},
    [MCI_OP_arange] = {"x T"},
    [MCI_OP_random_uniform] = {"x T 37, r"},
    [MCI_OP_random_normal] = {"x T 37, r"},
    [MCI_OP_random_integers] = {"i9 T 37, r"},
    [MCI_OP_dropout] = {"*, *, r, x T 37"},
    [MCI_OP_dropout_backward] = {"*, x T 37, u T 37"},
    [MCI_OP_clamp] = {"*, x T 37"},
    [MCI_OP_where] = {"*, b 37, x T 37, x T 37"},
    AS(two, swiglu, "*, x T 38"),
    AS(three, swiglu_backward, "*, x T 19, x T 38"),
    [MCI_OP_topk] = {"*, *, x T 70"},
    AS(two, sum_squares, "d 1, x T 37"),
    [MCI_OP_index_select] = {"*, x 5 37, i5 T"},
    [MCI_OP_index_add] = {"x 5 37, x T 37, l5 T"},
    [MCI_OP_gather] = {"*, x T 37, i37 T 37"},
    [MCI_OP_scatter_add] = {"x T 37, x T 37, l37 T 37"},
    AS(three, matmul, "*, x T 37, x 37 37"),
    [MCI_OP_linear] = {"*, x T 37, x 19 37, x 19"},
    [MCI_OP_rms_norm] = {"*, *, x T 37, x 37"},
    [MCI_OP_rms_norm_backward] = {"*, *, x T 37, x T 37, x 37, s T"},
    [MCI_OP_layer_norm] = {"*, *, *, x T 37, x 37, x 37"},
    [MCI_OP_layer_norm_backward] = {"*, *, *, x T 37, x T 37, x 37, s T, q T"},
    [MCI_OP_cross_entropy] = {"*, *, x T 37, i37 T"},
    [MCI_OP_cross_entropy_backward] = {"*, s T, x T 37, l37 T, s T"},
    [MCI_OP_rope] = {"*, x 2 T 4 6"},
    [MCI_OP_attention] = {"*, *, x 2 T 4 6, x 2 T 2 6, x 2 T 2 6"},
    [MCI_OP_attention_backward] =
        {"*, *, *, x 2 T 4 6, x 2 T 4 6, x 2 T 2 6, x 2 T 2 6, x 2 T 4 6, s 2 4 T"},
    [MCI_OP_router_topk] = {"*, *, *, x T 12, x 12"},
    [MCI_OP_router_topk_backward] = {"*, s T 3, s T 12, q T 12, q T 3, i12 T 3, x T 12"},
    [MCI_OP_moe_sort] = {"*, *, *, i4 T 2"},
    [MCI_OP_moe_permute] = {"*, x T 10, l4 T*2"},
    [MCI_OP_moe_unpermute] = {"*, x T*2 10, l4 T 2, s T 2"},
    [MCI_OP_moe_unpermute_backward] = {"*, *, x T 10, x T*2 10, l4 T 2, l4 T*2, s T 2"},
    [MCI_OP_moe_aux_loss] = {"*, p T 4, l9 4"},
    [MCI_OP_moe_aux_loss_backward] = {"*, s, p T 4, l9 4"},
    [MCI_OP_moe_z_loss] = {"*, *, x T 4"},
    [MCI_OP_moe_z_loss_backward] = {"*, s, x T 4, s T"},
    [MCI_OP_adam_step] = {"x T 37, s T 37, q T 37, -, x T 37, f 1, f 1, f 1"},
    [MCI_OP_sgd_step] = {"x T 37, s T 37, s T 37, x T 37, f 1, f 1, f 1"},
    [MCI_OP_scale] = {"x T 37, f 1"},
    [MCI_OP_grouped_linear] = {"*, x T*2 19, x 3 37 19, x 3 37, i3 3"},
    [MCI_OP_grouped_linear_dgrad] = {"*, x T*2 37, x 3 37 19, l3 3"},
    [MCI_OP_grouped_linear_wgrad] = {"*, x T*2 37, x T*2 19, i3 3"},
    [MCI_OP_grouped_linear_bias_grad] = {"*, x T*2 37, l3 3"},
    AS(two, grouped_offsets, "*, i9 T"),
};

static const struct {
    const char *name;
    int outputs, inputs;
} ops[MCI_OP_COUNT] = {
#define MC_OP(name, outputs, inputs, params) {#name, outputs, inputs},
#include "ops.def"
#undef MC_OP
};

/* t: the operands in the order of its case. */
static mc_status call(int op, mc_tensor *const *t) {
    const op_case *c = &cases[op];
    const int64_t last[1] = {1};
    if (c->two) return c->two(t[0], t[1]);
    if (c->three) return c->three(t[0], t[1], t[2]);
    if (c->reduce) return c->reduce(t[0], t[1], 1, last, 0);
    if (c->arg) return c->arg(t[0], t[1], 1, 0);
    if (c->axis) return c->axis(t[0], t[1], 1);
    if (c->axis_backward) return c->axis_backward(t[0], t[1], t[2], 1);
    switch (op) {
        case MCI_OP_copy:
            return mc_copy(t[0], t[1]);
        case MCI_OP_fill:
            return mc_fill(t[0], 0.75);
        case MCI_OP_arange:
            return mc_arange(t[0], 1, 0.5);
        case MCI_OP_random_uniform:
            return mc_random_uniform(t[0], t[1], -1, 2);
        case MCI_OP_random_normal:
            return mc_random_normal(t[0], t[1], 1, 2);
        case MCI_OP_random_integers:
            return mc_random_integers(t[0], t[1], -3, 90);
        case MCI_OP_dropout:
            return mc_dropout(t[0], t[1], t[3], t[2], 0.5);
        case MCI_OP_dropout_backward:
            return mc_dropout_backward(t[0], t[1], t[2], 0.5);
        case MCI_OP_clamp:
            return mc_clamp(t[0], t[1], -0.5, 0.25);
        case MCI_OP_where:
            return mc_where(t[0], t[1], t[2], t[3]);
        case MCI_OP_topk:
            return mc_topk(t[0], t[1], t[2], 70);
        case MCI_OP_index_select:
            return mc_index_select(t[0], t[1], 0, t[2]);
        case MCI_OP_index_add:
            return mc_index_add(t[0], t[1], 0, t[2]);
        case MCI_OP_gather:
            return mc_gather(t[0], t[1], 1, t[2]);
        case MCI_OP_scatter_add:
            return mc_scatter_add(t[0], t[1], 1, t[2]);
        case MCI_OP_rms_norm:
            return mc_rms_norm(t[0], t[1], t[2], t[3], 1e-5);
        case MCI_OP_rms_norm_backward:
            return mc_rms_norm_backward(t[0], t[1], t[2], t[3], t[4], t[5]);
        case MCI_OP_layer_norm:
            return mc_layer_norm(t[0], t[1], t[2], t[3], t[4], t[5], 1e-5);
        case MCI_OP_layer_norm_backward:
            return mc_layer_norm_backward(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]);
        case MCI_OP_cross_entropy:
            return mc_cross_entropy(t[0], t[1], t[2], t[3], 3);
        case MCI_OP_cross_entropy_backward:
            return mc_cross_entropy_backward(t[0], t[1], t[2], t[3], t[4], 3);
        case MCI_OP_rope:
            return mc_rope(t[0], t[1], 10000, 2, 0);
        case MCI_OP_attention:
            return mc_attention(t[0], t[1], t[2], t[3], t[4], 0.4, 1);
        case MCI_OP_attention_backward:
            return mc_attention_backward(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], 0.4,
                                         1);
        case MCI_OP_router_topk:
            return mc_router_topk(t[0], t[1], t[2], t[3], t[4], 4, MC_SCORE_SIGMOID, 1.5, 4, 2);
        case MCI_OP_router_topk_backward:
            return mc_router_topk_backward(t[0], t[1], t[2], t[3], t[4], t[5], t[6],
                                           MC_SCORE_SOFTMAX_POST, 1.5);
        case MCI_OP_moe_sort:
            return mc_moe_sort(t[0], t[1], t[2], t[3], 4);
        case MCI_OP_moe_permute:
            return mc_moe_permute(t[0], t[1], t[2], 2);
        case MCI_OP_moe_unpermute:
            return mc_moe_unpermute(t[0], t[1], t[2], t[3]);
        case MCI_OP_moe_unpermute_backward:
            return mc_moe_unpermute_backward(t[0], t[1], t[2], t[3], t[4], t[5], t[6]);
        case MCI_OP_moe_aux_loss:
            return mc_moe_aux_loss(t[0], t[1], t[2], 0.5);
        case MCI_OP_moe_aux_loss_backward:
            return mc_moe_aux_loss_backward(t[0], t[1], t[2], t[3], 0.5);
        case MCI_OP_moe_z_loss:
            return mc_moe_z_loss(t[0], t[1], t[2], 0.5);
        case MCI_OP_moe_z_loss_backward:
            return mc_moe_z_loss_backward(t[0], t[1], t[2], t[3], 0.5);
        case MCI_OP_adam_step:
            return mc_adam_step(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], 0.9, 0.99, 1e-8,
                                0.1, 1);
        case MCI_OP_sgd_step:
            return mc_sgd_step(t[0], t[1], t[2], t[3], t[4], t[5], t[6], 0.9, 0, 0.1, 1);
        case MCI_OP_scale:
            return mc_scale_many(1, &t[0], t[1]);
        case MCI_OP_linear:
            return mc_linear(t[0], t[1], t[2], t[3], 0);
        case MCI_OP_grouped_linear:
            return mc_grouped_linear(t[0], t[1], t[2], t[3], t[4]);
        case MCI_OP_grouped_linear_dgrad:
            return mc_grouped_linear_dgrad(t[0], t[1], t[2], t[3]);
        case MCI_OP_grouped_linear_wgrad:
            return mc_grouped_linear_wgrad(t[0], t[1], t[2], t[3], 0);
        case MCI_OP_grouped_linear_bias_grad:
            return mc_grouped_linear_bias_grad(t[0], t[1], t[2], 0);
        default:
            return MC_EINTERNAL;
    }
}

/* -- operands ---------------------------------------------------------------------------------- */

static int dtype_of(char type, int dtype) {
    int stat = dtype == MC_FLOAT64 ? MC_FLOAT64 : MC_FLOAT32;
    switch (type) {
        case 's':
        case 'q':
            return stat;
        case 'f':
            return MC_FLOAT32;
        case 'd':
            return MC_FLOAT64;
        case 'b':
            return MC_BOOL;
        case 'u':
            return MC_UINT8;
        case 'i':
            return MC_INT32;
        case 'l':
        case 'r':
            return MC_INT64;
        default:
            return dtype;
    }
}

/* One operand from its text. */
static mc_tensor *operand(const char *text, int dtype, int64_t rows) {
    char type = *text++, *end;
    int64_t limit = *text == ' ' ? 0 : strtol(text, NULL, 10);
    int64_t shape[MC_MAX_DIMS];
    int ndim = 0;
    if (type == 'r') shape[ndim++] = 2;
    for (text += strspn(text, "0123456789"); *text == ' ' || *text == '*';) {
        int product = *text++ == '*';
        int64_t size = *text == 'T' ? rows : strtol(text, &end, 10);
        text = *text == 'T' ? text + 1 : end;
        if (product)
            shape[ndim - 1] *= size;
        else
            shape[ndim++] = size;
    }
    mc_tensor *t = make_empty(dtype_of(type, dtype), CONTIGUOUS, ndim, shape);
    for (int64_t i = 0; i < mc_tensor_numel(t); i++) {
        double x = next_number(), whole = floor((x + 1) / 2 * (double)limit);
        if (type == 'p' || type == 'q') x = 0.625 + 0.375 * x;
        if (type == 'b' || type == 'u') x = x > 0;
        set(t, i, limit > 0 ? whole : type == 'r' ? (double)(7 + i) : x);
    }
    return t;
}

typedef struct run {
    int op, count, outputs;
    mc_tensor *t[MAX_OPERANDS];
    int made[MAX_OPERANDS]; /* 1: an output that the call makes */
} run;

/* The same numbers for the same op, dtype and rows. */
static run prepare(int op, int dtype, int64_t rows) {
    run r = {.op = op, .outputs = ops[op].outputs, .count = ops[op].outputs + ops[op].inputs};
    const char *text = cases[op].operands;
    made_seed = 1;
    int n = 0;
    for (; n < r.count && text; n++) {
        if (*text == '*') {
            r.t[n] = empty();
            r.made[n] = 1;
        } else if (*text != '-') {
            r.t[n] = operand(text, dtype, rows);
        }
        text = strchr(text, ',');
        if (text) text += 2;
    }
    return r;
}

static mc_tensor *copy_of(const mc_tensor *t, int device) {
    mc_tensor *u = empty();
    CHECK_OK(mc_empty(u, mc_tensor_dtype(t), device, mc_tensor_ndim(t), mc_tensor_shape(t)));
    CHECK_OK(mc_copy(u, t));
    return u;
}

static int same(const mc_tensor *a, const mc_tensor *b) {
    int equal = 0;
    return mc_equal(a, b, &equal) == MC_OK && equal;
}

/* Says which op it was; silent when all is well. */
static void expect(int ok, int op, int dtype, const char *what) {
    char text[1400];
    snprintf(text, sizeof text, "%s, %s: %s", ops[op].name, mc_dtype_name(dtype), what);
    check_count(ok, __FILE__, __LINE__, text);
}

#define EACH_RUN(op, dtype)                                                   \
    for (int f_ = 0, dtype = 0; f_ < FLOATS && (dtype = floats[f_], 1); f_++) \
        for (int op = 0; op < MCI_OP_COUNT; op++, drop_all())

/* -- what all ops owe -------------------------------------------------------------------------- */

static void every_op_is_here(void) {
    TITLE("each op of ops.def has its operands here, and gives the same bits again");
    EACH_RUN(op, dtype) {
        expect(cases[op].operands != NULL, op, dtype, "no operands");
        run a = prepare(op, dtype, ROWS), b = prepare(op, dtype, ROWS);
        expect(call(op, a.t) == MC_OK && call(op, b.t) == MC_OK, op, dtype, mc_last_error());
        for (int i = 0; i < a.outputs; i++)
            if (a.t[i]) expect(same(a.t[i], b.t[i]), op, dtype, "another result");
    }
}

static void device(void) {
    TITLE("each op runs on a device whose memory the host cannot read, with the bits of the CPU");
    int fake = 0;
    CHECK_OK(mc_device_parse("fake", &fake));
    for (int64_t rows = ROWS; rows >= 0; rows -= ROWS) {
        EACH_RUN(op, dtype) {
            run here = prepare(op, dtype, rows), there = here;
            for (int i = 0; i < here.count; i++)
                if (here.t[i]) there.t[i] = here.made[i] ? empty() : copy_of(here.t[i], fake);
            mc_status a = call(op, here.t), b = call(op, there.t);
            expect(a == b, op, dtype, "another status");
            expect(a == MC_OK || (rows == 0 && a == MC_EINVAL), op, dtype, mc_last_error());
            for (int i = 0; i < here.outputs && a == MC_OK && b == MC_OK; i++) {
                if (!here.t[i]) continue;
                expect(mc_tensor_device(there.t[i]) == fake, op, dtype, "a result elsewhere");
                expect(same(here.t[i], copy_of(there.t[i], 0)), op, dtype, "another result");
            }
        }
    }
}

static void memory_runs_out(void) {
    TITLE("whichever allocation of an op fails, nothing has changed and nothing is lost");
    EACH_RUN(op, dtype) {
        mc_status status = MC_ENOMEM;
        for (int64_t nth = 1; status == MC_ENOMEM && nth < 20; nth++) {
            run r = prepare(op, dtype, ROWS);
            mc_tensor *before[MAX_OPERANDS] = {NULL};
            for (int i = 0; i < r.outputs; i++)
                if (r.t[i] && !r.made[i]) before[i] = copy_of(r.t[i], 0);
            int64_t live = mc_memory_stats()->live_bytes;
            mc_memory_fail_at(nth);
            status = call(op, r.t);
            mc_memory_fail_at(0);
            if (status == MC_OK) break;
            expect(status == MC_ENOMEM, op, dtype, mc_last_error());
            expect(mc_memory_stats()->live_bytes == live, op, dtype, "memory is lost");
            for (int i = 0; i < r.outputs; i++) {
                if (r.made[i]) expect(!mc_tensor_defined(r.t[i]), op, dtype, "an output is left");
                if (before[i]) expect(same(before[i], r.t[i]), op, dtype, "an output changed");
            }
        }
        expect(status == MC_OK, op, dtype, "it fails without a failing allocation");
    }
}

/* Output i and operand j of `r` become one tensor, if they can be one. */
static int share(run *r, const run *done, int i, int j) {
    const mc_tensor *out = done->t[i], *other = done->t[j];
    if (!out || !other || mc_tensor_dtype(out) != mc_tensor_dtype(other) ||
        !mc_tensor_same_shape(out, other) || (r->made[i] && r->made[j]))
        return 0;
    if (r->made[i])
        CHECK_OK(mc_alias(r->t[i], r->t[j]));
    else if (r->made[j])
        CHECK_OK(mc_alias(r->t[j], r->t[i]));
    else
        CHECK_OK(mc_copy(r->t[i], r->t[j]));
    return 1;
}

static void in_place(void) {
    TITLE("an output in the memory of an input has the same bits as one of its own, or is refused");
    EACH_RUN(op, dtype) {
        run done = prepare(op, dtype, ROWS);
        CHECK_OK(call(op, done.t));
        for (int i = 0; i < done.outputs; i++) {
            for (int j = done.outputs; j < done.count; j++) {
                /* apart: the two hold the same numbers; together: they are one tensor */
                run apart = prepare(op, dtype, ROWS), together = prepare(op, dtype, ROWS);
                if (!share(&apart, &done, i, j) || !share(&together, &done, i, j)) continue;
                if (apart.made[i]) {
                    mc_tensor_release(apart.t[i]);
                } else {
                    mc_tensor_release(together.t[j]);
                    CHECK_OK(mc_alias(together.t[j], together.t[i]));
                }
                CHECK_OK(call(op, apart.t));
                if (call(op, together.t) == MC_OK)
                    for (int k = 0; k < done.outputs; k++)
                        if (done.t[k])
                            expect(same(apart.t[k], together.t[k]), op, dtype, "garbage in place");
            }
            for (int j = 0; j < i; j++) {
                run r = prepare(op, dtype, ROWS);
                const mc_tensor *a = done.t[i], *b = done.t[j];
                if (!a || !b || mc_tensor_dtype(a) != mc_tensor_dtype(b)) continue;
                if (!mc_tensor_same_shape(a, b)) continue;
                mc_tensor_release(r.t[i]);
                if (!mc_tensor_defined(r.t[j])) CHECK_OK(mc_alias(r.t[j], b));
                CHECK_OK(mc_alias(r.t[i], r.t[j]));
                expect(call(op, r.t) == MC_EINVAL, op, dtype, "two outputs in one memory");
            }
        }
    }
}

/* -- the bits of an instruction set ------------------------------------------------------------ */

static void print_bits(void) {
    EACH_RUN(op, dtype) {
        run r = prepare(op, dtype, 75);
        if (call(op, r.t) != MC_OK) printf("%s\n", mc_last_error());
        uint64_t sum = 0;
        for (int i = 0; i < r.outputs; i++) {
            if (!r.t[i]) continue;
            const unsigned char *p = mc_tensor_data(r.t[i]);
            int64_t bytes = mc_tensor_numel(r.t[i]) * mc_dtype_size(mc_tensor_dtype(r.t[i]));
            for (int64_t b = 0; b < bytes; b++) sum = (sum ^ p[b]) * UINT64_C(0x100000001B3);
        }
        printf("%s %s %016llx\n", ops[op].name, mc_dtype_name(dtype), (unsigned long long)sum);
    }
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--bits") == 0) {
        print_bits();
        return 0;
    }
    every_op_is_here();
    device();
    memory_runs_out();
    in_place();
    return check_report();
}
