/* Operations that are not written yet: a weak answer until they are. */
#include "lora_c/cuda/products.h"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/weights.h"

__attribute__((weak)) lora_status lora_cuda_norm_forward(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats,
                                                         lora_error *err) {
    (void)ctx;
    (void)norm;
    (void)x;
    (void)y;
    (void)stats;
    return lora_fail(err, LORA_EUNSUPPORTED, "norm_forward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_norm_backward(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats,
                                                          lora_mat dx, bool accumulate_dx, float *dweight, float *dbias, lora_error *err) {
    (void)ctx;
    (void)norm;
    (void)dy;
    (void)x;
    (void)stats;
    (void)dx;
    (void)accumulate_dx;
    (void)dweight;
    (void)dbias;
    return lora_fail(err, LORA_EUNSUPPORTED, "norm_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    (void)ctx;
    (void)a;
    (void)x;
    (void)y;
    (void)accumulate;
    return lora_fail(err, LORA_EUNSUPPORTED, "scale_rows: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_add_noise(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x,
                                                      lora_error *err) {
    (void)ctx;
    (void)noise;
    (void)segments;
    (void)x;
    return lora_fail(err, LORA_EUNSUPPORTED, "add_noise: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_scale_columns(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err) {
    (void)ctx;
    (void)l;
    (void)x;
    (void)y;
    return lora_fail(err, LORA_EUNSUPPORTED, "scale_columns: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_scale_columns_backward(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx,
                                                                   bool accumulate_dx, float *dl, lora_error *err) {
    (void)ctx;
    (void)l;
    (void)dy;
    (void)x;
    (void)dx;
    (void)accumulate_dx;
    (void)dl;
    return lora_fail(err, LORA_EUNSUPPORTED, "scale_columns_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_softcap_rows(lora_ctx *ctx, float softcap, lora_mat x, lora_error *err) {
    (void)ctx;
    (void)softcap;
    (void)x;
    return lora_fail(err, LORA_EUNSUPPORTED, "softcap_rows: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_softcap_backward(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err) {
    (void)ctx;
    (void)softcap;
    (void)y;
    (void)dy;
    return lora_fail(err, LORA_EUNSUPPORTED, "softcap_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half,
                                                       const double *inv_freq, double scale, float *cos, float *sin, lora_error *err) {
    (void)ctx;
    (void)n_positions;
    (void)positions;
    (void)half;
    (void)inv_freq;
    (void)scale;
    (void)cos;
    (void)sin;
    return lora_fail(err, LORA_EUNSUPPORTED, "rope_table: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_rope(lora_ctx *ctx, const lora_rotations *table, int64_t n_heads, int64_t head_dim,
                                                 const int32_t *positions, lora_mat x, bool backward, lora_error *err) {
    (void)ctx;
    (void)table;
    (void)n_heads;
    (void)head_dim;
    (void)positions;
    (void)x;
    (void)backward;
    return lora_fail(err, LORA_EUNSUPPORTED, "rope: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape,
                                                              const lora_segments *segments, lora_mat q, const lora_kv *kv, lora_mat o,
                                                              float *lse, lora_error *err) {
    (void)ctx;
    (void)shape;
    (void)segments;
    (void)q;
    (void)kv;
    (void)o;
    (void)lse;
    return lora_fail(err, LORA_EUNSUPPORTED, "attention_forward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape,
                                                               const lora_segments *segments, const lora_attention_gradient *gradient,
                                                               lora_error *err) {
    (void)ctx;
    (void)shape;
    (void)segments;
    (void)gradient;
    return lora_fail(err, LORA_EUNSUPPORTED, "attention_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h,
                                                        lora_error *err) {
    (void)ctx;
    (void)activation;
    (void)gate;
    (void)up;
    (void)h;
    return lora_fail(err, LORA_EUNSUPPORTED, "mlp_forward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up,
                                                         lora_mat dgate, lora_mat dup, lora_error *err) {
    (void)ctx;
    (void)activation;
    (void)dh;
    (void)gate;
    (void)up;
    (void)dgate;
    (void)dup;
    return lora_fail(err, LORA_EUNSUPPORTED, "mlp_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_embedding_forward(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y,
                                                              lora_error *err) {
    (void)ctx;
    (void)ids;
    (void)w;
    (void)y;
    return lora_fail(err, LORA_EUNSUPPORTED, "embedding_forward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_embedding_backward(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW,
                                                               lora_error *err) {
    (void)ctx;
    (void)ids;
    (void)dy;
    (void)dW;
    return lora_fail(err, LORA_EUNSUPPORTED, "embedding_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_values_loss(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) {
    (void)ctx;
    (void)y;
    (void)loss;
    (void)dy;
    return lora_fail(err, LORA_EUNSUPPORTED, "values_loss: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_copy_rows(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to,
                                                      const int64_t *to_rows, bool accumulate, lora_error *err) {
    (void)ctx;
    (void)from;
    (void)from_rows;
    (void)to;
    (void)to_rows;
    (void)accumulate;
    return lora_fail(err, LORA_EUNSUPPORTED, "copy_rows: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_convert_rows(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err) {
    (void)ctx;
    (void)from;
    (void)to;
    return lora_fail(err, LORA_EUNSUPPORTED, "convert_rows: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers,
                                                           lora_error *err) {
    (void)ctx;
    (void)x;
    (void)n;
    (void)layers;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_forward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients,
                                                            lora_mat dx, bool accumulate_dx, lora_error *err) {
    (void)ctx;
    (void)x;
    (void)n;
    (void)gradients;
    (void)dx;
    (void)accumulate_dx;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_backward: not on this device yet");
}
__attribute__((weak)) bool lora_cuda_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    (void)ctx;
    (void)M;
    (void)adapter;
    return 0;
}
__attribute__((weak)) lora_status lora_cuda_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm,
                                                      lora_error *err) {
    (void)ctx;
    (void)w;
    (void)adapter;
    (void)norm;
    return lora_fail(err, LORA_EUNSUPPORTED, "dora_norm: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter,
                                                         const float *norm, float sign, float *merged, lora_error *err) {
    (void)ctx;
    (void)w;
    (void)adapter;
    (void)norm;
    (void)sign;
    (void)merged;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_merge: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_linear_merge_backward(lora_ctx *ctx, const lora_adapter *adapter, lora_mat dmerged,
                                                                  lora_error *err) {
    (void)ctx;
    (void)adapter;
    (void)dmerged;
    return lora_fail(err, LORA_EUNSUPPORTED, "linear_merge_backward: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_adamw_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v,
                                                       const lora_adamw_hyper *hyper, lora_error *err) {
    (void)ctx;
    (void)n_params;
    (void)params;
    (void)m;
    (void)v;
    (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "adamw_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_adamw8bit_step(lora_ctx *ctx, int64_t n_params, const lora_param *params,
                                                           const lora_adamw8bit_state *state, const lora_adamw_hyper *hyper,
                                                           lora_error *err) {
    (void)ctx;
    (void)n_params;
    (void)params;
    (void)state;
    (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "adamw8bit_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_sgd_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m,
                                                     const lora_sgd_hyper *hyper, lora_error *err) {
    (void)ctx;
    (void)n_params;
    (void)params;
    (void)m;
    (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "sgd_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_lion_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m,
                                                      const lora_lion_hyper *hyper, lora_error *err) {
    (void)ctx;
    (void)n_params;
    (void)params;
    (void)m;
    (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "lion_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_adafactor_step(lora_ctx *ctx, int64_t n_params, const lora_param *params,
                                                           const lora_adafactor_state *state, const lora_adafactor_hyper *hyper,
                                                           lora_error *err) {
    (void)ctx;
    (void)n_params;
    (void)params;
    (void)state;
    (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "adafactor_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_muon_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m,
                                                      const lora_muon_hyper *hyper, lora_error *err) {
    (void)ctx;
    (void)n_params;
    (void)params;
    (void)m;
    (void)hyper;
    return lora_fail(err, LORA_EUNSUPPORTED, "muon_step: not on this device yet");
}
__attribute__((weak)) lora_status lora_cuda_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum,
                                                           lora_error *err) {
    (void)ctx;
    (void)n_params;
    (void)params;
    (void)sum;
    return lora_fail(err, LORA_EUNSUPPORTED, "sum_of_squares: not on this device yet");
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
__attribute__((weak)) lora_status lora_cuda_weight(lora_cuda *c, const lora_weight *w, int64_t first, int64_t rows, lora_dtype dtype,
                                                   int slot, lora_mat *out, lora_error *err) {
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
