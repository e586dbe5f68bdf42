/* The matrix product against float64 loops: every rung, orientation and weight format. */
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/ops/gemm.h"
#include "tests/c/check.h"

typedef struct weight_case {
    lora_weight w;
    lora_nf4 nf4;
    float *dense; /* what the stored weight stands for */
    void *stored;
    uint8_t *codes;
    float *absmax;
} weight_case;

static weight_case make_weight(lora_ctx *ctx, lora_weight_kind kind, int64_t rows, int64_t cols, int64_t block_size) {
    weight_case c = {.w = {.kind = kind, .rows = rows, .cols = cols, .ld = cols}};
    lora_error err;
    int64_t n = rows * cols;
    c.dense = malloc((size_t)n * sizeof(float));
    check_normal(c.dense, n, (uint64_t)(rows * 131 + cols), 1);
    if (kind == LORA_WEIGHT_F32) {
        c.w.data = c.dense;
    } else if (kind == LORA_WEIGHT_BF16) {
        uint16_t *h = c.stored = malloc((size_t)n * 2 + 64);
        for (int64_t i = 0; i < n; i++) c.dense[i] = lora_bf16_to_f32(h[i] = lora_f32_to_bf16(c.dense[i]));
        c.w.data = h;
    } else {
        c.codes = malloc((size_t)lora_nf4_code_bytes(rows, cols) + 64);
        c.absmax = malloc((size_t)lora_nf4_blocks(rows, cols, block_size) * sizeof(float));
        CHECK(lora_nf4_quantize(ctx, c.dense, LORA_F32, rows, cols, block_size, c.codes, c.absmax, &err) == LORA_OK, "%s", err.message);
        c.nf4 = (lora_nf4){.rows = rows, .cols = cols, .block_size = block_size, .lut = lora_nf4_lut(), .codes = c.codes, .absmax = c.absmax};
        CHECK(lora_nf4_dequantize(ctx, &c.nf4, 0, n, c.dense, LORA_F32, &err) == LORA_OK, "%s", err.message);
    }
    return c;
}

static void free_weight(weight_case *c) {
    free(c->dense);
    free(c->stored);
    free(c->codes);
    free(c->absmax);
}

/* |error| <= (k + 4) * 2^-24 * sum |a||b| + rounding of the result: the forward error bound of any order of a float32 sum */
static bool within(double got, double want, double magnitude, int64_t k) {
    return fabs(got - want) <= (double)(k + 4) * 0x1p-24 * magnitude + 0x1p-23 * fabs(want);
}

static void compare(lora_ctx *ctx, lora_weight_kind kind, int64_t m, int64_t rows, int64_t cols, bool transposed, int variant) {
    weight_case c = make_weight(ctx, kind, rows, cols, variant & 1 ? 32 : 64);
    if (kind == LORA_WEIGHT_NF4) c.w.nf4 = &c.nf4;
    int64_t n = transposed ? rows : cols, k = transposed ? cols : rows, lda = (variant & 2 ? m : k) + 3, ldc = n + 5;
    bool a_transposed = variant & 2, accumulate = variant & 4;
    int64_t a_floats = (a_transposed ? k : m) * lda;
    float *a = malloc((size_t)a_floats * sizeof(float)), *bias = malloc((size_t)n * sizeof(float));
    check_normal(a, a_floats, 5, 1);
    check_normal(bias, n, 6, 1);
    guarded out = guarded_new(m * ldc, variant & 1);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) out.data[i * ldc + j] = 0.25f;
    lora_gemm_args g = {m, n, k, 0.5f, a, a_transposed ? 1 : lda, a_transposed ? lda : 1, &c.w, transposed, out.data, ldc, accumulate,
                        variant & 1 ? bias : NULL};
    lora_error err;
    CHECK(lora_gemm(ctx, &g, &err) == LORA_OK, "%s", err.message);
    long bad = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < ldc; j++) {
            if (j >= n) {
                bad += !isnan(out.data[i * ldc + j]);
                continue;
            }
            double sum = 0, magnitude = 1.5;
            for (int64_t p = 0; p < k; p++) {
                double x = (double)a[i * g.a_row_stride + p * g.a_col_stride];
                double y = (double)c.dense[transposed ? j * cols + p : p * cols + j];
                sum += x * y;
                magnitude += fabs(x * y);
            }
            double want = 0.5 * sum + (g.bias ? (double)bias[j] : 0) + (accumulate ? 0.25 : 0);
            bad += !within((double)out.data[i * ldc + j], want, magnitude, k);
        }
    CHECK(bad == 0 && guarded_ok(&out), "%s kind %d m %lld rows %lld cols %lld transposed %d variant %d: %ld wrong",
          lora_isa_name(lora_ctx_isa(ctx)), kind, (long long)m, (long long)rows, (long long)cols, transposed, variant, bad);
    guarded_free(&out);
    free(a);
    free(bias);
    free_weight(&c);
}

static void sizes(lora_ctx *ctx) {
    static const int64_t ms[] = {1, 2, 3, 4, 5, 7, 8, 13, 17, 33, 65}, ks[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 172};
    const size_t n_m = sizeof ms / sizeof *ms, n_k = sizeof ks / sizeof *ks;
    for (int kind = LORA_WEIGHT_F32; kind <= LORA_WEIGHT_NF4; kind++)
        for (size_t i = 0; i < n_k; i++)
            for (size_t j = 0; j < n_k; j += 1 + i % 3) {
                int variant = (int)((i * 7 + j * 3 + (size_t)kind) % 8);
                compare(ctx, (lora_weight_kind)kind, ms[(i + j) % n_m], ks[j], ks[i], true, variant);
                compare(ctx, (lora_weight_kind)kind, ms[(i + 2 * j) % n_m], ks[j], ks[i], false, variant);
            }
}

static void big(lora_ctx *ctx) {
    compare(ctx, LORA_WEIGHT_NF4, 1100, 129, 320, true, 0); /* two chunks of A, two k blocks, ragged columns */
    compare(ctx, LORA_WEIGHT_NF4, 70, 320, 257, false, 4);
    compare(ctx, LORA_WEIGHT_F32, 16, 900, 131, false, 2); /* the shape of dA: k long, m small */
}

static void same_bits_for_any_threads(lora_isa isa) {
    float *first = NULL;
    enum { M = 37, N = 200, K = 300 };
    for (int threads = 1; threads <= 8; threads = threads == 3 ? 8 : threads + 1) {
        lora_ctx *ctx = check_ctx(isa, threads);
        weight_case c = make_weight(ctx, LORA_WEIGHT_NF4, N, K, 64);
        c.w.nf4 = &c.nf4;
        float *a = malloc(M * K * sizeof *a), *out = malloc(M * N * sizeof *out);
        check_normal(a, M * K, 1, 1);
        lora_gemm_args g = {M, N, K, 1, a, K, 1, &c.w, true, out, N, false, NULL};
        lora_error err;
        CHECK(lora_gemm(ctx, &g, &err) == LORA_OK, "%s", err.message);
        if (first) CHECK(memcmp(first, out, M * N * sizeof *out) == 0, "%s: %d threads change bits", lora_isa_name(isa), threads);
        if (first) free(out); else first = out;
        free(a);
        free_weight(&c);
        lora_ctx_destroy(ctx);
    }
    free(first);
}

void check_gemm(void) {
    FOR_EACH_ISA(isa) {
        lora_ctx *ctx = check_ctx(isa, 2);
        sizes(ctx);
        big(ctx);
        lora_ctx_destroy(ctx);
        same_bits_for_any_threads(isa);
    }
}
