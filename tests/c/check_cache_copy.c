/* What one sequence of a KV cache copies of another: both go on with the same bits, and nobody else notices. */
#include <string.h>

#include "lora_c/ops/ctx.h"
#include "tests/c/decoder_oracle.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"

/* logits of order 1 to 4 after some 20 float32 reductions */
static const double LOGIT_TOLERANCE = 2e-5;

/* The last segment of the batch: 7 tokens from 6 on. Sequences: the source, the target, and one between or behind them. */
enum { FIRST = 6, HELD = 6, COPIED = 4, SEQUENCES = 3 };

/* Tokens begin to begin + n - 1 of the batch go to a sequence; logits (OV) of the last one. */
static void read_tokens(lora_decoder *d, lora_kv_cache *cache, int sequence, int begin, int n, float *logits) {
    int32_t cu[2] = {0, n}, sequences[1] = {sequence};
    lora_error err = {0};
    CHECK(lora_decoder_decode(d, cache, 1, cu, sequences, oracle_batch().input_ids + begin, NULL, logits, &err) == LORA_OK, "%s",
          err.message);
}

static void check_against(const float *logits, const double *want, const char *what) {
    double worst = 0;
    for (int v = 0; v < OV; v++) worst = worse(worst, fabs((double)logits[v] - want[v]));
    CHECK(worst < LOGIT_TOLERANCE, "%s: logits are off by %g", what, worst);
}

static void check_lengths(const lora_kv_cache *cache, int64_t a, int64_t b, int64_t c, const char *when) {
    int64_t got[] = {lora_kv_cache_length(cache, 0), lora_kv_cache_length(cache, 1), lora_kv_cache_length(cache, 2)};
    CHECK(got[0] == a && got[1] == b && got[2] == c, "%s: lengths %lld %lld %lld", when, (long long)got[0], (long long)got[1],
          (long long)got[2]);
}

static void copy(lora_ctx *ctx, lora_kv_cache *cache, int64_t from, int64_t to, int64_t length) {
    lora_error err = {0};
    ctx->engine->mem.fail_after = ctx->view.backend->host_memory ? 0 : -1;
    CHECK(lora_kv_cache_copy(cache, from, to, length, &err) == LORA_OK, "a copy allocates nothing: %s", err.message);
    ctx->engine->mem.fail_after = -1;
}

