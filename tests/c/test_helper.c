/* The reading helper program: one that crashes, hangs, lies or is not there, and what is left of it
 * afterwards. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "hostile_files.h"
#include "io/bytes.h"
#include "io/file.h"
#include "io/spawn.h"

/* -- the helper ---------------------------------------------------------------------------------
 */

/* The two messages that come first are read. */
#define HEARD "head -c 96 <&4 >/dev/null; "

/* The helper is now this shell script. */
static void helper(const char *script) {
    FILE *f = fopen(in_folder("helper"), "w");
    if (!CHECK(f)) return;
    fprintf(f, "#!/bin/sh\n%s\n", script);
    fclose(f);
    chmod(in_folder("helper"), 0755);
    mci_h5_helper_for_tests(in_folder("helper"));
}

static void failing_helpers(void) {
    static const struct {
        const char *title, *script;
        mc_status status;
        const char *part;
    } cases[] = {
        {"a helper that crashes is an error", "kill -SEGV $$", MC_EFORMAT,
         "hostile.h5: damaged or hostile: the program that reads it died of signal 11 "
         "(Segmentation fault)"},
        {"an abort is told", "kill -ABRT $$", MC_EFORMAT, "died of signal 6 (Aborted)"},
        {"the end of its processor time is told", "kill -XCPU $$", MC_EFORMAT,
         "used up its time of the processor"},
        {"a helper that somebody kills is told", "kill -KILL $$", MC_EIO,
         "was killed (signal 9), perhaps for want of memory"},
        {"an end without an answer is told", "exit 5", MC_EFORMAT, "ended with status 5"},
        {"a missing library is told", "exit 127", MC_EUNSUPPORTED, "a library that it needs"},
        {"a helper that closes its socket and stays is stopped", "exec 4>&-; exec sleep 100",
         MC_EFORMAT, "gave up"},
        {"garbage is refused", HEARD "exec head -c 100000 /dev/zero >&4", MC_EFORMAT,
         "the reading helper's reply makes no sense: it begins with something else"},
        {"half an answer is refused", HEARD "printf '\\002MHS\\0\\0\\0\\0' >&4", MC_EFORMAT,
         "ended with status 0"},
        {"an endless reply is refused before memory is asked for",
         HEARD
         "printf '\\002MHS\\0\\0\\0\\0\\0\\0\\0\\0\\0\\001\\0\\0' >&4; exec cat /dev/zero >&4",
         MC_EFORMAT, "makes no sense: it is too long"},
        {"a reply of zeros is refused",
         HEARD
         "printf '\\002MHS\\0\\0\\0\\0\\0\\0\\0\\001\\0\\0\\0\\0' >&4; exec cat /dev/zero >&4",
         MC_EFORMAT, "makes no sense: the number of objects is wrong"},
        {"a status of no meaning is refused",
         HEARD "printf '\\002MHS\\143\\0\\0\\0\\1\\0\\0\\0\\0\\0\\0\\0x' >&4", MC_EFORMAT,
         "its status is none"},
        {"a message cannot write to a terminal",
         HEARD "printf '\\002MHS\\005\\0\\0\\0\\4\\0\\0\\0\\0\\0\\0\\0a\\033[m' >&4", MC_EFORMAT,
         "hostile.h5: a?[m"},
    };
    hf_begin(HF_OLD);
    hf_end();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_title = cases[i].title;
        helper(cases[i].script);
        mc_h5_file *f = NULL;
        long before = resident_mib();
        CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), NULL), cases[i].status, cases[i].part);
        CHECK(!f && resident_mib() - before < GROWTH);
    }
    TITLE("a helper that hangs is stopped after the time it was given");
    helper("exec sleep 100");
    mc_h5_file *f = NULL;
    mc_h5_open_options opts = {.size = sizeof opts, .seconds = 0.2};
    double start = now();
    CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), &opts), MC_EIO,
                 "hostile.h5: the reading helper was stopped after 0.2 s");
    CHECK(now() - start < 2 && !f);
    TITLE("a helper that is not there or cannot run is named, with what to do");
    mci_h5_helper_for_tests("/nowhere/mascon_h5scan");
    CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), NULL), MC_EUNSUPPORTED,
                 "'/nowhere/mascon_h5scan' cannot be run: No such file or directory; build or "
                 "install mascon anew");
    chmod(in_folder("helper"), 0644);
    mci_h5_helper_for_tests(in_folder("helper"));
    CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), NULL), MC_EUNSUPPORTED,
                 "Permission denied");
    TITLE("a helper has nothing but the file and its socket, and no inherited signals");
    signal(SIGPIPE, SIG_IGN);
    int extra = open("/dev/null", O_RDONLY); /* without close-on-exec */
    char script[1024];
    snprintf(script, sizeof script,
             "ls /proc/self/fd >%s/fds; env >%s/env; "
             "grep SigIgn /proc/self/status >%s/signals",
             folder, folder, folder);
    helper(script);
    CHECK(mc_h5_open(&f, in_folder("hostile.h5"), NULL) != MC_OK);
    size_t n = 0;
    char *text = slurp(in_folder("fds"), &n);
    CHECK(text && n == 12 && memcmp(text, "0\n1\n2\n3\n4\n5\n", 12) == 0); /* 5: of ls itself */
    free(text);
    text = slurp(in_folder("env"), &n);
    text[n] = '\0';
    CHECK(!strstr(text, "HOME=") && !strstr(text, "USER="));
    free(text);
    text = slurp(in_folder("signals"), &n);
    if (text) text[n] = '\0';
    unsigned long long ignored = ~0ULL; /* bit n - 1: signal n */
    CHECK(text && sscanf(text, "SigIgn: %llx", &ignored) == 1 &&
          !(ignored & 1ULL << (SIGPIPE - 1)));
    free(text);
    close(extra);
    signal(SIGPIPE, SIG_DFL);
    mci_h5_helper_for_tests(NULL);
    unlink(in_folder("fds"));
    unlink(in_folder("env"));
    unlink(in_folder("signals"));
    unlink(in_folder("helper"));
}

