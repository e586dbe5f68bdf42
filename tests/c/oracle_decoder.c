/* The decoder with the weights of the oracle's model. */
#include <string.h>

#include "tests/c/decoder_oracle_numbers.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"

lora_decoder_config oracle_config(const oracle_model *m) {
    static int32_t windows[O_LAYERS];
    static int8_t ropes[O_LAYERS];
    const oracle_options *o = &m->options;
    for (int i = 0; i < O_LAYERS; i++) {
        windows[i] = (int32_t)window_of(o, i);
        ropes[i] = (int8_t)rope_of(o, i);
    }
    int64_t rotary = o->partial_rope ? OD / 2 : OD;
    return (lora_decoder_config){.hidden_size = OH,
                                 .intermediate_size = OI,
                                 .num_hidden_layers = O_LAYERS,
                                 .num_attention_heads = O_HEADS,
                                 .num_key_value_heads = O_KV_HEADS,
                                 .head_dim = OD,
                                 .vocab_size = OV,
                                 .max_position_embeddings = O_POSITIONS,
                                 .norm = o->layer_norm ? LORA_NORM_LAYER : LORA_NORM_RMS,
                                 .norm_eps = EPS,
                                 .norm_weight_offset = o->offset ? 1 : 0,
                                 .pre_norm = !o->no_pre_norm,
                                 .post_norm = o->post_norm,
                                 .qk_norm = o->qk_norm,
                                 .activation = o->gelu ? LORA_GELU_TANH : LORA_SILU,
                                 .gated_mlp = !o->ungated,
                                 .learned_positions = o->positions,
                                 .tie_word_embeddings = o->tied,
                                 .embedding_scale = o->scales ? EMBEDDING_SCALE : 1,
                                 .residual_scale = o->scales ? RESIDUAL_SCALE : 1,
                                 .attention_scale = o->scales ? ATTENTION_SCALE : 1 / sqrt(OD),
                                 .attention_softcap = o->softcaps ? ATTENTION_CAP : 0,
                                 .logits = {o->scales ? (float)LOGIT_SCALE : 1, o->softcaps ? (float)LOGIT_CAP : 0},
                                 .sliding_window = windows,
                                 .n_ropes = o->local_layers || o->switched_rope ? 2 : 1,
                                 .ropes = {{INV_FREQ[0], rotary, ROPE_SCALE}, {INV_FREQ[1], rotary, ROPE_SCALE}},
                                 .layer_rope = o->local_layers ? ropes : NULL,
                                 .rope_switch = o->switched_rope ? SWITCH : 0};
}

static lora_status set_adapter(const oracle_model *m, lora_ctx *ctx, lora_decoder *d, int i, const bool *trains, lora_error *err) {
    int slot = i % O_PER_LAYER - O_B, a = i - O_B + O_A + a_slot(&m->options, slot) - slot;
    const oracle_tensor *A = &m->t[a], *B = &m->t[i];
    lora_adapter adapter = {.rank = OR,
                            .A = A->w,
                            .B = B->w,
                            .dA = !trains || trains[a] ? A->g : NULL,
                            .dB = !trains || trains[i] ? B->g : NULL,
                            .scale = (float)SCALE,
                            .dropout = m->options.dropout,
                            .dropout_seed = SEED};
    LORA_TRY(mirror_adapter(ctx, &adapter, B->rows, A->cols, err));
    return lora_decoder_set_adapter(d, i / O_PER_LAYER, (lora_matrix_slot)slot, &adapter, err);
}

/* The gradient of tensor i, where it trains. */
static float *gradient_of(const oracle_model *m, int i, const bool *trains) { return !trains || trains[i] ? m->t[i].g : NULL; }

static lora_status set_scaling(const oracle_model *m, lora_ctx *ctx, lora_decoder *d, int i, const bool *trains, lora_error *err) {
    int slot = i % O_PER_LAYER - O_SCALING;
    lora_scaling scaling = {.l = m->t[i].w, .dl = gradient_of(m, i, trains), .input = scales_input(slot)};
    LORA_TRY(mirror_vector(ctx, &scaling.l, m->t[i].n, &scaling.dl, err));
    return lora_decoder_set_scaling(d, i / O_PER_LAYER, (lora_matrix_slot)slot, &scaling, err);
}

