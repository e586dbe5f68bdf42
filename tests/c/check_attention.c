/* Attention against float64 loops, on every rung of this CPU and in both precisions; bits against threads, packing and caching. */
#include <math.h>
#include <string.h>

#include "tests/c/attention_batch.h"
#include "lora_c/base/cpuinfo.h"
#include "lora_c/base/util.h"

/* The contexts of the rungs by number, and behind the best one that of precision fast. */
typedef struct rungs {
    lora_ctx *ctx[LORA_ISA_LAST + 2];
    int n;
} rungs;

/* The relative error of the operands of a product. */
static double operand_error(const lora_ctx *ctx) { return strcmp(lora_ctx_operands(ctx), "bfloat16") ? 0 : 0x1p-8; }

static void check_shape(const rungs *all, int lowest, int64_t D, int64_t H, int64_t KV, int64_t window, float softcap) {
    static const int lengths[] = {1, 2, 130, 3, 17, 64, 65};
    attention_batch b = attention_batch_create(D, H, KV, window, 7, lengths, 1.0f);
    b.shape.softcap = softcap;
    for (int fast = 0; fast < 2; fast++) {
        attention_oracle a[7];
        for (int64_t s = 0; s < b.n; s++) a[s] = attention_batch_oracle(&b, s, fast ? operand_error(all->ctx[all->n - 1]) : 0, false);
        for (int i = fast ? all->n - 1 : lowest; i < all->n - 1 + fast; i++) {
            attention_batch_run(all->ctx[i], &b);
            for (int64_t s = 0; s < b.n; s++) attention_batch_compare(&b, s, &a[s], attention_rung(all->ctx[i]));
            CHECK(attention_batch_guards_hold(&b), "%s: wrote outside its outputs", attention_rung(all->ctx[i]));
        }
        for (int64_t s = 0; s < b.n; s++) attention_oracle_destroy(&a[s]);
    }
    attention_batch_destroy(&b);
}

static void check_shapes(const rungs *all) {
    static const int dims[] = {1, 3, 8, 16, 64, 80, 128}, heads[][2] = {{1, 1}, {4, 2}, {8, 4}, {9, 3}};
    static const int windows[] = {0, 1, 5, 64};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        for (size_t h = 0; h < 4; h++) {
            for (size_t w = 0; w < 4; w++) {
                if (dims[d] > 16 && w != h) /* wide heads: one window each, to bound the time */
                    continue;
                check_shape(all, dims[d] <= 3 ? LORA_ISA_REF : LORA_ISA_PORTABLE, dims[d], heads[h][0], heads[h][1], windows[w], 0);
                if (w == h) /* caps that bend the scores a little, much, and to a step */
                    check_shape(all, dims[d] <= 3 ? LORA_ISA_REF : LORA_ISA_PORTABLE, dims[d], heads[h][0], heads[h][1], windows[w],
                                w == 0   ? 50.0f
                                : w == 1 ? 1.0f
                                         : 0.25f);
            }
        }
    }
    check_shape(all, LORA_ISA_PORTABLE, 256, 2, 1, 0, 0);
    check_shape(all, LORA_ISA_PORTABLE, 4, 40, 1, 0, 0);  /* a group wider than a panel */
    check_shape(all, LORA_ISA_PORTABLE, 4, 40, 1, 20, 0); /* blocks of queries some of whose rows see no key of a block */
}

/* Logits of some thousands: nothing may overflow, and one key may take all the weight. */
static void check_large_logits(lora_ctx *ctx) {
    static const int lengths[] = {1, 70};
    attention_batch b = attention_batch_create(16, 4, 2, 0, 2, lengths, 60.0f);
    attention_batch_run(ctx, &b);
    for (int64_t s = 0; s < b.n; s++) {
        attention_oracle a = attention_batch_oracle(&b, s, operand_error(ctx), false);
        attention_batch_compare(&b, s, &a, "large logits");
        attention_oracle_destroy(&a);
    }
    attention_batch_destroy(&b);
}

static void check_threads(lora_isa isa, lora_precision precision) {
    static const int lengths[] = {300, 1, 97, 40}, threads[] = {2, 3, 8};
    lora_ctx *ctx = attention_context(isa, 1, precision);
    attention_batch a = attention_batch_create(24, 6, 2, 0, 4, lengths, 1.0f), b = a;
    b.out = attention_buffer(b.M * b.ld_out);
    b.dqkv = attention_buffer(b.M * b.ld);
    b.lse = attention_buffer(b.M * 6);
    attention_batch_run(ctx, &a);
    for (int i = 0; i < 3; i++) {
        lora_error err;
        CHECK(lora_ctx_set_threads(ctx, threads[i], &err) == LORA_OK, "threads: %s", err.message);
        attention_batch_run(ctx, &b);
        CHECK(attention_batch_same(&a, 0, &b, 0, a.M), "%s: %d threads change bits", attention_rung(ctx), threads[i]);
    }
    attention_buffer_free(b.out);
    attention_buffer_free(b.dqkv);
    attention_buffer_free(b.lse);
    attention_batch_destroy(&a);
    lora_ctx_destroy(ctx);
}

