/* gemm_dnnl.c: the provider over oneDNN, C API v2 and v3; the only file that includes dnnl.h.
 *
 * float32: dnnl_sgemm, which makes no primitive and runs on one thread inside a parallel region.
 * bfloat16: matmul primitives, made for one thread and with the scratchpad left to the caller, so
 * that our own threads run them side by side. They are kept in a table of buckets; a bucket that
 * is full gives up its longest unused entry that nobody holds.
 */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gemm.h"

enum { BUCKETS = 256, WAYS = 8 };

/* Where v2 and v3 differ: descriptors are structs in v2 and handles in v3. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t desc;
#else
typedef dnnl_memory_desc_t desc[1];
#endif

typedef struct product {
    mci_bf16_product room; /* first: callers hold a pointer to it */
    mci_bf16_shape shape;
    dnnl_primitive_t primitive;
    desc a, b, bias, c, scratch;
    uint64_t used; /* time of the last get */
    int holders, in_table;
} product;

static const mci_services *core;
static dnnl_engine_t engine;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static product *table[BUCKETS][WAYS];
static uint64_t clock_now;
static int64_t created;

static mc_status failed(const char *what, dnnl_status_t status) {
    return core->fail(status == dnnl_out_of_memory ? MC_ENOMEM : MC_EINTERNAL,
                      "gemm: oneDNN could not %s (status %d)", what, (int)status);
}

/* -- signals -------------------------------------------------------------------------------------
 * The compiled kernels (those of 2.6.3's dnnl_sgemm at least) keep values further below the stack
 * pointer than a signal handler's frame spares: a handler that ran meanwhile on the thread, that of
 * Ctrl-C or of a profiler, left a broken heap. So signals from outside wait for a product's end.
 */
static void hold_signals(sigset_t *was) {
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    sigset_t held;
    sigfillset(&held);
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) sigdelset(&held, own[i]);
    pthread_sigmask(SIG_SETMASK, &held, was);
}

static void release_signals(const sigset_t *was) {
    pthread_sigmask(SIG_SETMASK, was, NULL);
}

/* -- float32 ----------------------------------------------------------------------------------- */

static int64_t least(int64_t ld, int64_t columns) {
    return ld > columns ? ld : columns;
}

static mc_status f32(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                     const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                     int64_t ldc) {
    sigset_t signals;
    hold_signals(&signals);
    dnnl_status_t s = dnnl_sgemm(trans_a ? 'T' : 'N', trans_b ? 'T' : 'N', m, n, k, alpha, a,
                                 least(lda, trans_a ? m : k), b, least(ldb, trans_b ? k : n), beta,
                                 c, least(ldc, n));
    release_signals(&signals);
    return s == dnnl_success ? MC_OK : failed("multiply float32", s);
}

/* -- descriptors ------------------------------------------------------------------------------- */

#if DNNL_VERSION_MAJOR >= 3

static dnnl_status_t desc_new(desc *d, int64_t rows, int64_t columns, dnnl_data_type_t type,
                              int64_t s0, int64_t s1) {
    const dnnl_dims_t dims = {rows, columns}, strides = {s0, s1};
    return dnnl_memory_desc_create_with_strides(d, 2, dims, type, strides);
}
static void desc_free(desc *d) {
    if (*d) dnnl_memory_desc_destroy(*d);
}
static dnnl_status_t memory_new(dnnl_memory_t *memory, const desc *d, void *data) {
    return dnnl_memory_create(memory, *d, engine, data);
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops) {
    return dnnl_post_ops_append_sum(ops, 1.0F, 0, dnnl_data_type_undef);
}
static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *pd, product *p,
                                 dnnl_primitive_attr_t attr) {
    return dnnl_matmul_primitive_desc_create(
        pd, engine, p->a, p->b, p->shape.add == MCI_ADD_BIAS ? p->bias : NULL, p->c, attr);
}
static dnnl_status_t scratch_desc(product *p, const_dnnl_primitive_desc_t pd) {
    const_dnnl_memory_desc_t d = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    if (!d) return dnnl_success; /* it needs none */
    p->room.scratch = dnnl_memory_desc_get_size(d);
    return dnnl_memory_desc_clone(&p->scratch, d);
}

#else

