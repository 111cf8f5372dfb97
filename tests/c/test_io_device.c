/* test_io_device.c: bytes between host and device: lanes and stages, loads, saves and their copies,
 * and every way in which they fail.
 *
 * The device is the fake one with a table that is played on: copies that are begun run only when
 * somebody waits for their stream, calls are counted, and some fail when asked.
 */
#include <pthread.h>
#include <sys/mman.h>

#include "backend_room.h"
#include "commit_helpers.h"
#include "io/device.h"
#include "status.h"

enum { MIB = 1 << 20, STAGE = MCI_STAGE_BYTES };

static int fake;

/* -- the device -------------------------------------------------------------------------------- */

static mci_backend real; /* its table as it was */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct {
    int pinned, streams;       /* made so far, streams without those that were freed */
    int copies, waits_on_main; /* begun; stream_wait for the main stream */
    int64_t bytes_sent;
} seen;

static struct {
    int no_pinned;     /* pinned_alloc has no memory */
    int copy_at;       /* the copy_at-th copy_begin from now on fails; 0: none */
    int sync_at;       /* likewise stream_synchronize */
    int64_t alloc_max; /* more than that in one block is too much; 0: any */
    int64_t free_bytes;
} play;

typedef struct copy {
    struct copy *next;
    void *dst;
    const void *src;
    size_t bytes;
    int to_device;
} copy;

typedef struct stream {
    copy *first, **last;
} stream;

static mc_status pinned_alloc(int ordinal, size_t bytes, void **out) {
    *out = NULL;
    if (play.no_pinned) return MC_ENOMEM;
    pthread_mutex_lock(&lock);
    seen.pinned++;
    pthread_mutex_unlock(&lock);
    return real.pinned_alloc(ordinal, bytes, out);
}

static mc_status stream_new(int ordinal, void **out) {
    (void)ordinal;
    stream *s = calloc(1, sizeof *s);
    s->last = &s->first;
    *out = s;
    pthread_mutex_lock(&lock);
    seen.streams++;
    pthread_mutex_unlock(&lock);
    return MC_OK;
}

static void stream_free(int ordinal, void *s) {
    (void)ordinal;
    if (!s) return;
    CHECK(!((stream *)s)->first);
    free(s);
    pthread_mutex_lock(&lock);
    seen.streams--;
    pthread_mutex_unlock(&lock);
}

static mc_status stream_wait(int ordinal, void *waiter, void *other) {
    (void)ordinal, (void)waiter;
    pthread_mutex_lock(&lock);
    seen.waits_on_main += other == NULL;
    pthread_mutex_unlock(&lock);
    return MC_OK;
}

static mc_status copy_begin(int ordinal, void *to, void *dst, const void *src, size_t bytes,
                            int to_device) {
    (void)ordinal;
    stream *s = to;
    pthread_mutex_lock(&lock);
    int fails = play.copy_at && --play.copy_at == 0;
    seen.copies++;
    if (to_device) seen.bytes_sent += (int64_t)bytes;
    pthread_mutex_unlock(&lock);
    if (fails) return mci_fail(MC_EDEVICE, "copy: played");
    copy *c = malloc(sizeof *c);
    *c = (copy){.dst = dst, .src = src, .bytes = bytes, .to_device = to_device};
    *s->last = c;
    s->last = &c->next;
    return MC_OK;
}

static mc_status stream_synchronize(int ordinal, void *of) {
    stream *s = of;
    pthread_mutex_lock(&lock);
    int fails = play.sync_at && --play.sync_at == 0;
    pthread_mutex_unlock(&lock);
    while (s->first) {
        copy *c = s->first;
        s->first = c->next;
        if (!s->first) s->last = &s->first;
        CHECK_OK(real.copy_begin(ordinal, NULL, c->dst, c->src, c->bytes, c->to_device));
        free(c);
    }
    return fails ? mci_fail(MC_EDEVICE, "stream: played") : MC_OK;
}

static mc_status device_alloc(mci_exec *exec, size_t bytes, void **out) {
    *out = NULL;
    if (play.alloc_max && (int64_t)bytes > play.alloc_max) return MC_ENOMEM;
    return real.alloc(exec, bytes, out);
}

