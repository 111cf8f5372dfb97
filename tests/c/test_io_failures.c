/* test_io_failures.c: every way a save can fail, and damaged files. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "io_faults.h"
#include "io_helpers.h"

/* libhdf5 1.10.8 leaks each block of metadata whose checksum is wrong. Only the sanitizers call it.
 */
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libhdf5_serial\nleak:libhdf5.so\n";
}

/* A name of this folder that outlives later in_folder calls, and the tests. */
static const char *name_of(const char *name) {
    static char names[8][512];
    static int n;
    return strcpy(names[n++], in_folder(name));
}

static void spill(const char *path, const char *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n);
    if (f) fclose(f);
}

/* -- tests ------------------------------------------------------------------------------------- */

/* A file whose structure lies in several places between its tensors. */
static mc_status save_many(const char *path) {
    int64_t n = 66000;
    mc_tensor *t = patterned(MC_UINT8, 1, &n, 1);
    mc_h5_writer *w = NULL;
    mc_status status = mc_h5_create(&w, path);
    for (int i = 0; i < 24 && status == MC_OK; i++) {
        char name[32];
        snprintf(name, sizeof name, "/group%d/tensor", i);
        status = mc_h5_tensor(w, name, t);
    }
    mc_tensor_free(t);
    if (status == MC_OK) return mc_h5_commit(w);
    mc_h5_discard(w);
    return status;
}

static int is_many(const char *path) {
    mc_h5_file *f = NULL;
    if (mc_h5_open(&f, path, NULL) != MC_OK) return 0;
    int64_t index = -1;
    char digest[33];
    const mc_h5_attr *a = io_attr(f, "/group23/tensor", "digest");
    int ok = mc_h5_count(f) == 49 && a && io_find(f, "/group23/tensor", &index) &&
             mc_h5_digest(f, index, digest) == MC_OK && strcmp(a->s, digest) == 0;
    mc_h5_close(f);
    return ok;
}

static void killed(void) {
    TITLE("a writer that dies leaves the old file and a temporary one that nobody can open");
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("old.h5"));
    int threads = mc_get_num_threads();
    CHECK_OK(mc_set_num_threads(1)); /* OpenMP's threads do not survive a fork */
    CHECK_OK(save_many(path));
    int unfinished = 0, at = 1;
    for (;; at++) {
        pid_t child = fork();
        if (child == 0) {
            fault.at = at;
            fault.no_claim = 1;
            mc_status status = save_many(path);
            _exit(status == MC_OK ? 3 : 4);
        }
        int state = 0;
        waitpid(child, &state, 0);
        if (!WIFEXITED(state) || WEXITSTATUS(state) != 0 || at > 1000) {
            CHECK(WIFEXITED(state) && WEXITSTATUS(state) == 3);
            break;
        }
        CHECK(is_many(path));
        DIR *d = opendir(folder);
        for (struct dirent *e = readdir(d); e; e = readdir(d)) {
            mc_h5_file *f = NULL;
            if (!strstr(e->d_name, "tmp")) continue;
            mc_status status = mc_h5_open(&f, in_folder(e->d_name), NULL);
            /* all written before the rename: whole, and only without its name */
            int no_file = status == MC_EFORMAT && strstr(mc_last_error(), "not an HDF5 file");
            CHECK(no_file || is_many(in_folder(e->d_name)));
            unfinished += no_file;
            mc_h5_close(f);
        }
        closedir(d);
        int64_t removed = -1, left = count_files("tmp");
        CHECK_OK(mc_h5_sweep(path, &removed));
        CHECK(removed == left && removed <= 1 && count_files("tmp") == 0);
    }
    CHECK(at > 8 && unfinished > 3);
    CHECK_OK(mc_set_num_threads(threads));
    unlink(path);
}

static void replaced(void) {
    TITLE("a file can be opened at any moment while another process saves over it");
    const char *path = in_folder("replaced.h5");
    int threads = mc_get_num_threads(), failures = 0;
    CHECK_OK(mc_set_num_threads(1));
    CHECK_OK(save(path, 1));
    pid_t child = fork();
    if (child == 0) {
        while (save(path, 1) == MC_OK) continue;
        _exit(0);
    }
    for (int i = 0; i < 60; i++) {
        mc_h5_file *f = NULL;
        failures += mc_h5_open(&f, path, NULL) != MC_OK;
        mc_h5_close(f);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    CHECK(failures == 0);
    CHECK_OK(mc_set_num_threads(threads));
    DIR *d = opendir(folder);
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        if (e->d_name[0] != '.') unlink(in_folder(e->d_name));
    }
    closedir(d);
}

