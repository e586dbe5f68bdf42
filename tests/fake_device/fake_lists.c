#include "tests/fake_device/fake_lists.h"

#include <stdlib.h>

#include "lora_c/ops/cpu_ops.h"
#include "tests/fake_device/fake_addresses.h"

typedef struct rope_table_args {
    int64_t n_positions, half;
    const int32_t *positions;
    double scale;
    float *cos, *sin;
    double inv_freq[]; /* (half), of the host: copied */
} rope_table_args;

static lora_status run_rope_table(fake_device *f, void *args, lora_error *err) {
    rope_table_args *a = args;
    const void *bad = NULL;
    a->positions = fake_at(f, a->positions, &bad);
    a->cos = fake_at(f, a->cos, &bad);
    a->sin = fake_at(f, a->sin, &bad);
    if (bad) return host_address("rope_table", err);
    return lora_cpu_rope_table(f->cpu, a->n_positions, a->positions, a->half, a->inv_freq, a->scale, a->cos, a->sin, err);
}

lora_status fake_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                            double scale, float *cos, float *sin, lora_error *err) {
    size_t bytes = sizeof(rope_table_args) + (size_t)half * sizeof(double);
    rope_table_args *args = malloc(bytes);
    LORA_CHECK(args, err, LORA_ENOMEM, "queue: expected %zu bytes, got none", bytes);
    *args = (rope_table_args){.n_positions = n_positions, .half = half, .positions = positions, .scale = scale, .cos = cos, .sin = sin};
    for (int64_t i = 0; i < half; i++) args->inv_freq[i] = inv_freq[i];
    lora_status status = queue(ctx, run_rope_table, args, bytes, err);
    free(args);
    return status;
}

typedef struct linear_forward_args {
    lora_mat x;
    int64_t n;
    lora_linear_layer layers[LORA_LINEAR_LAYERS];
    lora_weight w[LORA_LINEAR_LAYERS];
    lora_adapter adapters[LORA_LINEAR_LAYERS];
    lora_adapter_rows groups[LORA_LINEAR_LAYERS][LORA_DECODE_BATCH];
    lora_adapter group_adapters[LORA_LINEAR_LAYERS][LORA_DECODE_BATCH];
} linear_forward_args;

static lora_status run_linear_forward(fake_device *f, void *args, lora_error *err) {
    linear_forward_args *a = args;
    const void *from_host = NULL, **bad = &from_host;
    at_mat(f, &a->x, bad);
    for (int64_t i = 0; i < a->n; i++) {
        lora_linear_layer *l = a->layers + i;
        at_weight(f, &a->w[i], bad);
        at_adapter(f, &a->adapters[i], bad);
        at_pass(f, &l->pass, bad);
        at_mat(f, &l->y, bad);
        AT(l->bias);
        l->w = &a->w[i];
        if (l->adapter) l->adapter = &a->adapters[i];
        for (int64_t g = 0; g < l->n_groups; g++) {
            at_adapter(f, &a->group_adapters[i][g], bad);
            a->groups[i][g].adapter = &a->group_adapters[i][g];
        }
        l->groups = a->groups[i];
    }
    return from_host ? host_address("linear_forward", err) : lora_cpu_linear_forward(f->cpu, a->x, a->n, a->layers, err);
}

lora_status fake_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    linear_forward_args args = {.x = x, .n = n};
    for (int64_t i = 0; i < n; i++) {
        args.layers[i] = layers[i];
        args.w[i] = *layers[i].w;
        if (layers[i].adapter) args.adapters[i] = *layers[i].adapter;
        for (int64_t g = 0; g < layers[i].n_groups; g++) {
            args.groups[i][g] = layers[i].groups[g];
            args.group_adapters[i][g] = *layers[i].groups[g].adapter;
        }
    }
    return queue(ctx, run_linear_forward, &args, sizeof args, err);
}

typedef struct linear_backward_args {
    lora_mat x, dx;
    int64_t n;
    bool accumulate_dx;
    lora_linear_gradient gradients[LORA_LINEAR_LAYERS];
    lora_weight w[LORA_LINEAR_LAYERS];
    lora_adapter adapters[LORA_LINEAR_LAYERS];
} linear_backward_args;

static lora_status run_linear_backward(fake_device *f, void *args, lora_error *err) {
    linear_backward_args *a = args;
    const void *from_host = NULL, **bad = &from_host;
    at_mat(f, &a->x, bad);
    at_mat(f, &a->dx, bad);
    for (int64_t i = 0; i < a->n; i++) {
        lora_linear_gradient *g = a->gradients + i;
        at_weight(f, &a->w[i], bad);
        at_adapter(f, &a->adapters[i], bad);
        at_pass(f, &g->pass, bad);
        at_mat(f, &g->dy, bad);
        AT(g->dW);
        AT(g->dbias);
        g->w = &a->w[i];
        if (g->adapter) g->adapter = &a->adapters[i];
    }
    if (from_host) return host_address("linear_backward", err);
    return lora_cpu_linear_backward(f->cpu, a->x, a->n, a->gradients, a->dx, a->accumulate_dx, err);
}

lora_status fake_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                 bool accumulate_dx, lora_error *err) {
    linear_backward_args args = {.x = x, .dx = dx, .n = n, .accumulate_dx = accumulate_dx};
    for (int64_t i = 0; i < n; i++) {
        args.gradients[i] = gradients[i];
        args.w[i] = *gradients[i].w;
        if (gradients[i].adapter) args.adapters[i] = *gradients[i].adapter;
    }
    return queue(ctx, run_linear_backward, &args, sizeof args, err);
}

bool fake_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    const fake_device *f = lora_backend_of(ctx)->state;
    return lora_cpu_linear_keeps_low(f->cpu, M, adapter);
}

int64_t fake_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    const fake_device *f = lora_backend_of(ctx)->state;
    return lora_cpu_scratch_bytes(f->cpu, shape);
}
