/* A prefix that is made by two layers from a small embedding: before each pass that begins sequences, and its gradient goes back
 * through them after it.      Source   prefix tuning, arXiv:2101.00190, section 4.3 */
#include "lora_c/base/util.h"
#include "lora_c/model/extras.h"

static int64_t width_of(const lora_decoder *d) { return d->config.num_hidden_layers * 2 * lora_kv_width(&d->config); }

static lora_status check_encoder(const lora_prefix_encoder *e, lora_error *err) {
    LORA_CHECK(e->width > 0 && e->width < INT32_MAX && e->hidden > 0 && e->hidden < INT32_MAX, err, LORA_ESHAPE,
               "prefix encoder: expected a width and a hidden size > 0, got %lld and %lld", (long long)e->width, (long long)e->hidden);
    LORA_CHECK(e->embedding && e->w1 && e->b1 && e->w2 && e->b2, err, LORA_EINVAL, "prefix encoder: expected all its weights, got NULL");
    return LORA_OK;
}

static bool trains(const lora_prefix_encoder *e) { return e->dembedding || e->dw1 || e->db1 || e->dw2 || e->db2; }

static float *rows(lora_decoder *d, int64_t n, int64_t cols) {
    size_t bytes;
    if (!lora_mul_size((size_t)n * sizeof(float), (size_t)cols, &bytes)) return NULL;
    return lora_ctx_alloc(d->ctx, LORA_MEM_SCRATCH, bytes);
}

lora_status lora_make_prefix_encoder(lora_decoder *d, const lora_virtual_tokens *tokens, lora_virtual *out, lora_error *err) {
    LORA_TRY(check_encoder(tokens->encoder, err));
    out->encoder = *tokens->encoder;
    const lora_prefix_encoder *e = &out->encoder;
    float *values = rows(d, tokens->n, width_of(d));
    out->tokens.values = values;
    out->hidden = rows(d, tokens->n, e->hidden);
    bool whole = values && out->hidden;
    if (trains(e)) {
        out->tokens.gradient = rows(d, tokens->n, width_of(d));
        out->dhidden = rows(d, tokens->n, e->hidden);
        whole = whole && out->tokens.gradient && out->dhidden;
    }
    if (whole) return LORA_OK;
    lora_free_prefix_encoder(d, out);
    return lora_fail(err, LORA_ENOMEM, "prefix encoder: expected memory for %lld rows of %lld, got none", (long long)tokens->n,
                     (long long)width_of(d));
}

void lora_free_prefix_encoder(lora_decoder *d, lora_virtual *v) {
    lora_ctx_free(d->ctx, (void *)v->tokens.values);
    lora_ctx_free(d->ctx, v->tokens.gradient);
    lora_ctx_free(d->ctx, v->hidden);
    lora_ctx_free(d->ctx, v->dhidden);
}

int64_t lora_prefix_encoder_bytes(const lora_decoder *d) {
    const lora_virtual *v = &d->virtual;
    if (!v->tokens.encoder) return 0;
    int64_t rows = (v->tokens.gradient ? 2 : 1) * v->tokens.n;
    return rows * (width_of(d) + v->encoder.hidden) * (int64_t)sizeof(float);
}

static bool has_encoder(const lora_decoder *d) { return d->virtual.tokens.n > 0 && d->virtual.tokens.encoder; }

static lora_status linear(lora_decoder *d, lora_mat x, const float *w, const float *bias, lora_mat y, lora_error *err) {
    lora_weight weight = lora_weight_f32(w, y.cols, x.cols, x.cols);
    lora_linear_layer layer = {.w = &weight, .bias = bias, .y = y};
    return lora_linear_forward(d->ctx, x, 1, &layer, err);
}

static lora_status linear_back(lora_decoder *d, lora_mat x, const float *w, lora_mat dy, float *dW, float *dbias, lora_mat dx,
                               bool accumulate, lora_error *err) {
    lora_weight weight = lora_weight_f32(w, dy.cols, x.cols, x.cols);
    lora_linear_gradient gradient = {.dy = dy, .w = &weight, .dW = dW, .dbias = dbias};
    return lora_linear_backward(d->ctx, x, 1, &gradient, dx, accumulate, err);
}

static lora_mat of(const lora_decoder *d, const float *data, int64_t cols) { return lora_mat_f32(data, d->virtual.tokens.n, cols, cols); }

static lora_status forward(lora_decoder *d, lora_error *err) {
    const lora_virtual *v = &d->virtual;
    const lora_prefix_encoder *e = &v->encoder;
    lora_mat hidden = of(d, v->hidden, e->hidden);
    LORA_TRY(linear(d, of(d, e->embedding, e->width), e->w1, e->b1, hidden, err));
    LORA_TRY(lora_softcap_rows(d->ctx, 1.0f, hidden, err)); /* with 1 it is tanh */
    return linear(d, hidden, e->w2, e->b2, of(d, v->tokens.values, width_of(d)), err);
}

/* In float32 whatever the passes have: what they see is the prefix that will be saved. */
static lora_status exactly(lora_decoder *d, lora_status (*work)(lora_decoder *d, lora_error *err), lora_error *err) {
    lora_precision precision = lora_decoder_precision(d);
    LORA_TRY(lora_decoder_set_precision(d, LORA_PRECISION_EXACT, err));
    lora_status status = work(d, err), back = lora_decoder_set_precision(d, precision, NULL);
    (void)back; /* it was in force */
    return status;
}

static lora_status before(lora_decoder *d, const lora_run *run, lora_error *err) {
    return has_encoder(d) && run->n_virtual > 0 ? exactly(d, forward, err) : LORA_OK;
}

static lora_status backward(lora_decoder *d, lora_error *err) {
    const lora_virtual *v = &d->virtual;
    const lora_prefix_encoder *e = &v->encoder;
    lora_mat hidden = of(d, v->hidden, e->hidden), dhidden = of(d, v->dhidden, e->hidden);
    LORA_TRY(linear_back(d, hidden, e->w2, of(d, v->tokens.gradient, width_of(d)), e->dw2, e->db2, dhidden, false, err));
    LORA_TRY(lora_softcap_backward(d->ctx, 1.0f, hidden, dhidden, err));
    return linear_back(d, of(d, e->embedding, e->width), e->w1, dhidden, e->dw1, e->db1, of(d, e->dembedding, e->width), true, err);
}

lora_status lora_drop_prefix_gradient(lora_decoder *d, lora_error *err) {
    const lora_virtual_tokens *t = &d->virtual.tokens;
    if (!has_encoder(d) || !t->gradient) return LORA_OK;
    return lora_clear(d->ctx, t->gradient, (size_t)(t->n * width_of(d)) * sizeof *t->gradient, err);
}

static lora_status after(lora_decoder *d, const lora_run *run, bool complete, lora_error *err) {
    if (!has_encoder(d) || !run->training || !d->virtual.tokens.gradient) return LORA_OK;
    lora_status status = complete ? exactly(d, backward, err) : LORA_OK;
    lora_status cleared = lora_drop_prefix_gradient(d, status == LORA_OK ? err : NULL);
    return status == LORA_OK ? cleared : status;
}

const lora_pass_hook lora_prefix_encoder_hook = {.before = before, .after = after};
