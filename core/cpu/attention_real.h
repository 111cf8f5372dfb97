/* attention_real.h: rope and attention in one precision; see row.h for REAL and R, attention.c for
 * the formulas and the letters. */

static mc_status R(rope)(mci_exec *exec, const mci_view *const *t, const mci_rope_params *p) {
    const mci_view *x = t[1];
    mci_rows my = mci_rows_of(t[0], 3), mx = mci_rows_of(x, 3);
    int64_t times = x->shape[1], heads = x->shape[2], half = x->shape[3] / 2;
    int64_t wide = mci_padded(2 * half);
    int threads = mci_threads(mx.count * mx.n);
    size_t bytes = (size_t)(wide + (times + 2 * threads) * wide) * sizeof(double);
    double *frequency = exec->scratch(exec, bytes);
    if (!frequency) return mci_no_scratch("rope", bytes);
    REAL *table = (REAL *)(frequency + wide), *bufs = table + times * wide;
    for (int64_t d = 0; d < half; d++) frequency[d] = pow(p->theta, -(double)d / (double)half);
#pragma omp parallel num_threads(threads)
    {
        REAL *buf = bufs + 2 * omp_get_thread_num() * wide;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < times; i++) {
            for (int64_t d = 0; d < half; d++) {
                double angle = (double)(p->first + i) * frequency[d];
                table[i * wide + d] = (REAL)cos(angle);
                table[i * wide + half + d] = (REAL)(p->inverse ? -sin(angle) : sin(angle));
            }
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < mx.count; r++) {
            const REAL *c = table + r / heads % times * wide, *s = c + half;
            const REAL *a = R(mci_row)(&mx, r, buf);
            REAL *y = R(mci_row_out)(&my, r, buf + wide);
            for (int64_t d = 0; d < half; d++) {
                REAL left = a[d], right = a[half + d];
                y[d] = left * c[d] - right * s[d];
                y[half + d] = left * s[d] + right * c[d];
            }
            R(mci_row_put)(&my, r, y);
        }
    }
    return MC_OK;
}

/* -- the definition ---------------------------------------------------------------------------- */

static mc_status R(attention_plain)(mci_exec *exec, const mci_view *const *t, const sizes *z,
                                    double scale) {
    mci_rows mo = mci_rows_of(t[0], 3), ml = mci_rows_of(t[1], 3), mq = mci_rows_of(t[2], 3),
             mk = mci_rows_of(t[3], 3), mv = mci_rows_of(t[4], 3);
    int64_t wide = mci_padded(z->D), piece = mci_padded(z->S) + 3 * wide;
    int threads = mci_threads(z->B * z->H * z->T * z->S);
    size_t bytes = (size_t)(threads * piece) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("attention", bytes);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < z->B * z->H * z->T; i++) {
        int64_t b = i / (z->H * z->T), h = i / z->T % z->H, time = i % z->T;
        int64_t row = (b * z->T + time) * z->H + h, keys = visible(z, time);
        REAL *buf = scratch + omp_get_thread_num() * piece, *p = buf + 3 * wide,
             *o = buf + 2 * wide;
        const REAL *q = R(mci_row)(&mq, row, buf);
        for (int64_t s = 0; s < keys; s++) {
            const REAL *k = R(mci_row)(&mk, key_row(z, b, s, h), buf + wide);
            p[s] = (REAL)scale * R(mci_row_dot)(q, k, z->D);
        }
        REAL shift = R(mci_row_shift)(p, keys);
        R(mci_row_exp)(p, p, shift, keys);
        REAL sum = R(mci_row_sum)(p, keys);
        *(REAL *)mci_row_at(&ml, (b * z->H + h) * z->T + time) = shift + R(mci_log)(sum);
        memset(o, 0, (size_t)z->D * sizeof(REAL));
        for (int64_t s = 0; s < keys; s++) {
            const REAL *v = R(mci_row)(&mv, key_row(z, b, s, h), buf + wide);
            REAL weight = p[s] / sum;
            for (int64_t d = 0; d < z->D; d++) o[d] += weight * v[d];
        }
        R(mci_row_put)(&mo, row, o);
    }
    return MC_OK;
}

