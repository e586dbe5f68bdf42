/* Operations that are not written yet: a weak answer until they are. */
#include "lora_c/cuda/products.h"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/weights.h"

__attribute__((weak)) lora_status lora_cuda_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q, const lora_kv *kv, lora_mat o, float *lse, lora_error *err) {
    (void)ctx; (void)shape; (void)segments; (void)q; (void)kv; (void)o; (void)lse;
    return lora_fail(err, LORA_EUNSUPPORTED, "attention_forward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, const lora_attention_gradient *gradient, lora_error *err) {
    (void)ctx; (void)shape; (void)segments; (void)gradient;
    return lora_fail(err, LORA_EUNSUPPORTED, "attention_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW, lora_error *err) {
    (void)ctx; (void)x; (void)w; (void)loss; (void)dx; (void)dW;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_cross_entropy: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    (void)ctx; (void)x; (void)n; (void)layers;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_forward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx, bool accumulate_dx, lora_error *err) {
    (void)ctx; (void)x; (void)n; (void)gradients; (void)dx; (void)accumulate_dx;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_backward: not on this device yet");
}
__attribute__((weak)) bool lora_cuda_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    (void)ctx; (void)M; (void)adapter;
    return 0;
}
__attribute__((weak)) lora_status lora_cuda_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm, lora_error *err) {
    (void)ctx; (void)w; (void)adapter; (void)norm;
    return lora_fail(err, LORA_EUNSUPPORTED, "dora_norm: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign, float *merged, lora_error *err) {
    (void)ctx; (void)w; (void)adapter; (void)norm; (void)sign; (void)merged;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_merge: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_merge_backward(lora_ctx *ctx, const lora_adapter *adapter, lora_mat dmerged, lora_error *err) {
    (void)ctx; (void)adapter; (void)dmerged;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_merge_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_adamw_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper, lora_error *err) {
    (void)ctx; (void)n_params; (void)params; (void)m; (void)v; (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "adamw_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_adamw8bit_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state, const lora_adamw_hyper *hyper, lora_error *err) {
    (void)ctx; (void)n_params; (void)params; (void)state; (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "adamw8bit_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_sgd_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper, lora_error *err) {
    (void)ctx; (void)n_params; (void)params; (void)m; (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "sgd_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_lion_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper, lora_error *err) {
    (void)ctx; (void)n_params; (void)params; (void)m; (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "lion_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_adafactor_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adafactor_state *state, const lora_adafactor_hyper *hyper, lora_error *err) {
    (void)ctx; (void)n_params; (void)params; (void)state; (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "adafactor_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_muon_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper, lora_error *err) {
    (void)ctx; (void)n_params; (void)params; (void)m; (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "muon_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err) {
    (void)ctx; (void)n_params; (void)params; (void)sum;
    return lora_fail(err, LORA_EUNSUPPORTED, "sum_of_squares: not on this device yet");
}
__attribute__((weak)) int64_t lora_cuda_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    (void)ctx; (void)shape;
    return 0;
}
__attribute__((weak)) lora_status lora_cuda_multiply(lora_cuda *c, const lora_cuda_product *product, lora_error *err) {
    (void)c, (void)product;
    return lora_fail(err, LORA_EUNSUPPORTED, "multiply: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_products_create(lora_cuda *c, struct lora_mem *host, lora_error *err) {
    (void)c, (void)host, (void)err;
    return LORA_OK;
}
__attribute__((weak)) void lora_cuda_products_destroy(lora_cuda *c, struct lora_mem *host) { (void)c, (void)host; }
__attribute__((weak)) lora_status lora_cuda_weight(lora_cuda *c, const lora_weight *w, int64_t first, int64_t rows, lora_dtype dtype, int slot, lora_mat *out,
                             lora_error *err) {
    (void)c, (void)w, (void)first, (void)rows, (void)dtype, (void)slot, (void)out;
    return lora_fail(err, LORA_EUNSUPPORTED, "weight: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_operand(lora_cuda *c, lora_mat x, lora_dtype dtype, int slot, lora_mat *out, lora_error *err) {
    (void)c, (void)x, (void)dtype, (void)slot, (void)out;
    return lora_fail(err, LORA_EUNSUPPORTED, "operand: not on this device yet");
}
__attribute__((weak)) lora_dtype lora_cuda_operands(const lora_ctx *ctx) {
    (void)ctx;
    return LORA_F32;
}