/* i: its down */
static lora_status set_bottleneck(const oracle_model *m, lora_ctx *ctx, lora_decoder *d, int i, const bool *trains, lora_error *err) {
    static const int parts[] = {O_DOWN - O_DOWN, O_DOWN_BIAS - O_DOWN, O_UP - O_DOWN, O_UP_BIAS - O_DOWN};
    int64_t layer = i / O_PER_LAYER;
    const float *w[4];
    float *g[4];
    for (int p = 0; p < 4; p++) {
        w[p] = m->t[i + parts[p]].w;
        g[p] = gradient_of(m, i + parts[p], trains);
        LORA_TRY(mirror_vector(ctx, &w[p], m->t[i + parts[p]].n, &g[p], err));
    }
    lora_bottleneck b = {.size = O_SIZE,
                         .activation = BOTTLENECK_ACTIVATION[layer],
                         .scale = (float)BOTTLENECK_SCALE,
                         .down = w[0],
                         .down_bias = w[1],
                         .up = w[2],
                         .up_bias = w[3],
                         .ddown = g[0],
                         .ddown_bias = g[1],
                         .dup = g[2],
                         .dup_bias = g[3]};
    return lora_decoder_set_bottleneck(d, layer, (lora_bottleneck_place)(i % O_PER_LAYER - O_DOWN), &b, err);
}

static lora_status set_matrix(lora_ctx *ctx, lora_decoder *d, int64_t layer, lora_matrix_slot slot, const oracle_tensor *t, float *g,
                              lora_error *err) {
    lora_weight w = lora_weight_f32(t->w, t->rows, t->cols, t->cols);
    LORA_TRY(mirror_matrix(ctx, &w, &g, err));
    return lora_decoder_set_matrix(d, layer, slot, &w, g, err);
}

static lora_status set_vector(lora_ctx *ctx, lora_decoder *d, int64_t layer, int slot, const oracle_tensor *t, float *g, lora_error *err) {
    const float *v = t->w;
    LORA_TRY(mirror_vector(ctx, &v, t->n, &g, err));
    return lora_decoder_set_vector(d, layer, (lora_vector_slot)slot, v, t->n, g, err);
}

static lora_status set_virtual(const oracle_model *m, lora_ctx *ctx, lora_decoder *d, const bool *trains, lora_error *err) {
    float *w[6], *g[6]; /* values, then the encoder's */
    for (int i = 0; i < 6; i++) {
        const oracle_tensor *t = &m->t[O_VALUES + i];
        w[i] = t->w;
        g[i] = !trains || trains[O_VALUES + i] ? t->g : NULL;
        LORA_TRY(mirror_floats(ctx, &w[i], t->n, err));
        LORA_TRY(mirror_floats(ctx, &g[i], t->n, err));
    }
    lora_prefix_encoder encoder = {.width = O_ENCODER_WIDTH,
                                   .hidden = O_ENCODER_HIDDEN,
                                   .embedding = w[1],
                                   .w1 = w[2],
                                   .b1 = w[3],
                                   .w2 = w[4],
                                   .b2 = w[5],
                                   .dembedding = g[1],
                                   .dw1 = g[2],
                                   .db1 = g[3],
                                   .dw2 = g[4],
                                   .db2 = g[5]};
    lora_virtual_tokens tokens = {.kind = m->options.virtual == O_PROMPT ? LORA_PROMPT : LORA_PREFIX,
                                  .n = O_VIRTUAL,
                                  .values = w[0],
                                  .gradient = g[0],
                                  .scale = (float)PROMPT_SCALE,
                                  .encoder = m->options.virtual == O_ENCODED_PREFIX ? &encoder : NULL};
    return lora_decoder_set_virtual_tokens(d, &tokens, err);
}

static lora_status set_tensor(const oracle_model *m, lora_ctx *ctx, lora_decoder *d, int i, const bool *trains, lora_error *err) {
    static const lora_matrix_slot globals[] = {LORA_EMBED_TOKENS, LORA_LM_HEAD, LORA_EMBED_POSITIONS};
    const oracle_tensor *t = &m->t[i];
    float *g = !trains || trains[i] ? t->g : NULL;
    int64_t layer = i < O_EMBED ? i / O_PER_LAYER : -1;
    int within = i % O_PER_LAYER, vector = -1;
    if (i == O_TENSORS - 1 && m->options.virtual) return set_virtual(m, ctx, d, trains, err);
    if (!t->w || i >= O_VALUES) return LORA_OK; /* those of virtual tokens are set together with the last one */
    if (i >= O_FINAL_NORM)
        vector = LORA_FINAL_NORM + (i == O_FINAL_NORM ? 0 : LORA_NORM_BIAS);
    else if (i >= O_EMBED)
        return set_matrix(ctx, d, -1, globals[i - O_EMBED], t, g, err);
    else if (within < O_BIAS)
        return set_matrix(ctx, d, layer, (lora_matrix_slot)within, t, g, err);
    else if (within < O_NORM)
        vector = LORA_BIAS + within - O_BIAS;
    else if (within < O_NORM_BIAS)
        vector = within - O_NORM;
    else if (within < O_A)
        vector = LORA_NORM_BIAS + within - O_NORM_BIAS;
    else if (within < O_SCALING)
        return within < O_B ? LORA_OK : set_adapter(m, ctx, d, i, trains, err); /* A is set together with B */
    else if (within < O_DOWN)
        return set_scaling(m, ctx, d, i, trains, err);
    else
        return within < O_DOWN_BIAS ? set_bottleneck(m, ctx, d, i, trains, err) : LORA_OK; /* its parts are set together */
    return set_vector(ctx, d, layer, vector, t, g, err);
}

