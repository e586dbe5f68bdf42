/* What the rungs of the int8 products share: the layout of a block (gemm_kernels.h). */
#ifndef LORA_GEMM_INT8_TMPL_H
#define LORA_GEMM_INT8_TMPL_H

#include "lora_c/kernels/gemm_kernels.h"
#include "lora_c/kernels/tmpl/int8_rounding_tmpl.h"

enum {
    LORA_INT8_OFFSET = 128, /* of the right operand, which instructions take without a sign */
    LORA_INT8_STEPS = LORA_GEMM_SCALE_BLOCK / 4,
    LORA_INT8_TERMS = LORA_GEMM_MAX_MR, /* words of scales, and of corrections, that follow a block of the left operand */
};

/* Where value k of a block lies: step 2 (k / 8) has the even ones of eight, the next step the odd ones. So do the nibbles of 4-bit
 * weights, which then need no interleaving. */
LORA_INLINE int64_t lora_int8_step(int64_t k) { return k / 8 * 2 + k % 2; }
LORA_INLINE int64_t lora_int8_byte(int64_t k) { return k % 8 / 2; }

/* Words of a block of a panel: steps, and scales (of the left operand: and corrections). */
LORA_INLINE int64_t lora_int8_left_words(int64_t width) { return LORA_INT8_STEPS * width + 2 * LORA_INT8_TERMS; }
LORA_INLINE int64_t lora_int8_right_words(int64_t width) { return LORA_INT8_STEPS * width + lora_round_up(width, 16); }

LORA_INLINE float lora_int8_largest_entry(const float *lut) {
    float top = 0;
    for (int i = 0; i < 16; i++) top = fmaxf(top, fabsf(lut[i]));
    return top;
}

/* What the largest entry of a 4-bit table becomes in x W^T: of the numbers up to 127 the one whose fractions lie nearest to the entries, as
 * often as codes of normal values have them. Rounding is wrong by 0.47 % of their root mean square, with 127 by 0.59 % (NF4); 0.33 and
 * 0.64 % (FP4, whose table begins with 0). */
LORA_INLINE float lora_int8_table_levels(const float *lut) { return lut[0] < 0 ? 124.12f : 120.0f; }

/* Scale of n rows of the 64 columns that hold col: of the largest value that their codes could stand for. */
lora_int8_scale lora_int8_square_scale(const lora_nf4 *w, float lut_top, int64_t row, int64_t n, int64_t col);

#endif
