/* digest.c: the fingerprint of a tensor's bytes in a file.
 *
 * XXH3, 128 bits, seed 0, of the xxHash library (https://xxhash.com), taken in from its header: one
 * core hashes faster than any disk writes. It finds damage; it is no defence against forgery.
 */
#include "digest.h"

#include <inttypes.h>
#include <stdio.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

struct mci_digest {
    XXH3_state_t state; /* wants 64-byte alignment */
};

mci_digest *mci_digest_new(void) {
    mci_digest *d = aligned_alloc(64, (sizeof *d + 63) / 64 * 64);
    if (d) XXH3_128bits_reset(&d->state);
    return d;
}

void mci_digest_update(mci_digest *d, const void *bytes, int64_t n) {
    if (n > 0) XXH3_128bits_update(&d->state, bytes, (size_t)n);
}

void mci_digest_text(const mci_digest *d, char *text) {
    XXH128_hash_t hash = XXH3_128bits_digest(&d->state);
    snprintf(text, MCI_DIGEST_TEXT, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64,
             (uint64_t)hash.low64);
}

void mci_digest_free(mci_digest *d) {
    free(d);
}

void mci_digest_bytes(const void *bytes, int64_t n, char *text) {
    mci_digest *d = mci_digest_new();
    text[0] = '\0';
    if (!d) return;
    mci_digest_update(d, bytes, n);
    mci_digest_text(d, text);
    mci_digest_free(d);
}
