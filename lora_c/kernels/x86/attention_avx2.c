/* Attention tiles for AVX2 and FMA. */
#if defined(__x86_64__)

#include "lora_c/kernels/attention_kernels.h"

#include <immintrin.h>

#include "lora_c/base/util.h"

typedef __m256 V;
enum { VLEN = 8, MR = 6 };
#define ATTN_TARGET LORA_TARGET("avx2,fma")
#define V_OP LORA_INLINE ATTN_TARGET

V_OP V v_load(const float *p) { return _mm256_loadu_ps(p); }
V_OP void v_store(float *p, V x) { _mm256_storeu_ps(p, x); }
V_OP V v_set1(float x) { return _mm256_set1_ps(x); }
V_OP V v_iota(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
V_OP V v_add(V a, V b) { return _mm256_add_ps(a, b); }
V_OP V v_sub(V a, V b) { return _mm256_sub_ps(a, b); }
V_OP V v_mul(V a, V b) { return _mm256_mul_ps(a, b); }
V_OP V v_div(V a, V b) { return _mm256_div_ps(a, b); }
V_OP V v_fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
V_OP V v_max(V a, V b) { return _mm256_max_ps(a, b); } /* b where either is NaN */
/* the low 9 bits become sign and exponent */
V_OP V v_low_bits_to_exponent(V t) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t), 23)); }
/* x where lo <= j <= hi, else other */
V_OP V v_where_between(V j, V lo, V hi, V x, V other) {
    V inside = _mm256_and_ps(_mm256_cmp_ps(j, lo, _CMP_GE_OQ), _mm256_cmp_ps(j, hi, _CMP_LE_OQ));
    return _mm256_blendv_ps(other, x, inside);
}

V_OP void v_transpose(V x[VLEN]) {
    V t[8], u[8];
    LORA_UNROLL_BY(4) for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    LORA_UNROLL_BY(2) for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        x[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

#include "lora_c/kernels/tmpl/attention_backward_tmpl.h"

void lora_attention_init_avx2(lora_attention_kernels *k) {
    k->forward = attention_forward;
    k->delta = attention_delta;
    k->backward = attention_backward;
}

#else
typedef int lora_attention_avx2_empty; /* ISO C wants a declaration in every file */
#endif
