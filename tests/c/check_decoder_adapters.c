/* DoRA and trained token rows inside a decoder: gradients against central differences of the loss, the norms that a cached
 * decode keeps, and refusals. */
#include <string.h>

#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/tiny_decoder.h"

enum { HIDDEN = 24, RANK = 3, LAYER = 1, ROWS = 3 };

typedef struct adapted {
    tiny_decoder t;
    lora_adapter a;
    float A[RANK * HIDDEN], B[HIDDEN * RANK], magnitude[HIDDEN], dA[RANK * HIDDEN], dB[HIDDEN * RANK], dm[HIDDEN];
    float embedding[TINY_VOCAB * HIDDEN], dE[TINY_VOCAB * HIDDEN], rows[ROWS * HIDDEN], drows[ROWS * HIDDEN];
} adapted;

static const int32_t IDS[ROWS] = {3, 20, 37}; /* the first tokens of tiny_batch */

static lora_status make(lora_ctx *ctx, void *memory, lora_error *err) {
    adapted *m = memory;
    memset(m, 0, sizeof *m);
    LORA_TRY(tiny_decoder_make(ctx, 0, -1, &m->t, err));
    check_normal(m->A, RANK * HIDDEN, 5, 0.3f);
    check_normal(m->B, HIDDEN * RANK, 6, 0.3f);
    check_normal(m->magnitude, HIDDEN, 7, 1);
    check_normal(m->rows, ROWS * HIDDEN, 8, 0.3f);
    memcpy(m->embedding, m->t.weights, sizeof m->embedding);
    m->a = (lora_adapter){
        .rank = RANK, .A = m->A, .B = m->B, .dA = m->dA, .dB = m->dB, .scale = 0.5f, .magnitude = m->magnitude, .dmagnitude = m->dm};
    LORA_TRY(mirror_adapter(ctx, &m->a, HIDDEN, HIDDEN, err));
    LORA_TRY(lora_decoder_set_adapter(m->t.decoder, LAYER, LORA_Q_PROJ, &m->a, err));
    lora_weight copy = lora_weight_f32(m->embedding, TINY_VOCAB, HIDDEN, HIDDEN);
    float *dE = m->dE, *rows = m->rows, *drows = m->drows;
    LORA_TRY(mirror_matrix(ctx, &copy, &dE, err));
    LORA_TRY(lora_decoder_set_matrix(m->t.decoder, -1, LORA_EMBED_TOKENS, &copy, dE, err));
    LORA_TRY(mirror_floats(ctx, &rows, ROWS * HIDDEN, err));
    LORA_TRY(mirror_floats(ctx, &drows, ROWS * HIDDEN, err));
    return lora_decoder_set_token_rows(m->t.decoder, ROWS, IDS, rows, drows, err);
}

/* float32 losses near 60 carry about 1e-5; over a step of 2e-2 that is 5e-4 of a slope of order 1 */
static const double SLOPE_TOLERANCE = 5e-3;

static void check_gradients(lora_ctx *ctx) {
    adapted m;
    lora_batch batch = tiny_batch();
    lora_error err;
    double loss;
    CHECK(make(ctx, &m, &err) == LORA_OK, "%s", err.message);
    CHECK(MIRRORED(lora_decoder_forward_backward(m.t.decoder, &batch, 1, &loss, &err)) == LORA_OK, "%s", err.message);
    same_on_every_device("loss", &loss, sizeof loss);
    same_on_every_device("gradient of the magnitude", m.dm, sizeof m.dm);
    same_on_every_device("gradient of token rows", m.drows, sizeof m.drows);
    same_on_every_device("gradients of adapters", m.t.grads, (size_t)m.t.n_grads * sizeof(float));
    tiny_check_slope("magnitude", m.t.decoder, m.magnitude, HIDDEN, m.dm, SLOPE_TOLERANCE);
    tiny_check_slope("token rows", m.t.decoder, m.rows, ROWS * HIDDEN, m.drows, SLOPE_TOLERANCE);
    bool cleared = true;
    for (int64_t i = 0; i < TINY_VOCAB * HIDDEN; i++) cleared &= m.dE[i] == 0;
    CHECK(cleared, "the gradient of the embedding only passes through");
    batch.input_ids = (const int32_t[]){TINY_VOCAB};
    batch.n_tokens = batch.n_segments = 1;
    batch.cu_seqlens = (const int32_t[]){0, 1};
    CHECK(lora_decoder_forward_backward(m.t.decoder, &batch, 1, &loss, &err) == LORA_EINVAL, "a bad token");
    tiny_decoder_free(&m.t);
}

