/* The operations of optimizers, whose arguments are lists. */
#include <stdlib.h>

#include "lora_c/ops/cpu_ops.h"
#include "tests/fake_device/fake_addresses.h"
#include "tests/fake_device/fake_lists.h"

/* What an operation was given beside its list; each reads its own. */
typedef struct optim_args {
    int64_t n;
    float *m, *v;
    double *sum;
    lora_adamw8bit_state adamw8bit;
    lora_adafactor_state adafactor;
    union {
        lora_adamw_hyper adamw;
        lora_sgd_hyper sgd;
        lora_lion_hyper lion;
        lora_adafactor_hyper adafactor;
        lora_muon_hyper muon;
    } hyper;
    lora_param params[]; /* (n) */
} optim_args;

static bool at_params(const fake_device *f, optim_args *a) {
    const void *from_host = NULL, **bad = &from_host;
    AT(a->m);
    AT(a->v);
    AT(a->sum);
    AT(a->adamw8bit.m);
    AT(a->adamw8bit.v);
    AT(a->adamw8bit.m_absmax);
    AT(a->adamw8bit.v_absmax);
    AT(a->adafactor.row);
    AT(a->adafactor.col);
    AT(a->adafactor.m);
    for (int64_t i = 0; i < a->n; i++) {
        AT(a->params[i].data);
        AT(a->params[i].grad);
    }
    return !from_host;
}

/* run_<name>: the CPU's operation with the device's own addresses. */
#define RUN(name, ...)                                                                                                                     \
    static lora_status run_##name(fake_device *f, void *args, lora_error *err) {                                                           \
        optim_args *a = args;                                                                                                              \
        return at_params(f, a) ? lora_cpu_##name(f->cpu, a->n, a->params, __VA_ARGS__, err) : host_address(#name, err);                    \
    }
RUN(adamw_step, a->m, a->v, &a->hyper.adamw)
RUN(adamw8bit_step, &a->adamw8bit, &a->hyper.adamw)
RUN(sgd_step, a->m, &a->hyper.sgd)
RUN(lion_step, a->m, &a->hyper.lion)
RUN(adafactor_step, &a->adafactor, &a->hyper.adafactor)
RUN(muon_step, a->m, &a->hyper.muon)
RUN(sum_of_squares, a->sum)

static lora_status queue_optim(lora_ctx *ctx, fake_run_fn *run, optim_args head, const lora_param *params, lora_error *err) {
    size_t bytes = sizeof head + (size_t)head.n * sizeof *params;
    optim_args *args = malloc(bytes);
    LORA_CHECK(args, err, LORA_ENOMEM, "queue: expected %zu bytes, got none", bytes);
    *args = head;
    for (int64_t i = 0; i < head.n; i++) args->params[i] = params[i];
    lora_status status = queue(ctx, run, args, bytes, err);
    free(args);
    return status;
}

lora_status fake_adamw_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper,
                            lora_error *err) {
    return queue_optim(ctx, run_adamw_step, (optim_args){.n = n, .m = m, .v = v, .hyper.adamw = *hyper}, params, err);
}

lora_status fake_adamw8bit_step(lora_ctx *ctx, int64_t n, const lora_param *params, const lora_adamw8bit_state *state,
                                const lora_adamw_hyper *hyper, lora_error *err) {
    return queue_optim(ctx, run_adamw8bit_step, (optim_args){.n = n, .adamw8bit = *state, .hyper.adamw = *hyper}, params, err);
}

lora_status fake_sgd_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, const lora_sgd_hyper *hyper, lora_error *err) {
    return queue_optim(ctx, run_sgd_step, (optim_args){.n = n, .m = m, .hyper.sgd = *hyper}, params, err);
}

lora_status fake_lion_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, const lora_lion_hyper *hyper, lora_error *err) {
    return queue_optim(ctx, run_lion_step, (optim_args){.n = n, .m = m, .hyper.lion = *hyper}, params, err);
}

lora_status fake_adafactor_step(lora_ctx *ctx, int64_t n, const lora_param *params, const lora_adafactor_state *state,
                                const lora_adafactor_hyper *hyper, lora_error *err) {
    return queue_optim(ctx, run_adafactor_step, (optim_args){.n = n, .adafactor = *state, .hyper.adafactor = *hyper}, params, err);
}

lora_status fake_muon_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, const lora_muon_hyper *hyper, lora_error *err) {
    return queue_optim(ctx, run_muon_step, (optim_args){.n = n, .m = m, .hyper.muon = *hyper}, params, err);
}

lora_status fake_sum_of_squares(lora_ctx *ctx, int64_t n, const lora_param *params, double *sum, lora_error *err) {
    return queue_optim(ctx, run_sum_of_squares, (optim_args){.n = n, .sum = sum}, params, err);
}
