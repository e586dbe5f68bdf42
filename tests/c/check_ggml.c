/* Block formats of GGUF files: every rung against the oracle bit for bit, parts of rows, the product, and the driver. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/format/ggml_blocks.h"
#include "lora_c/kernels/ggml_kernels.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/ggml.h"
#include "tests/c/check_ops.h"
#include "tests/c/products.h"

static const lora_ggml_type types[] = {LORA_GGML_F16,  LORA_GGML_BF16, LORA_GGML_Q4_0, LORA_GGML_Q4_1, LORA_GGML_Q5_0,
                                       LORA_GGML_Q5_1, LORA_GGML_Q8_0, LORA_GGML_Q4_K, LORA_GGML_Q5_K, LORA_GGML_Q6_K};
enum { N_TYPES = sizeof types / sizeof *types };

/* A float16 of either sign, normal, zero or subnormal, below 2^-3. */
static uint16_t random_scale(void) { return (uint16_t)((random_word() & 0x83ff) | random_word() % 13 << 10); }

/* Blocks in memory of exactly their size at the given offset from an even address, so that ASan sees a read past the end. */
static uint8_t *make_blocks(lora_ggml_type type, int64_t n_blocks, int64_t offset) {
    int64_t bytes = lora_ggml_block_bytes(type);
    uint8_t *all = malloc((size_t)(n_blocks * bytes + offset + 1)), *p = all + offset;
    for (int64_t i = 0; i < n_blocks * bytes; i++) p[i] = (uint8_t)random_word();
    for (int64_t b = 0; b < n_blocks; b++) {
        uint16_t d = random_scale(), m = random_scale();
        uint8_t *block = p + b * bytes;
        memcpy(block + (type == LORA_GGML_Q6_K ? LORA_Q6_K_D : 0), &d, 2);
        if (type != LORA_GGML_Q6_K && bytes > 2) memcpy(block + 2, &m, 2); /* of some types the second scale */
    }
    return all;
}

static void check_sizes(void) {
    CHECK(lora_ggml_block_values((lora_ggml_type)0) == 0 && lora_ggml_block_values((lora_ggml_type)-1) == 0 &&
              lora_ggml_block_values(LORA_GGML_TYPE_END) == 0,
          "types that are not read");
    CHECK(strcmp(lora_ggml_type_name(LORA_GGML_Q5_K), "Q5_K") == 0 && strcmp(lora_ggml_type_name((lora_ggml_type)99), "?") == 0, "names");
    for (int t = 0; t < N_TYPES; t++) {
        double bits = 8.0 * (double)lora_ggml_block_bytes(types[t]) / (double)lora_ggml_block_values(types[t]);
        CHECK(bits >= 4.5 && bits <= 16, "%s has %.2f bits a weight", lora_ggml_type_name(types[t]), bits);
    }
}

static void check_decode(const lora_ggml_kernels *k, const lora_ggml_kernels *ref, lora_isa isa) {
    for (int t = 0; t < N_TYPES; t++) {
        if (!ref->decode[types[t]]) continue;
        int64_t values = lora_ggml_block_values(types[t]);
        for (int64_t n = 0; n <= 17; n = n < 3 ? n + 1 : n * 2 + 1)
            for (int64_t offset = 0; offset < 3; offset++) {
                uint8_t *all = make_blocks(types[t], n, offset);
                guarded got = guarded_new(n * values, (int)offset), want = guarded_new(n * values, 0);
                k->decode[types[t]](all + offset, n, got.data);
                ref->decode[types[t]](all + offset, n, want.data);
                CHECK(!memcmp(got.data, want.data, (size_t)(n * values) * sizeof(float)) && guarded_ok(&got), "%s %s %lld blocks",
                      lora_isa_name(isa), lora_ggml_type_name(types[t]), (long long)n);
                guarded_free(&got), guarded_free(&want), free(all);
            }
    }
}

