/* gemm_lt.cu: dense products by cuBLASLt.
 *
 * The library is column-major, so it is asked for d^T [n, m] = b^T a^T: its A is our b, its B our
 * a, and its leading dimensions are ours. Everything about a problem that is not a pointer's value
 * makes its key; the first call of a key fills a plan (descriptors and algorithm, without
 * allocation), later ones look it up, set the bias pointer and launch.
 *
 * The algorithm is the library's first suggestion that does not split k, so that a result depends
 * on the problem alone. With MASCON_GEMM_TUNE=1 the first suggestions are timed once and the choice
 * is kept (gemm_choices.cu). Alignments above 16 bytes are not told apart: no kernel asks for more,
 * and where an allocator happens to put a tensor must not change its product.
 *
 * A new key is legal while a graph is recorded: suggestions launch nothing, and what is allocated
 * then (the workspace of a stream) is allocated in relaxed mode. Should the library refuse to
 * suggest at that time, that product takes the plain kernel.
 */
#include "gemm.cuh"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <cublasLt.h>

#include "device.cuh"

namespace {

enum { STREAMS = MCU_SIDE_STREAMS + 1, ALIGNED = 16, SUGGESTIONS = 8, MORE_SUGGESTIONS = 64 };
/* cuBLAS' own recommendation for Hopper. */
const size_t WORKSPACE = (size_t)32 << 20;
/* Plans kept; beyond them all are dropped: uneven groups make a key for every number of rows. */
enum { MOST_PLANS = 8192, TABLE = 2 * MOST_PLANS };

struct plan {
    int64_t key[MCU_GEMM_KEY];
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t a, b, d; /* the library's A is our b */
    cublasLtMatmulAlgo_t algo;
    int usable;  /* 0: the library has no such product */
    int finish;  /* bias and gelu follow in a kernel of ours */
    int untimed; /* made while it could not be timed */
};

struct library {
    cublasLtHandle_t handle;
    void *workspace[STREAMS];
    int plans;
    plan *table[TABLE]; /* open addressing */
    char name[320];     /* of the GPU and the library */
};

library *libraries[MCU_DEVICES];

mc_status failed(const char *op, cublasStatus_t status) {
    return mcu_fail(MC_EDEVICE, "%s: cuBLASLt: %s", op, cublasLtGetStatusString(status));
}

/* For the time of its life this thread may allocate although a graph is recorded. */
struct relaxed {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
    ~relaxed() { cudaThreadExchangeStreamCaptureMode(&mode); }
};

library *library_of(const char *op, mcu_device *device, int ordinal) {
    if (libraries[ordinal]) return libraries[ordinal];
    library *l = (library *)calloc(1, sizeof *l);
    if (!l) {
        mcu_fail(MC_ENOMEM, "%s: no memory for the plans of products", op);
        return NULL;
    }
    relaxed scope;
    cublasStatus_t status = cublasLtCreate(&l->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        free(l);
        failed(op, status);
        return NULL;
    }
    snprintf(l->name, sizeof l->name, "%s-%s", device->name, mcu_blas_version());
    return libraries[ordinal] = l;
}

mc_status workspace_of(const char *op, library *l, int stream, void **out) {
    mc_status status = MC_OK;
    if (!l->workspace[stream]) {
        relaxed scope;
        status = mcu_check(op, cudaMalloc(&l->workspace[stream], WORKSPACE));
    }
    *out = l->workspace[stream];
    return status;
}

/* -- keys
 * ------------------------------------------------------------------------------------------- */

int alignment(const void *p) {
    uintptr_t x = (uintptr_t)p | ALIGNED;
    return (int)(x & (~x + 1));
}

void key_of(const mcu_gemm *g, int64_t *key) {
    int64_t i = 0;
    key[i++] = g->m;
    key[i++] = g->n;
    key[i++] = g->k;
    key[i++] = g->batch;
    key[i++] = g->lda;
    key[i++] = g->ldb;
    key[i++] = g->ldd;
    key[i++] = g->batch > 1 ? g->stride_a : 0;
    key[i++] = g->batch > 1 ? g->stride_b : 0;
    key[i++] = g->batch > 1 ? g->stride_d : 0;
    key[i++] = g->dtype * 256 + g->d_dtype;
    key[i++] = (g->transpose_a != 0) + 2 * (g->transpose_b != 0);
    key[i++] =
        (g->accumulate != 0) + 2 * (g->gelu != 0) + 4 * (g->bias != NULL) + 8 * (g->tf32 != 0);
    key[i++] = alignment(g->a);
    key[i++] = alignment(g->b);
    key[i++] = alignment(g->d);
    key[i++] = g->bias ? alignment(g->bias) : 0;
}

size_t hash_of(const int64_t *key) { /* multiply and fold */
    uint64_t h = 0;
    for (int i = 0; i < MCU_GEMM_KEY; i++) {
        h = (h ^ (uint64_t)key[i]) * UINT64_C(0x9E3779B97F4A7C15);
        h ^= h >> 29;
    }
    return (size_t)h;
}

/* The key's plan, or the empty place for one. */
plan **place_of(library *l, const int64_t *key) {
    size_t i = hash_of(key) % TABLE;
    while (l->table[i] && memcmp(l->table[i]->key, key, sizeof l->table[i]->key) != 0)
        i = (i + 1) % TABLE;
    return &l->table[i];
}

void drop_plans(library *l) {
    for (int i = 0; i < TABLE; i++) {
        free(l->table[i]);
        l->table[i] = NULL;
    }
    l->plans = 0;
}

/* -- plans
 * ------------------------------------------------------------------------------------------ */

cudaDataType_t type_of(int dtype) {
    return dtype == MC_FLOAT64   ? CUDA_R_64F
           : dtype == MC_FLOAT32 ? CUDA_R_32F
           : dtype == MC_FLOAT16 ? CUDA_R_16F
                                 : CUDA_R_16BF;
}

template <typename T>
cublasStatus_t set(plan *p, cublasLtMatmulDescAttributes_t what, T value) {
    return cublasLtMatmulDescSetAttribute(&p->op, what, &value, sizeof value);
}

/* A stored row-major matrix of rows x columns is the library's columns x rows. */
cublasStatus_t layout(cublasLtMatrixLayoutOpaque_t *to, int dtype, int64_t rows, int64_t columns,
                      int64_t ld, int64_t batch, int64_t stride) {
    cublasStatus_t s =
        cublasLtMatrixLayoutInit(to, type_of(dtype), (uint64_t)columns, (uint64_t)rows, ld);
    int32_t count = (int32_t)batch;
    if (s == CUBLAS_STATUS_SUCCESS && batch > 1)
        s = cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                             sizeof count);
    if (s == CUBLAS_STATUS_SUCCESS && batch > 1)
        s = cublasLtMatrixLayoutSetAttribute(to, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                             &stride, sizeof stride);
    return s;
}

