/* The operations of nn.h. */
#include "lora_c/backend/dispatch.h"
#include "lora_c/ops/attention.h"

static double elements(lora_mat m) { return (double)m.rows * (double)m.cols; }
static double bytes_of(lora_mat m) { return m.data ? elements(m) * (double)lora_dtype_bytes(m.dtype) : 0; }

lora_status lora_check_taken(const lora_ctx *ctx, lora_arg a, lora_error *err) {
    LORA_CHECK(!a.mat.data || a.mat.dtype == LORA_F32 || ctx->view.backend->linear_operand, err, LORA_EDTYPE,
               "%s: expected float32 on %s, got %s", a.name, lora_ctx_device(ctx), lora_dtype_name(a.mat.dtype));
    return LORA_OK;
}

lora_status lora_account(lora_ctx *ctx, lora_op op, int64_t began, double flops, double bytes, lora_error *err) {
    if (!began) return LORA_OK;
    if (!ctx->view.backend->host_memory) LORA_TRY(ctx->view.backend->memory.sync(ctx->view.state, err));
    lora_profile_end(ctx, op, began, flops, bytes);
    return LORA_OK;
}

/* --- rows --- */

lora_status lora_norm_forward(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err) {
    LORA_TRY(lora_check_norm_forward(norm, x, y, stats, err));
    LORA_TRY(lora_check_taken(ctx, lora_named("y", y), err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->norm_forward(ctx, norm, x, y, stats, err));
    return lora_account(ctx, LORA_OP_NORM_FORWARD, began, 0, bytes_of(x) + bytes_of(y), err);
}

lora_status lora_norm_backward(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx,
                               bool accumulate_dx, float *dweight, float *dbias, lora_error *err) {
    LORA_TRY(lora_check_norm_backward(norm, dy, x, stats, dx, accumulate_dx, dweight, dbias, err));
    if (x.rows == 0 || (!dx.data && !dweight && !dbias)) return LORA_OK;
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->norm_backward(ctx, norm, dy, x, stats, dx, accumulate_dx, dweight, dbias, err));
    return lora_account(ctx, LORA_OP_NORM_BACKWARD, began, 0, (accumulate_dx ? 16 : 12) * elements(x), err);
}

lora_status lora_scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    LORA_TRY(lora_check_scale_rows(a, x, y, accumulate, err));
    return lora_ops_of(ctx)->scale_rows(ctx, a, x, y, accumulate, err);
}

lora_status lora_add_noise(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err) {
    LORA_TRY(lora_check_add_noise(noise, segments, x, err));
    return lora_ops_of(ctx)->add_noise(ctx, noise, segments, x, err);
}

lora_status lora_scale_columns(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err) {
    LORA_TRY(lora_check_scale_columns(l, x, y, err));
    return lora_ops_of(ctx)->scale_columns(ctx, l, x, y, err);
}

lora_status lora_scale_columns_backward(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx, float *dl,
                                        lora_error *err) {
    LORA_TRY(lora_check_scale_columns_backward(l, dy, x, dx, accumulate_dx, dl, err));
    if (dy.rows == 0 || (!dx.data && !dl)) return LORA_OK;
    return lora_ops_of(ctx)->scale_columns_backward(ctx, l, dy, x, dx, accumulate_dx, dl, err);
}

lora_status lora_softcap_rows(lora_ctx *ctx, float softcap, lora_mat x, lora_error *err) {
    LORA_TRY(lora_check_softcap_rows(softcap, x, err));
    return lora_ops_of(ctx)->softcap_rows(ctx, softcap, x, err);
}

lora_status lora_softcap_backward(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err) {
    LORA_TRY(lora_check_softcap_backward(softcap, y, dy, err));
    return lora_ops_of(ctx)->softcap_backward(ctx, softcap, y, dy, err);
}

lora_status lora_copy_rows(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate,
                           lora_error *err) {
    LORA_TRY(lora_check_copy_rows(from, from_rows, to, to_rows, accumulate, err));
    return lora_ops_of(ctx)->copy_rows(ctx, from, from_rows, to, to_rows, accumulate, err);
}

lora_status lora_convert_rows(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err) {
    LORA_TRY(lora_check_convert_rows(from, to, err));
    bool int8 = from.dtype == LORA_INT8 || to.dtype == LORA_INT8;
    LORA_CHECK(!int8 || lora_ctx_has_int8(ctx), err, LORA_EUNSUPPORTED, "to: expected float32 or bfloat16 on device %s, got int8",
               lora_ctx_device(ctx));
    return lora_ops_of(ctx)->convert_rows(ctx, from, to, err);
}

/* --- attention --- */

lora_status lora_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                            double scale, float *cos, float *sin, lora_error *err) {
    LORA_TRY(lora_check_rope_table(n_positions, positions, half, inv_freq, scale, cos, sin, err));
    return lora_ops_of(ctx)->rope_table(ctx, n_positions, positions, half, inv_freq, scale, cos, sin, err);
}

