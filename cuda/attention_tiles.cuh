/* attention_tiles.cuh: tiles of rows in shared memory and their fragments for the tensor cores.
 *
 * A tile is [rows][D] of 16-bit elements in chunks of 16 bytes. Chunk c of row r lies at chunk
 * c ^ (r % 8) of that row: the 8 rows that an ldmatrix reads at one chunk then lie in 8 different
 * groups of banks, without padding. Fragments: see the head of ptx.cuh.
 */
#ifndef MCU_ATTENTION_TILES_CUH
#define MCU_ATTENTION_TILES_CUH

#include "attention.cuh"
#include "ptx.cuh"

enum { MCU_ATTENTION_WARPS = 4, MCU_ATTENTION_THREADS = 32 * MCU_ATTENTION_WARPS };

/* The warp's number, told by its first lane: then the compiler knows that all lanes agree, and
 * keeps what follows from it in the warp's own registers. */
__device__ inline int mcu_warp_number() {
    return __shfl_sync(0xFFFFFFFFU, (int)threadIdx.x / 32, 0);
}

/* A view [B, rows, heads, D] whose last axis is contiguous: strides in elements. */
template <typename T>
struct mcu_heads {
    T *data;
    int64_t batch, row, head;
    __device__ inline T *at(int64_t b, int64_t r, int64_t h) const {
        return data + b * batch + r * row + h * head;
    }
};
template <typename T>
mcu_heads<T> mcu_heads_of(const mci_view *v) {
    return {(T *)v->data, v->stride[0], v->stride[1], v->stride[2]};
}

/* A view of statistics [B, H, T]. */
struct mcu_stats {
    float *data;
    int64_t batch, head, row;
    __device__ inline float *at(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};
inline mcu_stats mcu_stats_of(const mci_view *v) {
    return {(float *)v->data, v->stride[0], v->stride[1], v->stride[2]};
}

/* Rows 0 .. ROWS - 1 of a head to a tile, in the background, by all threads of the block; rows from
 * n on become zeros. `stride` in elements. */
template <typename T, int D, int ROWS>
__device__ inline void mcu_tile_load(T *tile, const T *rows, int64_t stride, int n) {
    constexpr int CHUNKS = D / 8, STEP = MCU_ATTENTION_THREADS / CHUNKS;
    int chunk = (int)threadIdx.x % CHUNKS, r = (int)threadIdx.x / CHUNKS;
    T *to = tile + r * D + (chunk ^ (r & 7)) * 8;
    const T *from = rows + r * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++, from += STEP * stride) {
        /* of no bytes, the address does not matter */
        mcu_copy_async(to + i * STEP * D, from, r + i * STEP < n ? 16 : 0);
    }
}

/* Tiles below are offsets of their first row in the block's shared memory (elements, multiples of
 * 8 D). The chunk `hi` after column 16 k of a row that starts at `row`, where `low` is its number's
 * lowest 3 bits: column 16 k is an XOR away, where a table for all k would cost registers. */
__device__ inline int mcu_tile_chunk(int row, int low, int hi, int k) {
    return (row + (hi ^ low) * 8) ^ 16 * k;
}

/* a of the 16 rows from `row` on and columns 16 k .. 16 k + 15. Also, as two pairs (b0, b1), of the
 * transposed tile, when it is loaded with TRANSPOSED: its k axis is these rows, n the columns. */
template <typename T, int D, bool TRANSPOSED>
__device__ inline void mcu_tile_a(uint32_t (&r)[4], const T *shared, int tile, int row, int k) {
    int lane = (int)threadIdx.x % 32;
    const T *p = shared + mcu_tile_chunk(tile + lane % 16 * D, lane % 8, lane / 16, k) + row * D;
    if (TRANSPOSED)
        mcu_load_matrix_t(r, p);
    else
        mcu_load_matrix(r, p);
}

/* Two b, as pairs (b0, b1): n is the 16 rows from `row` on, k columns 16 k .. 16 k + 15. */
template <typename T, int D>
__device__ inline void mcu_tile_b(uint32_t (&r)[4], const T *shared, int tile, int row, int k) {
    int lane = (int)threadIdx.x % 32, own = lane % 8 + lane / 16 * 8;
    int at = mcu_tile_chunk(tile + own * D, lane % 8, lane / 8 % 2, k) + row * D;
    mcu_load_matrix(r, shared + at);
}

