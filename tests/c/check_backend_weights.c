/* A weight of every kind and format, on the host. */
#include "lora_c/format/ggml_blocks.h"
#include "tests/c/check_backend.h"

static const lora_ggml_type TYPES[] = {LORA_GGML_F16,  LORA_GGML_BF16, LORA_GGML_Q4_0, LORA_GGML_Q4_1, LORA_GGML_Q5_0,
                                       LORA_GGML_Q5_1, LORA_GGML_Q8_0, LORA_GGML_Q4_K, LORA_GGML_Q5_K, LORA_GGML_Q6_K};
enum { DENSE = 2, NF4 = 2, N_TYPES = sizeof TYPES / sizeof *TYPES, K = BACKEND_COLS };

int backend_weights(void) { return DENSE + NF4 + N_TYPES; }

static void make_dense(backend_weight *b, float *x, int64_t rows, bool narrow) {
    if (!narrow) {
        b->w = lora_weight_f32(x, rows, K, K);
        return;
    }
    uint16_t *bits = b->memory[1] = malloc((size_t)(rows * K) * sizeof *bits);
    for (int64_t i = 0; i < rows * K; i++) {
        uint32_t word;
        memcpy(&word, &x[i], sizeof word);
        bits[i] = (uint16_t)(word >> 16);
    }
    b->w = lora_weight_bf16(bits, rows, K, K);
}

static void make_nf4(op_run *r, backend_weight *b, const float *x, int64_t rows, bool nested) {
    int64_t blocks = lora_nf4_blocks(rows, K, LORA_NF4_BLOCK), n = (blocks + LORA_NF4_NESTED_BLOCK - 1) / LORA_NF4_NESTED_BLOCK;
    uint8_t *codes = b->memory[1] = malloc((size_t)lora_nf4_code_bytes(rows, K) + 64),
            *absmax_codes = b->memory[3] = malloc((size_t)blocks);
    float *absmax = b->memory[2] = malloc((size_t)(blocks + n) * sizeof *absmax), *nested_absmax = absmax + blocks;
    lora_nf4 q = {.rows = rows, .cols = K, .block_size = LORA_NF4_BLOCK, .lut = lora_nf4_lut(), .codes = codes, .absmax = absmax};
    OK(lora_nf4_quantize(r->ctx, x, LORA_F32, rows, K, LORA_NF4_BLOCK, codes, absmax, ERR));
    if (nested) {
        OK(lora_nf4_double_quantize(r->ctx, absmax, blocks, absmax_codes, nested_absmax, &q.nested_offset, ERR));
        q.absmax = NULL;
        q.absmax_codes = absmax_codes;
        q.nested_absmax = nested_absmax;
        q.nested_map = lora_dynamic_map_signed();
        q.nested_block_size = LORA_NF4_NESTED_BLOCK;
    }
    b->w = lora_weight_nf4(&q);
}

/* Random blocks with scales for weights below 1: a float16 from 2^-7 on, where 6-bit scales multiply it from 2^-12 on; a bfloat16. */
static void make_ggml(backend_weight *b, int64_t rows, lora_ggml_type type) {
    uint16_t lowest = type == LORA_GGML_BF16 ? 0x3c00 : lora_ggml_block_values(type) == LORA_GGML_MAX_BLOCK ? 0x0c00 : 0x2000;
    int64_t bytes = lora_ggml_block_bytes(type), n = rows * K / lora_ggml_block_values(type);
    uint8_t *blocks = b->memory[1] = malloc((size_t)(n * bytes) + 64);
    restart_random();
    for (int64_t i = 0; i < n * bytes; i++) blocks[i] = (uint8_t)(256 * uniform(0, 1));
    for (int64_t i = 0; i < n; i++) {
        uint16_t scale = (uint16_t)((float)lowest + (type == LORA_GGML_BF16 ? 128.0f : 1024.0f) * uniform(0, 1));
        memcpy(blocks + i * bytes + (type == LORA_GGML_Q6_K ? LORA_Q6_K_D : 0), &scale, 2);
        if (type != LORA_GGML_Q6_K && bytes > 2) memcpy(blocks + i * bytes + 2, &scale, 2); /* of some types the second scale */
    }
    lora_ggml view = {.type = type, .rows = rows, .cols = K, .blocks = blocks};
    b->w = lora_weight_ggml(&view);
}

backend_weight backend_make_weight(op_run *r, int kind, int64_t rows) {
    static const char *const names[] = {"float32", "bfloat16", "NF4", "NF4 doubly quantized"};
    backend_weight b = {.name = kind < DENSE + NF4 ? names[kind] : lora_ggml_type_name(TYPES[kind - DENSE - NF4])};
    float *x = b.memory[0] = malloc((size_t)(rows * K) * sizeof *x);
    check_normal(x, rows * K, ++r->seed, 0.3f);
    if (kind < DENSE)
        make_dense(&b, x, rows, kind == 1);
    else if (kind < DENSE + NF4)
        make_nf4(r, &b, x, rows, kind == DENSE + 1);
    else
        make_ggml(&b, rows, TYPES[kind - DENSE - NF4]);
    return b;
}

void backend_free_weight(backend_weight *b) {
    for (int i = 0; i < 4; i++) free(b->memory[i]);
}
