/* h5write.c: the structure of a file being written: groups, datasets, links, views, attributes.
 *
 * Datasets are contiguous, allocated at once and never filled, so each has its place in the file
 * from the start, and the file in memory that libhdf5 works on stays as small as the structure. No
 * times are kept anywhere: equal content gives equal files.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h5room.h"

/* What a view is made over. */
typedef struct source {
    int dtype, ndim;
    hsize_t shape[MC_MAX_DIMS];
} source;

enum { TEXT_TYPES = 64 };

struct mci_h5_out {
    hid_t file;
    hid_t group_props, dataset_props, link_props, attr_props;
    hid_t scalar;                 /* the space of one element */
    hid_t text_types[TEXT_TYPES]; /* of short texts, by their bytes; made when first needed */
    hid_t parent; /* the open group `parent_path`, kept for the next object in it; or invalid */
    char parent_path[MCI_H5_MAX_PATH];
    source selected; /* the source of the last view_select, at `selected_path`; "": none */
    char selected_path[MCI_H5_MAX_PATH];
    char *label;
};

/* -- open and close ---------------------------------------------------------------------------- */

/* Closes everything that is open; 0, or -1 when any of it failed. */
static int close_all(mci_h5_out *o) {
    int ok = 1;
    for (int i = 0; i < TEXT_TYPES; i++) {
        if (o->text_types[i] >= 0) H5Tclose(o->text_types[i]);
    }
    if (o->scalar >= 0) H5Sclose(o->scalar);
    if (o->parent >= 0) ok &= mci_h5_ok(H5Gclose(o->parent));
    if (o->group_props >= 0) ok &= mci_h5_ok(H5Pclose(o->group_props));
    if (o->dataset_props >= 0) ok &= mci_h5_ok(H5Pclose(o->dataset_props));
    if (o->link_props >= 0) ok &= mci_h5_ok(H5Pclose(o->link_props));
    if (o->attr_props >= 0) ok &= mci_h5_ok(H5Pclose(o->attr_props));
    if (o->file >= 0) ok &= mci_h5_ok(H5Fclose(o->file));
    return ok ? 0 : -1;
}

static void out_free(mci_h5_out *o) {
    free(o->label);
    free(o);
}

static int make_props(mci_h5_out *o) {
    o->group_props = H5Pcreate(H5P_GROUP_CREATE);
    o->dataset_props = H5Pcreate(H5P_DATASET_CREATE);
    o->link_props = H5Pcreate(H5P_LINK_CREATE);
    o->attr_props = H5Pcreate(H5P_ATTRIBUTE_CREATE);
    o->scalar = H5Screate(H5S_SCALAR);
    return o->scalar >= 0 && o->group_props >= 0 && o->dataset_props >= 0 && o->link_props >= 0 &&
           o->attr_props >= 0 && mci_h5_ok(H5Pset_obj_track_times(o->group_props, 0)) &&
           mci_h5_ok(H5Pset_obj_track_times(o->dataset_props, 0)) &&
           mci_h5_ok(H5Pset_layout(o->dataset_props, H5D_CONTIGUOUS)) &&
           mci_h5_ok(H5Pset_alloc_time(o->dataset_props, H5D_ALLOC_TIME_EARLY)) &&
           mci_h5_ok(H5Pset_fill_time(o->dataset_props, H5D_FILL_TIME_NEVER)) &&
           mci_h5_ok(H5Pset_char_encoding(o->link_props, H5T_CSET_UTF8)) &&
           mci_h5_ok(H5Pset_char_encoding(o->attr_props, H5T_CSET_UTF8));
}

/* A child of fork would flush at its end what the stream holds, into the file of its parent. */
static int without_buffer(hid_t file) {
    void *stream = NULL;
    return mci_h5_ok(H5Fget_vfd_handle(file, H5P_DEFAULT, &stream)) && stream &&
           setvbuf(*(FILE **)stream, NULL, _IONBF, 0) == 0;
}

