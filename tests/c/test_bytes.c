/* test_bytes.c: the bytes of a save: threads, O_DIRECT, digests, snapshots, checks, and every way
 * in which they fail. */
#include "bytes_helpers.h"

/* -- tests ------------------------------------------------------------------------------------- */

static const int64_t sizes[] = {0,       1,         4095,  4096,      4097,
                                65535,   65536,     65537, MIB - 1,   MIB,
                                MIB + 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 4097};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* The first n sizes, large ones at pages' boundaries as the writer lays them out, or none (`odd`).
 */
static void plan_some(int n, int64_t shift, int odd) {
    begin();
    int64_t at = 123;
    for (int i = 0; i < n; i++) {
        if (sizes[i] >= 65536 && !odd) at = page_after(at);
        job_of(at, sizes[i], shift);
        at += sizes[i] + 77;
    }
}

static void plan_sizes(int64_t shift, int odd) {
    plan_some(SIZES, shift, odd);
}

static void each_size(void) {
    TITLE("bytes and digests are right at every size, alignment and number of threads");
    for (int64_t shift = 0; shift < 2; shift++) {
        for (int odd = 0; odd < 2; odd++) {
            for (int threads = 0; threads < 8; threads += threads ? 3 : 1) {
                plan_sizes(shift, odd);
                mci_io_threads = threads;
                expect_right();
                CHECK((seen.direct_writes > 0) == !odd);
            }
        }
    }
    mci_io_threads = 0;
    for (int mode = REAL; mode <= REFUSED; mode++) {
        TITLE(mode == REAL ? "the same with what the file system has of O_DIRECT"
                           : "the same where O_DIRECT is refused");
        plan_sizes(0, 0);
        fault.direct = mode;
        expect_right();
    }
    TITLE("the same where a write past the page cache is refused, from any of them on");
    for (int from = 1; from < 9; from += 3) {
        plan_sizes(1, 0);
        fault.einval_from = from;
        expect_right();
        CHECK(seen.direct_writes >= from && seen.direct_writes < from + 8); /* 7 threads */
    }
    TITLE("short and interrupted system calls are carried on");
    for (int most = 4099; most < 3 * MIB; most *= 23) {
        plan_sizes(1, 0);
        fault.short_most = most;
        fault.interrupt = 1;
        expect_right();
    }
}

static void no_jobs(void) {
    TITLE("no jobs, and only empty ones");
    begin();
    job_at(0);
    n_jobs = 0;
    expect_right();
    job_at(0);
    job_of(-1, 0, 0);
    file_bytes = 0;
    expect_right();
    CHECK(strcmp(jobs[0].digest, "99aa06d3014798d86001c324468d497f") == 0);
    CHECK(seen.direct_writes + seen.buffered_writes == 0);
}

static void many_small(void) {
    TITLE("thousands of small jobs among large ones");
    for (int threads = 0; threads < 5; threads += 4) {
        begin();
        unsigned x = 7;
        int64_t at = 50;
        for (int i = 0; i < MOST; i++) {
            x = x * 1664525 + 1013904223;
            int64_t n = i % 500 == 3 ? 2 * MIB + x % 5000 : x >> 19;
            if (n >= 65536) at = page_after(at);
            job_of(at, n, x % 4099);
            at += n + (x % 3) * 40;
        }
        mci_io_threads = threads;
        expect_right();
    }
    mci_io_threads = 0;
}

static mc_tensor *tensor_on(const char *device, int64_t n) {
    int code = 0;
    CHECK_OK(mc_device_parse(device, &code));
    mc_tensor *t = mc_tensor_new();
    int64_t count = n / 4;
    CHECK_OK(mc_empty(t, MC_FLOAT32, code, 1, &count));
    CHECK_OK(mc_write(t, pool, n));
    return t;
}

