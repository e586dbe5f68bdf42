/* NEON: 16 bytes hold 32 codes. The four bytes of a float32 come from four 16-entry byte tables (tbl), high nibbles (even elements)
 * first, and interleave to eight vectors. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/kernels/gemv_kernels.h"
#include "lora_c/kernels/tmpl/planes_neon.h"

#define RUNG
#define VEC float32x4_t
#define VL 4
#define LOADU vld1q_f32
#define ZERO() vdupq_n_f32(0)
#define MUL vmulq_f32
#define ADD vaddq_f32
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#define SUM vaddvq_f32
#define LOAD_PART load_part
#define LOAD_BF16(p) vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))
#define LOAD_BF16_PART load_bf16_part

LORA_INLINE float32x4_t load_part(const float *p, int64_t n) {
    float part[VL] = {0};
    for (int64_t i = 0; i < n; i++) part[i] = p[i];
    return vld1q_f32(part);
}

LORA_INLINE float32x4_t load_bf16_part(const uint16_t *p, int64_t n) {
    uint16_t part[VL] = {0};
    for (int64_t i = 0; i < n; i++) part[i] = p[i];
    return LOAD_BF16(part);
}

typedef lora_planes tables;

LORA_INLINE tables load_tables(const float *lut, int64_t block_size) {
    (void)block_size; /* a group never crosses a block */
    return lora_load_planes(lut);
}

LORA_INLINE void decode(const tables *t, const uint8_t *codes, int64_t bytes, float32x4_t *w) {
    (void)bytes; /* blocks are whole groups */
    uint8x16_t v = vld1q_u8(codes);
    lora_look_up(t, vshrq_n_u8(v, 4), w);
    lora_look_up(t, vandq_u8(v, vdupq_n_u8(15)), w + 4);
}

LORA_INLINE float32x4_t scales(const tables *t, const float *p, int64_t k) {
    (void)t, (void)k;
    return vld1q_dup_f32(p);
}

static void arrange(int64_t k, const float *x, void *arranged) {
    float *out = arranged;
    for (int64_t begin = 0; begin < k; begin += 32, x += 32, out += 32)
        for (int64_t i = 0; i < 16; i++) {
            out[i] = begin + 2 * i < k ? x[2 * i] : 0.0f;
            out[16 + i] = begin + 2 * i + 1 < k ? x[2 * i + 1] : 0.0f;
        }
}

#include "lora_c/kernels/tmpl/gemv_tmpl.h"

void lora_gemv_fill_neon(lora_gemv_path *p) {
    *p = (lora_gemv_path){
        .group = GROUP, .group_bytes = GROUP * (int64_t)sizeof(float), .arrange = arrange, .nf4 = nf4, .f32 = f32, .bf16 = bf16};
}
#endif
