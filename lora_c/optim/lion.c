/* Lion. */
#include "lora_c/optim/optimizer.h"

static lora_status check(const lora_optimizer_options *o, lora_error *err) {
    LORA_TRY(lora_check_betas(o, err));
    return lora_check_weight_decay(o, err);
}

static int64_t elements(const lora_optimizer_options *o, const lora_param *param, lora_moment which) {
    (void)o;
    return which == LORA_MOMENT_FIRST ? param->n : 0;
}

static lora_status update(lora_optimizer *opt, const lora_optim_list *list, double lr, double grad_scale, lora_error *err) {
    const lora_optimizer_options *o = &opt->options;
    lora_lion_hyper hyper = {.lr = lr, .beta1 = o->beta1, .beta2 = o->beta2, .weight_decay = o->weight_decay, .grad_scale = grad_scale};
    return lora_lion_step(opt->ctx, list->n, list->params, list->state[LORA_MOMENT_FIRST], &hyper, err);
}

const lora_optimizer_rule lora_lion_rule = {.check = check, .elements = elements, .update = update};
