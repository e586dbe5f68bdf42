/* DoRA on top of the linear layer with its plain adapter: z = W d + s B A d is what that computes, and DoRA scales its columns by
 * g = magnitude / norm.   Source  DoRA, arXiv:2402.09353, eq. 5 */
#include "lora_c/base/util.h"
#include "lora_c/cuda/linear_plain.h"

enum { ROUND = 4 /* floats: rows at 16 bytes */ };

typedef struct workspace {
    lora_mat z, dz;      /* (M, N) */
    lora_mat kept, lost; /* (M, K): d = drop(x) and x - d; with dropout only */
    lora_mat t0, t1;     /* (M, K): dy W and dz (W + s B A); with dropout only */
} workspace;

static lora_mat take(float **next, int64_t rows, int64_t cols) {
    int64_t ld = lora_round_up(cols, ROUND);
    lora_mat m = lora_mat_f32(*next, rows, cols, ld);
    *next += rows * ld;
    return m;
}

static lora_status get_workspace(lora_ctx *ctx, int64_t M, const lora_weight *w, bool dropped, bool backward, workspace *ws,
                                 lora_error *err) {
    int64_t out = M * lora_round_up(w->rows, ROUND), in = dropped ? M * lora_round_up(w->cols, ROUND) : 0;
    int64_t floats = (backward ? 2 : 1) * out + (backward ? 4 : 2) * in;
    void *p;
    LORA_TRY(lora_cuda_scratch(lora_cuda_of(ctx), LORA_CUDA_SCRATCH_DORA, (size_t)floats * sizeof(float), &p, err));
    float *next = p;
    *ws = (workspace){.z = take(&next, M, w->rows)};
    if (backward) ws->dz = take(&next, M, w->rows);
    if (!dropped) return LORA_OK;
    ws->kept = take(&next, M, w->cols);
    ws->lost = take(&next, M, w->cols);
    if (!backward) return LORA_OK;
    ws->t0 = take(&next, M, w->cols);
    ws->t1 = take(&next, M, w->cols);
    return LORA_OK;
}

static lora_status split_input(lora_ctx *ctx, lora_cuda_mask mask, lora_mat x, const workspace *ws, lora_error *err) {
    LORA_TRY(lora_cuda_drop(ctx, mask, x, ws->kept, false, err));
    return lora_cuda_difference(ctx, x, ws->kept, ws->lost, false, err);
}

/* The same adapter as plain LoRA; its input is dropped already. */
static lora_adapter plain_of(const lora_adapter *a) {
    lora_adapter p = *a;
    p.magnitude = NULL;
    p.dmagnitude = NULL;
    return p;
}

lora_status lora_cuda_dora_forward(lora_ctx *ctx, lora_mat x, const lora_linear_layer *l, lora_error *err) {
    const lora_adapter *a = l->adapter;
    lora_cuda_columns columns = {.magnitude = a->magnitude, .norm = l->pass.norm, .bias = l->bias};
    bool accumulate = l->accumulate;
    lora_adapter p = plain_of(a);
    workspace ws;
    LORA_TRY(get_workspace(ctx, x.rows, l->w, l->pass.dropout > 0, false, &ws, err));
    if (l->pass.dropout > 0) { /* W x + (g - 1) W d + g s B A d = W (x - d) + g z */
        LORA_TRY(split_input(ctx, lora_cuda_mask_of(a, &l->pass), x, &ws, err));
        lora_linear_layer lost = {.w = l->w, .bias = l->bias, .y = l->y, .accumulate = accumulate};
        LORA_TRY(lora_cuda_plain_forward(ctx, ws.lost, 1, &lost, err));
        x = ws.kept;
        accumulate = true;
        columns.bias = NULL;
    }
    lora_linear_layer z = {.w = l->w, .adapter = &p, .y = accumulate ? ws.z : l->y};
    LORA_TRY(lora_cuda_plain_forward(ctx, x, 1, &z, err));
    return lora_cuda_affine(ctx, columns, z.y, l->y, accumulate, err);
}

/* dmagnitude += sum over M of dy · z / norm, z = W d + s B A d formed again */
static lora_status magnitude_gradient(lora_ctx *ctx, lora_mat d, const lora_linear_gradient *g, const lora_adapter *p, lora_mat z,
                                      lora_error *err) {
    lora_linear_layer again = {.w = g->w, .adapter = p, .y = z};
    LORA_TRY(lora_cuda_plain_forward(ctx, d, 1, &again, err));
    return lora_cuda_add_magnitudes(ctx, g->dy, z, g->pass.norm, g->adapter->dmagnitude, err);
}

/* dx (+)= dy W + drop'(dz (W + s B A) - dy W), and what else the two parts of y carry */
static lora_status backward_dropped(lora_ctx *ctx, const lora_linear_gradient *g, const lora_linear_gradient *dz, const workspace *ws,
                                    lora_mat dx, bool accumulate_dx, lora_error *err) {
    lora_linear_gradient lost = {.dy = g->dy, .w = g->w, .dW = g->dW};
    LORA_TRY(lora_cuda_plain_backward(ctx, ws->lost, 1, &lost, dx.data ? ws->t0 : lora_mat_none(), false, err));
    LORA_TRY(lora_cuda_plain_backward(ctx, ws->kept, 1, dz, dx.data ? ws->t1 : lora_mat_none(), false, err));
    if (!dx.data) return LORA_OK;
    LORA_TRY(lora_cuda_difference(ctx, ws->t1, ws->t0, ws->t1, false, err));
    LORA_TRY(lora_cuda_difference(ctx, ws->t0, lora_mat_none(), dx, accumulate_dx, err));
    return lora_cuda_drop(ctx, lora_cuda_mask_of(g->adapter, &g->pass), ws->t1, dx, true, err);
}

lora_status lora_cuda_dora_backward(lora_ctx *ctx, lora_mat x, const lora_linear_gradient *g, lora_mat dx, bool accumulate_dx,
                                    lora_error *err) {
    const lora_adapter *a = g->adapter;
    const lora_cuda_columns columns = {.magnitude = a->magnitude, .norm = g->pass.norm};
    bool dropped = g->pass.dropout > 0;
    lora_adapter p = plain_of(a);
    workspace ws;
    LORA_TRY(get_workspace(ctx, g->dy.rows, g->w, dropped, true, &ws, err));
    if (dropped && x.data) LORA_TRY(split_input(ctx, lora_cuda_mask_of(a, &g->pass), x, &ws, err));
    if (a->dmagnitude) LORA_TRY(magnitude_gradient(ctx, dropped ? ws.kept : x, g, &p, ws.z, err));
    if (g->dbias) LORA_TRY(lora_cuda_add_rows(ctx, g->dy, g->dbias, err));
    LORA_TRY(lora_cuda_affine(ctx, columns, g->dy, ws.dz, false, err));
    lora_linear_gradient dz = {.dy = ws.dz, .w = g->w, .adapter = &p, .dW = g->dW};
    if (dropped) return backward_dropped(ctx, g, &dz, &ws, dx, accumulate_dx, err);
    return lora_cuda_plain_backward(ctx, x, 1, &dz, dx, accumulate_dx, err);
}
