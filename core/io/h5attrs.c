/* h5attrs.c: attributes of one element and fixed size. Others are never read, whatever they claim.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h5walk.h"

/* Reads a fixed-size attribute of one element; *kept = 0 when it is of no kind we have. */
static mc_status read_attr(mci_h5_walk *s, hid_t attr, hid_t type, mci_h5_attr_row *row,
                           int *kept) {
    size_t size = H5Tget_size(type);
    H5T_class_t class = H5Tget_class(type);
    char why[128];
    int swapped, ok = 1;
    *kept = 1;
    if (class == H5T_INTEGER && size <= 8) {
        uint64_t big = 0;
        if (H5Tget_sign(type) == H5T_SGN_NONE && size == 8) {
            ok = mci_h5_ok(H5Aread(attr, H5T_NATIVE_UINT64, &big));
            *kept = big <= INT64_MAX; /* HDF5 would clamp it without a word */
            row->attr.i = (int64_t)big;
        } else {
            ok = mci_h5_ok(H5Aread(attr, H5T_NATIVE_INT64, &row->attr.i));
        }
        row->attr.kind = MC_H5_INT;
        row->attr.d = (double)row->attr.i;
    } else if (class == H5T_FLOAT && size <= 8) {
        ok = mci_h5_ok(H5Aread(attr, H5T_NATIVE_DOUBLE, &row->attr.d));
        /* in LuaJIT the bits of other NaNs stand for pointers */
        if (isnan(row->attr.d)) row->attr.d = (double)NAN;
        row->attr.kind = MC_H5_DOUBLE;
    } else if (class == H5T_ENUM && mci_h5_dtype(type, &swapped, why, sizeof why) == MC_BOOL) {
        signed char truth = 0;
        ok = mci_h5_ok(H5Aread(attr, type, &truth));
        row->attr.kind = MC_H5_BOOL;
        row->attr.i = truth != 0;
        row->attr.d = truth != 0;
    } else if (class == H5T_STRING && H5Tis_variable_str(type) == 0) {
        char *text = calloc(size + 1, 1);
        if (!text) return mci_h5_no_memory();
        ok = mci_h5_ok(H5Aread(attr, type, text));
        size_t n = strnlen(text, size);
        if (H5Tget_strpad(type) != H5T_STR_NULLTERM) {
            char pad = H5Tget_strpad(type) == H5T_STR_SPACEPAD ? ' ' : '\0';
            for (n = size; n > 0 && text[n - 1] == pad;) n--;
        }
        row->attr.kind = MC_H5_STRING;
        row->attr.size = (int32_t)n;
        mc_status status = ok ? mci_h5_add_chars(s, text, n, &s->values, &row->text) : MC_OK;
        free(text);
        if (status != MC_OK) return status;
    } else {
        *kept = 0;
    }
    return ok ? MC_OK : mci_h5_fail(MC_EFORMAT, "'%s': cannot read an attribute", s->path);
}

/* What is the matter with an attribute before its value is looked at. */
static mci_h5_rule outward(hid_t type, hid_t space, size_t name, char *why, size_t size) {
    H5T_class_t class = H5Tget_class(type);
    if (class == H5T_VLEN || class == H5T_REFERENCE || H5Tis_variable_str(type) > 0 ||
        H5Tdetect_class(type, H5T_VLEN) > 0) {
        snprintf(why, size, "is of variable length, or refers to something");
        return MCI_RULE_ATTR_VARIABLE;
    }
    if (name == 0 || name > MCI_H5_MAX_ATTR_NAME) {
        snprintf(why, size, "has a name of %zu bytes; at most %d are wanted", name,
                 MCI_H5_MAX_ATTR_NAME);
        return MCI_RULE_ATTR_SIZE;
    }
    if (H5Tget_size(type) > MCI_H5_MAX_ATTR_BYTES) {
        snprintf(why, size, "has %zu bytes; at most %d are wanted", H5Tget_size(type),
                 MCI_H5_MAX_ATTR_BYTES);
        return MCI_RULE_ATTR_SIZE;
    }
    if (H5Sget_simple_extent_npoints(space) != 1) {
        snprintf(why, size, "has not one value");
        return MCI_RULE_ATTR_KIND;
    }
    return MCI_RULE_NONE;
}

