/* Sizes and names of the block formats. */
#include "lora_c/format/ggml_blocks.h"

typedef struct layout {
    const char *name;
    int64_t values, bytes;
} layout;

static const layout layouts[LORA_GGML_TYPE_END] = {
    [LORA_GGML_F16] = {"F16", 1, 2},
    [LORA_GGML_BF16] = {"BF16", 1, 2},
    [LORA_GGML_Q4_0] = {"Q4_0", LORA_GGML_SMALL, LORA_Q4_0_BYTES},
    [LORA_GGML_Q4_1] = {"Q4_1", LORA_GGML_SMALL, LORA_Q4_1_BYTES},
    [LORA_GGML_Q5_0] = {"Q5_0", LORA_GGML_SMALL, LORA_Q5_0_BYTES},
    [LORA_GGML_Q5_1] = {"Q5_1", LORA_GGML_SMALL, LORA_Q5_1_BYTES},
    [LORA_GGML_Q8_0] = {"Q8_0", LORA_GGML_SMALL, LORA_Q8_0_BYTES},
    [LORA_GGML_Q4_K] = {"Q4_K", LORA_GGML_SUPER, LORA_Q4_K_BYTES},
    [LORA_GGML_Q5_K] = {"Q5_K", LORA_GGML_SUPER, LORA_Q5_K_BYTES},
    [LORA_GGML_Q6_K] = {"Q6_K", LORA_GGML_SUPER, LORA_Q6_K_BYTES},
};

static layout of(lora_ggml_type type) {
    int i = (int)type;
    return i >= 0 && i < LORA_GGML_TYPE_END ? layouts[i] : (layout){0};
}

int64_t lora_ggml_block_values(lora_ggml_type type) { return of(type).values; }

int64_t lora_ggml_block_bytes(lora_ggml_type type) { return of(type).bytes; }

const char *lora_ggml_type_name(lora_ggml_type type) { return of(type).name ? of(type).name : "?"; }
