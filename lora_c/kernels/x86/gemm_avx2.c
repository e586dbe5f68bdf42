/* float32 products: 6 x 16 tiles. Weights of 16 and 4 bits are decoded before they are packed. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemm_kernels.h"

#define SUFFIX _avx2
#define TARGET "avx2,fma"
#define VEC __m256
#define VL 8
#define MR 6
#define WORD float
#define LOAD_B _mm256_load_ps
#define BROADCAST _mm256_broadcast_ss
#define MULTIPLY_ADD _mm256_fmadd_ps
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ZERO _mm256_setzero_ps
#define ADD _mm256_add_ps

#include "lora_c/kernels/tmpl/gemm_tmpl.h"

#define AVX2_INLINE static inline __attribute__((always_inline)) LORA_TARGET(TARGET)

AVX2_INLINE void transpose_8x8(__m256 r[8]) {
    __m256 t[8];
    UNROLL for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    UNROLL for (int i = 0; i < 8; i++) r[i] = t[i];
}

AVX2_INLINE __m256i first_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < 0 ? 0 : n > VL ? VL : n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static LORA_TARGET(TARGET) void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += VL) {
        float *out = (float *)panel + first;
        const float *rows = source + first * ld;
        __m256i lanes = first_lanes(width - first);
        for (int64_t k = 0; k < n; k += VL) {
            __m256i here = first_lanes(n - k);
            __m256 r[8];
            for (int64_t i = 0; i < VL; i++) r[i] = first + i < n_rows ? _mm256_maskload_ps(rows + i * ld + k, here) : _mm256_setzero_ps();
            transpose_8x8(r);
            int64_t steps = lora_min_i64(VL, n - k);
            for (int64_t s = 0; s < steps; s++) _mm256_maskstore_ps(out + (k + s) * width, lanes, r[s]);
        }
    }
}

static void pack_columns(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    float *out = panel;
    for (int64_t k = 0; k < n; k++, source += ld, out += width) {
        memcpy(out, source, (size_t)n_cols * sizeof *out);
        if (n_cols < width) memset(out + n_cols, 0, (size_t)(width - n_cols) * sizeof *out);
    }
}

void lora_gemm_fill_avx2(lora_gemm_path *p) {
    p->mr = MR;
    p->nr = 2 * VL;
    p->kc = 256;
    p->micro = micro_avx2;
    p->pack_rows = p->pack_left_rows = pack_rows;
    p->pack_columns = pack_columns;
}
#endif
