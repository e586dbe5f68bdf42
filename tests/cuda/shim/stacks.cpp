#include "tests/cuda/shim/stacks.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 512 * 1024; /* red zones */
#else
constexpr size_t STACK = 128 * 1024;
#endif
constexpr size_t PAGE = 4096;

/* Begins of stacks lie at different distances from a page: those of a warp would share a few lines of the first cache. */
size_t begin_of(int i) { return (size_t)i * 320 % PAGE; }

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

unsigned char *shim_reserve_stacks(int n) {
    void *room = mmap(nullptr, STACK * (size_t)n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (room == MAP_FAILED) abort();
    return static_cast<unsigned char *>(room);
}

void shim_release_stacks(unsigned char *room, int n) { munmap(room, STACK * (size_t)n); }

void shim_make_stack(shim_stack *s, unsigned char *room, int i, void (*main)()) {
    unsigned char *bottom = room + STACK * (size_t)i;
    mprotect(bottom, PAGE, PROT_NONE);
    void **top = reinterpret_cast<void **>(bottom + STACK - begin_of(i)) - 1;
    *--top = reinterpret_cast<void *>(main);
    for (int k = 0; k < 6; k++) *--top = nullptr;
    *s = {top, bottom, STACK, nullptr, nullptr};
}

#ifdef __SANITIZE_ADDRESS__
static thread_local shim_stack *come_from;
void shim_begin_stack() { __sanitizer_finish_switch_fiber(nullptr, &come_from->bottom, &come_from->bytes); }
void shim_switch_stack(shim_stack *from, shim_stack *to) {
    __sanitizer_start_switch_fiber(&from->fake_stack, to->bottom, to->bytes);
    come_from = from;
    shim_switch(&from->pointer, to->pointer);
    __sanitizer_finish_switch_fiber(from->fake_stack, &come_from->bottom, &come_from->bytes);
}
#else
void shim_begin_stack() {}
void shim_switch_stack(shim_stack *from, shim_stack *to) { shim_switch(&from->pointer, to->pointer); }
#endif
