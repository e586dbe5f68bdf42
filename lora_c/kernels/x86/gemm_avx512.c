#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemm_kernels.h"

#define SUFFIX _avx512
#define TARGET "avx512f"
#define VEC __m512
#define VL 16
#define MR 14
#define LOAD _mm512_load_ps
#define STORE _mm512_store_ps
#define ZERO _mm512_setzero_ps
#define BROADCAST(p) _mm512_set1_ps(*(p))
#define FMA _mm512_fmadd_ps
#define ADD _mm512_add_ps

#include "lora_c/kernels/tmpl/gemm_tmpl.h"

void lora_gemm_fill_avx512(lora_gemm_kernels *k) {
    k->mr = MR;
    k->nr = NR;
    k->kc = 512;
    k->nc = 128;
    k->micro = micro_avx512;
    /* transpose stays AVX2's: packing is a few percent */
}
#endif
