/* The operations of the fake device: each copies its arguments, and at the sync translates their addresses and calls the CPU's. */
#include "lora_c/ops/cpu_ops.h"
#include "tests/fake_device/fake_addresses.h"
#include "tests/fake_device/fake_lists.h"
#include "tests/fake_device/fake_quantize.h"

typedef struct norm_forward_args {
    lora_norm norm;
    lora_mat x;
    lora_mat y;
    float *stats;
} norm_forward_args;

static lora_status run_norm_forward(fake_device *f, void *args, lora_error *err) {
    norm_forward_args *a = args;
    const void *bad = NULL;
    at_norm(f, &a->norm, &bad);
    at_mat(f, &a->x, &bad);
    at_mat(f, &a->y, &bad);
    a->stats = fake_at(f, a->stats, &bad);
    return bad ? host_address("norm_forward", err) : lora_cpu_norm_forward(f->cpu, &a->norm, a->x, a->y, a->stats, err);
}

static lora_status norm_forward(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err) {
    return queue(ctx, run_norm_forward, &(norm_forward_args){.norm = *norm, .x = x, .y = y, .stats = stats}, sizeof(norm_forward_args),
                 err);
}

typedef struct norm_backward_args {
    lora_norm norm;
    lora_mat dy;
    lora_mat x;
    const float *stats;
    lora_mat dx;
    bool accumulate_dx;
    float *dweight;
    float *dbias;
} norm_backward_args;

static lora_status run_norm_backward(fake_device *f, void *args, lora_error *err) {
    norm_backward_args *a = args;
    const void *bad = NULL;
    at_norm(f, &a->norm, &bad);
    at_mat(f, &a->dy, &bad);
    at_mat(f, &a->x, &bad);
    a->stats = fake_at(f, a->stats, &bad);
    at_mat(f, &a->dx, &bad);
    a->dweight = fake_at(f, a->dweight, &bad);
    a->dbias = fake_at(f, a->dbias, &bad);
    return bad ? host_address("norm_backward", err)
               : lora_cpu_norm_backward(f->cpu, &a->norm, a->dy, a->x, a->stats, a->dx, a->accumulate_dx, a->dweight, a->dbias, err);
}

static lora_status norm_backward(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx,
                                 bool accumulate_dx, float *dweight, float *dbias, lora_error *err) {
    return queue(
        ctx, run_norm_backward,
        &(norm_backward_args){
            .norm = *norm, .dy = dy, .x = x, .stats = stats, .dx = dx, .accumulate_dx = accumulate_dx, .dweight = dweight, .dbias = dbias},
        sizeof(norm_backward_args), err);
}

typedef struct scale_rows_args {
    float a;
    lora_mat x;
    lora_mat y;
    bool accumulate;
} scale_rows_args;

static lora_status run_scale_rows(fake_device *f, void *args, lora_error *err) {
    scale_rows_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->x, &bad);
    at_mat(f, &a->y, &bad);
    return bad ? host_address("scale_rows", err) : lora_cpu_scale_rows(f->cpu, a->a, a->x, a->y, a->accumulate, err);
}

static lora_status scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    return queue(ctx, run_scale_rows, &(scale_rows_args){.a = a, .x = x, .y = y, .accumulate = accumulate}, sizeof(scale_rows_args), err);
}

typedef struct scale_columns_args {
    const float *l;
    lora_mat x;
    lora_mat y;
} scale_columns_args;

static lora_status run_scale_columns(fake_device *f, void *args, lora_error *err) {
    scale_columns_args *a = args;
    const void *bad = NULL;
    a->l = fake_at(f, a->l, &bad);
    at_mat(f, &a->x, &bad);
    at_mat(f, &a->y, &bad);
    return bad ? host_address("scale_columns", err) : lora_cpu_scale_columns(f->cpu, a->l, a->x, a->y, err);
}

static lora_status scale_columns(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err) {
    return queue(ctx, run_scale_columns, &(scale_columns_args){.l = l, .x = x, .y = y}, sizeof(scale_columns_args), err);
}

typedef struct scale_columns_backward_args {
    const float *l;
    lora_mat dy;
    lora_mat x;
    lora_mat dx;
    bool accumulate_dx;
    float *dl;
} scale_columns_backward_args;

