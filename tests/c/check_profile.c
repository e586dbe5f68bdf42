/* The accounts of a pass: what is counted, when, and the yardstick beside it. */
#include <stdlib.h>
#include <string.h>

#include "lora_c/ops/attention.h"
#include "tests/c/check.h"

static double pairs_one_by_one(const lora_attention_shape *shape, const lora_segments *segments, const int64_t *length) {
    const int32_t *cu = segments->cu_seqlens;
    double pairs = 0;
    for (int64_t s = 0; s < segments->n; s++)
        for (int64_t i = 0, queries = cu[s + 1] - cu[s]; i < queries; i++) {
            int64_t sees = (length ? length[s] - queries : 0) + i + 1;
            pairs += (double)(shape->sliding_window > 0 && sees > shape->sliding_window ? shape->sliding_window : sees);
        }
    return pairs * (double)shape->n_heads;
}

static void check_pairs(void) {
    const int32_t cu[] = {0, 1, 8, 21, 23};
    const int64_t length[] = {5, 7, 40, 3};
    lora_segments segments = {.n = 4, .cu_seqlens = cu, .on_device = cu};
    for (int64_t window = 0; window <= 48; window++) {
        lora_attention_shape shape = {.n_heads = 3, .n_kv_heads = 1, .head_dim = 4, .sliding_window = window};
        for (int past = 0; past < 2; past++) {
            double want = pairs_one_by_one(&shape, &segments, past ? length : NULL);
            double got = lora_attention_pairs(&shape, &segments, past ? length : NULL);
            CHECK(got == want, "window %lld, past %d: %g instead of %g", (long long)window, past, got, want);
        }
    }
}

static void run_linear(lora_ctx *ctx, float *y) {
    enum { M = 5, N = 24, K = 40 };
    float x[M * K], w[N * K];
    lora_error err;
    check_normal(x, M * K, 1, 1);
    check_normal(w, N * K, 2, 1);
    lora_weight weight = lora_weight_f32(w, N, K, K);
    lora_linear_layer layer = {.w = &weight, .y = lora_mat_f32(y, M, N, N)};
    CHECK(lora_linear_forward(ctx, lora_mat_f32(x, M, K, K), 1, &layer, &err) == LORA_OK, "%s", err.message);
}

static void check_costs(void) {
    lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 2);
    float off[5 * 24], on[5 * 24];
    run_linear(ctx, off);
    CHECK(lora_ctx_op_cost(ctx, LORA_OP_LINEAR_FORWARD).calls == 0, "counted while off");
    lora_ctx_set_profiling(ctx, true);
    run_linear(ctx, on);
    run_linear(ctx, on);
    lora_ctx_set_profiling(ctx, false);
    run_linear(ctx, on);
    lora_op_cost cost = lora_ctx_op_cost(ctx, LORA_OP_LINEAR_FORWARD);
    CHECK(cost.calls == 2, "%lld calls", (long long)cost.calls);
    CHECK(cost.flops == 2 * 2.0 * 5 * 24 * 40, "%g flops", cost.flops);
    CHECK(cost.bytes == 2 * 4.0 * (24 * 40 + 5 * 24 + 5 * 40), "%g bytes", cost.bytes);
    CHECK(cost.seconds > 0 && cost.seconds < 10, "%g s", cost.seconds);
    CHECK(memcmp(off, on, sizeof off) == 0, "profiling changed the result");
    for (int op = 0; op < LORA_OPS; op++)
        CHECK(op == LORA_OP_LINEAR_FORWARD || lora_ctx_op_cost(ctx, (lora_op)op).calls == 0, "%s counted", lora_op_name((lora_op)op));
    lora_ctx_set_profiling(ctx, true);
    CHECK(lora_ctx_op_cost(ctx, LORA_OP_LINEAR_FORWARD).calls == 0, "not cleared");
    CHECK(lora_ctx_op_cost(ctx, LORA_OPS).calls == 0 && strcmp(lora_op_name(LORA_OPS), "unknown") == 0, "past the end");
    lora_ctx_destroy(ctx);
}

static void check_peak(void) {
    FOR_EACH_ISA(isa) {
        lora_ctx *ctx = check_ctx(isa, 1);
        double peak = lora_ctx_fma_peak(ctx);
        if (isa >= LORA_ISA_AVX2)
            CHECK(peak > (is_emulated() ? 0 : 1e9) && peak < 1e13, "%s: %g flop/s", lora_isa_name(isa), peak);
        else
            CHECK(peak == 0, "%s: %g flop/s without a loop", lora_isa_name(isa), peak);
        lora_ctx_destroy(ctx);
    }
}

void check_profile(void) {
    check_pairs();
    check_costs();
    check_peak();
}
