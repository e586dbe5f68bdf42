/* Precision int8 with few tokens: the bits of the product of many tokens, on every rung, for every number of them; the leaves beside
 * portable C and the float64 rung. */
#include "lora_c/base/os.h"
#include "lora_c/kernels/kernels.h"
#include "lora_c/linear.h"
#include "lora_c/ops/linear_packed.h"
#include "tests/c/gemm_weight.h"

enum { MOST_M = 64, LDY_EXTRA = 3 };

static float *tokens_of(int64_t m, int64_t k, bool rough) {
    float *x = random_floats(m * k, -2, 2);
    if (rough) roughen(x, m * k);
    return x;
}

/* --- the leaves --- */

/* Sums of rows row .. with m tokens by a path, behind a guard. */
static guarded sums_of(const lora_gemv_path *p, const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const float *x) {
    const int64_t stride = lora_round_up(lora_div_up(w->cols, p->group) * p->group_bytes, 64);
    char *arranged = lora_os_alloc(64, (size_t)(m * stride), false);
    float *scratch = lora_os_alloc(64, LORA_GEMV_INT8_SCRATCH * sizeof *scratch, false);
    guarded sums = guarded_new(rows * m, 1);
    for (int64_t i = 0; i < m; i++) p->arrange(w->cols, x + i * w->cols, arranged + i * stride);
    p->nf4(w, row, rows, m, arranged, stride, scratch, sums.data);
    lora_os_free(arranged), lora_os_free(scratch);
    return sums;
}

static void leaf_is_portable(lora_ctx *ctx, const lora_gemv_path *path, lora_isa isa, int64_t cols, int64_t rows, int variant) {
    lora_gemv_path portable;
    lora_gemv_fill_int8_portable(&portable);
    weight_case *c = make_weight(ctx, LORA_WEIGHT_NF4, rows + 2, cols, variant);
    /* exact sizes: what reads past the end is seen by the sanitizer */
    uint8_t *codes = malloc((size_t)((rows + 2) * cols / 2));
    memcpy(codes, c->codes, (size_t)((rows + 2) * cols / 2));
    c->nf4.codes = codes;
    if (rows % 2) c->nf4.lut = lora_fp4_lut();
    if (!variant && isa > LORA_ISA_REF) c->absmax[3 * cols / 64 - 1] = INFINITY; /* the last block of a row, of an odd number for one */
    float *x = tokens_of(path->tokens, cols, variant & ROUGH);
    for (int64_t m = 1; m <= path->tokens; m++) {
        guarded want = sums_of(&portable, &c->nf4, 2, rows, m, x), got = sums_of(path, &c->nf4, 2, rows, m, x);
        long wrong = 0;
        for (int64_t i = 0; i < rows * m; i++) {
            double w = (double)want.data[i], g = (double)got.data[i];
            wrong += isa == LORA_ISA_REF ? !(fabs(w - g) <= 1e-5 * (fabs(w) + (double)cols)) : !(w == g || (isnan(w) && isnan(g)));
        }
        CHECK(wrong == 0 && guarded_ok(&got), "%s: %d rows of %d, %d tokens, variant %d: %ld unlike portable", lora_isa_name(isa),
              (int)rows, (int)cols, (int)m, variant, wrong);
        guarded_free(&want);
        guarded_free(&got);
    }
    free(x);
    free(codes);
    free_weight(c);
}

static void compare_leaves(lora_ctx *ctx, const lora_gemv_path *path, lora_isa isa) {
    static const int64_t columns[] = {64, 128, 192, 320, 1088};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        for (int64_t rows = 1; rows <= LORA_GEMV_ROWS; rows += 1 + 2 * (int64_t)i)
            for (int variant = 0; variant < VARIANTS; variant += DOUBLE_QUANT) leaf_is_portable(ctx, path, isa, columns[i], rows, variant);
}

/* --- the operation --- */

