/* Sequences of one decode with adapters of their own: the bits that each gets alone with its adapters on the decoder. */
#include "tests/c/check_ops.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/tiny_decoder.h"

enum { SETS = 3, LAYERS = 2, SEQUENCES = 8, STEPS = 3, MOST_TOKENS = 20, V = TINY_VOCAB };
static const int64_t RANKS[SETS] = {4, 1, 17};
static const int SET_OF[SEQUENCES] = {0, 2, -1, 1, 0, -1, 2, 1}; /* -1: the bare weights */
static const int32_t PROMPT[SEQUENCES] = {3, 1, 2, 2, 1, 3, 2, 2};

typedef struct mixed {
    tiny_decoder t;
    lora_decoder_adapters *sets[SETS];
    lora_adapter adapters[SETS][LAYERS][LORA_LAYER_MATRICES]; /* rank 0: none */
    float *memory;
} mixed;

static lora_status make_adapter(mixed *m, int set, int64_t layer, int slot, float **at, lora_error *err) {
    int64_t rows, cols;
    lora_decoder_matrix_shape(m->t.decoder, (lora_matrix_slot)slot, &rows, &cols);
    lora_adapter *a = &m->adapters[set][layer][slot];
    if ((set + layer + slot) % 4 == 3) return LORA_OK; /* sets differ in where they have adapters */
    *a = (lora_adapter){.rank = RANKS[set], .A = *at, .B = *at + RANKS[set] * cols, .scale = 0.5f + (float)set, .dropout = 0.5f};
    *at += RANKS[set] * (rows + cols);
    LORA_TRY(mirror_adapter(m->t.ctx, a, rows, cols, err));
    return lora_decoder_adapters_set(m->sets[set], layer, (lora_matrix_slot)slot, a, err);
}

static lora_status make(lora_ctx *ctx, mixed *m, lora_error *err) {
    enum { FLOATS = 40000 };
    *m = (mixed){.memory = malloc(FLOATS * sizeof(float))};
    check_normal(m->memory, FLOATS, 5, 0.3f);
    LORA_TRY(tiny_decoder_make(ctx, 0, -1, &m->t, err));
    float *at = m->memory;
    for (int set = 0; set < SETS; set++) {
        LORA_TRY(lora_decoder_adapters_create(m->t.decoder, &m->sets[set], err));
        for (int64_t layer = 0; layer < LAYERS; layer++)
            for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) LORA_TRY(make_adapter(m, set, layer, slot, &at, err));
    }
    return LORA_OK;
}

static void release(mixed *m) {
    if (m->t.decoder) tiny_decoder_free(&m->t);
    for (int set = 0; set < SETS; set++) lora_decoder_adapters_destroy(m->sets[set]); /* they may outlive their decoder */
    free(m->memory);
}

/* The decoder's own adapters become those of a set. */
static void put_on_decoder(mixed *m, int set) {
    for (int64_t layer = 0; layer < LAYERS; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            const lora_adapter *a = set < 0 ? NULL : &m->adapters[set][layer][slot];
            OK(lora_decoder_set_adapter(m->t.decoder, layer, (lora_matrix_slot)slot, a && a->rank ? a : NULL, ERR));
        }
}

static int32_t token(int sequence, int i) { return (sequence * 13 + i * 7 + 2) % V; }

static lora_kv_cache *new_cache(mixed *m, int64_t n) {
    lora_kv_cache *cache = NULL;
    OK(lora_kv_cache_create(m->t.decoder, n, MOST_TOKENS, &cache, ERR));
    return cache;
}

/* The logits of each sequence alone: after the prompt, then after each of so many tokens. */
static void decode_alone(mixed *m, float want[SEQUENCES][STEPS + 1][V]) {
    for (int s = 0; s < SEQUENCES; s++) {
        lora_kv_cache *cache = new_cache(m, 1);
        int32_t ids[MOST_TOKENS];
        for (int i = 0; i < MOST_TOKENS; i++) ids[i] = token(s, i);
        put_on_decoder(m, SET_OF[s]);
        for (int step = 0; step <= STEPS; step++) {
            int32_t first = step ? PROMPT[s] + step - 1 : 0, cu[] = {0, step ? 1 : PROMPT[s]};
            OK(lora_decoder_decode(m->t.decoder, cache, 1, cu, (int32_t[]){0}, ids + first, NULL, want[s][step], ERR));
        }
        lora_kv_cache_destroy(cache);
    }
}

