/* rng.h: Philox 4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as
 * 1, 2, 3"), and how words become numbers. What follows holds on every device.
 *
 * Element i of a call takes word i % 4 of the counter c = offset + i / 4 (64 bits in words 0 and 1
 * of the counter; words 2 and 3, the subsequence, are 0); the key is the seed's low and high half.
 *
 *   uniform    u = (x >> 8) 2^-24, then low + u (high - low): one product and one sum in float32
 *              (float64 for float64), neither fused; high - low is rounded first. Cut off at the
 *              largest value of the dtype below high, then rounded to the dtype.
 *   integers   low + (x (high - low) >> 32), a 64-bit product
 *   normal     elements 2j and 2j + 1 from their words x, y: u = ((x >> 8) + 1) 2^-24,
 *              v = (y >> 8) 2^-24, r = sqrt(-2 ln u): z = r cos(2 pi v) and r sin(2 pi v), rounded
 *              to float32 (float64 for float64); then mean + std z as for uniforms
 *   dropout    keep = u >= p, p as a double; y = x * (keep ? float(1 / (1 - p)) : 0)
 */
#ifndef MCI_RNG_H
#define MCI_RNG_H

#include <stdint.h>

#include "inline.h"

/* Counter -> four words, in place. */
MCI_INLINE void mci_philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c[0] * 0xD2511F53U, b = (uint64_t)c[2] * 0xCD9E8D57U;
        uint32_t next0 = (uint32_t)(b >> 32) ^ c[1] ^ k0, next2 = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[0] = next0;
        c[1] = (uint32_t)b;
        c[2] = next2;
        c[3] = (uint32_t)a;
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
}

#endif
