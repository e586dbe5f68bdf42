/* Kernels of the block formats of GGUF files. Blocks may lie at any address; each slot reads the named blocks only, because
 * the last block of a file ends where its mapping may end. All slots are exact: every rung gives the same bits. */
#ifndef LORA_GGML_KERNELS_H
#define LORA_GGML_KERNELS_H

#include <stdint.h>

#include "lora_c/isa.h"
#include "lora_c/ggml.h"

typedef void (*lora_ggml_decode_fn)(const uint8_t *blocks, int64_t n_blocks, float *dst);

typedef struct lora_ggml_kernels {
    /** By type: dst gets the weights of n_blocks blocks. NULL for types that are not read, and for F16 and BF16, which
     *  lora_convert_kernels widens. Scales are finite or not; a NaN is then some NaN. */
    lora_ggml_decode_fn decode[LORA_GGML_TYPE_END];

    /** Blocks of 32 floats, to Q8_0. Returns the first block with a NaN, an infinity or a scale that float16 cannot hold (it
     *  and the blocks after it are then unspecified), or n_blocks. */
    int64_t (*quantize_q8_0)(const float *x, int64_t n_blocks, uint8_t *blocks);
} lora_ggml_kernels;

/** Fills every slot for the rung. */
void lora_ggml_kernels_init(lora_ggml_kernels *k, lora_isa isa);

/* Each rung fills what it has; implemented in ref/, portable/, x86/ and arm/. */
void lora_ggml_fill_ref(lora_ggml_kernels *k);
void lora_ggml_fill_portable(lora_ggml_kernels *k);
void lora_ggml_fill_avx2(lora_ggml_kernels *k);
void lora_ggml_fill_avx512(lora_ggml_kernels *k);
void lora_ggml_fill_neon(lora_ggml_kernels *k);

#endif
