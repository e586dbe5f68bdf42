/* The product of a few tokens: every slot against the float64 rung, and the operation's promise that a token's bits depend
 * neither on its neighbours nor on threads. */
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/base/philox.h"
#include "lora_c/kernels/kernels.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/gemm_small.h"
#include "tests/c/check.h"

enum { LD_EXTRA = 5 };

static void fill_codes(uint8_t *codes, int64_t bytes, uint64_t seed) {
    for (int64_t i = 0; i < bytes; i++) {
        uint32_t w[4];
        lora_philox4x32(seed, 3, (uint64_t)i, w);
        codes[i] = (uint8_t)w[0];
    }
}

/* Any order of a float32 sum of k products; want and magnitude are float64. */
static bool within(float got, double want, double magnitude, int64_t k) {
    return fabs((double)got - want) <= (double)(k + 4) * 0x1p-24 * magnitude;
}

/* --- slots --- */

static void check_nf4_slot(const lora_kernels *rung, const lora_kernels *ref, int64_t rows, int64_t k, int64_t block, int64_t m) {
    int64_t per_row = k / block, ldx = lora_round_up(lora_round_up(k, rung->gemv.group), 16);
    uint8_t *codes = malloc((size_t)(rows * k / 2)); /* exact size: what reads past the end is seen by the sanitizer */
    float *scales = malloc((size_t)(rows * per_row) * sizeof *scales);
    int64_t n_scratch = rows * per_row + LORA_GEMV_SCALES_PAST_END;
    float *scratch = malloc((size_t)n_scratch * sizeof *scratch);
    float *x = malloc((size_t)(m * k) * sizeof *x), *arranged = aligned_alloc(64, (size_t)(m * ldx) * sizeof *arranged);
    float *want = malloc((size_t)(rows * m) * sizeof *want), *magnitude = malloc((size_t)(rows * m) * sizeof *magnitude);
    fill_codes(codes, rows * k / 2, (uint64_t)(k + rows));
    check_normal(scales, rows * per_row, 2, 1);
    for (int64_t i = 0; i < n_scratch; i++) scratch[i] = NAN; /* what is read past the scales must not matter */
    check_normal(x, m * k, 3, 1);
    for (int64_t i = 0; i < m; i++) rung->gemv.arrange(k, x + i * k, arranged + i * ldx);
    lora_nf4 w = {.rows = rows, .cols = k, .block_size = block, .lut = lora_nf4_lut(), .codes = codes, .absmax = scales};
    guarded sums = guarded_new(rows * m, 1);
    rung->gemv.nf4(&w, 0, rows, m, arranged, ldx, scratch, sums.data);
    ref->gemv.nf4(&w, 0, rows, m, x, k, scratch, want);
    long bad = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < m; i++) {
            double size = 0;
            for (int64_t e = 0; e < k; e++) size += fabs((double)(scales[(r * k + e) / block] * x[i * k + e]));
            bad += !within(sums.data[r * m + i], (double)want[r * m + i], size, k);
            float alone;
            rung->gemv.nf4(&w, r, 1, 1, arranged + i * ldx, ldx, scratch, &alone);
            bad += alone != sums.data[r * m + i];
        }
    CHECK(bad == 0 && guarded_ok(&sums), "%s nf4 rows %lld k %lld block %lld m %lld: %ld wrong", lora_isa_name(rung->isa), (long long)rows,
          (long long)k, (long long)block, (long long)m, bad);
    guarded_free(&sums);
    free(codes), free(scales), free(scratch), free(x), free(arranged), free(want), free(magnitude);
}

