/* mutate_file.c: structure-aware changes to HDF5 files.
 *
 * Knows the signatures of HDF5's blocks, the messages of object headers of version 2 (the format
 * specification's IV.A.1.b: type 1 byte, size 2, flags 1, creation order 2 where the header's
 * flag 2 is set) and the fields of superblocks. Changes one to four places, then makes the
 * superblock of version 2 and 3 right again: end of file and checksum. The other blocks' checksums
 * are the helper's affair.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

static uint64_t state;
static uint32_t draw(uint32_t n) { /* splitmix64 */
    uint64_t z = (state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return n ? (uint32_t)((z ^ (z >> 31)) % n) : 0;
}

/* -- checksums --------------------------------------------------------------------------------- */

static uint32_t turn(uint32_t x, int k) {
    return x << k | x >> (32 - k);
}

/* Bob Jenkins' lookup3, as HDF5 uses it: initial value 0, bytes in little-endian words. */
static uint32_t lookup3(const uint8_t *p, size_t n) {
    uint32_t a, b, c;
    a = b = c = 0xdeadbeefu + (uint32_t)n;
    while (n > 12) {
        uint32_t w[3];
        memcpy(w, p, 12);
        a += w[0], b += w[1], c += w[2];
        a -= c, a ^= turn(c, 4), c += b;
        b -= a, b ^= turn(a, 6), a += c;
        c -= b, c ^= turn(b, 8), b += a;
        a -= c, a ^= turn(c, 16), c += b;
        b -= a, b ^= turn(a, 19), a += c;
        c -= b, c ^= turn(b, 4), b += a;
        p += 12, n -= 12;
    }
    if (n == 0) return c;
    uint32_t w[3] = {0, 0, 0};
    memcpy(w, p, n);
    a += w[0], b += w[1], c += w[2];
    c ^= b, c -= turn(b, 14);
    a ^= c, a -= turn(c, 11);
    b ^= a, b -= turn(a, 25);
    c ^= b, c -= turn(b, 16);
    a ^= c, a -= turn(c, 4);
    b ^= a, b -= turn(a, 14);
    c ^= b, c -= turn(b, 24);
    return c;
}

static const uint8_t signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

void fuzz_superblock(uint8_t *block, size_t size) {
    uint64_t end = size, root = 48;
    memset(block, 0, 48);
    memcpy(block, signature, 8);
    block[8] = 3;
    block[9] = block[10] = 8;
    memset(block + 20, 0xff, 8); /* no extension */
    memcpy(block + 28, &end, 8);
    memcpy(block + 36, &root, 8);
    uint32_t sum = lookup3(block, 44);
    memcpy(block + 44, &sum, 4);
}

static void repair(uint8_t *data, size_t size) {
    if (size < 48 || memcmp(data, signature, 8) != 0 || data[8] < 2 || data[8] > 3) return;
    uint64_t end = size;
    if (draw(50) > 0) memcpy(data + 28, &end, 8);
    if (draw(50) > 0) data[11] = 0; /* closed */
    uint32_t sum = lookup3(data, 44);
    memcpy(data + 44, &sum, 4);
}

/* -- places ------------------------------------------------------------------------------------ */

typedef struct place {
    size_t at, n; /* a block's or message's bytes */
} place;

enum { PLACES = 4096 };
static place places[PLACES];
static size_t n_places;

static void add_place(size_t at, size_t n, size_t size) {
    if (at >= size || n == 0) return;
    if (n > size - at) n = size - at;
    if (n_places < PLACES) places[n_places++] = (place){at, n};
}

/* Messages from `at` on, until `end`. */
static void find_messages(const uint8_t *data, size_t size, size_t at, size_t end, size_t head) {
    while (at + head < end && end <= size) {
        size_t n = (size_t)data[at + 1] | (size_t)data[at + 2] << 8;
        if (at + head + n > end) return;
        add_place(at, head, size);
        /* twice, for these matter most: dataspace, link info, type, fill, link, layout, filters,
         * attribute, continuation, attribute info */
        static const uint8_t wanted[] = {1, 2, 3, 5, 6, 8, 11, 12, 16, 21};
        for (int k = 0; k < 1 + (memchr(wanted, data[at], sizeof wanted) != NULL); k++)
            add_place(at + head, n, size);
        at += head + n;
    }
}

