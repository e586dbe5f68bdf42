/* Many tokens: W is decoded once, products are cuBLASLt's. The update goes through the low rank, never B A as a matrix.
 *
 * An update of its own reads and writes all of y (or dx) once more. Where W is decoded anyway and operands have 16 bits, it is part of the
 * product of W instead: y = [x | t] [W | B]^T with t = s drop(x) A^T in the columns that the rows of x have room for, and backward
 * dx = [dy | u] [W ; A] with u = s dy B. In float16 all is apart: each operand has a power of two of its own (scaled.h). */
#include "lora_c/cuda/linear_plain.h"

#include "lora_c/base/util.h"
#include "lora_c/cuda/scaled.h"
#include "lora_c/cuda/weights.h"

typedef lora_cuda_factor factor;

typedef struct work {
    lora_ctx *ctx;
    lora_cuda *c;
    lora_dtype type; /* of operands */
    lora_mat x;      /* float32 or bfloat16; absent where nothing needs it */
    factor in;       /* the same as an operand */
} work;

/* out = alpha op(a) op(b) + beta out */
static lora_status multiply(const work *wk, factor a, bool transpose_a, factor b, bool transpose_b, lora_mat out, float alpha, bool add,
                            lora_error *err) {
    const lora_cuda_product g = {.a = a.mat,
                                 .b = b.mat,
                                 .a_exponent = a.exponent,
                                 .b_exponent = b.exponent,
                                 .transpose_a = transpose_a,
                                 .transpose_b = transpose_b,
                                 .c = out,
                                 .alpha = alpha,
                                 .beta = add};
    return lora_cuda_multiply(wk->c, &g, err);
}

static lora_status operand(const work *wk, lora_mat m, int slot, factor *out, lora_error *err) {
    return lora_cuda_factor_of(wk->c, m, wk->type, slot, out, err);
}

/* Float32 memory for what becomes an operand only when its power of two can be known. */
static lora_status not_yet_rounded(const work *wk, int64_t rows, int64_t cols, lora_mat *out, lora_error *err) {
    return lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_SUMS, rows, cols, LORA_F32, out, err);
}

/* The columns behind those of m, and both together. */
static lora_mat behind(lora_mat m, int64_t cols) {
    return (lora_mat){
        .data = (char *)m.data + (size_t)m.cols * lora_dtype_bytes(m.dtype), .rows = m.rows, .cols = cols, .ld = m.ld, .dtype = m.dtype};
}
static factor with_behind(lora_mat m, int64_t cols) {
    m.cols += cols;
    return (factor){.mat = m};
}

/* Whether the update of an adapter is part of the product with W, of what has cols columns. */
static bool joins(const work *wk, const lora_weight *w, const lora_adapter *a, int64_t cols) {
    return a && wk->type == LORA_BF16 && cols % 8 == 0 && w->cols % 8 == 0 && a->rank % 8 == 0 && !lora_cuda_is_operand(w, wk->type);
}

/* W with memory for so many more columns and rows. */
static lora_status weight_with_room(const work *wk, const lora_weight *w, int64_t cols, int64_t rows, lora_mat *W, lora_error *err) {
    LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_WEIGHT, w->rows + rows, w->cols + cols, wk->type, W, err));
    W->rows = w->rows;
    W->cols = w->cols;
    return lora_cuda_decode(wk->c, w, 0, *W, err);
}

static lora_status operand_with_room(const work *wk, lora_mat m, int64_t lent, int slot, factor *out, lora_error *err) {
    if (!lent) return operand(wk, m, slot, out, err);
    out->exponent = NULL;
    return lora_cuda_operand_with_room(wk->c, m, wk->type, lent, slot, &out->mat, err);
}

static lora_mat A_of(const lora_adapter *a, int64_t K) { return lora_mat_f32(a->A, a->rank, K, K); }
static lora_mat B_of(const lora_adapter *a, int64_t N) { return lora_mat_f32(a->B, N, a->rank, a->rank); }

