/* int8 products of a few tokens with 4-bit rows: the bits of gemv_int8_portable.c, whose tokens these are. A table of 16 bytes (tbl) turns
 * the nibbles of half a block into integers; two products of them fit 16 bits: 2 * 127^2 < 2^15. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/tmpl/gemv_int8_tmpl.h"

enum { BLOCK = LORA_GEMM_SCALE_BLOCK, HALVES = 2 };

typedef struct integers {
    int8x16_t even[HALVES], odd[HALVES];
} integers;

LORA_INLINE integers look_up(int8x16_t table, const uint8_t *codes) {
    integers w;
    for (int h = 0; h < HALVES; h++) {
        uint8x16_t v = vld1q_u8(codes + 16 * h);
        w.even[h] = vqtbl1q_s8(table, vshrq_n_u8(v, 4));
        w.odd[h] = vqtbl1q_s8(table, vandq_u8(v, vdupq_n_u8(15)));
    }
    return w;
}

LORA_INLINE int32_t dot_block(const integers *w, const lora_int8_token *token) {
    int32x4_t sum = vdupq_n_s32(0);
    for (int h = 0; h < HALVES; h++) {
        int8x16_t even = vld1q_s8(token->even + 16 * h), odd = vld1q_s8(token->odd + 16 * h);
        sum = vpadalq_s16(sum, vmlal_s8(vmull_s8(vget_low_s8(w->even[h]), vget_low_s8(even)), vget_low_s8(w->odd[h]), vget_low_s8(odd)));
        sum = vpadalq_s16(sum, vmlal_high_s8(vmull_high_s8(w->even[h], even), w->odd[h], odd));
    }
    return vaddvq_s32(sum);
}

LORA_INLINE void multiply_row(const lora_nf4 *w, int8x16_t table, float unit, int64_t row, const int m, const char *x, int64_t stride,
                              float *sums) {
    const int shift = __builtin_ctzll((uint64_t)w->block_size), nested = w->absmax ? 0 : __builtin_ctzll((uint64_t)w->nested_block_size);
    float acc[LORA_GEMV_TOKENS] = {0};
    for (int64_t k = 0; k < w->cols; k += BLOCK, x += sizeof(lora_int8_token)) {
        const int64_t at = row * w->cols + k, block = at >> shift;
        float absmax;
        if (w->absmax) {
            absmax = w->absmax[block];
        } else { /* the product is rounded before the sum, as in lora_nf4_absmax */
            float product = w->nested_map[w->absmax_codes[block]] * w->nested_absmax[block >> nested];
            absmax = product + w->nested_offset;
        }
        const float scale = absmax * unit;
        const integers values = look_up(table, w->codes + at / 2);
        LORA_UNROLL_BY(8) for (int i = 0; i < m; i++) {
            const lora_int8_token *token = lora_int8_token_at(x, stride, i);
            acc[i] = fmaf((float)dot_block(&values, token), token->scale * scale, acc[i]);
        }
    }
    for (int i = 0; i < m; i++) sums[i] = acc[i];
}

static void nf4(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride, float *scales, float *sums) {
    const float top = lora_int8_largest_entry(w->lut), levels = lora_int8_table_levels(w->lut);
    int8_t bytes[16];
    (void)scales;
    for (int i = 0; i < 16; i++) bytes[i] = (int8_t)lrintf(w->lut[i] * (levels / top));
    const int8x16_t table = vld1q_s8(bytes);
    const float unit = top / levels;
    for (int64_t r = row; r < row + rows; r++, sums += m) switch (m) {
        case 1: multiply_row(w, table, unit, r, 1, x, stride, sums); break;
        case 2: multiply_row(w, table, unit, r, 2, x, stride, sums); break;
        case 3: multiply_row(w, table, unit, r, 3, x, stride, sums); break;
        default: multiply_row(w, table, unit, r, 4, x, stride, sums); break;
        }
}

void lora_gemv_fill_int8_neon(lora_gemv_path *p) {
    p->tokens = 4;
    p->nf4 = nf4;
}
#endif
