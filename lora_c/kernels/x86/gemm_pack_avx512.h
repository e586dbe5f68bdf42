/* Packing of float32 panels, see lora_gemm_path. */
#ifndef LORA_GEMM_PACK_AVX512_H
#define LORA_GEMM_PACK_AVX512_H

#include "lora_c/kernels/gemm_kernels.h"

void lora_pack_rows_avx512(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel);
void lora_pack_columns_avx512(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel);
void lora_pack_nf4_rows_avx512(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel);
void lora_pack_nf4_columns_avx512(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                                  int64_t panel_words);

#endif
