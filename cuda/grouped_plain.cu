/* grouped_plain.cu: the grouped passes for any floats, sizes and steps; job and plan: grouped.cuh.
 *
 * A block of 16 x 16 threads owns a tile of 128 rows and 64 columns of one group's output and runs
 * along k in pieces of 16: the next piece is on its way from memory to registers while the threads
 * multiply the last one out of shared memory. Thread (x, y) owns columns 4x .. 4x + 3 of rows
 * 4y .. 4y + 3 and 64 + 4y .. 64 + 4y + 3, and adds its products in the order of k. Sums run in
 * float32, or float64 for float64.
 */
#include "grouped.cuh"

enum { TILE_M = MCU_GROUPED_ROWS, TILE_N = 64, TILE_K = 16, THREADS = 256 };
enum { PART_M = TILE_M * TILE_K / THREADS, PART_N = TILE_N * TILE_K / THREADS };

/* Which elements of an operand's EXTENT x TILE_K tile a thread moves: (at + i more, k + i more_k).
 * The neighbours of a warp follow the axis along which the operand's elements lie side by side. */
struct share {
    int at, k, more, more_k;
};
template <int EXTENT>
__device__ inline share share_of(bool k_side) {
    const int x = (int)threadIdx.x;
    if (k_side) return share{x / TILE_K, x % TILE_K, THREADS / TILE_K, 0};
    return share{x % EXTENT, x / EXTENT, 0, THREADS / EXTENT};
}

template <typename T, int PART>
__device__ inline void fetch(mcu_real_t<T> (&part)[PART], const share &s, const T *from,
                             int64_t step, int64_t step_k, int extent, int64_t k_left) {
    from += s.at * step + s.k * step_k;
    const int64_t more = s.more * step + s.more_k * step_k;
#pragma unroll
    for (int i = 0; i < PART; i++, from += more)
        part[i] = s.at + i * s.more < extent && s.k + i * s.more_k < k_left ? mcu_up(*from)
                                                                            : (mcu_real_t<T>)0;
}
template <int WIDE, int PART, typename R>
__device__ inline void keep(R (*tile)[WIDE], const share &s, const R (&part)[PART]) {
#pragma unroll
    for (int i = 0; i < PART; i++) tile[s.k + i * s.more_k][s.at + i * s.more] = part[i];
}

/* One tile, of one group: a, b and out begin at its corner, m and n are its valid rows and columns,
 * k the length of the sums. */
template <typename T, typename O>
struct plain_tile {
    const T *a, *b, *bias;
    O *out;
    int m, n;
    int64_t k;
};

template <typename T, typename O, bool RAGGED_K>
__device__ inline plain_tile<T, O> locate(const mcu_grouped_job &j, int64_t tile, int64_t m_tiles,
                                          int64_t n_tiles) {
    int64_t x = tile / n_tiles, n0 = tile % n_tiles * TILE_N, g, m0, row, left, k0 = 0;
    plain_tile<T, O> t;
    if (RAGGED_K) {
        g = j.plan.order ? j.plan.order[x / m_tiles] : x / m_tiles;
        row = m0 = x % m_tiles * TILE_M;
        k0 = j.plan.start[g];
        left = j.m - m0;
        t.k = j.plan.start[g + 1] - k0;
    } else {
        g = mcu_grouped_find(j.plan.tiles, j.groups, x);
        m0 = (x - j.plan.tiles[g]) * TILE_M;
        row = j.plan.start[g] + m0;
        left = j.plan.start[g + 1] - row;
        t.k = j.k;
    }
    t.m = (int)(left < TILE_M ? left : (int64_t)TILE_M);
    t.n = (int)(j.n - n0 < TILE_N ? j.n - n0 : (int64_t)TILE_N);
    t.a = (const T *)j.a.data + row * j.a.row + k0 * j.a.column;
    t.b = (const T *)j.b.data + g * j.b.group + k0 * j.b.row + n0 * j.b.column;
    t.out = (O *)j.out.data + g * j.out.group + row * j.out.row + n0 * j.out.column;
    t.bias = j.bias.data ? (const T *)j.bias.data + g * j.bias.group + n0 * j.bias.column : NULL;
    return t;
}

