/* int8 products of a few tokens with 4-bit rows in plain C: the bits of gemm_int8_portable.c. Where fmaf is a function (x86-64 without
 * FMA) they take 1.6 to 2 times as long as those of precision fast; the bits are defined by it. */
#include <string.h>

#include "lora_c/kernels/tmpl/gemv_int8_tmpl.h"
#include "lora_c/format/nf4_layout.h"

enum { BLOCK = LORA_GEMM_SCALE_BLOCK, PAIRS = BLOCK / 2 };

/* --- tokens --- */

static void arrange(int64_t k, const float *x, void *arranged) {
    for (lora_int8_token *out = arranged; k > 0; k -= BLOCK, x += BLOCK, out++) {
        const int64_t n = lora_min_i64(BLOCK, k);
        const lora_int8_scale q = lora_int8_scale_for(lora_int8_largest(x, 1, n));
        *out = (lora_int8_token){.scale = q.scale};
        for (int64_t i = 0; i < n; i++) {
            int8_t value = (int8_t)lora_to_int8(x[i] * q.inverse);
            (i % 2 ? out->odd : out->even)[i / 2] = value;
            out->correction -= LORA_INT8_OFFSET * value;
        }
    }
}

/* --- products --- */

static void multiply_row(const lora_nf4 *w, const int8_t *table, float unit, int64_t row, int64_t m, const char *x, int64_t stride,
                         float *sums) {
    memset(sums, 0, (size_t)m * sizeof *sums);
    for (int64_t k = 0; k < w->cols; k += BLOCK, x += sizeof(lora_int8_token)) {
        const int64_t at = row * w->cols + k;
        const float scale = lora_nf4_absmax(w, at / w->block_size) * unit;
        int8_t even[PAIRS], odd[PAIRS];
        for (int j = 0; j < PAIRS; j++) {
            even[j] = table[w->codes[at / 2 + j] >> 4];
            odd[j] = table[w->codes[at / 2 + j] & 15];
        }
        for (int64_t i = 0; i < m; i++) {
            const lora_int8_token *token = lora_int8_token_at(x, stride, i);
            int32_t sum = 0;
            for (int j = 0; j < PAIRS; j++) sum += even[j] * token->even[j] + odd[j] * token->odd[j];
            sums[i] = fmaf((float)sum, token->scale * scale, sums[i]);
        }
    }
}

static void nf4(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride, float *scales, float *sums) {
    const float top = lora_int8_largest_entry(w->lut), levels = lora_int8_table_levels(w->lut);
    int8_t table[16];
    (void)scales;
    for (int i = 0; i < 16; i++) table[i] = (int8_t)lora_to_int8(w->lut[i] * (levels / top));
    for (int64_t r = 0; r < rows; r++) multiply_row(w, table, top / levels, row + r, m, x, stride, sums + r * m);
}

void lora_gemv_fill_int8_portable(lora_gemv_path *p) {
    *p = (lora_gemv_path){.tokens = LORA_GEMV_TOKENS,
                          .most_tokens = INT64_MAX,
                          .group = BLOCK,
                          .group_bytes = sizeof(lora_int8_token),
                          .arrange = arrange,
                          .nf4 = nf4};
}
