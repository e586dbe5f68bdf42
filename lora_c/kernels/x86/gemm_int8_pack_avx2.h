/* Slots of lora_gemm_path, for panels of any width; columns: nr is 16 or 32. */
#ifndef LORA_GEMM_INT8_PACK_AVX2_H
#define LORA_GEMM_INT8_PACK_AVX2_H

#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"

void lora_int8_pack_left_rows_avx2(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel);
void lora_int8_pack_nf4_rows_avx2(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel);
void lora_int8_pack_nf4_columns_avx2(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, int64_t nr,
                                     void *panels, int64_t panel_words);

#endif