cublasStatus_t describe(plan *p, const mcu_gemm *g) {
    cublasComputeType_t compute = g->dtype == MC_FLOAT64              ? CUBLAS_COMPUTE_64F
                                  : g->dtype == MC_FLOAT32 && g->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                      : CUBLAS_COMPUTE_32F;
    int32_t flip_a = g->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    int32_t flip_b = g->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasStatus_t s =
        cublasLtMatmulDescInit(&p->op, compute, g->dtype == MC_FLOAT64 ? CUDA_R_64F : CUDA_R_32F);
    if (s == CUBLAS_STATUS_SUCCESS) s = set(p, CUBLASLT_MATMUL_DESC_TRANSA, flip_b);
    if (s == CUBLAS_STATUS_SUCCESS) s = set(p, CUBLASLT_MATMUL_DESC_TRANSB, flip_a);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = layout(&p->a, g->dtype, g->transpose_b ? g->n : g->k, g->transpose_b ? g->k : g->n,
                   g->ldb, g->batch, g->stride_b);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = layout(&p->b, g->dtype, g->transpose_a ? g->k : g->m, g->transpose_a ? g->m : g->k,
                   g->lda, g->batch, g->stride_a);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = layout(&p->d, g->d_dtype, g->m, g->n, g->ldd, g->batch, g->stride_d);
    return s;
}

