#include "tests/c/attention_device.h"

static void end_unless(const void *memory) {
    if (memory) return;
    printf("memory of the device: expected some, got none\n");
    exit(1);
}

void *device_send(lora_ctx *ctx, const void *host, size_t bytes) {
    void *device = lora_ctx_alloc_uncleared(ctx, LORA_MEM_ACTIVATION, bytes);
    end_unless(device);
    OK_OR_END(lora_upload(ctx, device, host, bytes, &error));
    OK_OR_END(lora_sync(ctx, &error)); /* host may go */
    return device;
}

copied device_send_buffer(lora_ctx *ctx, const float *host, int64_t n) {
    copied c = {.bytes = (size_t)(n + 2 * ATTENTION_GUARD) * sizeof(float)};
    c.memory = lora_ctx_alloc_uncleared(ctx, LORA_MEM_ACTIVATION, c.bytes + sizeof(float));
    end_unless(c.memory);
    c.data = c.memory + 1 + ATTENTION_GUARD;
    OK_OR_END(lora_upload(ctx, c.memory + 1, host - ATTENTION_GUARD, c.bytes, &error));
    return c;
}

void device_fetch_buffer(lora_ctx *ctx, const copied *c, float *host) {
    OK_OR_END(lora_download(ctx, host - ATTENTION_GUARD, c->memory + 1, c->bytes, &error));
    OK_OR_END(lora_sync(ctx, &error));
}

void device_run_batch(lora_ctx *ctx, attention_batch *b) {
    int64_t start[MAX_SEGMENTS], length[MAX_SEGMENTS];
    for (int64_t s = 0; s < b->n; s++) {
        start[s] = b->cu[s];
        length[s] = b->cu[s + 1] - b->cu[s];
    }
    void *lists[] = {device_send(ctx, b->cu, sizeof b->cu), device_send(ctx, start, sizeof start), device_send(ctx, length, sizeof length)};
    attention_batch there = *b;
    float **hosts[] = {&b->qkv, &b->dqkv, &b->out, &b->dout, &b->lse},
          **devices[] = {&there.qkv, &there.dqkv, &there.out, &there.dout, &there.lse};
    const int64_t sizes[] = {b->M * b->ld, b->M * b->ld, b->M * b->ld_out, b->M * b->ld_out, b->M * b->shape.n_heads};
    copied copies[5];
    for (int i = 0; i < 5; i++) {
        copies[i] = device_send_buffer(ctx, *hosts[i], sizes[i]);
        *devices[i] = copies[i].data;
    }
    attention_batch_run_at(ctx, &there, lists[0], lists[1], lists[2]);
    for (int i = 0; i < 5; i++) {
        device_fetch_buffer(ctx, &copies[i], *hosts[i]);
        lora_ctx_free(ctx, copies[i].memory);
    }
    for (int i = 0; i < 3; i++) lora_ctx_free(ctx, lists[i]);
}
