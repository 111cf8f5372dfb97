/* test_commit_async.c: commits on threads of their own, and those that go on where an earlier one
 * ended. */
#include <sys/file.h>

#include "commit_helpers.h"

/* -- on a thread of its own -------------------------------------------------------------------- */

static void threads(void) {
    enum { WRITERS = 4 };
    TITLE("several commits run at once, each from a snapshot of its tensors");
    int64_t n = 1000000, done = -1, total = -1;
    mc_h5_writer *w[WRITERS];
    char *path[WRITERS], name[32];
    for (int i = 0; i < WRITERS; i++) {
        snprintf(name, sizeof name, "async%d.h5", i);
        path[i] = name_of(name);
        mc_tensor *t = counting(n, i);
        CHECK_OK(mc_h5_create(&w[i], path[i]));
        CHECK_OK(mc_h5_tensor(w[i], "/x", t));
        CHECK_OK(mc_h5_bytes(w[i], "/b", "abc", 3));
        if (i == 1) CHECK_OK(mc_h5_check_written(w[i]));
        CHECK_OK(mc_h5_commit_start(w[i], 1));
        memset(mc_tensor_data(t), 0xff, (size_t)n * 4);
        mc_tensor_free(t);
    }
    for (int i = 0; i < WRITERS; i++) {
        int ended = 0;
        while ((ended = mc_h5_commit_poll(w[i], &done, &total)) == 0) usleep(1000);
        CHECK(ended == 1 && done == total && total == (n * 4 + 3) * (i == 1 ? 2 : 1));
        CHECK_OK(mc_h5_commit_wait(w[i]));
        CHECK(counts(path[i], "/x", n, i));
    }
    TITLE("without a snapshot the tensors are read while the caller waits");
    mc_tensor *t = counting(n, 7);
    CHECK_OK(mc_h5_create(&w[0], path[0]));
    CHECK_OK(mc_h5_tensor(w[0], "/x", t));
    CHECK_OK(mc_h5_commit_start(w[0], 0));
    CHECK_OK(mc_h5_commit_wait(w[0]));
    mc_tensor_free(t);
    CHECK(counts(path[0], "/x", n, 7));

    TITLE("a relative path means the folder where the process was when it was given");
    char before[4096], *link = name_of("last"), *old = name_of("old.h5");
    CHECK(getcwd(before, sizeof before) && chdir(folder) == 0);
    put_file(old, "x");
    CHECK_OK(mc_h5_create(&w[0], "async0.h5"));
    t = counting(n, 6);
    CHECK_OK(mc_h5_tensor(w[0], "/x", t));
    CHECK_OK(mc_h5_check_written(w[0]));
    CHECK_OK(mc_h5_then_point(w[0], "last", "async0.h5"));
    CHECK_OK(mc_h5_then_remove(w[0], "old.h5"));
    CHECK(chdir("/") == 0);
    CHECK_OK(mc_h5_commit_start(w[0], 0));
    CHECK_OK(mc_h5_commit_wait(w[0]));
    mc_tensor_free(t);
    CHECK(chdir(before) == 0 && counts(path[0], "/x", n, 6) && count_files("tmp") == 0);
    CHECK(has_text(link, "async0.h5") && access(old, F_OK) != 0);
    unlink(link);
    free(link);
    free(old);

    TITLE("a failure on the thread is the waiter's, and the old file stays");
    w[0] = begun(path[0], 8);
    mkdir(in_folder("folder"), 0755);
    CHECK_OK(mc_h5_then_point(w[0], in_folder("folder"), "x"));
    CHECK_OK(mc_h5_commit_start(w[0], 1));
    CHECK_STATUS(mc_h5_commit_wait(w[0]), MC_EIO, "saved, but ");
    rmdir(in_folder("folder"));
    w[0] = begun(path[0], 9);
    unlink(path[0]);
    mkdir(path[0], 0755); /* rename will not replace it */
    CHECK_OK(mc_h5_commit_start(w[0], 1));
    CHECK_STATUS(mc_h5_commit_wait(w[0]), MC_EIO, "async0.h5: cannot give the file its name");
    CHECK(count_files("tmp") == 0);
    rmdir(path[0]);

    TITLE("a start that fails runs nothing");
    int64_t index;
    CHECK_OK(mc_h5_create(&w[0], path[0]));
    CHECK_OK(mc_h5_dataset(w[0], "/x", MC_INT32, 1, &n, &index));
    CHECK_STATUS(mc_h5_commit_start(w[0], 1), MC_EINVAL, "'/x': 0 elements have come");
    CHECK(count_files("async0") == 0);

    TITLE("calls out of order are errors");
    CHECK_STATUS(mc_h5_commit_start(NULL, 1), MC_EINVAL, "no writer");
    CHECK_STATUS(mc_h5_commit_wait(NULL), MC_EINVAL, "no writer");
    CHECK(mc_h5_commit_poll(NULL, &done, &total) == -1 && done == 0 && total == 0);
    CHECK(strstr(mc_last_error(), "h5_commit_poll: no writer"));
    w[0] = begun(path[0], 10);
    CHECK(mc_h5_commit_poll(w[0], NULL, NULL) == -1);
    CHECK(strstr(mc_last_error(), "async0.h5: its commit has not begun"));
    CHECK_STATUS(mc_h5_commit_wait(w[0]), MC_EINVAL, "its commit has not begun");
    CHECK_OK(mc_h5_commit_start(w[0], 1));
    CHECK_STATUS(mc_h5_commit_start(w[0], 1), MC_EINVAL, "its commit has begun");
    CHECK_STATUS(mc_h5_commit(w[0]), MC_EINVAL, "its commit has begun");
    CHECK_STATUS(mc_h5_bytes(w[0], "/late", "x", 1), MC_EINVAL, "its commit has begun");
    CHECK_STATUS(mc_h5_then_remove(w[0], "x"), MC_EINVAL, "its commit has begun");
    CHECK_OK(mc_h5_commit_wait(w[0]));
    CHECK(counts(path[0], "/x", 100, 10));
    w[0] = begun(path[0], 11);
    CHECK_OK(mc_h5_commit_start(w[0], 1));
    mc_h5_discard(w[0]); /* too late: waits */
    CHECK(counts(path[0], "/x", 100, 11));

    TITLE("the end of the process waits for a commit that runs, also when it forked meanwhile");
    unlink(path[0]);
    n = 8000000;
    pid_t child = fork();
    if (child == 0) {
        is_child = 1;
        mc_h5_writer *own = NULL;
        t = counting(n, 12);
        mc_status status = mc_h5_create(&own, path[0]);
        if (status == MC_OK) status = mc_h5_tensor(own, "/x", t);
        if (status == MC_OK) status = mc_h5_check_written(own);
        if (status == MC_OK) status = mc_h5_commit_start(own, 1);
        pid_t grandchild = fork(); /* has no such thread, so its end waits for nothing */
        if (grandchild == 0) exit(mc_h5_commit_wait(own) == MC_EINVAL ? 0 : 1);
        int state = 1;
        waitpid(grandchild, &state, 0);
        exit(status == MC_OK && state == 0 ? 0 : 1);
    }
    int state = 0;
    waitpid(child, &state, 0);
    CHECK(WIFEXITED(state) && WEXITSTATUS(state) == 0);
    CHECK(counts(path[0], "/x", n, 12) && count_files("tmp") == 0);
    for (int i = 0; i < WRITERS; i++) {
        unlink(path[i]);
        free(path[i]);
    }
}