/* Before asking for suggestions too: they look at the bias pointer's alignment. */
cublasStatus_t set_epilogue(plan *p, const mcu_gemm *g, int bias, int gelu) {
    uint32_t epilogue = bias && gelu ? CUBLASLT_EPILOGUE_GELU_BIAS
                        : bias       ? CUBLASLT_EPILOGUE_BIAS
                        : gelu       ? CUBLASLT_EPILOGUE_GELU
                                     : CUBLASLT_EPILOGUE_DEFAULT;
    cublasStatus_t s = set(p, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (s != CUBLAS_STATUS_SUCCESS || !bias) return s;
    s = set(p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (int32_t)type_of(g->d_dtype));
    return s == CUBLAS_STATUS_SUCCESS ? set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g->bias) : s;
}

/* 1 when each element of d is one sum in one order. */
int whole_sums(const cublasLtMatmulAlgo_t *algo) {
    int32_t splits = 1;
    uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    size_t written;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits,
                                             sizeof splits, &written) != CUBLAS_STATUS_SUCCESS)
        splits = 1; /* an algorithm that has no such choice */
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                             sizeof scheme, &written) != CUBLAS_STATUS_SUCCESS)
        scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    return splits <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* Up to SUGGESTIONS algorithms with whole sums, the library's best first. */
int suggestions(library *l, plan *p, const mcu_gemm *g, cublasLtMatmulAlgo_t *out) {
    cublasLtMatmulPreferenceOpaque_t preference;
    static cublasLtMatmulHeuristicResult_t list[MORE_SUGGESTIONS];
    uint32_t of_a = (uint32_t)alignment(g->b), of_b = (uint32_t)alignment(g->a);
    uint32_t of_d = (uint32_t)alignment(g->d);
    const struct {
        cublasLtMatmulPreferenceAttributes_t what;
        const void *value;
        size_t size;
    } wishes[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &of_a, sizeof of_a},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &of_b, sizeof of_b},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &of_d, sizeof of_d},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &of_d, sizeof of_d}};
    if (cublasLtMatmulPreferenceInit(&preference) != CUBLAS_STATUS_SUCCESS) return 0;
    for (const auto &wish : wishes)
        if (cublasLtMatmulPreferenceSetAttribute(&preference, wish.what, wish.value, wish.size) !=
            CUBLAS_STATUS_SUCCESS)
            return 0;
    int count = 0;
    /* If nothing is left without schemes: chosen from a longer list with all of them. */
    for (int many = 0; many < 2 && count == 0; many++) {
        uint32_t schemes = many ? CUBLASLT_REDUCTION_SCHEME_MASK : CUBLASLT_REDUCTION_SCHEME_NONE;
        int found = 0;
        if (cublasLtMatmulPreferenceSetAttribute(&preference,
                                                 CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                 &schemes, sizeof schemes) != CUBLAS_STATUS_SUCCESS)
            continue;
        if (cublasLtMatmulAlgoGetHeuristic(l->handle, &p->op, &p->a, &p->b, &p->d, &p->d,
                                           &preference, many ? MORE_SUGGESTIONS : SUGGESTIONS, list,
                                           &found) != CUBLAS_STATUS_SUCCESS)
            continue;
        for (int i = 0; i < found && count < SUGGESTIONS; i++)
            if (list[i].state == CUBLAS_STATUS_SUCCESS && list[i].workspaceSize <= WORKSPACE &&
                whole_sums(&list[i].algo))
                out[count++] = list[i].algo;
    }
    return count;
}

