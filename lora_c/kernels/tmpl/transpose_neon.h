/* r[i][j] becomes r[j][i]. */
#ifndef LORA_TMPL_TRANSPOSE_NEON_H
#define LORA_TMPL_TRANSPOSE_NEON_H

#include <arm_neon.h>

#include "lora_c/base/util.h"

LORA_INLINE void lora_transpose_4x4(float32x4_t r[4]) {
    float64x2_t t0 = vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1])), t1 = vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1]));
    float64x2_t t2 = vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3])), t3 = vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3]));
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(t0, t2));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(t1, t3));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(t0, t2));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(t1, t3));
}

#endif
