/* fuzz_talk.c: libFuzzer target: any bytes as all that a helper which a file has taken over says.
 *
 * In place of the reading helper runs parrot.c, which says what the file holds behind its
 * superblock: headers, a listing, parts of decoded datasets. This process must not crash, hang,
 * leak, or ask for memory by a helper's word. An input is the stream.
 */
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "io/scan.h"
#include "io/spawn.h"

enum { SUPERBLOCK = 48 };

static char path[4096], parrot[4096];
static int fd = -1;

/* The parrot stands beside this program. */
static void start(void) {
    fd = fuzz_file(path);
    ssize_t n = readlink("/proc/self/exe", parrot, sizeof parrot - 16);
    while (n > 0 && parrot[n - 1] != '/') n--;
    memcpy(parrot + (n > 0 ? n : 0), "fuzz_parrot", sizeof "fuzz_parrot");
    mci_h5_helper_for_tests(parrot);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (fd < 0) start();
    uint8_t block[SUPERBLOCK];
    fuzz_superblock(block, SUPERBLOCK + size);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, block, SUPERBLOCK, 0) != SUPERBLOCK ||
        pwrite(fd, data, size, SUPERBLOCK) != (ssize_t)size)
        return 0;
    fuzz_walk_file(path, SUPERBLOCK + size);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    return fuzz_mutate_reply(data, size, max_size, seed, sizeof(mci_scan_header), LLVMFuzzerMutate);
}