/* -- going on ---------------------------------------------------------------------------------- */

enum { SETS = 6 };
static const int64_t set_size = 20000;

/* Datasets /0 .. /5 that count from `seed`; the last comes from file `f` if there is one. commit:
 * 0 to discard, -1 for a commit whose rename fails, which takes its journal to the end. */
static mc_status resume(const char *path, const char *key, int seed, mc_h5_file *f, int64_t entry,
                        int commit) {
    mc_h5_writer *w = NULL;
    char name[8];
    mc_status status = mc_h5_create_resumable(&w, path, key);
    if (status != MC_OK) return status;
    for (int i = 0; i < SETS; i++) {
        snprintf(name, sizeof name, "/%d", i);
        mc_tensor *t = counting(set_size, seed + i);
        int64_t index, n = set_size;
        if (i == 1) { /* written at once */
            CHECK_OK(mc_h5_dataset(w, name, MC_INT32, 1, &n, &index));
            CHECK_OK(mc_h5_part(w, index, t));
        } else if (f && i == SETS - 1) {
            CHECK_OK(mc_h5_dataset(w, name, MC_INT32, 1, &n, &index));
            CHECK_OK(mc_h5_part_file(w, index, f, entry, 0, n));
        } else {
            CHECK_OK(mc_h5_tensor(w, name, t));
        }
        mc_tensor_free(t);
    }
    if (commit < 0) {
        unlink(path);
        mkdir(path, 0755);
        mc_status failed = mc_h5_commit(w);
        rmdir(path);
        return failed == MC_EIO && strstr(mc_last_error(), "its name") ? MC_OK : MC_EINTERNAL;
    }
    if (commit) return mc_h5_commit(w);
    mc_h5_discard(w);
    return MC_OK;
}

