/* lora_ctx: the kernel table, the thread pool, the memory accounts and the scratch buffers of one user.
 *
 * Threads: one call at a time per context. Callers that share a context between threads take lora_ctx_lock around
 * each call (the Python binding does). Different contexts are independent. Results never depend on n_threads. */
#ifndef LORA_C_CONTEXT_H
#define LORA_C_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lora_c/isa.h"
#include "lora_c/memory.h"
#include "lora_c/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lora_ctx lora_ctx;

/* Arithmetic of the matrix products. Sums are float32 in all, and results never depend on threads.
 * FAST rounds the operands of each product to
 *     bfloat16                            on AMD CPUs with AVX512_BF16 (Zen 4 and later), which run it at twice the float32 rate
 *                                         and on aarch64 CPUs with FEAT_BF16 (their rate was not measured)
 *     int16, one scale per 64 values of k on other CPUs with AVX512_VNNI (Intel: bfloat16 runs at half the float32 rate there)
 * and is the same as EXACT on all others. With up to 24 rows (decoding) weights of float32 and GGUF blocks, and with int16
 * of bfloat16 too, keep float32 products: reading them takes longer than the products. Its error is at most that of bfloat16 operands, as
 * mixed-precision training has.
 * INT8 is FAST but for the products of linear layers, and of a head that does not train in its loss, with their own weights: x W^T, dy W
 * and exp(logits) W. Evaluation asks for no gradient of a head, so each is as a frozen one there: what training measures on held-out data
 * is what the saved model has.
 * Both operands are rounded to within +-127 with a scale for 64 values of k. Products of such a block are summed
 * exactly, blocks in order by float32 FMAs, so these products have the same bits on every CPU, and a row of x W^T has the same whatever
 * the number of rows. Layers of up to 24 rows, without dropout, are so of 4-bit weights alone whose rows are multiples of 64 values and
 * whose blocks have at least 64; others are as in FAST there (rounding a weight takes longer than the product of a few rows). The scale
 * of a block is
 *     x, dy            its largest magnitude / 127
 *     4-bit weights    in x W^T what its code of the largest magnitude stands for / 124.12 (NF4) or 120 (FP4), of whose multiples the other
 *                      codes are nearest; in dy W the largest of that of 64 x 64 / 127
 *     other weights    its largest magnitude / 127 in both directions
 * |err| <= sum over the blocks of sum |x| e_w + |w| e_x + e_x e_w, e = scale (1/2 + 127 2^-22), and 2^-24 (blocks + 4) of the sum of
 * the |products|. A block below 1e-36 is zero; one with a value that is not finite makes its results NaN. */
typedef enum lora_precision { LORA_PRECISION_EXACT, LORA_PRECISION_FAST, LORA_PRECISION_INT8 } lora_precision;

/* What the operands of FAST products are rounded to: with them chosen, CPUs of different makers give the same bits. */
typedef enum lora_operands {
    LORA_OPERANDS_AUTO = -1, /* by the rule above */
    LORA_OPERANDS_FLOAT32 = 0,
    LORA_OPERANDS_BFLOAT16 = 1,
    LORA_OPERANDS_INT16 = 2,
} lora_operands;

typedef struct lora_ctx_options {
    int n_threads;            /* 0: one per CPU in the affinity mask */
    lora_isa isa;             /* AUTO: the best rung of this CPU; a rung above the CPU is refused */
    lora_precision precision; /* EXACT where nothing is said */
} lora_ctx_options;

/** Creates a context. options may be NULL (all defaults). Errors: EINVAL, EUNSUPPORTED, ENOMEM. */
lora_status lora_ctx_create(const lora_ctx_options *options, lora_ctx **out, lora_error *err) LORA_MUST_CHECK;
/** A context that shares everything with ctx but its precision, which is ctx's at first and may change by itself: what an object
 *  that computes in a precision of its own passes on. One lock guards both; ctx must outlive it. */
lora_status lora_ctx_create_view(lora_ctx *ctx, lora_ctx **out, lora_error *err) LORA_MUST_CHECK;
void lora_ctx_destroy(lora_ctx *ctx); /* NULL allowed; every object made with it must be gone */

void lora_ctx_lock(lora_ctx *ctx);
void lora_ctx_unlock(lora_ctx *ctx);

/** Changes the number of threads (0: default). The bits of every later result stay the same. */
lora_status lora_ctx_set_threads(lora_ctx *ctx, int n_threads, lora_error *err) LORA_MUST_CHECK;
int lora_ctx_threads(const lora_ctx *ctx);
/** Chooses the kernel rung, and the operands of FAST products by the rule above; EUNSUPPORTED when the CPU lacks it. */
lora_status lora_ctx_set_isa(lora_ctx *ctx, lora_isa isa, lora_error *err) LORA_MUST_CHECK;
lora_isa lora_ctx_isa(const lora_ctx *ctx);
/** Precision of the calls that follow. EINVAL for another value, EUNSUPPORTED for INT8 on a device that lacks it. */
lora_status lora_ctx_set_precision(lora_ctx *ctx, lora_precision precision, lora_error *err) LORA_MUST_CHECK;
/** Whether the device has 8 bits: LORA_PRECISION_INT8, and rows of LORA_INT8. */
bool lora_ctx_has_int8(const lora_ctx *ctx);
lora_precision lora_ctx_precision(const lora_ctx *ctx);
const char *lora_precision_name(lora_precision precision); /* "exact", "fast", "int8" */
/** Chooses the operands of FAST products, until the rung is chosen again; EUNSUPPORTED when the rung or the CPU lacks them. */
lora_status lora_ctx_set_fast_operands(lora_ctx *ctx, lora_operands operands, lora_error *err) LORA_MUST_CHECK;
lora_operands lora_ctx_fast_operands(const lora_ctx *ctx);
const char *lora_operands_name(lora_operands operands); /* "float32", "bfloat16", "int16" */
/** The name of what the operands of a product are rounded to in the precision in force: with INT8 "int8". */
const char *lora_ctx_operands(const lora_ctx *ctx);

lora_mem_usage lora_ctx_memory(const lora_ctx *ctx, lora_mem_tag tag);
/** Peak of the sum over all tags (not the sum of the peaks). */
lora_mem_usage lora_ctx_memory_total(const lora_ctx *ctx);
void lora_ctx_reset_peak(lora_ctx *ctx);

#ifdef __cplusplus
}
#endif
#endif
