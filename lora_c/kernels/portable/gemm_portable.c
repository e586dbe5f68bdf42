/* Plain C in shapes that compilers vectorise. */
#include <string.h>

#include "lora_c/kernels/gemm_kernels.h"

enum { MR = 4, NR = 8 };

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

void lora_gemm_fill_portable(lora_gemm_kernels *k) {
    k->mr = MR;
    k->nr = NR;
    k->kc = 256;
    k->nc = 128;
    k->micro = micro;
}
