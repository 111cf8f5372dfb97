/* bytes.c: the bytes of a save and of a load beside plain system calls on the same bytes.
 *
 *     bench_bytes [gigabytes] [folder] [rounds]
 *
 * Durable writes (fsync included), each to a fresh file: by one thread through the page cache, as
 * most programs save; past it by as many threads as ours from aligned memory, without digests; and
 * mci_write_jobs over many tensors, one, many that are not aligned, and small ones. Reads of that
 * file, in the page cache and out of it: by threads into one buffer, and by mci_pread_many, as a
 * load does, many tensors, one, and small ones. The cases alternate, and each line gives the median
 * of the rounds, the range, and the ratio to its peers' medians. The default of 1 gigabyte fits any
 * machine; 4.3 is the full run.
 */
#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "io/bytes.h"

enum { TENSOR = 4198400, MOST_TENSORS = 1 << 18, PIECE = 1 << 22, PAGE = 4096, MOST_ROUNDS = 99 };

static char path[4096], *memory;
static int64_t total, tensors; /* bytes; how many of TENSOR bytes they are */

static void must(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "bench_bytes: %s: %s\n", what, strerror(errno));
    unlink(path);
    exit(1);
}

/* seconds */
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* -- raw peers --------------------------------------------------------------------------------- */

static int fd, direct;
static int64_t cursor;

static int threads(void) {
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 4;
    return cores < 4 ? 4 : cores < 7 ? cores : 7;
}

static void *raw_writer(void *unused) {
    int64_t at;
    while ((at = __atomic_fetch_add(&cursor, PIECE, __ATOMIC_RELAXED)) < total) {
        int64_t n = total - at < PIECE ? total - at : PIECE;
        must(pwrite(direct, memory + at, (size_t)n, at) == n, "O_DIRECT write");
    }
    return unused;
}

static void write_plain(void) {
    int64_t each = TENSOR;
    for (int64_t at = 0; at < total; at += each)
        must(write(fd, memory + at, (size_t)each) == each, "write");
}

static void write_raw(void) {
    pthread_t ids[16];
    int n = threads();
    direct = open(path, O_WRONLY | O_DIRECT);
    must(direct >= 0, "open for O_DIRECT");
    must(mci_claim(fd, total) == 0 && ftruncate(fd, total) == 0, "claim");
    cursor = 0;
    for (int i = 0; i < n; i++)
        must(pthread_create(&ids[i], NULL, raw_writer, NULL) == 0, "thread");
    for (int i = 0; i < n; i++) pthread_join(ids[i], NULL);
    close(direct);
}

/* -- ours -------------------------------------------------------------------------------------- */

static mci_source *sources;
static mci_write_job *jobs;
static mci_extent *extents;
static int64_t n_jobs;

/* n tensors whose bytes start `shift` behind a page's boundary. */
static void make_jobs(int64_t n, int64_t shift) {
    int64_t each = total / n / PAGE * PAGE;
    n_jobs = n;
    for (int64_t i = 0; i < n; i++) {
        sources[i] = (mci_source){.host = memory + i * each + shift, .bytes = each};
        jobs[i] = (mci_write_job){
            .sources = &sources[i], .n_sources = 1, .bytes = each, .offset = i * each};
    }
}

/* Tensors of 4 to 100 KiB, those over 64 KiB at pages' boundaries, the others with gaps of 300. */
static void make_small(void) {
    int64_t at = 0, i = 0;
    for (; at + (100 << 10) + PAGE < total; i++) {
        int64_t n = 4096 + i * 7919 % 98304;
        if (n >= 65536) at = (at + PAGE - 1) / PAGE * PAGE;
        sources[i] = (mci_source){.host = memory + at / 64 * 64, .bytes = n};
        jobs[i] = (mci_write_job){.sources = &sources[i], .n_sources = 1, .bytes = n, .offset = at};
        at += n + 300;
    }
    n_jobs = i;
}

static void write_ours(void) {
    mci_pump pump = {0};
    must(mci_claim(fd, total) == 0, "claim");
    mc_status status = mci_write_jobs(fd, path, jobs, n_jobs, &pump);
    errno = pump.error;
    must(status == MC_OK, pump.message);
}

static void write_many(void) {
    make_jobs(tensors, 0);
    write_ours();
}
static void write_one(void) {
    make_jobs(1, 0);
    write_ours();
}
static void write_unaligned(void) {
    make_jobs(tensors, 64);
    write_ours();
}
static void write_small(void) {
    make_small();
    write_ours();
}

/* -- reading ----------------------------------------------------------------------------------- */

static void read_raw(void) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < (total + PIECE - 1) / PIECE; i++) {
        int64_t at = i * PIECE, n = total - at < PIECE ? total - at : PIECE;
        must(pread(fd, memory + at, (size_t)n, at) == n, "read");
    }
}

static void read_jobs(void) {
    int64_t failed;
    for (int64_t i = 0; i < n_jobs; i++)
        extents[i] = (mci_extent){.offset = jobs[i].offset,
                                  .bytes = jobs[i].bytes,
                                  .dst = memory + jobs[i].offset,
                                  .number = i};
    errno = mci_pread_many(fd, extents, n_jobs, &failed);
    must(errno == 0, "mci_pread_many");
}
static void read_many(void) {
    make_jobs(tensors, 0);
    read_jobs();
}
static void read_one(void) {
    make_jobs(1, 0);
    read_jobs();
}
static void read_small(void) {
    make_small();
    read_jobs();
}

static char digests[MOST_TENSORS][MCI_DIGEST_TEXT];

