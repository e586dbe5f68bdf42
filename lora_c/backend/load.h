/* Devices in use, and the libraries of backends. */
#ifndef LORA_BACKEND_LOAD_H
#define LORA_BACKEND_LOAD_H

#include "lora_c/ops/ctx.h"

/** The CPU's table. */
extern const lora_backend lora_cpu_backend;

/** The device of this name, made by its backend; for "cpu" the engine's own.   Errors  as lora_ctx_create_on */
lora_status lora_device_open(lora_ctx *ctx, const char *name, const char *paths, lora_device_use **out, lora_error *err) LORA_MUST_CHECK;
void lora_device_close(lora_engine *engine, lora_device_use *use);

/** At the end of an engine, when none of their devices is in use. */
void lora_unload_backends(lora_engine *engine);

#endif
