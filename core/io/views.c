/* views.c: the views of a file that is being written.
 *
 * libhdf5 takes tens of microseconds for a virtual dataset. So a view whose sources are known to
 * fit is only remembered, and made by the commit's thread while others write the tensors' bytes:
 * the names of all datasets, of their groups and of the views are kept in a table for that. Any
 * other view is made, or refused, at once. Views are made in the order of their calls and before
 * any digest is changed, so that equal content gives equal files. A name that is taken by what the
 * table does not have, a link or an empty group, is found at commit.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "status.h"
#include "writer.h"

/* What a name is: an item's number, or one of these. */
enum { NOTHING = -1, GROUP = -2, VIEW = -3 };

/* A place of the table, which is searched from the name's hash on; path NULL: free. The path is
 * that of an item or view that has the name or lies below it. */
struct mci_name {
    const char *path;
    size_t length;
    int64_t what;
};

/* One position of the dataset `source`, or all of `stack`, which has n. Their paths are the items'.
 */
struct mci_h5_view {
    char *path;
    const char *source;
    int64_t position;
    const char **stack;
    int64_t n;
};

/* -- names ------------------------------------------------------------------------------------- */

/* The place that the name has, or would have; the table has room. */
static mci_name *place(const mci_views *v, const char *path, size_t length) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)path[i]) * 1099511628211u;
    size_t at = (size_t)(hash ^ hash >> 32) & (v->n_places - 1);
    while (v->names[at].path &&
           (v->names[at].length != length || memcmp(v->names[at].path, path, length) != 0))
        at = (at + 1) & (v->n_places - 1);
    return &v->names[at];
}

static int64_t look_up(const mci_views *v, const char *path, size_t length) {
    const mci_name *found = v->n_places > 0 ? place(v, path, length) : NULL;
    return found && found->path ? found->what : NOTHING;
}

/* Room for one more name, with half of the places free; 0: out of memory. */
static int make_room(mci_views *v) {
    if (v->n_names * 2 < v->n_places) return 1;
    mci_views old = *v;
    v->n_places = old.n_places ? old.n_places * 2 : 256;
    v->names = calloc(v->n_places, sizeof *v->names);
    if (!v->names) {
        *v = old;
        return 0;
    }
    for (size_t i = 0; i < old.n_places; i++) {
        if (old.names[i].path) *place(v, old.names[i].path, old.names[i].length) = old.names[i];
    }
    free(old.names);
    return 1;
}

/* 1 when the name was new, 0 when it was there, -1 when out of memory. */
static int add_name(mci_views *v, const char *path, size_t length, int64_t what) {
    if (!make_room(v)) return -1;
    mci_name *name = place(v, path, length);
    if (name->path) return 0;
    *name = (mci_name){.path = path, .length = length, .what = what};
    v->n_names++;
    return 1;
}

static size_t parent_length(const char *path, size_t length) {
    while (length > 0 && path[length - 1] != '/') length--;
    return length > 0 ? length - 1 : 0;
}

/* Enters the items that came since the last time, and the groups they lie in. */
static mc_status know_items(mc_h5_writer *w) {
    mci_views *v = &w->views;
    for (; v->known < w->n; v->known++) {
        const char *path = w->items[v->known].path;
        size_t length = strlen(path);
        int fresh = add_name(v, path, length, v->known);
        while (fresh > 0 && (length = parent_length(path, length)) > 0)
            fresh = add_name(v, path, length, GROUP);
        if (fresh < 0) return mci_os_failure(w->file.name, "", ENOMEM);
    }
    return MC_OK;
}

/* 1 when a dataset can be made there: the name is free, its group is there. */
static int is_free(const mci_views *v, const char *path) {
    size_t length = strlen(path), parent = parent_length(path, length);
    return look_up(v, path, length) == NOTHING &&
           (parent == 0 || look_up(v, path, parent) == GROUP);
}

/* The item at `path` when it has elements, else NULL. */
static const mci_item *source_at(const mc_h5_writer *w, const char *path) {
    int64_t i = look_up(&w->views, path, strlen(path));
    return i >= 0 && w->items[i].numel > 0 ? &w->items[i] : NULL;
}

/* -- making ------------------------------------------------------------------------------------ */

int mci_views_left(const mc_h5_writer *w) {
    return w->views.made < w->views.n;
}

mc_status mci_views_make_next(mc_h5_writer *w) {
    mci_views *v = &w->views;
    if (v->failed == MC_OK) {
        const mci_h5_view *view = &v->list[v->made];
        v->failed = view->stack
                        ? w->api->view_stack(w->out, view->path, view->n, view->stack)
                        : w->api->view_select(w->out, view->path, view->source, view->position);
        if (v->failed == MC_OK) {
            v->made++;
            return MC_OK;
        }
        v->failure = strdup(mc_last_error());
    }
    return mci_fail(v->failed, "%s", v->failure ? v->failure : "out of memory");
}

