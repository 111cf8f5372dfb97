/* reply.c: a listing from the reading helper, which a hostile file may have written.
 *
 * One pass with a cursor: every text and number is used once, in the order in which it came, so
 * there are no positions to go astray. Counts are held against the bytes that are there before
 * memory is asked for, and what becomes of them in Lua against the file's size (MCI_COST_*). What
 * passes is safe to use: paths are names in a tree, extents lie inside the file and apart from one
 * another, sizes fit their shapes.
 */
#include "reply.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char mci_reply_no_memory[] = "out of memory";

typedef struct parser {
    const unsigned char *p;
    size_t left;
    mci_h5_table *table;
    const mci_reply_facts *facts;
    int64_t n_entries, n_attrs, n_chars; /* so far; the table has what will be */
    int64_t chars_room;
    int64_t decode_left, memory_left;
    mci_scan_words names, values; /* of attributes */
    struct {
        const char *path;
        size_t length;
    } above[MCI_H5_MAX_DEPTH + 1]; /* the last group of each depth */
} parser;

void mci_reply_plain(char *text) {
    for (unsigned char *p = (unsigned char *)text; *p; p++) {
        if (*p < 0x20 || *p == 0x7f) *p = '?';
    }
}

static int take(parser *s, void *to, size_t n) {
    if (n > s->left) return 0;
    memcpy(to, s->p, n);
    s->p += n;
    s->left -= n;
    return 1;
}

/* A text of n bytes, the last of them its NUL; NULL when there is none. words: as in h5walk.h. */
static char *take_text(parser *s, size_t n, mci_scan_words *words) {
    if (n == 0 || n > (size_t)(s->chars_room - s->n_chars)) return NULL;
    char *text = s->table->chars + s->n_chars;
    if (!take(s, text, n) || text[n - 1] != '\0') return NULL;
    s->memory_left -= words ? mci_scan_word_cost(words, s->table->chars, s->n_chars, n)
                            : (int64_t)n + MCI_COST_TEXT;
    s->n_chars += (int64_t)n;
    return text;
}

/* -- paths ------------------------------------------------------------------------------------- */

/* NULL, or what is wrong with the path of the next entry. */
static const char *check_path(parser *s, const char *path, size_t length, int kind) {
    if (path[0] != '/' || strlen(path) != length) return "a path is none";
    int depth = 0;
    size_t parent = 0; /* length of what is before the last '/' */
    if (length > 1) {
        for (const char *p = path; *p == '/'; depth++) {
            const char *part = p + 1;
            parent = (size_t)(p - path);
            p = part + strcspn(part, "/");
            if (p == part || (p == part + 1 && *part == '.')) return "a path has a part of no name";
        }
    }
    if (depth > MCI_H5_MAX_DEPTH) return "a path is too deep";
    if ((s->n_entries == 0) != (depth == 0)) return "the root is not the first object";
    if (depth == 0 && kind != MC_H5_GROUP) return "the root is no group";
    if (depth > 0) {
        if (mci_scan_compare(s->table->entries[s->n_entries - 1].path, path) >= 0)
            return "paths are not in order";
        size_t known = depth == 1 ? 0 : s->above[depth - 1].length;
        if (known != parent || memcmp(s->above[depth - 1].path, path, parent) != 0)
            return "a path has no group above it";
    }
    if (kind == MC_H5_GROUP) {
        s->above[depth].path = path;
        s->above[depth].length = length;
    } else {
        s->above[depth].path = "";
        s->above[depth].length = SIZE_MAX;
    }
    return NULL;
}

/* -- attributes -------------------------------------------------------------------------------- */

