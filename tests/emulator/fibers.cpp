/* fibers.cpp: runs a block's threads as fibers of one OS thread.
 *
 * There is no scheduler loop: a fiber whose thread waits or returns picks the next thread itself
 * and changes to it. A thread that was never started needs no change of stacks when the fiber
 * before it is done with its own thread: kernels without barriers run wholly on one fiber. Warps
 * run in turn, each for as long as any of its lanes can.
 */
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include <vector>

#include "emulator.h"
#include "ptx_emulated.h"

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
/* Elsewhere, and with MCU_EMULATOR_UCONTEXT, the C library's change of stacks: some 20 times
 * slower. */
#if defined(__x86_64__) && !defined(MCU_EMULATOR_UCONTEXT)
#define OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
void *mcu_emulator_shared;

namespace {

#ifdef WITH_ASAN
const size_t STACK_BYTES = 512 << 10; /* a report of the sanitizer is written on it */
#else
const size_t STACK_BYTES = 128 << 10;
#endif
const size_t PAGE_BYTES = 4096;
const int MOST_THREADS = 1024;

struct fiber {
#ifdef OWN_SWITCH
    void *stack_pointer;
#else
    ucontext_t context;
#endif
    char *bottom; /* of its stack; the launching thread's is learnt at the first change */
    size_t bytes;
    void *fake; /* AddressSanitizer's */
    fiber *next_free;
};

struct warp {
    unsigned exists, done, started;
    unsigned runnable; /* not started, or let go from where it waited */
    unsigned waiting;  /* in mcu_emulator_meet */
    unsigned at_barrier;
    unsigned mask[32];
    void *arg[32];
    void (*complete[32])(void *const *, unsigned);
    mcu_emulator_place place[32];
};

/* The asynchronous copies of one thread that have not landed. */
struct flying {
    void *shared;
    const void *global;
    int bytes, group;
};
struct copies {
    std::vector<flying> list;
    int groups; /* committed */
};

enum order { RISING, FALLING, SHUFFLED };

struct {
    const mcu_emulator_launch *launch;
    order how;
    uint32_t random;
    int threads, alive, arrived, counted;
    unsigned barrier_result;
    warp warps[MOST_THREADS / 32];
    int warp_now;                   /* whose lanes run */
    unsigned round;                 /* its lanes that were not picked in this round */
    unsigned warps_runnable, turns; /* turns: the warps that had none since the last full turn */
    int thread;
    copies copy[MOST_THREADS];
    fiber outside, *running, *free_fibers, *fiber_of[MOST_THREADS];
    uint3 index[MOST_THREADS]; /* for the block shape `indexed` */
    dim3 indexed;
} the;

/* -- changing stacks
 * ------------------------------------------------------------------------------------ */

#ifdef OWN_SWITCH
/* System V x86-64: what a callee keeps is pushed, the stack pointers change places. */
extern "C" void mcu_emulator_switch(void **save, void *to) MCU_EMULATOR_HIDDEN;
asm(R"(
    .text
    .globl mcu_emulator_switch
    .hidden mcu_emulator_switch
    .type mcu_emulator_switch, @function
mcu_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size mcu_emulator_switch, . - mcu_emulator_switch
)");
#endif

void arrived_from(fiber *from) {
#ifdef WITH_ASAN
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(the.running->fake, &bottom, &bytes);
    if (from == &the.outside) {
        from->bottom = (char *)bottom;
        from->bytes = bytes;
    }
#else
    (void)from;
#endif
}

fiber *came_from;

void change_to(fiber *to) {
    fiber *from = the.running;
    the.running = to;
    came_from = from;
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->bytes);
#endif
#ifdef OWN_SWITCH
    mcu_emulator_switch(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->context, &to->context);
#endif
    arrived_from(came_from);
}

void fiber_main();

fiber *new_fiber() {
    char *memory = (char *)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, PAGE_BYTES, PROT_NONE) != 0)
        mcu_emulator_die("no memory for a thread's stack");
    fiber *f = new fiber();
    f->bottom = memory + PAGE_BYTES;
    f->bytes = STACK_BYTES - PAGE_BYTES;
#ifdef OWN_SWITCH
    /* what mcu_emulator_switch pops, fiber_main as its return address, and none for fiber_main */
    void **top = (void **)(memory + STACK_BYTES) - 2;
    top[0] = (void *)fiber_main;
    for (int i = 1; i <= 6; i++) top[-i] = nullptr;
    f->stack_pointer = top - 6;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->bottom;
    f->context.uc_stack.ss_size = f->bytes;
    makecontext(&f->context, fiber_main, 0);
#endif
    return f;
}

/* -- who runs next
 * -------------------------------------------------------------------------------------- */