template <typename T, typename O, bool RAGGED_K>
__global__ void __launch_bounds__(THREADS, sizeof(mcu_real_t<T>) == 8 ? 1 : 2)
    grouped_plain_kernel(const mcu_grouped_job j) {
    typedef mcu_real_t<T> R;
    __shared__ R shared_a[TILE_K][TILE_M + 4];
    __shared__ R shared_b[TILE_K][TILE_N + 4];
    const int64_t m_tiles = (j.m + TILE_M - 1) / TILE_M, n_tiles = (j.n + TILE_N - 1) / TILE_N;
    const int64_t tiles = (RAGGED_K ? j.groups * m_tiles : j.plan.tiles[j.groups]) * n_tiles;
    const int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
    const share own_a = share_of<TILE_M>(j.a.column == 1), own_b = share_of<TILE_N>(j.b.row == 1);
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const plain_tile<T, O> t = locate<T, O, RAGGED_K>(j, tile, m_tiles, n_tiles);
        if (RAGGED_K && j.accumulate && t.k == 0) continue; /* nothing to add */
        R sum[8][4] = {}, part_a[PART_M], part_b[PART_N];
        fetch(part_a, own_a, t.a, j.a.row, j.a.column, t.m, t.k);
        fetch(part_b, own_b, t.b, j.b.column, j.b.row, t.n, t.k);
        for (int64_t k0 = 0; k0 < t.k; k0 += TILE_K) {
            __syncthreads();
            keep(shared_a, own_a, part_a);
            keep(shared_b, own_b, part_b);
            __syncthreads();
            int64_t next = k0 + TILE_K;
            if (next < t.k) {
                fetch(part_a, own_a, t.a + next * j.a.column, j.a.row, j.a.column, t.m, t.k - next);
                fetch(part_b, own_b, t.b + next * j.b.row, j.b.column, j.b.row, t.n, t.k - next);
            }
#pragma unroll 2
            for (int k = 0; k < TILE_K; k++) {
                R a[8], b[4];
                for (int i = 0; i < 4; i++) a[i] = shared_a[k][4 * y + i];
                for (int i = 0; i < 4; i++) a[4 + i] = shared_a[k][64 + 4 * y + i];
                for (int i = 0; i < 4; i++) b[i] = shared_b[k][4 * x + i];
                for (int r = 0; r < 8; r++)
                    for (int c = 0; c < 4; c++) sum[r][c] += a[r] * b[c];
            }
        }
#pragma unroll
        for (int r = 0; r < 8; r++) {
            int row = r / 4 * 64 + 4 * y + r % 4;
            for (int c = 0; c < 4; c++) {
                int column = 4 * x + c;
                if (row >= t.m || column >= t.n) continue;
                O *to = t.out + row * j.out.row + column * j.out.column;
                R value = sum[r][c];
                if (t.bias) value += mcu_up(t.bias[column * j.bias.column]);
                if (j.accumulate) value = mcu_up(*to) + value;
                *to = mcu_down<O>(value);
            }
        }
    }
}

template <typename T, typename O>
static mc_status run(mci_exec *exec, const mcu_grouped_job *j) {
    int64_t m_tiles =
        j->ragged_k ? j->groups * ((j->m + TILE_M - 1) / TILE_M) : mcu_grouped_tile_bound(j);
    int64_t blocks = m_tiles * ((j->n + TILE_N - 1) / TILE_N), most = 1 << 30;
    if (blocks == 0) return MC_OK;
    unsigned grid = (unsigned)(blocks < most ? blocks : most);
    if (j->ragged_k)
        MCU_LAUNCH((grouped_plain_kernel<T, O, true>), grid, THREADS, 0, exec, *j);
    else
        MCU_LAUNCH((grouped_plain_kernel<T, T, false>), grid, THREADS, 0, exec, *j);
    return mcu_launched(j->op);
}

mc_status mcu_grouped_plain(mci_exec *exec, const mcu_grouped_job *j) {
    switch (j->dtype) {
        case MC_FLOAT64:
            return run<double, double>(exec, j);
        case MC_FLOAT32:
            return run<float, float>(exec, j);
        case MC_FLOAT16:
            return j->out_dtype == MC_FLOAT32 ? run<mcu_half, float>(exec, j)
                                              : run<mcu_half, mcu_half>(exec, j);
        default:
            return j->out_dtype == MC_FLOAT32 ? run<mcu_bf16, float>(exec, j)
                                              : run<mcu_bf16, mcu_bf16>(exec, j);
    }
}
