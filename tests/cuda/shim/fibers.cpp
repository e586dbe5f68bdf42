#include "tests/cuda/shim/fibers.h"

#include <cuda_runtime.h>
#include <shim_ptx.h>
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <mutex>

#include "tests/cuda/shim/limits.h"
#include "tests/cuda/shim/random.h"
#include "tests/cuda/shim/stacks.h"

__thread shim_block_state *shim_now;

namespace {

constexpr int WARPS = SHIM_MOST_THREADS / 32;
constexpr size_t PAGE = 4096, BEFORE = 128, SHARED_ROOM = (SHIM_MOST_SHARED + BEFORE + PAGE - 1) / PAGE * PAGE;

/* Of a thread of the host, as long as it lives. The shared memory of a block ends at a page without permissions; BEFORE bytes in front of
 * it must stay as they are. */
struct host_thread : shim_block_state {
    const lora_cuda_launch *launch = nullptr;
    shim_random random;
    shim_stack scheduler = {}, *running = &scheduler, *free_stacks = nullptr;
    int made_stacks = 0;
    unsigned char *room, *shared_room;
    shim_stack stacks[SHIM_MOST_THREADS];
    shim_thread table[SHIM_MOST_THREADS];
    shim_warp warp_table[WARPS];
    shim_copies copy_table[SHIM_MOST_THREADS];

