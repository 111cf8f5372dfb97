/* norm.cu: rms_norm and layer_norm over the last axis of x [.., n] (formulas: core/cpu/norm.c).
 *
 * Fast path, for 16- and 32-bit rows of whole 16-byte vectors: a team (a warp up to 1024 elements,
 * else a block of 256 threads up to 8192) owns a row and holds it in registers, E elements a
 * thread; vector k of lane l is number k TEAM + l. So each byte moves once, forward and backward.
 * Backward, a team walks over rows and keeps the sums of its columns' weight and bias gradients in
 * registers, float32; each block writes one row of partial sums to scratch, and sum_kernel adds
 * those in order. Registers set the blocks of backward: 128 threads for warps, 4 blocks a
 * multiprocessor, whose loads of x and dy are 4 KB a warp, 64 KB in all; E fits the row, so that
 * longer rows have as much.
 *
 * Any other row: a block of 256 threads reads it once per pass, any stride; partial sums stand in
 * scratch, where a thread alone owns its columns.
 */
#include "chunks.cuh"

namespace {

enum {
    THREADS = 256,
    WARP_ROW = 1024,          /* elements that a warp holds: 32 a lane */
    BLOCK_ROW = 8192,         /* and a block */
    PLAIN_SCRATCH = 64 << 20, /* bytes of partial sums of the path for any row, at most */
    SUM_COLUMNS = 32,
    SUM_WAYS = 16 /* sum_kernel: columns of a block, threads of a column */
};

__device__ inline float inverse_root(float x) {
    return 1 / sqrtf(x);
}
__device__ inline double inverse_root(double x) {
    return 1 / sqrt(x);
}

/* One number for each row, or each column; at = NULL where it is absent. */
template <typename T>
struct line {
    T *at;
    int64_t step;
};
template <typename T>
struct matrix {
    T *at;
    mcu_rows rows;
    __device__ inline T *row(int64_t r) const { return at + rows.at(r); }
};

/* Sums of a and b over the team, each thread gets both. */
template <int TEAM, typename R>
__device__ inline void team_sums(R &a, R &b, R *space) {
    a = mcu_warp_sum(a);
    b = mcu_warp_sum(b);
    if constexpr (TEAM > 32) {
        const int warp = (int)threadIdx.x / 32;
        if (threadIdx.x % 32 == 0) {
            space[warp] = a;
            space[32 + warp] = b;
        }
        __syncthreads();
        a = space[0];
        b = space[32];
        for (int i = 1; i < TEAM / 32; i++) {
            a += space[i];
            b += space[32 + i];
        }
        __syncthreads();
    }
}
template <int TEAM, typename R>
__device__ inline R team_sum(R x, R *space) {
    if constexpr (TEAM == 32) return mcu_warp_sum(x);
    return mcu_block_sum(x, space);
}

/* -- rows in registers
 * ------------------------------------------------------------------------------ */

template <typename T, int TEAM, int E, bool CENTRED>
__global__ void __launch_bounds__(THREADS)
    forward_kernel(matrix<T> y, line<float> mean, line<float> rstd, matrix<T> x, const T *weight,
                   const T *bias, float eps) {
    constexpr int V = 16 / (int)sizeof(T), K = E / V;
    typedef mcu_vector<T, V> vector;
    __shared__ float space[32];
    const int lane = (int)threadIdx.x % TEAM, team = (int)threadIdx.x / TEAM;
    const int n = (int)x.rows.length, vectors = n / V;
    const int64_t teams = (int64_t)gridDim.x * (THREADS / TEAM);
    for (int64_t r = (int64_t)blockIdx.x * (THREADS / TEAM) + team; r < x.rows.count; r += teams) {
        const vector *from = reinterpret_cast<const vector *>(x.row(r));
        vector part[K];
        for (int k = 0; k < K; k++)
            if (k * TEAM + lane < vectors) part[k] = from[k * TEAM + lane];
        float centre = 0;
        if (CENTRED) {
            for (int k = 0; k < K; k++)
                if (k * TEAM + lane < vectors)
                    for (int q = 0; q < V; q++) centre += mcu_up(part[k].v[q]);
            centre = team_sum<TEAM>(centre, space) / (float)n;
        }
        float squares = 0;
        for (int k = 0; k < K; k++) {
            if (k * TEAM + lane >= vectors) continue;
            for (int q = 0; q < V; q++) {
                float a = mcu_up(part[k].v[q]) - centre;
                squares += a * a;
            }
        }
        const float s = inverse_root(team_sum<TEAM>(squares, space) / (float)n + eps);
        if (lane == 0) {
            rstd.at[r * rstd.step] = s;
            if (CENTRED) mean.at[r * mean.step] = centre;
        }
        T *to = y.row(r);
        for (int k = 0; k < K; k++) {
            const int i = k * TEAM + lane;
            if (i >= vectors) continue;
            float a[V], w[V];
            for (int q = 0; q < V; q++) a[q] = (mcu_up(part[k].v[q]) - centre) * s;
            if (weight) {
                mcu_load<V>(w, weight + i * V);
                for (int q = 0; q < V; q++) a[q] *= w[q];
            }
            if (CENTRED && bias) {
                mcu_load<V>(w, bias + i * V);
                for (int q = 0; q < V; q++) a[q] += w[q];
            }
            mcu_store<V>(to + i * V, a);
        }
    }
}

/* The block's row of partial sums: `sums` of all its teams, in their order. space: n floats. */
template <int TEAM, int K, int V>
__device__ inline void put_partials(float *to, const float (&sums)[K][V], int n, float *space) {
    const int lane = (int)threadIdx.x % TEAM, team = (int)threadIdx.x / TEAM;
    if (TEAM == (int)blockDim.x) {
        for (int k = 0; k < K; k++)
            if ((k * TEAM + lane) * V < n) mcu_store<V>(to + (k * TEAM + lane) * V, sums[k]);
        return;
    }
    for (int turn = 0; turn < (int)blockDim.x / TEAM; turn++) {
        for (int k = 0; k < K && team == turn; k++) {
            for (int q = 0; q < V; q++) {
                const int j = (k * TEAM + lane) * V + q;
                if (j < n) space[j] = turn == 0 ? sums[k][q] : space[j] + sums[k][q];
            }
        }
        __syncthreads();
    }
    for (int j = (int)threadIdx.x; j < n; j += (int)blockDim.x) to[j] = space[j];
    __syncthreads();
}

/* Blocks of backward that a multiprocessor has registers for: what the compiler is held to, and the
 * grid, whose blocks then all run at once. */
constexpr int resident(int size, int team, int elements, bool centred) {
    if (team == 32) return (size == 2 ? 4 : 3) - centred;
    return elements == 8 ? 3 : elements == 16 ? 2 : 1;
}

/* g = dy * weight of vector i of a row. The weight comes from the first-level cache each time:
 * registers are scarcer. */
template <typename T, int V>
__device__ inline void gradients(float (&g)[V], const mcu_vector<T, V> &dy, const T *weight,
                                 int i) {
    if (weight) {
        mcu_load<V>(g, weight + i * V);
        for (int q = 0; q < V; q++) g[q] *= mcu_up(dy.v[q]);
    } else {
        for (int q = 0; q < V; q++) g[q] = mcu_up(dy.v[q]);
    }
}

/* partial_w, partial_b [blocks, n], or NULL; mean: CENTRED only. */
template <typename T, int TEAM, int E, bool CENTRED>
__global__ void __launch_bounds__(TEAM == 32 ? 128 : TEAM,
                                  resident((int)sizeof(T), TEAM, E, CENTRED))
    backward_kernel(matrix<T> dx, float *partial_w, float *partial_b, matrix<T> dy, matrix<T> x,
                    const T *weight, line<const float> mean, line<const float> rstd) {
    constexpr int V = 16 / (int)sizeof(T), K = E / V;
    typedef mcu_vector<T, V> vector;
    __shared__ float space[TEAM == 32 ? WARP_ROW : 64];
    const int lane = (int)threadIdx.x % TEAM, team = (int)threadIdx.x / TEAM;
    const int n = (int)x.rows.length, vectors = n / V, of_block = (int)blockDim.x / TEAM;
    const int64_t teams = (int64_t)gridDim.x * of_block;
    float sum_w[K][V] = {}, sum_b[K][V] = {};
    for (int64_t r = (int64_t)blockIdx.x * of_block + team; r < x.rows.count; r += teams) {
        const vector *from_x = reinterpret_cast<const vector *>(x.row(r));
        const vector *from_dy = reinterpret_cast<const vector *>(dy.row(r));
        vector a[K], d[K];
        for (int k = 0; k < K; k++) {
            if (k * TEAM + lane >= vectors) continue;
            a[k] = from_x[k * TEAM + lane];
            d[k] = from_dy[k * TEAM + lane];
        }
        const float s = rstd.at[r * rstd.step], middle = CENTRED ? mean.at[r * mean.step] : 0.0F;
        float along = 0, centre = 0;
        for (int k = 0; k < K; k++) {
            if (k * TEAM + lane >= vectors) continue;
            float g[V];
            gradients(g, d[k], weight, k * TEAM + lane);
            for (int q = 0; q < V; q++) {
                const float xhat = (mcu_up(a[k].v[q]) - middle) * s, up = mcu_up(d[k].v[q]);
                along += g[q] * xhat;
                sum_w[k][q] += up * xhat;
                if (CENTRED) {
                    centre += g[q];
                    sum_b[k][q] += up;
                }
            }
        }
        if (CENTRED)
            team_sums<TEAM>(along, centre, space);
        else
            along = team_sum<TEAM>(along, space);
        along /= (float)n;
        centre /= (float)n;
        vector *to = reinterpret_cast<vector *>(dx.row(r));
        for (int k = 0; k < K; k++) {
            if (k * TEAM + lane >= vectors) continue;
            float g[V];
            gradients(g, d[k], weight, k * TEAM + lane);
            for (int q = 0; q < V; q++) {
                const float xhat = (mcu_up(a[k].v[q]) - middle) * s;
                a[k].v[q] = mcu_down<T>(s * (g[q] - centre - xhat * along));
            }
            to[k * TEAM + lane] = a[k];
        }
    }
    if (partial_w) put_partials<TEAM>(partial_w + (int64_t)blockIdx.x * n, sum_w, n, space);
    if (CENTRED && partial_b)
        put_partials<TEAM>(partial_b + (int64_t)blockIdx.x * n, sum_b, n, space);
}

/* -- any rows
 * --------------------------------------------------------------------------------------- */

template <typename T, bool CENTRED>
__global__ void __launch_bounds__(THREADS)
    plain_forward_kernel(matrix<T> y, line<mcu_real_t<T>> mean, line<mcu_real_t<T>> rstd,
                         matrix<T> x, line<const T> weight, line<const T> bias, double eps) {
    typedef mcu_real_t<T> R;
    __shared__ R space[32];
    const int64_t n = x.rows.length;
    for (int64_t r = blockIdx.x; r < x.rows.count; r += gridDim.x) {
        const T *from = x.row(r);
        T *to = y.row(r);
        R centre = 0, squares = 0;
        if (CENTRED) {
            for (int64_t j = threadIdx.x; j < n; j += THREADS)
                centre += mcu_up(from[j * x.rows.step]);
            centre = mcu_block_sum(centre, space) / (R)n;
        }
        for (int64_t j = threadIdx.x; j < n; j += THREADS) {
            R a = mcu_up(from[j * x.rows.step]) - centre;
            squares += a * a;
        }
        const R s = inverse_root(mcu_block_sum(squares, space) / (R)n + (R)eps);
        if (threadIdx.x == 0) {
            rstd.at[r * rstd.step] = s;
            if (CENTRED) mean.at[r * mean.step] = centre;
        }
        for (int64_t j = threadIdx.x; j < n; j += THREADS) {
            R a = (mcu_up(from[j * x.rows.step]) - centre) * s;
            if (weight.at) a *= mcu_up(weight.at[j * weight.step]);
            if (CENTRED && bias.at) a += mcu_up(bias.at[j * bias.step]);
            to[j * y.rows.step] = mcu_down<T>(a);
        }
    }
}

template <typename T, bool CENTRED>
__global__ void __launch_bounds__(THREADS)
    plain_backward_kernel(matrix<T> dx, mcu_real_t<T> *partial_w, mcu_real_t<T> *partial_b,
                          matrix<T> dy, matrix<T> x, line<const T> weight,
                          line<const mcu_real_t<T>> mean, line<const mcu_real_t<T>> rstd) {
    typedef mcu_real_t<T> R;
    __shared__ R space[64];
    const int64_t n = x.rows.length;
    if (partial_w) partial_w += blockIdx.x * n;
    if (partial_b) partial_b += blockIdx.x * n;
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        if (partial_w) partial_w[j] = 0;
        if (partial_b) partial_b[j] = 0;
    }
    for (int64_t r = blockIdx.x; r < x.rows.count; r += gridDim.x) {
        const T *from_x = x.row(r), *from_dy = dy.row(r);
        T *to = dx.row(r);
        const R s = rstd.at[r * rstd.step], middle = CENTRED ? mean.at[r * mean.step] : (R)0;
        R along = 0, centre = 0;
        for (int64_t j = threadIdx.x; j < n; j += THREADS) {
            const R xhat = (mcu_up(from_x[j * x.rows.step]) - middle) * s;
            const R up = mcu_up(from_dy[j * dy.rows.step]);
            const R g = weight.at ? up * mcu_up(weight.at[j * weight.step]) : up;
            along += g * xhat;
            centre += g;
            if (partial_w) partial_w[j] += up * xhat;
            if (partial_b) partial_b[j] += up;
        }
        team_sums<THREADS>(along, centre, space);
        along /= (R)n;
        centre = CENTRED ? centre / (R)n : (R)0;
        for (int64_t j = threadIdx.x; j < n; j += THREADS) {
            const R xhat = (mcu_up(from_x[j * x.rows.step]) - middle) * s;
            const R up = mcu_up(from_dy[j * dy.rows.step]);
            const R g = weight.at ? up * mcu_up(weight.at[j * weight.step]) : up;
            to[j * dx.rows.step] = mcu_down<T>(s * (g - centre - xhat * along));
        }
    }
}

