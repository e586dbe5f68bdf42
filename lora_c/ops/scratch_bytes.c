/* How large the buffers of a context become in a training step. */
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/head_pass.h"

enum { PER_THREAD = 1 << 20, FORWARD_ALONE = 1 << 19 }; /* packed weights and tiles, in a cache */

/* Whether the head alone trains, and passes no gradient down: there is no adapter, and nothing that is summed over rows. */
static bool trains_alone(const lora_scratch_shape *shape) { return shape->head_trains && shape->rank == 0 && shape->summed == 0; }

int64_t lora_cpu_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    const bool trains = shape->head_trains, gradient = !trains_alone(shape);
    return lora_head_scratch(ctx, shape->n_tokens, &shape->head, trains, gradient) +
           lora_gemm_scratch(ctx, shape->n_tokens, shape->widest) +
           lora_pool_threads(ctx->engine->pool) * (gradient ? PER_THREAD : FORWARD_ALONE);
}
