/* moe_real.h: unpermute and the balancing losses in one precision; see row.h for REAL and R, moe.c
 * for the formulas. */

static inline REAL R(element)(const mci_view *v, int64_t i, int64_t j) {
    REAL x;
    R(mci_gather)(&x, element_at(v, i, j), v->dtype, 1, 1);
    return x;
}

static mc_status R(moe_unpermute)(mci_exec *exec, const mci_view *const *t) {
    mci_rows my = mci_rows_of(t[0], 1), mh = mci_rows_of(t[1], 1);
    int64_t d = mh.n, k = t[2]->shape[1], wide = mci_padded(d);
    int threads = mci_threads(my.count * k * d);
    size_t bytes = (size_t)(2 * threads * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("moe_unpermute", bytes);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < my.count; i++) {
        REAL *buf = scratch + 2 * omp_get_thread_num() * wide;
        REAL *y = R(mci_row_out)(&my, i, buf + wide);
        for (int64_t c = 0; c < d; c++) y[c] = 0;
        for (int64_t j = 0; j < k; j++) {
            int64_t row = mci_index_at2(t[2], i, j);
            if (row < 0) continue;
            const REAL *h = R(mci_row)(&mh, row, buf);
            REAL w = t[3] ? R(element)(t[3], i, j) : 1;
            for (int64_t c = 0; c < d; c++) y[c] += w * h[c];
        }
        R(mci_row_put)(&my, i, y);
    }
    return MC_OK;
}

static mc_status R(moe_unpermute_backward)(mci_exec *exec, const mci_view *const *t) {
    const mci_view *dweights = t[1], *rows = t[4], *slots = t[5], *weights = t[6];
    mci_rows mdh = mci_rows_of(t[0], 1), mdy = mci_rows_of(t[2], 1), mh = mci_rows_of(t[3], 1);
    int64_t d = mdy.n, k = rows->shape[1], wide = mci_padded(d);
    int threads = mci_threads(mdh.count * d);
    size_t bytes = (size_t)(2 * threads * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("moe_unpermute_backward", bytes);
#pragma omp parallel num_threads(threads)
    {
        REAL *buf = scratch + 2 * omp_get_thread_num() * wide;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < mdh.count; r++) {
            int64_t slot = mci_index_at(slots, r);
            REAL *dh = R(mci_row_out)(&mdh, r, buf + wide);
            if (slot < 0) {
                for (int64_t c = 0; c < d; c++) dh[c] = 0;
            } else {
                const REAL *dy = R(mci_row)(&mdy, slot / k, buf);
                REAL w = weights ? R(element)(weights, slot / k, slot % k) : 1;
                for (int64_t c = 0; c < d; c++) dh[c] = w * dy[c];
            }
            R(mci_row_put)(&mdh, r, dh);
        }
        if (dweights) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < rows->shape[0]; i++) {
                const REAL *dy = R(mci_row)(&mdy, i, buf);
                for (int64_t j = 0; j < k; j++) {
                    int64_t row = mci_index_at2(rows, i, j);
                    REAL dot = 0;
                    if (row >= 0) dot = R(mci_row_dot)(dy, R(mci_row)(&mh, row, buf + wide), d);
                    R(mci_spread)(element_at(dweights, i, j), &dot, dweights->dtype, 1, 1);
                }
            }
        }
    }
    return MC_OK;
}

/* share[e] = counts[e] / sum(counts), all 0 when nothing is routed. */
static void R(shares)(REAL *share, const mci_view *counts) {
    double total = 0;
    for (int64_t e = 0; e < counts->shape[0]; e++) total += (double)mci_index_at(counts, e);
    for (int64_t e = 0; e < counts->shape[0]; e++)
        share[e] = total > 0 ? (REAL)((double)mci_index_at(counts, e) / total) : 0;
}

/* A row of scores whose sum is 0 counts as zeros. */
static inline REAL R(inverse_sum)(const REAL *s, int64_t n) {
    REAL sum = R(mci_row_sum)(s, n);
    return sum == 0 ? 0 : 1 / sum;
}

/* The mean over tokens of dot(scores, share) / sum(scores), in double: fixed chunks of rows, the
 * chunks added in order. */
