/* grouped.cuh: the grouped linear passes, between the files that share them.
 *
 * A pass is a job: out(m, n) (+)= sum over k of a(m, k) b(k, n), per group g. In forward and dgrad
 * the rows m of a and out are ragged (group g owns start[g] .. start[g + 1] - 1) and b is the
 * group's weight; in wgrad k is ragged, a is dy^T, b is x, and out is the group's gradient.
 *
 * grouped.cu chooses the way and turns splits into a plan on the device; grouped_plain.cu,
 * grouped_sm80.cu and grouped_lt.cu each hold one way.
 */
#ifndef MCU_GROUPED_CUH
#define MCU_GROUPED_CUH

#include "common.cuh"

/* Rows of an output tile, in every way that follows a plan; groups that are put in order at most.
 */
enum { MCU_GROUPED_ROWS = 128, MCU_GROUPED_ORDERED = 512 };

/* What the splits come to: device memory that the prologue kernel fills. Bad splits are blamed
 * there; the plan holds 0 for negative ones and never leaves the rows there are. */
typedef struct mcu_grouped_plan {
    int64_t *start; /* [G + 1] first row of each group; start[G] is the sum */
    int64_t *tiles; /* [G + 1] row tiles before each group */
    int *next;      /* 0: a counter for kernels whose blocks draw their tiles */
    int *order;     /* [G] the groups, longest first, so that no long sum begins last; or NULL */
} mcu_grouped_plan;

/* A matrix per group: where (row, column) of group g lies. Steps in elements; 0 for axes of size 1.
 */
typedef struct mcu_grouped_matrix {
    void *data;
    int64_t group, row, column;
} mcu_grouped_matrix;

typedef struct mcu_grouped_job {
    const char *op;
    int dtype, out_dtype;     /* of a, b and bias; of out: the same or float32 */
    int ragged_k, accumulate; /* ragged_k: wgrad */
    int64_t groups, rows;     /* rows: all there are, the axis that the splits divide */
    int64_t m, n, k;          /* of a group; m (k in wgrad) = 0, the splits tell it */
    mcu_grouped_matrix a, b, out;
    mcu_grouped_matrix bias; /* (0, n); data NULL without one */
    mcu_grouped_plan plan;
} mcu_grouped_job;

/* The group that owns row tile x: tiles[g] <= x < tiles[g + 1]. */
__device__ inline int64_t mcu_grouped_find(const int64_t *tiles, int64_t groups, int64_t x) {
    int64_t low = 0, high = groups;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (tiles[middle] <= x)
            low = middle;
        else
            high = middle;
    }
    return low;
}
/* Row tiles of all groups together: known to the host only as a bound. */
inline int64_t mcu_grouped_tile_bound(const mcu_grouped_job *j) {
    int64_t whole = j->rows / MCU_GROUPED_ROWS, parts = j->rows < j->groups ? j->rows : j->groups;
    return whole + parts;
}

/* Any floats, sizes and steps (grouped_plain.cu). */
mc_status mcu_grouped_plain(mci_exec *exec, const mcu_grouped_job *job);
/* bfloat16 and half on the tensor cores of sm_80 and newer (grouped_sm80.cu). NULL when it can do
 * the job, else why not. */
const char *mcu_grouped_sm80_refuses(const mcu_grouped_job *job);
mc_status mcu_grouped_sm80(mci_exec *exec, const mcu_grouped_job *job);

/* cuBLASLt, a product per group over several streams, for splits that the host knows
 * (grouped_lt.cu). It does the whole op, tail rows and empty groups too, or leaves *taken = 0 and
 * has done nothing. op is a MCI_OP_grouped_linear..., t its operands; the splits among them may be
 * NULL. */
mc_status mcu_grouped_lt(mci_exec *exec, int op, const mci_view *const *t,
                         const mci_grouped_params *p, int *taken);

/* Zeroes the rows of out [R, N] from `first` on; first = NULL: from `from` on. No scratch. */
mc_status mcu_grouped_zero_tail(mci_exec *exec, const char *op, const mci_view *out,
                                const int64_t *first, int64_t from);

/* Which way the op takes for these operands and why, in words. */
void mcu_grouped_path(int op, const mci_view *const *t, const void *params, char *text,
                      size_t size);

#endif
