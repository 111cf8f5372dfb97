/* superblock.c: the first 48 bytes of an HDF5 file.
 *
 * Layout: "HDF5 File Format Specification", section II.A. The checksum is Bob Jenkins' lookup3
 * (hashlittle), of the 44 bytes before it.
 */
#include "superblock.h"

#include <string.h>

#include "io/bytes.h"
#include "status.h"

static uint32_t rotate(uint32_t x, int n) {
    return x << n | x >> (32 - n);
}

/* lookup3 of n bytes, 0 < n, initial value 0: three words take in 12 bytes at a time. */
static uint32_t lookup3(const unsigned char *p, size_t n) {
    uint32_t w[3];
    w[0] = w[1] = w[2] = 0xdeadbeefU + (uint32_t)n;
    for (;;) {
        for (size_t i = 0; i < 12 && i < n; i++) w[i / 4] += (uint32_t)p[i] << (i % 4 * 8);
        if (n <= 12) break;
        static const int turn[6] = {4, 6, 8, 16, 19, 4};
        for (int i = 0; i < 6; i++) {
            uint32_t *x = &w[i % 3], *y = &w[(i + 1) % 3], *z = &w[(i + 2) % 3];
            *x = (*x - *z) ^ rotate(*z, turn[i]);
            *z += *y;
        }
        p += 12;
        n -= 12;
    }
    static const int turn[7] = {14, 11, 25, 16, 4, 14, 24};
    for (int i = 0; i < 7; i++) {
        uint32_t *x = &w[(i + 2) % 3], *y = &w[(i + 1) % 3];
        *x = (*x ^ *y) - rotate(*y, turn[i]);
    }
    return w[2];
}

static uint64_t little_endian(const unsigned char *p, int n) {
    uint64_t value = 0;
    for (int i = 0; i < n; i++) value |= (uint64_t)p[i] << (8 * i);
    return value;
}

mc_status mci_superblock_check(mci_superblock *out, int fd, int64_t bytes, const char *label) {
    static const unsigned char signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char block[48] = {0};
    int64_t at = 0;
    /* a user block of a power of two from 512 on may lie before it */
    for (;; at = at == 0 ? 512 : at * 2) {
        int64_t left = bytes - at;
        if (left < 9)
            return mci_fail(MC_EFORMAT, "%s: not an HDF5 file: it lacks the signature", label);
        int error = mci_pread(fd, block, left < 48 ? left : 48, at);
        if (error != 0) {
            char text[128];
            return mci_fail(MC_EIO, "%s: %s", label, mci_io_reason(error, text, sizeof text));
        }
        if (memcmp(block, signature, sizeof signature) == 0) break;
    }
    int version = block[8];
    *out = (mci_superblock){.version = version, .base = at};
    if (bytes - at < 48)
        return mci_fail(MC_EFORMAT, "%s: truncated: %lld bytes are less than a header", label,
                        (long long)bytes);
    if (version > 3)
        return mci_fail(MC_EFORMAT, "%s: HDF5 superblock version %d is not known", label, version);
    if (version < 2) return MC_OK; /* no checksum, no closed mark; libhdf5 checks its length */
    if (lookup3(block, 44) != (uint32_t)little_endian(block + 44, 4))
        return mci_fail(MC_EFORMAT, "%s: damaged: the superblock's checksum is wrong", label);
    if (block[9] != 8 || block[10] != 8)
        return mci_fail(MC_EFORMAT, "%s: offsets of %d and lengths of %d bytes; 8 are wanted",
                        label, block[9], block[10]);
    if (version == 3 && block[11] != 0)
        return mci_fail(MC_EFORMAT, "%s: it was never closed: its writer is still at work, or died",
                        label);
    out->extended =
        little_endian(block + 12, 8) != (uint64_t)at || little_endian(block + 20, 8) != UINT64_MAX;
    int64_t end = (int64_t)little_endian(block + 28, 8);
    if (end < 0 || end > bytes)
        return mci_fail(MC_EFORMAT, "%s: truncated: %lld bytes, it was written with %lld", label,
                        (long long)bytes, (long long)end);
    if (version == 3 && at == 0 && end < bytes)
        return mci_fail(MC_EFORMAT, "%s: damaged: %lld bytes follow its end", label,
                        (long long)(bytes - end));
    return MC_OK;
}
