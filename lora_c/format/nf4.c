/* The parts of NF4 that need no context: the tables and the sizes. */
#include "lora_c/nf4.h"

#include "lora_c/base/util.h"
#include "lora_c/format/nf4_codebook.h"

static const float nf4_lut[16] = {LORA_NF4_VALUES(LORA_NF4_ITEM)};
static const float fp4_lut[16] = {LORA_FP4_VALUES(LORA_NF4_ITEM)};

const float *lora_nf4_lut(void) { return nf4_lut; }

const float *lora_fp4_lut(void) { return fp4_lut; }

int64_t lora_nf4_code_bytes(int64_t rows, int64_t cols) { return lora_div_up(rows * cols, 2); }

int64_t lora_nf4_blocks(int64_t rows, int64_t cols, int64_t block_size) { return lora_div_up(rows * cols, block_size); }
