/* Dropout on the input of an adapter: a mask that is computed, never stored. */
#ifndef LORA_OPS_DROPOUT_H
#define LORA_OPS_DROPOUT_H

#include <stdbool.h>

#include "lora_c/context.h"
#include "lora_c/types.h"

/** out[M,K] (+)= in[M,K] * mask / (1 - p). The mask is a function of (a->dropout_seed, a->dropout_stream, m * K + k), so the
 *  backward pass calls this again. in and out may be the same rows when not accumulating. */
void lora_dropout(lora_ctx *ctx, const lora_adapter *a, int64_t M, int64_t K, const float *in, int64_t ld_in, float *out,
                  int64_t ld_out, bool accumulate);

#endif