static mc_status device_memory(int ordinal, int64_t *free_bytes, int64_t *total_bytes) {
    (void)ordinal;
    *free_bytes = *total_bytes = play.free_bytes;
    return MC_OK;
}

static void play_device(void) {
    CHECK_OK(mc_device_parse("fake", &fake));
    mci_backend *table = (mci_backend *)(uintptr_t)mci_backend_of(fake);
    size_t page = (size_t)sysconf(_SC_PAGESIZE), from = (size_t)table / page * page;
    size_t to = ((size_t)table + sizeof *table + page - 1) / page * page;
    CHECK(mprotect((void *)from, to - from, PROT_READ | PROT_WRITE) == 0);
    real = *table;
    table->pinned_alloc = pinned_alloc;
    table->stream_new = stream_new;
    table->stream_free = stream_free;
    table->stream_wait = stream_wait;
    table->copy_begin = copy_begin;
    table->stream_synchronize = stream_synchronize;
    table->alloc = device_alloc;
}

/* What the device says it has beside what its tensors take now; -1: it does not tell. */
static void tell_memory(int64_t free_bytes) {
    mc_memory_trim();
    mc_memory_reset_peak();
    mci_backend *table = (mci_backend *)(uintptr_t)mci_backend_of(fake);
    play.free_bytes = free_bytes;
    table->memory = free_bytes < 0 ? NULL : device_memory;
}

/* -- helpers ----------------------------------------------------------------------------------- */

static mc_tensor *on_device(const mc_tensor *t) {
    mc_tensor *there = mc_tensor_new();
    CHECK_OK(mc_empty(there, mc_tensor_dtype(t), fake, mc_tensor_ndim(t), mc_tensor_shape(t)));
    CHECK_OK(mc_copy(there, t));
    return there;
}

static int same(const mc_tensor *a, const mc_tensor *b) {
    int equal = 0;
    CHECK_OK(mc_equal(a, b, &equal));
    return equal;
}

static mc_tensor *bytes_of(int64_t n, unsigned seed) {
    return patterned(MC_UINT8, 1, &n, seed);
}

/* -- any bytes --------------------------------------------------------------------------------- */

static void without_buffers(void) {
    TITLE("without page-locked memory staged copies fail, and plain ones go the other way");
    int64_t n = STAGE + 100;
    mc_tensor *t = bytes_of(n, 1);
    play.no_pinned = 1;
    mc_tensor *there = on_device(t);
    CHECK(same(there, t));
    CHECK_STATUS(mci_device_write(fake, mc_tensor_data(there), mc_tensor_data(t), 5), MC_ENOMEM,
                 "no 16777216 bytes of page-locked memory");
    play.no_pinned = 0;
    CHECK(seen.pinned == 0 && seen.streams == 0);
    mc_tensor_free(t);
    mc_tensor_free(there);
}

static void any_bytes(void) {
    TITLE("any number of bytes goes there and back, over one buffer and round all of them");
    static const int64_t sizes[] = {1, 4095, STAGE - 1, STAGE, STAGE + 1, 2 * STAGE, 5 * STAGE + 7};
    for (int i = 0; i < 7; i++) {
        for (int64_t shift = 0; shift < 2; shift++) {
            int64_t n = sizes[i], room = n + 2, one = 1;
            mc_tensor *t = bytes_of(n, (unsigned)i), *there = mc_tensor_new(),
                      *view = mc_tensor_new();
            CHECK_OK(mc_empty(there, MC_UINT8, fake, 1, &room));
            CHECK_OK(mc_fill(there, 7));
            CHECK_OK(mc_as_strided(view, there, 1, &n, &one, shift));
            CHECK_OK(mci_device_write(fake, mc_tensor_data(view), mc_tensor_data(t), n));
            char *back = malloc((size_t)room);
            memset(back, 9, (size_t)room);
            CHECK_OK(mci_device_read(fake, back + 1, mc_tensor_data(view), n, NULL));
            CHECK(memcmp(back + 1, mc_tensor_data(t), (size_t)n) == 0);
            CHECK(back[0] == 9 && back[n + 1] == 9);
            CHECK(same(view, t));
            CHECK_OK(mc_read(there, back, room));
            CHECK((shift == 0 || back[0] == 7) && back[n + 1] == 7);
            free(back);
            mc_tensor_free(t);
            mc_tensor_free(there);
            mc_tensor_free(view);
        }
    }
    CHECK_OK(mci_device_write(fake, NULL, NULL, 0));
    CHECK(seen.pinned <= MCI_STAGE_MOST && seen.streams == seen.pinned);
}

