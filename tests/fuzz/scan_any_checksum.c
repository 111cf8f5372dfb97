/* scan_any_checksum.c: linked into the fuzzing build of the reading helper, whose libhdf5 then
 * finds every metadata checksum right.
 *
 * libhdf5 calls this function of its own through the dynamic linker, which takes the program's
 * definition first. stored and computed are what the caller compares.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

__attribute__((visibility("default"))) int H5F_get_checksums(const uint8_t *block, size_t size,
                                                             uint32_t *stored, uint32_t *computed) {
    uint32_t sum = 0;
    if (size >= 4) memcpy(&sum, block + size - 4, 4);
    if (stored) *stored = sum;
    if (computed) *computed = sum;
    return 0;
}
