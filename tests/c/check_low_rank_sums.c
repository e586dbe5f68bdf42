/* The sums behind the gradients of A and B against double loops: every rung and arithmetic, groups and chunks of tokens. */
#include <math.h>

#include "tests/c/check_ops.h"
#include "lora_c/ops/low_rank_sums.h"

typedef struct sum_case {
    int64_t M, rank, cols, ld;
    bool transposed;
} sum_case;

/* What rounding the operands may change in a sum of M products of values up to 1, beside the float32 sum itself. */
static double bound(lora_gemm_arithmetic path, int64_t M) {
    static const double operand[LORA_GEMM_PATHS] = {[LORA_GEMM_BF16] = 0x1p-7, [LORA_GEMM_INT16] = 2.0 / 5792};
    return (double)M * operand[path] * (path == LORA_GEMM_EXACT ? 0 : 1) + (double)(M + 8) * U * ((double)M + 2);
}

/* Two sums that share a wide operand and one that does not, at once. */
static void check_sums(lora_ctx *ctx, lora_gemm_arithmetic path, sum_case c) {
    enum { N = 3 };
    int64_t ranks[N] = {c.rank, c.rank / 2 + 1, c.rank};
    float *wide[2] = {random_floats(c.M * c.ld, -1, 1), random_floats(c.M * c.ld, -1, 1)}, *low[N], *before[N];
    guarded out[N];
    lora_low_rank_sum sums[N];
    for (int i = 0; i < N; i++) {
        low[i] = random_floats(c.M * ranks[i], -1, 1);
        out[i] = guarded_new(ranks[i] * c.cols, i);
        for (int64_t j = 0; j < ranks[i] * c.cols; j++) out[i].data[j] = uniform(-1, 1);
        before[i] = copy_floats(out[i].data, ranks[i] * c.cols);
        sums[i] = (lora_low_rank_sum){.low = low[i],
                                      .rank = ranks[i],
                                      .wide = wide[i / 2],
                                      .ld = c.ld,
                                      .cols = c.cols,
                                      .alpha = 0.5f,
                                      .out = out[i].data,
                                      .transposed = c.transposed};
    }
    OK(lora_low_rank_sums(ctx, c.M, N, sums, ERR));
    for (int i = 0; i < N; i++) {
        long wrong = 0;
        for (int64_t r = 0; r < ranks[i]; r++)
            for (int64_t j = 0; j < c.cols; j++) {
                double sum = 0;
                for (int64_t m = 0; m < c.M; m++) sum += (double)low[i][m * ranks[i] + r] * (double)wide[i / 2][m * c.ld + j];
                int64_t at = c.transposed ? j * ranks[i] + r : r * c.cols + j;
                wrong += !(fabs((double)out[i].data[at] - (double)before[i][at] - 0.5 * sum) <= bound(path, c.M));
            }
        CHECK(wrong == 0 && guarded_ok(&out[i]), "%s, operands %s, M %lld rank %lld cols %lld: %ld wrong", lora_isa_name(lora_ctx_isa(ctx)),
              lora_ctx_operands(ctx), (long long)c.M, (long long)ranks[i], (long long)c.cols, wrong);
        mix(out[i].data, (size_t)(ranks[i] * c.cols) * sizeof(float));
        guarded_free(&out[i]);
        free(low[i]), free(before[i]);
    }
    free(wide[0]), free(wide[1]);
}

/* Layers that are rows of one matrix share A: three sums with one result, again and again with more threads than tasks. */
static void check_one_result(lora_isa isa) {
    enum { N = 3, M = 5, RANK = 16, COLS = 512, TIMES = 400 };
    lora_ctx *ctx = check_ctx(isa, 3);
    float *wide = random_floats(M * COLS, -1, 1), *low = random_floats(N * M * RANK, -1, 1);
    int wrong = 0;
    for (int t = 0; t < TIMES; t++) {
        float out[RANK * COLS] = {0};
        lora_low_rank_sum sums[N];
        for (int i = 0; i < N; i++) sums[i] = (lora_low_rank_sum){low + i * M * RANK, RANK, wide, COLS, COLS, 1, out, false};
        OK(lora_low_rank_sums(ctx, M, N, sums, ERR));
        for (int at = 0; at < RANK * COLS; at++) {
            double sum = 0;
            for (int m = 0; m < N * M; m++) sum += (double)low[m * RANK + at / COLS] * (double)wide[m % M * COLS + at % COLS];
            wrong += !(fabs((double)out[at] - sum) <= bound(LORA_GEMM_EXACT, N * M));
        }
    }
    CHECK(wrong == 0, "%s: %d elements of a shared result are wrong", lora_isa_name(isa), wrong);
    free(wide), free(low);
    lora_ctx_destroy(ctx);
}

static uint64_t run_all(lora_ctx *ctx, lora_gemm_arithmetic path) {
    static const sum_case cases[] = {{1, 1, 1, 1, false},        {7, 4, 33, 35, true},     {64, 16, 64, 64, false},
                                     {255, 15, 40, 47, true},    {513, 16, 70, 70, false}, {777, 29, 17, 20, true},
                                     {1037, 8, 130, 131, false}, {2100, 3, 48, 48, true}};
    begin_run();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_sums(ctx, path, cases[i]);
    return hash_of_run();
}

void check_low_rank_sums(void) {
    check_one_result(lora_cpu_best_isa());
    check_every_path(run_all);
}
