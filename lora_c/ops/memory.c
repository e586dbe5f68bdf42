#include "lora_c/base/alloc.h"
#include "lora_c/ops/ctx.h"

void *lora_ctx_alloc(lora_ctx *ctx, lora_mem_tag tag, size_t bytes) { return lora_mem_calloc(&ctx->engine->mem, tag, bytes); }

void lora_ctx_free(lora_ctx *ctx, void *p) { lora_mem_free(&ctx->engine->mem, p); }
