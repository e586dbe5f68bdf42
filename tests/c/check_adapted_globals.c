/* Adapters of the embedding and of the head inside a decoder: gradients against central differences of the loss, the logits of
 * the merged matrices, refusals, and memory. */
#include <string.h>

#include "lora_c/linear.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/tiny_decoder.h"

enum { HIDDEN = 24, RANK = 3, N_A = RANK * HIDDEN, N_B = TINY_VOCAB * RANK };

typedef struct part {
    lora_adapter adapter;
    float A[N_A], B[N_B], dA[N_A], dB[N_B];
} part;

typedef struct adapted {
    tiny_decoder t;
    part embedding, head;
    float own_head[TINY_VOCAB * HIDDEN];
} adapted;

static void fill(part *p, uint64_t seed) {
    check_normal(p->A, N_A, seed, 0.3f);
    check_normal(p->B, N_B, seed + 1, 0.3f);
    p->adapter = (lora_adapter){.rank = RANK, .A = p->A, .B = p->B, .dA = p->dA, .dB = p->dB, .scale = 0.5f};
}

static lora_weight dense(const float *data) { return lora_weight_f32(data, TINY_VOCAB, HIDDEN, HIDDEN); }

static lora_status set_adapter(adapted *m, lora_matrix_slot slot, part *p, lora_error *err) {
    LORA_TRY(mirror_adapter(m->t.ctx, &p->adapter, TINY_VOCAB, HIDDEN, err));
    return lora_decoder_set_adapter(m->t.decoder, -1, slot, &p->adapter, err);
}

static lora_status make(lora_ctx *ctx, void *memory, lora_error *err) {
    adapted *m = memory;
    memset(m, 0, sizeof *m);
    LORA_TRY(tiny_decoder_make(ctx, 0, -1, &m->t, err));
    check_normal(m->own_head, TINY_VOCAB * HIDDEN, 3, 0.3f);
    lora_weight head = dense(m->own_head);
    LORA_TRY(mirror_matrix(ctx, &head, NULL, err));
    LORA_TRY(lora_decoder_set_matrix(m->t.decoder, -1, LORA_LM_HEAD, &head, NULL, err));
    fill(&m->embedding, 5);
    fill(&m->head, 7);
    LORA_TRY(set_adapter(m, LORA_EMBED_TOKENS, &m->embedding, err));
    return set_adapter(m, LORA_LM_HEAD, &m->head, err);
}

static const double SLOPE_TOLERANCE = 1e-2;

static void check_gradients(lora_ctx *ctx) {
    adapted m;
    lora_batch batch = tiny_batch();
    lora_error err;
    double loss;
    CHECK(make(ctx, &m, &err) == LORA_OK, "%s", err.message);
    CHECK(MIRRORED(lora_decoder_forward_backward(m.t.decoder, &batch, 1, &loss, &err)) == LORA_OK, "%s", err.message);
    tiny_check_slope("A of the embedding", m.t.decoder, m.embedding.A, N_A, m.embedding.dA, SLOPE_TOLERANCE);
    tiny_check_slope("B of the embedding", m.t.decoder, m.embedding.B, N_B, m.embedding.dB, SLOPE_TOLERANCE);
    tiny_check_slope("A of the head", m.t.decoder, m.head.A, N_A, m.head.dA, SLOPE_TOLERANCE);
    tiny_check_slope("B of the head", m.t.decoder, m.head.B, N_B, m.head.dB, SLOPE_TOLERANCE);
    same_on_every_device("gradients of the embedding", m.embedding.dA, sizeof m.embedding.dA + sizeof m.embedding.dB);
    same_on_every_device("gradients of the head", m.head.dA, sizeof m.head.dA + sizeof m.head.dB);
    float once[N_B]; /* gradients are added to, and nothing of a pass stays behind */
    memcpy(once, m.head.dB, sizeof once);
    CHECK(MIRRORED(lora_decoder_forward_backward(m.t.decoder, &batch, 1, &loss, &err)) == LORA_OK, "%s", err.message);
    double worst = 0;
    for (int i = 0; i < N_B; i++) worst = worse(worst, fabs((double)m.head.dB[i] - 2 * (double)once[i]));
    CHECK(worst <= 1e-4, "the second pass adds %g more than the first", worst);
    tiny_decoder_free(&m.t);
}

