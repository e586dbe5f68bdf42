/* bfloat16 products of a few tokens (FEAT_BF16). 16 bytes hold 32 codes; the two bytes of a bfloat16 come from two tables. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/kernels/gemv_kernels.h"

LORA_TARGET_BEGIN(LORA_ARM_BF16)

#include "lora_c/kernels/tmpl/bf16_neon.h"

#define GEMV_INLINE LORA_INLINE
#define UNROLL LORA_UNROLL_BY(8)

#include "lora_c/kernels/tmpl/nf4_row_scales.h"

enum {
    GROUP = 32,           /* elements: 16 bytes of codes */
    CHUNK = 1024,         /* elements of a few tokens that stay in the L1 cache while the rows pass by */
    PREFETCH_BYTES = 512, /* ahead in a row of codes */
    ROUNDED = 32,         /* elements of 64 bytes */
};

/* Even elements of a group first: they are the high nibbles. */
static void arrange(int64_t k, const float *x, void *arranged) {
    uint16_t *out = arranged;
    for (int64_t begin = 0; begin < k; begin += GROUP, x += GROUP, out += GROUP)
        for (int64_t i = 0; i < GROUP / 2; i++) {
            out[i] = begin + 2 * i < k ? lora_f32_to_bf16(x[2 * i]) : 0;
            out[GROUP / 2 + i] = begin + 2 * i + 1 < k ? lora_f32_to_bf16(x[2 * i + 1]) : 0;
        }
}

static void round_bf16(int64_t k, const float *x, uint16_t *out) {
    int64_t i = 0;
    for (; i + 8 <= k; i += 8) vst1q_u16(out + i, lora_narrow_8(vld1q_f32(x + i), vld1q_f32(x + i + 4)));
    for (; i < k; i++) out[i] = lora_f32_to_bf16(x[i]);
    for (; i % ROUNDED; i++) out[i] = 0;
}

/* Elements k0 .. k1 of a row. Bits: per token one accumulator; in a group the pairs in order from zero, then the scale. */
LORA_INLINE void nf4_run(lora_levels levels, const uint8_t *codes, const float *scale, int log_block, int64_t k0, int64_t k1, const int m,
                         const char *x, int64_t stride, float32x4_t *acc) {
    for (int64_t k = k0; k < k1; k += GROUP) {
        __builtin_prefetch(codes + k / 2 + PREFETCH_BYTES, 0, 3);
        uint8x16_t v = vld1q_u8(codes + k / 2);
        uint16x8_t w[4];
        lora_look_up_16(levels, vshrq_n_u8(v, 4), w);
        lora_look_up_16(levels, vandq_u8(v, vdupq_n_u8(15)), w + 2);
        float factor = scale[k >> log_block];
        UNROLL for (int i = 0; i < m; i++) {
            const uint16_t *from = (const uint16_t *)(const void *)(x + i * stride) + k;
            float32x4_t s = vdupq_n_f32(0);
            UNROLL for (int j = 0; j < 4; j++) s = lora_dot_pairs(s, w[j], vld1q_u16(from + 8 * j));
            acc[i] = vfmaq_n_f32(acc[i], s, factor);
        }
    }
}

/* All the rows pass by a chunk of the tokens; a single token goes through each row at once. */
LORA_INLINE void nf4_tokens(const lora_nf4 *a, int64_t row, int64_t rows, const int m, const char *x, int64_t stride, float *scale,
                            float *sums) {
    const lora_levels levels = lora_load_levels(a->lut, 1.0f);
    int log_block = __builtin_ctzll((uint64_t)a->block_size);
    int64_t blocks = a->cols >> log_block, chunk = m == 1 ? a->cols : CHUNK;
    float32x4_t acc[LORA_GEMV_ROWS][LORA_GEMV_TOKENS];
    row_scales(a, row * blocks, rows * blocks, scale);
    for (int64_t k = 0; k < a->cols; k += chunk)
        for (int64_t r = 0; r < rows; r++) {
            float32x4_t part[LORA_GEMV_TOKENS];
            UNROLL for (int i = 0; i < m; i++) part[i] = k ? acc[r][i] : vdupq_n_f32(0);
            nf4_run(levels, a->codes + (row + r) * (a->cols / 2), scale + r * blocks, log_block, k, lora_min_i64(k + chunk, a->cols), m, x,
                    stride, part);
            UNROLL for (int i = 0; i < m; i++) acc[r][i] = part[i];
        }
    for (int64_t r = 0; r < rows; r++) UNROLL for (int i = 0; i < m; i++) sums[r * m + i] = vaddvq_f32(acc[r][i]);
}

