/* int8 products of a few tokens with 4-bit rows without AVX-512: 32 bytes hold a block of a row. With AVX-VNNI, or with AVX2 alone.
 * Packing is portable here, so a product of up to 24 tokens stays with calls of these: 1.2 to 1.4 times as fast as precision fast, which
 * is 1.7 times as fast as packing at 25 tokens (bench_few's loop, NF4 of 512 x 2048 by the AVX2 rung of an AMD EPYC, Zen 4). */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/kernels/tmpl/gemv_int8_tmpl.h"

enum { ROWS = 8, BLOCK = LORA_GEMM_SCALE_BLOCK, MOST_TOKENS = 4 };

/* vpmaddubsw saturates: |w| and x with the sign of w, as in gemm_int8_avx2.c. */
#define SUFFIX _avx2
#define TARGET "avx2,fma"
#define OFFSET 0
#define CORRECTION(token) 0
#define MULTIPLY_ADD(w, x, c)                                                                                                              \
    _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1)))
#include "lora_c/kernels/tmpl/gemv_int8_256_tmpl.h"

#if LORA_KNOWS_AVX_VNNI
#define SUFFIX _avx_vnni
#define TARGET "avx2,fma,avxvnni"
#define OFFSET LORA_INT8_OFFSET
#define CORRECTION(token) (token)->correction
#define MULTIPLY_ADD(w, x, c) _mm256_dpbusd_avx_epi32(c, w, x)
#include "lora_c/kernels/tmpl/gemv_int8_256_tmpl.h"
#else
#define nf4_avx_vnni nf4_avx2 /* the same bits */
#endif

void lora_gemv_fill_int8_avx2(lora_gemv_path *p) {
    p->tokens = MOST_TOKENS;
    p->nf4 = nf4_avx2;
}

void lora_gemv_fill_int8_avx_vnni(lora_gemv_path *p) {
    p->tokens = MOST_TOKENS;
    p->nf4 = nf4_avx_vnni;
}
#endif
