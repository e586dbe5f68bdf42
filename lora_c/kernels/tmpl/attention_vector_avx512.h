/* The vector operations of the attention templates in AVX-512 F. The includer defines ATTN_TARGET. */
#ifndef LORA_TMPL_ATTENTION_VECTOR_AVX512_H
#define LORA_TMPL_ATTENTION_VECTOR_AVX512_H

#include <immintrin.h>

#include "lora_c/base/util.h"

typedef __m512 V;
enum { VLEN = 16 };
#define V_OP LORA_INLINE ATTN_TARGET

V_OP V v_load(const float *p) { return _mm512_loadu_ps(p); }
V_OP void v_store(float *p, V x) { _mm512_storeu_ps(p, x); }
V_OP V v_set1(float x) { return _mm512_set1_ps(x); }
V_OP V v_iota(void) { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
V_OP V v_add(V a, V b) { return _mm512_add_ps(a, b); }
V_OP V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
V_OP V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
V_OP V v_div(V a, V b) { return _mm512_div_ps(a, b); }
V_OP V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
V_OP V v_max(V a, V b) { return _mm512_max_ps(a, b); } /* b where either is NaN */
/* the low 9 bits become sign and exponent */
V_OP V v_low_bits_to_exponent(V t) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t), 23)); }
/* x where lo <= j <= hi, else other */
V_OP V v_where_between(V j, V lo, V hi, V x, V other) {
    __mmask16 inside = _mm512_cmp_ps_mask(j, lo, _CMP_GE_OQ) & _mm512_cmp_ps_mask(j, hi, _CMP_LE_OQ);
    return _mm512_mask_blend_ps(inside, other, x);
}

V_OP void v_transpose(V x[VLEN]) {
    V t[16], u[16];
    LORA_UNROLL_BY(8) for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    LORA_UNROLL_BY(4) for (int i = 0; i < 16; i += 4) { /* u[i + c], 128-bit part b: column 4 b + c of rows i .. i + 3 */
        u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    LORA_UNROLL_BY(4) for (int c = 0; c < 4; c++) { /* a 4 x 4 transpose of 128-bit parts */
        V a = _mm512_shuffle_f32x4(u[c], u[c + 4], 0x44), b = _mm512_shuffle_f32x4(u[c], u[c + 4], 0xee);
        V d = _mm512_shuffle_f32x4(u[c + 8], u[c + 12], 0x44), e = _mm512_shuffle_f32x4(u[c + 8], u[c + 12], 0xee);
        x[c] = _mm512_shuffle_f32x4(a, d, 0x88);
        x[c + 4] = _mm512_shuffle_f32x4(a, d, 0xdd);
        x[c + 8] = _mm512_shuffle_f32x4(b, e, 0x88);
        x[c + 12] = _mm512_shuffle_f32x4(b, e, 0xdd);
    }
}

#endif
