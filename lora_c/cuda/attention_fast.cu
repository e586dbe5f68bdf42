/* When attention has bfloat16 operands, and how they are made. */
#include "lora_c/cuda/attention_fast.h"
#include "lora_c/cuda/weights.h"

namespace {

enum { PACK_THREADS = 128 };

/* A block per token. */
__global__ void __launch_bounds__(PACK_THREADS) attention_pack(lora_cuda_pack a) {
    int64_t token = a.first + blockIdx.x, row = token;
    if (a.start) {
        int64_t low = 0, high = a.n; /* cu[low] <= token < cu[high] */
        while (high - low > 1) {
            int64_t mid = low + (high - low) / 2;
            if (a.cu[mid] <= token)
                low = mid;
            else
                high = mid;
        }
        if (a.length[low] != a.cu[low + 1] - a.cu[low]) return;
        row = a.start[low] + token - a.cu[low];
    }
    uint32_t per_head = (uint32_t)a.width / 4, group = (uint32_t)a.group;
    for (uint32_t i = threadIdx.x; i < (uint32_t)a.heads * per_head; i += PACK_THREADS) {
        uint32_t head = i / per_head, d = i % per_head * 4;
        attention_rows v = {a.from + row * a.ld + head * a.D, 0, 0, 1, 0, 1, a.aligned};
        float4 x = attention_load4(v, 0, d, a.D);
        uint32_t low = (uint32_t)lora_f32_to_bf16(x.y) << 16 | lora_f32_to_bf16(x.x);
        uint32_t high = (uint32_t)lora_f32_to_bf16(x.w) << 16 | lora_f32_to_bf16(x.z);
        int64_t at = ((int64_t)(head / group) * a.tokens + blockIdx.x) * group + head % group;
        *(uint2 *)(a.to + at * a.width + d) = make_uint2(low, high);
    }
}

} // namespace

lora_status lora_cuda_attention_pack(lora_cuda *c, const lora_cuda_pack *pack, lora_error *err) {
    if (pack->tokens == 0) return LORA_OK;
    return LORA_CUDA_LAUNCH(c, attention_pack, dim3((uint32_t)pack->tokens), PACK_THREADS, 0, *pack, err);
}

bool lora_cuda_attention_is_fast(const lora_ctx *ctx, int64_t D) {
    const lora_gpu_facts gpu = lora_cuda_facts(ctx);
    return lora_gpu_attention_is_fast(&gpu, D);
}

int64_t lora_cuda_attention_width(int64_t D) { return lora_gpu_attention_width(D); }