static mc_status R(attention_backward_plain)(mci_exec *exec, const mci_view *const *t,
                                             const sizes *z, double scale) {
    mci_rows mdq = mci_rows_of(t[0], 3), mdk = mci_rows_of(t[1], 3), mdv = mci_rows_of(t[2], 3),
             mdo = mci_rows_of(t[3], 3), mq = mci_rows_of(t[4], 3), mk = mci_rows_of(t[5], 3),
             mv = mci_rows_of(t[6], 3), mo = mci_rows_of(t[7], 3), ml = mci_rows_of(t[8], 3);
    int64_t wide = mci_padded(z->D), piece = (6 + 2 * z->S) * wide;
    int threads = mci_threads(z->B * z->H * z->T * z->S);
    size_t bytes = (size_t)(threads * piece) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("attention_backward", bytes);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < z->B * z->Hkv; i++) {
        int64_t b = i / z->Hkv, first = i % z->Hkv * z->group;
        REAL *buf = scratch + omp_get_thread_num() * piece;
        REAL *dq = buf + 5 * wide, *dk = buf + 6 * wide, *dv = dk + z->S * wide;
        memset(dk, 0, (size_t)(2 * z->S * wide) * sizeof(REAL));
        for (int64_t j = 0; j < z->H / z->Hkv * z->T; j++) {
            int64_t h = first + j / z->T, time = j % z->T, row = (b * z->T + time) * z->H + h;
            const REAL *q = R(mci_row)(&mq, row, buf), *dout = R(mci_row)(&mdo, row, buf + wide);
            const REAL *out = R(mci_row)(&mo, row, buf + 2 * wide);
            REAL lse = *(const REAL *)mci_row_at(&ml, (b * z->H + h) * z->T + time);
            REAL delta = R(mci_row_dot)(dout, out, z->D);
            memset(dq, 0, (size_t)z->D * sizeof(REAL));
            for (int64_t s = 0; s < visible(z, time); s++) {
                const REAL *k = R(mci_row)(&mk, key_row(z, b, s, h), buf + 3 * wide);
                const REAL *v = R(mci_row)(&mv, key_row(z, b, s, h), buf + 4 * wide);
                REAL p = R(mci_exp)((REAL)scale * R(mci_row_dot)(q, k, z->D) - lse);
                REAL ds = p * (R(mci_row_dot)(dout, v, z->D) - delta) * (REAL)scale;
                for (int64_t d = 0; d < z->D; d++) {
                    dq[d] += ds * k[d];
                    dk[s * wide + d] += ds * q[d];
                    dv[s * wide + d] += p * dout[d];
                }
            }
            R(mci_row_put)(&mdq, row, dq);
        }
        for (int64_t s = 0; s < z->S; s++) {
            R(mci_row_put)(&mdk, key_row(z, b, s, first), dk + s * wide);
            R(mci_row_put)(&mdv, key_row(z, b, s, first), dv + s * wide);
        }
    }
    return MC_OK;
}

/* -- the fast path: blocks of queries against all their keys, by matrix products --------------- */

#define TILE R(tile)

/* Rows first .. first + n - 1 of head h of batch b of v [B, rows, heads, D]. */
typedef struct TILE {
    REAL *data;
    int64_t ld; /* elements from row to row */
} TILE;

static int R(tile_direct)(const mci_view *v) {
    return v->dtype == REAL_DTYPE && (v->stride[3] == 1 || v->shape[3] == 1) &&
           v->stride[1] >= v->shape[3];
}

/* Where the rows lie: in the tensor, or (not filled) in buf [n, D]. */
static TILE R(tile_at)(const mci_view *v, int64_t b, int64_t h, int64_t first, REAL *buf) {
    TILE tile = {buf, v->shape[3]};
    if (R(tile_direct)(v)) {
        tile.data = (REAL *)v->data + b * v->stride[0] + first * v->stride[1] + h * v->stride[2];
        tile.ld = v->stride[1];
    }
    return tile;
}

static char *R(tile_row)(const mci_view *v, int64_t b, int64_t h, int64_t row) {
    int64_t offset = b * v->stride[0] + row * v->stride[1] + h * v->stride[2];
    return (char *)v->data + offset * mci_dtypes[v->dtype].size;
}

static TILE R(tile_load)(const mci_view *v, int64_t b, int64_t h, int64_t first, int64_t n,
                         REAL *buf) {
    TILE tile = R(tile_at)(v, b, h, first, buf);
    for (int64_t i = 0; i < n && tile.data == buf; i++) {
        char *row = R(tile_row)(v, b, h, first + i);
        R(mci_gather)(buf + i * tile.ld, row, v->dtype, tile.ld, v->stride[3]);
    }
    return tile;
}

static void R(tile_store)(const mci_view *v, int64_t b, int64_t h, int64_t first, int64_t n,
                          const REAL *buf, TILE tile) {
    for (int64_t i = 0; i < n && tile.data == buf; i++) {
        char *row = R(tile_row)(v, b, h, first + i);
        R(mci_spread)(row, buf + i * tile.ld, v->dtype, tile.ld, v->stride[3]);
    }
}

static void R(tile_zero)(TILE tile, int64_t n, int64_t wide) {
    for (int64_t i = 0; i < n; i++) memset(tile.data + i * tile.ld, 0, (size_t)wide * sizeof(REAL));
}

