/* The memory of a state: made before anything else of it, ended last. */
#ifndef LORA_CUDA_MEMORY_H
#define LORA_CUDA_MEMORY_H

#include "lora_c/base/alloc.h"
#include "lora_c/cuda/state.h"
#include "lora_c/cuda/table.h"

lora_status lora_cuda_memory_create(lora_cuda *c, lora_mem *host, lora_error *err) LORA_MUST_CHECK;
/** Waits for what is under way and gives back scratch and staging memory. */
void lora_cuda_memory_destroy(lora_cuda *c, lora_mem *host);

#endif
