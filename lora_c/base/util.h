/* Small arithmetic and compiler attributes shared by all layers. */
#ifndef LORA_BASE_UTIL_H
#define LORA_BASE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LORA_RESTRICT __restrict__
#ifdef __CUDACC__ /* the same source in kernels of a GPU */
#define LORA_INLINE static inline __host__ __device__ __attribute__((always_inline))
#else
#define LORA_INLINE static inline __attribute__((always_inline))
#endif
/* Puts one function on an ISA rung without per-file compiler flags: LORA_TARGET("avx2,fma") */
#define LORA_TARGET(isa) __attribute__((target(isa)))

#ifdef __cplusplus /* of C++, for headers of kernels that are read in both languages */
#define _Static_assert static_assert
#endif

enum { LORA_ALIGN = 64 };

LORA_INLINE int64_t lora_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
LORA_INLINE int64_t lora_round_up(int64_t a, int64_t b) { return lora_div_up(a, b) * b; }
LORA_INLINE int64_t lora_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
LORA_INLINE int64_t lora_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
/* false on overflow */
static inline bool lora_mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }

#endif
