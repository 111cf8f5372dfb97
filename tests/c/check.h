/* check.h: what the C tests check with. A test is `static void name(void)` that starts with
 * TITLE("a sentence"); main calls them and returns check_report(). Failures go to stdout with the
 * line and the title, and do not stop the run. */
#ifndef MASCON_CHECK_H
#define MASCON_CHECK_H

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "mascon.h"

static int check_passed, check_failed;
static const char *check_title = "";

#define TITLE(sentence) (check_title = (sentence))

static inline int check_count(int ok, const char *file, int line, const char *what) {
    if (ok) {
        check_passed++;
    } else {
        check_failed++;
        printf("%s:%d: %s: %s\n", file, line, check_title, what);
    }
    return ok;
}

#define CHECK(cond) check_count((cond) != 0, __FILE__, __LINE__, #cond)

static inline int check_near(double a, double b, double tol, const char *file, int line,
                             const char *what) {
    char text[256];
    int ok = a == b || fabs(a - b) <= tol || (isnan(a) && isnan(b));
    if (!ok)
        snprintf(text, sizeof text, "%s: %.9g and %.9g differ by more than %g", what, a, b, tol);
    return check_count(ok, file, line, ok ? what : text);
}
#define CHECK_NEAR(a, b, tol) check_near((a), (b), (tol), __FILE__, __LINE__, #a)

/* The call gives `code`, and for a failure the message holds `part`. */
static inline int check_status(mc_status got, mc_status code, const char *part, const char *file,
                               int line, const char *what) {
    char text[1400];
    int ok = got == code && (code == MC_OK || strstr(mc_last_error(), part));
    if (!ok)
        snprintf(text, sizeof text, "%s: status %d, \"%s\"; wanted %d, \"%s\"", what, got,
                 got == MC_OK ? "" : mc_last_error(), code, part);
    return check_count(ok, file, line, ok ? what : text);
}
#define CHECK_STATUS(call, code, part) \
    check_status((call), (code), (part), __FILE__, __LINE__, #call)
#define CHECK_OK(call) CHECK_STATUS(call, MC_OK, "")

static inline int check_report(void) {
    printf("%d passed, %d failed\n", check_passed, check_failed);
    return check_failed ? 1 : 0;
}

#endif
