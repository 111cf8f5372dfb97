/* softmax_real.h: softmax and its relatives on one line of n elements, included by reduce.c with
 * `real` and R(name) set. A line of more than MCI_BLOCK elements is read again for each pass; sums
 * as in reduce_real.h. q: the line's output, then its inputs. */

typedef struct R(block) {
    real v[MCI_BLOCK];
} R(block);

#define EACH_PART(n)                           \
    for (int64_t at = 0, m; at < (n); at += m) \
        if (m = (n)-at < MCI_BLOCK ? (n)-at : MCI_BLOCK, 1)

static inline void R(get)(R(block) * b, const line *l, int64_t at, int64_t m) {
    MCI_CPU(load)(R(KIND), b->v, l->p + at * l->stride, l->dtype, l->stride, m);
}
static inline void R(put)(const R(block) * b, const line *l, int64_t at, int64_t m) {
    MCI_CPU(store)(R(KIND), l->p + at * l->stride, l->dtype, l->stride, b->v, m);
}

/* y = exp(x - max) / sum; logarithmic: y = x - max - ln(sum) */
static void R(softmax_line)(const line *q, int64_t n, int logarithmic) {
    R(block) x;
    double top, sum = 0;
    R(max_empty)(&top, 1);
    EACH_PART(n) {
        R(get)(&x, &q[1], at, m);
        R(max_block)(&top, x.v, m);
    }
    real shift = (real)top;
    EACH_PART(n) {
        if (n > MCI_BLOCK) R(get)(&x, &q[1], at, m);
        R(block) e;
        real *out = logarithmic ? e.v : x.v;
        for (int64_t i = 0; i < m; i++) out[i] = R(mci_exp)(x.v[i] - shift);
        R(sum_block)(&sum, out, m);
    }
    real total = (real)sum, log_sum = (real)log(sum);
    EACH_PART(n) {
        if (n > MCI_BLOCK) R(get)(&x, &q[1], at, m);
        if (logarithmic) {
            for (int64_t i = 0; i < m; i++) x.v[i] = (x.v[i] - shift) - log_sum;
        } else if (n > MCI_BLOCK) {
            for (int64_t i = 0; i < m; i++) x.v[i] = R(mci_exp)(x.v[i] - shift) / total;
        } else {
            for (int64_t i = 0; i < m; i++) x.v[i] = x.v[i] / total;
        }
        R(put)(&x, &q[0], at, m);
    }
}

/* dx = y (dy - sum(dy y)); logarithmic: dx = dy - exp(y) sum(dy). q: dx, dy, y */
static void R(softmax_backward_line)(const line *q, int64_t n, int logarithmic) {
    R(block) dy, y, t;
    double sum = 0;
    EACH_PART(n) {
        R(get)(&dy, &q[1], at, m);
        R(get)(&y, &q[2], at, m);
        for (int64_t i = 0; i < m; i++) t.v[i] = logarithmic ? dy.v[i] : dy.v[i] * y.v[i];
        R(sum_block)(&sum, t.v, m);
    }
    real total = (real)sum;
    EACH_PART(n) {
        if (n > MCI_BLOCK) {
            R(get)(&dy, &q[1], at, m);
            R(get)(&y, &q[2], at, m);
        }
        if (logarithmic) {
            for (int64_t i = 0; i < m; i++) t.v[i] = dy.v[i] - R(mci_exp)(y.v[i]) * total;
        } else {
            for (int64_t i = 0; i < m; i++) t.v[i] = y.v[i] * (dy.v[i] - total);
        }
        R(put)(&t, &q[0], at, m);
    }
}

#undef EACH_PART