/* d = drop(x) as an operand: x itself without dropout. */
static lora_status drop(const work *wk, const lora_adapter *a, const lora_adapter_pass *pass, factor *d, lora_error *err) {
    lora_cuda_mask mask = lora_cuda_mask_of(a, pass);
    *d = wk->in;
    if (pass->dropout <= 0) return LORA_OK;
    if (wk->type == LORA_F16) {
        lora_mat whole;
        LORA_TRY(not_yet_rounded(wk, wk->x.rows, wk->x.cols, &whole, err));
        LORA_TRY(lora_cuda_drop(wk->ctx, mask, wk->x, whole, false, err));
        return operand(wk, whole, LORA_CUDA_SCRATCH_RESULT, d, err);
    }
    LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_RESULT, wk->x.rows, wk->x.cols, wk->type, &d->mat, err));
    return lora_cuda_drop(wk->ctx, mask, wk->x, d->mat, false, err);
}

/* t = s d A^T as an operand: in *t where that is memory, else in scratch; in float32 in kept, too, where that is not NULL. */
static lora_status form_low(const work *wk, const lora_adapter *a, factor d, float *kept, factor *t, lora_error *err) {
    factor A;
    lora_mat sums = lora_mat_f32(kept, d.mat.rows, a->rank, a->rank);
    LORA_TRY(operand(wk, A_of(a, d.mat.cols), LORA_CUDA_SCRATCH_WEIGHT, &A, err));
    if (wk->type == LORA_F16) {
        if (!kept) LORA_TRY(not_yet_rounded(wk, d.mat.rows, a->rank, &sums, err));
        LORA_TRY(multiply(wk, d, false, A, true, sums, a->scale, false, err));
        return operand(wk, sums, LORA_CUDA_SCRATCH_LOW, t, err);
    }
    if (!t->mat.data && !(kept && wk->type == LORA_F32))
        LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_LOW, d.mat.rows, a->rank, wk->type, &t->mat, err));
    if (!t->mat.data) t->mat = sums;
    if (!kept) return multiply(wk, d, false, A, true, t->mat, a->scale, false, err);
    LORA_TRY(multiply(wk, d, false, A, true, sums, a->scale, false, err));
    return t->mat.data == kept ? LORA_OK : lora_cuda_convert(wk->c, sums, t->mat, err);
}

/* --- forward --- */

/* y += t B^T */
static lora_status add_update(const work *wk, const lora_linear_layer *l, lora_error *err) {
    const lora_adapter *a = l->adapter;
    factor d, B, t = {0};
    LORA_TRY(drop(wk, a, &l->pass, &d, err));
    LORA_TRY(form_low(wk, a, d, l->pass.low, &t, err));
    LORA_TRY(operand(wk, B_of(a, l->w->rows), LORA_CUDA_SCRATCH_WEIGHT, &B, err));
    return multiply(wk, t, false, B, true, l->y, 1, true, err);
}

/* y = [x | t] [W | B]^T */
static lora_status forward_joined(const work *wk, const lora_linear_layer *l, lora_error *err) {
    const lora_adapter *a = l->adapter;
    factor d, t = {.mat = behind(wk->in.mat, a->rank)};
    lora_mat W;
    LORA_TRY(drop(wk, a, &l->pass, &d, err));
    LORA_TRY(form_low(wk, a, d, l->pass.low, &t, err));
    LORA_TRY(weight_with_room(wk, l->w, a->rank, 0, &W, err));
    LORA_TRY(lora_cuda_convert(wk->c, B_of(a, W.rows), behind(W, a->rank), err));
    return multiply(wk, with_behind(wk->in.mat, a->rank), false, with_behind(W, a->rank), true, l->y, 1, l->accumulate, err);
}