static lora_status run_scale_columns_backward(fake_device *f, void *args, lora_error *err) {
    scale_columns_backward_args *a = args;
    const void *bad = NULL;
    a->l = fake_at(f, a->l, &bad);
    at_mat(f, &a->dy, &bad);
    at_mat(f, &a->x, &bad);
    at_mat(f, &a->dx, &bad);
    a->dl = fake_at(f, a->dl, &bad);
    return bad ? host_address("scale_columns_backward", err)
               : lora_cpu_scale_columns_backward(f->cpu, a->l, a->dy, a->x, a->dx, a->accumulate_dx, a->dl, err);
}

static lora_status scale_columns_backward(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx,
                                          float *dl, lora_error *err) {
    return queue(ctx, run_scale_columns_backward,
                 &(scale_columns_backward_args){.l = l, .dy = dy, .x = x, .dx = dx, .accumulate_dx = accumulate_dx, .dl = dl},
                 sizeof(scale_columns_backward_args), err);
}

typedef struct softcap_rows_args {
    float softcap;
    lora_mat x;
} softcap_rows_args;

static lora_status run_softcap_rows(fake_device *f, void *args, lora_error *err) {
    softcap_rows_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->x, &bad);
    return bad ? host_address("softcap_rows", err) : lora_cpu_softcap_rows(f->cpu, a->softcap, a->x, err);
}

static lora_status softcap_rows(lora_ctx *ctx, float softcap, lora_mat x, lora_error *err) {
    return queue(ctx, run_softcap_rows, &(softcap_rows_args){.softcap = softcap, .x = x}, sizeof(softcap_rows_args), err);
}

typedef struct softcap_backward_args {
    float softcap;
    lora_mat y;
    lora_mat dy;
} softcap_backward_args;

static lora_status run_softcap_backward(fake_device *f, void *args, lora_error *err) {
    softcap_backward_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->y, &bad);
    at_mat(f, &a->dy, &bad);
    return bad ? host_address("softcap_backward", err) : lora_cpu_softcap_backward(f->cpu, a->softcap, a->y, a->dy, err);
}

static lora_status softcap_backward(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err) {
    return queue(ctx, run_softcap_backward, &(softcap_backward_args){.softcap = softcap, .y = y, .dy = dy}, sizeof(softcap_backward_args),
                 err);
}

typedef struct rope_args {
    lora_rotations table;
    int64_t n_heads;
    int64_t head_dim;
    const int32_t *positions;
    lora_mat x;
    bool backward;
} rope_args;

static lora_status run_rope(fake_device *f, void *args, lora_error *err) {
    rope_args *a = args;
    const void *bad = NULL;
    at_rotations(f, &a->table, &bad);
    a->positions = fake_at(f, a->positions, &bad);
    at_mat(f, &a->x, &bad);
    return bad ? host_address("rope", err)
               : lora_cpu_rope(f->cpu, &a->table, a->n_heads, a->head_dim, a->positions, a->x, a->backward, err);
}

static lora_status rope(lora_ctx *ctx, const lora_rotations *table, int64_t n_heads, int64_t head_dim, const int32_t *positions, lora_mat x,
                        bool backward, lora_error *err) {
    return queue(
        ctx, run_rope,
        &(rope_args){.table = *table, .n_heads = n_heads, .head_dim = head_dim, .positions = positions, .x = x, .backward = backward},
        sizeof(rope_args), err);
}

typedef struct add_noise_args {
    lora_noise noise;
    lora_segments segments;
    lora_mat x;
} add_noise_args;

static lora_status run_add_noise(fake_device *f, void *args, lora_error *err) {
    add_noise_args *a = args;
    const void *bad = NULL;
    at_segments(f, &a->segments, &bad);
    at_mat(f, &a->x, &bad);
    return bad ? host_address("add_noise", err) : lora_cpu_add_noise(f->cpu, &a->noise, &a->segments, a->x, err);
}

static lora_status add_noise(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err) {
    return queue(ctx, run_add_noise, &(add_noise_args){.noise = *noise, .segments = *segments, .x = x}, sizeof(add_noise_args), err);
}

typedef struct attention_forward_args {
    lora_attention_shape shape;
    lora_segments segments;
    lora_mat q;
    lora_kv kv;
    lora_mat o;
    float *lse;
} attention_forward_args;

