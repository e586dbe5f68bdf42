/* How large the buffers of a context become in a training step. */
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/head_pass.h"

enum { PER_THREAD = 1 << 20, FORWARD_ALONE = 1 << 19 }; /* packed weights and tiles, in a cache */

int64_t lora_cpu_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    const bool gradient = !shape->head_alone;
    const lora_loss_head head = {.w = &shape->head, .map = {.scale = 1}, .gradient = gradient, .trains = shape->head_trains};
    return lora_head_scratch(ctx, shape->n_tokens, &head) + lora_gemm_scratch(ctx, shape->n_tokens, shape->widest) +
           lora_pool_threads(ctx->engine->pool) * (gradient ? PER_THREAD : FORWARD_ALONE);
}
