/* Every operation of a backend's table on every device, one after another: rows, attention, the MLP and the vocabulary. Linear layers and
 * optimizers are in check_backend_linear.c. */
#include "tests/c/check_backend.h"

/* More than one tile of rows, and tails. */
enum { M = 37, H = 45, HEADS = 4, KV_HEADS = 2, D = 20, SEGMENTS = 3, V = 53, POSITIONS = 41 };

/* --- rows --- */

static lora_norm make_norm(op_run *r, lora_norm_kind kind, int64_t width, int64_t groups, float offset) {
    return (lora_norm){.kind = kind,
                       .H = width,
                       .groups = groups,
                       .eps = 1e-5f,
                       .weight_offset = offset,
                       .weight = op_floats(r, width, 1),
                       .bias = kind == LORA_NORM_LAYER ? op_floats(r, width, 1) : NULL};
}

static void run_norms(op_run *r, bool backward) {
    for (int i = 0; i < 4; i++) {
        int64_t groups = i % 2 ? 3 : 1;
        lora_norm norm = make_norm(r, i < 2 ? LORA_NORM_RMS : LORA_NORM_LAYER, H, groups, i == 1 ? 1 : 0);
        lora_mat x = op_mat(r, M, groups * H, 1), y = op_mat(r, M, groups * H, 1), dx = op_mat(r, M, groups * H, 1);
        float *stats = op_floats(r, M * groups * 2, 1), *dw = op_floats(r, H, 1), *db = op_floats(r, H, 1);
        OK(lora_norm_forward(r->ctx, &norm, x, y, stats, ERR));
        if (!backward) {
            op_keep_mat(r, "y", y);
            op_keep(r, "stats", stats, M * groups * 2, VALUES_F32);
            continue;
        }
        OK(lora_norm_backward(r->ctx, &norm, y, x, stats, dx, i % 2, dw, i < 2 ? NULL : db, ERR));
        op_keep_mat(r, "dx", dx);
        op_keep(r, "dweight", dw, H, VALUES_F32);
        op_keep(r, "dbias", db, H, VALUES_F32);
    }
}

static void norm_forward(op_run *r) { run_norms(r, false); }
static void norm_backward(op_run *r) { run_norms(r, true); }

static void scale_rows(op_run *r) {
    lora_mat x = op_mat(r, M, H, 1), y = op_mat(r, M, H, 1);
    OK(lora_scale_rows(r->ctx, 0.7f, x, y, true, ERR));
    OK(lora_scale_rows(r->ctx, -1.3f, x, x, false, ERR));
    op_keep_mat(r, "added", y);
    op_keep_mat(r, "in place", x);
}

static void add_noise(op_run *r) {
    static const int32_t starts[] = {0, 1, M};
    lora_mat x = op_mat(r, M, H, 1);
    lora_segments segments = {.n = 2, .cu_seqlens = starts, .on_device = op_send(r, starts, sizeof starts)};
    OK(lora_add_noise(r->ctx, &(lora_noise){.alpha = 5, .seed = 3, .stream = 1 << 20}, &segments, x, ERR));
    op_keep_mat(r, "noisy", x);
}

static void scale_columns(op_run *r) {
    lora_mat x = op_mat(r, M, H, 1), y = op_mat(r, M, H, 1);
    const float *l = op_floats(r, H, 1);
    OK(lora_scale_columns(r->ctx, l, x, y, ERR));
    OK(lora_scale_columns(r->ctx, l, x, x, ERR));
    op_keep_mat(r, "y", y);
    op_keep_mat(r, "in place", x);
}

static void scale_columns_backward(op_run *r) {
    for (int i = 0; i < 3; i++) {
        lora_mat dy = op_mat(r, M, H, 1), x = op_mat(r, M, H, 1), dx = i == 2 ? dy : op_mat(r, M, H, 1);
        float *l = op_floats(r, H, 1), *dl = op_floats(r, H, 1);
        OK(lora_scale_columns_backward(r->ctx, l, dy, i == 0 ? lora_mat_none() : x, dx, i == 1, i == 0 ? NULL : dl, ERR));
        op_keep_mat(r, "dx", dx);
        op_keep(r, "dl", dl, H, VALUES_F32);
    }
}

static void softcap_rows(op_run *r) {
    lora_mat x = op_mat(r, M, H, 4);
    OK(lora_softcap_rows(r->ctx, 1.5f, x, ERR));
    op_keep_mat(r, "x", x);
}

static void softcap_backward(op_run *r) {
    lora_mat y = op_mat(r, M, H, 1), dy = op_mat(r, M, H, 4);
    OK(lora_softcap_backward(r->ctx, 1.5f, y, dy, ERR));
    op_keep_mat(r, "dy", dy);
}

