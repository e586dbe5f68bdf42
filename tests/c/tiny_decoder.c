#include "tests/c/tiny_decoder.h"

#include <stdlib.h>
#include <string.h>

#include "lora_c/ops/ctx.h"
#include "tests/c/device_mirror.h"

enum { H = 24, I = 40, HEADS = 4, KV_HEADS = 2, D = 6, LAYERS = 2, R = 3 };

static const int64_t shapes[LORA_LAYER_MATRICES][2] = {{HEADS * D, H}, {KV_HEADS * D, H}, {KV_HEADS * D, H}, {H, HEADS * D}, {I, H}, {I, H},
                                                       {H, I}};

static lora_weight matrix(const float *data, int64_t rows, int64_t cols) { return lora_weight_f32(data, rows, cols, cols); }

static lora_status set_matrix(tiny_decoder *t, int64_t layer, int slot, lora_weight w, lora_error *err) {
    LORA_TRY(mirror_matrix(t->ctx, &w, NULL, err));
    return lora_decoder_set_matrix(t->decoder, layer, (lora_matrix_slot)slot, &w, NULL, err);
}

static lora_status set_norm(tiny_decoder *t, int64_t layer, int slot, const float *w, lora_error *err) {
    LORA_TRY(mirror_vector(t->ctx, &w, H, NULL, err));
    return lora_decoder_set_vector(t->decoder, layer, (lora_vector_slot)slot, w, H, NULL, err);
}

static lora_status set_layer(tiny_decoder *t, int64_t layer, float dropout, int skip, float **w, float **g, lora_error *err) {
    for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
        int64_t rows = shapes[slot][0], cols = shapes[slot][1];
        lora_weight m = matrix(*w, rows, cols);
        *w += rows * cols;
        if (layer == 1 && slot == skip) continue;
        LORA_TRY(set_matrix(t, layer, slot, m, err));
        lora_adapter a = {
            .rank = R, .A = *w, .B = *w + R * cols, .dA = *g, .dB = *g + R * cols, .scale = 0.5f, .dropout = dropout, .dropout_seed = 11};
        *w += R * (rows + cols);
        *g += R * (rows + cols);
        LORA_TRY(mirror_adapter(t->ctx, &a, rows, cols, err));
        LORA_TRY(lora_decoder_set_adapter(t->decoder, layer, (lora_matrix_slot)slot, &a, err));
    }
    LORA_TRY(set_norm(t, layer, LORA_INPUT_LAYERNORM, *w, err));
    return set_norm(t, layer, LORA_POST_ATTENTION_LAYERNORM, *w + H, err);
}

lora_status tiny_decoder_make(lora_ctx *ctx, float dropout, int skip, tiny_decoder *t, lora_error *err) {
    static const double inv_freq[D / 2] = {1, 0.1, 0.01};
    lora_decoder_config config = {.hidden_size = H,
                                  .intermediate_size = I,
                                  .num_hidden_layers = LAYERS,
                                  .num_attention_heads = HEADS,
                                  .num_key_value_heads = KV_HEADS,
                                  .head_dim = D,
                                  .vocab_size = TINY_VOCAB,
                                  .max_position_embeddings = 64,
                                  .norm_eps = 1e-5,
                                  .pre_norm = true,
                                  .gated_mlp = true,
                                  .embedding_scale = 1,
                                  .residual_scale = 1,
                                  .attention_scale = 0.4,
                                  .logits = {1, 0},
                                  .n_ropes = 1,
                                  .ropes = {{inv_freq, D, 1}},
                                  .tie_word_embeddings = true};
    *t = (tiny_decoder){.ctx = ctx};
    LORA_TRY(lora_decoder_create(ctx, &config, &t->decoder, err));
    t->n_weights = 40000;
    t->n_grads = 8000;
    t->weights = malloc((size_t)t->n_weights * sizeof(float));
    t->grads = calloc((size_t)t->n_grads, sizeof(float));
    check_normal(t->weights, t->n_weights, 21, 0.3f);
    float *w = t->weights, *g = t->grads;
    lora_weight embed = matrix(w, TINY_VOCAB, H);
    w += TINY_VOCAB * H;
    LORA_TRY(set_matrix(t, -1, LORA_EMBED_TOKENS, embed, err));
    LORA_TRY(set_norm(t, -1, LORA_FINAL_NORM, w, err));
    w += H;
    for (int64_t layer = 0; layer < LAYERS; layer++) {
        LORA_TRY(set_layer(t, layer, dropout, skip, &w, &g, err));
        w += 2 * H;
    }
    return LORA_OK;
}

