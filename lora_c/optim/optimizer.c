/* What every optimizer does: it keeps the list of arrays and the state, finds the norm of the gradients and clips by it. */
#include "lora_c/optim/optimizer.h"

#include <inttypes.h>
#include <math.h>

#include "lora_c/base/util.h"

/* --- creation --- */

static const lora_optimizer_rule *rule_of(lora_optimizer_kind kind) {
    switch (kind) {
    case LORA_ADAMW: return &lora_adamw_rule;
    case LORA_ADAMW8BIT: return &lora_adamw8bit_rule;
    case LORA_SGD: return &lora_sgd_rule;
    case LORA_LION: return &lora_lion_rule;
    case LORA_ADAFACTOR: return &lora_adafactor_rule;
    case LORA_MUON: return &lora_muon_rule;
    case LORA_OPTIMIZER_KINDS: break;
    }
    return NULL;
}

/* Adds to total how many elements there are. */
static lora_status check_params(const lora_param *params, int64_t n_params, int64_t *total, lora_error *err) {
    LORA_CHECK(params != NULL && n_params >= 1, err, LORA_EINVAL, "params: expected at least one array, got none");
    for (int64_t i = 0; i < n_params; i++) {
        LORA_CHECK(params[i].n >= 0, err, LORA_ESHAPE, "params[%" PRId64 "].n: expected >= 0, got %" PRId64, i, params[i].n);
        LORA_CHECK(params[i].n == 0 || (params[i].data && params[i].grad), err, LORA_EINVAL,
                   "params[%" PRId64 "]: expected pointers to data and gradient, got NULL", i);
        LORA_CHECK(!__builtin_add_overflow(*total, params[i].n, total) && *total <= INT64_MAX / (int64_t)sizeof(float), err, LORA_ENOMEM,
                   "params: expected at most 2**61 elements, got more");
        LORA_CHECK(params[i].cols >= 0 && (params[i].cols == 0 || params[i].n % params[i].cols == 0), err, LORA_ESHAPE,
                   "params[%" PRId64 "].cols: expected a divisor of %" PRId64 ", got %" PRId64, i, params[i].n, params[i].cols);
        LORA_CHECK(params[i].lr_ratio >= 0.0 && isfinite(params[i].lr_ratio), err, LORA_EINVAL,
                   "params[%" PRId64 "].lr_ratio: expected a finite number >= 0, got %g", i, params[i].lr_ratio);
    }
    return LORA_OK;
}

static lora_status allocate(lora_optimizer *opt, const lora_param *params, lora_error *err) {
    lora_ctx *ctx = opt->ctx;
    opt->params = lora_host_alloc(ctx, LORA_MEM_SCRATCH, (size_t)opt->n_params * sizeof *opt->params);
    opt->sum = lora_ctx_alloc(ctx, LORA_MEM_SCRATCH, sizeof *opt->sum);
    LORA_CHECK(opt->params && opt->sum, err, LORA_ENOMEM, "params: expected memory for a list of %" PRId64 ", got none", opt->n_params);
    for (int64_t i = 0; i < opt->n_params; i++) opt->params[i] = params[i];
    return lora_optim_state_create(opt, err);
}

lora_status lora_optimizer_create(lora_ctx *ctx, lora_optimizer_kind kind, const lora_param *params, int64_t n_params,
                                  const lora_optimizer_options *options, lora_optimizer **out, lora_error *err) {
    *out = NULL;
    const lora_optimizer_rule *rule = rule_of(kind);
    LORA_CHECK(rule, err, LORA_EINVAL, "kind: expected 0 to %d, got %d", LORA_OPTIMIZER_KINDS - 1, (int)kind);
    LORA_CHECK(options, err, LORA_EINVAL, "options: expected a pointer, got NULL");
    LORA_TRY(lora_device_check(ctx, err));
    LORA_TRY(rule->check(options, err));
    LORA_CHECK(rule->pageable || !options->paged_folder, err, LORA_EINVAL, "paged_folder: expected it for AdamW alone, got it for kind %d",
               (int)kind);
    int64_t total = 0;
    LORA_TRY(check_params(params, n_params, &total, err));
    lora_optimizer *opt = lora_host_alloc(ctx, LORA_MEM_SCRATCH, sizeof *opt);
    LORA_CHECK(opt, err, LORA_ENOMEM, "optimizer: expected %zu bytes of memory, got none", sizeof *opt);
    opt->ctx = ctx;
    opt->rule = rule;
    opt->options = *options;
    opt->n_params = n_params;
    opt->paged = options->paged_folder != NULL;
    lora_status status = allocate(opt, params, err);
    opt->options.paged_folder = NULL;
    if (status != LORA_OK) {
        lora_optimizer_destroy(opt);
        return status;
    }
    *out = opt;
    return LORA_OK;
}

