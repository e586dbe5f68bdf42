/* Runs the blocks of a launch on the host, see cuda_runtime.h. */
#ifndef SHIM_GRIDS_H
#define SHIM_GRIDS_H

#include "lora_c/cuda/api.h"

/** Runs all blocks of a launch in random order; those of a launch that takes long on LORA_C_SHIM_THREADS threads (as many as there are
 * processors). Not to be called by two threads at once. */
void shim_run(const lora_cuda_launch *launch);

#endif
