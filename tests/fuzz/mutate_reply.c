/* mutate_reply.c: structure-aware changes to the reading helper's listings (io/scan.h).
 *
 * Changes single fields of the records, copies and drops records, and mostly sets the counts right
 * afterwards, as an attacker would. What is before the listing gets odd numbers now and then.
 */
#include <stdlib.h>
#include <string.h>

#include "io/scan.h"
#include "fuzz.h"

static uint32_t state;
static uint32_t draw(uint32_t n) {
    state = state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)(state >> 4) * n) >> 28);
}

/* A record: where it lies, how long its fixed part is and all of it. */
typedef struct record {
    size_t at, fixed, all;
    int is_attr;
} record;

/* The records of a listing, as far as they make sense; *counts is what its head should say. */
static size_t find_records(const uint8_t *p, size_t n, record *list, size_t room,
                           mci_scan_listing *counts) {
    size_t at = sizeof *counts, found = 0;
    memset(counts, 0, sizeof *counts);
    uint64_t chars = 0;
    while (found < room && at + sizeof(mci_scan_row) <= n) {
        mci_scan_row row;
        memcpy(&row, p + at, sizeof row);
        size_t rest = (row.same || row.ndim < 0 ? 0 : (size_t)row.ndim * 8) + row.path +
                      (row.same ? 0 : (size_t)row.problem);
        if (rest > n - at - sizeof row) break;
        list[found++] = (record){at, sizeof row, sizeof row + rest, 0};
        counts->n_rows++;
        chars += row.path + (row.same ? 0u : row.problem);
        at += sizeof row + rest;
        for (uint32_t i = 0; !row.same && i < row.n_attrs && found < room; i++) {
            mci_scan_attr a;
            if (at + sizeof a > n) break;
            memcpy(&a, p + at, sizeof a);
            rest = a.name + (a.kind == MC_H5_STRING ? (size_t)a.size + 1 : 0);
            if (rest > n - at - sizeof a) break;
            list[found++] = (record){at, sizeof a, sizeof a + rest, 1};
            counts->n_attrs++;
            chars += rest;
            at += sizeof a + rest;
        }
    }
    counts->n_chars = (uint32_t)chars;
    return found;
}

static uint64_t odd_number(void) {
    static const uint64_t odd[] = {0,        1,          2,          8,          9,
                                   255,      256,        4095,       4096,       65535,
                                   65536,    INT32_MAX,  UINT32_MAX, INT64_MAX,  UINT64_MAX,
                                   1u << 21, 1ull << 62, 1ull << 40, 1ull << 32, INT64_MAX - 1};
    return draw(3) ? odd[draw(sizeof odd / sizeof *odd)] : draw(64);
}

size_t fuzz_mutate_reply(uint8_t *data, size_t size, size_t max_size, unsigned seed, size_t head,
                         fuzz_plain plain) {
    state = seed;
    if (size < head + sizeof(mci_scan_listing) || draw(8) == 0) return plain(data, size, max_size);
    static record list[4096];
    mci_scan_listing counts;
    mci_scan_header header;
    int has_header = head == sizeof header;
    uint8_t *p = data + head;
    size_t n = size - head; /* of the listing; more may follow it */
    if (has_header) {
        memcpy(&header, data, sizeof header);
        if (header.bytes >= (int64_t)sizeof counts && header.bytes < (int64_t)n)
            n = (size_t)header.bytes;
    }
    size_t found = find_records(p, n, list, 4096, &counts);
    for (uint32_t k = draw(3) + 1; k > 0 && found > 0; k--) {
        record r = list[draw((uint32_t)found)], q = list[draw((uint32_t)found)];
        uint64_t value = odd_number();
        size_t behind = size - head - r.at - r.all; /* bytes after the record */
        switch (draw(6)) {
            case 0: { /* a number of it */
                size_t width = (size_t)1 << draw(4), at = draw((uint32_t)(r.fixed / width)) * width;
                memcpy(p + r.at + at, &value, width);
                break;
            }
            case 1: /* near what it was */
                p[r.at + draw((uint32_t)r.fixed)] += (uint8_t)(draw(2) ? 1 : 255);
                break;
            case 2: /* a byte of its texts and sizes */
                if (r.all > r.fixed)
                    p[r.at + r.fixed + draw((uint32_t)(r.all - r.fixed))] =
                        draw(3) ? (uint8_t) "/.\0a0\xff"[draw(6)] : (uint8_t)draw(256);
                break;
            case 3: /* one more of it, behind another */
                if (size + q.all <= max_size) {
                    uint8_t *copy = malloc(q.all);
                    if (!copy) return size;
                    memcpy(copy, p + q.at, q.all);
                    memmove(p + r.at + r.all + q.all, p + r.at + r.all, behind);
                    memcpy(p + r.at + r.all, copy, q.all);
                    free(copy);
                    n += q.all;
                    size += q.all;
                }
                break;
            case 4: /* none of it */
                memmove(p + r.at, p + r.at + r.all, behind);
                n -= r.all;
                size -= r.all;
                break;
            default: { /* what is before the listing */
                size_t width = (size_t)1 << draw(4);
                memcpy(data + draw((uint32_t)(head / width)) * width, &value, width);
            }
        }
        found = find_records(p, n, list, 4096, &counts);
    }
    if (draw(10) > 0) {
        uint32_t own;
        memcpy(&own, p, 4);
        counts.own = draw(20) ? own : draw(3);
        memcpy(p, &counts, sizeof counts);
    }
    if (has_header && draw(10) > 0) {
        header = (mci_scan_header){.magic = MCI_SCAN_MAGIC, .bytes = (int64_t)n};
        memcpy(data, &header, sizeof header);
    }
    return size;
}
