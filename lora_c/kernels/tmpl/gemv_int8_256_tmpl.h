/* The int8 product of a few tokens with 8 rows of 4-bit weights at a time, in vectors of 32 bytes: lanes of the rows are added as a tree
 * until a row is a lane, as in gemv_int8_vnni.c. The includer defines, and this undefines
 *     SUFFIX, TARGET           name ending, target attribute string
 *     OFFSET                   of the integers of the table
 *     CORRECTION(token)        what the sum of a block begins with
 *     MULTIPLY_ADD(w, x, c)    c + sums of four products
 * and before that ROWS, BLOCK, MOST_TOKENS. */
#define LORA_CAT2(a, b) a##b
#define LORA_CAT(a, b) LORA_CAT2(a, b)
#define NAME(x) LORA_CAT(x, SUFFIX)
#define UNROLL LORA_UNROLL_BY(8)
#define TARGET_INLINE static inline __attribute__((always_inline)) LORA_TARGET(TARGET)

/* Sums of pairs of words: of a in the words 0, 1, 4, 5, of b in 2, 3, 6, 7. */
TARGET_INLINE __m256i NAME(add_pairs)(__m256i a, __m256i b) {
    __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd)));
}

/* Word j: what v[j] sums up to. */
TARGET_INLINE __m256i NAME(add_lanes)(const __m256i v[ROWS]) {
    __m256i a = NAME(add_pairs)(NAME(add_pairs)(v[0], v[1]), NAME(add_pairs)(v[2], v[3]));
    __m256i b = NAME(add_pairs)(NAME(add_pairs)(v[4], v[5]), NAME(add_pairs)(v[6], v[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* One block of ROWS rows with m tokens; rows from n_rows on are the last one again. */
TARGET_INLINE void NAME(multiply_block)(const lora_nf4 *w, __m256i table, float unit, int64_t row, int64_t n_rows, int64_t k, const int m,
                                        const char *x, int64_t stride, __m256 *acc) {
    const __m256i nibble = _mm256_set1_epi8(15);
    float scales[ROWS]; /* divisors are powers of two */
    const int shift = __builtin_ctzll((uint64_t)w->block_size), nested = w->absmax ? 0 : __builtin_ctzll((uint64_t)w->nested_block_size);
    __m256i c[MOST_TOKENS][ROWS];
    UNROLL for (int j = 0; j < ROWS; j++) {
        const int64_t at = (row + lora_min_i64(j, n_rows - 1)) * w->cols + k;
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(w->codes + at / 2));
        __m256i even = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
        __m256i odd = _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble));
        const int64_t block = at >> shift;
        if (w->absmax) {
            scales[j] = w->absmax[block] * unit;
        } else { /* the product is rounded before the sum, as in lora_nf4_absmax */
            float product = w->nested_map[w->absmax_codes[block]] * w->nested_absmax[block >> nested];
            scales[j] = (product + w->nested_offset) * unit;
        }
        UNROLL for (int i = 0; i < m; i++) {
            const lora_int8_token *token = lora_int8_token_at(x, stride, i);
            __m256i xe = _mm256_load_si256((const __m256i *)(const void *)token->even);
            __m256i xo = _mm256_load_si256((const __m256i *)(const void *)token->odd);
            c[i][j] = MULTIPLY_ADD(odd, xo, MULTIPLY_ADD(even, xe, _mm256_setzero_si256()));
        }
    }
    UNROLL for (int i = 0; i < m; i++) {
        const lora_int8_token *token = lora_int8_token_at(x, stride, i);
        __m256i sum = _mm256_add_epi32(NAME(add_lanes)(c[i]), _mm256_set1_epi32(CORRECTION(token)));
        acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(_mm256_set1_ps(token->scale), _mm256_loadu_ps(scales)), acc[i]);
    }
}

static LORA_TARGET(TARGET) __m256i NAME(table_of)(const float *lut, float *unit) {
    int8_t bytes[16];
    const float top = lora_int8_largest_entry(lut), levels = lora_int8_table_levels(lut);
    for (int i = 0; i < 16; i++) bytes[i] = (int8_t)(_mm_cvtss_si32(_mm_set_ss(lut[i] * (levels / top))) + OFFSET);
    *unit = top / levels;
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)bytes));
}

TARGET_INLINE void NAME(tokens_of)(const lora_nf4 *w, int64_t row, int64_t rows, const int m, const char *x, int64_t stride, float *sums) {
    float unit;
    const __m256i table = NAME(table_of)(w->lut, &unit);
    for (int64_t r0 = 0; r0 < rows; r0 += ROWS) {
        const int64_t here = lora_min_i64(ROWS, rows - r0);
        __m256 acc[MOST_TOKENS];
        UNROLL for (int i = 0; i < m; i++) acc[i] = _mm256_setzero_ps();
        for (int64_t k = 0; k < w->cols; k += BLOCK)
            NAME(multiply_block)(w, table, unit, row + r0, here, k, m, x + k / BLOCK * (int64_t)sizeof(lora_int8_token), stride, acc);
        UNROLL for (int i = 0; i < m; i++) {
            float of_rows[ROWS];
            _mm256_storeu_ps(of_rows, acc[i]);
            for (int64_t r = 0; r < here; r++) sums[(r0 + r) * m + i] = of_rows[r];
        }
    }
}

static LORA_TARGET(TARGET) void NAME(nf4)(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride,
                                          float *scales, float *sums) {
    (void)scales;
    switch (m) {
    case 1: NAME(tokens_of)(w, row, rows, 1, x, stride, sums); break;
    case 2: NAME(tokens_of)(w, row, rows, 2, x, stride, sums); break;
    case 3: NAME(tokens_of)(w, row, rows, 3, x, stride, sums); break;
    default: NAME(tokens_of)(w, row, rows, 4, x, stride, sums); break;
    }
}

#undef LORA_CAT2
#undef LORA_CAT
#undef NAME
#undef UNROLL
#undef TARGET_INLINE
#undef SUFFIX
#undef TARGET
#undef OFFSET
#undef CORRECTION
#undef MULTIPLY_ADD
