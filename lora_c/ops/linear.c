/* LoRA's linear layer on the CPU: which layers of a call are plain and which DoRA's. */
#include "lora_c/linear.h"
#include "lora_c/ops/cpu_ops.h"

#include "lora_c/base/mat.h"
#include "lora_c/ops/dora.h"
#include "lora_c/ops/linear_plain.h"

static bool is_dora(const lora_adapter *a) { return a && a->magnitude; }

static bool any_dora(int64_t n, const lora_linear_layer *layers) {
    for (int64_t i = 0; i < n; i++)
        if (is_dora(layers[i].adapter)) return true;
    return false;
}

lora_status lora_cpu_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    if (!any_dora(n, layers)) return lora_linear_plain_forward(ctx, x, n, layers, err);
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        LORA_TRY(is_dora(l->adapter) ? lora_dora_forward(ctx, x, l, err) : lora_linear_plain_forward(ctx, x, 1, l, err));
    }
    return LORA_OK;
}

lora_status lora_cpu_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                     bool accumulate_dx, lora_error *err) {
    lora_linear_gradient plain[LORA_LINEAR_LAYERS];
    int n_plain = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!is_dora(gradients[i].adapter)) {
            plain[n_plain++] = gradients[i];
            continue;
        }
        LORA_TRY(lora_dora_backward(ctx, x, gradients + i, dx, accumulate_dx, err));
        accumulate_dx = true;
    }
    return n_plain ? lora_linear_plain_backward(ctx, x, n_plain, plain, dx, accumulate_dx, err) : LORA_OK;
}

bool lora_cpu_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    (void)ctx; /* the same for every kernel */
    return adapter->dB && !adapter->magnitude && M > LORA_SMALL_M;
}
