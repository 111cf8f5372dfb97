/* h5views.c: virtual datasets. They are listed and their sources checked; none is ever read, since
 * libhdf5 crashes on views of themselves and gives zeros for missing sources.
 *
 * The maps are looked at through the creation properties only: asking the dataset for its extent
 * makes libhdf5 open the sources of views that grow.
 */
#include <stdio.h>
#include <string.h>

#include "h5walk.h"

/* What a map wants of its source, into *map: NULL, or what is the matter. */
static const char *read_map(hid_t props, size_t i, mci_h5_map *map) {
    hid_t to = H5Pget_virtual_vspace(props, i), from = H5Pget_virtual_srcspace(props, i);
    const char *why = NULL;
    hsize_t low[H5S_MAX_RANK], high[H5S_MAX_RANK];
    if (!mci_h5_ok(to) || !mci_h5_ok(from)) {
        why = "one of its maps cannot be read";
    } else {
        hssize_t n = H5Sget_select_npoints(to);
        H5S_sel_type kind = H5Sget_select_type(from);
        map->count = n;
        map->ndim = -1;
        if (n < 0) {
            why = "it grows with its sources";
        } else if (kind != H5S_SEL_ALL) {
            map->ndim = H5Sget_simple_extent_ndims(from);
            if (H5Sget_select_npoints(from) < 0)
                why = "it grows with its sources";
            else if (map->ndim < 0 || map->ndim > MC_MAX_DIMS || H5Sget_select_npoints(from) != n ||
                     (n > 0 && H5Sget_select_bounds(from, low, high) < 0))
                why = "one of its maps fits no source";
            for (int axis = 0; !why && n > 0 && axis < map->ndim; axis++) {
                if (high[axis] >= INT64_MAX) why = "one of its maps fits no source";
                map->need[axis] = (int64_t)high[axis] + 1;
            }
        }
    }
    if (from >= 0) H5Sclose(from);
    if (to >= 0) H5Sclose(to);
    mci_h5_forget();
    return why;
}

/* A stored name as the path it stands for, in place: "%%" is a percent sign. NULL, or what is the
 * matter: "%b" is a number that grows. */
static const char *plain_name(char *name) {
    char *to = name;
    for (const char *from = name; *from; from++) {
        if (from[0] == '%' && from[1] == 'b') return "it grows with its sources";
        if (from[0] == '%' && from[1] == '%') from++;
        *to++ = *from;
    }
    *to = '\0';
    return to - name < MCI_H5_MAX_PATH ? NULL : "one of its maps has a source with too long a name";
}

/* Keeps all maps for mci_h5_check_views; *problem as above. */
static mc_status keep_maps(mci_h5_walk *s, hid_t props, size_t n, const char **problem) {
    char name[2 * MCI_H5_MAX_PATH]; /* every byte of a path may be a percent sign */
    for (size_t i = 0; i < n && !*problem; i++) {
        mci_h5_map map = {.view = s->n_rows - 1};
        ssize_t length = H5Pget_virtual_dsetname(props, i, name, sizeof name);
        if (length < 1 || (size_t)length >= sizeof name) {
            mci_h5_forget();
            *problem = "one of its maps has a source without a name";
            break;
        }
        *problem = plain_name(name);
        if (!*problem) *problem = read_map(props, i, &map);
        if (*problem) break;
        if (s->n_maps >= MCI_H5_MAX_OBJECTS)
            return mci_h5_core->fail(MC_EFORMAT, "its views have more than %d sources",
                                     MCI_H5_MAX_OBJECTS);
        if (!mci_h5_grow(&s->maps, &s->maps_room, s->n_maps, sizeof *s->maps))
            return mci_h5_no_memory();
        mc_status status = mci_h5_add_chars(s, name, strlen(name), NULL, &map.source);
        if (status != MC_OK) return status;
        s->maps[s->n_maps++] = map;
    }
    return MC_OK;
}

/* A view that cannot be told in full: a problem, or a refused file. */
static mc_status strange(mci_h5_walk *s, const char *why) {
    int verdict = mci_h5_judge(s, MCI_RULE_VIEW_KIND, why);
    return verdict == MCI_REFUSE ? MC_EFORMAT : mci_h5_set_problem(s, s->n_rows - 1, why);
}

