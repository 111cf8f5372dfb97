/* alloc.h: counted memory of all devices, with a cache of freed blocks.
 *
 * Blocks come in size classes (eight to an octave), so a training loop finds last step's blocks
 * again and pays no page faults. Of the CPU's freed blocks as many are kept as half the peak of
 * live bytes plus 64 MiB; of a device's all, until memory is short: giving them back would stop it.
 * Work on a device runs in the order it was given, so a block may be used again before its last
 * reader has run. live_bytes counts whole blocks. Sanitizer builds keep nothing of the CPU's, so
 * that a use after free is seen.
 *
 * Pools: what is allocated while a graph is recorded belongs to the graph's own pool and goes back
 * there, for the graph writes to it at each replay. Pool 0 is the common one; the others take what
 * it has cached before they ask the device, and give it back when they are released. A pool counts
 * the replays of its graph for as long as anything of it is in use.
 */
#ifndef MCI_ALLOC_H
#define MCI_ALLOC_H

#include <stddef.h>
#include <stdint.h>

#include "mascon.h"

typedef struct mci_block {
    void *data;
    int64_t bytes; /* wanted; mci_alloc sets it to the block's size, either will do for mci_free */
    int pool;      /* set by mci_alloc */
    const char *tag; /* a literal: what it is for */
} mci_block;

/* The tag of tensors that this thread makes now: an op's name, or NULL. */
extern _Thread_local const char *mci_tag;

/* 0 bytes give data = NULL. */
mc_status mci_alloc(int device, mci_block *block);
void mci_free(int device, const mci_block *block);
/* Until close, allocations on the device come from a new pool; its number, or 0 when the system has
 * no memory. */
int mci_pool_open(int device);
void mci_pool_close(int device);
/* No graph writes to the pool's blocks any more: they become common ones. */
void mci_pool_release(int device, int pool);
/* The graph has been replayed: what lies in the pool has been written. */
void mci_pool_replayed(int device, int pool);
int64_t mci_pool_replays(int device, int pool);
/* 1 when the allocation that mc_memory_fail_at chose is this one. Called once per allocation. */
int mci_alloc_must_fail(void);
void mci_count_storages(int change);

#endif