static void check_dense_slots(const lora_kernels *rung, const lora_kernels *ref, int64_t rows, int64_t k, int64_t m) {
    int64_t ldw = k + 3, ldx = k + LD_EXTRA;
    size_t n = (size_t)((rows - 1) * ldw + k), nx = (size_t)((m - 1) * ldx + k);
    float *w = malloc(n * sizeof *w), *x = malloc(nx * sizeof *x), want[LORA_GEMV_ROWS * LORA_GEMV_TOKENS];
    uint16_t *h = malloc(n * sizeof *h);
    check_normal(w, (int64_t)n, 4, 1);
    check_normal(x, (int64_t)nx, 5, 1);
    for (size_t i = 0; i < n; i++) w[i] = lora_bf16_to_f32(h[i] = lora_f32_to_bf16(w[i]));
    guarded sums[2] = {guarded_new(rows * m, 0), guarded_new(rows * m, 1)};
    rung->gemv.f32(rows, k, w, ldw, m, x, ldx, sums[0].data);
    rung->gemv.bf16(rows, k, h, ldw, m, x, ldx, sums[1].data);
    ref->gemv.f32(rows, k, w, ldw, m, x, ldx, want);
    long bad = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < m; i++) {
            double size = 0;
            float alone;
            for (int64_t e = 0; e < k; e++) size += fabs((double)w[r * ldw + e] * (double)x[i * ldx + e]);
            rung->gemv.f32(1, k, w + r * ldw, ldw, 1, x + i * ldx, ldx, &alone);
            bad += !within(sums[0].data[r * m + i], (double)want[r * m + i], size, k) || alone != sums[0].data[r * m + i];
            bad += sums[1].data[r * m + i] != sums[0].data[r * m + i]; /* the same numbers in the same order */
        }
    CHECK(bad == 0 && guarded_ok(&sums[0]) && guarded_ok(&sums[1]), "%s dense rows %lld k %lld m %lld: %ld wrong",
          lora_isa_name(rung->isa), (long long)rows, (long long)k, (long long)m, bad);
    guarded_free(&sums[0]), guarded_free(&sums[1]);
    free(w), free(x), free(h);
}

static void slots(lora_isa isa) {
    static const int64_t nf4_k[] = {32, 64, 96, 128, 160, 192, 224, 320, 576, 640, 1152}, blocks[] = {32, 64, 128};
    lora_kernels rung, ref;
    lora_kernels_init(&rung, isa);
    lora_kernels_init(&ref, LORA_ISA_REF);
    for (size_t i = 0; i < sizeof nf4_k / sizeof *nf4_k; i++)
        for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++)
            for (int64_t m = 1; m <= LORA_GEMV_TOKENS; m++)
                if (nf4_k[i] % blocks[b] == 0) check_nf4_slot(&rung, &ref, m == 2 ? LORA_GEMV_ROWS : 1 + (int64_t)i % 5, nf4_k[i], blocks[b], m);
    check_nf4_slot(&rung, &ref, 3, 8192, 4096, 1);
    check_nf4_slot(&rung, &ref, 3, 1024, 512, 4);
    for (int64_t k = 1; k <= 70; k++) check_dense_slots(&rung, &ref, 1 + k % 4, k, 1 + k % LORA_GEMV_TOKENS);
    check_dense_slots(&rung, &ref, LORA_GEMV_ROWS, 576, 1);
}

/* --- the operation --- */

typedef struct matrix {
    lora_nf4 nf4;
    uint8_t *codes, *absmax_codes;
    float *dense, *absmax, *nested;
} matrix;

