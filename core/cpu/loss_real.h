/* loss_real.h: cross_entropy in one precision; see row.h for REAL and R, loss.c for the formula. */

static mc_status R(cross_entropy)(mci_exec *exec, const mci_view *const *t, int64_t ignore) {
    mci_rows m = mci_rows_of(t[2], 1);
    int64_t wide = mci_padded(m.n);
    int threads = mci_threads(m.count * m.n);
    size_t bytes = (size_t)(threads * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("cross_entropy", bytes);
    REAL *losses = t[0]->data, *lses = t[1]->data;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < m.count; r++) {
        const REAL *x = R(mci_row)(&m, r, scratch + omp_get_thread_num() * wide);
        int64_t target = mci_index_at(t[3], r);
        REAL lse = R(mci_row_lse)(x, m.n);
        lses[r * t[1]->stride[0]] = lse;
        losses[r * t[0]->stride[0]] = target == ignore ? 0 : lse - x[target];
    }
    return MC_OK;
}

static mc_status R(cross_entropy_backward)(mci_exec *exec, const mci_view *const *t,
                                           int64_t ignore) {
    mci_rows mx = mci_rows_of(t[2], 1), mdx = mci_rows_of(t[0], 1);
    int64_t wide = mci_padded(mx.n);
    int threads = mci_threads(mx.count * mx.n);
    size_t bytes = (size_t)(2 * threads * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("cross_entropy_backward", bytes);
    const REAL *dlosses = t[1]->data, *lses = t[4]->data;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < mx.count; r++) {
        REAL *buf = scratch + 2 * omp_get_thread_num() * wide;
        REAL *dx = R(mci_row_out)(&mdx, r, buf + wide);
        int64_t target = mci_index_at(t[3], r);
        if (target == ignore) {
            for (int64_t j = 0; j < mx.n; j++) dx[j] = 0;
        } else {
            const REAL *x = R(mci_row)(&mx, r, buf);
            REAL d = dlosses[r * t[1]->stride[0]], lse = lses[r * t[4]->stride[0]];
            REAL at_target = R(mci_exp)(x[target] - lse) - 1;
            for (int64_t j = 0; j < mx.n; j++) dx[j] = d * R(mci_exp)(x[j] - lse);
            dx[target] = d * at_target;
        }
        R(mci_row_put)(&mdx, r, dx);
    }
    return MC_OK;
}
