/* Memory of the device in use, transfers, and their accounts. */
#include "lora_c/memory.h"

#include "lora_c/device.h"
#include "lora_c/ops/ctx.h"

static const lora_backend_memory *memory_of(const lora_ctx *ctx) { return &ctx->view.backend->memory; }
static bool is_usable(const lora_ctx *ctx) { return lora_device_check(ctx, NULL) == LORA_OK; }

const char *lora_mem_tag_name(lora_mem_tag tag) {
    static const char *const names[LORA_MEM_TAGS] = {"base weights", "parameters", "gradients", "optimizer", "activations", "scratch"};
    return (unsigned)tag < LORA_MEM_TAGS ? names[tag] : "unknown";
}

void *lora_ctx_alloc_uncleared(lora_ctx *ctx, lora_mem_tag tag, size_t bytes) {
    return is_usable(ctx) ? memory_of(ctx)->alloc(ctx->view.state, tag, bytes) : NULL;
}

void *lora_ctx_alloc(lora_ctx *ctx, lora_mem_tag tag, size_t bytes) {
    void *p = lora_ctx_alloc_uncleared(ctx, tag, bytes);
    if (p && memory_of(ctx)->clear(ctx->view.state, p, bytes, NULL) == LORA_OK) return p;
    lora_ctx_free(ctx, p);
    return NULL;
}

void lora_ctx_free(lora_ctx *ctx, void *p) {
    if (p && is_usable(ctx)) memory_of(ctx)->free(ctx->view.state, p);
}

void *lora_host_alloc(lora_ctx *ctx, lora_mem_tag tag, size_t bytes) { return lora_mem_calloc(&ctx->engine->mem, tag, bytes); }
void lora_host_free(lora_ctx *ctx, void *p) { lora_mem_free(&ctx->engine->mem, p); }

void *lora_stage_alloc(lora_ctx *ctx, size_t bytes) { return is_usable(ctx) ? memory_of(ctx)->stage_alloc(ctx->view.state, bytes) : NULL; }
void lora_stage_free(lora_ctx *ctx, void *p) {
    if (p && is_usable(ctx)) memory_of(ctx)->stage_free(ctx->view.state, p);
}

/* --- paged memory --- */

lora_status lora_paged_alloc(lora_ctx *ctx, const char *folder, size_t bytes, void **out, lora_error *err) {
    *out = NULL;
    LORA_TRY(lora_device_check(ctx, err));
    return memory_of(ctx)->paged_alloc(ctx->view.state, folder, bytes, out, err);
}

void lora_paged_free(lora_ctx *ctx, void *p, size_t bytes) {
    if (p && is_usable(ctx)) memory_of(ctx)->paged_free(ctx->view.state, p, bytes);
}

void lora_paged_advise(lora_ctx *ctx, void *p, size_t bytes, lora_page_use use) {
    if (bytes > 0 && is_usable(ctx)) memory_of(ctx)->paged_advise(ctx->view.state, p, bytes, use);
}

/* --- transfers --- */

lora_status lora_upload(lora_ctx *ctx, void *to, const void *from, size_t bytes, lora_error *err) {
    LORA_TRY(lora_device_check(ctx, err));
    ctx->device->transfers.uploads++;
    ctx->device->transfers.uploaded_bytes += (int64_t)bytes;
    return memory_of(ctx)->upload(ctx->view.state, to, from, bytes, err);
}

lora_status lora_download(lora_ctx *ctx, void *to, const void *from, size_t bytes, lora_error *err) {
    LORA_TRY(lora_device_check(ctx, err));
    ctx->device->transfers.downloads++;
    ctx->device->transfers.downloaded_bytes += (int64_t)bytes;
    return memory_of(ctx)->download(ctx->view.state, to, from, bytes, err);
}

lora_status lora_clear(lora_ctx *ctx, void *p, size_t bytes, lora_error *err) {
    LORA_TRY(lora_device_check(ctx, err));
    return memory_of(ctx)->clear(ctx->view.state, p, bytes, err);
}

lora_status lora_sync(lora_ctx *ctx, lora_error *err) {
    LORA_TRY(lora_device_check(ctx, err));
    ctx->device->transfers.syncs++;
    return memory_of(ctx)->sync(ctx->view.state, err);
}

void *lora_ctx_stream(const lora_ctx *ctx) { return is_usable(ctx) ? memory_of(ctx)->stream(ctx->view.state) : NULL; }

lora_status lora_stream_follows(lora_ctx *ctx, void *stream, void *before, lora_error *err) {
    LORA_TRY(lora_device_check(ctx, err));
    return memory_of(ctx)->stream_follows(ctx->view.state, stream, before, err);
}

lora_transfers lora_ctx_transfers(const lora_ctx *ctx) { return ctx->device->transfers; }

/* --- outputs --- */

lora_status lora_output_open(lora_ctx *ctx, void *host, size_t bytes, void **out, lora_error *err) {
    *out = ctx->view.backend->host_memory ? host : lora_ctx_alloc_uncleared(ctx, LORA_MEM_ACTIVATION, bytes);
    LORA_CHECK(*out, err, LORA_ENOMEM, "output: expected %zu bytes on the device, got none", bytes);
    return LORA_OK;
}

lora_status lora_output_close(lora_ctx *ctx, void *host, size_t bytes, void *device, lora_status status, lora_error *err) {
    if (device == host) return status;
    if (status == LORA_OK) status = lora_download(ctx, host, device, bytes, err);
    lora_ctx_free(ctx, device);
    return status;
}

/* --- accounts --- */

lora_mem_usage lora_ctx_memory(const lora_ctx *ctx, lora_mem_tag tag) { return memory_of(ctx)->usage(ctx->view.state, tag); }
lora_mem_usage lora_ctx_memory_total(const lora_ctx *ctx) { return memory_of(ctx)->usage(ctx->view.state, LORA_MEM_TAGS); }
void lora_ctx_reset_peak(lora_ctx *ctx) { memory_of(ctx)->reset_peak(ctx->view.state); }

lora_status lora_ctx_memory_info(lora_ctx *ctx, lora_memory_info *out, lora_error *err) {
    LORA_TRY(lora_device_check(ctx, err));
    return memory_of(ctx)->memory_info(ctx->view.state, out, err);
}
