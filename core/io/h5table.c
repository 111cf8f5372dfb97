/* h5table.c: the table that the walk fills, and its way to the parent.
 *
 * Rows and texts cost a file next to nothing (a path repeats all groups above it), so what becomes
 * of them in the parent's Lua is counted as the table grows, and bounded (MCI_COST_*).
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "h5walk.h"

mc_status mci_h5_no_memory(void) {
    return mci_h5_core->fail(MC_ENOMEM, "out of memory while listing it");
}

int mci_h5_grow(void *array, int64_t *room, int64_t n, size_t size) {
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

mc_status mci_h5_count(mci_h5_walk *s, int64_t n) {
    s->memory_left -= n;
    if (s->memory_left >= 0) return MC_OK;
    return mci_h5_core->fail(
        MC_EFORMAT,
        "more objects (%" PRId64 " so far) and attributes (%" PRId64
        ") than a file of its size may have: listing them would take over %" PRId64
        " MiB of memory, 64 MiB and the file's size",
        s->n_rows, s->n_attrs, mci_scan_memory(s->start->file_bytes) >> 20);
}

mc_status mci_h5_add_chars(mci_h5_walk *s, const char *text, size_t n, mci_scan_words *words,
                           int64_t *at) {
    if (s->n_chars + (int64_t)n + 1 > MCI_H5_MAX_CHARS)
        return mci_h5_core->fail(MC_EFORMAT, "more than %d bytes of names and attributes",
                                 MCI_H5_MAX_CHARS);
    if (!mci_h5_grow(&s->chars, &s->chars_room, s->n_chars + (int64_t)n, 1))
        return mci_h5_no_memory();
    memcpy(s->chars + s->n_chars, text, n);
    s->chars[s->n_chars + (int64_t)n] = '\0';
    *at = s->n_chars;
    s->n_chars += (int64_t)n + 1;
    return mci_h5_count(s, words ? mci_scan_word_cost(words, s->chars, *at, n + 1)
                                 : (int64_t)n + 1 + MCI_COST_TEXT);
}

/* same: as in mci_scan_row. */
static mc_status add_row(mci_h5_walk *s, int kind, int64_t object, uint32_t same) {
    mc_status status = mci_h5_count(s, mci_scan_cost(kind, same > 0));
    if (status != MC_OK) return status;
    if (!mci_h5_grow(&s->rows, &s->rows_room, s->n_rows, sizeof *s->rows))
        return mci_h5_no_memory();
    int64_t path = 0;
    status = mci_h5_add_chars(s, s->path, strlen(s->path), NULL, &path);
    if (status != MC_OK) return status;
    s->sent_chars += s->n_chars - path;
    s->rows[s->n_rows++] = (mci_h5_row){.entry = {.kind = kind,
                                                  .dtype = -1,
                                                  .offset = -1,
                                                  .object = object,
                                                  .first_attr = (int32_t)s->n_attrs},
                                        .path = path,
                                        .problem = -1,
                                        .same = same};
    return MC_OK;
}

mc_status mci_h5_add_row(mci_h5_walk *s, int kind, int64_t object) {
    return add_row(s, kind, object, 0);
}

mc_status mci_h5_set_problem(mci_h5_walk *s, int64_t row, const char *why) {
    mci_h5_row *r = &s->rows[row];
    if (r->problem >= 0) return MC_OK;
    r->entry.offset = -1;
    r->entry.decode = 0;
    if (r->entry.bytes < 0) r->entry.bytes = 0;
    for (int i = 0; i < r->entry.ndim; i++) {
        if (r->entry.shape[i] < 0) r->entry.shape[i] = INT64_MAX; /* more than can be told */
    }
    mc_status status = mci_h5_add_chars(s, why, strlen(why), NULL, &r->problem);
    if (status == MC_OK) s->sent_chars += s->n_chars - r->problem;
    return status;
}

/* -- datasets with several links ----------------------------------------------------------------
 */

static size_t slot_of(const mci_h5_walk *s, int64_t address) {
    size_t mask = (size_t)s->seen_room - 1;
    size_t slot = (size_t)((uint64_t)address * UINT64_C(0x9E3779B97F4A7C15) >> 20) & mask;
    while (s->seen[slot] != 0 && s->rows[s->seen[slot] - 1].entry.object != address)
        slot = (slot + 1) & mask;
    return slot;
}

int64_t mci_h5_seen(const mci_h5_walk *s, int64_t address) {
    return s->seen_room ? s->seen[slot_of(s, address)] - 1 : -1;
}

mc_status mci_h5_remember(mci_h5_walk *s) {
    if (s->n_seen * 2 >= s->seen_room) {
        int64_t room = s->seen_room, *old = s->seen;
        int64_t *bigger = calloc((size_t)(room ? room * 2 : 64), sizeof *bigger);
        if (!bigger) return mci_h5_no_memory();
        s->seen = bigger;
        s->seen_room = room ? room * 2 : 64;
        for (int64_t i = 0; i < room; i++) {
            if (old[i] != 0) s->seen[slot_of(s, s->rows[old[i] - 1].entry.object)] = old[i];
        }
        free(old);
    }
    int64_t row = s->n_rows - 1;
    s->seen[slot_of(s, s->rows[row].entry.object)] = row + 1;
    s->n_seen++;
    return MC_OK;
}

