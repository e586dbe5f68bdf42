/* The products of a few tokens for any vector width. The includer defines
 *     RUNG                        what stands before each function: LORA_TARGET(…), or nothing where the compiler has the rung unasked
 *     VEC, VL, LOADU, ZERO, MUL, ADD, FMA, SUM
 *     LOAD_PART(p, n)             the first n < VL floats, zeros behind them
 *     LOAD_BF16(p), LOAD_BF16_PART(p, n)     the same for bfloat16, widened
 *     tables, load_tables(lut, block_size)   what decoding needs, in registers
 *     decode(t, codes, bytes, w)  WIDTH = 8 vectors of values without their scales; codes beyond bytes are anything
 *     scales(t, p, k)             the scales of a group as a vector; lanes beyond element k are zero
 * The group is eight vectors. Bits: per token one accumulator; in a group the eight products in order, then the scale. */
#define GEMV_FN static RUNG
#define GEMV_INLINE static inline __attribute__((always_inline)) RUNG
#define UNROLL LORA_UNROLL_BY(8)

#include "lora_c/kernels/tmpl/nf4_row_scales.h"

enum {
    TOKENS = 4, /* eight vectors of decoded values and four accumulators fill 16 registers */
    WIDTH = 8,
    GROUP = WIDTH * VL,
    CHUNK = 4 * GROUP,     /* elements of a few tokens that stay in the L1 cache while the rows pass by */
    PREFETCH_BYTES = 8192, /* ahead of a single stream of codes */
};

GEMV_INLINE void add_group(const VEC *w, VEC scale, const int m, const float *x, int64_t ldx, VEC *acc) {
    UNROLL for (int i = 0; i < m; i++) {
        const float *from = x + i * ldx;
        VEC s = MUL(w[0], LOADU(from));
        UNROLL for (int j = 1; j < WIDTH; j++) s = FMA(w[j], LOADU(from + j * VL), s);
        acc[i] = FMA(scale, s, acc[i]);
    }
}

/* Elements k0 .. k1 of a row. */
GEMV_INLINE void nf4_run(const tables *t, const uint8_t *codes, const float *scale, int log_block, int64_t k0, int64_t k1, int64_t ahead,
                         const int m, const float *x, int64_t ldx, VEC *acc) {
    int64_t k = k0;
    VEC w[WIDTH];
    for (; k + GROUP <= k1; k += GROUP) {
        __builtin_prefetch(codes + k / 2 + ahead, 0, 3);
        decode(t, codes + k / 2, GROUP / 2, w);
        add_group(w, scales(t, scale + (k >> log_block), GROUP), m, x + k, ldx, acc);
    }
    if (k < k1) {
        decode(t, codes + k / 2, (k1 - k) / 2, w);
        add_group(w, scales(t, scale + (k >> log_block), k1 - k), m, x + k, ldx, acc);
    }
}

/* One token: a single stream of codes, each row from begin to end. */
GEMV_FN void nf4_one(const lora_nf4 *a, int64_t row, int64_t rows, const float *x, float *scale, float *sums, int64_t ld) {
    const tables t = load_tables(a->lut, a->block_size);
    int log_block = __builtin_ctzll((uint64_t)a->block_size);
    int64_t k = a->cols, blocks = k >> log_block;
    for (int64_t r = row; r < row + rows; r++) {
        VEC acc[1] = {ZERO()};
        row_scales(a, r * blocks, blocks, scale);
        nf4_run(&t, a->codes + r * (k / 2), scale, log_block, 0, k, PREFETCH_BYTES, 1, x, 0, acc);
        sums[(r - row) * ld] = SUM(acc[0]);
    }
}

/* Several tokens: all the rows pass by a chunk of the tokens that stays in the L1 cache. */
GEMV_INLINE void nf4_several(const lora_nf4 *a, int64_t row, int64_t rows, const int m, const float *x, int64_t ldx, float *scale,
                             float *sums, int64_t ld) {
    const tables t = load_tables(a->lut, a->block_size);
    int log_block = __builtin_ctzll((uint64_t)a->block_size);
    int64_t blocks = a->cols >> log_block, code_bytes = a->cols / 2;
    VEC acc[LORA_GEMV_ROWS][TOKENS];
    row_scales(a, row * blocks, rows * blocks, scale);
    for (int64_t k = 0; k < a->cols; k += CHUNK) {
        int64_t end = lora_min_i64(k + CHUNK, a->cols);
        for (int64_t r = 0; r < rows; r++) {
            VEC part[TOKENS];
            UNROLL for (int i = 0; i < m; i++) part[i] = k ? acc[r][i] : ZERO();
            nf4_run(&t, a->codes + (row + r) * code_bytes, scale + r * blocks, log_block, k, end, rows * code_bytes, m, x, ldx, part);
            UNROLL for (int i = 0; i < m; i++) acc[r][i] = part[i];
        }
    }
    for (int64_t r = 0; r < rows; r++) UNROLL for (int i = 0; i < m; i++) sums[r * ld + i] = SUM(acc[r][i]);
}

