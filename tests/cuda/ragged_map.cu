/* ragged_map.cu: does one tensor map, made on the host, bound every group of a ragged matrix, and
 * at what rate? A program of its own for a GPU of compute capability 9.0: prints a table, ends with
 * 0 when all is right, 1 when a tile is wrong, 2 when CUDA fails.
 *
 * A group is `length` rows from row `offset` of a row-major matrix with rows of s bytes. With
 * B = 2^30, row r of the group is addressed so that the hardware's bound on one axis is the
 * group's: store, 3-D: sizes (columns, B, 2^31 - 1), strides (s, s), base B s before the matrix, at
 * (column, B - length + r, offset + length) load, 4-D: sizes (columns, B, 2^31 - 1, 2^31 - 1),
 * strides (s, 2^35 - s, s), base the matrix, at (column, B - length + r, B, offset + length); B
 * 2^35 is 0 modulo 2^64 Both give base + (offset + r) s, and r >= length lies outside of the second
 * axis. The forms are those of Triton's ragged_tma.py and quack's copy_utils.py, where the first
 * faults in loads.
 *
 * Right: everything around a group is poisoned; a load must give zeros past the group's end, a
 * store must change nothing else in the whole allocation. Rate: a thread per block keeps STAGES
 * tiles of about 1 GB in flight, by ragged and by plain 2-D maps, one after the other in one run.
 *
 * nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a ragged_map.cu
 */
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <cuda.h>
#include <cuda_runtime.h>

namespace {

enum { COLUMNS = 64, ROW_BYTES = 128, STAGES = 4 }; /* of a box: one 128-byte swizzle atom wide */
enum { PLAIN, RAGGED };
const int B = 1 << 30;
const uint16_t POISON = 0x7FC1; /* a NaN */

void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "ragged_map: %s: %s (%s)\n", what, cudaGetErrorString(error),
            cudaGetErrorName(error));
    exit(2);
}
#define CHECK(call) check((call), #call)

/* -- maps
 * ------------------------------------------------------------------------------------------- */

typedef decltype(&cuTensorMapEncodeTiled) encoder;

encoder find_encoder() {
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess || !entry) {
        fprintf(stderr, "ragged_map: the driver has no cuTensorMapEncodeTiled\n");
        exit(2);
    }
    return reinterpret_cast<encoder>(entry);
}

struct matrix { /* bfloat16, row-major and dense */
    char *data;
    int64_t rows, columns;
    int64_t stride() const { return columns * 2; }
};

CUtensorMap encode(encoder encode_tiled, void *base, int rank, const cuuint64_t *sizes,
                   const cuuint64_t *strides, int box_rows) {
    CUtensorMap map;
    const cuuint32_t box[5] = {COLUMNS, (cuuint32_t)box_rows, 1, 1, 1}, ones[5] = {1, 1, 1, 1, 1};
    CUresult result =
        encode_tiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, base, sizes, strides,
                     box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return map;
    fprintf(stderr, "ragged_map: cuTensorMapEncodeTiled, rank %d: error %d\n", rank, (int)result);
    exit(2);
}

CUtensorMap plain_map(encoder e, const matrix &m, int box_rows) {
    const cuuint64_t sizes[2] = {(cuuint64_t)m.columns, (cuuint64_t)m.rows};
    const cuuint64_t strides[1] = {(cuuint64_t)m.stride()};
    return encode(e, m.data, 2, sizes, strides, box_rows);
}

CUtensorMap load_map(encoder e, const matrix &m, int box_rows) {
    const cuuint64_t s = (cuuint64_t)m.stride();
    const cuuint64_t sizes[4] = {(cuuint64_t)m.columns, (cuuint64_t)B, INT32_MAX, INT32_MAX};
    const cuuint64_t strides[3] = {s, ((cuuint64_t)1 << 35) - s, s};
    return encode(e, m.data, 4, sizes, strides, box_rows);
}

