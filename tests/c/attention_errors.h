/* The error of attention with bfloat16 operands beside that of a float64 computation whose operands are rounded to bfloat16. */
#ifndef TESTS_ATTENTION_ERRORS_H
#define TESTS_ATTENTION_ERRORS_H

#include "tests/c/attention_batch.h"

/* Of a batch that has run: neither o nor a gradient is further from the truth than that computation, but for the luck of roundings. */
void attention_errors_check(const attention_batch *b, const char *what);

#endif
