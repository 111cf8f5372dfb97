/* random.c: fills with random numbers, and dropout. rng.h says which number stands where. */
#include "iter.h"
#include "rng.h"
#include "vmath.h"

enum { WORDS = MCI_BLOCK + 4 };

typedef struct random_args {
    uint64_t seed, offset;
    double a, b, limit;
    int64_t low;
    uint64_t range;
} random_args;

/* The words of elements [first, first + n), n <= MCI_BLOCK, into w; w[*skip] is the first's, and
 * w[0] starts a block of four. */
static void words_of(const random_args *q, int64_t first, int64_t n, uint32_t *restrict w,
                     int *skip) {
    uint64_t block = q->offset + (uint64_t)first / 4;
    *skip = (int)(first % 4);
    int blocks = (*skip + (int)n + 3) / 4;
    for (int i = 0; i < blocks; i++) {
        uint64_t counter = block + (uint64_t)i;
        uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), 0, 0};
        mci_philox(c, (uint32_t)q->seed, (uint32_t)(q->seed >> 32));
        for (int j = 0; j < 4; j++) w[4 * i + j] = c[j];
    }
}

/* Runs body for each block of up to MCI_BLOCK elements: at is its position, m its length, w its
 * words. */
#define EACH_BLOCK                                                                                 \
    const random_args *q = params;                                                                 \
    uint32_t words[WORDS];                                                                         \
    int skip;                                                                                      \
    for (int64_t at = 0, m; at < n; at += m)                                                       \
        if (m = n - at < MCI_BLOCK ? n - at : MCI_BLOCK, words_of(q, first + at, m, words, &skip), \
            1)

static inline float unit(uint32_t x) {
    return (float)(int32_t)(x >> 8) * 0x1p-24f;
}

static void uniform_f32(char *const *p, int64_t first, int64_t n, const void *params) {
    EACH_BLOCK {
        float *out = (float *)(void *)p[0] + at;
        float low = (float)q->a, width = (float)(q->b - q->a), limit = (float)q->limit;
        for (int64_t i = 0; i < m; i++) {
            float x = low + unit(words[skip + i]) * width;
            out[i] = x > limit ? limit : x;
        }
    }
}

static void uniform_f64(char *const *p, int64_t first, int64_t n, const void *params) {
    EACH_BLOCK {
        double *out = (double *)(void *)p[0] + at, low = q->a, width = q->b - q->a;
        for (int64_t i = 0; i < m; i++) {
            double x = low + (double)unit(words[skip + i]) * width;
            out[i] = x > q->limit ? q->limit : x;
        }
    }
}

static void integers_i64(char *const *p, int64_t first, int64_t n, const void *params) {
    EACH_BLOCK {
        int64_t *out = (int64_t *)(void *)p[0] + at;
        for (int64_t i = 0; i < m; i++) /* range 2^32 is x itself, and the product still fits */
            out[i] = q->low + (int64_t)((uint64_t)words[skip + i] * q->range >> 32);
    }
}

/* ln((x >> 8) + 1) 2^-24 to 1e-13 relative: x = m 2^e with m from sqrt(1/2); ln m = 2 atanh(s) */
static inline double log_unit(uint32_t x) {
    float u = (float)(int32_t)((x >> 8) + 1U) * 0x1p-24f;
    uint32_t bits = mci_f32_bits(u);
    int32_t e = (int32_t)(bits - 0x3F3504F3U) >> 23;
    double m = (double)mci_bits_f32(bits - ((uint32_t)e << 23));
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 0.181258605896217291 + z * 0.167976503114064556;
    p = 0.222232886620284071 + z * p;
    p = 0.285714185594570263 + z * p;
    p = 0.400000000412417814 + z * p;
    p = 0.666666666666163629 + z * p;
    return (double)e * 0x1.62e42fefa39efp-1 + (s * 2.0 + s * z * p);
}

