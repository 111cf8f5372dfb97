/* grouped_sm80.cu: the grouped passes of bfloat16 and half on tensor cores: what they need, the
 * width of the tile, and the launch. The kernel: grouped_tiles.cuh.
 */
#include "grouped_tiles.cuh"

/* Chunks of 16 bytes: elements of a row side by side, rows and groups whole chunks apart. */
static bool in_chunks(const void *data, int64_t group, int64_t ld) {
    return mcu_aligned(data, 16) && group % 8 == 0 && ld % 8 == 0;
}

const char *mcu_grouped_sm80_refuses(const mcu_grouped_job *j) {
    const int64_t most = INT32_MAX - 2 * PIECE_K;
    if (j->dtype != MC_BFLOAT16 && j->dtype != MC_FLOAT16) return "the dtype has 32 or 64 bits";
    if (j->n % 8 != 0 || j->m % 8 != 0 || j->k % 8 != 0)
        return "the layer's sizes are no multiples of 8";
    if (!j->ragged_k && j->k == 0) return "there are no input features";
    if (j->rows > most || j->m > most || j->n > most || j->k > most || j->groups > most)
        return "an axis is too long";
    int64_t m_tiles = (j->m + MCU_GROUPED_ROWS - 1) / MCU_GROUPED_ROWS;
    int64_t lines = j->ragged_k ? j->groups * m_tiles : mcu_grouped_tile_bound(j);
    if (lines > most || lines * ((j->n + 127) / 128) > most / 2) return "there are too many tiles";
    bool a = j->ragged_k ? j->a.row == 1 && in_chunks(j->a.data, 0, j->a.column)
                         : j->a.column == 1 && in_chunks(j->a.data, 0, j->a.row);
    bool across = j->b.column == 1 && in_chunks(j->b.data, j->b.group, j->b.row);
    bool along = j->b.row == 1 && in_chunks(j->b.data, j->b.group, j->b.column) && !j->ragged_k;
    bool out = j->out.column == 1 && in_chunks(j->out.data, j->out.group, j->out.row);
    if (!a || !(across || along) || !out) return "an operand's rows are no whole 16-byte pieces";
    return NULL;
}

/* Columns of a tile: 256 move a quarter less through the L2 cache than 128, which fill the
 * multiprocessors where there are few tiles and waste less of a short row. */
static int width_of(const mci_exec *exec, const mcu_grouped_job *j, int64_t lines) {
    int64_t narrow = (j->n + 127) / 128, wide = (j->n + 255) / 256;
    if (2 * wide * 5 > narrow * 6) return 128; /* more than a sixth of the columns would be empty */
    return lines * wide >= mcu_processors(exec) ? 256 : 128;
}

template <typename T, int PASS, int WIDTH>
static mc_status start(mci_exec *exec, const mcu_grouped_job *j, const tiles_args *p,
                       int64_t lines) {
    const int shared = STAGES * (MCU_GROUPED_ROWS + WIDTH) * PIECE_K * 2;
    int64_t tiles = lines * ((j->n + WIDTH - 1) / WIDTH);
    int64_t most = (int64_t)mcu_processors(exec) * (WIDTH == 128 ? 2 : 1);
    cudaError_t error = cudaFuncSetAttribute(grouped_tiles_kernel<T, PASS, WIDTH>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return mcu_check(j->op, error);
    MCU_LAUNCH((grouped_tiles_kernel<T, PASS, WIDTH>), (unsigned)(tiles < most ? tiles : most),
               WIDTH, shared, exec, *p);
    return mcu_launched(j->op);
}

template <typename T>
static mc_status run(mci_exec *exec, const mcu_grouped_job *j, const tiles_args *p, int pass,
                     int64_t lines) {
    bool wide = width_of(exec, j, lines) == 256;
    switch (pass) {
        case PASS_FORWARD:
            return wide ? start<T, PASS_FORWARD, 256>(exec, j, p, lines)
                        : start<T, PASS_FORWARD, 128>(exec, j, p, lines);
        case PASS_DGRAD:
            return wide ? start<T, PASS_DGRAD, 256>(exec, j, p, lines)
                        : start<T, PASS_DGRAD, 128>(exec, j, p, lines);
        default:
            return wide ? start<T, PASS_WGRAD, 256>(exec, j, p, lines)
                        : start<T, PASS_WGRAD, 128>(exec, j, p, lines);
    }
}

mc_status mcu_grouped_sm80(mci_exec *exec, const mcu_grouped_job *j) {
    int pass = j->ragged_k ? PASS_WGRAD : j->b.row == 1 ? PASS_FORWARD : PASS_DGRAD;
    int64_t m_tiles = (j->m + MCU_GROUPED_ROWS - 1) / MCU_GROUPED_ROWS;
    int64_t lines = j->ragged_k ? j->groups * m_tiles : mcu_grouped_tile_bound(j);
    if (lines == 0) return MC_OK;
    tiles_args p = {};
    p.a = j->a.data;
    p.b = j->b.data;
    p.bias = j->bias.data;
    p.out = j->out.data;
    p.a_ld = j->ragged_k ? j->a.column : j->a.row;
    p.b_ld = pass == PASS_FORWARD ? j->b.column : j->b.row;
    p.out_ld = j->out.row;
    p.b_group = j->b.group;
    p.out_group = j->out.group;
    p.bias_group = j->bias.group;
    p.bias_step = j->bias.column;
    p.plan = j->plan;
    p.groups = (int)j->groups;
    p.m = (int)j->m;
    p.n = (int)j->n;
    p.k = (int)j->k;
    p.accumulate = j->accumulate;
    p.wide_out = j->out_dtype != j->dtype;
    return j->dtype == MC_BFLOAT16 ? run<mcu_bf16>(exec, j, &p, pass, lines)
                                   : run<mcu_half>(exec, j, &p, pass, lines);
}
