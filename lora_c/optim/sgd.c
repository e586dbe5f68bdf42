/* SGD with momentum. */
#include <math.h>

#include "lora_c/optim/optimizer.h"

static lora_status check(const lora_optimizer_options *o, lora_error *err) {
    LORA_CHECK(o->momentum >= 0.0 && o->momentum < 1.0, err, LORA_EINVAL, "momentum: expected 0 <= momentum < 1, got %g", o->momentum);
    LORA_CHECK(isfinite(o->dampening), err, LORA_EINVAL, "dampening: expected a finite number, got %g", o->dampening);
    LORA_CHECK(!o->nesterov || (o->momentum > 0.0 && o->dampening == 0.0), err, LORA_EINVAL,
               "nesterov: expected momentum above 0 and dampening 0, got %g and %g", o->momentum, o->dampening);
    return lora_check_weight_decay(o, err);
}

static int64_t elements(const lora_optimizer_options *o, const lora_param *param, lora_moment which) {
    return which == LORA_MOMENT_FIRST && o->momentum > 0.0 ? param->n : 0;
}

static lora_status update(lora_optimizer *opt, const lora_optim_list *list, double lr, double grad_scale, lora_error *err) {
    const lora_optimizer_options *o = &opt->options;
    lora_sgd_hyper hyper = {.lr = lr,
                            .momentum = o->momentum,
                            .dampening = o->dampening,
                            .weight_decay = o->weight_decay,
                            .nesterov = o->nesterov,
                            .step = opt->steps + 1,
                            .grad_scale = grad_scale};
    return lora_sgd_step(opt->ctx, list->n, list->params, list->state[LORA_MOMENT_FIRST], &hyper, err);
}

const lora_optimizer_rule lora_sgd_rule = {.check = check, .elements = elements, .update = update};
