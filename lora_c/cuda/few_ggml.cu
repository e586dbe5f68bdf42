#include "lora_c/cuda/few.cuh"

lora_status lora_few_blocks(lora_cuda *c, const lora_cuda_few_layer *layer, lora_error *err) {
    switch (layer->w.ggml.type) {
#define RUN(type)                                                                                                                          \
    case type: return lora_few_run(c, layer, lora_few_ggml<type>{layer->w.ggml}, 0, err);
        LORA_GGML_BLOCK_TYPES(RUN)
#undef RUN
    default: return lora_fail(err, LORA_EDTYPE, "w: expected a block format that is read, got type %d", (int)layer->w.ggml.type);
    }
}
