/* attention.cuh: what the rooms of attention share: sizes and the two paths.
 *
 * Letters as in mascon.h: q, out, dout, dq [B, T, H, D]; k, v, dk, dv [B, S, Hkv, D]; lse [B, H,
 * T]. A causal query t sees the first t + S - T + 1 keys.
 */
#ifndef MCU_ATTENTION_CUH
#define MCU_ATTENTION_CUH

#include "common.cuh"

/* Which way these operands go and why, in words for people; the text lives until this thread's next
 * call. t: the op's operands, as in ops.def; params NULL: of ordinary ones. */
const char *mcu_attention_path(const mci_view *const *t,
                               const mci_attention_params *params = nullptr);
const char *mcu_attention_backward_path(const mci_view *const *t,
                                        const mci_attention_params *params = nullptr);

typedef struct mcu_attention_sizes {
    int64_t B, T, H, D, S, Hkv;
    int64_t group; /* query heads that share a head of k and v; 0 when there are no query heads */
    int causal;

    /* How many keys, from the first, query t sees. */
    __device__ inline int64_t visible(int64_t t) const {
        if (!causal) return S;
        int64_t n = t + S - T + 1;
        return n < 0 ? 0 : n;
    }
} mcu_attention_sizes;

/* The tensor cores' path (bfloat16 and half, D 64 and 128; attention.cu says when). t as the op's.
 */
mc_status mcu_attention_sm80(mci_exec *exec, const mci_view *const *t, const mcu_attention_sizes *z,
                             double scale);
mc_status mcu_attention_backward_sm80(mci_exec *exec, const mci_view *const *t,
                                      const mcu_attention_sizes *z, double scale);

#endif
