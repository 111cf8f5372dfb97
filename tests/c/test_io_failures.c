/* test_io_failures.c: every way a save can fail, and damaged files.
 *
 * The system calls of a save are replaced here by ones that fail when asked, in the core and in
 * libhdf5 alike.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "io_helpers.h"

/* libhdf5 1.10.8 leaks each block of metadata whose checksum is wrong. Only the sanitizers call it.
 */
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libhdf5_serial\nleak:libhdf5.so\n";
}

/* -- system calls that fail on demand ---------------------------------------------------------- */

static struct {
    int at;         /* the at-th call from now fails; 0: none */
    int error;      /* with this errno; 0: the process ends there */
    int no_claim;   /* fallocate is not supported */
    int short_most; /* pwrite and pread move at most this many bytes; 0: all */
    int interrupt;  /* every other pwrite and pread is interrupted */
} fault;

static int fails(void) {
    if (fault.at == 0 || --fault.at > 0) return 0;
    if (fault.error == 0) _exit(0);
    errno = fault.error;
    return 1;
}

static int interrupted(void) {
    static int odd;
    if (fault.interrupt && (odd = !odd)) {
        errno = EINTR;
        return 1;
    }
    return 0;
}

/* exported, so that libhdf5 finds them too */
#pragma GCC visibility push(default)
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    if (fails() || interrupted()) return -1;
    if (fault.short_most && n > (size_t)fault.short_most) n = (size_t)fault.short_most;
    return syscall(SYS_pwrite64, fd, p, n, at);
}
ssize_t pread(int fd, void *p, size_t n, off_t at) {
    if (interrupted()) return -1;
    if (fault.short_most && n > (size_t)fault.short_most) n = (size_t)fault.short_most;
    return syscall(SYS_pread64, fd, p, n, at);
}
int fallocate(int fd, int mode, off_t at, off_t n) {
    if (fault.no_claim) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return fails() ? -1 : (int)syscall(SYS_fallocate, fd, mode, at, n);
}
int fsync(int fd) {
    return fails() ? -1 : (int)syscall(SYS_fsync, fd);
}
int ftruncate(int fd, off_t n) {
    return fails() ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}
int rename(const char *from, const char *to) {
    return fails() ? -1 : (int)syscall(SYS_rename, from, to);
}
/* the names that other builds of libhdf5 call them by */
ssize_t pwrite64(int fd, const void *p, size_t n, off_t at) {
    return pwrite(fd, p, n, at);
}
ssize_t pread64(int fd, void *p, size_t n, off_t at) {
    return pread(fd, p, n, at);
}
int ftruncate64(int fd, off_t n) {
    return ftruncate(fd, n);
}
#pragma GCC visibility pop

static int count_descriptors(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n;
}

static void spill(const char *path, const char *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n);
    if (f) fclose(f);
}

/* -- tests ------------------------------------------------------------------------------------- */