static mc_status create(mci_h5_out **out, const char *name, const char *label) {
    mci_h5_out *o = calloc(1, sizeof *o);
    char *copy = strdup(label);
    if (!o || !copy) {
        free(o);
        free(copy);
        return mci_h5_core->fail(MC_ENOMEM, "%s: out of memory", label);
    }
    o->label = copy;
    o->file = o->parent = H5I_INVALID_HID;
    o->group_props = o->dataset_props = o->link_props = o->attr_props = H5I_INVALID_HID;
    o->scalar = H5I_INVALID_HID;
    for (int i = 0; i < TEXT_TYPES; i++) o->text_types[i] = H5I_INVALID_HID;
    hid_t access = mci_h5_access(1), file_props = H5Pcreate(H5P_FILE_CREATE);
    /* the drivers that open by descriptors want a real path for the name, and memory has none */
    if (access >= 0 && file_props >= 0 && make_props(o) && mci_h5_ok(H5Pset_fapl_stdio(access)) &&
        mci_h5_ok(H5Pset_obj_track_times(file_props, 0)))
        o->file = H5Fcreate(name, H5F_ACC_TRUNC, file_props, access);
    mc_status status = MC_OK;
    if (!mci_h5_ok(o->file) || !without_buffer(o->file))
        status = mci_h5_fail(MC_EIO, "%s: cannot create the HDF5 file", label);
    if (file_props >= 0) H5Pclose(file_props);
    if (access >= 0) H5Pclose(access);
    if (status != MC_OK) {
        close_all(o);
        out_free(o);
        return status;
    }
    *out = o;
    return MC_OK;
}

mc_status mci_h5_create(mci_h5_out **out, const char *name, const char *label) {
    mci_h5_enter();
    mc_status status = create(out, name, label);
    mci_h5_leave();
    return status;
}

mc_status mci_h5_size(mci_h5_out *o, int64_t *bytes) {
    mci_h5_enter();
    mc_status status = MC_OK;
    hsize_t size = 0;
    if (H5Fget_filesize(o->file, &size) < 0)
        status = mci_h5_fail(MC_EIO, "%s: cannot tell the file's size", o->label);
    *bytes = (int64_t)size;
    mci_h5_leave();
    return status;
}

mc_status mci_h5_close(mci_h5_out *o) {
    mci_h5_enter();
    mc_status status = MC_OK;
    if (close_all(o) != 0) status = mci_h5_fail(MC_EIO, "%s: cannot close the file", o->label);
    mci_h5_leave();
    out_free(o);
    return status;
}

void mci_h5_abandon(mci_h5_out *o) {
    mci_h5_enter();
    close_all(o);
    mci_h5_leave();
    out_free(o);
}

/* -- paths ------------------------------------------------------------------------------------- */

/* Opens the group at `path`, making the missing ones on the way; "" is the root. */
static mc_status open_group(mci_h5_out *o, const char *path, hid_t *group) {
    hid_t at = H5Gopen2(o->file, "/", H5P_DEFAULT);
    if (at < 0) return mci_h5_fail(MC_EIO, "%s: cannot open the root group", o->label);
    char part[MCI_H5_MAX_PATH];
    const char *p = path;
    while (*p == '/') {
        const char *end = strchr(p + 1, '/');
        size_t length = end ? (size_t)(end - p - 1) : strlen(p + 1);
        memcpy(part, p + 1, length);
        part[length] = '\0';
        p += 1 + length;
        htri_t there = H5Lexists(at, part, H5P_DEFAULT);
        hid_t next = H5I_INVALID_HID;
        if (there > 0)
            next = H5Gopen2(at, part, H5P_DEFAULT);
        else if (there == 0)
            next = H5Gcreate2(at, part, o->link_props, o->group_props, H5P_DEFAULT);
        mci_h5_ok(next);
        H5Gclose(at);
        if (next < 0) {
            int n = (int)(p - path);
            if (there > 0)
                return mci_h5_core->fail(MC_EINVAL, "%s: '%.*s' is a tensor, not a group", o->label,
                                         n, path);
            return mci_h5_fail(MC_EIO, "%s: cannot make group '%.*s'", o->label, n, path);
        }
        at = next;
    }
    *group = at;
    return MC_OK;
}

