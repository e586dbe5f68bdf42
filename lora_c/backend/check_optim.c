/* The parts of an optimizer's step. */
#include <inttypes.h>
#include <math.h>

#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"

static lora_status check_params(int64_t n_params, const lora_param *params, lora_error *err) {
    LORA_CHECK(n_params >= 0, err, LORA_ESHAPE, "n_params: expected >= 0, got %" PRId64, n_params);
    LORA_CHECK(params != NULL || n_params == 0, err, LORA_EINVAL, "params: expected a pointer, got NULL");
    for (int64_t i = 0; i < n_params; i++) {
        LORA_CHECK(params[i].n >= 0, err, LORA_ESHAPE, "params[%" PRId64 "].n: expected >= 0, got %" PRId64, i, params[i].n);
        LORA_CHECK(params[i].cols >= 0 && (params[i].cols == 0 || params[i].n % params[i].cols == 0), err, LORA_ESHAPE,
                   "params[%" PRId64 "].cols: expected a divisor of %" PRId64 ", got %" PRId64, i, params[i].n, params[i].cols);
        LORA_CHECK(params[i].lr_ratio >= 0.0 && isfinite(params[i].lr_ratio), err, LORA_EINVAL,
                   "params[%" PRId64 "].lr_ratio: expected a finite number >= 0, got %g", i, params[i].lr_ratio);
    }
    return LORA_OK;
}

static lora_arg flat(const char *name, const void *data, int64_t n) { return lora_named(name, lora_mat_vector(data, n)); }

static lora_status check_hyper(const lora_adamw_hyper *h, lora_error *err) {
    LORA_CHECK(h != NULL, err, LORA_EINVAL, "hyper: expected a pointer, got NULL");
    LORA_CHECK(h->lr >= 0.0 && isfinite(h->lr), err, LORA_EINVAL, "lr: expected a finite value >= 0, got %g", h->lr);
    LORA_CHECK(h->beta1 >= 0.0 && h->beta1 < 1.0, err, LORA_EINVAL, "beta1: expected 0 <= beta1 < 1, got %g", h->beta1);
    LORA_CHECK(h->beta2 >= 0.0 && h->beta2 < 1.0, err, LORA_EINVAL, "beta2: expected 0 <= beta2 < 1, got %g", h->beta2);
    LORA_CHECK(h->eps >= 0.0 && isfinite(h->eps), err, LORA_EINVAL, "eps: expected a finite value >= 0, got %g", h->eps);
    LORA_CHECK(h->weight_decay >= 0.0 && isfinite(h->weight_decay), err, LORA_EINVAL, "weight_decay: expected a finite value >= 0, got %g",
               h->weight_decay);
    LORA_CHECK(h->step >= 1, err, LORA_EINVAL, "step: expected >= 1, got %" PRId64, h->step);
    return LORA_OK;
}

/* Every array apart from the moments and from its own gradient. That arrays are apart from each other is the caller's word. */
static lora_status check_arrays(int64_t n_params, const lora_param *params, int n_state, const lora_arg *state, lora_error *err) {
    for (int s = 0; s < n_state; s++) {
        LORA_TRY(lora_mat_check(state[s], err));
        for (int t = 0; t < s; t++) LORA_TRY(lora_mat_disjoint(state[s], state[t], err));
    }
    for (int64_t i = 0; i < n_params; i++) {
        lora_arg data = flat("data", params[i].data, params[i].n), grad = flat("grad", params[i].grad, params[i].n);
        LORA_TRY(lora_mat_check(data, err));
        LORA_TRY(lora_mat_check(grad, err));
        LORA_TRY(lora_mat_disjoint(data, grad, err));
        for (int s = 0; s < n_state; s++) {
            LORA_TRY(lora_mat_disjoint(state[s], data, err));
            LORA_TRY(lora_mat_disjoint(state[s], grad, err));
        }
    }
    return LORA_OK;
}

static int64_t elements_of(int64_t n_params, const lora_param *params) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_params; i++) n += params[i].n;
    return n;
}

