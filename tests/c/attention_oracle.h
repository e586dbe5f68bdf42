/* Attention of one segment in float64 by plain loops, with the error that an implementation with float32 sums may make. */
#ifndef TESTS_ATTENTION_ORACLE_H
#define TESTS_ATTENTION_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

/* T queries after past cached keys. Arrays are dense: q, o, dout, dq (T, H, D); k, v, dk, dv (past + T, KV, D);
 * lse (T, H). tol_*: the bound of each element's error; per (row, head) for dq, o and lse, per (key, head) else. */
typedef struct attention_oracle {
    int64_t T, past, H, KV, D, window;
    double scale, softcap; /* softcap 0: none; set after create */
    double operand;        /* relative error of the operands of a product in the implementation, 0: none; set after create */
    bool bf16;             /* rounds those operands here too: what bfloat16 costs; set after create */
    double *q, *k, *v, *dout;
    double *o, *lse, *dq, *dk, *dv;
    double *tol_o, *tol_lse, *tol_dq, *tol_dk, *tol_dv;
} attention_oracle;

void attention_oracle_create(attention_oracle *a, int64_t T, int64_t past, int64_t H, int64_t KV, int64_t D, int64_t window, double scale);
void attention_oracle_destroy(attention_oracle *a);
void attention_oracle_forward(attention_oracle *a);  /* o, lse, tol_o, tol_lse */
void attention_oracle_backward(attention_oracle *a); /* after forward */

#endif
