/* grouped.c: the passes of a grouped linear layer beside one dense product of equal work.
 *
 *     bench_grouped [repetitions] [cpu]
 *
 * One line per case: GFLOP/s of forward, dgrad, wgrad and of the three together, each with its
 * ratio to the peer: oneDNN's matmul primitive made for the whole dense shape with all threads (for
 * float32 the better of it and dnnl_sgemm). Ours and the peer alternate and each keeps its best
 * time, so that a busy machine hurts both alike. With `cpu` the clock is the process's CPU time,
 * and rates are per core: for machines that other programs use.
 */
#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mascon.h"

enum { MOST_GROUPS = 128, PASSES = 3 };

static void must(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "bench_grouped: %s: %s\n", what, mc_last_error());
    exit(1);
}
#define MUST(call) must((call) == 0, #call)

static int by_cpu;

/* seconds */
static double now(void) {
    struct timespec t;
    clock_gettime(by_cpu ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* -- the peer ---------------------------------------------------------------------------------- */

static dnnl_engine_t engine;
static dnnl_stream_t stream;

typedef struct dense {
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[3];
    int is_float;
    char trans_a, trans_b;
    int64_t m, n, k, lda, ldb;
    void *a, *b, *c;
} dense;

static dnnl_memory_t memory(const int64_t *shape, dnnl_data_type_t type, const int64_t *step,
                            void *data, dnnl_memory_desc_t *d) {
    dnnl_memory_t m = NULL;
    dnnl_dims_t dims = {shape[0], shape[1]}, strides = {step[0], step[1]};
#if DNNL_VERSION_MAJOR >= 3
    MUST(dnnl_memory_desc_create_with_strides(d, 2, dims, type, strides));
    MUST(dnnl_memory_create(&m, *d, engine, data));
#else
    MUST(dnnl_memory_desc_init_by_strides(d, 2, dims, type, strides));
    MUST(dnnl_memory_create(&m, d, engine, data));
#endif
    return m;
}

/* c [m, n] = op(a) op(b) */
static dense make_dense(int dtype, int ta, int tb, int64_t m, int64_t n, int64_t k, void *a,
                        void *b, void *c) {
    dense d = {
        .is_float = dtype == MC_FLOAT32, .trans_a = ta ? 'T' : 'N', .trans_b = tb ? 'T' : 'N'};
    dnnl_data_type_t type = d.is_float ? dnnl_f32 : dnnl_bf16;
    dnnl_memory_desc_t da, db, dc;
    dnnl_primitive_desc_t pd = NULL;
    d.m = m, d.n = n, d.k = k, d.a = a, d.b = b, d.c = c;
    d.lda = ta ? m : k, d.ldb = tb ? k : n;
    d.args[0] = (dnnl_exec_arg_t){
        DNNL_ARG_SRC, memory((int64_t[]){m, k}, type, (int64_t[]){ta ? 1 : k, ta ? m : 1}, a, &da)};
    d.args[1] = (dnnl_exec_arg_t){
        DNNL_ARG_WEIGHTS,
        memory((int64_t[]){k, n}, type, (int64_t[]){tb ? 1 : n, tb ? k : 1}, b, &db)};
    d.args[2] =
        (dnnl_exec_arg_t){DNNL_ARG_DST, memory((int64_t[]){m, n}, type, (int64_t[]){n, 1}, c, &dc)};
#if DNNL_VERSION_MAJOR >= 3
    MUST(dnnl_matmul_primitive_desc_create(&pd, engine, da, db, NULL, dc, NULL));
#else
    dnnl_matmul_desc_t op;
    MUST(dnnl_matmul_desc_init(&op, &da, &db, NULL, &dc));
    MUST(dnnl_primitive_desc_create(&pd, &op, NULL, engine, NULL));
#endif
    MUST(dnnl_primitive_create(&d.primitive, pd));
    return d;
}

static double time_dense(const dense *d) {
    double start = now();
    MUST(dnnl_primitive_execute(d->primitive, stream, 3, d->args));
    MUST(dnnl_stream_wait(stream));
    double time = now() - start;
    if (!d->is_float) return time;
    start = now();
    MUST(dnnl_sgemm(d->trans_a, d->trans_b, d->m, d->n, d->k, 1, d->a, d->lda, d->b, d->ldb, 0,
                    d->c, d->n));
    double other = now() - start;
    return other < time ? other : time;
}

/* -- ours -------------------------------------------------------------------------------------- */

typedef struct layer {
    mc_tensor *x, *w, *dy, *splits, *y, *dx, *dw;
} layer;

static mc_tensor *filled(int dtype, int ndim, const int64_t *shape) {
    static mc_tensor *state;
    static const int64_t seed[2] = {1, 0};
    mc_tensor *t = mc_tensor_new();
    if (!state) {
        state = mc_tensor_new();
        MUST(mc_empty(state, MC_INT64, 0, 1, (int64_t[]){2}));
        MUST(mc_write(state, seed, sizeof seed));
    }
    MUST(mc_empty(t, dtype, 0, ndim, shape));
    MUST(mc_random_uniform(t, state, -1, 1));
    return t;
}

static double time_pass(const layer *l, int pass) {
    double start = now();
    if (pass == 0) MUST(mc_grouped_linear(l->y, l->x, l->w, NULL, l->splits));
    if (pass == 1) MUST(mc_grouped_linear_dgrad(l->dx, l->dy, l->w, l->splits));
    if (pass == 2) MUST(mc_grouped_linear_wgrad(l->dw, l->dy, l->x, l->splits, 0));
    return now() - start;
}

typedef struct work {
    const char *splits; /* even, zipf, one */
    int dtype;
    int64_t groups, rows, k, n;
} work;

static void fill_splits(const work *w, int64_t *splits) {
    double total = 0, given = 0;
    int64_t used = 0;
    for (int64_t g = 0; g < w->groups; g++) total += 1 / (double)(g + 1);
    for (int64_t g = 0; g < w->groups; g++) {
        given += w->splits[0] == 'z'   ? (double)w->rows / total / (double)(g + 1)
                 : w->splits[0] == 'e' ? (double)w->rows / (double)w->groups
                                       : (g == 1 ? (double)w->rows : 0);
        splits[g] = (int64_t)(given + 0.5) - used;
        used += splits[g];
    }
    /* the large ones are not first in real life */
    for (int64_t g = 0; g + 2 < w->groups; g += 3) {
        int64_t s = splits[g];
        splits[g] = splits[g + 2];
        splits[g + 2] = s;
    }
}

static void measure(const work *w, int repetitions) {
    int64_t splits[MOST_GROUPS];
    fill_splits(w, splits);
    layer l = {.x = filled(w->dtype, 2, (int64_t[]){w->rows, w->k}),
               .w = filled(w->dtype, 3, (int64_t[]){w->groups, w->n, w->k}),
               .dy = filled(w->dtype, 2, (int64_t[]){w->rows, w->n}),
               .y = filled(w->dtype, 2, (int64_t[]){w->rows, w->n}),
               .dx = filled(w->dtype, 2, (int64_t[]){w->rows, w->k}),
               .dw = filled(w->dtype, 3, (int64_t[]){w->groups, w->n, w->k}),
               .splits = mc_tensor_new()};
    MUST(mc_empty(l.splits, MC_INT64, 0, 1, &w->groups));
    MUST(mc_write(l.splits, splits, w->groups * 8));
    void *x = mc_tensor_data(l.x), *dy = mc_tensor_data(l.dy), *weight = mc_tensor_data(l.w);
    dense peers[PASSES] = {
        make_dense(w->dtype, 0, 1, w->rows, w->n, w->k, x, weight, mc_tensor_data(l.y)),
        make_dense(w->dtype, 0, 0, w->rows, w->k, w->n, dy, weight, mc_tensor_data(l.dx)),
        make_dense(w->dtype, 1, 0, w->n, w->k, w->rows, dy, x, mc_tensor_data(l.dw))};
    double ours[PASSES], theirs[PASSES], all_ours = 0, all_theirs = 0;
    double flops = 2e-9 * (double)w->rows * (double)w->n * (double)w->k;
    char name[64];
    snprintf(name, sizeof name, "%s %s %lldx%lld %lld->%lld", mc_dtype_name(w->dtype), w->splits,
             (long long)w->groups, (long long)(w->rows / w->groups), (long long)w->k,
             (long long)w->n);
    printf("%-34s", name);
    for (int pass = 0; pass < PASSES; pass++) {
        ours[pass] = theirs[pass] = INFINITY;
        for (int i = 0; i < repetitions; i++) {
            theirs[pass] = fmin(theirs[pass], time_dense(&peers[pass]));
            ours[pass] = fmin(ours[pass], time_pass(&l, pass));
        }
        all_ours += ours[pass];
        all_theirs += theirs[pass];
        printf("  %s %4.0f (%.2f)",
               pass == 0   ? "fwd"
               : pass == 1 ? "dgrad"
                           : "wgrad",
               flops / ours[pass], theirs[pass] / ours[pass]);
    }
    printf("  all %4.0f (%.2f)\n", 3 * flops / all_ours, all_theirs / all_ours);
    fflush(stdout);
    mc_tensor *used[] = {l.x, l.w, l.dy, l.y, l.dx, l.dw, l.splits};
    for (size_t i = 0; i < sizeof used / sizeof used[0]; i++) mc_tensor_free(used[i]);
    for (int pass = 0; pass < PASSES; pass++) {
        for (int i = 0; i < 3; i++) dnnl_memory_destroy(peers[pass].args[i].memory);
        dnnl_primitive_destroy(peers[pass].primitive);
    }
}

int main(int argc, char **argv) {
    static const work cases[] = {
        {"even", MC_FLOAT32, 8, 1024, 512, 2048},  {"zipf", MC_FLOAT32, 8, 1024, 512, 2048},
        {"one", MC_FLOAT32, 8, 1024, 512, 2048},   {"even", MC_FLOAT32, 8, 4096, 128, 256},
        {"zipf", MC_FLOAT32, 8, 4096, 128, 256},   {"even", MC_FLOAT32, 8, 4096, 128, 128},
        {"zipf", MC_FLOAT32, 8, 4096, 128, 128},   {"zipf", MC_FLOAT32, 64, 2048, 256, 512},
        {"even", MC_BFLOAT16, 8, 1024, 512, 2048}, {"zipf", MC_BFLOAT16, 8, 1024, 512, 2048},
        {"one", MC_BFLOAT16, 8, 1024, 512, 2048},  {"even", MC_BFLOAT16, 8, 4096, 128, 256},
        {"zipf", MC_BFLOAT16, 8, 4096, 128, 256},  {"zipf", MC_BFLOAT16, 64, 2048, 256, 512}};
    int repetitions = argc > 1 ? atoi(argv[1]) : 12;
    MUST(dnnl_engine_create(&engine, dnnl_cpu, 0));
    MUST(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    by_cpu = argc > 2 && strcmp(argv[2], "cpu") == 0;
    printf("%s, %d threads, %s; GFLOP/s%s (ratio to one dense product)\n", mc_cpu_info("gemm"),
           mc_get_num_threads(), mc_cpu_info("isa"), by_cpu ? " per core, CPU time" : "");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        measure(&cases[i], repetitions < 1 ? 1 : repetitions);
    return 0;
}
