/* int8 products (FEAT_I8MM): 12 x 8 tiles of 2 x 2 accumulators, two steps, eight k, at a time. usmmla reads eight k of two lines;
 * panels have four, so the words of two steps are interleaved as they are loaded. B keeps its offset, which leaves a register free.
 * Packing is the portable one. */
#if defined(__aarch64__) && !defined(__clang__) /* see gemm_kernels.c */
#include "lora_c/kernels/tmpl/gemm_int8_neon.h"

LORA_TARGET_BEGIN(LORA_ARM_I8MM)

#define SUFFIX _int8_i8mm
#define RUNG
#define VL 4
#define MR 12
#define WORD uint32_t
#define STEPS_PER_CALL 0

#include "lora_c/kernels/tmpl/gemm_names.h"

/* c + b a^T of two lines of eight each, those of b without a sign. As an instruction: the intrinsic wants all of armv8.2-a. */
LORA_INLINE int32x4_t multiply_2x2(int32x4_t c, uint32x4_t b, uint32x4_t a) {
    __asm__("usmmla %0.4s, %1.16b, %2.16b" : "+w"(c) : "w"(b), "w"(a));
    return c;
}

/* Rows i and i + 1 of two steps of a panel of width rows; one that is not there is zero. */
LORA_INLINE uint32x4_t row_pair(const uint32_t *a, const int width, const int i) {
    uint32x4_t pair = vsetq_lane_u32(a[i], vdupq_n_u32(0), 0);
    pair = vld1q_lane_u32(a + width + i, pair, 1);
    if (i + 1 == width) return pair;
    return vld1q_lane_u32(a + width + i + 1, vld1q_lane_u32(a + i + 1, pair, 2), 3);
}

LORA_INLINE void NAME(tile)(const int rows, const int vectors, int64_t steps, const uint32_t *a, const uint32_t *b, float *tile, int64_t ld,
                            bool accumulate) {
    if (!accumulate) lora_int8_clear(tile, ld, rows, vectors * VL);
    for (; steps > 0; steps -= LORA_INT8_STEPS) {
        int32x4_t c[MR / 2][4];
        const int32_t *corrections = (const int32_t *)a + LORA_INT8_STEPS * rows + LORA_INT8_TERMS;
        UNROLL for (int i = 0; i < (rows + 1) / 2; i++) {
            int32x2_t pair = vld1_s32(corrections + 2 * i); /* behind the last one is room */
            UNROLL for (int j = 0; j < 2 * vectors; j++) c[i][j] = vcombine_s32(pair, pair);
        }
        int64_t left = LORA_INT8_STEPS;
        __asm__("" : "+r"(left)); /* a loop of unknown length: not unrolled */
        do {
            uint32x4_t v[4];
            __builtin_prefetch(b + 16 * vectors * VL, 0, 3);
            UNROLL for (int j = 0; j < vectors; j++) {
                uint32x4_t first = vld1q_u32(b + j * VL), second = vld1q_u32(b + (vectors + j) * VL);
                v[2 * j] = vzip1q_u32(first, second);
                v[2 * j + 1] = vzip2q_u32(first, second);
            }
            UNROLL for (int i = 0; i < (rows + 1) / 2; i++) {
                uint32x4_t x;
                if (i % 2 == 0) __asm__("" ::: "memory"); /* rows are loaded when their turn comes: all at once do not fit registers */
                if (2 * i < rows / 4 * 4) {
                    uint32x4_t first = vld1q_u32(a + i / 2 * 4), second = vld1q_u32(a + rows + i / 2 * 4);
                    x = i % 2 ? vzip2q_u32(first, second) : vzip1q_u32(first, second);
                } else {
                    x = row_pair(a, rows, 2 * i);
                }
                UNROLL for (int j = 0; j < 2 * vectors; j++) c[i][j] = multiply_2x2(c[i][j], v[j], x);
            }
            a += 2 * rows;
            b += 2 * vectors * VL;
        } while ((left -= 2) > 0);
        const float *scales = (const float *)a, *column_scales = (const float *)b;
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) {
            int32x4_t first = c[i / 2][2 * j], second = c[i / 2][2 * j + 1];
            int32x4_t row = i % 2 ? vuzp2q_s32(first, second) : vuzp1q_s32(first, second);
            lora_int8_add(tile + i * ld + j * VL, row, scales[i], column_scales + j * VL);
        }
        a += 2 * LORA_INT8_TERMS;
        b += lora_round_up(vectors * VL, 16);
    }
}

#include "lora_c/kernels/tmpl/gemm_instances_tmpl.h"

void lora_gemm_fill_int8_i8mm(lora_gemm_path *p) { p->micro = NAME(micro); }

LORA_TARGET_END
#endif
