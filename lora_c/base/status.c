#include "lora_c/status.h"

#include <stdarg.h>
#include <stdio.h>

lora_status lora_fail(lora_error *err, lora_status code, const char *fmt, ...) {
    if (err) {
        va_list args;
        va_start(args, fmt);
        err->code = code;
        vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
    }
    return code;
}

const char *lora_status_name(lora_status status) {
    switch (status) {
    case LORA_OK: return "ok";
    case LORA_EINVAL: return "invalid value";
    case LORA_ESHAPE: return "shape mismatch";
    case LORA_EDTYPE: return "wrong element type";
    case LORA_ENOMEM: return "out of memory";
    case LORA_EUNSUPPORTED: return "not supported";
    case LORA_EDEVICE: return "device error";
    case LORA_EBUSY: return "in use";
    case LORA_ESTOPPED: return "stopped";
    }
    return "unknown status";
}