static void slow_system(void) {
    TITLE("short and interrupted reads and writes are carried on");
    const char *path = in_folder("slow.h5");
    fault.short_most = 4099;
    fault.interrupt = 1;
    CHECK_OK(save(path, 7));
    CHECK(is_saved(path, 7));
    memset(&fault, 0, sizeof fault);
    CHECK(is_saved(path, 7));
    unlink(path);
}

/* -- every call in turn ------------------------------------------------------------------------ */

enum { PLAIN, CHECKED, ASYNC, RESUMABLE, WAYS };

/* save() in its other ways: CHECKED also points `latest` at "new" and removes `old step`. */
static mc_status save_in(int way, const char *path, unsigned seed) {
    if (way == PLAIN) return save(path, seed);
    int64_t small[2] = {3, 5}, large = 40000, index;
    mc_tensor *a = patterned(MC_FLOAT32, 2, small, seed);
    mc_tensor *b = patterned(MC_BFLOAT16, 1, &large, seed);
    mc_h5_writer *w = NULL;
    mc_status status =
        way == RESUMABLE ? mc_h5_create_resumable(&w, path, "key") : mc_h5_create(&w, path);
    if (status == MC_OK && way == ASYNC) { /* the smaller one at once */
        status = mc_h5_dataset(w, "/x/a", MC_FLOAT32, 2, small, &index);
        if (status == MC_OK) status = mc_h5_part(w, index, a);
    } else if (status == MC_OK) {
        status = mc_h5_tensor(w, "/x/a", a);
    }
    if (status == MC_OK) status = mc_h5_tensor(w, "/x/b", b);
    if (status == MC_OK) status = mc_h5_attr_int(w, "/x", "seed", seed);
    if (status == MC_OK && way == CHECKED) {
        status = mc_h5_check_written(w);
        if (status == MC_OK) status = mc_h5_then_point(w, in_folder("latest"), "new");
        if (status == MC_OK) status = mc_h5_then_remove(w, in_folder("old step"));
    }
    int started = 0;
    if (status == MC_OK && way == ASYNC) {
        status = mc_h5_commit_start(w, 1);
        started = 1;
    }
    mc_tensor_free(a);
    mc_tensor_free(b);
    if (started) return status == MC_OK ? mc_h5_commit_wait(w) : status;
    if (status == MC_OK) return mc_h5_commit(w);
    mc_h5_discard(w);
    return status;
}

static int says(const char *name, const char *text) {
    size_t n;
    char *got = slurp(in_folder(name), &n);
    int ok = got && n == strlen(text) && memcmp(got, text, n) == 0;
    free(got);
    return ok;
}

/* After a save of seed 9 over one of seed 8 that failed with `message`. */
static void check_kept(int way, const char *path, const char *message, const char *old, size_t n) {
    size_t m = 0;
    if (strstr(message, "did not sync") || strstr(message, "saved, but")) {
        /* by then the new file has its name */
        CHECK(is_saved(path, 9));
        CHECK(way != CHECKED || says("latest", "old") || says("latest", "new"));
        CHECK_OK(save(path, 8));
    } else {
        CHECK(way != CHECKED || (says("latest", "old") && says("old step", "old")));
    }
    CHECK(count_files("tmp") == 0);
    char *now = slurp(path, &m);
    CHECK(now && n == m && memcmp(old, now, n) == 0);
    free(now);
    spill(in_folder("latest"), "old", 3);
    spill(in_folder("old step"), "old", 3);
}

