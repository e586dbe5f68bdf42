/* The decoder's promises: gradients, recomputation, threads, packing, the KV cache, refusals.
 * Its numbers are compared with recorded runs of a peer in tests/python/test_model_golden.py. */
#include <stdlib.h>
#include <string.h>

#include "tests/c/tiny_decoder.h"

static double loss_of(tiny_decoder *t) {
    lora_batch batch = tiny_batch();
    lora_error err;
    double loss = 0;
    CHECK(lora_decoder_loss(t->decoder, &batch, &loss, NULL, &err) == LORA_OK, "%s", err.message);
    return loss;
}

/* The gradient along a random direction of all weights of one adapter matrix, against a central difference of the loss.
 * float32 losses of about 60 carry an error of some 1e-5; with a step of 1e-2 that is 1e-3 of slopes of order 1. */
static void check_gradient(lora_ctx *ctx) {
    tiny_decoder t;
    lora_error err;
    CHECK(tiny_decoder_make(ctx, 0, -1, &t, &err) == LORA_OK, "%s", err.message);
    lora_batch batch = tiny_batch();
    double loss;
    CHECK(lora_decoder_forward_backward(t.decoder, &batch, 1, &loss, &err) == LORA_OK, "%s", err.message);
    CHECK(fabs(loss - loss_of(&t)) < 1e-4 * loss, "the training loss is the evaluation loss: %f, %f", loss, loss_of(&t));
    const int64_t H = 24;
    float *A = t.weights + TINY_VOCAB * H + H + 24 * 24, *dA = t.grads; /* layer 0, q_proj: A (3, 24) then B (24, 3) */
    const int n = 3 * (24 + 24);
    double slope = 0, norm = 0;
    for (int i = 0; i < n; i++) {
        slope += (double)dA[i] * (double)dA[i];
        norm += (double)dA[i] * (double)dA[i];
    }
    norm = sqrt(norm);
    const double step = 2e-2;
    float *saved = malloc((size_t)n * sizeof *saved);
    memcpy(saved, A, (size_t)n * sizeof *saved);
    double side[2];
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < n; i++) A[i] = saved[i] + (float)((s ? -step : step) * (double)dA[i] / norm);
        side[s] = loss_of(&t);
    }
    double difference = (side[0] - side[1]) / (2 * step);
    CHECK(norm > 1e-3 && fabs(difference - slope / norm) < 1e-2 * norm, "%s: slope %g, difference %g", lora_isa_name(lora_ctx_isa(ctx)), slope / norm, difference);
    free(saved);
    tiny_decoder_free(&t);
}

static void gradients(lora_isa isa, int threads, lora_recompute recompute, float *out) {
    lora_ctx *ctx = check_ctx(isa, threads);
    tiny_decoder t;
    lora_error err;
    CHECK(tiny_decoder_make(ctx, 0.2f, -1, &t, &err) == LORA_OK, "%s", err.message);
    lora_decoder_set_recompute(t.decoder, recompute);
    lora_batch batch = tiny_batch();
    double loss;
    for (int i = 0; i < 3; i++) {
        batch.dropout_step = (uint64_t)i;
        CHECK(lora_decoder_forward_backward(t.decoder, &batch, 0.1f, &loss, &err) == LORA_OK, "%s", err.message);
    }
    memcpy(out, t.grads, 8000 * sizeof *out);
    tiny_decoder_free(&t);
    lora_ctx_destroy(ctx);
}

static void check_same_bits(lora_isa isa) {
    float *want = malloc(8000 * sizeof *want), *got = malloc(8000 * sizeof *got);
    gradients(isa, 1, LORA_RECOMPUTE_NONE, want);
    static const int threads[] = {2, 3, 8};
    for (int i = 0; i < 3; i++) {
        gradients(isa, threads[i], i == 1 ? LORA_RECOMPUTE_LAYER : LORA_RECOMPUTE_NONE, got);
        CHECK(memcmp(want, got, 8000 * sizeof *got) == 0, "%s: %d threads change bits", lora_isa_name(isa), threads[i]);
    }
    free(want);
    free(got);
}

