/* The decoder without gradients: logits, packing, the KV cache. And what it refuses. */
#include <stdlib.h>
#include <string.h>

#include "lora_c/ops/ctx.h"
#include "tests/c/decoder_oracle.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"

/* logits of order 1 to 4 after some 20 float32 reductions */
static const double LOGIT_TOLERANCE = 2e-5;

static double difference(const float *a, const double *b) {
    double worst = 0;
    for (int v = 0; v < OV; v++) worst = worse(worst, fabs((double)a[v] - b[v]));
    return worst;
}

static void check_logits(const oracle_model *m, lora_decoder *d, double *want) {
    lora_batch batch = oracle_batch();
    lora_error err = {0};
    guarded logits = guarded_new(O_TOKENS * OV, 1);
    oracle_logits(m, &batch, false, want);
    batch.targets = NULL; /* neither is read */
    batch.loss_weight = NULL;
    CHECK(lora_decoder_logits(d, &batch, logits.data, &err) == LORA_OK, "%s", err.message);
    same_on_every_device("logits", logits.data, O_TOKENS * OV * sizeof(float));
    for (int t = 0; t < O_TOKENS; t++)
        CHECK(difference(logits.data + t * OV, want + t * OV) < LOGIT_TOLERANCE, "logits of token %d are off", t);
    CHECK(guarded_ok(&logits), "logits: written outside");
    guarded_free(&logits);
}

/* Three segments in one batch lose what they lose one by one. */
static void check_packing(lora_decoder *d) {
    lora_batch batch = oracle_batch();
    lora_error err = {0};
    float together[O_TOKENS], alone[O_TOKENS];
    double loss, part, sum = 0;
    CHECK(lora_decoder_loss(d, &batch, &loss, together, &err) == LORA_OK, "%s", err.message);
    for (int s = 0; s < O_SEGMENTS; s++) {
        int32_t begin = batch.cu_seqlens[s], cu[2] = {0, batch.cu_seqlens[s + 1] - begin};
        lora_batch one = {.n_tokens = cu[1],
                          .n_segments = 1,
                          .input_ids = batch.input_ids + begin,
                          .cu_seqlens = cu,
                          .targets = batch.targets + begin,
                          .loss_weight = batch.loss_weight + begin};
        CHECK(lora_decoder_loss(d, &one, &part, alone + begin, &err) == LORA_OK, "%s", err.message);
        sum += part;
    }
    same_on_every_device("losses of tokens", together, sizeof together);
    CHECK(fabs(sum - loss) < 1e-6 * loss, "packed loss %.9g, separate losses %.9g", loss, sum);
    for (int t = 0; t < O_TOKENS; t++)
        CHECK(fabs((double)together[t] - (double)alone[t]) < LOGIT_TOLERANCE, "token %d: loss %g packed, %g alone", t, (double)together[t],
              (double)alone[t]);
}

typedef struct piece {
    int sequence, begin, n; /* tokens of the batch that go to a sequence */
} piece;

static lora_status decode(lora_decoder *d, lora_kv_cache *cache, int n, const piece *pieces, float *logits, lora_error *err) {
    int32_t ids[O_TOKENS], cu[O_SEGMENTS + 1] = {0}, sequences[O_SEGMENTS];
    for (int i = 0; i < n; i++) {
        memcpy(ids + cu[i], oracle_batch().input_ids + pieces[i].begin, (size_t)pieces[i].n * sizeof *ids);
        cu[i + 1] = cu[i] + pieces[i].n;
        sequences[i] = pieces[i].sequence;
    }
    return lora_decoder_decode(d, cache, n, cu, sequences, ids, NULL, logits, err);
}