static void check_packing(lora_ctx *ctx, float softcap) {
    static const int lengths[] = {5, 200, 1, 33, 96, 97};
    for (int64_t window = 0; window <= 50; window += 50) {
        attention_batch all = attention_batch_create(20, 6, 3, window, 6, lengths, 1.0f);
        all.shape.softcap = softcap;
        attention_batch_run(ctx, &all);
        for (int s = 0; s < 6; s++) {
            attention_batch one = attention_batch_create(20, 6, 3, window, 1, &lengths[s], 1.0f);
            one.shape.softcap = softcap;
            memcpy(one.qkv, all.qkv + all.cu[s] * all.ld, (size_t)(one.M * one.ld) * sizeof(float));
            memcpy(one.dout, all.dout + all.cu[s] * all.ld_out, (size_t)(one.M * one.ld_out) * sizeof(float));
            attention_batch_run(ctx, &one);
            CHECK(attention_batch_same(&all, all.cu[s], &one, 0, one.M), "%s: packing changes bits of segment %d", attention_rung(ctx), s);
            attention_batch_destroy(&one);
        }
        attention_batch_destroy(&all);
    }
}

/* A prompt in pieces against the growing cache, down to single tokens, equals the prompt in one piece bit for bit. */
static void check_cache(lora_ctx *ctx, int64_t window, float softcap) {
    static const int length = 230, pieces[] = {100, 1, 1, 90, 37, 1};
    attention_batch b = attention_batch_create(20, 6, 2, window, 1, &length, 1.0f);
    b.shape.softcap = softcap;
    attention_batch_run(ctx, &b);
    float *o = attention_buffer(b.M * b.ld_out);
    int64_t done = 0;
    for (int i = 0; i < 6; i++) {
        int32_t cu[2] = {0, pieces[i]};
        const float *q = b.qkv + done * b.ld, *k = b.qkv + attention_q_width(&b);
        int64_t start = 0, length = done + pieces[i], width = attention_q_width(&b);
        lora_segments segments = {.n = 1, .cu_seqlens = cu, .on_device = cu};
        lora_kv kv = {.k = k, .v = k + attention_k_width(&b), .ldk = b.ld, .ldv = b.ld, .start = &start, .length = &length};
        lora_error err;
        lora_status status = lora_attention_forward(ctx, &b.shape, &segments, lora_mat_f32(q, pieces[i], width, b.ld), &kv,
                                                    lora_mat_f32(o + done * b.ld_out, pieces[i], width, b.ld_out), NULL, &err);
        CHECK(status == LORA_OK, "cache: %s", err.message);
        done += pieces[i];
    }
    CHECK(done == b.M && attention_same_rows(o, b.out, b.M, b.ld_out, b.ld_out - 1), "%s: cached pieces differ, window %d",
          attention_rung(ctx), (int)window);
    attention_buffer_free(o);
    attention_batch_destroy(&b);
}

/* The oracle's own gradient against central differences of its forward: L = sum of dout * o. */
static void check_oracle(float softcap) {
    static const int length = 6;
    attention_batch b = attention_batch_create(3, 4, 2, 4, 1, &length, 1.0f);
    b.shape.softcap = softcap;
    attention_oracle a = attention_batch_oracle(&b, 0, 0, false);
    const struct {
        double *x, *dx;
        int64_t n;
    } inputs[] = {{a.q, a.dq, a.T * 12}, {a.k, a.dk, a.T * 6}, {a.v, a.dv, a.T * 6}};
    for (int i = 0; i < 3; i++) {
        for (int64_t n = 0; n < inputs[i].n; n++) {
            const double h = 1e-5, x = inputs[i].x[n];
            double loss[2] = {0, 0};
            for (int side = 0; side < 2; side++) {
                inputs[i].x[n] = side ? x + h : x - h;
                attention_oracle_forward(&a);
                for (int64_t d = 0; d < a.T * 12; d++) loss[side] += a.dout[d] * a.o[d];
            }
            inputs[i].x[n] = x;
            double slope = (loss[1] - loss[0]) / (2 * h); /* error about h^2 + 1e-15 / h */
            CHECK(fabs(slope - inputs[i].dx[n]) < 1e-8, "oracle input %d element %d: %g against %g", i, (int)n, inputs[i].dx[n], slope);
        }
    }
    attention_oracle_destroy(&a);
    attention_batch_destroy(&b);
}

