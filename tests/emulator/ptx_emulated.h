/* ptx_emulated.h: the functions of cuda/ptx.cuh on the CPU.
 *
 * An asynchronous copy spoils its destination (0xFF) when it is issued and delivers at the wait
 * that covers its group: who reads too early, or overwrites what others still read, sees it. mma
 * takes the exact products of one step, adds them and d in float64 in rising order of k, and rounds
 * once to float32: a tensor core rounds more coarsely within a step.
 */
#ifndef MCU_EMULATOR_PTX_H
#define MCU_EMULATOR_PTX_H

/* A copy's start and commit, and the wait that leaves the newest `pending` groups under way, for
 * the running thread (fibers.cpp). */
void mcu_emulator_copy(void *shared, const void *global, int bytes);
void mcu_emulator_copy_commit();
void mcu_emulator_copy_wait(int pending);

inline void mcu_copy_async(void *shared, const void *global, int bytes = 16) {
    mcu_emulator_copy(shared, global, bytes);
}
inline void mcu_copy_commit() {
    mcu_emulator_copy_commit();
}
template <int pending>
inline void mcu_copy_wait() {
    mcu_emulator_copy_wait(pending);
}

struct mcu_emulator_matrix {
    const void *row;
    uint32_t *r;
    bool transposed;
};
/* Element (i, j) of matrix m lies in the row whose address lane 8 m + i gave. */
inline void mcu_emulator_load_matrix(void *const *args, unsigned lanes) {
    if (lanes != 0xFFFFFFFFU) mcu_emulator_die("ldmatrix without all lanes of the warp");
    for (int lane = 0; lane < 32; lane++) {
        const mcu_emulator_matrix *own = (const mcu_emulator_matrix *)args[lane];
        if ((uintptr_t)own->row % 16)
            mcu_emulator_die("ldmatrix of a row at %p, not 16-byte aligned", own->row);
        for (int m = 0; m < 4; m++) {
            uint16_t pair[2];
            for (int k = 0; k < 2; k++) {
                int i = own->transposed ? lane % 4 * 2 + k : lane / 4;
                int j = own->transposed ? lane / 4 : lane % 4 * 2 + k;
                const mcu_emulator_matrix *source = (const mcu_emulator_matrix *)args[m * 8 + i];
                memcpy(&pair[k], (const char *)source->row + j * 2, 2);
            }
            own->r[m] = (uint32_t)pair[0] | (uint32_t)pair[1] << 16;
        }
    }
}
inline void mcu_load_matrix(uint32_t (&r)[4], const void *shared, MCU_EMULATOR_PLACE) {
    mcu_emulator_matrix m = {shared, r, false};
    mcu_emulator_meet(0xFFFFFFFFU, &m, mcu_emulator_load_matrix, {"mcu_load_matrix", file, line});
}
inline void mcu_load_matrix_t(uint32_t (&r)[4], const void *shared, MCU_EMULATOR_PLACE) {
    mcu_emulator_matrix m = {shared, r, true};
    mcu_emulator_meet(0xFFFFFFFFU, &m, mcu_emulator_load_matrix, {"mcu_load_matrix_t", file, line});
}

struct mcu_emulator_product {
    float *d;
    const uint32_t *a;
    uint32_t b[2];
};
/* The fragments as in the head of ptx.cuh. */
template <typename T>
void mcu_emulator_mma(void *const *args, unsigned lanes) {
    if (lanes != 0xFFFFFFFFU) mcu_emulator_die("mma without all lanes of the warp");
    double a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const mcu_emulator_product *p = (const mcu_emulator_product *)args[lane];
        int g = lane / 4, q = lane % 4;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++)
                a[g + i % 2 * 8][2 * q + i / 2 * 8 + half] =
                    (double)mcu_up(T{(uint16_t)(p->a[i] >> 16 * half)});
            for (int i = 0; i < 2; i++)
                b[2 * q + i * 8 + half][g] = (double)mcu_up(T{(uint16_t)(p->b[i] >> 16 * half)});
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const mcu_emulator_product *p = (const mcu_emulator_product *)args[lane];
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = 0;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            p->d[i] = (float)((double)p->d[i] + sum);
        }
    }
}
template <typename T>
inline void mcu_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                    MCU_EMULATOR_PLACE) {
    mcu_emulator_product p = {d, a, {b0, b1}};
    mcu_emulator_meet(0xFFFFFFFFU, &p, mcu_emulator_mma<T>, {"mcu_mma", file, line});
}

#endif
