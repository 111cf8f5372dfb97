/* reduce.cu: sum, mean, prod, amax, amin over any axes, argmax and argmin along one, sums of
 * squares.
 *
 * Axes are sorted by stride and divided into kept and reduced ones. reduce_kernels.cuh has the two
 * kernels; here stands what is launched: which one, vectors of 16 bytes where the layout allows,
 * and into how many parts few outputs with much to reduce are cut. All of it follows from the
 * operands' layout alone, so a result does not depend on the device's size.
 */
#include "many.cuh"
#include "reduce_kernels.cuh"

namespace {

/* Enough blocks for every multiprocessor to hold several, few enough for one cheap second launch.
 */
enum { ROW_UNITS = 2048, COLUMN_UNITS = 1024, MOST_BLOCKS = 1 << 20 };
/* Up to this many neighbouring elements a thread reduces alone: a warp would idle. */
enum { SHORT_ROW = 16 };

struct layout {
    mci_view kept_in, kept_out, reduced; /* outermost axis first, in elements */
    int by_columns;
};

int64_t magnitude(int64_t x) {
    return x < 0 ? -x : x;
}

void push_axis(mci_view *v, int64_t size, int64_t stride) {
    v->shape[v->ndim] = size;
    v->stride[v->ndim++] = stride;
}

layout layout_of(const mci_view *out, const mci_view *in, const int *reduced) {
    layout l = {};
    int order[MC_MAX_DIMS], n = 0;
    for (int d = 0; d < in->ndim; d++) {
        if (in->shape[d] == 1) continue;
        int k = n++;
        for (; k > 0 && magnitude(in->stride[order[k - 1]]) < magnitude(in->stride[d]); k--)
            order[k] = order[k - 1];
        order[k] = d;
    }
    for (int k = 0; k < n; k++) {
        int d = order[k];
        if (reduced[d]) {
            push_axis(&l.reduced, in->shape[d], in->stride[d]);
        } else {
            push_axis(&l.kept_in, in->shape[d], in->stride[d]);
            push_axis(&l.kept_out, in->shape[d], out->stride[d]);
        }
    }
    l.by_columns = n > 0 && !reduced[order[n - 1]];
    return l;
}

/* 1 when every stride of view k but the innermost is a multiple of V. */
template <int N>
int steps_by(const mcu_walk<N> &w, int k, int V, int but_last) {
    for (int d = 0; d < w.ndim - but_last; d++)
        if (w.stride[k][d] % V != 0) return 0;
    return 1;
}

/* 1 when groups of V elements along the innermost axis of view k lie behind each other. */
template <int N>
int runs_by(const mcu_walk<N> &w, int k, int V) {
    return w.ndim > 0 && w.stride[k][w.ndim - 1] == 1 && w.shape[w.ndim - 1] % V == 0 &&
           steps_by(w, k, V, 1);
}

/* The walk counts V elements along its innermost axis as one. */
template <int N>
void by_vectors(mcu_walk<N> *w, int V) {
    int last = w->ndim - 1;
    w->shape[last] /= V;
    for (int k = 0; k < N; k++) w->stride[k][last] *= V;
}

int64_t parts_of(int64_t most, int64_t enough) {
    int64_t parts = most < enough ? most : enough;
    return parts < 1 ? 1 : parts;
}

void cut(reduction *p, int64_t parts, int64_t unit) {
    p->part_size = (p->length + parts - 1) / parts;
    p->part_size = (p->part_size + unit - 1) / unit * unit;
    if (p->part_size < unit) p->part_size = unit;
    p->parts = (p->length + p->part_size - 1) / p->part_size;
    if (p->parts < 1) p->parts = 1;
}

template <typename Op>
mc_status partials(mci_exec *exec, const char *name, reduction *p) {
    if (p->parts == 1) return MC_OK;
    size_t bytes = (size_t)(p->parts * p->outputs) * sizeof(typename Op::acc);
    p->partial = exec->scratch(exec, bytes);
    return p->partial ? MC_OK : mcu_no_scratch(name, bytes);
}

unsigned grid_of(int64_t units) {
    return (unsigned)(units < MOST_BLOCKS ? units : (int64_t)MOST_BLOCKS);
}

template <typename Op, typename T, int V>
mc_status launch_rows(mci_exec *exec, const char *name, reduction *p, const Op &op) {
    int64_t per_thread = p->length / V / REDUCE_THREADS;
    p->group = per_thread < 2 ? 32 : REDUCE_THREADS;
    int64_t most = p->group == 32 ? 1 : ROW_UNITS / p->outputs;
    cut(p, parts_of(most, per_thread / 4), (int64_t)REDUCE_THREADS * V);
    mc_status status = partials<Op>(exec, name, p);
    if (status != MC_OK) return status;
    int64_t per_block = REDUCE_THREADS / p->group;
    p->step = p->reduced.stride[0][0];
    unsigned blocks = grid_of((p->outputs * p->parts + per_block - 1) / per_block);
    MCU_LAUNCH((rows_kernel<Op, T, V>), blocks, REDUCE_THREADS, 0, exec, *p, op);
    return MC_OK;
}

/* whole: in one part. */
template <typename Op, typename T, int V>
mc_status launch_columns(mci_exec *exec, const char *name, reduction *p, const Op &op, int whole) {
    int64_t columns = p->outputs / V;
    int tx = 1, ty;
    while (tx < 32 && tx < columns) tx *= 2;
    for (ty = REDUCE_THREADS / tx; ty > 1 && p->length < ty * 8;) ty /= 2;
    while (tx * ty < REDUCE_THREADS && tx < columns) tx *= 2;
    int64_t tiles = (columns + tx - 1) / tx;
    cut(p, whole ? 1 : parts_of(COLUMN_UNITS / tiles, p->length / (ty * 16)), 1);
    mc_status status = partials<Op>(exec, name, p);
    if (status != MC_OK) return status;
    p->step = p->reduced.stride[0][0];
    dim3 block((unsigned)tx, (unsigned)ty);
    MCU_LAUNCH((columns_kernel<Op, T, V>), grid_of(tiles * p->parts), block, 0, exec, *p, op);
    return MC_OK;
}

/* The second launch: the parts of `first`, whose outputs lie as `l` says, joined in order. */
template <typename Op>
mc_status join_parts(mci_exec *exec, const char *name, const reduction &first, const layout &l,
                     const Op &op) {
    reduction p = first;
    mci_view flat = l.kept_in, parts = {};
    int64_t stride = 1;
    for (int d = flat.ndim - 1; d >= 0; d--) {
        flat.stride[d] = stride;
        stride *= flat.shape[d];
    }
    push_axis(&parts, first.parts, first.outputs);
    const mci_view *kept[2] = {&flat, &l.kept_out}, *reduced[1] = {&parts};
    p.kept = mcu_walk_of<2>(kept);
    p.reduced = mcu_walk_of<1>(reduced);
    p.in = first.partial;
    p.partial = NULL;
    p.length = first.parts;
    p.out_vector = 0;
    return launch_columns<typename Op::joiner, typename Op::acc, 1>(exec, name, &p, op.joins(), 1);
}

/* V: elements of a vector, 1 for ops that are not worth the code. */
template <typename Op, typename T, int V>
mc_status reduce(mci_exec *exec, const char *name, const mci_view *const *t, const int *reduced,
                 const Op &op) {
    const mci_view *out = t[0], *in = t[1];
    layout l = layout_of(out, in, reduced);
    const mci_view *kept_views[2] = {&l.kept_in, &l.kept_out}, *reduced_views[1] = {&l.reduced};
    reduction p = {};
    p.in = in->data;
    p.out = out->data;
    p.out_dtype = out->dtype;
    p.kept = mcu_walk_of<2>(kept_views);
    p.reduced = mcu_walk_of<1>(reduced_views);
    p.outputs = p.kept.n;
    p.length = p.reduced.n;
    if (p.outputs == 0) return MC_OK;
    int inner = p.kept.ndim - 1;
    p.out_step = inner >= 0 ? p.kept.stride[1][inner] : 1;
    mc_status status;
    if (!l.by_columns && p.length > SHORT_ROW) {
        p.flat = p.reduced.ndim == 1 && p.reduced.stride[0][0] == 1;
        if (V > 1 && (p.flat || (mcu_aligned(in->data, 16) && steps_by(p.kept, 0, V, 0) &&
                                 runs_by(p.reduced, 0, V)))) {
            if (p.flat)
                p.reduced.stride[0][0] = V;
            else
                by_vectors(&p.reduced, V);
            status = launch_rows<Op, T, V>(exec, name, &p, op);
        } else {
            status = launch_rows<Op, T, 1>(exec, name, &p, op);
        }
    } else if (V > 1 && l.by_columns && mcu_aligned(in->data, 16) && runs_by(p.kept, 0, V) &&
               steps_by(p.reduced, 0, V, 0)) {
        p.out_vector = out->dtype == in->dtype && p.out_step == 1 && mcu_aligned(out->data, 16) &&
                       steps_by(p.kept, 1, V, 1);
        by_vectors(&p.kept, V);
        status = launch_columns<Op, T, V>(exec, name, &p, op, 0);
    } else {
        status = launch_columns<Op, T, 1>(exec, name, &p, op, 0);
    }
    if (status == MC_OK && p.parts > 1) status = join_parts<Op>(exec, name, p, l, op);
    return status == MC_OK ? mcu_launched(name) : status;
}

/* Calls fn with a tag of the element type; bools are bytes of 0 and 1. */
template <typename F>
mc_status for_element(int dtype, F fn) {
    return mcu_for_number(dtype == MC_BOOL ? (int)MC_UINT8 : dtype, fn);
}

mc_status sums(mci_exec *exec, const char *name, const mci_view *const *t, const void *params_,
               int mean) {
    const mci_reduce_params *r = (const mci_reduce_params *)params_;
    double divisor = 1;
    for (int d = 0; mean && d < t[1]->ndim; d++)
        if (r->reduced[d]) divisor *= (double)t[1]->shape[d];
    return for_element(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        sum_op<typename calc_of<T>::type> op = {divisor};
        return reduce < decltype(op), T,
               sizeof(T) == 1 ? 8 : 16 / sizeof(T) > (exec, name, t, r->reduced, op);
    });
}

