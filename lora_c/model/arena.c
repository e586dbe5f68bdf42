/* One allocation for a whole pass. Its layout is a pure function of the shapes, of what trains and of the recompute
 * switch, so its size is known before the start. */
#include "lora_c/base/util.h"
#include "lora_c/model/extras.h"

/* cols < 2^33 (the widest row is Q + 2 KV), so cols * 4 fits */
static float *carve_floats(lora_carver *at, int64_t rows, int64_t cols) { return lora_carve(at, rows, (size_t)cols * sizeof(float)); }

/* Of the rows that lora_run_typed makes. */
static size_t typed_bytes(int64_t cols, lora_dtype dtype, int64_t lent) {
    return (size_t)lora_operand_ld(cols, dtype, lent) * lora_dtype_bytes(dtype);
}
static void *carve_typed(lora_carver *at, int64_t rows, int64_t cols, lora_dtype dtype, int64_t lent) {
    return lora_carve(at, rows, typed_bytes(cols, dtype, lent));
}

/* Whether attention's block is computed again: then q, k, v and x2 have no memory of their own (lay_inner, lay_states). */
static bool attention_again(const lora_decoder *d, const lora_buffers *b) {
    return d->recompute == LORA_RECOMPUTE_ATTENTION && b->lowest < d->config.num_hidden_layers;
}

/* The part of a state that every layer needs while it runs; branch: the memory of its branches, or NULL. */
static lora_layer_state carve_working_state(lora_carver *at, const lora_decoder_config *c, int64_t M, const lora_operand_types *types,
                                            float *branch, bool again) {
    lora_layer_state s = {.att_branch = branch, .mlp_branch = branch};
    if (!again) s.qkv = carve_floats(at, M, lora_qkv_width(c));
    s.att = carve_typed(at, M, lora_q_width(c), types->attention_output, types->lent);
    s.up = carve_floats(at, M, c->intermediate_size);
    s.gate = c->gated_mlp ? carve_floats(at, M, c->intermediate_size) : s.up;
    return s;
}

static int64_t norm_groups(const lora_decoder_config *c, int norm) {
    if (norm != LORA_Q_NORM && norm != LORA_K_NORM) return 1;
    return (norm == LORA_Q_NORM ? lora_q_width(c) : lora_kv_width(c)) / lora_norm_width(c, norm);
}

static void carve_statistics(lora_carver *at, const lora_decoder_config *c, int64_t M, lora_layer_state *s) {
    for (int i = 0; i < LORA_LAYER_NORMS; i++)
        if (lora_has_norm(c, i)) s->stats[i] = carve_floats(at, M, 2 * norm_groups(c, i));
    s->lse = carve_floats(at, M, c->num_attention_heads);
}

/* The state that layer (-1: every layer, in turn) leaves for its backward pass. */
static lora_layer_state carve_state(lora_carver *at, const lora_decoder *d, int64_t layer, int64_t M, const lora_operand_types *types,
                                    float *branch, bool again) {
    const lora_decoder_config *c = &d->config;
    lora_layer_state s = carve_working_state(at, c, M, types, branch, again);
    carve_statistics(at, c, M, &s);
    if (!again) s.x2 = carve_floats(at, M, c->hidden_size);
    if (c->qk_norm != LORA_QK_NORM_NONE) s.qk = carve_floats(at, M, lora_q_width(c) + lora_kv_width(c));
    for (int p = 0; p < LORA_BOTTLENECK_PLACES; p++)
        if (lora_has_bottleneck(d, layer, p)) s.before[p] = carve_floats(at, M, c->hidden_size);
    if (!c->post_norm) return s;
    s.att_branch = carve_floats(at, M, c->hidden_size); /* inputs of norms: kept */
    s.mlp_branch = carve_floats(at, M, c->hidden_size);
    return s;
}

/* Layers below lowest run in place on one residual stream; from there on each stream has memory of its own, or two take
 * turns where copies are kept. */
static void lay_streams(lora_carver *at, const lora_decoder_config *c, int64_t M, bool copies, lora_buffers *b) {
    float *streams[2] = {NULL, NULL};
    int64_t n = 0; /* so far */
    for (int64_t i = 0; i <= c->num_hidden_layers; i++) {
        if (i == 0 || (i >= b->lowest && b->lowest < c->num_hidden_layers)) {
            if (!copies || n < 2) streams[n % 2] = carve_floats(at, M, c->hidden_size);
            n++;
        }
        if (at->base) b->x[i] = streams[(n - 1) % 2];
    }
}

/* One state that every layer runs in, statistics and copies apart, those in memory of their own; the output of attention needs no copy
 * where it has 16 bits already. Of layers that are computed again the input alone is copied. */
