/* What the checks of kernels and operations share: random inputs, comparisons, refusals, and a hash that compares whole runs
 * bit by bit. */
#ifndef LORA_TESTS_CHECK_OPS_H
#define LORA_TESTS_CHECK_OPS_H

#include <stdlib.h>
#include <string.h>

#include "lora_c/ops/ctx.h"
#include "tests/c/check.h"

#define U 0x1p-24 /* half a unit in the last place of a float32 */

/* OK(call(…, ERR)): the call succeeds. REFUSED(LORA_EINVAL, "x: expected", call(…, ERR)): it fails with that text. */
#define ERR &e_
#define OK(call)                                                                                                                           \
    do {                                                                                                                                   \
        lora_error e_ = {0};                                                                                                               \
        lora_status s_ = (call);                                                                                                           \
        CHECK(s_ == LORA_OK, "%s: %s", #call, e_.message);                                                                                 \
    } while (0)
#define REFUSED(status, text, call)                                                                                                        \
    do {                                                                                                                                   \
        lora_error e_ = {0};                                                                                                               \
        lora_status s_ = (call);                                                                                                           \
        CHECK(s_ == (status), "%s: status %d", #call, (int)s_);                                                                            \
        CHECK(strstr(e_.message, text) != NULL, "message without \"%s\": %s", text, e_.message);                                           \
    } while (0)

/* Random numbers, the same ones after each restart; the program restarts them before each family. */
void restart_random(void);
uint32_t random_word(void);
float uniform(float low, float high);
/* Arrays to be freed, one element longer than n. */
float *random_floats(int64_t n, float low, float high);
float *copy_floats(const float *a, int64_t n);

/* |got - want| <= bound. */
void close_to(const char *what, double got, double want, double bound);
/* No element of n is off by more than tolerance times the largest of want. */
void arrays_close(const char *what, const lora_ctx *ctx, const float *got, const double *want, int64_t n, double tolerance);

/* A run: begin_run restarts the random numbers, mix takes each result, hash_of_run compares runs bit by bit. */
void begin_run(void);
void mix(const void *p, size_t bytes);
uint64_t hash_of_run(void);

/* With LORA_C_CHECK_HASHES in the environment hashes are told: every compiler must make the same (tests/compilers). Their label is
 * that of nothing else in the family: rung, precision, operands of fast products (float32 where exact; in int8 those of the
 * products beside them) and what. */
bool hashes_are_told(void);
void tell_hash(const char *what, const lora_ctx *ctx, uint64_t of_run);

/* run gives a hash of its results: the same for any number of threads, on every rung and with every arithmetic it has. */
void check_every_path(uint64_t (*run)(lora_ctx *ctx, lora_gemm_arithmetic path));

#endif