int choose(unsigned set) {
    if (the.how == RISING) return __builtin_ctz(set);
    if (the.how == FALLING) return 31 - __builtin_clz(set);
    the.random = the.random * 1664525U + 1013904223U;
    for (int skip = (int)((the.random >> 16) % (unsigned)__builtin_popcount(set)); skip > 0; skip--)
        set &= set - 1;
    return __builtin_ctz(set);
}

/* A thread that can run, or -1. */
int pick() {
    for (;;) {
        warp &w = the.warps[the.warp_now];
        unsigned set = w.runnable & the.round;
        if (!set) set = the.round = w.runnable;
        if (set) {
            int lane = choose(set);
            the.round &= ~(1U << lane);
            w.runnable &= ~(1U << lane);
            if (!w.runnable) the.warps_runnable &= ~(1U << the.warp_now);
            return the.warp_now * 32 + lane;
        }
        if (!the.warps_runnable) return -1;
        unsigned turn = the.warps_runnable & the.turns;
        if (!turn) turn = the.turns = the.warps_runnable;
        the.warp_now = choose(turn);
        the.turns &= ~(1U << the.warp_now);
        the.round = ~0U;
    }
}

void let_go(int w, unsigned lanes) {
    the.warps[w].runnable |= lanes;
    the.warps_runnable |= 1U << w;
}

bool same_place(const mcu_emulator_place &a, const mcu_emulator_place &b) {
    return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0) &&
           (a.what == b.what || strcmp(a.what, b.what) == 0);
}

/* Ends the process with a list of where each warp's lanes are. */
[[noreturn]] void die_waiting(const char *what) {
    fflush(stdout);
    fprintf(stderr, "where the threads are:\n");
    for (int i = 0; i * 32 < the.threads; i++) {
        const warp &w = the.warps[i];
        fprintf(stderr, "  warp %d:", i);
        for (unsigned left = w.waiting | w.at_barrier; left;) {
            int lane = __builtin_ctz(left);
            const mcu_emulator_place &p = w.place[lane];
            unsigned here = 0;
            for (unsigned rest = left; rest; rest &= rest - 1)
                if (same_place(w.place[__builtin_ctz(rest)], p)) here |= rest & (0U - rest);
            fprintf(stderr, " lanes %08x at %s, %s:%d;", here, p.what, p.file, p.line);
            left &= ~here;
        }
        if (w.done) fprintf(stderr, " lanes %08x have returned;", w.done);
        unsigned rest = w.exists & ~(w.done | w.waiting | w.at_barrier);
        if (rest) fprintf(stderr, " lanes %08x run;", rest);
        fprintf(stderr, "\n");
    }
    mcu_emulator_die("%s", what);
}

/* Lets the lanes of `mask` go if all that still run are there. */
void settle_warp(int number, unsigned mask) {
    warp &w = the.warps[number];
    unsigned lanes = mask & w.exists & ~w.done;
    if (!lanes || (w.waiting & lanes) != lanes) return;
    int first = __builtin_ctz(lanes);
    for (unsigned left = lanes; left; left &= left - 1) {
        int lane = __builtin_ctz(left);
        if (w.mask[lane] != mask) die_waiting("lanes meet with different masks");
        if (!same_place(w.place[lane], w.place[first]))
            die_waiting("lanes meet at different places");
    }
    if (w.complete[first]) w.complete[first](w.arg, lanes);
    w.waiting &= ~lanes;
    let_go(number, lanes);
}

void settle_block() {
    if (the.arrived == 0 || the.arrived != the.alive) return;
    const mcu_emulator_place *first = nullptr;
    for (int i = 0; i * 32 < the.threads; i++) {
        warp &w = the.warps[i];
        if (!w.at_barrier) continue;
        for (unsigned left = w.at_barrier; left; left &= left - 1) {
            const mcu_emulator_place &p = w.place[__builtin_ctz(left)];
            if (!first) first = &p;
            if (!same_place(p, *first)) die_waiting("threads of a block at different barriers");
        }
        let_go(i, w.at_barrier);
    }
    for (int i = 0; i * 32 < the.threads; i++) the.warps[i].at_barrier = 0;
    the.barrier_result = (unsigned)the.counted;
    the.arrived = the.counted = 0;
    the.turns = the.warps_runnable; /* a new round of the whole block */
    the.warp_now = choose(the.turns);
    the.turns &= ~(1U << the.warp_now);
    the.round = ~0U;
}

/* Makes `next` the running thread, on its own fiber or a fresh one. */
void change_to_thread(int next) {
    warp &w = the.warps[next / 32];
    unsigned bit = 1U << (next & 31);
    the.thread = next;
    threadIdx = the.index[next];
    if (!(w.started & bit)) {
        w.started |= bit;
        fiber *f = the.free_fibers;
        if (f) the.free_fibers = f->next_free;
        the.fiber_of[next] = f ? f : new_fiber();
    }
    if (the.fiber_of[next] != the.running) change_to(the.fiber_of[next]);
}

