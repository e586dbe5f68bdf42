/* A device belongs to the process that opened it: what a child shares with it after a fork is of no use to the child. */
#include "lora_c/backend/load.h"
#include "lora_c/device.h"

bool lora_device_is_own(const lora_device_use *use) { return use->process == lora_process_id(); }

static bool is_usable(const lora_ctx *ctx) { return ctx->view.backend->host_memory || lora_device_is_own(ctx->device); }

lora_status lora_device_check(const lora_ctx *ctx, lora_error *err) {
    LORA_CHECK(is_usable(ctx), err, LORA_EDEVICE,
               "device %s: expected the process that opened it, got a child of it; open it after the fork", ctx->device->name);
    return LORA_OK;
}
