/* int8 products in plain C: what the other rungs give, bit for bit. */
#include <string.h>

#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"

enum { BLOCK = LORA_GEMM_SCALE_BLOCK, STEPS = LORA_INT8_STEPS, MAX_WIDTH = LORA_GEMM_MAX_NR, PORTABLE_NR = 8 };

/* --- products --- */

static void micro(int64_t mr, int64_t nr, int64_t steps, const void *a_panel, const void *b_panel, float *tile, int64_t ld,
                  bool accumulate) {
    const char *a_block = a_panel, *b_block = b_panel;
    for (int64_t i = 0; i < mr && !accumulate; i++) memset(tile + i * ld, 0, (size_t)nr * sizeof *tile);
    for (; steps > 0; steps -= STEPS, a_block += 4 * lora_int8_left_words(mr), b_block += 4 * lora_int8_right_words(nr)) {
        const float *a_scales = (const float *)(const void *)(a_block + 4 * STEPS * mr);
        const float *b_scales = (const float *)(const void *)(b_block + 4 * STEPS * nr);
        const int32_t *corrections = (const int32_t *)(const void *)(a_scales + LORA_INT8_TERMS);
        for (int64_t i = 0; i < mr; i++) {
            int32_t sums[MAX_WIDTH];
            for (int64_t j = 0; j < nr; j++) sums[j] = corrections[i];
            for (int64_t s = 0; s < STEPS; s++) {
                const int8_t *a = (const int8_t *)a_block + 4 * (s * mr + i);
                const uint8_t *b = (const uint8_t *)b_block + 4 * s * nr;
                for (int64_t j = 0; j < nr; j++)
                    for (int64_t t = 0; t < 4; t++) sums[j] += a[t] * b[4 * j + t];
            }
            for (int64_t j = 0; j < nr; j++) tile[i * ld + j] = fmaf((float)sums[j], a_scales[i] * b_scales[j], tile[i * ld + j]);
        }
    }
}

/* --- packing --- */

/* Value k of column j of a block. */
static void put(uint8_t *steps, int64_t width, int64_t j, int64_t k, int value) {
    steps[4 * (lora_int8_step(k) * width + j) + lora_int8_byte(k)] = (uint8_t)value;
}

/* Column j of a block from n values; what is missing is zero. Returns the sum of the integers. */
static int put_column(uint8_t *steps, int64_t width, int64_t j, const float *values, int64_t stride, int64_t n, int offset, float *scale) {
    lora_int8_scale q = lora_int8_scale_for(lora_int8_largest(values, stride, n));
    int sum = 0;
    for (int64_t k = 0; k < BLOCK; k++) {
        int value = k < n ? lora_to_int8(values[k * stride] * q.inverse) : 0;
        sum += value;
        put(steps, width, j, k, value + offset);
    }
    *scale = q.scale;
    return sum;
}

static void empty_columns(uint8_t *steps, float *scales, int64_t width, int64_t first) {
    for (int64_t j = first; j < width; j++) {
        for (int64_t k = 0; k < BLOCK; k++) put(steps, width, j, k, LORA_INT8_OFFSET);
        scales[j] = 0;
    }
}

static void pack_left_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    char *block = panel;
    for (int64_t k = 0; k < n; k += BLOCK, block += 4 * lora_int8_left_words(width)) {
        float *scales = (float *)(void *)(block + 4 * STEPS * width);
        int32_t *corrections = (int32_t *)(void *)(scales + LORA_INT8_TERMS);
        for (int64_t i = 0; i < n_rows; i++) {
            int sum = put_column((uint8_t *)block, width, i, source + i * ld + k, 1, lora_min_i64(BLOCK, n - k), 0, scales + i);
            corrections[i] = -LORA_INT8_OFFSET * sum;
        }
    }
}

static void pack_right(const float *source, int64_t column_stride, int64_t k_stride, int64_t n_cols, int64_t n, int64_t width,
                       void *panel) {
    char *block = panel;
    for (int64_t k = 0; k < n; k += BLOCK, block += 4 * lora_int8_right_words(width)) {
        float *scales = (float *)(void *)(block + 4 * STEPS * width);
        for (int64_t j = 0; j < n_cols; j++)
            put_column((uint8_t *)block, width, j, source + j * column_stride + k * k_stride, k_stride, lora_min_i64(BLOCK, n - k),
                       LORA_INT8_OFFSET, scales + j);
        empty_columns((uint8_t *)block, scales, width, n_cols);
    }
}