/* Jobs of sources of each kind, with empty ones between, across the pieces' borders. */
static void plan_kinds(const mc_tensor *cpu, const mc_tensor *fake, mc_h5_file *file) {
    begin();
    int64_t at = 1000;
    for (int turn = 0; turn < 6; turn++) {
        int64_t n = turn < 4 ? MIB * (turn + 1) + 8 * turn : 400;
        at = page_after(at);
        job_at(at);
        append((mci_source){.host = "", .bytes = 0}, "");
        for (int kind = 0; kind < 8; kind++) {
            int64_t first = 4 * (turn + kind);
            mci_source s = {.first = first, .bytes = n};
            if ((turn + kind) % 4 == 0) s.host = pool;
            if ((turn + kind) % 4 == 1) s.tensor = cpu;
            if ((turn + kind) % 4 == 2) s.tensor = fake;
            if ((turn + kind) % 4 == 3) {
                s.file = file;
                s.entry = 3;
            }
            if (kind == turn) s.bytes = 0;
            append(s, pool + first);
            if (turn == 3) break;
        }
        at += jobs[n_jobs - 1].bytes + 1;
    }
    /* alone in its job: no copy where it lies in memory */
    for (int kind = 0; kind < 3; kind++) {
        at = page_after(at);
        job_at(at);
        mci_source s = {.first = 40, .bytes = PIECE + 8};
        if (kind == 0) s.tensor = cpu;
        if (kind == 1) s.tensor = fake;
        if (kind == 2) s.file = file, s.entry = 3;
        append(s, pool + 40);
        at += PIECE + 8;
    }
}

static void kinds(void) {
    TITLE("host memory, tensors of any device and files, several in one job");
    mc_tensor *cpu = tensor_on("cpu", 8 * MIB), *fake = tensor_on("fake", 8 * MIB);
    mc_h5_file file = {.bytes = pool, .fail_at = -1};
    for (int threads = 0; threads < 8; threads++) {
        plan_kinds(cpu, fake, &file);
        mci_io_threads = threads;
        expect_right();
    }

    TITLE("a source whose read fails says so, with the read's own status");
    for (int threads = 0; threads < 5; threads += 4) {
        mci_pump pump = {0};
        mci_io_threads = threads;
        plan_kinds(cpu, fake, &file);
        file.fail_at = PIECE + 45;
        CHECK(write_jobs(&pump) == MC_EFORMAT && pump.error == 0);
        CHECK(strcmp(pump.message, "source.h5: '/x' is broken") == 0);
        CHECK(pump.failed == n_jobs - 1);
        close(fd);
        file.fail_at = -1;
        plan_kinds(cpu, fake, &file);
        sources[n_sources - 2].first = 41;
        CHECK(write_jobs(&pump) == MC_EINTERNAL && pump.failed == n_jobs - 2);
        CHECK(strstr(pump.message, "cuts an element"));
        close(fd);
        plan_kinds(cpu, fake, &file);
        jobs[n_jobs - 1].bytes += 5;
        CHECK(write_jobs(&pump) == MC_EINTERNAL && pump.failed == n_jobs - 1);
        CHECK(strstr(pump.message, "too few bytes"));
        close(fd);
    }
    mci_io_threads = 0;

    TITLE("a source with a digest must match it, alone or as a part of a job");
    char digests[64][MCI_DIGEST_TEXT];
    for (int wrong = -1; wrong < 52; wrong += wrong < 0 ? 1 : 7) {
        mci_pump pump = {0};
        plan_kinds(cpu, fake, &file);
        CHECK(n_sources < 64);
        int hit = -1;
        for (int64_t i = 0, k = 0; i < n_jobs; i++) {
            int64_t at = jobs[i].offset;
            for (int64_t s = 0; s < jobs[i].n_sources; s++, k++) {
                mci_digest *d = mci_digest_new();
                mci_digest_update(d, model + at, sources[k].bytes);
                mci_digest_text(d, digests[k]);
                mci_digest_free(d);
                at += sources[k].bytes;
                sources[k].digest = digests[k];
                if (wrong >= 0 && k >= wrong && hit < 0 && sources[k].bytes > 0) {
                    digests[k][31] = digests[k][31] == '0' ? '1' : '0';
                    hit = (int)i;
                }
            }
        }
        mc_status status = write_jobs(&pump);
        if (hit < 0) {
            CHECK(status == MC_OK && is_right());
        } else {
            CHECK(status == MC_EFORMAT && pump.error == 0 && pump.failed == hit);
            CHECK(strcmp(pump.message,
                         "the source is damaged: its bytes do not match their digest") == 0);
        }
        close(fd);
    }
    begin();
    job_of(0, 0, 0);
    sources[0].digest = "00000000000000000000000000000000";
    mci_pump pump = {0};
    CHECK(write_jobs(&pump) == MC_EFORMAT && strstr(pump.message, "damaged"));
    close(fd);
    mc_tensor_free(cpu);
    mc_tensor_free(fake);
}

