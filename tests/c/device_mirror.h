/* Arrays of a check that lives on the host, for a decoder that may live elsewhere: on the CPU they are the decoder's own. */
#ifndef LORA_TESTS_DEVICE_MIRROR_H
#define LORA_TESTS_DEVICE_MIRROR_H

#include "tests/c/check.h"

/* Each replaces addresses of the host by those of the context's device and leaves them alone on the CPU. Memory of a device
 * goes with mirror_forget. Errors: ENOMEM, EDEVICE. */

/* *p (n) as an array that both sides may change; NULL stays. The same array is mirrored once. */
lora_status mirror_floats(lora_ctx *ctx, float **p, int64_t n, lora_error *err) LORA_MUST_CHECK;
/* Trained with a gradient: both as mirror_floats; frozen without (grad or *grad NULL): lora_weight_place. */
lora_status mirror_matrix(lora_ctx *ctx, lora_weight *w, float **grad, lora_error *err) LORA_MUST_CHECK;
lora_status mirror_vector(lora_ctx *ctx, const float **v, int64_t n, float **grad, lora_error *err) LORA_MUST_CHECK;
/* Of a matrix (N, K). */
lora_status mirror_adapter(lora_ctx *ctx, lora_adapter *a, int64_t N, int64_t K, lora_error *err) LORA_MUST_CHECK;

/* The host's contents to every device, and back. Both wait. mirror_pull returns status. */
void mirror_push(void);
lora_status mirror_pull(lora_status status);
/* What the host changed goes before the call, what the call changed comes back after it. */
#define MIRRORED(call) (mirror_push(), mirror_pull(call))

/* Whether copies around a call may fail, which else is a failed check; the failure of the last call's, or NULL. */
void mirror_may_fail(bool may);
const lora_error *mirror_failure(void);

/* Ends all mirrors of a context; what used them must be gone. */
void mirror_forget(lora_ctx *ctx);

#endif
