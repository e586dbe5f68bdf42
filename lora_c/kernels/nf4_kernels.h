/* Kernels of NF4 and the other 4-bit types: block quantization, decoding of flat ranges.
 * No slot needs more alignment than the element type; each reads and writes its named elements only (codes may be read
 * up to 64 bytes past their end, as lora_nf4 promises). All slots are exact: every rung gives the same bits. */
#ifndef LORA_NF4_KERNELS_H
#define LORA_NF4_KERNELS_H

#include <stdint.h>

#include "lora_c/format/codebook.h"
#include "lora_c/isa.h"
#include "lora_c/nf4.h"
#include "lora_c/types.h"

typedef struct lora_nf4_kernels {
    /** n_blocks full blocks: absmax[b] = max |x|, code = that of interval i of the book, i = number of its thresholds strictly
     *  below x * (1 / max(absmax, 1e-38)), where x is src in float32. codes gets n_blocks * block_size / 2 bytes. block_size is a multiple
     * of 32. Returns the first block that holds a NaN or an infinity (it and the blocks after it are then unspecified), or n_blocks. Alias:
     * none allowed. */
    int64_t (*quantize)(const lora_codebook *book, const void *src, lora_dtype dtype, int64_t n_blocks, int64_t block_size, uint8_t *codes,
                        float *absmax);

    /** dst[i] = lut[code(begin + i)] * absmax(block of begin + i) for i in 0 .. count-1; any begin, any count >= 0. */
    void (*dequantize)(const lora_nf4 *w, int64_t begin, int64_t count, float *dst);

    /** dst[i] = absmax(first_block + i), the double quantization undone; plain copy where there is none. */
    void (*decode_absmax)(const lora_nf4 *w, int64_t first_block, int64_t n, float *dst);
} lora_nf4_kernels;

/** Fills every slot for the rung. */
void lora_nf4_kernels_init(lora_nf4_kernels *k, lora_isa isa);

/* Each rung fills what it has; implemented in ref/, portable/, x86/ and arm/. */
void lora_nf4_fill_ref(lora_nf4_kernels *k);
void lora_nf4_fill_portable(lora_nf4_kernels *k);
void lora_nf4_fill_avx2(lora_nf4_kernels *k);
void lora_nf4_fill_avx512(lora_nf4_kernels *k);
void lora_nf4_fill_neon(lora_nf4_kernels *k);

#endif