/* d [16 M, 16 N] += a b^T, over all D columns of the first rows of tiles a and b. */
template <typename T, int D, int M, int N>
__device__ inline void mcu_tile_dot(float (&d)[M][2 * N][4], const T *shared, int a, int b) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t af[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) mcu_tile_a<T, D, false>(af[m], shared, a, 16 * m, k);
#pragma unroll
        for (int n = 0; n < N; n++) {
            uint32_t bf[4];
            mcu_tile_b<T, D>(bf, shared, b, 16 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mcu_mma<T>(d[m][2 * n], af[m], bf[0], bf[1]);
                mcu_mma<T>(d[m][2 * n + 1], af[m], bf[2], bf[3]);
            }
        }
    }
}

/* The same with a's fragments in registers. */
template <typename T, int D, int M, int N, int K>
__device__ inline void mcu_tile_dot(float (&d)[M][2 * N][4], const uint32_t (&af)[K][M][4],
                                    const T *shared, int b) {
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            uint32_t bf[4];
            mcu_tile_b<T, D>(bf, shared, b, 16 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mcu_mma<T>(d[m][2 * n], af[k][m], bf[0], bf[1]);
                mcu_mma<T>(d[m][2 * n + 1], af[k][m], bf[2], bf[3]);
            }
        }
    }
}

/* d [16 M, D] += w b: weights w [16 M, 16] as fragments, b 16 rows of a tile from `row` on. */
template <typename T, int D, int M>
__device__ inline void mcu_tile_weigh(float (&d)[M][D / 8][4], const uint32_t (&w)[M][4],
                                      const T *shared, int b, int row) {
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        uint32_t bf[4];
        mcu_tile_a<T, D, true>(bf, shared, b, row, n);
#pragma unroll
        for (int m = 0; m < M; m++) {
            mcu_mma<T>(d[m][2 * n], w[m], bf[0], bf[1]);
            mcu_mma<T>(d[m][2 * n + 1], w[m], bf[2], bf[3]);
        }
    }
}

/* Columns 16 k .. + 15 of accumulators to weights, rounded once: what d holds is what a wants. */
template <typename T, int M, int N>
__device__ inline void mcu_tile_pack(uint32_t (&w)[M][4], const float (&d)[M][N][4], int k) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        w[m][0] = mcu_pack<T>(d[m][2 * k][0], d[m][2 * k][1]);
        w[m][1] = mcu_pack<T>(d[m][2 * k][2], d[m][2 * k][3]);
        w[m][2] = mcu_pack<T>(d[m][2 * k + 1][0], d[m][2 * k + 1][1]);
        w[m][3] = mcu_pack<T>(d[m][2 * k + 1][2], d[m][2 * k + 1][3]);
    }
}

template <int M, int N>
__device__ inline void mcu_tile_zero(float (&d)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) d[m][n][i] = 0;
        }
    }
}

/* Accumulators of one warp, times factor[m][half], to rows of a head: by way of the warp's own rows
 * `first` on of a tile that nobody needs any more, so that whole rows go out in pieces of 16 bytes.
 * `rows` is where row `first` goes; only n of them are there. */
template <typename T, int D, int M>
__device__ inline void mcu_tile_store(T *rows, int64_t stride, int n, const float (&d)[M][D / 8][4],
                                      const float (&factor)[M][2], T *tile, int first) {
    constexpr int CHUNKS = D / 8, STEP = 32 / CHUNKS;
    int lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                T *to = tile + (first + 16 * m + 8 * half + g) * D + (c ^ g) * 8 + 2 * q;
                *(uint32_t *)to = mcu_pack<T>(d[m][c][2 * half] * factor[m][half],
                                              d[m][c][2 * half + 1] * factor[m][half]);
            }
        }
    }
    __syncwarp();
    int chunk = lane % CHUNKS;
#pragma unroll
    for (int i = 0; i < 16 * M / STEP; i++) {
        int r = lane / CHUNKS + i * STEP;
        if (r < n)
            *(uint4 *)(rows + r * stride + chunk * 8) =
                *(const uint4 *)(tile + (first + r) * D + (chunk ^ (r & 7)) * 8);
    }
}

#endif
