/* The emulator itself: barriers, shuffles, the pieces of PTX, memory and the limits of launches.
 * Run under each MCU_EMULATOR_ORDER; what ends the process is tried in a child. */
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "test_emulator.h"

const mci_services *mcu_core;

/* -- blocks and threads
 * ----------------------------------------------------------------------------------- */

static __global__ void number_kernel(int *out, dim3 expected) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    if (gridDim.x == expected.x) out[block * threads + thread]++;
}
static void every_thread_runs_once() {
    TITLE("every thread of every block runs once");
    for (dim3 block : {dim3(1), dim3(33), dim3(5, 3, 2), dim3(1024), dim3(2, 2, 64)}) {
        dim3 grid(3, 2, 4);
        size_t n = (size_t)grid.x * grid.y * grid.z * block.x * block.y * block.z;
        device_array<int> out(n, 0);
        MCU_LAUNCH_IN(nullptr, number_kernel, grid, block, 0, out.data, grid);
        CHECK(cudaGetLastError() == cudaSuccess);
        for (int x : out.host()) CHECK(x == 1);
    }
}

/* A tree sum over shared memory: wrong in every order if a barrier does not hold. */
static __global__ void sum_kernel(const int *in, int *out) {
    MCU_SHARED(int, space);
    unsigned t = threadIdx.x;
    space[t] = in[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (unsigned d = blockDim.x / 2; d > 0; d /= 2) {
        if (t < d) space[t] += space[t + d];
        __syncthreads();
    }
    out[blockIdx.x * blockDim.x + t] = space[0];
}
static void barriers_hold() {
    TITLE("a tree sum over barriers is right in any order of the threads");
    for (int threads : {1, 2, 32, 64, 1024}) {
        std::vector<int> in((size_t)threads * 3);
        int want[3] = {0};
        for (size_t i = 0; i < in.size(); i++)
            want[i / (size_t)threads] += in[i] = (int)(i * i % 97);
        device_array<int> a(in), b(in.size(), 0);
        MCU_LAUNCH_IN(nullptr, sum_kernel, 3, threads, threads * 4, a.data, b.data);
        std::vector<int> got = b.host();
        for (size_t i = 0; i < got.size(); i++) CHECK(got[i] == want[i / (size_t)threads]);
    }
}

static __global__ void votes_kernel(int *out) {
    if (threadIdx.x >= 70) return; /* no longer counted */
    int odd = __syncthreads_count((int)threadIdx.x & 1);
    int any = __syncthreads_or(threadIdx.x == 69), none = __syncthreads_or(threadIdx.x == 99);
    int all = __syncthreads_and(1), not_all = __syncthreads_and(threadIdx.x != 3);
    out[threadIdx.x] = odd + 100 * any + 1000 * none + 10000 * all + 100000 * not_all;
}
static void block_votes() {
    TITLE("votes of a block count the threads that still run");
    device_array<int> out(70, 0);
    MCU_LAUNCH_IN(nullptr, votes_kernel, 1, 100, 0, out.data);
    for (int x : out.host()) CHECK(x == 35 + 100 + 10000);
}

static __global__ void order_kernel(int *out, int *next) {
    out[atomicAdd(next, 1)] = (int)threadIdx.x;
}
static void order_follows_the_environment() {
    TITLE("MCU_EMULATOR_ORDER changes the order between barriers");
    device_array<int> out(64, 0), next(1, 0);
    MCU_LAUNCH_IN(nullptr, order_kernel, 1, 64, 0, out.data, next.data);
    std::vector<int> got = out.host();
    const char *how = getenv("MCU_EMULATOR_ORDER");
    int rising = 1, falling = 1;
    for (int i = 0; i < 64; i++) {
        rising = rising && got[(size_t)i] == i;
        falling = falling && got[(size_t)i] == 63 - i;
    }
    CHECK(rising == (how == nullptr));
    CHECK(falling == (how != nullptr && strcmp(how, "reverse") == 0));
}

/* -- warps
 * ------------------------------------------------------------------------------------------------
 */

template <typename T>
static __global__ void shuffle_kernel(T *out, int width) {
    int lane = (int)threadIdx.x;
    T x = (T)(lane * 3 + 1);
    out[lane] = __shfl_sync(~0U, x, lane + 5, width);
    out[lane + 32] = __shfl_up_sync(~0U, x, 3, width);
    out[lane + 64] = __shfl_down_sync(~0U, x, 3, width);
    out[lane + 96] = __shfl_xor_sync(~0U, x, 6, width);
}
template <typename T>
static void try_shuffles() {
    for (int width : {32, 16, 8, 4}) {
        device_array<T> out(128, T(0));
        MCU_LAUNCH_IN(nullptr, (shuffle_kernel<T>), 1, 32, 0, out.data, width);
        std::vector<T> got = out.host();
        for (int lane = 0; lane < 32; lane++) {
            int first = lane / width * width, last = first + width - 1;
            int from[4] = {first + (lane + 5) % width, lane - 3 < first ? lane : lane - 3,
                           lane + 3 > last ? lane : lane + 3, (lane ^ 6) > last ? lane : lane ^ 6};
            for (int i = 0; i < 4; i++) CHECK(got[(size_t)(i * 32 + lane)] == (T)(from[i] * 3 + 1));
        }
    }
}
static void shuffles() {
    TITLE("shuffles of each kind, width and size move the right lane's value");
    try_shuffles<float>();
    try_shuffles<double>();
    try_shuffles<int>();
    try_shuffles<unsigned long long>();
    try_shuffles<unsigned char>();
}

static __global__ void warp_kernel(unsigned *out) {
    int lane = (int)threadIdx.x % 32;
    unsigned *own = out + threadIdx.x * 8;
    own[0] = __ballot_sync(~0U, lane % 3 == 0);
    own[1] = (unsigned)__any_sync(~0U, lane == 31) + 2 * (unsigned)__any_sync(~0U, 0);
    own[2] = (unsigned)__all_sync(~0U, 1) + 2 * (unsigned)__all_sync(~0U, lane != 7);
    own[3] = __reduce_add_sync(~0U, (unsigned)lane);
    own[4] = (unsigned)__reduce_min_sync(~0U, lane - 40);
    own[5] = __match_any_sync(~0U, lane / 8);
    if (lane < 16) {
        own[6] = __shfl_sync(0x0000FFFFU, (unsigned)lane, 0);
        __syncwarp(0x0000FFFFU);
    }
    __syncwarp();
    own[7] = __shfl_sync(~0U, (unsigned)threadIdx.x, 31);
}
static void warp_votes() {
    TITLE("votes, reductions and matches of a warp, a half of it too");
    device_array<unsigned> out(48 * 8, 0);
    MCU_LAUNCH_IN(nullptr, warp_kernel, 1, 48, 0, out.data);
    std::vector<unsigned> got = out.host();
    for (unsigned t = 0; t < 48; t++) {
        const unsigned *own = &got[t * 8];
        unsigned lane = t % 32, exist = t < 32 ? ~0U : 0xFFFFU, thirds = 0;
        for (unsigned i = 0; i < 32; i += 3) thirds |= 1U << i;
        CHECK(own[0] == (thirds & exist));
        CHECK(own[1] == (t < 32));
        CHECK(own[2] == 1);
        CHECK(own[3] == (t < 32 ? 496U : 120U));
        CHECK(own[4] == (unsigned)-40);
        CHECK(own[5] == 0xFFU << lane / 8 * 8);
        CHECK(own[6] == 0);
        CHECK(own[7] == (t < 32 ? 31U : ~0U)); /* lane 31 of the second warp does not exist */
    }
}

/* -- shared memory and PTX
 * ---------------------------------------------------------------------------------- */

static __global__ void unwritten_kernel(unsigned char *out) {
    MCU_SHARED(unsigned char, space);
    out[threadIdx.x] = space[threadIdx.x];
    space[threadIdx.x] = 1;
}
static void shared_memory_is_spoiled() {
    TITLE("dynamic shared memory is 0xFF before each block");
    device_array<unsigned char> out(64, 0);
    MCU_LAUNCH_IN(nullptr, unwritten_kernel, 3, 64, 64, out.data);
    for (unsigned char x : out.host()) CHECK(x == 0xFF);
}

static __global__ void copies_kernel(const unsigned char *in, unsigned char *out) {
    MCU_SHARED(unsigned char, space);
    unsigned t = threadIdx.x;
    mcu_copy_async(space + t * 32, in + t * 16, (int)t);
    mcu_copy_commit();
    mcu_copy_async(space + t * 32 + 16, in + t * 16);
    mcu_copy_commit();
    mcu_copy_wait<1>();
    for (unsigned i = 0; i < 32; i++) out[t * 64 + i] = space[t * 32 + i];
    mcu_copy_wait<0>();
    for (unsigned i = 0; i < 32; i++) out[t * 64 + 32 + i] = space[t * 32 + i];
}
static void asynchronous_copies() {
    TITLE("asynchronous copies land at their wait, filled up with zeros");
    std::vector<unsigned char> in(17 * 16);
    for (size_t i = 0; i < in.size(); i++) in[i] = (unsigned char)(i % 200 + 1);
    device_array<unsigned char> a(in), b(17 * 64, 0);
    MCU_LAUNCH_IN(nullptr, copies_kernel, 1, 17, 17 * 32, a.data, b.data);
    std::vector<unsigned char> got = b.host();
    for (size_t t = 0; t < 17; t++)
        for (size_t i = 0; i < 16; i++) {
            const unsigned char *own = &got[t * 64];
            CHECK(own[i] == (i < t ? in[t * 16 + i] : 0));
            CHECK(own[16 + i] == 0xFF);
            CHECK(own[32 + i] == own[i]);
            CHECK(own[48 + i] == in[t * 16 + i]);
        }
}

/* c [16, 8] = a [16, 16] b [16, 8] (+ c), by ldmatrix and one mma. */
template <typename T>
static __global__ void product_kernel(const T *a, const T *b, float *c) {
    __shared__ __align__(16) T a_tile[16 * 16];
    __shared__ __align__(16) T b_tile[32 * 8]; /* two of them: ldmatrix takes four matrices */
    int lane = (int)threadIdx.x;
    for (int i = lane; i < 256; i += 32) a_tile[i] = a[i];
    for (int i = lane; i < 128; i += 32) b_tile[i] = b_tile[i + 128] = b[i];
    __syncwarp();
    uint32_t fa[4], fb[4];
    /* matrices (0, 0), (8, 0), (0, 8), (8, 8) of a; b lies [k][n] and is wanted by columns */
    mcu_load_matrix(fa, a_tile + (lane % 16) * 16 + lane / 16 * 8);
    mcu_load_matrix_t(fb, b_tile + lane * 8);
    float d[4];
    int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; i++) d[i] = c[(row + i / 2 * 8) * 8 + column + i % 2];
    mcu_mma<T>(d, fa, fb[0], fb[1]);
    for (int i = 0; i < 4; i++) c[(row + i / 2 * 8) * 8 + column + i % 2] = d[i];
}
template <typename T>
static void try_product() {
    std::vector<T> a(256), b(128);
    std::vector<float> c(128), want(128);
    for (size_t i = 0; i < 256; i++) a[i] = mcu_down<T>((float)((int)(i * 7 % 31) - 15) * 0.25F);
    for (size_t i = 0; i < 128; i++) b[i] = mcu_down<T>((float)((int)(i * 5 % 23) - 11) * 0.5F);
    for (size_t i = 0; i < 128; i++) {
        want[i] = c[i] = (float)i;
        for (size_t k = 0; k < 16; k++)
            want[i] += mcu_up(a[i / 8 * 16 + k]) * mcu_up(b[k * 8 + i % 8]);
    }
    device_array<T> da(a), db(b);
    device_array<float> dc(c);
    MCU_LAUNCH_IN(nullptr, (product_kernel<T>), 1, 32, 0, da.data, db.data, dc.data);
    CHECK(dc.host() == want); /* the numbers are so short that all sums are exact */
}
static void tensor_core() {
    TITLE("ldmatrix and mma give the plain product");
    try_product<mcu_bf16>();
    try_product<mcu_half>();
}