static void each_failure(void) {
    static const char *const titles[WAYS] = {
        "whichever system call fails, the old file stays and nothing is left behind",
        "whichever call of a checked save fails, the old file, pointer and step stay",
        "whichever call fails on the commit's thread, the old file stays",
        "whichever call of a resumable save fails, the old file stays and the next one saves"};
    const char *path = name_of("kept.h5");
    CHECK_OK(save(path, 8));
    size_t n = 0;
    char *old = slurp(path, &n);
    int descriptors = count_descriptors();
    spill(in_folder("latest"), "old", 3);
    spill(in_folder("old step"), "old", 3);
    for (int round = 0; round < 2 * WAYS; round++) {
        int way = round / 2, claim = round % 2, error = claim ? ENOSPC : EIO;
        TITLE(titles[way]);
        int at = 0, saved = 0, in_bytes = 0;
        while (!saved && ++at < 1000) {
            memset(&fault, 0, sizeof fault);
            fault.at = at;
            fault.error = error;
            fault.no_claim = !claim;
            mc_status status = save_in(way, path, 9);
            saved = status == MC_OK && fault.at > 0;
            if (saved) break;
            char message[1024];
            snprintf(message, sizeof message, "%s", mc_last_error());
            memset(&fault, 0, sizeof fault);
            int told = status == MC_EIO && strstr(message, path) == message &&
                       strstr(message, strerror(error));
            if (!CHECK(told)) printf("call %d gave %d: %s\n", at, status, message);
            in_bytes += strstr(message, "'/x/") && strstr(message, ": cannot write: ");
            check_kept(way, path, message, old, n);
            if (way != RESUMABLE) continue;
            CHECK_OK(save_in(way, path, 9));
            CHECK(is_saved(path, 9) && count_files("kept.h5") == 1);
            CHECK_OK(save(path, 8));
        }
        memset(&fault, 0, sizeof fault);
        CHECK(saved && at > 8 && in_bytes > 0);
        CHECK(is_saved(path, 9) && count_files("kept.h5") == 1);
        CHECK_OK(save(path, 8));
        spill(in_folder("latest"), "old", 3);
        spill(in_folder("old step"), "old", 3);
    }
    TITLE("libhdf5 failing in its memory file leaves the old file as well");
    for (int at = 1; at < 4; at++) {
        fault.library = 1;
        fault.error = EIO;
        fault.no_claim = 1;
        fault.at = at;
        mc_status status = save(path, 9);
        char message[1024];
        snprintf(message, sizeof message, "%s", mc_last_error());
        memset(&fault, 0, sizeof fault);
        CHECK(status == MC_EIO && strstr(message, path) == message);
        check_kept(PLAIN, path, message, old, n);
    }
    CHECK(count_descriptors() == descriptors);
    free(old);
    unlink(path);
    unlink(in_folder("latest"));
    unlink(in_folder("old step"));
}

static void in_order(void) {
    TITLE("bytes are on the disk before the name is, and before a journal or what follows says so");
    static const char *const wanted[WAYS] = {"wsrS", "wsrSwsrSu", "wsrS", "jwyjwsrSu"};
    const char *path = name_of("order.h5");
    spill(in_folder("old step"), "old", 3);
    for (int way = 0; way < WAYS; way++) {
        memset(call_log, 0, sizeof call_log);
        fault.log = 1;
        CHECK_OK(save_in(way, path, 1));
        fault.log = 0;
        if (!CHECK(strcmp(call_log, wanted[way]) == 0)) printf("%d: %s\n", way, call_log);
    }
    TITLE("a folder that does not sync is told, unless its file system cannot do it");
    fault.folder_error = EIO;
    CHECK_STATUS(save(path, 2), MC_EIO,
                 "order.h5: the file is in place, but its folder did not sync: ");
    CHECK(is_saved(path, 2));
    fault.folder_error = EINVAL;
    CHECK_OK(save(path, 3));
    fault.folder_error = 0;
    unlink(path);
    unlink(in_folder("latest"));
}

#ifndef MASCON_SANITIZE
static void forget_partial(const char *path) {
    char name[600];
    snprintf(name, sizeof name, "%s.partial", path);
    unlink(name);
    snprintf(name, sizeof name, "%s.journal", path);
    unlink(name);
}