/* -- jobs that are done, and the note of each -------------------------------------------------- */

static struct { int inside, calls[MOST], overlapped, wrong, fail_at, error; } notes;

static int note(void *data, int64_t job) {
    char text[MCI_DIGEST_TEXT], *bytes = malloc((size_t)jobs[job].bytes + 1);
    if (__atomic_fetch_add(&notes.inside, 1, __ATOMIC_SEQ_CST) != 0) notes.overlapped++;
    notes.calls[job]++;
    file_digest(job, text);
    ssize_t n = syscall(SYS_pread64, fd, bytes, jobs[job].bytes, jobs[job].offset);
    notes.wrong += data != &notes || strcmp(text, jobs[job].digest) != 0 || n != jobs[job].bytes ||
                   memcmp(bytes, model + jobs[job].offset, (size_t)n) != 0;
    free(bytes);
    __atomic_fetch_sub(&notes.inside, 1, __ATOMIC_SEQ_CST);
    return notes.fail_at == job ? notes.error : 0;
}

static void noted(void) {
    TITLE("each job is noted once its bytes are written, one at a time; done ones are left alone");
    for (int threads = 0; threads < 8; threads += 7) {
        mci_pump pump = {.on_job = note, .data = &notes};
        memset(&notes, 0, sizeof notes);
        notes.fail_at = -1;
        mci_io_threads = threads;
        plan_sizes(3, 0);
        for (int i = 0; i < n_jobs; i += 3) {
            memset(model + jobs[i].offset, 0xa5, (size_t)jobs[i].bytes);
            file_digest(i, jobs[i].digest);
            jobs[i].done = 1;
        }
        CHECK(write_jobs(&pump) == MC_OK && is_right() && pump.done == all_bytes());
        for (int i = 0; i < n_jobs; i++) CHECK(notes.calls[i] == (i % 3 != 0));
        CHECK(notes.overlapped == 0 && notes.wrong == 0);
        close(fd);

        notes.fail_at = 7;
        notes.error = EDQUOT;
        plan_sizes(3, 0);
        CHECK(write_jobs(&pump) == MC_EIO && pump.failed == 7 && pump.error == EDQUOT);
        CHECK(strcmp(pump.message, "cannot note that it is written") == 0);
        close(fd);
    }
    mci_io_threads = 0;
}

/* -- failures ---------------------------------------------------------------------------------- */

