/* Which operation of a context makes the first value that is not finite. */
#ifndef LORA_C_WATCH_H
#define LORA_C_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "lora_c/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The first value that is not finite, and what made it. */
typedef struct lora_watch_found {
    const char *operation; /* by its name in nn.h and linear.h, "linear_forward"; NULL: nothing yet */
    const char *result;    /* which of its results: "y", "dx", "dA" */
    const void *weight;    /* the data of the matrix or norm that it was made with, or NULL */
    int64_t layer;         /* as the caller said last; -1: none */
    bool backward;
    int64_t row, column; /* in that result */
    float value;
} lora_watch_found;

/** While on, the results of every operation of ctx, a view that nobody else uses, are looked at until a value is not finite. Their bits
 * stay the same; it takes longer. Switching it on forgets what was found.   Errors  ENOMEM */
lora_status lora_ctx_watch(lora_ctx *ctx, bool on, lora_error *err) LORA_MUST_CHECK;
/** Says where the operations that follow belong. Costs nothing while it is off. */
void lora_ctx_watch_at(lora_ctx *ctx, int64_t layer, bool backward);
lora_watch_found lora_ctx_watch_found(const lora_ctx *ctx);

#ifdef __cplusplus
}
#endif
#endif
