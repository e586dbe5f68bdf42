/* Row-wise kernels, NEON: four lanes, tails lane by lane. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/rowwise_kernels.h"
#include "lora_c/kernels/tmpl/exp_tmpl.h"

enum { W = 4 };
typedef float32x4_t vec;

LORA_INLINE vec v_load(const float *p, int64_t count) {
    if (count == W) return vld1q_f32(p);
    vec v = vld1q_lane_f32(p, vdupq_n_f32(0), 0);
    if (count > 1) v = vld1q_lane_f32(p + 1, v, 1);
    return count > 2 ? vld1q_lane_f32(p + 2, v, 2) : v;
}
LORA_INLINE void v_store(float *p, vec v, int64_t count) {
    if (count == W) {
        vst1q_f32(p, v);
        return;
    }
    vst1q_lane_f32(p, v, 0);
    if (count > 1) vst1q_lane_f32(p + 1, v, 1);
    if (count > 2) vst1q_lane_f32(p + 2, v, 2);
}
LORA_INLINE vec v_set(float a) { return vdupq_n_f32(a); }
LORA_INLINE vec v_add(vec a, vec b) { return vaddq_f32(a, b); }
LORA_INLINE vec v_sub(vec a, vec b) { return vsubq_f32(a, b); }
LORA_INLINE vec v_mul(vec a, vec b) { return vmulq_f32(a, b); }
LORA_INLINE vec v_div(vec a, vec b) { return vdivq_f32(a, b); }
LORA_INLINE vec v_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
LORA_INLINE vec v_fnma(vec a, vec b, vec c) { return vfmsq_f32(c, a, b); }
LORA_INLINE vec v_max(vec a, vec b) { return vmaxq_f32(a, b); }
LORA_INLINE vec v_sqrt(vec a) { return vsqrtq_f32(a); }
LORA_INLINE vec v_small(vec x, float limit, vec a, vec b) { return vbslq_f32(vcaltq_f32(x, vdupq_n_f32(limit)), a, b); }
/* a where x > 0, else 0 */
LORA_INLINE vec v_positive(vec x, vec a) { return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vcgtzq_f32(x))); }
LORA_INLINE vec v_exp(vec a) { return lora_exp_neon(a); }
LORA_INLINE float v_sum(vec v) { return vaddvq_f32(v); }
LORA_INLINE float v_top(vec v) { return vmaxvq_f32(v); }

/* Lanes 2 j and 2 j + 1 of the 16 float64 sums. */
typedef struct squares_state {
    float64x2_t lane[8];
} squares_state;
LORA_INLINE squares_state squares_zero(void) {
    squares_state s;
    for (int j = 0; j < 8; j++) s.lane[j] = vdupq_n_f64(0);
    return s;
}
LORA_INLINE void squares_add(squares_state *s, const float *p) {
    for (int j = 0; j < 8; j++) {
        float64x2_t g = vcvt_f64_f32(vld1_f32(p + 2 * j));
        s->lane[j] = vfmaq_f64(s->lane[j], g, g);
    }
}
LORA_INLINE double squares_total(const squares_state *s) {
    float64x2_t a = vaddq_f64(vaddq_f64(s->lane[0], s->lane[4]), vaddq_f64(s->lane[2], s->lane[6]));
    float64x2_t b = vaddq_f64(vaddq_f64(s->lane[1], s->lane[5]), vaddq_f64(s->lane[3], s->lane[7]));
    return vaddvq_f64(vaddq_f64(a, b));
}

#define ROWWISE_FILL lora_rowwise_fill_neon
#include "lora_c/kernels/tmpl/rowwise_tmpl.h"
#endif