/* -- limits of launches, memory
 * ----------------------------------------------------------------------------- */

static __global__ void nothing_kernel(const char *, int64_t) {}
static cudaError_t launch_with(dim3 grid, dim3 block, size_t shared) {
    MCU_LAUNCH_IN(nullptr, nothing_kernel, grid, block, shared, NULL, 1);
    return cudaGetLastError();
}
static void launch_limits() {
    TITLE("launches beyond the device's limits are errors");
    CHECK(launch_with(1, 1024, 48 << 10) == cudaSuccess);
    CHECK(launch_with(1, 1025, 0) == cudaErrorInvalidConfiguration);
    CHECK(launch_with(1, dim3(512, 3), 0) == cudaErrorInvalidConfiguration);
    CHECK(launch_with(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
    CHECK(launch_with(1, 0, 0) == cudaErrorInvalidConfiguration);
    CHECK(launch_with(0, 32, 0) == cudaErrorInvalidConfiguration);
    CHECK(launch_with(dim3(1, 65536), 32, 0) == cudaErrorInvalidConfiguration);
    CHECK(launch_with(dim3(1, 1, 65536), 32, 0) == cudaErrorInvalidConfiguration);
    CHECK(launch_with(1, 32, (48 << 10) + 1) == cudaErrorInvalidValue);
    cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    CHECK(cudaFuncSetAttribute(nothing_kernel, most, (227 << 10) + 1) == cudaErrorInvalidValue);
    CHECK(cudaFuncSetAttribute(nothing_kernel, most, 227 << 10) == cudaSuccess);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CHECK(launch_with(1, 32, 227 << 10) == cudaSuccess);
    CHECK(cudaFuncSetAttribute(nothing_kernel, most, 0) == cudaSuccess);
}

static void memory() {
    TITLE("device memory runs out, and copies name the right kinds of memory");
    size_t before, after, total;
    void *p = nullptr;
    CHECK(cudaMemGetInfo(&before, &total) == cudaSuccess);
    CHECK(cudaMalloc(&p, total + 1) == cudaErrorMemoryAllocation);
    CHECK(p == nullptr && cudaGetLastError() == cudaErrorMemoryAllocation);
    CHECK(cudaMalloc(&p, 1000) == cudaSuccess);
    CHECK((uintptr_t)p % 256 == 0);
    CHECK(cudaMemGetInfo(&after, &total) == cudaSuccess && before - after == 1000);
    std::vector<char> host(2000);
    CHECK(cudaMemcpy(p, host.data(), 1000, cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(cudaMemcpy(p, host.data(), 1001, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host.data(), p, 1000, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host.data(), (char *)p + 1, 1000, cudaMemcpyDeviceToHost) ==
          cudaErrorInvalidValue);
    CHECK(cudaMemset(p, 7, 1000) == cudaSuccess);
    CHECK(cudaMemcpy2DAsync(host.data(), 20, p, 10, 10, 100, cudaMemcpyDeviceToHost) ==
          cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(host[0] == 7 && host[9] == 7 && host[10] == 0 && host[1989] == 7 && host[1990] == 0);
    CHECK(cudaFree(p) == cudaSuccess && cudaFree(p) == cudaErrorInvalidValue);
    CHECK(cudaMemGetInfo(&after, &total) == cudaSuccess && before == after);
    cudaGetLastError();
}

static void intrinsics() {
    TITLE("intrinsics follow CUDA in the corners");
    CHECK(__float2int_rz(3e9F) == INT_MAX && __float2int_rz(-3e9F) == INT_MIN);
    CHECK(__float2int_rn(2.5F) == 2 && __float2int_rz(NAN) == 0 && __float2uint_rz(-1.5F) == 0);
    CHECK(__float2uint_rz(5e9F) == UINT_MAX && __double2ll_rz(1e300) == LLONG_MAX);
    CHECK(__double2ll_rz(-7.9) == -7 && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4);
    CHECK(__brev(1) == 0x80000000U && __umulhi(~0U, ~0U) == ~0U - 1);
    CHECK(__umul64hi(~0ULL, 2) == 1 && __mul64hi(-1, 1) == -1);
    CHECK(__byte_perm(0x33221100U, 0x77665544U, 0x5140U) == 0x55114400U);
    CHECK(__fdividef(1.0F, 0x1p127F) == 0.0F && rsqrtf(4.0F) == 0.5F);
    float s, c;
    sincospif(0.5F, &s, &c);
    CHECK(s == 1.0F && c == 0.0F && sinpif(1.0F) == 0.0F && cospif(3.0F) == -1.0F);
    CHECK(min(NAN, 1.0F) == 1.0F && max(3U, 2U) == 3U && min(-1L, 1L) == -1L);
    unsigned x = 5;
    CHECK(atomicMax(&x, 9U) == 5 && atomicCAS(&x, 9U, 1U) == 9 && atomicExch(&x, 4U) == 1 &&
          x == 4);
}

/* -- what ends the process
 * -------------------------------------------------------------------------------- */

static __global__ void divergent_kernel() {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncwarp();
}
static __global__ void two_barriers_kernel() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
static __global__ void two_meetings_kernel(unsigned *out) {
    if (threadIdx.x & 1)
        out[threadIdx.x] = __ballot_sync(~0U, 1);
    else
        out[threadIdx.x] = __shfl_sync(~0U, 1U, 0);
}
static __global__ void bad_mask_kernel() {
    if (threadIdx.x == 0) __syncwarp(2);
}
static __global__ void overrun_kernel(char *p, int64_t i) {
    p[i] = 0;
}
static void run_divergent() {
    MCU_LAUNCH_IN(nullptr, divergent_kernel, 1, 32, 0);
}
static void run_two_barriers() {
    MCU_LAUNCH_IN(nullptr, two_barriers_kernel, 1, 64, 0);
}
static void run_two_meetings() {
    device_array<unsigned> out(32, 0);
    MCU_LAUNCH_IN(nullptr, two_meetings_kernel, 1, 32, 0, out.data);
}
static void run_bad_mask() {
    MCU_LAUNCH_IN(nullptr, bad_mask_kernel, 1, 32, 0);
}
static void run_overrun() {
    device_array<char> out(100, 0);
    MCU_LAUNCH_IN(nullptr, overrun_kernel, 1, 1, 0, out.data, 100);
    cudaDeviceSynchronize();
}

/* fn ends the process, with `text` on stderr. */
static void dies(void (*fn)(), const char *text) {
    int ends[2];
    char said[4096] = "";
    if (!CHECK(pipe(ends) == 0)) return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        fn();
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got;
         n < sizeof said - 1 && (got = read(ends[0], said + n, sizeof said - 1 - n)) > 0;)
        n += (size_t)got;
    said[n] = 0;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(!(WIFEXITED(status) && WEXITSTATUS(status) == 0));
    if (!CHECK(strstr(said, text) != nullptr)) printf("wanted \"%s\", got:\n%s\n", text, said);
}
static void broken_kernels() {
    TITLE("kernels whose threads wait at different places end the process and are named");
    dies(run_divergent, "kernel divergent_kernel");
    dies(run_divergent, "threads wait for one another");
    dies(run_two_barriers, "threads of a block at different barriers");
    dies(run_two_meetings, "lanes meet at different places");
    dies(run_bad_mask, "leaves out the calling lane");
    const char *text = "written behind its end, at byte 100";
#ifdef __SANITIZE_ADDRESS__
    const char *protect = getenv("MCU_EMULATOR_PROTECT");
    if (!(protect && atoi(protect))) text = "heap-buffer-overflow";
#endif
    dies(run_overrun, text);
}

int main() {
    every_thread_runs_once();
    barriers_hold();
    block_votes();
    order_follows_the_environment();
    shuffles();
    warp_votes();
    shared_memory_is_spoiled();
    asynchronous_copies();
    tensor_core();
    launch_limits();
    memory();
    intrinsics();
    broken_kernels();
    int captures_failed = test_captures();
    return check_report() || captures_failed;
}
