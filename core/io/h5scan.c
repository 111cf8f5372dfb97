/* h5scan.c: reads the structure of anybody's HDF5 file into one flat table, and decodes datasets
 * that are not plain bytes.
 *
 * Follows hard links only. External links, external storage, views (virtual datasets) of other
 * files, links of unknown kinds, groups with a second link (a cycle) and trees beyond the bounds of
 * h5.h refuse the file; soft links and views inside the file are second names and left out; a
 * dataset of a kind not known here is listed with its problem. No size the file claims is trusted
 * before it is checked, and no tensor bytes are read while scanning.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h5room.h"

typedef struct scan {
    mci_h5_table *table;
    int64_t rows_room, attrs_room, chars_room;
    const char *label;
    int64_t file_bytes, base;
    int64_t decoded_left; /* bytes that decoding may still give */
    int64_t links;
    char path[MCI_H5_MAX_PATH]; /* of the current object */
    int64_t above[MCI_H5_MAX_DEPTH + 1];
    int64_t *seen; /* hash of rows + 1 by address: datasets with several links; 0 is free */
    int64_t seen_room, n_seen;
} scan;

/* -- the table --------------------------------------------------------------------------------- */

static mc_status no_memory(const scan *s) {
    return mci_h5_core->fail(MC_ENOMEM, "%s: out of memory while listing it", s->label);
}

/* Makes room for item n of an array of `size`-byte items. */
static int grow(void *array, int64_t *room, int64_t n, size_t size) {
    if (n < *room) return 1;
    int64_t more = n < 64 ? 64 : n * 2;
    void *old, *bigger;
    memcpy(&old, array, sizeof old);
    bigger = realloc(old, (size_t)more * size);
    if (!bigger) return 0;
    memcpy(array, &bigger, sizeof bigger);
    *room = more;
    return 1;
}

/* n bytes and a NUL into the table's chars; *at is their position. */
static mc_status add_chars(scan *s, const char *text, size_t n, int64_t *at) {
    mci_h5_table *t = s->table;
    if (t->n_chars + (int64_t)n + 1 > MCI_H5_MAX_CHARS)
        return mci_h5_core->fail(MC_EFORMAT, "%s: more than %d bytes of names and attributes",
                                 s->label, MCI_H5_MAX_CHARS);
    if (!grow(&t->chars, &s->chars_room, t->n_chars + (int64_t)n, 1)) return no_memory(s);
    memcpy(t->chars + t->n_chars, text, n);
    t->chars[t->n_chars + (int64_t)n] = '\0';
    *at = t->n_chars;
    t->n_chars += (int64_t)n + 1;
    return MC_OK;
}

static mc_status add_row(scan *s, int kind, mci_h5_row **row) {
    mci_h5_table *t = s->table;
    if (!grow(&t->rows, &s->rows_room, t->n_rows, sizeof *t->rows)) return no_memory(s);
    int64_t path = 0;
    mc_status status = add_chars(s, s->path, strlen(s->path), &path);
    if (status != MC_OK) return status;
    *row = &t->rows[t->n_rows++];
    memset(*row, 0, sizeof **row);
    (*row)->entry.kind = kind;
    (*row)->entry.dtype = -1;
    (*row)->entry.offset = -1;
    (*row)->entry.first_attr = (int32_t)t->n_attrs;
    (*row)->path = path;
    (*row)->problem = -1;
    return MC_OK;
}

static size_t seen_slot(const scan *s, int64_t address) {
    size_t mask = (size_t)s->seen_room - 1;
    size_t slot = (size_t)((uint64_t)address * UINT64_C(0x9E3779B97F4A7C15) >> 20) & mask;
    while (s->seen[slot] != 0 && s->table->rows[s->seen[slot] - 1].entry.object != address)
        slot = (slot + 1) & mask;
    return slot;
}

/* The row of a dataset already listed, or -1. */
static int64_t seen_before(const scan *s, int64_t address) {
    return s->seen_room ? s->seen[seen_slot(s, address)] - 1 : -1;
}

