/* How an operation accounts for itself: begin before the work, end after it. Not nested. */
#ifndef LORA_OPS_PROFILE_H
#define LORA_OPS_PROFILE_H

#include "lora_c/ops/ctx.h"
#include "lora_c/types.h"

int64_t lora_profile_now(void); /* nanoseconds, monotonic, never 0 */

static inline int64_t lora_profile_begin(const lora_ctx *ctx) { return ctx->engine->profile.on ? lora_profile_now() : 0; }

/** began 0: profiling is off, nothing is recorded. flops and bytes are what lora_op_cost says. */
void lora_profile_end(lora_ctx *ctx, lora_op op, int64_t began, double flops, double bytes);

double lora_profile_weight_bytes(const lora_weight *w);

#endif
