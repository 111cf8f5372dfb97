/* fuzz_open.c: libFuzzer target: any bytes as an HDF5 file, through mc_h5_open, every accessor,
 * reads and digests.
 *
 * The reading helper runs as always, a process of its own, but a build of it whose libhdf5 finds
 * every checksum right (scan_any_checksum.c), so that changed structures are really parsed. It may
 * crash; this process must not crash, hang, leak, or ask for memory by a file's word. The
 * mutator (mutate_file.c) knows where numbers lie in HDF5's blocks and repairs the superblock.
 */
#include <unistd.h>

#include "fuzz.h"

static char path[4096];
static int fd = -1;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (fd < 0) fd = fuzz_file(path);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) return 0;
    fuzz_walk_file(path, size);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    return fuzz_mutate(data, size, max_size, seed, LLVMFuzzerMutate);
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t n_a, const uint8_t *b, size_t n_b,
                                 uint8_t *out, size_t max_size, unsigned seed) {
    return fuzz_splice(a, n_a, b, n_b, out, max_size, seed);
}