/* What a check after the save costs. */
static void check_many(void) {
    mci_pump pump = {0};
    make_jobs(tensors, 0);
    for (int64_t i = 0; i < tensors; i++) memcpy(jobs[i].digest, digests[i], MCI_DIGEST_TEXT);
    must(mci_check_jobs(fd, jobs, n_jobs, &pump) == MC_OK, pump.message);
}

static void snapshot_many(void) {
    void *block;
    int64_t size;
    make_jobs(tensors, 0);
    must(mci_snapshot(sources, tensors, &block, &size) == MC_OK, mc_last_error());
    mci_snapshot_free(block, size);
}

/* -- cases ------------------------------------------------------------------------------------- */

typedef struct bench {
    const char *name;
    void (*run)(void);
    double rate[MOST_ROUNDS]; /* GB/s */
} bench;

static double moved(void) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_jobs; i++) n += jobs[i].bytes;
    return n_jobs > 0 ? (double)n : (double)total;
}

static void write_round(bench *b, int n, int round) {
    for (int i = 0; i < n; i++) {
        unlink(path);
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        must(fd >= 0, path);
        n_jobs = 0;
        double start = now();
        b[i].run();
        must(fsync(fd) == 0, "fsync");
        b[i].rate[round] = moved() / (now() - start) * 1e-9;
        close(fd);
    }
}

static void read_round(bench *b, int n, int round, int cold) {
    for (int i = 0; i < n; i++) {
        fd = open(path, O_RDONLY | O_CLOEXEC);
        must(fd >= 0, path);
        if (cold) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        n_jobs = 0;
        double start = now();
        b[i].run();
        b[i].rate[round] = moved() / (now() - start) * 1e-9;
        close(fd);
    }
}

static int by_rate(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(bench *b, int n, int rounds, int peers) {
    for (int i = 0; i < n; i++) qsort(b[i].rate, (size_t)rounds, sizeof(double), by_rate);
    for (int i = 0; i < n; i++) {
        double median = b[i].rate[rounds / 2];
        printf("bytes %-44s %6.2f GB/s (%.2f-%.2f)", b[i].name, median, b[i].rate[0],
               b[i].rate[rounds - 1]);
        for (int k = 0; k < peers && i >= peers; k++)
            printf("  %.2f of %s", median / b[k].rate[rounds / 2], b[k].name);
        printf("\n");
    }
    fflush(stdout);
}

int main(int argc, char **argv) {
    double gigabytes = argc > 1 ? atof(argv[1]) : 1;
    const char *folder = argc > 2 ? argv[2] : "/tmp";
    int rounds = argc > 3 ? atoi(argv[3]) : 5;
    if (gigabytes < 0.01 || gigabytes > 1000 || rounds < 1 || rounds > MOST_ROUNDS) {
        fprintf(stderr, "usage: bench_bytes [gigabytes] [folder] [rounds]\n");
        return 2;
    }
    total = (tensors = (int64_t)(gigabytes * 1e9) / TENSOR) * TENSOR;
    snprintf(path, sizeof path, "%s/mascon-bench-bytes-%ld", folder, (long)getpid());
    memory = mmap(NULL, (size_t)total + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                  -1, 0);
    must(memory != MAP_FAILED, "memory");
    int64_t most = total / 4096 + 1;
    sources = calloc((size_t)most, sizeof *sources);
    jobs = calloc((size_t)most, sizeof *jobs);
    extents = calloc((size_t)most, sizeof *extents);
    must(sources && jobs && extents, "memory");
    uint64_t x = 1;
    for (int64_t i = 0; i < total; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(memory + i, &x, 8);
    }

    bench writes[] = {{.name = "write + fsync", .run = write_plain},
                      {.name = "O_DIRECT", .run = write_raw},
                      {.name = "mci_write_jobs, many tensors", .run = write_many},
                      {.name = "mci_write_jobs, 1 tensor", .run = write_one},
                      {.name = "mci_write_jobs, not aligned", .run = write_unaligned},
                      {.name = "mci_write_jobs, 4 to 100 KiB", .run = write_small}};
    bench warm[] = {{.name = "pread", .run = read_raw},
                    {.name = "mci_pread_many, many tensors", .run = read_many},
                    {.name = "mci_pread_many, 1 tensor", .run = read_one},
                    {.name = "mci_pread_many, 4 to 100 KiB", .run = read_small}};
    bench cold[5] = {[4] = {.name = "mci_check_jobs, many tensors", .run = check_many}};
    memcpy(cold, warm, sizeof warm);
    printf("bytes: %.2f GB, %d threads write, %d read, %d rounds, in %s\n", (double)total * 1e-9,
           threads(), omp_get_max_threads(), rounds, folder);
    for (int i = 0; i < rounds; i++) write_round(writes, 6, i);
    report(writes, 6, rounds, 2);

    bench last = {.name = "write", .run = write_many};
    write_round(&last, 1, 0);
    for (int64_t i = 0; i < tensors; i++) memcpy(digests[i], jobs[i].digest, MCI_DIGEST_TEXT);
    for (int i = 0; i < rounds; i++) read_round(cold, 5, i, 1);
    printf("bytes, not in the page cache:\n");
    report(cold, 5, rounds, 1);
    read_round(warm, 1, 0, 0);
    for (int i = 0; i < rounds; i++) read_round(warm, 4, i, 0);
    printf("bytes, in the page cache:\n");
    report(warm, 4, rounds, 1);
    bench copy = {.name = "mci_snapshot, many tensors", .run = snapshot_many};
    for (int i = 0; i < rounds; i++) read_round(&copy, 1, i, 0);
    report(&copy, 1, rounds, 1);
    unlink(path);
    return 0;
}