static void check_refusals(lora_ctx *ctx) {
    float x[64] = {0};
    lora_error err;
    int32_t cu[] = {0, 2}, falling[] = {2, 0}, beyond[] = {0, 3};
    int64_t start = 0, before = -1, two = 2, one = 1, three = 3;
    lora_attention_shape shape = {.n_heads = 2, .n_kv_heads = 1, .head_dim = 4, .scale = 0.5f}, heads = shape, cap = shape;
    heads.n_heads = 3, heads.n_kv_heads = 2;
    cap.softcap = -1;
    lora_segments all = {.n = 1, .cu_seqlens = cu, .on_device = cu}, none = {.n = 0},
                  down = {.n = 1, .cu_seqlens = falling, .on_device = falling};
    lora_segments long_ones = {.n = 1, .cu_seqlens = beyond, .on_device = beyond}, host = {.n = 1, .cu_seqlens = cu};
    lora_kv kv = {.k = x, .v = x, .ldk = 4, .ldv = 4, .start = &start, .length = &two}, few = kv, early = kv, more = kv, narrow = kv;
    few.length = &one;
    early.start = &before;
    more.length = &three;
    narrow.ldk = 3;
    lora_mat q = lora_mat_f32(x, 2, 8, 8), o = lora_mat_f32(x + 16, 2, 8, 8), wide = lora_mat_f32(x, 2, 12, 12),
             wide_o = lora_mat_f32(x + 24, 2, 12, 12);
    lora_mat nothing = lora_mat_f32(NULL, 0, 8, 8);
    CHECK(lora_attention_forward(ctx, &heads, &all, wide, &kv, wide_o, NULL, &err) == LORA_ESHAPE, "heads 3/2");
    CHECK(lora_attention_forward(ctx, &cap, &all, q, &kv, o, NULL, &err) == LORA_EINVAL, "softcap -1");
    CHECK(lora_attention_forward(ctx, &shape, &down, q, &kv, o, NULL, &err) == LORA_EINVAL, "cu falls");
    CHECK(lora_attention_forward(ctx, &shape, &long_ones, q, &more, o, NULL, &err) == LORA_EINVAL, "cu beyond the rows");
    CHECK(lora_attention_forward(ctx, &shape, &host, q, &kv, o, NULL, &err) == LORA_EINVAL, "cu not on the device");
    CHECK(lora_attention_forward(ctx, &shape, &all, q, &few, o, NULL, &err) == LORA_ESHAPE, "too few keys");
    CHECK(lora_attention_forward(ctx, &shape, &all, q, &early, o, NULL, &err) == LORA_EINVAL, "keys before the first");
    CHECK(lora_attention_forward(ctx, &shape, &all, q, &narrow, o, NULL, &err) == LORA_ESHAPE, "ldk too small");
    CHECK(lora_attention_forward(ctx, &shape, &all, lora_mat_f32(x, 2, 8, 7), &kv, o, NULL, &err) == LORA_ESHAPE, "ldq too small");
    CHECK(lora_attention_forward(ctx, &shape, &all, lora_mat_f32(x, 2, 7, 8), &kv, o, NULL, &err) == LORA_ESHAPE, "q too narrow");
    CHECK(lora_attention_forward(ctx, &shape, &all, lora_mat_f32(NULL, 2, 8, 8), &kv, o, NULL, &err) == LORA_EINVAL, "q is NULL");
    CHECK(lora_attention_forward(ctx, &shape, &all, q, &kv, lora_mat_f32(x + 8, 2, 8, 8), NULL, &err) == LORA_EINVAL, "o in q");
    CHECK(lora_attention_forward(ctx, &shape, &none, nothing, NULL, nothing, NULL, &err) == LORA_OK, "nothing to do");
}

void check_attention(void);
void check_attention(void) {
    lora_isa best = lora_cpu_best_isa();
    rungs all = {.n = best + 2};
    for (int i = 0; i < all.n; i++)
        all.ctx[i] = attention_context(i <= (int)best ? (lora_isa)i : best, 2, i <= (int)best ? LORA_PRECISION_EXACT : LORA_PRECISION_FAST);
    check_oracle(0);
    check_oracle(0.7f);
    check_shapes(&all);
    check_refusals(all.ctx[LORA_ISA_PORTABLE]);
    for (int i = LORA_ISA_PORTABLE; i < all.n; i++) {
        lora_ctx *ctx = all.ctx[i];
        check_large_logits(ctx);
        check_threads(lora_ctx_isa(ctx), lora_ctx_precision(ctx));
        check_packing(ctx, 0);
        check_packing(ctx, 0.7f);
        if (operand_error(ctx) > 0) /* keys of the past meet float32 operands in every precision */
            continue;
        check_cache(ctx, 0, 0);
        check_cache(ctx, 50, 0);
        check_cache(ctx, 50, 0.7f);
    }
    for (int i = 0; i < all.n; i++) lora_ctx_destroy(all.ctx[i]);
}
