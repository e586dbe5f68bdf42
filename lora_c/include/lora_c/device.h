/* The devices that a process can compute on: the CPU, and those of backends that are loaded from files. */
#ifndef LORA_C_DEVICE_H
#define LORA_C_DEVICE_H

#include "lora_c/context.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LORA_DEVICE_NAME_BYTES = 32 };

typedef struct lora_device {
    char name[LORA_DEVICE_NAME_BYTES]; /* "cpu", "fake": what lora_ctx_create_on is given */
    char description[128];             /* in words, for people */
    char reason[LORA_ERROR_BYTES];     /* why it cannot be used and the way out; "" where it can */
} lora_device;

/** The devices of the CPU and of the backends in paths (files, separated by ':'; NULL: none), the CPU first: a file that cannot be
 *  loaded is one device by the file's name, with the reason. Writes up to most and returns how many there are. */
int64_t lora_devices(lora_ctx *ctx, const char *paths, int64_t most, lora_device *out);

/** A view of ctx (lora_ctx_create_view) whose objects live and compute on the device of this name. Loads its backend and keeps it
 *  loaded until ctx is destroyed.   Errors  EINVAL: no such device, the message lists them; EDEVICE: it cannot be used, with the reason */
lora_status lora_ctx_create_on(lora_ctx *ctx, const char *device, const char *paths, lora_ctx **out, lora_error *err) LORA_MUST_CHECK;

/** Writes the name by which lora_ctx_create_on knows a device: "cuda" for "cuda:0". */
void lora_device_name(const char *name, char out[LORA_DEVICE_NAME_BYTES]);

/** The name of the device of a context. */
const char *lora_ctx_device(const lora_ctx *ctx);

/** Whether this process may use the context's device. A child that was forked while it was in use shares its memory with the
 *  parent: everything is refused there but giving memory back, which does nothing.   Errors  EDEVICE */
lora_status lora_device_check(const lora_ctx *ctx, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
