/* tensor.h: a tensor is a view on a refcounted storage. */
#ifndef MCI_TENSOR_H
#define MCI_TENSOR_H

#include "backend.h"

typedef struct mci_storage {
    int32_t refs; /* atomic */
    int device;
    int pool;        /* where its block goes back to: see alloc.h */
    const char *tag; /* what made it, a literal; for the message of a full memory */
    void *data;
    int64_t bytes;
    int64_t id;
    int64_t version;
} mci_storage;

/* A NULL storage is an empty handle. v.data already includes the view's offset. */
struct mc_tensor {
    mci_view v;
    mci_storage *storage;
    int sharing; /* MC_IS_VIEW, MC_HAS_VIEWS, for mc_tensor_sharing */
};

mc_status mci_storage_new(mci_storage **out, int device, int64_t bytes);
void mci_storage_retain(mci_storage *s);
void mci_storage_release(mci_storage *s);

void mci_contiguous_strides(int ndim, const int64_t *shape, int64_t *strides);
/* Product of sizes in elements; 0 and *n on success, -1 when it overflows or a size is negative. */
int mci_checked_numel(int ndim, const int64_t *shape, int64_t *n);

#endif
