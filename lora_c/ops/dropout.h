/* Dropout on the input of an adapter: a mask that is computed, never stored. */
#ifndef LORA_OPS_DROPOUT_H
#define LORA_OPS_DROPOUT_H

#include <stdbool.h>

#include "lora_c/context.h"
#include "lora_c/types.h"

/* Element (m, k) of K columns is kept or not as a function of (seed, stream, m * K + k). */
typedef struct lora_mask {
    float rate;
    uint64_t seed, stream;
} lora_mask;

static inline lora_mask lora_mask_of(const lora_adapter *a, const lora_adapter_pass *pass) {
    return (lora_mask){.rate = pass->dropout, .seed = a->dropout_seed, .stream = pass->dropout_stream};
}

/** out[M,K] (+)= in[M,K] * mask / (1 - rate); the backward pass calls this again. in and out may be the same rows when not
 *  accumulating. */
void lora_dropout(lora_ctx *ctx, lora_mask mask, lora_mat in, lora_mat out, bool accumulate);

#endif
