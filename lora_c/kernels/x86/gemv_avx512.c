/* AVX-512 (F, BW, DQ, VL): 64 bytes hold 128 codes; lane i of the vector is a 32-bit word with codes 8i .. 8i+7, so eight
 * shifts and table permutes (which read four bits only) decode them all, and a lane never crosses a block. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemv_kernels.h"

#define TARGET "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"
#define RUNG LORA_TARGET(TARGET)
#define VEC __m512
#define VL 16
#define LOADU _mm512_loadu_ps
#define ZERO _mm512_setzero_ps
#define MUL _mm512_mul_ps
#define ADD _mm512_add_ps
#define FMA _mm512_fmadd_ps
#define SUM _mm512_reduce_add_ps
#define FIRST(n) ((__mmask16)((1u << (n)) - 1))
#define LOAD_PART(p, n) _mm512_maskz_loadu_ps(FIRST(n), p)
#define WIDEN(half) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))
#define LOAD_BF16(p) WIDEN(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define LOAD_BF16_PART(p, n) WIDEN(_mm256_maskz_loadu_epi16(FIRST(n), p))

typedef struct tables {
    __m512 lut;
    __m512i scale_of_lane; /* of the four that a group may have */
} tables;

static inline __attribute__((always_inline)) LORA_TARGET(TARGET) tables load_tables(const float *lut, int64_t block_size) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    int shift = block_size == 32 ? 2 : block_size == 64 ? 3 : 4;
    return (tables){.lut = _mm512_loadu_ps(lut), .scale_of_lane = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(shift))};
}

static inline __attribute__((always_inline)) LORA_TARGET(TARGET) void decode(const tables *t, const uint8_t *codes, int64_t bytes,
                                                                             __m512 *w) {
    __m512i v = bytes == 64 ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi32(FIRST(bytes / 4), codes);
    w[0] = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 4), t->lut);
    w[1] = _mm512_permutexvar_ps(v, t->lut);
    w[2] = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 12), t->lut);
    w[3] = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 8), t->lut);
    w[4] = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 20), t->lut);
    w[5] = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 16), t->lut);
    w[6] = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 28), t->lut);
    w[7] = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 24), t->lut);
}

static inline __attribute__((always_inline)) LORA_TARGET(TARGET) __m512 scales(const tables *t, const float *p, int64_t k) {
    return _mm512_maskz_permutexvar_ps(FIRST(k / 8), t->scale_of_lane, _mm512_broadcast_f32x4(_mm_loadu_ps(p)));
}

static LORA_TARGET(TARGET) void arrange(int64_t k, const float *x, void *arranged) {
    float *out = arranged;
    for (int64_t begin = 0; begin < k; begin += 128, x += 128, out += 128)
        for (int64_t lane = 0; lane < 16; lane++)
            for (int64_t j = 0; j < 8; j++) out[16 * j + lane] = begin + 8 * lane + j < k ? x[8 * lane + j] : 0.0f;
}

#include "lora_c/kernels/tmpl/gemv_tmpl.h"

void lora_gemv_fill_avx512(lora_gemv_path *p) {
    *p = (lora_gemv_path){
        .group = GROUP, .group_bytes = GROUP * (int64_t)sizeof(float), .arrange = arrange, .nf4 = nf4, .f32 = f32, .bf16 = bf16};
}
#endif