static void failures(void) {
    static const int errors[] = {ENOSPC, EIO, EFBIG, EDQUOT, 0};
    int descriptors = count_descriptors();
    for (int threads = 0; threads < 5; threads += 4) {
        mci_io_threads = threads;
        TITLE("whichever write fails, past the page cache or through it, the run stops with it");
        int at = 0;
        for (;;) {
            mci_pump pump = {0};
            plan_some(13, 1, 0);
            fault.error = errors[++at % 5];
            fault.at = at;
            mc_status status = write_jobs(&pump);
            int want = fault.error ? fault.error : ENOSPC;
            close(fd);
            if (fault.at > 0) {
                CHECK(status == MC_OK && at > 12);
                break;
            }
            /* nothing written past the cache is tried once more through it */
            if (status == MC_OK && errors[at % 5] == 0) continue;
            CHECK(status == MC_EIO && pump.error == want &&
                  strcmp(pump.message, "cannot write") == 0);
            CHECK(pump.failed >= 0 && pump.failed < n_jobs && pump.done < all_bytes());
            CHECK(seen.buffered_writes + seen.direct_writes <= at + 24);
            if (at > 500) break;
        }
        TITLE("a file that cannot be made longer is named by its last job");
        mci_pump pump = {0};
        plan_some(13, 0, 0);
        make_file();
        CHECK((int)syscall(SYS_ftruncate, fd, 10) == 0);
        fault.truncate = EFBIG;
        CHECK(mci_write_jobs(fd, path, jobs, n_jobs, &pump) == MC_EIO);
        CHECK(pump.error == EFBIG && pump.failed == n_jobs - 1);
        close(fd);
    }
    mci_io_threads = 0;
    CHECK(count_descriptors() == descriptors && seen.direct_fd == -1);

    TITLE("after a failure no thread begins another piece");
    for (int threads = 1; threads < 8; threads += 3) {
        mci_pump pump = {0};
        begin();
        mc_h5_file file = {.bytes = pool, .fail_at = -1};
        for (int i = 0; i < MOST; i++) {
            job_at(i * 100);
            append((mci_source){.file = &file, .entry = 3, .first = i, .bytes = 90}, pool + i);
        }
        mci_io_threads = threads;
        fault.at = 10;
        fault.error = EIO;
        CHECK(write_jobs(&pump) == MC_EIO && pump.error == EIO);
        CHECK(seen.buffered_writes < 10 + threads && file.reads < 10 + 2 * threads);
        close(fd);
    }
    mci_io_threads = 0;

    TITLE("a limit on files' sizes is an error and does not end the process");
    struct rlimit old, low;
    getrlimit(RLIMIT_FSIZE, &old);
    for (int mode = PLAYED; mode <= REFUSED; mode++) {
        for (int64_t limit = 0; limit < 10 * MIB; limit += 3 * MIB + 100) {
            mci_pump pump = {0};
            plan_some(13, 0, 0);
            fault.direct = mode;
            make_file();
            CHECK((int)syscall(SYS_ftruncate, fd, 0) == 0);
            low = old;
            low.rlim_cur = (rlim_t)limit;
            setrlimit(RLIMIT_FSIZE, &low);
            mc_status status = mci_write_jobs(fd, path, jobs, n_jobs, &pump);
            char byte = 0;
            int one = mci_pwrite(fd, &byte, 1, limit + 1);
            setrlimit(RLIMIT_FSIZE, &old);
            CHECK(status == MC_EIO && pump.error == EFBIG && one == EFBIG);
            close(fd);
        }
    }
    sigset_t blocked, pending;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    sigpending(&pending);
    CHECK(!sigismember(&blocked, SIGXFSZ) && !sigismember(&pending, SIGXFSZ));
}

/* -- check ------------------------------------------------------------------------------------- */

static void checks(void) {
    TITLE("reading back finds one flipped byte anywhere, and a file that ends too early");
    for (int mode = PLAYED; mode <= REFUSED; mode++) {
        mci_pump pump = {0};
        plan_sizes(1, 0);
        fault.direct = mode;
        CHECK(write_jobs(&pump) == MC_OK);
        CHECK(fsync(fd) == 0);
        memset(&pump, 0, sizeof pump);
        CHECK(mci_check_jobs(fd, jobs, n_jobs, &pump) == MC_OK && pump.done == all_bytes());
        CHECK(seen.misaligned == 0 && seen.direct_fd == -1);
        for (int i = 0; i < n_jobs; i++) {
            int64_t places[] = {0, jobs[i].bytes / 2, PIECE - 1, PIECE, jobs[i].bytes - 1};
            for (int k = 0; k < 5; k++) {
                if (places[k] < 0 || places[k] >= jobs[i].bytes) continue;
                char byte = (char)(model[jobs[i].offset + places[k]] ^ 4);
                syscall(SYS_pwrite64, fd, &byte, 1, jobs[i].offset + places[k]);
                mci_io_threads = k == 1 ? 0 : k;
                CHECK(mci_check_jobs(fd, &jobs[i], 1, &pump) == MC_EIO && pump.failed == 0);
                CHECK(pump.error == 0 &&
                      strcmp(pump.message, "what was read back differs from what was written") ==
                          0);
                byte ^= 4;
                syscall(SYS_pwrite64, fd, &byte, 1, jobs[i].offset + places[k]);
            }
        }
        char byte = 0;
        syscall(SYS_pwrite64, fd, &byte, 1, jobs[9].offset + 70000);
        CHECK(mci_check_jobs(fd, jobs, n_jobs, &pump) == MC_EIO && pump.failed == 9);
        byte = model[jobs[9].offset + 70000];
        syscall(SYS_pwrite64, fd, &byte, 1, jobs[9].offset + 70000);
        CHECK(byte != 0 && mci_check_jobs(fd, jobs, n_jobs, &pump) == MC_OK);
        fault.interrupt = 1;
        fault.short_most = 5001;
        CHECK(mci_check_jobs(fd, &jobs[8], 4, &pump) == MC_OK);
        fault.interrupt = fault.short_most = 0;
        CHECK((int)syscall(SYS_ftruncate, fd, file_bytes - 1) == 0);
        CHECK(mci_check_jobs(fd, jobs, n_jobs, &pump) == MC_EIO && pump.failed == n_jobs - 1);
        CHECK(pump.error == MCI_IO_EOF && strcmp(pump.message, "cannot read back") == 0);
        close(fd);
    }
    mci_io_threads = 0;
}

