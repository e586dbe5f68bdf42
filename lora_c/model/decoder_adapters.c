/* Adapters outside of a decoder, and what a decode does with those of its sequences. */
#include "lora_c/model/extras.h"

struct lora_decoder_adapters {
    lora_ctx *ctx;
    const lora_decoder *decoder;
    int64_t n_layers;
    lora_adapter at[]; /* (n_layers, LORA_LAYER_MATRICES); rank 0: none */
};

lora_status lora_decoder_adapters_create(lora_decoder *d, lora_decoder_adapters **out, lora_error *err) {
    int64_t L = d->config.num_hidden_layers;
    size_t bytes = sizeof **out + (size_t)(L * LORA_LAYER_MATRICES) * sizeof *(*out)->at;
    *out = lora_host_alloc(d->shared, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(*out, err, LORA_ENOMEM, "adapters: expected %zu bytes for %lld layers, got none", bytes, (long long)L);
    (*out)->ctx = d->shared;
    (*out)->decoder = d;
    (*out)->n_layers = L;
    return LORA_OK;
}

void lora_decoder_adapters_destroy(lora_decoder_adapters *a) {
    if (a) lora_host_free(a->ctx, a);
}

lora_status lora_decoder_adapters_set(lora_decoder_adapters *a, int64_t layer, lora_matrix_slot slot, const lora_adapter *adapter,
                                      lora_error *err) {
    LORA_TRY(lora_check_adapter(a->decoder, layer, (int)slot, adapter, err));
    lora_weight_name name = lora_matrix_name(layer, (int)slot);
    LORA_CHECK((int)slot < LORA_LAYER_MATRICES, err, LORA_EINVAL,
               "%s: expected a matrix of a layer, got this one, whose adapter belongs to all sequences; set it on the decoder", name.text);
    LORA_CHECK(!adapter || !adapter->magnitude, err, LORA_EINVAL,
               "%s: expected an adapter without DoRA, got one with it; set it on the decoder", name.text);
    a->at[layer * LORA_LAYER_MATRICES + (int)slot] = adapter ? *adapter : (lora_adapter){0};
    return LORA_OK;
}

/* --- a run --- */

const lora_adapter *lora_adapter_at(const lora_decoder_adapters *a, int64_t layer, int slot) {
    const lora_adapter *at = a ? &a->at[layer * LORA_LAYER_MATRICES + slot] : NULL;
    return at && at->rank > 0 ? at : NULL;
}

int64_t lora_run_groups(const lora_run *run, int64_t layer, int slot, lora_adapter_rows *out) {
    int64_t n = 0;
    for (int64_t g = 0; g < run->n_groups; g++) {
        const lora_run_group *group = run->groups + g;
        const lora_adapter *adapter = lora_adapter_at(group->adapters, layer, slot);
        if (adapter) out[n++] = (lora_adapter_rows){.adapter = adapter, .first = group->first, .rows = group->rows};
    }
    return n;
}

static lora_status check_global(const lora_decoder *d, lora_matrix_slot slot, lora_error *err) {
    LORA_CHECK(
        !lora_global(d, slot)->has_adapter, err, LORA_EINVAL,
        "adapters: expected a decoder without an adapter on %s, which all sequences would have, got one with it; remove it or decode "
        "without adapters",
        lora_decoder_slot_name(false, (int)slot).text);
    return LORA_OK;
}

/* Those that a call can have: what the decoder itself has of its layers they stand in for, and nothing else. */
static lora_status check_adapters(const lora_decoder *d, int64_t n, const lora_decoder_adapters *const *adapters, lora_error *err) {
    for (int64_t s = 0; s < n; s++)
        LORA_CHECK(!adapters[s] || adapters[s]->decoder == d, err, LORA_EINVAL,
                   "adapters: expected those of this decoder, got those of another at index %lld", (long long)s);
    LORA_TRY(check_global(d, LORA_EMBED_TOKENS, err));
    LORA_TRY(check_global(d, LORA_LM_HEAD, err));
    LORA_CHECK(!lora_has_scalings(d) && !lora_has_bottlenecks(d), err, LORA_EINVAL,
               "adapters: expected a decoder without scaling vectors and bottlenecks, which all sequences would have, got one with them; "
               "remove them or decode without adapters");
    LORA_CHECK(d->token_rows.n == 0, err, LORA_EINVAL,
               "adapters: expected a decoder without trained token rows, which all sequences would have, got %lld; end them with "
               "set_token_rows or decode without adapters",
               (long long)d->token_rows.n);
    LORA_CHECK(d->virtual.tokens.n == 0, err, LORA_EINVAL,
               "adapters: expected a decoder without virtual tokens, which all sequences would have, got %lld; end them with "
               "set_virtual_tokens or decode without adapters",
               (long long)d->virtual.tokens.n);
    return LORA_OK;
}

static void append_segment(lora_grouped *g, const lora_run *given, int64_t s, int64_t at) {
    int32_t begin = given->cu_seqlens[s], n = given->cu_seqlens[s + 1] - begin, first = g->cu_seqlens[at];
    g->sequences[at] = given->sequences[s];
    g->order[at] = (int32_t)s;
    g->cu_seqlens[at + 1] = first + n;
    for (int32_t i = 0; i < n; i++) g->input_ids[first + i] = given->input_ids[begin + i];
}

/* Segments with the same adapters become neighbours: each adapter is read once for all of its rows. */
static void sort_segments(lora_grouped *g, const lora_run *given, const lora_decoder_adapters *const *adapters) {
    bool taken[LORA_DECODE_BATCH] = {false};
    int64_t at = 0;
    g->cu_seqlens[0] = 0;
    for (int64_t s = 0; s < given->n_segments; s++) {
        if (taken[s]) continue;
        lora_run_group *group = &g->groups[g->n_groups++];
        *group = (lora_run_group){.adapters = adapters[s], .first = g->cu_seqlens[at]};
        for (int64_t t = s; t < given->n_segments; t++) {
            if (taken[t] || adapters[t] != adapters[s]) continue;
            taken[t] = true;
            append_segment(g, given, t, at++);
        }
        group->rows = g->cu_seqlens[at] - group->first;
    }
}

lora_status lora_group_segments(const lora_decoder *d, const lora_decoder_adapters *const *adapters, lora_run *run, lora_grouped *g,
                                lora_error *err) {
    bool several = false;
    LORA_TRY(check_adapters(d, run->n_segments, adapters, err));
    for (int64_t s = 1; s < run->n_segments; s++) several |= adapters[s] != adapters[0];
    LORA_CHECK(!several || run->n_tokens <= LORA_DECODE_BATCH, err, LORA_EINVAL,
               "adapters: expected at most %d tokens in a call with several, got %lld; decode long prompts in calls with one of them",
               LORA_DECODE_BATCH, (long long)run->n_tokens);
    g->n_groups = 0;
    if (several) {
        sort_segments(g, run, adapters);
        run->input_ids = g->input_ids;
        run->cu_seqlens = g->cu_seqlens;
        run->sequences = g->sequences;
        run->order = g->order;
    } else {
        g->groups[g->n_groups++] = (lora_run_group){.adapters = adapters[0], .rows = run->n_tokens};
    }
    run->groups = g->groups;
    run->n_groups = g->n_groups;
    return LORA_OK;
}