static void copy_rows(op_run *r) {
    int64_t numbers[M];
    for (int64_t i = 0; i < M; i++) numbers[i] = i * 7 % M; /* each once */
    const int64_t *rows = op_send(r, numbers, sizeof numbers);
    for (int i = 0; i < 6; i++) {
        lora_mat from = op_mat(r, M, H, 1), to = op_mat(r, M, H, 1);
        OK(lora_copy_rows(r->ctx, from, i / 2 == 1 ? rows : NULL, to, i / 2 == 2 ? rows : NULL, i % 2, ERR));
        op_keep_mat(r, "to", to);
    }
}

static void convert_rows(op_run *r) {
    lora_mat x = op_mat(r, M, H, 1), back = op_mat(r, M, H, 1), narrow = op_mat(r, M, H, 1);
    narrow.dtype = LORA_BF16;
    OK(lora_convert_rows(r->ctx, x, narrow, ERR));
    OK(lora_convert_rows(r->ctx, narrow, back, ERR));
    op_keep_mat(r, "bfloat16", narrow);
    op_keep_mat(r, "float32", back);
}

/* --- rotations and attention --- */

static const double INV_FREQ[D / 2] = {1, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001};

static lora_rotations make_rotations(op_run *r, const int32_t *positions, int64_t half) {
    float *c = op_floats(r, POSITIONS * half, 1), *s = op_floats(r, POSITIONS * half, 1);
    OK(lora_rope_table(r->ctx, POSITIONS, positions, half, INV_FREQ, 1.1, c, s, ERR));
    return (lora_rotations){.cos = c, .sin = s, .n_positions = POSITIONS, .half = half};
}

static void rope_table(op_run *r) {
    int32_t far[POSITIONS];
    for (int32_t i = 0; i < POSITIONS; i++) far[i] = 131 * i;
    for (int i = 0; i < 2; i++) {
        lora_rotations t = make_rotations(r, i ? op_send(r, far, sizeof far) : NULL, D / 2);
        op_keep(r, "cos", t.cos, POSITIONS * D / 2, VALUES_F32);
        op_keep(r, "sin", t.sin, POSITIONS * D / 2, VALUES_F32);
    }
}

static void rope(op_run *r) {
    int32_t numbers[M];
    for (int32_t i = 0; i < M; i++) numbers[i] = i * 5 % POSITIONS;
    const int32_t *positions = op_send(r, numbers, sizeof numbers);
    for (int i = 0; i < 4; i++) {
        lora_rotations t = make_rotations(r, NULL, i < 2 ? D / 2 : D / 4);
        lora_mat x = op_mat(r, M, HEADS * D, 1);
        OK(lora_rope(r->ctx, &t, HEADS, D, positions, x, i % 2, ERR));
        op_keep_mat(r, "x", x);
    }
}

static const int32_t CU_SEQLENS[SEGMENTS + 1] = {0, 5, 6, M};
static const lora_attention_shape SHAPES[] = {
    {.n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = D, .scale = 0.2f},
    {.n_heads = HEADS, .n_kv_heads = HEADS, .head_dim = D, .scale = 0.2f, .sliding_window = 4},
    {.n_heads = HEADS, .n_kv_heads = 1, .head_dim = D, .scale = 0.2f, .softcap = 1.5f},
};
enum { N_SHAPES = sizeof SHAPES / sizeof *SHAPES };

static lora_segments make_segments(op_run *r) {
    return (lora_segments){.n = SEGMENTS, .cu_seqlens = CU_SEQLENS, .on_device = op_send(r, CU_SEQLENS, sizeof CU_SEQLENS)};
}

/* Segment s has past[s] keys before its queries, each segment in rows of its own. */
static lora_kv make_keys(op_run *r, const lora_attention_shape *shape, const int64_t *past) {
    int64_t start[SEGMENTS], length[SEGMENTS], rows = 0, width = shape->n_kv_heads * shape->head_dim;
    for (int s = 0; s < SEGMENTS; s++) {
        start[s] = rows;
        length[s] = past[s] + CU_SEQLENS[s + 1] - CU_SEQLENS[s];
        rows += length[s];
    }
    lora_mat k = op_mat(r, rows, width, 1), v = op_mat(r, rows, width, 1);
    return (lora_kv){.k = k.data,
                     .v = v.data,
                     .ldk = k.ld,
                     .ldv = v.ld,
                     .start = op_send(r, start, sizeof start),
                     .length = op_send(r, length, sizeof length)};
}

