/* h5scan.c: walks the tree of an open HDF5 file.
 *
 * Follows hard links only, one part of a path at a time. Rules of both profiles: h5rules.c; bounds:
 * h5.h. What comes out is in the order of the paths, part by part, the root first.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "h5walk.h"

typedef struct child {
    int64_t name; /* position in `children.chars` */
    H5L_type_t type;
} child;

typedef struct children {
    child *list;
    char *chars;
    int64_t n, list_room, n_chars, chars_room, limit, chars_limit;
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
    if (c->n >= c->limit || c->n_chars + length > c->chars_limit) return 1;
    if (!mci_h5_grow(&c->list, &c->list_room, c->n, sizeof *c->list) ||
        !mci_h5_grow(&c->chars, &c->chars_room, c->n_chars + length, 1)) {
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
static mc_status list_children(mci_h5_walk *s, hid_t group, children *c) {
    c->limit = MCI_H5_MAX_OBJECTS - s->links;
    c->chars_limit = s->memory_left;
    herr_t stopped = iterate_links(group, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, note_link, c);
    if (stopped < 0) return mci_h5_fail(MC_EFORMAT, "cannot list group '%s'", s->path);
    if (c->no_memory) return mci_h5_no_memory();
    if (stopped > 0)
        return mci_h5_core->fail(MC_EFORMAT, "more than %d objects, or more than may be listed",
                                 MCI_H5_MAX_OBJECTS);
    s->links += c->n;
    if (c->n > 0) qsort_r(c->list, (size_t)c->n, sizeof *c->list, by_name, c->chars);
    return MC_OK;
}

static mc_status scan_group(mci_h5_walk *s, hid_t group, const mci_h5_info *info, int depth);

/* One hard link; s->path is its path. */
static mc_status scan_object(mci_h5_walk *s, hid_t group, const char *name, int depth) {
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    mci_h5_info info;
    mc_status status = MC_OK;
    if (object < 0) return mci_h5_fail(MC_EFORMAT, "cannot open '%s'", s->path);
    if (mci_h5_object_info(object, &info) != 0)
        status = mci_h5_fail(MC_EFORMAT, "cannot look at '%s'", s->path);
    else if (info.type == H5O_TYPE_GROUP)
        status = scan_group(s, object, &info, depth);
    else if (info.type == H5O_TYPE_DATASET)
        status = mci_h5_scan_dataset(s, object, &info);
    else if (mci_h5_judge(s, MCI_RULE_OBJECT_KIND, NULL) == MCI_REFUSE)
        status = MC_EFORMAT;
    H5Oclose(object);
    return status;
}

static mc_status scan_link(mci_h5_walk *s, hid_t group, const char *name, H5L_type_t type,
                           int depth) {
    size_t length = strlen(s->path), more = strlen(name);
    if (length == 1) length = 0; /* the root's "/" */
    if (more == 0 || strchr(name, '/') || strcmp(name, ".") == 0)
        return mci_h5_core->fail(MC_EFORMAT, "'%s' holds the name '%.80s', which is no name",
                                 s->path, name);
    if (length + 1 + more >= sizeof s->path)
        return mci_h5_core->fail(MC_EFORMAT, "a path is over %d bytes long", MCI_H5_MAX_PATH - 1);
    s->path[length] = '/';
    memcpy(s->path + length + 1, name, more + 1);
    mc_status status = MC_OK;
    mci_h5_rule rule = type == H5L_TYPE_HARD       ? MCI_RULE_NONE
                       : type == H5L_TYPE_SOFT     ? MCI_RULE_SOFT_LINK
                       : type == H5L_TYPE_EXTERNAL ? MCI_RULE_EXTERNAL_LINK
                                                   : MCI_RULE_LINK_KIND;
    int verdict = mci_h5_judge(s, rule, NULL);
    if (verdict == MCI_PASS)
        status = scan_object(s, group, name, depth);
    else if (verdict == MCI_REFUSE)
        status = MC_EFORMAT;
    s->path[length > 0 ? length : 1] = '\0';
    return status;
}

/* The group at s->path, `depth` parts below the root, and all in it. */
static mc_status scan_group(mci_h5_walk *s, hid_t group, const mci_h5_info *info, int depth) {
    char detail[96];
    for (int i = 0; i < depth; i++) {
        if (s->above[i] == info->address) {
            mci_h5_judge(s, MCI_RULE_GROUP_LINKS, "it is a group that contains itself");
            return MC_EFORMAT;
        }
    }
    if (info->links > 1) {
        snprintf(detail, sizeof detail, "it is a group and has %u links", info->links);
        mci_h5_judge(s, MCI_RULE_GROUP_LINKS, detail);
        return MC_EFORMAT;
    }
    s->above[depth] = info->address;
    children c = {.n = 0};
    mc_status status = mci_h5_add_row(s, MC_H5_GROUP, info->address);
    if (status == MC_OK) status = mci_h5_scan_attrs(s, group, info);
    if (status == MC_OK) status = list_children(s, group, &c);
    if (status == MC_OK && c.n > 0 && depth == MCI_H5_MAX_DEPTH) {
        snprintf(detail, sizeof detail, "its members lie more than %d groups deep",
                 MCI_H5_MAX_DEPTH);
        mci_h5_judge(s, MCI_RULE_DEPTH, detail);
        status = MC_EFORMAT;
    }
    for (int64_t i = 0; i < c.n && status == MC_OK; i++)
        status = scan_link(s, group, c.chars + c.list[i].name, c.list[i].type, depth + 1);
    free(c.list);
    free(c.chars);
    return status;
}

mc_status mci_h5_scan(mci_h5_walk *s, hid_t file) {
    mci_h5_info info;
    mc_status status = MC_OK;
    hid_t root = H5Gopen2(file, "/", H5P_DEFAULT);
    s->path[0] = '/';
    if (!mci_h5_ok(root) || mci_h5_object_info(root, &info) != 0)
        status = mci_h5_fail(MC_EFORMAT, "cannot open its root");
    if (status == MC_OK) {
        s->own = s->start->version == 3 && s->start->base == 0 && mci_h5_says_mascon(root);
        if (s->start->extended && mci_h5_judge(s, MCI_RULE_EXTENSION, NULL) == MCI_REFUSE)
            status = MC_EFORMAT;
    }
    if (status == MC_OK) status = scan_group(s, root, &info, 0);
    if (status == MC_OK) status = mci_h5_check_overlaps(s);
    if (status == MC_OK) status = mci_h5_check_views(s);
    if (root >= 0) H5Gclose(root);
    return status;
}
