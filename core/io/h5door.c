/* h5door.c: the reading helper's file driver: libhdf5 reads one open descriptor and can open
 * nothing by name, whatever a file says.
 *
 * The name is a word of ours, taken once. It works where /proc is not there, and for files that a
 * save has replaced meanwhile. Interface: H5FD_class_t of H5FDpublic.h (1.10), H5FDdevelop.h
 * (1.13 and later).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "h5walk.h"

#if defined(__has_include)
#if __has_include(<H5FDdevelop.h>)
#include <H5FDdevelop.h>
#endif
#endif

static const char word[] = "mascon-door";
static int64_t file_bytes;
static int opened;

typedef struct door {
    H5FD_t base; /* libhdf5's part comes first */
    haddr_t end; /* of the addresses that libhdf5 uses */
} door;

static H5FD_t *door_open(const char *name, unsigned flags, hid_t access, haddr_t most) {
    (void)access;
    (void)most;
    if (opened || !name || strcmp(name, word) != 0 || (flags & H5F_ACC_RDWR)) return NULL;
    door *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    opened = 1;
    return &d->base;
}

static herr_t door_close(H5FD_t *file) {
    free(file);
    return 0;
}

static int door_compare(const H5FD_t *a, const H5FD_t *b) {
    return (a > b) - (a < b);
}

static herr_t door_query(const H5FD_t *file, unsigned long *flags) {
    (void)file;
    if (flags) *flags = H5FD_FEAT_DATA_SIEVE | H5FD_FEAT_ACCUMULATE_METADATA_READ;
    return 0;
}

static haddr_t door_get_eoa(const H5FD_t *file, H5FD_mem_t type) {
    (void)type;
    return ((const door *)file)->end;
}

static herr_t door_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t address) {
    (void)type;
    ((door *)file)->end = address;
    return 0;
}

static haddr_t door_get_eof(const H5FD_t *file, H5FD_mem_t type) {
    (void)file;
    (void)type;
    return (haddr_t)file_bytes;
}

static herr_t door_read(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t address, size_t n,
                        void *bytes) {
    (void)file;
    (void)type;
    (void)transfer;
    char *p = bytes;
    if (address > (haddr_t)file_bytes) return -1;
    while (n > 0) {
        ssize_t done = pread(MCI_SCAN_FILE, p, n, (off_t)address);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        if (done == 0) { /* as libhdf5's own drivers: zeros behind the end */
            memset(p, 0, n);
            return 0;
        }
        p += done;
        n -= (size_t)done;
        address += (haddr_t)done;
    }
    return 0;
}

static herr_t door_write(H5FD_t *file, H5FD_mem_t type, hid_t transfer, haddr_t address, size_t n,
                         const void *bytes) {
    (void)file;
    (void)type;
    (void)transfer;
    (void)address;
    (void)n;
    (void)bytes;
    return -1;
}

static const H5FD_class_t driver_class = {
#ifdef H5FD_CLASS_VERSION
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)600, /* of those left to applications */
#endif
    .name = "mascon",
    .maxaddr = HADDR_MAX,
    .fc_degree = H5F_CLOSE_STRONG,
    .open = door_open,
    .close = door_close,
    .cmp = door_compare,
    .query = door_query,
    .get_eoa = door_get_eoa,
    .set_eoa = door_set_eoa,
    .get_eof = door_get_eof,
    .read = door_read,
    .write = door_write,
    .fl_map = H5FD_FLMAP_SINGLE,
};

hid_t mci_h5_open_door(const mci_scan_start *start) {
    file_bytes = start->file_bytes;
    hid_t driver = H5FDregister(&driver_class), access = H5Pcreate(H5P_FILE_ACCESS), file = -1;
    if (mci_h5_ok(driver) && mci_h5_ok(access) && mci_h5_ok(H5Pset_driver(access, driver, NULL)) &&
        mci_h5_ok(H5Pset_fclose_degree(access, H5F_CLOSE_STRONG)))
        file = H5Fopen(word, H5F_ACC_RDONLY, access);
    mci_h5_ok(file);
    if (access >= 0) H5Pclose(access);
    return file;
}
