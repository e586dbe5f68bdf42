/* int8 products without AVX-512: with AVX-VNNI, or with AVX2 alone. Dense weights are packed in plain C. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"
#include "lora_c/kernels/x86/gemm_int8_pack_avx2.h"

enum { VL = 8, STEPS = LORA_INT8_STEPS, NR = 16, WIDE_NR = 32 };

/* vpmaddubsw adds products of two bytes to 16 bits and saturates: of the offset values it would. Of |b| <= 127 and a with the sign of b
 * their sum is at most 2 * 127^2 < 2^15. */
#define SUFFIX _avx2
#define TARGET "avx2,fma"
#define ROWS 2
#define LOAD_RIGHT(p) _mm256_xor_si256(_mm256_load_si256((const __m256i *)(const void *)(p)), _mm256_set1_epi8(-LORA_INT8_OFFSET))
#define MULTIPLY_ADD(b, a, c)                                                                                                              \
    _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(a, b)), _mm256_set1_epi16(1)))
#define BEGIN(correction) _mm256_setzero_si256()
#include "lora_c/kernels/tmpl/gemm_int8_256_tmpl.h"

#if LORA_KNOWS_AVX_VNNI
#define SUFFIX _avx_vnni
#define TARGET "avx2,fma,avxvnni"
#define ROWS 4
#define LOAD_RIGHT(p) _mm256_load_si256((const __m256i *)(const void *)(p))
#define MULTIPLY_ADD(b, a, c) _mm256_dpbusd_avx_epi32(c, b, a)
#define BEGIN(correction) _mm256_set1_epi32(correction)
#include "lora_c/kernels/tmpl/gemm_int8_256_tmpl.h"
#else
#define micro_avx_vnni micro_avx2 /* the same bits */
#endif

static void pack_nf4_columns(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                             int64_t panel_words) {
    lora_int8_pack_nf4_columns_avx2(w, row, n, first_col, n_panels, NR, panels, panel_words);
}

static void pack_wide_nf4_columns(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                                  int64_t panel_words) {
    lora_int8_pack_nf4_columns_avx2(w, row, n, first_col, n_panels, WIDE_NR, panels, panel_words);
}

void lora_gemm_fill_int8_avx2(lora_gemm_path *p) {
    p->micro = micro_avx2;
    p->pack_left_rows = lora_int8_pack_left_rows_avx2;
    p->pack_nf4_rows = lora_int8_pack_nf4_rows_avx2;
    p->pack_nf4_columns = p->nr == WIDE_NR ? pack_wide_nf4_columns : pack_nf4_columns;
}

void lora_gemm_fill_int8_avx_vnni(lora_gemm_path *p) { p->micro = micro_avx_vnni; }
#endif
