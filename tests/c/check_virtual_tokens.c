/* Virtual tokens of a decoder: what becomes of begun sequences when they change, what they are refused for, and memory. Losses, gradients
 * and logits are compared in check_decoder.c and check_decoder_cache.c. */
#include <string.h>

#include "tests/c/check_ops.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/tiny_decoder.h"

enum { HIDDEN = 24, LAYERS = 2, KV = 12, WIDTH = LAYERS * 2 * KV, N = 3, TOKENS = 6 };

typedef struct prompted {
    tiny_decoder t;
    float rows[N * HIDDEN], drows[N * HIDDEN], prefix[N * WIDTH], dprefix[N * WIDTH];
    float encoder[5][WIDTH * HIDDEN]; /* each has room enough */
    lora_virtual_tokens prompt, keys, encoded;
    lora_prefix_encoder made_by;
} prompted;

static lora_status make(lora_ctx *ctx, void *memory, lora_error *err) {
    prompted *m = memory;
    float *w[9] = {m->rows, m->drows, m->prefix, m->dprefix};
    memset(m, 0, sizeof *m);
    LORA_TRY(tiny_decoder_make(ctx, 0, -1, &m->t, err));
    check_normal(m->rows, N * HIDDEN, 5, 0.6f);
    check_normal(m->prefix, N * WIDTH, 6, 0.6f);
    for (int i = 0; i < 5; i++) {
        check_normal(m->encoder[i], WIDTH * HIDDEN, 7 + (uint64_t)i, 0.3f);
        w[4 + i] = m->encoder[i];
    }
    for (int i = 0; i < 9; i++) LORA_TRY(mirror_floats(ctx, &w[i], i < 2 ? N * HIDDEN : i < 4 ? N * WIDTH : WIDTH * HIDDEN, err));
    mirror_push();
    m->made_by = (lora_prefix_encoder){.width = 4, .hidden = HIDDEN, .embedding = w[4], .w1 = w[5], .b1 = w[6], .w2 = w[7], .b2 = w[8]};
    m->prompt = (lora_virtual_tokens){.kind = LORA_PROMPT, .n = N, .values = w[0], .gradient = w[1], .scale = 1};
    m->keys = (lora_virtual_tokens){.kind = LORA_PREFIX, .n = N, .values = w[2], .gradient = w[3]};
    m->encoded = (lora_virtual_tokens){.kind = LORA_PREFIX, .n = N, .encoder = &m->made_by};
    return lora_decoder_set_virtual_tokens(m->t.decoder, &m->encoded, err);
}

static void logits_of(lora_decoder *d, float *logits) {
    lora_batch batch = tiny_batch();
    batch.n_tokens = TOKENS;
    batch.n_segments = 1;
    batch.cu_seqlens = (int32_t[]){0, TOKENS};
    OK(lora_decoder_logits(d, &batch, logits, ERR));
}

static void append(lora_decoder *d, lora_kv_cache *cache, int32_t begin, int32_t n, float *logits) {
    OK(lora_decoder_decode(d, cache, 1, (int32_t[]){0, n}, (int32_t[]){0}, tiny_batch().input_ids + begin, NULL, logits, ERR));
}

static void check_close(const char *what, const float *got, const float *want, double tolerance) {
    double off = 0;
    for (int v = 0; v < TINY_VOCAB; v++) off = worse(off, fabs((double)got[v] - (double)want[v]));
    CHECK(off <= tolerance, "%s: off by %g", what, off);
}

/* A sequence keeps the virtual tokens that it began with; the next one begins with those of its time. */
static void check_changes(lora_ctx *ctx) {
    static prompted m;
    static float with[TOKENS * TINY_VOCAB], without[TOKENS * TINY_VOCAB], got[TINY_VOCAB];
    lora_kv_cache *cache = NULL;
    OK(make(ctx, &m, ERR));
    lora_decoder *d = m.t.decoder;
    OK(lora_decoder_set_virtual_tokens(d, &m.keys, ERR));
    OK(lora_kv_cache_create(d, 1, TOKENS + N, &cache, ERR));
    CHECK(lora_decoder_virtual_tokens(d) == N && lora_decoder_rope_limit(d, 1) == 64 - N, "they count");
    logits_of(d, with);
    append(d, cache, 0, 4, got);
    OK(lora_decoder_set_virtual_tokens(d, NULL, ERR));
    CHECK(lora_decoder_virtual_tokens(d) == 0 && lora_kv_cache_length(cache, 0) == 4, "length %d", (int)lora_kv_cache_length(cache, 0));
    logits_of(d, without);
    append(d, cache, 4, 2, got);
    check_close("begun with a prefix", got, with + (TOKENS - 1) * TINY_VOCAB, 2e-4);
    REFUSED(LORA_EINVAL, "got 10, 3 of them virtual",
            lora_decoder_decode(d, cache, 1, (int32_t[]){0, 1}, (int32_t[]){0}, (int32_t[]){1}, NULL, got, ERR));
    REFUSED(LORA_EINVAL, "length: expected 0 to 6, got 7", lora_kv_cache_truncate(cache, 0, 7, ERR));
    OK(lora_kv_cache_truncate(cache, 0, 0, ERR));
    append(d, cache, 0, TOKENS, got);
    check_close("begun anew", got, without + (TOKENS - 1) * TINY_VOCAB, 2e-4);
    OK(lora_decoder_set_virtual_tokens(d, &m.prompt, ERR));
    append(d, cache, 0, 1, got); /* a begun sequence gets none */
    CHECK(lora_kv_cache_length(cache, 0) == TOKENS + 1, "length %d", (int)lora_kv_cache_length(cache, 0));
    lora_kv_cache_destroy(cache);
    tiny_decoder_free(&m.t);
}

