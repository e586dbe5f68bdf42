/* Attention in precision fast: its error beside that of a float64 computation whose operands are rounded to bfloat16. */
#include "lora_c/ops/ctx.h"
#include "tests/c/attention_errors.h"

enum { SEGMENTS = 5 };
static const int lengths[SEGMENTS] = {1, 2, 290, 37, 127};

static void check_error(lora_ctx *ctx, int64_t D, int64_t H, int64_t KV, int64_t window, float softcap) {
    attention_batch b = attention_batch_create(D, H, KV, window, SEGMENTS, lengths, 1.5f);
    b.shape.softcap = softcap;
    attention_batch_run(ctx, &b);
    attention_errors_check(&b, "cpu");
    attention_batch_destroy(&b);
}

/* Segments with past keys get the bits of precision exact, whatever stands beside them. */
static void check_past(lora_ctx *ctx) {
    static const int both[] = {40, 90};
    attention_batch b = attention_batch_create(20, 6, 2, 0, 2, both, 1.0f);
    const float *k = b.qkv + attention_q_width(&b), *v = k + attention_k_width(&b);
    int64_t start[2] = {0, 0}, length[2] = {40, 130}, width = attention_q_width(&b); /* the second continues the first */
    lora_kv kv = {.k = k, .v = v, .ldk = b.ld, .ldv = b.ld, .start = start, .length = length};
    lora_segments segments = attention_batch_segments(&b);
    lora_mat q = lora_mat_f32(b.qkv, b.M, width, b.ld);
    lora_error err;
    float *exact = attention_buffer(b.M * b.ld_out);
    for (int precision = 0; precision < 2; precision++) {
        CHECK(lora_ctx_set_precision(ctx, precision ? LORA_PRECISION_FAST : LORA_PRECISION_EXACT, &err) == LORA_OK, "precision");
        lora_mat o = lora_mat_f32(precision ? b.out : exact, b.M, width, b.ld_out);
        lora_status status = lora_attention_forward(ctx, &b.shape, &segments, q, &kv, o, NULL, &err);
        CHECK(status == LORA_OK, "past: %s", err.message);
    }
    int64_t at = 40 * b.ld_out;
    CHECK(attention_same_rows(exact + at, b.out + at, 90, b.ld_out, b.ld_out - 1), "fast changes a segment with past keys");
    CHECK(!attention_same_rows(exact, b.out, 40, b.ld_out, b.ld_out - 1), "fast does not change a segment without past keys");
    attention_buffer_free(exact);
    attention_batch_destroy(&b);
}

void check_attention_fast(void);
void check_attention_fast(void) {
    lora_ctx *ctx = attention_context(lora_cpu_best_isa(), 2, LORA_PRECISION_FAST);
    const lora_kernels *kernels = &ctx->engine->kernels;
    if (kernels->attention_fast.forward != kernels->attention.forward) { /* elsewhere attention is float32, see check_attention */
        check_error(ctx, 64, 3, 1, 0, 0);
        check_error(ctx, 64, 3, 1, 70, 0);
        check_error(ctx, 20, 4, 4, 0, 0);
        check_error(ctx, 48, 8, 1, 0, 3.0f);
        check_error(ctx, 7, 2, 1, 1, 0);
        check_error(ctx, 130, 2, 2, 0, 0);
        check_past(ctx);
    }
    lora_ctx_destroy(ctx);
}
