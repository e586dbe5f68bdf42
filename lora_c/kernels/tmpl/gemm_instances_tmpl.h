/* One function for each size of a register tile, and the entry that chooses. The includer has NAME (gemm_names.h), VL, MR, WORD,
 * STEPS_PER_CALL and
 *     RUNG                                                            as in gemv_tmpl.h
 *     NAME(tile)(rows, vectors, steps, a, b, tile, ld, accumulate)    inlined: rows and vectors are constants */
#define INSTANCE(rows, vectors)                                                                                                            \
    static RUNG void NAME(micro_##rows##x##vectors)(int64_t steps, const WORD *a, const WORD *b, float *tile, int64_t ld,                  \
                                                    bool accumulate) {                                                                     \
        NAME(tile)(rows, vectors, steps, a, b, tile, ld, accumulate);                                                                      \
    }
#define EACH(rows) INSTANCE(rows, 1) INSTANCE(rows, 2)
#define ENTRY(rows) {NAME(micro_##rows##x1), NAME(micro_##rows##x2)},
#if MR == 14
#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#elif MR == 12
#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
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
