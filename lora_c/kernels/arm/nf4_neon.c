/* NF4 kernels, NEON: groups of 32 elements (a group never crosses a block). */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "lora_c/base/half.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/nf4_kernels.h"
#include "lora_c/kernels/tmpl/nf4_source.h"
#include "lora_c/kernels/tmpl/planes_neon.h"

/* Byte tables for tbl with two registers: by cell, and the codes of the intervals. */
typedef struct code_tables {
    uint8x16x2_t base, low, high;
    uint8x16_t code;
    const float *thresholds;
} code_tables;

static code_tables load_tables(const lora_codebook *book) {
    code_tables t = {.code = vld1q_u8(book->code), .thresholds = book->threshold};
    uint8_t base[32], low[32], high[32];
    for (int i = 0; i < 32; i++) {
        uint16_t threshold = (uint16_t)book->cell_threshold[i];
        base[i] = (uint8_t)book->cell_base[i];
        low[i] = (uint8_t)threshold;
        high[i] = (uint8_t)(threshold >> 8);
    }
    for (int half = 0; half < 2; half++) {
        t.base.val[half] = vld1q_u8(base + 16 * half);
        t.low.val[half] = vld1q_u8(low + 16 * half);
        t.high.val[half] = vld1q_u8(high + 16 * half);
    }
    return t;
}

LORA_INLINE float32x4_t load_4(const void *x, lora_dtype dtype) {
    if (dtype == LORA_F32) return vld1q_f32(x);
    uint16x4_t h = vld1_u16(x);
    return dtype == LORA_F16 ? vcvt_f32_f16(vreinterpret_f16_u16(h)) : vreinterpretq_f32_u32(vshll_n_u16(h, 16));
}

/* The largest magnitude as float32 bits: the bits of any of the types order like their values. */
LORA_INLINE uint32_t top_magnitude(const void *x, lora_dtype dtype, int64_t n) {
    if (dtype == LORA_F32) {
        const uint32x4_t mask = vdupq_n_u32(0x7fffffff);
        uint32x4_t top0 = vdupq_n_u32(0), top1 = top0;
        for (int64_t i = 0; i < n; i += 8) {
            top0 = vmaxq_u32(top0, vandq_u32(mask, vld1q_u32(at(x, dtype, i))));
            top1 = vmaxq_u32(top1, vandq_u32(mask, vld1q_u32(at(x, dtype, i + 4))));
        }
        return vmaxvq_u32(vmaxq_u32(top0, top1));
    }
    const uint16x8_t mask = vdupq_n_u16(0x7fff);
    uint16x8_t top0 = vdupq_n_u16(0), top1 = top0;
    for (int64_t i = 0; i < n; i += 16) {
        top0 = vmaxq_u16(top0, vandq_u16(mask, vld1q_u16(at(x, dtype, i))));
        top1 = vmaxq_u16(top1, vandq_u16(mask, vld1q_u16(at(x, dtype, i + 8))));
    }
    uint16_t top = vmaxvq_u16(vmaxq_u16(top0, top1));
    return lora_bits_f32(dtype == LORA_BF16 ? lora_bf16_to_f32(top) : lora_f16_to_f32(top));
}

typedef struct intervals {
    uint8x16_t half[2]; /* of 32 elements, in order */
} intervals;

LORA_INLINE uint8x16_t narrow_16(const uint32x4_t v[4]) {
    uint16x8_t low = vcombine_u16(vmovn_u32(v[0]), vmovn_u32(v[1])), high = vcombine_u16(vmovn_u32(v[2]), vmovn_u32(v[3]));
    return vcombine_u8(vmovn_u16(low), vmovn_u16(high));
}

LORA_INLINE intervals exact_intervals_of(const void *x, lora_dtype dtype, float inverse, const float *thresholds) {
    intervals all;
    for (int half = 0; half < 2; half++) {
        uint32x4_t interval[4];
        for (int j = 0; j < 4; j++) {
            float32x4_t y = vmulq_f32(load_4(at(x, dtype, 16 * half + 4 * j), dtype), vdupq_n_f32(inverse));
            interval[j] = vdupq_n_u32(0);
            for (int t = 0; t < 15; t++) interval[j] = vsubq_u32(interval[j], vcgtq_f32(y, vdupq_n_f32(thresholds[t])));
        }
        all.half[half] = narrow_16(interval);
    }
    return all;
}

/* Out of line: rare, but for types without cells. */
__attribute__((noinline)) static intervals exact_intervals(const void *x, lora_dtype dtype, float inverse, const float *thresholds) {
    if (dtype == LORA_F32) return exact_intervals_of(x, LORA_F32, inverse, thresholds);
    return dtype == LORA_BF16 ? exact_intervals_of(x, LORA_BF16, inverse, thresholds)
                              : exact_intervals_of(x, LORA_F16, inverse, thresholds);
}

