/* The optimizers' kernels in vectors of AVX-512. No FMA: the bits are those of the portable rung. */
#if defined(__x86_64__)
#include "lora_c/base/util.h"
#define RUNG LORA_TARGET("avx512f,avx512bw,avx512dq,avx512vl" LORA_WIDE_VECTORS)
#include "lora_c/kernels/tmpl/optim_tmpl.h"

void lora_optim_fill_avx512(lora_optim_kernels *k) { LORA_OPTIM_SLOTS(LORA_OPTIM_ASSIGN) }
#endif
