/* bfloat16 products (FEAT_BF16): 12 x 8 tiles of 2 x 2 accumulators, four k at a time. Within a panel two steps lie together, so that
 * a row or column has its four k in 8 bytes and a pair of them is what bfmmla reads: [steps / 2][w][2]. The last of an odd number of steps
 * is [w]. Operands are rounded to nearest even on their way into the panel. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/gemm_kernels.h"

LORA_TARGET_BEGIN(LORA_ARM_BF16)

#include "lora_c/kernels/tmpl/bf16_neon.h"

#define SUFFIX _bf16_neon
#define RUNG
#define VL 4
#define MR 12
#define WORD uint32_t
#define STEPS_PER_CALL 0

#include "lora_c/kernels/tmpl/gemm_names.h"

enum { NR = 2 * VL, CHUNK = 64 /* elements of 4 bits that share a scale */ };

/* Lines 2 i and 2 i + 1 of a panel of width lines: two steps, or the last one with zeros behind it. A line that is not there is zero. */
LORA_INLINE uint16x8_t line_pair(const uint32_t *p, const int width, const int i, const bool two_steps) {
    const int here = width - 2 * i, words = (here > 1 ? 2 : 1) * (two_steps ? 2 : 1);
    p += (two_steps ? 4 : 2) * i;
    if (words == 4) return vreinterpretq_u16_u32(vld1q_u32(p));
    const uint32x2_t none = vdup_n_u32(0);
    uint32x2_t v = words == 2 ? vld1_u32(p) : vld1_lane_u32(p, none, 0);
    if (two_steps || words == 1) return vreinterpretq_u16_u32(vcombine_u32(v, none));
    return vreinterpretq_u16_u32(vcombine_u32(vzip1_u32(v, none), vzip2_u32(v, none)));
}

/* Four k. */
LORA_INLINE void multiply(const int rows, const int vectors, const bool two_steps, const uint32_t *a, const uint32_t *b,
                          float32x4_t c[MR / 2][4]) {
    uint16x8_t v[4];
    UNROLL for (int j = 0; j < 2 * vectors; j++) v[j] = line_pair(b, vectors * VL, j, two_steps);
    UNROLL for (int i = 0; i < (rows + 1) / 2; i++) {
        uint16x8_t x = line_pair(a, rows, i, two_steps);
        UNROLL for (int j = 0; j < 2 * vectors; j++) c[i][j] = lora_multiply_2x2(c[i][j], x, v[j]);
    }
}

LORA_INLINE void write_row(float64x2_t first, float64x2_t second, float *to, bool accumulate) {
    float32x4_t row = vreinterpretq_f32_f64(vcombine_f64(vget_low_f64(first), vget_low_f64(second)));
    vst1q_f32(to, accumulate ? vaddq_f32(row, vld1q_f32(to)) : row);
}

LORA_INLINE void NAME(tile)(const int rows, const int vectors, int64_t steps, const uint32_t *a, const uint32_t *b, float *tile, int64_t ld,
                            bool accumulate) {
    float32x4_t c[MR / 2][4];
    UNROLL for (int i = 0; i < (rows + 1) / 2; i++) UNROLL for (int j = 0; j < 2 * vectors; j++) c[i][j] = vdupq_n_f32(0);
    for (; steps > 1; steps -= 2) {
        __builtin_prefetch(b + 16 * vectors * VL, 0, 3);
        multiply(rows, vectors, true, a, b, c);
        a += 2 * rows;
        b += 2 * vectors * VL;
    }
    if (steps) multiply(rows, vectors, false, a, b, c);
    UNROLL for (int i = 0; i < rows; i++, tile += ld) {
        UNROLL for (int j = 0; j < vectors; j++) {
            float64x2_t first = vreinterpretq_f64_f32(c[i / 2][2 * j]), second = vreinterpretq_f64_f32(c[i / 2][2 * j + 1]);
            if (i % 2) first = vdupq_laneq_f64(first, 1), second = vdupq_laneq_f64(second, 1);
            write_row(first, second, tile + j * VL, accumulate);
        }
    }
}

#include "lora_c/kernels/tmpl/gemm_instances_tmpl.h"

/* Values k .. k + 3 of line r, zeros beyond n, to a panel of width lines. k is a multiple of 4. */
LORA_INLINE void put_line(uint32_t *panel, int64_t width, int64_t k, int64_t n, int64_t r, uint16x4_t v) {
    uint32_t *out = panel + k / 2 * width;
    if (n - k > 2)
        vst1_u32(out + 2 * r, vreinterpret_u32_u16(v));
    else
        vst1_lane_u32(out + r, vreinterpret_u32_u16(v), 0);
}

/* The n <= 4 values from i on, zeros behind them; a function of the type of the source. */
typedef uint16x4_t (*load_values)(const void *source, int64_t i, int64_t n);

LORA_INLINE uint16x4_t load_f32(const void *source, int64_t i, int64_t n) {
    const float *p = (const float *)source + i;
    if (n >= 4) return lora_narrow_4(vld1q_f32(p));
    float part[4] = {0};
    for (int64_t j = 0; j < n; j++) part[j] = p[j];
    return lora_narrow_4(vld1q_f32(part));
}

LORA_INLINE uint16x4_t load_bf16(const void *source, int64_t i, int64_t n) {
    const uint16_t *p = (const uint16_t *)source + i;
    if (n >= 4) return vld1_u16(p);
    uint16_t part[4] = {0};
    for (int64_t j = 0; j < n; j++) part[j] = p[j];
    return vld1_u16(part);
}

