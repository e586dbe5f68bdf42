#include "lora_c/ops/gemm_pass.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/gemm_right.h"

int64_t lora_gemm_blocks(const lora_gemm_left *left) { return lora_div_up(left->k, left->path->kc); }

lora_gemm_block lora_gemm_block_at(const lora_gemm_output *o, int64_t index) {
    lora_gemm_block c = {.term = o->terms};
    for (int64_t blocks; index >= (blocks = lora_gemm_blocks(c.term->left)); index -= blocks) c.term++;
    const lora_gemm_left *left = c.term->left;
    c.k0 = index * left->path->kc;
    c.n = lora_min_i64(left->path->kc, left->k - c.k0);
    c.left = lora_gemm_left_block_at(left, c.k0);
    c.squares = left->path->micro_squares && !c.term->b_transposed && lora_gemm_packs_from_4_bits(c.term->b);
    return c;
}

static int64_t panel_words(const lora_gemm_block *c) {
    const lora_gemm_path *path = c->term->left->path;
    return lora_round_up(lora_gemm_panel_words(path, path->nr, c->n), 16);
}

static int64_t all_blocks(const lora_gemm_output *o) {
    int64_t n = 0;
    for (int t = 0; t < o->n_terms; t++) n += lora_gemm_blocks(o->terms[t].left);
    return n;
}

int64_t lora_gemm_choose_blocks(const lora_gemm_output *o, int64_t index, int64_t most_words, lora_gemm_pass *q) {
    const int64_t n_blocks = all_blocks(o);
    q->n = 0;
    q->first = index == 0;
    for (int64_t words = 0; index < n_blocks && q->n < LORA_GEMM_PASS_BLOCKS; index++, q->n++) {
        q->blocks[q->n] = lora_gemm_block_at(o, index);
        q->words[q->n] = panel_words(&q->blocks[q->n]);
        words += q->words[q->n];
        if (q->n && words > most_words) break;
    }
    q->last = index == n_blocks;
    return index;
}

void lora_gemm_pack_block(const lora_kernels *kernels, const lora_gemm_output *o, const lora_gemm_block *c, int64_t strip, int64_t n_strips,
                          float *to, int64_t words, float *scratch) {
    const lora_gemm_path *path = c->term->left->path;
    int64_t first = strip * path->nr, end = lora_min_i64((strip + n_strips) * path->nr, o->n);
    lora_gemm_right right = {
        .b = c->term->b, .b_transposed = c->term->b_transposed, .first_col = first, .n_cols = end - first, .k0 = c->k0, .n = c->n};
    lora_gemm_pack_right(kernels, path, &right, to, words, scratch);
}

void lora_gemm_pack_pass(const lora_kernels *kernels, const lora_gemm_output *o, int64_t strip, int64_t n_strips, float *to, float *scratch,
                         lora_gemm_pass *q) {
    for (int i = 0; i < q->n; i++) {
        lora_gemm_pack_block(kernels, o, &q->blocks[i], strip, n_strips, to, q->words[i], scratch);
        q->b[i] = to;
        to += n_strips * q->words[i];
    }
}

/* Where a tile is not a part of C: alpha, bias and accumulation happen once, when the finished tile leaves the cache. */
static void write_tile(const lora_gemm_output *o, const float *tile, int64_t ld_tile, int64_t i0, int64_t rows, int64_t j0, int64_t cols) {
    for (int64_t i = 0; i < rows; i++, tile += ld_tile) {
        float *c = o->c + (i0 + i) * o->ldc + j0;
        const float *bias = o->bias ? o->bias + j0 : NULL;
        if (o->accumulate && bias)
            for (int64_t j = 0; j < cols; j++) c[j] += o->alpha * tile[j] + bias[j];
        else if (o->accumulate)
            for (int64_t j = 0; j < cols; j++) c[j] += o->alpha * tile[j];
        else if (bias)
            for (int64_t j = 0; j < cols; j++) c[j] = o->alpha * tile[j] + bias[j];
        else
            for (int64_t j = 0; j < cols; j++) c[j] = o->alpha * tile[j];
    }
}

lora_gemm_left_panels lora_gemm_panels_of(const lora_gemm_pass *q, int64_t panel) {
    const lora_gemm_left *left = q->blocks[0].term->left;
    lora_gemm_left_panels l = {.row = lora_gemm_panel_row(left, panel)};
    l.height = lora_gemm_panel_row(left, panel + 1) - l.row;
    for (int i = 0; i < q->n; i++) l.a[i] = lora_gemm_panel_of_block(&q->blocks[i].left, panel, l.row);
    return l;
}

void lora_gemm_fetch_tile(const lora_gemm_output *o, int64_t row, int64_t height, int64_t col, int64_t cols) {
    for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < cols; j += 16) __builtin_prefetch(o->c + (row + i) * o->ldc + col + j, 1, 3);
}

static void multiply_block(const lora_gemm_block *c, int64_t height, int64_t width, const float *a, const float *b, float *to, int64_t ld,
                           bool accumulate) {
    const lora_gemm_path *path = c->term->left->path;
    if (c->squares)
        path->micro_squares(height, c->left.steps, a, b, to, ld, accumulate);
    else
        path->micro(height, width, c->left.steps, a, b, to, ld, accumulate);
}

void lora_gemm_multiply(const lora_gemm_output *o, bool in_c, const lora_gemm_pass *q, const lora_gemm_left_panels *l, int64_t strip,
                        int64_t s, float *tile) {
    const lora_gemm_path *path = q->blocks[0].term->left->path;
    const int64_t col = strip * path->nr, width = lora_gemm_strip_width(path, o->n - col), cols = lora_min_i64(width, o->n - col);
    const bool direct = in_c && cols == width;
    float *to = direct ? o->c + l->row * o->ldc + col : tile;
    for (int i = 0; i < q->n; i++)
        multiply_block(&q->blocks[i], l->height, width, l->a[i], q->b[i] + s * q->words[i], to, direct ? o->ldc : width,
                       !q->first || i > 0 || (direct && o->accumulate));
    if (q->last && !direct) write_tile(o, tile, width, l->row, l->height, col, cols);
}
