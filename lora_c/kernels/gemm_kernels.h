/* Leaves of the packed matrix product. A path is one arithmetic for the products; sums are float32 in every path.
 *
 * Both operands are packed into panels of 4-byte words: w rows of A or w columns of B, and n values of k, laid out as
 * [step][w].
 *     float32          a step is one k
 *     bfloat16, int16  a step is two k, the even one in the low half; a missing last k is zero
 *                      (bfloat16 of aarch64: two steps lie together, gemm_bf16_neon.c)
 *     int8             a step is four k (which: gemm_int8_tmpl.h); blocks are whole, missing values are zero
 * int16 and int8: 64 values of k of a row or column share one scale. The scales of a block follow its steps, as
 * [w rounded up to 16] floats; the last block of an int16 panel may be shorter.
 * int8: values lie within +-127; those of B are stored as value + 128, and the scales of A are followed by as many
 * int32: -128 times the sum of the block, which takes that out of its products again. */
#ifndef LORA_GEMM_KERNELS_H
#define LORA_GEMM_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "lora_c/base/util.h"
#include "lora_c/isa.h"
#include "lora_c/nf4.h"

enum {
    LORA_GEMM_MAX_MR = 16,
    LORA_GEMM_MAX_NR = 32,
    LORA_GEMM_MAX_KC = 2048,
    LORA_GEMM_PAIRS_KC = 1024,  /* of bfloat16 and int16 */
    LORA_GEMM_SCALE_BLOCK = 64, /* k */
};

typedef struct lora_gemm_path {
    int64_t mr, nr;      /* largest register tile. Panels of A are 1 to mr wide, panels of B nr or nr / 2 */
    int64_t kc;          /* k per block, a multiple of 64: the order of a sum depends on it, so it is fixed */
    int64_t k_per_step;  /* 1, 2 or 4 */
    int64_t block_steps; /* steps that share scales, 0: no scales */
    bool whole_blocks;   /* of steps, with corrections of A behind the scales: int8 */

    /** tile[mr][nr] (+)= sum over the steps of a[step][mr] * b[step][nr].  b 64-byte aligned; ld is the row stride of tile.
     *  Numerics  one float32 accumulator per element, k in order. float32: FMA where the rung has it (ref: float64).
     *            bfloat16: products of a pair summed first, subnormals are zero. int16: exact integer sum of a block, then
     *            float(sum) * (scale of a * scale of b), added to the tile. int8: the same, added by an FMA to a sum that begins with
     *            the tile, so that the bits are the same on every rung (ref: float64) and for every kc */
    void (*micro)(int64_t mr, int64_t nr, int64_t steps, const void *a, const void *b, float *tile, int64_t ld, bool accumulate);

    /* As micro, of panels that pack_nf4_columns of int8 has filled, nr wide: one scale for all columns of a block. NULL: micro does it. */
    void (*micro_squares)(int64_t mr, int64_t steps, const void *a, const void *b, float *tile, int64_t ld, bool accumulate);

    /** Panel column r is source[r * ld + k], r < n_rows <= width, k < n <= kc; columns from n_rows on are zero. */
    void (*pack_rows)(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel);

    /** As pack_rows, for A. No padding: n_rows is width. */
    void (*pack_left_rows)(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel);

    /** Panel column j is source[k * ld + j], j < n_cols <= width, k < n <= kc; columns from n_cols on are zero. */
    void (*pack_columns)(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel);

    /* As the two above, from bfloat16. NULL where a path has float32 operands, or widens first. */
    void (*pack_bf16_rows)(const uint16_t *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel);
    void (*pack_bf16_columns)(const uint16_t *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel);

    /* As the first two, from 4 bits. cols, the first column and n are multiples of 64, block_size and nested_block_size
     * powers of two, block_size >= 64. NULL where a rung decodes first.
     * int8: rows are rounded with a scale for 64 values, that of their own block over 127; columns with one for squares of 64 x 64,
     * the largest of them. */

    /** Panel column r is row + r of w, k from first_col on. */
    void (*pack_nf4_rows)(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel);

    /** n_panels panels of nr columns, from column first_col of w on (a multiple of nr); k is the row, from row on. */
    void (*pack_nf4_columns)(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                             int64_t panel_words);
} lora_gemm_path;

