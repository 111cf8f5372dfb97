/* reply.h: the listing that the reading helper sends, checked and turned into the entries of an
 * open file. */
#ifndef MCI_REPLY_H
#define MCI_REPLY_H

#include <stddef.h>

#include "scan.h"

typedef struct mci_h5_table {
    int64_t n_entries, n_attrs;
    mc_h5_entry *entries;
    mc_h5_attr *attrs;
    char *chars; /* what the pointers in both point into */
    int own;
} mci_h5_table;

/* What the parent knows by itself about the file. */
typedef struct mci_reply_facts {
    int64_t file_bytes, base, decode_limit;
    int version; /* of the superblock */
} mci_reply_facts;

/* n bytes of a listing into a table; NULL, or what makes no sense in it (then the table is empty):
 * mci_reply_no_memory, a constant, or `why` (size bytes). */
const char *mci_reply_parse(mci_h5_table *table, const void *bytes, size_t n,
                            const mci_reply_facts *facts, char *why, size_t size);
extern const char mci_reply_no_memory[];
/* Makes a text from the helper fit to be shown: control characters become '?'. */
void mci_reply_plain(char *text);
void mci_reply_free(mci_h5_table *table);

#endif
