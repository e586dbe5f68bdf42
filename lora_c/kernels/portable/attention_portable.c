/* Attention tiles in plain C on 4-float vectors (the vector extension of GCC and Clang: SSE2, NEON, or scalar code). */
#include "lora_c/kernels/attention_kernels.h"

#include <stdint.h>
#include <string.h>

typedef float V __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));

enum { VLEN = 4, MR = 6 };
#define ATTN_TARGET

#include "lora_c/base/util.h"

LORA_INLINE V v_load(const float *p) {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
}
LORA_INLINE void v_store(float *p, V x) { memcpy(p, &x, sizeof x); }
LORA_INLINE V v_set1(float x) { return (V){x, x, x, x}; }
LORA_INLINE V v_iota(void) { return (V){0, 1, 2, 3}; }
LORA_INLINE V v_add(V a, V b) { return a + b; }
LORA_INLINE V v_sub(V a, V b) { return a - b; }
LORA_INLINE V v_mul(V a, V b) { return a * b; }
LORA_INLINE V v_div(V a, V b) { return a / b; }
LORA_INLINE V v_fma(V a, V b, V c) { return a * b + c; }
LORA_INLINE V v_select(VI mask, V a, V b) { return (V)((mask & (VI)a) | (~mask & (VI)b)); }
/* b where either is NaN, as on x86 */
LORA_INLINE V v_max(V a, V b) { return v_select(a > b, a, b); }
/* the low 9 bits become sign and exponent */
LORA_INLINE V v_low_bits_to_exponent(V t) { return (V)((VI)t << 23); }
/* x where lo <= j <= hi, else other */
LORA_INLINE V v_where_between(V j, V lo, V hi, V x, V other) { return v_select((j >= lo) & (j <= hi), x, other); }

LORA_INLINE void v_transpose(V x[VLEN]) {
    V y[VLEN];
    for (int i = 0; i < VLEN; i++) y[i] = (V){x[0][i], x[1][i], x[2][i], x[3][i]};
    for (int i = 0; i < VLEN; i++) x[i] = y[i];
}

#include "lora_c/kernels/tmpl/attention_backward_tmpl.h"

void lora_attention_init_portable(lora_attention_kernels *k) {
    k->forward = attention_forward;
    k->delta = attention_delta;
    k->backward = attention_backward;
}
