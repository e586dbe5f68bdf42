/* Adapters of the embedding and of the head. Both are read in ways that know nothing of adapters (rows by token id, one
 * pass over the vocabulary), so they are given W + s B A as a matrix, made before each pass, and its gradient goes back to
 * A and B after it: twice V * H floats where the adapter trains. A tied head reads the embedding without its adapter.
 * Source   LoRA, arXiv:2106.09685, eq. 3, differentiated: dB = s G A^T, dA = s B^T G for the gradient G of the matrix */
#include "lora_c/base/util.h"
#include "lora_c/model/extras.h"

static const lora_matrix_slot SLOTS[] = {LORA_EMBED_TOKENS, LORA_LM_HEAD};

static lora_adapted_global *adapted(lora_decoder *d, lora_matrix_slot slot) { return &d->adapted[slot - LORA_LAYER_MATRICES]; }

/* What the adapter is added to. */
static const lora_matrix *base_of(const lora_decoder *d, lora_matrix_slot slot) {
    return slot == LORA_LM_HEAD ? lora_head(d) : lora_global(d, slot);
}

static int64_t rows_of(const lora_decoder *d, lora_matrix_slot slot) {
    return slot == LORA_LM_HEAD ? lora_head_rows(&d->config) : d->config.vocab_size;
}

static bool trains(const lora_matrix *m) { return m->has_adapter && (m->adapter.dA || m->adapter.dB); }

lora_weight lora_global_weight(const lora_decoder *d, lora_matrix_slot slot) {
    if (!lora_global(d, slot)->has_adapter) return base_of(d, slot)->w;
    return lora_weight_f32(d->adapted[slot - LORA_LAYER_MATRICES].whole, rows_of(d, slot), d->config.hidden_size, d->config.hidden_size);
}

float *lora_global_gradient(const lora_decoder *d, lora_matrix_slot slot) {
    const lora_matrix *m = lora_global(d, slot);
    if (!m->has_adapter) return base_of(d, slot)->dW;
    return trains(m) ? d->adapted[slot - LORA_LAYER_MATRICES].gradient : NULL;
}

static lora_status memory(lora_decoder *d, int64_t rows, float **at, lora_error *err) {
    size_t bytes;
    if (*at) return LORA_OK;
    LORA_CHECK(lora_mul_size((size_t)rows * sizeof(float), (size_t)d->config.hidden_size, &bytes), err, LORA_ENOMEM,
               "adapter: expected a matrix that fits the address space, got %lld rows of %lld", (long long)rows,
               (long long)d->config.hidden_size);
    *at = lora_ctx_alloc(d->ctx, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(*at, err, LORA_ENOMEM, "adapter: expected %zu bytes for the adapted matrix, got none", bytes);
    return LORA_OK;
}

lora_status lora_make_adapted_global(lora_decoder *d, lora_matrix_slot slot, const lora_adapter *adapter, lora_error *err) {
    lora_adapted_global *a = adapted(d, slot);
    a->known = false;
    if (!adapter) {
        lora_adapted_global old = *a;
        *a = (lora_adapted_global){0};
        lora_ctx_free(d->ctx, old.whole);
        lora_ctx_free(d->ctx, old.gradient);
        return LORA_OK;
    }
    LORA_CHECK(!adapter->magnitude, err, LORA_EINVAL, "%s: expected an adapter without DoRA, got one with it",
               lora_decoder_slot_name(false, (int)slot).text);
    LORA_TRY(memory(d, rows_of(d, slot), &a->whole, err));
    return adapter->dA || adapter->dB ? memory(d, rows_of(d, slot), &a->gradient, err) : LORA_OK;
}

void lora_forget_adapted_globals(lora_decoder *d) {
    for (int i = 0; i < 2; i++) adapted(d, SLOTS[i])->known = false;
}

void lora_free_adapted_globals(lora_decoder *d) {
    for (int i = 0; i < 2; i++) {
        lora_ctx_free(d->ctx, adapted(d, SLOTS[i])->whole);
        lora_ctx_free(d->ctx, adapted(d, SLOTS[i])->gradient);
    }
}

int64_t lora_adapted_globals_bytes(const lora_decoder *d) {
    int64_t rows = 0;
    for (int i = 0; i < 2; i++) {
        const lora_adapted_global *a = &d->adapted[SLOTS[i] - LORA_LAYER_MATRICES];
        rows += ((a->whole != NULL) + (a->gradient != NULL)) * rows_of(d, SLOTS[i]);
    }
    return rows * d->config.hidden_size * (int64_t)sizeof(float);
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

static lora_status before(lora_decoder *d, const lora_run *run, lora_error *err) {
    for (int i = 0; i < 2; i++) LORA_TRY(write_one(d, run, SLOTS[i], err));
    return LORA_OK;
}

static lora_status clear_gradient(lora_decoder *d, lora_matrix_slot slot, lora_error *err) {
    float *gradient = adapted(d, slot)->gradient;
    return lora_clear(d->ctx, gradient, (size_t)rows_of(d, slot) * (size_t)d->config.hidden_size * sizeof *gradient, err);
}

lora_status lora_drop_adapted_gradients(lora_decoder *d, lora_error *err) {
    for (int i = 0; i < 2; i++)
        if (adapted(d, SLOTS[i])->gradient) LORA_TRY(clear_gradient(d, SLOTS[i], err));
    return LORA_OK;
}

/* The gradient of one matrix into A and B. */
static lora_status collect_one(lora_decoder *d, lora_matrix_slot slot, lora_error *err) {
    const lora_matrix *m = lora_global(d, slot);
    const float *gradient = adapted(d, slot)->gradient;
    int64_t H = d->config.hidden_size;
    if (!trains(m) || !gradient) return LORA_OK;
    return lora_linear_merge_backward(d->ctx, &m->adapter, lora_mat_f32(gradient, rows_of(d, slot), H, H), err);
}

static lora_status after(lora_decoder *d, const lora_run *run, bool complete, lora_error *err) {
    lora_status status = LORA_OK;
    if (!run->training) return LORA_OK;
    for (int i = 0; i < 2 && complete && status == LORA_OK; i++) status = collect_one(d, SLOTS[i], err);
    lora_status cleared = lora_drop_adapted_gradients(d, status == LORA_OK ? err : NULL);
    return status == LORA_OK ? cleared : status;
}

const lora_pass_hook lora_adapted_globals_hook = {.before = before, .after = after};