/* The last token of every piece must get the logits that the whole segment gives it. */
static void check_pieces(lora_decoder *d, lora_kv_cache *cache, int n, const piece *pieces, const double *want) {
    lora_error err = {0};
    guarded logits = guarded_new(n * OV, 3);
    CHECK(decode(d, cache, n, pieces, logits.data, &err) == LORA_OK, "%s", err.message);
    same_on_every_device("logits of a decode", logits.data, (size_t)(n * OV) * sizeof(float));
    for (int i = 0; i < n; i++)
        CHECK(difference(logits.data + i * OV, want + (pieces[i].begin + pieces[i].n - 1) * OV) < LOGIT_TOLERANCE,
              "sequence %d, tokens %d to %d: logits are off", pieces[i].sequence, pieces[i].begin, pieces[i].begin + pieces[i].n);
    CHECK(guarded_ok(&logits), "logits: written outside");
    guarded_free(&logits);
}

static void check_lengths(const lora_kv_cache *cache, int64_t a, int64_t b, int64_t c, const char *when) {
    int64_t got[] = {lora_kv_cache_length(cache, 0), lora_kv_cache_length(cache, 1), lora_kv_cache_length(cache, 2)};
    CHECK(got[0] == a && got[1] == b && got[2] == c, "%s: lengths %lld %lld %lld", when, (long long)got[0], (long long)got[1],
          (long long)got[2]);
}

static void check_failed_decode(lora_decoder *d, lora_ctx *ctx, lora_kv_cache *cache) {
    const char *too_long = lora_decoder_virtual_tokens(d) ? "got 16, 3 of them virtual" : "got 13";
    float logits[O_SEGMENTS * OV];
    lora_error err = {0};
    const int32_t one[] = {0, 1}, bad_id[] = {OV}, bad_sequence[] = {3}, both[] = {0, 1, 2}, twice[] = {1, 1}, ids[] = {1, 2};
    CHECK(lora_decoder_decode(d, cache, 1, one, (int32_t[]){1}, bad_id, NULL, logits, &err) == LORA_EINVAL && strstr(err.message, "37"),
          "%s", err.message);
    CHECK(lora_decoder_decode(d, cache, 1, one, bad_sequence, ids, NULL, logits, &err) == LORA_EINVAL && strstr(err.message, "sequences"),
          "%s", err.message);
    CHECK(lora_decoder_decode(d, cache, 2, both, twice, ids, NULL, logits, &err) == LORA_EINVAL && strstr(err.message, "distinct"), "%s",
          err.message);
    CHECK(decode(d, cache, 1, &(piece){0, 0, 6}, logits, &err) == LORA_EINVAL && strstr(err.message, too_long), "%s", err.message);
    check_lengths(cache, 7, 1, 5, "after refusals");
    ctx->engine->mem.fail_after = ctx->view.backend->host_memory ? 0 : 1; /* logits that come from elsewhere pass through memory there */
    piece more = {1, 0, 5};
    CHECK(decode(d, cache, 1, &more, logits, &err) == LORA_OK, "decoding in the steady state allocates: %s", err.message);
    ctx->engine->mem.fail_after = -1;
    CHECK(lora_kv_cache_truncate(cache, 1, 7, &err) == LORA_EINVAL, "a sequence cannot be cut to more than it has");
    CHECK(lora_kv_cache_truncate(cache, 1, 1, &err) == LORA_OK, "%s", err.message);
}

static void check_out_of_memory(const oracle_model *m, lora_ctx *ctx) {
    if (!device_allocations_fail(ctx)) return;
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    lora_kv_cache *cache = NULL;
    lora_error err = {0};
    float logits[OV];
    CHECK(lora_kv_cache_create(d, 3, 12, &cache, &err) == LORA_OK, "%s", err.message);
    ctx->engine->mem.fail_after = 0;
    CHECK(decode(d, cache, 1, &(piece){0, 0, 5}, logits, &err) == LORA_ENOMEM && strstr(err.message, "bytes"), "%s", err.message);
    ctx->engine->mem.fail_after = -1;
    check_lengths(cache, 0, 0, 0, "after running out of memory");
    CHECK(decode(d, cache, 1, &(piece){0, 0, 5}, logits, &err) == LORA_OK, "%s", err.message);
    lora_decoder_destroy(d); /* a cache may outlive its decoder */
    lora_kv_cache_destroy(cache);
}

