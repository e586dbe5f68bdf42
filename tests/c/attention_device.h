/* Attention batches on a device: buffers copied with their bands. */
#ifndef TESTS_ATTENTION_DEVICE_H
#define TESTS_ATTENTION_DEVICE_H

#include <stdio.h>
#include <stdlib.h>

#include "tests/c/attention_batch.h"

/* A buffer of the host with its bands, copied; its elements begin at a multiple of 16 bytes. */
typedef struct copied {
    float *memory, *data;
    size_t bytes;
} copied;

/* Ends the program unless the call succeeds. */
#define OK_OR_END(call)                                                                                                                    \
    do {                                                                                                                                   \
        lora_error error;                                                                                                                  \
        if ((call) == LORA_OK) break;                                                                                                      \
        printf("%s: %s\n", #call, error.message);                                                                                          \
        exit(1);                                                                                                                           \
    } while (0)

void *device_send(lora_ctx *ctx, const void *host, size_t bytes);
copied device_send_buffer(lora_ctx *ctx, const float *host, int64_t n);
void device_fetch_buffer(lora_ctx *ctx, const copied *c, float *host);

/* Forward and backward; results and bands come back into the batch. */
void device_run_batch(lora_ctx *ctx, attention_batch *b);

#endif
