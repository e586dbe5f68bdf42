/* Every operation that computes values: called, then its results are looked at. What moves or converts values only is the real backend's.
 */
#include "lora_c/watch.h"

#include <math.h>

#include "lora_c/backend.h"
#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"

struct lora_watch {
    const lora_backend *real;
    lora_backend watching; /* real's, but for the operations */
    int64_t layer;
    bool backward;
    lora_watch_found found;
};

/* --- looking --- */

/* The rows of a result on the host; *copy is to be freed where the device's memory is another. */
static const void *on_host(lora_ctx *ctx, lora_mat m, void **copy) {
    *copy = NULL;
    if (ctx->watch->real->host_memory) return m.data;
    size_t bytes = (size_t)((m.rows - 1) * m.ld + m.cols) * lora_dtype_bytes(m.dtype);
    *copy = lora_host_alloc(ctx, LORA_MEM_SCRATCH, bytes);
    const lora_backend_memory *memory = &ctx->watch->real->memory;
    if (*copy && memory->download(ctx->view.state, *copy, m.data, bytes, NULL) == LORA_OK && memory->sync(ctx->view.state, NULL) == LORA_OK)
        return *copy;
    return NULL;
}

static float value_at(const void *values, int64_t i, lora_dtype dtype) {
    return dtype == LORA_BF16 ? lora_bf16_to_f32(((const uint16_t *)values)[i]) : ((const float *)values)[i];
}

static void look(lora_ctx *ctx, const char *operation, const char *result, const void *weight, lora_mat m) {
    struct lora_watch *watch = ctx->watch;
    if (watch->found.operation || !m.data || m.rows < 1) return;
    void *copy;
    const void *values = on_host(ctx, m, &copy);
    for (int64_t row = 0; values && !watch->found.operation && row < m.rows; row++)
        for (int64_t column = 0; column < m.cols; column++) {
            float value = value_at(values, row * m.ld + column, m.dtype);
            if (isfinite(value)) continue;
            watch->found = (lora_watch_found){.operation = operation,
                                              .result = result,
                                              .weight = weight,
                                              .layer = watch->layer,
                                              .backward = watch->backward,
                                              .row = row,
                                              .column = column,
                                              .value = value};
            break;
        }
    lora_host_free(ctx, copy);
}

static void look_at_vector(lora_ctx *ctx, const char *operation, const char *result, const void *weight, const float *v, int64_t n) {
    look(ctx, operation, result, weight, lora_mat_f32(v, v ? 1 : 0, n, n));
}

/* The address that names a weight. */
static const void *data_of(const lora_weight *w) {
    return w->kind == LORA_WEIGHT_NF4    ? (const void *)w->nf4.codes
           : w->kind == LORA_WEIGHT_GGML ? (const void *)w->ggml.blocks
                                         : w->dense.data;
}

static const lora_backend_ops *real(const lora_ctx *ctx) { return &ctx->watch->real->ops; }

/* --- rows --- */

static lora_status norm_forward(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err) {
    LORA_TRY(real(ctx)->norm_forward(ctx, norm, x, y, stats, err));
    look(ctx, "norm_forward", "y", norm->weight, y);
    return LORA_OK;
}

static lora_status norm_backward(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx,
                                 bool accumulate_dx, float *dweight, float *dbias, lora_error *err) {
    LORA_TRY(real(ctx)->norm_backward(ctx, norm, dy, x, stats, dx, accumulate_dx, dweight, dbias, err));
    look(ctx, "norm_backward", "dx", norm->weight, dx);
    look_at_vector(ctx, "norm_backward", "dweight", norm->weight, dweight, norm->H);
    look_at_vector(ctx, "norm_backward", "dbias", norm->weight, dbias, norm->H);
    return LORA_OK;
}

static lora_status scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    LORA_TRY(real(ctx)->scale_rows(ctx, a, x, y, accumulate, err));
    look(ctx, "scale_rows", "y", NULL, y);
    return LORA_OK;
}

static lora_status softcap_backward(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err) {
    LORA_TRY(real(ctx)->softcap_backward(ctx, softcap, y, dy, err));
    look(ctx, "softcap_backward", "dy", NULL, dy);
    return LORA_OK;
}

static lora_status add_noise(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err) {
    LORA_TRY(real(ctx)->add_noise(ctx, noise, segments, x, err));
    look(ctx, "add_noise", "x", NULL, x);
    return LORA_OK;
}

static lora_status scale_columns(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err) {
    LORA_TRY(real(ctx)->scale_columns(ctx, l, x, y, err));
    look(ctx, "scale_columns", "y", l, y);
    return LORA_OK;
}

