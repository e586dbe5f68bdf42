/* A random decoder of two layers with LoRA on every matrix, for the checks that need a whole model. Its arrays are mirrored
 * (device_mirror.h), one decoder at a time for a context that is not on the CPU. */
#ifndef LORA_TESTS_TINY_DECODER_H
#define LORA_TESTS_TINY_DECODER_H

#include "tests/c/check.h"

enum { TINY_TOKENS = 23, TINY_VOCAB = 50 };

typedef struct tiny_decoder {
    lora_ctx *ctx;
    lora_decoder *decoder;
    float *weights, *grads; /* grads: of all adapters, one after the other */
    int64_t n_weights, n_grads;
} tiny_decoder;

/* skip: a matrix slot of layer 1 that is left out, or -1 */
lora_status tiny_decoder_make(lora_ctx *ctx, float dropout, int skip, tiny_decoder *out, lora_error *err);
void tiny_decoder_free(tiny_decoder *t);
lora_batch tiny_batch(void);

/* Whether gradient (n) is the slope of the loss on tiny_batch by values (n), along a random direction and by central differences,
 * to tolerance * (1 + slope). */
void tiny_check_slope(const char *what, lora_decoder *d, float *values, int64_t n, const float *gradient, double tolerance);

/* Each allocation of make and of a step fails once: an error, and nothing is left over (the leak check of ASan). make fills
 * bytes of memory that begin with a tiny_decoder. */
void tiny_check_memory(lora_ctx *ctx, size_t bytes, lora_status (*make)(lora_ctx *ctx, void *memory, lora_error *err));

#endif
