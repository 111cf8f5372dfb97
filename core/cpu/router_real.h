/* router_real.h: choice of experts in one precision; see row.h for REAL and R, moe.c for the
 * rules. */

/* 1 when key a ranks before key b; NaN ranks last. Equal keys rank by their order of arrival. */
static inline int R(better)(REAL a, REAL b) {
    return a > b || (isnan(b) && !isnan(a));
}

/* The best `want` of keys[from .. to), added to the `have` already in best (ids, ranked). Keys
 * arrive by rising id, so equal ones stay in that order. Returns how many are held, <= want. */
static int64_t R(insert_best)(int32_t *best, int64_t have, int64_t want, const REAL *keys,
                              int64_t from, int64_t to) {
    for (int64_t e = from; e < to; e++) {
        if (have == want) {
            REAL worst = keys[best[want - 1]];
            if (keys[e] <= worst || !R(better)(keys[e], worst)) continue;
        }
        int64_t at = have < want ? have++ : want - 1;
        for (; at > 0 && R(better)(keys[e], keys[best[at - 1]]); at--) best[at] = best[at - 1];
        best[at] = (int32_t)e;
    }
    return have;
}

/* ids [k], best first, of the keys [E]. With groups: only the members of the group_topk groups
 * with the largest sums of their best k / group_topk keys take part. */
static void R(choose)(int32_t *ids, const REAL *keys, int64_t experts, const mci_router_params *p,
                      int32_t *groups, REAL *group_keys) {
    if (p->groups == 1) {
        R(insert_best)(ids, 0, p->k, keys, 0, experts);
        return;
    }
    int64_t size = experts / p->groups, each = p->k / p->group_topk;
    for (int64_t g = 0; g < p->groups; g++) {
        R(insert_best)(ids, 0, each, keys, g * size, (g + 1) * size);
        group_keys[g] = 0;
        for (int64_t j = 0; j < each; j++) group_keys[g] += keys[ids[j]];
    }
    R(insert_best)(groups, 0, p->group_topk, group_keys, 0, p->groups);
    for (int64_t i = 1; i < p->group_topk; i++) { /* by rising id, for the ties */
        int32_t g = groups[i];
        int64_t at = i;
        for (; at > 0 && groups[at - 1] > g; at--) groups[at] = groups[at - 1];
        groups[at] = g;
    }
    int64_t have = 0;
    for (int64_t i = 0; i < p->group_topk; i++)
        have = R(insert_best)(ids, have, p->k, keys, groups[i] * size, (groups[i] + 1) * size);
}

/* y = softmax(x); y may be x. */
static void R(softmax)(REAL *y, const REAL *x, int64_t n) {
    R(mci_row_exp)(y, x, R(mci_row_shift)(x, n), n);
    REAL sum = R(mci_row_sum)(y, n);
    for (int64_t j = 0; j < n; j++) y[j] /= sum;
}

static mc_status R(router_topk)(mci_exec *exec, const mci_view *const *t,
                                const mci_router_params *p) {
    mci_rows mw = mci_rows_of(t[0], 1), mi = mci_rows_of(t[1], 1), ms = mci_rows_of(t[2], 1),
             mx = mci_rows_of(t[3], 1), mb = mci_rows_of(t[4], 0);
    int64_t E = mx.n, wide = mci_padded(E), k = p->k;
    int threads = mci_threads(mx.count * E);
    size_t bytes = (size_t)((1 + 7 * threads) * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("router_topk", bytes);
    const REAL *bias = t[4] ? R(mci_row)(&mb, 0, scratch) : NULL;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < mx.count; r++) {
        REAL *buf = scratch + (1 + 7 * omp_get_thread_num()) * wide, *keys = buf + 2 * wide;
        REAL *weights = buf + 3 * wide, *group_keys = buf + 4 * wide;
        int32_t *ids = (int32_t *)(buf + 5 * wide), *groups = (int32_t *)(buf + 6 * wide);
        const REAL *x = R(mci_row)(&mx, r, buf), *base = x;
        REAL *scores = R(mci_row_out)(&ms, r, buf + wide);
        if (scores == x) scores = buf + wide; /* in place: the logits are read again below */
        if (p->score_function == MC_SCORE_SIGMOID)
            for (int64_t e = 0; e < E; e++) scores[e] = R(mci_sigmoid)(x[e]);
        else
            R(softmax)(scores, x, E);
        if (p->score_function != MC_SCORE_SOFTMAX_POST) base = scores;
        for (int64_t e = 0; e < E; e++) keys[e] = bias ? base[e] + bias[e] : base[e];
        R(choose)(ids, keys, E, p, groups, group_keys);

        for (int64_t j = 0; j < k; j++) weights[j] = base[ids[j]];
        if (p->score_function == MC_SCORE_SOFTMAX_POST) R(softmax)(weights, weights, k);
        if (p->score_function == MC_SCORE_SIGMOID && k > 1) {
            REAL sum = R(mci_row_sum)(weights, k) + (REAL)1e-20;
            for (int64_t j = 0; j < k; j++) weights[j] /= sum;
        }
        for (int64_t j = 0; j < k; j++) weights[j] *= (REAL)p->scale;
        R(mci_row_put)(&ms, r, scores);
        R(mci_row_put)(&mw, r, weights);
        int32_t *out = mci_row_at(&mi, r);
        for (int64_t j = 0; j < k; j++) out[j * mi.step] = ids[j];
    }
    return MC_OK;
}

