/* file.h: an open HDF5 file, shared by file.c (opening, the helper) and read.c (bytes). */
#ifndef MCI_FILE_H
#define MCI_FILE_H

#include <pthread.h>

#include "prefetch.h"
#include "reply.h"
#include "spawn.h"
#include "superblock.h"

/* Why a dataset could not be decoded: it is not tried again. */
typedef struct mci_decode_failure {
    struct mci_decode_failure *next;
    int64_t object;
    mc_status status;
    char text[];
} mci_decode_failure;

struct mc_h5_file {
    int fd;
    char *path;    /* as the caller gave it */
    int64_t bytes; /* the file's length */
    int64_t decode_limit;
    mci_superblock superblock;
    mci_h5_table table;
    mci_prefetch *prefetch;
    pthread_mutex_t lock; /* of what follows */
    mci_child helper;
    mci_decode_failure *failures;
};

/* -- file.c; each sets the thread's message ------------------------------------------------------
 */

/* Starts the helper and tells it its limits. seconds: of processor time, until told anew. */
mc_status mci_file_start_helper(mc_h5_file *f, double seconds);
/* The next header; one with a failure ends here with the helper's message. most: bytes that may
 * follow. until: as in mci_child_receive; seconds: what that was, for messages. */
mc_status mci_file_receive_header(mc_h5_file *f, mci_scan_header *header, int64_t most,
                                  int64_t until, double seconds);
/* Bytes of heap that a helper may have, beside four times the file; for tests. */
extern int64_t mci_helper_memory;
/* Ends a helper that made no sense. */
mc_status mci_file_bad_reply(mc_h5_file *f, const char *why);

/* -- read.c ------------------------------------------------------------------------------------ */

void mci_file_forget_failures(mc_h5_file *f);
/* Seconds that every decoding may take before those that its bytes are worth; for tests. */
extern double mci_decode_seconds;

#endif