static lora_status run_attention_forward(fake_device *f, void *args, lora_error *err) {
    attention_forward_args *a = args;
    const void *bad = NULL;
    at_segments(f, &a->segments, &bad);
    at_mat(f, &a->q, &bad);
    at_kv(f, &a->kv, &bad);
    at_mat(f, &a->o, &bad);
    a->lse = fake_at(f, a->lse, &bad);
    return bad ? host_address("attention_forward", err)
               : lora_cpu_attention_forward(f->cpu, &a->shape, &a->segments, a->q, &a->kv, a->o, a->lse, err);
}

static lora_status attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                     const lora_kv *kv, lora_mat o, float *lse, lora_error *err) {
    return queue(ctx, run_attention_forward,
                 &(attention_forward_args){.shape = *shape, .segments = *segments, .q = q, .kv = *kv, .o = o, .lse = lse},
                 sizeof(attention_forward_args), err);
}

typedef struct attention_backward_args {
    lora_attention_shape shape;
    lora_segments segments;
    lora_attention_gradient gradient;
} attention_backward_args;

static lora_status run_attention_backward(fake_device *f, void *args, lora_error *err) {
    attention_backward_args *a = args;
    const void *bad = NULL;
    at_segments(f, &a->segments, &bad);
    at_gradient(f, &a->gradient, &bad);
    return bad ? host_address("attention_backward", err) : lora_cpu_attention_backward(f->cpu, &a->shape, &a->segments, &a->gradient, err);
}

static lora_status attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                      const lora_attention_gradient *gradient, lora_error *err) {
    return queue(ctx, run_attention_backward, &(attention_backward_args){.shape = *shape, .segments = *segments, .gradient = *gradient},
                 sizeof(attention_backward_args), err);
}

typedef struct mlp_forward_args {
    lora_activation activation;
    lora_mat gate;
    lora_mat up;
    lora_mat h;
} mlp_forward_args;

static lora_status run_mlp_forward(fake_device *f, void *args, lora_error *err) {
    mlp_forward_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->gate, &bad);
    at_mat(f, &a->up, &bad);
    at_mat(f, &a->h, &bad);
    return bad ? host_address("mlp_forward", err) : lora_cpu_mlp_forward(f->cpu, a->activation, a->gate, a->up, a->h, err);
}

static lora_status mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) {
    return queue(ctx, run_mlp_forward, &(mlp_forward_args){.activation = activation, .gate = gate, .up = up, .h = h},
                 sizeof(mlp_forward_args), err);
}

typedef struct mlp_backward_args {
    lora_activation activation;
    lora_mat dh;
    lora_mat gate;
    lora_mat up;
    lora_mat dgate;
    lora_mat dup;
} mlp_backward_args;

static lora_status run_mlp_backward(fake_device *f, void *args, lora_error *err) {
    mlp_backward_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->dh, &bad);
    at_mat(f, &a->gate, &bad);
    at_mat(f, &a->up, &bad);
    at_mat(f, &a->dgate, &bad);
    at_mat(f, &a->dup, &bad);
    return bad ? host_address("mlp_backward", err)
               : lora_cpu_mlp_backward(f->cpu, a->activation, a->dh, a->gate, a->up, a->dgate, a->dup, err);
}

static lora_status mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate,
                                lora_mat dup, lora_error *err) {
    return queue(ctx, run_mlp_backward,
                 &(mlp_backward_args){.activation = activation, .dh = dh, .gate = gate, .up = up, .dgate = dgate, .dup = dup},
                 sizeof(mlp_backward_args), err);
}

typedef struct embedding_forward_args {
    const int32_t *ids;
    lora_weight w;
    lora_mat y;
} embedding_forward_args;

static lora_status run_embedding_forward(fake_device *f, void *args, lora_error *err) {
    embedding_forward_args *a = args;
    const void *bad = NULL;
    a->ids = fake_at(f, a->ids, &bad);
    at_weight(f, &a->w, &bad);
    at_mat(f, &a->y, &bad);
    return bad ? host_address("embedding_forward", err) : lora_cpu_embedding_forward(f->cpu, a->ids, &a->w, a->y, err);
}