static void no_allocations(void) {
    TITLE("whichever allocation fails, the old file stays, or the save goes without");
    const char *path = name_of("memory.h5");
    CHECK_OK(save(path, 8));
    size_t n = 0;
    char *old = slurp(path, &n);
    int descriptors = count_descriptors();
    int64_t small[2] = {3, 5}, large = 40000, index;
    mc_tensor *a = patterned(MC_FLOAT32, 2, small, 9);
    mc_tensor *b = patterned(MC_BFLOAT16, 1, &large, 9);
    for (int way = 0; way < WAYS; way++) {
        int at = 0, left = 0, failed = 0;
        while (left == 0 && ++at < 1000) {
            mc_h5_writer *w = NULL;
            fault.malloc_at = at;
            mc_status status =
                way == RESUMABLE ? mc_h5_create_resumable(&w, path, "key") : mc_h5_create(&w, path);
            if (status == MC_OK) status = mc_h5_dataset(w, "/x/a", MC_FLOAT32, 2, small, &index);
            if (status == MC_OK) status = mc_h5_part(w, index, a);
            if (status == MC_OK) status = mc_h5_tensor(w, "/x/b", b);
            if (status == MC_OK) status = mc_h5_view_select(w, "/x/v", "/x/b", 1);
            if (status == MC_OK) status = mc_h5_attr_int(w, "/x", "seed", 9);
            if (status == MC_OK && way == CHECKED) status = mc_h5_check_written(w);
            if (status != MC_OK)
                mc_h5_discard(w);
            else if (way != ASYNC)
                status = mc_h5_commit(w);
            else if ((status = mc_h5_commit_start(w, 1)) == MC_OK)
                status = mc_h5_commit_wait(w);
            left = fault.malloc_at;
            memset(&fault, 0, sizeof fault);
            if (status == MC_OK) {
                CHECK(is_saved(path, 9));
                CHECK_OK(save(path, 8));
                continue;
            }
            failed++;
            if (!CHECK(status == MC_ENOMEM))
                printf("way %d, allocation %d: %d, %s\n", way, at, status, mc_last_error());
            size_t m = 0;
            char *now = slurp(path, &m);
            CHECK(now && n == m && memcmp(old, now, n) == 0);
            free(now);
            CHECK(count_files("tmp") == 0);
        }
        forget_partial(path);
        CHECK(left > 0 && failed > 8);
    }
    CHECK(count_descriptors() == descriptors);
    mc_tensor_free(a);
    mc_tensor_free(b);
    free(old);
    unlink(path);
}
#endif

static void spoiled(void) {
    TITLE("a wrong byte on the way to the disk is found before the file gets its name");
    const char *path = name_of("spoiled.h5");
    CHECK_OK(save_in(CHECKED, path, 8));
    int found = 0, at = 0, left = 0;
    while (left == 0 && ++at < 100) {
        memset(&fault, 0, sizeof fault);
        fault.spoil = at;
        mc_status status = save_in(CHECKED, path, 9);
        left = fault.spoil;
        char message[1024];
        snprintf(message, sizeof message, "%s", mc_last_error());
        memset(&fault, 0, sizeof fault);
        CHECK(count_files("tmp") == 0);
        if (status == MC_OK) { /* a byte that nobody uses, or the pointer's */
            CHECK(is_saved(path, 9));
            CHECK_OK(save_in(CHECKED, path, 8));
            continue;
        }
        found++;
        CHECK(is_saved(path, 8));
        if (!CHECK(strstr(message, path) == message && (strstr(message, "read back"))))
            printf("%s\n", message);
    }
    if (!CHECK(found >= 3 && left > 0)) printf("found %d of %d\n", found, at);
    unlink(in_folder("latest"));
    unlink(path);
}

static void mistaken(void) {
    TITLE("a structure that is whole but another one is found before the file gets its name");
    const char *path = name_of("mistaken.h5");
    static const char *const names[] = {"/a", "/b"};
    size_t n = 0;
    char *other = NULL;
    for (int i = 0; i < 2; i++) {
        mc_h5_writer *w = NULL;
        CHECK_OK(mc_h5_create(&w, path));
        CHECK_OK(mc_h5_bytes(w, names[i], "same", 4));
        CHECK_OK(mc_h5_check_written(w));
        fault.swap = other;
        fault.swap_bytes = n;
        if (i == 0) {
            CHECK_OK(mc_h5_commit(w));
            other = slurp(path, &n);
        } else {
            CHECK_STATUS(mc_h5_commit(w), MC_EIO,
                         "mistaken.h5: not saved: '/b' does not read back: it is missing");
        }
    }
    size_t m = 0;
    char *now = slurp(path, &m);
    CHECK(n == m && memcmp(now, other, n) == 0 && count_files("tmp") == 0);
    free(now);
    free(other);
    unlink(path);
}

