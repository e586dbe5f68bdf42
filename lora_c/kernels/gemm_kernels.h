/* Leaves of the matrix product. Panels are packed: A as [k][mr], B as [k][nr], padded with zeros to full panels. */
#ifndef LORA_GEMM_KERNELS_H
#define LORA_GEMM_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "lora_c/context.h"

enum { LORA_GEMM_MAX_MR = 16, LORA_GEMM_MAX_NR = 32 };

typedef struct lora_gemm_kernels {
    int64_t mr, nr; /* register tile; nr divides nc */
    int64_t kc, nc; /* a B block of kc x nc floats and its C tiles stay in L2, one B panel of kc x nr in L1 */

    /** tile[mr][nr] (+)= sum over k < kc of a[k][mr] * b[k][nr].   a, b, tile 64-byte aligned; tile contiguous.
     *  Numerics  one float32 accumulator per element, k in order; FMA where the rung has it (ref: float64) */
    void (*micro)(int64_t kc, const float *a, const float *b, float *tile, bool accumulate);

    /** out[k * ld + r] = rows[r][k] for r < n_rows, k < n: rows become columns of a panel. n_rows <= ld. */
    void (*transpose)(const float *const *rows, int64_t n_rows, int64_t n, float *out, int64_t ld);
} lora_gemm_kernels;

void lora_gemm_kernels_init(lora_gemm_kernels *k, lora_isa isa);

/* Each rung fills what it has. */
void lora_gemm_fill_ref(lora_gemm_kernels *k);
void lora_gemm_fill_portable(lora_gemm_kernels *k);
void lora_gemm_fill_avx2(lora_gemm_kernels *k);
void lora_gemm_fill_avx512(lora_gemm_kernels *k);

#endif