static void check_cache(oracle_options options, lora_isa isa) {
    lora_ctx *ctx = device_ctx(isa, 2);
    oracle_model *m = oracle_new(options);
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    lora_kv_cache *cache = NULL;
    lora_error err = {0};
    double want[O_TOKENS * OV];
    check_logits(m, d, want);
    check_packing(d);
    CHECK(lora_kv_cache_create(d, 3, 12, &cache, &err) == LORA_OK, "%s", err.message);
    check_pieces(d, cache, 2, (piece[]){{2, 0, 3}, {0, 6, 4}}, want);             /* two prefills */
    check_pieces(d, cache, 3, (piece[]){{0, 10, 1}, {2, 3, 2}, {1, 5, 1}}, want); /* one token, two more, a new sequence */
    check_pieces(d, cache, 1, (piece[]){{0, 11, 1}}, want);
    check_pieces(d, cache, 1, (piece[]){{0, 12, 1}}, want);
    check_lengths(cache, 7, 1, 5, "after decoding");
    CHECK(lora_kv_cache_truncate(cache, 0, 2, &err) == LORA_OK, "%s", err.message);
    check_pieces(d, cache, 1, (piece[]){{0, 8, 5}}, want);
    check_failed_decode(d, ctx, cache);
    lora_kv_cache_destroy(cache);
    lora_decoder_destroy(d);
    check_out_of_memory(m, ctx);
    oracle_free(m);
    device_ctx_free(ctx);
}

void check_decoder_cache(void) {
    FOR_EACH_DEVICE_ISA(isa) {
        check_cache((oracle_options){.biases = true, .adapters = true, .dropout = 0.25f}, isa);
        check_cache((oracle_options){.tied = true, .window = 3}, isa);
        check_cache((oracle_options){.post_norm = true,
                                     .softcaps = true,
                                     .scales = true,
                                     .local_layers = true,
                                     .window = 3,
                                     .qk_norm = LORA_QK_NORM_HEAD,
                                     .gelu = true,
                                     .offset = true},
                    isa);
        check_cache((oracle_options){.biases = true, .adapters = true, .scalings = true, .bottlenecks = true}, isa);
        check_cache((oracle_options){.post_norm = true, .scales = true, .gelu = true, .scalings = true, .bottlenecks = true}, isa);
        check_cache((oracle_options){.no_pre_norm = true, .post_norm = true, .qk_norm = LORA_QK_NORM_ROW}, isa);
        check_cache((oracle_options){.layer_norm = true, .gelu = true, .ungated = true, .positions = true, .biases = true}, isa);
        check_cache((oracle_options){.adapters = true, .window = 4, .virtual = O_PROMPT}, isa);
        check_cache((oracle_options){.qk_norm = LORA_QK_NORM_HEAD, .window = 4, .virtual = O_PREFIX}, isa);
        check_cache((oracle_options){.layer_norm = true, .gelu = true, .ungated = true, .positions = true, .virtual = O_ENCODED_PREFIX},
                    isa);
    }
}

/* --- refusals --- */

