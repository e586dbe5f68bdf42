/* The grow-only buffers of a context. */
#include "lora_c/ops/ctx.h"

lora_status lora_ctx_scratch(lora_ctx *ctx, lora_scratch_slot slot, size_t bytes, void **out, lora_error *err) {
    if (ctx->engine->scratch[slot].bytes < bytes || !ctx->engine->scratch[slot].data) {
        void *old = ctx->engine->scratch[slot].data;
        ctx->engine->scratch[slot].data = NULL; /* never a freed pointer, not even in a child forked right here */
        lora_mem_free(&ctx->engine->mem, old);  /* first, so that the peak is the larger one and not the sum */
        ctx->engine->scratch[slot].data = lora_mem_alloc(&ctx->engine->mem, LORA_MEM_SCRATCH, bytes);
        ctx->engine->scratch[slot].bytes = ctx->engine->scratch[slot].data ? bytes : 0;
        LORA_CHECK(ctx->engine->scratch[slot].data, err, LORA_ENOMEM, "scratch: expected %zu bytes, got none", bytes);
    }
    *out = ctx->engine->scratch[slot].data;
    return LORA_OK;
}
