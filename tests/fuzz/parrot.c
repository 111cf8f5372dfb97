/* parrot.c: stands in for the reading helper in fuzz_talk.c: says what the file holds behind its
 * superblock, whatever it is asked, and leaves. */
#include <unistd.h>

#include "io/scan.h"

int main(void) {
    static char block[1 << 16];
    ssize_t n;
    for (off_t at = 48; (n = pread(MCI_SCAN_FILE, block, sizeof block, at)) > 0; at += n) {
        for (ssize_t said = 0; said < n;) {
            ssize_t more = write(MCI_SCAN_SOCKET, block + said, (size_t)(n - said));
            if (more <= 0) return 0;
            said += more;
        }
    }
    return 0;
}