#define REFUSED(expr, code, word)                                                                                                          \
    do {                                                                                                                                   \
        lora_error err = {0};                                                                                                              \
        lora_status status = (expr);                                                                                                       \
        CHECK(status == (code) && strstr(err.message, (word)), "%s: status %d, message: %s", #expr, (int)status, err.message);             \
    } while (0)

static void check_missing(const oracle_model *m, lora_ctx *ctx) {
    static const struct {
        int tensor;
        const char *name;
    } required[] = {{O_PER_LAYER + O_MATRIX + LORA_UP_PROJ, "layers.1.up_proj"},
                    {O_NORM, "layers.0.input_layernorm"},
                    {2 * O_PER_LAYER + O_NORM + 1, "layers.2.post_attention_layernorm"},
                    {O_EMBED, "embed_tokens"},
                    {O_HEAD, "lm_head"},
                    {O_FINAL_NORM, "norm: "}};
    lora_decoder_config config = oracle_config(m);
    lora_batch batch = oracle_batch();
    double loss;
    for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
        lora_decoder *d = NULL;
        REFUSED(lora_decoder_create(ctx, &config, &d, &err), LORA_OK, "");
        for (int t = 0; t < O_TENSORS; t++)
            if (t != required[i].tensor) oracle_set_tensor(m, ctx, d, t, NULL);
        REFUSED(lora_decoder_loss(d, &batch, &loss, NULL, &err), LORA_EINVAL, required[i].name);
        lora_decoder_destroy(d);
    }
}

static void check_bad_batches(oracle_model *m, lora_decoder *d) {
    const int32_t flat[] = {0, 5, 5, 13}, short_end[] = {0, 5, 6, 12}, late[] = {1, 5, 6, 13}, beyond[] = {0, 5, 14, 13};
    int32_t ids[20] = {0}, targets[20] = {0}, one[] = {0, 20};
    float weight[20] = {0};
    lora_batch good = oracle_batch(), bad = good;
    double loss;
    bad.cu_seqlens = flat;
    REFUSED(lora_decoder_loss(d, &bad, &loss, NULL, &err), LORA_EINVAL, "cu_seqlens");
    bad.cu_seqlens = short_end;
    REFUSED(lora_decoder_loss(d, &bad, &loss, NULL, &err), LORA_EINVAL, "got 12");
    bad.cu_seqlens = late;
    REFUSED(lora_decoder_loss(d, &bad, &loss, NULL, &err), LORA_EINVAL, "start with 0");
    bad.cu_seqlens = beyond;
    REFUSED(lora_decoder_loss(d, &bad, &loss, NULL, &err), LORA_EINVAL, "got 14");
    bad = good;
    ids[7] = -1;
    bad.input_ids = ids;
    REFUSED(lora_decoder_loss(d, &bad, &loss, NULL, &err), LORA_EINVAL, "got -1 at index 7");
    ids[7] = 0;
    targets[9] = OV;
    bad.targets = targets;
    oracle_zero_grad(m);
    REFUSED(MIRRORED(lora_decoder_forward_backward(d, &bad, 1, &loss, &err)), LORA_EINVAL, "targets: expected 0 to 36");
    for (int i = 0; i < O_TENSORS; i++)
        for (int64_t j = 0; m->t[i].g && j < m->t[i].n; j++)
            if (m->t[i].g[j] != 0) CHECK(false, "%s: a refused batch left a gradient", oracle_name(i));
    bad = (lora_batch){.n_tokens = 20, .n_segments = 1, .input_ids = ids, .cu_seqlens = one, .targets = targets, .loss_weight = weight};
    REFUSED(lora_decoder_loss(d, &bad, &loss, NULL, &err), LORA_EINVAL, "16 tokens in a segment (max_position_embeddings), got 20");
    one[1] = 16;
    bad.n_tokens = 16; /* targets[9] is wrong, but no weight means no reading */
    REFUSED(MIRRORED(lora_decoder_forward_backward(d, &bad, 1, &loss, &err)), LORA_OK, "");
    CHECK(loss == 0, "no weight, no loss: %g", loss);
    weight[3] = NAN;
    REFUSED(lora_decoder_loss(d, &bad, &loss, NULL, &err), LORA_EINVAL, "loss_weight");
}

