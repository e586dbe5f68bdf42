/* Stacks that a lane of a warp may wait on, and the switch from one to another. */
#ifndef SHIM_STACKS_H
#define SHIM_STACKS_H

#include <cstddef>

struct shim_stack {
    void *pointer;      /* where it goes on */
    const void *bottom; /* what AddressSanitizer is told */
    size_t bytes;
    void *fake_stack;
    shim_stack *next; /* of those that are free */
};

/** Room for n stacks, without memory until they are used. */
unsigned char *shim_reserve_stacks(int n);
void shim_release_stacks(unsigned char *room, int n);
/** Stack i of the room; begins with main, which never returns. Below it lies a page without permissions. */
void shim_make_stack(shim_stack *s, unsigned char *room, int i, void (*main)());
/** Goes on at to; returns when somebody switches back. */
void shim_switch_stack(shim_stack *from, shim_stack *to);
/** The first call of a stack's main. */
void shim_begin_stack();

#endif
