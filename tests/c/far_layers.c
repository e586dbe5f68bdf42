/* Linear layers, the head, losses and attention on rows far apart. */
#include "tests/c/far_rows.h"

enum { FEW = 3, MANY = 20, COLS = 64, RANK = 2, HEADS = 2, D = 64, QUERIES = 70 };

/* --- linear layers: the weight's rows, too --- */

static lora_status few(far_rows *f, lora_error *err) {
    lora_weight w = lora_weight_f32(f->m[1].data, FEW, COLS, f->ld);
    lora_linear_layer layer = {.w = &w, .y = lora_mat_cols(f->m[2], 0, FEW)};
    return lora_linear_forward(f->ctx, f->m[0], 1, &layer, err);
}

static lora_status many(far_rows *f, lora_error *err) {
    float *A = f->small, *B = A + RANK * COLS, *dA = B + MANY * RANK, *dB = dA + RANK * COLS, *bias = dB + MANY * RANK;
    lora_weight w = lora_weight_f32(f->m[1].data, MANY, COLS, f->ld);
    lora_adapter adapter = {.rank = RANK, .A = A, .B = B, .dA = dA, .dB = dB, .scale = 0.5f, .dropout = 0.25f, .dropout_seed = 7};
    lora_adapter_pass pass = {.dropout = 0.25f, .dropout_stream = 2};
    lora_mat y = lora_mat_cols(f->m[2], 0, MANY);
    lora_linear_layer layer = {.w = &w, .bias = bias, .adapter = &adapter, .pass = pass, .y = y};
    lora_linear_gradient gradient = {.dy = y, .w = &w, .adapter = &adapter, .pass = pass, .dbias = bias + MANY};
    LORA_TRY(lora_linear_forward(f->ctx, f->m[0], 1, &layer, err));
    return lora_linear_backward(f->ctx, f->m[0], 1, &gradient, f->m[3], true, err);
}

/* --- losses --- */

static lora_status head(far_rows *f, lora_error *err) {
    lora_weight w = lora_weight_f32(f->m[1].data, MANY, COLS, f->ld);
    lora_loss loss = {.targets = f->ids,
                      .loss_weight = f->small,
                      .grad_scale = 0.5f,
                      .loss_sum = (double *)(void *)(f->small + COLS),
                      .token_loss = f->small + 2 * COLS,
                      .map = {.scale = 1, .softcap = 30}};
    return lora_linear_cross_entropy(f->ctx, f->m[0], &w, &loss, f->m[2], f->small + 3 * COLS, err);
}
static lora_status values(far_rows *f, lora_error *err) {
    lora_values loss = {.kind = LORA_VALUES_BINARY_ENTROPY,
                        .values = f->small,
                        .loss_weight = f->small + FEW * COLS,
                        .grad_scale = 0.5f,
                        .loss_sum = (double *)(void *)(f->small + (FEW + 1) * COLS),
                        .row_loss = f->small + (FEW + 2) * COLS};
    return lora_values_loss(f->ctx, f->m[0], &loss, f->m[1], err);
}

/* --- attention: two query heads to a head of keys --- */

static const lora_attention_shape SHAPE = {.n_heads = HEADS, .n_kv_heads = 1, .head_dim = D, .scale = 0.125f};

static lora_status attention(far_rows *f, lora_error *err) {
    static const int32_t cu[] = {0, QUERIES - 5, QUERIES};
    static const int64_t start[] = {0, QUERIES - 5}, length[] = {QUERIES - 5, 5};
    int32_t *cu_there = far_send(f->ctx, cu, sizeof cu);
    int64_t *start_there = far_send(f->ctx, start, sizeof start), *length_there = far_send(f->ctx, length, sizeof length);
    lora_segments segments = {2, cu, cu_there};
    lora_mat k = lora_mat_cols(f->m[1], 0, D), v = lora_mat_cols(f->m[2], 0, D);
    lora_kv kv = {k.data, v.data, k.ld, v.ld, start_there, length_there};
    lora_attention_gradient g = {.q = f->m[0],
                                 .k = k,
                                 .v = v,
                                 .o = f->m[3],
                                 .dout = f->m[4],
                                 .lse = f->small,
                                 .dq = f->m[5],
                                 .dk = lora_mat_cols(f->m[6], 0, D),
                                 .dv = lora_mat_cols(f->m[7], 0, D)};
    lora_status status = lora_attention_forward(f->ctx, &SHAPE, &segments, f->m[0], &kv, f->m[3], f->small, err);
    if (status == LORA_OK) status = lora_attention_backward(f->ctx, &SHAPE, &segments, &g, err);
    lora_ctx_free(f->ctx, cu_there);
    lora_ctx_free(f->ctx, start_there);
    lora_ctx_free(f->ctx, length_there);
    return status;
}

/* A token each, behind keys of a cache, of which the first sequence has most. */
static lora_status decoding(far_rows *f, lora_error *err) {
    static const int32_t cu[] = {0, 1, 2};
    static const int64_t start[] = {1, QUERIES - 7}, length[] = {QUERIES - 9, 6};
    int32_t *cu_there = far_send(f->ctx, cu, sizeof cu);
    int64_t *start_there = far_send(f->ctx, start, sizeof start), *length_there = far_send(f->ctx, length, sizeof length);
    lora_kv kv = {f->m[1].data, f->m[2].data, f->ld, f->ld, start_there, length_there};
    lora_mat q = lora_mat_rows(f->m[0], QUERIES - 2, 2), o = lora_mat_rows(f->m[3], QUERIES - 2, 2);
    lora_status status = lora_attention_forward(f->ctx, &SHAPE, &(lora_segments){2, cu, cu_there}, q, &kv, o, f->small, err);
    lora_ctx_free(f->ctx, cu_there);
    lora_ctx_free(f->ctx, start_there);
    lora_ctx_free(f->ctx, length_there);
    return status;
}

static const far_case CASES[] = {
    {"few", FEW, COLS, 3, LORA_PRECISION_EXACT, false, few},
    {"many", MANY, COLS, 4, LORA_PRECISION_EXACT, false, many},
    {"many in bfloat16", MANY, COLS, 4, LORA_PRECISION_FAST, false, many},
    {"values", FEW, COLS, 2, LORA_PRECISION_EXACT, false, values},
    {"head", MANY, COLS, 3, LORA_PRECISION_EXACT, false, head},
    {"head in bfloat16", MANY, COLS, 3, LORA_PRECISION_FAST, false, head},
    {"attention", QUERIES, HEADS * D, 8, LORA_PRECISION_EXACT, false, attention},
    {"attention in bfloat16", QUERIES, HEADS * D, 8, LORA_PRECISION_FAST, false, attention},
    {"decoding", QUERIES, HEADS * D, 4, LORA_PRECISION_EXACT, false, decoding},
};

void check_far_layers(void) { far_check(CASES, sizeof CASES / sizeof *CASES); }