static void check_bad_weights(const oracle_model *m, lora_decoder *d, lora_ctx *ctx) {
    float v[64] = {0}, *g = v;
    lora_weight w = lora_weight_f32(v, OQ, OR, OR);
    REFUSED(lora_decoder_set_matrix(d, 2, LORA_Q_PROJ, &w, NULL, &err), LORA_ESHAPE, "layers.2.q_proj: expected (32, 24), got (32, 3)");
    REFUSED(lora_decoder_set_matrix(d, 3, LORA_Q_PROJ, &w, NULL, &err), LORA_EINVAL, "expected layer 0 to 2, got 3");
    REFUSED(lora_decoder_set_matrix(d, 0, LORA_EMBED_TOKENS, &w, NULL, &err), LORA_EINVAL, "embed_tokens: expected layer -1");
    w = lora_weight_bf16((const uint16_t *)(const void *)v, OQ, OH, OH);
    REFUSED(lora_decoder_set_matrix(d, 0, LORA_Q_PROJ, &w, g, &err), LORA_EDTYPE, "float32 for a trained weight, got bfloat16");
    w.dense.ld = OH - 1;
    REFUSED(lora_decoder_set_matrix(d, 0, LORA_Q_PROJ, &w, NULL, &err), LORA_ESHAPE, "row stride");
    REFUSED(lora_decoder_set_vector(d, 1, LORA_BIAS + LORA_K_PROJ, v, 3, NULL, &err), LORA_ESHAPE,
            "layers.1.k_proj.bias: expected (16,), got (3,)");
    REFUSED(lora_decoder_set_vector(d, -1, LORA_FINAL_NORM, NULL, OH, NULL, &err), LORA_EINVAL, "norm: expected a vector");
    lora_adapter a = {.rank = OR, .A = v, .B = v, .dropout = 1};
    REFUSED(lora_decoder_set_adapter(d, 0, LORA_Q_PROJ, &a, &err), LORA_EINVAL, "dropout");
    a.dropout = 0;
    a.magnitude = v;
    REFUSED(lora_decoder_set_adapter(d, -1, LORA_EMBED_TOKENS, &a, &err), LORA_EINVAL, "embed_tokens: expected an adapter without DoRA");
    lora_scaling scaling = {.l = v}, no_vector = {0};
    REFUSED(lora_decoder_set_scaling(d, 3, LORA_Q_PROJ, &scaling, &err), LORA_EINVAL, "expected layer 0 to 2, got 3");
    REFUSED(lora_decoder_set_scaling(d, -1, LORA_LM_HEAD, &scaling, &err), LORA_EINVAL, "lm_head: expected a matrix of a layer");
    REFUSED(lora_decoder_set_scaling(d, 0, LORA_Q_PROJ, &no_vector, &err), LORA_EINVAL, "layers.0.q_proj: expected a scaling vector");
    lora_bottleneck b = {.size = 2, .down = v, .down_bias = v, .up = v, .up_bias = v}, bad = b;
    REFUSED(lora_decoder_set_bottleneck(d, 3, LORA_AFTER_MLP, &b, &err), LORA_EINVAL, "expected layer 0 to 2, got 3");
    REFUSED(lora_decoder_set_bottleneck(d, 0, LORA_BOTTLENECK_PLACES, &b, &err), LORA_EINVAL, "place 0 to 1, got 2");
    bad.size = 0;
    REFUSED(lora_decoder_set_bottleneck(d, 0, LORA_AFTER_MLP, &bad, &err), LORA_EINVAL, "got 0");
    bad = b;
    bad.up_bias = NULL;
    REFUSED(lora_decoder_set_bottleneck(d, 0, LORA_AFTER_MLP, &bad, &err), LORA_EINVAL, "got NULL");
    bad = b;
    bad.activation = LORA_ACTIVATIONS;
    REFUSED(lora_decoder_set_bottleneck(d, 0, LORA_AFTER_MLP, &bad, &err), LORA_EINVAL, "activation of 0 to 2, got 3");
    lora_decoder_config config = oracle_config(m);
    lora_decoder *other = d;
    config.activation = LORA_RELU;
    REFUSED(lora_decoder_create(ctx, &config, &other, &err), LORA_EUNSUPPORTED, "activation: expected silu or gelu_tanh");
    config.activation = LORA_SILU;
    config.num_key_value_heads = 3;
    REFUSED(lora_decoder_create(ctx, &config, &other, &err), LORA_EINVAL, "num_key_value_heads");
    CHECK(other == NULL, "a failed create leaves NULL");
    lora_kv_cache *cache = NULL;
    REFUSED(lora_kv_cache_create(d, 1, O_POSITIONS + 1, &cache, &err), LORA_EINVAL, "max_tokens: expected 1 to 16");
}