static mc_status fill(mci_h5_walk *s, hid_t set, hid_t props, size_t maps) {
    const char *problem = NULL;
    char why[192];
    if (maps > MCI_H5_MAX_MAPS) {
        snprintf(why, sizeof why, "it is a view of %zu parts, over %d", maps, MCI_H5_MAX_MAPS);
        return strange(s, why);
    }
    mc_status status = keep_maps(s, props, maps, &problem);
    if (status != MC_OK) return status;
    if (problem) return strange(s, problem);
    int64_t row = s->n_rows - 1;
    hid_t type = H5Dget_type(set), space = H5Dget_space(set);
    if (!mci_h5_ok(type) || !mci_h5_ok(space)) {
        status = mci_h5_fail(MC_EFORMAT, "cannot read what '%s' is", s->path);
    } else {
        mc_h5_entry *e = &s->rows[row].entry;
        int swapped = 0, dtype = -1;
        problem = mci_h5_shape(e, space, H5Tget_size(type));
        if (!problem) {
            dtype = mci_h5_settle(s, e, type, &swapped, why, sizeof why);
            if (dtype < 0) problem = why;
        }
        if (problem)
            status = strange(s, problem);
        else
            e->dtype = dtype;
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return status;
}

mc_status mci_h5_scan_view(mci_h5_walk *s, hid_t set, hid_t props, const mci_h5_info *info) {
    size_t maps = 0;
    char file[2];
    if (!mci_h5_ok(H5Pget_virtual_count(props, &maps)))
        return mci_h5_fail(MC_EFORMAT, "'%s': cannot read what it is a view of", s->path);
    for (size_t i = 0; i < maps; i++) {
        if (H5Pget_virtual_filename(props, i, file, sizeof file) == 1 && file[0] == '.') continue;
        mci_h5_judge(s, MCI_RULE_FOREIGN_VIEW, NULL);
        return MC_EFORMAT;
    }
    mc_status status = mci_h5_add_row(s, MC_H5_VIEW, info->address);
    if (status == MC_OK && info->links > 1) status = mci_h5_remember(s);
    if (status == MC_OK) status = mci_h5_scan_attrs(s, set, info);
    return status == MC_OK ? fill(s, set, props, maps) : status;
}

/* -- the sources --------------------------------------------------------------------------------
 */

/* The row of the object at `path`, or -1: rows are in the order of their paths. */
static int64_t find_row(const mci_h5_walk *s, const char *path) {
    int64_t low = 0, high = s->n_rows - 1;
    while (low <= high) {
        int64_t middle = low + (high - low) / 2;
        int order = mci_scan_compare(s->chars + s->rows[middle].path, path);
        if (order == 0) return s->rows[middle].same > 0 ? s->rows[middle].same - 1 : middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle - 1;
    }
    return -1;
}

/* NULL, or what is the matter with the source of a map. */
static const char *check_map(const mci_h5_walk *s, const mci_h5_map *map) {
    const char *name = s->chars + map->source;
    int64_t row = name[0] == '/' ? find_row(s, name) : -1;
    if (row < 0) return name[0] == '/' ? "is missing" : "is no absolute path";
    const mc_h5_entry *view = &s->rows[map->view].entry, *source = &s->rows[row].entry;
    if (source->kind != MC_H5_DATASET)
        return source->kind == MC_H5_VIEW ? "is a view itself" : "is a group";
    if (source->dtype < 0) return "cannot be read";
    if (source->dtype != view->dtype) return "is of another dtype";
    int64_t numel = source->bytes / mci_h5_core->dtype_size(source->dtype);
    int fits = map->ndim < 0 ? map->count == numel : map->ndim == source->ndim;
    for (int i = 0; fits && i < map->ndim; i++) fits = map->need[i] <= source->shape[i];
    return fits ? NULL : "is of another shape";
}

mc_status mci_h5_check_views(mci_h5_walk *s) {
    for (int64_t i = 0; i < s->n_maps; i++) {
        const mci_h5_map *map = &s->maps[i];
        if (s->rows[map->view].problem >= 0) continue;
        const char *why = check_map(s, map);
        if (!why) continue;
        char text[512];
        snprintf(text, sizeof text, "its source '%.400s' %s", s->chars + map->source, why);
        memcpy(s->path, s->chars + s->rows[map->view].path,
               strlen(s->chars + s->rows[map->view].path) + 1);
        if (mci_h5_judge(s, MCI_RULE_VIEW_SOURCE, text) == MCI_REFUSE) return MC_EFORMAT;
        mc_status status = mci_h5_set_problem(s, map->view, text);
        if (status != MC_OK) return status;
    }
    return MC_OK;
}
