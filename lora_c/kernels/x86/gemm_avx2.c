#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemm_kernels.h"

#define SUFFIX _avx2
#define TARGET "avx2,fma"
#define VEC __m256
#define VL 8
#define MR 6
#define LOAD _mm256_load_ps
#define STORE _mm256_store_ps
#define ZERO _mm256_setzero_ps
#define BROADCAST _mm256_broadcast_ss
#define FMA _mm256_fmadd_ps
#define ADD _mm256_add_ps

#include "lora_c/kernels/tmpl/gemm_tmpl.h"

/* Eight rows at a time through an 8x8 transpose in registers. */
static LORA_TARGET("avx2,fma") void transpose_8x8(const float *const *rows, int64_t k, float *out, int64_t ld) {
    __m256 r[8], t[8];
    UNROLL for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(rows[i] + k);
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
        _mm256_storeu_ps(out + i * ld, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * ld, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

static LORA_TARGET("avx2,fma") void transpose(const float *const *rows, int64_t n_rows, int64_t n, float *out, int64_t ld) {
    int64_t r = 0;
    for (; r + 8 <= n_rows; r += 8) {
        int64_t k = 0;
        for (; k + 8 <= n; k += 8) transpose_8x8(rows + r, k, out + k * ld + r, ld);
        for (; k < n; k++)
            for (int64_t i = 0; i < 8; i++) out[k * ld + r + i] = rows[r + i][k];
    }
    for (; r < n_rows; r++)
        for (int64_t k = 0; k < n; k++) out[k * ld + r] = rows[r][k];
}

void lora_gemm_fill_avx2(lora_gemm_kernels *k) {
    k->mr = MR;
    k->nr = NR;
    k->kc = 256;
    k->nc = 128;
    k->micro = micro_avx2;
    k->transpose = transpose;
}
#endif
