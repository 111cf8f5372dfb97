/* raw.c: plain system calls as the peers of whole saves and loads; prints the seconds they took.
 *
 *     bench_raw write PATH BYTES            a fresh file by one thread, 1 MiB a call, then fsync
 *     bench_raw direct PATH BYTES THREADS   the same with O_DIRECT by threads, from aligned memory
 *     bench_raw read PATH THREADS           the whole file into memory that was touched before
 *     bench_raw drop PATH                   writes it back and takes it out of the page cache
 *
 * The memory is made and touched before the clock starts.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { CALL = 1 << 20, PIECE = 1 << 22, MOST_THREADS = 64 };

static int fd, reading;
static char *memory;
static int64_t total, cursor, room;

static void must(int ok, const char *what) {
    if (ok) return;
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Pieces of the file, in order, from or to the same place of the memory, which may be smaller. */
static void *work(void *unused) {
    int64_t at;
    while ((at = __atomic_fetch_add(&cursor, PIECE, __ATOMIC_RELAXED)) < total) {
        int64_t n = total - at < PIECE ? total - at : PIECE;
        char *p = memory + at % room;
        ssize_t done = reading ? pread(fd, p, (size_t)n, at) : pwrite(fd, p, (size_t)n, at);
        must(done == n, reading ? "read" : "write");
    }
    return unused;
}

static void by_threads(int threads) {
    pthread_t list[MOST_THREADS];
    for (int i = 0; i < threads; i++)
        must(pthread_create(&list[i], NULL, work, NULL) == 0, "thread");
    for (int i = 0; i < threads; i++) pthread_join(list[i], NULL);
}

static void make_memory(void) {
    room = (total + PIECE - 1) / PIECE * PIECE;
    memory = mmap(NULL, (size_t)room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(memory != MAP_FAILED, "memory");
    uint64_t x = 1;
    for (int64_t i = 0; i < room; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(memory + i, &x, 8);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[1] : "";
    int threads = 1;
    double began = 0;
    if (strcmp(what, "write") == 0 && argc == 4) {
        total = atoll(argv[3]);
        make_memory();
        began = now();
        fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0666);
        for (int64_t at = 0; at < total; at += CALL) {
            int64_t n = total - at < CALL ? total - at : CALL;
            must(write(fd, memory + at, (size_t)n) == n, "write");
        }
        must(fsync(fd) == 0, "fsync");
    } else if (strcmp(what, "direct") == 0 && argc == 5) {
        total = atoll(argv[3]) / 4096 * 4096;
        threads = atoi(argv[4]);
        make_memory();
        began = now();
        fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0666);
        must(fd >= 0 && threads > 0 && threads <= MOST_THREADS, "open with O_DIRECT");
        by_threads(threads);
        must(fsync(fd) == 0, "fsync");
    } else if (strcmp(what, "read") == 0 && argc == 4) {
        struct stat st;
        threads = atoi(argv[3]);
        fd = open(argv[2], O_RDONLY);
        must(fd >= 0 && fstat(fd, &st) == 0 && threads > 0 && threads <= MOST_THREADS, "open");
        total = st.st_size;
        make_memory();
        reading = 1;
        began = now();
        by_threads(threads);
    } else if (strcmp(what, "drop") == 0 && argc == 3) {
        began = now();
        fd = open(argv[2], O_RDONLY);
        must(fd >= 0 && fsync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0,
             "drop");
    } else {
        fprintf(stderr,
                "usage: bench_raw write PATH BYTES | direct PATH BYTES THREADS | read PATH THREADS"
                " | drop PATH\n");
        return 2;
    }
    printf("%.6f\n", now() - began);
    return 0;
}
