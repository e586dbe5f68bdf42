/* The instructions of FEAT_BF16 as assembly: intrinsics want a target with all of armv8.2-a, which functions compiled for a CPU
 * (-mcpu) could then not be inlined into. Include it between LORA_TARGET_BEGIN(LORA_ARM_BF16) and LORA_TARGET_END.
 *
 * Numerics  Products of a pair are summed first, that sum is added to the accumulator; a bfmmla is two such steps in order. Both
 *           additions round to odd, an error below 2^-23 where rounding to nearest has 2^-24: k products take k / 2 steps of two
 *           additions, which the bound of k float32 additions covers. Subnormals are zero. So it is with FPCR.EBF = 0 (Arm ARM
 *           DDI 0487, BFDotAdd), which is all that CPUs without FEAT_EBF16 have and what a process starts with on those that do;
 *           with EBF = 1 the sums would round otherwise. */
#ifndef LORA_TMPL_BF16_NEON_H
#define LORA_TMPL_BF16_NEON_H

#include <arm_neon.h>

#include "lora_c/base/util.h"

/* Eight floats to bfloat16, to nearest even. */
LORA_INLINE uint16x8_t lora_narrow_8(float32x4_t first, float32x4_t second) {
    uint16x8_t out;
    __asm__("bfcvtn %0.4h, %1.4s" : "=w"(out) : "w"(first));
    __asm__("bfcvtn2 %0.8h, %1.4s" : "+w"(out) : "w"(second));
    return out;
}

LORA_INLINE uint16x4_t lora_narrow_4(float32x4_t x) {
    uint16x4_t out;
    __asm__("bfcvtn %0.4h, %1.4s" : "=w"(out) : "w"(x));
    return out;
}

/* sum[i] + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1] */
LORA_INLINE float32x4_t lora_dot_pairs(float32x4_t sum, uint16x8_t a, uint16x8_t b) {
    __asm__("bfdot %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
}

/* The 2 x 2 sums of two rows of four with two columns of four: (row 0 column 0, row 0 column 1, row 1 column 0, row 1 column 1). */
LORA_INLINE float32x4_t lora_multiply_2x2(float32x4_t sum, uint16x8_t rows, uint16x8_t columns) {
    __asm__("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(rows), "w"(columns));
    return sum;
}

/* A table of 16 bfloat16 as two byte planes. */
typedef struct lora_levels {
    uint8x16_t low, high;
} lora_levels;

LORA_INLINE lora_levels lora_load_levels(const float *lut, float scale) {
    uint8x16_t first = vreinterpretq_u8_u16(lora_narrow_8(vmulq_n_f32(vld1q_f32(lut), scale), vmulq_n_f32(vld1q_f32(lut + 4), scale)));
    uint8x16_t second =
        vreinterpretq_u8_u16(lora_narrow_8(vmulq_n_f32(vld1q_f32(lut + 8), scale), vmulq_n_f32(vld1q_f32(lut + 12), scale)));
    return (lora_levels){.low = vuzp1q_u8(first, second), .high = vuzp2q_u8(first, second)};
}

/* 16 codes, a byte each, to 16 values in order. */
LORA_INLINE void lora_look_up_16(lora_levels t, uint8x16_t codes, uint16x8_t *w) {
    uint8x16_t low = vqtbl1q_u8(t.low, codes), high = vqtbl1q_u8(t.high, codes);
    w[0] = vreinterpretq_u16_u8(vzip1q_u8(low, high));
    w[1] = vreinterpretq_u16_u8(vzip2q_u8(low, high));
}

#endif