void tiny_decoder_free(tiny_decoder *t) {
    lora_decoder_destroy(t->decoder);
    mirror_forget(t->ctx);
    free(t->weights);
    free(t->grads);
}

lora_batch tiny_batch(void) {
    static int32_t ids[TINY_TOKENS], targets[TINY_TOKENS], cu[] = {0, 1, 9, TINY_TOKENS};
    static float weight[TINY_TOKENS];
    for (int i = 0; i < TINY_TOKENS; i++) {
        ids[i] = (i * 17 + 3) % TINY_VOCAB;
        targets[i] = (i * 31 + 5) % TINY_VOCAB;
        weight[i] = i % 4 ? 1.0f : 0.0f;
    }
    return (lora_batch){
        .n_tokens = TINY_TOKENS, .n_segments = 3, .input_ids = ids, .cu_seqlens = cu, .targets = targets, .loss_weight = weight};
}

static double loss_at(lora_decoder *d, float *values, const float *kept, int64_t n, const float *direction, double step) {
    lora_batch batch = tiny_batch();
    lora_error err;
    double loss = 0;
    for (int64_t i = 0; i < n; i++) values[i] = (float)((double)kept[i] + step * (double)direction[i]);
    CHECK(MIRRORED(lora_decoder_loss(d, &batch, &loss, NULL, &err)) == LORA_OK, "%s", err.message);
    return loss;
}

void tiny_check_slope(const char *what, lora_decoder *d, float *values, int64_t n, const float *gradient, double tolerance) {
    float *direction = malloc((size_t)n * sizeof *direction), *kept = malloc((size_t)n * sizeof *kept);
    check_normal(direction, n, 31, 1);
    memcpy(kept, values, (size_t)n * sizeof *kept);
    double slope = 0, h = 1e-2;
    for (int64_t i = 0; i < n; i++) slope += (double)gradient[i] * (double)direction[i];
    double difference = (loss_at(d, values, kept, n, direction, h) - loss_at(d, values, kept, n, direction, -h)) / (2 * h);
    memcpy(values, kept, (size_t)n * sizeof *kept);
    CHECK(fabs(slope - difference) <= tolerance * (1 + fabs(difference)), "%s: slope %g, by differences %g", what, slope, difference);
    free(direction);
    free(kept);
}

void tiny_check_memory(lora_ctx *ctx, size_t bytes, lora_status (*make)(lora_ctx *ctx, void *memory, lora_error *err)) {
    tiny_decoder *t = malloc(bytes);
    for (int n = 0;; n++) {
        lora_error err;
        double loss;
        lora_batch batch = tiny_batch();
        ctx->engine->mem.fail_after = n;
        lora_status status = make(ctx, t, &err);
        if (status == LORA_OK) status = lora_decoder_forward_backward(t->decoder, &batch, 1, &loss, &err);
        ctx->engine->mem.fail_after = -1;
        CHECK(status == LORA_OK || status == LORA_ENOMEM, "%s", err.message);
        if (t->decoder) tiny_decoder_free(t);
        if (status == LORA_OK || n == 200) {
            CHECK(status == LORA_OK, "the step never succeeded");
            break;
        }
    }
    free(t);
}
