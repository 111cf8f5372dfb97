/* The parser of the reading helper's listing, on listings made by hand: a good one, and the same
 * with one lie each. */
#include <stddef.h>
#include <stdlib.h>

#include "check.h"
#include "io/reply.h"

/* -- a listing as structs -----------------------------------------------------------------------
 */

typedef struct row {
    mci_scan_row raw; /* path and problem are set from the texts, unless a lie is there */
    int64_t shape[9];
    const char *path, *problem;
} row;

typedef struct attr {
    mci_scan_attr raw;
    const char *name, *text;
} attr;

enum { ROOT, A, B, G, C, E, L, V, ROWS };
static row rows[ROWS];
static attr attrs[4];
static mci_scan_listing listing;
static mci_reply_facts facts;
static int tail; /* bytes that are added, or cut off */

/* A file of 1000 bytes: two links on float32 [2, 3] at 100, a decoded dataset, an empty one, one
 * with a problem, and a view. */
static void make_good(void) {
    static const row good[ROWS] = {
        [ROOT] = {.raw = {.kind = MC_H5_GROUP, .dtype = -1, .n_attrs = 2, .offset = -1},
                  .path = "/"},
        [A] = {.raw = {.kind = MC_H5_DATASET,
                       .dtype = MC_FLOAT32,
                       .ndim = 2,
                       .n_attrs = 2,
                       .offset = 100,
                       .bytes = 24,
                       .object = 11},
               .shape = {2, 3},
               .path = "/a"},
        [B] = {.raw = {.same = A + 1,
                       .kind = MC_H5_DATASET,
                       .dtype = MC_FLOAT32,
                       .offset = 100,
                       .bytes = 24,
                       .object = 11},
               .path = "/b"},
        [G] = {.raw = {.kind = MC_H5_GROUP, .dtype = -1, .offset = -1, .object = 12}, .path = "/g"},
        [C] = {.raw = {.kind = MC_H5_DATASET,
                       .dtype = MC_INT64,
                       .ndim = 1,
                       .decode = 1,
                       .offset = -1,
                       .bytes = 80,
                       .object = 13},
               .shape = {10},
               .path = "/g/c"},
        [E] = {.raw =
                   {.kind = MC_H5_DATASET, .dtype = MC_BOOL, .ndim = 2, .offset = -1, .object = 14},
               .shape = {0, 5},
               .path = "/g/empty"},
        [L] = {.raw = {.kind = MC_H5_DATASET,
                       .dtype = -1,
                       .ndim = 1,
                       .offset = -1,
                       .bytes = 1 << 20,
                       .object = 15},
               .shape = {1 << 20},
               .path = "/lost",
               .problem = "it is lost"},
        [V] = {.raw = {.kind = MC_H5_VIEW,
                       .dtype = MC_FLOAT32,
                       .ndim = 1,
                       .offset = -1,
                       .bytes = 12,
                       .object = 16},
               .shape = {3},
               .path = "/v",
               .problem = "its source '/x' is\033 missing"},
    };
    static const attr good_attrs[4] = {
        {.raw = {.kind = MC_H5_STRING, .size = 6}, .name = "format", .text = "torchy"},
        {.raw = {.kind = MC_H5_INT, .i = -5}, .name = "step"},
        {.raw = {.kind = MC_H5_DOUBLE, .d = 0.5}, .name = "half"},
        {.raw = {.kind = MC_H5_BOOL, .i = 1}, .name = "yes"},
    };
    memcpy(rows, good, sizeof rows);
    memcpy(attrs, good_attrs, sizeof attrs);
    listing = (mci_scan_listing){.n_rows = ROWS, .n_attrs = 4};
    facts = (mci_reply_facts){.file_bytes = 1000, .decode_limit = 80, .version = 3};
    tail = 0;
}

static unsigned char bytes[1 << 16];
static size_t n_bytes;

static void put(const void *p, size_t n) {
    memcpy(bytes + n_bytes, p, n);
    n_bytes += n;
}

static void put_text(const char *text) {
    put(text, strlen(text) + 1);
}

