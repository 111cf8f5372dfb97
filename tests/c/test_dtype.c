/* test_dtype.c: conversions, against tables decoded with ldexp and a search for the nearest entry.
 */
#include <float.h>
#include <stdlib.h>

#include "check.h"

typedef struct format {
    int dtype, bits, exponent_bits, mantissa_bits, bias, has_inf;
} format;

static const format formats[] = {
    {MC_FLOAT16, 16, 5, 10, 15, 1},
    {MC_BFLOAT16, 16, 8, 7, 127, 1},
    {MC_FLOAT8_E4M3FN, 8, 4, 3, 7, 0},
    {MC_FLOAT8_E5M2, 8, 5, 2, 15, 1},
};
enum { FORMATS = sizeof formats / sizeof formats[0] };

/* The value of a code, from the definition of the format. */
static double decode(const format *f, int code) {
    int top = (1 << f->exponent_bits) - 1, m = f->mantissa_bits;
    int exponent = code >> m & top, mantissa = code & ((1 << m) - 1);
    double sign = code >> (f->bits - 1) ? -1 : 1;
    if (f->has_inf && exponent == top) return mantissa ? NAN : sign * INFINITY;
    if (!f->has_inf && exponent == top && mantissa == (1 << m) - 1) return NAN;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - f->bias - m);
    return sign * ldexp((1 << m) + mantissa, exponent - f->bias - m);
}

/* First magnitude code that is not finite. */
static int first_special(const format *f) {
    int top = ((1 << f->exponent_bits) - 1) << f->mantissa_bits;
    return f->has_inf ? top : (1 << (f->bits - 1)) - 1;
}

/* The code of the nearest value, ties to the even code, by bisection of the table of magnitudes;
 * the special code stands where the next value would be. Midpoints are exact in double. */
static int nearest(const format *f, double x) {
    int sign = signbit(x) ? 1 << (f->bits - 1) : 0, low = 0, high = first_special(f);
    int special = high;
    double a = fabs(x);
    double beyond = 2 * decode(f, special - 1) - decode(f, special - 2);
    if (a >= beyond) return sign | special;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (decode(f, middle) <= a)
            low = middle;
        else
            high = middle;
    }
    double value = decode(f, low), next = high == special ? beyond : decode(f, high);
    double half = (value + next) / 2;
    int up = a > half || (a == half && (low & 1));
    return sign | (up ? high : low);
}

static int code_of(const format *f, const void *bytes) {
    uint16_t wide = 0;
    memcpy(&wide, bytes, (size_t)f->bits / 8);
    return wide;
}

static void every_code(void) {
    TITLE("every code of the 16- and 8-bit floats has its value, and comes back from it");
    for (int k = 0; k < FORMATS; k++) {
        const format *f = &formats[k];
        int n = 1 << f->bits, wrong = 0;
        uint16_t wide[65536];
        uint8_t narrow[256];
        static double d[65536];
        static float s[65536];
        static uint16_t back[65536];
        for (int i = 0; i < n; i++) wide[i] = (uint16_t)i, narrow[i & 255] = (uint8_t)i;
        const void *codes = f->bits == 16 ? (const void *)wide : narrow;
        CHECK_OK(mc_convert(d, MC_FLOAT64, codes, f->dtype, n));
        CHECK_OK(mc_convert(s, MC_FLOAT32, codes, f->dtype, n));
        for (int from = 0; from < 2; from++) {
            CHECK_OK(mc_convert(back, f->dtype, from ? (void *)d : s,
                                from ? MC_FLOAT64 : MC_FLOAT32, n));
            for (int i = 0; i < n; i++) {
                double want = decode(f, i);
                int code = code_of(f, (char *)back + i * f->bits / 8);
                if (isnan(want)) {
                    wrong += !isnan(d[i]) || !isnan(s[i]) || !isnan(decode(f, code));
                    wrong += code >> (f->bits - 1) != i >> (f->bits - 1);
                } else {
                    wrong += d[i] != want || (double)s[i] != want || code != i;
                    wrong += signbit(d[i]) != signbit(want);
                }
            }
        }
        CHECK(wrong == 0);
    }
}

static uint64_t seed = 7;
static uint64_t next_bits(void) {
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return seed ^ seed >> 33;
}

/* x, as a float64 and as a float32, rounds to the nearest code. */
static int rounds_right(const format *f, double x) {
    uint16_t got = 0;
    float s = (float)x;
    mc_convert(&got, f->dtype, &x, MC_FLOAT64, 1);
    int ok = code_of(f, &got) == nearest(f, x);
    mc_convert(&got, f->dtype, &s, MC_FLOAT32, 1);
    return ok && code_of(f, &got) == nearest(f, (double)s);
}