/* The eight elements from k on, zeros behind the last. */
LORA_INLINE uint16x8_t load_8(const uint16_t *w, int64_t k, int64_t end) {
    if (end - k >= 8) return vld1q_u16(w + k);
    uint16_t part[8] = {0};
    for (int64_t i = 0; k + i < end; i++) part[i] = w[k + i];
    return vld1q_u16(part);
}

/* --- dense rows: two accumulators per token, even and odd vectors --- */

LORA_INLINE void dense_run(const uint16_t *w, int64_t k0, int64_t k1, const int m, const char *x, int64_t stride, float32x4_t *even,
                           float32x4_t *odd) {
    int64_t k = k0;
    for (; k + 16 <= k1; k += 16) {
        uint16x8_t w0 = vld1q_u16(w + k), w1 = vld1q_u16(w + k + 8);
        UNROLL for (int i = 0; i < m; i++) {
            const uint16_t *from = (const uint16_t *)(const void *)(x + i * stride) + k;
            even[i] = lora_dot_pairs(even[i], w0, vld1q_u16(from));
            odd[i] = lora_dot_pairs(odd[i], w1, vld1q_u16(from + 8));
        }
    }
    for (; k < k1; k += 8) { /* tokens have zeros up to 64 bytes */
        uint16x8_t w0 = load_8(w, k, k1);
        UNROLL for (int i = 0; i < m; i++) even[i] =
            lora_dot_pairs(even[i], w0, vld1q_u16((const uint16_t *)(const void *)(x + i * stride) + k));
    }
}

LORA_INLINE void dense_tokens(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, const int m, const char *x, int64_t stride,
                              float *sums) {
    int64_t chunk = m == 1 ? k : CHUNK;
    float32x4_t acc[LORA_GEMV_ROWS][2][LORA_GEMV_TOKENS];
    for (int64_t k0 = 0; k0 < k; k0 += chunk)
        for (int64_t r = 0; r < rows; r++) {
            float32x4_t even[LORA_GEMV_TOKENS], odd[LORA_GEMV_TOKENS];
            UNROLL for (int i = 0; i < m; i++) {
                even[i] = k0 ? acc[r][0][i] : vdupq_n_f32(0);
                odd[i] = k0 ? acc[r][1][i] : vdupq_n_f32(0);
            }
            dense_run(w + r * ldw, k0, lora_min_i64(k0 + chunk, k), m, x, stride, even, odd);
            UNROLL for (int i = 0; i < m; i++) {
                acc[r][0][i] = even[i];
                acc[r][1][i] = odd[i];
            }
        }
    for (int64_t r = 0; r < rows; r++)
        UNROLL for (int i = 0; i < m; i++) sums[r * m + i] = vaddvq_f32(vaddq_f32(acc[r][0][i], acc[r][1][i]));
}

/* call(n) with n = m as a constant */
#define FOR_TOKENS(m, call)                                                                                                                \
    switch (m) {                                                                                                                           \
    case 1: call(1); break;                                                                                                                \
    case 2: call(2); break;                                                                                                                \
    case 3: call(3); break;                                                                                                                \
    case 4: call(4); break;                                                                                                                \
    case 5: call(5); break;                                                                                                                \
    case 6: call(6); break;                                                                                                                \
    case 7: call(7); break;                                                                                                                \
    default: call(8); break;                                                                                                               \
    }

static void gemv_nf4_bf16(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride, float *scale,
                          float *sums) {
#define CALL(n) nf4_tokens(w, row, rows, n, x, stride, scale, sums)
    FOR_TOKENS(m, CALL)
#undef CALL
}

static void gemv_bf16_bf16(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, int64_t m, const void *x, int64_t stride, float *sums) {
#define CALL(n) dense_tokens(rows, k, w, ldw, n, x, stride, sums)
    FOR_TOKENS(m, CALL)
#undef CALL
}

void lora_gemv_fill_bf16_neon(lora_gemv_path *p) {
    p->group = GROUP;
    p->group_bytes = GROUP * (int64_t)sizeof(uint16_t);
    p->arrange = arrange;
    p->round_bf16 = round_bf16;
    p->nf4 = gemv_nf4_bf16;
    p->bf16 = gemv_bf16_bf16;
}

LORA_TARGET_END
#endif
