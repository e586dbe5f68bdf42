/* The operations of the fake device: each copies its arguments, and at the sync translates their addresses and calls the CPU's. */
#include "tests/fake_device/fake.h"

#include <stdlib.h>

#include "lora_c/ops/cpu_ops.h"

/* --- addresses --- */

/* p = the device's own address of p. */
#define AT(p) ((p) = fake_at(f, (p), bad))

static void at_mat(const fake_device *f, lora_mat *m, const void **bad) { AT(m->data); }

static void at_norm(const fake_device *f, lora_norm *n, const void **bad) {
    AT(n->weight);
    AT(n->bias);
}

static void at_rotations(const fake_device *f, lora_rotations *r, const void **bad) {
    AT(r->cos);
    AT(r->sin);
}

/* The host's table may have changed since: the device reads its own. */
static void at_segments(const fake_device *f, lora_segments *s, const void **bad) { s->cu_seqlens = AT(s->on_device); }

static void at_kv(const fake_device *f, lora_kv *kv, const void **bad) {
    AT(kv->k);
    AT(kv->v);
    AT(kv->start);
    AT(kv->length);
}

static void at_gradient(const fake_device *f, lora_attention_gradient *g, const void **bad) {
    lora_mat *const all[] = {&g->q, &g->k, &g->v, &g->o, &g->dout, &g->dq, &g->dk, &g->dv};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) at_mat(f, all[i], bad);
    AT(g->lse);
}

static void at_loss(const fake_device *f, lora_loss *l, const void **bad) {
    AT(l->targets);
    AT(l->loss_weight);
    AT(l->loss_sum);
    AT(l->token_loss);
}

static void at_weight(const fake_device *f, lora_weight *w, const void **bad) {
    switch (w->kind) {
    case LORA_WEIGHT_F32:
    case LORA_WEIGHT_BF16: AT(w->dense.data); return;
    case LORA_WEIGHT_GGML: AT(w->ggml.blocks); return;
    case LORA_WEIGHT_NF4:
        AT(w->nf4.lut);
        AT(w->nf4.codes);
        AT(w->nf4.absmax);
        AT(w->nf4.absmax_codes);
        AT(w->nf4.nested_absmax);
        AT(w->nf4.nested_map);
    }
}

static void at_adapter(const fake_device *f, lora_adapter *a, const void **bad) {
    AT(a->A);
    AT(a->B);
    AT(a->magnitude);
    AT(a->dA);
    AT(a->dB);
    AT(a->dmagnitude);
}

static void at_pass(const fake_device *f, lora_adapter_pass *p, const void **bad) {
    AT(p->norm);
    AT(p->low);
}

static lora_status queue(lora_ctx *ctx, fake_run_fn *run, const void *args, size_t bytes, lora_error *err) {
    const lora_backend_view *view = lora_backend_of(ctx);
    return fake_enqueue(view->state, (fake_job){.run = run, .precision = view->precision}, args, bytes, err);
}

static lora_status host_address(const char *operation, lora_error *err) {
    return lora_fail(err, LORA_EINVAL, "%s: expected addresses of the device, got one of the host", operation);
}

/* --- operations --- */

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

/* --- operations whose arguments are lists or on the host --- */

typedef struct rope_table_args {
    int64_t n_positions, half;
    const int32_t *positions;
    double scale;
    float *cos, *sin;
    double inv_freq[]; /* (half), of the host: copied */
} rope_table_args;

static lora_status run_rope_table(fake_device *f, void *args, lora_error *err) {
    rope_table_args *a = args;
    const void *bad = NULL;
    a->positions = fake_at(f, a->positions, &bad);
    a->cos = fake_at(f, a->cos, &bad);
    a->sin = fake_at(f, a->sin, &bad);
    if (bad) return host_address("rope_table", err);
    return lora_cpu_rope_table(f->cpu, a->n_positions, a->positions, a->half, a->inv_freq, a->scale, a->cos, a->sin, err);
}

