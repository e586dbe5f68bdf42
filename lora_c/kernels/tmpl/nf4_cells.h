/* Finding NF4 codes by table instead of 15 comparisons.
 *
 * q = round(32768 * y) for y in [-1, 1], saturated to int16. NF4 thresholds are more than 1/16 apart, so each of the 32
 * cells of 2048 steps holds at most one: code = base[cell] + (q > threshold[cell]). Rounding is monotone, so the answer
 * is exact unless q equals the rounded threshold; those rare groups take the 15 comparisons in float32. */
#ifndef LORA_KERNELS_NF4_CELLS_H
#define LORA_KERNELS_NF4_CELLS_H

#include <stdint.h>

#include "lora_c/base/util.h"
#include "lora_c/format/nf4_codebook.h"

/* Below this absmax the scaled reciprocal would leave float32; such blocks take the comparisons too. */
#define LORA_NF4_CELL_MIN_ABSMAX 1e-30f

#define LORA_NF4_THRESHOLD_(code, value) value,

/* Index: the cell number as five bits, 0 .. 15 for y >= 0 and 16 .. 31 for cells -16 .. -1. A cell without a threshold
 * has 32767 (never above), but cell 15 has -32768 and base 14 (always above), because q saturates at 32767 there and
 * would look equal. The tests derive both tables from the codebook. */
static const int16_t lora_nf4_cell_threshold[32] = {
    1304,  3941,  32767,  6669,  9569,  32767, 12757,  32767, 16439,  32767, 21063,  32767, 32767, 28229, 32767, -32768,
    32767, 32767, -27790, 32767, 32767, 32767, -20009, 32767, -15073, 32767, -11131, 32767, -7688, -4519, 32767, -1492,
};
static const int16_t lora_nf4_cell_base[32] = {
    7, 8, 9, 9, 10, 11, 11, 12, 12, 13, 13, 14, 14, 14, 15, 14, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6,
};

#endif
