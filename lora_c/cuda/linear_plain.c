/* Many tokens: W is decoded once, products are cuBLASLt's. The update goes through the low rank, never B A as a matrix. */
#include "lora_c/cuda/linear_plain.h"

#include "lora_c/base/util.h"
#include "lora_c/cuda/products.h"
#include "lora_c/cuda/weights.h"

typedef struct work {
    lora_ctx *ctx;
    lora_cuda *c;
    lora_dtype type; /* of operands */
    lora_mat x;      /* float32 or bfloat16; absent where nothing needs it */
    lora_mat in;     /* the same as an operand */
} work;

/* out = alpha op(a) op(b) + beta out */
static lora_status multiply(const work *wk, lora_mat a, bool transpose_a, lora_mat b, bool transpose_b, lora_mat out, float alpha, bool add,
                            lora_error *err) {
    const lora_cuda_product g = {
        .a = a, .b = b, .transpose_a = transpose_a, .transpose_b = transpose_b, .c = out, .alpha = alpha, .beta = add};
    return lora_cuda_multiply(wk->c, &g, err);
}

static lora_status operand(const work *wk, lora_mat m, int slot, lora_mat *out, lora_error *err) {
    return lora_cuda_operand(wk->c, m, wk->type, slot, out, err);
}

static lora_mat A_of(const lora_adapter *a, int64_t K) { return lora_mat_f32(a->A, a->rank, K, K); }
static lora_mat B_of(const lora_adapter *a, int64_t N) { return lora_mat_f32(a->B, N, a->rank, a->rank); }

/* d = drop(x) as an operand: x itself without dropout. */
static lora_status drop(const work *wk, const lora_adapter *a, const lora_adapter_pass *pass, lora_mat *d, lora_error *err) {
    *d = wk->in;
    if (pass->dropout <= 0) return LORA_OK;
    LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_RESULT, wk->x.rows, wk->x.cols, wk->type, d, err));
    return lora_cuda_drop(wk->ctx, lora_cuda_mask_of(a, pass), wk->x, *d, false, err);
}

/* Memory for (rows, rank) sums of the low rank: an operand at once, or float32 where that is kept. */
static lora_status low_memory(const work *wk, int64_t rows, int64_t rank, float *kept, lora_mat *low, lora_error *err) {
    *low = lora_mat_f32(kept, rows, rank, rank);
    return kept ? LORA_OK : lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_LOW, rows, rank, wk->type, low, err);
}

/* t = s d A^T as an operand, in float32 in kept, too, where that is not NULL. */
static lora_status form_low(const work *wk, const lora_adapter *a, lora_mat d, float *kept, lora_mat *t, lora_error *err) {
    lora_mat A, sums;
    LORA_TRY(low_memory(wk, d.rows, a->rank, kept, &sums, err));
    LORA_TRY(operand(wk, A_of(a, d.cols), LORA_CUDA_SCRATCH_WEIGHT, &A, err));
    LORA_TRY(multiply(wk, d, false, A, true, sums, a->scale, false, err));
    return operand(wk, sums, LORA_CUDA_SCRATCH_NARROW, t, err);
}

/* --- forward --- */

/* y += t B^T */
static lora_status add_update(const work *wk, const lora_linear_layer *l, lora_error *err) {
    const lora_adapter *a = l->adapter;
    lora_mat d, B, t;
    LORA_TRY(drop(wk, a, &l->pass, &d, err));
    LORA_TRY(form_low(wk, a, d, l->pass.low, &t, err));
    LORA_TRY(operand(wk, B_of(a, l->w->rows), LORA_CUDA_SCRATCH_WEIGHT, &B, err));
    return multiply(wk, t, false, B, true, l->y, 1, true, err);
}

static lora_status forward_layer(const work *wk, const lora_linear_layer *l, lora_error *err) {
    lora_mat W;
    LORA_TRY(lora_cuda_weight(wk->c, l->w, 0, l->w->rows, wk->type, LORA_CUDA_SCRATCH_WEIGHT, &W, err));
    LORA_TRY(multiply(wk, wk->in, false, W, true, l->y, 1, l->accumulate, err));
    if (l->adapter) LORA_TRY(add_update(wk, l, err));
    return l->bias ? lora_cuda_affine(wk->ctx, (lora_cuda_columns){.bias = l->bias}, l->y, l->y, false, err) : LORA_OK;
}

lora_status lora_cuda_plain_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    if (x.rows <= LORA_DECODE_BATCH) {
        LORA_TRY(lora_cuda_operand(lora_cuda_of(ctx), x, LORA_F32, LORA_CUDA_SCRATCH_LEFT, &x, err));
        return lora_cuda_few_forward(ctx, x, n, layers, err);
    }
    work wk = {.ctx = ctx, .c = lora_cuda_of(ctx), .type = lora_cuda_operands(ctx), .x = x};
    LORA_TRY(operand(&wk, x, LORA_CUDA_SCRATCH_RIGHT, &wk.in, err));
    for (int64_t i = 0; i < n; i++) LORA_TRY(forward_layer(&wk, layers + i, err));
    return LORA_OK;
}

