/* Views of quantized matrices: what a lora_weight of such a kind holds. What is done with them is in nf4.h and ggml.h; docs/FORMATS.md
 * has every byte. */
#ifndef LORA_C_WEIGHT_FORMATS_H
#define LORA_C_WEIGHT_FORMATS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LORA_NF4_BLOCK = 64, LORA_NF4_NESTED_BLOCK = 256 };

/* A borrowed, immutable view of a 4-bit matrix. Element i of the row-major flattened matrix is
 *     lut[code(i)] * absmax(i / block_size)
 * code(i): high nibble of codes[i/2] for even i, low nibble for odd i. Blocks ignore row ends.
 * absmax(b): absmax[b] if absmax != NULL, else nested_map[absmax_codes[b]] * nested_absmax[b / nested_block_size] + nested_offset
 * (float32, product rounded before the sum). */
typedef struct lora_nf4 {
    int64_t rows, cols;
    int64_t block_size;          /* 32, 64, … 4096 */
    const float *lut;            /* 16 values in any order: lora_4bit_lut(type) unless read from a file */
    const uint8_t *codes;        /* (rows*cols + 1) / 2 bytes; readable for 64 bytes past the end */
    const float *absmax;         /* n_blocks, or NULL when double-quantized */
    const uint8_t *absmax_codes; /* n_blocks, double-quantized only */
    const float *nested_absmax;  /* ceil(n_blocks / nested_block_size) */
    const float *nested_map;     /* 256 values */
    int64_t nested_block_size;   /* 256 */
    float nested_offset;
} lora_nf4;

/* Element types by their numbers in a file. Types that are not listed here are not read. */
typedef enum lora_ggml_type {
    LORA_GGML_F16 = 1,
    LORA_GGML_Q4_0 = 2,
    LORA_GGML_Q4_1 = 3,
    LORA_GGML_Q5_0 = 6,
    LORA_GGML_Q5_1 = 7,
    LORA_GGML_Q8_0 = 8,
    LORA_GGML_Q4_K = 12,
    LORA_GGML_Q5_K = 13,
    LORA_GGML_Q6_K = 14,
    LORA_GGML_BF16 = 30,
    LORA_GGML_TYPE_END
} lora_ggml_type;

enum { LORA_GGML_MAX_BLOCK = 256 };

/* A borrowed, immutable matrix: rows of cols / block_values whole blocks, one row behind the other, in any alignment. */
typedef struct lora_ggml {
    lora_ggml_type type;
    int64_t rows, cols; /* cols is a multiple of the block's values */
    const uint8_t *blocks;
} lora_ggml;

#ifdef __cplusplus
}
#endif
#endif