/* out[j] = the sum of partial[p][j] over p, for two of them at once (out NULL: none). The threads
 * of a column take every SUM_WAYS-th part; their sums are then added in order. Blocks of the second
 * follow those of the first. */
template <typename T>
__global__ void __launch_bounds__(SUM_COLUMNS *SUM_WAYS)
    sum_kernel(line<T> out_w, line<T> out_b, const mcu_real_t<T> *partial_w,
               const mcu_real_t<T> *partial_b, int64_t parts, int64_t n, unsigned blocks_of_one) {
    typedef mcu_real_t<T> R;
    __shared__ R space[SUM_COLUMNS * SUM_WAYS];
    const bool second = blockIdx.x >= blocks_of_one;
    const line<T> out = second ? out_b : out_w;
    const R *partial = second ? partial_b : partial_w;
    if (!out.at) return;
    const int column = (int)threadIdx.x % SUM_COLUMNS, way = (int)threadIdx.x / SUM_COLUMNS;
    const int64_t j =
        (int64_t)(second ? blockIdx.x - blocks_of_one : blockIdx.x) * SUM_COLUMNS + column;
    R sum = 0;
    if (j < n) {
        int64_t p = way;
        for (; p + 7 * SUM_WAYS < parts; p += 8 * SUM_WAYS) { /* eight loads in flight */
            R part[8];
            for (int u = 0; u < 8; u++) part[u] = partial[(p + u * SUM_WAYS) * n + j];
            for (int u = 0; u < 8; u++) sum += part[u];
        }
        for (; p < parts; p += SUM_WAYS) sum += partial[p * n + j];
    }
    space[threadIdx.x] = sum;
    __syncthreads();
    if (way != 0 || j >= n) return;
    for (int i = 1; i < SUM_WAYS; i++) sum += space[i * SUM_COLUMNS + column];
    out.at[j * out.step] = mcu_down<T>(sum);
}