CUtensorMap store_map(encoder e, const matrix &m, int box_rows) {
    const cuuint64_t s = (cuuint64_t)m.stride();
    const cuuint64_t sizes[3] = {(cuuint64_t)m.columns, (cuuint64_t)B, INT32_MAX};
    const cuuint64_t strides[2] = {s, s};
    void *base = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(m.data) - (uint64_t)B * s);
    return encode(e, base, 3, sizes, strides, box_rows);
}

/* -- instructions
 * ----------------------------------------------------------------------------------- */

__device__ inline uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ inline void barrier_init(uint64_t *bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count)
                 : "memory");
}
/* What was written to shared memory, barriers too, is seen by the copies from now on. */
__device__ inline void fence_shared() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void barrier_expect(uint64_t *bar, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
        "r"(bytes)
        : "memory");
}
/* Two seconds at most; then the kernel ends with an error. */
__device__ inline void barrier_wait(uint64_t *bar, uint32_t parity) {
    const long long limit = 4000000000LL;
    long long begin = clock64();
    for (;;) {
        uint32_t done;
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.b32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(shared_address(bar)), "r"(parity)
            : "memory");
        if (done) return;
        if (clock64() - begin > limit) __trap();
    }
}

/* Rows r .. of the group [offset, offset + length), columns c .. */
struct place {
    int c, r, offset, length;
};

template <int FORM>
__device__ inline void load_box(void *shared, const CUtensorMap &map, uint64_t *bar, place at) {
    if (FORM == PLAIN)
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
            "l"(&map), "r"(shared_address(bar)), "r"(at.c), "r"(at.offset + at.r)
            : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
            "l"(&map), "r"(shared_address(bar)), "r"(at.c), "r"(B - at.length + at.r), "r"(B),
            "r"(at.offset + at.length)
            : "memory");
}

template <int FORM>
__device__ inline void store_box(const CUtensorMap &map, const void *shared, place at) {
    if (FORM == PLAIN)
        asm volatile(
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
                &map),
            "r"(shared_address(shared)), "r"(at.c), "r"(at.offset + at.r)
            : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
                &map),
            "r"(shared_address(shared)), "r"(at.c), "r"(B - at.length + at.r),
            "r"(at.offset + at.length)
            : "memory");
}
__device__ inline void store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/* Until all but the newest `pending` stores have read their shared memory. */
template <int pending>
__device__ inline void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
__device__ inline void store_wait_all() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* Byte of element (r, c) in a box with the 128-byte swizzle. */
__device__ inline int swizzled(int r, int c) {
    return r * ROW_BYTES + (((c / 8) ^ (r % 8)) * 16) + c % 8 * 2;
}

/* -- right or wrong
 * --------------------------------------------------------------------------------- */

/* Block (x, y) owns the box at column 64 x and row box_rows * y of the group; tile [box_rows, 64]
 * of `out` gets what was loaded. */
template <int FORM>
__global__ void __launch_bounds__(128)
    load_kernel(const __grid_constant__ CUtensorMap map, uint16_t *out, int offset, int length,
                int box_rows) {
    extern __shared__ __align__(1024) unsigned char tile[];
    __shared__ uint64_t bar;
    for (int i = (int)threadIdx.x; i < box_rows * ROW_BYTES; i += 128) tile[i] = 0xAB;
    if (threadIdx.x == 0) barrier_init(&bar, 1);
    fence_shared();
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_expect(&bar, box_rows * ROW_BYTES);
        load_box<FORM>(tile, map, &bar,
                       {(int)blockIdx.x * COLUMNS, (int)blockIdx.y * box_rows, offset, length});
    }
    barrier_wait(&bar, 0);
    out += ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * box_rows * COLUMNS;
    for (int i = (int)threadIdx.x; i < box_rows * COLUMNS; i += 128)
        out[i] = *reinterpret_cast<uint16_t *>(tile + swizzled(i / COLUMNS, i % COLUMNS));
}

