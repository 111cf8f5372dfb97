/* h5write.c: the structure of a file being written: groups, datasets, links, attributes.
 *
 * Datasets are contiguous, allocated at once and never filled, so each has its place in the file
 * from the start and its bytes can be written past libhdf5. No times are kept anywhere: equal
 * content gives equal files. The file stays open, and so marked as open for write, until close.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "h5room.h"

struct mci_h5_out {
    hid_t file;
    hid_t group_props, dataset_props, link_props, attr_props;
    hid_t parent; /* the open group `parent_path`, kept for the next object in it; or invalid */
    char parent_path[MCI_H5_MAX_PATH];
    char *label;
};

/* -- open and close ---------------------------------------------------------------------------- */

/* Closes everything that is open; 0, or -1 when any of it failed. */
static int close_all(mci_h5_out *o) {
    int ok = 1;
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
    return o->group_props >= 0 && o->dataset_props >= 0 && o->link_props >= 0 &&
           o->attr_props >= 0 && mci_h5_ok(H5Pset_obj_track_times(o->group_props, 0)) &&
           mci_h5_ok(H5Pset_obj_track_times(o->dataset_props, 0)) &&
           mci_h5_ok(H5Pset_layout(o->dataset_props, H5D_CONTIGUOUS)) &&
           mci_h5_ok(H5Pset_alloc_time(o->dataset_props, H5D_ALLOC_TIME_EARLY)) &&
           mci_h5_ok(H5Pset_fill_time(o->dataset_props, H5D_FILL_TIME_NEVER)) &&
           mci_h5_ok(H5Pset_char_encoding(o->link_props, H5T_CSET_UTF8)) &&
           mci_h5_ok(H5Pset_char_encoding(o->attr_props, H5T_CSET_UTF8));
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
    hid_t access = mci_h5_access(1), file_props = H5Pcreate(H5P_FILE_CREATE);
    if (access >= 0 && file_props >= 0 && make_props(o) &&
        mci_h5_ok(H5Pset_obj_track_times(file_props, 0)))
        o->file = H5Fcreate(name, H5F_ACC_TRUNC, file_props, access);
    mc_status status = MC_OK;
    if (!mci_h5_ok(o->file)) status = mci_h5_fail(MC_EIO, "%s: cannot create the HDF5 file", label);
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

mc_status mci_h5_flush(mci_h5_out *o) {
    mci_h5_enter();
    mc_status status = MC_OK;
    if (H5Fflush(o->file, H5F_SCOPE_GLOBAL) < 0)
        status = mci_h5_fail(MC_EIO, "%s: cannot write the file's structure", o->label);
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
    /* libhdf5 writes what it holds when it closes, and builds of it with assertions abort when that
     * fails, as it does on a full disk. So memory takes the place of the file. */
    void *descriptor = NULL;
    int memory = memfd_create("mascon", MFD_CLOEXEC);
    if (memory >= 0 && H5Fget_vfd_handle(o->file, H5P_DEFAULT, &descriptor) >= 0)
        dup3(memory, *(int *)descriptor, O_CLOEXEC);
    if (memory >= 0) close(memory);
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

/* The parent of a new object at `path`, where nothing may be yet. */
static mc_status open_parent_of_new(mci_h5_out *o, const char *path, const char **leaf) {
    mc_status status = open_parent(o, path, leaf);
    if (status != MC_OK) return status;
    htri_t there = H5Lexists(o->parent, *leaf, H5P_DEFAULT);
    if (there < 0) return mci_h5_fail(MC_EIO, "%s: cannot look up '%s'", o->label, path);
    if (there > 0) return mci_h5_core->fail(MC_EINVAL, "%s: '%s' is there already", o->label, path);
    return MC_OK;
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

/* A fixed-size text attribute: n bytes, padded with NUL. HDF5 has no type of size 0, so "" is one
 * NUL, which readers strip. */
static int put_text(mci_h5_out *o, hid_t object, const char *name, const char *text, int64_t n) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR), attr = H5I_INVALID_HID;
    int ok = type >= 0 && space >= 0 && mci_h5_ok(H5Tset_size(type, n > 0 ? (size_t)n : 1)) &&
             mci_h5_ok(H5Tset_strpad(type, H5T_STR_NULLPAD)) &&
             mci_h5_ok(H5Tset_cset(type, H5T_CSET_UTF8));
    if (ok) attr = H5Acreate2(object, name, type, space, o->attr_props, H5P_DEFAULT);
    ok = ok && mci_h5_ok(attr) && mci_h5_ok(H5Awrite(attr, type, n > 0 ? text : ""));
    if (attr >= 0) ok &= mci_h5_ok(H5Aclose(attr));
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return ok;
}

static int put_number(mci_h5_out *o, hid_t object, const char *name, hid_t type,
                      const void *value) {
    hid_t space = H5Screate(H5S_SCALAR), attr = H5I_INVALID_HID;
    if (mci_h5_ok(space)) attr = H5Acreate2(object, name, type, space, o->attr_props, H5P_DEFAULT);
    int ok = mci_h5_ok(attr) && mci_h5_ok(H5Awrite(attr, type, value));
    if (attr >= 0) ok &= mci_h5_ok(H5Aclose(attr));
    if (space >= 0) H5Sclose(space);
    return ok;
}

static mc_status dataset(mci_h5_out *o, const char *path, int dtype, int ndim, const int64_t *shape,
                         int64_t *offset) {
    static const char zeros[] = "00000000000000000000000000000000";
    const char *leaf, *name = mci_h5_core->dtype_name(dtype);
    mc_status status = open_parent_of_new(o, path, &leaf);
    if (status != MC_OK) return status;
    hsize_t sizes[MC_MAX_DIMS] = {0}, numel = 1;
    for (int i = 0; i < ndim; i++) numel *= sizes[i] = (hsize_t)shape[i];
    hid_t space = ndim == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(ndim, sizes, NULL);
    hid_t set = H5I_INVALID_HID;
    if (space >= 0)
        set = H5Dcreate2(o->parent, leaf, mci_h5_type(dtype), space, o->link_props,
                         o->dataset_props, H5P_DEFAULT);
    int ok = mci_h5_ok(set) && put_text(o, set, "dtype", name, (int64_t)strlen(name)) &&
             put_text(o, set, "digest", zeros, (int64_t)sizeof zeros - 1);
    if (ok) {
        haddr_t at = numel > 0 ? H5Dget_offset(set) : HADDR_UNDEF;
        *offset = at == HADDR_UNDEF ? -1 : (int64_t)at;
        ok = numel == 0 || at != HADDR_UNDEF;
    }
    if (!ok) status = mci_h5_fail(MC_EIO, "%s: cannot make dataset '%s'", o->label, path);
    if (set >= 0 && !mci_h5_ok(H5Dclose(set)) && status == MC_OK)
        status = mci_h5_fail(MC_EIO, "%s: cannot close dataset '%s'", o->label, path);
    if (space >= 0) H5Sclose(space);
    return status;
}

mc_status mci_h5_dataset(mci_h5_out *o, const char *path, int dtype, int ndim, const int64_t *shape,
                         int64_t *offset) {
    mci_h5_enter();
    mc_status status = dataset(o, path, dtype, ndim, shape, offset);
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
    status = open_parent_of_new(o, path, &leaf);
    if (status != MC_OK) return status;
    if (H5Lcreate_hard(o->file, target, o->parent, leaf, o->link_props, H5P_DEFAULT) < 0)
        return mci_h5_fail(MC_EIO, "%s: cannot link '%s' to '%s'", o->label, path, target);
    return MC_OK;
}

mc_status mci_h5_link(mci_h5_out *o, const char *path, const char *target) {
    mci_h5_enter();
    mc_status status = make_link(o, path, target);
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
                ok = put_number(o, object, attr->name, H5T_STD_I64LE, &attr->i);
                break;
            case MC_H5_DOUBLE:
                ok = put_number(o, object, attr->name, H5T_IEEE_F64LE, &attr->d);
                break;
            case MC_H5_BOOL:
                ok = put_number(o, object, attr->name, mci_h5_type(MC_BOOL), &truth);
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
    mc_status status = MC_OK;
    /* not H5Aopen_by_name: writing to what it opens fails in 1.10.8 */
    hid_t set = H5Dopen2(o->file, path, H5P_DEFAULT), attr = H5I_INVALID_HID;
    if (mci_h5_ok(set)) attr = H5Aopen(set, "digest", H5P_DEFAULT);
    hid_t type = mci_h5_ok(attr) ? H5Aget_type(attr) : H5I_INVALID_HID;
    int ok = mci_h5_ok(type) && mci_h5_ok(H5Awrite(attr, type, digest));
    if (type >= 0) H5Tclose(type);
    if (attr >= 0) ok &= mci_h5_ok(H5Aclose(attr));
    if (set >= 0) ok &= mci_h5_ok(H5Dclose(set));
    if (!ok) status = mci_h5_fail(MC_EIO, "%s: cannot write the digest of '%s'", o->label, path);
    mci_h5_leave();
    return status;
}