void finish_thread() {
    int number = the.thread / 32;
    if (!the.copy[the.thread].list.empty()) mcu_emulator_copy_wait(-1);
    warp &w = the.warps[number];
    w.done |= 1U << (the.thread & 31);
    the.alive--;
    if (w.waiting) settle_warp(number, w.mask[__builtin_ctz(w.waiting)]);
    settle_block();
}

/* Threads of the block, one after another, until none is left that was never started. */
void fiber_main() {
    fiber *self = the.running;
    arrived_from(came_from);
    for (;;) {
        the.launch->call(the.launch->held);
        finish_thread();
        int next = pick();
        unsigned bit = 1U << (next & 31);
        if (next >= 0 && !(the.warps[next / 32].started & bit)) {
            the.warps[next / 32].started |= bit;
            the.fiber_of[next] = self;
            the.thread = next;
            threadIdx = the.index[next];
            continue;
        }
        if (next < 0 && the.alive > 0) die_waiting("threads wait for one another");
        self->next_free = the.free_fibers;
        the.free_fibers = self;
        if (next < 0)
            change_to(&the.outside);
        else
            change_to_thread(next);
    }
}

void wait() {
    int next = pick();
    if (next < 0) die_waiting("threads wait for one another");
    change_to_thread(next);
}

void run_block() {
    int warps = (the.threads + 31) / 32;
    for (int i = 0; i < warps; i++) {
        warp &w = the.warps[i];
        int lanes = the.threads - i * 32;
        w.exists = w.runnable = lanes >= 32 ? ~0U : (1U << lanes) - 1U;
        w.done = w.started = w.waiting = w.at_barrier = 0;
    }
    the.warps_runnable = the.turns = warps == 32 ? ~0U : (1U << warps) - 1U;
    the.warp_now = choose(the.turns);
    the.turns &= ~(1U << the.warp_now);
    the.round = ~0U;
    the.alive = the.threads;
    the.arrived = the.counted = 0;
    the.running = &the.outside;
    change_to_thread(pick());
}

void read_order() {
    static bool known = false;
    if (known) return;
    known = true;
    const char *text = getenv("MCU_EMULATOR_ORDER");
    if (text && strcmp(text, "reverse") == 0) the.how = FALLING;
    if (text && strcmp(text, "shuffle") == 0) the.how = SHUFFLED;
}

uint64_t common_divisor(uint64_t a, uint64_t b) {
    return b ? common_divisor(b, a % b) : a;
}

/* A step that visits every one of n blocks, when it is taken n times around. */
uint64_t block_step(uint64_t n) {
    if (the.how == RISING || n == 1) return 1;
    if (the.how == FALLING) return n - 1;
    uint64_t step = n * 5 / 8 + 1;
    while (common_divisor(n, step) != 1) step++;
    return step;
}

}  // namespace

/* -- what kernels and launches call
 * --------------------------------------------------------------------- */

unsigned mcu_emulator_barrier(int predicate, const mcu_emulator_place &place) {
    warp &w = the.warps[the.thread / 32];
    int lane = the.thread & 31;
    w.place[lane] = place;
    w.at_barrier |= 1U << lane;
    the.arrived++;
    the.counted += predicate != 0;
    settle_block();
    wait();
    return the.barrier_result;
}

void mcu_emulator_meet(unsigned mask, void *arg,
                       void (*complete)(void *const *args, unsigned lanes),
                       const mcu_emulator_place &place) {
    int number = the.thread / 32, lane = the.thread & 31;
    warp &w = the.warps[number];
    if (!(mask >> lane & 1U))
        mcu_emulator_die("%s, %s:%d: the mask %08x leaves out the calling lane", place.what,
                         place.file, place.line, mask);
    w.mask[lane] = mask;
    w.arg[lane] = arg;
    w.complete[lane] = complete;
    w.place[lane] = place;
    w.waiting |= 1U << lane;
    settle_warp(number, mask);
    wait();
}

void mcu_emulator_yield() {
    let_go(the.thread / 32, 1U << (the.thread & 31));
    the.round &= ~(1U << (the.thread & 31));
    wait();
}

int mcu_emulator_thread() {
    return the.thread;
}

/* -- asynchronous copies (ptx_emulated.h)
 * ------------------------------------------------------------------ */

void mcu_emulator_copy(void *shared, const void *global, int bytes) {
    if (bytes < 0 || bytes > 16 || (uintptr_t)shared % 16 || (uintptr_t)global % 16)
        mcu_emulator_die(
            "mcu_copy_async of %d bytes from %p to %p: 0 to 16 bytes between 16-byte "
            "aligned places are legal",
            bytes, global, shared);
    copies &c = the.copy[the.thread];
    if (c.list.empty()) c.groups = 0;
    memset(shared, 0xFF, 16);
    c.list.push_back({shared, global, bytes, c.groups});
}

