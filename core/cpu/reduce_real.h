/* reduce_real.h: reductions of arrays of one compute type, included by reduce.c with `real`, `acc`
 * (the accumulator: double for float and double, int64_t for int64_t) and R(name) set;
 * SUM, PROD, LOWEST, HIGHEST and IS_NAN too.
 *
 * block:   a[0] = a[0] op x[0] op ... op x[n - 1], n <= MCI_BLOCK: LANES partial results, joined by
 *          halving. The order is fixed. Floats add up in float within a block, in double beyond.
 * columns: a[j] = a[j] op x[j]
 * join:    the same from accumulators */

#define MAX(a, b) (((a) > (b)) | IS_NAN(a) ? (a) : (b))
#define MIN(a, b) (((a) < (b)) | IS_NAN(a) ? (a) : (b))

#define REDUCER(op, lane, EMPTY, OP)                                               \
    static void R(op##_block)(void *a_, const void *x_, int64_t n) {               \
        enum { LANES = 32 };                                                       \
        const real *x = x_;                                                        \
        acc *a = a_;                                                               \
        lane s[LANES];                                                             \
        int64_t i = 0;                                                             \
        for (int l = 0; l < LANES; l++) s[l] = (EMPTY);                            \
        for (; i + LANES <= n; i += LANES)                                         \
            for (int l = 0; l < LANES; l++) s[l] = (lane)OP(s[l], (lane)x[i + l]); \
        for (int l = 0; i + l < n; l++) s[l] = (lane)OP(s[l], (lane)x[i + l]);     \
        for (int half = LANES / 2; half > 0; half /= 2)                            \
            for (int l = 0; l < half; l++) s[l] = (lane)OP(s[l], s[l + half]);     \
        *a = (acc)OP(*a, (acc)s[0]);                                               \
    }                                                                              \
    static void R(op##_columns)(void *a_, const void *x_, int64_t n) {             \
        const real *restrict x = x_;                                               \
        acc *restrict a = a_;                                                      \
        for (int64_t i = 0; i < n; i++) a[i] = (acc)OP(a[i], (acc)x[i]);           \
    }                                                                              \
    static void R(op##_join)(void *a_, const void *x_, int64_t n) {                \
        const acc *restrict x = x_;                                                \
        acc *restrict a = a_;                                                      \
        for (int64_t i = 0; i < n; i++) a[i] = (acc)OP(a[i], x[i]);                \
    }                                                                              \
    static void R(op##_empty)(void *a_, int64_t n) {                               \
        acc *a = a_;                                                               \
        for (int64_t i = 0; i < n; i++) a[i] = (EMPTY);                            \
    }

REDUCER(sum, real, 0, SUM)
REDUCER(prod, acc, 1, PROD)
REDUCER(max, real, LOWEST, MAX)
REDUCER(min, real, HIGHEST, MIN)

/* Position in x[0..n) of the first element equal to `value`, or of the first NaN if it is one. */
static int64_t R(find)(const real *x, int64_t n, acc value) {
    for (int64_t i = 0; i < n; i++)
        if ((acc)x[i] == value || (IS_NAN(x[i]) && IS_NAN(value))) return i;
    return 0;
}

/* One line of argmax (greatest = 1) or argmin: n elements `stride` bytes apart. */
static int64_t R(arg_line)(const char *p, int dtype, int64_t stride, int64_t n, int greatest) {
    real buf[MCI_BLOCK];
    acc best = 0;
    int64_t where = -1;
    for (int64_t at = 0; at < n && !IS_NAN(best); at += MCI_BLOCK) {
        int64_t m = n - at < MCI_BLOCK ? n - at : MCI_BLOCK;
        acc found;
        MCI_CPU(load)(R(KIND), buf, p + at * stride, dtype, stride, m);
        if (greatest) {
            R(max_empty)(&found, 1);
            R(max_block)(&found, buf, m);
        } else {
            R(min_empty)(&found, 1);
            R(min_block)(&found, buf, m);
        }
        int better = greatest ? found > best : found < best;
        if (where >= 0 && !better && !IS_NAN(found)) continue;
        best = found;
        where = at + R(find)(buf, m, found);
    }
    return where;
}

static void R(cumsum_line)(char *out, int64_t out_stride, int out_dtype, const char *p,
                           int64_t stride, int dtype, int64_t n) {
    real buf[MCI_BLOCK];
    acc sums[MCI_BLOCK], total = 0;
    for (int64_t at = 0; at < n; at += MCI_BLOCK) {
        int64_t m = n - at < MCI_BLOCK ? n - at : MCI_BLOCK;
        MCI_CPU(load)(R(KIND), buf, p + at * stride, dtype, stride, m);
        for (int64_t i = 0; i < m; i++) sums[i] = total = SUM(total, (acc)buf[i]);
        MCI_CPU(store)(R(ACC_KIND), out + at * out_stride, out_dtype, out_stride, sums, m);
    }
}

/* -- top k: a heap of the k best so far, the worst of them at the root ------------------------- */

typedef struct R(ranked) {
    acc value;
    int64_t index;
} R(ranked);

/* Larger values first, NaN last, equals by index: a strict order. */
static inline int R(worse)(R(ranked) a, R(ranked) b) {
    if (a.value == b.value || (IS_NAN(a.value) && IS_NAN(b.value))) return a.index > b.index;
    return a.value < b.value || IS_NAN(a.value);
}

static void R(sift_down)(R(ranked) * heap, int64_t n, int64_t at) {
    R(ranked) x = heap[at];
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && R(worse)(heap[child + 1], heap[child])) child++;
        if (!R(worse)(heap[child], x)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = x;
}

/* heap[0..k) = the k best of a line, best first. */
static void R(topk_line)(void *heap_, int64_t k, const char *p, int64_t stride, int dtype,
                         int64_t n) {
    R(ranked) *heap = heap_;
    real buf[MCI_BLOCK];
    for (int64_t at = 0; at < n; at += MCI_BLOCK) {
        int64_t m = n - at < MCI_BLOCK ? n - at : MCI_BLOCK;
        MCI_CPU(load)(R(KIND), buf, p + at * stride, dtype, stride, m);
        for (int64_t i = 0; i < m; i++) {
            R(ranked) x = {(acc)buf[i], at + i};
            if (at + i < k) {
                heap[at + i] = x;
                if (at + i == k - 1)
                    for (int64_t j = k / 2 - 1; j >= 0; j--) R(sift_down)(heap, k, j);
            } else if (R(worse)(heap[0], x)) {
                heap[0] = x;
                R(sift_down)(heap, k, 0);
            }
        }
    }
    for (int64_t last = k - 1; last > 0; last--) {
        R(ranked) x = heap[0];
        heap[0] = heap[last];
        heap[last] = x;
        R(sift_down)(heap, last, 0);
    }
}

#undef MAX
#undef MIN
#undef REDUCER