/* -- snapshot ---------------------------------------------------------------------------------- */

static void snapshots(void) {
    TITLE("a snapshot holds the bytes of its moment, whatever becomes of the tensors");
    int64_t n = 5 * MIB + 12;
    mc_tensor *cpu = tensor_on("cpu", n), *fake = tensor_on("fake", n);
    mc_h5_file file = {.bytes = pool, .fail_at = -1};
    char *host = malloc((size_t)n);
    memcpy(host, pool, (size_t)n);
    mci_source s[] = {{.tensor = cpu, .bytes = n},
                      {.tensor = fake, .first = 8, .bytes = n - 8},
                      {.file = &file, .entry = 3, .first = 5, .bytes = 100},
                      {.host = host, .first = 3, .bytes = 1},
                      {.tensor = fake, .bytes = 0},
                      {.tensor = fake, .first = 4096, .bytes = 4},
                      {.host = host, .first = 7, .bytes = n - 7},
                      {.tensor = cpu, .first = n - 4, .bytes = 4}};
    mci_source before[8];
    memcpy(before, s, sizeof s);
    void *block = NULL;
    int64_t size = 0;
    CHECK_OK(mci_snapshot(s, 8, &block, &size));
    CHECK(size > 0 && size % PAGE == 0 && size < 3 * (n + PAGE) + 4 * PAGE);
    CHECK_OK(mc_fill(cpu, 0));
    CHECK_OK(mc_fill(fake, 0));
    memset(host, 0, (size_t)n);
    mc_tensor_free(cpu);
    mc_tensor_free(fake);
    free(host);
    for (int i = 0; i < 8; i++) {
        if (i == 2) {
            CHECK(memcmp(&s[i], &before[i], sizeof s[i]) == 0);
            continue;
        }
        const char *p = s[i].host;
        CHECK(!s[i].tensor && !s[i].file && s[i].first == 0 && s[i].bytes == before[i].bytes);
        CHECK((uintptr_t)p % PAGE == 0 && p >= (char *)block &&
              p + s[i].bytes <= (char *)block + size);
        CHECK(memcmp(p, pool + before[i].first, (size_t)s[i].bytes) == 0);
    }
    mci_snapshot_free(block, size);
    mci_snapshot_free(NULL, 0);

    TITLE("a snapshot of nothing, and one that there is no memory for");
    CHECK_OK(mci_snapshot(s, 0, &block, &size));
    CHECK(!block && size == 0);
    mci_source huge = {.host = pool, .bytes = (int64_t)1 << 60};
    CHECK_STATUS(mci_snapshot(&huge, 1, &block, &size), MC_ENOMEM,
                 "snapshot: no memory for a copy of 1152921504606846976 bytes");
    CHECK(!block && size == 0 && huge.host == pool);
    fake = tensor_on("fake", 400);
    mci_source bad[] = {{.host = pool, .bytes = 10}, {.tensor = fake, .first = 396, .bytes = 8}};
    CHECK(mci_snapshot(bad, 2, &block, &size) != MC_OK && !block && size == 0);
    CHECK(bad[0].host == pool && bad[1].tensor == fake);
    mc_tensor_free(fake);
}

