/* test_commit.c: the ways a file gets its bytes and its name: parts, symbolic links, leftovers of
 * dead writers, and what comes after. */
#include <signal.h>
#include <sys/resource.h>

#include "commit_helpers.h"

/* -- parts ------------------------------------------------------------------------------------- */

static void parts(void) {
    TITLE("a dataset made of parts is the dataset made at once, byte for byte");
    char *whole = name_of("whole.h5"), *path = name_of("parts.h5");
    int64_t n = 3000000, first = 1000001, none = 0, index = -1, empty = -1, source = -1;
    int fake = 0;
    CHECK_OK(mc_device_parse("fake", &fake));
    mc_tensor *all = counting(n, 5), *head = mc_tensor_new(), *tail = mc_tensor_new();
    mc_tensor *there = mc_tensor_new(), *nothing = mc_tensor_new();
    CHECK_OK(mc_narrow(head, all, 0, 0, first));
    CHECK_OK(mc_narrow(tail, all, 0, first, n - first));
    int64_t rest = n - first;
    CHECK_OK(mc_empty(there, MC_INT32, fake, 1, &rest));
    CHECK_OK(mc_copy(there, tail));
    CHECK_OK(mc_empty(nothing, MC_INT32, 0, 1, &none));
    mc_h5_writer *w = NULL;
    CHECK_OK(mc_h5_create(&w, whole));
    CHECK_OK(mc_h5_attr_string(w, "/", "format", "mascon", 6)); /* else no digest is believed */
    CHECK_OK(mc_h5_tensor(w, "/x", all));
    CHECK_OK(mc_h5_tensor(w, "/none", nothing));
    CHECK_OK(mc_h5_commit(w));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, whole, NULL));
    CHECK(io_find(f, "/x", &source));
    for (int way = 0; way < 5; way++) {
        CHECK_OK(mc_h5_create(&w, path));
        CHECK_OK(mc_h5_attr_string(w, "/", "format", "mascon", 6));
        CHECK_OK(mc_h5_dataset(w, "/x", MC_INT32, 1, &n, &index));
        CHECK_OK(mc_h5_dataset(w, "/none", MC_INT32, 1, &none, &empty));
        if (way == 0) { /* from memory */
            CHECK_OK(mc_h5_part(w, index, head));
            CHECK_OK(mc_h5_part(w, index, nothing));
            CHECK_OK(mc_h5_part(w, index, tail));
            CHECK_OK(mc_h5_part(w, empty, nothing));
        } else if (way == 1) { /* a device after memory */
            CHECK_OK(mc_h5_part(w, index, head));
            CHECK_OK(mc_h5_part(w, index, there));
        } else if (way == 2) { /* a file */
            CHECK_OK(mc_h5_part_file(w, index, f, source, 0, n));
        } else if (way == 3) { /* memory after a file, and the other way round */
            CHECK_OK(mc_h5_part_file(w, index, f, source, 0, first));
            CHECK_OK(mc_h5_part(w, index, nothing));
            CHECK_OK(mc_h5_part_file(w, index, f, source, first, rest - 7));
            CHECK_OK(mc_h5_part_file(w, index, f, source, n - 7, 7));
        } else { /* stretches of a file */
            for (int64_t at = 0; at < n; at += 700001)
                CHECK_OK(
                    mc_h5_part_file(w, index, f, source, at, n - at < 700001 ? n - at : 700001));
        }
        CHECK_OK(mc_h5_commit(w));
        size_t a, b;
        char *x = slurp(whole, &a), *y = slurp(path, &b);
        CHECK(a == b && memcmp(x, y, a) == 0);
        free(x);
        free(y);
    }

    TITLE("parts that do not fit are refused and nothing is saved");
    unlink(path);
    int64_t small = 10, big[2] = {INT64_MAX / 4, 3}, negative = -1;
    mc_tensor *ten = counting(10, 0);
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_dataset(w, "/x", MC_INT32, 1, &small, &index));
    CHECK_OK(mc_h5_dataset(w, "/f", MC_FLOAT32, 1, &small, &empty));
    CHECK_OK(mc_h5_tensor(w, "/t", ten));
    CHECK_OK(mc_h5_part(w, index, ten));
    CHECK_STATUS(mc_h5_part(w, index, ten), MC_EINVAL,
                 "'/x': 10 elements have come and 10 more came now, of 10 that are wanted");
    CHECK_STATUS(mc_h5_part(w, empty, ten), MC_EINVAL,
                 "'/f': a part of int32 came, float32 is wanted");
    CHECK_STATUS(mc_h5_part(w, 2, ten), MC_EINVAL, "no dataset 2 (0-based) that takes parts");
    CHECK_STATUS(mc_h5_part(w, 3, ten), MC_EINVAL, "no dataset 3 (0-based)");
    CHECK_STATUS(mc_h5_part(w, -1, ten), MC_EINVAL, "no dataset -1 (0-based)");
    CHECK_STATUS(mc_h5_part(w, index, NULL), MC_EINVAL, "'/x': the tensor is empty");
    CHECK_STATUS(mc_h5_part_file(w, empty, f, source, 0, 5), MC_EINVAL,
                 "'/f': a part of int32 came, float32 is wanted");
    CHECK_STATUS(mc_h5_part_file(w, index, NULL, 0, 0, 5), MC_EINVAL, "'/x': no file, or entry 0");
    CHECK_STATUS(mc_h5_part_file(w, index, f, 0, 0, 5), MC_EINVAL, "is no dataset");
    CHECK_STATUS(mc_h5_part_file(w, index, f, source, n, 1), MC_EINVAL, "10 elements have come");
    CHECK_STATUS(mc_h5_dataset(w, "/b", MC_INT32, 2, big, &index), MC_EINVAL,
                 "'/b': a size is negative or too large");
    CHECK_STATUS(mc_h5_dataset(w, "/b", MC_INT32, 1, &negative, &index), MC_EINVAL, "negative");
    CHECK_STATUS(mc_h5_dataset(w, "/b", MC_INT32, 9, big, &index), MC_EINVAL, "9 axes");
    CHECK_STATUS(mc_h5_dataset(w, "/b", 99, 1, &small, &index), MC_EINVAL, "no dtype 99");
    CHECK_STATUS(mc_h5_dataset(w, "/b", MC_INT32, 1, &small, NULL), MC_EINVAL, "no place for");
    CHECK_STATUS(mc_h5_commit(w), MC_EINVAL, "a call before failed: h5_part: ");
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_dataset(w, "/x", MC_INT32, 1, &n, &index));
    CHECK_OK(mc_h5_part_file(w, index, f, source, 0, 5));
    CHECK_STATUS(mc_h5_part_file(w, index, f, source, n - 4, 5), MC_EINVAL,
                 "'/x' has 3000000 elements, wanted are 5 from 2999996 (0-based)");
    CHECK_STATUS(mc_h5_part_file(w, index, f, source, 0, -1), MC_EINVAL, "wanted are -1");
    mc_h5_discard(w);
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_dataset(w, "/x", MC_INT32, 1, &small, &index));
    CHECK_OK(mc_h5_part_file(w, index, f, source, 0, 7));
    CHECK_STATUS(mc_h5_commit(w), MC_EINVAL,
                 "parts.h5: '/x': 7 elements have come, of 10 that are wanted");
    CHECK(access(path, F_OK) != 0 && count_files("tmp") == 0);
    mc_h5_close(f);

    TITLE("a source that does not have its digest any more is not saved");
    flip(whole, offset_of(whole, "/x") + 2000000);
    CHECK_OK(mc_h5_open(&f, whole, NULL));
    for (int at_once = 0; at_once < 2; at_once++) {
        CHECK_OK(mc_h5_create(&w, path));
        CHECK_OK(mc_h5_dataset(w, "/y", MC_INT32, 1, &n, &index));
        if (at_once) CHECK_OK(mc_h5_part(w, index, nothing));
        mc_status status = mc_h5_part_file(w, index, f, source, 0, n);
        CHECK((status != MC_OK) == at_once);
        CHECK_STATUS(mc_h5_commit(w), MC_EFORMAT, "'/y': the source is damaged");
        CHECK(access(path, F_OK) != 0 && count_files("tmp") == 0);
    }
    mc_h5_close(f);

    TITLE("a part past the file size limit is an error, not a signal");
    struct rlimit old, low;
    getrlimit(RLIMIT_FSIZE, &old);
    low = old;
    low.rlim_cur = 100000;
    CHECK_OK(mc_h5_create(&w, path));
    CHECK_OK(mc_h5_dataset(w, "/x", MC_INT32, 1, &first, &index));
    setrlimit(RLIMIT_FSIZE, &low);
    mc_status status = mc_h5_part(w, index, head);
    CHECK(status == MC_EIO && strstr(mc_last_error(), "parts.h5: File too large"));
    mc_h5_discard(w);
    setrlimit(RLIMIT_FSIZE, &old);
    mc_tensor_free(all);
    mc_tensor_free(head);
    mc_tensor_free(tail);
    mc_tensor_free(there);
    mc_tensor_free(nothing);
    mc_tensor_free(ten);
    unlink(whole);
    free(whole);
    free(path);
}

