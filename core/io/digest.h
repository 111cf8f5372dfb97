/* digest.h: xxh3-128 of bytes, as the 32 hex digits of its canonical form (high half first). */
#ifndef MCI_DIGEST_H
#define MCI_DIGEST_H

#include <stdint.h>

enum { MCI_DIGEST_TEXT = 33 };

typedef struct mci_digest mci_digest;

mci_digest *mci_digest_new(void); /* NULL when out of memory */
void mci_digest_update(mci_digest *d, const void *bytes, int64_t n);
void mci_digest_text(const mci_digest *d, char *text); /* of the bytes so far; text[33] */
void mci_digest_free(mci_digest *d);                   /* NULL is fine */
/* Of n bytes at once; "" when out of memory. */
void mci_digest_bytes(const void *bytes, int64_t n, char *text);

#endif
