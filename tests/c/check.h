/* A small harness: checks that count, deterministic inputs, and outputs between guard bands. */
#ifndef LORA_TESTS_CHECK_H
#define LORA_TESTS_CHECK_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lora_c/base/cpuinfo.h"
#include "lora_c/lora_c.h"

void check_report(bool ok, const char *file, int line, const char *condition, const char *fmt, ...) __attribute__((format(printf, 5, 6)));

#define CHECK(cond, ...) check_report((cond), __FILE__, __LINE__, #cond, __VA_ARGS__)

/* Every rung that this machine has: FOR_EACH_ISA(isa) { … } */
#define FOR_EACH_ISA(isa) for (lora_isa isa = LORA_ISA_REF; isa <= lora_cpu_best_isa(); isa = (lora_isa)(isa + 1))

/* The larger of two differences. A NaN is the largest and stays, where fmax would leave it out. */
static inline double worse(double worst, double off) { return isnan(off) || off > worst ? off : worst; }

/* fmax, whose loops end GCC 12 for aarch64 with an internal error (vect_transform_reduction). */
static inline double larger(double a, double b) { return b > a || isnan(a) ? b : a; }

/* With LORA_C_CHECK_EMULATED in the environment an emulator runs the program: it asks for no speed, and families that would take
 * many minutes take fewer samples of each kind. */
bool is_emulated(void);

/* n floats from N(0, scale), a function of seed and index. */
void check_normal(float *out, int64_t n, uint64_t seed, float scale);

/* n floats at a chosen misalignment, with NaN bands on both sides; guards_ok says whether the bands are untouched. */
typedef struct guarded {
    float *data;
    void *memory;
    int64_t n;
} guarded;
guarded guarded_new(int64_t n, int offset_floats);
bool guarded_ok(const guarded *g);
void guarded_free(guarded *g);

lora_ctx *check_ctx(lora_isa isa, int threads); /* ends the program when it cannot be made */

#endif
