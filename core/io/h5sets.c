/* h5sets.c: what a dataset is: its dtype, its shape, and where its bytes are or how they can be
 * had. No size that the file claims is trusted before it is checked, and no bytes are read.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "h5walk.h"

const char *mci_h5_shape(mc_h5_entry *e, hid_t space, size_t type_size) {
    int ndim = H5Sget_simple_extent_ndims(space);
    if (H5Sget_simple_extent_type(space) == H5S_NULL) return "it has no elements at all";
    if (ndim < 0 || ndim > MC_MAX_DIMS) return "it has more than 8 axes";
    hsize_t sizes[MC_MAX_DIMS] = {0};
    if (ndim > 0 && H5Sget_simple_extent_dims(space, sizes, NULL) < 0) return "its shape is lost";
    int64_t bytes = (int64_t)type_size, room = (int64_t)type_size;
    e->ndim = ndim;
    for (int i = 0; i < ndim; i++) e->shape[i] = (int64_t)sizes[i];
    for (int i = 0; i < ndim; i++) {
        /* sizes beside a zero must fit too: strides are made of them */
        if (sizes[i] > INT64_MAX || __builtin_mul_overflow(bytes, e->shape[i], &bytes) ||
            (sizes[i] > 0 && __builtin_mul_overflow(room, e->shape[i], &room)))
            return "its size overflows";
    }
    e->bytes = bytes;
    return NULL;
}

int mci_h5_settle(const mci_h5_walk *s, const mc_h5_entry *e, hid_t type, int *swapped, char *why,
                  size_t size) {
    const char *said = NULL;
    int dtype = mci_h5_dtype(type, swapped, why, size);
    if (dtype < 0) return dtype;
    for (int32_t i = 0; i < e->n_attrs; i++) {
        const mci_h5_attr_row *row = &s->attrs[e->first_attr + i];
        if (row->attr.kind == MC_H5_STRING && strcmp(s->chars + row->name, "dtype") == 0)
            said = s->chars + row->text;
    }
    if (!said || strcmp(said, mci_h5_core->dtype_name(dtype)) == 0) return dtype;
    for (int i = MC_FLOAT8_E4M3FN; dtype == MC_UINT8 && i < MC_DTYPE_COUNT; i++) {
        if (strcmp(said, mci_h5_core->dtype_name(i)) == 0) return i;
    }
    snprintf(why, size, "its attribute dtype says '%.40s', its HDF5 type is %s", said,
             mci_h5_core->dtype_name(dtype));
    return -1;
}

/* Where the bytes are. offset: of a contiguous dataset's bytes; else props tell.
 * The first rule that the dataset breaks and the profile minds, with the reason in `why`. */
static int find_bytes(mci_h5_walk *s, mc_h5_entry *e, hid_t set, hid_t props, haddr_t offset,
                      size_t type_size, int swapped, char *why, size_t size) {
    if (e->bytes == 0) return MCI_PASS;
    const char *text = NULL;
    int verdict = swapped ? mci_h5_judge(s, MCI_RULE_BIG_ENDIAN, NULL) : MCI_PASS;
    if (verdict != MCI_PASS) return verdict;
    int64_t file_bytes = s->start->file_bytes;
    H5D_layout_t layout = props < 0 ? H5D_CONTIGUOUS : H5Pget_layout(props);
    if (layout == H5D_CHUNKED) {
        verdict = mci_h5_judge(s, MCI_RULE_CHUNKED, NULL);
        if (verdict != MCI_PASS) return verdict;
        text = mci_h5_chunk_problem(props, type_size, s->start, why, size);
        if (text) return mci_h5_judge(s, MCI_RULE_FILTER, why);
    } else if (layout == H5D_COMPACT) {
        verdict = mci_h5_judge(s, MCI_RULE_COMPACT, NULL);
        if (verdict != MCI_PASS) return verdict;
    } else if (layout != H5D_CONTIGUOUS) {
        snprintf(why, size, "its layout is unknown");
        return mci_h5_judge(s, MCI_RULE_FILTER, why);
    } else {
        hsize_t stored = H5Dget_storage_size(set);
        if (stored == 0) {
            verdict = mci_h5_judge(s, MCI_RULE_LATE, NULL);
            if (verdict != MCI_PASS) return verdict;
        } else if (s->start->base == 0) {
            if (stored != (hsize_t)e->bytes || offset == HADDR_UNDEF ||
                offset > (haddr_t)file_bytes || e->bytes > file_bytes - (int64_t)offset) {
                snprintf(why, size, "its bytes are not all in the file");
                return mci_h5_judge(s, MCI_RULE_EXTENT, why);
            }
            if (!swapped) {
                e->offset = (int64_t)offset;
                return MCI_PASS;
            }
        }
    }
    /* chunks, compact data, another byte order, never written (reads as its fill value), and all
     * behind a user block */
    if (e->bytes > s->decode_left) {
        snprintf(why, size,
                 "it decodes to %" PRId64 " bytes, too many for a file of %" PRId64
                 " (the option decode_limit)",
                 e->bytes, file_bytes);
        return mci_h5_judge(s, MCI_RULE_DECODED, why);
    }
    s->decode_left -= e->bytes;
    e->decode = 1;
    return MCI_PASS;
}

