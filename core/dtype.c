/* dtype.c: the dtype table's public face, and mc_convert, which is the CPU backend's copy kernel on
 * two flat arrays: there is one conversion code. */
#include "dtype.h"

#include "backend.h"
#include "cpu/host.h"
#include "status.h"

const mci_dtype_info mci_dtypes[MC_DTYPE_COUNT] = {
#define MCI_ROW(code, name_, type, kind_) \
    [code] = {.name = name_, .size = (int)sizeof(type), .kind = MCI_KIND_##kind_},
    MCI_DTYPES(MCI_ROW)
#undef MCI_ROW
};

const char *mc_dtype_name(int dtype) {
    return mci_dtype_known(dtype) ? mci_dtypes[dtype].name : NULL;
}

int mc_dtype_size(int dtype) {
    return mci_dtype_known(dtype) ? mci_dtypes[dtype].size : 0;
}

int mc_dtype_is_float(int dtype) {
    int kind = mci_dtype_kind(dtype);
    return kind == MCI_KIND_FLOAT || kind == MCI_KIND_STORE;
}

mc_status mc_convert(void *dst, int dst_dtype, const void *src, int src_dtype, int64_t n) {
    if (!mci_dtype_known(dst_dtype) || !mci_dtype_known(src_dtype))
        return mci_fail(MC_EINVAL, "convert: unknown dtype code %d, codes are 0 to %d",
                        mci_dtype_known(dst_dtype) ? src_dtype : dst_dtype, MC_DTYPE_COUNT - 1);
    if (n < 0) return mci_fail(MC_EINVAL, "convert: n is %lld, wanted 0 or more", (long long)n);
    if (n == 0) return MC_OK;
    if (!dst || !src)
        return mci_fail(MC_EINVAL, "convert: %s is NULL", dst ? "the source" : "the destination");
    const mci_backend *cpu = mci_cpu_backend();
    mci_view to = {.data = dst, .dtype = dst_dtype, .ndim = 1, .shape = {n}, .stride = {1}};
    mci_view from = {.dtype = src_dtype, .ndim = 1, .shape = {n}, .stride = {1}};
    memcpy(&from.data, &src, sizeof src); /* a view has no const data; copy only reads this one */
    const mci_view *t[2] = {&to, &from};
    mci_exec exec = {0};
    return cpu->kernels[MCI_OP_copy](&exec, t, NULL);
}
