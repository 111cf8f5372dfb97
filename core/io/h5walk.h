/* h5walk.h: shared by the files that list an HDF5 file in the reading helper program: the table
 * that the walk fills, the rules it follows, and its parts. */
#ifndef MCI_H5WALK_H
#define MCI_H5WALK_H

#include "h5room.h"
#include "scan.h"

/* entry.path, entry.problem, attr.name and attr.s stay NULL: the texts are positions in the table's
 * chars, -1 for none. same: as in mci_scan_row. */
typedef struct mci_h5_row {
    mc_h5_entry entry;
    int64_t path, problem;
    uint32_t same;
} mci_h5_row;

typedef struct mci_h5_attr_row {
    mc_h5_attr attr;
    int64_t name, text;
} mci_h5_attr_row;

/* One source of a view, looked at when all datasets are known. */
typedef struct mci_h5_map {
    int64_t view;   /* row */
    int64_t source; /* its name, in chars */
    int64_t count;  /* elements that the view takes */
    int32_t ndim;   /* -1: it takes the whole source; else it must have so many axes, and */
    int64_t need[MC_MAX_DIMS]; /* at least so many positions along each */
} mci_h5_map;

typedef struct mci_h5_walk {
    const mci_scan_start *start;
    int64_t decode_left, memory_left; /* bytes that may still be decoded; MCI_COST_* */
    int own;                          /* 1: held to the rules of mascon's own files */
    int64_t links;                    /* met so far */
    char path[MCI_H5_MAX_PATH];       /* of the current object */
    int64_t above[MCI_H5_MAX_DEPTH + 1];
    mci_h5_row *rows;
    mci_h5_attr_row *attrs;
    mci_h5_map *maps;
    char *chars;
    int64_t n_rows, n_attrs, n_maps, n_chars;
    int64_t rows_room, attrs_room, maps_room, chars_room;
    int64_t sent_chars;           /* bytes of texts in the reply */
    mci_scan_words names, values; /* of attributes */
    int64_t *seen; /* hash of rows + 1 by address: datasets with several links; 0 is free */
    int64_t seen_room, n_seen;
} mci_h5_walk;

/* -- h5rules.c: what is done about what ---------------------------------------------------------
 */

typedef enum mci_h5_rule {
    MCI_RULE_NONE, /* nothing is the matter */
    MCI_RULE_EXTENSION,
    MCI_RULE_SOFT_LINK,
    MCI_RULE_EXTERNAL_LINK,
    MCI_RULE_LINK_KIND,
    MCI_RULE_OBJECT_KIND,
    MCI_RULE_GROUP_LINKS,
    MCI_RULE_DEPTH,
    MCI_RULE_ATTR_COUNT,
    MCI_RULE_ATTR_VARIABLE,
    MCI_RULE_ATTR_SIZE,
    MCI_RULE_ATTR_KIND,
    MCI_RULE_EXTERNAL_BYTES,
    MCI_RULE_FOREIGN_VIEW,
    MCI_RULE_VIEW_KIND,
    MCI_RULE_VIEW_SOURCE,
    MCI_RULE_CHUNKED,
    MCI_RULE_COMPACT,
    MCI_RULE_LATE,
    MCI_RULE_BIG_ENDIAN,
    MCI_RULE_FILTER,
    MCI_RULE_TYPE,
    MCI_RULE_SHAPE,
    MCI_RULE_EXTENT,
    MCI_RULE_DECODED,
    MCI_RULES
} mci_h5_rule;
enum { MCI_PASS, MCI_SKIP, MCI_PROBLEM, MCI_REFUSE };

/* What the file's profile says about it: MCI_REFUSE with the message set, about the current object.
 * detail: what is the matter, a sentence; NULL: the rule's own words. */
int mci_h5_judge(mci_h5_walk *s, mci_h5_rule rule, const char *detail);

/* -- h5table.c: the table, and sending it -------------------------------------------------------
 */

mc_status mci_h5_no_memory(void);
/* Makes room for item n of an array of `size`-byte items; 0 when out of memory. */
int mci_h5_grow(void *array, int64_t *room, int64_t n, size_t size);
/* Counts n more bytes of what the listing costs; fails when it is too much. */
mc_status mci_h5_count(mci_h5_walk *s, int64_t n);
/* n bytes and a NUL into the chars; *at is their position. words: where it may be known already;
 * NULL: it counts in any case. */
mc_status mci_h5_add_chars(mci_h5_walk *s, const char *text, size_t n, mci_scan_words *words,
                           int64_t *at);
/* The current object's row, without a dtype, offset and attributes. */
mc_status mci_h5_add_row(mci_h5_walk *s, int kind, int64_t object);
/* Its problem, unless it has one: no bytes can be had then. */
mc_status mci_h5_set_problem(mci_h5_walk *s, int64_t row, const char *why);
/* The row of a dataset with several links, if it was listed already; or -1. */
int64_t mci_h5_seen(const mci_h5_walk *s, int64_t address);
mc_status mci_h5_remember(mci_h5_walk *s); /* the row added last */
/* Another link on the dataset of row `first`. */
mc_status mci_h5_add_same(mci_h5_walk *s, int64_t first);
mc_status mci_h5_check_overlaps(mci_h5_walk *s);
/* The listing through put, which takes all bytes or never comes back. */
void mci_h5_send(const mci_h5_walk *s, void (*put)(const void *bytes, size_t n));
int64_t mci_h5_sent_bytes(const mci_h5_walk *s);
void mci_h5_walk_free(mci_h5_walk *s);

/* -- the other parts ----------------------------------------------------------------------------
 */

/* h5attrs.c: the attributes of the row added last. */
mc_status mci_h5_scan_attrs(mci_h5_walk *s, hid_t object, const mci_h5_info *info);
/* 1 when the root group says that mascon wrote the file. */
int mci_h5_says_mascon(hid_t root);

/* h5sets.c */
mc_status mci_h5_scan_dataset(mci_h5_walk *s, hid_t set, const mci_h5_info *info);
/* Shape and bytes with elements of type_size bytes; NULL, or what is wrong with them. */
const char *mci_h5_shape(mc_h5_entry *e, hid_t space, size_t type_size);
/* The dtype that the HDF5 type and the attribute `dtype` together say; -1 with the reason. */
int mci_h5_settle(const mci_h5_walk *s, const mc_h5_entry *e, hid_t type, int *swapped, char *why,
                  size_t size);

/* h5views.c: a virtual dataset; then, when all is listed, all their sources. */
mc_status mci_h5_scan_view(mci_h5_walk *s, hid_t set, hid_t props, const mci_h5_info *info);
mc_status mci_h5_check_views(mci_h5_walk *s);

/* h5scan.c: all of an open file. On failure the message is set; free s in any case. */
mc_status mci_h5_scan(mci_h5_walk *s, hid_t file);

/* h5decode.c */
/* NULL, or why the chunks and filters of a dataset cannot be decoded within the limits. */
const char *mci_h5_chunk_problem(hid_t props, size_t type_size, const mci_scan_start *start,
                                 char *why, size_t size);
/* Elements [first, first + n) of the dataset at `path` as little-endian `dtype`, in parts, through
 * put. What it read last stays open. */
mc_status mci_h5_decode(hid_t file, const char *path, int dtype, int64_t first, int64_t n,
                        void (*put)(const void *bytes, size_t n));

/* h5door.c: MCI_SCAN_FILE as the one file that libhdf5 can open; negative on failure. */
hid_t mci_h5_open_door(const mci_scan_start *start);

#endif
