/* spawn.c: starting, talking to and ending the reading helper.
 *
 * posix_spawn does not copy the page tables of a large parent, as fork would, and is safe beside
 * other threads. The helper limits itself (h5main.c) before it looks at the file. It has a process
 * group of its own, so that an interrupt at the terminal leaves it to us; when we die, it sees its
 * socket close. Children are waited for by their number, so that nobody else's are taken.
 */
#include "spawn.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "io/bytes.h"
#include "io/scan.h"
#include "status.h"

static const char *program_for_tests;

void mci_h5_helper_for_tests(const char *path) {
    program_for_tests = path;
}

/* The program stands beside this library, as the plugins do. 0 when that cannot be told. */
static int find_program(char *path, size_t size) {
    Dl_info self;
    int n;
    if (program_for_tests) {
        n = snprintf(path, size, "%s", program_for_tests);
    } else {
        if (!dladdr((const void *)(uintptr_t)&mci_child_start, &self) || !self.dli_fname) return 0;
        const char *slash = strrchr(self.dli_fname, '/');
        int folder = slash ? (int)(slash - self.dli_fname) + 1 : 0;
        n = snprintf(path, size, "%.*smascon_h5scan", folder, self.dli_fname);
    }
    return n > 0 && n < (int)size;
}

/* A copy of fd that is above the numbers which the child's descriptors get; closes fd. -1 and
 * errno. */
static int move_up(int fd) {
    if (fd > MCI_SCAN_SOCKET) return fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, MCI_SCAN_SOCKET + 1), error = errno;
    close(fd);
    errno = error;
    return moved;
}

/* What the loader and the sanitizers need; the rest of our environment is no business of its. */
static void pick_environment(char **picked, size_t room) {
    static const char *const names[] = {
        "LD_LIBRARY_PATH=",
#ifdef MASCON_SANITIZE
        "ASAN_OPTIONS=",
        "UBSAN_OPTIONS=",
        "LSAN_OPTIONS=",
#endif
    };
    size_t n = 0;
    for (char **e = environ; e && *e; e++) {
        for (size_t i = 0; i < sizeof names / sizeof *names && n + 1 < room; i++) {
            if (strncmp(*e, names[i], strlen(names[i])) == 0) picked[n++] = *e;
        }
    }
    picked[n] = NULL;
}