/* o->parent becomes the group that holds `path`; *leaf is the last part. Most calls come in order,
 * so it is usually open already. */
static mc_status open_parent(mci_h5_out *o, const char *path, const char **leaf) {
    const char *slash = strrchr(path, '/');
    size_t length = (size_t)(slash - path);
    *leaf = slash + 1;
    if (o->parent >= 0 && strlen(o->parent_path) == length &&
        memcmp(o->parent_path, path, length) == 0)
        return MC_OK;
    if (o->parent >= 0) H5Gclose(o->parent);
    o->parent = H5I_INVALID_HID;
    memcpy(o->parent_path, path, length);
    o->parent_path[length] = '\0';
    return open_group(o, o->parent_path, &o->parent);
}

/* After the object `leaf` of the open parent could not be made: why. */
static mc_status not_made(mci_h5_out *o, const char *path, const char *leaf, const char *what) {
    if (H5Lexists(o->parent, leaf, H5P_DEFAULT) <= 0)
        return mci_h5_fail(MC_EIO, "%s: cannot %s '%s'", o->label, what, path);
    mci_h5_forget();
    return mci_h5_core->fail(MC_EINVAL, "%s: '%s' is there already", o->label, path);
}

/* -- objects ----------------------------------------------------------------------------------- */

mc_status mci_h5_group(mci_h5_out *o, const char *path) {
    mci_h5_enter();
    hid_t group = H5I_INVALID_HID;
    mc_status status = open_group(o, strcmp(path, "/") == 0 ? "" : path, &group);
    if (status == MC_OK) H5Gclose(group);
    mci_h5_leave();
    return status;
}

/* The type of a text of n bytes, to be closed where TEXT_TYPES is too small to keep it. */
static hid_t text_type(mci_h5_out *o, int64_t n) {
    if (n < TEXT_TYPES && o->text_types[n] >= 0) return o->text_types[n];
    hid_t type = H5Tcopy(H5T_C_S1);
    if (mci_h5_ok(type) && !(mci_h5_ok(H5Tset_size(type, (size_t)n)) &&
                             mci_h5_ok(H5Tset_strpad(type, H5T_STR_NULLPAD)) &&
                             mci_h5_ok(H5Tset_cset(type, H5T_CSET_UTF8)))) {
        H5Tclose(type);
        type = H5I_INVALID_HID;
    }
    if (n < TEXT_TYPES) o->text_types[n] = type;
    return type;
}

static int put_value(mci_h5_out *o, hid_t object, const char *name, hid_t type, const void *value) {
    hid_t attr = H5Acreate2(object, name, type, o->scalar, o->attr_props, H5P_DEFAULT);
    int ok = mci_h5_ok(attr) && mci_h5_ok(H5Awrite(attr, type, value));
    if (attr >= 0) ok &= mci_h5_ok(H5Aclose(attr));
    return ok;
}

/* A fixed-size text attribute: n bytes, padded with NUL. HDF5 has no type of size 0, so "" is one
 * NUL, which readers strip. */
static int put_text(mci_h5_out *o, hid_t object, const char *name, const char *text, int64_t n) {
    int64_t size = n > 0 ? n : 1;
    hid_t type = text_type(o, size);
    int ok = type >= 0 && put_value(o, object, name, type, n > 0 ? text : "");
    if (size >= TEXT_TYPES && type >= 0) H5Tclose(type);
    return ok;
}

/* As H5Screate_simple; no axes: one element. */
static hid_t space_of(int ndim, const hsize_t *shape) {
    return ndim == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(ndim, shape, NULL);
}