/* -- names ------------------------------------------------------------------------------------- */

static void symbolic_links(void) {
    TITLE("a symbolic link stays one, and what it points at is written");
    struct stat st = {0};
    char *real = name_of("real.h5");
    mkdir(in_folder("sub"), 0755);
    CHECK_OK(save(real, 1));
    CHECK(symlink("real.h5", in_folder("link.h5")) == 0);
    CHECK(symlink("../link.h5", in_folder("sub/second.h5")) == 0);
    CHECK_OK(save(in_folder("sub/second.h5"), 2));
    CHECK(is_saved(real, 2));
    CHECK(lstat(in_folder("link.h5"), &st) == 0 && S_ISLNK(st.st_mode));
    CHECK(lstat(in_folder("sub/second.h5"), &st) == 0 && S_ISLNK(st.st_mode));
    unlink(real);
    CHECK_OK(save(in_folder("sub/second.h5"), 3)); /* dangling now */
    CHECK(is_saved(real, 3));
    CHECK(lstat(in_folder("link.h5"), &st) == 0 && S_ISLNK(st.st_mode));
    TITLE("a symbolic link that leads nowhere or in a circle is named with the reason");
    CHECK(symlink("none/x.h5", in_folder("lost.h5")) == 0);
    CHECK_STATUS(save(in_folder("lost.h5"), 1), MC_EIO,
                 "lost.h5: cannot create a file in its folder: No such file or directory");
    CHECK(symlink("circle.h5", in_folder("circle.h5")) == 0);
    CHECK_STATUS(save(in_folder("circle.h5"), 1), MC_EIO, "circle.h5: Too many levels of symbolic");
    unlink(in_folder("circle.h5"));
    unlink(in_folder("lost.h5"));
    unlink(in_folder("sub/second.h5"));
    rmdir(in_folder("sub"));
    unlink(in_folder("link.h5"));
    unlink(real);
    free(real);
}