static void rounding(void) {
    TITLE("floats round to the nearest code in one step, ties to even");
    for (int k = 0; k < FORMATS; k++) {
        const format *f = &formats[k];
        int wrong = 0, special = first_special(f);
        for (int code = 0; code < special; code++) {
            double a = decode(f, code);
            double b = code + 1 < special ? decode(f, code + 1) : 2 * a - decode(f, code - 1);
            double half = (a + b) / 2;
            /* the neighbours of a midpoint, at the double's and at the float's last place, are
             * what a rounding in two steps gets wrong */
            double tests[] = {half,
                              nextafter(half, 0),
                              nextafter(half, INFINITY),
                              half * (1 - 0x1p-24),
                              half * (1 + 0x1p-24),
                              half * (1 + 0x1p-30),
                              half * (1 - 0x1p-30),
                              a + (b - a) * 0.3,
                              a + (b - a) * 0.8};
            for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++)
                wrong += !rounds_right(f, tests[i]) + !rounds_right(f, -tests[i]);
        }
        for (int i = 0; i < 200000; i++) {
            uint64_t bits = next_bits();
            if (i & 1) /* exponents near the format's */
                bits = (bits & ~(UINT64_C(0x7FF) << 52)) |
                       (uint64_t)(1023 + (int)(next_bits() % 320) - 160) << 52;
            double x;
            memcpy(&x, &bits, 8);
            if (!isnan(x)) wrong += !rounds_right(f, x);
        }
        wrong += !rounds_right(f, 0x1p-1074) + !rounds_right(f, DBL_MAX) + !rounds_right(f, -0.0);
        wrong +=
            !rounds_right(f, FLT_MAX) + !rounds_right(f, 0x1p-149) + !rounds_right(f, 0x1p-150);
        CHECK(wrong == 0);
    }
}

static void from_integers(void) {
    TITLE("integers round once to every float");
    int64_t tests[] = {0, 1, -1, 257, 2049, (1LL << 53) + 1, (1LL << 62) + (1LL << 37) + 1,
                       INT64_MAX, INT64_MIN, INT64_MAX - 1, (1LL << 24) + 1,
                       /* a tie of bfloat16 and of float32 but for the last bit */
                       (257LL << 50) + 1, (257LL << 50), (257LL << 50) - 1,
                       ((1LL << 25) + 1) * (1LL << 37) + 1, ((1LL << 25) + 1) * (1LL << 37)};
    int n = (int)(sizeof tests / sizeof tests[0]);
    for (int i = 0; i < n; i++) {
        float s;
        double d;
        CHECK_OK(mc_convert(&s, MC_FLOAT32, &tests[i], MC_INT64, 1));
        CHECK_OK(mc_convert(&d, MC_FLOAT64, &tests[i], MC_INT64, 1));
        CHECK(s == (float)tests[i] && d == (double)tests[i]);
        for (int k = 0; k < FORMATS; k++) {
            uint16_t got = 0;
            long double exact = (long double)tests[i];
            double low = (double)exact; /* a double on the same side of each midpoint */
            if ((long double)low != exact) {
                double other = nextafter(low, exact > (long double)low ? INFINITY : -INFINITY);
                low = low + (other - low) / 2 == low ? ((int64_t)low & 2048 ? low : other) : low;
            }
            CHECK_OK(mc_convert(&got, formats[k].dtype, &tests[i], MC_INT64, 1));
            CHECK(code_of(&formats[k], &got) == nearest(&formats[k], low));
        }
    }
}

static void to_integers(void) {
    TITLE("floats go to integers towards zero and saturate, NaN to 0; integers wrap");
    double x[] = {1.9, -1.9, NAN, INFINITY, -INFINITY, 1e30, -1e30, 255.9, 256, 2147483647.5, -0.5};
    int64_t l[11],
        want_l[] = {1, -1, 0, INT64_MAX, INT64_MIN, INT64_MAX, INT64_MIN, 255, 256, 2147483647, 0};
    int32_t i[11],
        want_i[] = {1, -1, 0, INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN, 255, 256, 2147483647, 0};
    uint8_t u[11], want_u[] = {1, 0, 0, 255, 0, 255, 0, 255, 255, 255, 0};
    uint8_t b[11];
    CHECK_OK(mc_convert(l, MC_INT64, x, MC_FLOAT64, 11));
    CHECK_OK(mc_convert(i, MC_INT32, x, MC_FLOAT64, 11));
    CHECK_OK(mc_convert(u, MC_UINT8, x, MC_FLOAT64, 11));
    CHECK_OK(mc_convert(b, MC_BOOL, x, MC_FLOAT64, 11));
    CHECK(!memcmp(l, want_l, sizeof l) && !memcmp(i, want_i, sizeof i) &&
          !memcmp(u, want_u, sizeof u));
    for (int k = 0; k < 11; k++) CHECK(b[k] == 1);
    float zero[2] = {0, -0.0f};
    CHECK_OK(mc_convert(b, MC_BOOL, zero, MC_FLOAT32, 2));
    CHECK(b[0] == 0 && b[1] == 0);
    int64_t big = (1LL << 40) + 511;
    CHECK_OK(mc_convert(i, MC_INT32, &big, MC_INT64, 1));
    CHECK_OK(mc_convert(u, MC_UINT8, &big, MC_INT64, 1));
    CHECK(i[0] == 511 && u[0] == 255);
}

