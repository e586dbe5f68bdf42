/* The codes of a dynamic map by comparison with where each begins, so that an encoder searches no distances. */
#include <math.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/kernels/optim_kernels.h"

/* Whether the upper of two neighbours of the map is nearer to x, by distances in float32, as bitsandbytes measures them. */
static bool is_upper(const float *map, int upper, float x) { return map[upper] - x < x - map[upper - 1]; }

/* The smallest float32 that is nearest to map[i] or above: steps from the rounded middle, of which few are needed. */
static float first_of(const float *map, int i) {
    float x = (float)(((double)map[i - 1] + (double)map[i]) / 2);
    while (is_upper(map, i, x)) x = nextafterf(x, -INFINITY);
    while (!is_upper(map, i, x)) x = nextafterf(x, INFINITY);
    return x;
}

void lora_dynamic_search_fill(lora_dynamic_search *s, const float *map) {
    s->map = map;
    s->first[0] = -INFINITY;
    s->first[256] = INFINITY;
    for (int i = 1; i < 256; i++) s->first[i] = first_of(map, i);
    int index = 0;
    for (int k = LORA_DYNAMIC_BUCKETS - 1; k >= 0; k--) {
        float smallest = -lora_f32_bits(((uint32_t)(LORA_DYNAMIC_LOW_KEY + k + 1) << 18) - 1);
        while (s->first[index + 1] <= smallest) index++;
        s->base[LORA_DYNAMIC_BUCKETS + k] = index;
    }
    for (int k = 0; k < LORA_DYNAMIC_BUCKETS; k++) {
        float smallest = k ? lora_f32_bits((uint32_t)(LORA_DYNAMIC_LOW_KEY + k) << 18) : 0.0f;
        while (s->first[index + 1] <= smallest) index++;
        s->base[k] = index;
    }
}
