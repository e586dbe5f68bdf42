/* What a process can compute on. */
#include <stdio.h>
#include <string.h>

#include "lora_c/backend/load.h"
#include "lora_c/base/util.h"

void lora_device_name(const char *name, char out[LORA_DEVICE_NAME_BYTES]) {
    static const char first[] = ":0";
    size_t length = strlen(name), end = sizeof first - 1;
    if (length > end && strcmp(name + length - end, first) == 0) length -= end;
    snprintf(out, LORA_DEVICE_NAME_BYTES, "%.*s", (int)lora_min_i64((int64_t)length, LORA_DEVICE_NAME_BYTES - 1), name);
}

typedef struct device_list {
    int64_t most, n;
    lora_device *out;
} device_list;

static bool add_devices(const lora_backend_library *library, void *arg) {
    device_list *list = arg;
    int64_t room = list->most > list->n ? list->most - list->n : 0;
    list->n += lora_list_library(library, room, room > 0 ? list->out + list->n : NULL);
    return false;
}

int64_t lora_devices(lora_ctx *ctx, const char *paths, int64_t most, lora_device *out) {
    device_list list = {.most = most, .out = out};
    if (most > 0) {
        *out = (lora_device){.name = "cpu"};
        snprintf(out->description, sizeof out->description, "%s kernels, %d threads", lora_isa_name(lora_ctx_isa(ctx)),
                 lora_ctx_threads(ctx));
    }
    list.n = 1;
    (void)lora_visit_libraries(ctx->engine, paths, add_devices, &list);
    return list.n;
}