/* call(n) with n = m as a constant */
#define FOR_TOKENS(m, call)                                                                                                                \
    switch (m) {                                                                                                                           \
    case 1: call(1); break;                                                                                                                \
    case 2: call(2); break;                                                                                                                \
    case 3: call(3); break;                                                                                                                \
    default: call(4); break;                                                                                                               \
    }

GEMV_FN void nf4(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *tokens, int64_t stride, float *scale, float *sums) {
    int64_t ldx = stride / (int64_t)sizeof(float);
    for (int64_t i = 0; i < m; i += TOKENS) {
        const float *x = (const float *)tokens + i * ldx;
        if (m - i == 1) {
            nf4_one(w, row, rows, x, scale, sums + i, m);
            return;
        }
#define CALL(n) nf4_several(w, row, rows, n, x, ldx, scale, sums + i, m)
        FOR_TOKENS(m - i, CALL)
#undef CALL
    }
}

/* --- dense rows: two accumulators per token, even and odd vectors --- */

/* The n <= VL elements from w[i] on as a vector. */
typedef VEC (*load_elements)(const void *w, int64_t i, int64_t n);

GEMV_INLINE VEC load_f32(const void *w, int64_t i, int64_t n) {
    const float *p = (const float *)w + i;
    return n < VL ? LOAD_PART(p, n) : LOADU(p);
}

GEMV_INLINE VEC load_bf16(const void *w, int64_t i, int64_t n) {
    const uint16_t *p = (const uint16_t *)w + i;
    return n < VL ? LOAD_BF16_PART(p, n) : LOAD_BF16(p);
}

/* Elements k0 .. k1 of the row that begins at w[0]. */
GEMV_INLINE void dense_run(load_elements load, const void *w, int64_t k0, int64_t k1, const int m, const float *x, int64_t ldx, VEC *even,
                           VEC *odd) {
    int64_t k = k0;
    for (; k + 2 * VL <= k1; k += 2 * VL) {
        VEC w0 = load(w, k, VL), w1 = load(w, k + VL, VL);
        UNROLL for (int i = 0; i < m; i++) {
            even[i] = FMA(w0, LOADU(x + i * ldx + k), even[i]);
            odd[i] = FMA(w1, LOADU(x + i * ldx + k + VL), odd[i]);
        }
    }
    for (; k < k1; k += VL) {
        VEC w0 = load(w, k, k1 - k);
        UNROLL for (int i = 0; i < m; i++) even[i] = FMA(w0, load_f32(x + i * ldx, k, k1 - k), even[i]);
    }
}

GEMV_INLINE void dense(load_elements load, size_t element, int64_t rows, int64_t k, const void *w, int64_t ldw, const int m, const float *x,
                       int64_t ldx, float *sums, int64_t ld) {
    VEC acc[LORA_GEMV_ROWS][2][TOKENS];
    int64_t chunk = m == 1 ? k : CHUNK;
    for (int64_t k0 = 0; k0 < k; k0 += chunk)
        for (int64_t r = 0; r < rows; r++) {
            VEC even[TOKENS], odd[TOKENS];
            UNROLL for (int i = 0; i < m; i++) {
                even[i] = k0 ? acc[r][0][i] : ZERO();
                odd[i] = k0 ? acc[r][1][i] : ZERO();
            }
            const char *row = (const char *)w + (size_t)(r * ldw) * element;
            dense_run(load, row, k0, lora_min_i64(k0 + chunk, k), m, x, ldx, even, odd);
            UNROLL for (int i = 0; i < m; i++) {
                acc[r][0][i] = even[i];
                acc[r][1][i] = odd[i];
            }
        }
    for (int64_t r = 0; r < rows; r++) UNROLL for (int i = 0; i < m; i++) sums[r * ld + i] = SUM(ADD(acc[r][0][i], acc[r][1][i]));
}

GEMV_FN void f32(int64_t rows, int64_t k, const float *w, int64_t ldw, int64_t m, const float *x, int64_t stride, float *sums) {
    int64_t ldx = stride / (int64_t)sizeof *x;
#define CALL(n) dense(load_f32, sizeof *w, rows, k, w, ldw, n, x + i * ldx, ldx, sums + i, m)
    for (int64_t i = 0; i < m; i += TOKENS) FOR_TOKENS(m - i, CALL)
#undef CALL
}

GEMV_FN void bf16(int64_t rows, int64_t k, const uint16_t *w, int64_t ldw, int64_t m, const void *tokens, int64_t stride, float *sums) {
    const float *x = tokens;
    int64_t ldx = stride / (int64_t)sizeof *x;
#define CALL(n) dense(load_bf16, sizeof *w, rows, k, w, ldw, n, x + i * ldx, ldx, sums + i, m)
    for (int64_t i = 0; i < m; i += TOKENS) FOR_TOKENS(m - i, CALL)
#undef CALL
}
