/* One LoRA layer learns in C: y = W x + s B A x with a frozen W, squared error, AdamW. examples/linear_layer.py has the same bits.
 *
 *   cc one_layer.c $(pkg-config --cflags --libs lora_c) -o one_layer && ./one_layer */
#include <stdio.h>
#include <string.h>

#include "lora_c/lora_c.h"

enum { TOKENS = 32, IN = 48, OUT = 8, RANK = 2, STEPS = 100 };

static float W[OUT * IN], x[TOKENS * IN], target[TOKENS * OUT], y[TOKENS * OUT];
static float A[RANK * IN], dA[RANK * IN], B[OUT * RANK], dB[OUT * RANK];

/* Numbers between -1 and 1 that look random and are the same in every language. */
static void fill(float *out, int n, int factor) {
    for (int i = 0; i < n; i++) out[i] = (float)((i * i + factor * i) % 251 - 125) / 128.0f;
}

/* A layer with some A and B makes the targets; from another A and B = 0 they have to be found again. */
static lora_status train(lora_ctx *ctx, lora_optimizer *optimizer, lora_error *err) {
    const lora_weight w = lora_weight_f32(W, OUT, IN, IN);
    const lora_adapter adapter = {.rank = RANK, .A = A, .B = B, .dA = dA, .dB = dB, .scale = 2.0f};
    const lora_mat in = lora_mat_f32(x, TOKENS, IN, IN), out = lora_mat_f32(y, TOKENS, OUT, OUT);
    lora_linear_layer layer = {.w = &w, .adapter = &adapter, .y = lora_mat_f32(target, TOKENS, OUT, OUT)};
    const lora_linear_gradient gradient = {.dy = out, .w = &w, .adapter = &adapter};
    const lora_param error = {.data = NULL, .grad = y, .n = TOKENS * OUT};
    const lora_step_options options = {.lr = 0.02, .grad_scale = 1.0 / (double)TOKENS};
    double sum, norm;
    lora_adapter_init(RANK, IN, 1, A), fill(B, OUT * RANK, 5);
    LORA_TRY(lora_linear_forward(ctx, in, 1, &layer, err));
    lora_adapter_init(RANK, IN, 2, A), memset(B, 0, sizeof B);
    layer.y = out;
    for (int step = 1; step <= STEPS; step++) {
        LORA_TRY(lora_linear_forward(ctx, in, 1, &layer, err));
        for (int i = 0; i < TOKENS * OUT; i++) y[i] -= target[i]; /* the gradient of 1/2 |y - target|^2 */
        LORA_TRY(lora_sum_of_squares(ctx, 1, &error, &sum, err));
        LORA_TRY(lora_optimizer_zero_grad(optimizer, err));
        LORA_TRY(lora_linear_backward(ctx, in, 1, &gradient, lora_mat_none(), false, err));
        LORA_TRY(lora_optimizer_step(optimizer, &options, &norm, err));
        if (step == 1 || step % 20 == 0) printf("step %3d  loss %.9g\n", step, sum / (2 * TOKENS));
    }
    for (int n = 0; n < OUT; n++) printf("B[%d]  %12.9g  %12.9g\n", n, B[n * RANK], B[n * RANK + 1]);
    return LORA_OK;
}

int main(void) {
    const lora_param params[] = {{A, dA, RANK * IN, true, IN, 1}, {B, dB, OUT * RANK, true, RANK, 1}};
    const lora_optimizer_options options = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01};
    lora_error err = {LORA_OK, ""};
    lora_ctx *ctx = NULL;
    lora_optimizer *optimizer = NULL;
    fill(W, OUT * IN, 1), fill(x, TOKENS * IN, 3);
    lora_status status = lora_ctx_create(NULL, &ctx, &err);
    if (status == LORA_OK) status = lora_optimizer_create(ctx, LORA_ADAMW, params, 2, &options, &optimizer, &err);
    if (status == LORA_OK) status = train(ctx, optimizer, &err);
    if (status != LORA_OK) fprintf(stderr, "%s: %s\n", lora_status_name(status), err.message);
    lora_optimizer_destroy(optimizer), lora_ctx_destroy(ctx);
    return status == LORA_OK ? 0 : 1;
}