/* sin (quadrants 0) or cos (1) of 2 pi (x >> 8) 2^-24 */
static inline double circle(uint32_t x, int32_t quadrants) {
    float turn = (float)(int32_t)(x >> 8) * 0x1p-22f; /* in quarters, exact */
    int32_t q = (int32_t)(turn + 0.5f);
    double a = (double)(turn - (float)q) * 0x1.921fb54442d18p0, z = a * a;
    double s = -2.50507352743592858e-8 + z * 1.58954015993993703e-10;
    s = 2.75573135550812646e-6 + z * s;
    s = -0.000198412698294451744 + z * s;
    s = 0.00833333333332201245 + z * s;
    s = a + a * z * (-0.166666666666666307 + z * s);
    double c = 2.08757365958398902e-9 + z * -1.13601478426225886e-11;
    c = -2.75573144833382181e-7 + z * c;
    c = 0.0000248015872900802718 + z * c;
    c = -0.00138888888888753887 + z * c;
    c = (1.0 - 0.5 * z) + z * z * (0.0416666666666666093 + z * c);
    q += quadrants;
    double y = q & 1 ? c : s;
    return q & 2 ? -y : y;
}

static void normal_f32(char *const *p, int64_t first, int64_t n, const void *params) {
    EACH_BLOCK {
        float *out = (float *)(void *)p[0] + at, z[WORDS];
        float mean = (float)q->a, std = (float)q->b;
        int pairs = (skip + (int)m + 1) / 2;
        for (int j = 0; j < pairs; j++) {
            double r = sqrt(-2.0 * log_unit(words[2 * j]));
            z[2 * j] = (float)(r * circle(words[2 * j + 1], 1));
            z[2 * j + 1] = (float)(r * circle(words[2 * j + 1], 0));
        }
        for (int64_t i = 0; i < m; i++) out[i] = mean + std * z[skip + i];
    }
}

static void normal_f64(char *const *p, int64_t first, int64_t n, const void *params) {
    EACH_BLOCK {
        double *out = (double *)(void *)p[0] + at;
        for (int64_t i = 0; i < m; i++) {
            int64_t at_word = skip + i, even = at_word & ~INT64_C(1);
            double u = ((double)(words[even] >> 8) + 1.0) * 0x1p-24;
            double angle = (double)(words[even + 1] >> 8) * 0x1p-24 * 6.283185307179586477;
            double r = sqrt(-2.0 * log(u));
            out[i] = q->a + q->b * (r * (at_word & 1 ? sin(angle) : cos(angle)));
        }
    }
}

#define DROPOUT(real, name)                                                                     \
    static void name(char *const *p, int64_t first, int64_t n, const void *params) {            \
        EACH_BLOCK {                                                                            \
            real *y = (real *)(void *)p[0] + at;                                                \
            uint8_t *keep = (uint8_t *)p[1] + at;                                               \
            const real *x = (const real *)(const void *)p[2] + at;                              \
            real scale = (real)q->b;                                                            \
            for (int64_t i = 0; i < m; i++)                                                     \
                keep[i] = (uint8_t)((double)unit(words[skip + i]) >= q->a);                     \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < m; i++) y[i] =                         \
                x[i] * (keep[i] ? scale : (real)0);                                             \
        }                                                                                       \
    }                                                                                           \
    static void name##_backward(char *const *p, int64_t first, int64_t n, const void *params) { \
        const random_args *q = params;                                                          \
        real *dx = (real *)(void *)p[0];                                                        \
        const real *dy = (const real *)(const void *)p[1];                                      \
        const uint8_t *keep = (const uint8_t *)p[2];                                            \
        real scale = (real)q->b;                                                                \
        (void)first;                                                                            \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) dx[i] =                            \
            dy[i] * (keep[i] ? scale : (real)0);                                                \
    }
DROPOUT(float, dropout_f32)
DROPOUT(double, dropout_f64)

/* -- kernels ----------------------------------------------------------------------------------- */