/* The reverse: tile [box_rows, 64] of `in` is stored, whole. */
__global__ void __launch_bounds__(128)
    store_kernel(const __grid_constant__ CUtensorMap map, const uint16_t *in, int offset,
                 int length, int box_rows) {
    extern __shared__ __align__(1024) unsigned char tile[];
    in += ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * box_rows * COLUMNS;
    for (int i = (int)threadIdx.x; i < box_rows * COLUMNS; i += 128)
        *reinterpret_cast<uint16_t *>(tile + swizzled(i / COLUMNS, i % COLUMNS)) = in[i];
    fence_shared();
    __syncthreads();
    if (threadIdx.x != 0) return;
    store_box<RAGGED>(map, tile,
                      {(int)blockIdx.x * COLUMNS, (int)blockIdx.y * box_rows, offset, length});
    store_commit();
    store_wait_all();
}

enum { ALLOCATION = 4 << 20, TILES = 4 << 20 }; /* bytes; whole pages of 2 MiB */

struct bench { /* what the cases share */
    encoder encode;
    char *memory;    /* ALLOCATION */
    uint16_t *tiles; /* TILES */
    int driver, bad;
    std::vector<uint16_t> image, back, boxes;
};

uint16_t value(int64_t row, int64_t column) { /* of no NaN, never 0 */
    return (uint16_t)(1 + (row * 251 + column * 7) % 0x7F00);
}

/* Boxes of a group: a group without rows gets one too, which must do nothing. */
dim3 boxes_of(int64_t columns, int length, int box_rows) {
    return dim3((unsigned)((columns + COLUMNS - 1) / COLUMNS),
                (unsigned)std::max(1, (length + box_rows - 1) / box_rows));
}

/* What box element i of the grid stands for: its row in the group and its column. */
void where(dim3 grid, int box_rows, int64_t i, int64_t *r, int64_t *c) {
    int64_t size = box_rows * COLUMNS, box = i / size;
    *r = box / grid.x * box_rows + i % size / COLUMNS;
    *c = box % grid.x * COLUMNS + i % COLUMNS;
}

/* The image of the allocation: poison, and in the group's rows its values if `filled`. */
void paint(bench &b, const matrix &m, int offset, int length, bool filled) {
    std::fill(b.image.begin(), b.image.end(), POISON);
    uint16_t *first = b.image.data() + (m.data - b.memory) / 2;
    for (int64_t r = offset; filled && r < offset + length; r++)
        for (int64_t c = 0; c < m.columns; c++) first[r * m.columns + c] = value(r, c);
}

/* Prints the first few differences. */
bool say(bench &b, const char *form, const matrix &m, int box_rows, int offset, int length,
         int64_t i, int got, int want) {
    if (b.bad++ < 10)
        printf(
            "  %s, box of %d rows, %lld columns, rows %d to %d: element %lld is %04x, not %04x\n",
            form, box_rows, (long long)m.columns, offset, offset + length - 1, (long long)i, got,
            want);
    return false;
}

bool load_is_right(bench &b, const CUtensorMap &map, int form, const matrix &m, int box_rows,
                   int offset, int length) {
    dim3 grid = boxes_of(m.columns, length, box_rows);
    int64_t n = (int64_t)grid.x * grid.y * box_rows * COLUMNS;
    paint(b, m, offset, length, true);
    CHECK(cudaMemcpy(b.memory, b.image.data(), ALLOCATION, cudaMemcpyHostToDevice));
    if (form == RAGGED)
        load_kernel<RAGGED>
            <<<grid, 128, box_rows * ROW_BYTES>>>(map, b.tiles, offset, length, box_rows);
    else
        load_kernel<PLAIN>
            <<<grid, 128, box_rows * ROW_BYTES>>>(map, b.tiles, offset, length, box_rows);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(b.boxes.data(), b.tiles, n * 2, cudaMemcpyDeviceToHost));
    for (int64_t i = 0; i < n; i++) {
        int64_t r, c;
        where(grid, box_rows, i, &r, &c);
        uint16_t want = r < length && c < m.columns ? value(offset + r, c) : 0;
        if (b.boxes[i] != want)
            return say(b, form == RAGGED ? "ragged load" : "plain load", m, box_rows, offset,
                       length, i, b.boxes[i], want);
    }
    return true;
}