/* Remembers the row added last. */
static mc_status remember(scan *s) {
    if (s->n_seen * 2 >= s->seen_room) {
        int64_t room = s->seen_room, *old = s->seen;
        int64_t *bigger = calloc((size_t)(room ? room * 2 : 64), sizeof *bigger);
        if (!bigger) return no_memory(s);
        s->seen = bigger;
        s->seen_room = room ? room * 2 : 64;
        for (int64_t i = 0; i < room; i++) {
            if (old[i] != 0)
                s->seen[seen_slot(s, s->table->rows[old[i] - 1].entry.object)] = old[i];
        }
        free(old);
    }
    int64_t row = s->table->n_rows - 1;
    s->seen[seen_slot(s, s->table->rows[row].entry.object)] = row + 1;
    s->n_seen++;
    return MC_OK;
}

/* -- attributes -------------------------------------------------------------------------------- */

/* Reads a fixed-size attribute of one element; *kept = 0 when it is of no kind we have. */
static mc_status read_attr(scan *s, hid_t attr, hid_t type, mci_h5_attr_row *row, int *kept) {
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
        if (!text) return no_memory(s);
        ok = mci_h5_ok(H5Aread(attr, type, text));
        size_t n = strnlen(text, size);
        if (H5Tget_strpad(type) != H5T_STR_NULLTERM) {
            char pad = H5Tget_strpad(type) == H5T_STR_SPACEPAD ? ' ' : '\0';
            for (n = size; n > 0 && text[n - 1] == pad;) n--;
        }
        row->attr.kind = MC_H5_STRING;
        row->attr.size = (int32_t)n;
        mc_status status = ok ? add_chars(s, text, n, &row->text) : MC_OK;
        free(text);
        if (status != MC_OK) return status;
    } else {
        *kept = 0;
    }
    return ok ? MC_OK
              : mci_h5_fail(MC_EFORMAT, "%s: cannot read an attribute of '%s'", s->label, s->path);
}

/* The attribute `name`, when it is of one element, of fixed size and within bounds; others are
 * passed over unread. */
static mc_status scan_attr(scan *s, hid_t object, const char *name) {
    mci_h5_table *t = s->table;
    hid_t attr = H5Aopen(object, name, H5P_DEFAULT);
    if (attr < 0)
        return mci_h5_fail(MC_EFORMAT, "%s: cannot open an attribute of '%s'", s->label, s->path);
    hid_t type = H5Aget_type(attr), space = H5Aget_space(attr);
    size_t length = strlen(name);
    mc_status status = MC_OK;
    int kept = type >= 0 && space >= 0 && length > 0 && length <= MCI_H5_MAX_ATTR_NAME &&
               H5Sget_simple_extent_npoints(space) == 1 &&
               H5Tget_size(type) <= MCI_H5_MAX_ATTR_BYTES;
    mci_h5_attr_row row = {.name = 0, .text = -1};
    if (kept) status = read_attr(s, attr, type, &row, &kept);
    if (status == MC_OK && kept) {
        if (!grow(&t->attrs, &s->attrs_room, t->n_attrs, sizeof *t->attrs) ||
            t->n_attrs == INT32_MAX)
            status = no_memory(s);
        else
            status = add_chars(s, name, length, &row.name);
        if (status == MC_OK) t->attrs[t->n_attrs++] = row;
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    H5Aclose(attr);
    return status;
}

typedef struct attr_walk {
    scan *s;
    mc_status status;
} attr_walk;

/* Of H5Aiterate2. Nonzero stops. */
static herr_t visit_attr(hid_t object, const char *name, const H5A_info_t *info, void *data) {
    (void)info;
    attr_walk *walk = data;
    walk->status = scan_attr(walk->s, object, name);
    return walk->status != MC_OK;
}

/* The attributes of the row added last. */
static mc_status scan_attrs(scan *s, hid_t object, const mci_h5_info *info) {
    if (info->attrs > MCI_H5_MAX_ATTRS)
        return mci_h5_core->fail(MC_EFORMAT, "%s: '%s' has %" PRId64 " attributes, over %d",
                                 s->label, s->path, info->attrs, MCI_H5_MAX_ATTRS);
    int64_t row = s->table->n_rows - 1, first = s->table->n_attrs;
    attr_walk walk = {.s = s, .status = MC_OK};
    /* one walk: opening them by their number would sort them all for each */
    if (info->attrs > 0 &&
        H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_attr, &walk) < 0)
        return mci_h5_fail(MC_EFORMAT, "%s: cannot list the attributes of '%s'", s->label, s->path);
    if (walk.status != MC_OK) return walk.status;
    s->table->rows[row].entry.n_attrs = (int32_t)(s->table->n_attrs - first);
    return MC_OK;
}

