/* Leaves of the product of a few tokens with a weight: decoding. A row of the weight is read once, decoded in registers
 * and multiplied with all the tokens of the call. */
#ifndef LORA_GEMV_KERNELS_H
#define LORA_GEMV_KERNELS_H

#include <stdint.h>

#include "lora_c/context.h"
#include "lora_c/nf4.h"

enum {
    LORA_GEMV_TOKENS = 4, /* eight vectors of decoded values and four accumulators fill 16 registers */
    LORA_GEMV_ROWS = 32,
    LORA_GEMV_SCALES_PAST_END = 4,
};

typedef struct lora_gemv_kernels {
    int64_t group; /* elements that the nf4 slot takes at a time; arranged tokens are padded to a multiple */

    /** x (k) in the order in which the nf4 slot meets its elements, and zeros up to a multiple of group. */
    void (*arrange)(int64_t k, const float *x, float *out);

    /* The products. m <= LORA_GEMV_TOKENS tokens, ldx floats apart;  sums[r * m + i] = w[r] . x[i].
     * Numerics  float32 lanes in fixed order (ref: float64); the sum for one token does not depend on m nor on rows:
     *           |err| <= (k + 4) 2^-24 |w|.|x| */
    /** Rows row .. row + rows - 1 of w, rows <= LORA_GEMV_ROWS, no row splits a block (block_size divides cols). x arranged.
     *  scales: scratch of rows * (cols / block_size) + LORA_GEMV_SCALES_PAST_END floats. */
    void (*nf4)(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const float *x, int64_t ldx, float *scales, float *sums);
    void (*f32)(int64_t rows, int64_t k, const float *w, int64_t ldw, int64_t m, const float *x, int64_t ldx, float *sums);
    void (*bf16)(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, int64_t m, const float *x, int64_t ldx, float *sums);
} lora_gemv_kernels;

void lora_gemv_kernels_init(lora_gemv_kernels *k, lora_isa isa);

/* Each rung fills what it has. */
void lora_gemv_fill_ref(lora_gemv_kernels *k);
void lora_gemv_fill_portable(lora_gemv_kernels *k);
void lora_gemv_fill_avx2(lora_gemv_kernels *k);
void lora_gemv_fill_avx512(lora_gemv_kernels *k);

#endif
