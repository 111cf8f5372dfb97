/* newfile.c: temporary names, their locks, and what is renamed over the old file in the end.
 *
 * Whoever dies leaves only a temporary file, and the kernel takes its lock away; the next writer of
 * the same path removes it. File systems without flock: the files work, leftovers stay.
 */
#include "newfile.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io/bytes.h"
#include "status.h"

enum { MAX_LINKS = 40, MAX_TRIES = 1000 };
/* The threads of a killed process end one by one, and the last takes the lock with it. */
enum { LOCK_TRIES = 50, LOCK_WAIT = 20000000 /* ns */ };

static const char mark[] = ".tmp-";

mc_status mci_os_failure(const char *path, const char *what, int error) {
    char text[128];
    mci_io_reason(error, text, sizeof text);
    return mci_fail(error == ENOMEM ? MC_ENOMEM : MC_EIO, "%s: %s%s", path, what, text);
}

/* -- names ------------------------------------------------------------------------------------- */

/* The part of a path before its last name; "." when there is none. NULL: out of memory. */
static char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

static const char *last_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *mci_absolute(const char *path) {
    char *folder = path[0] == '/' ? NULL : getcwd(NULL, 0);
    if (!folder) return strdup(path);
    size_t n = strlen(folder), room = n + strlen(path) + 2;
    char *whole = malloc(room);
    if (whole) snprintf(whole, room, "%s%s%s", folder, folder[n - 1] == '/' ? "" : "/", path);
    free(folder);
    if (!whole) errno = ENOMEM;
    return whole;
}

/* What a path stands for: follows symbolic links at its end, also one that points at nothing yet.
 * NULL with errno set on failure. */
static char *follow_links(const char *path) {
    char *at = mci_absolute(path);
    for (int i = 0; at && i < MAX_LINKS; i++) {
        struct stat st;
        if (lstat(at, &st) != 0 || !S_ISLNK(st.st_mode)) return at;
        char target[PATH_MAX];
        ssize_t n = readlink(at, target, sizeof target - 1);
        if (n < 0) break;
        target[n] = '\0';
        size_t before = target[0] == '/' ? 0 : (size_t)(last_name(at) - at);
        char *next = malloc(before + (size_t)n + 1);
        if (next) {
            memcpy(next, at, before);
            memcpy(next + before, target, (size_t)n + 1);
        }
        free(at);
        at = next;
        if (!at)
            errno = ENOMEM;
        else
            errno = ELOOP;
    }
    free(at);
    return NULL;
}

/* -- locks ------------------------------------------------------------------------------------- */

/* 0 when locked, EWOULDBLOCK when somebody else has it, else the errno of a file system that has no
 * such locks. */
static int lock_file(int fd, int how) {
    while (flock(fd, how | LOCK_NB) != 0) {
        if (errno != EINTR) return errno;
    }
    return 0;
}

/* The same, waiting for a holder that is about to end. */
static int lock_soon(int fd, int how) {
    const struct timespec pause = {.tv_nsec = LOCK_WAIT};
    int error = lock_file(fd, how);
    for (int i = 0; i < LOCK_TRIES && error == EWOULDBLOCK; i++) {
        nanosleep(&pause, NULL);
        error = lock_file(fd, how);
    }
    return error;
}

/* Closes the file and takes the lock away, which else lasted as long as the copy of the descriptor
 * that a child of fork has. */
static void close_locked(mci_newfile *f) {
    if (f->owner == getpid()) lock_file(f->fd, LOCK_UN);
    close(f->fd);
    f->fd = -1;
}

/* 1 when `path` still names the open file. */
static int still_named(int fd, const char *path) {
    struct stat open_one, named;
    return fstat(fd, &open_one) == 0 && lstat(path, &named) == 0 &&
           open_one.st_ino == named.st_ino && open_one.st_dev == named.st_dev;
}

/* -- opening ----------------------------------------------------------------------------------- */

/* Fills name and path, and refuses what cannot be replaced. *mode: permissions of the old file, or
 * -1. */