/* Which of the datasets count from `seed` on, as bits. */
static int which(const char *path, int seed) {
    int bits = 0;
    char name[8];
    for (int i = 0; i < SETS; i++) {
        snprintf(name, sizeof name, "/%d", i);
        bits |= counts(path, name, set_size, seed + i) << i;
    }
    return bits;
}

static void going_on(void) {
    /* A source that turns out damaged ends the first run after its other datasets. */
    char *path = name_of("out.h5"), *source = name_of("source.h5"), *partial, *journal;
    partial = name_of("out.h5.partial");
    journal = name_of("out.h5.journal");
    int64_t entry = -1;
    mc_h5_writer *w = NULL;
    mc_h5_file *f = NULL;
    mc_tensor *t = counting(set_size, 0);
    CHECK_OK(mc_h5_create(&w, source));
    CHECK_OK(mc_h5_attr_string(w, "/", "format", "mascon", 6));
    CHECK_OK(mc_h5_tensor(w, "/x", t));
    CHECK_OK(mc_h5_commit(w));
    mc_tensor_free(t);
    flip(source, offset_of(source, "/x") + 50000);
    CHECK_OK(mc_h5_open(&f, source, NULL));
    CHECK(io_find(f, "/x", &entry));

    TITLE("a save that failed goes on where it was when the key is the same");
    put_file(path, "old");
    CHECK_STATUS(resume(path, "key", 100, f, entry, 1), MC_EFORMAT, "'/5': the source is damaged");
    CHECK(has_text(path, "old") && access(partial, F_OK) == 0 && access(journal, F_OK) == 0);
    mc_h5_file *none = NULL;
    CHECK_STATUS(mc_h5_open(&none, partial, NULL), MC_EFORMAT, "not an HDF5 file");
    CHECK_OK(resume(path, "key", 100, NULL, 0, 0)); /* a discard keeps both */
    CHECK(access(partial, F_OK) == 0 && access(journal, F_OK) == 0);
    /* other values show which datasets are not written again: all but the parts and the last */
    CHECK_OK(resume(path, "key", 500, NULL, 0, 1));
    CHECK(which(path, 100) == 0x1d && which(path, 500) == 0x22);
    CHECK(count_files("out.h5") == 1);

    TITLE("what was noted but is not there any more is written again");
    int64_t offsets[SETS];
    for (int i = 0; i < SETS; i++) {
        char name[8];
        snprintf(name, sizeof name, "/%d", i);
        offsets[i] = offset_of(path, name);
    }
    CHECK_STATUS(resume(path, "key", 100, f, entry, 1), MC_EFORMAT, "damaged");
    flip(partial, offsets[2] + 17);
    CHECK_OK(resume(path, "key", 500, NULL, 0, 1));
    CHECK(which(path, 100) == 0x19 && which(path, 500) == 0x26);

    TITLE("a journal with a torn or false line is good up to there");
    CHECK_STATUS(resume(path, "key", 100, f, entry, 1), MC_EFORMAT, "damaged");
    size_t n;
    char *text = slurp(journal, &n);
    char *third = memchr(text, '\n', n) + 1; /* behind the first: that of the key */
    third = memchr(third, '\n', n - (size_t)(third - text)) + 1;
    third = memchr(third, '\n', n - (size_t)(third - text)) + 1;
    CHECK(truncate(journal, third - text + 20) == 0);
    CHECK_STATUS(resume(path, "key", 300, f, entry, 1), MC_EFORMAT, "damaged");
    size_t m;
    char *after = slurp(journal, &m);
    CHECK(m == n && memcmp(after, text, (size_t)(third - text)) == 0);
    free(after);
    free(text);
    flip(journal, (int64_t)n - 10);
    CHECK_OK(resume(path, "key", 500, NULL, 0, 1));
    int first = which(path, 100), second = which(path, 300), last = which(path, 500);
    CHECK((first | second | last) == 0x3f);
    CHECK(__builtin_popcount((unsigned)first) == 2 && __builtin_popcount((unsigned)second) == 1);

    TITLE("what is noted of a source that has another digest by now is written again");
    char *other = name_of("other.h5");
    mc_h5_file *changed[2] = {NULL, NULL};
    for (int i = 0; i < 2; i++) {
        t = counting(set_size, 700 + i);
        CHECK_OK(mc_h5_create(&w, other));
        CHECK_OK(mc_h5_attr_string(w, "/", "format", "mascon", 6));
        CHECK_OK(mc_h5_tensor(w, "/x", t));
        CHECK_OK(mc_h5_commit(w));
        mc_tensor_free(t);
        CHECK_OK(mc_h5_open(&changed[i], other, NULL));
    }
    CHECK_OK(resume(path, "key", 100, changed[0], entry, -1));
    CHECK_OK(resume(path, "key", 100, changed[1], entry, 1));
    CHECK(which(path, 100) == 0x1f && counts(path, "/5", set_size, 701));
    mc_h5_close(changed[0]);
    mc_h5_close(changed[1]);
    unlink(other);
    free(other);

    TITLE("another key begins afresh");
    CHECK_STATUS(resume(path, "key", 100, f, entry, 1), MC_EFORMAT, "damaged");
    CHECK_OK(resume(path, "another", 500, NULL, 0, 1));
    CHECK(which(path, 500) == 0x3f && count_files("out.h5") == 1);

    TITLE("the file that went on is the file made at once, byte for byte");
    CHECK_STATUS(resume(path, "key", 500, f, entry, 1), MC_EFORMAT, "damaged");
    CHECK_OK(resume(path, "key", 500, NULL, 0, 1));
    char *plain = name_of("plain.h5"), name[8];
    CHECK_OK(mc_h5_create(&w, plain));
    for (int i = 0; i < SETS; i++) {
        snprintf(name, sizeof name, "/%d", i);
        t = counting(set_size, 500 + i);
        CHECK_OK(mc_h5_tensor(w, name, t));
        mc_tensor_free(t);
    }
    CHECK_OK(mc_h5_commit(w));
    char *a = slurp(path, &n), *b = slurp(plain, &m);
    CHECK(n == m && memcmp(a, b, n) == 0);
    free(a);
    free(b);
    unlink(plain);
    free(plain);

    TITLE("a plain save and a sweep leave partial files alone");
    CHECK_STATUS(resume(path, "key", 100, f, entry, 1), MC_EFORMAT, "damaged");
    int64_t removed = -1;
    CHECK_OK(mc_h5_sweep(path, &removed));
    CHECK_OK(save(path, 1));
    CHECK(removed == 0 && access(partial, F_OK) == 0 && access(journal, F_OK) == 0);

    TITLE("two processes do not write into one partial file");
    int fd = open(partial, O_RDWR);
    CHECK(flock(fd, LOCK_EX) == 0);
    CHECK_STATUS(resume(path, "key", 100, NULL, 0, 1), MC_EIO,
                 "out.h5: another process is converting into it");
    close(fd);
    CHECK(is_saved(path, 1) && access(partial, F_OK) == 0);

    TITLE("a process that is about to end is waited for");
    int ready[2];
    char byte = 0;
    CHECK(pipe(ready) == 0);
    pid_t child = fork();
    if (child == 0) {
        fd = open(partial, O_RDWR);
        if (flock(fd, LOCK_EX) == 0 && write(ready[1], "x", 1) == 1) usleep(200000);
        _exit(0);
    }
    CHECK(read(ready[0], &byte, 1) == 1);
    CHECK_OK(resume(path, "key", 100, NULL, 0, 0));
    waitpid(child, NULL, 0);

    TITLE("a child of fork does not keep the lock of a writer that has ended");
    CHECK_OK(mc_h5_create_resumable(&w, path, "key"));
    child = fork();
    if (child == 0) _exit(read(ready[0], &byte, 1) == 1 ? 0 : 1);
    mc_h5_discard(w);
    CHECK_OK(resume(path, "key", 100, NULL, 0, 0));
    CHECK(write(ready[1], "x", 1) == 1);
    waitpid(child, NULL, 0);
    close(ready[0]);
    close(ready[1]);

    CHECK_STATUS(mc_h5_create_resumable(&w, path, NULL), MC_EINVAL, "no key");
    CHECK_STATUS(mc_h5_create_resumable(&w, "", "key"), MC_EINVAL, "no path");
    CHECK_STATUS(mc_h5_create_resumable(NULL, path, "key"), MC_EINVAL, "no place");
    CHECK(unlink(partial) == 0 && symlink("source.h5", partial) == 0);
    CHECK_STATUS(resume(path, "key", 1, NULL, 0, 1), MC_EIO, "out.h5.partial: cannot open it: ");
    mc_h5_close(f);
    unlink(partial);
    unlink(journal);
    unlink(source);
    unlink(path);
    free(path);
    free(source);
    free(partial);
    free(journal);
}

int main(void) {
    if (!make_folder()) return 1;
    CHECK_OK(mc_set_num_threads(1)); /* OpenMP's threads do not survive a fork */
    threads();
    going_on();
    remove_folder();
    return check_report();
}
