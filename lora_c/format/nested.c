#include "lora_c/format/nested.h"

#include <math.h>
#include <stdbool.h>

#include "lora_c/nf4.h"

void lora_nested_firsts(float first[257]) {
    const float *map = lora_dynamic_map_signed();
    first[0] = -INFINITY;
    first[256] = INFINITY;
    for (int i = 1; i < 256; i++) { /* midpoints of two map values are exact in float64; a tie goes to the even index */
        double middle = ((double)map[i - 1] + (double)map[i]) / 2;
        float rounded = (float)middle;
        bool up = rounded < middle || (rounded == middle && i % 2 == 1);
        first[i] = up ? nextafterf(rounded, INFINITY) : rounded;
    }
}
