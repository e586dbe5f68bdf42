/* The operations of optim.h. */
#include "lora_c/backend/dispatch.h"

static double elements_of(int64_t n_params, const lora_param *params) {
    double n = 0;
    for (int64_t i = 0; i < n_params; i++) n += (double)params[i].n;
    return n;
}

/* The account of an operation that moves so many bytes for each element. */
static lora_status end(lora_ctx *ctx, int64_t began, double bytes, int64_t n_params, const lora_param *params, lora_error *err) {
    return lora_account(ctx, LORA_OP_OPTIMIZER, began, 0, began ? bytes * elements_of(n_params, params) : 0, err);
}

lora_status lora_adamw_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper,
                            lora_error *err) {
    LORA_TRY(lora_check_adamw_step(n_params, params, m, v, hyper, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->adamw_step(ctx, n_params, params, m, v, hyper, err));
    return end(ctx, began, 28, n_params, params, err);
}

lora_status lora_adamw8bit_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state,
                                const lora_adamw_hyper *hyper, lora_error *err) {
    LORA_TRY(lora_check_adamw8bit_step(n_params, params, state, hyper, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->adamw8bit_step(ctx, n_params, params, state, hyper, err));
    return end(ctx, began, 16, n_params, params, err);
}

lora_status lora_sgd_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper,
                          lora_error *err) {
    LORA_TRY(lora_check_sgd_step(n_params, params, m, hyper, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->sgd_step(ctx, n_params, params, m, hyper, err));
    return end(ctx, began, 20, n_params, params, err);
}

lora_status lora_lion_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper,
                           lora_error *err) {
    LORA_TRY(lora_check_lion_step(n_params, params, m, hyper, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->lion_step(ctx, n_params, params, m, hyper, err));
    return end(ctx, began, 20, n_params, params, err);
}

lora_status lora_adafactor_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adafactor_state *state,
                                const lora_adafactor_hyper *hyper, lora_error *err) {
    LORA_TRY(lora_check_adafactor_step(n_params, params, state, hyper, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->adafactor_step(ctx, n_params, params, state, hyper, err));
    return end(ctx, began, 24, n_params, params, err);
}

lora_status lora_muon_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper,
                           lora_error *err) {
    LORA_TRY(lora_check_muon_step(n_params, params, m, hyper, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->muon_step(ctx, n_params, params, m, hyper, err));
    return end(ctx, began, 20, n_params, params, err);
}

lora_status lora_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err) {
    LORA_TRY(lora_check_sum_of_squares(n_params, params, sum, err));
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_ops_of(ctx)->sum_of_squares(ctx, n_params, params, sum, err));
    return end(ctx, began, 4, n_params, params, err);
}
