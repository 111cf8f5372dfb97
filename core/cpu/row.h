/* row.h: rows of views as contiguous float or double, and the sums over them.
 *
 * A kernel that works row by row is written once, in a file <name>_real.h that is included in both
 * precisions (both_reals.h); float16 and bfloat16 go through row buffers of floats. A row that lies
 * in memory as it is wanted is used in place; any other dtype or stride goes through the caller's
 * buffer. Sums run in MCI_LANES interleaved partial sums that are then folded in halves: one order
 * for every instruction set.
 */
#ifndef MCI_ROW_H
#define MCI_ROW_H

#include <omp.h>

#include "load.h"
#include "vmath.h"

enum { MCI_LANES = 32 };

/* The first `lead` axes of a view count rows; the axis after them, if any, is the row. */
typedef struct mci_rows {
    char *data;
    int dtype, lead;
    int64_t size, count, n, step; /* bytes per element; rows; elements of a row, their stride */
    int64_t shape[MC_MAX_DIMS], stride[MC_MAX_DIMS];
} mci_rows;

/* Neighbouring axes that step evenly are merged; v NULL gives no rows and data NULL. */
static inline mci_rows mci_rows_of(const mci_view *v, int lead) {
    mci_rows m = {.data = NULL, .n = 1, .step = 1, .count = 1};
    if (!v) return m;
    m.data = v->data;
    m.dtype = v->dtype;
    m.size = mci_dtypes[v->dtype].size;
    if (lead < v->ndim) {
        m.n = v->shape[lead];
        m.step = v->stride[lead];
    }
    for (int i = 0; i < lead; i++) {
        m.count *= v->shape[i];
        if (m.lead > 0 && m.stride[m.lead - 1] == v->stride[i] * v->shape[i]) {
            m.shape[m.lead - 1] *= v->shape[i];
            m.stride[m.lead - 1] = v->stride[i];
        } else if (v->shape[i] != 1) {
            m.shape[m.lead] = v->shape[i];
            m.stride[m.lead++] = v->stride[i];
        }
    }
    return m;
}

static inline void *mci_row_at(const mci_rows *m, int64_t r) {
    int64_t offset = 0;
    for (int i = m->lead - 1; i > 0; i--) {
        offset += r % m->shape[i] * m->stride[i];
        r /= m->shape[i];
    }
    if (m->lead > 0) offset += r * m->stride[0];
    return m->data + offset * m->size;
}

/* Element i of a 1-D view, element (i, j) of a 2-D one, of an index dtype. */
static inline int64_t mci_index_at(const mci_view *v, int64_t i) {
    int64_t at = i * v->stride[0];
    return v->dtype == MC_INT32 ? ((const int32_t *)v->data)[at] : ((const int64_t *)v->data)[at];
}
static inline int64_t mci_index_at2(const mci_view *v, int64_t i, int64_t j) {
    int64_t at = i * v->stride[0] + j * v->stride[1];
    return v->dtype == MC_INT32 ? ((const int32_t *)v->data)[at] : ((const int64_t *)v->data)[at];
}

static inline int mci_row_direct(const mci_rows *m, int dtype) {
    return m->dtype == dtype && (m->step == 1 || m->n < 2);
}

/* Elements rounded up to whole cache lines, at least one: pieces of scratch stay aligned. */
static inline int64_t mci_padded(int64_t n) {
    return n < 1 ? 16 : (n + 15) / 16 * 16;
}

static inline mc_status mci_no_scratch(const char *op, size_t bytes) {
    return mci_fail(MC_ENOMEM, "%s: no memory for %zu bytes of scratch", op, bytes);
}

#define IN_BOTH_REALS "row_real.h"
#include "both_reals.h"

#endif
