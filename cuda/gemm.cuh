/* gemm.cuh: what stands below a dense product: the plain kernel for anything, and the stored
 * choices of algorithms.
 */
#ifndef MCU_GEMM_CUH
#define MCU_GEMM_CUH

#include "common.cuh"

/* d [.., m, n] = a [.., m, k] b [.., k, n] (+ bias [n]) (+ d when accumulate) (gelu of all that),
 * any strides, in elements; `axes` batch axes, outermost first. k may be 0: then a and b are not
 * read, and with accumulate this is the epilogue alone, in place. */
typedef struct mcu_plain {
    const void *a, *b, *bias; /* bias: d_dtype, or NULL */
    void *d;
    int64_t m, n, k;
    int64_t a_m, a_k, b_k, b_n, d_m, d_n, bias_n;
    int64_t shape[MC_MAX_DIMS], a_batch[MC_MAX_DIMS], b_batch[MC_MAX_DIMS], d_batch[MC_MAX_DIMS];
    int axes, dtype, d_dtype; /* d_dtype: dtype, or float32 beside 16 bits */
    int accumulate, gelu;
} mcu_plain;

mc_status mcu_plain_product(mci_exec *exec, const char *op, const mcu_plain *p);

/* g cut along k where that pays (gemm_split.cu); *taken = 0: it is left to mcu_gemm_run. */
mc_status mcu_split_product(mci_exec *exec, const char *op, const mcu_gemm *g, int *taken);

/* The plain product that says the same as g. */
mcu_plain mcu_plain_of(const mcu_gemm *g);

inline int64_t mcu_float_size(int dtype) {
    return dtype == MC_FLOAT64 ? 8 : dtype == MC_FLOAT32 ? 4 : 2;
}

/* How a matrix with these strides is stored: 0 row-major, 1 transposed, -1 neither; *ld its leading
 * dimension. */
inline int mcu_stored(int64_t rows, int64_t columns, int64_t s0, int64_t s1, int64_t *ld) {
    if ((s1 == 1 || columns == 1) && (s0 >= columns || rows == 1)) {
        *ld = rows == 1 && s0 < columns ? columns : s0;
        if (*ld < 1) *ld = 1; /* no columns */
        return 0;
    }
    if ((s0 == 1 || rows == 1) && (s1 >= rows || columns == 1)) {
        *ld = columns == 1 && s1 < rows ? rows : s1;
        if (*ld < 1) *ld = 1;
        return 1;
    }
    return -1;
}

/* The choices stored for one GPU and one library (gemm_choices.cu): a text file of lines "key
 * choice", read at the first use, written whole and renamed into place after each new choice. What
 * is not such a line is passed over; without a writable folder choices last as long as the process.
 */
enum { MCU_GEMM_KEY = 17 }; /* numbers that tell one problem from another */

/* -1 when there is none. `name`: of the GPU and the library, any characters. */
int mcu_gemm_choice(const char *name, const int64_t key[MCU_GEMM_KEY]);
void mcu_gemm_choose(const char *name, const int64_t key[MCU_GEMM_KEY], int choice);

#endif
