#include "tests/cuda/shim/fibers.h"

#include <cuda_runtime.h>
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>

thread_local shim_thread *shim_self;
thread_local shim_thread *shim_threads;
thread_local shim_uint3 shim_block, shim_grid_dim;
thread_local uint32_t shim_block_threads;

namespace {

constexpr size_t STACK = 128 * 1024;
constexpr uint32_t MOST_THREADS = 1024, MOST_SHARED = 227 * 1024;

thread_local const lora_cuda_launch *current;
thread_local unsigned char *shared, *stacks;
thread_local void *scheduler;
thread_local uint64_t random_state = 0x9E3779B97F4A7C15u;

uint32_t draw(uint32_t below) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % below);
}

void shuffle(int *order, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)draw((uint32_t)i + 1), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

} // namespace

extern "C" void shim_switch(void **save, void *load);
asm(R"(.text
.globl shim_switch
.hidden shim_switch
shim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

void shim_die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "shim: %s, block %u,%u,%u, thread %u: ", current ? current->name : "no kernel", shim_block.x, shim_block.y,
            shim_block.z, shim_self ? shim_self->index.x : 0);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

void *shim_shared() { return shared; }

void shim_wait(int what, uint32_t mask) {
    shim_thread *self = shim_self;
    self->waits = what;
    self->mask = mask;
    shim_switch(&self->stack_pointer, scheduler);
}

static void entry() {
    current->call(current->kernel, current->args);
    shim_self->waits = SHIM_DONE;
    shim_switch(&shim_self->stack_pointer, scheduler);
    abort();
}

/* A stack is given with the thread's first step and stays its own while it waits; one that ends at once leaves it to the next. */
static void resume(shim_thread *t, unsigned char *stack) {
    if (t->waits == SHIM_UNBORN) {
        void **top = (void **)(stack + STACK) - 1;
        *--top = (void *)entry;
        for (int i = 0; i < 6; i++) *--top = nullptr;
        t->stack_pointer = top;
    }
    t->waits = SHIM_RUNS;
    shim_self = t;
    shim_switch(&scheduler, t->stack_pointer);
}

/* Whether a lane that waits at a warp operation may go on: all that its mask names are there, with the same mask. */
static bool is_complete(const shim_thread *warp, int lanes, const shim_thread *t) {
    for (int i = 0; i < 32; i++) {
        if (!(t->mask >> i & 1)) continue;
        if (i >= lanes) shim_die("a warp operation names lane %d of a warp of %d", i, lanes);
        if (warp[i].waits == SHIM_DONE) shim_die("a warp operation of lane %d names lane %d, which has ended", t->lane, i);
        if (warp[i].waits != SHIM_AT_WARP || warp[i].mask != t->mask) return false;
    }
    return true;
}

/* Runs a warp until each of its lanes has ended or stands at the barrier. */
static void run_warp(shim_thread *warp, int lanes) {
    int order[32];
    for (;;) {
        for (int i = 0; i < lanes; i++) order[i] = i;
        shuffle(order, lanes);
        bool moved = false;
        for (int k = 0; k < lanes; k++) {
            shim_thread *t = &warp[order[k]];
            if (t->waits != SHIM_UNBORN && t->waits != SHIM_RUNS) continue;
            resume(t, stacks + STACK * (size_t)(t - shim_threads));
            moved = true;
        }
        bool released[32] = {false}, waiting = false;
        for (int i = 0; i < lanes; i++) {
            if (warp[i].waits != SHIM_AT_WARP) continue;
            waiting = true;
            shim_self = &warp[i];
            released[i] = is_complete(warp, lanes, &warp[i]);
        }
        if (!waiting) return;
        bool any = false;
        for (int i = 0; i < lanes; i++) {
            if (!released[i]) continue;
            warp[i].waits = SHIM_RUNS;
            memcpy(warp[i].shown, warp[i].given, sizeof warp[i].given);
            any = true;
        }
        if (!any && !moved) shim_die("a warp operation waits for lanes that stand elsewhere");
        if (!any) {
            for (int i = 0; i < lanes; i++) {
                if (warp[i].waits == SHIM_AT_BARRIER) shim_die("some lanes of a warp stand at __syncthreads, others at a warp operation");
            }
            shim_die("lanes of a warp wait at operations with different masks");
        }
    }
}

static void run_block(const lora_cuda_launch *l) {
    int n = (int)l->threads, warps = (n + 31) / 32, order[MOST_THREADS / 32];
    memset(shared, 0xFF, l->shared_bytes);
    for (int i = 0; i < n; i++) {
        shim_thread *t = &shim_threads[i];
        t->waits = SHIM_UNBORN;
        t->index = {(uint32_t)i, 0, 0};
        t->lane = i % 32;
        t->warp = i / 32;
    }
    for (;;) {
        for (int i = 0; i < warps; i++) order[i] = i;
        shuffle(order, warps);
        for (int k = 0; k < warps; k++) {
            int first = order[k] * 32;
            run_warp(shim_threads + first, n - first < 32 ? n - first : 32);
        }
        int ended = 0;
        for (int i = 0; i < n; i++) ended += shim_threads[i].waits == SHIM_DONE;
        if (ended == n) return;
        if (ended > 0) shim_die("__syncthreads is not reached by %d of %d threads, which have ended", ended, n);
        for (int i = 0; i < n; i++) shim_threads[i].waits = SHIM_RUNS;
    }
}

/* The shared memory of a block ends at a page without permissions. */
static unsigned char *place_shared(size_t bytes) {
    static thread_local unsigned char *begin;
    const size_t room = (MOST_SHARED + 4095) / 4096 * 4096;
    if (!begin) {
        begin = (unsigned char *)mmap(nullptr, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        mprotect(begin + room, 4096, PROT_NONE);
    }
    return begin + room - (bytes + 127) / 128 * 128;
}

void shim_run(const lora_cuda_launch *l) {
    current = l;
    shim_self = nullptr;
    if (l->threads < 1 || l->threads > MOST_THREADS) shim_die("expected 1 to %u threads, got %u", MOST_THREADS, l->threads);
    if (l->grid[0] < 1 || l->grid[0] > 0x7fffffffu || l->grid[1] < 1 || l->grid[1] > 65535 || l->grid[2] < 1 || l->grid[2] > 65535)
        shim_die("a grid of %u x %u x %u", l->grid[0], l->grid[1], l->grid[2]);
    if (l->shared_bytes > MOST_SHARED) shim_die("%zu bytes of shared memory", l->shared_bytes);
    if (l->args_bytes > 4096) shim_die("%zu bytes of arguments", l->args_bytes);
    if (!stacks) {
        stacks = (unsigned char *)mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                                       -1, 0);
        shim_threads = (shim_thread *)calloc(MOST_THREADS, sizeof *shim_threads);
    }
    shared = place_shared(l->shared_bytes);
    shim_grid_dim = {l->grid[0], l->grid[1], l->grid[2]};
    shim_block_threads = l->threads;
    for (uint32_t z = 0; z < l->grid[2]; z++)
        for (uint32_t y = 0; y < l->grid[1]; y++)
            for (uint32_t x = 0; x < l->grid[0]; x++) {
                shim_block = {x, y, z};
                run_block(l);
            }
    current = nullptr;
    shim_self = nullptr;
}