static void attention_forward(op_run *r) {
    static const int64_t past[2][SEGMENTS] = {{0, 0, 0}, {3, 0, 17}};
    for (int i = 0; i < 2 * N_SHAPES; i++) {
        const lora_attention_shape *shape = &SHAPES[i / 2];
        lora_segments segments = make_segments(r);
        lora_kv kv = make_keys(r, shape, past[i % 2]);
        lora_mat q = op_mat(r, M, HEADS * D, 1), o = op_mat(r, M, HEADS * D, 1);
        float *lse = op_floats(r, M * HEADS, 1);
        OK(lora_attention_forward(r->ctx, shape, &segments, q, &kv, o, i % 2 ? NULL : lse, ERR));
        op_keep_mat(r, "o", o);
        op_keep(r, "lse", lse, M * HEADS, VALUES_F32);
    }
}

static void attention_backward(op_run *r) {
    static const int64_t none[SEGMENTS] = {0};
    for (int i = 0; i < N_SHAPES; i++) {
        const lora_attention_shape *shape = &SHAPES[i];
        int64_t width = HEADS * D, kv_width = shape->n_kv_heads * D;
        lora_segments segments = make_segments(r);
        lora_kv kv = make_keys(r, shape, none);
        lora_attention_gradient g = {.q = op_mat(r, M, width, 1),
                                     .k = lora_mat_f32(kv.k, M, kv_width, kv.ldk),
                                     .v = lora_mat_f32(kv.v, M, kv_width, kv.ldv),
                                     .o = op_mat(r, M, width, 1),
                                     .dout = op_mat(r, M, width, 1),
                                     .dq = op_mat(r, M, width, 1),
                                     .dk = op_mat(r, M, kv_width, 1),
                                     .dv = op_mat(r, M, kv_width, 1)};
        float *lse = op_floats(r, M * HEADS, 1);
        g.lse = lse;
        OK(lora_attention_forward(r->ctx, shape, &segments, g.q, &kv, g.o, lse, ERR));
        OK(lora_attention_backward(r->ctx, shape, &segments, &g, ERR));
        op_keep_mat(r, "dq", g.dq);
        op_keep_mat(r, "dk", g.dk);
        op_keep_mat(r, "dv", g.dv);
    }
}

/* --- MLP --- */

static void mlp_forward(op_run *r) {
    for (int i = 0; i < 3; i++) {
        lora_mat gate = op_mat(r, M, H, 2), up = op_mat(r, M, H, 1), h = op_mat(r, M, H, 1);
        OK(lora_mlp_forward(r->ctx, i ? LORA_GELU_TANH : LORA_SILU, gate, i < 2 ? up : lora_mat_none(), h, ERR));
        op_keep_mat(r, "h", h);
    }
}

static void mlp_backward(op_run *r) {
    for (int i = 0; i < 3; i++) {
        lora_mat gate = op_mat(r, M, H, 2), up = op_mat(r, M, H, 1), dh = op_mat(r, M, H, 1), dgate = op_mat(r, M, H, 1);
        lora_mat none = lora_mat_none();
        OK(lora_mlp_backward(r->ctx, i ? LORA_GELU_TANH : LORA_SILU, dh, gate, i < 2 ? up : none, dgate, i < 2 ? up : none, ERR));
        op_keep_mat(r, "dgate", dgate);
        op_keep_mat(r, "dup in the place of up", up);
    }
}

/* --- vocabulary --- */

static const int32_t *make_ids(op_run *r) {
    int32_t ids[M];
    for (int32_t i = 0; i < M; i++) ids[i] = i * 19 % 23; /* some twice */
    return op_send(r, ids, sizeof ids);
}

static void embedding_forward(op_run *r) {
    const int32_t *ids = make_ids(r);
    for (int i = 0; i < backend_weights(); i++) {
        backend_weight host = backend_make_weight(r, i, V);
        lora_mat y = op_mat(r, M, host.w.cols, 1);
        lora_weight w = op_weight(r, &host.w);
        OK(lora_embedding_forward(r->ctx, ids, &w, y, ERR));
        op_keep_mat(r, host.name, y);
        backend_free_weight(&host);
    }
}

static void embedding_backward(op_run *r) {
    lora_mat dy = op_mat(r, M, H, 1), dW = op_mat(r, V, H, 1);
    OK(lora_embedding_backward(r->ctx, make_ids(r), dy, dW, ERR));
    op_keep_mat(r, "dW", dW);
}

