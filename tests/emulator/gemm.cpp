/* gemm.cpp: mcu_gemm_run as plain loops, in the place of the library for products.
 *
 * A thread owns a strip of a row of d: sums in float64, one rounding. float32 operands are first
 * cut to tf32 when that is allowed, as the device may do: who allows it by mistake sees it. With
 * MCU_EMULATOR_GEMM=none no product is taken, so that the plugin's own plain kernels are tested.
 */
#include "../../cuda/device.cuh"

namespace {

const int STRIP = 32, THREADS = 64;

/* To 10 bits of mantissa, ties away from zero (PTX ISA, cvt.rna.tf32.f32). */
float to_tf32(float x) {
    uint32_t u = mci_f32_bits(x);
    return x != x || isinf(x) ? x : mci_bits_f32((u + 0x1000U) & 0xFFFFE000U);
}

template <typename T>
double load(const T *p, int) {
    return (double)mcu_up(*p);
}
template <>
double load<float>(const float *p, int tf32) {
    return tf32 ? (double)to_tf32(*p) : (double)*p;
}
template <typename T>
T store(double x) {
    return mcu_down<T>((mcu_real_t<T>)x);
}

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016) */
double gelu_of(double x) {
    double c = x > 40 ? 40 : x < -40 ? -40 : x;
    return x / (1 + exp(-1.5957691216057308 * (c + 0.044715 * c * c * c)));
}

template <typename T, typename D>
__global__ void product_kernel(const mcu_gemm g) {
    int64_t strips = (g.n + STRIP - 1) / STRIP, items = g.batch * g.m * strips;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < items;
         i += (int64_t)gridDim.x * blockDim.x) {
        int64_t j = i % strips * STRIP, row = i / strips % g.m, batch = i / strips / g.m;
        int64_t width = g.n - j < STRIP ? g.n - j : STRIP;
        const T *a = (const T *)g.a + batch * g.stride_a + (g.transpose_a ? row : row * g.lda);
        const T *b = (const T *)g.b + batch * g.stride_b + (g.transpose_b ? j * g.ldb : j);
        D *d = (D *)g.d + batch * g.stride_d + row * g.ldd + j;
        int64_t a_step = g.transpose_a ? g.lda : 1, b_step = g.transpose_b ? 1 : g.ldb;
        int64_t b_next = g.transpose_b ? g.ldb : 1;
        double sum[STRIP] = {0};
        for (int64_t k = 0; k < g.k; k++) {
            double x = load(a + k * a_step, g.tf32);
            for (int64_t c = 0; c < width; c++)
                sum[c] += x * load(b + k * b_step + c * b_next, g.tf32);
        }
        for (int64_t c = 0; c < width; c++) {
            double y = sum[c];
            if (g.bias) y += load((const D *)g.bias + j + c, 0);
            if (g.accumulate) y += load(d + c, 0);
            d[c] = store<D>(g.gelu ? gelu_of(y) : y);
        }
    }
}

template <typename T, typename D>
void launch(const mcu_gemm &g, cudaStream_t stream) {
    int64_t items = g.batch * g.m * ((g.n + STRIP - 1) / STRIP);
    int64_t blocks = (items + THREADS - 1) / THREADS;
    if (items == 0) return;
    MCU_LAUNCH_IN(stream, (product_kernel<T, D>), (unsigned)(blocks < 1024 ? blocks : 1024),
                  THREADS, 0, g);
}

}  // namespace

const char *mcu_blas_version(void) {
    return "emulated";
}

mc_status mcu_gemm_run(mci_exec *exec, int stream, const char *op, const mcu_gemm *g, int *taken) {
    const char *way = getenv("MCU_EMULATOR_GEMM");
    *taken = !(way && strcmp(way, "none") == 0);
    if (!*taken) return MC_OK;
    cudaStream_t into = mcu_side_stream(exec, stream);
    mc_status status = mcu_for_float(g->dtype, [&](auto tag) {
        typedef decltype(tag) T;
        if (g->d_dtype == g->dtype)
            launch<T, T>(*g, into);
        else if (g->d_dtype == MC_FLOAT32)
            launch<T, float>(*g, into);
        else
            return mcu_fail(MC_EINTERNAL, "%s: a product of dtype %d into dtype %d", op, g->dtype,
                            g->d_dtype);
        return (mc_status)MC_OK;
    });
    return status == MC_OK ? mcu_launched(op) : status;
}