/* Double-quantized, and dense the values that it stands for. */
static matrix make_matrix(lora_ctx *ctx, int64_t rows, int64_t cols, int64_t block) {
    lora_error err;
    int64_t n = rows * cols, blocks = lora_nf4_blocks(rows, cols, block);
    matrix w = {.codes = malloc((size_t)lora_nf4_code_bytes(rows, cols) + 64), .absmax_codes = malloc((size_t)blocks),
                .dense = malloc((size_t)n * sizeof(float)), .absmax = malloc((size_t)blocks * sizeof(float)),
                .nested = malloc((size_t)(blocks / 256 + 1) * sizeof(float))};
    check_normal(w.dense, n, 9, 1);
    w.nf4 = (lora_nf4){.rows = rows, .cols = cols, .block_size = block, .lut = lora_nf4_lut(), .codes = w.codes,
                       .absmax_codes = w.absmax_codes, .nested_absmax = w.nested, .nested_map = lora_dynamic_map_signed(),
                       .nested_block_size = 256};
    CHECK(lora_nf4_quantize(ctx, w.dense, LORA_F32, rows, cols, block, w.codes, w.absmax, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_nf4_double_quantize(ctx, w.absmax, blocks, w.absmax_codes, w.nested, &w.nf4.nested_offset, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_nf4_dequantize(ctx, &w.nf4, 0, n, w.dense, LORA_F32, &err) == LORA_OK, "%s", err.message);
    return w;
}

static void free_matrix(matrix *w) { free(w->codes), free(w->absmax_codes), free(w->dense), free(w->absmax), free(w->nested); }

/* Two products of the same tokens in one call against float64, and each token alone, on one thread: the same bits. */
static void check_operation(lora_isa isa, int64_t m, int64_t rows, int64_t cols, int64_t block) {
    lora_ctx *ctx = check_ctx(isa, 3), *one_thread = check_ctx(isa, 1);
    lora_error err;
    matrix w = make_matrix(ctx, rows, cols, block);
    lora_weight packed = {.kind = LORA_WEIGHT_NF4, .rows = rows, .cols = cols, .nf4 = &w.nf4};
    lora_weight dense = {.kind = LORA_WEIGHT_F32, .rows = rows, .cols = cols, .ld = cols, .data = w.dense};
    float *x = malloc((size_t)(m * cols) * sizeof *x), *y = malloc((size_t)(m * rows) * sizeof *y), *alone = malloc((size_t)rows * sizeof *alone);
    guarded out = guarded_new(m * rows, 1);
    check_normal(x, m * cols, 1, 1);
    lora_small_product both[] = {{.args = {m, rows, cols, 1, x, cols, 1, &packed, true, out.data, rows, false, NULL, false}},
                                 {.args = {m, rows, cols, 1, x, cols, 1, &dense, true, y, rows, false, NULL, false}}};
    CHECK(lora_gemm_is_small(&both[0].args), "m %lld", (long long)m);
    CHECK(lora_gemm_small(ctx, both, 2, 0, &err) == LORA_OK, "%s", err.message);
    long bad = 0, changed = 0;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t r = 0; r < rows; r++) {
            double want = 0, size = 0;
            for (int64_t e = 0; e < cols; e++) {
                double product = (double)w.dense[r * cols + e] * (double)x[i * cols + e];
                want += product;
                size += fabs(product);
            }
            bad += !within(out.data[i * rows + r], want, size, 2 * cols) || !within(y[i * rows + r], want, size, cols);
        }
        lora_gemm_args single = {1, rows, cols, 1, x + i * cols, cols, 1, &packed, true, alone, rows, false, NULL, false};
        CHECK(lora_gemm(one_thread, &single, &err) == LORA_OK, "%s", err.message);
        changed += memcmp(alone, out.data + i * rows, (size_t)rows * sizeof *alone) != 0;
    }
    CHECK(bad == 0 && guarded_ok(&out), "%s m %lld rows %lld cols %lld block %lld: %ld wrong", lora_isa_name(isa), (long long)m,
          (long long)rows, (long long)cols, (long long)block, bad);
    CHECK(changed == 0, "%s m %lld rows %lld cols %lld: %ld tokens differ from themselves alone", lora_isa_name(isa), (long long)m,
          (long long)rows, (long long)cols, changed);
    guarded_free(&out);
    free(x), free(y), free(alone);
    free_matrix(&w);
    lora_ctx_destroy(ctx);
    lora_ctx_destroy(one_thread);
}

void check_gemv(void) {
    FOR_EACH_ISA(isa) {
        slots(isa);
        check_operation(isa, 1, 300, 576, 64);
        check_operation(isa, 16, 70, 704, 64);
        check_operation(isa, 5, 33, 96, 32);
        check_operation(isa, 3, 40, 172, 64); /* blocks that lie in two rows */
        check_operation(isa, 7, 9, 63, 32);   /* rows that begin inside a byte */
    }
}