static dnnl_status_t desc_new(desc *d, int64_t rows, int64_t columns, dnnl_data_type_t type,
                              int64_t s0, int64_t s1) {
    const dnnl_dims_t dims = {rows, columns}, strides = {s0, s1};
    return dnnl_memory_desc_init_by_strides(*d, 2, dims, type, strides);
}
static void desc_free(desc *d) {
    (void)d;
}
static dnnl_status_t memory_new(dnnl_memory_t *memory, const desc *d, void *data) {
    return dnnl_memory_create(memory, *d, engine, data);
}
static dnnl_status_t append_sum(dnnl_post_ops_t ops) {
    return dnnl_post_ops_append_sum(ops, 1.0F);
}
static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *pd, product *p,
                                 dnnl_primitive_attr_t attr) {
    dnnl_matmul_desc_t op;
    dnnl_status_t s =
        dnnl_matmul_desc_init(&op, p->a, p->b, p->shape.add == MCI_ADD_BIAS ? p->bias : NULL, p->c);
    return s ? s : dnnl_primitive_desc_create(pd, &op, attr, engine, NULL);
}
static dnnl_status_t scratch_desc(product *p, const_dnnl_primitive_desc_t pd) {
    const dnnl_memory_desc_t *d = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    if (!d) return dnnl_success;
    p->room.scratch = dnnl_memory_desc_get_size(d);
    p->scratch[0] = *d;
    return dnnl_success;
}

#endif

/* -- bfloat16 ---------------------------------------------------------------------------------- */

static void product_free(product *p) {
    if (!p) return;
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    desc_free(&p->a);
    desc_free(&p->b);
    desc_free(&p->bias);
    desc_free(&p->c);
    desc_free(&p->scratch);
    free(p);
}

/* oneDNN plans a primitive for the threads that OpenMP would give at this point: one. */
static int one_thread(void) {
    int threads = omp_get_max_threads();
    if (threads > 1) omp_set_num_threads(1);
    return threads;
}
static void many_threads(int threads) {
    if (threads > 1) omp_set_num_threads(threads);
}

static dnnl_status_t build(product *p) {
    const mci_bf16_shape *h = &p->shape;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t s =
        desc_new(&p->a, h->m, h->k, dnnl_bf16, h->trans_a ? 1 : h->lda, h->trans_a ? h->lda : 1);
    if (!s)
        s = desc_new(&p->b, h->k, h->n, dnnl_bf16, h->trans_b ? 1 : h->ldb,
                     h->trans_b ? h->ldb : 1);
    if (!s) s = desc_new(&p->c, h->m, h->n, h->c_f32 ? dnnl_f32 : dnnl_bf16, h->ldc, 1);
    if (!s && h->add == MCI_ADD_BIAS) s = desc_new(&p->bias, 1, h->n, dnnl_bf16, h->n, 1);
    if (!s) s = dnnl_primitive_attr_create(&attr);
    if (!s) s = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (!s && h->add == MCI_ADD_C) {
        s = dnnl_post_ops_create(&ops);
        if (!s) s = append_sum(ops);
        if (!s) s = dnnl_primitive_attr_set_post_ops(attr, ops);
    }
    if (!s) s = matmul_desc(&pd, p, attr);
    if (!s) s = scratch_desc(p, pd);
    if (!s) s = dnnl_primitive_create(&p->primitive, pd);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (ops) dnnl_post_ops_destroy(ops);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return s;
}

static uint64_t hash(const mci_bf16_shape *h) {
    const int64_t parts[] = {h->m,   h->n,       h->k,       h->lda,   h->ldb,
                             h->ldc, h->trans_a, h->trans_b, h->c_f32, h->add};
    uint64_t u = 0;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        u = (u ^ (uint64_t)parts[i]) * 0x9E3779B97F4A7C15U;
        u ^= u >> 32;
    }
    return u;
}

static int same_shape(const mci_bf16_shape *a, const mci_bf16_shape *b) {
    return a->m == b->m && a->n == b->n && a->k == b->k && a->lda == b->lda && a->ldb == b->ldb &&
           a->ldc == b->ldc && a->trans_a == b->trans_a && a->trans_b == b->trans_b &&
           a->c_f32 == b->c_f32 && a->add == b->add;
}

/* Puts p where the bucket is free or least recently used; leaves it out when all are held. */
static void keep(product **bucket, product *p) {
    int best = -1;
    for (int i = 0; i < WAYS; i++) {
        if (!bucket[i]) {
            best = i;
            break;
        }
        if (bucket[i]->holders == 0 && (best < 0 || bucket[i]->used < bucket[best]->used)) best = i;
    }
    if (best < 0) return;
    product_free(bucket[best]);
    bucket[best] = p;
    p->in_table = 1;
}

