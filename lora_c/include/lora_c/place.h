/* Frozen weights on the device of a context: borrowed where its memory is the host's, else a copy there. */
#ifndef LORA_C_PLACE_H
#define LORA_C_PLACE_H

#include "lora_c/context.h"
#include "lora_c/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/** *placed = the weight by addresses of the device. *memory: what lora_ctx_free ends it with, NULL where host is borrowed, which
 *  must then stay. Waits, so that host may otherwise go.   Errors  ENOMEM, EDEVICE */
lora_status lora_weight_place(lora_ctx *ctx, const lora_weight *host, lora_weight *placed, void **memory, lora_error *err) LORA_MUST_CHECK;
/** The same for a vector of n floats. */
lora_status lora_vector_place(lora_ctx *ctx, const float *host, int64_t n, const float **placed, void **memory,
                              lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
