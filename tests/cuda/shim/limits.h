/* What a launch may ask for on the GPU that the shim stands for. */
#ifndef SHIM_LIMITS_H
#define SHIM_LIMITS_H

#include "lora_c/cuda/api.h"

constexpr size_t SHIM_MOST_SHARED = 227 * 1024; /* of a block, of any GPU */

/** Compute capability, by the environment variable SHIM_COMPUTE ("9.0", the default). */
int shim_compute_major();
int shim_compute_minor();
/** Most dynamic shared memory of a block there, in bytes: "CUDA C++ Programming Guide", table of technical specifications. */
size_t shim_most_shared();
/** Dies where the launch is beyond the limits. SHIM_LAUNCHES=FILE: at the end of the process, what was launched is added to the file,
 * lines of "offset of the kernel in the library, threads, bytes of shared memory". */
void shim_check_launch(const lora_cuda_launch *launch);

#endif
