/* float64 accumulation, one element at a time: the oracle of the other rungs. */
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/tmpl/gemv_int8_tmpl.h"

static void arrange(int64_t k, const float *x, void *out) { memcpy(out, x, (size_t)k * sizeof *x); }

static void nf4(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *tokens, int64_t stride, float *scales, float *sums) {
    const float *x = tokens;
    int64_t ldx = stride / (int64_t)sizeof *x;
    (void)scales;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < m; i++) {
            double sum = 0;
            for (int64_t e = 0; e < w->cols; e++) {
                int64_t at = (row + r) * w->cols + e;
                double value = (double)w->lut[lora_nf4_code(w->codes, at)] * (double)lora_nf4_absmax(w, at / w->block_size);
                sum += value * (double)x[i * ldx + e];
            }
            sums[r * m + i] = (float)sum;
        }
}

static void f32(int64_t rows, int64_t k, const float *w, int64_t ldw, int64_t m, const float *x, int64_t stride, float *sums) {
    int64_t ldx = stride / (int64_t)sizeof *x;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < m; i++) {
            double sum = 0;
            for (int64_t e = 0; e < k; e++) sum += (double)w[r * ldw + e] * (double)x[i * ldx + e];
            sums[r * m + i] = (float)sum;
        }
}

static void bf16(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, int64_t m, const void *tokens, int64_t stride, float *sums) {
    const float *x = tokens;
    int64_t ldx = stride / (int64_t)sizeof *x;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < m; i++) {
            double sum = 0;
            for (int64_t e = 0; e < k; e++) sum += (double)lora_bf16_to_f32(w[r * ldw + e]) * (double)x[i * ldx + e];
            sums[r * m + i] = (float)sum;
        }
}

void lora_gemv_fill_ref(lora_gemv_path *p) {
    *p = (lora_gemv_path){.group = 1, .group_bytes = sizeof(float), .arrange = arrange, .nf4 = nf4, .f32 = f32, .bf16 = bf16};
}

/* Integers as the other rungs have them (their rounding is the definition of precision int8), sums of blocks in float64. */
static void nf4_int8(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride, float *scales, float *sums) {
    const float top = lora_int8_largest_entry(w->lut), levels = lora_int8_table_levels(w->lut);
    (void)scales;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < m; i++) {
            const lora_int8_token *token = lora_int8_token_at(x, stride, i);
            double total = 0;
            for (int64_t k = 0; k < w->cols; k += LORA_GEMM_SCALE_BLOCK, token++) {
                const int64_t at = (row + r) * w->cols + k;
                double sum = 0;
                for (int64_t j = 0; j < LORA_GEMM_SCALE_BLOCK; j++) {
                    double value = (double)lrintf(w->lut[lora_nf4_code(w->codes, at + j)] * (levels / top));
                    sum += value * (j % 2 ? token->odd : token->even)[j / 2];
                }
                total += sum * (double)token->scale * (double)lora_nf4_absmax(w, at / w->block_size) * (double)top / (double)levels;
            }
            sums[r * m + i] = (float)total;
        }
}

void lora_gemv_fill_int8_ref(lora_gemv_path *p) { p->nf4 = nf4_int8; }