static struct {
    mc_tensor *host, *there;
    int wrong;
} shared;

static void *read_some(void *data) {
    int64_t n = mc_tensor_numel(shared.host), first = (int64_t)(intptr_t)data * 1000;
    char *back = malloc((size_t)n);
    for (int64_t turn = 0; turn < 20; turn++) {
        int64_t bytes = turn % 5 == 4 ? n - first : 300000;
        mci_source s = {.tensor = shared.there, .first = first, .bytes = n};
        mc_status status = mci_source_read(&s, turn, bytes - turn, back);
        const char *want = (char *)mc_tensor_data(shared.host) + first + turn;
        if (status != MC_OK || memcmp(back, want, (size_t)(bytes - turn)) != 0)
            __atomic_fetch_add(&shared.wrong, 1, __ATOMIC_RELAXED);
    }
    free(back);
    return NULL;
}

static void threads(void) {
    TITLE("many threads share a few buffers");
    pthread_t ids[12];
    shared.host = bytes_of(2 * STAGE + 5, 3);
    shared.there = on_device(shared.host);
    for (int i = 0; i < 12; i++) pthread_create(&ids[i], NULL, read_some, (void *)(intptr_t)i);
    for (int i = 0; i < 12; i++) pthread_join(ids[i], NULL);
    CHECK(shared.wrong == 0 && seen.pinned <= MCI_STAGE_LANES && seen.streams == seen.pinned);
    mc_tensor_free(shared.host);
    mc_tensor_free(shared.there);
}

static void failures(void) {
    TITLE(
        "a copy that fails says so; the buffers are whole afterwards, and there are no more of "
        "them");
    int64_t n = 5 * STAGE;
    mc_tensor *t = bytes_of(n, 4), *there = on_device(t);
    char *back = malloc((size_t)n);
    for (int at = 1; at <= 5; at++) {
        play.copy_at = at;
        CHECK_STATUS(mci_device_write(fake, mc_tensor_data(there), mc_tensor_data(t), n),
                     MC_EDEVICE, "copy: played");
        play.copy_at = at;
        CHECK_STATUS(mci_device_read(fake, back, mc_tensor_data(there), n, NULL), MC_EDEVICE,
                     "copy: played");
        play.sync_at = at;
        CHECK_STATUS(mci_device_read(fake, back, mc_tensor_data(there), n, NULL), MC_EDEVICE,
                     "stream: played");
        play.copy_at = at;
        CHECK_STATUS(mc_write(there, mc_tensor_data(t), n), MC_EDEVICE, "copy: played");
    }
    play.copy_at = play.sync_at = 0;
    memset(back, 0, (size_t)n);
    CHECK_OK(mci_device_read(fake, back, mc_tensor_data(there), n, NULL));
    CHECK(memcmp(back, mc_tensor_data(t), (size_t)n) == 0);
    CHECK(seen.pinned <= MCI_STAGE_LANES && seen.streams == seen.pinned);
    free(back);
    mc_tensor_free(t);
    mc_tensor_free(there);
}

/* -- loads ------------------------------------------------------------------------------------- */

enum { SETS = 400 };

/* Small and large sets of all element sizes, among them bools of more than one buffer. */
static mc_tensor *set(int i) {
    static const int dtypes[] = {MC_FLOAT32, MC_UINT8, MC_BFLOAT16, MC_INT64, MC_BOOL};
    int64_t n = i == 7 ? STAGE + 12345 : i == 100 ? STAGE : i % 50 == 9 ? 300001 : i * 37 % 1000;
    int dtype = i == 7 ? MC_BOOL : dtypes[i % 5];
    return patterned(dtype, 1, &n, (unsigned)i);
}

