/* Plain C in shapes that compilers vectorise. Packing is the oracle's. */
#include <string.h>

#include "lora_c/kernels/gemm_kernels.h"

enum { MR = 4, NR = 8 };

static void full_tile(int64_t steps, const float *restrict a, const float *restrict b, float *restrict tile, bool accumulate) {
    float c[MR][NR];
    if (accumulate)
        memcpy(c, tile, sizeof c);
    else
        memset(c, 0, sizeof c);
    for (int64_t k = 0; k < steps; k++)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++) c[i][j] += a[k * MR + i] * b[k * NR + j];
    memcpy(tile, c, sizeof c);
}

static void micro(int64_t mr, int64_t nr, int64_t steps, const void *a_panel, const void *b_panel, float *tile, bool accumulate) {
    const float *a = a_panel, *b = b_panel;
    if (mr == MR && nr == NR) {
        full_tile(steps, a, b, tile, accumulate);
        return;
    }
    for (int64_t i = 0; i < mr * nr && !accumulate; i++) tile[i] = 0;
    for (int64_t k = 0; k < steps; k++)
        for (int64_t i = 0; i < mr; i++)
            for (int64_t j = 0; j < nr; j++) tile[i * nr + j] += a[k * mr + i] * b[k * nr + j];
}

void lora_gemm_fill_portable(lora_gemm_path *p) {
    p->mr = MR;
    p->nr = NR;
    p->kc = 256;
    p->micro = micro;
}
