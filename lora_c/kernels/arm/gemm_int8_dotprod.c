/* int8 products (FEAT_DotProd): 12 x 8 tiles. 24 accumulators, two vectors of B, three of A, whose words multiply whole vectors of B (sdot
 * by element), and B's offset are 30 of the 32 registers. Packing is the portable one. */
#if defined(__aarch64__)
#include "lora_c/kernels/tmpl/gemm_int8_neon.h"

LORA_TARGET_BEGIN(LORA_ARM_DOTPROD)

#define SUFFIX _int8_dotprod
#define RUNG
#define VL 4
#define MR 12
#define WORD uint32_t
#define STEPS_PER_CALL 0

#include "lora_c/kernels/tmpl/gemm_names.h"

/* c[j] + sum of the four products of word lane of a and word j of b. As an instruction: the intrinsic wants all of armv8.2-a. */
#define MULTIPLY_ADD(c, b, a, lane) __asm__("sdot %0.4s, %1.16b, %2.4b[" #lane "]" : "+w"(c) : "w"(b), "w"(a))

/* Row i of four that lie in x, by a lane that is a constant. */
LORA_INLINE int32x4_t multiply_add(int32x4_t c, uint32x4_t b, uint32x4_t x, const int lane) {
    if (lane == 0) MULTIPLY_ADD(c, b, x, 0);
    if (lane == 1) MULTIPLY_ADD(c, b, x, 1);
    if (lane == 2) MULTIPLY_ADD(c, b, x, 2);
    if (lane == 3) MULTIPLY_ADD(c, b, x, 3);
    return c;
}

LORA_INLINE void NAME(tile)(const int rows, const int vectors, int64_t steps, const uint32_t *a, const uint32_t *b, float *tile, int64_t ld,
                            bool accumulate) {
    if (!accumulate) lora_int8_clear(tile, ld, rows, vectors * VL);
    for (; steps > 0; steps -= LORA_INT8_STEPS) {
        int32x4_t c[MR][2];
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) c[i][j] = vdupq_n_s32(0);
        int64_t left = LORA_INT8_STEPS;
        __asm__("" : "+r"(left)); /* a loop of unknown length: not unrolled */
        do {
            uint32x4_t v[2], x[MR / 4];
            __builtin_prefetch(b + 16 * vectors * VL, 0, 3);
            UNROLL for (int j = 0; j < vectors; j++) v[j] = lora_int8_right(b + j * VL);
            UNROLL for (int q = 0; q < rows / 4; q++) x[q] = vld1q_u32(a + 4 * q);
            UNROLL for (int i = 0; i < rows; i++) {
                const bool whole = i < rows / 4 * 4;
                uint32x4_t row = whole ? x[i / 4] : vld1q_dup_u32(a + i);
                UNROLL for (int j = 0; j < vectors; j++) c[i][j] = multiply_add(c[i][j], v[j], row, whole ? i % 4 : 0);
            }
            a += rows;
            b += vectors * VL;
        } while (--left > 0);
        const float *scales = (const float *)a, *column_scales = (const float *)b;
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
            lora_int8_add(tile + i * ld + j * VL, c[i][j], scales[i], column_scales + j * VL);
        a += 2 * LORA_INT8_TERMS;
        b += lora_round_up(vectors * VL, 16);
    }
}

#include "lora_c/kernels/tmpl/gemm_instances_tmpl.h"

void lora_gemm_fill_int8_dotprod(lora_gemm_path *p) { p->micro = NAME(micro); }

LORA_TARGET_END
#endif
