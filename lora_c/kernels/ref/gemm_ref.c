/* float64 accumulation: the oracle of the other rungs. */
#include "lora_c/kernels/gemm_kernels.h"

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
    *p = (lora_gemm_path){
        .mr = MR, .nr = NR, .kc = LORA_GEMM_MAX_KC, .k_per_step = 1, .micro = micro, .pack_rows = pack_rows, .pack_columns = pack_columns};
}