/* -- plain reads ------------------------------------------------------------------------------- */

static void reads(void) {
    TITLE("reads by threads give the bytes of any stretch, and tell where the file ends");
    begin();
    job_of(0, 7 * MIB + 13, 0);
    mci_pump pump = {0};
    CHECK(write_jobs(&pump) == MC_OK);
    char *got = malloc(8 * MIB), text[MCI_DIGEST_TEXT];
    static const int64_t lengths[] = {0, 1, 4096, MIB - 1, MIB, MIB + 1, 3 * MIB + 7, 7 * MIB};
    for (int i = 0; i < 8; i++) {
        for (int64_t first = 0; first < 14; first += 13) {
            memset(got, 0, 8 * MIB);
            CHECK(mci_pread_threads(fd, got, lengths[i], first) == 0);
            CHECK(memcmp(got, pool + first, (size_t)lengths[i]) == 0 && got[lengths[i]] == 0);
        }
    }
    CHECK(mci_pread_threads(fd, got, 8 * MIB - 1, 0) == MCI_IO_EOF);
    CHECK(mci_pread_threads(fd, got, 10, file_bytes + 4995) == MCI_IO_EOF);
    CHECK(mci_pread_threads(-1, got, 4 * MIB, 0) == EBADF);

    TITLE("many reads come in any order, with and without gaps, and tell which one failed");
    enum { PARTS = 3000 };
    static mci_extent list[PARTS + 1];
    int64_t failed = -1, at = 0, n = 0;
    memset(got, 0, 8 * MIB);
    for (; n < PARTS && at < 6 * MIB;
         n++) { /* most of a few bytes, some of many; every 7th left out */
        int64_t bytes = n % 500 == 499 ? MIB + n : n % 37 + 1;
        if (n % 7 != 3)
            list[n] = (mci_extent){.offset = at, .bytes = bytes, .dst = got + at, .number = n};
        else
            list[n] = (mci_extent){.offset = at, .dst = got + at, .number = n};
        at += bytes;
    }
    for (int64_t i = 0; i < n; i++) { /* shuffled */
        int64_t j = i * 7919 % n;
        mci_extent other = list[i];
        list[i] = list[j];
        list[j] = other;
    }
    CHECK(mci_pread_many(fd, list, n, &failed) == 0);
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        const char *p = list[i].dst;
        wrong += memcmp(p, pool + list[i].offset, (size_t)list[i].bytes) != 0;
        wrong += list[i].bytes == 0 && memcmp(p, "\0", 1) != 0;
    }
    CHECK(wrong == 0 && n > 2000);
    for (int64_t i = 0; i < 50; i++) { /* side by side, ten behind the file's end */
        int64_t offset = file_bytes + 5000 - 40 + i;
        list[i] = (mci_extent){.offset = offset, .bytes = 1, .dst = got + i, .number = 1000 + i};
    }
    CHECK(mci_pread_many(fd, list, 40, &failed) == 0);
    CHECK(mci_pread_many(fd, list, 50, &failed) == MCI_IO_EOF && failed == 1040);
    CHECK(mci_digest_file(fd, jobs[0].bytes, 0, text) == 0 && strcmp(text, jobs[0].digest) == 0);
    CHECK(mci_digest_file(fd, 8 * MIB, 0, text) == MCI_IO_EOF);
    free(got);
    close(fd);
}

int main(void) {
    if (!make_folder()) return 1;
    snprintf(path, sizeof path, "%s/bytes", folder);
    pool = malloc(POOL);
    model = malloc(MODEL);
    memset(model, 0xa5, MODEL);
    uint64_t x = 1;
    for (int64_t i = 0; i < POOL; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(pool + i, &x, 8);
    }
    each_size();
    no_jobs();
    many_small();
    kinds();
    noted();
    failures();
    checks();
    snapshots();
    reads();
    unlink(path);
    free(model);
    free(pool);
    remove_folder();
    return check_report();
}