static void linear_cross_entropy(op_run *r) {
    float weights[M];
    for (int i = 0; i < M; i++) weights[i] = (float)(i % 3) / 2;
    const int32_t *targets = make_ids(r);
    const float *loss_weight = op_send(r, weights, sizeof weights);
    for (int i = 0; i < backend_weights(); i++) {
        backend_weight host = backend_make_weight(r, i, V);
        int64_t K = host.w.cols;
        lora_weight w = op_weight(r, &host.w);
        lora_mat x = op_mat(r, M, K, 0.3f), dx = op_mat(r, M, K, 1);
        double *sum = (double *)(void *)op_floats(r, 2, 1);
        float *losses = op_floats(r, M, 1), *dW = op_floats(r, V * K, 1);
        lora_loss loss = {.targets = targets,
                          .loss_weight = loss_weight,
                          .grad_scale = 0.5f,
                          .loss_sum = sum,
                          .token_loss = losses,
                          .map = {.scale = i % 2 ? 0.5f : 1, .softcap = i % 3 ? 0 : 2}};
        OK(lora_linear_cross_entropy(r->ctx, x, &w, &loss, i % 4 == 3 ? lora_mat_none() : dx, i == 0 ? dW : NULL, ERR));
        op_keep(r, "loss_sum", sum, 1, VALUES_F64);
        op_keep(r, "token_loss", losses, M, VALUES_F32);
        op_keep_mat(r, host.name, dx);
        if (i == 0) op_keep(r, "dW", dW, V * K, VALUES_F32);
        backend_free_weight(&host);
    }
}

static void values_loss(op_run *r) {
    float weights[M], values[M * 3];
    for (int i = 0; i < M; i++) weights[i] = (float)(i % 3) / 2;
    for (int i = 0; i < M * 3; i++) values[i] = (float)(i % 5) / 4;
    for (int kind = LORA_VALUES_SQUARED_ERROR; kind <= LORA_VALUES_BINARY_ENTROPY; kind++) {
        lora_mat y = op_mat(r, M, 3, 1), dy = op_mat(r, M, 3, 1);
        double *sum = (double *)(void *)op_floats(r, 2, 1);
        float *losses = op_floats(r, M, 1);
        lora_values loss = {.kind = (lora_values_kind)kind,
                            .values = op_send(r, values, sizeof values),
                            .loss_weight = op_send(r, weights, sizeof weights),
                            .grad_scale = 0.5f,
                            .loss_sum = sum,
                            .row_loss = losses};
        OK(lora_values_loss(r->ctx, y, &loss, kind ? y : dy, ERR));
        op_keep(r, "loss_sum", sum, 1, VALUES_F64);
        op_keep(r, "row_loss", losses, M, VALUES_F32);
        op_keep_mat(r, "dy", kind ? y : dy);
    }
}

static const op_case CASES[] = {
    {"norm_forward", norm_forward},
    {"norm_backward", norm_backward},
    {"scale_rows", scale_rows},
    {"add_noise", add_noise},
    {"scale_columns", scale_columns},
    {"scale_columns_backward", scale_columns_backward},
    {"softcap_rows", softcap_rows},
    {"softcap_backward", softcap_backward},
    {"rope_table", rope_table},
    {"rope", rope},
    {"attention_forward", attention_forward},
    {"attention_backward", attention_backward},
    {"mlp_forward", mlp_forward},
    {"mlp_backward", mlp_backward},
    {"embedding_forward", embedding_forward},
    {"embedding_backward", embedding_backward},
    {"linear_cross_entropy", linear_cross_entropy},
    {"values_loss", values_loss},
    {"copy_rows", copy_rows},
    {"convert_rows", convert_rows},
};

/* --- the tables --- */

typedef void any_function(void);

/* Every entry is there, and every entry has a case here, in check_backend_linear.c or check_backend_quantize.c, or is asked by one. */
static void check_tables(void) {
    enum { ENTRIES = sizeof(lora_backend_ops) / sizeof(any_function *), MEMORY = sizeof(lora_backend_memory) / sizeof(any_function *) };
    CHECK(ENTRIES == sizeof CASES / sizeof *CASES + BACKEND_LINEAR_ENTRIES + BACKEND_QUANTIZE_ENTRIES,
          "operations without a case: the table has %d", (int)ENTRIES);
    const checked_device *devices;
    int n = checked_devices(&devices);
    for (int d = 0; d < n; d++) {
        lora_ctx *ctx = device_ctx_on(devices[d].name, backend_paths(), LORA_ISA_AUTO, 1);
        const lora_backend *b = ctx->view.backend;
        any_function *entries[ENTRIES + MEMORY];
        memcpy(entries, &b->ops, sizeof b->ops);
        memcpy(entries + ENTRIES, &b->memory, sizeof b->memory);
        for (int i = 0; i < ENTRIES + MEMORY; i++) CHECK(entries[i], "%s: entry %d of its table is missing", devices[d].name, i);
        CHECK(b->abi == LORA_BACKEND_ABI && (d == 0 || (b->devices && b->create && b->destroy)), "%s: its table", devices[d].name);
        device_ctx_free(ctx);
    }
}

void check_backend(void) {
    check_tables();
    op_check_cases(CASES, sizeof CASES / sizeof *CASES);
    check_backend_linear();
}