static void lay_copies(lora_carver *at, lora_carver *of_copies, const lora_decoder *d, int64_t M, lora_buffers *b) {
    const lora_decoder_config *c = &d->config;
    int64_t L = c->num_hidden_layers;
    for (int64_t i = b->lowest; i < L; i++) {
        void *copy = i < L - 1 ? lora_carve_kept(of_copies, d, b, i, M) : NULL;
        if (at->base) b->kept[i] = copy;
        if (d->recompute == LORA_RECOMPUTE_LAYER) continue;
        lora_layer_state statistics = {0};
        carve_statistics(at, c, M, &statistics);
        lora_dtype type = b->types.attention_output;
        void *att = type != LORA_F32 ? carve_typed(at, M, lora_q_width(c), type, b->types.lent) : NULL;
        if (!at->base) continue;
        if (att) b->states[i].att = att;
        b->states[i].lse = statistics.lse;
        for (int n = 0; n < LORA_LAYER_NORMS; n++) b->states[i].stats[n] = statistics.stats[n];
    }
}

/* Only where a layer's state is its own: what is computed again brings its low-rank products with it. */
static void lay_low(lora_carver *at, const lora_decoder *d, int64_t layer, int64_t M, lora_layer_state *s) {
    for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
        const lora_matrix *m = &d->layers[layer].matrices[slot];
        bool wanted = m->has_adapter && m->adapter.dB && lora_linear_keeps_low(d->ctx, M, &m->adapter);
        s->low[slot] = wanted ? carve_floats(at, M, m->adapter.rank) : NULL;
    }
}

static void lay_states(lora_carver *at, const lora_decoder *d, int64_t M, bool own, lora_buffers *b) {
    const lora_decoder_config *c = &d->config;
    int64_t L = c->num_hidden_layers;
    float *branch = lora_has_branches(d) ? carve_floats(at, M, c->hidden_size) : NULL;
    const lora_operand_types *types = &b->types;
    const bool again = attention_again(d, b);
    lora_layer_state kept = b->lowest < L ? carve_state(at, d, own ? b->lowest : -1, M, types, branch, again)
                                          : carve_working_state(at, c, M, types, branch, again);
    for (int64_t i = 0; i < L; i++) {
        if (i > b->lowest && own) kept = carve_state(at, d, i, M, types, branch, again);
        if (i >= b->lowest && own) lay_low(at, d, i, M, &kept);
        if (!at->base) continue;
        b->states[i] = kept;
        if (again) b->states[i].x2 = b->x[i + 1]; /* which the MLP adds to in place */
        if (i < b->lowest)
            b->states[i] = (lora_layer_state){.qkv = kept.qkv,
                                              .att = kept.att,
                                              .gate = kept.gate,
                                              .up = kept.up,
                                              .att_branch = branch,
                                              .mlp_branch = branch,
                                              .x2 = b->x[i]};
    }
}

static void lay_gradients(lora_carver *at, const lora_decoder *d, int64_t M, lora_buffers *b) {
    const lora_decoder_config *c = &d->config;
    b->stats_final = carve_floats(at, M, 2);
    b->dxn = carve_floats(at, M, c->hidden_size);
    if (b->lowest == c->num_hidden_layers) return;
    b->dx = carve_floats(at, M, c->hidden_size);
    if (lora_has_branches(d)) b->dbranch = carve_floats(at, M, c->hidden_size);
}

/* Widest rows that work on scaling vectors and bottlenecks needs. */
typedef struct method_widths {
    int64_t scaled, unscaled, bottleneck; /* 0: none */
} method_widths;

static method_widths widths_of(const lora_decoder *d) {
    method_widths widths = {0};
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++) {
        const lora_layer *l = &d->layers[layer];
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            const lora_matrix *m = &l->matrices[slot];
            int64_t rows, cols;
            lora_decoder_matrix_shape(d, (lora_matrix_slot)slot, &rows, &cols);
            if (m->scaling.l && m->scaling.input) widths.scaled = lora_max_i64(widths.scaled, cols);
            if (m->scaling.dl && !m->scaling.input) widths.unscaled = lora_max_i64(widths.unscaled, rows);
        }
        for (int p = 0; p < LORA_BOTTLENECK_PLACES; p++) widths.bottleneck = lora_max_i64(widths.bottleneck, l->bottlenecks[p].size);
    }
    return widths;
}