static void find_places(const uint8_t *data, size_t size) {
    static const char names[][5] = {"OCHK", "FRHP", "FHDB", "FHIB", "BTHD", "BTLF", "BTIN",
                                    "FSHD", "FSSE", "GCOL", "SNOD", "TREE", "HEAP", "SMTB",
                                    "SMLI", "FADB", "FAHD", "EAHD", "EAIB", "EASB", "EADB"};
    n_places = 0;
    add_place(0, 96, size);
    for (size_t at = 0; at + 16 < size; at++) {
        if (data[at] < 'A' || data[at] > 'T') continue;
        if (memcmp(data + at, "OHDR", 4) == 0) {
            uint8_t flags = data[at + 5];
            size_t from = at + 6 + (flags & 0x20 ? 16 : 0) + (flags & 0x10 ? 4 : 0), n = 0;
            size_t width = (size_t)1 << (flags & 3);
            if (from + width > size) continue;
            memcpy(&n, data + from, width);
            add_place(at, from + width - at, size);
            from += width;
            if (n < size && from + n <= size)
                find_messages(data, size, from, from + n, flags & 4 ? 6 : 4);
            continue;
        }
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            if (memcmp(data + at, names[k], 4) != 0) continue;
            add_place(at + 4, 60, size);
            if (k == 0) find_messages(data, size, at + 4, at + 4 + 256 < size ? at + 260 : size, 4);
        }
    }
}

/* -- changes ----------------------------------------------------------------------------------- */

static uint64_t odd_number(const uint8_t *data, size_t size) {
    static const uint64_t odd[] = {0,          1,          2,          3,          7,
                                   8,          16,         32,         33,         127,
                                   128,        255,        256,        1024,       4096,
                                   65535,      65536,      INT32_MAX,  UINT32_MAX, INT64_MAX,
                                   UINT64_MAX, 1ull << 31, 1ull << 32, 1ull << 40, 1ull << 61,
                                   1ull << 62, 1ull << 63, 1ull << 26, 1ull << 20, UINT64_MAX - 1};
    switch (draw(4)) {
        case 0:
            return size - draw(3) + draw(3);
        case 1: /* the address of something else */
            return n_places ? places[draw((uint32_t)n_places)].at - (draw(2) ? 4 : 0) : draw(4096);
        case 2: { /* a number from elsewhere */
            uint64_t value = 0;
            if (size > 8) memcpy(&value, data + draw((uint32_t)size - 8), 8);
            return value;
        }
        default:
            return odd[draw(sizeof odd / sizeof *odd)];
    }
}

static size_t change(uint8_t *data, size_t size, size_t max_size) {
    if (n_places == 0) return size;
    place p = places[draw((uint32_t)n_places)], q = places[draw((uint32_t)n_places)];
    switch (draw(10)) {
        case 0: /* a bit */
            data[p.at + draw((uint32_t)p.n)] ^= (uint8_t)(1u << draw(8));
            break;
        case 1: /* a byte */
            data[p.at + draw((uint32_t)p.n)] = (uint8_t)draw(256);
            break;
        case 2: /* a little more or less */
            data[p.at + draw((uint32_t)p.n)] += (uint8_t)(draw(2) ? 1 : 255);
            break;
        case 3: { /* one message or block over another */
            size_t n = p.n < q.n ? p.n : q.n;
            memmove(data + p.at, data + q.at, n);
            break;
        }
        case 4: /* two change places */
            for (size_t i = 0; i < p.n && i < q.n; i++) {
                uint8_t byte = data[p.at + i];
                data[p.at + i] = data[q.at + i];
                data[q.at + i] = byte;
            }
            break;
        case 5: /* shorter or longer */
            if (draw(8) == 0) return draw((uint32_t)size) + 1;
            if (draw(8) == 0 && size < max_size) {
                size_t more = draw((uint32_t)(max_size - size < 512 ? max_size - size : 512));
                memset(data + size, 0, more);
                return size + more;
            }
            break;
        default: { /* a number */
            size_t width = (size_t)1 << draw(4);
            if (p.n < width) break;
            uint64_t value = odd_number(data, size);
            memcpy(data + p.at + draw((uint32_t)(p.n - width + 1)), &value, width);
        }
    }
    return size;
}

size_t fuzz_mutate(uint8_t *data, size_t size, size_t max_size, unsigned seed, fuzz_plain plain) {
    state = seed;
    if (size == 0 || draw(20) == 0) {
        size = plain(data, size, max_size);
    } else {
        for (uint32_t k = draw(3) + 1; k > 0; k--) {
            find_places(data, size);
            size = change(data, size, max_size);
        }
    }
    repair(data, size);
    return size;
}

size_t fuzz_splice(const uint8_t *a, size_t n_a, const uint8_t *b, size_t n_b, uint8_t *out,
                   size_t max_size, unsigned seed) {
    state = seed;
    if (n_a > max_size) n_a = max_size;
    memcpy(out, a, n_a);
    find_places(b, n_b);
    if (n_places == 0) return n_a;
    place from = places[draw((uint32_t)n_places)];
    uint8_t *copy = malloc(from.n);
    if (!copy) return n_a;
    memcpy(copy, b + from.at, from.n);
    find_places(out, n_a);
    if (n_places > 0) {
        place to = places[draw((uint32_t)n_places)];
        memcpy(out + to.at, copy, to.n < from.n ? to.n : from.n);
    }
    free(copy);
    repair(out, n_a);
    return n_a;
}