/* The largest value of a float dtype below x. */
static double value_below(double x, int dtype) {
    if (dtype == MC_FLOAT64) return nextafter(x, -INFINITY);
    int size = mci_dtypes[dtype].size;
    uint32_t code = 0;
    float value;
    MCI_CPU(store_f64)(&code, dtype, size, &x, 1);
    MCI_CPU(load_f32)(&value, &code, dtype, size, 1);
    if ((double)value < x) return (double)value;
    uint32_t sign = 1U << (8 * size - 1);
    code = code == 0 || code == sign ? sign | 1U : code & sign ? code + 1 : code - 1;
    MCI_CPU(load_f32)(&value, &code, dtype, size, 1);
    return (double)value;
}

static random_args args_of(const mci_view *state) {
    const int64_t *s = state->data;
    return (random_args){.seed = (uint64_t)s[0], .offset = (uint64_t)s[state->stride[0]]};
}

/* Fills t[0] by `fn`, then moves the state past the blocks it used. */
static mc_status random_fill(const mci_view *const *t, const random_args *q, mci_loop_fn fn,
                             int kind) {
    mci_loop loop = {fn, q, 1, {kind}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 1, t, 1);
    MCI_CPU(run)(&it, &loop);
    int64_t *s = t[1]->data;
    s[t[1]->stride[0]] = (int64_t)(q->offset + (uint64_t)((it.numel + 3) / 4));
    return MC_OK;
}

/* t: out (float), state. a: low, b: high. */
mc_status MCI_CPU(random_uniform)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_random_params *r = p;
    (void)exec;
    random_args q = args_of(t[1]);
    int kind = mci_compute_kind(t[0]->dtype);
    q.a = r->a;
    q.b = r->b;
    q.limit = r->b > r->a ? value_below(r->b, t[0]->dtype) : INFINITY;
    return random_fill(t, &q, kind == MCI_F64 ? uniform_f64 : uniform_f32, kind);
}

/* t: out (float), state. a: mean, b: standard deviation. */
mc_status MCI_CPU(random_normal)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_random_params *r = p;
    (void)exec;
    random_args q = args_of(t[1]);
    int kind = mci_compute_kind(t[0]->dtype);
    q.a = r->a;
    q.b = r->b;
    return random_fill(t, &q, kind == MCI_F64 ? normal_f64 : normal_f32, kind);
}

/* t: out (any dtype but 8-bit floats), state. low <= x < high, high - low <= 2^32. */
mc_status MCI_CPU(random_integers)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_random_params *r = p;
    (void)exec;
    random_args q = args_of(t[1]);
    q.low = r->low;
    q.range = (uint64_t)r->high - (uint64_t)r->low;
    return random_fill(t, &q, integers_i64, MCI_I64);
}

static double dropout_scale(double p) {
    return p < 1 ? 1 / (1 - p) : 0;
}

/* t: y, keep (uint8), state, x. a: p. */
mc_status MCI_CPU(dropout)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_random_params *r = p;
    (void)exec;
    random_args q = args_of(t[2]);
    int kind = mci_compute_kind(t[3]->dtype);
    q.a = r->a;
    q.b = dropout_scale(r->a);
    const mci_view *v[3] = {t[0], t[1], t[3]};
    mci_loop loop = {kind == MCI_F64 ? dropout_f64 : dropout_f32, &q, 2, {kind, MCI_RAW, kind}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 3, v, 1);
    MCI_CPU(run)(&it, &loop);
    int64_t *s = t[2]->data;
    s[t[2]->stride[0]] = (int64_t)(q.offset + (uint64_t)((it.numel + 3) / 4));
    return MC_OK;
}

/* t: dx, dy, keep (uint8). a: p. */
mc_status MCI_CPU(dropout_backward)(mci_exec *exec, const mci_view *const *t, const void *p) {
    const mci_random_params *r = p;
    (void)exec;
    random_args q = {.b = dropout_scale(r->a)};
    int kind = mci_compute_kind(t[1]->dtype);
    mci_loop loop = {kind == MCI_F64 ? dropout_f64_backward : dropout_f32_backward,
                     &q,
                     1,
                     {kind, kind, MCI_RAW}};
    mci_iter it;
    MCI_CPU(iter_init)(&it, 3, t, 0);
    MCI_CPU(run)(&it, &loop);
    return MC_OK;
}