static void check_quantize(const lora_ggml_kernels *k, const lora_ggml_kernels *ref, lora_isa isa) {
    enum { BLOCKS = 300, N = BLOCKS * 32 };
    static float x[N];
    check_normal(x, N, 3, 1);
    for (int i = 0; i < N; i++) {
        if (i / 32 % 5 == 1) x[i] = (float)(random_word() % 255) / 2 - 63.5f; /* the rounding rule at halves */
        if (i / 32 % 5 == 2) x[i] *= 1e-38f;
        if (i / 32 % 5 == 3) x[i] *= 1e6f;
        if (i / 32 == 4) x[i] = 0;
        if (i / 32 % 5 == 1 && i % 32 == 7) x[i] = 127;
    }
    uint8_t *got = malloc(BLOCKS * LORA_Q8_0_BYTES), *want = malloc(BLOCKS * LORA_Q8_0_BYTES);
    CHECK(k->quantize_q8_0(x, BLOCKS, got) == BLOCKS && ref->quantize_q8_0(x, BLOCKS, want) == BLOCKS, "%s", lora_isa_name(isa));
    CHECK(!memcmp(got, want, BLOCKS * LORA_Q8_0_BYTES), "%s Q8_0 blocks", lora_isa_name(isa));
    static const float bad[] = {NAN, INFINITY, -INFINITY, 1e7f};
    for (int i = 0; i < 4; i++) {
        int where = (int)(random_word() % N);
        float kept = x[where];
        x[where] = bad[i];
        CHECK(k->quantize_q8_0(x, BLOCKS, got) == where / 32, "%s: %g is not refused", lora_isa_name(isa), (double)bad[i]);
        x[where] = kept;
    }
    free(got), free(want);
}

/* Any part of any row equals the same part of the decoded matrix. */
static void check_runs(const lora_kernels *k) {
    enum { ROWS = 3, COLS = 768 };
    for (int t = 0; t < N_TYPES; t++) {
        int64_t values = lora_ggml_block_values(types[t]);
        uint8_t *all = make_blocks(types[t], ROWS * COLS / values, 0);
        lora_ggml w = {.type = types[t], .rows = ROWS, .cols = COLS, .blocks = all};
        static float dense[ROWS * COLS];
        for (int r = 0; r < ROWS; r++) lora_ggml_run(k, &w, r, 0, COLS, dense + r * COLS);
        for (int i = 0; i < 200; i++) {
            int64_t r = random_word() % ROWS, begin = random_word() % COLS, n = random_word() % (COLS - begin + 1);
            guarded out = guarded_new(n, 0);
            lora_ggml_run(k, &w, r, begin, n, out.data);
            CHECK(!memcmp(out.data, dense + r * COLS + begin, (size_t)n * sizeof(float)) && guarded_ok(&out), "%s row %lld [%lld, + %lld)",
                  lora_ggml_type_name(types[t]), (long long)r, (long long)begin, (long long)n);
            guarded_free(&out);
        }
        free(all);
    }
}

/* The product with blocks has the bits of the product with the values they stand for, in every path and orientation. */
static void check_product(lora_ctx *ctx) {
    enum { ROWS = 70, COLS = 512, MOST = 40 };
    static float a[MOST * COLS], dense[ROWS * COLS], got[MOST * COLS], want[MOST * COLS];
    check_normal(a, MOST * COLS, 9, 1);
    for (int t = 0; t < N_TYPES; t++) {
        uint8_t *all = make_blocks(types[t], ROWS * COLS / lora_ggml_block_values(types[t]), 0);
        lora_ggml blocks = {.type = types[t], .rows = ROWS, .cols = COLS, .blocks = all};
        lora_error err;
        CHECK(lora_ggml_check(ctx, &blocks, &err) == LORA_OK, "%s", err.message);
        CHECK(lora_ggml_dequantize(ctx, &blocks, 0, ROWS, dense, LORA_F32, &err) == LORA_OK, "%s", err.message);
        lora_weight packed = lora_weight_ggml(&blocks);
        lora_weight plain = lora_weight_f32(dense, ROWS, COLS, COLS);
        for (int64_t m = 1; m <= MOST; m = m * 3 + 1)
            for (int transposed = 0; transposed < 2; transposed++) {
                int64_t n = transposed ? ROWS : COLS;
                lora_gemm_args g = product_of(m, a, &packed, transposed, got), h = product_of(m, a, &plain, transposed, want);
                CHECK(lora_gemm(ctx, &g, &err) == LORA_OK && lora_gemm(ctx, &h, &err) == LORA_OK, "%s", err.message);
                CHECK(!memcmp(got, want, (size_t)(m * n) * sizeof(float)), "%s %s m %lld transposed %d", lora_isa_name(lora_ctx_isa(ctx)),
                      lora_ggml_type_name(types[t]), (long long)m, transposed);
            }
        free(all);
    }
}

