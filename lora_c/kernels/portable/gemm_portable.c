/* Plain C in shapes that compilers vectorise. Packing is the oracle's. */
#include <string.h>

#include "lora_c/kernels/gemm_kernels.h"

enum { MR = 4, NR = 8 };

static void full_tile(int64_t steps, const float *restrict a, const float *restrict b, float *restrict tile, int64_t ld, bool accumulate) {
    float c[MR][NR] = {{0}};
    for (int i = 0; i < MR && accumulate; i++) memcpy(c[i], tile + i * ld, sizeof c[i]);
    for (int64_t k = 0; k < steps; k++)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++) c[i][j] += a[k * MR + i] * b[k * NR + j];
    for (int i = 0; i < MR; i++) memcpy(tile + i * ld, c[i], sizeof c[i]);
}

static void micro(int64_t mr, int64_t nr, int64_t steps, const void *a_panel, const void *b_panel, float *tile, int64_t ld,
                  bool accumulate) {
    const float *a = a_panel, *b = b_panel;
    if (mr == MR && nr == NR) {
        full_tile(steps, a, b, tile, ld, accumulate);
        return;
    }
    for (int64_t i = 0; i < mr && !accumulate; i++) memset(tile + i * ld, 0, (size_t)nr * sizeof *tile);
    for (int64_t k = 0; k < steps; k++)
        for (int64_t i = 0; i < mr; i++)
            for (int64_t j = 0; j < nr; j++) tile[i * ld + j] += a[k * mr + i] * b[k * nr + j];
}

void lora_gemm_fill_portable(lora_gemm_path *p) {
    p->mr = MR;
    p->nr = NR;
    p->kc = 256;
    p->micro = micro;
}