/* All together, in an order that changes with every step; the decoder has adapters of its own, which do not matter. */
static void decode_mixed(mixed *m, const float want[SEQUENCES][STEPS + 1][V]) {
    lora_kv_cache *cache = new_cache(m, SEQUENCES);
    put_on_decoder(m, 1);
    for (int step = 0; step <= STEPS; step++) {
        int32_t ids[LORA_DECODE_BATCH], cu[SEQUENCES + 1] = {0}, sequences[SEQUENCES];
        const lora_decoder_adapters *sets[SEQUENCES];
        int n = step == 2 ? 5 : SEQUENCES;
        for (int i = 0; i < n; i++) {
            int s = step == 1 ? SEQUENCES - 1 - i : i, first = step ? PROMPT[s] + step - 1 : 0;
            sequences[i] = s;
            sets[i] = SET_OF[s] < 0 ? NULL : m->sets[SET_OF[s]];
            cu[i + 1] = cu[i] + (step ? 1 : PROMPT[s]);
            for (int32_t j = cu[i]; j < cu[i + 1]; j++) ids[j] = token(s, first + j - cu[i]);
        }
        guarded logits = guarded_new(n * V, step);
        if (step == 3) n = 5; /* the others are a token behind */
        OK(lora_decoder_decode(m->t.decoder, cache, n, cu, sequences, ids, sets, logits.data, ERR));
        same_on_every_device("mixed logits", logits.data, (size_t)(n * V) * sizeof(float));
        for (int i = 0; i < n; i++)
            CHECK(memcmp(logits.data + i * V, want[sequences[i]][step], V * sizeof(float)) == 0,
                  "%s, %s: step %d, sequence %d differs from itself alone", lora_isa_name(lora_ctx_isa(m->t.ctx)),
                  lora_precision_name(lora_decoder_precision(m->t.decoder)), step, sequences[i]);
        CHECK(guarded_ok(&logits), "logits: written outside");
        guarded_free(&logits);
    }
    for (int s = 0; s < SEQUENCES; s++)
        CHECK(lora_kv_cache_length(cache, s) == PROMPT[s] + (s < 5 ? 3 : 1), "sequence %d: length %lld", s,
              (long long)lora_kv_cache_length(cache, s));
    lora_kv_cache_destroy(cache);
}

/* More tokens than a mixed call takes, all with one set or none. */
static void check_one_set(mixed *m, int set) {
    float want[V], got[V];
    int32_t ids[MOST_TOKENS], cu[] = {0, MOST_TOKENS}, sequence[] = {0};
    const lora_decoder_adapters *sets[] = {set < 0 ? NULL : m->sets[set]};
    for (int i = 0; i < MOST_TOKENS; i++) ids[i] = token(0, i);
    for (int own = 0; own < 2; own++) {
        lora_kv_cache *cache = new_cache(m, 1);
        put_on_decoder(m, own ? set : 0);
        OK(lora_decoder_decode(m->t.decoder, cache, 1, cu, sequence, ids, own ? NULL : sets, own ? want : got, ERR));
        lora_kv_cache_destroy(cache);
    }
    CHECK(memcmp(got, want, sizeof got) == 0, "one set %d for all differs from the decoder's own adapters", set);
}

static void check_bits(lora_isa isa, int threads) {
    static float want[SEQUENCES][STEPS + 1][V];
    lora_ctx *ctx = device_ctx(isa, threads);
    mixed m;
    OK(make(ctx, &m, ERR));
    for (int precision = LORA_PRECISION_EXACT; precision <= LORA_PRECISION_FAST; precision++) {
        OK(lora_decoder_set_precision(m.t.decoder, (lora_precision)precision, ERR));
        decode_alone(&m, want);
        CHECK(memcmp(want[0][0], want[4][0], sizeof want[0][0]) != 0, "sequences that differ");
        decode_mixed(&m, want);
        for (int set = -1; set < SETS; set++) check_one_set(&m, set);
    }
    release(&m);
    device_ctx_free(ctx);
}

/* --- refusals --- */

