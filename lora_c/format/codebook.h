/* A 4-bit type as data: what its codes mean, and how a value finds its code. One set of code quantizes to all of them. */
#ifndef LORA_FORMAT_CODEBOOK_H
#define LORA_FORMAT_CODEBOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "lora_c/nf4.h"

/* The values in ascending order lie in 16 intervals between 15 thresholds: interval i begins above threshold[i - 1], and a value
 * on a threshold belongs to the interval below. Thresholds are the float32 midpoints of neighbouring values, infinity where a type has
 * fewer values than codes.
 *
 * The cells find the interval by table instead of by 15 comparisons: q = round(32768 * y) for y in [-1, 1], saturated to int16.
 * Where each of the 32 cells of 2048 steps holds at most one threshold, interval = cell_base[cell] + (q > cell_threshold[cell]).
 * Rounding is monotone, so the answer is exact unless q equals the rounded threshold; those rare groups take the comparisons in
 * float32. Index: the cell number as five bits, 0 .. 15 for y >= 0 and 16 .. 31 for cells -16 .. -1. A cell without a threshold has
 * 32767 (never above), but cell 15 has -32768 and one less in its base (always above), because q saturates at 32767 there and would
 * look equal. The tests derive both tables from the thresholds. */
typedef struct lora_codebook {
    const char *name;
    float value[16];     /* by code */
    float threshold[15]; /* ascending */
    uint8_t code[16];    /* of each interval */
    uint8_t zero;        /* the code of zero: what a block of zeros and the missing nibble of an odd count get */
    bool has_cells;      /* false: two thresholds share a cell (FP4, around its two zeros), comparisons only */
    int16_t cell_threshold[32], cell_base[32];
} lora_codebook;

#ifdef __cplusplus
extern "C" {
#endif

/** The table of a type. */
const lora_codebook *lora_codebook_of(lora_4bit_type type);

#ifdef __cplusplus
}
#endif

#endif