static mc_h5_file *many_sets(const char *path, mc_tensor **sets, mc_h5_stretch *list,
                             mc_tensor **targets) {
    mc_h5_writer *w = NULL;
    mc_h5_file *f = NULL;
    char name[16];
    CHECK_OK(mc_h5_create(&w, path));
    for (int i = 0; i < SETS; i++) {
        snprintf(name, sizeof name, "/%d", i);
        sets[i] = set(i);
        CHECK_OK(mc_h5_tensor(w, name, sets[i]));
    }
    CHECK_OK(mc_h5_commit(w));
    CHECK_OK(mc_h5_open(&f, path, NULL));
    for (int i = 0; i < SETS; i++) {
        /* every third to the host, in an order that is not the file's */
        int k = i * 61 % SETS;
        int64_t n = mc_tensor_numel(sets[k]);
        targets[k] = mc_tensor_new();
        CHECK_OK(mc_empty(targets[k], mc_tensor_dtype(sets[k]), k % 3 == 1 ? 0 : fake, 1, &n));
        CHECK_OK(mc_fill(targets[k], 0));
        list[i] = (mc_h5_stretch){.count = n, .target = targets[k]};
        snprintf(name, sizeof name, "/%d", k);
        io_find(f, name, &list[i].entry);
    }
    return f;
}

static void loads(void) {
    TITLE("a load packs small tensors together and cuts large ones, to any mixture of devices");
    static mc_tensor *sets[SETS], *targets[SETS];
    static mc_h5_stretch list[SETS];
    char *path = name_of("many.h5");
    mc_h5_file *f = many_sets(path, sets, list, targets);
    int64_t before = mc_tensor_version(targets[0]), wanted = 0, wrong = 0;
    memset(&seen.copies, 0, sizeof seen.copies);
    seen.bytes_sent = 0;
    CHECK_OK(mc_h5_read_many(f, list, SETS));
    for (int i = 0; i < SETS; i++) {
        wrong += !same(sets[i], targets[i]);
        if (i % 3 != 1)
            wanted += mc_tensor_numel(sets[i]) * mc_dtype_size(mc_tensor_dtype(sets[i]));
    }
    CHECK(wrong == 0 && seen.bytes_sent == wanted && seen.copies < SETS);
    CHECK(mc_tensor_version(targets[0]) == before + (mc_tensor_numel(targets[0]) > 0));
    CHECK(mc_tensor_version(targets[7]) == before + 1);

    TITLE("experts that follow one another in file and memory are one copy");
    int64_t n = 1 << 16, all = 8 * n, first = -1;
    char *packed = name_of("packed.h5");
    mc_tensor *whole = patterned(MC_INT32, 1, &all, 5), *block = mc_tensor_new();
    mc_h5_writer *w = NULL;
    mc_h5_file *g = NULL;
    mc_h5_stretch parts[8];
    CHECK_OK(mc_h5_create(&w, packed));
    CHECK_OK(mc_h5_tensor(w, "/x", whole));
    CHECK_OK(mc_h5_commit(w));
    CHECK_OK(mc_h5_open(&g, packed, NULL));
    io_find(g, "/x", &first);
    CHECK_OK(mc_empty(block, MC_INT32, fake, 1, &all));
    for (int i = 0; i < 8; i++) parts[i] = (mc_h5_stretch){first, i * n, n, block, i * n};
    seen.copies = 0;
    CHECK_OK(mc_h5_read_many(g, parts, 8));
    CHECK(seen.copies == 1 && same(block, whole));
    mc_h5_close(g);
    mc_tensor_free(whole);
    mc_tensor_free(block);
    unlink(packed);
    free(packed);

    TITLE("one dataset comes to several targets, wherever their stretches of it overlap");
    mc_tensor *again[3];
    mc_h5_stretch same_set[3];
    for (int i = 0; i < 3; i++) {
        int64_t room = mc_tensor_numel(sets[7]) - i;
        again[i] = mc_tensor_new();
        CHECK_OK(mc_empty(again[i], MC_BOOL, fake, 1, &room));
        same_set[i] = (mc_h5_stretch){.first = i, .count = room, .target = again[i]};
        io_find(f, "/7", &same_set[i].entry);
    }
    CHECK_OK(mc_h5_read_many(f, same_set, 3));
    for (int i = 0; i < 3; i++) {
        char *back = malloc((size_t)same_set[i].count);
        CHECK_OK(mc_read(again[i], back, same_set[i].count));
        CHECK(memcmp(back, (char *)mc_tensor_data(sets[7]) + i, (size_t)same_set[i].count) == 0);
        free(back);
        mc_tensor_free(again[i]);
    }

    TITLE("a bool that is none, and a file that is cut off, are found before their copy");
    int fd = open(path, O_WRONLY);
    int64_t at = -1;
    const mc_h5_entry *e = io_find(f, "/7", &at);
    CHECK(fd >= 0 && pwrite(fd, "\3", 1, e->offset + STAGE + 77) == 1);
    CHECK_STATUS(mc_h5_read(f, at, 0, targets[7]), MC_EFORMAT,
                 "many.h5: '/7' holds 3 as a bool at position 16777293 (0-based)");
    CHECK_STATUS(mc_h5_read_many(f, list, SETS), MC_EFORMAT, "'/7' holds 3 as a bool");
    CHECK(ftruncate(fd, e->offset + STAGE + 70) == 0);
    CHECK_STATUS(mc_h5_read(f, at, 0, targets[7]), MC_EIO,
                 "many.h5: cannot read '/7': the file ends too early");
    close(fd);
    TITLE("copies of a load that fail leave versions and buffers as they should be");
    const mc_h5_entry *last = io_find(f, "/1", &at);
    if (last->offset + last->bytes < e->offset) {
        mc_tensor *there = on_device(sets[1]);
        before = mc_tensor_version(there);
        play.copy_at = 1;
        CHECK_STATUS(mc_h5_read(f, at, 0, there), MC_EDEVICE, "copy: played");
        play.sync_at = 1;
        CHECK_STATUS(mc_h5_read(f, at, 0, there), MC_EDEVICE, "stream: played");
        CHECK_OK(mc_h5_read(f, at, 0, there));
        CHECK(same(there, sets[1]) && mc_tensor_version(there) == before + 3);
        mc_tensor_free(there);
    }
    CHECK(seen.pinned <= MCI_STAGE_LANES && seen.streams == seen.pinned);
    mc_h5_close(f);
    for (int i = 0; i < SETS; i++) mc_tensor_free(sets[i]), mc_tensor_free(targets[i]);
    unlink(path);
    free(path);
}

