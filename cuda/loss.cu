/* loss.cu: cross-entropy of logits [T, V] with targets [T] (formulas: core/cpu/loss.c).
 *
 * forward   reads each row once: a thread keeps the largest logit m that it has met, NaN passed
 * over, and s = the sum of exp(x - m); when m grows, s is scaled by exp(old m - m) (Milakov &
 *           Gimelshein 2018, alg. 3). The team's (m, s) are combined in a fixed order.
 * backward  reads the row once and writes it once: d * (exp(x - lse) - onehot).
 *
 * A team owns a row: a warp for up to SHORT columns, else a block of 256 threads. A thread takes 16
 * bytes at a time and has four of them in flight: 8 warps' worth of vectors is 16 KB a block, and
 * four blocks fit on a multiprocessor. The columns before the first 16-byte boundary and after the
 * last whole vector go one by one, so that rows of odd length are fast, too; so do strided rows.
 */
#include "common.cuh"

namespace {

enum { THREADS = 256, SHORT = 1024, VECTORS = 4 };

/* exp of what is not above 0 but for rounding, or is not finite. To 16-bit results the hardware's
 * 2^x is exact; its argument's rounding costs |x| 2^-24 of a term that is exp(x) of the largest. */
template <typename T>
__device__ inline float quick_exp(float x) {
    if (sizeof(T) == 4) return expf(x);
    float scaled = x * 1.44269504F;
#ifdef MCU_EMULATED
    return exp2f(scaled);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(scaled));
    return y;
#endif
}
template <typename T>
__device__ inline double quick_exp(double x) {
    return exp(x);
}
/* The larger one; NaN is passed over. */
__device__ inline float larger(float a, float b) {
    return fmaxf(a, b);
}
__device__ inline double larger(double a, double b) {
    return fmax(a, b);
}
__device__ inline float log_of(float x) {
    return logf(x);
}
__device__ inline double log_of(double x) {
    return log(x);
}

/* A [T, V] matrix in elements of its own; one number for each row. */
struct matrix {
    void *at;
    int64_t row, step;
};
struct column {
    void *at;
    int64_t step;
};
struct targets {
    const void *at;
    int64_t step, ignore;
    int wide; /* int64, else int32 */
    __device__ inline int64_t of(int64_t r) const {
        return wide ? ((const int64_t *)at)[r * step] : (int64_t)((const int32_t *)at)[r * step];
    }
};

/* How a row of n falls into columns before a 16-byte boundary, whole vectors, and a rest. `bits`:
 * of the addresses that must share it; strided rows and those that do not share have no vectors. */
template <typename T>
struct cuts {
    static constexpr int V = 16 / (int)sizeof(T);
    int64_t head, vectors;
    __device__ inline cuts(bool dense, const T *a, int64_t n) {
        int past = (int)((uintptr_t)a % 16 / sizeof(T));
        head = past ? V - past : 0;
        if (!dense || head > n) head = n;
        vectors = (n - head) / V;
    }
};

/* m and s of the head of this file. */
template <typename T>
struct running {
    typedef mcu_real_t<T> R;
    R m, s;

    __device__ inline void start() {
        m = (R)-INFINITY;
        s = 0;
    }
    template <int N>
    __device__ inline void take(const R (&x)[N]) {
        R top = m;
        for (int i = 0; i < N; i++) top = larger(top, x[i]);
        if (top != m) s *= quick_exp<T>(m - top);
        m = top;
        R shift = top == (R)-INFINITY ? (R)0 : top;
        for (int i = 0; i < N; i++) s += quick_exp<T>(x[i] - shift);
    }
};

template <int TEAM, typename R>
__device__ inline R team_sum(R x, R *space) {
    if constexpr (TEAM == 32) return mcu_warp_sum(x);
    return mcu_block_sum(x, space);
}
template <int TEAM, typename R>
__device__ inline R team_max(R x, R *space) {
    if constexpr (TEAM == 32) return mcu_warp_max(x);
    return mcu_block_max(x, space);
}

