/* The operations of linear.h. Of the linear layers the backend accounts for the parts, which it alone can tell apart. */
#include "lora_c/backend/dispatch.h"

lora_status lora_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    LORA_TRY(lora_check_linear_forward(x, n, layers, err));
    LORA_TRY(lora_check_taken(ctx, lora_named("x", x), err));
    return lora_ops_of(ctx)->linear_forward(ctx, x, n, layers, err);
}

lora_status lora_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                 bool accumulate_dx, lora_error *err) {
    LORA_TRY(lora_check_linear_backward(x, n, gradients, dx, accumulate_dx, err));
    LORA_TRY(lora_check_taken(ctx, lora_named("x", x), err));
    for (int64_t i = 0; i < n; i++) LORA_TRY(lora_check_taken(ctx, lora_named("dy", gradients[i].dy), err));
    return lora_ops_of(ctx)->linear_backward(ctx, x, n, gradients, dx, accumulate_dx, err);
}

bool lora_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    return lora_ops_of(ctx)->linear_keeps_low(ctx, M, adapter);
}

lora_dtype lora_linear_operand(const lora_ctx *ctx, int64_t M) {
    const lora_backend *backend = ctx->view.backend;
    return backend->linear_operand ? backend->linear_operand(ctx, M) : LORA_F32;
}

lora_status lora_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm, lora_error *err) {
    LORA_TRY(lora_check_dora_norm(w, adapter, norm, err));
    return lora_ops_of(ctx)->dora_norm(ctx, w, adapter, norm, err);
}

lora_status lora_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign,
                              float *merged, lora_error *err) {
    LORA_TRY(lora_check_linear_merge(w, adapter, norm, sign, merged, err));
    return lora_ops_of(ctx)->linear_merge(ctx, w, adapter, norm, sign, merged, err);
}

lora_status lora_linear_merge_backward(lora_ctx *ctx, const lora_adapter *adapter, lora_mat dmerged, lora_error *err) {
    LORA_TRY(lora_check_linear_merge_backward(adapter, dmerged, err));
    return lora_ops_of(ctx)->linear_merge_backward(ctx, adapter, dmerged, err);
}

int64_t lora_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) { return lora_ops_of(ctx)->scratch_bytes(ctx, shape); }
