/* The int8 micro-kernel with vectors of 8 columns, for tiles of any size. The includer defines, and this undefines
 *     SUFFIX, TARGET                      name ending, target attribute string
 *     ROWS                                that work at once: ROWS * 2 accumulators fit the 16 registers
 *     LOAD_RIGHT(p), BEGIN(correction)    a vector of B; what the sum of a block begins with
 *     MULTIPLY_ADD(b, a, c)               c + sums of four products
 * and before that VL, STEPS. */
#define LORA_CAT2(a, b) a##b
#define LORA_CAT(a, b) LORA_CAT2(a, b)
#define NAME(x) LORA_CAT(x, SUFFIX)
#define UNROLL LORA_UNROLL_BY(8)

/* One block: rows of a panel of A that is width words wide, vectors of one of B that is nr wide. */
static inline __attribute__((always_inline)) LORA_TARGET(TARGET) void NAME(multiply_block)(const int rows, const int vectors, int64_t width,
                                                                                           int64_t nr, const uint32_t *a, const uint32_t *b,
                                                                                           float *tile, int64_t ld) {
    const int32_t *corrections = (const int32_t *)a + STEPS * width + LORA_INT8_TERMS;
    (void)corrections;
    __m256i c[ROWS][2];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) c[i][j] = BEGIN(corrections[i]);
    for (int64_t s = 0; s < STEPS; s++, a += width, b += nr) {
        __m256i v[2];
        UNROLL for (int j = 0; j < vectors; j++) v[j] = LOAD_RIGHT(b + j * VL);
        UNROLL for (int i = 0; i < rows; i++) {
            __m256i x = _mm256_set1_epi32((int)a[i]);
            UNROLL for (int j = 0; j < vectors; j++) c[i][j] = MULTIPLY_ADD(v[j], x, c[i][j]);
        }
    }
    const float *a_scales = (const float *)a, *b_scales = (const float *)b;
    UNROLL for (int i = 0; i < rows; i++, tile += ld) UNROLL for (int j = 0; j < vectors; j++) {
        __m256 scale = _mm256_mul_ps(_mm256_set1_ps(a_scales[i]), _mm256_load_ps(b_scales + j * VL));
        _mm256_storeu_ps(tile + j * VL, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c[i][j]), scale, _mm256_loadu_ps(tile + j * VL)));
    }
}

static LORA_TARGET(TARGET) void NAME(multiply_pair)(int64_t n_rows, int64_t width, int64_t nr, const uint32_t *a, const uint32_t *b,
                                                    float *tile, int64_t ld) {
    int64_t i = 0;
    for (; i + ROWS <= n_rows; i += ROWS) NAME(multiply_block)(ROWS, 2, width, nr, a + i, b, tile + i * ld, ld);
    for (; i < n_rows; i++) NAME(multiply_block)(1, 2, width, nr, a + i, b, tile + i * ld, ld);
}

static LORA_TARGET(TARGET) void NAME(multiply_one)(int64_t n_rows, int64_t width, int64_t nr, const uint32_t *a, const uint32_t *b,
                                                   float *tile, int64_t ld) {
    for (int64_t i = 0; i < n_rows; i++) NAME(multiply_block)(1, 1, width, nr, a + i, b, tile + i * ld, ld);
}

static void NAME(micro)(int64_t mr, int64_t nr, int64_t steps, const void *a_panel, const void *b_panel, float *tile, int64_t ld,
                        bool accumulate) {
    const uint32_t *a = a_panel, *b = b_panel;
    for (int64_t i = 0; i < mr && !accumulate; i++) memset(tile + i * ld, 0, (size_t)nr * sizeof *tile);
    for (; steps > 0; steps -= STEPS, a += lora_int8_left_words(mr), b += lora_int8_right_words(nr)) {
        int64_t j = 0;
        for (; j + 2 * VL <= nr; j += 2 * VL) NAME(multiply_pair)(mr, mr, nr, a, b + j, tile + j, ld);
        if (j < nr) NAME(multiply_one)(mr, mr, nr, a, b + j, tile + j, ld);
    }
}

#undef LORA_CAT2
#undef LORA_CAT
#undef NAME
#undef UNROLL
#undef SUFFIX
#undef TARGET
#undef ROWS
#undef LOAD_RIGHT
#undef BEGIN
#undef MULTIPLY_ADD
