/* The products of a few tokens for any vector width. The includer defines
 *     TARGET                      target attribute string
 *     VEC, VL, LOADU, STOREU, ZERO, MUL, ADD, FMA, SUM
 *     LOAD_PART(p, n)             the first n < VL floats, zeros behind them
 *     LOAD_BF16(p), LOAD_BF16_PART(p, n)     the same for bfloat16, widened
 *     tables, load_tables(lut, block_size)   what decoding needs, in registers
 *     decode(t, codes, bytes, w)  WIDTH = 8 vectors of values without their scales; codes beyond bytes are anything
 *     scales(t, p, k)             the scales of a group as a vector; lanes beyond element k are zero
 * The group is eight vectors. Bits: per token one accumulator; in a group the eight products in order, then the scale. */
#define GEMV_FN static LORA_TARGET(TARGET)
#define GEMV_INLINE static inline __attribute__((always_inline)) LORA_TARGET(TARGET)
#define UNROLL _Pragma("GCC unroll 8")

enum {
    WIDTH = 8,
    GROUP = WIDTH * VL,
    CHUNK = 4 * GROUP,       /* elements of a few tokens that stay in the L1 cache while the rows pass by */
    PREFETCH_BYTES = 8192,   /* ahead of a single stream of codes */
};

GEMV_INLINE void add_group(const VEC *w, VEC scale, const int m, const float *x, int64_t ldx, VEC *acc) {
    UNROLL for (int i = 0; i < m; i++) {
        const float *from = x + i * ldx;
        VEC s = MUL(w[0], LOADU(from));
        UNROLL for (int j = 1; j < WIDTH; j++) s = FMA(w[j], LOADU(from + j * VL), s);
        acc[i] = FMA(scale, s, acc[i]);
    }
}

/* Elements k0 .. k1 of row r. */
GEMV_INLINE void nf4_run(const lora_gemv_nf4 *a, const tables *t, int64_t r, int64_t k0, int64_t k1, int64_t ahead, const int m,
                         const float *x, int64_t ldx, VEC *acc) {
    const uint8_t *codes = a->codes + r * (a->k / 2);
    const float *scale = a->scales + r * (a->k / a->block_size);
    int64_t k = k0;
    VEC w[WIDTH];
    for (; k + GROUP <= k1; k += GROUP) {
        __builtin_prefetch(codes + k / 2 + ahead, 0, 3);
        decode(t, codes + k / 2, GROUP / 2, w);
        add_group(w, scales(t, scale + k / a->block_size, GROUP), m, x + k, ldx, acc);
    }
    if (k < k1) {
        decode(t, codes + k / 2, (k1 - k) / 2, w);
        add_group(w, scales(t, scale + k / a->block_size, k1 - k), m, x + k, ldx, acc);
    }
}

GEMV_INLINE void nf4_rows(const lora_gemv_nf4 *a, const int m, const float *x, int64_t ldx, float *sums) {
    const tables t = load_tables(a->lut, a->block_size);
    VEC acc[LORA_GEMV_ROWS][LORA_GEMV_TOKENS];
    int64_t chunk = m == 1 ? a->k : CHUNK, ahead = m == 1 ? PREFETCH_BYTES : a->rows * (a->k / 2);
    for (int64_t k = 0; k < a->k; k += chunk) {
        int64_t end = lora_min_i64(k + chunk, a->k);
        for (int64_t r = 0; r < a->rows; r++) {
            VEC part[LORA_GEMV_TOKENS];
            UNROLL for (int i = 0; i < m; i++) part[i] = k ? acc[r][i] : ZERO();
            nf4_run(a, &t, r, k, end, ahead, m, x, ldx, part);
            UNROLL for (int i = 0; i < m; i++) acc[r][i] = part[i];
        }
    }
    for (int64_t r = 0; r < a->rows; r++)
        UNROLL for (int i = 0; i < m; i++) sums[r * m + i] = SUM(acc[r][i]);
}

GEMV_FN void nf4(const lora_gemv_nf4 *a, int64_t m, const float *x, int64_t ldx, float *sums) {
    switch (m) {
    case 1: nf4_rows(a, 1, x, ldx, sums); break;
    case 2: nf4_rows(a, 2, x, ldx, sums); break;
    case 3: nf4_rows(a, 3, x, ldx, sums); break;
    default: nf4_rows(a, 4, x, ldx, sums); break;
    }
}

/* Dense rows: two accumulators per token, even and odd vectors. */
#define DENSE_ROWS(NAME, TYPE, LOAD, PART)                                                                                  \
    GEMV_INLINE void NAME##_rows(int64_t rows, int64_t k, const TYPE *w, int64_t ldw, const int m, const float *x, int64_t ldx, \
                                 float *sums) {                                                                             \
        for (int64_t r = 0; r < rows; r++, w += ldw, sums += m) {                                                           \
            VEC even[LORA_GEMV_TOKENS], odd[LORA_GEMV_TOKENS];                                                              \
            UNROLL for (int i = 0; i < m; i++) even[i] = odd[i] = ZERO();                                                   \
            int64_t e = 0;                                                                                                  \
            for (; e + 2 * VL <= k; e += 2 * VL) {                                                                          \
                __builtin_prefetch((const char *)(w + e) + PREFETCH_BYTES, 0, 3);                                           \
                VEC w0 = LOAD(w + e), w1 = LOAD(w + e + VL);                                                                \
                UNROLL for (int i = 0; i < m; i++) {                                                                        \
                    even[i] = FMA(w0, LOADU(x + i * ldx + e), even[i]);                                                     \
                    odd[i] = FMA(w1, LOADU(x + i * ldx + e + VL), odd[i]);                                                  \
                }                                                                                                           \
            }                                                                                                               \
            for (; e < k; e += VL) {                                                                                        \
                int64_t n = k - e;                                                                                          \
                VEC w0 = n < VL ? PART(w + e, n) : LOAD(w + e);                                                             \
                UNROLL for (int i = 0; i < m; i++) {                                                                        \
                    const float *from = x + i * ldx + e;                                                                    \
                    even[i] = FMA(w0, n < VL ? LOAD_PART(from, n) : LOADU(from), even[i]);                                  \
                }                                                                                                           \
            }                                                                                                               \
            UNROLL for (int i = 0; i < m; i++) sums[i] = SUM(ADD(even[i], odd[i]));                                         \
        }                                                                                                                   \
    }                                                                                                                       \
    GEMV_FN void NAME(int64_t rows, int64_t k, const TYPE *w, int64_t ldw, int64_t m, const float *x, int64_t ldx, float *sums) { \
        switch (m) {                                                                                                        \
        case 1: NAME##_rows(rows, k, w, ldw, 1, x, ldx, sums); break;                                                       \
        case 2: NAME##_rows(rows, k, w, ldw, 2, x, ldx, sums); break;                                                       \
        case 3: NAME##_rows(rows, k, w, ldw, 3, x, ldx, sums); break;                                                       \
        default: NAME##_rows(rows, k, w, ldw, 4, x, ldx, sums); break;                                                      \
        }                                                                                                                   \
    }

DENSE_ROWS(f32, float, LOADU, LOAD_PART)
DENSE_ROWS(bf16, uint16_t, LOAD_BF16, LOAD_BF16_PART)
