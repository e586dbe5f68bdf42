/* float32 products: 12 x 8 tiles. 24 accumulators, two vectors of B and three of A, whose elements multiply whole vectors of B
 * (fmla by element), fill 29 of the 32 registers. Weights of 16 and 4 bits are decoded before they are packed. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemm_kernels.h"
#include "lora_c/kernels/tmpl/transpose_neon.h"

#define SUFFIX _neon
#define RUNG
#define VL 4
#define MR 12
#define WORD float
#define STEPS_PER_CALL 0

#include "lora_c/kernels/tmpl/gemm_names.h"

LORA_INLINE void NAME(tile)(const int rows, const int vectors, int64_t steps, const float *a, const float *b, float *tile, int64_t ld,
                            bool accumulate) {
    float32x4_t c[MR][2];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) c[i][j] = vdupq_n_f32(0);
    do { /* steps >= 1 */
        float32x4_t v[2], x[MR / 4];
        __builtin_prefetch(b + 16 * vectors * VL, 0, 3);
        UNROLL for (int j = 0; j < vectors; j++) v[j] = vld1q_f32(b + j * VL);
        UNROLL for (int q = 0; q < rows / 4; q++) x[q] = vld1q_f32(a + 4 * q);
        UNROLL for (int i = 0; i < rows; i++) {
            float factor = i < rows / 4 * 4 ? x[i / 4][i % 4] : a[i];
            UNROLL for (int j = 0; j < vectors; j++) c[i][j] = vfmaq_n_f32(c[i][j], v[j], factor);
        }
        a += rows;
        b += vectors * VL;
    } while (--steps > 0);
    UNROLL for (int i = 0; i < rows; i++, tile += ld) {
        UNROLL for (int j = 0; j < vectors; j++) {
            if (accumulate) c[i][j] = vaddq_f32(c[i][j], vld1q_f32(tile + j * VL));
            vst1q_f32(tile + j * VL, c[i][j]);
        }
    }
}

#include "lora_c/kernels/tmpl/gemm_instances_tmpl.h"

static void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += VL) {
        float *out = (float *)panel + first;
        const float *rows = source + first * ld;
        int64_t here = lora_min_i64(VL, n_rows - first), k = 0;
        if (here == VL)
            for (; k + VL <= n; k += VL) {
                float32x4_t r[VL];
                for (int i = 0; i < VL; i++) r[i] = vld1q_f32(rows + i * ld + k);
                lora_transpose_4x4(r);
                for (int s = 0; s < VL; s++) vst1q_f32(out + (k + s) * width, r[s]);
            }
        for (; k < n; k++)
            for (int64_t i = 0; i < lora_min_i64(VL, width - first); i++) out[k * width + i] = i < here ? rows[i * ld + k] : 0.0f;
    }
}

static void pack_columns(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    float *out = panel;
    for (int64_t k = 0; k < n; k++, source += ld, out += width) {
        memcpy(out, source, (size_t)n_cols * sizeof *out);
        if (n_cols < width) memset(out + n_cols, 0, (size_t)(width - n_cols) * sizeof *out);
    }
}

void lora_gemm_fill_neon(lora_gemm_path *p) {
    p->mr = MR;
    p->nr = 2 * VL;
    p->kc = 256;
    p->micro = micro_neon;
    p->pack_rows = p->pack_left_rows = pack_rows;
    p->pack_columns = pack_columns;
}
#endif