LORA_INLINE void pack_rows_by(load_values load, const void *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    for (int64_t r = 0; r < width; r++)
        for (int64_t k = 0; k < n; k += 4) put_line(panel, width, k, n, r, r < n_rows ? load(source, r * ld + k, n - k) : vdup_n_u16(0));
}

static void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    pack_rows_by(load_f32, source, ld, n_rows, n, width, panel);
}
static void pack_bf16_rows(const uint16_t *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    pack_rows_by(load_bf16, source, ld, n_rows, n, width, panel);
}

/* Columns j .. j + 3 of four k, interleaved: the four k of a column become 8 bytes, or two of them 4 bytes. */
LORA_INLINE void put_columns(const uint16x4_t v[4], int64_t k, int64_t n, int64_t j, int64_t width, uint32_t *panel) {
    const int64_t line = n - k > 2 ? 2 : 1, here = lora_min_i64(4, width - j);
    uint16_t part[16], *out = (uint16_t *)(panel + k / 2 * width + line * j), *to = here < 4 ? part : out;
    if (line == 2)
        vst4_u16(to, ((uint16x4x4_t){{v[0], v[1], v[2], v[3]}}));
    else
        vst2_u16(to, ((uint16x4x2_t){{v[0], v[1]}}));
    if (here < 4) memcpy(out, part, (size_t)(2 * line * here) * sizeof *out);
}

LORA_INLINE void pack_columns_by(load_values load, const void *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    for (int64_t k = 0; k < n; k += 4)
        for (int64_t j = 0; j < width; j += 4) {
            uint16x4_t v[4];
            for (int64_t i = 0; i < 4; i++) v[i] = k + i < n ? load(source, (k + i) * ld + j, n_cols - j) : vdup_n_u16(0);
            put_columns(v, k, n, j, width, panel);
        }
}

static void pack_columns(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    pack_columns_by(load_f32, source, ld, n_cols, n, width, panel);
}
static void pack_bf16_columns(const uint16_t *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    pack_columns_by(load_bf16, source, ld, n_cols, n, width, panel);
}

/* The 64 elements of w from at on, scaled and rounded, in order. */
LORA_INLINE void decode_chunk(const lora_nf4 *w, int64_t at, uint16x8_t out[8]) {
    const lora_levels levels = lora_load_levels(w->lut, lora_nf4_absmax(w, at / w->block_size));
    for (int i = 0; i < 2; i++) {
        uint8x16_t codes = vld1q_u8(w->codes + at / 2 + 16 * i), even = vshrq_n_u8(codes, 4), odd = vandq_u8(codes, vdupq_n_u8(15));
        lora_look_up_16(levels, vzip1q_u8(even, odd), out + 4 * i);
        lora_look_up_16(levels, vzip2q_u8(even, odd), out + 4 * i + 2);
    }
}

static void pack_nf4_rows(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel) {
    for (int64_t r = 0; r < width; r++)
        for (int64_t k = 0; k < n; k += CHUNK) {
            uint16x8_t v[8] = {vdupq_n_u16(0)};
            uint32_t *out = (uint32_t *)panel + k / 2 * width + 2 * r;
            if (r < n_rows) decode_chunk(w, (row + r) * w->cols + first_col + k, v);
            for (int i = 0; i < 8; i++, out += 4 * width) {
                uint32x4_t words = vreinterpretq_u32_u16(r < n_rows ? v[i] : v[0]);
                vst1_u32(out, vget_low_u32(words));
                vst1_u32(out + 2 * width, vget_high_u32(words));
            }
        }
}

static void pack_nf4_columns(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                             int64_t panel_words) {
    for (int64_t k = 0; k < n; k += 4) {
        uint16x8_t v[4][8] = {{vdupq_n_u16(0)}};
        uint32_t *out = (uint32_t *)panels + k / 2 * NR;
        for (int64_t p = 0; p < n_panels; p++, out += panel_words) {
            int64_t col = first_col + p * NR, chunk = col / CHUNK * CHUNK, at = (col - chunk) / NR;
            for (int64_t i = 0; i < lora_min_i64(4, n - k); i++)
                if (p == 0 || at == 0) decode_chunk(w, (row + k + i) * w->cols + chunk, v[i]);
            if (n - k > 2)
                vst4q_u16((uint16_t *)out, ((uint16x8x4_t){{v[0][at], v[1][at], v[2][at], n - k > 3 ? v[3][at] : vdupq_n_u16(0)}}));
            else
                vst2q_u16((uint16_t *)out, ((uint16x8x2_t){{v[0][at], n - k > 1 ? v[1][at] : vdupq_n_u16(0)}}));
        }
    }
}

void lora_gemm_fill_bf16_neon(lora_gemm_path *p) {
    *p = (lora_gemm_path){.mr = MR,
                          .nr = NR,
                          .kc = LORA_GEMM_PAIRS_KC,
                          .k_per_step = 2,
                          .micro = micro_bf16_neon,
                          .pack_rows = pack_rows,
                          .pack_left_rows = pack_rows,
                          .pack_columns = pack_columns,
                          .pack_bf16_rows = pack_bf16_rows,
                          .pack_bf16_columns = pack_bf16_columns,
                          .pack_nf4_rows = pack_nf4_rows,
                          .pack_nf4_columns = pack_nf4_columns};
}

LORA_TARGET_END
#endif