lora_status lora_check_adamw_step(int64_t n_params, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper,
                                  lora_error *err) {
    LORA_TRY(check_hyper(hyper, err));
    LORA_TRY(check_params(n_params, params, err));
    int64_t n = elements_of(n_params, params);
    return check_arrays(n_params, params, 2, (lora_arg[]){flat("m", m, n), flat("v", v, n)}, err);
}

/* Codes are bytes: as many floats as they cover. */
static lora_arg codes(const char *name, const uint8_t *data, int64_t n) { return flat(name, data, (n + 3) / 4); }

lora_status lora_check_adamw8bit_step(int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state,
                                      const lora_adamw_hyper *hyper, lora_error *err) {
    LORA_CHECK(state, err, LORA_EINVAL, "state: expected a pointer, got NULL");
    LORA_TRY(check_hyper(hyper, err));
    LORA_TRY(check_params(n_params, params, err));
    int64_t n = elements_of(n_params, params), blocks = 0;
    for (int64_t i = 0; i < n_params; i++) blocks += (params[i].n + LORA_ADAMW8BIT_BLOCK - 1) / LORA_ADAMW8BIT_BLOCK;
    lora_arg all[] = {codes("m", state->m, n), codes("v", state->v, n), flat("m_absmax", state->m_absmax, blocks),
                      flat("v_absmax", state->v_absmax, blocks)};
    return check_arrays(n_params, params, 4, all, err);
}

static lora_status check_rate(double lr, double weight_decay, lora_error *err) {
    LORA_CHECK(lr >= 0.0 && isfinite(lr), err, LORA_EINVAL, "lr: expected a finite value >= 0, got %g", lr);
    LORA_CHECK(weight_decay >= 0.0 && isfinite(weight_decay), err, LORA_EINVAL, "weight_decay: expected a finite value >= 0, got %g",
               weight_decay);
    return LORA_OK;
}

lora_status lora_check_sgd_step(int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper, lora_error *err) {
    LORA_CHECK(hyper, err, LORA_EINVAL, "hyper: expected a pointer, got NULL");
    LORA_TRY(check_rate(hyper->lr, hyper->weight_decay, err));
    LORA_CHECK(hyper->momentum >= 0.0 && hyper->momentum < 1.0, err, LORA_EINVAL, "momentum: expected 0 <= momentum < 1, got %g",
               hyper->momentum);
    LORA_CHECK(isfinite(hyper->dampening), err, LORA_EINVAL, "dampening: expected a finite value, got %g", hyper->dampening);
    LORA_CHECK(hyper->step >= 1, err, LORA_EINVAL, "step: expected >= 1, got %" PRId64, hyper->step);
    LORA_TRY(check_params(n_params, params, err));
    int64_t n = elements_of(n_params, params);
    LORA_CHECK((m != NULL) == (hyper->momentum > 0.0) || n == 0, err, LORA_EINVAL,
               "m: expected a pointer exactly where momentum is above 0, got another");
    return check_arrays(n_params, params, m ? 1 : 0, (lora_arg[]){flat("m", m, n)}, err);
}

lora_status lora_check_lion_step(int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper, lora_error *err) {
    LORA_CHECK(hyper, err, LORA_EINVAL, "hyper: expected a pointer, got NULL");
    LORA_TRY(check_rate(hyper->lr, hyper->weight_decay, err));
    LORA_CHECK(hyper->beta1 >= 0.0 && hyper->beta1 < 1.0, err, LORA_EINVAL, "beta1: expected 0 <= beta1 < 1, got %g", hyper->beta1);
    LORA_CHECK(hyper->beta2 >= 0.0 && hyper->beta2 < 1.0, err, LORA_EINVAL, "beta2: expected 0 <= beta2 < 1, got %g", hyper->beta2);
    LORA_TRY(check_params(n_params, params, err));
    return check_arrays(n_params, params, 1, (lora_arg[]){flat("m", m, elements_of(n_params, params))}, err);
}