static void check_setting(mixed *m, lora_decoder_adapters *set) {
    float v[1] = {0};
    lora_adapter a = {.rank = 1, .A = v, .B = v, .scale = 1}, dora = a, bad = a;
    dora.magnitude = v;
    bad.rank = 0;
    REFUSED(LORA_EINVAL, "q_proj: expected layer 0 to 1, got 2", lora_decoder_adapters_set(set, LAYERS, LORA_Q_PROJ, &a, ERR));
    REFUSED(LORA_EINVAL, "slot: expected 0 to", lora_decoder_adapters_set(set, 0, LORA_MATRIX_SLOTS, &a, ERR));
    REFUSED(LORA_EINVAL, "layers.1.v_proj: expected r > 0, got 0", lora_decoder_adapters_set(set, 1, LORA_V_PROJ, &bad, ERR));
    REFUSED(LORA_EINVAL, "layers.1.v_proj: expected an adapter without DoRA", lora_decoder_adapters_set(set, 1, LORA_V_PROJ, &dora, ERR));
    REFUSED(LORA_EINVAL, "embed_tokens: expected a matrix of a layer", lora_decoder_adapters_set(set, -1, LORA_EMBED_TOKENS, &a, ERR));
    REFUSED(LORA_EINVAL, "lm_head: expected a matrix of a layer", lora_decoder_adapters_set(set, -1, LORA_LM_HEAD, NULL, ERR));
    OK(lora_decoder_adapters_set(m->sets[0], 1, LORA_V_PROJ, NULL, ERR));
}

static void check_refusals(lora_ctx *ctx) {
    enum { N = LORA_DECODE_BATCH + 1 };
    mixed m, other;
    OK(make(ctx, &m, ERR));
    OK(make(ctx, &other, ERR));
    lora_decoder *d = m.t.decoder;
    lora_kv_cache *cache = new_cache(&m, 2);
    int32_t ids[N] = {0}, many[] = {0, 1, N}, few[] = {0, 1, 2}, sequences[] = {0, 1};
    float logits[2 * V];
    const lora_decoder_adapters *sets[] = {m.sets[0], NULL}, *same[] = {m.sets[0], m.sets[0]}, *foreign[] = {m.sets[0], other.sets[0]};
    check_setting(&m, m.sets[0]);
    REFUSED(LORA_EINVAL, "adapters: expected at most 16 tokens in a call with several, got 17",
            lora_decoder_decode(d, cache, 2, many, sequences, ids, sets, logits, ERR));
    OK(lora_decoder_decode(d, cache, 2, many, sequences, ids, same, logits, ERR));
    REFUSED(LORA_EINVAL, "adapters: expected those of this decoder, got those of another at index 1",
            lora_decoder_decode(d, cache, 2, few, sequences, ids, foreign, logits, ERR));
    ids[1] = V;
    REFUSED(LORA_EINVAL, "got 50 at index 1", lora_decoder_decode(d, cache, 2, few, sequences, ids, sets, logits, ERR));
    ids[1] = 0;
    lora_adapter global = m.adapters[0][0][LORA_Q_PROJ]; /* is never read */
    OK(lora_decoder_set_adapter(d, -1, LORA_LM_HEAD, &global, ERR));
    REFUSED(LORA_EINVAL, "adapters: expected a decoder without an adapter on lm_head",
            lora_decoder_decode(d, cache, 2, few, sequences, ids, sets, logits, ERR));
    OK(lora_decoder_set_adapter(d, -1, LORA_LM_HEAD, NULL, ERR));
    OK(lora_decoder_decode(d, cache, 2, few, sequences, ids, sets, logits, ERR));
    CHECK(lora_kv_cache_length(cache, 0) == 2 && lora_kv_cache_length(cache, 1) == 17, "refused calls leave no trace");
    lora_kv_cache_destroy(cache);
    release(&other);
    release(&m);
}

static void check_memory(lora_ctx *ctx) {
    for (int n = 0; n < 300; n++) {
        mixed m;
        lora_error err = {0};
        ctx->engine->mem.fail_after = n;
        lora_status status = make(ctx, &m, &err);
        ctx->engine->mem.fail_after = -1;
        CHECK(status == LORA_OK || status == LORA_ENOMEM, "%s", err.message);
        release(&m);
        if (status == LORA_OK) return;
    }
    CHECK(false, "the adapters were never made");
}

static void check_on_device(void) {
    FOR_EACH_ISA(isa)
    for (int threads = 1; threads <= 2; threads++) check_bits(isa, threads);
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    check_refusals(ctx);
    check_memory(ctx);
    device_ctx_free(ctx);
}

void check_mixed_adapters(void) { on_every_device(check_on_device); }
