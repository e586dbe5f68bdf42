/* Conversions, NEON. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/kernels/convert_kernels.h"

/* The float16 instructions of armv8-a keep NaN and subnormals as the reference does, unless FPCR says otherwise (DN, FZ), which no
 * process starts with. bfloat16 stays the reference's loop, which compilers turn into the same shifts and comparisons. */
static void f16_to_f32(int64_t n, const uint16_t *src, float *dst) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(src + i))));
    for (; i < n; i++) dst[i] = lora_f16_to_f32(src[i]);
}

static void f32_to_f16(int64_t n, const float *src, uint16_t *dst) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(dst + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(src + i))));
    for (; i < n; i++) dst[i] = lora_f32_to_f16(src[i]);
}

void lora_convert_fill_neon(lora_convert_kernels *k) {
    k->f16_to_f32 = f16_to_f32;
    k->f32_to_f16 = f32_to_f16;
}
#endif