static mc_status bf16_get(mci_bf16_product **out, const mci_bf16_shape *shape) {
    product **bucket = table[hash(shape) % BUCKETS], *p = NULL;
    dnnl_status_t s = dnnl_success;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < WAYS && !p; i++)
        if (bucket[i] && same_shape(&bucket[i]->shape, shape)) p = bucket[i];
    if (!p) {
        p = calloc(1, sizeof *p);
        if (p) {
            p->shape = *shape;
            int threads = one_thread();
            s = build(p);
            many_threads(threads);
            created++;
        }
        if (p && s) {
            product_free(p);
            p = NULL;
        } else if (p) {
            keep(bucket, p);
        }
    }
    if (p) {
        p->holders++;
        p->used = ++clock_now;
    }
    pthread_mutex_unlock(&lock);
    *out = p ? &p->room : NULL;
    if (p) return MC_OK;
    return failed("prepare a bfloat16 product", s ? s : dnnl_out_of_memory);
}

static void bf16_put(mci_bf16_product *room) {
    product *p = (product *)room;
    pthread_mutex_lock(&lock);
    int gone = --p->holders == 0 && !p->in_table;
    pthread_mutex_unlock(&lock);
    if (gone) product_free(p);
}

static mc_status bf16_run(const mci_bf16_product *room, const void *a, const void *b,
                          const void *bias, void *c, void *scratch) {
    const product *p = (const product *)room;
    /* Small objects without state of their own, so each call makes its own: below a microsecond. */
    const struct {
        int arg;
        const desc *d;
        const void *data;
    } operands[] = {{DNNL_ARG_SRC, &p->a, a},
                    {DNNL_ARG_WEIGHTS, &p->b, b},
                    {DNNL_ARG_DST, &p->c, c},
                    {DNNL_ARG_BIAS, &p->bias, p->shape.add == MCI_ADD_BIAS ? bias : NULL},
                    {DNNL_ARG_SCRATCHPAD, &p->scratch, p->room.scratch ? scratch : NULL}};
    enum { OPERANDS = sizeof operands / sizeof operands[0] };
    dnnl_exec_arg_t args[OPERANDS];
    dnnl_stream_t stream = NULL;
    int n = 0;
    dnnl_status_t s = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    for (int i = 0; i < OPERANDS && !s; i++) {
        if (!operands[i].data) continue;
        args[n].arg = operands[i].arg;
        s = memory_new(&args[n].memory, operands[i].d, (void *)(uintptr_t)operands[i].data);
        n += s == dnnl_success;
    }
    int threads = one_thread();
    sigset_t signals;
    hold_signals(&signals);
    if (!s) s = dnnl_primitive_execute(p->primitive, stream, n, args);
    if (!s) s = dnnl_stream_wait(stream);
    release_signals(&signals);
    many_threads(threads);
    for (int i = 0; i < n; i++) dnnl_memory_destroy(args[i].memory);
    if (stream) dnnl_stream_destroy(stream);
    return s == dnnl_success ? MC_OK : failed("multiply bfloat16", s);
}

static int64_t created_so_far(void) {
    pthread_mutex_lock(&lock);
    int64_t n = created;
    pthread_mutex_unlock(&lock);
    return n;
}

/* oneDNN emulates bfloat16 where the CPU has no instructions for it; float32 is faster then. */
static int native_bf16(void) {
    int isa = (int)dnnl_get_effective_cpu_isa();
    return (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
}

__attribute__((visibility("default"))) const mci_gemm_table *mascon_gemm_dnnl(
    const mci_services *services);
const mci_gemm_table *mascon_gemm_dnnl(const mci_services *services) {
    static char name[48];
    static mci_gemm_table self = {.abi = MCI_GEMM_ABI,
                                  .name = name,
                                  .f32 = f32,
                                  .bf16_get = bf16_get,
                                  .bf16_put = bf16_put,
                                  .bf16_run = bf16_run,
                                  .created = created_so_far};
    const dnnl_version_t *v = dnnl_version();
    if (services->abi != MCI_BACKEND_ABI || v->major != DNNL_VERSION_MAJOR) return NULL;
    core = services;
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) return NULL;
    snprintf(name, sizeof name, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
    self.bf16 = native_bf16();
    return &self;
}