static const char *parse_attr(parser *s, const char *before) {
    mci_scan_attr raw;
    if (!take(s, &raw, sizeof raw)) return "it ends within an attribute";
    mc_h5_attr *a = &s->table->attrs[s->n_attrs];
    *a = (mc_h5_attr){.kind = raw.kind, .i = raw.i, .d = raw.d};
    const char *name = take_text(s, raw.name, &s->names);
    if (!name || raw.name < 2 || raw.name > MCI_H5_MAX_ATTR_NAME + 1 ||
        strlen(name) + 1 != raw.name)
        return "an attribute has no name";
    if (before && strcmp(before, name) >= 0) return "attributes are not in order";
    a->name = name;
    switch (raw.kind) {
        case MC_H5_INT:
            a->d = (double)a->i;
            break;
        case MC_H5_DOUBLE:
            a->i = 0;
            /* in LuaJIT the bits of other NaNs stand for pointers */
            if (isnan(a->d)) a->d = (double)NAN;
            break;
        case MC_H5_BOOL:
            if (a->i != 0 && a->i != 1) return "a bool is neither 0 nor 1";
            a->d = (double)a->i;
            break;
        case MC_H5_STRING:
            if (raw.size > MCI_H5_MAX_ATTR_BYTES) return "an attribute is too long";
            a->i = 0;
            a->d = 0;
            a->size = (int32_t)raw.size;
            a->s = take_text(s, (size_t)raw.size + 1, &s->values);
            if (!a->s) return "an attribute has no text";
            break;
        default:
            return "an attribute is of no kind";
    }
    if (raw.kind != MC_H5_STRING && raw.size != 0) return "a number has a length";
    s->n_attrs++;
    s->memory_left -= MCI_COST_ATTR;
    return NULL;
}

static const char *parse_attrs(parser *s, mc_h5_entry *e, uint32_t n) {
    if (n > MCI_H5_MAX_ATTRS || n > (uint64_t)(s->table->n_attrs - s->n_attrs))
        return "an object has too many attributes";
    e->first_attr = (int32_t)s->n_attrs;
    e->n_attrs = (int32_t)n;
    const char *before = NULL;
    for (uint32_t i = 0; i < n; i++) {
        const char *wrong = parse_attr(s, before);
        if (wrong) return wrong;
        before = s->table->attrs[s->n_attrs - 1].name;
    }
    return NULL;
}

/* -- objects ----------------------------------------------------------------------------------- */

/* The sizes of all axes make *bytes with elements of `size` bytes; 0 when they overflow. */
static int shape_bytes(const mc_h5_entry *e, int64_t size, int64_t *bytes) {
    int64_t room = size; /* sizes beside a zero must fit too: strides are made of them */
    *bytes = size;
    for (int i = 0; i < e->ndim; i++) {
        if (__builtin_mul_overflow(*bytes, e->shape[i], bytes)) return 0;
        if (e->shape[i] > 0 && __builtin_mul_overflow(room, e->shape[i], &room)) return 0;
    }
    return 1;
}

/* NULL, or what is wrong with a dataset's or view's numbers. */
static const char *check_numbers(parser *s, const mc_h5_entry *e) {
    int64_t bytes = 0;
    for (int i = 0; i < e->ndim; i++) {
        if (e->shape[i] < 0) return "an axis has a negative size";
    }
    if (e->bytes < 0) return "an object has a negative size";
    if (e->dtype < -1 || e->dtype >= MC_DTYPE_COUNT) return "a dtype is none";
    if (e->problem && e->kind == MC_H5_DATASET && e->dtype != -1)
        return "a dataset with a problem has a dtype";
    if (e->dtype == -1 && !e->problem) return "a dataset without a dtype has no problem";
    if (e->decode != 0 && (e->decode != 1 || e->kind != MC_H5_DATASET || e->problem))
        return "something is decoded that cannot be";
    if (e->dtype >= 0 && (!shape_bytes(e, mc_dtype_size(e->dtype), &bytes) || bytes != e->bytes))
        return "a size is not that of the shape";
    int has_extent = e->kind == MC_H5_DATASET && e->dtype >= 0 && e->bytes > 0 && !e->decode;
    if (has_extent != (e->offset != -1)) return "an offset is there or missing against the rules";
    if (has_extent && (s->facts->base != 0 || e->offset < 0 || e->bytes > s->facts->file_bytes ||
                       e->offset > s->facts->file_bytes - e->bytes))
        return "an extent is not inside the file";
    if (e->decode) {
        if (e->bytes == 0 || e->bytes > s->decode_left) return "too much is to be decoded";
        s->decode_left -= e->bytes;
    }
    if (s->table->own && (e->decode || (e->problem && e->kind == MC_H5_DATASET)))
        return "a file of mascon's own has a dataset that mascon never writes";
    return NULL;
}