static mc_status fill(mci_h5_walk *s, hid_t set, hid_t props, haddr_t offset,
                      const mci_h5_info *info) {
    hid_t type = H5Dget_type(set), space = H5Dget_space(set);
    mc_status status = MC_OK;
    if (!mci_h5_ok(type) || !mci_h5_ok(space))
        status = mci_h5_fail(MC_EFORMAT, "cannot read what '%s' is", s->path);
    if (status == MC_OK) status = mci_h5_add_row(s, MC_H5_DATASET, info->address);
    if (status == MC_OK && info->links > 1) status = mci_h5_remember(s);
    if (status == MC_OK) status = mci_h5_scan_attrs(s, set, info);
    if (status == MC_OK) {
        int64_t row = s->n_rows - 1;
        mc_h5_entry *e = &s->rows[row].entry;
        char why[192];
        int swapped = 0, dtype = -1, verdict = MCI_PASS;
        size_t type_size = H5Tget_size(type);
        const char *shape = mci_h5_shape(e, space, type_size);
        if (shape) {
            snprintf(why, sizeof why, "%s", shape);
            verdict = mci_h5_judge(s, MCI_RULE_SHAPE, why);
        } else if ((dtype = mci_h5_settle(s, e, type, &swapped, why, sizeof why)) < 0) {
            verdict = mci_h5_judge(s, MCI_RULE_TYPE, why);
        } else {
            verdict = find_bytes(s, e, set, props, offset, type_size, swapped, why, sizeof why);
        }
        if (verdict == MCI_REFUSE)
            status = MC_EFORMAT;
        else if (verdict == MCI_PROBLEM)
            status = mci_h5_set_problem(s, row, why);
        else
            e->dtype = dtype;
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return status;
}

mc_status mci_h5_scan_dataset(mci_h5_walk *s, hid_t set, const mci_h5_info *info) {
    int64_t first = info->links > 1 ? mci_h5_seen(s, info->address) : -1;
    if (first >= 0) return mci_h5_add_same(s, first);
    /* Only contiguous bytes of this very file have an offset: views, chunks and external storage
     * have none. The property list, which tells those apart, costs more than all else here. */
    haddr_t offset = s->start->base == 0 ? H5Dget_offset(set) : HADDR_UNDEF;
    if (offset != HADDR_UNDEF) return fill(s, set, H5I_INVALID_HID, offset, info);
    mci_h5_forget();
    hid_t props = H5Dget_create_plist(set);
    if (props < 0) return mci_h5_fail(MC_EFORMAT, "cannot read what '%s' is", s->path);
    mc_status status;
    /* before anything that could make libhdf5 look for another file */
    if (H5Pget_layout(props) == H5D_VIRTUAL)
        status = mci_h5_scan_view(s, set, props, info);
    else if (H5Pget_external_count(props) != 0)
        status = mci_h5_judge(s, MCI_RULE_EXTERNAL_BYTES, NULL) == MCI_REFUSE ? MC_EFORMAT : MC_OK;
    else
        status = fill(s, set, props, HADDR_UNDEF, info);
    H5Pclose(props);
    return status;
}
