/* Many tokens: W is decoded once, products are cuBLASLt's. The update goes through the low rank, never B A as a matrix.
 *
 * An update of its own reads and writes all of y (or dx) once more. Where W is decoded anyway and operands have 16 bits, it is part of the
 * product of W instead: y = [x | t] [W | B]^T with t = s drop(x) A^T in the columns that the rows of x have room for, and backward
 * dx = [dy | u] [W ; A] with u = s dy B. */
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

/* The columns behind those of m, and both together. */
static lora_mat behind(lora_mat m, int64_t cols) {
    return (lora_mat){(char *)m.data + (size_t)m.cols * lora_dtype_bytes(m.dtype), m.rows, cols, m.ld, m.dtype};
}
static lora_mat with_behind(lora_mat m, int64_t cols) {
    m.cols += cols;
    return m;
}

/* Whether the update of an adapter is part of the product with W, of what has cols columns. */
static bool joins(const work *wk, const lora_weight *w, const lora_adapter *a, int64_t cols) {
    return a && wk->type != LORA_F32 && cols % 8 == 0 && w->cols % 8 == 0 && a->rank % 8 == 0 && !lora_cuda_is_operand(w, wk->type);
}

/* W with memory for so many more columns and rows. */
static lora_status weight_with_room(const work *wk, const lora_weight *w, int64_t cols, int64_t rows, lora_mat *W, lora_error *err) {
    LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_WEIGHT, w->rows + rows, w->cols + cols, wk->type, W, err));
    W->rows = w->rows;
    W->cols = w->cols;
    return lora_cuda_decode(wk->c, w, 0, *W, err);
}

static lora_status operand_with_room(const work *wk, lora_mat m, int64_t lent, int slot, lora_mat *out, lora_error *err) {
    return lent ? lora_cuda_operand_with_room(wk->c, m, wk->type, lent, slot, out, err) : operand(wk, m, slot, out, err);
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

/* t = s d A^T as an operand: in *t where that is memory, else in scratch; in float32 in kept, too, where that is not NULL. */
static lora_status form_low(const work *wk, const lora_adapter *a, lora_mat d, float *kept, lora_mat *t, lora_error *err) {
    lora_mat A, sums = lora_mat_f32(kept, d.rows, a->rank, a->rank);
    LORA_TRY(operand(wk, A_of(a, d.cols), LORA_CUDA_SCRATCH_WEIGHT, &A, err));
    if (!t->data && !(kept && wk->type == LORA_F32))
        LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_LOW, d.rows, a->rank, wk->type, t, err));
    if (!t->data) *t = sums;
    if (!kept) return multiply(wk, d, false, A, true, *t, a->scale, false, err);
    LORA_TRY(multiply(wk, d, false, A, true, sums, a->scale, false, err));
    return t->data == kept ? LORA_OK : lora_cuda_convert(wk->c, sums, *t, err);
}

/* --- forward --- */

/* y += t B^T */
static lora_status add_update(const work *wk, const lora_linear_layer *l, lora_error *err) {
    const lora_adapter *a = l->adapter;
    lora_mat d, B, t = lora_mat_none();
    LORA_TRY(drop(wk, a, &l->pass, &d, err));
    LORA_TRY(form_low(wk, a, d, l->pass.low, &t, err));
    LORA_TRY(operand(wk, B_of(a, l->w->rows), LORA_CUDA_SCRATCH_WEIGHT, &B, err));
    return multiply(wk, t, false, B, true, l->y, 1, true, err);
}

/* y = [x | t] [W | B]^T */
static lora_status forward_joined(const work *wk, const lora_linear_layer *l, lora_error *err) {
    const lora_adapter *a = l->adapter;
    lora_mat d, W, t = behind(wk->in, a->rank);
    LORA_TRY(drop(wk, a, &l->pass, &d, err));
    LORA_TRY(form_low(wk, a, d, l->pass.low, &t, err));
    LORA_TRY(weight_with_room(wk, l->w, a->rank, 0, &W, err));
    LORA_TRY(lora_cuda_convert(wk->c, B_of(a, W.rows), behind(W, a->rank), err));
    return multiply(wk, with_behind(wk->in, a->rank), false, with_behind(W, a->rank), true, l->y, 1, l->accumulate, err);
}

