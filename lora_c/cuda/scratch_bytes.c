/* How large the buffers of a device become in a training step: each slot as large as the largest that an operation asks of it. */
#include "lora_c/base/util.h"
#include "lora_c/cuda/head.h"
#include "lora_c/cuda/table.h"
#include "lora_c/cuda/weights.h"

/* Counted in float64: sizes of models that nothing could hold are forecast, too. */
static double larger(double a, double b) { return a > b ? a : b; }

int64_t lora_cuda_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    static const double most = 0x1p62, workspace = 32 << 20; /* cuBLASLt's, products.c */
    lora_dtype operands = lora_cuda_operands(ctx);
    int64_t M = shape->n_tokens, V = shape->vocab_size, H = shape->hidden_size;
    lora_cuda_head_sizes head = lora_cuda_head_sizes_of(M, V, H, operands);
    double rows = (double)head.rows, operand = (double)lora_dtype_bytes(operands), width = (double)H;
    double adapter = (double)shape->rank; /* its columns beside those of x and W, its rows below those of W */
    double weight = larger((double)shape->widest * (width + adapter), (double)lora_min_i64(head.slice, V) * width) * operand;
    double x = operands == LORA_F32 ? 0 : (double)M * ((double)shape->rounded + adapter) * operand; /* float32 is used where it is */
    double attention = operands == LORA_BF16 ? (double)M * (double)shape->attention * operand : 0;
    double left = larger(larger(x, attention), 2 * rows * width * operand);
    double logits = rows * (double)head.ld * (double)sizeof(float), result = rows * width * (double)sizeof(float);
    double all = workspace + weight + left + x /* beside dy, backward */ + logits + result + (double)lora_cuda_head_lay_rows(M, NULL, NULL);
    return (int64_t)(all < most ? all : most);
}
