/* How a kernel is started, and what every kernel may use. Compiled for GPUs by nvcc, and by a C++ compiler with headers of the same
 * names that emulate the threads of a block (tests/cuda/shim).
 *
 * Rules of the kernels
 *   one argument, a struct by value; no static __shared__ (lora_shared<T>() is all that there is, its size given at the launch)
 *   -fmad=false: multiplications and additions are rounded each, as on the CPU; fused ones are asked for (fmaf)
 *   no atomics on floating point numbers: sums run in an order fixed by the shape
 *   addresses of floats are aligned to floats only (ld may be odd): loads of 128 bits where the launcher has looked at pointer and ld */
#ifndef LORA_CUDA_LAUNCH_CUH
#define LORA_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/cuda/graphs.h"
#include "lora_c/cuda/lanes.cuh"

enum { LORA_CUDA_MOST_Y = 65535 };

/* Shared memory of a multiprocessor, and what of it each block takes besides its own ("Compute Capabilities" of the CUDA programming
 * guide). */
#if !defined(__CUDA_ARCH__)
enum { LORA_CUDA_SHARED_KB = 228 };
#elif __CUDA_ARCH__ < 800
enum { LORA_CUDA_SHARED_KB = 64 };
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
enum { LORA_CUDA_SHARED_KB = 164 };
#elif __CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200
enum { LORA_CUDA_SHARED_KB = 100 };
#else
enum { LORA_CUDA_SHARED_KB = 228 };
#endif
enum { LORA_CUDA_SHARED_PER_BLOCK = 1024 };

/* Runs on the stream of c. Kernel's name stands in errors. grid.x up to 2^31 - 1, grid.y and z up to 65535. */
#define LORA_CUDA_LAUNCH(c, kernel, grid, threads, shared_bytes, args, err)                                                                \
    lora_cuda_launch_kernel((c), #kernel, kernel, (grid), (threads), (shared_bytes), (args), (err))

template <class Args>
static lora_status lora_cuda_launch_kernel(lora_cuda *c, const char *name, void (*kernel)(Args), dim3 grid, uint32_t threads,
                                           size_t shared_bytes, const Args &args, lora_error *err) {
    lora_cuda_launch l = {};
    l.name = name;
    l.kernel = (const void *)kernel;
#ifndef __CUDACC__
    l.call = [](const void *k, const void *a) { ((void (*)(Args))k)(*(const Args *)a); };
#endif
    l.args = &args;
    l.args_bytes = sizeof args;
    l.grid[0] = grid.x;
    l.grid[1] = grid.y;
    l.grid[2] = grid.z;
    l.threads = threads;
    l.shared_bytes = shared_bytes;
    return lora_cuda_start(c, &l, err);
}

/* The dynamic shared memory of the block, as one struct. */
#ifdef __CUDACC__
extern __shared__ __align__(16) unsigned char lora_cuda_shared_bytes[];
template <class T> __device__ __forceinline__ T &lora_shared() { return *reinterpret_cast<T *>(lora_cuda_shared_bytes); }
#else
template <class T> static inline T &lora_shared() { return *reinterpret_cast<T *>(shim_shared()); }
#endif

/* Blocks for n elements, per each: at least one, so that a kernel of no elements is a launch that does nothing. */
static inline dim3 lora_cuda_blocks(int64_t n, int64_t per) { return dim3((uint32_t)lora_max_i64(1, lora_div_up(n, per))); }

/* --- elements --- */

/* Element i of an array of this type, as float, and back (rounded to nearest, ties to even). */
__device__ __forceinline__ float lora_load(const void *data, int64_t i, lora_dtype dtype) {
    if (dtype == LORA_F32) return ((const float *)data)[i];
    uint16_t h = ((const uint16_t *)data)[i];
    return dtype == LORA_BF16 ? lora_bf16_to_f32(h) : lora_f16_to_f32(h);
}
__device__ __forceinline__ void lora_store(void *data, int64_t i, lora_dtype dtype, float x) {
    if (dtype == LORA_F32)
        ((float *)data)[i] = x;
    else
        ((uint16_t *)data)[i] = dtype == LORA_BF16 ? lora_f32_to_bf16(x) : lora_f32_to_f16(x);
}

#endif
