/* Rows of weights as operands of products. */
#ifndef LORA_CUDA_WEIGHTS_H
#define LORA_CUDA_WEIGHTS_H

#include "lora_c/cuda/state.h"
#include "lora_c/kernels/tmpl/gpu_scratch_tmpl.h"

#ifdef __cplusplus
extern "C" {
#endif

/** *out = rows first .. first + rows - 1 of w in dtype (float32, bfloat16 or float16), rounded once: the weight itself where it is dense
 * and of that type (and, of 16 bits, has its rows at 16 bytes), else decoded into the scratch slot. The row of an NF4 matrix need not begin
 * at a block.   Errors  ENOMEM, EDEVICE */
lora_status lora_cuda_weight(lora_cuda *c, const lora_weight *w, int64_t first, int64_t rows, lora_dtype dtype, int slot, lora_mat *out,
                             lora_error *err) LORA_MUST_CHECK;
/** The same rows into out (rows, w.cols) of any type. */
lora_status lora_cuda_decode(lora_cuda *c, const lora_weight *w, int64_t first, lora_mat out, lora_error *err) LORA_MUST_CHECK;
/** A matrix of any type as one of dtype, rounded, in the scratch slot; itself where it is that already (and, of 16 bits, has its rows at 16
 * bytes). */
lora_status lora_cuda_operand(lora_cuda *c, lora_mat x, lora_dtype dtype, int slot, lora_mat *out, lora_error *err) LORA_MUST_CHECK;
/** The same where lent columns behind those of x may be written to: x itself where its rows have them, of 16 bits. */
lora_status lora_cuda_operand_with_room(lora_cuda *c, lora_mat x, lora_dtype dtype, int64_t lent, int slot, lora_mat *out,
                                        lora_error *err) LORA_MUST_CHECK;
/** to = from, of any two types. */
lora_status lora_cuda_convert(lora_cuda *c, lora_mat from, lora_mat to, lora_error *err) LORA_MUST_CHECK;
/** Whether a product reads w as it is stored, without decoding it first. */
bool lora_cuda_is_operand(const lora_weight *w, lora_dtype dtype);
/** A matrix (rows, cols) in the scratch slot, with undefined content, whose rows are at 16 bytes. */
lora_status lora_cuda_scratch_mat(lora_cuda *c, int slot, int64_t rows, int64_t cols, lora_dtype dtype, lora_mat *out,
                                  lora_error *err) LORA_MUST_CHECK;
/** What the sizes of buffers depend on: the GPU of a context, and its precision. */
lora_gpu_facts lora_cuda_facts(const lora_ctx *ctx);
/** What the operands of products are in the precision of a context: float32, or the 16-bit type that the GPU's tensor cores have. */
lora_dtype lora_cuda_operands(const lora_ctx *ctx);

#ifdef __cplusplus
}
#endif
#endif
