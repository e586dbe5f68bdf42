/* Adapters of the embedding and of the head. Both are read in ways that know nothing of adapters (rows by token id, one
 * pass over the vocabulary), so they are given W + s B A as a matrix, made before each pass, and its gradient goes back to
 * A and B after it: twice V * H floats where the adapter trains. A tied head reads the embedding without its adapter. */
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/linear.h"
#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"

static const lora_matrix_slot SLOTS[] = {LORA_EMBED_TOKENS, LORA_LM_HEAD};

static lora_adapted_global *adapted(lora_decoder *d, lora_matrix_slot slot) { return &d->adapted[slot - LORA_LAYER_MATRICES]; }

/* What the adapter is added to. */
static const lora_matrix *base_of(const lora_decoder *d, lora_matrix_slot slot) {
    return slot == LORA_LM_HEAD ? lora_head(d) : lora_global(d, slot);
}

static bool trains(const lora_matrix *m) { return m->has_adapter && (m->adapter.dA || m->adapter.dB); }

lora_weight lora_global_weight(const lora_decoder *d, lora_matrix_slot slot) {
    if (!lora_global(d, slot)->has_adapter) return base_of(d, slot)->w;
    int64_t V = d->config.vocab_size, H = d->config.hidden_size;
    return lora_weight_f32(d->adapted[slot - LORA_LAYER_MATRICES].whole, V, H, H);
}

float *lora_global_gradient(const lora_decoder *d, lora_matrix_slot slot) {
    const lora_matrix *m = lora_global(d, slot);
    if (!m->has_adapter) return base_of(d, slot)->dW;
    return trains(m) ? d->adapted[slot - LORA_LAYER_MATRICES].gradient : NULL;
}

static lora_status memory(lora_decoder *d, float **at, lora_error *err) {
    size_t bytes;
    if (*at) return LORA_OK;
    LORA_CHECK(lora_mul_size((size_t)d->config.vocab_size * sizeof(float), (size_t)d->config.hidden_size, &bytes), err, LORA_ENOMEM,
               "adapter: expected a matrix that fits the address space, got %lld rows of %lld", (long long)d->config.vocab_size,
               (long long)d->config.hidden_size);
    *at = lora_mem_calloc(&d->ctx->engine->mem, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(*at, err, LORA_ENOMEM, "adapter: expected %zu bytes for the adapted matrix, got none", bytes);
    return LORA_OK;
}

lora_status lora_make_adapted_global(lora_decoder *d, lora_matrix_slot slot, const lora_adapter *adapter, lora_error *err) {
    lora_adapted_global *a = adapted(d, slot);
    a->known = false;
    if (!adapter) {
        lora_adapted_global old = *a;
        *a = (lora_adapted_global){0};
        lora_mem_free(&d->ctx->engine->mem, old.whole);
        lora_mem_free(&d->ctx->engine->mem, old.gradient);
        return LORA_OK;
    }
    LORA_CHECK(!adapter->magnitude, err, LORA_EINVAL, "%s: expected an adapter without DoRA, got one with it",
               lora_decoder_slot_name(false, (int)slot).text);
    LORA_TRY(memory(d, &a->whole, err));
    return adapter->dA || adapter->dB ? memory(d, &a->gradient, err) : LORA_OK;
}

void lora_forget_adapted_globals(lora_decoder *d) {
    for (int i = 0; i < 2; i++) adapted(d, SLOTS[i])->known = false;
}

void lora_free_adapted_globals(lora_decoder *d) {
    for (int i = 0; i < 2; i++) {
        lora_mem_free(&d->ctx->engine->mem, adapted(d, SLOTS[i])->whole);
        lora_mem_free(&d->ctx->engine->mem, adapted(d, SLOTS[i])->gradient);
    }
}

int64_t lora_adapted_globals_bytes(const lora_decoder *d) {
    int64_t matrices = 0;
    for (int i = 0; i < 2; i++) {
        const lora_adapted_global *a = &d->adapted[SLOTS[i] - LORA_LAYER_MATRICES];
        matrices += (a->whole != NULL) + (a->gradient != NULL);
    }
    return matrices * d->config.vocab_size * d->config.hidden_size * (int64_t)sizeof(float);
}

static lora_status write_one(lora_decoder *d, const lora_run *run, lora_matrix_slot slot, lora_error *err) {
    const lora_matrix *m = lora_global(d, slot), *base = base_of(d, slot);
    lora_adapted_global *a = adapted(d, slot);
    if (!m->has_adapter || (a->known && lora_goes_on(run))) return LORA_OK;
    lora_slot_name name = lora_decoder_slot_name(false, (int)slot);
    LORA_CHECK(!base->dW, err, LORA_EINVAL, "%s: expected a frozen weight under an adapter, got a trained one", name.text);
    LORA_CHECK(!run->training || !trains(m) || m->adapter.dropout == 0, err, LORA_EINVAL,
               "%s: expected lora_dropout 0 for a trained adapter on it, got %g; set it to 0 or leave the module out", name.text,
               (double)m->adapter.dropout);
    LORA_TRY(lora_linear_merge(d->ctx, &base->w, &m->adapter, NULL, 1.0f, a->whole, err));
    a->known = true;
    return LORA_OK;
}

lora_status lora_write_adapted_globals(lora_decoder *d, const lora_run *run, lora_error *err) {
    for (int i = 0; i < 2; i++) LORA_TRY(write_one(d, run, SLOTS[i], err));
    return LORA_OK;
}

void lora_drop_adapted_gradients(lora_decoder *d) {
    size_t bytes = (size_t)d->config.vocab_size * (size_t)d->config.hidden_size * sizeof(float);
    for (int i = 0; i < 2; i++)
        if (adapted(d, SLOTS[i])->gradient) memset(adapted(d, SLOTS[i])->gradient, 0, bytes);
}

lora_status lora_collect_adapted_globals(lora_decoder *d, bool complete, lora_error *err) {
    int64_t V = d->config.vocab_size, H = d->config.hidden_size;
    lora_status status = LORA_OK;
    for (int i = 0; i < 2; i++) {
        const lora_matrix *m = lora_global(d, SLOTS[i]);
        float *gradient = adapted(d, SLOTS[i])->gradient;
        if (!trains(m) || !gradient) continue;
        if (complete && status == LORA_OK) status = lora_linear_merge_backward(d->ctx, &m->adapter, lora_mat_f32(gradient, V, H, H), err);
        memset(gradient, 0, (size_t)V * (size_t)H * sizeof *gradient);
    }
    return status;
}