bool store_is_right(bench &b, const CUtensorMap &map, const matrix &m, int box_rows, int offset,
                    int length) {
    dim3 grid = boxes_of(m.columns, length, box_rows);
    int64_t n = (int64_t)grid.x * grid.y * box_rows * COLUMNS;
    for (int64_t i = 0; i < n; i++) {
        int64_t r, c;
        where(grid, box_rows, i, &r, &c);
        b.boxes[i] = value(offset + r, c); /* rows past the group too: they must not arrive */
    }
    paint(b, m, offset, length, false);
    CHECK(cudaMemcpy(b.memory, b.image.data(), ALLOCATION, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(b.tiles, b.boxes.data(), n * 2, cudaMemcpyHostToDevice));
    store_kernel<<<grid, 128, box_rows * ROW_BYTES>>>(map, b.tiles, offset, length, box_rows);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(b.back.data(), b.memory, ALLOCATION, cudaMemcpyDeviceToHost));
    paint(b, m, offset, length, true);
    for (int64_t i = 0; i < ALLOCATION / 2; i++)
        if (b.back[i] != b.image[i])
            return say(b, "ragged store", m, box_rows, offset, length, i - (m.data - b.memory) / 2,
                       b.back[i], b.image[i]);
    return true;
}

/* Each length at offsets that no box is aligned to, and at the matrix' first and last rows. */
int test_matrix(bench &b, const matrix &m, const char *where_text) {
    const int lengths[] = {0, 1, 63, 64, 65, 127, 128, 129};
    int failed = 0;
    for (int box_rows = 64; box_rows <= 128; box_rows += 64) {
        CUtensorMap load = load_map(b.encode, m, box_rows),
                    store = store_map(b.encode, m, box_rows);
        int loads = 0, stores = 0, cases = 0;
        for (int length : lengths) {
            const int offsets[] = {0, 3, 37 + length % 5, (int)m.rows - length};
            for (int offset : offsets) {
                cases++;
                loads += load_is_right(b, load, RAGGED, m, box_rows, offset, length);
                stores += store_is_right(b, store, m, box_rows, offset, length);
            }
        }
        printf("%5lld x %-5lld %4lld KiB  %-20s %3d rows   load %d/%d   store %d/%d   %s\n",
               (long long)m.rows, (long long)m.columns, (long long)(m.rows * m.stride() / 1024),
               where_text, box_rows, loads, cases, stores, cases,
               loads == cases && stores == cases ? "ok" : "WRONG");
        failed += loads != cases || stores != cases;
    }
    return failed;
}

/* The bit by which a map says how the addresses of elements out of bounds are made: drivers to 13.1
 * are said to set it wrongly for plain maps of tensors under 128 KiB (CUTLASS 4.4 clears it). */
const uint64_t ADDRESS_BIT = UINT64_C(1) << 21;
uint64_t address_bit(const CUtensorMap &map) {
    uint64_t word;
    memcpy(&word, reinterpret_cast<const char *>(&map) + 8, 8);
    return word & ADDRESS_BIT;
}

/* For the record, not judged: a plain map that reads past its last row. */
void report_plain(bench &b, const matrix &m) {
    for (int cleared = 0; cleared < 2; cleared++) {
        CUtensorMap map = plain_map(b.encode, m, 64);
        uint64_t word, bit = address_bit(map);
        if (cleared) {
            memcpy(&word, reinterpret_cast<char *>(&map) + 8, 8);
            word &= ~ADDRESS_BIT;
            memcpy(reinterpret_cast<char *>(&map) + 8, &word, 8);
        }
        int bad = b.bad;
        bool right = load_is_right(b, map, PLAIN, m, 64, (int)m.rows - 33, 33);
        b.bad = bad;
        printf("plain load past the end, %4lld KiB: bit 21 %s: %s\n",
               (long long)(m.rows * m.stride() / 1024),
               cleared ? "cleared"
               : bit   ? "set as encoded"
                       : "clear as encoded",
               right ? "zeros" : "NOT zeros");
    }
}