static const char *parse_same(parser *s, const mci_scan_row *row, mc_h5_entry *e) {
    if (row->same > (uint64_t)s->n_entries) return "a link is on an object that is not there yet";
    const mc_h5_entry *first = &s->table->entries[row->same - 1];
    if (first->kind == MC_H5_GROUP) return "a group has two links";
    if (row->kind != first->kind || row->ndim != 0 || row->problem != 0 || row->n_attrs != 0 ||
        row->dtype != first->dtype || row->decode != first->decode ||
        row->offset != first->offset || row->bytes != first->bytes || row->object != first->object)
        return "two links on one dataset differ";
    *e = *first;
    return NULL;
}

static const char *parse_row(parser *s) {
    mci_scan_row row;
    if (!take(s, &row, sizeof row)) return "it ends within an object";
    mc_h5_entry *e = &s->table->entries[s->n_entries];
    memset(e, 0, sizeof *e);
    const char *wrong = NULL;
    if (row.kind < MC_H5_GROUP || row.kind > MC_H5_VIEW) return "an object is of no kind";
    if (row.same > 0) {
        wrong = parse_same(s, &row, e);
        if (wrong) return wrong;
    } else {
        if (row.ndim < 0 || row.ndim > MC_MAX_DIMS) return "a dataset has more than 8 axes";
        e->kind = row.kind;
        e->dtype = row.dtype;
        e->ndim = row.ndim;
        e->decode = row.decode;
        e->offset = row.offset;
        e->bytes = row.bytes;
        e->object = row.object;
        if (!take(s, e->shape, (size_t)row.ndim * sizeof *e->shape))
            return "it ends within a shape";
    }
    const char *path = take_text(s, row.path, NULL);
    if (!path || row.path < 2 || row.path > MCI_H5_MAX_PATH) return "a path is none";
    wrong = check_path(s, path, row.path - (size_t)1, row.kind);
    if (wrong) return wrong;
    e->path = path;
    if (row.same == 0) {
        if (row.problem > 0) {
            char *problem = take_text(s, row.problem, NULL);
            if (!problem || row.problem < 2 || strlen(problem) + 1 != row.problem)
                return "a problem has no text";
            mci_reply_plain(problem);
            e->problem = problem;
        }
        if (row.kind != MC_H5_GROUP)
            wrong = check_numbers(s, e);
        else if (row.dtype != -1 || row.ndim != 0 || row.decode != 0 || row.problem != 0 ||
                 row.offset != -1 || row.bytes != 0)
            wrong = "a group has what only datasets have";
        if (!wrong) wrong = parse_attrs(s, e, row.n_attrs);
    }
    s->memory_left -= mci_scan_cost(row.kind, row.same > 0);
    if (!wrong && s->memory_left < 0) wrong = "more objects than a file of its size may have";
    if (!wrong) s->n_entries++;
    return wrong;
}

/* -- all of them ------------------------------------------------------------------------------- */

/* What is compared across objects: one link of each counts. */
typedef struct extent {
    int64_t offset, bytes, object;
} extent;

static int by_object(const void *a, const void *b) {
    int64_t x = ((const extent *)a)->object, y = ((const extent *)b)->object;
    return (x > y) - (x < y);
}

static int by_offset(const void *a, const void *b) {
    int64_t x = ((const extent *)a)->offset, y = ((const extent *)b)->offset;
    return (x > y) - (x < y);
}