/* -- datasets ---------------------------------------------------------------------------------- */

/* What is wrong with a dataset, into its row; the file is fine otherwise. */
static mc_status set_problem(scan *s, mci_h5_row *row, const char *why) {
    if (row->problem >= 0) return MC_OK;
    row->entry.offset = -1;
    row->entry.decode = 0;
    return add_chars(s, why, strlen(why), &row->problem);
}

/* 1 when it is a view of this file's own datasets, 0 when it is none, -1 after a failure. */
static int is_view(scan *s, hid_t props, mc_status *status) {
    *status = MC_OK;
    if (H5Pget_layout(props) != H5D_VIRTUAL) return 0;
    size_t maps = 0;
    char source[2];
    if (!mci_h5_ok(H5Pget_virtual_count(props, &maps))) maps = 0;
    for (size_t i = 0; i < maps; i++) {
        if (H5Pget_virtual_filename(props, i, source, sizeof source) == 1 && source[0] == '.')
            continue;
        *status =
            mci_h5_core->fail(MC_EFORMAT, "%s: '%s' is a view of another file", s->label, s->path);
        return -1;
    }
    return 1;
}

/* Shape and bytes; NULL, or what is wrong with them. */
static const char *read_shape(mc_h5_entry *e, hid_t space, size_t type_size) {
    int ndim = H5Sget_simple_extent_ndims(space);
    if (H5Sget_simple_extent_type(space) == H5S_NULL) return "it has no elements at all";
    if (ndim < 0 || ndim > MC_MAX_DIMS) return "it has more than 8 axes";
    hsize_t sizes[MC_MAX_DIMS] = {0};
    if (ndim > 0 && H5Sget_simple_extent_dims(space, sizes, NULL) < 0) return "its shape is lost";
    int64_t bytes = (int64_t)type_size, room = (int64_t)type_size;
    e->ndim = ndim;
    for (int i = 0; i < ndim; i++) {
        e->shape[i] = (int64_t)sizes[i];
        /* sizes beside a zero must fit too: strides are made of them */
        if (sizes[i] > INT64_MAX || __builtin_mul_overflow(bytes, e->shape[i], &bytes) ||
            (sizes[i] > 0 && __builtin_mul_overflow(room, e->shape[i], &room)))
            return "its size overflows";
    }
    e->bytes = bytes;
    return NULL;
}

/* Where the bytes are, or decode = 1; NULL, or why neither can be. No props: it is contiguous. */
static const char *find_bytes(scan *s, mc_h5_entry *e, hid_t set, hid_t props, size_t type_size,
                              int swapped, char *why, size_t size) {
    if (e->bytes == 0) return NULL;
    H5D_layout_t layout = props < 0 ? H5D_CONTIGUOUS : H5Pget_layout(props);
    if (layout == H5D_CHUNKED) {
        const char *problem = mci_h5_chunk_problem(props, type_size, s->file_bytes, why, size);
        if (problem) return problem;
    } else if (layout != H5D_CONTIGUOUS && layout != H5D_COMPACT) {
        return "its layout is unknown";
    }
    haddr_t at = HADDR_UNDEF;
    hsize_t stored = H5Dget_storage_size(set);
    if (layout == H5D_CONTIGUOUS && s->base == 0 && stored > 0) {
        at = H5Dget_offset(set);
        mci_h5_forget();
        if (stored != (hsize_t)e->bytes || at == HADDR_UNDEF || at > (haddr_t)s->file_bytes ||
            e->bytes > s->file_bytes - (int64_t)at)
            return "its bytes are not all in the file";
        e->offset = (int64_t)at;
        if (!swapped) return NULL;
    }
    /* chunks, compact data, another byte order, never written (reads as its fill value) */
    if (e->bytes > s->decoded_left) {
        snprintf(why, size, "it decodes to %" PRId64 " bytes, too many for a file of %" PRId64,
                 e->bytes, s->file_bytes);
        return why;
    }
    s->decoded_left -= e->bytes;
    e->offset = -1;
    e->decode = 1;
    return NULL;
}

