/* bytes.h: bulk bytes between memory and offsets of a file, past libhdf5.
 *
 * Nothing here sets the thread's message but the two tensor calls: worker threads have messages of
 * their own, so the plain calls return 0, an errno, or MCI_IO_EOF.
 */
#ifndef MCI_BYTES_H
#define MCI_BYTES_H

#include <stdint.h>

#include "digest.h"
#include "mascon.h"

enum { MCI_IO_EOF = -1 }; /* the file ends before the bytes do */

/* n bytes, complete or not at all as far as the caller can tell. */
int mci_pwrite(int fd, const void *src, int64_t n, int64_t offset);
int mci_pread(int fd, void *dst, int64_t n, int64_t offset);
/* The same by several threads. */
int mci_pread_threads(int fd, void *dst, int64_t n, int64_t offset);
/* Claims the file's first n bytes, so that a full disk shows before the work; its length stays.
 * 0 also where the file system cannot tell. */
int mci_claim(int fd, int64_t n);
/* Digest of n bytes of the file at offset; text[33]. */
int mci_digest_file(int fd, int64_t n, int64_t offset, char *text);

/* What one dataset's bytes are and where they go: a contiguous tensor of any device, or host
 * memory. */
typedef struct mci_write_job {
    const mc_tensor *tensor; /* or NULL: `host` */
    const void *host;
    int64_t bytes, offset;
    char digest[MCI_DIGEST_TEXT]; /* set by mci_write_jobs */
    int error;                    /* 0, or the errno that stopped it */
} mci_write_job;

/* Writes and hashes all jobs, host memory by several threads. The first failure stops the rest and
 * *failed is its job. MC_EIO leaves the message to the caller (jobs[*failed].error says why); any
 * other failure has set it. */
mc_status mci_write_jobs(int fd, mci_write_job *jobs, int64_t n, int64_t *failed);

/* strerror of an I/O result into text (size bytes); returns text. */
const char *mci_io_reason(int error, char *text, int64_t size);

#endif
