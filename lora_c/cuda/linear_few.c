/* Few tokens: x A^T of every adapter of all layers in one launch, then every layer, whose sums take up B. */
#include "lora_c/base/util.h"
#include "lora_c/cuda/few.h"
#include "lora_c/cuda/linear_plain.h"
#include "lora_c/cuda/weights.h"

enum { ROUND = 16 /* floats: what begins at a multiple of them is aligned for loads of 16 bytes */ };

/* Which rows of x have which adapter: all that of the layer, held by whole, or each group its own. */
static int64_t groups_of(const lora_linear_layer *l, int64_t M, lora_adapter_rows *whole, const lora_adapter_rows **groups) {
    *whole = (lora_adapter_rows){.adapter = l->adapter, .rows = M};
    *groups = l->n_groups ? l->groups : whole;
    return l->n_groups ? l->n_groups : l->adapter != NULL;
}

static bool drops(const lora_linear_layer *l) { return l->adapter && l->pass.dropout > 0; }

/* Memory for x A^T of all adapters, and for x of every layer with dropout, (M, K). */
static lora_status get_memory(lora_cuda *c, lora_mat x, int64_t n, const lora_linear_layer *layers, float **low, float **dropped,
                              lora_error *err) {
    int64_t floats = 0, n_dropped = 0;
    for (int64_t i = 0; i < n; i++) {
        lora_adapter_rows whole;
        const lora_adapter_rows *groups;
        int64_t n_groups = groups_of(layers + i, x.rows, &whole, &groups);
        for (int64_t g = 0; g < n_groups; g++) floats += lora_round_up(groups[g].rows * groups[g].adapter->rank, ROUND);
        n_dropped += drops(layers + i);
    }
    void *p;
    *low = *dropped = NULL;
    if (floats == 0) return LORA_OK;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_LOW, (size_t)floats * sizeof(float), &p, err));
    *low = p;
    if (n_dropped == 0) return LORA_OK;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_RIGHT, (size_t)(n_dropped * x.rows * lora_round_up(x.cols, ROUND)) * sizeof(float), &p,
                               err));
    *dropped = p;
    return LORA_OK;
}

/* The products of a layer's groups, with their places in low; and the updates of its tokens. */
static int add_groups(const lora_linear_layer *l, lora_mat x, float **low, lora_cuda_few_low *lows, lora_cuda_few_update *updates) {
    lora_adapter_rows whole;
    const lora_adapter_rows *groups;
    int64_t n = groups_of(l, x.rows, &whole, &groups);
    for (int64_t g = 0; g < n; g++) {
        const lora_adapter *a = groups[g].adapter;
        lows[g] = (lora_cuda_few_low){.x = lora_mat_rows(x, groups[g].first, groups[g].rows).data,
                                      .A = a->A,
                                      .t = *low,
                                      .ldx = x.ld,
                                      .rank = a->rank,
                                      .scale = a->scale,
                                      .rows = (int32_t)groups[g].rows};
        for (int64_t m = 0; m < groups[g].rows; m++)
            updates[groups[g].first + m] = (lora_cuda_few_update){.t = *low + m * a->rank, .B = a->B, .rank = a->rank};
        *low += lora_round_up(groups[g].rows * a->rank, ROUND);
    }
    return (int)n;
}

lora_status lora_cuda_few_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    lora_cuda_few_layer outputs[LORA_LINEAR_LAYERS];
    lora_cuda_few_low lows[LORA_CUDA_FEW_LOWS] = {{0}};
    float *low, *dropped;
    int n_lows = 0;
    LORA_TRY(get_memory(c, x, n, layers, &low, &dropped, err));
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        lora_mat in = x;
        if (drops(l)) {
            in = lora_mat_f32(dropped, x.rows, x.cols, lora_round_up(x.cols, ROUND));
            dropped += x.rows * in.ld;
            LORA_TRY(lora_cuda_drop(ctx, lora_cuda_mask_of(l->adapter, &l->pass), x, in, false, err));
        }
        outputs[i] = (lora_cuda_few_layer){
            .x = x, .y = l->y, .w = *l->w, .bias = l->bias, .accumulate = l->accumulate, .operands = lora_cuda_operands(ctx)};
        n_lows += add_groups(l, in, &low, lows + n_lows, outputs[i].updates);
    }
    LORA_TRY(lora_cuda_few_lows(c, x.cols, n_lows, lows, err));
    for (int64_t i = 0; i < n; i++) LORA_TRY(lora_cuda_few_output(c, &outputs[i], err));
    return LORA_OK;
}
