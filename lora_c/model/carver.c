#include "lora_c/base/util.h"
#include "lora_c/model/pass.h"

enum { ALIGN = 64 };

void *lora_carve(lora_carver *c, int64_t n, size_t element_bytes) {
    size_t begin = c->used, bytes;
    if (!lora_mul_size((size_t)n, element_bytes, &bytes) || bytes > SIZE_MAX - ALIGN ||
        __builtin_add_overflow(begin, (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1), &c->used))
        c->used = SIZE_MAX;
    return c->base ? c->base + begin : NULL; /* an address, not read */
}
