#include "lora_c/ops/linear_costs.h"

#include "lora_c/ops/profile.h"

static double rank_of(const lora_adapter *a) { return a ? (double)a->rank : 0; }

void lora_count_forward(lora_ctx *ctx, int64_t began, int64_t M, int64_t n, const lora_linear_layer *layers) {
    double m = (double)M, k = (double)layers->w->cols, flops = 0, bytes = 4 * m * k;
    for (int64_t i = 0; i < n; i++) {
        double rows = (double)layers[i].w->rows, r = rank_of(layers[i].adapter), low_rows = m * r; /* ranks, and by rows of x */
        for (int64_t g = 0; g < layers[i].n_groups; g++) {
            const lora_adapter_rows *group = layers[i].groups + g;
            r += rank_of(group->adapter);
            low_rows += (double)group->rows * rank_of(group->adapter);
        }
        flops += 2 * (m * rows * k + low_rows * (rows + k));
        bytes += lora_profile_weight_bytes(layers[i].w) + 4 * m * rows + 4 * r * (rows + k);
    }
    lora_profile_end(ctx, LORA_OP_LINEAR_FORWARD, began, flops, bytes);
}

void lora_count_backward(lora_ctx *ctx, int64_t began, int64_t M, int64_t n, const lora_linear_gradient *gradients, bool dx) {
    double m = (double)M, k = (double)gradients->w->cols, flops = 0, bytes = dx ? 4 * m * k : 0;
    for (int64_t i = 0; i < n; i++) {
        double rows = (double)gradients[i].w->rows, r = rank_of(gradients[i].adapter);
        flops += 2 * m * (r * rows + (dx ? rows * k + r * k : 0));
        bytes += (dx ? lora_profile_weight_bytes(gradients[i].w) : 0) + 4 * m * rows + 4 * r * (rows + (dx ? k : 0));
    }
    lora_profile_end(ctx, LORA_OP_LINEAR_BACKWARD, began, flops, bytes);
}

void lora_count_adapter_gradient(lora_ctx *ctx, int64_t began, int64_t M, int64_t n, const lora_linear_gradient *gradients) {
    double m = (double)M, k = (double)gradients->w->cols, flops = 0, bytes = 0;
    for (int64_t i = 0; i < n; i++) {
        const lora_adapter *a = gradients[i].adapter;
        if (!a) continue;
        double rows = (double)gradients[i].w->rows, r = rank_of(a);
        flops += 2 * m * r * ((a->dA ? k : 0) + (a->dB ? k + rows : 0));
        bytes += 4 * (m * (k + rows) + 3 * r * (k + rows));
    }
    lora_profile_end(ctx, LORA_OP_ADAPTER_GRADIENT, began, flops, bytes);
}

void lora_count_weight_gradient(lora_ctx *ctx, int64_t began, int64_t M, int64_t N, int64_t K) {
    double m = (double)M, n = (double)N, k = (double)K;
    lora_profile_end(ctx, LORA_OP_WEIGHT_GRADIENT, began, 2 * m * n * k, 4 * (m * (n + k) + 2 * n * k));
}
