/* h5main.c: mascon_h5scan, the program in which libhdf5 reads other people's bytes.
 *
 * libmascon.so starts it (spawn.c) with the file and a socket open and speaks as in scan.h. Before
 * it looks at the file it limits itself: memory, processor time, no new descriptors, no writing, no
 * core, no new rights. What still goes wrong in it ends it and is a message over there. It ends
 * when the other end of the socket closes, also in the middle of its work.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dtype.h"
#include "h5walk.h"

static char message[MCI_SCAN_MESSAGE];
static mci_scan_start start;
static hid_t file = H5I_INVALID_HID;

/* -- the socket ---------------------------------------------------------------------------------
 */

static void put(const void *bytes, size_t n) {
    const char *p = bytes;
    while (n > 0) {
        ssize_t done = send(MCI_SCAN_SOCKET, p, n, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) _exit(0); /* nobody listens */
        p += done;
        n -= (size_t)done;
    }
}

/* The listing goes in few large steps. */
static char buffer[1 << 16];
static size_t buffered;

static void flush_buffer(void) {
    put(buffer, buffered);
    buffered = 0;
}

static void put_buffered(const void *bytes, size_t n) {
    if (n > sizeof buffer - buffered) flush_buffer();
    if (n > sizeof buffer) {
        put(bytes, n);
    } else if (n > 0) {
        memcpy(buffer + buffered, bytes, n);
        buffered += n;
    }
}

static void get(void *bytes, size_t n) {
    char *p = bytes;
    while (n > 0) {
        ssize_t done = recv(MCI_SCAN_SOCKET, p, n, 0);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) _exit(0);
        p += done;
        n -= (size_t)done;
    }
}

static void put_header(mc_status status, int64_t bytes) {
    mci_scan_header header = {.magic = MCI_SCAN_MAGIC, .status = status, .bytes = bytes};
    put(&header, sizeof header);
}

static void put_failure(mc_status status) {
    static const char want[] = "memory allocation failed";
    if (strstr(message, want)) {
        size_t length = strlen(message);
        snprintf(message + length, sizeof message - length,
                 "; its reader may take %lld MiB of memory", (long long)(start.memory >> 20));
        status = MC_ENOMEM;
    }
    if (message[0] == '\0') snprintf(message, sizeof message, "it cannot be read");
    put_header(status, (int64_t)strlen(message));
    put(message, strlen(message));
}

/* Ends the program once the other side is gone, also while it works. */
static void *watch(void *unused) {
    struct pollfd socket = {.fd = MCI_SCAN_SOCKET};
    (void)unused;
    while (poll(&socket, 1, -1) < 0 && errno == EINTR) {
    }
    _exit(0);
}

/* -- limits -------------------------------------------------------------------------------------
 */

static int limit(int resource, int64_t most) {
    struct rlimit bound;
    if (getrlimit(resource, &bound) != 0) return 0;
    if (bound.rlim_max != RLIM_INFINITY && (rlim_t)most > bound.rlim_max)
        most = (int64_t)bound.rlim_max;
    bound.rlim_cur = (rlim_t)most;
    /* the hard limit of time stays: each request for decoding has its own */
    if (resource != RLIMIT_CPU) bound.rlim_max = (rlim_t)most;
    return setrlimit(resource, &bound) == 0;
}

/* So many more seconds of processor time from now on. */
static int limit_time(int64_t seconds) {
    struct rusage used;
    if (getrusage(RUSAGE_SELF, &used) != 0) return 0;
    return limit(RLIMIT_CPU, used.ru_utime.tv_sec + used.ru_stime.tv_sec + 1 + seconds);
}

static int limit_all(void) {
    pthread_t thread;
    pthread_attr_t attributes;
    int ok = limit(RLIMIT_CORE, 0) && limit(RLIMIT_FSIZE, 0) && limit_time(start.seconds) &&
             prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
    ok = ok && pthread_attr_init(&attributes) == 0;
#ifndef MASCON_SANITIZE /* which reserve terabytes, and look at themselves from outside */
    ok = ok && pthread_attr_setstacksize(&attributes, 1 << 16) == 0;
    ok = ok && limit(RLIMIT_DATA, start.memory) && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0;
#endif
    ok = ok && pthread_create(&thread, &attributes, watch, NULL) == 0;
    /* Descriptors must be below the limit, and 0 is taken; poll asks for 1. */
    return ok && limit(RLIMIT_NOFILE, 1);
}

/* -- requests -----------------------------------------------------------------------------------
 */

static mc_status keep_message(mc_status code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static mc_status keep_message(mc_status code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return code;
}

static int known(int dtype) {
    return dtype >= 0 && dtype < MC_DTYPE_COUNT;
}

static const char *name_of(int dtype) {
    static const char *const names[MC_DTYPE_COUNT] = {
#define ROW(code, name, type, kind) [code] = name,
        MCI_DTYPES(ROW)
#undef ROW
    };
    return known(dtype) ? names[dtype] : NULL;
}

static int size_of(int dtype) {
    static const int sizes[MC_DTYPE_COUNT] = {
#define ROW(code, name, type, kind) [code] = (int)sizeof(type),
        MCI_DTYPES(ROW)
#undef ROW
    };
    return known(dtype) ? sizes[dtype] : 0;
}

static void answer_list(const mci_scan_request *request) {
    static mci_h5_walk walk;
    memset(&walk, 0, sizeof walk);
    walk.start = &start;
    walk.decode_left = request->decode_limit;
    walk.memory_left = request->memory_limit;
    mc_status status = mci_h5_scan(&walk, file);
    if (status == MC_OK) {
        put_header(MC_OK, mci_h5_sent_bytes(&walk));
        mci_h5_send(&walk, put_buffered);
        flush_buffer();
    } else {
        put_failure(status);
    }
    mci_h5_walk_free(&walk);
}

static void put_part(const void *bytes, size_t n) {
    put_header(MC_OK, (int64_t)n);
    put(bytes, n);
}

static void answer_decode(const mci_scan_request *request) {
    char path[MCI_H5_MAX_PATH];
    if (request->path < 2 || request->path > sizeof path || !known(request->dtype)) _exit(4);
    get(path, request->path);
    path[request->path - 1] = '\0';
    limit_time(request->seconds);
    mc_status status =
        mci_h5_decode(file, path, request->dtype, request->first, request->n, put_part);
    if (status != MC_OK) put_failure(status);
}

int main(void) {
    static const mci_hdf5_services services = {
        .abi = MCI_HDF5_ABI, .fail = keep_message, .dtype_name = name_of, .dtype_size = size_of};
    closefrom(MCI_SCAN_SOCKET + 1);
    get(&start, sizeof start);
    if (start.magic != MCI_SCAN_MAGIC) _exit(3);
    mc_status status = mci_h5_setup(&services);
    if (status == MC_OK && !limit_all())
        status =
            keep_message(MC_EUNSUPPORTED, "its reader cannot limit itself: %s", strerror(errno));
    if (status == MC_OK) {
        mci_h5_enter();
        file = mci_h5_open_door(&start);
        if (file < 0) status = mci_h5_fail(MC_EFORMAT, "cannot open it");
    }
    for (;;) {
        mci_scan_request request;
        get(&request, sizeof request);
        if (request.magic != MCI_SCAN_MAGIC) _exit(3);
        if (status != MC_OK) {
            put_failure(status);
            _exit(0);
        }
        mci_h5_forget();
        message[0] = '\0';
        if (request.op == MCI_SCAN_LIST)
            answer_list(&request);
        else
            answer_decode(&request);
    }
}