cublasStatus_t start(library *l, plan *p, const mcu_gemm *g, const cublasLtMatmulAlgo_t *algo,
                     void *d, void *workspace, cudaStream_t stream) {
    const float one32 = 1, beta32 = g->accumulate ? 1.0F : 0.0F;
    const double one64 = 1, beta64 = g->accumulate ? 1.0 : 0.0;
    const void *one = g->dtype == MC_FLOAT64 ? (const void *)&one64 : &one32;
    const void *beta = g->dtype == MC_FLOAT64 ? (const void *)&beta64 : &beta32;
    return cublasLtMatmul(l->handle, &p->op, one, g->b, &p->a, g->a, &p->b, beta, d, &p->d, d,
                          &p->d, algo, workspace, WORKSPACE, stream);
}

/* -- timing
 * ----------------------------------------------------------------------------------------- */

int tuning() {
    static int on = -1;
    if (on < 0) {
        const char *text = getenv("MASCON_GEMM_TUNE");
        on = text && text[0] == '1';
    }
    return on;
}

/* The fastest of the suggestions, by its position; d is written elsewhere meanwhile. -1: no memory
 * for that, or an error. Waits for the device. */
int fastest(library *l, plan *p, const mcu_gemm *g, const cublasLtMatmulAlgo_t *algos, int count,
            void *workspace, cudaStream_t stream) {
    enum { ROUNDS = 3, REPEATS = 5 };
    int64_t elements = (g->batch - 1) * g->stride_d + (g->m - 1) * g->ldd + g->n;
    size_t bytes = (size_t)elements * (size_t)(g->d_dtype == MC_FLOAT64   ? 8
                                               : g->d_dtype == MC_FLOAT32 ? 4
                                                                          : 2);
    void *d = NULL;
    cudaEvent_t begin = NULL, end = NULL;
    int best = -1;
    float least = 0;
    if (cudaMalloc(&d, bytes) == cudaSuccess && cudaEventCreate(&begin) == cudaSuccess &&
        cudaEventCreate(&end) == cudaSuccess) {
        cudaMemsetAsync(d, 0, bytes, stream);
        for (int round = 0; round < ROUNDS; round++) /* the clock rises: each gets a cool start */
            for (int i = 0; i < count; i++) {
                cublasStatus_t s = start(l, p, g, &algos[i], d, workspace, stream);
                cudaEventRecord(begin, stream);
                for (int r = 0; r < REPEATS && s == CUBLAS_STATUS_SUCCESS; r++)
                    s = start(l, p, g, &algos[i], d, workspace, stream);
                cudaEventRecord(end, stream);
                float time = 0;
                if (cudaEventSynchronize(end) != cudaSuccess || s != CUBLAS_STATUS_SUCCESS ||
                    cudaEventElapsedTime(&time, begin, end) != cudaSuccess)
                    continue;
                if (best < 0 || time < least) {
                    best = i;
                    least = time;
                }
            }
    }
    if (end) cudaEventDestroy(end);
    if (begin) cudaEventDestroy(begin);
    cudaFree(d);
    cudaGetLastError();
    return best;
}

/* Chooses p's algorithm; p->usable stays 0 when the library has none for this epilogue. */
void choose(library *l, plan *p, const mcu_gemm *g, int recording, void *workspace,
            cudaStream_t stream) {
    cublasLtMatmulAlgo_t algos[SUGGESTIONS];
    int count = suggestions(l, p, g, algos), choice = 0;
    if (count == 0) return;
    if (tuning()) {
        choice = mcu_gemm_choice(l->name, p->key);
        p->untimed = choice < 0 && recording;
        if (choice < 0 && !recording) {
            choice = fastest(l, p, g, algos, count, workspace, stream);
            if (choice >= 0) mcu_gemm_choose(l->name, p->key, choice);
        }
        if (choice < 0 || choice >= count) choice = 0;
    }
    p->algo = algos[choice];
    p->usable = 1;
}