int test_all(bench &b) {
    int failed = 0;
    const int64_t rows = 300, columns[] = {64, 72, 512, 1000}; /* 37, 42, 300 and 586 KiB */
    CHECK(cudaMalloc(&b.memory, ALLOCATION));
    CHECK(cudaMalloc(&b.tiles, TILES));
    b.image.resize(ALLOCATION / 2);
    b.back.resize(ALLOCATION / 2);
    b.boxes.resize(TILES / 2);
    for (int64_t c : columns) {
        matrix m = {b.memory, rows, c};
        failed += test_matrix(b, m, "allocation's start");
        m.data = b.memory + (1 << 20) + 16;
        failed += test_matrix(b, m, "middle, 16 bytes off");
        m.data = b.memory + ALLOCATION - rows * m.stride();
        failed += test_matrix(b, m, "allocation's end");
        report_plain(b, m);
        printf("bit 21 of the ragged maps: load %s, store %s\n",
               address_bit(load_map(b.encode, m, 64)) ? "set" : "clear",
               address_bit(store_map(b.encode, m, 64)) ? "set" : "clear");
    }
    CHECK(cudaFree(b.memory));
    CHECK(cudaFree(b.tiles));
    return failed;
}

/* -- rates
 * ------------------------------------------------------------------------------------------ */

/* Groups of equal numbers of boxes: group g is `length` rows from row g * step, so that a length
 * that is no multiple of the box has its last box cut short. */
struct layout {
    int boxes, columns_boxes, groups, box_rows, step, length;
    __device__ inline place at(int64_t tile) const {
        int column = (int)(tile % columns_boxes);
        int64_t row = tile / columns_boxes;
        int g = (int)(row / boxes), i = (int)(row % boxes);
        return {column * COLUMNS, i * box_rows, g * step, length};
    }
    __host__ __device__ inline int64_t tiles() const {
        return (int64_t)boxes * columns_boxes * groups;
    }
};

/* One thread per block streams its tiles through the ring; nobody looks at them. */
template <int FORM>
__global__ void __launch_bounds__(32)
    load_rate_kernel(const __grid_constant__ CUtensorMap map, layout l) {
    extern __shared__ __align__(1024) unsigned char ring[];
    __shared__ uint64_t full[STAGES];
    if (threadIdx.x != 0) return;
    int bytes = l.box_rows * ROW_BYTES;
    for (int s = 0; s < STAGES; s++) barrier_init(&full[s], 1);
    fence_shared();
    int64_t n = l.tiles(), step = gridDim.x, issued = 0, i = 0;
    for (int64_t t = blockIdx.x; t < n + STAGES * step; t += step, i++) {
        int s = (int)(i % STAGES);
        if (i >= STAGES && i - STAGES < issued)
            barrier_wait(&full[s], (uint32_t)((i / STAGES - 1) % 2));
        if (t >= n) continue;
        barrier_expect(&full[s], bytes);
        load_box<FORM>(ring + s * bytes, map, &full[s], l.at(t));
        issued++;
    }
}

template <int FORM>
__global__ void __launch_bounds__(128)
    store_rate_kernel(const __grid_constant__ CUtensorMap map, layout l) {
    extern __shared__ __align__(1024) unsigned char ring[];
    int bytes = l.box_rows * ROW_BYTES;
    for (int i = (int)threadIdx.x; i < STAGES * bytes; i += 128)
        ring[i] = (unsigned char)(i * 37 + (int)blockIdx.x);
    fence_shared();
    __syncthreads();
    if (threadIdx.x != 0) return;
    int s = 0;
    for (int64_t t = blockIdx.x; t < l.tiles(); t += gridDim.x, s = (s + 1) % STAGES) {
        store_box<FORM>(map, ring + s * bytes, l.at(t));
        store_commit();
        store_wait_read<STAGES - 1>();
    }
    store_wait_all();
}

