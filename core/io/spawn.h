/* spawn.h: the reading helper program (mascon_h5scan) as a child process. */
#ifndef MCI_SPAWN_H
#define MCI_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "mascon.h"

typedef struct mci_child {
    pid_t pid;  /* 0: none */
    int socket; /* ours of the pair; -1: none */
} mci_child;

/* Starts the helper with `file`, an open file, as MCI_SCAN_FILE and one end of a socket pair as
 * MCI_SCAN_SOCKET; nothing else is open in it, no signal is blocked or ignored, its environment is
 * empty. label: the name of what it shall read, in messages. Sets the thread's message. */
mc_status mci_child_start(mci_child *c, int file, const char *label);

/* 0, or an errno. */
int mci_child_send(mci_child *c, const void *bytes, size_t n);
/* n bytes, waiting until the time `until` (of mci_child_clock): 0, MCI_IO_EOF when the child ended
 * or closed the socket, ETIMEDOUT, or another errno. */
int mci_child_receive(mci_child *c, void *bytes, size_t n, int64_t until);
int64_t mci_child_clock(void); /* nanoseconds, never going back */

/* Ends the child and waits for it; fine when there is none. */
void mci_child_stop(mci_child *c);
/* The same for one whose answer failed with `error` (of the two calls above): tells from how it
 * ended what happened. seconds: that it was given. Sets the thread's message. */
mc_status mci_child_failed(mci_child *c, int error, double seconds, const char *label);

/* Runs the program at `path` from now on; NULL: the real one again. For tests. */
void mci_h5_helper_for_tests(const char *path);

#endif