static lora_status rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                              double scale, float *cos, float *sin, lora_error *err) {
    size_t bytes = sizeof(rope_table_args) + (size_t)half * sizeof(double);
    rope_table_args *args = malloc(bytes);
    LORA_CHECK(args, err, LORA_ENOMEM, "queue: expected %zu bytes, got none", bytes);
    *args = (rope_table_args){.n_positions = n_positions, .half = half, .positions = positions, .scale = scale, .cos = cos, .sin = sin};
    for (int64_t i = 0; i < half; i++) args->inv_freq[i] = inv_freq[i];
    lora_status status = queue(ctx, run_rope_table, args, bytes, err);
    free(args);
    return status;
}

typedef struct linear_forward_args {
    lora_mat x;
    int64_t n;
    lora_linear_layer layers[LORA_LINEAR_LAYERS];
    lora_weight w[LORA_LINEAR_LAYERS];
    lora_adapter adapters[LORA_LINEAR_LAYERS];
    lora_adapter_rows groups[LORA_LINEAR_LAYERS][LORA_DECODE_BATCH];
    lora_adapter group_adapters[LORA_LINEAR_LAYERS][LORA_DECODE_BATCH];
} linear_forward_args;

static lora_status run_linear_forward(fake_device *f, void *args, lora_error *err) {
    linear_forward_args *a = args;
    const void *from_host = NULL, **bad = &from_host;
    at_mat(f, &a->x, bad);
    for (int64_t i = 0; i < a->n; i++) {
        lora_linear_layer *l = a->layers + i;
        at_weight(f, &a->w[i], bad);
        at_adapter(f, &a->adapters[i], bad);
        at_pass(f, &l->pass, bad);
        at_mat(f, &l->y, bad);
        AT(l->bias);
        l->w = &a->w[i];
        if (l->adapter) l->adapter = &a->adapters[i];
        for (int64_t g = 0; g < l->n_groups; g++) {
            at_adapter(f, &a->group_adapters[i][g], bad);
            a->groups[i][g].adapter = &a->group_adapters[i][g];
        }
        l->groups = a->groups[i];
    }
    return from_host ? host_address("linear_forward", err) : lora_cpu_linear_forward(f->cpu, a->x, a->n, a->layers, err);
}

static lora_status linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    linear_forward_args args = {.x = x, .n = n};
    for (int64_t i = 0; i < n; i++) {
        args.layers[i] = layers[i];
        args.w[i] = *layers[i].w;
        if (layers[i].adapter) args.adapters[i] = *layers[i].adapter;
        for (int64_t g = 0; g < layers[i].n_groups; g++) {
            args.groups[i][g] = layers[i].groups[g];
            args.group_adapters[i][g] = *layers[i].groups[g].adapter;
        }
    }
    return queue(ctx, run_linear_forward, &args, sizeof args, err);
}

typedef struct linear_backward_args {
    lora_mat x, dx;
    int64_t n;
    bool accumulate_dx;
    lora_linear_gradient gradients[LORA_LINEAR_LAYERS];
    lora_weight w[LORA_LINEAR_LAYERS];
    lora_adapter adapters[LORA_LINEAR_LAYERS];
} linear_backward_args;

static lora_status run_linear_backward(fake_device *f, void *args, lora_error *err) {
    linear_backward_args *a = args;
    const void *from_host = NULL, **bad = &from_host;
    at_mat(f, &a->x, bad);
    at_mat(f, &a->dx, bad);
    for (int64_t i = 0; i < a->n; i++) {
        lora_linear_gradient *g = a->gradients + i;
        at_weight(f, &a->w[i], bad);
        at_adapter(f, &a->adapters[i], bad);
        at_pass(f, &g->pass, bad);
        at_mat(f, &g->dy, bad);
        AT(g->dW);
        AT(g->dbias);
        g->w = &a->w[i];
        if (g->adapter) g->adapter = &a->adapters[i];
    }
    if (from_host) return host_address("linear_backward", err);
    return lora_cpu_linear_backward(f->cpu, a->x, a->n, a->gradients, a->dx, a->accumulate_dx, err);
}

