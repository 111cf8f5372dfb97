/* walk_file.c: everything that mc_h5_open's callers do with a file, within bounds. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fuzz.h"
#include "io/file.h"
#include "walk.h"

enum { READ_MOST = 1 << 17, DIGEST_MOST = 1 << 20, READS = 24 }; /* elements, bytes, datasets */
static const double DECODE_SECONDS = 0.2, WALK_SECONDS = 1;      /* the limit is 10, for all */

int fuzz_file(char *path) {
    const char *folder = getenv("TMPDIR"); /* run.sh removes it */
    snprintf(path, 4096, "%s/fuzz-XXXXXX", folder ? folder : "/tmp");
    int fd = mkstemp(path);
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    return fd;
}

/* n elements of entry i from `first` on, into a tensor of their own. */
static void read_some(mc_h5_file *f, int64_t i, const mc_h5_entry *e, int64_t first, int64_t n) {
    mc_tensor *t = mc_tensor_new();
    MUST(t && mc_empty(t, e->dtype, 0, 1, &n) == MC_OK);
    if (mc_h5_read(f, i, first, t) != MC_OK) MUST(walk_text(mc_last_error()) > 0);
    mc_tensor_free(t);
}

void fuzz_walk_file(const char *path, size_t size) {
    mc_h5_open_options options = {.size = sizeof options, .seconds = 3};
    mc_h5_file *f = NULL;
    mc_status status = mc_h5_open(&f, path, &options);
    if (status != MC_OK) {
        MUST(!f && strstr(mc_last_error(), path)); /* every failure names the file */
        if (status == MC_EUNSUPPORTED && strstr(mc_last_error(), "the reading helper")) {
            fputs(mc_last_error(), stderr);
            abort(); /* else nothing at all would be tried */
        }
        return;
    }
    MUST(f);
    int64_t began = mci_child_clock();
    mci_decode_seconds = DECODE_SECONDS;
    int64_t n = mc_h5_count(f), n_attrs = 0;
    MUST(n > 0 && !mc_h5_get(f, n) && !mc_h5_get(f, -1));
    while (mc_h5_get_attr(f, n_attrs)) walk_attr(mc_h5_get_attr(f, n_attrs++));
    int reads = 0;
    for (int64_t i = 0; i < n; i++) {
        const mc_h5_entry *e = mc_h5_get(f, i);
        walk_entry(e, i, n_attrs, (int64_t)size);
        for (int64_t k = 0; k < i && n < 200; k++) walk_pair(mc_h5_get(f, k), e);
        char digest[33] = "";
        if (e->kind != MC_H5_DATASET || e->problem) {
            /* what cannot be read is refused, not tried */
            if (i < 50) MUST(mc_h5_digest(f, i, digest) != MC_OK);
            continue;
        }
        if (reads++ >= READS || (double)(mci_child_clock() - began) > WALK_SECONDS * 1e9) continue;
        int64_t all = e->bytes / mc_dtype_size(e->dtype), most = all < READ_MOST ? all : READ_MOST;
        read_some(f, i, e, 0, most);
        read_some(f, i, e, all - most, most);
        if (all >= 3) read_some(f, i, e, 1, most / 2);
        if (e->bytes <= DIGEST_MOST && mc_h5_digest(f, i, digest) == MC_OK)
            MUST(strlen(digest) == 32);
    }
    mc_h5_close(f);
}