static void killed(void) {
    TITLE("a writer that dies leaves the old file and a temporary one that nobody can open");
    char path[512];
    snprintf(path, sizeof path, "%s", in_folder("old.h5"));
    int threads = mc_get_num_threads();
    CHECK_OK(mc_set_num_threads(1)); /* OpenMP's threads do not survive a fork */
    CHECK_OK(save(path, 1));
    int unfinished = 0, at = 1;
    for (;; at++) {
        pid_t child = fork();
        if (child == 0) {
            fault.at = at;
            fault.no_claim = 1;
            mc_status status = save(path, 1);
            _exit(status == MC_OK ? 3 : 4);
        }
        int state = 0;
        waitpid(child, &state, 0);
        if (!WIFEXITED(state) || WEXITSTATUS(state) != 0 || at > 1000) {
            CHECK(WIFEXITED(state) && WEXITSTATUS(state) == 3);
            break;
        }
        CHECK(is_saved(path, 1));
        DIR *d = opendir(folder);
        for (struct dirent *e = readdir(d); e; e = readdir(d)) {
            mc_h5_file *f = NULL;
            if (!strstr(e->d_name, "tmp")) continue;
            mc_status status = mc_h5_open(&f, in_folder(e->d_name));
            /* closed before the rename: whole, and only without its name */
            CHECK(status == MC_EFORMAT || is_saved(in_folder(e->d_name), 1));
            unfinished += status == MC_EFORMAT && strstr(mc_last_error(), "it was never closed");
            mc_h5_close(f);
            unlink(in_folder(e->d_name));
        }
        closedir(d);
    }
    CHECK(at > 8 && unfinished > 0);
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
    for (int i = 0; i < 1000; i++) {
        mc_h5_file *f = NULL;
        failures += mc_h5_open(&f, path) != MC_OK;
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

static void each_failure(void) {
    const char *path = in_folder("kept.h5");
    CHECK_OK(save(path, 8));
    size_t n = 0, m = 0;
    char *old = slurp(path, &n);
    int descriptors = count_descriptors();
    for (int claim = 0; claim < 2; claim++) {
        TITLE("whichever system call fails, the old file stays and nothing is left behind");
        int at = 0, saved = 0, in_bytes = 0;
        while (!saved && ++at < 1000) {
            memset(&fault, 0, sizeof fault);
            fault.at = at;
            fault.error = ENOSPC;
            fault.no_claim = !claim;
            mc_status status = save(path, 9);
            saved = status == MC_OK && fault.at > 0;
            if (saved) break;
            char message[1024];
            snprintf(message, sizeof message, "%s", mc_last_error());
            memset(&fault, 0, sizeof fault);
            if (strstr(message, "did not sync")) { /* by then the new file has its name */
                CHECK(status == MC_EIO && is_saved(path, 9));
                CHECK_OK(save(path, 8));
            }
            int told = status == MC_EIO && strstr(message, path) == message &&
                       strstr(message, "No space left on device");
            if (!CHECK(told)) printf("call %d gave %d: %s\n", at, status, message);
            in_bytes += strstr(message, "cannot write '/x/") != NULL;
            CHECK(count_files("tmp") == 0);
            char *now = slurp(path, &m);
            CHECK(n == m && memcmp(old, now, n) == 0);
            free(now);
        }
        memset(&fault, 0, sizeof fault);
        CHECK(saved && at > 8 && in_bytes > 0);
        CHECK(is_saved(path, 9));
        CHECK_OK(save(path, 8));
    }
    CHECK(count_descriptors() == descriptors);
    free(old);
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
    CHECK_STATUS(mc_h5_open(&f, in_folder("closed/x.h5")), MC_EIO, "x.h5: Permission denied");
    if (root) CHECK(seteuid(0) == 0);
    chmod(in_folder("closed"), 0755);
    unlink(in_folder("closed/x.h5"));
    rmdir(in_folder("closed"));

    TITLE("what is no HDF5 file is told apart from what is not there");
    CHECK_STATUS(mc_h5_open(&f, in_folder("missing.h5")), MC_EIO,
                 "missing.h5: No such file or directory");
    CHECK(!f);
    CHECK_STATUS(mc_h5_open(&f, folder), MC_EIO, "it is a folder");
    CHECK_STATUS(mc_h5_open(&f, in_folder("plain")), MC_EFORMAT, "plain: not an HDF5 file: ");
    spill(in_folder("plain"), "", 0);
    CHECK_STATUS(mc_h5_open(&f, in_folder("plain")), MC_EFORMAT, "plain: not an HDF5 file: ");
    char zeros[5000] = {0};
    spill(in_folder("plain"), zeros, sizeof zeros);
    CHECK_STATUS(mc_h5_open(&f, in_folder("plain")), MC_EFORMAT, "plain: not an HDF5 file: ");
    unlink(in_folder("plain"));
    mkfifo(in_folder("fifo"), 0600);
    CHECK_STATUS(mc_h5_open(&f, in_folder("fifo")), MC_EFORMAT, "it is not a regular file");
    unlink(in_folder("fifo"));
    CHECK_STATUS(mc_h5_open(&f, NULL), MC_EINVAL, "no path");
    mc_h5_close(NULL);
}

static void damage(void) {
    const char *path = in_folder("whole.h5"), *hurt = in_folder("hurt.h5");
    size_t n = 0;
    CHECK_OK(save(path, 2));
    char *bytes = slurp(path, &n);
    mc_h5_file *f = NULL;
    TITLE("a file cut short at any length is refused");
    for (size_t length = 0; length < n; length += length < 400 ? 1 : 997) {
        spill(hurt, bytes, length);
        mc_status status = mc_h5_open(&f, hurt);
        CHECK(status == MC_EFORMAT && !f && strstr(mc_last_error(), "hurt.h5: "));
        if (length >= 48) CHECK(strstr(mc_last_error(), "truncated"));
    }
    spill(hurt, bytes, n - 1);
    CHECK_STATUS(mc_h5_open(&f, hurt), MC_EFORMAT, "truncated: ");
    char *longer = malloc(n + 7);
    memcpy(longer, bytes, n);
    memcpy(longer + n, "garbage", 7);
    spill(hurt, longer, n + 7);
    CHECK_STATUS(mc_h5_open(&f, hurt), MC_EFORMAT, "7 bytes follow its end");
    free(longer);

    TITLE("one wrong byte in the structure is refused, in a tensor found by its digest");
    CHECK_OK(mc_h5_open(&f, path));
    const mc_h5_entry *a = io_find(f, "/x/a", NULL), *b = io_find(f, "/x/b", NULL);
    size_t a0 = (size_t)a->offset, a1 = a0 + (size_t)a->bytes;
    size_t b0 = (size_t)b->offset, b1 = b0 + (size_t)b->bytes;
    mc_h5_close(f);
    int refused = 0, accepted = 0;
    for (size_t i = 0; i < n; i += i >= b0 && i < b1 ? 3989 : 1) {
        bytes[i] ^= 0x10;
        spill(hurt, bytes, n);
        bytes[i] ^= 0x10;
        mc_status status = mc_h5_open(&f, hurt);
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
    CHECK(refused > 500);
    CHECK(accepted > 0); /* alignment leaves gaps */
    bytes[44] ^= 1;
    spill(hurt, bytes, n);
    CHECK_STATUS(mc_h5_open(&f, hurt), MC_EFORMAT, "the superblock's checksum is wrong");
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
    limits();
    places_with_a_history();
    bad_places();
    damage();
    remove_folder();
    return check_report();
}