/* -- saves ------------------------------------------------------------------------------------- */

enum { SAVED = 1500000 };

/* A writer of device tensors that count from `seed`, one of the host and an empty one. */
static mc_h5_writer *begun_there(const char *path, int seed, mc_tensor **there) {
    mc_h5_writer *w = NULL;
    int64_t none = 0;
    mc_tensor *t = counting(SAVED, seed), *small = counting(3, seed + 1), *empty = mc_tensor_new();
    there[0] = on_device(t);
    there[1] = on_device(small);
    CHECK_OK(mc_empty(empty, MC_FLOAT32, fake, 1, &none));
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_tensor(w, "/x", there[0]));
    CHECK_OK(mc_h5_tensor(w, "/host", t));
    CHECK_OK(mc_h5_tensor(w, "/empty", empty));
    CHECK_OK(mc_h5_tensor(w, "/small", there[1]));
    mc_tensor_free(t);
    mc_tensor_free(small);
    mc_tensor_free(empty);
    return w;
}

static int saved(const char *path, int seed) {
    return counts(path, "/x", SAVED, seed) && counts(path, "/host", SAVED, seed) &&
           counts(path, "/small", 3, seed + 1);
}

static int64_t live_there(void) {
    mc_device_memory_stats stats;
    CHECK_OK(mc_memory_device_stats(fake, &stats));
    return stats.live_bytes;
}

