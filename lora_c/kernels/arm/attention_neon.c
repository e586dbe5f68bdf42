/* Attention tiles for NEON. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/attention_kernels.h"
#include "lora_c/kernels/tmpl/transpose_neon.h"

typedef float32x4_t V;
enum { VLEN = 4, MR = 8 };
#define ATTN_TARGET

LORA_INLINE V v_load(const float *p) { return vld1q_f32(p); }
LORA_INLINE void v_store(float *p, V x) { vst1q_f32(p, x); }
LORA_INLINE V v_set1(float x) { return vdupq_n_f32(x); }
LORA_INLINE V v_iota(void) { return (V){0, 1, 2, 3}; }
LORA_INLINE V v_add(V a, V b) { return vaddq_f32(a, b); }
LORA_INLINE V v_sub(V a, V b) { return vsubq_f32(a, b); }
LORA_INLINE V v_mul(V a, V b) { return vmulq_f32(a, b); }
LORA_INLINE V v_div(V a, V b) { return vdivq_f32(a, b); }
LORA_INLINE V v_fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
LORA_INLINE V v_max(V a, V b) { return vmaxq_f32(a, b); } /* NaN where either is */
/* the low 9 bits become sign and exponent */
LORA_INLINE V v_low_bits_to_exponent(V t) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(t), 23)); }
/* x where lo <= j <= hi, else other */
LORA_INLINE V v_where_between(V j, V lo, V hi, V x, V other) { return vbslq_f32(vandq_u32(vcgeq_f32(j, lo), vcleq_f32(j, hi)), x, other); }

LORA_INLINE void v_transpose(V x[VLEN]) { lora_transpose_4x4(x); }

#include "lora_c/kernels/tmpl/attention_backward_tmpl.h"

void lora_attention_init_neon(lora_attention_kernels *k) {
    k->forward = attention_forward;
    k->delta = attention_delta;
    k->backward = attention_backward;
}
#endif
