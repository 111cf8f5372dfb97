/* grouped_tiles.cuh: the tensor core kernel of the grouped passes, for 16-bit operands (T).
 *
 * A block owns tiles of 128 x WIDTH of the output, drawn one after another, and runs along k in
 * pieces of 32 that come through a ring of four stages in shared memory (cp.async). The stream of
 * pieces does not stop between tiles: the first pieces of the next one are under way while the last
 * sums are written. A warp owns 64 x 64 of the tile as 4 x 8 fragments of mma.m16n8k16, and loads
 * the operands of the next 16 k while the tensor cores work on these.
 *
 * Stages are swizzled: the 16-byte chunk c of stored row r lies in chunk c ^ f(r), so that neither
 * cp.async nor ldmatrix meets a bank twice. An operand is stored along k (x, W in forward) or
 * across (W in dgrad, both in wgrad: ldmatrix then transposes). What lies beyond the group's rows,
 * n or k is zero in shared memory, never read.
 *
 * Tiles are numbered group by group (in wgrad the longest first), inside a group in bands of 8 row
 * tiles, so that the blocks at work share rows and weights in the L2 cache. The first tile of a
 * block is its own number; then warp 0 draws from a counter, shortly before the last pieces of a
 * tile are asked for. Who owns a tile shows nowhere: its sums have one order.
 */
#ifndef MCU_GROUPED_TILES_CUH
#define MCU_GROUPED_TILES_CUH

#include "grouped.cuh"
#include "ptx.cuh"

enum { STAGES = 4, PIECE_K = 32, BAND = 8, RING = 8, WARP_TILE = 64 };

/* RING: tiles that a block may have between the one drawn and the one written (STAGES + 1), as a
 * power of 2. */
typedef struct tile_record {
    int group;      /* -1: there are no more */
    int row, rows;  /* of out: the tile's first, and how many are valid from there */
    int column;     /* of out */
    int k_first, k; /* wgrad: first row of the group. k: its length */
    int pieces;     /* of k, at least 1 */
    int zero;       /* to the compiler any number (draw) */
} tile_record;

typedef struct tiles_args {
    const void *a, *b, *bias;
    void *out;
    int64_t a_ld, b_ld, out_ld, b_group, out_group, bias_group, bias_step;
    mcu_grouped_plan plan;
    int groups, m, n, k;
    int accumulate, wide_out; /* wide_out: out is float32 */
} tiles_args;

/* FORWARD: a and b along k. DGRAD, and forward with transposed weights: b across. WGRAD: both
 * across, k ragged. */
enum { PASS_FORWARD, PASS_DGRAD, PASS_WGRAD };

/* -- who computes what ------------------------------------------------------------------------- */

/* By a whole warp: tile `x` as a record; lane 0 writes it. */
template <int PASS, int WIDTH>
__device__ inline void describe_tile(const tiles_args &p, int x, tile_record *to) {
    const int lane = (int)threadIdx.x % 32;
    const int columns = (p.n + WIDTH - 1) / WIDTH;
    int g, rows_of_tiles, inner;
    tile_record t = {};
    if (PASS == PASS_WGRAD) {
        rows_of_tiles = (p.m + MCU_GROUPED_ROWS - 1) / MCU_GROUPED_ROWS;
        int each = rows_of_tiles * columns;
        g = x / each;
        inner = x - g * each;
        if (g >= p.groups)
            g = -1;
        else if (p.plan.order)
            g = p.plan.order[g];
    } else { /* 32 probes at once */
        int low = 0, high = p.groups, line = x / columns;
        g = -1;
        if (line < p.plan.tiles[p.groups]) {
            while (high - low > 1) {
                int stride = (high - low + 31) / 32, probe = low + (lane + 1) * stride;
                bool below = probe < high && p.plan.tiles[probe < high ? probe : low] <= line;
                int count = __popc(__ballot_sync(0xFFFFFFFFU, below));
                low += count * stride;
                high = low + stride < high ? low + stride : high;
            }
            g = low;
        }
        int first = g < 0 ? 0 : (int)p.plan.tiles[g];
        rows_of_tiles = g < 0 ? 1 : (int)p.plan.tiles[g + 1] - first;
        inner = x - first * columns;
    }
    t.group = g;
    if (g >= 0) {
        int band = inner / (BAND * columns), within = inner - band * BAND * columns;
        int height = rows_of_tiles - band * BAND < BAND ? rows_of_tiles - band * BAND : BAND;
        int row = (band * BAND + within % height) * MCU_GROUPED_ROWS;
        int start = (int)p.plan.start[g], own = (int)(p.plan.start[g + 1] - p.plan.start[g]);
        t.column = within / height * WIDTH;
        t.row = PASS == PASS_WGRAD ? row : start + row;
        t.rows = (PASS == PASS_WGRAD ? p.m : own) - row;
        t.k_first = start;
        t.k = PASS == PASS_WGRAD ? own : p.k;
        t.pieces = t.k > PIECE_K ? (t.k + PIECE_K - 1) / PIECE_K : 1;
    }
    if (lane == 0) *to = t;
}

