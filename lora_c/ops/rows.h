/* Task sizes of the operations that work row by row. */
#ifndef LORA_OPS_ROWS_H
#define LORA_OPS_ROWS_H

#include <inttypes.h>

#include "lora_c/base/mat.h"
#include "lora_c/base/util.h"

/* Rows per task: enough work to pay for handing it out, a function of the width only. */
static inline int64_t lora_rows_per_task(int64_t cols) { return lora_max_i64(1, 16384 / lora_max_i64(cols, 1)); }

#endif