static void check_refusals(lora_kv_cache *cache) {
    static const struct {
        int64_t from, to, length;
        const char *word;
    } wrong[] = {{0, 1, HELD + 1, "length: expected 0 to 6, got 7"}, {0, 1, -1, "length: expected 0 to 6, got -1"},
                 {0, 0, HELD + 1, "length: expected 0 to 6"},        {0, SEQUENCES, 1, "to: expected 0 to 2, got 3"},
                 {-1, 1, 1, "from: expected 0 to 2, got -1"},        {SEQUENCES, 1, 0, "from: expected 0 to 2, got 3"},
                 {0, -1, 0, "to: expected 0 to 2, got -1"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        lora_error err = {0};
        CHECK(lora_kv_cache_copy(cache, wrong[i].from, wrong[i].to, wrong[i].length, &err) == LORA_EINVAL &&
                  strstr(err.message, wrong[i].word),
              "%s", err.message);
    }
}

/* The source lies before the target or behind it, and a third sequence in the rest of the cache. */
static void check_copy(const oracle_model *m, lora_ctx *ctx, int source, int target, int other) {
    lora_decoder *d = oracle_decoder(m, ctx, NULL);
    lora_kv_cache *cache = NULL;
    lora_batch batch = oracle_batch();
    lora_error err = {0};
    double want[O_TOKENS * OV];
    float logits[OV], of_target[OV], of_source[OV];
    oracle_logits(m, &batch, false, want);
    CHECK(lora_kv_cache_create(d, SEQUENCES, 12, &cache, &err) == LORA_OK, "%s", err.message);
    int64_t lengths[SEQUENCES] = {0};
    read_tokens(d, cache, source, FIRST, HELD, logits);
    read_tokens(d, cache, target, 0, 5, logits); /* which it forgets */
    read_tokens(d, cache, other, 0, 2, logits);
    copy(ctx, cache, source, target, COPIED);
    lengths[source] = HELD, lengths[target] = COPIED, lengths[other] = 2;
    check_lengths(cache, lengths[0], lengths[1], lengths[2], "after a copy");
    read_tokens(d, cache, target, FIRST + COPIED, O_TOKENS - FIRST - COPIED, of_target);
    check_against(of_target, want + (O_TOKENS - 1) * OV, "the target");
    read_tokens(d, cache, source, FIRST + HELD, 1, logits);
    check_against(logits, want + (O_TOKENS - 1) * OV, "the source as it was");
    read_tokens(d, cache, other, 2, 3, logits);
    check_against(logits, want + 4 * OV, "the other sequence");
    copy(ctx, cache, source, source, COPIED); /* a truncate */
    read_tokens(d, cache, source, FIRST + COPIED, O_TOKENS - FIRST - COPIED, of_source);
    CHECK(!memcmp(of_source, of_target, sizeof of_source), "source and target go on with other bits");
    same_on_every_device("logits after a copy", of_target, sizeof of_target);
    copy(ctx, cache, source, target, 0); /* the target forgets all, its virtual tokens, too */
    CHECK(lora_kv_cache_length(cache, target) == 0, "a copy of nothing leaves nothing");
    read_tokens(d, cache, target, 0, 5, logits);
    check_against(logits, want + 4 * OV, "a sequence that begins anew");
    CHECK(lora_kv_cache_truncate(cache, source, HELD, &err) == LORA_OK, "%s", err.message);
    if (source == 0) check_refusals(cache);
    CHECK(lora_kv_cache_length(cache, source) == HELD && lora_kv_cache_length(cache, target) == 5, "a refusal changes nothing");
    lora_kv_cache_destroy(cache);
    lora_decoder_destroy(d);
}

/* A sequence takes the virtual tokens of its source along, whatever the decoder has by then, and only those. */
static void check_virtual_tokens_go_along(lora_isa isa) {
    lora_ctx *ctx = device_ctx(isa, 2);
    oracle_model *with = oracle_new((oracle_options){.virtual = O_PREFIX});
    lora_decoder *d = oracle_decoder(with, ctx, NULL);
    lora_kv_cache *cache = NULL;
    lora_error err = {0};
    float of_source[OV], of_target[OV], logits[OV], plain[OV];
    CHECK(lora_kv_cache_create(d, SEQUENCES, 12, &cache, &err) == LORA_OK, "%s", err.message);
    read_tokens(d, cache, 0, FIRST, COPIED, logits);
    CHECK(lora_decoder_set_virtual_tokens(d, NULL, &err) == LORA_OK, "%s", err.message);
    read_tokens(d, cache, 1, FIRST, COPIED, plain); /* without any */
    copy(ctx, cache, 0, 2, COPIED);
    copy(ctx, cache, 1, 0, COPIED);
    read_tokens(d, cache, 2, FIRST + COPIED, 1, of_target);
    read_tokens(d, cache, 0, FIRST + COPIED, 1, of_source);
    double want[O_TOKENS * OV];
    lora_batch batch = oracle_batch();
    oracle_logits(with, &batch, false, want);
    check_against(of_target, want + (FIRST + COPIED) * OV, "a copy with virtual tokens");
    read_tokens(d, cache, 1, FIRST + COPIED, 1, logits);
    CHECK(!memcmp(of_source, logits, sizeof logits), "a copy without virtual tokens over a sequence that had some");
    copy(ctx, cache, 2, 1, 0);
    read_tokens(d, cache, 1, FIRST, COPIED, logits);
    CHECK(!memcmp(plain, logits, sizeof logits), "a copy of nothing brought virtual tokens");
    lora_kv_cache_destroy(cache);
    lora_decoder_destroy(d);
    oracle_free(with);
    device_ctx_free(ctx);
}

static void on_a_device(void) {
    FOR_EACH_DEVICE_ISA(isa) {
        static const oracle_options models[] = {{.biases = true, .adapters = true},
                                                {.tied = true, .window = 3},
                                                {.adapters = true, .window = 4, .virtual = O_PROMPT},
                                                {.qk_norm = LORA_QK_NORM_HEAD, .virtual = O_PREFIX}};
        for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
            lora_ctx *ctx = device_ctx(isa, 2);
            oracle_model *m = oracle_new(models[i]);
            check_copy(m, ctx, 0, 1, 2);
            check_copy(m, ctx, 2, 0, 1);
            oracle_free(m);
            device_ctx_free(ctx);
        }
        check_virtual_tokens_go_along(isa);
    }
}

void check_cache_copy(void) { on_every_device(on_a_device); }
