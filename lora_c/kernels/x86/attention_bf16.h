/* What the bfloat16 attention kernels share. The includer pushes the target that these intrinsics need.
 *
 * All products run on the micro-kernel of the packed matrix product (gemm_bf16.c): panels of words, a word two values of
 * the summed index. Sums, scores and statistics are float32. */
#ifndef LORA_ATTENTION_BF16_H
#define LORA_ATTENTION_BF16_H

#define ATTN_TARGET LORA_TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

#include <float.h>
#include <math.h>

#include "lora_c/kernels/attention_kernels.h"
#include "lora_c/kernels/tmpl/attention_vector_avx512.h"

#include "lora_c/kernels/tmpl/attention_lanes_tmpl.h"
#include "lora_c/kernels/tmpl/gemm_pairs_avx512.h"

#define LOG2E 1.44269504088896340736
#define LN2 0.69314718055994530942

enum { TALL = 14 /* rows of the largest register tile, even: a pair never straddles two tiles */ };

LORA_INLINE lora_gemm_path bf16_products(void) {
    lora_gemm_path path;
    lora_gemm_fill_bf16(&path);
    return path;
}

LORA_INLINE int64_t pairs_of(int64_t n) { return lora_div_up(n, 2); }
static inline uint32_t *carve_words(float **scratch, int64_t n) { return (uint32_t *)(void *)carve(scratch, n); }

/* The elements of a head in equal strips of at most TALL, the rows of register tiles. */
typedef struct strips {
    int64_t width, D;
} strips;
LORA_INLINE strips strips_of(int64_t D) { return (strips){.width = lora_div_up(D, lora_div_up(D, TALL)), .D = D}; }
LORA_INLINE int64_t strip_at(strips s, int64_t d) { return lora_min_i64(s.width, s.D - d); }

/* 2^x, relative error < 3e-6 (bfloat16 rounds it to 2^-8 next), 0 from -150 down; exactly 1 at 0. NaN stays NaN. */
LORA_INLINE __m512 exp2_pieces(__m512 x, __m512 *whole) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x); /* -inf - -inf would be NaN */
    *whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_sub_ps(x, *whole), p = _mm512_set1_ps(0.009582852944731712f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.055906426161527634f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24024099111557007f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.6931241750717163f));
    return _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
}
LORA_INLINE __m512 exp2_short(__m512 x) {
    __m512 whole, p = exp2_pieces(x, &whole);
    return _mm512_scalef_ps(p, whole);
}
/* 0 where the mask is. */
LORA_INLINE __m512 exp2_short_masked(__mmask16 seen, __m512 x) {
    __m512 whole, p = exp2_pieces(x, &whole);
    return _mm512_maskz_scalef_ps(seen, p, whole);
}

/* 32 values in order; pairs: lane j is (even[j], odd[j]). */
LORA_INLINE __m512i narrow_32(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }
LORA_INLINE __m512i pair(__m512 even, __m512 odd) { return lora_interleave_halves(narrow_32(even, odd)); }

/* dst[r] = factor * row r of a tile (query r / group, head r % group) for n rows from first on. */
ATTN_NOINLINE void gather_rows(const float *src, int64_t ld, int64_t group, int64_t first, int64_t n, int64_t D, float factor, float *dst) {
    enum { AHEAD = 8 };
    const __m512 f = _mm512_set1_ps(factor);
    for (int64_t r = 0; r < n; r++, dst += D) {
        int64_t row = first + r, next = lora_min_i64(row + AHEAD, first + n - 1);
        const float *from = src + row / group * ld + row % group * D;
        prefetch_row(src + next / group * ld + next % group * D, D);
        for (int64_t d = 0; d < D; d += VLEN) {
            __mmask16 lanes = lora_first_lanes(D - d);
            _mm512_mask_storeu_ps(dst + d, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, from + d), f));
        }
    }
}

#endif
