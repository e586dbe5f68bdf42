/* The checks that come before every pass. */
#include <math.h>
#include <stdio.h>

#include "lora_c/base/util.h"
#include "lora_c/model/pass.h"

int64_t lora_past_tokens(const lora_run *run, int64_t segment) { return run->cache ? run->cache->lengths[run->sequences[segment]] : 0; }

int64_t lora_virtual_before(const lora_decoder *d, const lora_run *run, int64_t segment) {
    return lora_past_tokens(run, segment) == 0 ? d->virtual.tokens.n : 0;
}

/* A pass that only goes on with cached sequences: their keys and values already hold the adapter to what it was when they
 * were begun, so what was made of it for that pass stands. Without this, each new token would cost N * K * R per DoRA matrix. */
bool lora_goes_on(const lora_run *run) {
    if (!run->cache) return false;
    for (int64_t s = 0; s < run->n_segments; s++)
        if (lora_past_tokens(run, s) == 0) return false;
    return true;
}

/* What is said of virtual tokens where they count. */
typedef struct virtual_text {
    char text[80];
} virtual_text;

static virtual_text say_virtual(int64_t n) {
    virtual_text t = {""};
    if (n > 0) snprintf(t.text, sizeof t.text, ", %lld of them virtual", (long long)n);
    return t;
}

/* The rows of a sequence that the RoPE table of so many serves. */
static int64_t rope_limit(const lora_decoder *d, int64_t rows) {
    int64_t limit = d->config.rope_switch;
    return limit && rows <= limit ? limit : d->config.max_position_embeddings;
}

static lora_status check_cached_length(const lora_decoder *d, const lora_run *run, int64_t s, long long length, const char *virtual,
                                       lora_error *err) {
    int64_t past = lora_past_tokens(run, s);
    LORA_CHECK(length <= run->cache->max_tokens, err, LORA_EINVAL,
               "cache: expected at most %lld tokens in sequence %d (max_tokens), got %lld%s", (long long)run->cache->max_tokens,
               (int)run->sequences[s], length, virtual);
    LORA_CHECK(past == 0 || length <= rope_limit(d, past), err, LORA_EINVAL,
               "cache: expected sequence %d to stay within %lld tokens, where the RoPE frequencies change, got %lld%s; truncate "
               "it to 0 and append all its tokens",
               (int)run->sequences[s], (long long)d->config.rope_switch, length, virtual);
    return LORA_OK;
}

static lora_status check_length(const lora_decoder *d, const lora_run *run, int64_t s, lora_error *err) {
    int64_t past = lora_past_tokens(run, s), before = lora_virtual_before(d, run, s);
    long long length = past + before + run->cu_seqlens[s + 1] - run->cu_seqlens[s];
    virtual_text virtual = say_virtual(past > 0 ? run->cache->virtual[run->sequences[s]] : before);
    if (run->cache) LORA_TRY(check_cached_length(d, run, s, length, virtual.text, err));
    LORA_CHECK(length <= d->config.max_position_embeddings, err, LORA_EINVAL,
               "input_ids: expected at most %lld tokens in a segment (max_position_embeddings), got %lld%s in segment %lld",
               (long long)d->config.max_position_embeddings, length, virtual.text, (long long)s);
    return LORA_OK;
}

static lora_status check_segments(const lora_decoder *d, const lora_run *run, lora_error *err) {
    const int32_t *cu = run->cu_seqlens;
    LORA_CHECK(run->n_segments >= 1 && run->n_segments <= run->n_tokens, err, LORA_ESHAPE,
               "cu_seqlens: expected 1 to %lld segments, got %lld", (long long)run->n_tokens, (long long)run->n_segments);
    LORA_CHECK(cu[0] == 0, err, LORA_EINVAL, "cu_seqlens: expected to start with 0, got %d", (int)cu[0]);
    for (int64_t s = 0; s < run->n_segments; s++) {
        LORA_CHECK(cu[s] < cu[s + 1], err, LORA_EINVAL, "cu_seqlens: expected strictly rising values, got %d then %d at index %lld",
                   (int)cu[s], (int)cu[s + 1], (long long)s + 1);
        LORA_CHECK(cu[s + 1] <= run->n_tokens, err, LORA_EINVAL, "cu_seqlens: expected at most n_tokens = %lld, got %d",
                   (long long)run->n_tokens, (int)cu[s + 1]);
        LORA_TRY(check_length(d, run, s, err));
    }
    LORA_CHECK(cu[run->n_segments] == run->n_tokens, err, LORA_EINVAL, "cu_seqlens: expected to end with n_tokens = %lld, got %d",
               (long long)run->n_tokens, (int)cu[run->n_segments]);
    return LORA_OK;
}

