/* cpu.h: the CPU backend's rooms.
 *
 * Kernel files are plain loops, compiled once per instruction set (MCI_ISA = base, avx2, avx512)
 * with the same source; table.c of each set fills one backend table and backend.c takes the best
 * one the machine runs. So every function that is not static is named through MCI_CPU(). Products
 * are not contracted
 * (-ffp-contract=off) and sums have a fixed order, so all sets give the same bits; where a
 * kernel wants a fused multiply-add it says so with mci_fma.
 */
#ifndef MCI_CPU_H
#define MCI_CPU_H

#include <math.h>
#include <string.h>

#include "backend.h"
#include "status.h"

#ifndef MCI_ISA
#define MCI_ISA base
#endif
#define MCI_CAT2(a, b, c) a##b##_##c
#define MCI_CAT(a, b, c) MCI_CAT2(a, b, c)
#define MCI_CPU(name) MCI_CAT(mci_cpu_, name, MCI_ISA)

#define MC_OP(name, outputs, inputs, params) \
    mc_status MCI_CPU(name)(mci_exec * exec, const mci_view *const *t, const void *p);
#include "ops.def"
#undef MC_OP

/* Set by mc_cpu_set_plain: kernels that have a fast path beside their definition take the
 * definition. */
extern int mci_cpu_plain;

/* Work below this many elements runs on the calling thread: a parallel region costs about 5 us. */
enum { MCI_PARALLEL_MIN = 32768 };

/* Threads of the next parallel region over `work` elements: 1 when small or already inside one. */
int mci_threads(int64_t work);

/* Independent of the thread count: item i of n items split over `parts` starts here. */
static inline int64_t mci_split(int64_t n, int64_t parts, int64_t i) {
    return n / parts * i + (i < n % parts ? i : n % parts);
}

#endif