/* -- from memory to a stage -------------------------------------------------------------------- */

/* One operand's share of a stage: EXTENT (rows of a, columns of b) x PIECE_K elements, in stored
 * rows of ACROSS chunks of 8 elements. A thread copies CHUNKS of them, ROWS stored rows apart. */
template <bool ALONG_K, int EXTENT, int THREADS>
struct feeder {
    enum {
        ACROSS = ALONG_K ? PIECE_K / 8 : EXTENT / 8,
        ROWS = THREADS / ACROSS,
        CHUNKS = EXTENT * PIECE_K / 8 / THREADS,
        BYTES = EXTENT * PIECE_K * 2
    };
    const uint16_t *from; /* this thread's first chunk of the next piece */
    int left; /* ALONG_K: stored rows from this thread's on; across: elements from its chunk */

    __device__ static inline int row() { return (int)threadIdx.x / ACROSS; }
    __device__ static inline int chunk() { return (int)threadIdx.x % ACROSS; }
    /* corner: of the tile in the operand; extent: rows or columns valid from there. */
    __device__ inline void open(const uint16_t *corner, int64_t ld, int extent) {
        from = corner + row() * ld + chunk() * 8;
        left = ALONG_K ? extent - row() : extent - chunk() * 8;
    }
    /* The next piece, of which k_left elements (or more) are valid, to `stage`. */
    __device__ inline void copy(unsigned char *stage, int64_t ld, int k_left) {
        int swizzled = chunk() ^ (ALONG_K ? row() >> 1 & 3 : row() & 7);
        unsigned char *to = stage + row() * (ACROSS * 16) + swizzled * 16;
        int k = k_left - (ALONG_K ? chunk() * 8 : row());
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            bool valid = ALONG_K ? k > 0 && i * ROWS < left : left > 0 && i * ROWS < k;
            mcu_copy_async(to + i * ROWS * ACROSS * 16, from + i * ROWS * ld, valid ? 16 : 0);
        }
        from += PIECE_K * (ALONG_K ? 1 : ld);
    }
};

/* -- from a stage to fragments ----------------------------------------------------------------- */

/* A warp's 64 rows (of a; columns of b) x 16 k come as four ldmatrix.x4 of 16 x 16: r[i] is the
 * fragment of rows 16 i of a, or of columns 16 i .. + 7 and 16 i + 8 .. + 15 of b. */
template <bool ALONG_K, int EXTENT, bool IS_A>
struct loader {
    /* Where this lane's address of r[0] and the first 16 k lies in a stage (bytes); the others
     * differ in bits that no sum carries into, for stages lie at multiples of 128 bytes. */
    __device__ static inline int offset(int first) {
        const int lane = (int)threadIdx.x % 32, in = lane % 8;
        /* which 8 of the extent and which 8 of k the address is for */
        const int e8 = IS_A ? lane / 8 % 2 : lane / 16, k8 = IS_A ? lane / 16 : lane / 8 % 2;
        return ALONG_K ? (first + 8 * e8 + in) * (PIECE_K * 2) + (k8 ^ (in >> 1 & 3)) * 16
                       : (8 * k8 + in) * (EXTENT * 2) + first * 2 + (e8 ^ in) * 16;
    }
    /* half: which 16 of the piece's k; at: the stage's offset plus the lane's. */
    __device__ static inline void load(uint32_t (&r)[4][4], const unsigned char *stages, int at,
                                       int half) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (ALONG_K)
                mcu_load_matrix(r[i], stages + ((at ^ 32 * half) + i * (16 * PIECE_K * 2)));
            else
                mcu_load_matrix_t(r[i], stages + ((at ^ 32 * i) + half * (16 * EXTENT * 2)));
        }
    }
};

/* -- from sums to memory ----------------------------------------------------------------------- */

/* The four lanes that hold a row of four fragments have element pairs 0, 1, 2, 3 of each;
 * afterwards lane q has the eight elements of fragment q in order. */