LORA_INLINE int16x8_t scaled_integers(const void *x, lora_dtype dtype, float32x4_t scale) {
    int32x4_t first = vcvtnq_s32_f32(vmulq_f32(load_4(x, dtype), scale));
    int32x4_t second = vcvtnq_s32_f32(vmulq_f32(load_4(at(x, dtype, 4), dtype), scale));
    return vcombine_s16(vqmovn_s32(first), vqmovn_s32(second));
}

LORA_INLINE intervals group_intervals(const void *x, lora_dtype dtype, float inverse, float32x4_t scale, const code_tables *t) {
    intervals all;
    uint16x8_t equal = vdupq_n_u16(0);
    for (int half = 0; half < 2; half++) {
        int16x8_t q0 = scaled_integers(at(x, dtype, 16 * half), dtype, scale),
                  q1 = scaled_integers(at(x, dtype, 16 * half + 8), dtype, scale);
        int8x16_t number = vcombine_s8(vmovn_s16(vshrq_n_s16(q0, 11)), vmovn_s16(vshrq_n_s16(q1, 11)));
        uint8x16_t cell = vandq_u8(vreinterpretq_u8_s8(number), vdupq_n_u8(31));
        uint8x16_t low = vqtbl2q_u8(t->low, cell), high = vqtbl2q_u8(t->high, cell);
#if defined(__clang__) && __clang_major__ == 19
        __asm__("" : "+w"(low)); /* 19.1.7 ends with a segmentation fault when it selects instructions for what follows */
#endif
        int16x8_t t0 = vreinterpretq_s16_u8(vzip1q_u8(low, high)), t1 = vreinterpretq_s16_u8(vzip2q_u8(low, high));
        equal = vorrq_u16(equal, vorrq_u16(vceqq_s16(q0, t0), vceqq_s16(q1, t1)));
        uint8x16_t above = vcombine_u8(vmovn_u16(vcgtq_s16(q0, t0)), vmovn_u16(vcgtq_s16(q1, t1)));
        all.half[half] = vsubq_u8(vqtbl2q_u8(t->base, cell), above);
    }
    return __builtin_expect(vmaxvq_u16(equal) != 0, 0) ? exact_intervals(x, dtype, inverse, t->thresholds) : all;
}

LORA_INLINE uint8x16_t packed_codes(const void *x, lora_dtype dtype, float inverse, bool fits, const code_tables *t) {
    float32x4_t scale = vdupq_n_f32(inverse * 32768.0f);
    intervals all = fits ? group_intervals(x, dtype, inverse, scale, t) : exact_intervals(x, dtype, inverse, t->thresholds);
    uint8x16_t first = vqtbl1q_u8(t->code, all.half[0]), second = vqtbl1q_u8(t->code, all.half[1]);
    return vsliq_n_u8(vuzp2q_u8(first, second), vuzp1q_u8(first, second), 4);
}

#define PUT_CODES vst1q_u8
#include "lora_c/kernels/tmpl/nf4_quantize_tmpl.h"

/* 32 elements from 16 bytes. */
LORA_INLINE void decode_group(const uint8_t *bytes, const lora_planes *t, float scale, float *dst) {
    uint8x16_t v = vld1q_u8(bytes), even = vshrq_n_u8(v, 4), odd = vandq_u8(v, vdupq_n_u8(15));
    float32x4_t w[8];
    lora_look_up(t, vzip1q_u8(even, odd), w);
    lora_look_up(t, vzip2q_u8(even, odd), w + 4);
    for (int j = 0; j < 8; j++) vst1q_f32(dst + 4 * j, vmulq_n_f32(w[j], scale));
}

static void dequantize(const lora_nf4 *w, int64_t begin, int64_t count, float *dst) {
    const lora_planes planes = lora_load_planes(w->lut);
    int64_t end = begin + count;
    for (int64_t i = begin; i < end;) {
        int64_t block = i / w->block_size, stop = lora_min_i64((block + 1) * w->block_size, end);
        float scale = lora_nf4_absmax(w, block);
        for (; i < stop && i & 1; i++) *dst++ = w->lut[lora_nf4_code(w->codes, i)] * scale;
        for (; i + GROUP <= stop; i += GROUP, dst += GROUP) decode_group(w->codes + i / 2, &planes, scale, dst);
        for (; i < stop; i++) *dst++ = w->lut[lora_nf4_code(w->codes, i)] * scale;
    }
}

/* decode_absmax stays the reference's: there is no gather to replace its look-ups. */
void lora_nf4_fill_neon(lora_nf4_kernels *k) {
    k->quantize = quantize;
    k->dequantize = dequantize;
}
#endif
