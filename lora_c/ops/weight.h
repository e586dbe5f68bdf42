/* How an operation reads a weight of any format: a run of a row as float32. */
#ifndef LORA_OPS_WEIGHT_H
#define LORA_OPS_WEIGHT_H

#include "lora_c/kernels/kernels.h"
#include "lora_c/types.h"

/** The n values of row r from column k on. Decoded into buffer (n floats), or a pointer into the weight itself where
 *  nothing needs decoding. */
const float *lora_weight_run(const lora_kernels *kernels, const lora_weight *w, int64_t r, int64_t k, int64_t n, float *buffer);

#endif
