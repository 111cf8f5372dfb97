/* io_faults.h: system calls and allocations that fail on demand, for one program's tests. Those of
 * libhdf5, which works in memory, fail only when that is asked for too.
 */
#ifndef MASCON_IO_FAULTS_H
#define MASCON_IO_FAULTS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct {
    int at;           /* the at-th call from now fails; 0: none */
    int error;        /* with this errno; 0: the process ends there */
    int no_claim;     /* fallocate is not supported */
    int no_lock;      /* flock is not supported */
    int short_most;   /* pwrite and pread move at most this many bytes; 0: all */
    int interrupt;    /* every other pwrite and pread is interrupted */
    int spoil;        /* the spoil-th pwrite from now writes a wrong byte; 0: none */
    int malloc_at;    /* the malloc_at-th allocation from now fails; 0: none */
    int library;      /* calls of the libraries fail too */
    int folder_error; /* fsync of a folder fails with this errno; 0: it does not */
    int log;          /* calls are noted in call_log */
    const char *swap; /* the next fsync finds these swap_bytes bytes in its file */
    size_t swap_bytes;
} fault;

/* The core is part of this program, libhdf5 is not. */
extern const char __executable_start[], etext[];
static int by_core(const void *caller) {
    return fault.library ||
           ((const char *)caller >= __executable_start && (const char *)caller < etext);
}
#define CALLER __builtin_return_address(0)

static int fails(const void *caller) {
    if (fault.at == 0 || !by_core(caller) || --fault.at > 0) return 0;
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

static int count_descriptors(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n;
}

/* What was done to files, one letter each and never the same twice running: w bytes or length of a
 * new file, y its fdatasync, s its fsync, S a folder's, r rename, u unlink, j bytes or length of a
 * journal. */
static char call_log[64];

static void log_letter(char letter) {
    static int busy;
    while (__atomic_exchange_n(&busy, 1, __ATOMIC_ACQUIRE)) continue;
    size_t n = strlen(call_log);
    if (n + 1 < sizeof call_log && (n == 0 || call_log[n - 1] != letter)) call_log[n] = letter;
    __atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
}

static int is_folder(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The same of a call on a file, if it is a folder, a journal or a new file. */
static void log_call(int fd, char letter) {
    if (!fault.log) return;
    char link[40], name[1024] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, name, sizeof name - 1);
    if (n < 0) return;
    name[n] = '\0';
    if (is_folder(fd))
        log_letter('S');
    else if (strstr(name, ".journal"))
        log_letter(letter == 'w' ? 'j' : '?');
    else if (strstr(name, ".tmp-") || strstr(name, ".partial"))
        log_letter(letter);
}

/* exported, so that the libraries find them too */
#pragma GCC visibility push(default)
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    if (fails(CALLER) || interrupted()) return -1;
    log_call(fd, 'w');
    if (fault.short_most && n > (size_t)fault.short_most) n = (size_t)fault.short_most;
    if (fault.spoil > 0 && --fault.spoil == 0 && n > 0) {
        char wrong = (char)~*(const char *)p;
        n = (size_t)syscall(SYS_pwrite64, fd, p, n, at);
        /* past a page cache that another descriptor may bypass */
        char name[40];
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        int other = open(name, O_WRONLY);
        syscall(SYS_pwrite64, other, &wrong, 1, at);
        close(other);
        return (ssize_t)n;
    }
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
    return fails(CALLER) ? -1 : (int)syscall(SYS_fallocate, fd, mode, at, n);
}
int fsync(int fd) {
    if (fault.swap) syscall(SYS_pwrite64, fd, fault.swap, fault.swap_bytes, 0);
    fault.swap = NULL;
    log_call(fd, 's');
    if (fault.folder_error != 0 && is_folder(fd)) {
        errno = fault.folder_error;
        return -1;
    }
    return fails(CALLER) ? -1 : (int)syscall(SYS_fsync, fd);
}
int fdatasync(int fd) {
    log_call(fd, 'y');
    return fails(CALLER) ? -1 : (int)syscall(SYS_fdatasync, fd);
}
int ftruncate(int fd, off_t n) {
    log_call(fd, 'w');
    return fails(CALLER) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}
int unlink(const char *path) {
    if (fault.log) log_letter('u');
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
int rename(const char *from, const char *to) {
    if (fault.log) log_letter('r');
    return fails(CALLER) ? -1 : (int)syscall(SYS_rename, from, to);
}
int memfd_create(const char *name, unsigned flags) {
    return fails(CALLER) ? -1 : (int)syscall(SYS_memfd_create, name, flags);
}
int flock(int fd, int how) {
    if (fault.no_lock) {
        errno = ENOLCK;
        return -1;
    }
    return (int)syscall(SYS_flock, fd, how);
}
/* the names that other builds of libhdf5 call them by */
ssize_t pwrite64(int fd, const void *p, size_t n, off_t at) {
    return pwrite(fd, p, n, at);
}
ssize_t pread64(int fd, void *p, size_t n, off_t at) {
    return pread(fd, p, n, at);
}
int ftruncate64(int fd, off_t n) {
    log_call(fd, 'w');
    return fails(CALLER) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}

#ifndef MASCON_SANITIZE /* the sanitizers have allocators of their own */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static int no_memory(const void *caller) {
    if (fault.malloc_at == 0 || !by_core(caller) || --fault.malloc_at > 0) return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n) {
    return no_memory(CALLER) ? NULL : __libc_malloc(n);
}
void *calloc(size_t n, size_t size) {
    return no_memory(CALLER) ? NULL : __libc_calloc(n, size);
}
void *realloc(void *p, size_t n) {
    return no_memory(CALLER) ? NULL : __libc_realloc(p, n);
}
void *aligned_alloc(size_t alignment, size_t n) {
    return no_memory(CALLER) ? NULL : __libc_memalign(alignment, n);
}
int posix_memalign(void **p, size_t alignment, size_t n) {
    if (no_memory(CALLER)) return ENOMEM;
    *p = __libc_memalign(alignment, n);
    return *p ? 0 : ENOMEM;
}
char *strdup(const char *text) {
    size_t n = strlen(text) + 1;
    char *copy = no_memory(CALLER) ? NULL : __libc_malloc(n);
    return copy ? memcpy(copy, text, n) : NULL;
}
char *strndup(const char *text, size_t most) {
    size_t n = strnlen(text, most);
    char *copy = no_memory(CALLER) ? NULL : __libc_malloc(n + 1);
    if (!copy) return NULL;
    copy[n] = '\0';
    return memcpy(copy, text, n);
}
#endif
#pragma GCC visibility pop

#endif
