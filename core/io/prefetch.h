/* prefetch.h: asks the kernel to read a file into its page cache, from a thread of its own. */
#ifndef MCI_PREFETCH_H
#define MCI_PREFETCH_H

#include <stdint.h>

typedef struct mci_prefetch mci_prefetch;

/* Begins with the first `bytes` bytes of fd, at most half of the memory that is free. NULL when
 * there is nothing to do or no thread to be had: it is advice. fd stays open until the stop. */
mci_prefetch *mci_prefetch_start(int fd, int64_t bytes);
void mci_prefetch_stop(mci_prefetch *p); /* NULL is fine */

#endif
