#include "lora_c/ops/weight.h"

#include "lora_c/ops/ggml.h"

const float *lora_weight_run(const lora_kernels *kernels, const lora_weight *w, int64_t r, int64_t k, int64_t n, float *buffer) {
    switch (w->kind) {
    case LORA_WEIGHT_F32: return (const float *)w->dense.data + r * w->dense.ld + k;
    case LORA_WEIGHT_BF16: kernels->convert.bf16_to_f32(n, (const uint16_t *)w->dense.data + r * w->dense.ld + k, buffer); break;
    case LORA_WEIGHT_NF4: kernels->nf4.dequantize(&w->nf4, r * w->cols + k, n, buffer); break;
    case LORA_WEIGHT_GGML: lora_ggml_run(kernels, &w->ggml, r, k, n, buffer); break;
    }
    return buffer;
}
