/* row_real.h: rows in one precision; see row.h. */

/* n elements of dtype, `step` elements apart, to an array, and back with one rounding. */
static inline void R(mci_gather)(REAL *dst, const void *src, int dtype, int64_t n, int64_t step) {
    MCI_CPU(R(load))(dst, src, dtype, step * mci_dtypes[dtype].size, n);
}
static inline void R(mci_spread)(void *dst, const REAL *src, int dtype, int64_t n, int64_t step) {
    MCI_CPU(R(store))(dst, dtype, step * mci_dtypes[dtype].size, src, n);
}

/* Row r to read: in place, or loaded into buf [n]. */
static inline const REAL *R(mci_row)(const mci_rows *m, int64_t r, REAL *buf) {
    const void *at = mci_row_at(m, r);
    if (mci_row_direct(m, REAL_DTYPE)) return at;
    R(mci_gather)(buf, at, m->dtype, m->n, m->step);
    return buf;
}

/* Where to write row r: in place, or buf; mci_row_put then stores what went to buf. */
static inline REAL *R(mci_row_out)(const mci_rows *m, int64_t r, REAL *buf) {
    return mci_row_direct(m, REAL_DTYPE) ? mci_row_at(m, r) : buf;
}

static inline void R(mci_row_put)(const mci_rows *m, int64_t r, const REAL *row) {
    void *at = mci_row_at(m, r);
    if (at != (const void *)row) R(mci_spread)(at, row, m->dtype, m->n, m->step);
}

static inline REAL R(mci_fold)(REAL *acc) {
    for (int w = MCI_LANES / 2; w > 0; w /= 2)
        for (int l = 0; l < w; l++) acc[l] += acc[l + w];
    return acc[0];
}

static inline REAL R(mci_row_sum)(const REAL *a, int64_t n) {
    REAL acc[MCI_LANES] = {0};
    int64_t j = 0;
    for (; j + MCI_LANES <= n; j += MCI_LANES)
        for (int l = 0; l < MCI_LANES; l++) acc[l] += a[j + l];
    for (int l = 0; j + l < n; l++) acc[l] += a[j + l];
    return R(mci_fold)(acc);
}

static inline REAL R(mci_row_dot)(const REAL *a, const REAL *b, int64_t n) {
    REAL acc[MCI_LANES] = {0};
    int64_t j = 0;
    for (; j + MCI_LANES <= n; j += MCI_LANES)
        for (int l = 0; l < MCI_LANES; l++) acc[l] += a[j + l] * b[j + l];
    for (int l = 0; j + l < n; l++) acc[l] += a[j + l] * b[j + l];
    return R(mci_fold)(acc);
}

/* The largest element, NaN passed over; -inf for none. */
static inline REAL R(mci_row_max)(const REAL *a, int64_t n) {
    REAL acc[MCI_LANES];
    for (int l = 0; l < MCI_LANES; l++) acc[l] = (REAL)-INFINITY;
    int64_t j = 0;
    for (; j + MCI_LANES <= n; j += MCI_LANES)
        for (int l = 0; l < MCI_LANES; l++) acc[l] = a[j + l] > acc[l] ? a[j + l] : acc[l];
    for (int l = 0; j + l < n; l++) acc[l] = a[j + l] > acc[l] ? a[j + l] : acc[l];
    for (int w = MCI_LANES / 2; w > 0; w /= 2)
        for (int l = 0; l < w; l++) acc[l] = acc[l + w] > acc[l] ? acc[l + w] : acc[l];
    return acc[0];
}

/* dst = exp(a - shift); dst may be a. */
static inline void R(mci_row_exp)(REAL *dst, const REAL *a, REAL shift, int64_t n) {
    for (int64_t j = 0; j < n; j++) dst[j] = R(mci_exp)(a[j] - shift);
}

/* Sum of exp(a - shift). */
static inline REAL R(mci_row_exp_sum)(const REAL *a, REAL shift, int64_t n) {
    REAL acc[MCI_LANES] = {0};
    int64_t j = 0;
    for (; j + MCI_LANES <= n; j += MCI_LANES)
        for (int l = 0; l < MCI_LANES; l++) acc[l] += R(mci_exp)(a[j + l] - shift);
    for (int l = 0; j + l < n; l++) acc[l] += R(mci_exp)(a[j + l] - shift);
    return R(mci_fold)(acc);
}

/* What to take from a row before exp so that nothing overflows: its largest element, or 0 when that
 * is -inf (a row of -inf, or none at all), whose sum of exp then is 0. */
static inline REAL R(mci_row_shift)(const REAL *a, int64_t n) {
    REAL max = R(mci_row_max)(a, n);
    return max == (REAL)-INFINITY ? 0 : max;
}

/* log(sum(exp(a))); -inf for a row of -inf, NaN when an element is NaN or +inf. */
static inline REAL R(mci_row_lse)(const REAL *a, int64_t n) {
    REAL shift = R(mci_row_shift)(a, n);
    return shift + R(mci_log)(R(mci_row_exp_sum)(a, shift, n));
}