static lora_status scale_columns_backward(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx,
                                          float *dl, lora_error *err) {
    LORA_TRY(real(ctx)->scale_columns_backward(ctx, l, dy, x, dx, accumulate_dx, dl, err));
    look(ctx, "scale_columns_backward", "dx", l, dx);
    look_at_vector(ctx, "scale_columns_backward", "dl", l, dl, dy.cols);
    return LORA_OK;
}

static lora_status copy_rows(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate,
                             lora_error *err) {
    LORA_TRY(real(ctx)->copy_rows(ctx, from, from_rows, to, to_rows, accumulate, err));
    if (accumulate) look(ctx, "copy_rows", "to", NULL, to); /* a sum; a copy makes no new values */
    return LORA_OK;
}

/* --- attention --- */

static lora_status rope(lora_ctx *ctx, const lora_rotations *rotations, int64_t n_heads, int64_t head_dim, const int32_t *positions,
                        lora_mat x, bool backward, lora_error *err) {
    LORA_TRY(real(ctx)->rope(ctx, rotations, n_heads, head_dim, positions, x, backward, err));
    look(ctx, "rope", "x", NULL, x);
    return LORA_OK;
}

static lora_status attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                     const lora_kv *kv, lora_mat o, float *lse, lora_error *err) {
    LORA_TRY(real(ctx)->attention_forward(ctx, shape, segments, q, kv, o, lse, err));
    look(ctx, "attention_forward", "o", NULL, o);
    return LORA_OK;
}

static lora_status attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                      const lora_attention_gradient *gradient, lora_error *err) {
    LORA_TRY(real(ctx)->attention_backward(ctx, shape, segments, gradient, err));
    look(ctx, "attention_backward", "dq", NULL, gradient->dq);
    look(ctx, "attention_backward", "dk", NULL, gradient->dk);
    look(ctx, "attention_backward", "dv", NULL, gradient->dv);
    return LORA_OK;
}

/* --- MLP --- */

static lora_status mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) {
    LORA_TRY(real(ctx)->mlp_forward(ctx, activation, gate, up, h, err));
    look(ctx, "mlp_forward", "h", NULL, h);
    return LORA_OK;
}

static lora_status mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate,
                                lora_mat dup, lora_error *err) {
    LORA_TRY(real(ctx)->mlp_backward(ctx, activation, dh, gate, up, dgate, dup, err));
    look(ctx, "mlp_backward", "dgate", NULL, dgate);
    look(ctx, "mlp_backward", "dup", NULL, dup);
    return LORA_OK;
}

/* --- vocabulary --- */

static lora_status embedding_forward(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) {
    LORA_TRY(real(ctx)->embedding_forward(ctx, ids, w, y, err));
    look(ctx, "embedding_forward", "y", data_of(w), y);
    return LORA_OK;
}

static lora_status embedding_backward(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err) {
    LORA_TRY(real(ctx)->embedding_backward(ctx, ids, dy, dW, err));
    look(ctx, "embedding_backward", "dW", NULL, dW);
    return LORA_OK;
}

static lora_status look_at_sum(lora_ctx *ctx, const char *operation, const void *weight, const double *loss_sum, lora_error *err) {
    double sum = 0;
    const lora_backend_memory *memory = &ctx->watch->real->memory;
    LORA_TRY(memory->download(ctx->view.state, &sum, loss_sum, sizeof sum, err));
    LORA_TRY(memory->sync(ctx->view.state, err));
    if (!isfinite(sum) && !ctx->watch->found.operation)
        ctx->watch->found =
            (lora_watch_found){.operation = operation, .result = "loss_sum", .weight = weight, .layer = -1, .value = (float)sum};
    return LORA_OK;
}

static lora_status linear_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                        lora_error *err) {
    LORA_TRY(real(ctx)->linear_cross_entropy(ctx, x, w, loss, dx, dW, err));
    LORA_TRY(look_at_sum(ctx, "linear_cross_entropy", data_of(w), loss->loss_sum, err));
    look(ctx, "linear_cross_entropy", "dx", data_of(w), dx);
    look(ctx, "linear_cross_entropy", "dW", data_of(w), lora_mat_f32(dW, dW ? w->rows : 0, w->cols, w->cols));
    return LORA_OK;
}

static lora_status values_loss(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) {
    LORA_TRY(real(ctx)->values_loss(ctx, y, loss, dy, err));
    LORA_TRY(look_at_sum(ctx, "values_loss", NULL, loss->loss_sum, err));
    look(ctx, "values_loss", "dy", NULL, dy);
    return LORA_OK;
}

/* --- linear layers --- */

static lora_status linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    LORA_TRY(real(ctx)->linear_forward(ctx, x, n, layers, err));
    for (int64_t i = 0; i < n; i++) look(ctx, "linear_forward", "y", data_of(layers[i].w), layers[i].y);
    return LORA_OK;
}

