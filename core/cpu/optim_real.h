/* optim_real.h: optimizer steps in one precision; see row.h for REAL and R, optim.c for the walk
 * over the tensors and the formulas. */

/* n <= BLOCK elements of an operand, from the one at `at`: in place, or loaded into buf. */
static REAL *R(open_block)(const mci_rows *m, void *at, int64_t n, REAL *buf) {
    if (mci_row_direct(m, REAL_DTYPE)) return at;
    R(mci_gather)(buf, at, m->dtype, n, m->step);
    return buf;
}

static void R(close_block)(const mci_rows *m, void *at, int64_t n, const REAL *block) {
    if (at != (const void *)block) R(mci_spread)(at, block, m->dtype, n, m->step);
}

static void R(adam_loop)(REAL *w, REAL *m, REAL *v, const REAL *grad, int64_t n, const numbers *k) {
    REAL scale = (REAL)k->grad_scale, add = (REAL)k->decay_add, keep = (REAL)k->decay_keep;
    REAL one1 = (REAL)(1 - k->beta1), beta2 = (REAL)k->beta2, one2 = (REAL)(1 - k->beta2);
    REAL root = (REAL)k->correction2_root, eps = (REAL)k->eps, rate = (REAL)k->rate;
    for (int64_t i = 0; i < n; i++) {
        REAL g = grad[i] * scale + add * w[i];
        REAL mi = m[i] + (g - m[i]) * one1, vi = v[i] * beta2 + one2 * g * g;
        REAL denominator = R(mci_sqrt)(vi) / root + eps;
        m[i] = mi;
        v[i] = vi;
        w[i] = w[i] * keep - rate * (mi / denominator);
    }
}

/* buf may be NULL: no momentum. */
static void R(sgd_loop)(REAL *w, REAL *buf, const REAL *grad, int64_t n, const numbers *k) {
    REAL scale = (REAL)k->grad_scale, add = (REAL)k->decay_add, rate = (REAL)k->rate;
    REAL keep = k->first ? 0 : (REAL)k->momentum, take = k->first ? 1 : (REAL)(1 - k->dampening);
    REAL ahead = (REAL)k->momentum;
    if (!buf) {
        for (int64_t i = 0; i < n; i++) w[i] -= rate * (grad[i] * scale + add * w[i]);
        return;
    }
    if (k->first) /* what stands in the buffer does not count, not even a NaN */
        memset(buf, 0, (size_t)n * sizeof(REAL));
    if (k->nesterov) {
        for (int64_t i = 0; i < n; i++) {
            REAL g = grad[i] * scale + add * w[i], b = keep * buf[i] + take * g;
            buf[i] = b;
            w[i] -= rate * (g + ahead * b);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            REAL g = grad[i] * scale + add * w[i], b = keep * buf[i] + take * g;
            buf[i] = b;
            w[i] -= rate * b;
        }
    }
}

/* One block of every operand. at: param, first moment or momentum, second moment, master, grad. */
static void R(step_block)(const mci_rows *m, void *const *at, int64_t n, const numbers *k) {
    REAL bufs[5][BLOCK], *block[5];
    for (int i = at[3] ? 1 : 0; i < 5; i++) /* with a master the parameter is only written */
        if (at[i]) block[i] = R(open_block)(&m[i], at[i], n, bufs[i]);
    REAL *w = at[3] ? block[3] : block[0];
    if (at[2])
        R(adam_loop)(w, block[1], block[2], block[4], n, k);
    else
        R(sgd_loop)(w, at[1] ? block[1] : NULL, block[4], n, k);
    for (int i = 1; i < 4; i++)
        if (at[i]) R(close_block)(&m[i], at[i], n, block[i]);
    R(close_block)(&m[0], at[0], n, w);
}
