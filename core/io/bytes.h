/* bytes.h: bulk bytes between memory and offsets of files, past libhdf5.
 *
 * Nothing here sets the thread's message unless it says so: worker threads have messages of their
 * own, so the plain calls return 0, an errno, or MCI_IO_EOF.
 */
#ifndef MCI_BYTES_H
#define MCI_BYTES_H

#include <signal.h>
#include <stdint.h>

#include "digest.h"
#include "mascon.h"

enum { MCI_IO_EOF = -1 }; /* the file ends before the bytes do */

/* Between the two a write past `ulimit -f` is an error of the calling thread, not the end of the
 * process: SIGXFSZ is held back. */
void mci_hold_signal(sigset_t *before);
void mci_release_signal(const sigset_t *before);
/* n bytes, complete or not at all as far as the caller can tell. */
int mci_pwrite(int fd, const void *src, int64_t n, int64_t offset);
int mci_pread(int fd, void *dst, int64_t n, int64_t offset);
/* The same by several threads. */
int mci_pread_threads(int fd, void *dst, int64_t n, int64_t offset);
/* Many of them, in the order of the file, which the list gets; what lies side by side in file and
 * memory as one. Their memory must lie apart. 0, or an error with the lowest `number` of those that
 * failed; the others may have been left unread then. */
typedef struct mci_extent {
    int64_t offset, bytes;
    char *dst;
    int64_t number; /* the caller's */
} mci_extent;
int mci_pread_many(int fd, mci_extent *list, int64_t n, int64_t *failed);
/* Puts a list into the order of the file. */
void mci_extents_sort(mci_extent *list, int64_t n);
/* Claims the file's first n bytes, so that a full disk shows before the work; its length stays.
 * 0 also where the file system cannot tell. */
int mci_claim(int fd, int64_t n);
/* Digest of n bytes of the file at offset; text[33]. */
int mci_digest_file(int fd, int64_t n, int64_t offset, char *text);
/* strerror of an I/O result into text (size bytes); returns text. */
const char *mci_io_reason(int error, char *text, int64_t size);

typedef struct mci_moment mci_moment; /* of a device: device.h */

/* Where bytes to be written come from: host memory, a contiguous tensor of any device, or an entry
 * of an open file. */
typedef struct mci_source {
    const void *host;        /* or NULL */
    const mc_tensor *tensor; /* or NULL */
    mc_h5_file *file;        /* or NULL: then `entry` of it */
    int64_t entry;
    int64_t first, bytes; /* the stretch of the source, in bytes */
    const char *digest;   /* that the stretch must have (32 digits), or NULL */
    mci_moment *moment;   /* of a device's tensor: whose bytes are wanted; NULL: those of now */
} mci_source;

/* Where the source's bytes lie in this process's memory, or NULL. */
const char *mci_source_host(const mci_source *s);

/* What one dataset's bytes are and where they go. */
typedef struct mci_write_job {
    const mci_source *sources; /* in order; their bytes add up to `bytes` */
    int64_t n_sources;
    int64_t bytes, offset;
    int done;                     /* 1: bytes and digest are there already */
    char digest[MCI_DIGEST_TEXT]; /* of all bytes; set by mci_write_jobs unless done */
} mci_write_job;

/* One run of mci_write_jobs as others see it; zeroed by its owner. */
typedef struct mci_pump {
    int64_t done; /* bytes so far, done jobs included; written atomically */
    /* After a job's last byte was written, from any thread but one at a time, in any order; 0 or
     * an errno. NULL: nobody asks. */
    int (*on_job)(void *data, int64_t job);
    /* Other work for the calling thread while the others go on, a bit at a time and before any
     * `meanwhile`; 1 while there is more. Not called where there are no others. */
    int (*at_first)(void *data);
    /* As on_job, but from the calling thread, while the others go on, and not of every job: what
     * has to be done about the others is done afterwards. */
    void (*meanwhile)(void *data, int64_t job);
    void *data; /* of all three */
    /* After a failure: */
    int64_t failed;     /* the job */
    int error;          /* errno, 0 when `message` is complete in itself */
    char message[1024]; /* what failed */
} mci_pump;

/* Writes and hashes all jobs into fd by several threads, past the page cache where `path` (the
 * file that fd has open) allows it. Memory used beside the sources stays under 32 MiB. The first
 * failure stops the rest: MC_EIO, MC_EFORMAT for a source that does not match its digest, or what
 * the source's read gave, described in *pump; the thread's
 * message is not set. */
mc_status mci_write_jobs(int fd, const char *path, mci_write_job *jobs, int64_t n, mci_pump *pump);

/* Threads of the next runs, for tests and benchmarks; 0: chosen by size and machine. */
extern int mci_io_threads;

/* Reads all jobs' extents back from the disk, not from the page cache where that can be asked for,
 * and compares digests. As mci_write_jobs in its results; pump->done counts. */
mc_status mci_check_jobs(int fd, const mci_write_job *jobs, int64_t n, mci_pump *pump);

/* Copies all sources that are tensors or host memory, save for those that were copied on their
 * device, into one block, which the jobs' sources then name as host memory, at multiples of 4096
 * bytes. sources[n_sources] is the array that the jobs
 * point into. *block is for mci_snapshot_free. Sets the thread's message. */
mc_status mci_snapshot(mci_source *sources, int64_t n_sources, void **block, int64_t *size);
void mci_snapshot_free(void *block, int64_t size);

/* Of file.c: n bytes of an entry from byte `first` on into dst; safe on several threads. The
 * thread's message is set on failure. */
mc_status mci_h5_fetch(mc_h5_file *f, int64_t entry, int64_t first, int64_t n, void *dst);

#endif
