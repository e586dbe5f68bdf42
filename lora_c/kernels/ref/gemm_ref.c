/* float64 accumulation: the oracle of the other rungs. */
#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"

enum { MR = 4, NR = 8 };

static void micro(int64_t mr, int64_t nr, int64_t steps, const void *a_panel, const void *b_panel, float *tile, int64_t ld,
                  bool accumulate) {
    const float *a = a_panel, *b = b_panel;
    for (int64_t i = 0; i < mr; i++)
        for (int64_t j = 0; j < nr; j++) {
            double sum = accumulate ? (double)tile[i * ld + j] : 0.0;
            for (int64_t k = 0; k < steps; k++) sum += (double)a[k * mr + i] * (double)b[k * nr + j];
            tile[i * ld + j] = (float)sum;
        }
}

static void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    float *out = panel;
    for (int64_t k = 0; k < n; k++)
        for (int64_t r = 0; r < width; r++) out[k * width + r] = r < n_rows ? source[r * ld + k] : 0.0f;
}

static void pack_columns(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    float *out = panel;
    for (int64_t k = 0; k < n; k++)
        for (int64_t j = 0; j < width; j++) out[k * width + j] = j < n_cols ? source[k * ld + j] : 0.0f;
}

void lora_gemm_fill_ref(lora_gemm_path *p) {
    *p = (lora_gemm_path){.mr = MR,
                          .nr = NR,
                          .kc = 1024,
                          .k_per_step = 1,
                          .micro = micro,
                          .pack_rows = pack_rows,
                          .pack_left_rows = pack_rows,
                          .pack_columns = pack_columns};
}

/* Sum over the blocks of scale of a * scale of b * sum over k of a (b - 128): the corrections are not used. */
static void micro_int8(int64_t mr, int64_t nr, int64_t steps, const void *a_panel, const void *b_panel, float *tile, int64_t ld,
                       bool accumulate) {
    const int64_t a_words = lora_int8_left_words(mr), b_words = lora_int8_right_words(nr);
    for (int64_t i = 0; i < mr; i++)
        for (int64_t j = 0; j < nr; j++) {
            double total = accumulate ? (double)tile[i * ld + j] : 0.0;
            for (int64_t block = 0; block < steps / LORA_INT8_STEPS; block++) {
                const float *a_block = (const float *)a_panel + block * a_words, *b_block = (const float *)b_panel + block * b_words;
                double sum = 0;
                for (int64_t s = 0; s < LORA_INT8_STEPS; s++)
                    for (int64_t t = 0; t < 4; t++) {
                        int a = ((const int8_t *)a_block)[4 * (s * mr + i) + t], b = ((const uint8_t *)b_block)[4 * (s * nr + j) + t];
                        sum += (double)a * (b - LORA_INT8_OFFSET);
                    }
                total += sum * (double)a_block[LORA_INT8_STEPS * mr + i] * (double)b_block[LORA_INT8_STEPS * nr + j];
            }
            tile[i * ld + j] = (float)total;
        }
}

void lora_gemm_fill_int8_ref(lora_gemm_path *p) { p->micro = micro_int8; }
