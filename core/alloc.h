/* alloc.h: counted memory of all devices, with a cache of freed blocks.
 *
 * Blocks come in size classes (eight to an octave), so a training loop finds last step's blocks
 * again and pays no page faults. Freed blocks are kept up to half the peak of live bytes plus 64
 * MiB. live_bytes counts whole blocks. Sanitizer builds keep nothing, so that a use after free is
 * seen.
 */
#ifndef MCI_ALLOC_H
#define MCI_ALLOC_H

#include <stddef.h>
#include <stdint.h>

#include "mascon.h"

/* 0 bytes give *out = NULL. `bytes` comes back as the block's size, to be handed to mci_free. */
mc_status mci_alloc(int device, int64_t *bytes, void **out);
void mci_free(int device, void *data, int64_t bytes);
/* 1 when the allocation that mc_memory_fail_at chose is this one. Called once per allocation. */
int mci_alloc_must_fail(void);
void mci_count_storages(int change);

#endif
