#include "status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[2048];

mc_status mci_fail(mc_status code, const char *format, ...) {
    char text[sizeof message]; /* an argument may be the old message */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(message, sizeof message, "%s", text);
    return code;
}

const char *mc_last_error(void) {
    return message;
}

const char *mc_version(void) {
    return MASCON_VERSION;
}