/* What the numbers of one row are compared with. */
static lora_status check_values(const lora_decoder *d, const lora_run *run, int64_t m, lora_error *err) {
    int64_t N = d->config.num_labels;
    bool shares = d->config.problem == LORA_MULTI_LABEL;
    for (int64_t n = 0; n < N; n++) {
        float value = run->values[m * N + n];
        LORA_CHECK(isfinite(value) && (!shares || (value >= 0 && value <= 1)), err, LORA_EINVAL,
                   "values: expected %s where loss_weight is not 0, got %g at index %lld, %lld", shares ? "0 to 1" : "finite numbers",
                   (double)value, (long long)m, (long long)n);
    }
    return LORA_OK;
}

static lora_status check_targets(const lora_decoder *d, const lora_run *run, lora_error *err) {
    bool has_values = lora_has_values(&d->config);
    LORA_CHECK((has_values || run->targets) && run->loss_weight, err, LORA_EINVAL, "%s: expected an array, got NULL",
               run->loss_weight ? "targets" : "loss_weight");
    LORA_CHECK(!has_values || run->values, err, LORA_EINVAL, "values: expected an array (n_tokens, num_labels), got NULL");
    for (int64_t m = 0; m < run->n_tokens; m++) {
        if (run->loss_weight[m] == 0.0f) continue;
        LORA_CHECK(isfinite(run->loss_weight[m]), err, LORA_EINVAL, "loss_weight: expected finite values, got %g at index %lld",
                   (double)run->loss_weight[m], (long long)m);
        if (has_values) {
            LORA_TRY(check_values(d, run, m, err));
            continue;
        }
        LORA_CHECK(run->targets[m] >= 0 && run->targets[m] < lora_head_rows(&d->config), err, LORA_EINVAL,
                   "targets: expected 0 to %lld where loss_weight is not 0, got %d at index %lld",
                   (long long)lora_head_rows(&d->config) - 1, (int)run->targets[m], (long long)m);
    }
    return LORA_OK;
}

lora_status lora_check_run(const lora_decoder *d, const lora_run *run, lora_error *err) {
    LORA_TRY(lora_check_complete(d, err));
    LORA_CHECK(run->input_ids && run->cu_seqlens, err, LORA_EINVAL, "%s: expected an array, got NULL",
               run->input_ids ? "cu_seqlens" : "input_ids");
    LORA_CHECK(run->n_tokens >= 1 && run->n_tokens < INT32_MAX, err, LORA_ESHAPE, "input_ids: expected 1 to %d tokens, got %lld",
               INT32_MAX - 1, (long long)run->n_tokens);
    LORA_TRY(check_segments(d, run, err));
    for (int64_t m = 0; m < run->n_tokens; m++)
        LORA_CHECK(run->input_ids[m] >= 0 && run->input_ids[m] < d->config.vocab_size, err, LORA_EINVAL,
                   "input_ids: expected 0 to %lld, got %d at index %lld", (long long)d->config.vocab_size - 1, (int)run->input_ids[m],
                   (long long)m);
    return run->wants_loss ? check_targets(d, run, err) : LORA_OK;
}

int64_t lora_decoder_rope_limit(const lora_decoder *d, int64_t length) {
    int64_t virtual = d->virtual.tokens.n;
    return lora_max_i64(rope_limit(d, length + virtual) - virtual, 0);
}
