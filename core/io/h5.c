/* h5.c: libhdf5's set-up, its one lock, its error text and the table of types; in the plugin, which
 * writes files, and in the reading helper program.
 *
 * bfloat16 is the 16-bit float that HDF5 2 predefines (sign 15, exponent 7/8, mantissa 0/7, bias
 * 127); bool is the enum that h5py writes; the fp8 types are uint8, since HDF5's own FP8 is another
 * format. libhdf5 converts no values but the byte order of other people's files.
 */
#include "h5room.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

const mci_hdf5_services *mci_h5_core;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static hid_t little[MC_DTYPE_COUNT], big[MC_DTYPE_COUNT];
/* What libhdf5 said of the first failure since mci_h5_enter. */
static char reason[320];
/* The thread's blocked signals before mci_h5_enter. */
static sigset_t blocked_before;

/* -- the lock ---------------------------------------------------------------------------------- */

/* A write past `ulimit -f` must be an error here, not the end of the process. */
static sigset_t too_large_signal(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGXFSZ);
    return set;
}

void mci_h5_enter(void) {
    pthread_mutex_lock(&lock);
    sigset_t set = too_large_signal();
    pthread_sigmask(SIG_BLOCK, &set, &blocked_before);
    /* libhdf5 prints per thread; the thread may be new to us */
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5Eclear2(H5E_DEFAULT);
    reason[0] = '\0';
}

void mci_h5_leave(void) {
    H5Eclear2(H5E_DEFAULT);
    if (!sigismember(&blocked_before, SIGXFSZ)) {
        sigset_t set = too_large_signal();
        struct timespec now = {0};
        while (sigtimedwait(&set, NULL, &now) > 0) {
        }
        pthread_sigmask(SIG_SETMASK, &blocked_before, NULL);
    }
    pthread_mutex_unlock(&lock);
}

/* -- error text -------------------------------------------------------------------------------- */

/* Upward from the innermost message: keeps the first that says something. */
static herr_t innermost(unsigned n, const H5E_error2_t *error, void *unused) {
    (void)n;
    (void)unused;
    if (reason[0] != '\0' || !error->desc || error->desc[0] == '\0') return 0;
    /* system errors carry a page of detail (times, addresses): keep what the system said */
    static const char mark[] = "error message = '";
    const char *text = strstr(error->desc, mark);
    int length;
    if (text) {
        text += sizeof mark - 1;
        const char *end = strchr(text, '\'');
        length = end ? (int)(end - text) : (int)strlen(text);
    } else {
        text = error->desc;
        length = (int)strnlen(text, sizeof reason - 1);
    }
    snprintf(reason, sizeof reason, "%.*s", length, text);
    return 0;
}

int mci_h5_ok(int64_t result) {
    if (result >= 0) return 1;
    if (reason[0] == '\0') H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, NULL);
    return 0;
}

void mci_h5_forget(void) {
    H5Eclear2(H5E_DEFAULT);
    reason[0] = '\0';
}