lora_status lora_rope(lora_ctx *ctx, const lora_rotations *rotations, int64_t n_heads, int64_t head_dim, const int32_t *positions,
                      lora_mat x, bool backward, lora_error *err) {
    LORA_TRY(lora_check_rope(rotations, n_heads, head_dim, positions, x, backward, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->rope(ctx, rotations, n_heads, head_dim, positions, x, backward, err));
    return lora_account(ctx, LORA_OP_ROPE, began, 0, 8 * elements(x), err);
}

/* Keys of segments whose tables the host cannot read are counted as if there were none before the queries. */
static double pairs_of(const lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, const int64_t *length) {
    return lora_attention_pairs(shape, segments, ctx->view.backend->host_memory ? length : NULL);
}

lora_status lora_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                   const lora_kv *kv, lora_mat o, float *lse, lora_error *err) {
    LORA_CHECK(ctx, err, LORA_EINVAL, "ctx: expected a context, got NULL");
    LORA_TRY(lora_check_attention_forward(shape, segments, q, kv, o, lse, err));
    LORA_TRY(lora_check_taken(ctx, lora_named("o", o), err));
    if (q.rows == 0) return LORA_OK;
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->attention_forward(ctx, shape, segments, q, kv, o, lse, err));
    double pairs = began ? pairs_of(ctx, shape, segments, kv->length) : 0, D = (double)shape->head_dim;
    double floats = (double)q.rows * (double)(shape->n_heads + 2 * shape->n_kv_heads) * D;
    return lora_account(ctx, LORA_OP_ATTENTION_FORWARD, began, 4 * pairs * D, 4 * floats + bytes_of(o), err);
}

lora_status lora_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                    const lora_attention_gradient *gradient, lora_error *err) {
    LORA_CHECK(ctx, err, LORA_EINVAL, "ctx: expected a context, got NULL");
    LORA_TRY(lora_check_attention_backward(shape, segments, gradient, err));
    LORA_TRY(lora_check_taken(ctx, lora_named("o", gradient->o), err));
    if (gradient->q.rows == 0) return LORA_OK;
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->attention_backward(ctx, shape, segments, gradient, err));
    double pairs = began ? pairs_of(ctx, shape, segments, NULL) : 0, D = (double)shape->head_dim;
    double floats = (double)gradient->q.rows * (double)(3 * shape->n_heads + 4 * shape->n_kv_heads) * D;
    return lora_account(ctx, LORA_OP_ATTENTION_BACKWARD, began, 10 * pairs * D, 4 * floats + bytes_of(gradient->o), err);
}

/* --- MLP --- */

lora_status lora_mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) {
    LORA_TRY(lora_check_mlp_forward(activation, gate, up, h, err));
    LORA_TRY(lora_check_taken(ctx, lora_named("h", h), err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->mlp_forward(ctx, activation, gate, up, h, err));
    return lora_account(ctx, LORA_OP_ACTIVATION_FORWARD, began, 0, 8 * elements(gate) + bytes_of(h), err);
}

lora_status lora_mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate,
                              lora_mat dup, lora_error *err) {
    LORA_TRY(lora_check_mlp_backward(activation, dh, gate, up, dgate, dup, err));
    LORA_TRY(lora_check_taken(ctx, lora_named("dgate", dgate), err));
    LORA_TRY(lora_check_taken(ctx, lora_named("dup", dup), err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->mlp_backward(ctx, activation, dh, gate, up, dgate, dup, err));
    return lora_account(ctx, LORA_OP_ACTIVATION_BACKWARD, began, 0, 12 * elements(gate) + bytes_of(dgate) + bytes_of(dup), err);
}

/* --- vocabulary --- */

lora_status lora_embedding_forward(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) {
    LORA_TRY(lora_check_embedding_forward(ids, w, y, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->embedding_forward(ctx, ids, w, y, err));
    return lora_account(ctx, LORA_OP_EMBEDDING, began, 0, 8 * elements(y), err);
}

lora_status lora_embedding_backward(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err) {
    LORA_TRY(lora_check_embedding_backward(ids, dy, dW, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->embedding_backward(ctx, ids, dy, dW, err));
    return lora_account(ctx, LORA_OP_EMBEDDING, began, 0, 12 * elements(dy), err);
}

/* The backend accounts for it: how many rows have a loss is known where the weights of the loss can be read. */
lora_status lora_linear_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                      lora_error *err) {
    LORA_TRY(lora_check_linear_cross_entropy(x, w, loss, dx, dW, err));
    return lora_ops_of(ctx)->linear_cross_entropy(ctx, x, w, loss, dx, dW, err);
}

lora_status lora_values_loss(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) {
    LORA_TRY(lora_check_values_loss(y, loss, dy, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->values_loss(ctx, y, loss, dy, err));
    return lora_account(ctx, LORA_OP_HEAD_AND_LOSS, began, 0, 12 * elements(y), err);
}
