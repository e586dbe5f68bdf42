/* AVX2: 32 bytes hold 64 codes. The four bytes of a float32 come from four 16-entry byte tables (pshufb), high nibbles (even
 * elements) first, and interleave to eight vectors: of each, lanes 0 .. 3 lie in the first 32 elements, 4 .. 7 in the rest. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/kernels/gemv_kernels.h"

#define TARGET "avx2,fma"
#define RUNG LORA_TARGET(TARGET)
#define VEC __m256
#define VL 8
#define LOADU _mm256_loadu_ps
#define ZERO _mm256_setzero_ps
#define MUL _mm256_mul_ps
#define ADD _mm256_add_ps
#define FMA _mm256_fmadd_ps
#define SUM sum
#define LOAD_PART load_part
#define WIDEN(half) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))
#define LOAD_BF16(p) WIDEN(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define LOAD_BF16_PART load_bf16_part
#define AVX2_INLINE static inline __attribute__((always_inline)) LORA_TARGET(TARGET)

AVX2_INLINE float sum(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

AVX2_INLINE __m256 load_part(const float *p, int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane));
}

AVX2_INLINE __m256 load_bf16_part(const uint16_t *p, int64_t n) {
    uint16_t part[8] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return LOAD_BF16(part);
}

typedef struct tables {
    __m256i plane[4];      /* byte b of the 16 values, twice */
    __m256i scale_of_lane; /* of the two that a group may have */
} tables;

AVX2_INLINE tables load_tables(const float *lut, int64_t block_size) {
    tables t;
    for (int b = 0; b < 4; b++) {
        uint8_t bytes[16];
        for (int i = 0; i < 16; i++) bytes[i] = (uint8_t)(lora_bits_f32(lut[i]) >> 8 * b);
        t.plane[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)bytes));
    }
    t.scale_of_lane = block_size == 32 ? _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1) : _mm256_setzero_si256();
    return t;
}

/* 32 codes to four vectors of values */
AVX2_INLINE void look_up(const tables *t, __m256i codes, __m256 *w) {
    __m256i b0 = _mm256_shuffle_epi8(t->plane[0], codes), b1 = _mm256_shuffle_epi8(t->plane[1], codes);
    __m256i b2 = _mm256_shuffle_epi8(t->plane[2], codes), b3 = _mm256_shuffle_epi8(t->plane[3], codes);
    __m256i low0 = _mm256_unpacklo_epi8(b0, b1), low1 = _mm256_unpackhi_epi8(b0, b1);
    __m256i high0 = _mm256_unpacklo_epi8(b2, b3), high1 = _mm256_unpackhi_epi8(b2, b3);
    w[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0));
    w[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0));
    w[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1));
    w[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1));
}

AVX2_INLINE void decode(const tables *t, const uint8_t *codes, int64_t bytes, __m256 *w) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m128i *p = (const __m128i *)(const void *)codes; /* a part is one block of 32 elements */
    __m256i v = bytes == 32 ? _mm256_loadu_si256((const __m256i *)(const void *)codes) : _mm256_zextsi128_si256(_mm_loadu_si128(p));
    look_up(t, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble), w);
    look_up(t, _mm256_and_si256(v, nibble), w + 4);
}

AVX2_INLINE __m256 scales(const tables *t, const float *p, int64_t k) {
    __m256 both = _mm256_permutevar8x32_ps(_mm256_castpd_ps(_mm256_broadcast_sd((const double *)(const void *)p)), t->scale_of_lane);
    return k > 32 ? both : _mm256_zextps128_ps256(_mm256_castps256_ps128(both));
}

static LORA_TARGET(TARGET) void arrange(int64_t k, const float *x, void *arranged) {
    float *out = arranged;
    for (int64_t begin = 0; begin < k; begin += 64, x += 64, out += 64)
        for (int64_t v = 0; v < 8; v++) /* nibble v / 4, bytes 4 (v % 4) onwards of each half */
            for (int64_t lane = 0; lane < 8; lane++) {
                int64_t element = 2 * (lane / 4 * 16 + v % 4 * 4 + lane % 4) + v / 4;
                out[8 * v + lane] = begin + element < k ? x[element] : 0.0f;
            }
}

#include "lora_c/kernels/tmpl/gemv_tmpl.h"

void lora_gemv_fill_avx2(lora_gemv_path *p) {
    *p = (lora_gemv_path){
        .group = GROUP, .group_bytes = GROUP * (int64_t)sizeof(float), .arrange = arrange, .nf4 = nf4, .f32 = f32, .bf16 = bf16};
}
#endif
