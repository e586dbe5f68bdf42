/* Reading one element of a lora_nf4: nibble order and block scales (docs/FORMATS.md). */
#ifndef LORA_FORMAT_NF4_LAYOUT_H
#define LORA_FORMAT_NF4_LAYOUT_H

#include "lora_c/base/util.h"
#include "lora_c/nf4.h"

/* A ragged last block never stores a smaller absmax, and no block divides by one. */
#define LORA_NF4_MIN_ABSMAX 1e-38f

enum { LORA_NF4_MAX_BLOCK = 4096 };

#ifdef __cplusplus
extern "C" {
#endif

/** Block sizes are powers of two from 32 to LORA_NF4_MAX_BLOCK: a block never splits a byte.   Errors  EINVAL */
lora_status lora_nf4_check_block_size(int64_t block_size, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif

/** Even elements sit in the high nibble. */
LORA_INLINE unsigned lora_nf4_code(const uint8_t *codes, int64_t i) {
    unsigned byte = codes[i >> 1];
    return i & 1 ? byte & 15 : byte >> 4;
}

/** Scale of a block. The product is rounded before the sum, as the peer's float32 kernels do. */
LORA_INLINE float lora_nf4_absmax(const lora_nf4 *w, int64_t block) {
    if (w->absmax) return w->absmax[block];
    float product = w->nested_map[w->absmax_codes[block]] * w->nested_absmax[block / w->nested_block_size];
    return product + w->nested_offset;
}

#endif
