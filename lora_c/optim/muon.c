/* Muon, with AdamW for what is no matrix. */
#include <inttypes.h>
#include <math.h>

#include "lora_c/optim/optimizer.h"

static lora_status check(const lora_optimizer_options *o, lora_error *err) {
    LORA_TRY(lora_adamw_rule.check(o, err));
    LORA_CHECK(o->momentum >= 0.0 && o->momentum < 1.0, err, LORA_EINVAL, "momentum: expected 0 <= momentum < 1, got %g", o->momentum);
    LORA_CHECK(o->ns_eps > 0.0 && isfinite(o->ns_eps), err, LORA_EINVAL, "ns_eps: expected a finite number > 0, got %g", o->ns_eps);
    LORA_CHECK(o->ns_steps >= 0 && o->ns_steps < 100, err, LORA_EINVAL, "ns_steps: expected 0 to 99, got %" PRId64, o->ns_steps);
    for (int i = 0; i < 3; i++)
        LORA_CHECK(isfinite(o->ns_coefficients[i]), err, LORA_EINVAL, "ns_coefficients: expected finite numbers, got %g",
                   o->ns_coefficients[i]);
    return LORA_OK;
}

static bool is_plain(const lora_optimizer_options *o, const lora_param *param) {
    (void)o;
    return param->cols == 0;
}

static int64_t elements(const lora_optimizer_options *o, const lora_param *param, lora_moment which) {
    (void)o;
    return which == LORA_MOMENT_FIRST ? param->n : 0;
}

static lora_status update(lora_optimizer *opt, const lora_optim_list *list, double lr, double grad_scale, lora_error *err) {
    const lora_optimizer_options *o = &opt->options;
    lora_muon_hyper hyper = {.lr = lr,
                             .momentum = o->momentum,
                             .weight_decay = o->weight_decay,
                             .eps = o->ns_eps,
                             .a = o->ns_coefficients[0],
                             .b = o->ns_coefficients[1],
                             .c = o->ns_coefficients[2],
                             .nesterov = o->nesterov,
                             .match_rms_adamw = o->match_rms_adamw,
                             .ns_steps = o->ns_steps,
                             .grad_scale = grad_scale};
    return lora_muon_step(opt->ctx, list->n, list->params, list->state[LORA_MOMENT_FIRST], &hyper, err);
}

const lora_optimizer_rule lora_muon_rule = {.check = check, .is_plain = is_plain, .elements = elements, .update = update};