static mc_status keep(mci_h5_walk *s, const char *name, size_t length, mci_h5_attr_row *row) {
    if (!mci_h5_grow(&s->attrs, &s->attrs_room, s->n_attrs, sizeof *s->attrs) ||
        s->n_attrs == INT32_MAX)
        return mci_h5_no_memory();
    mc_status status = mci_h5_add_chars(s, name, length, &s->names, &row->name);
    if (status != MC_OK) return status;
    status = mci_h5_count(s, MCI_COST_ATTR);
    if (status != MC_OK) return status;
    s->sent_chars += (int64_t)length + 1 + (row->text >= 0 ? row->attr.size + 1 : 0);
    s->attrs[s->n_attrs++] = *row;
    return MC_OK;
}

static mc_status scan_attr(mci_h5_walk *s, hid_t object, const char *name) {
    hid_t attr = H5Aopen(object, name, H5P_DEFAULT);
    hid_t type = mci_h5_ok(attr) ? H5Aget_type(attr) : H5I_INVALID_HID;
    hid_t space = mci_h5_ok(type) ? H5Aget_space(attr) : H5I_INVALID_HID;
    mc_status status = MC_OK;
    char why[160];
    mci_h5_attr_row row = {.name = 0, .text = -1};
    if (!mci_h5_ok(space)) {
        status = mci_h5_fail(MC_EFORMAT, "'%s': cannot open an attribute", s->path);
    } else {
        size_t length = strlen(name);
        mci_h5_rule rule = outward(type, space, length, why, sizeof why);
        int kept = 0;
        if (rule == MCI_RULE_NONE) {
            status = read_attr(s, attr, type, &row, &kept);
            snprintf(why, sizeof why, "is of a kind that is not known here");
            if (!kept) rule = MCI_RULE_ATTR_KIND;
        }
        if (status == MC_OK && rule != MCI_RULE_NONE) {
            char detail[320];
            snprintf(detail, sizeof detail, "its attribute '%.80s' %s", name, why);
            if (mci_h5_judge(s, rule, detail) == MCI_REFUSE) status = MC_EFORMAT;
        } else if (status == MC_OK) {
            status = keep(s, name, length, &row);
        }
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (attr >= 0) H5Aclose(attr);
    return status;
}

typedef struct attr_walk {
    mci_h5_walk *s;
    mc_status status;
} attr_walk;

/* Of H5Aiterate2. Nonzero stops. */
static herr_t visit_attr(hid_t object, const char *name, const H5A_info_t *info, void *data) {
    (void)info;
    attr_walk *walk = data;
    walk->status = scan_attr(walk->s, object, name);
    return walk->status != MC_OK;
}

mc_status mci_h5_scan_attrs(mci_h5_walk *s, hid_t object, const mci_h5_info *info) {
    if (info->attrs == 0) return MC_OK;
    if (info->attrs > MCI_H5_MAX_ATTRS) {
        char detail[96];
        snprintf(detail, sizeof detail, "it has %" PRId64 " attributes, over %d", info->attrs,
                 MCI_H5_MAX_ATTRS);
        mci_h5_judge(s, MCI_RULE_ATTR_COUNT, detail);
        return MC_EFORMAT;
    }
    int64_t row = s->n_rows - 1, first = s->n_attrs;
    attr_walk walk = {.s = s, .status = MC_OK};
    /* one walk: opening them by their number would sort them all for each */
    if (H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_attr, &walk) < 0)
        return mci_h5_fail(MC_EFORMAT, "'%s': cannot list its attributes", s->path);
    if (walk.status != MC_OK) return walk.status;
    s->rows[row].entry.n_attrs = (int32_t)(s->n_attrs - first);
    return MC_OK;
}

int mci_h5_says_mascon(hid_t root) {
    static const char word[] = "mascon";
    char text[sizeof word] = "";
    int says = 0;
    hid_t attr = H5Aexists(root, "format") > 0 ? H5Aopen(root, "format", H5P_DEFAULT) : -1;
    hid_t type = attr >= 0 ? H5Aget_type(attr) : -1, space = attr >= 0 ? H5Aget_space(attr) : -1;
    if (type >= 0 && space >= 0 && H5Tget_class(type) == H5T_STRING &&
        H5Tis_variable_str(type) == 0 && H5Sget_simple_extent_npoints(space) == 1) {
        size_t size = H5Tget_size(type);
        if (size >= sizeof word - 1 && size <= sizeof word && H5Aread(attr, type, text) >= 0)
            says = memcmp(text, word, sizeof word) == 0;
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (attr >= 0) H5Aclose(attr);
    mci_h5_forget();
    return says;
}