static void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    pack_right(source, ld, 1, n_rows, n, width, panel);
}

static void pack_columns(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    pack_right(source, 1, ld, n_cols, n, width, panel);
}

/* --- 4 bits --- */

static void pack_nf4_rows(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel) {
    const float top = lora_int8_largest_entry(w->lut), levels = lora_int8_table_levels(w->lut), unit = top / levels, inverse = levels / top;
    int table[16];
    for (int i = 0; i < 16; i++) table[i] = lora_to_int8(w->lut[i] * inverse) + LORA_INT8_OFFSET;
    char *block = panel;
    for (int64_t k = 0; k < n; k += BLOCK, block += 4 * lora_int8_right_words(width)) {
        float *scales = (float *)(void *)(block + 4 * STEPS * width);
        for (int64_t j = 0; j < n_rows; j++) {
            int64_t at = (row + j) * w->cols + first_col + k;
            for (int64_t i = 0; i < BLOCK; i++) put((uint8_t *)block, width, j, i, table[lora_nf4_code(w->codes, at + i)]);
            scales[j] = lora_nf4_absmax(w, at / w->block_size) * unit;
        }
        empty_columns((uint8_t *)block, scales, width, n_rows);
    }
}

lora_int8_scale lora_int8_square_scale(const lora_nf4 *w, float lut_top, int64_t row, int64_t n, int64_t col) {
    float top = 0, check = 0;
    for (int64_t i = 0; i < n; i++) {
        float scale = lora_nf4_absmax(w, ((row + i) * w->cols + col) / w->block_size);
        top = fmaxf(top, fabsf(scale));
        check += scale * 0.0f; /* fmaxf leaves NaN out */
    }
    return lora_int8_scale_for(lut_top * (top + check));
}

/* The columns from col to end - 1, which lie in one run of 64, and a block of n rows, as columns j … of a panel. */
static void put_square(const lora_nf4 *w, float lut_top, int64_t row, int64_t n, int64_t col, int64_t end, char *block, int64_t width,
                       int64_t j) {
    const lora_int8_scale q = lora_int8_square_scale(w, lut_top, row, n, col);
    for (int64_t k = 0; k < BLOCK; k++) {
        int64_t at = (row + lora_min_i64(k, n - 1)) * w->cols;
        float scale = k < n ? lora_nf4_absmax(w, (at + col) / w->block_size) : 0.0f;
        int table[16];
        for (int i = 0; i < 16; i++) table[i] = lora_to_int8(w->lut[i] * (scale * q.inverse)) + LORA_INT8_OFFSET;
        for (int64_t c = col; c < end; c++) put((uint8_t *)block, width, j + c - col, k, table[lora_nf4_code(w->codes, at + c)]);
    }
    for (int64_t c = col; c < end; c++) ((float *)(void *)(block + 4 * STEPS * width))[j + c - col] = q.scale;
}

static void pack_nf4_columns(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                             int64_t panel_words) {
    enum { NR = PORTABLE_NR };
    const float top = lora_int8_largest_entry(w->lut);
    for (int64_t p = 0; p < n_panels; p++) {
        char *block = (char *)panels + 4 * p * panel_words;
        const int64_t first = first_col + p * NR;
        for (int64_t k = 0; k < n; k += BLOCK, block += 4 * lora_int8_right_words(NR))
            for (int64_t col = first, end; col < first + NR; col = end) {
                end = lora_min_i64(col / BLOCK * BLOCK + BLOCK, first + NR);
                put_square(w, top, row + k, lora_min_i64(BLOCK, n - k), col, end, block, NR, col - first);
            }
    }
}

void lora_gemm_fill_int8_portable(lora_gemm_path *p) {
    p->kc = LORA_GEMM_MAX_KC; /* no bit depends on it; 1024, 704 and 512 are 0.99, 0.97 and 0.96 of the speed (2048 x 2048, Zen 4) */
    p->k_per_step = 4;
    p->block_steps = STEPS;
    p->whole_blocks = true;
    p->micro = micro;
    p->pack_left_rows = pack_left_rows;
    p->pack_rows = pack_rows;
    p->pack_columns = pack_columns;
    p->pack_nf4_rows = pack_nf4_rows;
    p->pack_nf4_columns = pack_nf4_columns;
}
