/* newfile.h: a file that appears under its name whole or not at all.
 *
 * It is written under a temporary name in the same folder, "<path>.tmp-<process>-<n>", which its
 * writer keeps locked (flock, shared, so that nobody who opens the finished file meets the lock of
 * a writer). A temporary file that can be locked exclusively has lost its writer.
 */
#ifndef MCI_NEWFILE_H
#define MCI_NEWFILE_H

#include <sys/types.h>

#include "mascon.h"

typedef struct mci_newfile {
    char *name;  /* the caller's word for it, in messages */
    char *path;  /* where it goes: absolute, with a symbolic link at its end followed */
    char *temp;  /* where it is now; NULL when there is nothing to remove */
    int fd;      /* of temp, open for reading and writing; or -1 */
    int lasting; /* 1: discarding leaves temp where it is */
    pid_t owner; /* the process that made it; children of fork leave the file alone */
} mci_newfile;

/* MC_ENOMEM or MC_EIO: "path: what: reason"; what may be "". */
mc_status mci_os_failure(const char *path, const char *what, int error);

/* `path` as it is meant now, whatever folder the process goes to later; to be freed. NULL with
 * errno set on failure. */
char *mci_absolute(const char *path);

/* Begins a new file for `path`, also when there is one that may be replaced, whose permissions it
 * then takes. Zeroed by the caller; to be discarded whatever happens. */
mc_status mci_newfile_open(mci_newfile *f, const char *path);
/* The same under the lasting name "<path>.partial", with what an earlier writer left in it. Locked
 * exclusively: fails while another process has it. */
mc_status mci_newfile_open_partial(mci_newfile *f, const char *path);
/* Brings the bytes to the disk. */
mc_status mci_newfile_sync(mci_newfile *f);
/* Gives the file its name and brings that to the disk. */
mc_status mci_newfile_publish(mci_newfile *f);
/* Removes it unless it was published, and frees what f holds. */
void mci_newfile_discard(mci_newfile *f);

/* Removes temporary files of `path` that have lost their writers; *removed is their number. */
mc_status mci_newfile_sweep(const char *path, int64_t *removed);

#endif
