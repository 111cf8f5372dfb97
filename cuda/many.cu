/* many.cu: the backend's `many`: n calls of one op in few launches; and scale, x *= factor, for one
 * tensor or many.
 *
 * scale reads and writes each byte once: a thread owns 16 bytes at a time and has four of them in
 * flight, 64 bytes. Contiguous tensors go through the table of chunks.cuh, others element by
 * element.
 */
#include "many.cuh"

#include "chunks.cuh"

namespace {

/* One element of T or float. */
struct factor {
    const void *at;
    int is_float;
};
template <typename T>
__device__ inline mcu_real_t<T> value_of(const factor &f) {
    return f.is_float ? (mcu_real_t<T>)*(const float *)f.at : mcu_up(*(const T *)f.at);
}

template <typename T>
__global__ void __launch_bounds__(MCU_CHUNK_THREADS) scale_kernel(mcu_chunks<1> table, factor f) {
    typedef mcu_real_t<T> R;
    constexpr int V = 16 / (int)sizeof(T), U = 4;
    const R by = value_of<T>(f);
    uint32_t chunks = table.first[table.tensors];
    for (uint32_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        int tensor = table.owner(chunk);
        int64_t begin = (int64_t)(chunk - table.first[tensor]) * MCU_CHUNK;
        int64_t left = table.n[tensor] - begin;
        int n = left < MCU_CHUNK ? (int)left : MCU_CHUNK;
        T *x = (T *)table.at[0][tensor] + begin;
        int whole = (uintptr_t)x % 16 == 0 ? n / V : 0;
        int i = (int)threadIdx.x;
        for (; i + (U - 1) * MCU_CHUNK_THREADS < whole; i += U * MCU_CHUNK_THREADS) {
            mcu_vector<T, V> part[U], *at = reinterpret_cast<mcu_vector<T, V> *>(x) + i;
            for (int u = 0; u < U; u++) part[u] = at[u * MCU_CHUNK_THREADS];
            for (int u = 0; u < U; u++)
                for (int j = 0; j < V; j++) part[u].v[j] = mcu_down<T>(mcu_up(part[u].v[j]) * by);
            for (int u = 0; u < U; u++) at[u * MCU_CHUNK_THREADS] = part[u];
        }
        for (; i < whole; i += MCU_CHUNK_THREADS) {
            R v[V];
            mcu_load<V>(v, x + i * V);
            for (int j = 0; j < V; j++) v[j] *= by;
            mcu_store<V>(x + i * V, v);
        }
        for (i = whole * V + (int)threadIdx.x; i < n; i += MCU_CHUNK_THREADS)
            x[i] = mcu_down<T>(mcu_up(x[i]) * by);
    }
}

template <typename T>
__global__ void scale_walk_kernel(mcu_walk<1> walk, T *x, factor f) {
    const mcu_real_t<T> by = value_of<T>(f);
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < walk.n; i += step) {
        int64_t at;
        walk.at(i, &at);
        x[at] = mcu_down<T>(mcu_up(x[at]) * by);
    }
}

/* The tensors of one dtype, T. */
template <typename T>
mc_status scale_kind(mci_exec *exec, int dtype, int64_t n, const mci_view *const *const *t) {
    const mci_view *number = t[0][1];
    factor f = {number->data, number->dtype == MC_FLOAT32};
    mcu_chunks<1> table;
    table.clear();
    for (int64_t i = 0; i <= n; i++) { /* at n: what is left in the table */
        const mci_view *x = i < n ? t[i][0] : nullptr;
        int64_t elements = x ? mci_numel(x) : 0;
        if (x && (x->dtype != dtype || elements == 0)) continue;
        if (x && !mci_is_contiguous(x)) {
            MCU_LAUNCH((scale_walk_kernel<T>), mcu_blocks(exec, elements, MCU_CHUNK_THREADS, 16),
                       MCU_CHUNK_THREADS, 0, exec, mcu_walk_of<1>(t[i]), (T *)x->data, f);
            continue;
        }
        if (table.tensors > 0 && (!x || !table.takes(elements))) {
            MCU_LAUNCH((scale_kernel<T>), mcu_blocks(exec, table.first[table.tensors], 1, 16),
                       MCU_CHUNK_THREADS, 0, exec, table, f);
            table.clear();
        }
        if (x) table.add(&x->data, elements);
    }
    return mcu_launched("scale");
}

}  // namespace

mc_status mcu_scale_many(mci_exec *exec, int64_t n, const mci_view *const *const *t) {
    unsigned present = 0;
    for (int64_t i = 0; i < n; i++) present |= 1U << t[i][0]->dtype;
    mc_status status = MC_OK;
    for (int dtype = 0; dtype < MC_DTYPE_COUNT && status == MC_OK; dtype++) {
        if (!(present >> dtype & 1U)) continue;
        status = mcu_for_float(
            dtype, [&](auto tag) { return scale_kind<decltype(tag)>(exec, dtype, n, t); });
    }
    return status;
}

mc_status mcu_scale(mci_exec *exec, const mci_view *const *t, const void *) {
    return mcu_scale_many(exec, 1, &t);
}

mc_status mcu_many(mci_exec *exec, int op, int64_t n, const mci_view *const *const *t,
                   const void *params) {
    switch (op) {
        case MCI_OP_adam_step:
            return mcu_adam_step_many(exec, n, t, params);
        case MCI_OP_sum_squares:
            return mcu_sum_squares_many(exec, n, t);
        case MCI_OP_scale:
            return mcu_scale_many(exec, n, t);
        default:
            return MC_EUNSUPPORTED;
    }
}