static void saves(void) {
    TITLE("a save reads devices on their lanes, after one moment of the main stream");
    char *path = name_of("saved.h5");
    mc_tensor *there[2];
    int lanes = seen.streams;
    mc_h5_writer *w = begun_there(path, 1, there);
    seen.waits_on_main = 0;
    CHECK_OK(mc_h5_commit(w));
    CHECK(saved(path, 1) && seen.waits_on_main == 1 && seen.streams - lanes <= MCI_STAGE_LANES);
    mc_tensor_free(there[0]);
    mc_tensor_free(there[1]);
    CHECK(live_there() == 0);

    TITLE("a copy on the device has the values of its moment, and its memory ends with the save");
    for (int way = 0; way < 4; way++) {
        /* 0: the device does not tell its memory; then: it is there; too little; it was a lie */
        w = begun_there(path, 10 + way, there);
        tell_memory(way == 0 ? -1 : way == 2 ? SAVED : 100 * MIB);
        play.alloc_max = way == 3 ? SAVED : 0;
        int64_t before = live_there();
        seen.waits_on_main = 0;
        CHECK_OK(mc_h5_commit_start(w, 1));
        int for_start = seen.waits_on_main;
        for (int i = 0; i < 2; i++) {
            CHECK_OK(mc_fill(there[i], 0));
            mc_tensor_free(there[i]);
        }
        CHECK_OK(mc_h5_commit_wait(w));
        CHECK(for_start == 1 && seen.waits_on_main == 1); /* the thread leaves the main one alone */
        CHECK(saved(path, 10 + way) && before > 0 && live_there() == 0);
    }
    play.alloc_max = 0;
    tell_memory(-1);

    TITLE("where the copy lies: on the device if it has the memory to spare, else on the host");
    enum { MANY = 12000000 }; /* far more than the core keeps in its cache */
    mc_tensor *t = counting(MANY, 5), *dev = on_device(t);
    for (int room = 0; room < 2; room++) {
        mci_source s[] = {{.tensor = dev, .first = 40, .bytes = 4 * MANY - 40},
                          {.tensor = t, .bytes = 4000}};
        mci_moment *list = NULL;
        void *block = NULL;
        int64_t size = 0;
        int32_t back[100];
        tell_memory(room ? 100 * MIB : 0);
        CHECK_OK(mci_moments_take(&list, s, 2, 1));
        CHECK(list && !list->next && (list->copy != NULL) == room && s[0].moment == list);
        CHECK(!s[1].moment);
        CHECK_OK(mci_snapshot(s, 2, &block, &size));
        CHECK((s[0].host == NULL) == room && s[1].host);
        CHECK_OK(mc_fill(dev, 0));
        if (room) {
            CHECK_OK(mci_source_read(&s[0], 8, 392, back));
            CHECK(back[0] == 17 && back[97] == 114);
        } else {
            CHECK(((const int32_t *)s[0].host)[2] == 17);
        }
        CHECK_OK(mc_copy(dev, t));
        mci_moments_free(&list);
        CHECK(!list);
        mci_snapshot_free(block, size);
    }
    tell_memory(-1);
    mc_tensor_free(dev);
    mc_tensor_free(t);

    TITLE("a device that fails in the middle of a save fails the save");
    for (int async = 0; async < 2; async++) {
        w = begun_there(path, 20, there);
        play.copy_at = 2;
        mc_status status = async ? mc_h5_commit_start(w, 1) : MC_OK;
        if (status == MC_OK) status = async ? mc_h5_commit_wait(w) : mc_h5_commit(w);
        CHECK(status == MC_EDEVICE && strstr(mc_last_error(), "saved.h5: '/"));
        CHECK(strstr(mc_last_error(), "copy: played"));
        mc_tensor_free(there[0]);
        mc_tensor_free(there[1]);
        CHECK(saved(path, 13) && live_there() == 0);
    }
    play.copy_at = 0;
    unlink(path);
    free(path);
}

int main(void) {
    if (!make_folder()) return 1;
    play_device();
    without_buffers();
    any_bytes();
    threads();
    failures();
    loads();
    saves();
    mc_memory_trim();
    remove_folder();
    return check_report();
}