template <typename T, int TEAM>
__global__ void __launch_bounds__(THREADS)
    forward_kernel(column losses, column lses, matrix logits, targets target, int64_t rows,
                   int64_t n, mcu_guard guard) {
    typedef mcu_real_t<T> R;
    typedef mcu_vector<T, cuts<T>::V> vector;
    constexpr int V = cuts<T>::V;
    __shared__ R space[32];
    const int lane = (int)threadIdx.x % TEAM, team = (int)threadIdx.x / TEAM;
    const int64_t teams = (int64_t)gridDim.x * (THREADS / TEAM);
    for (int64_t r = (int64_t)blockIdx.x * (THREADS / TEAM) + team; r < rows; r += teams) {
        const T *a = (const T *)logits.at + r * logits.row;
        const cuts<T> cut(logits.step == 1, a, n);
        running<T> state;
        state.start();
        for (int64_t j = lane; j < cut.head; j += TEAM) {
            R x[1] = {mcu_up(a[j * logits.step])};
            state.take(x);
        }
        const vector *whole = reinterpret_cast<const vector *>(a + cut.head);
        for (int64_t i = lane; i < cut.vectors; i += VECTORS * TEAM) {
            vector part[VECTORS];
            for (int u = 0; u < VECTORS; u++) {
                if (i + u * TEAM < cut.vectors)
                    part[u] = whole[i + u * TEAM];
                else
                    for (int q = 0; q < V; q++) part[u].v[q] = mcu_down<T>((R)-INFINITY);
            }
            R x[VECTORS * V];
            for (int u = 0; u < VECTORS; u++)
                for (int q = 0; q < V; q++) x[u * V + q] = mcu_up(part[u].v[q]);
            state.take(x);
        }
        for (int64_t j = cut.head + cut.vectors * V + lane; j < n; j += TEAM) {
            R x[1] = {mcu_up(a[j * logits.step])};
            state.take(x);
        }
        R top = team_max<TEAM>(state.m, space);
        if (state.m != top) state.s *= quick_exp<T>(state.m - top);
        R sum = team_sum<TEAM>(state.s, space);
        if (lane == 0) {
            R lse = (top == (R)-INFINITY ? (R)0 : top) + log_of(sum);
            int64_t at = target.of(r);
            R loss = 0;
            if (at >= 0 && at < n && at != target.ignore)
                loss = lse - mcu_up(a[at * logits.step]);
            else if (at != target.ignore)
                mcu_blame(guard, r, at, n - 1);
            ((R *)lses.at)[r * lses.step] = lse;
            ((R *)losses.at)[r * losses.step] = loss;
        }
        __syncwarp();
    }
}

template <typename T, int TEAM>
__global__ void __launch_bounds__(THREADS)
    backward_kernel(matrix dlogits, column dlosses, matrix logits, targets target, column lses,
                    int64_t rows, int64_t n, mcu_guard guard) {
    typedef mcu_real_t<T> R;
    typedef mcu_vector<T, cuts<T>::V> vector;
    constexpr int V = cuts<T>::V;
    const int lane = (int)threadIdx.x % TEAM, team = (int)threadIdx.x / TEAM;
    const int64_t teams = (int64_t)gridDim.x * (THREADS / TEAM);
    for (int64_t r = (int64_t)blockIdx.x * (THREADS / TEAM) + team; r < rows; r += teams) {
        const T *a = (const T *)logits.at + r * logits.row;
        T *d = (T *)dlogits.at + r * dlogits.row;
        const bool dense =
            logits.step == 1 && dlogits.step == 1 && ((uintptr_t)a - (uintptr_t)d) % 16 == 0;
        const cuts<T> cut(dense, a, n);
        const vector *whole = reinterpret_cast<const vector *>(a + cut.head);
        vector *result = reinterpret_cast<vector *>(d + cut.head);
        const int64_t rest = cut.head + cut.vectors * V, at = target.of(r);
        if (at < 0 || at >= n || at == target.ignore) { /* no gradient */
            if (at != target.ignore && lane == 0) mcu_blame(guard, r, at, n - 1);
            const T zero = mcu_down<T>((R)0);
            vector zeros;
            for (int q = 0; q < V; q++) zeros.v[q] = zero;
            for (int64_t j = lane; j < cut.head; j += TEAM) d[j * dlogits.step] = zero;
            for (int64_t i = lane; i < cut.vectors; i += TEAM) result[i] = zeros;
            for (int64_t j = rest + lane; j < n; j += TEAM) d[j * dlogits.step] = zero;
            continue;
        }
        const R by = ((const R *)dlosses.at)[r * dlosses.step];
        const R lse = ((const R *)lses.at)[r * lses.step];
        for (int64_t j = lane; j < cut.head; j += TEAM) {
            R e = quick_exp<T>(mcu_up(a[j * logits.step]) - lse);
            d[j * dlogits.step] = mcu_down<T>(by * (j == at ? e - 1 : e));
        }
        for (int64_t i = lane; i < cut.vectors; i += VECTORS * TEAM) {
            vector part[VECTORS];
            for (int u = 0; u < VECTORS; u++)
                if (i + u * TEAM < cut.vectors) part[u] = whole[i + u * TEAM];
            for (int u = 0; u < VECTORS; u++) {
                if (i + u * TEAM >= cut.vectors) break;
                const int64_t past = at - cut.head - (i + u * TEAM) * V;
                const int hit = past >= 0 && past < V ? (int)past : -1;
                for (int q = 0; q < V; q++) {
                    R e = quick_exp<T>(mcu_up(part[u].v[q]) - lse);
                    part[u].v[q] = mcu_down<T>(by * (q == hit ? e - 1 : e));
                }
                result[i + u * TEAM] = part[u];
            }
        }
        for (int64_t j = rest + lane; j < n; j += TEAM) {
            R e = quick_exp<T>(mcu_up(a[j * logits.step]) - lse);
            d[j * dlogits.step] = mcu_down<T>(by * (j == at ? e - 1 : e));
        }
    }
}