/* The one child of this process; 0 when there is none. */
static int only_child(void) {
    char path[64];
    int found = 0;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *list = fopen(path, "r");
    if (list && fscanf(list, "%d", &found) != 1) found = 0;
    if (list) fclose(list);
    return found;
}

static void decoding_helpers(void) {
    hf_begin(HF_OLD);
    hf_set("/x", H5T_STD_I32BE, 64, H5P_DEFAULT);
    hf_set("/y", H5T_STD_I32BE, 64, H5P_DEFAULT);
    hf_set("/z", H5T_STD_I32BE, 64, H5P_DEFAULT);
    hf_end();
    mc_h5_file *f = NULL;
    int values[64];
    char script[1024];
    size_t n = 0;
    CHECK_OK(mc_h5_open(&f, in_folder("hostile.h5"), NULL));
    TITLE("a dataset whose helper died is not tried again, others are");
    snprintf(script, sizeof script,
             "echo started >>%s/starts; head -c 99 <&4 >/dev/null; while :; do printf "
             "'\\002MHS\\0\\0\\0\\0\\1\\0\\0\\0\\0\\0\\0\\0a' >&4; sleep 0.05; done",
             folder);
    helper(script);
    int pid = only_child();
    CHECK(pid > 0 && kill(pid, SIGKILL) == 0);
    for (int i = 0; i < 2; i++)
        CHECK_STATUS(mci_h5_fetch(f, 1, 0, 256, values), MC_EIO, "was killed (signal 9)");
    CHECK(access(in_folder("starts"), F_OK) != 0 && only_child() == 0);

    TITLE("a helper that sends a byte now and then is stopped in the time its answer is worth");
    mci_decode_seconds = 0.3;
    for (int i = 0; i < 2; i++) {
        double start = now();
        CHECK_STATUS(mci_h5_fetch(f, 2, 0, 256, values), MC_EIO,
                     "hostile.h5: the reading helper was stopped after 0.3");
        CHECK(i == 0 ? now() - start < 2 : now() - start < 0.1);
    }
    CHECK(only_child() == 0);
    mci_decode_seconds = 10;
    char *text = slurp(in_folder("starts"), &n);
    CHECK(text && n == strlen("started\n"));
    free(text);

    TITLE("after that the other datasets can still be read");
    mci_h5_helper_for_tests(NULL);
    CHECK_OK(mci_h5_fetch(f, 3, 0, 256, values));
    CHECK(values[63] == 63);
    mc_h5_close(f);
    unlink(in_folder("starts"));
    unlink(in_folder("helper"));
}

static void *open_often(void *failures) {
    for (int i = 0; i < 8; i++) {
        mc_h5_file *f = NULL;
        if (mc_h5_open(&f, in_folder("hostile.h5"), NULL) != MC_OK) *(int *)failures += 1;
        mc_h5_close(f);
    }
    return NULL;
}

static int open_descriptors(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n;
}

/* 1 when process `pid` is gone, or waits for somebody to take notice. */
static int is_gone(int pid) {
    char path[64], state = 'X';
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f) return 1;
    if (fscanf(f, "%*d %*s %c", &state) != 1) state = 'X';
    fclose(f);
    return state == 'Z' || state == 'X';
}