static mc_status look(mci_newfile *f, const char *path, int *mode) {
    f->fd = -1;
    f->owner = getpid();
    f->name = strdup(path);
    f->path = f->name ? follow_links(path) : NULL;
    if (!f->path) return mci_os_failure(path, "", errno);
    struct stat st;
    *mode = -1;
    if (stat(f->path, &st) != 0) return MC_OK;
    /* rename would say so too, after all the work */
    if (!S_ISREG(st.st_mode))
        return mci_fail(MC_EIO, "%s: it is %s", path,
                        S_ISDIR(st.st_mode) ? "a folder" : "there already and no regular file");
    /* rename asks the folder only */
    if ((st.st_mode & 0222) == 0 || access(f->path, W_OK) != 0)
        return mci_fail(MC_EIO, "%s: it is write-protected", path);
    *mode = st.st_mode & 0777;
    return MC_OK;
}

/* The file is there: permissions, and the first bytes of the disk, so that a full one shows. */
static mc_status take(mci_newfile *f, int mode) {
    if (mode >= 0) fchmod(f->fd, (mode_t)mode); /* where the file system has permissions */
    int error = mci_claim(f->fd, 4096);
    return error == 0 ? MC_OK : mci_os_failure(f->name, "", error);
}

mc_status mci_newfile_open(mci_newfile *f, const char *path) {
    static atomic_int counter;
    int mode;
    mc_status status = look(f, path, &mode);
    if (status != MC_OK) return status;
    size_t room = strlen(f->path) + 48;
    char *name = malloc(room);
    if (!name) return mci_os_failure(path, "", ENOMEM);
    int error = EEXIST;
    for (int tries = 0; tries < MAX_TRIES && (error == EEXIST || error == EINTR); tries++) {
        /* the name may be left of a killed process that had our number */
        snprintf(name, room, "%s%s%ld-%d", f->path, mark, (long)f->owner,
                 atomic_fetch_add(&counter, 1));
        f->fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (f->fd < 0) {
            error = errno;
            continue;
        }
        error = 0;
        /* a sweep may have come between open and lock */
        if (lock_file(f->fd, LOCK_SH) == EWOULDBLOCK || !still_named(f->fd, name)) {
            close(f->fd);
            f->fd = -1;
            error = EEXIST;
        }
    }
    if (error != 0) {
        free(name);
        return mci_os_failure(path, "cannot create a file in its folder: ", error);
    }
    f->temp = name; /* from here on there is something to remove */
    return take(f, mode);
}

mc_status mci_newfile_open_partial(mci_newfile *f, const char *path) {
    int mode;
    mc_status status = look(f, path, &mode);
    if (status != MC_OK) return status;
    f->lasting = 1;
    size_t room = strlen(f->path) + sizeof ".partial";
    f->temp = malloc(room);
    if (!f->temp) return mci_os_failure(path, "", ENOMEM);
    snprintf(f->temp, room, "%s.partial", f->path);
    for (int tries = 0; tries < MAX_TRIES; tries++) {
        f->fd = open(f->temp, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
        if (f->fd < 0 && errno == EINTR) continue;
        if (f->fd < 0) return mci_os_failure(f->temp, "cannot open it: ", errno);
        struct stat st;
        if (fstat(f->fd, &st) != 0 || !S_ISREG(st.st_mode))
            return mci_fail(MC_EIO, "%s: it is no regular file", f->temp);
        if (lock_soon(f->fd, LOCK_EX) == EWOULDBLOCK)
            return mci_fail(MC_EIO, "%s: another process is converting into it", path);
        /* its writer may have published it between open and lock */
        if (still_named(f->fd, f->temp)) return take(f, mode);
        close_locked(f);
    }
    return mci_os_failure(f->temp, "cannot open it: ", EAGAIN);
}

/* -- to the disk and to its name --------------------------------------------------------------- */

static int sync_fd(int fd) {
    while (fsync(fd) != 0) {
        if (errno != EINTR) return errno;
    }
    return 0;
}

mc_status mci_newfile_sync(mci_newfile *f) {
    int error = sync_fd(f->fd);
    return error == 0 ? MC_OK : mci_os_failure(f->name, "cannot bring it to the disk: ", error);
}

mc_status mci_newfile_publish(mci_newfile *f) {
    /* close may report what a network file system kept back; the file itself stays open, since its
     * lock keeps others from sweeping it */
    int copy = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0 || (close(copy) != 0 && errno != EINTR))
        return mci_os_failure(f->name, "cannot close the file: ", errno);
    char *folder = folder_of(f->path);
    if (!folder) return mci_os_failure(f->name, "", ENOMEM);
    int at = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = errno;
    free(folder);
    if (at < 0) return mci_os_failure(f->name, "cannot open its folder: ", error);
    if (rename(f->temp, f->path) != 0) {
        error = errno;
        close(at);
        return mci_os_failure(f->name, "cannot give the file its name: ", error);
    }
    close_locked(f);
    free(f->temp);
    f->temp = NULL;
    error = sync_fd(at);
    close(at);
    /* some file systems cannot sync folders and need not */
    if (error != 0 && error != EINVAL && error != ENOTSUP)
        return mci_os_failure(f->name,
                              "the file is in place, but its folder did not sync: ", error);
    return MC_OK;
}