/* Going on with a sequence gives the logits of the whole, and takes the norms of the pass that began it. */
static void check_norms_of_a_sequence(lora_ctx *ctx) {
    enum { N = 6 };
    static const int32_t ids[N] = {3, 20, 37, 4, 21, 9}, whole[] = {0, N}, begin[] = {0, N - 1}, one[] = {0, 1}, sequence[] = {0};
    adapted m;
    lora_error err;
    lora_kv_cache *cache = NULL;
    float want[N * TINY_VOCAB], got[TINY_VOCAB];
    CHECK(make(ctx, &m, &err) == LORA_OK, "%s", err.message);
    lora_batch batch = {.n_tokens = N, .n_segments = 1, .input_ids = ids, .cu_seqlens = whole};
    CHECK(lora_decoder_logits(m.t.decoder, &batch, want, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_kv_cache_create(m.t.decoder, 1, N, &cache, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_decode(m.t.decoder, cache, 1, begin, sequence, ids, NULL, got, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_decode(m.t.decoder, cache, 1, one, sequence, ids + N - 1, NULL, got, &err) == LORA_OK, "%s", err.message);
    double worst = 0;
    for (int i = 0; i < TINY_VOCAB; i++) worst = worse(worst, fabs((double)got[i] - (double)want[(N - 1) * TINY_VOCAB + i]));
    same_on_every_device("logits", got, sizeof got);
    CHECK(worst <= 1e-4, "cached decoding with DoRA is off by %g", worst);
    lora_kv_cache_destroy(cache);
    tiny_decoder_free(&m.t);
}

static void check_refusals(lora_ctx *ctx) {
    adapted m;
    lora_error err;
    CHECK(make(ctx, &m, &err) == LORA_OK, "%s", err.message);
    lora_decoder *d = m.t.decoder;
    CHECK(lora_decoder_set_token_rows(d, 1, (const int32_t[]){TINY_VOCAB}, m.rows, m.drows, &err) == LORA_EINVAL, "an id outside");
    CHECK(lora_decoder_set_token_rows(d, 1, IDS, m.rows, NULL, &err) == LORA_EINVAL, "no gradient");
    CHECK(lora_decoder_set_token_rows(d, TINY_VOCAB + 1, IDS, m.rows, m.drows, &err) == LORA_ESHAPE, "more rows than tokens");
    CHECK(lora_decoder_set_token_rows(d, 0, NULL, NULL, NULL, &err) == LORA_OK, "%s", err.message);
    lora_weight frozen = lora_weight_f32(m.embedding, TINY_VOCAB, HIDDEN, HIDDEN);
    CHECK(lora_decoder_set_matrix(d, -1, LORA_EMBED_TOKENS, &frozen, NULL, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_set_token_rows(d, ROWS, IDS, m.rows, m.drows, &err) == LORA_EINVAL, "a frozen embedding");
    tiny_decoder_free(&m.t);
}

static void check_on_device(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    check_gradients(ctx);
    check_norms_of_a_sequence(ctx);
    check_refusals(ctx);
    tiny_check_memory(ctx, sizeof(adapted), make);
    device_ctx_free(ctx);
}

void check_decoder_adapters(void) { on_every_device(check_on_device); }
