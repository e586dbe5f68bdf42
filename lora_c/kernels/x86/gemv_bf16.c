/* bfloat16 products of a few tokens (AVX512_BF16). */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemv_kernels.h"

LORA_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

typedef struct levels {
    __m512i table;
} levels;

LORA_INLINE __m512i round_pair(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }

LORA_INLINE levels load_levels(const float *lut) { return (levels){.table = round_pair(_mm512_loadu_ps(lut), _mm512_loadu_ps(lut))}; }

/* Intrinsics: with the instruction as written out the compiler orders the loads so that reading memory takes a tenth longer. */
LORA_INLINE __m512 multiply_pairs(__m512 sum, __m512i a, const __m512i *b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)_mm512_load_si512(b));
}

LORA_INLINE __m512 dot_group(const __m512i *w, const __m512i *x) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) sum = multiply_pairs(sum, w[i], x + i);
    return sum;
}

#define GEMV_NF4 gemv_nf4_bf16
#define DOT_GROUP dot_group
#define ADD_SCALED(acc, s, scale, x) _mm512_fmadd_ps(scale, s, acc)
#define GROUP_VECTORS 4
#define table_of(l) ((l).table)
#define unit_of(l) 1.0f

#include "lora_c/kernels/tmpl/gemv_pairs_avx512.h"

/* Elements x[i] .. x[i + 31] of k, zeros behind the last. */
LORA_INLINE __m512i round_32(const float *x, int64_t i, int64_t k) {
    return round_pair(_mm512_maskz_loadu_ps(lora_first_lanes(k - i), x + i),
                      _mm512_maskz_loadu_ps(lora_first_lanes(k - i - 16), x + i + 16));
}

static void arrange(int64_t k, const float *x, void *out) {
    __m512i *to = out;
    for (int64_t i = 0; i < k; i += GROUP, to += GROUP_VECTORS) {
        __m512i in[4];
        for (int j = 0; j < 4; j++) in[j] = round_32(x, i + 32 * j, k);
        lora_arrange_group(in, to);
    }
}

static void round_bf16(int64_t k, const float *x, uint16_t *out) {
    for (int64_t i = 0; i < k; i += 32) _mm512_store_si512(out + i, round_32(x, i, k));
}

/* --- dense rows: two accumulators per token, even and odd vectors --- */

enum { DENSE_ROWS_AT_ONCE = 8 };

LORA_INLINE void dense_run(const uint16_t *w, int64_t k0, int64_t k1, const int m, const char *x, int64_t stride, __m512 *even,
                           __m512 *odd) {
    int64_t k = k0;
    for (; k + 64 <= k1; k += 64) {
        _mm_prefetch((const char *)(w + k) + PREFETCH_BYTES, _MM_HINT_T0);
        _mm_prefetch((const char *)(w + k) + PREFETCH_BYTES + 64, _MM_HINT_T0);
        __m512i w0 = _mm512_loadu_si512(w + k), w1 = _mm512_loadu_si512(w + k + 32);
        UNROLL for (int i = 0; i < m; i++) {
            even[i] = multiply_pairs(even[i], w0, (const __m512i *)(const void *)(x + i * stride + 2 * k));
            odd[i] = multiply_pairs(odd[i], w1, (const __m512i *)(const void *)(x + i * stride + 2 * k + 64));
        }
    }
    for (; k < k1; k += 32) {
        __m512i w0 = _mm512_maskz_loadu_epi16(k1 - k >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (k1 - k)) - 1, w + k);
        UNROLL for (int i = 0; i < m; i++) even[i] = multiply_pairs(even[i], w0, (const __m512i *)(const void *)(x + i * stride + 2 * k));
    }
}

LORA_INLINE void dense(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, const int m, const char *x, int64_t stride, float *sums) {
    int64_t chunk = m == 1 ? k : CHUNK;
    for (int64_t r0 = 0; r0 < rows; r0 += DENSE_ROWS_AT_ONCE) {
        int64_t here = lora_min_i64(DENSE_ROWS_AT_ONCE, rows - r0);
        __m512 acc[DENSE_ROWS_AT_ONCE][2][LORA_GEMV_TOKENS];
        for (int64_t k0 = 0; k0 < k; k0 += chunk)
            for (int64_t r = 0; r < here; r++) {
                __m512 even[LORA_GEMV_TOKENS], odd[LORA_GEMV_TOKENS];
                UNROLL for (int i = 0; i < m; i++) {
                    even[i] = k0 ? acc[r][0][i] : _mm512_setzero_ps();
                    odd[i] = k0 ? acc[r][1][i] : _mm512_setzero_ps();
                }
                dense_run(w + (r0 + r) * ldw, k0, lora_min_i64(k0 + chunk, k), m, x, stride, even, odd);
                UNROLL for (int i = 0; i < m; i++) {
                    acc[r][0][i] = even[i];
                    acc[r][1][i] = odd[i];
                }
            }
        for (int64_t r = 0; r < here; r++)
            UNROLL for (int i = 0; i < m; i++) sums[(r0 + r) * m + i] = _mm512_reduce_add_ps(_mm512_add_ps(acc[r][0][i], acc[r][1][i]));
    }
}

static void gemv_bf16_bf16(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, int64_t m, const void *x, int64_t stride, float *sums) {
    switch (m) {
    case 1: dense(rows, k, w, ldw, 1, x, stride, sums); break;
    case 2: dense(rows, k, w, ldw, 2, x, stride, sums); break;
    case 3: dense(rows, k, w, ldw, 3, x, stride, sums); break;
    case 4: dense(rows, k, w, ldw, 4, x, stride, sums); break;
    case 5: dense(rows, k, w, ldw, 5, x, stride, sums); break;
    case 6: dense(rows, k, w, ldw, 6, x, stride, sums); break;
    case 7: dense(rows, k, w, ldw, 7, x, stride, sums); break;
    default: dense(rows, k, w, ldw, 8, x, stride, sums); break;
    }
}

void lora_gemv_fill_bf16(lora_gemv_path *p) {
    p->group = GROUP;
    p->group_bytes = GROUP_BYTES;
    p->arrange = arrange;
    p->round_bf16 = round_bf16;
    p->nf4 = gemv_nf4_bf16;
    p->bf16 = gemv_bf16_bf16;
}

LORA_TARGET_END
#endif
