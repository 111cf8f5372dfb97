/* norm_real.h: rms_norm and layer_norm in one precision; see row.h for REAL and R, norm.c for the
 * formulas. Weight gradients are sums over rows: fixed chunks of rows, each into its own partial,
 * the partials added in order, whatever the number of threads. */

/* Weight or bias [n] as REAL, or NULL. */
static const REAL *R(param)(const mci_view *v, REAL *buf) {
    if (!v) return NULL;
    mci_rows m = mci_rows_of(v, 0);
    return R(mci_row)(&m, 0, buf);
}

static mc_status R(rms_norm)(mci_exec *exec, const mci_view *const *t, double eps) {
    const mci_view *x = t[2];
    mci_rows my = mci_rows_of(t[0], x->ndim - 1), mx = mci_rows_of(x, x->ndim - 1);
    int threads = mci_threads(mx.count * mx.n);
    int64_t n = mx.n, wide = mci_padded(n);
    size_t bytes = (size_t)((1 + 2 * threads) * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("rms_norm", bytes);
    const REAL *w = R(param)(t[3], scratch);
    REAL *rstd = t[1]->data;
#pragma omp parallel num_threads(threads)
    {
        REAL *xbuf = scratch + (1 + 2 * omp_get_thread_num()) * wide, *ybuf = xbuf + wide;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < mx.count; r++) {
            const REAL *a = R(mci_row)(&mx, r, xbuf);
            REAL *y = R(mci_row_out)(&my, r, ybuf);
            REAL s = 1 / R(mci_sqrt)(R(mci_row_dot)(a, a, n) / (REAL)n + (REAL)eps);
            rstd[r * t[1]->stride[0]] = s;
            if (w)
                for (int64_t j = 0; j < n; j++) y[j] = a[j] * s * w[j];
            else
                for (int64_t j = 0; j < n; j++) y[j] = a[j] * s;
            R(mci_row_put)(&my, r, y);
        }
    }
    return MC_OK;
}

static mc_status R(layer_norm)(mci_exec *exec, const mci_view *const *t, double eps) {
    const mci_view *x = t[3];
    mci_rows my = mci_rows_of(t[0], x->ndim - 1), mx = mci_rows_of(x, x->ndim - 1);
    int threads = mci_threads(mx.count * mx.n);
    int64_t n = mx.n, wide = mci_padded(n);
    size_t bytes = (size_t)((2 + 2 * threads) * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("layer_norm", bytes);
    const REAL *w = R(param)(t[4], scratch), *b = R(param)(t[5], scratch + wide);
    REAL *means = t[1]->data, *rstds = t[2]->data;
#pragma omp parallel num_threads(threads)
    {
        REAL *xbuf = scratch + (2 + 2 * omp_get_thread_num()) * wide, *ybuf = xbuf + wide;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < mx.count; r++) {
            const REAL *a = R(mci_row)(&mx, r, xbuf);
            REAL mean = R(mci_row_sum)(a, n) / (REAL)n;
            for (int64_t j = 0; j < n; j++) ybuf[j] = a[j] - mean;
            REAL s = 1 / R(mci_sqrt)(R(mci_row_dot)(ybuf, ybuf, n) / (REAL)n + (REAL)eps);
            means[r * t[1]->stride[0]] = mean;
            rstds[r * t[2]->stride[0]] = s;
            REAL *y = R(mci_row_out)(&my, r, ybuf);
            for (int64_t j = 0; j < n; j++) y[j] = ybuf[j] * s;
            if (w)
                for (int64_t j = 0; j < n; j++) y[j] *= w[j];
            if (b)
                for (int64_t j = 0; j < n; j++) y[j] += b[j];
            R(mci_row_put)(&my, r, y);
        }
    }
    return MC_OK;
}

/* dx = rstd * (g - xhat * mean(g * xhat) [- mean(g)]), g = dy * weight, xhat = (x [- mean]) * rstd;
 * what stands in brackets with `centred` (layer_norm). pw, pb [n]: += dy * xhat and dy, or NULL.
 * g, xhat: buffers [n]; xhat may be where x is. */