/* -- launching
 * -------------------------------------------------------------------------------------- */

template <typename T>
line<T> line_of(const mci_view *v) {
    if (!v) return line<T>{nullptr, 0};
    return line<T>{(T *)v->data, v->stride[0]};
}
template <typename T>
matrix<T> matrix_of(const mci_view *v) {
    return matrix<T>{(T *)v->data, mcu_rows_of(v, v->ndim - 1)};
}

/* May rows of it be moved as whole vectors? */
template <typename T>
bool vectors(const matrix<T> &m) {
    constexpr int V = 16 / (int)sizeof(T);
    bool good = m.rows.length % V == 0 && m.rows.step == 1 && mcu_aligned(m.at, 16);
    for (int d = 0; d < m.rows.outer.ndim; d++) good = good && m.rows.outer.stride[0][d] % V == 0;
    return good;
}
template <typename T>
bool vectors(const line<const T> &l) {
    return !l.at || (l.step == 1 && mcu_aligned(l.at, 16));
}

/* Operands of both norms; rms_norm has no mean and no bias. */
struct forward {
    const mci_view *y, *mean, *rstd, *x, *weight, *bias;
};
struct backward {
    const mci_view *dx, *dweight, *dbias, *dy, *x, *weight, *mean, *rstd;
};

template <typename T, bool CENTRED>
void launch_plain(mci_exec *exec, const forward &f, double eps) {
    typedef mcu_real_t<T> R;
    matrix<T> x = matrix_of<T>(f.x);
    MCU_LAUNCH((plain_forward_kernel<T, CENTRED>), mcu_blocks(exec, x.rows.count, 1, 32), THREADS,
               0, exec, matrix_of<T>(f.y), line_of<R>(f.mean), line_of<R>(f.rstd), x,
               line_of<const T>(f.weight), line_of<const T>(f.bias), eps);
}