matrix matrix_of(const mci_view *v) {
    return matrix{v->data, v->stride[0], v->shape[1] == 1 ? 1 : v->stride[1]};
}
column column_of(const mci_view *v) {
    return column{v->data, v->stride[0]};
}
targets targets_of(const mci_view *v, const void *params) {
    return targets{v->data, v->stride[0], ((const mci_loss_params *)params)->ignore_index,
                   v->dtype == MC_INT64};
}

}  // namespace

mc_status mcu_cross_entropy(mci_exec *exec, const mci_view *const *t, const void *params_) {
    int64_t rows = t[2]->shape[0], n = t[2]->shape[1];
    if (rows == 0) return MC_OK;
    mcu_guard guard = mcu_guard_of(
        exec, n == 0 ? "cross_entropy: target[%lld] is %lld, there are no classes"
                     : "cross_entropy: target[%lld] is %lld, legal are 0 to %lld (0-based)");
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if (n <= SHORT)
            MCU_LAUNCH((forward_kernel<T, 32>), mcu_blocks(exec, rows, THREADS / 32, 64), THREADS,
                       0, exec, column_of(t[0]), column_of(t[1]), matrix_of(t[2]),
                       targets_of(t[3], params_), rows, n, guard);
        else
            MCU_LAUNCH((forward_kernel<T, THREADS>), mcu_blocks(exec, rows, 1, 64), THREADS, 0,
                       exec, column_of(t[0]), column_of(t[1]), matrix_of(t[2]),
                       targets_of(t[3], params_), rows, n, guard);
        return mcu_launched("cross_entropy");
    });
}

mc_status mcu_cross_entropy_backward(mci_exec *exec, const mci_view *const *t,
                                     const void *params_) {
    int64_t rows = t[2]->shape[0], n = t[2]->shape[1];
    if (rows == 0) return MC_OK;
    mcu_guard guard = mcu_guard_of(
        exec, n == 0
                  ? "cross_entropy_backward: target[%lld] is %lld, there are no classes"
                  : "cross_entropy_backward: target[%lld] is %lld, legal are 0 to %lld (0-based)");
    return mcu_for_float(t[2]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if (n <= SHORT)
            MCU_LAUNCH((backward_kernel<T, 32>), mcu_blocks(exec, rows, THREADS / 32, 64), THREADS,
                       0, exec, matrix_of(t[0]), column_of(t[1]), matrix_of(t[2]),
                       targets_of(t[3], params_), column_of(t[4]), rows, n, guard);
        else
            MCU_LAUNCH((backward_kernel<T, THREADS>), mcu_blocks(exec, rows, 1, 64), THREADS, 0,
                       exec, matrix_of(t[0]), column_of(t[1]), matrix_of(t[2]),
                       targets_of(t[3], params_), column_of(t[4]), rows, n, guard);
        return mcu_launched("cross_entropy_backward");
    });
}