typedef enum lora_gemm_arithmetic { LORA_GEMM_EXACT, LORA_GEMM_BF16, LORA_GEMM_INT16, LORA_GEMM_PATHS } lora_gemm_arithmetic;

typedef struct lora_gemm_kernels {
    lora_gemm_path paths[LORA_GEMM_PATHS]; /* micro is NULL where the CPU has no instruction for a path */
    lora_gemm_arithmetic fast;             /* the path of LORA_PRECISION_FAST */
    lora_gemm_path int8;                   /* of LORA_PRECISION_INT8, for the weights of linear layers */
} lora_gemm_kernels;

LORA_INLINE int64_t lora_gemm_steps(const lora_gemm_path *p, int64_t n) {
    int64_t steps = lora_div_up(n, p->k_per_step);
    return p->whole_blocks ? lora_round_up(steps, p->block_steps) : steps;
}
/** Words of a panel of n values of k: of its scales, with what corrects A, and of all of it, B. */
LORA_INLINE int64_t lora_gemm_scale_words(const lora_gemm_path *p, int64_t width, int64_t n) {
    return p->block_steps ? lora_div_up(lora_gemm_steps(p, n), p->block_steps) * lora_round_up(width, 16) : 0;
}
LORA_INLINE int64_t lora_gemm_left_scale_words(const lora_gemm_path *p, int64_t width, int64_t n) {
    return (p->whole_blocks ? 2 : 1) * lora_gemm_scale_words(p, width, n);
}
LORA_INLINE int64_t lora_gemm_panel_words(const lora_gemm_path *p, int64_t width, int64_t n) {
    return lora_gemm_steps(p, n) * width + lora_gemm_scale_words(p, width, n);
}

/** Fills the paths of the rung, all with tiles of the same size. Every rung has float32 and int8. The fast path is
 *      bfloat16   where the CPU has AVX512_BF16 at twice the float32 rate: AMD (Zen 4 and later); on aarch64 where it has
 *                 FEAT_BF16, whose bfmmla does four times the products of an fmla (its rate was not measured);
 *      int16      elsewhere, where it has AVX512_VNNI: on Intel's CPUs vdpbf16ps runs at half the float32 rate;
 *      float32    otherwise. */
void lora_gemm_kernels_init(lora_gemm_kernels *k, lora_isa isa);

/* Each rung fills what it has. */
void lora_gemm_fill_ref(lora_gemm_path *p);
void lora_gemm_fill_portable(lora_gemm_path *p);
void lora_gemm_fill_avx2(lora_gemm_path *p);
void lora_gemm_fill_avx512(lora_gemm_path *p);
void lora_gemm_fill_neon(lora_gemm_path *p);
void lora_gemm_fill_bf16(lora_gemm_path *p);
void lora_gemm_fill_int16(lora_gemm_path *p);
void lora_gemm_fill_bf16_neon(lora_gemm_path *p);
/* int8, over what the rung below has filled; width and height of the tiles are there. */
void lora_gemm_fill_int8_portable(lora_gemm_path *p);
void lora_gemm_fill_int8_ref(lora_gemm_path *p);
void lora_gemm_fill_int8_avx2(lora_gemm_path *p);
void lora_gemm_fill_int8_avx_vnni(lora_gemm_path *p);
void lora_gemm_fill_int8_vnni(lora_gemm_path *p);
void lora_gemm_fill_int8_dotprod(lora_gemm_path *p);
void lora_gemm_fill_int8_i8mm(lora_gemm_path *p);

#endif
