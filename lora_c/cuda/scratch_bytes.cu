/* How large the buffers of a device become in a training step. */
#include "lora_c/cuda/attention_fast.h"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/weights.h"

static_assert((int)LORA_CUDA_ATTENTION_SHARED == (int)LORA_GPU_ATTENTION_SHARED, "of one kernel");

int64_t lora_cuda_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    const lora_gpu_facts gpu = lora_cuda_facts(ctx);
    return lora_gpu_scratch_bytes(shape, &gpu);
}