__device__ inline void exchange(uint32_t (&v)[4], int q) {
    const unsigned all = 0xFFFFFFFFU;
    bool odd = (q & 1) != 0, high = (q & 2) != 0;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        uint32_t other = __shfl_xor_sync(all, odd ? v[i] : v[i + 1], 1);
        (odd ? v[i] : v[i + 1]) = other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t other = __shfl_xor_sync(all, high ? v[i] : v[i + 2], 2);
        (high ? v[i] : v[i + 2]) = other;
    }
}

template <typename T>
__device__ inline uint32_t pack(float low, float high) {
    return (uint32_t)mcu_down<T>(low).bits | (uint32_t)mcu_down<T>(high).bits << 16;
}
template <>
__device__ inline uint32_t pack<mcu_bf16>(float low, float high) {
    return mcu_pack_bf16(low, high);
}

/* Sums of the warp's 64 x 64 at (row, column) of the tile, plus bias or what was there, rounded
 * once. */
template <typename T, int PASS>
__device__ inline void write_sums(const tiles_args &p, const tile_record &t, float (&sum)[4][8][4],
                                  int row, int column) {
    const int lane = (int)threadIdx.x % 32, q = lane % 4;
    if (PASS == PASS_WGRAD && p.accumulate && t.k == 0) return; /* nothing to add */
    row += lane / 4;
    column += t.column;
    const int rows = t.rows - row;
    int64_t corner = (int64_t)(t.row + row) * p.out_ld;
    if (PASS == PASS_WGRAD) corner += (int64_t)t.group * p.out_group;
    if (PASS != PASS_WGRAD && p.bias) {
        const T *bias = (const T *)p.bias + t.group * p.bias_group;
#pragma unroll
        for (int f = 0; f < 8; f++)
            for (int e = 0; e < 2; e++) {
                int n = column + 8 * f + 2 * q + e;
                float add = n < p.n ? mcu_up(bias[n * p.bias_step]) : 0.0F;
                for (int m = 0; m < 4; m++) {
                    sum[m][f][e] += add;
                    sum[m][f][2 + e] += add;
                }
            }
    }
    if (PASS == PASS_WGRAD && (p.wide_out || p.accumulate)) {
#pragma unroll
        for (int m = 0; m < 8; m++) { /* 8 rows each */
            if (8 * m >= rows) break;
            int64_t line = corner + 8 * m * p.out_ld + column + 2 * q;
#pragma unroll
            for (int f = 0; f < 8; f++) {
                float *pair = &sum[m / 2][f][m % 2 * 2];
                if (column + 8 * f >= p.n) break;
                if (p.wide_out) {
                    typedef mcu_vector<float, 2> two;
                    two *to = (two *)((float *)p.out + line + 8 * f), now = {{pair[0], pair[1]}};
                    if (p.accumulate) {
                        two old = *to;
                        now = two{{old.v[0] + pair[0], old.v[1] + pair[1]}};
                    }
                    *to = now;
                } else {
                    typedef mcu_vector<T, 2> two;
                    two old = *(const two *)((const T *)p.out + line + 8 * f);
                    pair[0] += mcu_up(old.v[0]);
                    pair[1] += mcu_up(old.v[1]);
                }
            }
        }
        if (p.wide_out) return;
    }
#pragma unroll
    for (int f = 0; f < 8; f += 4) { /* 32 columns: four fragments */
        int n = column + 8 * f + 8 * q;
#pragma unroll
        for (int m = 0; m < 8; m++) {
            uint32_t v[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = pack<T>(sum[m / 2][f + i][m % 2 * 2], sum[m / 2][f + i][m % 2 * 2 + 1]);
            exchange(v, q);
            if (8 * m < rows && n < p.n)
                *(uint4 *)((T *)p.out + corner + 8 * m * p.out_ld + n) =
                    make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
}

/* -- the kernel -------------------------------------------------------------------------------- */

template <typename T, int PASS, int WIDTH>
__global__ void __launch_bounds__(WIDTH, WIDTH == 128 ? 2 : 1)
    grouped_tiles_kernel(const tiles_args p) {
    constexpr bool A_ALONG = PASS != PASS_WGRAD, B_ALONG = PASS == PASS_FORWARD;
    typedef feeder<A_ALONG, MCU_GROUPED_ROWS, WIDTH> feeder_a;
    typedef feeder<B_ALONG, WIDTH, WIDTH> feeder_b;
    constexpr int STAGE = feeder_a::BYTES + feeder_b::BYTES;
    __shared__ tile_record ring[RING];
    MCU_SHARED(unsigned char, stages);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int warp_row = warp % 2 * WARP_TILE, warp_column = warp / 2 * WARP_TILE;

    feeder_a feed_a;
    feeder_b feed_b;
    int fed = -1;               /* the tile being fed, counted in this block, */
    int pieces = 0, k_left = 0; /* and what is left of it */
    int known = 0;              /* the newest record in the ring (warp 0) */
    int drawn = 0;              /* the tile of the next one (lane 0 of warp 0), */
    bool asked = false;         /* or on its way */

    /* The next piece of the stream into the stage at `fill`. A __syncthreads lies between calls. */
    auto feed = [&](int fill) {
        if (pieces == 0) {
            const tile_record &t = ring[(fed + 1) % RING];
            if (t.group >= 0) {
                const uint16_t *a = (const uint16_t *)p.a, *b = (const uint16_t *)p.b;
                int extent = p.n - t.column;
                fed++;
                pieces = t.pieces;
                k_left = t.k;
                if (PASS == PASS_WGRAD) {
                    feed_a.open(a + t.k_first * p.a_ld + t.row, p.a_ld, t.rows);
                    feed_b.open(b + t.k_first * p.b_ld + t.column, p.b_ld, extent);
                } else {
                    b += t.group * p.b_group + t.column * (PASS == PASS_FORWARD ? p.b_ld : 1);
                    feed_a.open(a + t.row * p.a_ld, p.a_ld, t.rows);
                    feed_b.open(b, p.b_ld, extent);
                }
            }
        }
        if (pieces > 0) {
            feed_a.copy(stages + fill, p.a_ld, k_left);
            feed_b.copy(stages + fill + feeder_a::BYTES, p.b_ld, k_left);
            k_left -= PIECE_K;
            pieces--;
        }
        mcu_copy_commit();
    };
    /* After feed: the record that it opens next. The number is under way for some pieces before it
     * is looked at; the unknown 0 keeps the compiler from gathering the warp's additions into one,
     * whose result it would have to wait for at once. */
    auto draw = [&]() {
        if (warp != 0 || known > fed || pieces >= STAGES) return;
        if (!asked && lane == 0) drawn = atomicAdd(p.plan.next + ring[threadIdx.x].zero, 1);
        asked = true;
        if (pieces > 0) return;
        known = fed + 1;
        describe_tile<PASS, WIDTH>(p, (int)gridDim.x + __shfl_sync(0xFFFFFFFFU, drawn, 0),
                                   &ring[known % RING]);
        asked = false;
    };

    if (warp == 0) describe_tile<PASS, WIDTH>(p, (int)blockIdx.x, &ring[0]);
    for (int i = 0; i < STAGES - 1; i++) {
        __syncthreads();
        feed(i * STAGE);
        draw();
    }
    mcu_copy_wait<STAGES - 2>();
    __syncthreads();

    typedef loader<A_ALONG, MCU_GROUPED_ROWS, true> load_a;
    typedef loader<B_ALONG, WIDTH, false> load_b;
    const int at_a = load_a::offset(warp_row);
    const int at_b = load_b::offset(warp_column) + feeder_a::BYTES;
    uint32_t a[2][4][4], b[2][4][4];
    int stage = 0;
    load_a::load(a[0], stages, at_a, 0);
    load_b::load(b[0], stages, at_b, 0);
    for (int own = 0;; own++) {
        const tile_record *t = &ring[own % RING];
        if (t->group < 0) break;
        const bool busy = warp_row < t->rows && warp_column < p.n - t->column;
        float sum[4][8][4] = {};
        auto multiply = [&](int half) {
            if (!busy) return;
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int n = 0; n < 8; n++)
                    mcu_mma<T>(sum[m][n], a[half][m], b[half][n / 2][n % 2 * 2],
                               b[half][n / 2][n % 2 * 2 + 1]);
        };
#pragma unroll 1
        for (int left = t->pieces; left > 0; left--) {
            load_a::load(a[1], stages, stage + at_a, 1);
            load_b::load(b[1], stages, stage + at_b, 1);
            feed(stage == 0 ? (STAGES - 1) * STAGE : stage - STAGE); /* all warps have left it */
            multiply(0);
            draw();
            mcu_copy_wait<STAGES - 2>();
            __syncthreads();
            stage = stage == (STAGES - 1) * STAGE ? 0 : stage + STAGE;
            load_a::load(a[0], stages, stage + at_a, 0);
            load_b::load(b[0], stages, stage + at_b, 0);
            multiply(1);
        }
        if (busy) write_sums<T, PASS>(p, *t, sum, warp_row, warp_column);
    }
    mcu_copy_wait<0>();
}

#endif