mc_status extremes(mci_exec *exec, const char *name, const mci_view *const *t, const void *params_,
                   int least) {
    const mci_reduce_params *r = (const mci_reduce_params *)params_;
    return for_element(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        extreme_op<typename calc_of<T>::type> op = {least, least};
        return reduce < decltype(op), T,
               sizeof(T) == 1 ? 8 : 16 / sizeof(T) > (exec, name, t, r->reduced, op);
    });
}

mc_status places(mci_exec *exec, const char *name, const mci_view *const *t, const void *params_,
                 int least) {
    const mci_reduce_params *r = (const mci_reduce_params *)params_;
    return for_element(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        place_op<typename calc_of<T>::type> op = {least};
        return reduce<decltype(op), T, 1>(exec, name, t, r->reduced, op);
    });
}

} /* namespace */

mc_status mcu_sum(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return sums(exec, "sum", t, params_, 0);
}
mc_status mcu_mean(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return sums(exec, "mean", t, params_, 1);
}
mc_status mcu_amax(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return extremes(exec, "amax", t, params_, 0);
}
mc_status mcu_amin(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return extremes(exec, "amin", t, params_, 1);
}
mc_status mcu_argmax(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return places(exec, "argmax", t, params_, 0);
}
mc_status mcu_argmin(mci_exec *exec, const mci_view *const *t, const void *params_) {
    return places(exec, "argmin", t, params_, 1);
}
mc_status mcu_prod(mci_exec *exec, const mci_view *const *t, const void *params_) {
    const mci_reduce_params *r = (const mci_reduce_params *)params_;
    return for_element(t[1]->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        prod_op<typename calc_of<T>::type> op = {};
        return reduce<decltype(op), T, 1>(exec, "prod", t, r->reduced, op);
    });
}