/* gelu of float32 and float64 follows in the plain kernel: the library's is good for 16 bits only.
 * So does what the library has no epilogue for; 16-bit results would be rounded twice by that. */
void make_plan(library *l, plan *p, const mcu_gemm *g, int recording, void *workspace,
               cudaStream_t stream) {
    int narrow = g->d_dtype == MC_FLOAT16 || g->d_dtype == MC_BFLOAT16;
    p->usable = p->untimed = 0;
    p->finish = g->gelu && !narrow;
    if (describe(p, g) != CUBLAS_STATUS_SUCCESS) return;
    if (!p->finish) {
        if (set_epilogue(p, g, g->bias != NULL, g->gelu) == CUBLAS_STATUS_SUCCESS)
            choose(l, p, g, recording, workspace, stream);
        if (p->usable || narrow || !g->bias) return;
        p->finish = 1;
    }
    if (set_epilogue(p, g, 0, 0) == CUBLAS_STATUS_SUCCESS)
        choose(l, p, g, recording, workspace, stream);
}

/* The problem's plan, found or made; NULL when out of memory. */
plan *plan_of(library *l, const mcu_gemm *g, int recording, void *workspace, cudaStream_t stream) {
    int64_t key[MCU_GEMM_KEY];
    key_of(g, key);
    plan **place = place_of(l, key);
    int known = *place != NULL;
    if (known && !((*place)->untimed && !recording)) return *place;
    if (!known) {
        if (l->plans == MOST_PLANS) {
            drop_plans(l);
            place = place_of(l, key);
        }
        *place = (plan *)calloc(1, sizeof **place);
        if (!*place) return NULL;
        memcpy((*place)->key, key, sizeof key);
        l->plans++;
    }
    relaxed scope;
    make_plan(l, *place, g, recording, workspace, stream);
    (*place)->untimed |= recording && !(*place)->usable; /* a refusal may be due to the recording */
    return *place;
}

/* Bias and gelu, in place. */
mc_status finish(mci_exec *exec, const char *op, const mcu_gemm *g) {
    mcu_plain p = mcu_plain_of(g);
    p.k = 0;
    p.accumulate = 1;
    return mcu_plain_product(exec, op, &p);
}

}  // namespace

const char *mcu_blas_version(void) {
    static char text[32];
    size_t v = cublasLtGetVersion();
    snprintf(text, sizeof text, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
    return text;
}

mc_status mcu_gemm_run(mci_exec *exec, int stream, const char *op, const mcu_gemm *g, int *taken) {
    *taken = 1;
    if (g->m == 0 || g->n == 0 || g->batch == 0) return MC_OK;
    mcu_device *device = mcu_device_of(exec->ordinal);
    if (!device) return MC_EDEVICE;
    mci_exec side = *exec;
    cudaStream_t to = mcu_side_stream(exec, stream);
    side.stream = (void *)to;
    if (g->k == 0) {
        mcu_plain p = mcu_plain_of(g);
        return mcu_plain_product(&side, op, &p);
    }
    *taken = 0;
    if (g->batch > INT32_MAX) return MC_OK;
    library *l = library_of(op, device, exec->ordinal);
    if (!l) return MC_EDEVICE;
    void *workspace = NULL;
    mc_status status = workspace_of(op, l, stream, &workspace);
    if (status != MC_OK) return status;
    plan *p = plan_of(l, g, device->recording, workspace, to);
    if (!p) return mcu_fail(MC_ENOMEM, "%s: no memory for the plan of a product", op);
    if (!p->usable) return MC_OK;
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    if (g->bias && !p->finish) s = set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g->bias);
    if (s == CUBLAS_STATUS_SUCCESS) s = start(l, p, g, &p->algo, g->d, workspace, to);
    if (s != CUBLAS_STATUS_SUCCESS) return failed(op, s);
    *taken = 1;
    return p->finish ? finish(&side, op, g) : MC_OK;
}