mc_status mci_views_make(mc_h5_writer *w) {
    mc_status status = MC_OK;
    while (status == MC_OK && mci_views_left(w)) status = mci_views_make_next(w);
    return status;
}

mc_status mci_views_settle(mc_h5_writer *w, const char *path) {
    if (!mci_views_left(w) || look_up(&w->views, path, strlen(path)) != VIEW) return MC_OK;
    return mci_views_make(w);
}

void mci_views_free(mci_views *v) {
    for (int64_t i = 0; i < v->n; i++) {
        free(v->list[i].path);
        free(v->list[i].stack);
    }
    free(v->list);
    free(v->names);
    free(v->failure);
}

/* -- remembering ------------------------------------------------------------------------------- */

/* Takes over the view, also when it fails. */
static mc_status remember(mc_h5_writer *w, mci_h5_view *view) {
    mci_views *v = &w->views;
    if (v->n == v->room) {
        int64_t more = v->room ? v->room * 2 : 64;
        mci_h5_view *list = realloc(v->list, (size_t)more * sizeof *list);
        if (list) v->list = list;
        if (list) v->room = more;
    }
    if (v->n == v->room || !view->path || add_name(v, view->path, strlen(view->path), VIEW) < 0) {
        free(view->path);
        free(view->stack);
        return mci_os_failure(w->file.name, "", ENOMEM);
    }
    v->list[v->n++] = *view;
    return MC_OK;
}

/* The items' paths when all of `sources` can be stacked; else NULL, with *status of why not. */
static const char **stack_of(mc_h5_writer *w, int64_t n, const char *const *sources,
                             mc_status *status) {
    const char **stack = malloc((size_t)n * sizeof *stack);
    const mci_item *first = NULL;
    if (!stack) *status = mci_os_failure(w->file.name, "", ENOMEM);
    for (int64_t i = 0; i < n && stack; i++) {
        const mci_item *it = source_at(w, sources[i]);
        if (i == 0) first = it;
        if (it && first->ndim < MC_MAX_DIMS && it->dtype == first->dtype &&
            it->ndim == first->ndim &&
            memcmp(it->shape, first->shape, (size_t)it->ndim * sizeof it->shape[0]) == 0) {
            stack[i] = it->path;
        } else {
            free(stack);
            stack = NULL;
        }
    }
    return stack;
}

mc_status mc_h5_view_stack(mc_h5_writer *w, const char *path, int64_t n,
                           const char *const *sources) {
    static const char op[] = "h5_view_stack";
    mc_status status = mci_writer_usable(w, op);
    if (status != MC_OK) return status;
    status = mci_writer_check_leaf(w, op, path);
    if (status == MC_OK && (n < 1 || n > MCI_H5_MAX_MAPS || !sources))
        status = mci_fail(MC_EINVAL, "%s: %s: '%s': %lld sources; 1 to %d are wanted", op,
                          w->file.name, path, (long long)n, MCI_H5_MAX_MAPS);
    for (int64_t i = 0; i < n && status == MC_OK; i++)
        status = mci_writer_check_leaf(w, op, sources[i]);
    if (status == MC_OK) status = know_items(w);
    const char **stack = NULL;
    if (status == MC_OK && is_free(&w->views, path)) stack = stack_of(w, n, sources, &status);
    if (status != MC_OK) return mci_writer_noted(w, status);
    if (stack) {
        mci_h5_view view = {.path = strdup(path), .stack = stack, .n = n};
        return mci_writer_noted(w, remember(w, &view));
    }
    status = mci_views_make(w);
    if (status == MC_OK) status = w->api->view_stack(w->out, path, n, sources);
    return mci_writer_noted(w, status);
}

mc_status mc_h5_view_select(mc_h5_writer *w, const char *path, const char *source,
                            int64_t position) {
    static const char op[] = "h5_view_select";
    mc_status status = mci_writer_usable(w, op);
    if (status != MC_OK) return status;
    status = mci_writer_check_leaf(w, op, path);
    if (status == MC_OK) status = mci_writer_check_leaf(w, op, source);
    if (status == MC_OK) status = know_items(w);
    if (status != MC_OK) return mci_writer_noted(w, status);
    const mci_item *it = is_free(&w->views, path) ? source_at(w, source) : NULL;
    if (it && it->ndim > 0 && position >= 0 && position < it->shape[0]) {
        mci_h5_view view = {.path = strdup(path), .source = it->path, .position = position};
        return mci_writer_noted(w, remember(w, &view));
    }
    status = mci_views_make(w);
    if (status == MC_OK) status = w->api->view_select(w->out, path, source, position);
    return mci_writer_noted(w, status);
}