/* --- backward --- */

static bool trains(const lora_adapter *a) { return a && (a->dA || a->dB); }

/* dx += drop'(u A) */
static lora_status add_input_gradient(const work *wk, const lora_linear_gradient *g, lora_mat u, lora_mat dx, lora_error *err) {
    lora_mat A, whole;
    LORA_TRY(operand(wk, A_of(g->adapter, dx.cols), LORA_CUDA_SCRATCH_WEIGHT, &A, err));
    if (g->pass.dropout <= 0) return multiply(wk, u, false, A, false, dx, 1, true, err);
    LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_SUMS, dx.rows, dx.cols, LORA_F32, &whole, err));
    LORA_TRY(multiply(wk, u, false, A, false, whole, 1, false, err));
    return lora_cuda_drop(wk->ctx, lora_cuda_mask_of(g->adapter, &g->pass), whole, dx, true, err);
}

/* dB += dy^T t, with t of the forward pass or formed again. */
static lora_status add_dB(const work *wk, const lora_linear_gradient *g, lora_mat dy, lora_mat d, lora_error *err) {
    const lora_adapter *a = g->adapter;
    lora_mat kept = lora_mat_f32(g->pass.low, dy.rows, a->rank, a->rank), t;
    LORA_TRY(g->pass.low ? operand(wk, kept, LORA_CUDA_SCRATCH_NARROW, &t, err) : form_low(wk, a, d, NULL, &t, err));
    return multiply(wk, dy, true, t, false, lora_mat_f32(a->dB, g->w->rows, a->rank, a->rank), 1, true, err);
}

/* What comes through B and A: u = s dy B, then its parts of dx and dA, and dB. */
static lora_status adapter_backward(const work *wk, const lora_linear_gradient *g, lora_mat dy, lora_mat dx, lora_error *err) {
    const lora_adapter *a = g->adapter;
    lora_mat B, u, d = lora_mat_none();
    if (a->dA || (a->dB && !g->pass.low)) LORA_TRY(drop(wk, a, &g->pass, &d, err));
    if (a->dA || dx.data) {
        LORA_TRY(low_memory(wk, dy.rows, a->rank, NULL, &u, err));
        LORA_TRY(operand(wk, B_of(a, g->w->rows), LORA_CUDA_SCRATCH_WEIGHT, &B, err));
        LORA_TRY(multiply(wk, dy, false, B, false, u, a->scale, false, err));
        if (a->dA) LORA_TRY(multiply(wk, u, true, d, false, lora_mat_f32(a->dA, a->rank, d.cols, d.cols), 1, true, err));
        if (dx.data) LORA_TRY(add_input_gradient(wk, g, u, dx, err));
    }
    return a->dB ? add_dB(wk, g, dy, d, err) : LORA_OK;
}

static lora_status backward_layer(const work *wk, const lora_linear_gradient *g, lora_mat dx, bool accumulate_dx, lora_error *err) {
    lora_mat dy, W;
    int64_t N = g->w->rows;
    if (g->dbias) LORA_TRY(lora_cuda_add_rows(wk->ctx, g->dy, g->dbias, err));
    if (!dx.data && !g->dW && !trains(g->adapter)) return LORA_OK;
    LORA_TRY(operand(wk, g->dy, LORA_CUDA_SCRATCH_LEFT, &dy, err));
    if (dx.data) {
        LORA_TRY(lora_cuda_weight(wk->c, g->w, 0, N, wk->type, LORA_CUDA_SCRATCH_WEIGHT, &W, err));
        LORA_TRY(multiply(wk, dy, false, W, false, dx, 1, accumulate_dx, err));
    }
    if (g->dW) LORA_TRY(multiply(wk, dy, true, wk->in, false, lora_mat_f32(g->dW, N, g->w->cols, g->w->cols), 1, true, err));
    return g->adapter && (dx.data || trains(g->adapter)) ? adapter_backward(wk, g, dy, dx, err) : LORA_OK;
}

lora_status lora_cuda_plain_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                     bool accumulate_dx, lora_error *err) {
    work wk = {.ctx = ctx, .c = lora_cuda_of(ctx), .type = lora_cuda_operands(ctx), .x = x};
    bool needs_x = false;
    for (int64_t i = 0; i < n; i++) needs_x = needs_x || gradients[i].dW || trains(gradients[i].adapter);
    if (needs_x) LORA_TRY(operand(&wk, x, LORA_CUDA_SCRATCH_RIGHT, &wk.in, err));
    for (int64_t i = 0; i < n; i++) LORA_TRY(backward_layer(&wk, gradients + i, dx, accumulate_dx || i > 0, err));
    return LORA_OK;
}
