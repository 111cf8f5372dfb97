/* grouped_tensor.c: where the members of a packed ragged tensor begin. A uniform grouped tensor is
 * plain [G, rows, columns] and needs nothing of this.
 */
#include "call.h"

/* offsets [G + 1] int64, in rows; multiply by the row length for elements. */
mc_status mc_grouped_offsets(mc_tensor *offsets, const mc_tensor *first_dims) {
    mci_call c = mci_begin("grouped_offsets", MCI_OP_grouped_offsets, 1);
    c.apart = 1;
    mci_in(&c, 0, first_dims);
    if (mci_ok(&c)) mci_want_index(&c, "first_dims", first_dims);
    if (mci_ok(&c) && first_dims->v.ndim != 1)
        mci_bad(&c, "first_dims is %s, wanted one axis", mci_shape_of(first_dims));
    if (!mci_ok(&c)) return mci_end(&c, NULL);
    mci_out(&c, 0, offsets, MC_INT64, 1, (int64_t[]){first_dims->v.shape[0] + 1});
    return mci_end(&c, NULL);
}