/* A row of scores, of which the first `seen` count, to p = exp(score - shift) with zeros up to the
 * next multiple of MCI_LANES; returns the sum. */
static REAL R(exp_row)(REAL *row, REAL shift, int64_t seen) {
    REAL acc[MCI_LANES] = {0};
    for (int64_t j = 0; j < whole_lanes(seen); j += MCI_LANES) {
        for (int l = 0; l < MCI_LANES; l++) {
            REAL e = R(mci_exp)(row[j + l] - shift);
            row[j + l] = e;
            acc[l] += e;
        }
    }
    return R(mci_fold)(acc);
}

static void R(mask_row)(REAL *row, int64_t seen) {
    for (int64_t j = seen; j < whole_lanes(seen); j++) row[j] = (REAL)-INFINITY;
}

static void R(zero_rest)(REAL *row, int64_t seen, int64_t keys) {
    if (seen < keys) memset(row + seen, 0, (size_t)(keys - seen) * sizeof(REAL));
}

/* One block of queries of one head, forward. buf: QUERIES * (wide S + 2 D) + 2 S * D elements. */
static mc_status R(attention_block)(const mci_view *const *t, const sizes *z, double scale,
                                    int64_t b, int64_t h, int64_t first, REAL *buf) {
    int64_t n = first + QUERIES < z->T ? QUERIES : z->T - first, D = z->D;
    int64_t keys = visible(z, first + n - 1), wide = score_width(z->S), kv = h / z->group;
    REAL *p = buf, *qbuf = p + QUERIES * wide, *obuf = qbuf + QUERIES * D;
    REAL *kbuf = obuf + QUERIES * D, *vbuf = kbuf + z->S * D;
    REAL *lse = (REAL *)t[1]->data + b * t[1]->stride[0] + h * t[1]->stride[1];
    REAL inverse[QUERIES];
    TILE out = R(tile_at)(t[0], b, h, first, obuf);
    TILE q = R(tile_load)(t[2], b, h, first, n, qbuf);
    TILE k = R(tile_load)(t[3], b, kv, 0, keys, kbuf);
    TILE v = R(tile_load)(t[4], b, kv, 0, keys, vbuf);
    mc_status status = MC_OK;
    if (keys > 0)
        status = R(mci_gemm)(0, 1, n, keys, D, (REAL)scale, q.data, q.ld, k.data, k.ld, 0, p, wide);
    for (int64_t i = 0; i < n; i++) {
        int64_t seen = visible(z, first + i);
        REAL *row = p + i * wide;
        R(mask_row)(row, seen);
        REAL shift = R(mci_row_shift)(row, whole_lanes(seen)), sum = R(exp_row)(row, shift, seen);
        R(zero_rest)(row, seen, keys);
        lse[(first + i) * t[1]->stride[2]] = shift + R(mci_log)(sum);
        inverse[i] = seen > 0 ? 1 / sum : 0;
    }
    if (keys > 0 && status == MC_OK)
        status = R(mci_gemm)(0, 0, n, D, keys, 1, p, wide, v.data, v.ld, 0, out.data, out.ld);
    else
        R(tile_zero)(out, n, D);
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < D; d++) out.data[i * out.ld + d] *= inverse[i];
    R(tile_store)(t[0], b, h, first, n, obuf, out);
    return status;
}

static mc_status R(attention_fast)(mci_exec *exec, const mci_view *const *t, const sizes *z,
                                   double scale) {
    int64_t blocks = (z->T + QUERIES - 1) / QUERIES;
    int64_t piece = mci_padded(QUERIES * (score_width(z->S) + 2 * z->D) + 2 * z->S * z->D);
    int threads = mci_threads(z->B * z->H * z->T * z->S);
    size_t bytes = (size_t)(threads * piece) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("attention", bytes);
    mc_status status = MC_OK;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < z->B * z->H * blocks; i++) {
        int64_t b = i / (z->H * blocks), h = i / blocks % z->H, first = i % blocks * QUERIES;
        mc_status s =
            R(attention_block)(t, z, scale, b, h, first, scratch + omp_get_thread_num() * piece);
        if (s != MC_OK) {
#pragma omp atomic write
            status = s;
        }
    }
    return attention_status("attention", status);
}

/* One block of queries of one head, backward: writes dq's rows and adds to dk and dv.
 * buf: QUERIES * (2 wide S + 4 D) elements. */
