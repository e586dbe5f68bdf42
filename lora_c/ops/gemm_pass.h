/* The sum of a packed product in passes over the tiles of C. */
#ifndef LORA_OPS_GEMM_PASS_H
#define LORA_OPS_GEMM_PASS_H

#include <stdbool.h>

#include "lora_c/kernels/kernels.h"
#include "lora_c/ops/gemm_packed.h"

enum { LORA_GEMM_PASS_BLOCKS = 8 };

/* One k block of one term. */
typedef struct lora_gemm_block {
    const lora_gemm_term *term;
    int64_t k0, n;
    lora_gemm_left_block left;
    bool squares; /* of B have one scale (gemm_kernels.h) */
} lora_gemm_block;

/* k blocks whose panels of B are packed together, so that a tile passes by once for all of them: a long one with the short ones that
 * follow, such as the low-rank term of an adapter. */
typedef struct lora_gemm_pass {
    int n;
    bool first, last; /* of the sum */
    lora_gemm_block blocks[LORA_GEMM_PASS_BLOCKS];
    const float *b[LORA_GEMM_PASS_BLOCKS]; /* of the first strip */
    int64_t words[LORA_GEMM_PASS_BLOCKS];  /* from one strip to the next */
} lora_gemm_pass;

/* The panels of A of a pass. */
typedef struct lora_gemm_left_panels {
    int64_t row, height;
    const float *a[LORA_GEMM_PASS_BLOCKS];
} lora_gemm_left_panels;

/** k blocks of an operand. */
int64_t lora_gemm_blocks(const lora_gemm_left *left);
lora_gemm_block lora_gemm_block_at(const lora_gemm_output *o, int64_t index);

/** The pass that begins with block index, of at most so many words a strip, or of one block. Returns the block behind it. */
int64_t lora_gemm_choose_blocks(const lora_gemm_output *o, int64_t index, int64_t most_words, lora_gemm_pass *q);

/** Packs n_strips of B of one block, words apart; of all the blocks of a pass, one behind the other. */
void lora_gemm_pack_block(const lora_kernels *kernels, const lora_gemm_output *o, const lora_gemm_block *c, int64_t strip, int64_t n_strips,
                          float *to, int64_t words, float *scratch);
void lora_gemm_pack_pass(const lora_kernels *kernels, const lora_gemm_output *o, int64_t strip, int64_t n_strips, float *to, float *scratch,
                         lora_gemm_pass *q);

lora_gemm_left_panels lora_gemm_panels_of(const lora_gemm_pass *q, int64_t panel);

/** A tile of C will soon be read or written. */
void lora_gemm_fetch_tile(const lora_gemm_output *o, int64_t row, int64_t height, int64_t col, int64_t cols);

/** A pass over one tile: the strip, s behind the first one of the pass. in_c: it is a part of C, unless it is wider; else it is in tile,
 *  mr x nr, kept from one pass to the next. */
void lora_gemm_multiply(const lora_gemm_output *o, bool in_c, const lora_gemm_pass *q, const lora_gemm_left_panels *l, int64_t strip,
                        int64_t s, float *tile);

#endif
