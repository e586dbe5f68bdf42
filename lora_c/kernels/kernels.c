#include "lora_c/kernels/kernels.h"

void lora_kernels_init(lora_kernels *k, lora_isa isa) {
    k->isa = isa;
    lora_convert_kernels_init(&k->convert, isa);
    lora_nf4_kernels_init(&k->nf4, isa);
    lora_ggml_kernels_init(&k->ggml, isa);
    lora_gemm_kernels_init(&k->gemm, isa);
    lora_gemv_kernels_init(&k->gemv, isa);
    lora_rowwise_kernels_init(&k->rowwise, isa);
    lora_optim_kernels_init(&k->optim, isa);
    lora_attention_kernels_init(&k->attention, isa);
    lora_attention_fast_kernels_init(&k->attention_fast, isa, k->gemm.fast);
}

bool lora_kernels_set_fast(lora_kernels *k, lora_gemm_arithmetic fast) {
    if (!k->gemm.paths[fast].micro) return false;
    k->gemm.fast = fast;
    lora_attention_fast_kernels_init(&k->attention_fast, k->isa, fast);
    return true;
}
