/* AdamW: what it accepts, and its update; its moments in 32 or 8 bits. */
#include <inttypes.h>
#include <math.h>

#include "lora_c/base/util.h"
#include "lora_c/optim/optimizer.h"

lora_status lora_check_betas(const lora_optimizer_options *o, lora_error *err) {
    LORA_CHECK(o->beta1 >= 0.0 && o->beta1 < 1.0 && o->beta2 >= 0.0 && o->beta2 < 1.0, err, LORA_EINVAL,
               "betas: expected two numbers with 0 <= beta < 1, got %g and %g", o->beta1, o->beta2);
    return LORA_OK;
}

lora_status lora_check_weight_decay(const lora_optimizer_options *o, lora_error *err) {
    LORA_CHECK(o->weight_decay >= 0.0 && isfinite(o->weight_decay), err, LORA_EINVAL, "weight_decay: expected a finite number >= 0, got %g",
               o->weight_decay);
    return LORA_OK;
}

static lora_status check(const lora_optimizer_options *o, lora_error *err) {
    LORA_TRY(lora_check_betas(o, err));
    LORA_CHECK(o->eps >= 0.0 && isfinite(o->eps), err, LORA_EINVAL, "eps: expected a finite number >= 0, got %g", o->eps);
    return lora_check_weight_decay(o, err);
}

static lora_status check_8bit(const lora_optimizer_options *o, lora_error *err) {
    LORA_TRY(check(o, err));
    LORA_CHECK(o->min_8bit_size >= 0, err, LORA_EINVAL, "min_8bit_size: expected >= 0, got %" PRId64, o->min_8bit_size);
    return LORA_OK;
}

static lora_adamw_hyper hyper_of(const lora_optimizer *opt, double lr, double grad_scale) {
    const lora_optimizer_options *o = &opt->options;
    return (lora_adamw_hyper){.lr = lr,
                              .beta1 = o->beta1,
                              .beta2 = o->beta2,
                              .eps = o->eps,
                              .weight_decay = o->weight_decay,
                              .step = opt->steps + 1,
                              .grad_scale = grad_scale};
}

static int64_t elements(const lora_optimizer_options *o, const lora_param *param, lora_moment which) {
    (void)o;
    return which == LORA_MOMENT_FIRST || which == LORA_MOMENT_SECOND ? param->n : 0;
}

static lora_status update(lora_optimizer *opt, const lora_optim_list *list, double lr, double grad_scale, lora_error *err) {
    lora_adamw_hyper hyper = hyper_of(opt, lr, grad_scale);
    return lora_adamw_step(opt->ctx, list->n, list->params, list->state[LORA_MOMENT_FIRST], list->state[LORA_MOMENT_SECOND], &hyper, err);
}

static bool is_small(const lora_optimizer_options *o, const lora_param *param) { return param->n < o->min_8bit_size; }

static int64_t elements_8bit(const lora_optimizer_options *o, const lora_param *param, lora_moment which) {
    (void)o;
    if (which == LORA_MOMENT_FIRST_CODES || which == LORA_MOMENT_SECOND_CODES) return param->n;
    bool is_scale = which == LORA_MOMENT_FIRST_ABSMAX || which == LORA_MOMENT_SECOND_ABSMAX;
    return is_scale ? lora_div_up(param->n, LORA_ADAMW8BIT_BLOCK) : 0;
}

static lora_status update_8bit(lora_optimizer *opt, const lora_optim_list *list, double lr, double grad_scale, lora_error *err) {
    lora_adamw_hyper hyper = hyper_of(opt, lr, grad_scale);
    lora_adamw8bit_state state = {.m = list->state[LORA_MOMENT_FIRST_CODES],
                                  .v = list->state[LORA_MOMENT_SECOND_CODES],
                                  .m_absmax = list->state[LORA_MOMENT_FIRST_ABSMAX],
                                  .v_absmax = list->state[LORA_MOMENT_SECOND_ABSMAX]};
    return lora_adamw8bit_step(opt->ctx, list->n, list->params, &state, &hyper, err);
}

const lora_optimizer_rule lora_adamw_rule = {.pageable = true, .check = check, .elements = elements, .update = update};
const lora_optimizer_rule lora_adamw8bit_rule = {
    .pageable = true, .check = check_8bit, .is_plain = is_small, .elements = elements_8bit, .update = update_8bit};
