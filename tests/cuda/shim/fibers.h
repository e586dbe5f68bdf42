/* Runs a kernel's blocks on the host, see cuda_runtime.h. */
#ifndef SHIM_FIBERS_H
#define SHIM_FIBERS_H

#include "lora_c/cuda/api.h"

/** Runs all blocks of a launch, one after another. Dies with a message where the kernel does what a GPU would not. */
void shim_run(const lora_cuda_launch *launch);

#endif
