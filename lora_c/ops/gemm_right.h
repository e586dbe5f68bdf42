/* Packing of the right operand: a weight of any format becomes panels of the path. */
#ifndef LORA_OPS_GEMM_RIGHT_H
#define LORA_OPS_GEMM_RIGHT_H

#include "lora_c/kernels/kernels.h"
#include "lora_c/types.h"

enum { LORA_GEMM_MOST_STRIPS = 8 }; /* per call: 256 columns, a long block of a weight format */

/* Columns first_col .. first_col + n_cols - 1 of op(b), k from k0 to k0 + n - 1; n_cols at most
 * LORA_GEMM_MOST_STRIPS * nr. */
typedef struct lora_gemm_right {
    const lora_weight *b;
    bool b_transposed;
    int64_t first_col, n_cols, k0, n;
} lora_gemm_right;

/** Floats of scratch that packing needs. */
int64_t lora_gemm_right_scratch(const lora_gemm_path *path);

/** Width of the panel that starts at a column: nr, or half of it where that is enough. */
int64_t lora_gemm_strip_width(const lora_gemm_path *path, int64_t cols_left);

/** Whether 64 elements of a row, from a multiple of 64 on, are 4-bit codes with one scale. */
bool lora_gemm_packs_from_4_bits(const lora_weight *w);

/** Panels of nr columns, panel_words apart; the last one of lora_gemm_strip_width. n <= kc. */
void lora_gemm_pack_right(const lora_kernels *kernels, const lora_gemm_path *path, const lora_gemm_right *right, float *panels,
                          int64_t panel_words, float *scratch);

#endif