    host_thread() : shim_block_state{} {
        room = shim_reserve_stacks(SHIM_MOST_THREADS);
        shared_room = static_cast<unsigned char *>(
            mmap(nullptr, SHARED_ROOM + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (shared_room == MAP_FAILED || mprotect(shared_room + SHARED_ROOM, PAGE, PROT_NONE)) abort();
        warps = warp_table;
        copies = copy_table;
        for (int i = 0; i < SHIM_MOST_THREADS; i++) table[i] = {{(uint32_t)i, 0, 0}, i % 32, i / 32};
    }
    ~host_thread() {
        shim_release_stacks(room, SHIM_MOST_THREADS);
        munmap(shared_room, SHARED_ROOM + PAGE);
        shim_now = nullptr;
    }
    host_thread(const host_thread &) = delete;
    host_thread &operator=(const host_thread &) = delete;
};

host_thread *here() { return static_cast<host_thread *>(shim_now); }

/* --- what stands still and what goes on --- */

/* Whether a lane that waits at a warp operation may go on: all that its mask names are there, with the same mask. */
bool is_complete(const shim_warp *w, int lane) {
    for (int i = 0; i < 32; i++) {
        if (!(w->masks[lane] >> i & 1)) continue;
        if (!(w->lanes >> i & 1)) shim_die("a warp operation names lane %d of a warp of %d", i, __builtin_popcount(w->lanes));
        if (w->ended >> i & 1) shim_die("a warp operation of lane %d names lane %d, which has ended", lane, i);
        if (!(w->at_warp >> i & 1) || w->masks[i] != w->masks[lane]) return false;
    }
    return true;
}

[[noreturn]] void die_of_masks(const shim_warp *w) {
    if (w->at_barrier) shim_die("some lanes of a warp stand at __syncthreads, others at a warp operation");
    shim_die("lanes of a warp wait at operations with different masks");
}

/* All lanes stand. Lets those go on whose warp operation is complete; false: none waits at one. */
bool release(shim_warp *w, shim_thread *first) {
    if (!w->at_warp) return false;
    uint32_t released = w->lanes;
    if (w->at_whole != w->lanes) {
        released = 0;
        for (int i = 0; i < 32; i++) {
            if (!(w->at_warp >> i & 1)) continue;
            shim_now->self = first + i;
            released |= (uint32_t)is_complete(w, i) << i;
        }
        if (!released) die_of_masks(w);
    }
    w->computed = false;
    w->shown ^= released;
    w->at_warp &= ~released;
    w->at_whole &= ~released;
    return true;
}

[[noreturn]] void run_lanes();

shim_stack *take_stack(host_thread *h) {
    shim_stack *s = h->free_stacks;
    if (s) {
        h->free_stacks = s->next;
        return s;
    }
    s = &h->stacks[h->made_stacks];
    shim_make_stack(s, h->room, h->made_stacks++, run_lanes);
    return s;
}

/* The stack of the lane of the warp that runs next; the scheduler's, where all have ended or stand at the barrier. */
shim_stack *choose_next(host_thread *h) {
    shim_warp *w = h->warp;
    shim_thread *first = h->table + 32 * (w - h->warps);
    for (;;) {
        while (w->next < 32) {
            int lane = w->order[w->next++];
            if ((w->ended | w->at_warp | w->at_barrier) >> lane & 1) continue;
            h->self = first + lane;
            if (!(w->begun >> lane & 1)) {
                w->begun |= 1u << lane;
                w->stacks[lane] = take_stack(h);
            }
            return w->stacks[lane];
        }
        if (!release(w, first)) return &h->scheduler;
        w->order = h->random.order_of_32();
        w->next = 0;
    }
}

void go_on(host_thread *h, shim_stack *to) {
    shim_stack *from = h->running;
    if (to == from) return;
    h->running = to;
    shim_switch_stack(from, to);
}

/* What a stack does: a lane from its begin to its end, then another one. Lanes that never wait take turns on one stack. */
void run_lanes() {
    shim_begin_stack();
    for (;;) {
        host_thread *h = here();
        h->launch->call(h->launch->kernel, h->launch->args);
        h->warp->ended |= 1u << h->self->lane;
        h->running->next = h->free_stacks;
        h->free_stacks = h->running;
        go_on(h, choose_next(h));
    }
}

} // namespace

void shim_wait(shim_wait_kind what, uint32_t mask) {
    host_thread *h = here();
    shim_warp *w = h->warp;
    int lane = h->self->lane;
    uint32_t bit = 1u << lane;
    if (what == SHIM_AT_BARRIER) {
        w->at_barrier |= bit;
    } else {
        if (!(mask & bit)) shim_die("a warp operation of lane %d with the mask %08x, which has not its own lane", lane, mask);
        w->masks[lane] = mask;
        w->at_warp |= bit;
        if (mask == w->lanes) w->at_whole |= bit;
    }
    go_on(h, choose_next(h));
}

/* One report, whoever else has one. */
void shim_die(const char *format, ...) {
    static std::mutex once;
    once.lock();
    const host_thread *h = here();
    char text[512], *at = text, *end = text + sizeof text - 1;
    at += snprintf(at, (size_t)(end - at), "shim: %s", h && h->launch ? h->launch->name : "no kernel");
    if (h && h->self)
        at += snprintf(at, (size_t)(end - at), ", block %u,%u,%u, thread %u", h->block.x, h->block.y, h->block.z, h->self->index.x);
    at += snprintf(at, (size_t)(end - at), ": ");
    va_list args;
    va_start(args, format);
    vsnprintf(at, (size_t)(end - at), format, args);
    va_end(args);
    fprintf(stderr, "%s\n", text);
    abort();
}

void shim_enter_launch(const lora_cuda_launch *l) {
    static thread_local host_thread *mine; /* not made before a thread runs blocks */
    struct owner {
        ~owner() { delete mine; }
    };
    if (!mine) {
        static thread_local owner at_end;
        (void)at_end;
        mine = new host_thread;
        shim_now = mine;
    }
    host_thread *h = here();
    h->launch = l;
    h->self = nullptr;
    if (!l) return;
    h->grid = {l->grid[0], l->grid[1], l->grid[2]};
    h->threads = l->threads;
    h->shared = h->shared_room + SHARED_ROOM - (l->shared_bytes + 127) / 128 * 128;
}

void shim_run_block(uint32_t x, uint32_t y, uint32_t z, uint64_t seed) {
    host_thread *h = here();
    h->block = {x, y, z};
    h->random.seed(seed);
    int n = (int)h->threads, warps = (n + 31) / 32;
    memset(h->shared - BEFORE, 0xFF, BEFORE + h->launch->shared_bytes);
    for (int i = 0; i < warps; i++) {
        shim_warp *w = &h->warps[i];
        int lanes = n - 32 * i < 32 ? n - 32 * i : 32;
        w->lanes = 0xffffffffu >> (32 - lanes);
        w->ended = ~w->lanes;
        w->begun = w->at_barrier = w->at_warp = w->at_whole = w->shown = 0;
    }
    for (;;) {
        const unsigned char *order = h->random.order_of_32();
        for (int k = 0; k < 32; k++) {
            if (order[k] >= warps) continue;
            h->warp = &h->warps[order[k]];
            h->warp->order = h->random.order_of_32();
            h->warp->next = 0;
            go_on(h, choose_next(h));
        }
        int ended = 0, waiting = 0;
        for (int i = 0; i < warps; i++) {
            ended += __builtin_popcount(h->warps[i].ended & h->warps[i].lanes);
            waiting += h->warps[i].at_barrier != 0;
            h->warps[i].at_barrier = 0;
        }
        if (ended == n) break;
        if (ended > 0) shim_die("__syncthreads is not reached by %d of %d threads, which have ended", ended, n);
    }
    for (size_t i = 1; i <= BEFORE; i++)
        if (h->shared[-(ptrdiff_t)i] != 0xFF) shim_die("a write %zu bytes before its shared memory", i);
    shim_forget_copies(h->copies, n);
}