static void leftovers(void) {
    TITLE("what a dead writer left is swept, what a living one has is not");
    char *path = name_of("swept.h5");
    int64_t removed = -1;
    int ready[2];
    char byte;
    CHECK(pipe(ready) == 0);
    pid_t child = fork();
    if (child == 0) {
        mc_h5_writer *dying = NULL;
        mc_status status = mc_h5_create(&dying, path);
        _exit(write(ready[1], "x", 1) == 1 && status == MC_OK && pause() ? 0 : 1);
    }
    CHECK(read(ready[0], &byte, 1) == 1);
    close(ready[0]);
    close(ready[1]);
    CHECK(count_files("swept.h5.tmp-") == 1);
    CHECK_OK(mc_h5_sweep(path, &removed));
    CHECK(removed == 0 && count_files("swept.h5.tmp-") == 1);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    mc_h5_writer *alive = NULL;
    CHECK_OK(mc_h5_create(&alive, path)); /* sweeps too */
    CHECK(count_files("swept.h5.tmp-") == 1);

    static const char *const others[] = {
        "swept.h5.tmp-1-",       "swept.h5.tmp--1",       "swept.h5.tmp-1-2x", "swept.h5.tmp-1",
        "xswept.h5.tmp-1-2",     "swept.h5.tmp-1-2-3",    "swept.h5.partial",  "swept.h5.journal",
        "swept.h5.tmp-12-3.tmp", "swept.h5 .tmp-123-456", "swept.h5.tmp-a-b"};
    for (int i = 0; i < 11; i++) put_file(in_folder(others[i]), "keep");
    put_file(in_folder("swept.h5.tmp-123-456"), "");
    put_file(in_folder("swept.h5.tmp-0-0"), "dead");
    CHECK(symlink("swept.h5.partial", in_folder("swept.h5.tmp-1-1")) == 0);
    CHECK(mkdir(in_folder("swept.h5.tmp-2-2"), 0755) == 0);
    CHECK(mkfifo(in_folder("swept.h5.tmp-3-3"), 0600) == 0);
    CHECK_OK(mc_h5_sweep(path, &removed));
    CHECK(removed == 2);
    for (int i = 0; i < 11; i++) {
        CHECK(has_text(in_folder(others[i]), "keep"));
        unlink(in_folder(others[i]));
    }
    CHECK(unlink(in_folder("swept.h5.tmp-1-1")) == 0);
    CHECK(rmdir(in_folder("swept.h5.tmp-2-2")) == 0);
    CHECK(unlink(in_folder("swept.h5.tmp-3-3")) == 0);
    CHECK(count_files("swept.h5.tmp-") == 1);
    CHECK_OK(mc_h5_bytes(alive, "/x", "y", 1));
    CHECK_OK(mc_h5_commit(alive));
    CHECK(count_files("swept.h5") == 1);
    CHECK_OK(mc_h5_sweep(path, NULL));
    CHECK(access(path, F_OK) == 0);
    CHECK_STATUS(mc_h5_sweep(in_folder("none/x.h5"), &removed), MC_EIO,
                 "none/x.h5: cannot list its folder: No such file or directory");
    CHECK_STATUS(mc_h5_sweep(NULL, &removed), MC_EINVAL, "no path");
    unlink(path);

    TITLE("a child of fork neither removes nor finishes what its parent writes");
    CHECK_OK(mc_h5_create(&alive, path));
    CHECK_OK(mc_h5_bytes(alive, "/x", "y", 1));
    child = fork();
    if (child == 0) {
        is_child = 1;
        int ok = mc_h5_bytes(alive, "/z", "y", 1) == MC_EINVAL &&
                 mc_h5_commit(alive) == MC_EINVAL &&
                 strstr(mc_last_error(), "belongs to the process that made it") != NULL;
        mc_h5_discard(alive);
        exit(ok ? 0 : 1);
    }
    int state = 0;
    waitpid(child, &state, 0);
    CHECK(WIFEXITED(state) && WEXITSTATUS(state) == 0);
    CHECK(count_files("swept.h5.tmp-") == 1);
    CHECK_OK(mc_h5_bytes(alive, "/z", "y", 1));
    CHECK_OK(mc_h5_commit(alive));
    mc_h5_file *f = NULL;
    CHECK_OK(mc_h5_open(&f, path, NULL));
    CHECK(mc_h5_count(f) == 3);
    mc_h5_close(f);
    unlink(path);
    free(path);
}