static void look_at_adapter(lora_ctx *ctx, const char *operation, const void *weight, const lora_adapter *a, int64_t rows, int64_t cols) {
    if (!a) return;
    look(ctx, operation, "dA", weight, lora_mat_f32(a->dA, a->dA ? a->rank : 0, cols, cols));
    look(ctx, operation, "dB", weight, lora_mat_f32(a->dB, a->dB ? rows : 0, a->rank, a->rank));
    look_at_vector(ctx, operation, "dmagnitude", weight, a->dmagnitude, rows);
}

static lora_status linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                   bool accumulate_dx, lora_error *err) {
    LORA_TRY(real(ctx)->linear_backward(ctx, x, n, gradients, dx, accumulate_dx, err));
    const void *only = n == 1 ? data_of(gradients->w) : NULL; /* dx is the sum over all of them */
    look(ctx, "linear_backward", "dx", only, dx);
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_gradient *g = &gradients[i];
        const void *weight = data_of(g->w);
        look_at_adapter(ctx, "linear_backward", weight, g->adapter, g->w->rows, g->w->cols);
        look(ctx, "linear_backward", "dW", weight, lora_mat_f32(g->dW, g->dW ? g->w->rows : 0, g->w->cols, g->w->cols));
        look_at_vector(ctx, "linear_backward", "dbias", weight, g->dbias, g->w->rows);
    }
    return LORA_OK;
}

static lora_status dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm, lora_error *err) {
    LORA_TRY(real(ctx)->dora_norm(ctx, w, adapter, norm, err));
    look_at_vector(ctx, "dora_norm", "norm", data_of(w), norm, w->rows);
    return LORA_OK;
}

static lora_status linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign,
                                float *merged, lora_error *err) {
    LORA_TRY(real(ctx)->linear_merge(ctx, w, adapter, norm, sign, merged, err));
    look(ctx, "linear_merge", "merged", data_of(w), lora_mat_f32(merged, w->rows, w->cols, w->cols));
    return LORA_OK;
}

static lora_status linear_merge_backward(lora_ctx *ctx, const lora_adapter *adapter, lora_mat dmerged, lora_error *err) {
    LORA_TRY(real(ctx)->linear_merge_backward(ctx, adapter, dmerged, err));
    look_at_adapter(ctx, "linear_merge_backward", NULL, adapter, dmerged.rows, dmerged.cols);
    return LORA_OK;
}

/* --- on and off --- */

static void put_in(lora_backend_ops *ops) {
    ops->norm_forward = norm_forward;
    ops->norm_backward = norm_backward;
    ops->scale_rows = scale_rows;
    ops->softcap_backward = softcap_backward;
    ops->add_noise = add_noise;
    ops->scale_columns = scale_columns;
    ops->scale_columns_backward = scale_columns_backward;
    ops->copy_rows = copy_rows;
    ops->rope = rope;
    ops->attention_forward = attention_forward;
    ops->attention_backward = attention_backward;
    ops->mlp_forward = mlp_forward;
    ops->mlp_backward = mlp_backward;
    ops->embedding_forward = embedding_forward;
    ops->embedding_backward = embedding_backward;
    ops->linear_cross_entropy = linear_cross_entropy;
    ops->values_loss = values_loss;
    ops->linear_forward = linear_forward;
    ops->linear_backward = linear_backward;
    ops->dora_norm = dora_norm;
    ops->linear_merge = linear_merge;
    ops->linear_merge_backward = linear_merge_backward;
}

void lora_ctx_watch_at(lora_ctx *ctx, int64_t layer, bool backward) {
    if (!ctx->watch) return;
    ctx->watch->layer = layer;
    ctx->watch->backward = backward;
}

static lora_status begin(lora_ctx *ctx, lora_error *err) {
    if (!ctx->watch) {
        ctx->watch = lora_host_alloc(ctx, LORA_MEM_SCRATCH, sizeof *ctx->watch);
        LORA_CHECK(ctx->watch, err, LORA_ENOMEM, "watch: expected %zu bytes, got none", sizeof *ctx->watch);
        ctx->watch->real = ctx->view.backend;
        ctx->watch->watching = *ctx->view.backend;
        put_in(&ctx->watch->watching.ops);
        ctx->view.backend = &ctx->watch->watching;
    }
    ctx->watch->found = (lora_watch_found){0};
    lora_ctx_watch_at(ctx, -1, false);
    return LORA_OK;
}

lora_status lora_ctx_watch(lora_ctx *ctx, bool on, lora_error *err) {
    if (on) return begin(ctx, err);
    if (!ctx->watch) return LORA_OK;
    struct lora_watch *watch = ctx->watch;
    ctx->view.backend = watch->real;
    ctx->watch = NULL;
    lora_host_free(ctx, watch);
    return LORA_OK;
}

lora_watch_found lora_ctx_watch_found(const lora_ctx *ctx) { return ctx->watch ? ctx->watch->found : (lora_watch_found){.layer = -1}; }