static lora_status linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                   bool accumulate_dx, lora_error *err) {
    linear_backward_args args = {.x = x, .dx = dx, .n = n, .accumulate_dx = accumulate_dx};
    for (int64_t i = 0; i < n; i++) {
        args.gradients[i] = gradients[i];
        args.w[i] = *gradients[i].w;
        if (gradients[i].adapter) args.adapters[i] = *gradients[i].adapter;
    }
    return queue(ctx, run_linear_backward, &args, sizeof args, err);
}

static bool linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter) {
    const fake_device *f = lora_backend_of(ctx)->state;
    return lora_cpu_linear_keeps_low(f->cpu, M, adapter);
}

static int64_t scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape) {
    const fake_device *f = lora_backend_of(ctx)->state;
    return lora_cpu_scratch_bytes(f->cpu, shape);
}

typedef struct optim_args {
    int64_t n;
    float *m, *v;
    double *sum;
    lora_adamw_hyper hyper;
    lora_param params[]; /* (n) */
} optim_args;

static bool at_params(const fake_device *f, optim_args *a) {
    const void *from_host = NULL, **bad = &from_host;
    AT(a->m);
    AT(a->v);
    AT(a->sum);
    for (int64_t i = 0; i < a->n; i++) {
        AT(a->params[i].data);
        AT(a->params[i].grad);
    }
    return !from_host;
}

static lora_status run_adamw_step(fake_device *f, void *args, lora_error *err) {
    optim_args *a = args;
    return at_params(f, a) ? lora_cpu_adamw_step(f->cpu, a->n, a->params, a->m, a->v, &a->hyper, err) : host_address("adamw_step", err);
}

static lora_status run_sum_of_squares(fake_device *f, void *args, lora_error *err) {
    optim_args *a = args;
    return at_params(f, a) ? lora_cpu_sum_of_squares(f->cpu, a->n, a->params, a->sum, err) : host_address("sum_of_squares", err);
}

static lora_status queue_optim(lora_ctx *ctx, fake_run_fn *run, optim_args head, const lora_param *params, lora_error *err) {
    size_t bytes = sizeof head + (size_t)head.n * sizeof *params;
    optim_args *args = malloc(bytes);
    LORA_CHECK(args, err, LORA_ENOMEM, "queue: expected %zu bytes, got none", bytes);
    *args = head;
    for (int64_t i = 0; i < head.n; i++) args->params[i] = params[i];
    lora_status status = queue(ctx, run, args, bytes, err);
    free(args);
    return status;
}

static lora_status adamw_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper,
                              lora_error *err) {
    return queue_optim(ctx, run_adamw_step, (optim_args){.n = n, .m = m, .v = v, .hyper = *hyper}, params, err);
}

static lora_status sum_of_squares(lora_ctx *ctx, int64_t n, const lora_param *params, double *sum, lora_error *err) {
    return queue_optim(ctx, run_sum_of_squares, (optim_args){.n = n, .sum = sum}, params, err);
}

const lora_backend_ops fake_ops = {
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .scale_rows = scale_rows,
    .softcap_rows = softcap_rows,
    .rope = rope,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .mlp_forward = mlp_forward,
    .mlp_backward = mlp_backward,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .linear_cross_entropy = linear_cross_entropy,
    .copy_rows = copy_rows,
    .convert_rows = convert_rows,
    .dora_norm = dora_norm,
    .linear_merge = linear_merge,
    .linear_merge_backward = linear_merge_backward,
    .rope_table = rope_table,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
    .linear_keeps_low = linear_keeps_low,
    .adamw_step = adamw_step,
    .sum_of_squares = sum_of_squares,
    .scratch_bytes = scratch_bytes,
};