static mc_status R(moe_aux_loss)(mci_exec *exec, const mci_view *const *t, double coefficient) {
    mci_rows m = mci_rows_of(t[1], 1);
    int64_t wide = mci_padded(m.n), chunks = m.count < LOSS_CHUNKS ? m.count : LOSS_CHUNKS;
    int threads = mci_threads(m.count * m.n);
    size_t bytes = (size_t)((1 + threads) * wide + LOSS_CHUNKS) * sizeof(double);
    double *partials = exec->scratch(exec, bytes);
    if (!partials) return mci_no_scratch("moe_aux_loss", bytes);
    REAL *share = (REAL *)(partials + LOSS_CHUNKS), *bufs = share + wide;
    R(shares)(share, t[2]);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < chunks; c++) {
        double sum = 0;
        for (int64_t r = mci_split(m.count, chunks, c); r < mci_split(m.count, chunks, c + 1);
             r++) {
            const REAL *s = R(mci_row)(&m, r, bufs + omp_get_thread_num() * wide);
            sum += (double)(R(mci_row_dot)(s, share, m.n) * R(inverse_sum)(s, m.n));
        }
        partials[c] = sum;
    }
    double sum = 0;
    for (int64_t c = 0; c < chunks; c++) sum += partials[c];
    double mean = m.count > 0 ? sum / (double)m.count : 0;
    *(REAL *)t[0]->data = (REAL)(coefficient * (double)m.n * mean);
    return MC_OK;
}

static mc_status R(moe_aux_loss_backward)(mci_exec *exec, const mci_view *const *t,
                                          double coefficient) {
    mci_rows mds = mci_rows_of(t[0], 1), m = mci_rows_of(t[2], 1);
    int64_t wide = mci_padded(m.n);
    int threads = mci_threads(m.count * m.n);
    size_t bytes = (size_t)((1 + 2 * threads) * wide) * sizeof(REAL);
    REAL *share = exec->scratch(exec, bytes);
    if (!share) return mci_no_scratch("moe_aux_loss_backward", bytes);
    R(shares)(share, t[3]);
    double dloss = (double)*(const REAL *)t[1]->data;
    REAL unit = (REAL)(dloss * coefficient * (double)m.n / (double)(m.count ? m.count : 1));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < m.count; r++) {
        REAL *buf = share + (1 + 2 * omp_get_thread_num()) * wide;
        const REAL *s = R(mci_row)(&m, r, buf);
        REAL *ds = R(mci_row_out)(&mds, r, buf + wide);
        REAL inverse = R(inverse_sum)(s, m.n);
        REAL along = R(mci_row_dot)(s, share, m.n) * inverse;
        for (int64_t e = 0; e < m.n; e++) ds[e] = unit * inverse * (share[e] - along);
        R(mci_row_put)(&mds, r, ds);
    }
    return MC_OK;
}

static mc_status R(moe_z_loss)(mci_exec *exec, const mci_view *const *t, double coefficient) {
    mci_rows m = mci_rows_of(t[2], 1);
    int64_t wide = mci_padded(m.n);
    int threads = mci_threads(m.count * m.n);
    size_t bytes = (size_t)(threads * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("moe_z_loss", bytes);
    REAL *lse = t[1]->data;
    int64_t step = t[1]->stride[0];
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < m.count; r++) {
        const REAL *x = R(mci_row)(&m, r, scratch + omp_get_thread_num() * wide);
        lse[r * step] = R(mci_row_lse)(x, m.n);
    }
    double sum = 0;
    for (int64_t r = 0; r < m.count; r++) sum += (double)lse[r * step] * (double)lse[r * step];
    double mean = m.count > 0 ? sum / (double)m.count : 0;
    *(REAL *)t[0]->data = (REAL)(coefficient * mean);
    return MC_OK;
}

static mc_status R(moe_z_loss_backward)(mci_exec *exec, const mci_view *const *t,
                                        double coefficient) {
    mci_rows mdx = mci_rows_of(t[0], 1), m = mci_rows_of(t[2], 1);
    int64_t wide = mci_padded(m.n);
    int threads = mci_threads(m.count * m.n);
    size_t bytes = (size_t)(2 * threads * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("moe_z_loss_backward", bytes);
    double dloss = (double)*(const REAL *)t[1]->data;
    double unit = dloss * coefficient * 2 / (double)(m.count ? m.count : 1);
    const REAL *lses = t[3]->data;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < m.count; r++) {
        REAL *buf = scratch + 2 * omp_get_thread_num() * wide;
        const REAL *x = R(mci_row)(&m, r, buf);
        REAL *dx = R(mci_row_out)(&mdx, r, buf + wide);
        REAL lse = lses[r * t[3]->stride[0]], d = (REAL)(unit * (double)lse);
        for (int64_t e = 0; e < m.n; e++) dx[e] = d * R(mci_exp)(x[e] - lse);
        R(mci_row_put)(&mdx, r, dx);
    }
    return MC_OK;
}