/* Taken off again, they leave nothing behind; decoding with adapters of the sequences is refused beside them. */
static void check_methods_removed(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    oracle_model *with = oracle_new((oracle_options){.scalings = true, .bottlenecks = true}), *without = oracle_new((oracle_options){0});
    for (int i = 0; i < O_TENSORS; i++)
        if (without->t[i].w) memcpy(without->t[i].w, with->t[i].w, (size_t)with->t[i].n * sizeof(float));
    lora_decoder *d = oracle_decoder(with, ctx, NULL), *plain = oracle_decoder(without, ctx, NULL);
    lora_decoder_adapters *adapters = NULL;
    lora_kv_cache *cache = NULL;
    lora_batch batch = oracle_batch();
    double first, removed, loss;
    float logits[OV];
    int32_t one[] = {0, 1}, ids[] = {1}, zero[] = {0};
    REFUSED(lora_decoder_adapters_create(d, &adapters, &err), LORA_OK, "");
    REFUSED(lora_kv_cache_create(d, 1, 8, &cache, &err), LORA_OK, "");
    const lora_decoder_adapters *const chosen[] = {adapters};
    REFUSED(lora_decoder_decode(d, cache, 1, one, zero, ids, chosen, logits, &err), LORA_EINVAL, "without scaling vectors and bottlenecks");
    int64_t bytes = lora_decoder_arena_bytes(d, O_TOKENS, true);
    REFUSED(lora_decoder_loss(d, &batch, &first, NULL, &err), LORA_OK, "");
    for (int64_t layer = 0; layer < O_LAYERS; layer++) {
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++)
            REFUSED(lora_decoder_set_scaling(d, layer, (lora_matrix_slot)slot, NULL, &err), LORA_OK, "");
        for (int place = 0; place < LORA_BOTTLENECK_PLACES; place++)
            REFUSED(lora_decoder_set_bottleneck(d, layer, (lora_bottleneck_place)place, NULL, &err), LORA_OK, "");
    }
    REFUSED(lora_decoder_loss(d, &batch, &removed, NULL, &err), LORA_OK, "");
    REFUSED(lora_decoder_loss(plain, &batch, &loss, NULL, &err), LORA_OK, "");
    CHECK(removed == loss && first != loss, "loss %.17g without them, %.17g removed, %.17g with them", loss, removed, first);
    CHECK(lora_decoder_arena_bytes(d, O_TOKENS, true) == lora_decoder_arena_bytes(plain, O_TOKENS, true), "the arena is that without them");
    CHECK(lora_decoder_arena_bytes(d, O_TOKENS, true) < bytes, "the arena was larger with them");
    REFUSED(lora_decoder_decode(d, cache, 1, one, zero, ids, chosen, logits, &err), LORA_OK, "");
    lora_kv_cache_destroy(cache);
    lora_decoder_adapters_destroy(adapters);
    lora_decoder_destroy(d);
    lora_decoder_destroy(plain);
    oracle_free(with);
    oracle_free(without);
    device_ctx_free(ctx);
}

void check_decoder_refusals(void) {
    check_methods_removed();
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    oracle_model *m = oracle_new((oracle_options){.biases = true});
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    check_missing(m, ctx);
    check_bad_batches(m, d);
    check_bad_weights(m, d, ctx);
    lora_decoder_destroy(d);
    oracle_free(m);
    device_ctx_free(ctx);
}
