/* Precision int8: what every rung packs and multiplies is what portable C does, bit for bit; values that are hard to round. The error
 * of the products is that of check_gemm.c. */
#include "lora_c/base/os.h"
#include "lora_c/kernels/kernels.h"
#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"
#include "lora_c/linear.h"
#include "tests/c/gemm_weight.h"
#include "tests/c/hard_values.h"

enum { MOST_K = 200, LD = 70 };

/* Both rungs' panels, with a guard behind. They begin on a line, as packed strips do. */
typedef struct panels {
    float *want, *got;
    int64_t words;
} panels;

static panels panels_new(int64_t words) {
    size_t bytes = ((size_t)(words + 16) * sizeof(float) + 63) & ~(size_t)63;
    panels p = {.words = words, .want = lora_os_alloc(64, bytes, false), .got = lora_os_alloc(64, bytes, false)};
    memset(p.want, 0xa5, (size_t)(words + 16) * sizeof(float));
    memset(p.got, 0xa5, (size_t)(words + 16) * sizeof(float));
    return p;
}

static bool guard_kept(const float *data, int64_t words) {
    for (size_t i = 0; i < 64; i++)
        if (((const uint8_t *)(data + words))[i] != 0xa5) return false;
    return true;
}

static void panels_compare(panels *p, const char *what, lora_isa isa, int64_t n, int64_t width) {
    CHECK(memcmp(p->want, p->got, (size_t)p->words * sizeof(float)) == 0 && guard_kept(p->got, p->words),
          "%s, %s: %d values, %d wide: other bits than portable", lora_isa_name(isa), what, (int)n, (int)width);
    lora_os_free(p->want);
    lora_os_free(p->got);
}

static int64_t blocks_of(int64_t n) { return lora_div_up(n, 64); }

/* --- packing --- */

static void left_is_portable(const lora_gemm_path *a, const lora_gemm_path *b, lora_isa isa, int64_t width, int64_t n) {
    float *x = hard_values(16 * MOST_K);
    panels p = panels_new(blocks_of(n) * lora_int8_left_words(width));
    a->pack_left_rows(x, MOST_K, width, n, width, p.want);
    b->pack_left_rows(x, MOST_K, width, n, width, p.got);
    for (int64_t block = 0; block < blocks_of(n); block++) /* past the rows scales and corrections are free */
        for (int64_t i = width; i < LORA_INT8_TERMS; i++) {
            int64_t at = block * lora_int8_left_words(width) + LORA_INT8_STEPS * width + i;
            p.want[at] = p.got[at] = p.want[at + LORA_INT8_TERMS] = p.got[at + LORA_INT8_TERMS] = 0;
        }
    panels_compare(&p, "rows of A", isa, n, width);
    free(x);
}

static void right_is_portable(const lora_gemm_path *a, const lora_gemm_path *b, lora_isa isa, int64_t cols, int64_t width, int64_t n) {
    float *x = hard_values(LORA_GEMM_MAX_NR * MOST_K);
    panels rows = panels_new(blocks_of(n) * lora_int8_right_words(width)), columns = panels_new(rows.words);
    a->pack_rows(x, MOST_K, cols, n, width, rows.want);
    b->pack_rows(x, MOST_K, cols, n, width, rows.got);
    a->pack_columns(x, LORA_GEMM_MAX_NR, cols, n, width, columns.want);
    b->pack_columns(x, LORA_GEMM_MAX_NR, cols, n, width, columns.got);
    for (int64_t block = 0; block < blocks_of(n); block++) /* scales are padded to 16 */
        for (int64_t i = width; i < lora_round_up(width, 16); i++) {
            int64_t at = block * lora_int8_right_words(width) + LORA_INT8_STEPS * width + i;
            rows.want[at] = rows.got[at] = columns.want[at] = columns.got[at] = 0;
        }
    panels_compare(&rows, "rows of B", isa, n, width);
    panels_compare(&columns, "columns of B", isa, n, width);
    free(x);
}

