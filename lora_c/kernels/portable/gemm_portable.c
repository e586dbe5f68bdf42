/* Plain C in shapes that compilers vectorise. */
#include <string.h>

#include "lora_c/kernels/gemm_kernels.h"

enum { MR = 4, NR = 8, LANES = 8 };

static void micro(int64_t kc, const float *restrict a, const float *restrict b, float *restrict tile, bool accumulate) {
    float c[MR][NR];
    if (accumulate)
        memcpy(c, tile, sizeof c);
    else
        memset(c, 0, sizeof c);
    for (int64_t k = 0; k < kc; k++)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++) c[i][j] += a[k * MR + i] * b[k * NR + j];
    memcpy(tile, c, sizeof c);
}

static void dots(int64_t m, int64_t n, const float *w, const float *x, int64_t ldx, float *sums) {
    for (int64_t i = 0; i < m; i++, x += ldx) {
        float lane[LANES] = {0}, tail = 0;
        int64_t k = 0;
        for (; k + LANES <= n; k += LANES)
            for (int j = 0; j < LANES; j++) lane[j] += w[k + j] * x[k + j];
        for (; k < n; k++) tail += w[k] * x[k];
        sums[i] = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7])) + tail;
    }
}

void lora_gemm_fill_portable(lora_gemm_kernels *k) {
    k->mr = MR;
    k->nr = NR;
    k->kc = 256;
    k->nc = 128;
    k->micro = micro;
    k->dots = dots;
}
