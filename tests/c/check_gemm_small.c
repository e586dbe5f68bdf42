/* The operation behind decoding: products of a few tokens against float64, and its promise that a token's bits depend neither on
 * its neighbours nor on threads. */
#include "lora_c/base/half.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/gemm_small.h"
#include "tests/c/gemm_weight.h"
#include "tests/c/products.h"

/* Two products of the same tokens in one call against float64, and each token alone, on one thread: the same bits. */
static void check_operation(lora_isa isa, lora_precision precision, int64_t m, int64_t rows, int64_t cols, int64_t block) {
    lora_ctx *ctx = check_ctx(isa, 3), *one_thread = check_ctx(isa, 1);
    lora_error err;
    weight_case *w = make_weight(ctx, LORA_WEIGHT_NF4, rows, cols, DOUBLE_QUANT | (block == 32 ? SHORT_BLOCKS : 0));
    uint16_t *half = malloc((size_t)(rows * cols) * sizeof *half);
    for (int64_t i = 0; i < rows * cols; i++) half[i] = lora_f32_to_bf16(w->dense[i]);
    lora_weight dense = lora_weight_bf16(half, rows, cols, cols);
    float *x = malloc((size_t)(m * cols) * sizeof *x), *y = malloc((size_t)(m * rows) * sizeof *y),
          *alone = malloc((size_t)rows * sizeof *alone);
    guarded out = guarded_new(m * rows, 1);
    check_normal(x, m * cols, 1, 1);
    lora_small_product both[] = {{.args = product_of(m, x, &w->w, true, out.data)}, {.args = product_of(m, x, &dense, true, y)}};
    CHECK(lora_gemm_is_small(&both[0].args), "m %lld", (long long)m);
    CHECK(lora_ctx_set_precision(ctx, precision, &err) == LORA_OK && lora_ctx_set_precision(one_thread, precision, &err) == LORA_OK, "%s",
          err.message);
    OK(lora_gemm_small(ctx, both, 2, 0, ERR));
    double relative = precision == LORA_PRECISION_FAST ? 0x1p-7 + 0x1p-16 : 0; /* two operands of 8 bits */
    long bad = 0, changed = 0;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t r = 0; r < rows; r++) {
            double want = 0, size = 0, want_half = 0;
            for (int64_t e = 0; e < cols; e++) {
                double product = (double)w->dense[r * cols + e] * (double)x[i * cols + e];
                want += product;
                want_half += (double)lora_bf16_to_f32(half[r * cols + e]) * (double)x[i * cols + e];
                size += fabs(product);
            }
            double tolerance = (relative + (double)(2 * cols + 4) * 0x1p-24) * size;
            bad += !(fabs((double)out.data[i * rows + r] - want) <= tolerance) ||
                   !(fabs((double)y[i * rows + r] - want_half) <= 1.01 * tolerance);
        }
        const lora_weight *weights[] = {&w->w, &dense};
        const float *together[] = {out.data + i * rows, y + i * rows};
        for (int j = 0; j < 2; j++) {
            lora_gemm_args single = product_of(1, x + i * cols, weights[j], true, alone);
            OK(lora_gemm(one_thread, &single, ERR));
            changed += memcmp(alone, together[j], (size_t)rows * sizeof *alone) != 0;
        }
    }
    CHECK(bad == 0 && guarded_ok(&out), "%s %s m %lld rows %lld cols %lld block %lld: %ld wrong", lora_isa_name(isa),
          lora_precision_name(precision), (long long)m, (long long)rows, (long long)cols, (long long)block, bad);
    CHECK(changed == 0, "%s %s m %lld rows %lld cols %lld: %ld tokens differ from themselves alone", lora_isa_name(isa),
          lora_precision_name(precision), (long long)m, (long long)rows, (long long)cols, changed);
    guarded_free(&out);
    free(x), free(y), free(alone), free(half);
    free_weight(w);
    lora_ctx_destroy(ctx);
    lora_ctx_destroy(one_thread);
}

/* Whatever the precision, weights that are merged come from exact products. */
static void check_exact_argument(lora_isa isa) {
    lora_ctx *ctx = check_ctx(isa, 1);
    weight_case *w = make_weight(ctx, LORA_WEIGHT_NF4, 8, 128, DOUBLE_QUANT);
    float x[128], y[2][8];
    check_normal(x, 128, 1, 1);
    for (int i = 0; i < 2; i++) {
        OK(lora_ctx_set_precision(ctx, i ? LORA_PRECISION_FAST : LORA_PRECISION_EXACT, ERR));
        lora_gemm_args g = product_of(1, x, &w->w, true, y[i]);
        g.exact = true;
        OK(lora_gemm(ctx, &g, ERR));
    }
    CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0, "%s: exact products differ in fast", lora_isa_name(isa));
    free_weight(w);
    lora_ctx_destroy(ctx);
}

void check_gemm_small(void) {
    FOR_EACH_ISA(isa) {
        for (int precision = LORA_PRECISION_EXACT; precision <= LORA_PRECISION_FAST; precision++) {
            check_operation(isa, (lora_precision)precision, 1, 300, 576, 64);
            check_operation(isa, (lora_precision)precision, 16, 70, 704, 64);
            check_operation(isa, (lora_precision)precision, 5, 33, 96, 32);
            check_operation(isa, (lora_precision)precision, 3, 40, 172, 64); /* blocks that lie in two rows */
            check_operation(isa, (lora_precision)precision, 7, 9, 63, 32);   /* rows that begin inside a byte */
        }
        check_exact_argument(isa);
    }
}
