/* float32 products: 14 x 32 tiles, weights of 4 bits decoded on their way into the panel. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemm_kernels.h"
#include "lora_c/kernels/x86/gemm_pack_avx512.h"

#define SUFFIX _avx512
#define TARGET "avx512f"
#define VEC __m512
#define VL 16
#define MR 14
#define WORD float
#define LOAD_B _mm512_load_ps
#define BROADCAST(p) _mm512_set1_ps(*(p))
#define MULTIPLY_ADD _mm512_fmadd_ps
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ZERO _mm512_setzero_ps
#define ADD _mm512_add_ps

#include "lora_c/kernels/tmpl/gemm_tmpl.h"

void lora_gemm_fill_avx512(lora_gemm_path *p) {
    p->mr = MR;
    p->nr = 2 * VL;
    p->kc = 512;
    p->micro = micro_avx512;
    p->pack_rows = p->pack_left_rows = lora_pack_rows_avx512;
    p->pack_columns = lora_pack_columns_avx512;
    p->pack_nf4_rows = lora_pack_nf4_rows_avx512;
    p->pack_nf4_columns = lora_pack_nf4_columns_avx512;
}
#endif
