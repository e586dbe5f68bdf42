/* How values are rounded to 8 bits with a scale for a block of 64, in products and in rows that are kept. */
#ifndef LORA_INT8_ROUNDING_TMPL_H
#define LORA_INT8_ROUNDING_TMPL_H

#include <math.h>
#include <string.h>

#include "lora_c/base/util.h"

enum { LORA_INT8_LEVELS = 127 };

static const float LORA_INT8_TINY = 1e-36f; /* blocks below it are zero: 127 / TINY must be finite */

typedef struct lora_int8_scale {
    float scale, inverse; /* of a block, and what its values are multiplied with */
} lora_int8_scale;

/* Of a block with max |value| top; NaN and Inf alike are not finite. */
LORA_INLINE lora_int8_scale lora_int8_scale_for(float top) {
    if (!(top <= 3.402823466e38f)) return (lora_int8_scale){.scale = NAN};
    return top < LORA_INT8_TINY ? (lora_int8_scale){0}
                                : (lora_int8_scale){.scale = top / LORA_INT8_LEVELS, .inverse = LORA_INT8_LEVELS / top};
}

LORA_INLINE int lora_to_int8(float value) { return value == value ? (int)lrintf(value) : 0; } /* NaN: its block has the scale NaN */

/* Bits without the sign order as magnitudes do, NaN above Inf. */
LORA_INLINE float lora_int8_largest(const float *values, int64_t stride, int64_t n) {
    uint32_t top = 0;
    for (int64_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, values + k * stride, sizeof bits);
        bits &= 0x7fffffff;
        if (bits > top) top = bits;
    }
    float value;
    memcpy(&value, &top, sizeof value);
    return value;
}

#endif