static void powers_of_two(void) {
    TITLE("e8m0fnu takes the nearest power of two, halves upwards, and NaN for what has none");
    static const struct {
        double x;
        int code;
    } tests[] = {
        {1, 127},   {1.4, 127},     {1.5, 128},     {1.6, 128},       {3, 129},
        {6, 130},   {0x1p-127, 0},  {0x1p-126, 1},  {0x1.8p-127, 1},  {0x1.4p-127, 0},
        {1e-45, 0}, {0x1p-1074, 0}, {0x1p127, 254}, {0x1.6p127, 254}, {0x1.8p127, 255},
        {0, 255},   {-0.0, 255},    {-1, 255},      {INFINITY, 255},  {-INFINITY, 255},
        {NAN, 255},
    };
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        uint8_t code = 1;
        float s = (float)tests[i].x;
        CHECK_OK(mc_convert(&code, MC_FLOAT8_E8M0FNU, &tests[i].x, MC_FLOAT64, 1));
        CHECK(code == tests[i].code);
        if ((double)s != tests[i].x) continue;
        CHECK_OK(mc_convert(&code, MC_FLOAT8_E8M0FNU, &s, MC_FLOAT32, 1));
        CHECK(code == tests[i].code);
    }
    int wrong = 0;
    for (int i = 0; i < 256; i++) {
        uint8_t code = (uint8_t)i, back;
        double x;
        mc_convert(&x, MC_FLOAT64, &code, MC_FLOAT8_E8M0FNU, 1);
        mc_convert(&back, MC_FLOAT8_E8M0FNU, &x, MC_FLOAT64, 1);
        wrong += back != code || (i == 255 ? !isnan(x) : x != ldexp(1, i - 127));
    }
    CHECK(wrong == 0);
}

static void every_pair(void) {
    TITLE("every dtype converts to every other, at lengths around a block");
    static const int64_t lengths[] = {0, 1, 3, 511, 512, 513, 1025};
    for (int from = 0; from < MC_DTYPE_COUNT; from++) {
        for (int to = 0; to < MC_DTYPE_COUNT; to++) {
            int wrong = 0;
            for (int l = 0; l < 7; l++) {
                int64_t n = lengths[l];
                static char a[1026 * 8], b[1026 * 8];
                static double x[1026], y[1026];
                for (int i = 0; i < 1026; i++) x[i] = (double)(1 << (i * 7 % 3)), y[i] = -5;
                memset(b, 0x5A, sizeof b);
                mc_convert(a, from, x, MC_FLOAT64, n);
                wrong += mc_convert(b, to, a, from, n) != MC_OK;
                for (int64_t i = n * mc_dtype_size(to); i < (int64_t)sizeof b; i++)
                    wrong += b[i] != 0x5A;
                mc_convert(y, MC_FLOAT64, b, to, n);
                for (int64_t i = 0; i < n; i++)
                    wrong += y[i] != (from == MC_BOOL || to == MC_BOOL ? 1 : x[i]);
            }
            CHECK(wrong == 0);
        }
    }
}

static void table(void) {
    TITLE("the table has names, sizes and kinds, and says what is wrong with a call");
    static const char *names[] = {"float64",       "float32",     "float16",       "bfloat16",
                                  "int64",         "int32",       "uint8",         "bool",
                                  "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"};
    static const int sizes[] = {8, 4, 2, 2, 8, 4, 1, 1, 1, 1, 1};
    for (int i = 0; i < MC_DTYPE_COUNT; i++) {
        CHECK(!strcmp(mc_dtype_name(i), names[i]) && mc_dtype_size(i) == sizes[i]);
        CHECK(mc_dtype_is_float(i) == (strstr(names[i], "float") != NULL));
    }
    CHECK(!mc_dtype_name(-1) && !mc_dtype_name(11) && !mc_dtype_size(99) && !mc_dtype_is_float(-1));
    float x = 1;
    CHECK_STATUS(mc_convert(&x, MC_FLOAT32, &x, 17, 1), MC_EINVAL,
                 "convert: unknown dtype code 17, codes are 0 to 10");
    CHECK_STATUS(mc_convert(&x, MC_FLOAT32, NULL, MC_FLOAT32, 1), MC_EINVAL,
                 "convert: the source is NULL");
    CHECK_STATUS(mc_convert(&x, MC_FLOAT32, &x, MC_FLOAT32, -1), MC_EINVAL, "convert: n is -1");
}

int main(void) {
    every_code();
    rounding();
    from_integers();
    to_integers();
    powers_of_two();
    every_pair();
    table();
    return check_report();
}
