/* Creation, and what is set on a decoder as a whole. */
#include <math.h>
#include "lora_c/device.h"
#include "lora_c/model/extras.h"

static lora_status make_parts(lora_decoder *d, lora_error *err) {
    lora_decoder_config *c = &d->config;
    size_t L = (size_t)c->num_hidden_layers, bytes = L * sizeof *d->layers;
    d->layers = lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, bytes);
    d->states = d->layers ? lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, L * sizeof *d->states) : NULL;
    d->streams = d->states ? lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, (L + 1) * sizeof *d->streams) : NULL;
    d->kept = d->streams ? lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, L * sizeof *d->kept) : NULL;
    LORA_CHECK(d->kept, err, LORA_ENOMEM, "num_hidden_layers: expected %zu bytes for %lld layers, got none", bytes,
               (long long)c->num_hidden_layers);
    for (int64_t i = 0; i < c->num_hidden_layers; i++) {
        d->layers[i].sliding_window = c->sliding_window ? c->sliding_window[i] : 0;
        d->layers[i].rope = c->layer_rope ? c->layer_rope[i] : c->n_ropes ? 0 : -1;
    }
    c->sliding_window = NULL; /* the layers hold them */
    c->layer_rope = NULL;
    return lora_copy_inv_freq(d, err);
}

lora_status lora_decoder_create(lora_ctx *ctx, const lora_decoder_config *config, lora_decoder **out, lora_error *err) {
    *out = NULL;
    LORA_TRY(lora_check_config(config, err));
    lora_decoder *d = lora_host_alloc(ctx, LORA_MEM_SCRATCH, sizeof *d);
    LORA_CHECK(d, err, LORA_ENOMEM, "decoder: expected %zu bytes, got none", sizeof *d);
    d->shared = ctx;
    d->config = *config;
    lora_status status = lora_ctx_create_view(ctx, &d->ctx, err);
    if (status == LORA_OK) status = make_parts(d, err);
    if (status != LORA_OK) {
        lora_decoder_destroy(d);
        return status;
    }
    *out = d;
    return LORA_OK;
}

void lora_decoder_destroy(lora_decoder *d) {
    if (!d) return;
    if (d->ctx) {
        lora_decoder_free_activations(d);
        lora_free_rope_tables(d);
        lora_free_adapter_norms(d);
        lora_free_adapted_globals(d);
        lora_free_token_rows(d);
        lora_free_virtual_tokens(d);
    }
    void *const tables[] = {d->layers, d->states, d->streams, d->kept, d->offload_folder};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) lora_host_free(d->shared, tables[i]);
    lora_ctx_destroy(d->ctx);
    lora_host_free(d->shared, d);
}

lora_status lora_decoder_set_noise(lora_decoder *d, double alpha, uint64_t seed, lora_error *err) {
    LORA_CHECK(alpha >= 0.0 && isfinite((float)alpha), err, LORA_EINVAL, "alpha: expected a finite number >= 0, got %g", alpha);
    d->noise_alpha = (float)alpha;
    d->noise_seed = seed;
    return LORA_OK;
}

void lora_decoder_set_recompute(lora_decoder *d, lora_recompute recompute) { d->recompute = recompute; }

lora_status lora_decoder_set_activation_dtype(lora_decoder *d, lora_dtype dtype, lora_error *err) {
    LORA_CHECK(dtype == LORA_F32 || dtype == LORA_BF16 || dtype == LORA_INT8, err, LORA_EDTYPE,
               "activation_dtype: expected float32, bfloat16 or int8, got %s", lora_dtype_name(dtype));
    LORA_CHECK(dtype != LORA_INT8 || lora_ctx_has_int8(d->ctx), err, LORA_EUNSUPPORTED,
               "activation_dtype: expected float32 or bfloat16 on device %s, got int8", lora_ctx_device(d->ctx));
    d->activation_dtype = dtype;
    return LORA_OK;
}

lora_status lora_decoder_set_precision(lora_decoder *d, lora_precision precision, lora_error *err) {
    return lora_ctx_set_precision(d->ctx, precision, err);
}

lora_precision lora_decoder_precision(const lora_decoder *d) { return lora_ctx_precision(d->ctx); }

void lora_decoder_set_stopping(lora_decoder *d, bool on) { atomic_store(&d->stopping, on); }
bool lora_decoder_stopping(const lora_decoder *d) { return atomic_load(&d->stopping); }

void lora_decoder_on_layer_done(lora_decoder *d, lora_layer_done *done, void *arg) {
    d->layer_done = done;
    d->layer_done_arg = arg;
}

/* What a pass keeps from one call to the next and had begun to write. */
void lora_decoder_after_fork(lora_decoder *d) {
    lora_forget_adapter_norms(d);
    lora_forget_adapted_globals(d);
    lora_status dropped = lora_drop_adapted_gradients(d, NULL);
    if (dropped == LORA_OK) dropped = lora_drop_token_gradients(d, NULL);
    if (dropped == LORA_OK) dropped = lora_drop_prefix_gradient(d, NULL);
    (void)dropped; /* other devices do not survive a fork at all */
}
