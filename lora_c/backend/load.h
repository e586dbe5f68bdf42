/* Devices in use, and the libraries of backends. */
#ifndef LORA_BACKEND_LOAD_H
#define LORA_BACKEND_LOAD_H

#include "lora_c/ops/ctx.h"

/** The CPU's table. */
extern const lora_backend lora_cpu_backend;
/** That of the device "meta", which has shapes and no memory, and forecasts what the CPU would take. No list of devices names it. */
extern const lora_backend lora_meta_backend;
/** Whether a device of that backend has this name: "meta", or "meta:8.6" for an NVIDIA GPU by its compute capability. */
bool lora_meta_index(const char *name, int64_t *index);

/** The device of this name, made by its backend; for "cpu" the engine's own.   Errors  as lora_ctx_create_on */
lora_status lora_device_open(lora_ctx *ctx, const char *name, const char *paths, lora_device_use **out, lora_error *err) LORA_MUST_CHECK;
void lora_device_close(lora_engine *engine, lora_device_use *use);

/* owner.c */
/** Whether this process has opened it. */
bool lora_device_is_own(const lora_device_use *use);

/* A library of a backend, loaded once for the life of an engine. */
typedef struct lora_backend_library lora_backend_library;

/** Calls visit for the libraries of paths in order, until it returns true, which is returned. */
typedef bool lora_visit_library_fn(const lora_backend_library *library, void *arg);
bool lora_visit_libraries(lora_engine *engine, const char *paths, lora_visit_library_fn *visit, void *arg);
/** Its devices, as lora_backend.devices; of one that cannot be used a single one with the reason. */
int64_t lora_list_library(const lora_backend_library *library, int64_t most, lora_device *out);

/** At the end of an engine, when none of their devices is in use. */
void lora_unload_backends(lora_engine *engine);

#endif