static void write_listing(void) {
    uint32_t chars = 0, next = 0;
    n_bytes = 0;
    for (int i = 0; i < ROWS; i++) {
        row *r = &rows[i];
        if (r->raw.path == 0) r->raw.path = (uint16_t)(strlen(r->path) + 1);
        if (r->raw.problem == 0 && r->problem) r->raw.problem = (uint16_t)(strlen(r->problem) + 1);
        chars += r->raw.path + (uint32_t)(r->problem ? strlen(r->problem) + 1 : 0);
    }
    for (int i = 0; i < 4; i++) {
        attrs[i].raw.name = (uint16_t)(strlen(attrs[i].name) + 1);
        chars += attrs[i].raw.name + (attrs[i].text ? attrs[i].raw.size + 1 : 0);
    }
    if (listing.n_chars == 0) listing.n_chars = chars;
    put(&listing, sizeof listing);
    for (int i = 0; i < ROWS; i++) {
        row *r = &rows[i];
        put(&r->raw, sizeof r->raw);
        put(r->shape, (size_t)(r->raw.ndim > 0 && r->raw.ndim < 9 ? r->raw.ndim : 0) * 8);
        put_text(r->path);
        if (r->problem) put_text(r->problem);
        for (uint32_t k = 0; k < r->raw.n_attrs && next < 4; k++, next++) {
            put(&attrs[next].raw, sizeof attrs[next].raw);
            put_text(attrs[next].name);
            if (attrs[next].text) put_text(attrs[next].text);
        }
    }
    n_bytes += (size_t)tail;
}

static const char *parse(mci_h5_table *table, char *why, size_t size) {
    /* a block of its own, so that sanitizers see a step beyond it */
    unsigned char *copy = malloc(n_bytes + 1);
    memcpy(copy, bytes, n_bytes);
    const char *wrong = mci_reply_parse(table, copy, n_bytes, &facts, why, size);
    free(copy);
    return wrong;
}

static void good(void) {
    TITLE("a good listing becomes entries and attributes");
    mci_h5_table t;
    char why[256];
    make_good();
    write_listing();
    const char *wrong = parse(&t, why, sizeof why);
    if (!CHECK(!wrong)) {
        printf("it says: %s\n", wrong);
        return;
    }
    CHECK(t.n_entries == ROWS && t.n_attrs == 4 && !t.own);
    CHECK(strcmp(t.entries[C].path, "/g/c") == 0 && t.entries[C].decode == 1);
    CHECK(t.entries[B].shape[1] == 3 && t.entries[B].offset == 100 && t.entries[B].n_attrs == 2);
    CHECK(strcmp(t.entries[B].path, "/b") == 0 && t.entries[B].object == t.entries[A].object);
    CHECK(strcmp(t.entries[V].problem, "its source '/x' is? missing") == 0);
    CHECK(t.entries[L].problem && t.entries[L].dtype == -1);
    const mc_h5_attr *a = &t.attrs[t.entries[ROOT].first_attr];
    CHECK(strcmp(a[0].s, "torchy") == 0 && a[0].size == 6 && a[1].i == -5 && a[1].d == -5);
    CHECK(t.attrs[2].d == 0.5 && t.attrs[3].i == 1);
    mci_reply_free(&t);
    CHECK(!t.entries && t.n_entries == 0);

    TITLE("NaNs of attributes have one form");
    uint64_t bits = UINT64_C(0xfff8deadbeef0001), canonical, got;
    double nan = (double)NAN;
    memcpy(&attrs[2].raw.d, &bits, 8);
    memcpy(&canonical, &nan, 8);
    write_listing();
    CHECK(!parse(&t, why, sizeof why));
    memcpy(&got, &t.attrs[2].d, 8);
    CHECK(got == canonical);
    mci_reply_free(&t);

    TITLE("whatever is cut off is missed");
    make_good();
    write_listing();
    size_t all = n_bytes;
    for (n_bytes = 0; n_bytes < all; n_bytes++) {
        CHECK(parse(&t, why, sizeof why) != NULL);
        CHECK(!t.entries && !t.attrs && !t.chars);
    }
}

/* -- lies ---------------------------------------------------------------------------------------
 */

