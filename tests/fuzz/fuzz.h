/* fuzz.h: changes to HDF5 files and helper's replies that a parser does not refuse at its first
 * look, and what the targets share. */
#ifndef MASCON_FUZZ_H
#define MASCON_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* libFuzzer's own mutator, for a part of the changes. */
typedef size_t (*fuzz_plain)(uint8_t *data, size_t size, size_t max_size);

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* Changes the file in place, by `seed`; its new size. */
size_t fuzz_mutate(uint8_t *data, size_t size, size_t max_size, unsigned seed, fuzz_plain plain);
/* A file made of two, into out; its size. */
size_t fuzz_splice(const uint8_t *a, size_t n_a, const uint8_t *b, size_t n_b, uint8_t *out,
                   size_t max_size, unsigned seed);
/* The 48 bytes of a superblock of version 3, for a file of `size` bytes. */
void fuzz_superblock(uint8_t *block, size_t size);
/* Changes a listing that begins `head` bytes behind the start, where sizeof(mci_scan_header) means
 * that such a header is before it; its new size. */
size_t fuzz_mutate_reply(uint8_t *data, size_t size, size_t max_size, unsigned seed, size_t head,
                         fuzz_plain plain);

/* -- walk_file.c ------------------------------------------------------------------------------- */

/* A new empty file in $TMPDIR; its name into path (4096 bytes); exits on failure. */
int fuzz_file(char *path);
/* Opens the file of `size` bytes at `path`, walks its listing, reads and hashes datasets of it, and
 * closes it. Traps when a promise is broken. */
void fuzz_walk_file(const char *path, size_t size);

#endif