static void lay_methods(lora_carver *at, const lora_decoder *d, int64_t M, lora_buffers *b) {
    method_widths widths = widths_of(d);
    bool backward = b->lowest < d->config.num_hidden_layers;
    if (widths.scaled) b->scaled = carve_floats(at, M, widths.scaled);
    if (widths.scaled && backward) b->dscaled = carve_floats(at, M, widths.scaled);
    if (widths.unscaled && backward) b->unscaled = carve_floats(at, M, widths.unscaled);
    for (int i = 0; widths.bottleneck && i < (backward ? 3 : 1); i++) b->bottleneck[i] = carve_floats(at, M, widths.bottleneck);
}

/* h, and what takes its place in backward. */
static void *carve_h(lora_carver *at, const lora_decoder_config *c, int64_t M, const lora_operand_types *types) {
    size_t h = typed_bytes(c->intermediate_size, types->mlp_inner, types->lent), gradients = 0;
    if (types->mlp_gradient != LORA_F32)
        gradients = (c->gated_mlp ? 2 : 1) * typed_bytes(c->intermediate_size, types->mlp_gradient, types->lent);
    return lora_carve(at, M, h > gradients ? h : gradients);
}

/* h and dh serve the MLP, datt and dqkv the attention that follows it in backward: the same memory twice. So do q, k and v that are
 * computed again between the two. */
static void lay_inner(lora_carver *at, const lora_decoder *d, int64_t M, lora_buffers *b) {
    const lora_decoder_config *c = &d->config;
    size_t begin = at->used;
    b->h = carve_h(at, c, M, &b->types);
    b->dh = carve_floats(at, M, c->intermediate_size);
    size_t mlp_end = at->used;
    if (begin != SIZE_MAX) at->used = begin;
    b->datt = carve_floats(at, M, lora_q_width(c));
    b->dqkv = carve_floats(at, M, lora_qkv_width(c));
    if (attention_again(d, b)) {
        float *qkv = carve_floats(at, M, lora_qkv_width(c));
        for (int64_t i = 0; i < c->num_hidden_layers && at->base; i++) b->states[i].qkv = qkv;
    }
    if (at->used < mlp_end) at->used = mlp_end;
}

/* Streams of float32, and what is normed; of few columns rows of 16 bits are the longer ones, with what is lent. */
static float *carve_xn(lora_carver *at, const lora_decoder_config *c, int64_t M, const lora_operand_types *types) {
    size_t stream = typed_bytes(c->hidden_size, LORA_F32, 0), attention = typed_bytes(c->hidden_size, types->attention_input, types->lent),
           mlp = typed_bytes(c->hidden_size, types->mlp_input, types->lent), normed = attention > mlp ? attention : mlp;
    return lora_carve(at, M, stream > normed ? stream : normed);
}

/* Whether copies of layers are kept, and in which type: what is computed again is not rounded, and in bfloat16 neither are the inputs that
 * it is made from. */
static bool keeps_copies(const lora_decoder *d, lora_buffers *b) {
    bool rounds = d->recompute != LORA_RECOMPUTE_LAYER || d->activation_dtype == LORA_INT8;
    b->kept_dtype = rounds ? d->activation_dtype : LORA_F32;
    bool asked = b->kept_dtype != LORA_F32 || d->offload_folder || d->recompute == LORA_RECOMPUTE_ATTENTION;
    return asked && b->lowest < d->config.num_hidden_layers;
}

/* base: of the device, or NULL to count; offloaded: the same of copies in memory of the host.
 * The tables by layer are the decoder's own. */
static size_t layout(const lora_decoder *d, int64_t M, bool training, void *base, lora_carver *offloaded, lora_buffers *b) {
    const lora_decoder_config *c = &d->config;
    lora_carver at = {.base = base};
    int64_t L = c->num_hidden_layers;
    *b = (lora_buffers){.lowest = training ? lora_lowest_trainable_layer(d) : L, .x = d->streams, .states = d->states};
    b->types = lora_operand_types_of(d, M);
    b->tables = lora_lay_tables(&at, d, M);
    b->loss_sum = lora_carve(&at, 1, sizeof *b->loss_sum);
    if (lora_has_values(c)) b->labels = carve_floats(&at, M, c->num_labels);
    bool keeps_all = d->recompute != LORA_RECOMPUTE_LAYER, copies = keeps_copies(d, b);
    if (copies) b->kept = d->kept;
    lay_streams(&at, c, M, copies, b);
    lay_states(&at, d, M, keeps_all && !copies, b);
    if (copies) lay_copies(&at, d->offload_folder ? offloaded : &at, d, M, b);
    b->xn = carve_xn(&at, c, M, &b->types);
    lay_methods(&at, d, M, b);
    if (training) lay_gradients(&at, d, M, b);
    if (b->lowest < L)
        lay_inner(&at, d, M, b);
    else if (b->types.mlp_inner != LORA_F32)
        b->h = carve_typed(&at, M, c->intermediate_size, b->types.mlp_inner, b->types.lent);
    else if (base)
        b->h = b->states[0].gate;
    return at.used;
}