void oracle_set_tensor(const oracle_model *m, lora_ctx *ctx, lora_decoder *d, int tensor, const bool *trains) {
    lora_error err = {0};
    CHECK(set_tensor(m, ctx, d, tensor, trains, &err) == LORA_OK, "%s", err.message);
}

lora_decoder *oracle_decoder(const oracle_model *m, lora_ctx *ctx, const bool *trains) {
    lora_decoder_config config = oracle_config(m);
    lora_decoder *d = NULL;
    lora_error err = {0};
    CHECK(lora_decoder_create(ctx, &config, &d, &err) == LORA_OK, "%s", err.message);
    for (int i = 0; i < O_TENSORS; i++) oracle_set_tensor(m, ctx, d, i, trains);
    return d;
}

lora_batch oracle_batch(void) {
    static const int32_t ids[O_TOKENS] = {3, 17, 3, 36, 0, 8, 21, 21, 5, 30, 3, 12, 9};
    static const int32_t targets[O_TOKENS] = {17, 3, 36, 0, 11, -7, 21, 5, 30, 3, 12, 9, 36};
    static const int32_t cu_seqlens[O_SEGMENTS + 1] = {0, 5, 6, O_TOKENS};
    static const float loss_weight[O_TOKENS] = {1, 0.5f, 1, 0, 1, 0, 0, 1, 1, 2, 0, 1, 0.25f};
    return (lora_batch){.n_tokens = O_TOKENS,
                        .n_segments = O_SEGMENTS,
                        .input_ids = ids,
                        .cu_seqlens = cu_seqlens,
                        .targets = targets,
                        .loss_weight = loss_weight,
                        .dropout_step = 5};
}

/* What the gradients of layers were when a pass said that they are complete. */
typedef struct done_layers {
    const oracle_model *m;
    int64_t next; /* layers are done from the last one down */
    uint64_t sums[O_LAYERS];
} done_layers;

static uint64_t sum_of_layer(const oracle_model *m, int64_t layer) {
    uint64_t sum = 0;
    for (int64_t i = layer * O_PER_LAYER; i < (layer + 1) * O_PER_LAYER; i++) {
        const uint32_t *bits = (const uint32_t *)m->t[i].g;
        for (int64_t k = 0; bits && k < m->t[i].n; k++) sum = sum * 31 + bits[k];
    }
    return sum;
}

static void keep_done(void *arg, int64_t layer) {
    done_layers *done = arg;
    CHECK(layer == done->next, "layer %lld is done before layer %lld", (long long)layer, (long long)done->next);
    done->sums[layer] = sum_of_layer(done->m, layer);
    done->next = layer - 1;
}

/* A layer that was done is not written to again; below the last one that was, nothing trains. Copies on a device are not seen here. */
static void check_done(const done_layers *done) {
    for (int64_t layer = 0; layer < O_LAYERS; layer++) {
        uint64_t before = layer > done->next ? done->sums[layer] : sum_of_layer(done->m, layer);
        CHECK(layer > done->next ? before == sum_of_layer(done->m, layer) : before == 0, "layer %lld changes after it was done",
              (long long)layer);
    }
}

double oracle_step(oracle_model *m, lora_decoder *d) {
    lora_batch batch = oracle_batch();
    lora_error err = {0};
    double loss = NAN;
    done_layers done = {.m = m, .next = O_LAYERS - 1};
    bool is_cpu = strcmp(device_in_use()->name, "cpu") == 0;
    oracle_zero_grad(m);
    if (is_cpu) lora_decoder_on_layer_done(d, keep_done, &done);
    CHECK(MIRRORED(lora_decoder_forward_backward(d, &batch, 0.5f, &loss, &err)) == LORA_OK, "%s", err.message);
    lora_decoder_on_layer_done(d, NULL, NULL);
    if (is_cpu) check_done(&done);
    same_on_every_device("loss", &loss, sizeof loss);
    for (int i = 0; i < O_TENSORS; i++)
        if (m->t[i].g) same_on_every_device(oracle_name(i), m->t[i].g, (size_t)m->t[i].n * sizeof(float));
    return loss;
}

void oracle_same_gradients(const oracle_model *got, const oracle_model *want, const char *what) {
    for (int i = 0; i < O_TENSORS; i++)
        if (got->t[i].g)
            CHECK(memcmp(got->t[i].g, want->t[i].g, (size_t)want->t[i].n * sizeof(float)) == 0, "%s: other bits in %s", what,
                  oracle_name(i));
}
