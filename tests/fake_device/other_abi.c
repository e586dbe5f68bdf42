/* A backend of another version, for tests: it has the symbol, and a table that this version must not read. */
#include "lora_c/backend.h"

__attribute__((visibility("default"))) const lora_backend *lora_backend_entry(uint32_t abi) {
    static const lora_backend other = {.abi = LORA_BACKEND_ABI + 1, .name = "other"};
    (void)abi;
    return &other;
}
