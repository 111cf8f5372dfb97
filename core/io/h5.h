/* h5.h: what libmascon.so and its HDF5 plugin (libmascon_hdf5.so) say to each other, and the bounds
 * of every file.
 *
 * The plugin makes the structure of files: groups, datasets, views and attributes. It works on a
 * file in memory, whose datasets have their offsets but no bytes; the core puts those into the real
 * file. Offsets and sizes are in bytes, positions and counts in elements.
 */
#ifndef MCI_H5_H
#define MCI_H5_H

#include "backend.h"

enum { MCI_HDF5_ABI = 3 };

/* Bounds of what is written and read. A path's depth is its number of parts. */
enum {
    MCI_H5_MAX_DEPTH = 32,
    MCI_H5_MAX_PATH = 4096,         /* bytes, the closing NUL included */
    MCI_H5_MAX_ATTR_BYTES = 65536,  /* value of one attribute */
    MCI_H5_MAX_ATTR_NAME = 1024,    /* bytes */
    MCI_H5_MAX_ATTRS = 1024,        /* of one object */
    MCI_H5_MAX_OBJECTS = 1 << 21,   /* links met in one file */
    MCI_H5_MAX_CHARS = 1 << 30,     /* names and text values of one file, bytes */
    MCI_H5_MAX_MAPS = 1 << 16,      /* sources of one view */
    MCI_H5_EXPANSION = 16,          /* decoded bytes per byte of the file, */
    MCI_H5_EXPANSION_BASE = 1 << 26 /* and this many more */
};

typedef struct mci_hdf5_services {
    uint32_t abi;
    mc_status (*fail)(mc_status code, const char *format, ...)
        __attribute__((format(printf, 2, 3)));
    const char *(*dtype_name)(int dtype);
    int (*dtype_size)(int dtype);
} mci_hdf5_services;

/* A file being written. */
typedef struct mci_h5_out mci_h5_out;

/* The plugin's functions. `label` is the file's name in messages. */
typedef struct mci_hdf5_api {
    uint32_t abi;
    /* Makes an HDF5 file of the existing empty file `name`, a name of the caller's memory file. */
    mc_status (*create)(mci_h5_out **out, const char *name, const char *label);
    mc_status (*group)(mci_h5_out *o, const char *path);
    /* A contiguous dataset with attributes `dtype` and `digest` (32 digits, which may be changed
     * later); *offset is where its bytes belong, -1 when it has none. */
    mc_status (*dataset)(mci_h5_out *o, const char *path, int dtype, int ndim, const int64_t *shape,
                         const char *digest, int64_t *offset);
    mc_status (*link)(mci_h5_out *o, const char *path, const char *target);
    /* Virtual datasets, as mc_h5_view_stack and mc_h5_view_select; attributes `dtype` and
     * `kind`. */
    mc_status (*view_stack)(mci_h5_out *o, const char *path, int64_t n, const char *const *sources);
    mc_status (*view_select)(mci_h5_out *o, const char *path, const char *source, int64_t position);
    mc_status (*attr)(mci_h5_out *o, const char *path, const mc_h5_attr *attr);
    /* The file's bytes so far, tensors included. */
    mc_status (*size)(mci_h5_out *o, int64_t *bytes);
    mc_status (*digest)(mci_h5_out *o, const char *path, const char *digest);
    /* Closes the file and frees o, also when it fails. */
    mc_status (*close)(mci_h5_out *o);
    /* Frees o and leaves the file in any state. */
    void (*abandon)(mci_h5_out *o);
} mci_hdf5_api;

/* The plugin's one entry, `mascon_hdf5_api`: NULL after services->fail. */
typedef const mci_hdf5_api *(*mci_hdf5_entry)(const mci_hdf5_services *services);

/* Opens the plugin at first use; NULL with the thread's message set. (commit.c) */
const mci_hdf5_api *mci_hdf5(void);

#endif