/* -- after the name ---------------------------------------------------------------------------- */

static void afterwards(void) {
    TITLE("after the file has its name, the pointer is replaced and old files are removed");
    char *path = name_of("step-2.h5"), *old = name_of("step-1.h5"), *latest = name_of("latest");
    put_file(old, "old");
    put_file(latest, "step-1.h5, and more text than the new one has\n");
    mc_h5_writer *w = begun(path, 1);
    CHECK_OK(mc_h5_check_written(w));
    CHECK_OK(mc_h5_then_remove(w, old));
    CHECK_OK(mc_h5_then_remove(w, in_folder("never there")));
    CHECK_OK(mc_h5_then_point(w, latest, "step-2.h5\n"));
    CHECK(has_text(old, "old"));
    CHECK_OK(mc_h5_commit(w));
    CHECK(has_text(latest, "step-2.h5\n") && access(old, F_OK) != 0 && counts(path, "/x", 100, 1));
    CHECK(count_files("") == 2);

    TITLE("a commit that fails, and a discard, neither points nor removes");
    put_file(old, "old");
    w = begun(path, 2);
    CHECK_OK(mc_h5_then_remove(w, old));
    CHECK_OK(mc_h5_then_point(w, latest, "bad"));
    CHECK_STATUS(mc_h5_group(w, "x"), MC_EINVAL, "does not begin");
    CHECK_STATUS(mc_h5_commit(w), MC_EINVAL, "step-2.h5: not saved");
    w = begun(path, 2);
    CHECK_OK(mc_h5_then_remove(w, old));
    CHECK_OK(mc_h5_then_point(w, latest, "bad"));
    mc_h5_discard(w);
    CHECK(has_text(latest, "step-2.h5\n") && has_text(old, "old") && counts(path, "/x", 100, 1));

    TITLE("what goes wrong after the file has its name is said to be that");
    mkdir(in_folder("folder"), 0755);
    w = begun(path, 3);
    CHECK_OK(mc_h5_then_remove(w, old));
    CHECK_OK(mc_h5_then_point(w, in_folder("folder"), "x"));
    CHECK_STATUS(mc_h5_commit(w), MC_EIO, "step-2.h5: saved, but ");
    CHECK(strstr(mc_last_error(), "folder: it is a folder"));
    CHECK(counts(path, "/x", 100, 3) && has_text(old, "old"));
    w = begun(path, 4);
    CHECK_OK(mc_h5_then_remove(w, in_folder("folder")));
    CHECK_OK(mc_h5_then_remove(w, path));
    CHECK_OK(mc_h5_then_remove(w, old));
    CHECK_STATUS(mc_h5_commit(w), MC_EIO, "saved, but ");
    CHECK(strstr(mc_last_error(), "folder: it is a folder"));
    CHECK(counts(path, "/x", 100, 4) && access(old, F_OK) != 0);
    w = begun(path, 5);
    CHECK_OK(mc_h5_then_remove(w, path));
    CHECK_STATUS(mc_h5_commit(w), MC_EIO, "it is the file just saved");
    CHECK(counts(path, "/x", 100, 5));
    w = begun(path, 6);
    CHECK_STATUS(mc_h5_then_point(w, "", "x"), MC_EINVAL, "no path, or no text");
    CHECK_STATUS(mc_h5_then_remove(w, NULL), MC_EINVAL, "no path");
    CHECK_STATUS(mc_h5_commit(w), MC_EINVAL, "a call before failed: h5_then_point");
    rmdir(in_folder("folder"));
    unlink(latest);
    unlink(path);
    CHECK(count_files("") == 0);
    free(path);
    free(old);
    free(latest);
}