void mci_newfile_discard(mci_newfile *f) {
    if (f->temp && f->fd >= 0 && !f->lasting && f->owner == getpid()) unlink(f->temp);
    if (f->fd >= 0) close_locked(f);
    free(f->temp);
    free(f->path);
    free(f->name);
    f->temp = f->path = f->name = NULL;
}

/* -- sweeping ---------------------------------------------------------------------------------- */

/* 1 for "<base>.tmp-<digits>-<digits>". */
static int is_temp_of(const char *name, const char *base) {
    size_t n = strlen(base);
    if (strncmp(name, base, n) != 0 || strncmp(name + n, mark, sizeof mark - 1) != 0) return 0;
    const char *process = name + n + sizeof mark - 1;
    size_t digits = strspn(process, "0123456789");
    const char *number = process + digits + 1;
    if (digits == 0 || process[digits] != '-') return 0;
    digits = strspn(number, "0123456789");
    return digits > 0 && number[digits] == '\0';
}

/* Removes one temporary file unless its writer lives: 1, 0, or -1 with errno. */
static int sweep_one(const char *path) {
    int fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return 0; /* gone, or not ours */
    struct stat st;
    int gone = 0;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && lock_file(fd, LOCK_EX) == 0 &&
        still_named(fd, path))
        gone = unlink(path) == 0 ? 1 : -1;
    int error = errno;
    close(fd);
    errno = error;
    return gone;
}

mc_status mci_newfile_sweep(const char *path, int64_t *removed) {
    *removed = 0;
    char *target = follow_links(path);
    if (!target) return mci_os_failure(path, "", errno);
    char *folder = folder_of(target), *name = malloc(strlen(target) + 2 + NAME_MAX + 1);
    DIR *d = folder && name ? opendir(folder) : NULL;
    mc_status status = MC_OK;
    if (!folder || !name)
        status = mci_os_failure(path, "", ENOMEM);
    else if (!d)
        status = mci_os_failure(path, "cannot list its folder: ", errno);
    const char *base = last_name(target);
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        if (!is_temp_of(e->d_name, base)) continue;
        sprintf(name, "%.*s%s", (int)(base - target), target, e->d_name);
        int gone = sweep_one(name);
        if (gone > 0) ++*removed;
        if (gone < 0 && status == MC_OK) status = mci_os_failure(name, "cannot remove it: ", errno);
    }
    if (d) closedir(d);
    free(name);
    free(folder);
    free(target);
    return status;
}

mc_status mc_h5_sweep(const char *path, int64_t *removed) {
    int64_t n;
    if (!path || !*path) return mci_fail(MC_EINVAL, "h5_sweep: no path");
    return mci_newfile_sweep(path, removed ? removed : &n);
}
