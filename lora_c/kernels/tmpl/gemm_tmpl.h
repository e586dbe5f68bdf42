/* The micro-kernel for any vector width and for operands of one word per step. The includer defines
 *     SUFFIX, TARGET      name ending, target attribute string
 *     VEC, VL             accumulator vector and its words
 *     WORD, LOAD_B, BROADCAST, MULTIPLY_ADD(a, b, c)    operands
 *     ZERO, and LOAD, STORE, ADD or FINISH(c, i, j, tile, accumulate)    accumulators
 *     STEPS_PER_CALL      of one instance, 0: all. Scales of [rows up to 16] and of [columns] words follow so many steps
 *     MR                  rows of the largest register tile, which is two vectors wide
 * MR * 2 accumulators, two B vectors and one broadcast must fit the register file: 6 rows of 16 with 16 registers,
 * 14 rows of 32 with 32. Rows and vectors are constants in each instance so that the accumulators stay in registers;
 * tests/lint/lint_spills.py looks. */
#define LORA_CAT2(a, b) a##b
#define LORA_CAT(a, b) LORA_CAT2(a, b)
#define NAME(x) LORA_CAT(x, SUFFIX)
#define UNROLL LORA_UNROLL_BY(32)
#ifndef FINISH
#define STEPS_PER_CALL 0
#define FINISH(c, i, j, tile, accumulate) STORE(tile, accumulate ? ADD(c, LOAD(tile)) : c)
#endif

/* The empty instruction keeps the compiler from working out all the rows' addresses first, which would not fit registers. */
#define WRITE_ROWS(accumulate)                                                                                                             \
    UNROLL for (int i = 0; i < rows; i++, tile += ld) {                                                                                    \
        __asm__("" : "+r"(tile));                                                                                                          \
        UNROLL for (int j = 0; j < vectors; j++) FINISH(c[i][j], i, j, tile + j * VL, accumulate);                                         \
    }

static inline __attribute__((always_inline)) LORA_TARGET(TARGET) void NAME(tile)(const int rows, const int vectors, int64_t steps,
                                                                                 const WORD *a, const WORD *b, float *tile, int64_t ld,
                                                                                 bool accumulate) {
    VEC c[MR][2];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) c[i][j] = ZERO();
    do { /* steps >= 1 */
        __typeof__(LOAD_B(b)) v[2];
        UNROLL for (int j = 0; j < vectors; j++) {
            __builtin_prefetch(b + 8 * vectors * VL + j * VL, 0, 3);
            v[j] = LOAD_B(b + j * VL);
        }
        UNROLL for (int i = 0; i < rows; i++) {
            __typeof__(LOAD_B(b)) x = BROADCAST(a + i);
            UNROLL for (int j = 0; j < vectors; j++) c[i][j] = MULTIPLY_ADD(x, v[j], c[i][j]);
        }
        a += rows;
        b += vectors * VL;
    } while (--steps > 0);
    if (accumulate) {
        WRITE_ROWS(true)
    } else {
        WRITE_ROWS(false)
    }
}

#define INSTANCE(rows, vectors)                                                                                                            \
    static LORA_TARGET(TARGET) void NAME(micro_##rows##x##vectors)(int64_t steps, const WORD *a, const WORD *b, float *tile, int64_t ld,   \
                                                                   bool accumulate) {                                                      \
        NAME(tile)(rows, vectors, steps, a, b, tile, ld, accumulate);                                                                      \
    }
#define EACH(rows) INSTANCE(rows, 1) INSTANCE(rows, 2)
#define ENTRY(rows) {NAME(micro_##rows##x1), NAME(micro_##rows##x2)},
#if MR == 14
#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#else
#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif
ALL_ROWS(EACH)

static void NAME(micro)(int64_t mr, int64_t nr, int64_t steps, const void *a_panel, const void *b_panel, float *tile, int64_t ld,
                        bool accumulate) {
    static void (*const instances[MR][2])(int64_t, const WORD *, const WORD *, float *, int64_t, bool) = {ALL_ROWS(ENTRY)};
    const WORD *a = a_panel, *b = b_panel;
    int64_t most = STEPS_PER_CALL ? STEPS_PER_CALL : steps;
    for (; steps > 0; steps -= most, accumulate = true) {
        int64_t n = lora_min_i64(most, steps);
        instances[mr - 1][nr / VL - 1](n, a, b, tile, ld, accumulate);
        a += n * mr + LORA_GEMM_MAX_MR;
        b += n * nr + nr;
    }
}