/* Results are of the caller's tokens: one loss for each, and one row of hidden states. */
static void check_results(lora_ctx *ctx) {
    static prompted m;
    static float states[TINY_TOKENS * HIDDEN], first[TINY_TOKENS * HIDDEN], losses[TINY_TOKENS + 1];
    lora_batch batch = tiny_batch();
    double loss, sum = 0;
    OK(make(ctx, &m, ERR));
    OK(lora_decoder_set_virtual_tokens(m.t.decoder, &m.prompt, ERR));
    losses[TINY_TOKENS] = 7;
    OK(lora_decoder_loss(m.t.decoder, &batch, &loss, losses, ERR));
    for (int i = 0; i < TINY_TOKENS; i++) sum += (double)(batch.loss_weight[i] * losses[i]);
    CHECK(fabs(sum - loss) <= 1e-4 && losses[TINY_TOKENS] == 7 && losses[0] == 0, "losses of tokens: %g, together %g", sum, loss);
    OK(lora_decoder_hidden_states(m.t.decoder, &batch, 0, first, ERR));
    for (int i = 0; i < TINY_TOKENS; i++)
        CHECK(!memcmp(first + i * HIDDEN, m.t.weights + batch.input_ids[i] * HIDDEN, HIDDEN * sizeof *first), "embedding of token %d", i);
    OK(lora_decoder_hidden_states(m.t.decoder, &batch, LAYERS, states, ERR));
    same_on_every_device("hidden states", states, sizeof states);
    same_on_every_device("losses", losses, sizeof losses);
    for (int i = 0; i < TINY_TOKENS; i++) { /* they are normed, and the norm's weights are small */
        double square = 0;
        for (int h = 0; h < HIDDEN; h++) square += (double)(states[i * HIDDEN + h] * states[i * HIDDEN + h]);
        CHECK(square > 0 && square < 100, "state of token %d: %g", i, square);
    }
    tiny_decoder_free(&m.t);
}

static void check_refusals(lora_ctx *ctx) {
    static prompted m;
    static float logits[TINY_VOCAB];
    lora_decoder_adapters *adapters = NULL;
    lora_kv_cache *cache = NULL;
    double loss;
    OK(make(ctx, &m, ERR));
    lora_decoder *d = m.t.decoder;
    lora_virtual_tokens bad = m.keys;
    bad.n = 64;
    REFUSED(LORA_EINVAL, "virtual tokens: expected 1 to 63", lora_decoder_set_virtual_tokens(d, &bad, ERR));
    bad.n = 0;
    REFUSED(LORA_EINVAL, "virtual tokens: expected 1 to 63", lora_decoder_set_virtual_tokens(d, &bad, ERR));
    bad = m.keys;
    bad.values = NULL;
    REFUSED(LORA_EINVAL, "virtual tokens: expected values", lora_decoder_set_virtual_tokens(d, &bad, ERR));
    bad = m.keys;
    bad.encoder = &m.made_by;
    REFUSED(LORA_EINVAL, "virtual tokens: expected an encoder for a prefix", lora_decoder_set_virtual_tokens(d, &bad, ERR));
    bad = m.prompt;
    bad.scale = 0;
    REFUSED(LORA_EINVAL, "virtual tokens: expected a finite scale", lora_decoder_set_virtual_tokens(d, &bad, ERR));
    bad.kind = (lora_virtual_kind)2;
    REFUSED(LORA_EINVAL, "virtual tokens: expected a prompt or a prefix, got 2", lora_decoder_set_virtual_tokens(d, &bad, ERR));
    lora_prefix_encoder made_by = m.made_by;
    bad = m.encoded;
    bad.encoder = &made_by;
    made_by.w1 = NULL;
    REFUSED(LORA_EINVAL, "prefix encoder: expected all its weights", lora_decoder_set_virtual_tokens(d, &bad, ERR));
    made_by.hidden = 0;
    REFUSED(LORA_ESHAPE, "prefix encoder: expected a width", lora_decoder_set_virtual_tokens(d, &bad, ERR));
    CHECK(lora_decoder_virtual_tokens(d) == N, "what was refused changes nothing");
    lora_batch batch = tiny_batch();
    int32_t ids[62] = {0}, cu[] = {0, 62};
    lora_batch whole = {.n_tokens = 62, .n_segments = 1, .input_ids = ids, .cu_seqlens = cu, .targets = ids, .loss_weight = (float[62]){0}};
    REFUSED(LORA_EINVAL, "(max_position_embeddings), got 65, 3 of them virtual in segment 0",
            lora_decoder_loss(d, &whole, &loss, NULL, ERR));
    OK(lora_decoder_adapters_create(d, &adapters, ERR));
    OK(lora_kv_cache_create(d, 1, 8, &cache, ERR));
    REFUSED(LORA_EINVAL, "adapters: expected a decoder without virtual tokens",
            lora_decoder_decode(d, cache, 1, (int32_t[]){0, 1}, (int32_t[]){0}, batch.input_ids,
                                (const lora_decoder_adapters *const[]){adapters}, logits, ERR));
    lora_kv_cache_destroy(cache);
    lora_decoder_adapters_destroy(adapters);
    tiny_decoder_free(&m.t);
}

static void check_on_device(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    check_changes(ctx);
    check_results(ctx);
    check_refusals(ctx);
    if (device_allocations_fail(ctx)) tiny_check_memory(ctx, sizeof(prompted), make);
    device_ctx_free(ctx);
}

void check_virtual_tokens(void) { on_every_device(check_on_device); }