static void four_bits_are_portable(lora_ctx *ctx, const lora_gemm_path *a, const lora_gemm_path *b, lora_isa isa, int variant) {
    enum { ROWS = 83, COLS = 192 };
    weight_case *c = make_weight(ctx, LORA_WEIGHT_NF4, ROWS, COLS, variant);
    const int64_t nr = a->nr;
    for (int64_t n_rows = nr; n_rows > 0; n_rows -= 5) {
        panels p = panels_new(COLS / 64 * lora_int8_right_words(nr));
        a->pack_nf4_rows(&c->nf4, 2, n_rows, 0, COLS, nr, p.want);
        b->pack_nf4_rows(&c->nf4, 2, n_rows, 0, COLS, nr, p.got);
        for (int64_t block = 0; block < COLS / 64; block++) /* columns of scale 0 hold anything */
            for (int64_t s = 0; s < LORA_INT8_STEPS; s++)
                for (int64_t j = n_rows; j < nr; j++) {
                    int64_t at = block * lora_int8_right_words(nr) + s * nr + j;
                    p.want[at] = p.got[at] = 0;
                }
        panels_compare(&p, "rows of 4 bits", isa, COLS, nr);
    }
    for (int64_t first = 0; first < 64; first += nr)
        for (int64_t n = 1; n <= ROWS; n += 27) {
            int64_t n_panels = (COLS - first) / nr, words = blocks_of(n) * lora_int8_right_words(nr);
            panels p = panels_new(n_panels * words);
            a->pack_nf4_columns(&c->nf4, ROWS - n, n, first, n_panels, p.want, words);
            b->pack_nf4_columns(&c->nf4, ROWS - n, n, first, n_panels, p.got, words);
            panels_compare(&p, "columns of 4 bits", isa, n, nr);
        }
    free_weight(c);
}

/* --- products --- */

static void micro_is_portable(const lora_gemm_path *a, const lora_gemm_path *b, lora_isa isa, int64_t mr, int64_t nr, int64_t n) {
    float *x = random_floats(16 * MOST_K, -3, 3), *y = random_floats(LORA_GEMM_MAX_NR * MOST_K, -1, 1);
    panels left = panels_new(blocks_of(n) * lora_int8_left_words(mr)), right = panels_new(blocks_of(n) * lora_int8_right_words(nr));
    a->pack_left_rows(x, MOST_K, mr, n, mr, left.want);
    a->pack_rows(y, MOST_K, nr, n, nr, right.want);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        guarded want = guarded_new(mr * LD, 1), got = guarded_new(mr * LD, 1);
        for (int64_t i = 0; i < mr * LD; i++) want.data[i] = got.data[i] = (float)(i % 13) - 6;
        a->micro(mr, nr, lora_gemm_steps(a, n), left.want, right.want, want.data, LD, accumulate);
        b->micro(mr, nr, lora_gemm_steps(b, n), left.want, right.want, got.data, LD, accumulate);
        long wrong = 0;
        for (int64_t i = 0; i < mr; i++)
            for (int64_t j = 0; j < LD; j++) { /* and nothing beside the tile */
                double w = (double)want.data[i * LD + j], g = (double)got.data[i * LD + j];
                wrong += isa == LORA_ISA_REF ? !(fabs(w - g) <= 1e-5 * (8.0 + fabs(w))) : w != g;
            }
        CHECK(wrong == 0 && guarded_ok(&got), "%s: tile of %d x %d, %d values, accumulate %d: %ld unlike portable", lora_isa_name(isa),
              (int)mr, (int)nr, (int)n, accumulate, wrong);
        guarded_free(&want);
        guarded_free(&got);
    }
    memcpy(left.got, left.want, (size_t)left.words * 4);
    memcpy(right.got, right.want, (size_t)right.words * 4);
    panels_compare(&left, "A after a product", isa, n, mr);
    panels_compare(&right, "B after a product", isa, n, nr);
    free(x);
    free(y);
}

/* Columns of 4 bits, whose blocks have one scale for all columns, by the loop for such: the bits of micro, at every height. */
static void squares_are_micro(lora_ctx *ctx, const lora_gemm_path *p, lora_isa isa) {
    enum { ROWS = 130, COLS = 64 };
    if (!p->micro_squares) return;
    weight_case *c = make_weight(ctx, LORA_WEIGHT_NF4, ROWS, COLS, 0);
    float *x = random_floats(16 * MOST_K, -3, 3);
    const int64_t steps = lora_gemm_steps(p, ROWS);
    panels right = panels_new(blocks_of(ROWS) * lora_int8_right_words(p->nr));
    p->pack_nf4_columns(&c->nf4, 0, ROWS, 0, 1, right.got, right.words);
    for (int64_t mr = 1; mr <= p->mr; mr++) {
        panels left = panels_new(blocks_of(ROWS) * lora_int8_left_words(mr));
        p->pack_left_rows(x, MOST_K, mr, ROWS, mr, left.got);
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            guarded want = guarded_new(mr * LD, 1), got = guarded_new(mr * LD, 1);
            for (int64_t i = 0; i < mr * LD; i++) want.data[i] = got.data[i] = (float)(i % 13) - 6;
            p->micro(mr, p->nr, steps, left.got, right.got, want.data, LD, accumulate);
            p->micro_squares(mr, steps, left.got, right.got, got.data, LD, accumulate);
            CHECK(memcmp(want.data, got.data, (size_t)(mr * LD) * sizeof(float)) == 0 && guarded_ok(&got),
                  "%s: squares, %d rows, accumulate %d: other bits than micro", lora_isa_name(isa), (int)mr, accumulate);
            guarded_free(&want);
            guarded_free(&got);
        }
        lora_os_free(left.want);
        lora_os_free(left.got);
    }
    lora_os_free(right.want);
    lora_os_free(right.got);
    free(x);
    free_weight(c);
}