/* -- sums of squares ------------------------------------------------------------------------------
 */

/* A tensor is cut into chunks of CHUNK elements, one block each; thread i adds the squares of its
 * 16-byte vectors i, i + 256, ... in float64, since squares leave float32's range early. Then a
 * block per tensor sums its chunks, and the tensors' sums are added to acc in list order. Nothing
 * depends on how the list is spread over launches, nor on alignment. */

namespace {

enum { CHUNK = 32768, TABLE_TENSORS = 1000, SQUARES_THREADS = 256 };

struct squares_entry {
    const void *x;
    int64_t n, first; /* first: number of its first chunk in the whole list */
    int dtype, index; /* index: in the list */
};
/* 32 KiB of kernel parameters at most; a small one for short lists. */
template <int N>
struct squares_table {
    squares_entry entry[N];
    int count;
    int64_t base; /* number of block 0's chunk */
};

/* The block's sum of squares of n elements; read(i) is element i, x where they lie if they do so
 * behind each other in aligned memory, else NULL. */
template <typename T, typename R>
__device__ inline double squares(const T *x, int64_t n, const R &read, double *space) {
    enum { V = 16 / sizeof(T) };
    double s0 = 0, s1 = 0;
#pragma unroll 4
    for (int at = (int)threadIdx.x * V; at < n; at += SQUARES_THREADS * V) {
        mcu_vector<T, V> w;
        if (x && at + V <= n) {
            w = *(const mcu_vector<T, V> *)(x + at);
        } else {
#pragma unroll
            for (int j = 0; j < V; j++) w.v[j] = at + j < n ? read(at + j) : T();
        }
#pragma unroll
        for (int j = 0; j < V; j += 2) {
            double a = (double)mcu_up(w.v[j]), b = (double)mcu_up(w.v[j + 1]);
            s0 += a * a;
            s1 += b * b;
        }
    }
    return mcu_block_sum(s0 + s1, space);
}

template <typename T>
struct read_dense {
    const T *x;
    __device__ T operator()(int64_t i) const { return x[i]; }
};
template <typename T>
struct read_walk {
    const T *x;
    int64_t first;
    const mcu_walk<1> &walk;
    __device__ T operator()(int64_t i) const {
        int64_t at;
        walk.at(first + i, &at);
        return x[at];
    }
};

template <typename T>
__device__ inline double squares_at(const squares_entry &e, int64_t chunk, double *space) {
    const T *x = (const T *)e.x + chunk * CHUNK;
    int64_t n = e.n - chunk * CHUNK < CHUNK ? e.n - chunk * CHUNK : (int64_t)CHUNK;
    return squares((uintptr_t)x % 16 == 0 ? x : NULL, n, read_dense<T>{x}, space);
}

template <int N>
__global__ void __launch_bounds__(SQUARES_THREADS)
    squares_kernel(squares_table<N> table, double *partial, int64_t *starts) {
    __shared__ double space[32];
    int64_t number = table.base + blockIdx.x;
    int low = 0, high = table.count - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (table.entry[middle].first <= number)
            low = middle;
        else
            high = middle - 1;
    }
    const squares_entry &e = table.entry[low];
    int64_t chunk = number - e.first;
    double sum;
    switch (e.dtype) {
        case MC_FLOAT64:
            sum = squares_at<double>(e, chunk, space);
            break;
        case MC_FLOAT32:
            sum = squares_at<float>(e, chunk, space);
            break;
        case MC_FLOAT16:
            sum = squares_at<mcu_half>(e, chunk, space);
            break;
        default:
            sum = squares_at<mcu_bf16>(e, chunk, space);
            break;
    }
    if (threadIdx.x == 0) {
        partial[number] = sum;
        if (chunk == 0) starts[e.index] = number;
    }
}