static void processes(void) {
    TITLE("files open in several threads at once");
    hf_begin(HF_OLD);
    hf_set("/x", H5T_STD_I32BE, 8, H5P_DEFAULT);
    hf_end();
    int before = open_descriptors(), failures[4] = {0};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, open_often, &failures[i]);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(failures[0] + failures[1] + failures[2] + failures[3] == 0);
    TITLE("no child and no descriptor is left behind");
    CHECK(open_descriptors() == before);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);

    TITLE("ignored children and closed standard descriptors do no harm");
    pid_t child = fork();
    if (child == 0) {
        signal(SIGCHLD, SIG_IGN);
        close(0);
        close(1);
        close(2);
        mc_h5_file *f = NULL;
        int value = 0, ok = mc_h5_open(&f, in_folder("hostile.h5"), NULL) == MC_OK &&
                            mci_h5_fetch(f, 1, 12, 4, &value) == MC_OK && value == 3;
        mc_h5_close(f);
        _exit(ok ? 0 : 1);
    }
    int state = 0;
    CHECK(waitpid(child, &state, 0) == child && WIFEXITED(state) && WEXITSTATUS(state) == 0);

    TITLE("without descriptors to spare it is an error");
    struct rlimit limit, few;
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int room = 1; room < 4; room++) {
        few = limit;
        few.rlim_cur = 3 + (rlim_t)room;
        setrlimit(RLIMIT_NOFILE, &few);
        mc_h5_file *f = NULL;
        CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), NULL), MC_EIO, "hostile.h5: ");
        mc_h5_close(f);
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    CHECK(open_descriptors() == before);

    TITLE("a killed parent leaves no helper");
    int ends[2], helper_pid = 0;
    CHECK(pipe(ends) == 0);
    child = fork();
    if (child == 0) {
        mc_h5_file *f = NULL;
        mc_h5_open(&f, in_folder("hostile.h5"), NULL); /* the helper stays: /x is decoded */
        int found = only_child();
        if (write(ends[1], &found, sizeof found) < 0) _exit(1);
        for (;;) pause();
    }
    CHECK(read(ends[0], &helper_pid, sizeof helper_pid) == sizeof helper_pid);
    CHECK(helper_pid > 0 && !is_gone(helper_pid));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    for (int i = 0; i < 200 && !is_gone(helper_pid); i++) usleep(10000);
    CHECK(is_gone(helper_pid));
    close(ends[0]);
    close(ends[1]);
}

#ifndef MASCON_SANITIZE /* which reserve terabytes, so that the helper does not limit its memory \
                         */
static void memory(void) {
    TITLE("a helper that needs more memory than it may have is an error");
    hf_begin(HF_NEW);
    hf_set("/x", H5T_STD_I32LE, 8, H5P_DEFAULT);
    for (int i = 0; i < 60000; i++) {
        char name[16];
        snprintf(name, sizeof name, "l%05d", i);
        H5Lcreate_hard(hf, "/x", hf, name, H5P_DEFAULT, H5P_DEFAULT);
    }
    hf_end();
    int64_t before = mci_helper_memory;
    mc_h5_file *f = NULL;
    mci_helper_memory = 4 << 20;
    CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), NULL), MC_ENOMEM,
                 "hostile.h5: out of memory while listing it");
    CHECK(!f);
    mci_helper_memory = before;
    TITLE("with the memory that helpers have it opens");
    CHECK_OK(mc_h5_open(&f, in_folder("hostile.h5"), NULL));
    CHECK(mc_h5_count(f) == 60002);
    mc_h5_close(f);
}
#endif

static void options(void) {
    TITLE("options of another size or out of range are refused");
    mc_h5_file *f = NULL;
    mc_h5_open_options opts = {.size = 4};
    CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), &opts), MC_EINVAL, "options of 4 bytes");
    opts = (mc_h5_open_options){.size = sizeof opts, .seconds = -1};
    CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), &opts), MC_EINVAL, "-1 seconds");
    opts = (mc_h5_open_options){.size = sizeof opts, .decode_limit = -1};
    CHECK_STATUS(mc_h5_open(&f, in_folder("hostile.h5"), &opts), MC_EINVAL, "decode_limit of -1");
    TITLE("reading ahead changes nothing that is seen");
    opts = (mc_h5_open_options){.size = sizeof opts, .prefetch = 1};
    CHECK_OK(mc_h5_open(&f, in_folder("hostile.h5"), &opts));
    CHECK(mc_h5_count(f) == 2);
    mc_h5_close(f);
}

int main(void) {
    if (!make_folder()) return 1;
    failing_helpers();
    decoding_helpers();
    processes();
    options();
#ifndef MASCON_SANITIZE
    memory();
#endif
    unlink(in_folder("hostile.h5"));
    remove_folder();
    return check_report();
}