static void compare_paths(lora_ctx *ctx, const lora_gemm_path *a, const lora_gemm_path *b, lora_isa isa) {
    static const int64_t lengths[] = {1, 2, 7, 63, 64, 65, 127, 128, 130, MOST_K};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        for (int64_t width = 1; width <= a->mr; width += 1 + (int64_t)i % 3) {
            left_is_portable(a, b, isa, width, lengths[i]);
            micro_is_portable(a, b, isa, width, a->nr, lengths[i]);
            micro_is_portable(a, b, isa, width, a->nr / 2, lengths[i]);
        }
        for (int64_t cols = 1; cols <= a->nr; cols += 1 + (int64_t)i) {
            right_is_portable(a, b, isa, cols, a->nr, lengths[i]);
            if (cols <= a->nr / 2) right_is_portable(a, b, isa, cols, a->nr / 2, lengths[i]);
        }
    }
    four_bits_are_portable(ctx, a, b, isa, 0);
    four_bits_are_portable(ctx, a, b, isa, DOUBLE_QUANT | ROUGH);
}

/* Portable C with the tiles of another rung. */
static lora_gemm_path portable_like(const lora_gemm_path *p) {
    lora_gemm_path portable = {.mr = p->mr, .nr = p->nr};
    lora_gemm_fill_int8_portable(&portable);
#if defined(__x86_64__)
    lora_gemm_path wide = portable; /* its columns of 4 bits have tiles of one width */
    lora_gemm_fill_int8_avx2(&wide);
    if (p->nr > 8) portable.pack_nf4_columns = wide.pack_nf4_columns;
#endif
    return portable;
}

/* A row of the layer's products in precision int8: its bits do not depend on the rung. */
static uint64_t layer_hash(lora_isa isa) {
    enum { M = 70, N = 130, K = 192 };
    lora_ctx *ctx = check_ctx(isa, 2);
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_INT8, ERR));
    begin_run();
    for (int kind = LORA_WEIGHT_F32; kind <= LORA_WEIGHT_NF4; kind++) {
        weight_case *c = make_weight(ctx, (lora_weight_kind)kind, N, K, 0);
        float *x = random_floats(M * K, -1, 1);
        guarded y = guarded_new(M * N, 0), dx = guarded_new(M * K, 0);
        lora_linear_layer layer = {.w = &c->w, .y = lora_mat_f32(y.data, M, N, N)};
        lora_linear_gradient gradient = {.w = &c->w, .dy = layer.y};
        OK(lora_linear_forward(ctx, lora_mat_f32(x, M, K, K), 1, &layer, ERR));
        OK(lora_linear_backward(ctx, lora_mat_f32(x, M, K, K), 1, &gradient, lora_mat_f32(dx.data, M, K, K), false, ERR));
        CHECK(guarded_ok(&y) && guarded_ok(&dx), "%s: a guard was overwritten", lora_isa_name(isa));
        mix(y.data, M * N * sizeof(float));
        mix(dx.data, M * K * sizeof(float));
        guarded_free(&y);
        guarded_free(&dx);
        free(x);
        free_weight(c);
    }
    lora_ctx_destroy(ctx);
    return hash_of_run();
}

void check_gemm_int8(void);
void check_gemm_int8(void) {
    const uint64_t want = layer_hash(LORA_ISA_PORTABLE);
    FOR_EACH_ISA(isa) {
        restart_random();
        lora_ctx *ctx = check_ctx(isa, 1);
        const lora_gemm_path *path = &ctx->engine->kernels.gemm.int8, portable = portable_like(path);
        compare_paths(ctx, &portable, path, isa);
        squares_are_micro(ctx, path, isa);
#if defined(__x86_64__)
        lora_gemm_path avx2 = *path;
        if (isa >= LORA_ISA_AVX2) lora_gemm_fill_int8_avx2(&avx2);
        if (isa > LORA_ISA_AVX2) compare_paths(ctx, &portable, &avx2, isa); /* what CPUs without VNNI have */
#endif
        if (isa >= LORA_ISA_PORTABLE) CHECK(layer_hash(isa) == want, "%s: other bits than portable", lora_isa_name(isa));
        lora_ctx_destroy(ctx);
    }
}