void mcu_emulator_copy_commit() {
    the.copy[the.thread].groups++;
}

/* Of a thread that ends (pending < 0) all land, committed or not. */
void mcu_emulator_copy_wait(int pending) {
    copies &c = the.copy[the.thread];
    size_t kept = 0;
    for (const flying &f : c.list) {
        if (pending >= 0 && f.group >= c.groups - pending) {
            c.list[kept++] = f;
            continue;
        }
        memset(f.shared, 0, 16);
        if (f.bytes > 0) memcpy(f.shared, f.global, (size_t)f.bytes);
    }
    c.list.resize(kept);
}

/* -- meetings of a warp
 * --------------------------------------------------------------------------------------- */

void mcu_emulator_exchange_all(void *const *args, unsigned lanes) {
    uint64_t value[32];
    for (unsigned left = lanes; left; left &= left - 1) {
        int lane = __builtin_ctz(left);
        value[lane] = ((const mcu_emulator_exchange *)args[lane])->value;
    }
    for (unsigned left = lanes; left; left &= left - 1) {
        mcu_emulator_exchange *e = (mcu_emulator_exchange *)args[__builtin_ctz(left)];
        e->value = lanes >> e->source & 1U ? value[e->source] : ~0ULL;
        e->lanes = lanes;
    }
}

void mcu_emulator_vote(void *const *args, unsigned lanes) {
    unsigned votes = 0;
    for (unsigned left = lanes; left; left &= left - 1)
        if (((const mcu_emulator_exchange *)args[__builtin_ctz(left)])->value)
            votes |= left & (0U - left);
    for (unsigned left = lanes; left; left &= left - 1) {
        mcu_emulator_exchange *e = (mcu_emulator_exchange *)args[__builtin_ctz(left)];
        e->value = votes;
        e->lanes = lanes;
    }
}

void mcu_emulator_match(void *const *args, unsigned lanes) {
    for (unsigned left = lanes; left; left &= left - 1) {
        mcu_emulator_exchange *e = (mcu_emulator_exchange *)args[__builtin_ctz(left)];
        e->lanes = 0;
        for (unsigned other = lanes; other; other &= other - 1)
            if (((const mcu_emulator_exchange *)args[__builtin_ctz(other)])->value == e->value)
                e->lanes |= other & (0U - other);
    }
}

void mcu_emulator_bad_width(int width) {
    mcu_emulator_die("the width of a shuffle is %d, legal are powers of 2 up to 32", width);
}

void mcu_emulator_die(const char *format, ...) {
    fflush(stdout);
    fprintf(stderr, "emulator: ");
    if (the.launch)
        fprintf(stderr, "kernel %s, launched at %s:%d, block (%u, %u, %u), thread (%u, %u, %u): ",
                the.launch->name, the.launch->file, the.launch->line, blockIdx.x, blockIdx.y,
                blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    abort();
}

void mcu_emulator_run(const mcu_emulator_launch &launch) {
    static size_t shared_bytes = 0;
    read_order();
    if (the.launch) mcu_emulator_die("a launch within a kernel");
    the.launch = &launch;
    the.random = 1;
    gridDim = launch.grid;
    blockDim = launch.block;
    the.threads = (int)(blockDim.x * blockDim.y * blockDim.z);
    if (the.indexed.x != blockDim.x || the.indexed.y != blockDim.y || the.indexed.z != blockDim.z) {
        the.indexed = blockDim;
        for (unsigned i = 0; i < (unsigned)the.threads; i++)
            the.index[i] = {i % blockDim.x, i / blockDim.x % blockDim.y,
                            i / blockDim.x / blockDim.y};
    }
    if (!mcu_emulator_shared || shared_bytes != launch.shared) {
        free(mcu_emulator_shared);
        if (posix_memalign(&mcu_emulator_shared, 128, launch.shared)) abort();
        shared_bytes = launch.shared;
    }
    uint64_t plane = (uint64_t)gridDim.x * gridDim.y, blocks = plane * gridDim.z;
    uint64_t step = block_step(blocks), block = the.how == RISING ? 0 : blocks - 1;
    for (uint64_t i = 0; i < blocks; i++) {
        blockIdx = {(unsigned)(block % gridDim.x), (unsigned)(block / gridDim.x % gridDim.y),
                    (unsigned)(block / plane)};
        if (launch.shared) memset(mcu_emulator_shared, 0xFF, launch.shared);
        run_block();
        block = (block + step) % blocks;
    }
    the.launch = nullptr;
}
