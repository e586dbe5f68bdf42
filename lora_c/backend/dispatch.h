/* How the public functions reach a backend: check, call, account. */
#ifndef LORA_BACKEND_DISPATCH_H
#define LORA_BACKEND_DISPATCH_H

#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"
#include "lora_c/ops/profile.h"

static inline const lora_backend_ops *lora_ops_of(const lora_ctx *ctx) { return &ctx->view.backend->ops; }

/** Refuses bfloat16 for an argument that may have it where the device takes float32 alone.   Errors  EDTYPE */
lora_status lora_check_taken(const lora_ctx *ctx, lora_arg a, lora_error *err) LORA_MUST_CHECK;

/** Ends the account of an operation that began with lora_profile_begin; a device that runs behind is waited for. */
lora_status lora_account(lora_ctx *ctx, lora_op op, int64_t began, double flops, double bytes, lora_error *err) LORA_MUST_CHECK;

#endif
