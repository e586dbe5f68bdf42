/* Adafactor. */
#include <math.h>

#include "lora_c/optim/optimizer.h"

static lora_status check(const lora_optimizer_options *o, lora_error *err) {
    const lora_adafactor_hyper *h = &o->adafactor;
    LORA_CHECK(h->eps1 > 0.0 && isfinite(h->eps1) && h->eps2 >= 0.0 && isfinite(h->eps2), err, LORA_EINVAL,
               "eps: expected a finite number > 0 and one >= 0, got %g and %g", h->eps1, h->eps2);
    LORA_CHECK(h->clip_threshold > 0.0 && isfinite(h->clip_threshold), err, LORA_EINVAL,
               "clip_threshold: expected a finite number > 0, got %g", h->clip_threshold);
    LORA_CHECK(h->decay_rate < 0.0 && isfinite(h->decay_rate), err, LORA_EINVAL, "decay_rate: expected a finite number < 0, got %g",
               h->decay_rate);
    LORA_CHECK(h->beta1 >= 0.0 && h->beta1 < 1.0, err, LORA_EINVAL, "beta1: expected 0 <= beta1 < 1, got %g", h->beta1);
    LORA_CHECK(h->relative_step || !h->warmup_init, err, LORA_EINVAL, "warmup_init: expected it with relative_step, got it alone");
    return lora_check_weight_decay(o, err);
}

static int64_t elements(const lora_optimizer_options *o, const lora_param *param, lora_moment which) {
    if (which == LORA_MOMENT_FIRST) return o->adafactor.beta1 > 0.0 ? param->n : 0;
    if (which == LORA_MOMENT_ROW) return param->cols ? param->n / param->cols : 0;
    return which != LORA_MOMENT_COL || param->n == 0 ? 0 : param->cols ? param->cols : param->n;
}

static lora_status update(lora_optimizer *opt, const lora_optim_list *list, double lr, double grad_scale, lora_error *err) {
    lora_adafactor_hyper hyper = opt->options.adafactor;
    hyper.lr = lr;
    hyper.weight_decay = opt->options.weight_decay;
    hyper.step = opt->steps + 1;
    hyper.grad_scale = grad_scale;
    lora_adafactor_state state = {
        .row = list->state[LORA_MOMENT_ROW], .col = list->state[LORA_MOMENT_COL], .m = list->state[LORA_MOMENT_FIRST]};
    return lora_adafactor_step(opt->ctx, list->n, list->params, &state, &hyper, err);
}

const lora_optimizer_rule lora_adafactor_rule = {.check = check, .elements = elements, .update = update};