static lora_status embedding_forward(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) {
    return queue(ctx, run_embedding_forward, &(embedding_forward_args){.ids = ids, .w = *w, .y = y}, sizeof(embedding_forward_args), err);
}

typedef struct embedding_backward_args {
    const int32_t *ids;
    lora_mat dy;
    lora_mat dW;
} embedding_backward_args;

static lora_status run_embedding_backward(fake_device *f, void *args, lora_error *err) {
    embedding_backward_args *a = args;
    const void *bad = NULL;
    a->ids = fake_at(f, a->ids, &bad);
    at_mat(f, &a->dy, &bad);
    at_mat(f, &a->dW, &bad);
    return bad ? host_address("embedding_backward", err) : lora_cpu_embedding_backward(f->cpu, a->ids, a->dy, a->dW, err);
}

static lora_status embedding_backward(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err) {
    return queue(ctx, run_embedding_backward, &(embedding_backward_args){.ids = ids, .dy = dy, .dW = dW}, sizeof(embedding_backward_args),
                 err);
}

typedef struct linear_cross_entropy_args {
    lora_mat x;
    lora_weight w;
    lora_loss loss;
    lora_mat dx;
    float *dW;
} linear_cross_entropy_args;

static lora_status run_linear_cross_entropy(fake_device *f, void *args, lora_error *err) {
    linear_cross_entropy_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->x, &bad);
    at_weight(f, &a->w, &bad);
    at_loss(f, &a->loss, &bad);
    at_mat(f, &a->dx, &bad);
    a->dW = fake_at(f, a->dW, &bad);
    return bad ? host_address("linear_cross_entropy", err)
               : lora_cpu_linear_cross_entropy(f->cpu, a->x, &a->w, &a->loss, a->dx, a->dW, err);
}

static lora_status linear_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                        lora_error *err) {
    return queue(ctx, run_linear_cross_entropy, &(linear_cross_entropy_args){.x = x, .w = *w, .loss = *loss, .dx = dx, .dW = dW},
                 sizeof(linear_cross_entropy_args), err);
}

typedef struct values_loss_args {
    lora_mat y;
    lora_values loss;
    lora_mat dy;
} values_loss_args;

static lora_status run_values_loss(fake_device *f, void *args, lora_error *err) {
    values_loss_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->y, &bad);
    at_values(f, &a->loss, &bad);
    at_mat(f, &a->dy, &bad);
    return bad ? host_address("values_loss", err) : lora_cpu_values_loss(f->cpu, a->y, &a->loss, a->dy, err);
}

static lora_status values_loss(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) {
    return queue(ctx, run_values_loss, &(values_loss_args){.y = y, .loss = *loss, .dy = dy}, sizeof(values_loss_args), err);
}

typedef struct copy_rows_args {
    lora_mat from;
    const int64_t *from_rows;
    lora_mat to;
    const int64_t *to_rows;
    bool accumulate;
} copy_rows_args;

static lora_status run_copy_rows(fake_device *f, void *args, lora_error *err) {
    copy_rows_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->from, &bad);
    a->from_rows = fake_at(f, a->from_rows, &bad);
    at_mat(f, &a->to, &bad);
    a->to_rows = fake_at(f, a->to_rows, &bad);
    return bad ? host_address("copy_rows", err) : lora_cpu_copy_rows(f->cpu, a->from, a->from_rows, a->to, a->to_rows, a->accumulate, err);
}

static lora_status copy_rows(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate,
                             lora_error *err) {
    return queue(ctx, run_copy_rows,
                 &(copy_rows_args){.from = from, .from_rows = from_rows, .to = to, .to_rows = to_rows, .accumulate = accumulate},
                 sizeof(copy_rows_args), err);
}

typedef struct convert_rows_args {
    lora_mat from;
    lora_mat to;
} convert_rows_args;

static lora_status run_convert_rows(fake_device *f, void *args, lora_error *err) {
    convert_rows_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->from, &bad);
    at_mat(f, &a->to, &bad);
    return bad ? host_address("convert_rows", err) : lora_cpu_convert_rows(f->cpu, a->from, a->to, err);
}

static lora_status convert_rows(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err) {
    return queue(ctx, run_convert_rows, &(convert_rows_args){.from = from, .to = to}, sizeof(convert_rows_args), err);
}