static void check_driver(void) {
    enum { ROWS = 300, COLS = 1024, BYTES = ROWS * COLS / 32 * LORA_Q8_0_BYTES };
    static float x[ROWS * COLS], y[ROWS * COLS];
    static uint8_t blocks[2][BYTES];
    check_normal(x, ROWS * COLS, 4, 1);
    lora_error err;
    for (int t = 0; t < 2; t++) {
        lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, t ? 3 : 1);
        lora_ggml w = {.type = LORA_GGML_Q8_0, .rows = ROWS, .cols = COLS, .blocks = blocks[t]};
        CHECK(lora_ggml_quantize_q8_0(ctx, x, LORA_F32, ROWS, COLS, blocks[t], &err) == LORA_OK, "%s", err.message);
        CHECK(lora_ggml_check(ctx, &w, &err) == LORA_OK, "%s", err.message);
        CHECK(lora_ggml_dequantize(ctx, &w, 5, 7, y, LORA_F32, &err) == LORA_OK, "%s", err.message);
        for (int i = 0; i < 7 * COLS; i++) CHECK(fabsf(y[i] - x[5 * COLS + i]) <= 5.0f / 254 * 1.01f, "value %d", i);
        CHECK(lora_ggml_dequantize(ctx, &w, ROWS, 1, y, LORA_F32, &err) == LORA_ESHAPE, "rows past the end");
        CHECK(lora_ggml_dequantize(ctx, &w, 0, 1, y, (lora_dtype)7, &err) == LORA_EDTYPE, "dtype");
        w.cols = 1000;
        CHECK(lora_ggml_check(ctx, &w, &err) == LORA_ESHAPE && strstr(err.message, "multiple of 32"), "%s", err.message);
        w = (lora_ggml){.type = (lora_ggml_type)10, .rows = ROWS, .cols = COLS, .blocks = blocks[t]};
        CHECK(lora_ggml_check(ctx, &w, &err) == LORA_EDTYPE, "%s", err.message);
        w = (lora_ggml){.type = LORA_GGML_F16, .rows = ROWS, .cols = COLS, .blocks = blocks[t] + 1};
        CHECK(lora_ggml_check(ctx, &w, &err) == LORA_EINVAL, "odd address");
        float kept = x[200 * COLS + 3], last = x[ROWS * COLS - 1];
        x[200 * COLS + 3] = NAN, x[ROWS * COLS - 1] = INFINITY;
        static uint8_t other[BYTES];
        CHECK(lora_ggml_quantize_q8_0(ctx, x, LORA_F32, ROWS, COLS, other, &err) == LORA_EINVAL, "NaN");
        CHECK(strstr(err.message, "in row 200") != NULL, "message: %s", err.message);
        x[200 * COLS + 3] = kept, x[ROWS * COLS - 1] = last;
        lora_ctx_destroy(ctx);
    }
    CHECK(!memcmp(blocks[0], blocks[1], BYTES), "threads change bits");
}

static void check_non_finite(void) {
    lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 2);
    lora_error err;
    for (int t = 0; t < N_TYPES; t++) {
        enum { ROWS = 40, COLS = 512 };
        int64_t bytes = lora_ggml_block_bytes(types[t]), per_row = COLS / lora_ggml_block_values(types[t]);
        bool two = types[t] == LORA_GGML_Q4_1 || types[t] == LORA_GGML_Q5_1 || types[t] == LORA_GGML_Q4_K || types[t] == LORA_GGML_Q5_K;
        for (int second = 0; second <= two; second++) {
            uint8_t *all = make_blocks(types[t], ROWS * per_row, 0);
            uint16_t infinity = types[t] == LORA_GGML_BF16 ? 0xff80 : 0xfc00;
            memcpy(all + (31 * per_row + per_row - 1) * bytes + (types[t] == LORA_GGML_Q6_K ? LORA_Q6_K_D : 2 * second), &infinity, 2);
            lora_ggml w = {.type = types[t], .rows = ROWS, .cols = COLS, .blocks = all};
            CHECK(lora_ggml_check(ctx, &w, &err) == LORA_EINVAL && strstr(err.message, "in row 31"), "%s: %s",
                  lora_ggml_type_name(types[t]), err.message);
            free(all);
        }
    }
    lora_ctx_destroy(ctx);
}

void check_ggml(void) {
    lora_ggml_kernels ref, k;
    lora_ggml_kernels_init(&ref, LORA_ISA_REF);
    check_sizes();
    FOR_EACH_ISA(isa) {
        lora_ggml_kernels_init(&k, isa);
        check_decode(&k, &ref, isa);
        check_quantize(&k, &ref, isa);
        lora_kernels all;
        lora_kernels_init(&all, isa);
        check_runs(&all);
        lora_ctx *ctx = check_ctx(isa, 2);
        check_product(ctx);
        lora_ctx_destroy(ctx);
    }
    check_driver();
    check_non_finite();
}