static void without_locks(void) {
    TITLE("without flock files are saved all the same, and no leftover is touched");
    const char *path = name_of("nolock.h5");
    int64_t removed = -1;
    spill(in_folder("nolock.h5.tmp-1-1"), "x", 1);
    fault.no_lock = 1;
    CHECK_OK(save(path, 1));
    CHECK_OK(mc_h5_sweep(path, &removed));
    CHECK(removed == 0 && count_files("nolock.h5.tmp-1-1") == 1);
    CHECK_OK(save_in(RESUMABLE, path, 2));
    memset(&fault, 0, sizeof fault);
    CHECK(is_saved(path, 2));
    CHECK_OK(mc_h5_sweep(path, &removed));
    CHECK(removed == 1 && count_files("nolock.h5") == 1);
    unlink(path);
}

static void limits(void) {
    TITLE("a file too large for the process says so, at every size");
    const char *path = in_folder("limited.h5");
    struct rlimit old, low;
    getrlimit(RLIMIT_FSIZE, &old);
    for (int claim = 0; claim < 2; claim++) {
        for (rlim_t size = 0; size < 80000; size += 7001) {
            low = old;
            low.rlim_cur = size;
            fault.no_claim = !claim;
            setrlimit(RLIMIT_FSIZE, &low);
            mc_status status = save(path, 1);
            setrlimit(RLIMIT_FSIZE, &old);
            CHECK(status == MC_EIO && strstr(mc_last_error(), "limited.h5: ") &&
                  strstr(mc_last_error(), "File too large"));
            CHECK(count_files("limited") == 0);
        }
    }
    fault.no_claim = 0;
}

static void places_with_a_history(void) {
    TITLE("a new file has the permissions of the one it replaces, and a write-protected one stays");
    const char *path = in_folder("history.h5");
    struct stat st = {0};
    CHECK_OK(save(path, 1));
    CHECK(chmod(path, 0600) == 0);
    CHECK_OK(save(path, 2));
    CHECK(stat(path, &st) == 0 && (st.st_mode & 07777) == 0600);
    CHECK(chmod(path, 0400) == 0);
    CHECK_STATUS(save(path, 3), MC_EIO, "history.h5: it is write-protected");
    CHECK(is_saved(path, 2));
    CHECK(count_files("history") == 1);
    unlink(path);
}

static void bad_places(void) {
    TITLE("folders that are missing, closed or no folders are named with the reason");
    mc_h5_writer *w = NULL;
    mc_h5_file *f = NULL;
    CHECK_STATUS(mc_h5_create(&w, in_folder("none/x.h5")), MC_EIO,
                 "none/x.h5: cannot create a file in its folder: No such file or directory");
    CHECK(!w);
    spill(in_folder("plain"), "text", 4);
    CHECK_STATUS(mc_h5_create(&w, in_folder("plain/x.h5")), MC_EIO, "Not a directory");
    CHECK_STATUS(mc_h5_create(&w, folder), MC_EIO, "it is a folder");
    CHECK_STATUS(mc_h5_create(&w, "/dev/null"), MC_EIO, "there already and no regular file");
    CHECK_STATUS(mc_h5_create(&w, ""), MC_EINVAL, "no path");
    CHECK_STATUS(mc_h5_create(&w, NULL), MC_EINVAL, "no path");
    CHECK_STATUS(mc_h5_commit(NULL), MC_EINVAL, "no writer");
    CHECK_STATUS(mc_h5_group(NULL, "/x"), MC_EINVAL, "no writer");
    mc_h5_discard(NULL);
    mkdir(in_folder("closed"), 0755);
    CHECK_OK(save(in_folder("closed/x.h5"), 1));
    chmod(in_folder("closed"), 0555);
    chmod(in_folder("closed/x.h5"), 0);
    chmod(folder, 0755);
    int root = geteuid() == 0; /* whom modes do not stop */
    if (root) CHECK(seteuid(65534) == 0);
    CHECK_STATUS(mc_h5_create(&w, in_folder("closed/y.h5")), MC_EIO, "y.h5: cannot create a file");
    CHECK(strstr(mc_last_error(), "Permission denied"));
    CHECK_STATUS(mc_h5_open(&f, in_folder("closed/x.h5"), NULL), MC_EIO, "x.h5: Permission denied");
    if (root) CHECK(seteuid(0) == 0);
    chmod(in_folder("closed"), 0755);
    unlink(in_folder("closed/x.h5"));
    rmdir(in_folder("closed"));

    TITLE("what is no HDF5 file is told apart from what is not there");
    CHECK_STATUS(mc_h5_open(&f, in_folder("missing.h5"), NULL), MC_EIO,
                 "missing.h5: No such file or directory");
    CHECK(!f);
    CHECK_STATUS(mc_h5_open(&f, folder, NULL), MC_EIO, "it is a folder");
    CHECK_STATUS(mc_h5_open(&f, in_folder("plain"), NULL), MC_EFORMAT, "plain: not an HDF5 file: ");
    spill(in_folder("plain"), "", 0);
    CHECK_STATUS(mc_h5_open(&f, in_folder("plain"), NULL), MC_EFORMAT, "plain: not an HDF5 file: ");
    char zeros[5000] = {0};
    spill(in_folder("plain"), zeros, sizeof zeros);
    CHECK_STATUS(mc_h5_open(&f, in_folder("plain"), NULL), MC_EFORMAT, "plain: not an HDF5 file: ");
    unlink(in_folder("plain"));
    mkfifo(in_folder("fifo"), 0600);
    CHECK_STATUS(mc_h5_open(&f, in_folder("fifo"), NULL), MC_EFORMAT, "it is not a regular file");
    unlink(in_folder("fifo"));
    CHECK_STATUS(mc_h5_open(&f, NULL, NULL), MC_EINVAL, "no path");
    mc_h5_close(NULL);
}