static mc_status dataset(mci_h5_out *o, const char *path, int dtype, int ndim, const int64_t *shape,
                         const char *digest, int64_t *offset) {
    const char *leaf, *name = mci_h5_core->dtype_name(dtype);
    mc_status status = open_parent(o, path, &leaf);
    if (status != MC_OK) return status;
    hsize_t sizes[MC_MAX_DIMS] = {0}, numel = 1;
    for (int i = 0; i < ndim; i++) numel *= sizes[i] = (hsize_t)shape[i];
    hid_t space = space_of(ndim, sizes), set = H5I_INVALID_HID;
    if (mci_h5_ok(space))
        set = H5Dcreate2(o->parent, leaf, mci_h5_type(dtype), space, o->link_props,
                         o->dataset_props, H5P_DEFAULT);
    if (!mci_h5_ok(set)) {
        if (space >= 0) H5Sclose(space);
        return not_made(o, path, leaf, "make dataset");
    }
    int ok = put_text(o, set, "dtype", name, (int64_t)strlen(name)) &&
             put_text(o, set, "digest", digest, (int64_t)strlen(digest));
    if (ok) {
        haddr_t at = numel > 0 ? H5Dget_offset(set) : HADDR_UNDEF;
        *offset = at == HADDR_UNDEF ? -1 : (int64_t)at;
        ok = numel == 0 || at != HADDR_UNDEF;
    }
    if (!ok) status = mci_h5_fail(MC_EIO, "%s: cannot make dataset '%s'", o->label, path);
    if (!mci_h5_ok(H5Dclose(set)) && status == MC_OK)
        status = mci_h5_fail(MC_EIO, "%s: cannot close dataset '%s'", o->label, path);
    H5Sclose(space);
    return status;
}

mc_status mci_h5_dataset(mci_h5_out *o, const char *path, int dtype, int ndim, const int64_t *shape,
                         const char *digest, int64_t *offset) {
    mci_h5_enter();
    mc_status status = dataset(o, path, dtype, ndim, shape, digest, offset);
    mci_h5_leave();
    return status;
}

/* Opens the object at `path`, which must be there. */
static mc_status open_object(mci_h5_out *o, const char *path, hid_t *object, mci_h5_info *info) {
    *object = H5Oopen(o->file, path, H5P_DEFAULT);
    if (*object < 0) {
        H5Eclear2(H5E_DEFAULT);
        return mci_h5_core->fail(MC_EINVAL, "%s: no group or tensor '%s'", o->label, path);
    }
    if (mci_h5_object_info(*object, info) == 0) return MC_OK;
    H5Oclose(*object);
    return mci_h5_fail(MC_EIO, "%s: cannot look at '%s'", o->label, path);
}

static mc_status make_link(mci_h5_out *o, const char *path, const char *target) {
    hid_t object = H5I_INVALID_HID;
    const char *leaf;
    mci_h5_info info;
    mc_status status = open_object(o, target, &object, &info);
    if (status != MC_OK) return status;
    H5Oclose(object);
    /* a second link on a group could close a cycle; readers refuse it */
    if (info.type != H5O_TYPE_DATASET)
        return mci_h5_core->fail(MC_EINVAL, "%s: '%s' is a group; only tensors have second names",
                                 o->label, target);
    status = open_parent(o, path, &leaf);
    if (status != MC_OK) return status;
    if (mci_h5_ok(H5Lcreate_hard(o->file, target, o->parent, leaf, o->link_props, H5P_DEFAULT)))
        return MC_OK;
    return not_made(o, path, leaf, "link");
}

mc_status mci_h5_link(mci_h5_out *o, const char *path, const char *target) {
    mci_h5_enter();
    mc_status status = make_link(o, path, target);
    mci_h5_leave();
    return status;
}

/* -- views ------------------------------------------------------------------------------------- */

/* The dtype that an open dataset's attribute names; -1 when it cannot be read. */
static int dtype_of(hid_t set) {
    char name[64] = "";
    hid_t attr = H5Aopen(set, "dtype", H5P_DEFAULT), type = H5I_INVALID_HID;
    if (mci_h5_ok(attr)) type = H5Aget_type(attr);
    int ok = mci_h5_ok(type) && H5Tget_size(type) < sizeof name &&
             mci_h5_ok(H5Aread(attr, type, name)),
        dtype = -1;
    for (int i = 0; ok && i < MC_DTYPE_COUNT; i++) {
        if (strcmp(name, mci_h5_core->dtype_name(i)) == 0) dtype = i;
    }
    if (type >= 0) H5Tclose(type);
    if (attr >= 0) H5Aclose(attr);
    return dtype;
}