static lora_status check_adafactor_hyper(const lora_adafactor_hyper *h, lora_error *err) {
    LORA_CHECK(h, err, LORA_EINVAL, "hyper: expected a pointer, got NULL");
    LORA_TRY(check_rate(h->relative_step ? 0.0 : h->lr, h->weight_decay, err));
    LORA_CHECK(h->eps1 > 0.0 && isfinite(h->eps1) && h->eps2 >= 0.0 && isfinite(h->eps2), err, LORA_EINVAL,
               "eps: expected a finite value > 0 and one >= 0, got %g and %g", h->eps1, h->eps2);
    LORA_CHECK(h->clip_threshold > 0.0 && isfinite(h->clip_threshold), err, LORA_EINVAL,
               "clip_threshold: expected a finite value > 0, got %g", h->clip_threshold);
    LORA_CHECK(h->decay_rate < 0.0 && isfinite(h->decay_rate), err, LORA_EINVAL, "decay_rate: expected a finite value < 0, got %g",
               h->decay_rate);
    LORA_CHECK(h->beta1 >= 0.0 && h->beta1 < 1.0, err, LORA_EINVAL, "beta1: expected 0 <= beta1 < 1, got %g", h->beta1);
    LORA_CHECK(h->step >= 1, err, LORA_EINVAL, "step: expected >= 1, got %" PRId64, h->step);
    return LORA_OK;
}

lora_status lora_check_adafactor_step(int64_t n_params, const lora_param *params, const lora_adafactor_state *state,
                                      const lora_adafactor_hyper *hyper, lora_error *err) {
    LORA_CHECK(state, err, LORA_EINVAL, "state: expected a pointer, got NULL");
    LORA_TRY(check_adafactor_hyper(hyper, err));
    LORA_TRY(check_params(n_params, params, err));
    int64_t rows = 0, cols = 0;
    for (int64_t i = 0; i < n_params; i++) {
        rows += params[i].cols ? params[i].n / params[i].cols : 0;
        cols += params[i].n == 0 ? 0 : params[i].cols ? params[i].cols : params[i].n;
    }
    bool has_m = hyper->beta1 > 0.0;
    lora_arg all[] = {flat("row", state->row, rows), flat("col", state->col, cols), flat("m", state->m, elements_of(n_params, params))};
    return check_arrays(n_params, params, has_m ? 3 : 2, all, err);
}

lora_status lora_check_muon_step(int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper, lora_error *err) {
    LORA_CHECK(hyper, err, LORA_EINVAL, "hyper: expected a pointer, got NULL");
    LORA_TRY(check_rate(hyper->lr, hyper->weight_decay, err));
    LORA_CHECK(hyper->momentum >= 0.0 && hyper->momentum < 1.0, err, LORA_EINVAL, "momentum: expected 0 <= momentum < 1, got %g",
               hyper->momentum);
    LORA_CHECK(hyper->eps > 0.0 && isfinite(hyper->eps), err, LORA_EINVAL, "eps: expected a finite value > 0, got %g", hyper->eps);
    LORA_CHECK(hyper->ns_steps >= 0 && hyper->ns_steps < 100, err, LORA_EINVAL, "ns_steps: expected 0 to 99, got %" PRId64,
               hyper->ns_steps);
    LORA_TRY(check_params(n_params, params, err));
    for (int64_t i = 0; i < n_params; i++)
        LORA_CHECK(params[i].cols >= 1, err, LORA_ESHAPE, "params[%" PRId64 "].cols: expected a matrix, got none", i);
    return check_arrays(n_params, params, 1, (lora_arg[]){flat("m", m, elements_of(n_params, params))}, err);
}

lora_status lora_check_sum_of_squares(int64_t n_params, const lora_param *params, double *sum, lora_error *err) {
    LORA_CHECK(sum != NULL, err, LORA_EINVAL, "sum: expected a pointer, got NULL");
    LORA_TRY(check_params(n_params, params, err));
    for (int64_t i = 0; i < n_params; i++) LORA_TRY(lora_mat_check(flat("grad", params[i].grad, params[i].n), err));
    return LORA_OK;
}
