/* superblock.h: the first bytes of an HDF5 file, checked before anything else looks at it. */
#ifndef MCI_SUPERBLOCK_H
#define MCI_SUPERBLOCK_H

#include <stdint.h>

#include "mascon.h"

typedef struct mci_superblock {
    int32_t version;  /* 0 to 3 */
    int32_t extended; /* 1: versions 2 and 3: it has an extension, or another base than its place */
    int64_t base;     /* where the HDF5 part starts: over 0 behind somebody's user block */
} mci_superblock;

/* Checks signature, sizes, checksum, closed mark and end of the file of `bytes` bytes that fd has
 * open; `label` is its name in messages. Sets the thread's message. */
mc_status mci_superblock_check(mci_superblock *out, int fd, int64_t bytes, const char *label);

#endif