/* The dtype that the HDF5 type and the attribute `dtype` together say; -1 with the reason. */
static int settle_dtype(const scan *s, const mc_h5_entry *e, int dtype, char *why, size_t size) {
    const char *said = NULL;
    for (int32_t i = 0; i < e->n_attrs; i++) {
        const mci_h5_attr_row *row = &s->table->attrs[e->first_attr + i];
        if (row->attr.kind == MC_H5_STRING && strcmp(s->table->chars + row->name, "dtype") == 0)
            said = s->table->chars + row->text;
    }
    if (!said || strcmp(said, mci_h5_core->dtype_name(dtype)) == 0) return dtype;
    for (int i = MC_FLOAT8_E4M3FN; dtype == MC_UINT8 && i < MC_DTYPE_COUNT; i++) {
        if (strcmp(said, mci_h5_core->dtype_name(i)) == 0) return i;
    }
    snprintf(why, size, "its attribute dtype says '%.40s', its HDF5 type is %s", said,
             mci_h5_core->dtype_name(dtype));
    return -1;
}

static mc_status fill_dataset(scan *s, hid_t set, hid_t props, const mci_h5_info *info) {
    hid_t type = H5Dget_type(set), space = H5Dget_space(set);
    mci_h5_row *row = NULL;
    mc_status status = MC_OK;
    if (!mci_h5_ok(type) || !mci_h5_ok(space))
        status = mci_h5_fail(MC_EFORMAT, "%s: cannot read what '%s' is", s->label, s->path);
    if (status == MC_OK) status = add_row(s, MC_H5_DATASET, &row);
    if (status == MC_OK) {
        row->entry.object = info->address;
        if (info->links > 1) status = remember(s);
    }
    if (status == MC_OK) status = scan_attrs(s, set, info);
    if (status == MC_OK) {
        mc_h5_entry *e = &row->entry;
        char why[192];
        int swapped = 0, dtype = mci_h5_dtype(type, &swapped, why, sizeof why);
        size_t type_size = H5Tget_size(type);
        const char *problem = read_shape(e, space, type_size);
        if (!problem && dtype >= 0) dtype = settle_dtype(s, e, dtype, why, sizeof why);
        if (!problem && dtype < 0) problem = why;
        if (!problem) problem = find_bytes(s, e, set, props, type_size, swapped, why, sizeof why);
        if (!problem) e->dtype = dtype;
        if (problem) status = set_problem(s, row, problem);
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return status;
}

static mc_status scan_dataset(scan *s, hid_t set, const mci_h5_info *info) {
    mci_h5_row *row;
    mc_status status = MC_OK;
    int64_t first = info->links > 1 ? seen_before(s, info->address) : -1;
    if (first >= 0) {
        status = add_row(s, MC_H5_DATASET, &row);
        if (status != MC_OK) return status;
        row->entry = s->table->rows[first].entry;
        row->problem = s->table->rows[first].problem;
        return MC_OK;
    }
    /* Only contiguous bytes of this very file have an offset: views, chunks and external storage
     * have none. The property list, which tells those apart, costs more than all else here. */
    if (s->base == 0 && H5Dget_offset(set) != HADDR_UNDEF)
        return fill_dataset(s, set, H5I_INVALID_HID, info);
    mci_h5_forget();
    hid_t props = H5Dget_create_plist(set);
    if (props < 0)
        return mci_h5_fail(MC_EFORMAT, "%s: cannot read what '%s' is", s->label, s->path);
    /* before anything that could make libhdf5 open another file */
    int view = is_view(s, props, &status);
    if (view == 0) {
        if (H5Pget_external_count(props) != 0)
            status = mci_h5_core->fail(MC_EFORMAT, "%s: '%s' keeps its bytes in another file",
                                       s->label, s->path);
        else
            status = fill_dataset(s, set, props, info);
    }
    H5Pclose(props);
    return status;
}

/* -- the walk ---------------------------------------------------------------------------------- */

typedef struct child {
    int64_t name; /* position in `children.chars` */
    H5L_type_t type;
} child;

typedef struct children {
    child *list;
    char *chars;
    int64_t n, list_room, n_chars, chars_room, limit;
    int no_memory;
} children;

/* Of H5Literate: notes one link. Nonzero stops. */
#if H5_VERSION_GE(1, 12, 0)
#define iterate_links H5Literate2
typedef H5L_info2_t link_info;
#else
#define iterate_links H5Literate
typedef H5L_info_t link_info;
#endif
static herr_t note_link(hid_t group, const char *name, const link_info *info, void *data) {
    (void)group;
    children *c = data;
    int64_t length = (int64_t)strlen(name) + 1;
    if (c->n >= c->limit) return 1;
    if (!grow(&c->list, &c->list_room, c->n, sizeof *c->list) ||
        !grow(&c->chars, &c->chars_room, c->n_chars + length, 1)) {
        c->no_memory = 1;
        return 1;
    }
    memcpy(c->chars + c->n_chars, name, (size_t)length);
    c->list[c->n++] = (child){.name = c->n_chars, .type = info->type};
    c->n_chars += length;
    return 0;
}

static int by_name(const void *a, const void *b, void *chars) {
    return strcmp((char *)chars + ((const child *)a)->name,
                  (char *)chars + ((const child *)b)->name);
}

/* The names in a group, sorted. */
static mc_status list_children(scan *s, hid_t group, children *c) {
    c->limit = MCI_H5_MAX_OBJECTS - s->links;
    herr_t stopped = iterate_links(group, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, note_link, c);
    if (stopped < 0)
        return mci_h5_fail(MC_EFORMAT, "%s: cannot list group '%s'", s->label, s->path);
    if (c->no_memory) return no_memory(s);
    if (stopped > 0)
        return mci_h5_core->fail(MC_EFORMAT, "%s: more than %d objects", s->label,
                                 MCI_H5_MAX_OBJECTS);
    s->links += c->n;
    if (c->n > 0) qsort_r(c->list, (size_t)c->n, sizeof *c->list, by_name, c->chars);
    return MC_OK;
}

static mc_status scan_group(scan *s, hid_t group, const mci_h5_info *info, int depth);

/* One hard link; s->path is its path. */
static mc_status scan_object(scan *s, hid_t group, const char *name, int depth) {
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    mci_h5_info info;
    mc_status status = MC_OK;
    if (object < 0) return mci_h5_fail(MC_EFORMAT, "%s: cannot open '%s'", s->label, s->path);
    if (mci_h5_object_info(object, &info) != 0)
        status = mci_h5_fail(MC_EFORMAT, "%s: cannot look at '%s'", s->label, s->path);
    else if (info.type == H5O_TYPE_GROUP)
        status = scan_group(s, object, &info, depth);
    else if (info.type == H5O_TYPE_DATASET)
        status = scan_dataset(s, object, &info);
    H5Oclose(object);
    return status;
}

static mc_status scan_link(scan *s, hid_t group, const char *name, H5L_type_t type, int depth) {
    size_t length = strlen(s->path), more = strlen(name);
    if (length == 1) length = 0; /* the root's "/" */
    if (more == 0 || strchr(name, '/') || strcmp(name, ".") == 0)
        return mci_h5_core->fail(MC_EFORMAT, "%s: '%s' holds the name '%.80s', which is no name",
                                 s->label, s->path, name);
    if (length + 1 + more >= sizeof s->path)
        return mci_h5_core->fail(MC_EFORMAT, "%s: a path is over %d bytes long", s->label,
                                 MCI_H5_MAX_PATH - 1);
    if (type == H5L_TYPE_SOFT) return MC_OK;
    s->path[length] = '/';
    memcpy(s->path + length + 1, name, more + 1);
    mc_status status;
    if (type == H5L_TYPE_HARD)
        status = scan_object(s, group, name, depth);
    else
        status = mci_h5_core->fail(
            MC_EFORMAT, "%s: '%s' is %s", s->label, s->path,
            type == H5L_TYPE_EXTERNAL ? "a link into another file" : "a link of an unknown kind");
    s->path[length > 0 ? length : 1] = '\0';
    return status;
}

/* The group at s->path, `depth` parts below the root, and all in it. */
static mc_status scan_group(scan *s, hid_t group, const mci_h5_info *info, int depth) {
    for (int i = 0; i < depth; i++) {
        if (s->above[i] == info->address)
            return mci_h5_core->fail(MC_EFORMAT, "%s: group '%s' contains itself", s->label,
                                     s->path);
    }
    if (info->links > 1)
        return mci_h5_core->fail(MC_EFORMAT, "%s: group '%s' has %u links", s->label, s->path,
                                 info->links);
    s->above[depth] = info->address;
    mci_h5_row *row;
    children c = {.n = 0};
    mc_status status = add_row(s, MC_H5_GROUP, &row);
    if (status == MC_OK) {
        row->entry.object = info->address;
        status = scan_attrs(s, group, info);
    }
    if (status == MC_OK) status = list_children(s, group, &c);
    if (status == MC_OK && c.n > 0 && depth == MCI_H5_MAX_DEPTH)
        status = mci_h5_core->fail(MC_EFORMAT, "%s: '%s' lies more than %d groups deep", s->label,
                                   s->path, MCI_H5_MAX_DEPTH);
    for (int64_t i = 0; i < c.n && status == MC_OK; i++)
        status = scan_link(s, group, c.chars + c.list[i].name, c.list[i].type, depth + 1);
    free(c.list);
    free(c.chars);
    return status;
}

static int by_offset(const void *a, const void *b, void *rows) {
    const mci_h5_row *x = (mci_h5_row *)rows + *(const int64_t *)a;
    const mci_h5_row *y = (mci_h5_row *)rows + *(const int64_t *)b;
    if (x->entry.offset != y->entry.offset) return x->entry.offset < y->entry.offset ? -1 : 1;
    return *(const int64_t *)a < *(const int64_t *)b ? -1 : 1;
}

/* Two datasets must not share bytes, unless they are one. */
static mc_status check_overlaps(scan *s) {
    mci_h5_table *t = s->table;
    int64_t *order = malloc((size_t)t->n_rows * sizeof *order), n = 0;
    if (!order) return no_memory(s);
    for (int64_t i = 0; i < t->n_rows; i++) {
        if (t->rows[i].entry.offset >= 0) order[n++] = i;
    }
    if (n > 0) qsort_r(order, (size_t)n, sizeof *order, by_offset, t->rows);
    mc_status status = MC_OK;
    for (int64_t i = 1; i < n && status == MC_OK; i++) {
        const mci_h5_row *a = &t->rows[order[i - 1]], *b = &t->rows[order[i]];
        if (a->entry.object != b->entry.object &&
            a->entry.offset + a->entry.bytes > b->entry.offset)
            status = mci_h5_core->fail(MC_EFORMAT, "%s: '%s' and '%s' share bytes", s->label,
                                       t->chars + a->path, t->chars + b->path);
    }
    free(order);
    return status;
}

static mc_status scan_file(scan *s, const char *name) {
    hid_t access = mci_h5_access(0), file = H5I_INVALID_HID, root = H5I_INVALID_HID;
    mci_h5_info info;
    mc_status status = MC_OK;
    if (mci_h5_ok(access)) file = H5Fopen(name, H5F_ACC_RDONLY, access);
    if (mci_h5_ok(file)) root = H5Gopen2(file, "/", H5P_DEFAULT);
    if (!mci_h5_ok(root) || mci_h5_object_info(root, &info) != 0)
        status = mci_h5_fail(MC_EFORMAT, "%s: cannot open it", s->label);
    s->path[0] = '/';
    if (status == MC_OK) status = scan_group(s, root, &info, 0);
    if (status == MC_OK) status = check_overlaps(s);
    if (root >= 0) H5Gclose(root);
    if (file >= 0) H5Fclose(file);
    if (access >= 0) H5Pclose(access);
    return status;
}

mc_status mci_h5_scan(mci_h5_table *table, const char *name, const char *label, int64_t file_bytes,
                      int64_t base) {
    memset(table, 0, sizeof *table);
    scan *s = calloc(1, sizeof *s);
    if (!s) return mci_h5_core->fail(MC_ENOMEM, "%s: out of memory while listing it", label);
    s->table = table;
    s->label = label;
    s->file_bytes = file_bytes;
    s->base = base;
    s->decoded_left = file_bytes * MCI_H5_EXPANSION + MCI_H5_EXPANSION_BASE;
    mci_h5_enter();
    mc_status status = scan_file(s, name);
    mci_h5_leave();
    free(s->seen);
    free(s);
    if (status != MC_OK) {
        free(table->rows);
        free(table->attrs);
        free(table->chars);
        memset(table, 0, sizeof *table);
    }
    return status;
}