/* dz += y * (dy - sum(y * dy)): softmax backward over n. */
static void R(softmax_backward)(REAL *dz, const REAL *y, const REAL *dy, int64_t n) {
    REAL dot = R(mci_row_dot)(y, dy, n);
    for (int64_t j = 0; j < n; j++) dz[j] += y[j] * (dy[j] - dot);
}

/* One row. s: scores [E]; ds: their gradient [E], in: from dscores, changed; dz [E]: zeros, out;
 * g [k]: scale * dweights or NULL; q, x: buffer [k] and logits [E]. */
static void R(route_backward)(REAL *dz, REAL *ds, const REAL *s, REAL *g, const int32_t *ids,
                              const REAL *x, REAL *q, int64_t E, int64_t k, int score_function) {
    if (g && score_function == MC_SCORE_SOFTMAX_PRE)
        for (int64_t j = 0; j < k; j++) ds[ids[j]] += g[j];
    if (g && score_function == MC_SCORE_SIGMOID) {
        REAL sum = 1, dot = 0;
        if (k > 1) {
            for (int64_t j = 0; j < k; j++) q[j] = s[ids[j]];
            sum = R(mci_row_sum)(q, k) + (REAL)1e-20;
            dot = R(mci_row_dot)(q, g, k) / sum;
        }
        for (int64_t j = 0; j < k; j++) ds[ids[j]] += (g[j] - dot) / sum;
    }
    if (score_function == MC_SCORE_SIGMOID)
        for (int64_t e = 0; e < E; e++) dz[e] = ds[e] * s[e] * (1 - s[e]);
    else
        R(softmax_backward)(dz, s, ds, E);
    if (g && score_function == MC_SCORE_SOFTMAX_POST) {
        for (int64_t j = 0; j < k; j++) q[j] = x[ids[j]];
        R(softmax)(q, q, k);
        REAL dot = R(mci_row_dot)(q, g, k);
        for (int64_t j = 0; j < k; j++) dz[ids[j]] += q[j] * (g[j] - dot);
    }
}

static mc_status R(router_topk_backward)(mci_exec *exec, const mci_view *const *t,
                                         const mci_router_params *p) {
    mci_rows mdz = mci_rows_of(t[0], 1), mdw = mci_rows_of(t[1], 1), mds = mci_rows_of(t[2], 1),
             ms = mci_rows_of(t[3], 1), mx = mci_rows_of(t[6], 1);
    int64_t E = mx.n, k = p->k, wide = mci_padded(E > k ? E : k);
    int threads = mci_threads(mx.count * E);
    size_t bytes = (size_t)(8 * threads * wide) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("router_topk_backward", bytes);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < mx.count; r++) {
        REAL *buf = scratch + 8 * omp_get_thread_num() * wide;
        REAL *ds = buf + 2 * wide, *dz = buf + 3 * wide, *g = buf + 4 * wide, *q = buf + 5 * wide;
        int32_t *ids = (int32_t *)(buf + 6 * wide);
        const REAL *x = R(mci_row)(&mx, r, buf), *s = R(mci_row)(&ms, r, buf + wide);
        memset(ds, 0, (size_t)E * sizeof(REAL));
        memset(dz, 0, (size_t)E * sizeof(REAL));
        if (t[2]) {
            const REAL *given = R(mci_row)(&mds, r, buf + 7 * wide);
            for (int64_t e = 0; e < E; e++) ds[e] = given[e];
        }
        if (t[1]) {
            const REAL *given = R(mci_row)(&mdw, r, buf + 7 * wide);
            for (int64_t j = 0; j < k; j++) g[j] = given[j] * (REAL)p->scale;
        }
        for (int64_t j = 0; j < k; j++) ids[j] = (int32_t)mci_index_at2(t[5], r, j);
        R(route_backward)(dz, ds, s, t[1] ? g : NULL, ids, x, q, E, k, p->score_function);
        R(mci_row_put)(&mdz, r, dz);
    }
    return MC_OK;
}