/* Passes in a row that need less than half of the arena, before it becomes as small as they need it. */
enum { SMALL_PASSES = 16 };

/* Replaces the arena; the old one is freed first, so that the two never live together. */
static lora_status resize_arena(lora_decoder *d, size_t bytes) {
    void *old = d->arena;
    d->arena_bytes = 0;
    d->arena = NULL; /* never a freed pointer, not even in a child forked right here */
    d->small_passes = (lora_small_passes){0};
    lora_ctx_free(d->ctx, old);
    if (bytes > 0 && bytes < SIZE_MAX / 2) d->arena = lora_ctx_alloc_uncleared(d->ctx, LORA_MEM_ACTIVATION, bytes);
    if (d->arena) d->arena_bytes = bytes;
    return bytes == 0 || d->arena ? LORA_OK : LORA_ENOMEM;
}

/* Host memory for the tables of a batch: grows only. */
static lora_status reach_stage(lora_decoder *d, int64_t n_tokens, lora_error *err) {
    lora_carver at = {.base = NULL};
    (void)lora_lay_tables(&at, d, n_tokens);
    if (at.used <= d->stage_bytes) return LORA_OK;
    void *old = d->stage;
    d->stage_bytes = 0;
    d->stage = NULL;
    lora_stage_free(d->ctx, old);
    d->stage = lora_stage_alloc(d->ctx, at.used);
    LORA_CHECK(d->stage, err, LORA_ENOMEM, "batch: expected %zu bytes for the tables of %lld tokens, got none", at.used,
               (long long)n_tokens);
    d->stage_bytes = at.used;
    return LORA_OK;
}

/* The size that the arena should have for a pass of so many bytes: memory of one large batch is not kept for ever. */
static size_t arena_size_for(lora_decoder *d, size_t bytes) {
    lora_small_passes *small = &d->small_passes;
    if (bytes > d->arena_bytes) return bytes;
    if (bytes > d->arena_bytes / 2) {
        *small = (lora_small_passes){0};
        return d->arena_bytes;
    }
    if (bytes > small->most_bytes) small->most_bytes = bytes;
    return ++small->count < SMALL_PASSES ? d->arena_bytes : small->most_bytes;
}

lora_status lora_arena_prepare(lora_decoder *d, int64_t n_tokens, bool training, lora_buffers *b, lora_error *err) {
    lora_carver offloaded = {.base = NULL};
    size_t bytes = layout(d, n_tokens, training, NULL, &offloaded, b), size = arena_size_for(d, bytes);
    if (size != d->arena_bytes)
        LORA_CHECK(resize_arena(d, size) == LORA_OK, err, LORA_ENOMEM,
                   "activations: expected %zu bytes for %lld tokens, got none; use fewer tokens or recompute=\"layer\"", size,
                   (long long)n_tokens);
    LORA_TRY(reach_stage(d, n_tokens, err));
    if (offloaded.used > 0) LORA_TRY(lora_reach_offloaded(d, offloaded.used, err));
    offloaded = (lora_carver){.base = d->offloaded};
    layout(d, n_tokens, training, d->arena, &offloaded, b);
    return LORA_OK;
}

void lora_decoder_free_activations(lora_decoder *d) {
    (void)resize_arena(d, 0);
    lora_free_offloaded(d);
    void *stage = d->stage;
    d->stage_bytes = 0;
    d->stage = NULL;
    lora_stage_free(d->ctx, stage);
    void *tables = d->with_virtual;
    d->with_virtual_bytes = 0;
    d->with_virtual = NULL;
    lora_host_free(d->ctx, tables);
}

int64_t lora_decoder_arena_bytes(const lora_decoder *d, int64_t n_tokens, bool training) {
    lora_buffers unused;
    lora_carver offloaded = {.base = NULL};
    size_t bytes = n_tokens > 0 ? layout(d, n_tokens, training, NULL, &offloaded, &unused) : 0;
    return bytes > INT64_MAX ? INT64_MAX : (int64_t)bytes;
}

int64_t lora_decoder_offload_bytes(const lora_decoder *d, int64_t n_tokens) {
    lora_buffers unused;
    lora_carver offloaded = {.base = NULL};
    if (n_tokens > 0) (void)layout(d, n_tokens, true, NULL, &offloaded, &unused);
    return offloaded.used > INT64_MAX ? INT64_MAX : (int64_t)offloaded.used;
}
