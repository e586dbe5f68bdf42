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
/* LORA_TARGET_BEGIN(isa) … LORA_TARGET_END: the same for every function between them, where all of a file is for one rung. Headers that
 * others share come before; a LORA_TARGET within repeats what it needs, which is all that Clang then gives the function.
 * LORA_UNROLL_BY(n) for (…): all of its steps at once, a constant number of at most n, so that arrays of a few vectors become
 * registers. Clang must not be told a count: up to 16 it unrolls by one after it has divided arrays, and they stay on the stack.
 * LORA_SCALAR_LOOP for (…): of look-ups in memory, which Clang would gather: packing then took 1.4 times as long.
 * LORA_WIDE_VECTORS at the end of a list with avx512f: loops become 512 bits wide, as Clang's do unasked.
 * LORA_ARM_BF16, LORA_ARM_DOTPROD, LORA_ARM_I8MM: such a feature beside whatever the compiler was told of an aarch64 CPU.
 * LORA_KNOWS_AVX_VNNI: GCC 10 does not. */
#define LORA_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define LORA_TARGET_BEGIN(isa) LORA_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define LORA_TARGET_END LORA_PRAGMA(clang attribute pop)
#define LORA_WIDE_VECTORS ""
#define LORA_ARM_BF16 "bf16"
#define LORA_ARM_DOTPROD "dotprod"
#define LORA_ARM_I8MM "i8mm"
#define LORA_KNOWS_AVX_VNNI 1
#else
#define LORA_TARGET_BEGIN(isa) LORA_PRAGMA(GCC push_options) LORA_PRAGMA(GCC target(isa))
#define LORA_TARGET_END LORA_PRAGMA(GCC pop_options)
#define LORA_WIDE_VECTORS ",prefer-vector-width=512"
#define LORA_ARM_BF16 "+bf16"
#ifdef __ARM_FEATURE_DOTPROD /* else also armv8.2-a, without which GNU's assembler refuses the instructions */
#define LORA_ARM_DOTPROD "+dotprod"
#else
#define LORA_ARM_DOTPROD "arch=armv8.2-a+dotprod"
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
#define LORA_ARM_I8MM "+i8mm"
#else
#define LORA_ARM_I8MM "arch=armv8.2-a+i8mm"
#endif
#define LORA_KNOWS_AVX_VNNI (__GNUC__ >= 11)
#endif
#ifdef __clang__
#define LORA_SCALAR_LOOP LORA_PRAGMA(clang loop vectorize(disable) interleave(disable))
#else
#define LORA_SCALAR_LOOP
#endif
#if defined(__CUDACC__)
#define LORA_UNROLL_BY(n) LORA_PRAGMA(unroll n)
#elif defined(__clang__)
#define LORA_UNROLL_BY(n) LORA_PRAGMA(clang loop unroll(full))
#else
#define LORA_UNROLL_BY(n) LORA_PRAGMA(GCC unroll n)
#endif

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