/* A dataset with bytes of its own. */
static mc_status look_at_source(mci_h5_out *o, const char *path, source *s) {
    hid_t set = H5I_INVALID_HID;
    mci_h5_info info;
    mc_status status = open_object(o, path, &set, &info);
    if (status != MC_OK) return status;
    if (info.type != H5O_TYPE_DATASET) {
        H5Oclose(set);
        return mci_h5_core->fail(MC_EINVAL, "%s: '%s' is a group; views are made over tensors",
                                 o->label, path);
    }
    hid_t space = H5Dget_space(set);
    s->ndim = mci_h5_ok(space) ? H5Sget_simple_extent_ndims(space) : -1;
    int ok = s->ndim >= 0 && s->ndim <= MC_MAX_DIMS &&
             mci_h5_ok(H5Sget_simple_extent_dims(space, s->shape, NULL));
    s->dtype = ok ? dtype_of(set) : -1;
    if (s->dtype < 0) {
        status = mci_h5_fail(MC_EIO, "%s: cannot look at '%s'", o->label, path);
    } else if (H5Sget_simple_extent_npoints(space) == 0) {
        status = mci_h5_core->fail(MC_EINVAL, "%s: '%s' has no elements, so it has no views",
                                   o->label, path);
    } else if (H5Dget_offset(set) == HADDR_UNDEF) {
        status = mci_h5_core->fail(
            MC_EINVAL, "%s: '%s' is a view itself; views are made over tensors", o->label, path);
    }
    if (space >= 0) H5Sclose(space);
    H5Oclose(set);
    return status;
}

/* What readers of a view get where a source is missing, in place of silent zeros: NaN where the
 * type has one. */
static int set_fill(hid_t props, int dtype) {
    double f64 = NAN;
    float f32 = NAN;
    uint16_t f16 = 0x7e00, bf16 = 0x7fc0;
    uint8_t f8 = 0xff; /* NaN in each of the three formats */
    const void *value = NULL;
    switch (dtype) {
        case MC_FLOAT64:
            value = &f64;
            break;
        case MC_FLOAT32:
            value = &f32;
            break;
        case MC_FLOAT16:
            value = &f16;
            break;
        case MC_BFLOAT16:
            value = &bf16;
            break;
        case MC_FLOAT8_E4M3FN:
        case MC_FLOAT8_E5M2:
        case MC_FLOAT8_E8M0FNU:
            value = &f8;
            break;
        default:
            return 1;
    }
    return mci_h5_ok(H5Pset_fill_value(props, mci_h5_type(dtype), value));
}

/* Maps the elements selected in `view` to those selected in `from` of the dataset at `path`. The
 * name is absolute: a relative one would be looked up in the root, and give silent zeros. */
static int map_source(hid_t props, hid_t view, const char *path, hid_t from) {
    char name[2 * MCI_H5_MAX_PATH], *p = name;
    for (; *path; path++) {
        *p++ = *path;
        if (*path == '%') *p++ = '%'; /* else it begins a number to be filled in */
    }
    *p = '\0';
    return mci_h5_ok(H5Pset_virtual(props, view, ".", name, from));
}

/* Makes the virtual dataset that `props` describes. Its attribute `kind` tells it from data where
 * another tool has made it real. */
static mc_status make_view(mci_h5_out *o, const char *path, int dtype, hid_t space, hid_t props) {
    const char *leaf, *name = mci_h5_core->dtype_name(dtype);
    mc_status status = open_parent(o, path, &leaf);
    if (status != MC_OK) return status;
    hid_t set =
        H5Dcreate2(o->parent, leaf, mci_h5_type(dtype), space, o->link_props, props, H5P_DEFAULT);
    if (!mci_h5_ok(set)) return not_made(o, path, leaf, "make view");
    int ok = put_text(o, set, "dtype", name, (int64_t)strlen(name)) &&
             put_text(o, set, "kind", "view", 4);
    ok &= mci_h5_ok(H5Dclose(set));
    return ok ? MC_OK : mci_h5_fail(MC_EIO, "%s: cannot make view '%s'", o->label, path);
}