mc_status mci_h5_add_same(mci_h5_walk *s, int64_t first) {
    const mc_h5_entry *e = &s->rows[first].entry;
    return add_row(s, e->kind, e->object, (uint32_t)first + 1);
}

/* -- extents ------------------------------------------------------------------------------------
 */

static int by_offset(const void *a, const void *b, void *rows) {
    const mci_h5_row *x = (mci_h5_row *)rows + *(const int64_t *)a;
    const mci_h5_row *y = (mci_h5_row *)rows + *(const int64_t *)b;
    if (x->entry.offset != y->entry.offset) return x->entry.offset < y->entry.offset ? -1 : 1;
    return *(const int64_t *)a < *(const int64_t *)b ? -1 : 1;
}

/* Two datasets must not share bytes, unless they are one. */
mc_status mci_h5_check_overlaps(mci_h5_walk *s) {
    int64_t *order = malloc((size_t)s->n_rows * sizeof *order), n = 0;
    if (!order) return mci_h5_no_memory();
    for (int64_t i = 0; i < s->n_rows; i++) {
        if (s->rows[i].entry.offset >= 0 && s->rows[i].same == 0) order[n++] = i;
    }
    if (n > 0) qsort_r(order, (size_t)n, sizeof *order, by_offset, s->rows);
    mc_status status = MC_OK;
    for (int64_t i = 1; i < n && status == MC_OK; i++) {
        const mci_h5_row *a = &s->rows[order[i - 1]], *b = &s->rows[order[i]];
        if (a->entry.offset + a->entry.bytes > b->entry.offset)
            status = mci_h5_core->fail(MC_EFORMAT, "'%s' and '%s' share bytes", s->chars + a->path,
                                       s->chars + b->path);
    }
    free(order);
    return status;
}

/* -- the reply ----------------------------------------------------------------------------------
 */

int64_t mci_h5_sent_bytes(const mci_h5_walk *s) {
    int64_t n = (int64_t)sizeof(mci_scan_listing) + s->n_rows * (int64_t)sizeof(mci_scan_row) +
                s->n_attrs * (int64_t)sizeof(mci_scan_attr) + s->sent_chars;
    for (int64_t i = 0; i < s->n_rows; i++) n += s->rows[i].entry.ndim * (int64_t)sizeof(int64_t);
    return n;
}

static void send_attr(const mci_h5_walk *s, const mci_h5_attr_row *a,
                      void (*put)(const void *bytes, size_t n)) {
    mci_scan_attr raw;
    memset(&raw, 0, sizeof raw);
    raw.name = (uint16_t)(strlen(s->chars + a->name) + 1);
    raw.kind = (uint16_t)a->attr.kind;
    raw.size = (uint32_t)a->attr.size;
    raw.i = a->attr.i;
    raw.d = a->attr.d;
    put(&raw, sizeof raw);
    put(s->chars + a->name, raw.name);
    if (a->text >= 0) put(s->chars + a->text, (size_t)raw.size + 1);
}

void mci_h5_send(const mci_h5_walk *s, void (*put)(const void *bytes, size_t n)) {
    mci_scan_listing listing = {.own = (uint32_t)s->own,
                                .n_rows = (uint32_t)s->n_rows,
                                .n_attrs = (uint32_t)s->n_attrs,
                                .n_chars = (uint32_t)s->sent_chars};
    put(&listing, sizeof listing);
    for (int64_t i = 0; i < s->n_rows; i++) {
        const mci_h5_row *r = &s->rows[i];
        /* what a second link says is what the first one said in the end */
        const mc_h5_entry *e = r->same > 0 ? &s->rows[r->same - 1].entry : &r->entry;
        mci_scan_row raw;
        memset(&raw, 0, sizeof raw);
        raw.same = r->same;
        raw.kind = (int8_t)e->kind;
        raw.dtype = (int8_t)e->dtype;
        raw.decode = (int8_t)e->decode;
        raw.path = (uint16_t)(strlen(s->chars + r->path) + 1);
        raw.offset = e->offset;
        raw.bytes = e->bytes;
        raw.object = e->object;
        if (r->same == 0) {
            raw.ndim = (int8_t)e->ndim;
            raw.problem = r->problem >= 0 ? (uint16_t)(strlen(s->chars + r->problem) + 1) : 0;
            raw.n_attrs = (uint32_t)e->n_attrs;
        }
        put(&raw, sizeof raw);
        put(e->shape, (size_t)raw.ndim * sizeof *e->shape);
        put(s->chars + r->path, raw.path);
        if (raw.problem > 0) put(s->chars + r->problem, raw.problem);
        for (uint32_t k = 0; k < raw.n_attrs; k++)
            send_attr(s, &s->attrs[e->first_attr + (int32_t)k], put);
    }
}

void mci_h5_walk_free(mci_h5_walk *s) {
    free(s->rows);
    free(s->attrs);
    free(s->maps);
    free(s->chars);
    free(s->seen);
}
