/* Plain C in shapes that compilers vectorise: eight lanes, a block of weights decoded at a time. */
#include "lora_c/base/half.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/gemv_kernels.h"

enum { LANES = 8, GROUP = 32 };

static float sum_lanes(const float *s) { return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])); }

static void nf4_row(const lora_nf4 *w, int64_t row, int64_t m, const float *x, int64_t ldx, float *sums) {
    float lanes[LORA_GEMV_TOKENS][LANES] = {{0}};
    for (int64_t k = 0; k < w->cols; k += GROUP) {
        int64_t at = row * w->cols + k;
        float value[GROUP], scale = lora_nf4_absmax(w, at / w->block_size);
        const uint8_t *codes = w->codes + at / 2;
        for (int j = 0; j < GROUP; j++) value[j] = w->lut[lora_nf4_code(codes, j)] * scale;
        for (int64_t i = 0; i < m; i++) {
            const float *from = x + i * ldx + k;
            for (int j = 0; j < GROUP; j += LANES)
                for (int lane = 0; lane < LANES; lane++) lanes[i][lane] += value[j + lane] * from[j + lane];
        }
    }
    for (int64_t i = 0; i < m; i++) sums[i] = sum_lanes(lanes[i]);
}

static void nf4(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride, float *scales, float *sums) {
    (void)scales;
    for (int64_t r = 0; r < rows; r++) nf4_row(w, row + r, m, x, stride / (int64_t)sizeof(float), sums + r * m);
}

static void f32(int64_t rows, int64_t k, const float *w, int64_t ldw, int64_t m, const float *x, int64_t stride, float *sums) {
    int64_t ldx = stride / (int64_t)sizeof *x;
    for (int64_t r = 0; r < rows; r++, w += ldw)
        for (int64_t i = 0; i < m; i++) {
            const float *from = x + i * ldx;
            float lanes[LANES] = {0}, tail = 0;
            int64_t e = 0;
            for (; e + LANES <= k; e += LANES)
                for (int lane = 0; lane < LANES; lane++) lanes[lane] += w[e + lane] * from[e + lane];
            for (; e < k; e++) tail += w[e] * from[e];
            *sums++ = sum_lanes(lanes) + tail;
        }
}

static void bf16(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, int64_t m, const void *tokens, int64_t stride, float *sums) {
    const float *x = tokens;
    int64_t ldx = stride / (int64_t)sizeof *x;
    for (int64_t r = 0; r < rows; r++, w += ldw)
        for (int64_t i = 0; i < m; i++) {
            const float *from = x + i * ldx;
            float lanes[LANES] = {0}, tail = 0;
            int64_t e = 0;
            for (; e + LANES <= k; e += LANES)
                for (int lane = 0; lane < LANES; lane++) lanes[lane] += lora_bf16_to_f32(w[e + lane]) * from[e + lane];
            for (; e < k; e++) tail += lora_bf16_to_f32(w[e]) * from[e];
            *sums++ = sum_lanes(lanes) + tail;
        }
}

void lora_gemv_fill_portable(lora_gemv_path *p) {
    p->nf4 = nf4;
    p->f32 = f32;
    p->bf16 = bf16; /* arrange stays the plain copy */
}