/* Cached decoding in pieces gives the logits of the whole segment, up to the rounding of another path for few tokens. */
static void check_cache(lora_ctx *ctx) {
    tiny_decoder t;
    lora_error err;
    CHECK(tiny_decoder_make(ctx, 0, -1, &t, &err) == LORA_OK, "%s", err.message);
    lora_batch batch = tiny_batch();
    float *all = malloc(TINY_TOKENS * TINY_VOCAB * sizeof *all), *last = malloc(2 * TINY_VOCAB * sizeof *last);
    CHECK(lora_decoder_logits(t.decoder, &batch, all, &err) == LORA_OK, "%s", err.message);
    lora_kv_cache *cache;
    CHECK(lora_kv_cache_create(t.decoder, 2, 20, &cache, &err) == LORA_OK, "%s", err.message);
    int32_t both[13], sequences[] = {1, 0}; /* segments 1 (tokens 1..8) and 2 (tokens 9..22), eight and five tokens first */
    memcpy(both, batch.input_ids + 1, 8 * sizeof *both);
    memcpy(both + 8, batch.input_ids + 9, 5 * sizeof *both);
    CHECK(lora_decoder_decode(t.decoder, cache, 2, (int32_t[]){0, 8, 13}, sequences, both, last, &err) == LORA_OK, "%s", err.message);
    for (int i = 14; i < TINY_TOKENS; i++)
        CHECK(lora_decoder_decode(t.decoder, cache, 1, (int32_t[]){0, 1}, (int32_t[]){0}, batch.input_ids + i, last + TINY_VOCAB, &err) == LORA_OK,
              "%s", err.message);
    double worst = 0;
    for (int v = 0; v < TINY_VOCAB; v++) {
        worst = fmax(worst, fabs((double)last[v] - (double)all[8 * TINY_VOCAB + v]));
        worst = fmax(worst, fabs((double)last[TINY_VOCAB + v] - (double)all[(TINY_TOKENS - 1) * TINY_VOCAB + v]));
    }
    CHECK(worst < 1e-4, "%s: cached logits off by %g", lora_isa_name(lora_ctx_isa(ctx)), worst);
    CHECK(lora_kv_cache_length(cache, 0) == 14 && lora_kv_cache_length(cache, 1) == 8, "lengths");
    CHECK(lora_decoder_decode(t.decoder, cache, 1, (int32_t[]){0, 8}, (int32_t[]){0}, both, last, &err) == LORA_EINVAL, "beyond max_tokens");
    CHECK(lora_kv_cache_length(cache, 0) == 14, "a refused call leaves the cache alone");
    lora_kv_cache_destroy(cache);
    free(all);
    free(last);
    tiny_decoder_free(&t);
}

static void check_refusals(lora_ctx *ctx) {
    tiny_decoder t;
    lora_error err;
    double loss;
    CHECK(tiny_decoder_make(ctx, 0, LORA_UP_PROJ, &t, &err) == LORA_OK, "%s", err.message);
    lora_batch batch = tiny_batch();
    CHECK(lora_decoder_loss(t.decoder, &batch, &loss, NULL, &err) == LORA_EINVAL && strstr(err.message, "layers.1.up_proj"), "%s", err.message);
    tiny_decoder_free(&t);
    CHECK(tiny_decoder_make(ctx, 0, -1, &t, &err) == LORA_OK, "%s", err.message);
    int32_t falling[] = {0, 9, 9, TINY_TOKENS}, ids[TINY_TOKENS] = {0};
    batch.cu_seqlens = falling;
    CHECK(lora_decoder_loss(t.decoder, &batch, &loss, NULL, &err) == LORA_EINVAL && strstr(err.message, "cu_seqlens"), "%s", err.message);
    batch = tiny_batch();
    ids[7] = TINY_VOCAB;
    batch.input_ids = ids;
    CHECK(lora_decoder_loss(t.decoder, &batch, &loss, NULL, &err) == LORA_EINVAL && strstr(err.message, "7"), "%s", err.message);
    lora_weight wrong = {.kind = LORA_WEIGHT_F32, .rows = 3, .cols = 3, .ld = 3, .data = t.weights};
    CHECK(lora_decoder_set_matrix(t.decoder, 1, LORA_Q_PROJ, &wrong, NULL, &err) == LORA_ESHAPE && strstr(err.message, "layers.1.q_proj"), "%s",
          err.message);
    tiny_decoder_free(&t);
}

void check_decoder(void) {
    FOR_EACH_ISA(isa) {
        lora_ctx *ctx = check_ctx(isa, 2);
        check_gradient(ctx);
        check_cache(ctx);
        check_refusals(ctx);
        lora_ctx_destroy(ctx);
        check_same_bits(isa);
    }
}
