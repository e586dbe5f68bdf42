/* What the int8 products of aarch64 share. Operands lie as on every rung (gemm_int8_tmpl.h); sdot takes both
 * operands with a sign: there B loses its offset as it is loaded, and A's corrections are not needed. The integers of a block are the same.
 */
#ifndef LORA_TMPL_GEMM_INT8_NEON_H
#define LORA_TMPL_GEMM_INT8_NEON_H

#include <arm_neon.h>

#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"

/* Four columns of a step of B. */
LORA_INLINE uint32x4_t lora_int8_right(const uint32_t *b) { return veorq_u32(vld1q_u32(b), vdupq_n_u32(0x80808080u)); }

LORA_INLINE void lora_int8_clear(float *tile, int64_t ld, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j += 4) vst1q_f32(tile + i * ld + j, vdupq_n_f32(0));
}

/* A block's sums of a row, four columns, on to the tile. */
LORA_INLINE void lora_int8_add(float *tile, int32x4_t sums, float scale, const float *column_scales) {
    vst1q_f32(tile, vfmaq_f32(vld1q_f32(tile), vcvtq_f32_s32(sums), vmulq_n_f32(vld1q_f32(column_scales), scale)));
}

#endif
