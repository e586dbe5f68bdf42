/* Where the time of a pass goes: what each operation cost since profiling was switched on, and the machine's own peak to
 * compare with. Costs nothing but a test per operation while it is off. */
#ifndef LORA_C_PROFILE_H
#define LORA_C_PROFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "lora_c/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Operations that do not contain each other, so that their times add up. */
typedef enum lora_op {
    LORA_OP_LINEAR_FORWARD,   /* x W^T and the adapter's update, one sum */
    LORA_OP_LINEAR_BACKWARD,  /* dx: dy W and the adapter's part of it */
    LORA_OP_ADAPTER_GRADIENT, /* dA and dB, dropout included */
    LORA_OP_WEIGHT_GRADIENT,  /* dy^T x, full training */
    LORA_OP_ATTENTION_FORWARD,
    LORA_OP_ATTENTION_BACKWARD,
    LORA_OP_HEAD_AND_LOSS, /* logits, cross entropy and their gradients */
    LORA_OP_NORM_FORWARD,
    LORA_OP_NORM_BACKWARD,
    LORA_OP_ROPE,
    LORA_OP_ACTIVATION_FORWARD, /* between the projections of the MLP */
    LORA_OP_ACTIVATION_BACKWARD,
    LORA_OP_EMBEDDING,
    LORA_OP_OPTIMIZER, /* AdamW and the norm of the gradient */
    LORA_OPS,
} lora_op;

typedef struct lora_op_cost {
    int64_t calls;
    double seconds; /* wall clock, all threads together */
    double flops;   /* useful ones: 2 M N K for a product, the causal half of attention; 0 for elementwise operations */
    double bytes;   /* operands read once and results written once (twice where added to), weights as they are stored */
} lora_op_cost;

const char *lora_op_name(lora_op op); /* "linear forward", … */

/** Switches profiling on, with every cost at 0, or off; the costs stay readable. */
void lora_ctx_set_profiling(lora_ctx *ctx, bool on);
lora_op_cost lora_ctx_op_cost(const lora_ctx *ctx, lora_op op);

/** float32 multiply-adds of every thread together, in flop/s: independent ones in registers on the rung in use, the best
 *  of several short runs. 0 where no such loop exists for the rung. */
double lora_ctx_fma_peak(lora_ctx *ctx);

#ifdef __cplusplus
}
#endif
#endif
