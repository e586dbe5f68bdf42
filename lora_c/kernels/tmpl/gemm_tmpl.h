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
#include "lora_c/kernels/tmpl/gemm_names.h"

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

#define RUNG LORA_TARGET(TARGET)
#include "lora_c/kernels/tmpl/gemm_instances_tmpl.h"