static void R(backward_row)(REAL *dx, REAL *pw, REAL *pb, const REAL *dy, const REAL *x,
                            const REAL *w, REAL mean, REAL rstd, int centred, int64_t n, REAL *g,
                            REAL *xhat) {
    for (int64_t j = 0; j < n; j++) xhat[j] = (x[j] - mean) * rstd;
    if (pw)
        for (int64_t j = 0; j < n; j++) pw[j] += dy[j] * xhat[j];
    if (pb)
        for (int64_t j = 0; j < n; j++) pb[j] += dy[j];
    if (w)
        for (int64_t j = 0; j < n; j++) g[j] = dy[j] * w[j];
    else
        for (int64_t j = 0; j < n; j++) g[j] = dy[j];
    REAL along = R(mci_row_dot)(g, xhat, n) / (REAL)n;
    REAL centre = centred ? R(mci_row_sum)(g, n) / (REAL)n : 0;
    for (int64_t j = 0; j < n; j++) dx[j] = rstd * (g[j] - centre - xhat[j] * along);
}

/* Both backward passes. dw, db, w, mean may be NULL; mean NULL: rms_norm. */
static mc_status R(norm_backward)(mci_exec *exec, const char *op, const mci_view *vdx,
                                  const mci_view *dw, const mci_view *db, const mci_view *vdy,
                                  const mci_view *vx, const mci_view *vw, const mci_view *mean,
                                  const mci_view *rstd) {
    mci_rows mdx = mci_rows_of(vdx, vx->ndim - 1), mdy = mci_rows_of(vdy, vx->ndim - 1),
             mx = mci_rows_of(vx, vx->ndim - 1);
    int64_t n = mx.n, wide = mci_padded(n), rows = mx.count;
    int64_t chunks = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
    if (chunks > MAX_CHUNKS) chunks = MAX_CHUNKS;
    int threads = mci_threads(rows * n);
    int64_t sums = (dw != NULL) + (db != NULL);
    size_t bytes = (size_t)((1 + 5 * threads + sums * (chunks + 1)) * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch(op, bytes);
    REAL *partials = scratch + (1 + 5 * threads) * wide;
    memset(partials, 0, (size_t)(sums * (chunks + 1) * wide) * sizeof(REAL));
    const REAL *w = R(param)(vw, scratch), *rstds = rstd->data, *means = mean ? mean->data : NULL;
#pragma omp parallel num_threads(threads)
    {
        REAL *buf = scratch + (1 + 5 * omp_get_thread_num()) * wide;
#pragma omp for schedule(static)
        for (int64_t c = 0; c < chunks; c++) {
            REAL *pw = dw ? partials + c * wide : NULL;
            REAL *pb = db ? partials + ((dw ? chunks + 1 : 0) + c) * wide : NULL;
            for (int64_t r = mci_split(rows, chunks, c); r < mci_split(rows, chunks, c + 1); r++) {
                const REAL *x = R(mci_row)(&mx, r, buf), *dy = R(mci_row)(&mdy, r, buf + wide);
                REAL *dx = R(mci_row_out)(&mdx, r, buf + 2 * wide);
                R(backward_row)
                (dx, pw, pb, dy, x, w, means ? means[r * mean->stride[0]] : 0,
                 rstds[r * rstd->stride[0]], mean != NULL, n, buf + 3 * wide, buf + 4 * wide);
                R(mci_row_put)(&mdx, r, dx);
            }
        }
    }
    const mci_view *out[2] = {dw ? dw : db, dw ? db : NULL};
    for (int64_t i = 0; i < sums; i++) {
        REAL *part = partials + i * (chunks + 1) * wide, *sum = part + chunks * wide;
        for (int64_t c = 0; c < chunks; c++)
            for (int64_t j = 0; j < n; j++) sum[j] += part[c * wide + j];
        mci_rows m = mci_rows_of(out[i], 0);
        R(mci_row_put)(&m, 0, sum);
    }
    return MC_OK;
}
