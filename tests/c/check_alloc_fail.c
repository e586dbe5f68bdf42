/* Every allocation of a training step fails once: an error each time, and the live bytes return to where they were. */
#include "lora_c/ops/ctx.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/tiny_decoder.h"

static lora_status one_step(lora_ctx *ctx) {
    tiny_decoder t;
    lora_error err;
    lora_batch batch = tiny_batch();
    double loss;
    lora_kv_cache *cache = NULL;
    lora_status status = tiny_decoder_make(ctx, 0.1f, -1, &t, &err);
    if (status == LORA_OK) status = MIRRORED(lora_decoder_forward_backward(t.decoder, &batch, 1, &loss, &err));
    if (status == LORA_OK) status = lora_kv_cache_create(t.decoder, 1, 8, &cache, &err);
    CHECK(status == LORA_OK || status == LORA_ENOMEM, "%s", err.message);
    lora_kv_cache_destroy(cache);
    if (t.decoder) tiny_decoder_free(&t);
    return status;
}

/* On the device and on the host, without scratch, which is the context's own and kept for the next call. */
static size_t live_bytes(const lora_ctx *ctx) {
    size_t host = atomic_load(&ctx->engine->mem.total_live);
    size_t device = lora_ctx_memory_total(ctx).live_bytes - lora_ctx_memory(ctx, LORA_MEM_SCRATCH).live_bytes;
    for (int slot = 0; slot < LORA_SCRATCH_SLOTS; slot++) host -= ctx->engine->scratch[slot].data ? ctx->engine->scratch[slot].bytes : 0;
    return ctx->view.backend->host_memory ? host : host + device;
}

static void check_on_device(void) {
    for (int n = 0; n < 1000; n++) {
        lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
        size_t before = live_bytes(ctx);
        ctx->engine->mem.fail_after = n;
        lora_status status = one_step(ctx);
        ctx->engine->mem.fail_after = -1;
        size_t after = live_bytes(ctx);
        CHECK(after == before, "allocation %d: %zu bytes left over", n, after - before);
        CHECK(one_step(ctx) == LORA_OK, "the context works after failure %d", n);
        device_ctx_free(ctx);
        if (status == LORA_OK) {
            CHECK(n > 5, "%d allocations were made to fail", n);
            return;
        }
    }
    CHECK(false, "the step never succeeded");
}

void check_alloc_fail(void) { on_every_device(check_on_device); }
