/* Leaves of the product of a few tokens with a weight: decoding. A row of the weight is read once, decoded in registers
 * and multiplied with all the tokens of the call. A path is one arithmetic, as in gemm_kernels.h; sums are float32. */
#ifndef LORA_GEMV_KERNELS_H
#define LORA_GEMV_KERNELS_H

#include <stdint.h>

#include "lora_c/isa.h"
#include "lora_c/kernels/gemm_kernels.h"
#include "lora_c/nf4.h"

enum {
    LORA_GEMV_TOKENS = 8,
    LORA_GEMV_ROWS = 32,
    LORA_GEMV_SCALES_PAST_END = 4,
    LORA_GEMV_INT8_SCRATCH = 144,
};

typedef struct lora_gemv_path {
    /* int8: of a call, <= LORA_GEMV_TOKENS, which is what the other paths take; of a product, beyond which packing costs less. */
    int64_t tokens, most_tokens;

    /* Tokens as the nf4 slot takes them: whole groups of so many elements and so many bytes. */
    int64_t group, group_bytes;
    /** x (k) in the order in which the nf4 slot meets its elements, zeros up to whole groups, in the type of the path. */
    void (*arrange)(int64_t k, const float *x, void *out);
    /** x (k) as the bf16 slot takes it, zeros up to a multiple of 64 bytes. NULL: as it is, in float32. */
    void (*round_bf16)(int64_t k, const float *x, uint16_t *out);

    /* The products. m <= LORA_GEMV_TOKENS;  sums[r * m + i] = w[r] . x[i].  Token i lies i * stride bytes behind x.
     * Numerics  float32 lanes in fixed order (ref: float64); the sum for one token does not depend on m nor on rows.
     *     float32   |err| <= (k + 4) 2^-24 |w|.|x|
     *     bfloat16  values of the table, x and dense weights rounded to 8 bits, subnormals zero:
     *               |err| <= (2^-7 + 2^-16 + (k + 8) 2^-24) |w|.|x|
     *     int16     values of the table within 2^-15 of the largest, x within 2^-15 of the largest of 64 elements, products
     *               exact: |err| <= |scale| top(w) sum over blocks (64 * 2^-14 top(x))
     *     int8      the bits of the int8 path of lora_gemm_kernels (ref: its integers, sums in float64) */
    /** Rows row .. row + rows - 1 of w, rows <= LORA_GEMV_ROWS, no row splits a block (block_size divides cols). x arranged.
     *  scales: scratch of rows * (cols / block_size) + LORA_GEMV_SCALES_PAST_END floats.
     *  int8: what lora_gemm_packs_from_4_bits accepts; scratch of LORA_GEMV_INT8_SCRATCH floats, 64-byte aligned. */
    void (*nf4)(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride, float *scales, float *sums);
    void (*f32)(int64_t rows, int64_t k, const float *w, int64_t ldw, int64_t m, const float *x, int64_t stride, float *sums);
    /** x rounded. */
    void (*bf16)(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, int64_t m, const void *x, int64_t stride, float *sums);
} lora_gemv_path;

typedef struct lora_gemv_kernels {
    lora_gemv_path paths[LORA_GEMM_PATHS]; /* nf4 is NULL where the CPU has no instruction for a path */
    lora_gemv_path int8;                   /* of LORA_PRECISION_INT8: arrange and nf4 alone */
} lora_gemv_kernels;

void lora_gemv_kernels_init(lora_gemv_kernels *k, lora_isa isa);

/* Each rung fills what it has. */
void lora_gemv_fill_ref(lora_gemv_path *p);
void lora_gemv_fill_portable(lora_gemv_path *p);
void lora_gemv_fill_avx2(lora_gemv_path *p);
void lora_gemv_fill_avx512(lora_gemv_path *p);
void lora_gemv_fill_neon(lora_gemv_path *p);
/* Over a path that the architecture's best float32 rung has filled: they replace the products that gain. */
void lora_gemv_fill_bf16(lora_gemv_path *p);
void lora_gemv_fill_int16(lora_gemv_path *p);
void lora_gemv_fill_bf16_neon(lora_gemv_path *p);
/* int8, over what the rung below has filled. */
void lora_gemv_fill_int8_portable(lora_gemv_path *p);
void lora_gemv_fill_int8_ref(lora_gemv_path *p);
void lora_gemv_fill_int8_avx2(lora_gemv_path *p);
void lora_gemv_fill_int8_avx_vnni(lora_gemv_path *p);
void lora_gemv_fill_int8_vnni(lora_gemv_path *p);
void lora_gemv_fill_int8_neon(lora_gemv_path *p);

#endif
