/* device.h: bytes between the host's memory and a device's, through page-locked buffers and streams
 * beside the main one; and what a save has of a device.
 *
 * Every function sets the thread's message when it fails, and may be called from any thread.
 */
#ifndef MCI_IO_DEVICE_H
#define MCI_IO_DEVICE_H

#include "bytes.h"

enum {
    MCI_STAGE_BYTES = 1 << 24, /* of a buffer */
    MCI_STAGE_LANES = 6,       /* buffers of a device, ... */
    MCI_STAGE_MOST = 3         /* ... and how many one caller takes: others have work too */
};

/* A buffer with a stream of its own, so that its copies can be waited for alone. */
typedef struct mci_lane mci_lane;

/* One caller's way to or from a device, from begin to end. */
typedef struct mci_stage {
    int device, threads;
    void *after;
    mci_lane *lanes[MCI_STAGE_MOST];
    int n, newest;
} mci_stage;

/* Copies come after what is in the stream `after` of the device by then; NULL: in the main one. */
void mci_stage_begin(mci_stage *s, int device, void *after);
/* The next buffer, of MCI_STAGE_BYTES; what was begun with it before is complete. */
mc_status mci_stage_next(mci_stage *s, char **buffer);
/* Begins a copy out of the buffer that `next` gave last. */
mc_status mci_stage_send(mci_stage *s, void *dst, const char *src, int64_t bytes);
/* All that was begun is complete. Returns `status`, or what went wrong here. */
mc_status mci_stage_end(mci_stage *s, mc_status status);

/* Any number of bytes to or from ordinary host memory; complete when it returns. */
mc_status mci_device_write(int device, void *dst, const void *src, int64_t bytes);
mc_status mci_device_read(int device, void *dst, const void *src, int64_t bytes, void *after);

/* A moment of a device's main stream, for those who read later what there was by then, while the
 * main stream goes on. */
struct mci_moment {
    struct mci_moment *next;
    int device;
    void *stream;    /* nothing but the wait for that moment is in it */
    mc_tensor *copy; /* uint8: the sources' bytes, if they were copied; or NULL */
};

/* The moment of now, for each device that sources lie on, into *list, which is empty, and into the
 * sources. copy: their bytes are copied on the device, in its main stream, where it has memory to
 * spare, and the sources then name the copy. Fails while the device records a graph. After a
 * failure too, *list is for mci_moments_free. */
mc_status mci_moments_take(mci_moment **list, mci_source *sources, int64_t n, int copy);
/* Of sources that nobody reads any more. */
void mci_moments_free(mci_moment **list);

/* Bytes [within, within + bytes) of a source that is a tensor, whole elements, to dst: those of its
 * moment if it has one, else of now. */
mc_status mci_source_read(const mci_source *s, int64_t within, int64_t bytes, void *dst);

#endif