static lora_status forward_apart(const work *wk, const lora_linear_layer *l, lora_error *err) {
    factor W;
    LORA_TRY(lora_cuda_weight_factor(wk->c, l->w, 0, l->w->rows, wk->type, LORA_CUDA_SCRATCH_WEIGHT, &W, err));
    LORA_TRY(multiply(wk, wk->in, false, W, true, l->y, 1, l->accumulate, err));
    return l->adapter ? add_update(wk, l, err) : LORA_OK;
}

static lora_status forward_layer(const work *wk, const lora_linear_layer *l, lora_error *err) {
    LORA_TRY(joins(wk, l->w, l->adapter, wk->x.cols) ? forward_joined(wk, l, err) : forward_apart(wk, l, err));
    return l->bias ? lora_cuda_affine(wk->ctx, (lora_cuda_columns){.bias = l->bias}, l->y, l->y, false, err) : LORA_OK;
}

lora_status lora_cuda_plain_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    if (x.rows <= LORA_DECODE_BATCH) {
        LORA_TRY(lora_cuda_operand(lora_cuda_of(ctx), x, LORA_F32, LORA_CUDA_SCRATCH_LEFT, &x, err));
        return lora_cuda_few_forward(ctx, x, n, layers, err);
    }
    work wk = {.ctx = ctx, .c = lora_cuda_of(ctx), .type = lora_cuda_operands(ctx), .x = x};
    int64_t lent = 0;
    for (int64_t i = 0; i < n; i++)
        if (joins(&wk, layers[i].w, layers[i].adapter, x.cols)) lent = lora_max_i64(lent, layers[i].adapter->rank);
    LORA_TRY(operand_with_room(&wk, x, lent, LORA_CUDA_SCRATCH_RIGHT, &wk.in, err));
    for (int64_t i = 0; i < n; i++) LORA_TRY(forward_layer(&wk, layers + i, err));
    return LORA_OK;
}

/* --- backward --- */

static bool trains(const lora_adapter *a) { return a && (a->dA || a->dB); }

/* dx += drop'(u A) */
static lora_status add_input_gradient(const work *wk, const lora_linear_gradient *g, factor u, lora_mat dx, lora_error *err) {
    factor A;
    lora_mat whole;
    LORA_TRY(operand(wk, A_of(g->adapter, dx.cols), LORA_CUDA_SCRATCH_WEIGHT, &A, err));
    if (g->pass.dropout <= 0) return multiply(wk, u, false, A, false, dx, 1, true, err);
    LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_SUMS, dx.rows, dx.cols, LORA_F32, &whole, err));
    LORA_TRY(multiply(wk, u, false, A, false, whole, 1, false, err));
    return lora_cuda_drop(wk->ctx, lora_cuda_mask_of(g->adapter, &g->pass), whole, dx, true, err);
}

/* dB += dy^T t, with t of the forward pass or formed again. */
static lora_status add_dB(const work *wk, const lora_linear_gradient *g, factor dy, factor d, lora_error *err) {
    const lora_adapter *a = g->adapter;
    lora_mat kept = lora_mat_f32(g->pass.low, dy.mat.rows, a->rank, a->rank);
    factor t = {0};
    LORA_TRY(g->pass.low ? operand(wk, kept, LORA_CUDA_SCRATCH_NARROW, &t, err) : form_low(wk, a, d, NULL, &t, err));
    return multiply(wk, dy, true, t, false, lora_mat_f32(a->dB, g->w->rows, a->rank, a->rank), 1, true, err);
}

/* u = s dy B as an operand, in *u where that is memory. */
static lora_status form_u(const work *wk, const lora_linear_gradient *g, factor dy, factor *u, lora_error *err) {
    const lora_adapter *a = g->adapter;
    factor B;
    LORA_TRY(operand(wk, B_of(a, g->w->rows), LORA_CUDA_SCRATCH_WEIGHT, &B, err));
    if (wk->type == LORA_F16) {
        lora_mat sums;
        LORA_TRY(not_yet_rounded(wk, dy.mat.rows, a->rank, &sums, err));
        LORA_TRY(multiply(wk, dy, false, B, false, sums, a->scale, false, err));
        return operand(wk, sums, LORA_CUDA_SCRATCH_LOW, u, err);
    }
    if (!u->mat.data) LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_LOW, dy.mat.rows, a->rank, wk->type, &u->mat, err));
    return multiply(wk, dy, false, B, false, u->mat, a->scale, false, err);
}