mc_status mci_h5_fail(mc_status code, const char *format, ...) {
    char text[2 * MCI_H5_MAX_PATH + 512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    mci_h5_ok(-1);
    if (reason[0] == '\0') return mci_h5_core->fail(code, "%s", text);
    mci_h5_core->fail(code, "%s: %s", text, reason);
    mci_h5_forget();
    return code;
}

/* -- types ------------------------------------------------------------------------------------- */

/* 16 bits: sign on top, the exponent above mantissa_bits, both implied-one and IEEE-like. */
static hid_t half_type(size_t mantissa_bits, size_t bias, H5T_order_t order) {
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    /* fields first: shrinking the size before them is an error */
    if (H5Tset_fields(type, 15, mantissa_bits, 15 - mantissa_bits, 0, mantissa_bits) < 0 ||
        H5Tset_precision(type, 16) < 0 || H5Tset_offset(type, 0) < 0 || H5Tset_size(type, 2) < 0 ||
        H5Tset_ebias(type, bias) < 0 || H5Tset_order(type, order) < 0)
        return H5I_INVALID_HID;
    return type;
}

static hid_t bool_type(void) {
    hid_t type = H5Tenum_create(H5T_STD_I8LE);
    signed char no = 0, yes = 1;
    if (H5Tenum_insert(type, "FALSE", &no) < 0 || H5Tenum_insert(type, "TRUE", &yes) < 0)
        return H5I_INVALID_HID;
    return type;
}

/* 1 when every type could be made. They live as long as the process. */
static int make_types(void) {
    for (int i = 0; i < MC_DTYPE_COUNT; i++) little[i] = big[i] = H5T_STD_U8LE;
    little[MC_FLOAT64] = H5T_IEEE_F64LE;
    big[MC_FLOAT64] = H5T_IEEE_F64BE;
    little[MC_FLOAT32] = H5T_IEEE_F32LE;
    big[MC_FLOAT32] = H5T_IEEE_F32BE;
    little[MC_FLOAT16] = half_type(10, 15, H5T_ORDER_LE);
    big[MC_FLOAT16] = half_type(10, 15, H5T_ORDER_BE);
    little[MC_BFLOAT16] = half_type(7, 127, H5T_ORDER_LE);
    big[MC_BFLOAT16] = half_type(7, 127, H5T_ORDER_BE);
    little[MC_INT64] = H5T_STD_I64LE;
    big[MC_INT64] = H5T_STD_I64BE;
    little[MC_INT32] = H5T_STD_I32LE;
    big[MC_INT32] = H5T_STD_I32BE;
    little[MC_BOOL] = big[MC_BOOL] = bool_type();
    for (int i = 0; i < MC_DTYPE_COUNT; i++) {
        if (little[i] < 0 || big[i] < 0) return 0;
    }
    return 1;
}

hid_t mci_h5_type(int dtype) {
    return little[dtype];
}

static const char *class_name(H5T_class_t class) {
    switch (class) {
        case H5T_STRING:
            return "string";
        case H5T_BITFIELD:
            return "bit field";
        case H5T_OPAQUE:
            return "opaque";
        case H5T_COMPOUND:
            return "compound";
        case H5T_REFERENCE:
            return "reference";
        case H5T_VLEN:
            return "variable-length";
        case H5T_ARRAY:
            return "array";
        case H5T_TIME:
            return "time";
        default:
            return "unknown";
    }
}

/* h5py's bool: exactly FALSE = 0 and TRUE = 1 in one byte. */
static int is_bool(hid_t type) {
    if (H5Tget_size(type) != 1 || H5Tget_nmembers(type) != 2) return 0;
    signed char value = 0;
    if (H5Tenum_valueof(type, "FALSE", &value) < 0 || value != 0) return 0;
    return H5Tenum_valueof(type, "TRUE", &value) >= 0 && value == 1;
}

int mci_h5_dtype(hid_t type, int *swapped, char *why, size_t size) {
    *swapped = 0;
    H5T_class_t class = H5Tget_class(type);
    size_t bytes = H5Tget_size(type);
    if (class == H5T_ENUM) {
        if (is_bool(type)) return MC_BOOL;
        snprintf(why, size, "an enum of %d values has no dtype here", H5Tget_nmembers(type));
        return -1;
    }
    if (class != H5T_FLOAT && class != H5T_INTEGER) {
        snprintf(why, size, "HDF5 type class %s has no dtype here", class_name(class));
        return -1;
    }
    for (int i = MC_FLOAT64; i <= MC_UINT8; i++) {
        if (H5Tequal(type, little[i]) > 0) return i;
        if (H5Tequal(type, big[i]) > 0) {
            *swapped = 1;
            return i;
        }
    }
    if (class == H5T_FLOAT)
        snprintf(why, size, "a %zu-bit float of this kind has no dtype here", bytes * 8);
    else
        snprintf(why, size, "%sint%zu has no dtype here",
                 H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "", bytes * 8);
    return -1;
}

/* -- what differs between versions ------------------------------------------------------------- */

int mci_h5_object_info(hid_t object, mci_h5_info *info) {
#if H5_VERSION_GE(1, 12, 0)
    H5O_info2_t o;
    if (H5Oget_info3(object, &o, H5O_INFO_BASIC | H5O_INFO_NUM_ATTRS) < 0) return -1;
    /* a native token is the object's address and zeros */
    memcpy(&info->address, &o.token, sizeof info->address);
#else
    H5O_info_t o;
    if (H5Oget_info2(object, &o, H5O_INFO_BASIC | H5O_INFO_NUM_ATTRS) < 0) return -1;
    info->address = (int64_t)o.addr;
#endif
    info->type = o.type;
    info->links = o.rc;
    info->attrs = (int64_t)o.num_attrs;
    return 0;
}

hid_t mci_h5_access(int writing) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0) return access;
    /* SEMI: closing fails while an id is open, so that no half-closed file passes for a whole one.
     * No locks: names appear by rename only, and some network file systems have none. */
    herr_t ok = H5Pset_fclose_degree(access, writing ? H5F_CLOSE_SEMI : H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 10, 7)
    if (ok >= 0) ok = H5Pset_file_locking(access, 0, 1);
#endif
    /* V110: superblock 3 with its closed mark and checksums everywhere. Not LATEST, which old
     * readers may not know. */
    if (ok >= 0 && writing) ok = H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    if (ok >= 0 && writing) ok = H5Pset_alignment(access, 65536, 4096);
    if (ok < 0) {
        H5Pclose(access);
        return H5I_INVALID_HID;
    }
    return access;
}

/* -- set-up ------------------------------------------------------------------------------------ */

static mc_status set_up(const mci_hdf5_services *services) {
    /* no exit handler: it would finish files that nobody committed */
    H5dont_atexit();
    unsigned major = 0, minor = 0, release = 0;
    if (H5open() >= 0) H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    if (H5get_libversion(&major, &minor, &release) < 0 || major != H5_VERS_MAJOR ||
        minor != H5_VERS_MINOR)
        return services->fail(MC_EUNSUPPORTED, "hdf5: built for libhdf5 %d.%d, found %u.%u",
                              H5_VERS_MAJOR, H5_VERS_MINOR, major, minor);
    /* filters from files' say-so and links into other files stay out of this process */
    if (H5PLset_loading_state(0) < 0 || H5Lunregister(H5L_TYPE_EXTERNAL) < 0 || !make_types())
        return mci_h5_fail(MC_EINTERNAL, "hdf5: libhdf5 %u.%u.%u cannot be set up", major, minor,
                           release);
    return MC_OK;
}

mc_status mci_h5_setup(const mci_hdf5_services *services) {
    static int ready;
    pthread_mutex_lock(&lock);
    mci_h5_core = services;
    mc_status status = ready ? MC_OK : set_up(services);
    ready = status == MC_OK;
    pthread_mutex_unlock(&lock);
    return status;
}