typedef struct dora_norm_args {
    lora_weight w;
    lora_adapter adapter;
    float *norm;
} dora_norm_args;

static lora_status run_dora_norm(fake_device *f, void *args, lora_error *err) {
    dora_norm_args *a = args;
    const void *bad = NULL;
    at_weight(f, &a->w, &bad);
    at_adapter(f, &a->adapter, &bad);
    a->norm = fake_at(f, a->norm, &bad);
    return bad ? host_address("dora_norm", err) : lora_cpu_dora_norm(f->cpu, &a->w, &a->adapter, a->norm, err);
}

static lora_status dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm, lora_error *err) {
    return queue(ctx, run_dora_norm, &(dora_norm_args){.w = *w, .adapter = *adapter, .norm = norm}, sizeof(dora_norm_args), err);
}

typedef struct linear_merge_args {
    lora_weight w;
    lora_adapter adapter;
    bool has_adapter;
    const float *norm;
    float sign;
    float *merged;
} linear_merge_args;

static lora_status run_linear_merge(fake_device *f, void *args, lora_error *err) {
    linear_merge_args *a = args;
    const void *bad = NULL;
    at_weight(f, &a->w, &bad);
    at_adapter(f, &a->adapter, &bad);
    a->norm = fake_at(f, a->norm, &bad);
    a->merged = fake_at(f, a->merged, &bad);
    if (bad) return host_address("linear_merge", err);
    return lora_cpu_linear_merge(f->cpu, &a->w, a->has_adapter ? &a->adapter : NULL, a->norm, a->sign, a->merged, err);
}

static lora_status linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign,
                                float *merged, lora_error *err) {
    linear_merge_args args = {.w = *w, .has_adapter = adapter != NULL, .norm = norm, .sign = sign, .merged = merged};
    if (adapter) args.adapter = *adapter;
    return queue(ctx, run_linear_merge, &args, sizeof args, err);
}

typedef struct linear_merge_backward_args {
    lora_adapter adapter;
    lora_mat dmerged;
} linear_merge_backward_args;

static lora_status run_linear_merge_backward(fake_device *f, void *args, lora_error *err) {
    linear_merge_backward_args *a = args;
    const void *bad = NULL;
    at_adapter(f, &a->adapter, &bad);
    at_mat(f, &a->dmerged, &bad);
    return bad ? host_address("linear_merge_backward", err) : lora_cpu_linear_merge_backward(f->cpu, &a->adapter, a->dmerged, err);
}

static lora_status linear_merge_backward(lora_ctx *ctx, const lora_adapter *adapter, lora_mat dmerged, lora_error *err) {
    return queue(ctx, run_linear_merge_backward, &(linear_merge_backward_args){.adapter = *adapter, .dmerged = dmerged},
                 sizeof(linear_merge_backward_args), err);
}

const lora_backend_ops fake_ops = {
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .scale_rows = scale_rows,
    .add_noise = add_noise,
    .scale_columns = scale_columns,
    .scale_columns_backward = scale_columns_backward,
    .softcap_rows = softcap_rows,
    .softcap_backward = softcap_backward,
    .rope = rope,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .mlp_forward = mlp_forward,
    .mlp_backward = mlp_backward,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .linear_cross_entropy = linear_cross_entropy,
    .values_loss = values_loss,
    .copy_rows = copy_rows,
    .convert_rows = convert_rows,
    .dora_norm = dora_norm,
    .linear_merge = linear_merge,
    .linear_merge_backward = linear_merge_backward,
    .rope_table = fake_rope_table,
    .linear_forward = fake_linear_forward,
    .linear_backward = fake_linear_backward,
    .linear_keeps_low = fake_linear_keeps_low,
    .adamw_step = fake_adamw_step,
    .adamw8bit_step = fake_adamw8bit_step,
    .sgd_step = fake_sgd_step,
    .lion_step = fake_lion_step,
    .adafactor_step = fake_adafactor_step,
    .muon_step = fake_muon_step,
    .sum_of_squares = fake_sum_of_squares,
    .quantize_4bit = fake_quantize_4bit,
    .double_quantize = fake_double_quantize,
    .dequantize = fake_dequantize,
    .scratch_bytes = fake_scratch_bytes,
};
