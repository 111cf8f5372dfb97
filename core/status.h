/* status.h: the thread's error message. Every failing path ends in `return mci_fail(code, ...)`. */
#ifndef MCI_STATUS_H
#define MCI_STATUS_H

#include "mascon.h"

/* Formats the message and returns `code`. The format is a literal, "op: what is wrong, what came,
 * what is wanted". */
mc_status mci_fail(mc_status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
