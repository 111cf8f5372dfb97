/* writer.h: a file being written, shared by writer.c and views.c (what goes in), commit.c (the way
 * to the disk) and journal.c (what an earlier process brought there already).
 *
 * libhdf5 makes the structure in a file in memory, where every dataset has its offset and no bytes.
 * The real file is written by our own calls alone: first the tensors, then the structure around
 * them, its first bytes last.
 */
#ifndef MCI_WRITER_H
#define MCI_WRITER_H

#include <pthread.h>

#include "io/bytes.h"
#include "io/h5.h"
#include "io/newfile.h"

typedef struct mci_journal mci_journal;

/* A dataset whose bytes are to come. */
typedef struct mci_item {
    char *path;
    int dtype, ndim;
    int64_t shape[MC_MAX_DIMS], numel;
    mc_tensor *tensor;   /* own handle, the caller's may be released before commit; or NULL */
    void *copy;          /* or own bytes */
    int in_parts;        /* or neither: */
    int64_t come;        /* elements so far */
    mci_source *sources; /* stretches of files, read at commit; */
    int64_t n_sources, room;
    mci_digest *running; /* or: all that has come is written, and this is its digest so far */
    int written;         /* at commit: the pump has told so */
    char said[MCI_DIGEST_TEXT]; /* the digest that the structure has */
} mci_item;

/* Views in the order of their calls, the first `made` of which are made; and the names that the
 * file has by then. (views.c) */
typedef struct mci_h5_view mci_h5_view;
typedef struct mci_name mci_name;
typedef struct mci_views {
    mci_h5_view *list;
    int64_t n, room, made;
    mci_name *names; /* a hash table; n_places is 0 or a power of two */
    size_t n_places, n_names;
    int64_t known;    /* items that are in it */
    mc_status failed; /* of the view `made`, with its message */
    char *failure;
} mci_views;

/* What commit does once the file has its name. */
typedef struct mci_then {
    char *path;
    char *text; /* what `path` then holds; NULL: it is removed */
    struct mci_then *next;
} mci_then;

struct mc_h5_writer {
    const mci_hdf5_api *api;
    mci_h5_out *out;
    int memory; /* the file in memory */
    mci_newfile file;
    mci_item *items; /* jobs[i] is where items[i] goes */
    mci_write_job *jobs;
    int64_t n, room;
    mci_views views;
    int64_t links, claimed; /* second names; bytes of the disk that are certain */
    char *failure; /* message of the first failed call; the file cannot be committed then */
    mc_status failed;
    mci_journal *journal; /* or NULL: not resumable */
    int check;
    mci_then *points, *removals;

    /* the commit */
    mci_source *sources; /* of all jobs */
    int64_t n_sources;
    mci_moment *moments; /* of the devices they lie on */
    void *block;         /* the snapshot that they lie in, or NULL */
    int64_t block_size;
    mci_pump pump, check_pump;
    int64_t total;  /* bytes to do */
    int64_t n_said; /* the structure has the digests of so many items */
    pthread_t thread;
    int started, through; /* through: under the lock of commit.c */
    mc_status status;     /* of the thread, with its message */
    char *message;
};

/* Finds the sources of all jobs, and whether every dataset is whole. (writer.c) */
mc_status mci_writer_gather(mc_h5_writer *w);
/* Frees w and what was not published. (writer.c) */
void mci_writer_free(mc_h5_writer *w);
/* Fails unless w may be used: it is there, of this process, and its commit has not begun. */
mc_status mci_writer_usable(const mc_h5_writer *w, const char *op);
/* Fails unless `path` can be that of a dataset or view. */
mc_status mci_writer_check_leaf(const mc_h5_writer *w, const char *op, const char *path);
/* Remembers a failed call, whose status it returns. */
mc_status mci_writer_noted(mc_h5_writer *w, mc_status status);

/* views.c. Whether views are remembered that are not made; makes the first of them, or all. One
 * that fails goes on failing, with the same message. */
int mci_views_left(const mc_h5_writer *w);
mc_status mci_views_make_next(mc_h5_writer *w);
mc_status mci_views_make(mc_h5_writer *w);
/* Before a call that is about the object at `path`: makes all views if it is one of them. */
mc_status mci_views_settle(mc_h5_writer *w, const char *path);
void mci_views_free(mci_views *v);

/* journal.c. Opens "<path>.journal" of a partial file; *fresh = 1 when it notes nothing that can be
 * used. NULL *out on failure. */
mc_status mci_journal_open(mci_journal **out, const mci_newfile *partial, const char *key,
                           int *fresh);
/* Sets `done` and `digest` of the jobs that the journal notes and whose bytes in fd are as noted.
 */
void mci_journal_take_over(mci_journal *j, int fd, mci_write_job *jobs, int64_t n);
/* A job's bytes are written: notes it, in batches, after the bytes are on the disk. 0 or an errno.
 */
int mci_journal_note(mci_journal *j, int64_t index, const mci_write_job *job);
/* Notes what is still to be noted. */
int mci_journal_flush(mci_journal *j);
/* Removes the journal: the file has its name. */
void mci_journal_remove(mci_journal *j);
void mci_journal_close(mci_journal *j); /* NULL is fine */

#endif