/* The same if all is ok so far, and closes what it took. */
static mc_status end_view(mci_h5_out *o, const char *path, int dtype, int ok, hid_t space,
                          hid_t from, hid_t props) {
    mc_status status = ok ? make_view(o, path, dtype, space, props)
                          : mci_h5_fail(MC_EIO, "%s: cannot describe view '%s'", o->label, path);
    /* a list left open with maps in it crashes the process at its end */
    if (props >= 0) H5Pclose(props);
    if (from >= 0) H5Sclose(from);
    if (space >= 0) H5Sclose(space);
    return status;
}

static hid_t view_props(int dtype) {
    hid_t props = H5Pcreate(H5P_DATASET_CREATE);
    if (mci_h5_ok(props) && mci_h5_ok(H5Pset_obj_track_times(props, 0)) && set_fill(props, dtype))
        return props;
    if (props >= 0) H5Pclose(props);
    return H5I_INVALID_HID;
}

static mc_status view_stack(mci_h5_out *o, const char *path, int64_t n,
                            const char *const *sources) {
    source first, next;
    mc_status status = look_at_source(o, sources[0], &first);
    for (int64_t i = 1; i < n && status == MC_OK; i++) {
        status = look_at_source(o, sources[i], &next);
        if (status == MC_OK &&
            (next.dtype != first.dtype || next.ndim != first.ndim ||
             memcmp(next.shape, first.shape, (size_t)first.ndim * sizeof first.shape[0]) != 0))
            status = mci_h5_core->fail(MC_EINVAL,
                                       "%s: view '%s': '%s' and '%s' differ in dtype or shape",
                                       o->label, path, sources[0], sources[i]);
    }
    if (status != MC_OK) return status;
    if (first.ndim == MC_MAX_DIMS)
        return mci_h5_core->fail(MC_EINVAL, "%s: view '%s' would have %d axes; %d are the limit",
                                 o->label, path, first.ndim + 1, MC_MAX_DIMS);
    hsize_t shape[MC_MAX_DIMS], start[MC_MAX_DIMS] = {0}, count[MC_MAX_DIMS];
    shape[0] = (hsize_t)n;
    memcpy(shape + 1, first.shape, (size_t)first.ndim * sizeof shape[0]);
    memcpy(count, shape, sizeof count);
    count[0] = 1;
    hid_t space = space_of(first.ndim + 1, shape), from = space_of(first.ndim, first.shape);
    hid_t props = view_props(first.dtype);
    int ok = mci_h5_ok(space) && mci_h5_ok(from) && props >= 0;
    for (int64_t i = 0; i < n && ok; i++) {
        start[0] = (hsize_t)i;
        ok = mci_h5_ok(H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL)) &&
             map_source(props, space, sources[i], from);
    }
    ok = ok && mci_h5_ok(H5Sselect_all(space));
    return end_view(o, path, first.dtype, ok, space, from, props);
}

mc_status mci_h5_view_stack(mci_h5_out *o, const char *path, int64_t n,
                            const char *const *sources) {
    mci_h5_enter();
    mc_status status = view_stack(o, path, n, sources);
    mci_h5_leave();
    return status;
}

static mc_status view_select(mci_h5_out *o, const char *path, const char *from_path,
                             int64_t position) {
    mc_status status = MC_OK;
    if (strcmp(from_path, o->selected_path) != 0) { /* mostly they come one after another */
        o->selected_path[0] = '\0';
        status = look_at_source(o, from_path, &o->selected);
        if (status == MC_OK) strcpy(o->selected_path, from_path);
    }
    if (status != MC_OK) return status;
    const source s = o->selected;
    if (s.ndim == 0)
        return mci_h5_core->fail(MC_EINVAL, "%s: view '%s': '%s' has no axis to select from",
                                 o->label, path, from_path);
    if (position < 0 || (hsize_t)position >= s.shape[0])
        return mci_h5_core->fail(MC_EINVAL,
                                 "%s: view '%s': '%s' has %lld positions, there is no %lld "
                                 "(0-based)",
                                 o->label, path, from_path, (long long)s.shape[0],
                                 (long long)position);
    hsize_t start[MC_MAX_DIMS] = {0}, count[MC_MAX_DIMS];
    memcpy(count, s.shape, sizeof count);
    start[0] = (hsize_t)position;
    count[0] = 1;
    hid_t space = space_of(s.ndim - 1, s.shape + 1), from = space_of(s.ndim, s.shape);
    hid_t props = view_props(s.dtype);
    int ok = mci_h5_ok(space) && mci_h5_ok(from) && props >= 0 &&
             mci_h5_ok(H5Sselect_hyperslab(from, H5S_SELECT_SET, start, NULL, count, NULL)) &&
             map_source(props, space, from_path, from);
    return end_view(o, path, s.dtype, ok, space, from, props);
}

