/* The parts of the 4-bit types that need no context: the tables and the sizes. */
#include "lora_c/nf4.h"

#include <math.h>

#include "lora_c/base/util.h"
#include "lora_c/format/codebook.h"
#include "lora_c/format/nf4_codebook.h"
#include "lora_c/format/nf4_layout.h"

/* clang-format off */
static const lora_codebook codebooks[LORA_4BIT_END] = {
    [LORA_4BIT_NF4] = {
        .name = "nf4",
        .value = {LORA_NF4_VALUES(LORA_NF4_ITEM)},
        .threshold = {LORA_NF4_THRESHOLDS(LORA_NF4_ITEM)},
        .code = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        .zero = 7,
        .has_cells = true,
        .cell_threshold = {1304, 3941, 32767, 6669, 9569, 32767, 12757, 32767, 16439, 32767, 21063, 32767, 32767, 28229, 32767, -32768,
                           32767, 32767, -27790, 32767, 32767, 32767, -20009, 32767, -15073, 32767, -11131, 32767, -7688, -4519, 32767, -1492},
        .cell_base = {7, 8, 9, 9, 10, 11, 11, 12, 12, 13, 13, 14, 14, 14, 15, 14, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6},
    },
    /* The two zeros are neighbours with a threshold between them, as bitsandbytes sorts them: zero is code 0, what is a little above it code 8. */
    [LORA_4BIT_FP4] = {
        .name = "fp4",
        .value = {LORA_FP4_VALUES(LORA_NF4_ITEM)},
        .threshold = {-0.8333333730697632f, -0.5833333730697632f, -0.4166666865348816f, -0.2916666865348816f, -0.2083333432674408f,
                      -0.0859375f, -0.0026041667442768812f, 0.0f, 0.0026041667442768812f, 0.0859375f, 0.2083333432674408f,
                      0.2916666865348816f, 0.4166666865348816f, 0.5833333730697632f, 0.8333333730697632f},
        .code = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3},
        .zero = 0,
    },
    [LORA_4BIT_FP4_E2M1] = {
        .name = "fp4_e2m1",
        .value = {LORA_FP4_E2M1_VALUES(LORA_NF4_ITEM)},
        .threshold = {-0.8333333730697632f, -0.5833333730697632f, -0.4166666865348816f, -0.2916666865348816f, -0.2083333432674408f,
                      -0.125f, -0.0416666679084301f, 0.0416666679084301f, 0.125f, 0.2083333432674408f, 0.2916666865348816f,
                      0.4166666865348816f, 0.5833333730697632f, 0.8333333730697632f, INFINITY},
        .code = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 7},
        .zero = 0,
        .has_cells = true,
        .cell_threshold = {1365, 32767, 4096, 6827, 9557, 32767, 13653, 32767, 32767, 19115, 32767, 32767, 32767, 27307, 32767, -32768,
                           32767, 32767, -27307, 32767, 32767, 32767, -19115, 32767, 32767, -13653, 32767, -9557, -6827, 32767, -4096, -1365},
        .cell_base = {7, 8, 8, 9, 10, 11, 11, 12, 12, 12, 13, 13, 13, 13, 14, 13, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6},
    },
    [LORA_4BIT_INT4] = {
        .name = "int4",
        .value = {LORA_INT4_VALUES(LORA_NF4_ITEM)},
        .threshold = {-0.9285714626312256f, -0.7857142686843872f, -0.6428571939468384f, -0.5f, -0.3571428656578064f, -0.2142857313156128f,
                      -0.0714285746216774f, 0.0714285746216774f, 0.2142857313156128f, 0.3571428656578064f, 0.5f, 0.6428571939468384f,
                      0.7857142686843872f, 0.9285714626312256f, INFINITY},
        .code = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14},
        .zero = 7,
        .has_cells = true,
        .cell_threshold = {32767, 2341, 32767, 7022, 32767, 11703, 32767, 32767, 16384, 32767, 21065, 32767, 25746, 32767, 30427, -32768,
                           32767, -30427, 32767, -25746, 32767, -21065, 32767, 32767, -16384, 32767, -11703, 32767, -7022, 32767, -2341, 32767},
        .cell_base = {7, 7, 8, 8, 9, 9, 10, 10, 10, 11, 11, 12, 12, 13, 13, 13, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7},
    },
};
/* clang-format on */

const lora_codebook *lora_codebook_of(lora_4bit_type type) { return &codebooks[type]; }

const char *lora_4bit_name(lora_4bit_type type) { return codebooks[type].name; }

const float *lora_4bit_lut(lora_4bit_type type) { return codebooks[type].value; }

const float *lora_nf4_lut(void) { return lora_4bit_lut(LORA_4BIT_NF4); }

const float *lora_fp4_lut(void) { return lora_4bit_lut(LORA_4BIT_FP4); }

int64_t lora_nf4_code_bytes(int64_t rows, int64_t cols) { return lora_div_up(rows * cols, 2); }

int64_t lora_nf4_blocks(int64_t rows, int64_t cols, int64_t block_size) { return lora_div_up(rows * cols, block_size); }

lora_status lora_nf4_check_block_size(int64_t block_size, lora_error *err) {
    bool fits = block_size >= 32 && block_size <= LORA_NF4_MAX_BLOCK && (block_size & (block_size - 1)) == 0;
    LORA_CHECK(fits, err, LORA_EINVAL, "block_size: expected 32, 64, 128, 256, 512, 1024, 2048 or 4096, got %lld", (long long)block_size);
    return LORA_OK;
}
