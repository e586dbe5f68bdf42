/* Rows of a weight as a weight of their own: the matrices that a fused one holds behind each other. */
#ifndef LORA_C_WEIGHT_ROWS_H
#define LORA_C_WEIGHT_ROWS_H

#include "lora_c/status.h"
#include "lora_c/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/** *out = rows row .. row + rows - 1 of w, borrowed from the same memory.
 *  Errors    ESHAPE; EUNSUPPORTED: NF4 rows that do not begin at a block, or double-quantized not at a nested block */
lora_status lora_weight_rows(const lora_weight *w, int64_t row, int64_t rows, lora_weight *out, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