/* The same for one tensor of any strides. */
template <typename T>
__global__ void __launch_bounds__(SQUARES_THREADS)
    squares_strided_kernel(mcu_walk<1> walk, squares_entry e, double *partial, int64_t *starts) {
    __shared__ double space[32];
    int64_t chunk = blockIdx.x, first = chunk * CHUNK;
    int64_t n = e.n - first < CHUNK ? e.n - first : (int64_t)CHUNK;
    double sum = squares((const T *)NULL, n, read_walk<T>{(const T *)e.x, first, walk}, space);
    if (threadIdx.x == 0) {
        partial[e.first + chunk] = sum;
        if (chunk == 0) starts[e.index] = e.first;
    }
}

/* Block i: the chunks of tensor i of n. */
__global__ void __launch_bounds__(SQUARES_THREADS)
    squares_tensor_kernel(double *sums, const double *partial, const int64_t *starts, int64_t n,
                          int64_t chunks) {
    __shared__ double space[32];
    int64_t i = blockIdx.x, end = i + 1 < n ? starts[i + 1] : chunks;
    double s = 0;
#pragma unroll 4
    for (int64_t c = starts[i] + threadIdx.x; c < end; c += SQUARES_THREADS) s += partial[c];
    s = mcu_block_sum(s, space);
    if (threadIdx.x == 0) sums[i] = s;
}

