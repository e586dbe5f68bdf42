/* The dynamic maps and the searches in them, as kernels read them: [0] signed, of first moments, [1] unsigned, of second ones. */
#ifndef LORA_CUDA_OPTIM_8BIT_H
#define LORA_CUDA_OPTIM_8BIT_H

#include "lora_c/kernels/optim_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lora_cuda_dynamic_maps {
    lora_dynamic_search search[2]; /* but map, an address of the host */
    float map[2][256];
} lora_cuda_dynamic_maps;

void lora_cuda_dynamic_maps_fill(lora_cuda_dynamic_maps *maps);

#ifdef __cplusplus
}
#endif
#endif
