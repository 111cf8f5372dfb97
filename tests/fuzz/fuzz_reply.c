/* fuzz_reply.c: libFuzzer target: any bytes as the reading helper's listing.
 *
 * The helper may have been taken over by the file it reads, so its reply is an attacker's text:
 * whatever it is, reply.c refuses it or makes a table of it that keeps every promise (walk.h).
 * An input is the facts that the parent knows (24 bytes) and the listing. The mutator
 * (mutate_reply.c) knows its records.
 */
#include "io/reply.h"
#include "fuzz.h"
#include "walk.h"

enum { FACTS = 24 };

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < FACTS) return 0;
    int64_t bytes, limit;
    memcpy(&bytes, data, 8);
    memcpy(&limit, data + 8, 8);
    mci_reply_facts facts = {.file_bytes = bytes & INT64_MAX,
                             .decode_limit = limit & INT64_MAX,
                             .base = data[16] & 1 ? 512 : 0,
                             .version = data[17] & 3};
    /* a copy of its own, so that reading past its end is seen */
    size_t n = size - FACTS;
    void *listing = malloc(n ? n : 1);
    if (!listing) return 0;
    memcpy(listing, data + FACTS, n);
    mci_h5_table table;
    char why[200];
    const char *wrong = mci_reply_parse(&table, listing, n, &facts, why, sizeof why);
    free(listing);
    if (wrong) {
        MUST(walk_text(wrong) > 0 && !table.entries && !table.attrs && !table.chars);
        MUST(table.n_entries == 0 && table.n_attrs == 0);
        return 0;
    }
    MUST(table.n_entries > 0 && table.n_attrs >= 0);
    int64_t decoded = 0;
    for (int64_t i = 0; i < table.n_entries; i++) {
        const mc_h5_entry *e = &table.entries[i];
        walk_entry(e, i, table.n_attrs, facts.file_bytes);
        int first = 1; /* of the links on its object */
        for (int64_t k = 0; k < i && table.n_entries < 500; k++) {
            walk_pair(&table.entries[k], e);
            first = first && table.entries[k].object != e->object;
        }
        if (e->decode && first) MUST(!__builtin_add_overflow(decoded, e->bytes, &decoded));
    }
    MUST(table.n_entries >= 500 || decoded <= facts.decode_limit);
    for (int64_t i = 0; i < table.n_attrs; i++) walk_attr(&table.attrs[i]);
    mci_reply_free(&table);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    return fuzz_mutate_reply(data, size, max_size, seed, FACTS, LLVMFuzzerMutate);
}