static mc_status R(backward_block)(const mci_view *const *t, const sizes *z, double scale,
                                   int64_t b, int64_t h, int64_t first, TILE k, TILE v, TILE dk,
                                   TILE dv, REAL *buf) {
    int64_t n = first + QUERIES < z->T ? QUERIES : z->T - first, D = z->D;
    int64_t keys = visible(z, first + n - 1), wide = score_width(z->S);
    REAL *p = buf, *dp = p + QUERIES * wide, *dqbuf = dp + QUERIES * wide;
    REAL *obuf = dqbuf + QUERIES * D, *qbuf = obuf + QUERIES * D, *dobuf = qbuf + QUERIES * D;
    const REAL *lse = (const REAL *)t[8]->data + b * t[8]->stride[0] + h * t[8]->stride[1];
    TILE dq = R(tile_at)(t[0], b, h, first, dqbuf);
    if (keys == 0) {
        R(tile_zero)(dq, n, D);
        R(tile_store)(t[0], b, h, first, n, dqbuf, dq);
        return MC_OK;
    }
    TILE dout = R(tile_load)(t[3], b, h, first, n, dobuf);
    TILE q = R(tile_load)(t[4], b, h, first, n, qbuf);
    TILE out = R(tile_load)(t[7], b, h, first, n, obuf);
    mc_status s =
        R(mci_gemm)(0, 1, n, keys, D, (REAL)scale, q.data, q.ld, k.data, k.ld, 0, p, wide);
    if (s == MC_OK)
        s = R(mci_gemm)(0, 1, n, keys, D, 1, dout.data, dout.ld, v.data, v.ld, 0, dp, wide);
    for (int64_t i = 0; i < n; i++) {
        int64_t seen = visible(z, first + i);
        REAL *prow = p + i * wide, *drow = dp + i * wide;
        REAL delta = R(mci_row_dot)(dout.data + i * dout.ld, out.data + i * out.ld, D);
        R(mask_row)(prow, seen);
        R(exp_row)(prow, lse[(first + i) * t[8]->stride[2]], seen);
        for (int64_t j = 0; j < whole_lanes(seen); j++)
            drow[j] = prow[j] * (drow[j] - delta) * (REAL)scale;
        R(zero_rest)(prow, seen, keys);
        R(zero_rest)(drow, seen, keys);
    }
    if (s == MC_OK)
        s = R(mci_gemm)(1, 0, keys, D, n, 1, p, wide, dout.data, dout.ld, 1, dv.data, dv.ld);
    if (s == MC_OK) s = R(mci_gemm)(1, 0, keys, D, n, 1, dp, wide, q.data, q.ld, 1, dk.data, dk.ld);
    if (s == MC_OK) s = R(mci_gemm)(0, 0, n, D, keys, 1, dp, wide, k.data, k.ld, 0, dq.data, dq.ld);
    R(tile_store)(t[0], b, h, first, n, dqbuf, dq);
    return s;
}

/* A task is a head of k and v with its group of query heads: dk and dv add up in the order of
 * heads and blocks, whatever the number of threads. */
static mc_status R(attention_backward_fast)(mci_exec *exec, const mci_view *const *t,
                                            const sizes *z, double scale) {
    int64_t all = z->S * z->D;
    int64_t piece = mci_padded(QUERIES * (2 * score_width(z->S) + 4 * z->D) + 4 * all);
    int threads = mci_threads(z->B * z->H * z->T * z->S);
    size_t bytes = (size_t)(threads * piece) * sizeof(REAL);
    REAL *scratch = exec->scratch(exec, bytes);
    if (!scratch) return mci_no_scratch("attention_backward", bytes);
    mc_status status = MC_OK;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < z->B * z->Hkv; i++) {
        int64_t b = i / z->Hkv, kv = i % z->Hkv;
        REAL *kbuf = scratch + omp_get_thread_num() * piece, *vbuf = kbuf + all;
        REAL *dkbuf = vbuf + all, *dvbuf = dkbuf + all;
        TILE k = R(tile_load)(t[5], b, kv, 0, z->S, kbuf);
        TILE v = R(tile_load)(t[6], b, kv, 0, z->S, vbuf);
        TILE dk = R(tile_at)(t[1], b, kv, 0, dkbuf), dv = R(tile_at)(t[2], b, kv, 0, dvbuf);
        R(tile_zero)(dk, z->S, z->D);
        R(tile_zero)(dv, z->S, z->D);
        for (int64_t h = kv * z->group; h < (kv + 1) * z->group && h < z->H; h++) {
            for (int64_t first = 0; first < z->T; first += QUERIES) {
                mc_status s =
                    R(backward_block)(t, z, scale, b, h, first, k, v, dk, dv, dvbuf + all);
                if (s != MC_OK) {
#pragma omp atomic write
                    status = s;
                }
            }
        }
        R(tile_store)(t[1], b, kv, 0, z->S, dkbuf, dk);
        R(tile_store)(t[2], b, kv, 0, z->S, dvbuf, dv);
    }
    return attention_status("attention_backward", status);
}

#undef TILE