/* 0 or an errno. file and socket are above the child's numbers. */
static int spawn(pid_t *pid, const char *program, int file, int socket) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    char name[] = "mascon_h5scan", *arguments[] = {name, NULL}, *environment[8];
    sigemptyset(&none);
    sigfillset(&all);
    pick_environment(environment, sizeof environment / sizeof *environment);
    int error = posix_spawn_file_actions_init(&actions);
    if (error != 0) return error;
    error = posix_spawnattr_init(&attributes);
    if (error != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return error;
    }
    for (int i = 0; i < 3 && error == 0; i++)
        error = posix_spawn_file_actions_addopen(&actions, i, "/dev/null", O_RDWR, 0);
    if (error == 0) error = posix_spawn_file_actions_adddup2(&actions, file, MCI_SCAN_FILE);
    if (error == 0) error = posix_spawn_file_actions_adddup2(&actions, socket, MCI_SCAN_SOCKET);
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    if (error == 0) error = posix_spawn_file_actions_addclosefrom_np(&actions, MCI_SCAN_SOCKET + 1);
#endif
    if (error == 0) error = posix_spawnattr_setsigmask(&attributes, &none);
    if (error == 0) error = posix_spawnattr_setsigdefault(&attributes, &all);
    if (error == 0) error = posix_spawnattr_setpgroup(&attributes, 0);
    if (error == 0)
        error = posix_spawnattr_setflags(
            &attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    if (error == 0)
        error = posix_spawn(pid, program, &actions, &attributes, arguments, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

mc_status mci_child_start(mci_child *c, int file, const char *label) {
    char program[PATH_MAX], text[128];
    int pair[2] = {-1, -1}, copy = -1, error = 0;
    c->pid = 0;
    c->socket = -1;
    if (!find_program(program, sizeof program))
        return mci_fail(MC_EUNSUPPORTED, "%s: the folder of libmascon.so is unknown", label);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        error = errno;
        pair[0] = pair[1] = -1;
    }
    if (error == 0 && (pair[1] = move_up(pair[1])) < 0) error = errno;
    if (error == 0) copy = fcntl(file, F_DUPFD_CLOEXEC, MCI_SCAN_SOCKET + 1);
    if (error == 0 && copy < 0) error = errno;
    if (error == 0) error = spawn(&c->pid, program, copy, pair[1]);
    if (copy >= 0) close(copy);
    if (pair[1] >= 0) close(pair[1]);
    if (error == 0) {
        c->socket = pair[0];
        return MC_OK;
    }
    c->pid = 0;
    if (pair[0] >= 0) close(pair[0]);
    mci_io_reason(error, text, sizeof text);
    if (error == ENOENT || error == EACCES || error == ENOEXEC || error == ENOTDIR)
        return mci_fail(MC_EUNSUPPORTED,
                        "%s: the reading helper program '%s' cannot be run: %s; build or install "
                        "mascon anew, with libhdf5 (apt-get install libhdf5-dev)",
                        label, program, text);
    return mci_fail(error == ENOMEM ? MC_ENOMEM : MC_EIO,
                    "%s: cannot start the reading helper '%s': %s", label, program, text);
}

int mci_child_send(mci_child *c, const void *bytes, size_t n) {
    const char *p = bytes;
    while (n > 0) {
        ssize_t done = send(c->socket, p, n, MSG_NOSIGNAL);
        if (done < 0) {
            if (errno == EINTR) continue;
            return errno == EPIPE || errno == ECONNRESET ? MCI_IO_EOF : errno;
        }
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

int64_t mci_child_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int mci_child_receive(mci_child *c, void *bytes, size_t n, int64_t until) {
    char *p = bytes;
    while (n > 0) {
        ssize_t done = recv(c->socket, p, n, MSG_DONTWAIT);
        if (done > 0) {
            p += done;
            n -= (size_t)done;
            continue;
        }
        if (done == 0) return MCI_IO_EOF;
        if (errno == ECONNRESET) return MCI_IO_EOF;
        if (errno == EINTR) continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK) return errno;
        int64_t left = until - mci_child_clock();
        if (left <= 0) return ETIMEDOUT;
        struct pollfd socket = {.fd = c->socket, .events = POLLIN};
        left = left / 1000000 + 1;
        if (poll(&socket, 1, left < 1000000 ? (int)left : 1000000) < 0 && errno != EINTR)
            return errno;
    }
    return 0;
}

/* Waits for the child, at most `patience` ms before it is killed. *state is as of waitpid; 0 when
 * somebody else took it. *ours: 1 when it had to be killed. */
static int reap(mci_child *c, int patience, int *state, int *ours) {
    pid_t got = 0;
    *state = *ours = 0;
    for (int i = 0;; i++) {
        got = waitpid(c->pid, state, WNOHANG);
        if (got != 0 || i == patience) break;
        struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    if (got == 0) {
        *ours = 1;
        kill(c->pid, SIGKILL);
        do {
            got = waitpid(c->pid, state, 0);
        } while (got < 0 && errno == EINTR);
    }
    int known = got == c->pid;
    c->pid = 0;
    close(c->socket);
    c->socket = -1;
    return known;
}

void mci_child_stop(mci_child *c) {
    int state, ours;
    if (c->pid > 0) reap(c, 0, &state, &ours);
}

mc_status mci_child_failed(mci_child *c, int error, double seconds, const char *label) {
    int state, ours, known = reap(c, error == MCI_IO_EOF ? 1000 : 0, &state, &ours);
    char text[128];
    if (error == ETIMEDOUT)
        return mci_fail(MC_EIO, "%s: the reading helper was stopped after %g s without an end",
                        label, seconds);
    if (error != MCI_IO_EOF)
        return mci_fail(MC_EIO, "%s: cannot talk to the reading helper: %s", label,
                        mci_io_reason(error, text, sizeof text));
    if (!known || ours)
        return mci_fail(MC_EFORMAT, "%s: damaged or hostile: the program that reads it gave up",
                        label);
    if (WIFSIGNALED(state)) {
        int number = WTERMSIG(state);
        const char *name = sigdescr_np(number);
        if (number == SIGXCPU)
            return mci_fail(MC_EFORMAT,
                            "%s: damaged or hostile: the program that reads it used up its time "
                            "of the processor, %g s",
                            label, seconds);
        if (number == SIGKILL)
            return mci_fail(MC_EIO,
                            "%s: the reading helper was killed (signal 9), perhaps for want of "
                            "memory",
                            label);
        return mci_fail(MC_EFORMAT,
                        "%s: damaged or hostile: the program that reads it died of signal %d (%s)",
                        label, number, name ? name : "unknown");
    }
    if (WEXITSTATUS(state) == 127)
        return mci_fail(MC_EUNSUPPORTED,
                        "%s: the reading helper cannot start: a library that it needs is missing "
                        "(apt-get install libhdf5-dev)",
                        label);
    return mci_fail(MC_EFORMAT,
                    "%s: damaged or hostile: the program that reads it ended with status %d", label,
                    WEXITSTATUS(state));
}