template <typename T, bool CENTRED>
void launch(mci_exec *exec, const forward &f, double eps) {
    matrix<T> y = matrix_of<T>(f.y), x = matrix_of<T>(f.x);
    line<const T> weight = line_of<const T>(f.weight), bias = line_of<const T>(f.bias);
    line<float> mean = line_of<float>(f.mean), rstd = line_of<float>(f.rstd);
    int64_t n = x.rows.length, rows = x.rows.count;
    if (n == 0 || n > BLOCK_ROW || !vectors(x) || !vectors(y) || !vectors(weight) || !vectors(bias))
        launch_plain<T, CENTRED>(exec, f, eps);
    else if (n <= WARP_ROW)
        MCU_LAUNCH((forward_kernel<T, 32, 32, CENTRED>), mcu_blocks(exec, rows, THREADS / 32, 64),
                   THREADS, 0, exec, y, mean, rstd, x, weight.at, bias.at, (float)eps);
    else if (n <= 8 * THREADS)
        MCU_LAUNCH((forward_kernel<T, THREADS, 8, CENTRED>), mcu_blocks(exec, rows, 1, 64), THREADS,
                   0, exec, y, mean, rstd, x, weight.at, bias.at, (float)eps);
    else
        MCU_LAUNCH((forward_kernel<T, THREADS, 32, CENTRED>), mcu_blocks(exec, rows, 1, 64),
                   THREADS, 0, exec, y, mean, rstd, x, weight.at, bias.at, (float)eps);
}

