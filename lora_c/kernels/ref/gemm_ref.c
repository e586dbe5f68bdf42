/* float64 accumulation: the oracle of the other rungs. */
#include "lora_c/kernels/gemm_kernels.h"

enum { MR = 4, NR = 8 };

static void micro(int64_t kc, const float *a, const float *b, float *tile, bool accumulate) {
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) {
            double sum = accumulate ? (double)tile[i * NR + j] : 0.0;
            for (int64_t k = 0; k < kc; k++) sum += (double)a[k * MR + i] * (double)b[k * NR + j];
            tile[i * NR + j] = (float)sum;
        }
}

static void transpose(const float *const *rows, int64_t n_rows, int64_t n, float *out, int64_t ld) {
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t k = 0; k < n; k++) out[k * ld + r] = rows[r][k];
}

void lora_gemm_fill_ref(lora_gemm_kernels *k) {
    *k = (lora_gemm_kernels){.mr = MR, .nr = NR, .kc = 4096, .nc = 64, .micro = micro, .transpose = transpose};
}