static void damage(void) {
    const char *path = in_folder("whole.h5"), *hurt = in_folder("hurt.h5");
    size_t n = 0;
    CHECK_OK(save(path, 2));
    char *bytes = slurp(path, &n);
    mc_h5_file *f = NULL;
    TITLE("a file cut short at any length is refused");
    for (size_t length = 0; length < n; length += length < 100 ? 1 : 997) {
        spill(hurt, bytes, length);
        mc_status status = mc_h5_open(&f, hurt, NULL);
        CHECK(status == MC_EFORMAT && !f && strstr(mc_last_error(), "hurt.h5: "));
        if (length >= 48) CHECK(strstr(mc_last_error(), "truncated"));
    }
    spill(hurt, bytes, n - 1);
    CHECK_STATUS(mc_h5_open(&f, hurt, NULL), MC_EFORMAT, "truncated: ");
    char *longer = malloc(n + 7);
    memcpy(longer, bytes, n);
    memcpy(longer + n, "garbage", 7);
    spill(hurt, longer, n + 7);
    CHECK_STATUS(mc_h5_open(&f, hurt, NULL), MC_EFORMAT, "7 bytes follow its end");
    free(longer);

    TITLE("one wrong byte in the structure is refused, in a tensor found by its digest");
    CHECK_OK(mc_h5_open(&f, path, NULL));
    const mc_h5_entry *a = io_find(f, "/x/a", NULL), *b = io_find(f, "/x/b", NULL);
    size_t a0 = (size_t)a->offset, a1 = a0 + (size_t)a->bytes;
    size_t b0 = (size_t)b->offset, b1 = b0 + (size_t)b->bytes;
    mc_h5_close(f);
    int refused = 0, accepted = 0;
    for (size_t i = 0; i < n; i += i < 48 ? 1 : i >= b0 && i < b1 ? 9973 : 47) {
        bytes[i] ^= 0x10;
        spill(hurt, bytes, n);
        bytes[i] ^= 0x10;
        mc_status status = mc_h5_open(&f, hurt, NULL);
        if (status == MC_OK) mc_h5_close(f);
        if ((i >= a0 && i < a1) || (i >= b0 && i < b1)) {
            CHECK(status == MC_OK && !is_saved(hurt, 2));
        } else if (status == MC_OK) {
            accepted++;
            CHECK(is_saved(hurt, 2)); /* a byte that nobody uses */
        } else {
            refused++;
            CHECK(status == MC_EFORMAT && strstr(mc_last_error(), "hurt.h5: "));
        }
    }
    CHECK(refused > 60);
    CHECK(accepted > 0); /* alignment leaves gaps */
    bytes[44] ^= 1;
    spill(hurt, bytes, n);
    CHECK_STATUS(mc_h5_open(&f, hurt, NULL), MC_EFORMAT, "the superblock's checksum is wrong");
    free(bytes);
    unlink(hurt);
    unlink(path);
}

int main(void) {
    if (!make_folder()) return 1;
    killed();
    replaced();
    slow_system();
    each_failure();
    in_order();
#ifndef MASCON_SANITIZE
    no_allocations();
#endif
    spoiled();
    mistaken();
    without_locks();
    limits();
    places_with_a_history();
    bad_places();
    damage();
    remove_folder();
    return check_report();
}