/* Small tensors are hashed when their datasets are made, all of them when they are written. */
static void changes(void) {
    TITLE("a tensor is saved as it is at commit, with the digest of that");
    enum { SETS = 4 };
    const int64_t sizes[SETS] = {100, 30000, 40000, 2000000};
    char *path = name_of("changes.h5"), *again = name_of("again.h5"), name[8];
    mc_tensor *t[SETS];
    for (int round = 0; round < 2; round++) {
        mc_h5_writer *w = NULL;
        CHECK_OK(mc_h5_create(&w, round ? again : path));
        for (int i = 0; i < SETS; i++) {
            snprintf(name, sizeof name, "/%d", i);
            t[i] = counting(sizes[i], round ? 7 + i : 1);
            CHECK_OK(mc_h5_tensor(w, name, t[i]));
        }
        for (int i = 0; i < SETS && round == 0; i++) {
            int32_t *p = mc_tensor_data(t[i]);
            for (int64_t k = 0; k < sizes[i]; k++) p[k] = 7 + i + (int32_t)k;
        }
        CHECK_OK(mc_h5_commit(w));
        for (int i = 0; i < SETS; i++) mc_tensor_free(t[i]);
    }
    for (int i = 0; i < SETS; i++) {
        snprintf(name, sizeof name, "/%d", i);
        CHECK(counts(path, name, sizes[i], 7 + i));
    }
    TITLE("equal content gives equal files, whenever its digests were known");
    size_t n, m;
    char *a = slurp(path, &n), *b = slurp(again, &m);
    CHECK(n == m && memcmp(a, b, n) == 0);
    free(a);
    free(b);
    unlink(path);
    unlink(again);
    free(path);
    free(again);
}

static void one_nan(void) {
    TITLE("every NaN gives one attribute, and minus zero stays apart from zero");
    const uint64_t bits[] = {0x7ff8000000000000, 0xfff8000000000000, 0x7ff0000000000001,
                             0xffffdeadbeef0000, 0x8000000000000000, 0};
    const char *path = in_folder("nan.h5");
    char *bytes[6];
    size_t size[6];
    for (int i = 0; i < 6; i++) {
        double value;
        memcpy(&value, &bits[i], sizeof value);
        mc_h5_writer *w = NULL;
        mc_h5_file *f = NULL;
        CHECK_OK(mc_h5_create(&w, path));
        CHECK_OK(mc_h5_attr_double(w, "/", "v", value));
        CHECK_OK(mc_h5_commit(w));
        bytes[i] = slurp(path, &size[i]);
        int same = size[i] == size[0] && memcmp(bytes[i], bytes[0], size[0]) == 0;
        CHECK(same == (i < 4));
        CHECK_OK(mc_h5_open(&f, path, NULL));
        const mc_h5_attr *a = io_attr(f, "/", "v");
        CHECK(a && memcmp(&a->d, &bits[i < 4 ? 0 : i], sizeof a->d) == 0);
        mc_h5_close(f);
    }
    for (int i = 0; i < 6; i++) free(bytes[i]);
    unlink(path);
}

int main(void) {
    if (!make_folder()) return 1;
    CHECK_OK(mc_set_num_threads(1)); /* OpenMP's threads do not survive a fork */
    parts();
    symbolic_links();
    leftovers();
    afterwards();
    changes();
    one_nan();
    remove_folder();
    return check_report();
}
