/* Runs the blocks of a launch on the host, see cuda_runtime.h. */
#ifndef SHIM_GRIDS_H
#define SHIM_GRIDS_H

#include "lora_c/cuda/api.h"

/** Runs all blocks of a launch in random order; those of a launch that takes long on LORA_C_SHIM_THREADS threads (as many as there are
 * processors). Not to be called by two threads at once. */
void shim_run(const lora_cuda_launch *launch);

extern "C" {
/** From now on launches of more than twice as many blocks run only so many of their first and of their last blocks, so that arrays may be
 * longer than a host could go through; 0: all of them. Returns what was said before. */
__attribute__((visibility("default"))) int64_t shim_run_ends(int64_t blocks);
}

#endif