void lora_optimizer_destroy(lora_optimizer *opt) {
    if (!opt) return;
    lora_optim_state_destroy(opt);
    lora_ctx_free(opt->ctx, opt->sum);
    lora_host_free(opt->ctx, opt->params);
    lora_host_free(opt->ctx, opt);
}

/* --- steps --- */

static lora_status check_step(const lora_step_options *o, lora_error *err) {
    LORA_CHECK(o, err, LORA_EINVAL, "options: expected a pointer, got NULL");
    LORA_CHECK(o->lr >= 0.0 && isfinite(o->lr), err, LORA_EINVAL, "lr: expected a finite number >= 0, got %g", o->lr);
    LORA_CHECK(isfinite(o->grad_scale), err, LORA_EINVAL, "grad_scale: expected a finite number, got %g", o->grad_scale);
    LORA_CHECK(o->max_grad_norm >= 0.0 && isfinite(o->max_grad_norm), err, LORA_EINVAL,
               "max_grad_norm: expected a finite number >= 0, got %g", o->max_grad_norm);
    LORA_CHECK(o->skip_grad_norm >= 0.0 && isfinite(o->skip_grad_norm), err, LORA_EINVAL,
               "skip_grad_norm: expected a finite number >= 0, got %g", o->skip_grad_norm);
    return LORA_OK;
}

lora_status lora_optimizer_step(lora_optimizer *opt, const lora_step_options *options, double *norm, lora_error *err) {
    LORA_CHECK(norm, err, LORA_EINVAL, "norm: expected a pointer, got NULL");
    LORA_TRY(check_step(options, err));
    LORA_TRY(lora_device_check(opt->ctx, err));
    LORA_TRY(lora_optim_check_process(opt, err));
    LORA_TRY(lora_sum_of_squares(opt->ctx, opt->n_params, opt->params, opt->sum, err));
    double sum;
    LORA_TRY(lora_download(opt->ctx, &sum, opt->sum, sizeof sum, err));
    LORA_TRY(lora_sync(opt->ctx, err));
    *norm = sqrt(sum) * fabs(options->grad_scale);
    LORA_CHECK(isfinite(*norm), err, LORA_EINVAL,
               "gradients: expected finite numbers, got a norm of %s; parameters are unchanged, try a lower learning rate",
               isnan(*norm) ? "nan" : "inf");
    if (options->skip_grad_norm > 0.0 && *norm > options->skip_grad_norm) return LORA_OK;
    bool is_long = options->max_grad_norm > 0.0 && *norm > options->max_grad_norm;
    double clip = is_long ? options->max_grad_norm / (*norm + 1e-6) : 1.0;
    LORA_TRY(lora_optim_update(opt, options->lr, options->grad_scale * clip, err));
    opt->steps++;
    return LORA_OK;
}

lora_status lora_optimizer_zero_grad(lora_optimizer *opt, lora_error *err) {
    for (int64_t i = 0; i < opt->n_params; i++) {
        if (opt->params[i].n == 0) continue; /* its gradient may be NULL */
        LORA_TRY(lora_clear(opt->ctx, opt->params[i].grad, (size_t)opt->params[i].n * sizeof(float), err));
    }
    return LORA_OK;
}

/* --- state --- */

int64_t lora_optimizer_steps(const lora_optimizer *opt) { return opt->steps; }

lora_status lora_optimizer_set_steps(lora_optimizer *opt, int64_t steps, lora_error *err) {
    LORA_CHECK(steps >= 0, err, LORA_EINVAL, "steps: expected >= 0, got %" PRId64, steps);
    opt->steps = steps;
    return LORA_OK;
}