/* Few tokens in one call with and without threads, and each alone: what the product of many tokens gives. */
static void layer_is_packed(lora_isa isa, int64_t N, int64_t K, int variant) {
    lora_ctx *ctx = check_ctx(isa, 3), *one_thread = check_ctx(isa, 1);
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_INT8, ERR));
    OK(lora_ctx_set_precision(one_thread, LORA_PRECISION_INT8, ERR));
    weight_case *c = make_weight(ctx, LORA_WEIGHT_NF4, N, K, variant);
    float *x = tokens_of(MOST_M, K, variant & ROUGH), *bias = random_floats(N, -1, 1);
    float *want = random_floats(MOST_M * (N + LDY_EXTRA), -1, 1), *alone = malloc((size_t)N * sizeof *alone);
    lora_linear_layer layer = {.w = &c->w, .bias = bias, .y = lora_mat_f32(want, MOST_M, N, N + LDY_EXTRA)};
    OK(lora_linear_packed_forward(ctx, lora_mat_f32(x, MOST_M, K, K), 1, &layer, ERR));
    for (int64_t m = 1; m <= MOST_M; m++) {
        guarded y = guarded_new((m - 1) * (N + LDY_EXTRA) + N, 1);
        layer.y = lora_mat_f32(y.data, m, N, N + LDY_EXTRA);
        OK(lora_linear_forward(m % 2 ? ctx : one_thread, lora_mat_f32(x, m, K, K), 1, &layer, ERR));
        long wrong = 0;
        for (int64_t i = 0; i < m; i++) wrong += memcmp(y.data + i * (N + LDY_EXTRA), want + i * (N + LDY_EXTRA), (size_t)N * 4) != 0;
        CHECK(wrong == 0 && guarded_ok(&y), "%s: %d x %d, %d tokens, variant %d: %ld differ from the packed product", lora_isa_name(isa),
              (int)N, (int)K, (int)m, variant, wrong);
        layer.y = lora_mat_f32(alone, 1, N, N);
        OK(lora_linear_forward(ctx, lora_mat_f32(x + (m - 1) * K, 1, K, K), 1, &layer, ERR));
        CHECK(memcmp(alone, want + (m - 1) * (N + LDY_EXTRA), (size_t)N * 4) == 0, "%s: %d x %d: token %d differs alone",
              lora_isa_name(isa), (int)N, (int)K, (int)m - 1);
        guarded_free(&y);
    }
    free(x), free(bias), free(want), free(alone);
    free_weight(c);
    lora_ctx_destroy(ctx);
    lora_ctx_destroy(one_thread);
}

/* Weights that are not read in blocks of 64: up to LORA_SMALL_M tokens the bits of fast. */
static void others_are_fast(lora_isa isa, lora_weight_kind kind, int64_t K, int variant) {
    enum { N = 37, M = 5 };
    lora_ctx *ctx = check_ctx(isa, 1);
    weight_case *c = make_weight(ctx, kind, N, K, variant);
    float *x = tokens_of(M, K, false), y[2][M * N];
    for (int i = 0; i < 2; i++) {
        OK(lora_ctx_set_precision(ctx, i ? LORA_PRECISION_INT8 : LORA_PRECISION_FAST, ERR));
        lora_linear_layer layer = {.w = &c->w, .y = lora_mat_f32(y[i], M, N, N)};
        OK(lora_linear_forward(ctx, lora_mat_f32(x, M, K, K), 1, &layer, ERR));
    }
    CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0, "%s: kind %d, %d columns: few tokens are not those of fast", lora_isa_name(isa), kind,
          (int)K);
    free(x);
    free_weight(c);
    lora_ctx_destroy(ctx);
}

void check_few_int8(void);
void check_few_int8(void) {
    FOR_EACH_ISA(isa) {
        restart_random();
        lora_ctx *ctx = check_ctx(isa, 1);
        const lora_gemv_path *path = &ctx->engine->kernels.gemv.int8;
        compare_leaves(ctx, path, isa);
#if defined(__x86_64__)
        lora_gemv_path avx2;
        lora_gemv_fill_int8_portable(&avx2);
        if (isa >= LORA_ISA_AVX2) lora_gemv_fill_int8_avx2(&avx2);
        if (isa > LORA_ISA_AVX2) compare_leaves(ctx, &avx2, isa); /* what CPUs without VNNI have */
#endif
        lora_ctx_destroy(ctx);
        if (isa > LORA_ISA_REF) { /* its sums are float64 in both, but added in other pieces */
            layer_is_packed(isa, 83, 192, 0);
            layer_is_packed(isa, 130, 704, DOUBLE_QUANT | ROUGH);
        }
        others_are_fast(isa, LORA_WEIGHT_NF4, 96, SHORT_BLOCKS);
        others_are_fast(isa, LORA_WEIGHT_NF4, 63, 0);
        others_are_fast(isa, LORA_WEIGHT_BF16, 128, 0);
        others_are_fast(isa, LORA_WEIGHT_F32, 128, 0);
    }
}