static lora_status forward_apart(const work *wk, const lora_linear_layer *l, lora_error *err) {
    lora_mat W;
    LORA_TRY(lora_cuda_weight(wk->c, l->w, 0, l->w->rows, wk->type, LORA_CUDA_SCRATCH_WEIGHT, &W, err));
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
    lora_mat kept = lora_mat_f32(g->pass.low, dy.rows, a->rank, a->rank), t = lora_mat_none();
    LORA_TRY(g->pass.low ? operand(wk, kept, LORA_CUDA_SCRATCH_NARROW, &t, err) : form_low(wk, a, d, NULL, &t, err));
    return multiply(wk, dy, true, t, false, lora_mat_f32(a->dB, g->w->rows, a->rank, a->rank), 1, true, err);
}

/* u = s dy B as an operand, in *u where that is memory. */
static lora_status form_u(const work *wk, const lora_linear_gradient *g, lora_mat dy, lora_mat *u, lora_error *err) {
    const lora_adapter *a = g->adapter;
    lora_mat B;
    if (!u->data) LORA_TRY(lora_cuda_scratch_mat(wk->c, LORA_CUDA_SCRATCH_LOW, dy.rows, a->rank, wk->type, u, err));
    LORA_TRY(operand(wk, B_of(a, g->w->rows), LORA_CUDA_SCRATCH_WEIGHT, &B, err));
    return multiply(wk, dy, false, B, false, *u, a->scale, false, err);
}

/* What comes through B and A: u, then dA, what the product with W has left of dx, and dB. */
static lora_status adapter_backward(const work *wk, const lora_linear_gradient *g, lora_mat dy, lora_mat u, lora_mat dx, lora_error *err) {
    const lora_adapter *a = g->adapter;
    lora_mat d = lora_mat_none();
    if (a->dA || (a->dB && !g->pass.low)) LORA_TRY(drop(wk, a, &g->pass, &d, err));
    if (!u.data && (a->dA || dx.data)) LORA_TRY(form_u(wk, g, dy, &u, err));
    if (a->dA) LORA_TRY(multiply(wk, u, true, d, false, lora_mat_f32(a->dA, a->rank, d.cols, d.cols), 1, true, err));
    if (dx.data) LORA_TRY(add_input_gradient(wk, g, u, dx, err));
    return a->dB ? add_dB(wk, g, dy, d, err) : LORA_OK;
}

/* dx = [dy | u] [W ; A] */
static lora_status input_gradient_joined(const work *wk, const lora_linear_gradient *g, lora_mat dy, lora_mat *u, lora_mat dx,
                                         bool accumulate, lora_error *err) {
    const lora_adapter *a = g->adapter;
    lora_mat W;
    *u = behind(dy, a->rank);
    LORA_TRY(form_u(wk, g, dy, u, err));
    LORA_TRY(weight_with_room(wk, g->w, 0, a->rank, &W, err));
    lora_mat all = W, below = W;
    all.rows += a->rank;
    below.rows = a->rank;
    below.data = (char *)W.data + (size_t)(W.rows * W.ld) * lora_dtype_bytes(W.dtype);
    LORA_TRY(lora_cuda_convert(wk->c, A_of(a, W.cols), below, err));
    return multiply(wk, with_behind(dy, a->rank), false, all, false, dx, 1, accumulate, err);
}

static lora_status input_gradient(const work *wk, const lora_linear_gradient *g, lora_mat dy, lora_mat dx, bool accumulate,
                                  lora_error *err) {
    lora_mat W;
    LORA_TRY(lora_cuda_weight(wk->c, g->w, 0, g->w->rows, wk->type, LORA_CUDA_SCRATCH_WEIGHT, &W, err));
    return multiply(wk, dy, false, W, false, dx, 1, accumulate, err);
}

static lora_status backward_layer(const work *wk, const lora_linear_gradient *g, lora_mat dx, bool accumulate_dx, lora_error *err) {
    lora_mat dy, u = lora_mat_none();
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