struct rate_case {
    const char *name;
    void (*kernel)(CUtensorMap, layout);
    CUtensorMap map;
    int threads;
    layout l;
    std::vector<double> gbs;
};

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

void measure(bench &b, int processors) {
    enum { REPEATS = 15, WARM = 3, BOX_ROWS = 128, GROUPS = 64 };
    matrix m = {nullptr, 1 << 18, 2048}; /* 1 GiB */
    CHECK(cudaMalloc(&m.data, m.rows * m.stride()));
    CHECK(cudaMemset(m.data, 0x3C, m.rows * m.stride()));
    int step = (int)m.rows / GROUPS, boxes = step / BOX_ROWS;
    layout even = {boxes, (int)m.columns / COLUMNS, GROUPS, BOX_ROWS, step, step};
    layout cut = even;
    cut.length = step - 27; /* the last box of each group has 101 rows */
    CUtensorMap plain = plain_map(b.encode, m, BOX_ROWS), load = load_map(b.encode, m, BOX_ROWS);
    CUtensorMap store = store_map(b.encode, m, BOX_ROWS);
    rate_case cases[] = {
        {"load, plain 2-D", load_rate_kernel<PLAIN>, plain, 32, even, {}},
        {"load, ragged 4-D", load_rate_kernel<RAGGED>, load, 32, even, {}},
        {"load, ragged 4-D, groups cut short", load_rate_kernel<RAGGED>, load, 32, cut, {}},
        {"store, plain 2-D", store_rate_kernel<PLAIN>, plain, 128, even, {}},
        {"store, ragged 3-D", store_rate_kernel<RAGGED>, store, 128, even, {}},
        {"store, ragged 3-D, groups cut short", store_rate_kernel<RAGGED>, store, 128, cut, {}},
    };
    const int shared = STAGES * BOX_ROWS * ROW_BYTES, per_processor = 3;
    cudaEvent_t begin, end;
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
    for (rate_case &c : cases)
        CHECK(cudaFuncSetAttribute(reinterpret_cast<const void *>(c.kernel),
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    for (int i = 0; i < WARM + REPEATS; i++) {
        for (rate_case &c : cases) {
            CHECK(cudaEventRecord(begin));
            c.kernel<<<processors * per_processor, c.threads, shared>>>(c.map, c.l);
            CHECK(cudaGetLastError());
            CHECK(cudaEventRecord(end));
            CHECK(cudaEventSynchronize(end));
            float ms = 0;
            CHECK(cudaEventElapsedTime(&ms, begin, end));
            double bytes = (double)c.l.length * c.l.groups * (double)m.stride();
            if (i >= WARM) c.gbs.push_back(bytes / ms * 1e-6);
        }
    }
    printf("\n%-38s %10s %10s %8s\n", "1 GiB, boxes of 128 x 64, 4 stages", "GB/s", "best",
           "of plain");
    for (int i = 0; i < 6; i++) {
        double own = median(cases[i].gbs), base = median(cases[i / 3 * 3].gbs);
        printf("%-38s %10.0f %10.0f %7.1f%%\n", cases[i].name, own,
               *std::max_element(cases[i].gbs.begin(), cases[i].gbs.end()), 100 * own / base);
    }
    CHECK(cudaFree(m.data));
}

} /* namespace */

int main() {
    cudaDeviceProp device;
    bench b = {};
    CHECK(cudaGetDeviceProperties(&device, 0));
    CHECK(cudaDriverGetVersion(&b.driver));
    printf("%s, driver %d.%d\n", device.name, b.driver / 1000, b.driver % 1000 / 10);
    if (device.major != 9) {
        fprintf(stderr, "ragged_map: wanted a GPU of compute capability 9.0, this one has %d.%d\n",
                device.major, device.minor);
        return 2;
    }
    b.encode = find_encoder();
    int failed = test_all(b);
    measure(b, device.multiProcessorCount);
    printf("\nragged maps: %s\n", failed ? "WRONG" : "right");
    return failed ? 1 : 0;
}