template <bool CENTRED>
mc_status run(mci_exec *exec, const char *op, const forward &f, const void *params) {
    double eps = ((const mci_norm_params *)params)->eps;
    if (mci_numel(f.rstd) == 0) return MC_OK;
    return mcu_for_float(f.x->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if constexpr (sizeof(T) == 8)
            launch_plain<T, CENTRED>(exec, f, eps);
        else
            launch<T, CENTRED>(exec, f, eps);
        return mcu_launched(op);
    });
}

/* Which kernel takes these rows of backward. */
enum { PLAIN, WARP_32, BLOCK_8, BLOCK_16, BLOCK_32 };

template <typename T>
int path_of(const backward &b) {
    if (sizeof(T) == 8) return PLAIN;
    matrix<T> x = matrix_of<T>(b.x);
    int64_t n = x.rows.length;
    if (n == 0 || n > BLOCK_ROW || !vectors(x) || !vectors(matrix_of<T>(b.dy)) ||
        !vectors(matrix_of<T>(b.dx)) || !vectors(line_of<const T>(b.weight)))
        return PLAIN;
    if (n <= WARP_ROW) return WARP_32;
    return n <= 8 * THREADS ? BLOCK_8 : n <= 16 * THREADS ? BLOCK_16 : BLOCK_32;
}

