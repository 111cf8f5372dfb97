/* h5room.h: shared by the files of the plugin and of the reading helper program, the only ones that
 * see hdf5.h.
 *
 * libhdf5 has one global state: everything runs between mci_h5_enter and mci_h5_leave. The calls
 * are the ones that libhdf5 1.10 and 2.x both have; where they differ, the difference is in this
 * file and h5.c.
 */
#ifndef MCI_H5ROOM_H
#define MCI_H5ROOM_H

#include <hdf5.h>

/* The access flags are macros that call H5check_version, which aborts when another patch release is
 * found; h5.c compares versions itself. */
#undef H5CHECK
#define H5CHECK

#include "io/h5.h"

extern const mci_hdf5_services *mci_h5_core;

/* Sets libhdf5 up once in this process; from then on messages go to services->fail. */
mc_status mci_h5_setup(const mci_hdf5_services *services);

void mci_h5_enter(void);
void mci_h5_leave(void);

/* 1 when a libhdf5 call's result is not negative. Else keeps its message, which libhdf5 forgets at
 * the next call, for mci_h5_fail. */
int mci_h5_ok(int64_t result);
/* Drops what was kept: that failure was expected. */
void mci_h5_forget(void);
/* As mci_fail, with the innermost message of libhdf5's error stack behind it, if there is one. */
mc_status mci_h5_fail(mc_status code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The type a dtype is stored as, little-endian; libhdf5's to keep, not to close. */
hid_t mci_h5_type(int dtype);
/* The dtype that `type` stores: *swapped = 1 when its bytes are in the other order. -1 when there
 * is none, with the reason in `why`. */
int mci_h5_dtype(hid_t type, int *swapped, char *why, size_t size);

/* What an object is. address tells objects of one file apart. */
typedef struct mci_h5_info {
    H5O_type_t type;
    int64_t address;
    unsigned links;
    int64_t attrs;
} mci_h5_info;
int mci_h5_object_info(hid_t object, mci_h5_info *info); /* 0, or -1 */

/* File access properties for writing or reading, to be closed; negative on failure. */
hid_t mci_h5_access(int writing);

/* h5write.c: the plugin's functions, as in h5.h. */
mc_status mci_h5_create(mci_h5_out **out, const char *name, const char *label);
mc_status mci_h5_group(mci_h5_out *o, const char *path);
mc_status mci_h5_dataset(mci_h5_out *o, const char *path, int dtype, int ndim, const int64_t *shape,
                         const char *digest, int64_t *offset);
mc_status mci_h5_link(mci_h5_out *o, const char *path, const char *target);
mc_status mci_h5_view_stack(mci_h5_out *o, const char *path, int64_t n, const char *const *sources);
mc_status mci_h5_view_select(mci_h5_out *o, const char *path, const char *source, int64_t position);
mc_status mci_h5_attr(mci_h5_out *o, const char *path, const mc_h5_attr *attr);
mc_status mci_h5_size(mci_h5_out *o, int64_t *bytes);
mc_status mci_h5_digest(mci_h5_out *o, const char *path, const char *digest);
mc_status mci_h5_close(mci_h5_out *o);
void mci_h5_abandon(mci_h5_out *o);

#endif
