#include "lora_c/cuda/optim_8bit.h"

#include <string.h>

#include "lora_c/nf4.h"

void lora_cuda_dynamic_maps_fill(lora_cuda_dynamic_maps *maps) {
    const float *both[2] = {lora_dynamic_map_signed(), lora_dynamic_map_unsigned()};
    memset(maps, 0, sizeof *maps);
    for (int i = 0; i < 2; i++) {
        lora_dynamic_search_fill(&maps->search[i], both[i]);
        memcpy(maps->map[i], both[i], sizeof maps->map[i]);
        maps->search[i].map = NULL;
    }
}
