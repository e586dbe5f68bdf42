/* The parts of an optimizer's step. */
#include <inttypes.h>
#include <math.h>

#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"

static lora_status check_params(int64_t n_params, const lora_param *params, lora_error *err) {
    LORA_CHECK(n_params >= 0, err, LORA_ESHAPE, "n_params: expected >= 0, got %" PRId64, n_params);
    LORA_CHECK(params != NULL || n_params == 0, err, LORA_EINVAL, "params: expected a pointer, got NULL");
    for (int64_t i = 0; i < n_params; i++)
        LORA_CHECK(params[i].n >= 0, err, LORA_ESHAPE, "params[%" PRId64 "].n: expected >= 0, got %" PRId64, i, params[i].n);
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
static lora_status check_arrays(int64_t n_params, const lora_param *params, lora_arg m, lora_arg v, lora_error *err) {
    LORA_TRY(lora_mat_check(m, err));
    LORA_TRY(lora_mat_check(v, err));
    LORA_TRY(lora_mat_disjoint(v, m, err));
    for (int64_t i = 0; i < n_params; i++) {
        lora_arg data = flat("data", params[i].data, params[i].n), grad = flat("grad", params[i].grad, params[i].n);
        LORA_TRY(lora_mat_check(data, err));
        LORA_TRY(lora_mat_check(grad, err));
        LORA_TRY(lora_mat_disjoint(data, grad, err));
        LORA_TRY(lora_mat_disjoint(m, data, err));
        LORA_TRY(lora_mat_disjoint(m, grad, err));
        LORA_TRY(lora_mat_disjoint(v, data, err));
        LORA_TRY(lora_mat_disjoint(v, grad, err));
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
    return check_arrays(n_params, params, flat("m", m, n), flat("v", v, n), err);
}

lora_status lora_check_sum_of_squares(int64_t n_params, const lora_param *params, double *sum, lora_error *err) {
    LORA_CHECK(sum != NULL, err, LORA_EINVAL, "sum: expected a pointer, got NULL");
    LORA_TRY(check_params(n_params, params, err));
    for (int64_t i = 0; i < n_params; i++) LORA_TRY(lora_mat_check(flat("grad", params[i].grad, params[i].n), err));
    return LORA_OK;
}