/* Links on one object agree, as parse_same has seen to where they said so; extents lie apart. */
static const char *check_objects(parser *s, const unsigned char *is_link) {
    size_t n = 0;
    extent *list = malloc((size_t)s->n_entries * sizeof *list);
    if (!list) return mci_reply_no_memory;
    const char *wrong = NULL;
    for (int64_t i = 0; i < s->n_entries; i++) {
        const mc_h5_entry *e = &s->table->entries[i];
        if (!is_link[i]) list[n++] = (extent){e->offset, e->bytes, e->object};
    }
    qsort(list, n, sizeof *list, by_object);
    for (size_t i = 1; i < n && !wrong; i++) {
        if (list[i - 1].object == list[i].object) wrong = "two objects are one";
    }
    qsort(list, n, sizeof *list, by_offset);
    for (size_t i = 1; i < n && !wrong; i++) {
        if (list[i - 1].offset >= 0 && list[i - 1].offset + list[i - 1].bytes > list[i].offset)
            wrong = "two datasets share bytes";
    }
    free(list);
    return wrong;
}

/* The root's attributes say whether the file is one of ours. */
static const char *check_own(parser *s) {
    const mc_h5_entry *root = &s->table->entries[0];
    int says = 0;
    for (int32_t i = 0; i < root->n_attrs; i++) {
        const mc_h5_attr *a = &s->table->attrs[root->first_attr + i];
        says |= a->kind == MC_H5_STRING && strcmp(a->name, "format") == 0 && a->size == 6 &&
                memcmp(a->s, "mascon", 6) == 0;
    }
    int own = says && s->facts->version == 3 && s->facts->base == 0;
    return own == s->table->own ? NULL : "it is wrong about the file's format";
}

static const char *parse(parser *s) {
    mci_scan_listing listing;
    if (!take(s, &listing, sizeof listing)) return "it ends within its counts";
    if (listing.own > 1) return "it is wrong about the file's format";
    if (listing.n_rows == 0 || listing.n_rows > MCI_H5_MAX_OBJECTS + 1 ||
        listing.n_rows > s->left / sizeof(mci_scan_row))
        return "the number of objects is wrong";
    if (listing.n_attrs > INT32_MAX || listing.n_attrs > s->left / sizeof(mci_scan_attr))
        return "the number of attributes is wrong";
    if (listing.n_chars > MCI_H5_MAX_CHARS || listing.n_chars > s->left)
        return "the length of the texts is wrong";
    mci_h5_table *t = s->table;
    t->own = (int)listing.own;
    t->n_entries = listing.n_rows;
    t->n_attrs = listing.n_attrs;
    s->chars_room = listing.n_chars;
    t->entries = calloc((size_t)listing.n_rows, sizeof *t->entries);
    t->attrs = calloc((size_t)listing.n_attrs + 1, sizeof *t->attrs);
    t->chars = malloc((size_t)listing.n_chars + 1);
    unsigned char *is_link = calloc((size_t)listing.n_rows, 1);
    const char *wrong = t->entries && t->attrs && t->chars && is_link ? NULL : mci_reply_no_memory;
    while (!wrong && s->n_entries < t->n_entries) {
        mci_scan_row row;
        if (s->left >= sizeof row) {
            memcpy(&row, s->p, sizeof row);
            is_link[s->n_entries] = row.same > 0;
        }
        wrong = parse_row(s);
    }
    if (!wrong && (s->left > 0 || s->n_attrs != t->n_attrs || s->n_chars != s->chars_room))
        wrong = "its counts are wrong";
    if (!wrong) wrong = check_own(s);
    if (!wrong) wrong = check_objects(s, is_link);
    free(is_link);
    return wrong;
}

const char *mci_reply_parse(mci_h5_table *table, const void *bytes, size_t n,
                            const mci_reply_facts *facts, char *why, size_t size) {
    memset(table, 0, sizeof *table);
    parser s = {.p = bytes,
                .left = n,
                .table = table,
                .facts = facts,
                .decode_left = facts->decode_limit,
                .memory_left = mci_scan_memory(facts->file_bytes)};
    const char *wrong = parse(&s);
    if (!wrong) return NULL;
    if (wrong != mci_reply_no_memory && s.n_entries < table->n_entries) {
        snprintf(why, size, "object %" PRId64 " (0-based): %s", s.n_entries, wrong);
        wrong = why;
    }
    mci_reply_free(table);
    return wrong;
}

void mci_reply_free(mci_h5_table *table) {
    free(table->entries);
    free(table->attrs);
    free(table->chars);
    memset(table, 0, sizeof *table);
}
