/* The threads of a block on one thread of the host, see cuda_runtime.h. */
#ifndef SHIM_FIBERS_H
#define SHIM_FIBERS_H

#include "lora_c/cuda/api.h"

enum { SHIM_MOST_THREADS = 1024 };

/** What the calling thread of the host needs to run blocks of a launch: from here on it is in this launch, until NULL is given. */
void shim_enter_launch(const lora_cuda_launch *launch);
/** Runs a block. Dies with a message where the kernel does what a GPU would not. The seed chooses the orders. */
void shim_run_block(uint32_t x, uint32_t y, uint32_t z, uint64_t seed);

#endif
