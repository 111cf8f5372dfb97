/* scan.h: what libmascon.so and the reading helper program (mascon_h5scan) say to each other.
 *
 * The helper has the file and one end of a socket pair open, as the descriptors below. It is told
 * its limits, then answers requests until the other end closes. Both are of one build on one
 * machine: numbers are in native form. The file may have taken the helper over, so the parent
 * believes nothing of a reply before reply.c has checked it.
 */
#ifndef MCI_SCAN_H
#define MCI_SCAN_H

#include <stdint.h>
#include <string.h>

#include "h5.h"

enum { MCI_SCAN_MAGIC = 0x53484d02, MCI_SCAN_FILE = 3, MCI_SCAN_SOCKET = 4 };

/* Comes first, once. */
typedef struct mci_scan_start {
    uint32_t magic;
    int32_t version;    /* as in mci_superblock */
    int32_t extended;   /* likewise */
    int32_t seconds;    /* of processor time for the listing */
    int64_t file_bytes; /* the file's length */
    int64_t base;       /* as in mci_superblock */
    int64_t memory;     /* bytes of heap that the helper may have */
} mci_scan_start;

enum { MCI_SCAN_LIST = 1, MCI_SCAN_DECODE = 2 };
typedef struct mci_scan_request {
    uint32_t magic;
    int32_t op;
    /* list: */
    int64_t decode_limit; /* bytes of all datasets that need decoding */
    int64_t memory_limit; /* of what becomes of the listing: mci_scan_memory */
    /* decode: elements [first, first + n), as little-endian `dtype`, of the dataset whose path
     * follows: `path` bytes, its NUL included */
    int32_t dtype;
    uint32_t path;
    int64_t first, n;
    int64_t seconds; /* of processor time for it */
} mci_scan_request;

/* Begins every answer: `bytes` bytes follow. status MC_OK: the listing, or a part of the decoded
 * bytes (parts come until all are there); else the message, without the file's name. */
typedef struct mci_scan_header {
    uint32_t magic;
    int32_t status;
    int64_t bytes;
} mci_scan_header;
enum { MCI_SCAN_MESSAGE = 1800 };

/* The listing: this, then the objects in the order of their paths, part by part, the root first. */
typedef struct mci_scan_listing {
    uint32_t own; /* 1: the dialect that mascon writes */
    uint32_t n_rows, n_attrs;
    uint32_t n_chars; /* bytes of all texts, their NULs included */
} mci_scan_listing;

/* An object; behind it come `ndim` sizes (int64), its path, its problem if there is one, and its
 * attributes. */
typedef struct mci_scan_row {
    uint32_t same; /* over 0: one more link on the dataset of row same - 1, which only the path
                      differs from: no sizes, problem and attributes follow */
    int8_t kind, dtype, ndim, decode;
    uint16_t path, problem; /* bytes, NULs included; 0: no problem */
    uint32_t n_attrs;
    int64_t offset, bytes, object; /* as in mc_h5_entry */
} mci_scan_row;

/* An attribute; behind it come its name and, if it is a text, its value. */
typedef struct mci_scan_attr {
    uint16_t name; /* bytes, the NUL included */
    uint16_t kind;
    uint32_t size; /* texts: bytes, of which a NUL more follows */
    int64_t i;     /* ints and bools */
    double d;      /* and doubles */
} mci_scan_attr;

/* What becomes of a listing in Lua, bytes: links and attributes cost a file next to nothing, so
 * that they are counted before they are made, by the helper and again by reply.c. Measured with
 * LuaJIT of 64 bits and rounded up: tables are 64 bytes, their fields 24 each in powers of two. */
enum {
    MCI_COST_GROUP = 200,
    MCI_COST_DATASET = 480, /* a view likewise; with its shape, whatever that is */
    MCI_COST_LINK = 1000,   /* one more on a dataset: it costs a file 30 bytes, an inspect this */
    MCI_COST_ATTR = 64,
    MCI_COST_TEXT = 40 /* beside its own bytes */
};

/* Names or values of attributes that were met before: Lua has a text once, so that the next costs
 * only its bytes, in C. A few of them are enough, as all tensors have the same attributes. */
typedef struct mci_scan_words {
    int64_t at[64]; /* in the table's chars */
    size_t n[64];   /* bytes, the NUL included; 0: none */
} mci_scan_words;

/* What the text of n bytes (its NUL included) at chars + at costs; it is known from now on. */
static inline int64_t mci_scan_word_cost(mci_scan_words *w, const char *chars, int64_t at,
                                         size_t n) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)chars[at + (int64_t)i]) * 16777619u;
    uint32_t slot = hash >> 26;
    if (w->n[slot] == n && memcmp(chars + w->at[slot], chars + at, n) == 0) return (int64_t)n;
    w->at[slot] = at;
    w->n[slot] = n;
    return (int64_t)n + MCI_COST_TEXT;
}

/* Bytes that a listing may cost, over which the file is refused. */
static inline int64_t mci_scan_memory(int64_t file_bytes) {
    const int64_t most = INT64_C(1) << 30;
    return (INT64_C(1) << 26) + (file_bytes < most ? file_bytes : most);
}

static inline int64_t mci_scan_cost(int kind, int is_link) {
    return is_link ? MCI_COST_LINK : kind == MC_H5_GROUP ? MCI_COST_GROUP : MCI_COST_DATASET;
}

/* Below 0 when path a comes before b: '/' sorts below all else, so that this is the order of a walk
 * through a tree. */
static inline int mci_scan_compare(const char *a, const char *b) {
    while (*a == *b && *a) a++, b++;
    int x = *a == '\0' ? -1 : *a == '/' ? 0 : (unsigned char)*a;
    int y = *b == '\0' ? -1 : *b == '/' ? 0 : (unsigned char)*b;
    return x - y;
}

#endif
