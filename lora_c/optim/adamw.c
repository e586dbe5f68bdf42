/* AdamW: what it accepts, and its update. */
#include <math.h>

#include "lora_c/optim/optimizer.h"

static lora_status check(const lora_optimizer_options *o, lora_error *err) {
    LORA_CHECK(o->beta1 >= 0.0 && o->beta1 < 1.0 && o->beta2 >= 0.0 && o->beta2 < 1.0, err, LORA_EINVAL,
               "betas: expected two numbers with 0 <= beta < 1, got %g and %g", o->beta1, o->beta2);
    LORA_CHECK(o->eps >= 0.0 && isfinite(o->eps), err, LORA_EINVAL, "eps: expected a finite number >= 0, got %g", o->eps);
    LORA_CHECK(o->weight_decay >= 0.0 && isfinite(o->weight_decay), err, LORA_EINVAL, "weight_decay: expected a finite number >= 0, got %g",
               o->weight_decay);
    return LORA_OK;
}

static lora_status update(lora_optimizer *opt, double lr, double grad_scale, lora_error *err) {
    const lora_optimizer_options *o = &opt->options;
    lora_adamw_hyper hyper = {
        .lr = lr,
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .eps = o->eps,
        .weight_decay = o->weight_decay,
        .step = opt->steps + 1,
        .grad_scale = grad_scale,
    };
    return lora_adamw_step(opt->ctx, opt->n_params, opt->params, opt->m, opt->v, &hyper, err);
}

const lora_optimizer_rule lora_adamw_rule = {.check = check, .update = update};