/* What comes through B and A: u, then dA, what the product with W has left of dx, and dB. */
static lora_status adapter_backward(const work *wk, const lora_linear_gradient *g, factor dy, factor u, lora_mat dx, lora_error *err) {
    const lora_adapter *a = g->adapter;
    factor d = {0};
    if (a->dA || (a->dB && !g->pass.low)) LORA_TRY(drop(wk, a, &g->pass, &d, err));
    if (!u.mat.data && (a->dA || dx.data)) LORA_TRY(form_u(wk, g, dy, &u, err));
    if (a->dA) LORA_TRY(multiply(wk, u, true, d, false, lora_mat_f32(a->dA, a->rank, d.mat.cols, d.mat.cols), 1, true, err));
    if (dx.data) LORA_TRY(add_input_gradient(wk, g, u, dx, err));
    return a->dB ? add_dB(wk, g, dy, d, err) : LORA_OK;
}

/* dx = [dy | u] [W ; A] */
static lora_status input_gradient_joined(const work *wk, const lora_linear_gradient *g, factor dy, factor *u, lora_mat dx, bool accumulate,
                                         lora_error *err) {
    const lora_adapter *a = g->adapter;
    lora_mat W;
    *u = (factor){.mat = behind(dy.mat, a->rank)};
    LORA_TRY(form_u(wk, g, dy, u, err));
    LORA_TRY(weight_with_room(wk, g->w, 0, a->rank, &W, err));
    lora_mat all = W, below = W;
    all.rows += a->rank;
    below.rows = a->rank;
    below.data = (char *)W.data + (size_t)(W.rows * W.ld) * lora_dtype_bytes(W.dtype);
    LORA_TRY(lora_cuda_convert(wk->c, A_of(a, W.cols), below, err));
    return multiply(wk, with_behind(dy.mat, a->rank), false, (factor){.mat = all}, false, dx, 1, accumulate, err);
}

static lora_status input_gradient(const work *wk, const lora_linear_gradient *g, factor dy, lora_mat dx, bool accumulate, lora_error *err) {
    factor W;
    LORA_TRY(lora_cuda_weight_factor(wk->c, g->w, 0, g->w->rows, wk->type, LORA_CUDA_SCRATCH_WEIGHT, &W, err));
    return multiply(wk, dy, false, W, false, dx, 1, accumulate, err);
}

static lora_status backward_layer(const work *wk, const lora_linear_gradient *g, lora_mat dx, bool accumulate_dx, lora_error *err) {
    factor dy, u = {0};
    int64_t N = g->w->rows, K = g->w->cols;
    if (g->dbias) LORA_TRY(lora_cuda_add_rows(wk->ctx, g->dy, g->dbias, err));
    if (!dx.data && !g->dW && !trains(g->adapter)) return LORA_OK;
    bool joined = dx.data && g->pass.dropout <= 0 && joins(wk, g->w, g->adapter, N);
    LORA_TRY(operand_with_room(wk, g->dy, joined ? g->adapter->rank : 0, LORA_CUDA_SCRATCH_LEFT, &dy, err));
    if (joined)
        LORA_TRY(input_gradient_joined(wk, g, dy, &u, dx, accumulate_dx, err));
    else if (dx.data)
        LORA_TRY(input_gradient(wk, g, dy, dx, accumulate_dx, err));
    if (g->dW) LORA_TRY(multiply(wk, dy, true, wk->in, false, lora_mat_f32(g->dW, N, K, K), 1, true, err));
    lora_mat rest = joined ? lora_mat_none() : dx;
    return g->adapter && (rest.data || trains(g->adapter)) ? adapter_backward(wk, g, dy, u, rest, err) : LORA_OK;
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
