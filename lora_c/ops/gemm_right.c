#include "lora_c/ops/gemm_right.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/weight.h"

enum { DECODED_ROWS = LORA_GEMM_SCALE_BLOCK }; /* at a time: a panel of so many k is a part of a longer one */

int64_t lora_gemm_right_scratch(const lora_gemm_path *path) {
    int64_t rows = path->kc * path->nr, columns = DECODED_ROWS * LORA_GEMM_MOST_STRIPS * path->nr;
    return lora_round_up(lora_max_i64(rows, columns), 16) + 16;
}

int64_t lora_gemm_strip_width(const lora_gemm_path *path, int64_t cols_left) { return cols_left <= path->nr / 2 ? path->nr / 2 : path->nr; }

static bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

bool lora_gemm_packs_from_4_bits(const lora_weight *w) {
    return w->kind == LORA_WEIGHT_NF4 && w->cols % 64 == 0 && w->nf4.block_size >= 64 && power_of_two(w->nf4.block_size) &&
           (w->nf4.absmax || power_of_two(w->nf4.nested_block_size));
}

/* W^T: rows of W become columns. They are read where they are, or decoded side by side first. */
static void pack_from_rows(const lora_kernels *kernels, const lora_gemm_path *path, const lora_gemm_right *r, int64_t j, float *panel,
                           float *scratch) {
    int64_t row = r->first_col + j, n_rows = lora_min_i64(path->nr, r->n_cols - j), width = lora_gemm_strip_width(path, n_rows);
    const lora_weight *w = r->b;
    if (path->pack_nf4_rows && lora_gemm_packs_from_4_bits(w)) {
        path->pack_nf4_rows(&w->nf4, row, n_rows, r->k0, r->n, width, panel);
    } else if (path->pack_bf16_rows && w->kind == LORA_WEIGHT_BF16) {
        path->pack_bf16_rows((const uint16_t *)w->dense.data + row * w->dense.ld + r->k0, w->dense.ld, n_rows, r->n, width, panel);
    } else if (w->kind == LORA_WEIGHT_F32) {
        path->pack_rows((const float *)w->dense.data + row * w->dense.ld + r->k0, w->dense.ld, n_rows, r->n, width, panel);
    } else {
        for (int64_t i = 0; i < n_rows; i++) lora_weight_run(kernels, w, row + i, r->k0, r->n, scratch + i * path->kc);
        path->pack_rows(scratch, path->kc, n_rows, r->n, width, panel);
    }
}

/* W: rows of W are the k index already. Long runs of a few rows at a time are decoded: formats have blocks along a row. */
static void pack_from_columns(const lora_kernels *kernels, const lora_gemm_path *path, const lora_gemm_right *r, float *panels,
                              int64_t panel_words, float *scratch) {
    const lora_weight *w = r->b;
    if (path->pack_nf4_columns && lora_gemm_packs_from_4_bits(w)) {
        path->pack_nf4_columns(&w->nf4, r->k0, r->n, r->first_col, r->n_cols / path->nr, panels, panel_words);
        return;
    }
    if (path->pack_bf16_columns && w->kind == LORA_WEIGHT_BF16) {
        const uint16_t *source = (const uint16_t *)w->dense.data + r->k0 * w->dense.ld + r->first_col;
        for (int64_t j = 0; j < r->n_cols; j += path->nr, panels += panel_words) {
            int64_t cols = lora_min_i64(path->nr, r->n_cols - j);
            path->pack_bf16_columns(source + j, w->dense.ld, cols, r->n, lora_gemm_strip_width(path, cols), panels);
        }
        return;
    }
    bool decode = w->kind != LORA_WEIGHT_F32;
    int64_t rows = decode ? DECODED_ROWS : r->n, ld = decode ? r->n_cols : w->dense.ld;
    for (int64_t k = 0; k < r->n; k += rows) {
        int64_t here = lora_min_i64(rows, r->n - k);
        const float *source = decode ? scratch : (const float *)w->dense.data + r->k0 * w->dense.ld + r->first_col;
        for (int64_t i = 0; decode && i < here; i++) lora_weight_run(kernels, w, r->k0 + k + i, r->first_col, r->n_cols, scratch + i * ld);
        for (int64_t j = 0; j < r->n_cols; j += path->nr) {
            int64_t cols = lora_min_i64(path->nr, r->n_cols - j), width = lora_gemm_strip_width(path, cols);
            float *panel = panels + j / path->nr * panel_words + lora_gemm_panel_words(path, width, k);
            path->pack_columns(source + j, ld, cols, here, width, panel);
        }
    }
}

void lora_gemm_pack_right(const lora_kernels *kernels, const lora_gemm_path *path, const lora_gemm_right *r, float *panels,
                          int64_t panel_words, float *scratch) {
    if (!r->b_transposed)
        pack_from_columns(kernels, path, r, panels, panel_words, scratch);
    else
        for (int64_t j = 0; j < r->n_cols; j += path->nr, panels += panel_words) pack_from_rows(kernels, path, r, j, panels, scratch);
}