__global__ void __launch_bounds__(SQUARES_THREADS)
    squares_total_kernel(double *acc, const double *sums, int64_t n) {
    __shared__ double held[SQUARES_THREADS];
    double total = *acc;
    for (int64_t first = 0; first < n; first += SQUARES_THREADS) {
        int m = n - first < SQUARES_THREADS ? (int)(n - first) : (int)SQUARES_THREADS;
        if ((int)threadIdx.x < m) held[threadIdx.x] = sums[first + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0)
            for (int i = 0; i < m; i++) total += held[i];
        __syncthreads();
    }
    if (threadIdx.x == 0) *acc = total;
}

/* The table's chunks are [base, end) of the list; empties it. */
template <int N>
void launch_table(mci_exec *exec, squares_table<N> *table, int64_t end, double *partial,
                  int64_t *starts) {
    if (table->count > 0)
        MCU_LAUNCH((squares_kernel<N>), (unsigned)(end - table->base), SQUARES_THREADS, 0, exec,
                   *table, partial, starts);
    table->count = 0;
    table->base = end;
}

void launch_strided(mci_exec *exec, const mci_view *x, const squares_entry &e, double *partial,
                    int64_t *starts) {
    const mci_view *list[1] = {x};
    mcu_walk<1> walk = mcu_walk_of<1>(list);
    mcu_for_float(x->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        MCU_LAUNCH((squares_strided_kernel<T>), (unsigned)((e.n + CHUNK - 1) / CHUNK),
                   SQUARES_THREADS, 0, exec, walk, e, partial, starts);
        return MC_OK;
    });
}

template <int N>
mc_status squares_of(mci_exec *exec, const char *name, int64_t n, const mci_view *const *const *t) {
    int64_t chunks = 0, tensors = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t size = mci_numel(t[i][1]);
        tensors += size > 0;
        chunks += (size + CHUNK - 1) / CHUNK;
    }
    if (tensors == 0) return MC_OK;
    size_t bytes = (size_t)(chunks + 2 * tensors) * sizeof(double);
    double *partial = (double *)exec->scratch(exec, bytes), *sums = partial + chunks;
    if (!partial) return mcu_no_scratch(name, bytes);
    int64_t *starts = (int64_t *)(sums + tensors), first = 0;
    squares_table<N> table = {};
    int index = 0;
    for (int64_t i = 0; i < n; i++) {
        const mci_view *x = t[i][1];
        squares_entry e = {x->data, mci_numel(x), first, x->dtype, index};
        if (e.n == 0) continue;
        int64_t next = first + (e.n + CHUNK - 1) / CHUNK;
        if (mci_is_contiguous(x)) {
            if (table.count == N || next - table.base > INT32_MAX)
                launch_table<N>(exec, &table, first, partial, starts);
            table.entry[table.count++] = e;
        } else {
            launch_table<N>(exec, &table, first, partial, starts);
            launch_strided(exec, x, e, partial, starts);
            table.base = next;
        }
        first = next;
        index++;
    }
    launch_table<N>(exec, &table, first, partial, starts);
    MCU_LAUNCH(squares_tensor_kernel, (unsigned)tensors, SQUARES_THREADS, 0, exec, sums, partial,
               starts, tensors, chunks);
    MCU_LAUNCH(squares_total_kernel, 1, SQUARES_THREADS, 0, exec, (double *)t[0][0]->data, sums,
               tensors);
    return mcu_launched(name);
}

} /* namespace */

mc_status mcu_sum_squares(mci_exec *exec, const mci_view *const *t, const void *params_) {
    (void)params_;
    return squares_of<32>(exec, "sum_squares", 1, &t);
}

mc_status mcu_sum_squares_many(mci_exec *exec, int64_t n, const mci_view *const *const *t) {
    return n <= 32 ? squares_of<32>(exec, "sum_squares", n, t)
                   : squares_of<TABLE_TENSORS>(exec, "sum_squares", n, t);
}
