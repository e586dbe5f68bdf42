/* Linear layers on the GPU: which layers of a call are plain and which DoRA's. */
#include "lora_c/linear.h"

#include "lora_c/cuda/linear_plain.h"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/weights.h"

static bool is_dora(const lora_adapter *a) { return a && a->magnitude; }

lora_status lora_cuda_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    lora_linear_layer plain[LORA_LINEAR_LAYERS];
    int64_t n_plain = 0;
    for (int64_t i = 0; i < n; i++) {
        if (is_dora(layers[i].adapter))
            LORA_TRY(lora_cuda_dora_forward(ctx, x, layers + i, err));
        else
            plain[n_plain++] = layers[i];
    }
    return n_plain ? lora_cuda_plain_forward(ctx, x, n_plain, plain, err) : LORA_OK;
}

lora_status lora_cuda_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                      bool accumulate_dx, lora_error *err) {
    lora_linear_gradient plain[LORA_LINEAR_LAYERS];
    int64_t n_plain = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!is_dora(gradients[i].adapter)) {
            plain[n_plain++] = gradients[i];
            continue;
        }
        LORA_TRY(lora_cuda_dora_backward(ctx, x, gradients + i, dx, accumulate_dx, err));
        accumulate_dx = true;
    }
    return n_plain ? lora_cuda_plain_backward(ctx, x, n_plain, plain, dx, accumulate_dx, err) : LORA_OK;
}

bool lora_cuda_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    (void)ctx;
    return lora_gpu_keeps_low(M, adapter);
}