static void check_merged(lora_ctx *ctx) {
    adapted m;
    lora_batch batch = tiny_batch();
    lora_error err;
    static float want[TINY_TOKENS * TINY_VOCAB], got[TINY_TOKENS * TINY_VOCAB], whole[2][TINY_VOCAB * HIDDEN];
    CHECK(make(ctx, &m, &err) == LORA_OK, "%s", err.message);
    lora_decoder *d = m.t.decoder;
    CHECK(lora_decoder_logits(d, &batch, got, &err) == LORA_OK, "%s", err.message);
    lora_weight own[2] = {dense(m.t.weights), dense(m.own_head)};
    const lora_adapter *adapters[2] = {&m.embedding.adapter, &m.head.adapter};
    for (int i = 0; i < 2; i++) {
        lora_matrix_slot slot = i ? LORA_LM_HEAD : LORA_EMBED_TOKENS;
        float *there = whole[i];
        CHECK(mirror_matrix(ctx, &own[i], NULL, &err) == LORA_OK && mirror_floats(ctx, &there, TINY_VOCAB * HIDDEN, &err) == LORA_OK, "%s",
              err.message);
        CHECK(MIRRORED(lora_linear_merge(ctx, &own[i], adapters[i], NULL, 1, there, &err)) == LORA_OK, "%s", err.message);
        same_on_every_device("merged matrix", whole[i], sizeof whole[i]);
        lora_weight merged = dense(there);
        CHECK(lora_decoder_set_adapter(d, -1, slot, NULL, &err) == LORA_OK, "%s", err.message);
        CHECK(lora_decoder_set_matrix(d, -1, slot, &merged, NULL, &err) == LORA_OK, "%s", err.message);
    }
    CHECK(lora_decoder_logits(d, &batch, want, &err) == LORA_OK, "%s", err.message);
    same_on_every_device("logits", got, sizeof got);
    CHECK(!memcmp(want, got, sizeof want), "logits of the merged matrices");
    tiny_decoder_free(&m.t);
}

static void check_refusals(lora_ctx *ctx) {
    adapted m;
    lora_batch batch = tiny_batch();
    lora_error err;
    double loss;
    float magnitude[TINY_VOCAB] = {0}, gradient[TINY_VOCAB * HIDDEN] = {0};
    CHECK(make(ctx, &m, &err) == LORA_OK, "%s", err.message);
    lora_decoder *d = m.t.decoder;
    lora_adapter dora = m.head.adapter, dropping = m.head.adapter;
    dora.magnitude = magnitude;
    dropping.dropout = 0.1f;
    CHECK(lora_decoder_set_adapter(d, -1, LORA_LM_HEAD, &dora, &err) == LORA_EINVAL, "DoRA");
    CHECK(lora_decoder_set_adapter(d, -1, LORA_LM_HEAD, &dropping, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_loss(d, &batch, &loss, NULL, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_forward_backward(d, &batch, 1, &loss, &err) == LORA_EINVAL, "dropout");
    CHECK(lora_decoder_set_adapter(d, -1, LORA_LM_HEAD, &m.head.adapter, &err) == LORA_OK, "%s", err.message);
    lora_weight trained = dense(m.own_head);
    CHECK(lora_decoder_set_matrix(d, -1, LORA_LM_HEAD, &trained, gradient, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_decoder_loss(d, &batch, &loss, NULL, &err) == LORA_EINVAL, "a trained head under an adapter");
    tiny_decoder_free(&m.t);
}

static void check_on_device(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    check_gradients(ctx);
    check_merged(ctx);
    check_refusals(ctx);
    tiny_check_memory(ctx, sizeof(adapted), make);
    device_ctx_free(ctx);
}

void check_adapted_globals(void) { on_every_device(check_on_device); }