template <typename T, bool CENTRED>
void launch(mci_exec *exec, const backward &b, int path, unsigned blocks, mcu_real_t<T> *partial_w,
            mcu_real_t<T> *partial_b) {
    typedef mcu_real_t<T> R;
    matrix<T> dx = matrix_of<T>(b.dx), dy = matrix_of<T>(b.dy), x = matrix_of<T>(b.x);
    line<const T> weight = line_of<const T>(b.weight);
    line<const R> mean = line_of<const R>(b.mean), rstd = line_of<const R>(b.rstd);
    if constexpr (sizeof(T) < 8) {
        if (path == WARP_32)
            MCU_LAUNCH((backward_kernel<T, 32, 32, CENTRED>), blocks, 128, 0, exec, dx, partial_w,
                       partial_b, dy, x, weight.at, mean, rstd);
        else if (path == BLOCK_8)
            MCU_LAUNCH((backward_kernel<T, THREADS, 8, CENTRED>), blocks, THREADS, 0, exec, dx,
                       partial_w, partial_b, dy, x, weight.at, mean, rstd);
        else if (path == BLOCK_16)
            MCU_LAUNCH((backward_kernel<T, THREADS, 16, CENTRED>), blocks, THREADS, 0, exec, dx,
                       partial_w, partial_b, dy, x, weight.at, mean, rstd);
        else if (path == BLOCK_32)
            MCU_LAUNCH((backward_kernel<T, THREADS, 32, CENTRED>), blocks, THREADS, 0, exec, dx,
                       partial_w, partial_b, dy, x, weight.at, mean, rstd);
    }
    if (path == PLAIN)
        MCU_LAUNCH((plain_backward_kernel<T, CENTRED>), blocks, THREADS, 0, exec, dx, partial_w,
                   partial_b, dy, x, weight, mean, rstd);
}

template <bool CENTRED>
mc_status run(mci_exec *exec, const char *op, const backward &b) {
    return mcu_for_float(b.x->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        typedef mcu_real_t<T> R;
        constexpr int size = (int)sizeof(T);
        static const int of_processor[] = {2, resident(size, 32, 32, CENTRED), /* by path */
                                           resident(size, THREADS, 8, CENTRED),
                                           resident(size, THREADS, 16, CENTRED),
                                           resident(size, THREADS, 32, CENTRED)};
        int64_t rows = mci_numel(b.rstd), n = b.x->shape[b.x->ndim - 1];
        int path = path_of<T>(b);
        int sums = (b.dweight != nullptr) + (b.dbias != nullptr);
        unsigned blocks =
            rows == 0 ? 0 : mcu_blocks(exec, rows, path == WARP_32 ? 4 : 1, of_processor[path]);
        if (path == PLAIN && sums > 0 && n > 0) {
            int64_t most = PLAIN_SCRATCH / ((int64_t)sizeof(R) * n * sums);
            if (blocks > most) blocks = most < 1 ? 1 : (unsigned)most;
        }
        size_t one = (size_t)blocks * (size_t)n, bytes = (size_t)sums * one * sizeof(R);
        R *scratch = nullptr;
        if (bytes > 0) {
            scratch = (R *)exec->scratch(exec, bytes);
            if (!scratch) return mcu_no_scratch(op, bytes);
        }
        R *partial_w = b.dweight ? scratch : nullptr;
        R *partial_b = b.dbias ? scratch + (b.dweight ? one : 0) : nullptr;
        if (blocks > 0) launch<T, CENTRED>(exec, b, path, blocks, partial_w, partial_b);
        unsigned columns = (unsigned)((n + SUM_COLUMNS - 1) / SUM_COLUMNS);
        if (sums > 0 && n > 0)
            MCU_LAUNCH((sum_kernel<T>), 2 * columns, SUM_COLUMNS * SUM_WAYS, 0, exec,
                       line_of<T>(b.dweight), line_of<T>(b.dbias), partial_w, partial_b,
                       (int64_t)blocks, n, columns);
        return mcu_launched(op);
    });
}

}  // namespace

mc_status mcu_rms_norm(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return run<false>(exec, "rms_norm", forward{t[0], nullptr, t[1], t[2], t[3], nullptr}, params_);
}

mc_status mcu_layer_norm(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return run<true>(exec, "layer_norm", forward{t[0], t[1], t[2], t[3], t[4], t[5]}, params_);
}

mc_status mcu_rms_norm_backward(mci_exec *exec, const mci_view *const *t, const void *) {
    return run<false>(exec, "rms_norm_backward",
                      backward{t[0], t[1], nullptr, t[2], t[3], t[4], nullptr, t[5]});
}

mc_status mcu_layer_norm_backward(mci_exec *exec, const mci_view *const *t, const void *) {
    return run<true>(exec, "layer_norm_backward",
                     backward{t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]});
}
