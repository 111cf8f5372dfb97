/* gemm_choices.cu: which of cuBLASLt's suggestions was the fastest for a problem, kept in a file
 *     ${XDG_CACHE_HOME:-~/.cache}/mascon/gemm-<GPU>-<library version>.txt
 * A line is MCU_GEMM_KEY numbers and the position in the library's list of suggestions, which is
 * the same list for the same GPU, library and problem. Host code only; one thread at a time.
 */
#include "gemm.cuh"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/stat.h>
#include <unistd.h>

namespace {

enum { MOST_CHOICES = 65536, LINE = 640, PATH = 1024 };

struct entry {
    int64_t key[MCU_GEMM_KEY];
    int choice;
};

struct book {
    char name[256];
    entry *entries;
    int count, room;
};

book open_book; /* of the name asked for last: one kind of GPU, as a rule */

/* The file's path, its folders made; 0 where there is no place for it. */
int path_of(const char *name, char *path, size_t size) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n;
    if (cache && cache[0] == '/')
        n = snprintf(path, size, "%s", cache);
    else if (home && home[0])
        n = snprintf(path, size, "%s/.cache", home);
    else
        return 0;
    if (n < 0 || (size_t)n + strlen(name) + 32 > size) return 0;
    mkdir(path, 0777);
    n += snprintf(path + n, size - (size_t)n, "/mascon");
    mkdir(path, 0777);
    n += snprintf(path + n, size - (size_t)n, "/gemm-");
    for (const char *c = name; *c; c++) {
        bool plain = (*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') ||
                     (*c >= 'A' && *c <= 'Z') || *c == '.';
        path[n++] = plain ? *c : '-';
    }
    snprintf(path + n, size - (size_t)n, ".txt");
    return 1;
}

entry *find(const int64_t *key) {
    for (int i = 0; i < open_book.count; i++)
        if (memcmp(open_book.entries[i].key, key, sizeof open_book.entries[i].key) == 0)
            return &open_book.entries[i];
    return NULL;
}

void put(const int64_t *key, int choice) {
    entry *e = find(key);
    if (!e) {
        if (open_book.count == MOST_CHOICES) return;
        if (open_book.count == open_book.room) {
            int room = open_book.room ? open_book.room * 2 : 64;
            void *more = realloc(open_book.entries, (size_t)room * sizeof(entry));
            if (!more) return;
            open_book.entries = (entry *)more;
            open_book.room = room;
        }
        e = &open_book.entries[open_book.count++];
        memcpy(e->key, key, sizeof e->key);
    }
    e->choice = choice;
}

/* Exactly the numbers of a line, or it is none of ours. */
int read_line(const char *line, int64_t *key, int *choice) {
    const char *at = line;
    for (int i = 0; i <= MCU_GEMM_KEY; i++) {
        char *end;
        long long x = strtoll(at, &end, 10);
        if (end == at || (*end != ' ' && *end != '\n')) return 0;
        at = end;
        if (i < MCU_GEMM_KEY)
            key[i] = x;
        else
            *choice = (int)x;
        if (i == MCU_GEMM_KEY && (x < 0 || x > 255)) return 0;
    }
    return *at == '\n';
}

void open_named(const char *name) {
    if (strcmp(open_book.name, name) == 0) return;
    snprintf(open_book.name, sizeof open_book.name, "%s", name);
    open_book.count = 0;
    char path[PATH], line[LINE];
    FILE *f = path_of(open_book.name, path, sizeof path) ? fopen(path, "r") : NULL;
    if (!f) return;
    int64_t key[MCU_GEMM_KEY];
    int choice = 0;
    while (fgets(line, sizeof line, f))
        if (read_line(line, key, &choice)) put(key, choice);
    fclose(f);
}

void save() {
    char path[PATH], draft[PATH + 32];
    if (!path_of(open_book.name, path, sizeof path)) return;
    snprintf(draft, sizeof draft, "%s.%ld", path, (long)getpid());
    FILE *f = fopen(draft, "w");
    if (!f) return;
    for (int i = 0; i < open_book.count; i++) {
        for (int j = 0; j < MCU_GEMM_KEY; j++)
            fprintf(f, "%lld ", (long long)open_book.entries[i].key[j]);
        fprintf(f, "%d\n", open_book.entries[i].choice);
    }
    int bad = ferror(f);
    if (fclose(f) != 0 || bad || rename(draft, path) != 0) unlink(draft);
}

}  // namespace

int mcu_gemm_choice(const char *name, const int64_t key[MCU_GEMM_KEY]) {
    open_named(name);
    const entry *e = find(key);
    return e ? e->choice : -1;
}

void mcu_gemm_choose(const char *name, const int64_t key[MCU_GEMM_KEY], int choice) {
    open_named(name);
    put(key, choice);
    save();
}