#define LIE(what, part)                                             \
    do {                                                            \
        make_good();                                                \
        what;                                                       \
        write_listing();                                            \
        mci_h5_table t;                                             \
        char why[256];                                              \
        const char *wrong = parse(&t, why, sizeof why);             \
        if (!CHECK(wrong && strstr(wrong, part)))                   \
            printf("%s: says '%s'\n", #what, wrong ? wrong : "ok"); \
        CHECK(!t.entries);                                          \
        if (!wrong) mci_reply_free(&t);                             \
    } while (0)

static void lies(void) {
    TITLE("counts are held against what is there");
    LIE(listing.n_rows = 0, "the number of objects");
    LIE(listing.n_rows = UINT32_MAX, "the number of objects");
    LIE(listing.n_rows = ROWS + 1, "it ends within an object");
    LIE(listing.n_rows = ROWS - 1, "its counts are wrong");
    LIE(listing.n_attrs = UINT32_MAX, "the number of attributes");
    LIE(listing.n_attrs = 5, "its counts are wrong");
    LIE(listing.n_attrs = 3, "object 1 (0-based): an object has too many attributes");
    LIE(listing.n_chars = UINT32_MAX, "the length of the texts");
    LIE(listing.n_chars = 400, "its counts are wrong");
    LIE(listing.n_chars = 3, "an attribute has no name");
    LIE(tail = 1, "its counts are wrong");
    LIE(listing.own = 2, "about the file's format");
    LIE((listing.own = 1, rows[C].raw.decode = 0, rows[C].raw.offset = 200,
         rows[L].raw.kind = MC_H5_VIEW),
        "it is wrong about the file's format");
    LIE(attrs[0].text = "mascon", "it is wrong about the file's format");

    TITLE("paths are names in a tree");
    LIE(rows[ROOT].path = "/x", "the root is not the first object");
    LIE(rows[ROOT].raw.kind = MC_H5_DATASET, "");
    LIE(rows[A].path = "/", "the root is not the first object");
    LIE(rows[A].path = "a", "a path is none");
    LIE(rows[A].path = "", "a path is none");
    LIE(rows[A].path = "/a/", "a part of no name");
    LIE(rows[A].path = "/a//b", "a part of no name");
    LIE(rows[A].path = "/.", "a part of no name");
    LIE(rows[A].path = "/g/early", "a path has no group above it");
    LIE(rows[B].path = "/a", "paths are not in order");
    LIE(rows[B].path = "/Z", "paths are not in order");
    LIE(rows[B].path = "/a/b", "a path has no group above it");
    LIE(rows[G].path = "/f", "a path has no group above it");
    LIE(rows[G].raw.path = 200, "");
    LIE(rows[G].raw.path = 2, "a path is none");
    LIE(rows[L].path = "/g/empty/z", "a path has no group above it");
    char deep[80] = "";
    for (int i = 0; i < 33; i++) strcat(deep, "/x");
    LIE(rows[V].path = deep, "a path is too deep");

    TITLE("numbers of datasets fit one another and the file");
    LIE(rows[A].raw.kind = 3, "is of no kind");
    LIE(rows[A].raw.kind = -1, "is of no kind");
    LIE(rows[A].raw.dtype = MC_DTYPE_COUNT, "a dtype is none");
    LIE(rows[A].raw.dtype = -2, "a dtype is none");
    LIE(rows[A].raw.dtype = -1, "without a dtype has no problem");
    LIE(rows[A].raw.ndim = 9, "more than 8 axes");
    LIE(rows[A].raw.ndim = -1, "more than 8 axes");
    LIE(rows[A].shape[0] = -2, "a negative size");
    LIE(rows[A].shape[0] = 3, "a size is not that of the shape");
    LIE((rows[A].shape[0] = INT64_MAX, rows[A].shape[1] = 4), "a size is not that of the shape");
    LIE((rows[E].shape[0] = 0, rows[E].raw.ndim = 3,
         rows[E].shape[1] = rows[E].shape[2] = INT64_MAX),
        "a size is not that of the shape");
    LIE(rows[A].raw.bytes = -24, "a negative size");
    LIE(rows[A].raw.offset = 977, "an extent is not inside the file");
    LIE(rows[A].raw.offset = INT64_MAX, "an extent is not inside the file");
    LIE(rows[A].raw.offset = -2, "an extent is not inside the file");
    LIE(rows[A].raw.offset = -1, "an offset is there or missing");
    LIE(rows[C].raw.offset = 500, "an offset is there or missing");
    LIE(rows[E].raw.offset = 500, "an offset is there or missing");
    LIE(rows[V].raw.offset = 500, "an offset is there or missing");
    LIE(rows[L].raw.offset = 500, "an offset is there or missing");
    LIE(facts.base = 512, "an extent is not inside the file");
    LIE(rows[C].raw.decode = 2, "something is decoded");
    LIE(rows[V].raw.decode = 1, "something is decoded");
    LIE(rows[L].raw.decode = 1, "something is decoded");
    LIE(rows[E].raw.decode = 1, "too much is to be decoded");
    LIE(facts.decode_limit = 79, "too much is to be decoded");
    LIE(rows[L].raw.dtype = MC_UINT8, "a dataset with a problem has a dtype");
    LIE(rows[L].problem = "", "a problem has no text");
    LIE(rows[L].raw.problem = 5, "a problem has no text");
    LIE(rows[G].raw.ndim = 1, "a group has what only datasets have");
    LIE(rows[G].raw.offset = 0, "a group has what only datasets have");

    TITLE("objects are one or apart");
    LIE(rows[C].raw.object = 11, "two objects are one");
    LIE(rows[G].raw.object = 11, "two objects are one");
    LIE(rows[B].raw.same = ROOT + 1, "a group has two links");
    LIE(rows[B].raw.same = B + 1, "a link is on an object that is not there yet");
    LIE(rows[B].raw.same = UINT32_MAX, "a link is on an object that is not there yet");
    LIE(rows[B].raw.offset = 101, "two links on one dataset differ");
    LIE(rows[B].raw.dtype = MC_INT32, "two links on one dataset differ");
    LIE(rows[B].raw.n_attrs = 1, "two links on one dataset differ");
    LIE((rows[C].raw.decode = 0, rows[C].raw.offset = 123), "two datasets share bytes");

    TITLE("a file of mascon's own has only what mascon writes");
    LIE((attrs[0].text = "mascon", listing.own = 1), "that mascon never writes");

    TITLE("attributes have names, kinds and sizes");
    LIE(attrs[0].name = "", "an attribute has no name");
    LIE(attrs[1].name = "format", "attributes are not in order");
    LIE(attrs[1].raw.kind = 4, "of no kind");
    LIE(attrs[1].raw.size = 1, "a number has a length");
    LIE(attrs[3].raw.i = 2, "neither 0 nor 1");
    LIE((attrs[0].raw.size = 65537, listing.n_chars = 100), "too long");
    LIE((attrs[0].raw.size = 5, listing.n_chars = 100), "an attribute has no text");
    LIE(rows[A].raw.n_attrs = 1025, "too many attributes");
}

/* -- what a listing costs -----------------------------------------------------------------------
 */

/* The root and n objects: empty datasets "/00000000" and on, each with an attribute of `text_bytes`
 * bytes of text unless that is 0, or the first of them and links on it. NULL when it parses. */
static const char *parse_many(int n, int links, size_t text_bytes, int alike) {
    static char why[256];
    size_t each = sizeof(mci_scan_row) + sizeof(mci_scan_attr) + 8 + 10 + 2 + text_bytes + 1;
    unsigned char *block = malloc(sizeof listing + ((size_t)n + 1) * each), *p = block;
    mci_scan_listing head = {.n_rows = (uint32_t)n + 1,
                             .n_attrs = text_bytes ? (uint32_t)n : 0,
                             .n_chars = 2 + (uint32_t)n * 10};
    if (text_bytes) head.n_chars += (uint32_t)n * (uint32_t)(2 + text_bytes + 1);
    mci_scan_row root = {.kind = MC_H5_GROUP, .dtype = -1, .path = 2, .offset = -1};
    int64_t none = 0;
    p = (unsigned char *)mempcpy(p, &head, sizeof head);
    p = (unsigned char *)mempcpy(p, &root, sizeof root);
    p = (unsigned char *)mempcpy(p, "/", 2);
    for (int i = 0; i < n; i++) {
        int link = links && i > 0;
        mci_scan_row raw = {.same = link ? 2 : 0,
                            .kind = MC_H5_DATASET,
                            .dtype = MC_FLOAT32,
                            .ndim = link ? 0 : 1,
                            .path = 10,
                            .n_attrs = text_bytes ? 1 : 0,
                            .offset = -1,
                            .object = link ? 1 : i + 1};
        p = (unsigned char *)mempcpy(p, &raw, sizeof raw);
        if (!link) p = (unsigned char *)mempcpy(p, &none, sizeof none);
        p += sprintf((char *)p, "/%08d", i) + 1;
        if (text_bytes) {
            mci_scan_attr one = {.name = 2, .kind = MC_H5_STRING, .size = (uint32_t)text_bytes};
            p = (unsigned char *)mempcpy(p, &one, sizeof one);
            p = (unsigned char *)mempcpy(p, "a", 2);
            memset(p, 'x', text_bytes);
            memcpy(p, alike ? "00000000" : (char *)p - 2 - sizeof one - 9, 8);
            p[text_bytes] = '\0';
            p += text_bytes + 1;
        }
    }
    mci_h5_table t;
    const char *wrong = mci_reply_parse(&t, block, (size_t)(p - block), &facts, why, sizeof why);
    free(block);
    if (!wrong) mci_reply_free(&t);
    return wrong;
}

static void costs(void) {
    const char part[] = "more objects than a file of its size may have";
    make_good();
    int64_t room = mci_scan_memory(facts.file_bytes) - MCI_COST_GROUP - 2 - MCI_COST_TEXT;
    TITLE("a listing may cost 64 MiB and the file's size");
    CHECK(mci_scan_memory(1000) == 67108864 + 1000);
    int64_t path = 10 + MCI_COST_TEXT;
    int n = (int)(room / (MCI_COST_DATASET + path));
    const char *wrong = parse_many(n, 0, 0, 0);
    if (!CHECK(!wrong)) printf("it says: %s\n", wrong);
    wrong = parse_many(n + 1, 0, 0, 0);
    CHECK(wrong && strstr(wrong, part));
    TITLE("links are counted with what they cost");
    n = 1 + (int)((room - MCI_COST_DATASET - path) / (MCI_COST_LINK + path));
    CHECK(!parse_many(n, 1, 0, 0));
    wrong = parse_many(n + 1, 1, 0, 0);
    CHECK(wrong && strstr(wrong, part));
    TITLE("a file that is larger by one of them may have one more");
    facts.file_bytes += MCI_COST_LINK + path;
    CHECK(!parse_many(n + 1, 1, 0, 0));
    facts.file_bytes = 1000;
    TITLE("texts of attributes that are alike count less");
    int64_t each = MCI_COST_DATASET + path + MCI_COST_ATTR + 2;
    n = (int)((room - MCI_COST_TEXT) / (each + 1001 + MCI_COST_TEXT));
    CHECK(!parse_many(n, 0, 1000, 0));
    wrong = parse_many(n + 1, 0, 1000, 0);
    CHECK(wrong && strstr(wrong, part));
    CHECK(!parse_many(n + 1, 0, 1000, 1));
}

/* -- any bytes ----------------------------------------------------------------------------------
 */

static void any_bytes(void) {
    TITLE("no change of any byte leads outside the reply");
    mci_h5_table t;
    char why[256];
    make_good();
    write_listing();
    int accepted = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes[i] ^= (unsigned char)(1 << bit);
            if (!parse(&t, why, sizeof why)) {
                accepted++;
                for (int64_t k = 0; k < t.n_entries; k++) {
                    const mc_h5_entry *e = &t.entries[k];
                    CHECK(e->path[0] == '/' && e->first_attr + e->n_attrs <= t.n_attrs);
                    CHECK(e->offset == -1 || e->offset + e->bytes <= 1000);
                }
                mci_reply_free(&t);
            }
            bytes[i] ^= (unsigned char)(1 << bit);
        }
    }
    CHECK(accepted > 0); /* letters of names, values of attributes */
}

int main(void) {
    good();
    lies();
    costs();
    any_bytes();
    return check_report();
}
