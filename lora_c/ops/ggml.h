/* Reading any part of a row of a matrix in a block format of GGUF files. */
#ifndef LORA_OPS_GGML_H
#define LORA_OPS_GGML_H

#include "lora_c/ggml.h"
#include "lora_c/kernels/kernels.h"

/** dst[i] = weight (r, k + i) for i < n; k + n <= cols, at any offset within a block. */
void lora_ggml_run(const lora_kernels *kernels, const lora_ggml *w, int64_t r, int64_t k, int64_t n, float *dst);

#endif
