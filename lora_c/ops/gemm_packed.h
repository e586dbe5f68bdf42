/* The packed product in parts, for operations that use one left operand several times or sum several products.
 * One call covers at most LORA_GEMM_CHUNK rows; longer matrices go chunk by chunk. */
#ifndef LORA_OPS_GEMM_PACKED_H
#define LORA_OPS_GEMM_PACKED_H

#include <stdbool.h>

#include "lora_c/kernels/gemm_kernels.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/types.h"

enum {
    LORA_GEMM_CHUNK = 1036, /* rows: a multiple of 14; more would only grow the buffers */
    LORA_GEMM_TERMS = 8,
    LORA_GEMM_OUTPUTS = 8,
};

/* A left operand: m rows of k, in panels of at most mr rows of nearly equal height. Layout: [k block][panel]. */
typedef struct lora_gemm_left {
    const lora_gemm_path *path;
    int64_t m, k, n_panels;
    float *words;
} lora_gemm_left;

/* The panels of one k block: panel p, whose first row is r, begins at words + steps * r + scale_words * p. */
typedef struct lora_gemm_left_block {
    float *words;
    int64_t steps, scale_words;
} lora_gemm_left_block;

lora_gemm_left_block lora_gemm_left_block_at(const lora_gemm_left *left, int64_t k0);

LORA_INLINE float *lora_gemm_panel_of_block(const lora_gemm_left_block *b, int64_t panel, int64_t row) {
    return b->words + b->steps * row + b->scale_words * panel;
}

/* Where a panel starts, in rows and in words. */
int64_t lora_gemm_panel_row(const lora_gemm_left *left, int64_t panel);
float *lora_gemm_left_panel(const lora_gemm_left *left, int64_t k0, int64_t panel);

/* One product of the sum: left * op(b), as in lora_gemm_args. */
typedef struct lora_gemm_term {
    const lora_gemm_left *left;
    const lora_weight *b;
    bool b_transposed;
} lora_gemm_term;

/* c[m,n] (+)= alpha * (sum of the terms) + bias.  All lefts have the same m; their paths are of one context. */
typedef struct lora_gemm_output {
    int64_t n;
    float alpha;
    int n_terms;
    lora_gemm_term terms[LORA_GEMM_TERMS];
    float *c;
    int64_t ldc;
    bool accumulate;
    const float *bias; /* (n) or NULL */
} lora_gemm_output;

/** The path of a precision; of INT8 the one of FAST. */
const lora_gemm_path *lora_gemm_path_of(const lora_ctx *ctx, lora_precision precision);

/** That of products with the weights of linear layers, in the precision of the context. Not for pack_columns of a left operand. */
const lora_gemm_path *lora_gemm_base_path_of(const lora_ctx *ctx);

/** Words of memory for a left operand, a multiple of 16. */
int64_t lora_gemm_left_words(const lora_gemm_path *path, int64_t m, int64_t k);

/** Packs a (m <= LORA_GEMM_CHUNK, k) with any strides into words. */
void lora_gemm_pack_left(lora_ctx *ctx, const lora_gemm_path *path, int64_t m, int64_t k, const float *a, int64_t row_stride,
                         int64_t col_stride, float *words, lora_gemm_left *out);

/** The same rows for two paths, while they are in cache. k blocks of the second are parts of those of the first. */
void lora_gemm_pack_left_twice(lora_ctx *ctx, const lora_gemm_path *const paths[2], int64_t m, int64_t k, const float *a,
                               int64_t row_stride, float *const words[2], lora_gemm_left out[2]);

/** All outputs in one go; they do not depend on each other.   Errors  ENOMEM (scratch) */
lora_status lora_gemm_run(lora_ctx *ctx, const lora_gemm_output *outputs, int n_outputs, lora_error *err) LORA_MUST_CHECK;

#endif