mc_status mci_h5_view_select(mci_h5_out *o, const char *path, const char *from, int64_t position) {
    mci_h5_enter();
    mc_status status = view_select(o, path, from, position);
    mci_h5_leave();
    return status;
}

/* -- attributes -------------------------------------------------------------------------------- */

static mc_status put_attr(mci_h5_out *o, const char *path, const mc_h5_attr *attr) {
    hid_t object = H5I_INVALID_HID;
    mci_h5_info info;
    mc_status status = open_object(o, path, &object, &info);
    if (status != MC_OK) return status;
    htri_t there = H5Aexists(object, attr->name);
    int ok = there >= 0;
    if (there > 0) {
        status = mci_h5_core->fail(MC_EINVAL, "%s: '%s' has an attribute '%s' already", o->label,
                                   path, attr->name);
    } else if (info.attrs >= MCI_H5_MAX_ATTRS) {
        status = mci_h5_core->fail(MC_EINVAL, "%s: '%s' has %d attributes; that is the limit",
                                   o->label, path, MCI_H5_MAX_ATTRS);
    } else if (ok) {
        signed char truth = attr->i != 0;
        switch (attr->kind) {
            case MC_H5_INT:
                ok = put_value(o, object, attr->name, H5T_STD_I64LE, &attr->i);
                break;
            case MC_H5_DOUBLE:
                ok = put_value(o, object, attr->name, H5T_IEEE_F64LE, &attr->d);
                break;
            case MC_H5_BOOL:
                ok = put_value(o, object, attr->name, mci_h5_type(MC_BOOL), &truth);
                break;
            default:
                ok = put_text(o, object, attr->name, attr->s, attr->size);
                break;
        }
    }
    if (!ok)
        status = mci_h5_fail(MC_EIO, "%s: cannot write attribute '%s' of '%s'", o->label,
                             attr->name, path);
    if (!mci_h5_ok(H5Oclose(object)) && status == MC_OK)
        status = mci_h5_fail(MC_EIO, "%s: cannot close '%s'", o->label, path);
    return status;
}

mc_status mci_h5_attr(mci_h5_out *o, const char *path, const mc_h5_attr *attr) {
    mci_h5_enter();
    mc_status status = put_attr(o, path, attr);
    mci_h5_leave();
    return status;
}

mc_status mci_h5_digest(mci_h5_out *o, const char *path, const char *digest) {
    mci_h5_enter();
    const char *leaf;
    mc_status status = open_parent(o, path, &leaf);
    hid_t set = H5I_INVALID_HID, attr = H5I_INVALID_HID, type = H5I_INVALID_HID;
    if (status == MC_OK) {
        /* not H5Aopen_by_name: writing to what it opens fails in 1.10.8 */
        set = H5Dopen2(o->parent, leaf, H5P_DEFAULT);
        if (mci_h5_ok(set)) attr = H5Aopen(set, "digest", H5P_DEFAULT);
        if (mci_h5_ok(attr)) type = H5Aget_type(attr);
        int ok = mci_h5_ok(type) && mci_h5_ok(H5Awrite(attr, type, digest));
        if (type >= 0) H5Tclose(type);
        if (attr >= 0) ok &= mci_h5_ok(H5Aclose(attr));
        if (set >= 0) ok &= mci_h5_ok(H5Dclose(set));
        if (!ok)
            status = mci_h5_fail(MC_EIO, "%s: cannot write the digest of '%s'", o->label, path);
    }
    mci_h5_leave();
    return status;
}
