/* shape.c: sizes, strides and broadcasting; all arithmetic on sizes that a caller gave is checked.
 */
#include <stdio.h>

#include "call.h"

void mci_contiguous_strides(int ndim, const int64_t *shape, int64_t *strides) {
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        strides[i] = stride;
        stride *= shape[i] > 0 ? shape[i] : 1;
    }
}

int mci_checked_numel(int ndim, const int64_t *shape, int64_t *n) {
    *n = 1;
    int zero = 0;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) return -1;
        if (shape[i] == 0)
            zero = 1;
        else if (__builtin_mul_overflow(*n, shape[i], n))
            return -1;
    }
    if (zero) *n = 0;
    return 0;
}

const char *mci_shape_text(int ndim, const int64_t *shape) {
    static _Thread_local char texts[4][192];
    static _Thread_local int next;
    char *text = texts[next++ & 3];
    int n = snprintf(text, 192, "[");
    for (int i = 0; i < ndim && n < 160; i++)
        n += snprintf(text + n, (size_t)(192 - n), i ? ", %lld" : "%lld", (long long)shape[i]);
    snprintf(text + n, (size_t)(192 - n), "]");
    return text;
}

const char *mci_shape_of(const mc_tensor *t) {
    return mci_shape_text(t->v.ndim, t->v.shape);
}

int mci_broadcast(int na, const int64_t *a, int nb, const int64_t *b, int *n, int64_t *shape) {
    *n = na > nb ? na : nb;
    for (int i = 0; i < *n; i++) {
        int ia = i - (*n - na), ib = i - (*n - nb);
        int64_t sa = ia < 0 ? 1 : a[ia], sb = ib < 0 ? 1 : b[ib];
        if (sa != sb && sa != 1 && sb != 1) return 0;
        shape[i] = sa == 1 ? sb : sa;
    }
    return 1;
}

int mci_same_shape(const mc_tensor *a, const mc_tensor *b) {
    if (a->v.ndim != b->v.ndim) return 0;
    for (int i = 0; i < a->v.ndim; i++)
        if (a->v.shape[i] != b->v.shape[i]) return 0;
    return 1;
}
