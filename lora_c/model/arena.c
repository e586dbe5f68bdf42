/* One allocation for a whole pass. Its layout is a pure function of the shapes, of what trains and of the recompute
 * switch, so its size is known before the start. */
#include "lora_c/base/util.h"
#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm.h"

typedef struct carver {
    unsigned char *base; /* NULL: only count */
    size_t used;         /* SIZE_MAX: more than the address space */
} carver;

static void *carve(carver *c, int64_t n, size_t element_bytes) {
    size_t begin = c->used, bytes;
    if (!lora_mul_size((size_t)n, element_bytes, &bytes) || bytes > SIZE_MAX - LORA_ALIGN ||
        __builtin_add_overflow(begin, (bytes + LORA_ALIGN - 1) & ~(size_t)(LORA_ALIGN - 1), &c->used))
        c->used = SIZE_MAX;
    return c->base ? c->base + begin : NULL;
}

/* cols < 2^33 (the widest row is Q + 2 KV), so cols * 4 fits */
static float *carve_floats(carver *c, int64_t rows, int64_t cols) { return carve(c, rows, (size_t)cols * sizeof(float)); }

/* The part of a state that every layer needs while it runs; branch: the memory of its branches, or NULL. */
static lora_layer_state carve_working_state(carver *c, const lora_decoder_config *k, int64_t M, float *branch) {
    lora_layer_state s = {.att_branch = branch, .mlp_branch = branch};
    s.qkv = carve_floats(c, M, lora_qkv_width(k));
    s.att = carve_floats(c, M, lora_q_width(k));
    s.up = carve_floats(c, M, k->intermediate_size);
    s.gate = k->gated_mlp ? carve_floats(c, M, k->intermediate_size) : s.up;
    return s;
}

static int64_t norm_groups(const lora_decoder_config *k, int norm) {
    if (norm != LORA_Q_NORM && norm != LORA_K_NORM) return 1;
    return (norm == LORA_Q_NORM ? lora_q_width(k) : lora_kv_width(k)) / lora_norm_width(k, norm);
}

static void carve_statistics(carver *c, const lora_decoder_config *k, int64_t M, lora_layer_state *s) {
    for (int i = 0; i < LORA_LAYER_NORMS; i++)
        if (lora_has_norm(k, i)) s->stats[i] = carve_floats(c, M, 2 * norm_groups(k, i));
    s->lse = carve_floats(c, M, k->num_attention_heads);
}

static lora_layer_state carve_state(carver *c, const lora_decoder_config *k, int64_t M, float *branch) {
    lora_layer_state s = carve_working_state(c, k, M, branch);
    carve_statistics(c, k, M, &s);
    s.x2 = carve_floats(c, M, k->hidden_size);
    if (k->qk_norm != LORA_QK_NORM_NONE) s.qk = carve_floats(c, M, lora_q_width(k) + lora_kv_width(k));
    if (!k->post_norm) return s;
    s.att_branch = carve_floats(c, M, k->hidden_size); /* inputs of norms: kept */
    s.mlp_branch = carve_floats(c, M, k->hidden_size);
    return s;
}

/* Layers below lowest run in place on one residual stream; from there on each stream has memory of its own, or two take
 * turns where copies are kept. */
static void lay_streams(carver *c, const lora_decoder_config *k, int64_t M, bool copies, lora_buffers *b) {
    float *streams[2] = {NULL, NULL};
    int64_t n = 0; /* so far */
    for (int64_t i = 0; i <= k->num_hidden_layers; i++) {
        if (i == 0 || (i >= b->lowest && b->lowest < k->num_hidden_layers)) {
            if (!copies || n < 2) streams[n % 2] = carve_floats(c, M, k->hidden_size);
            n++;
        }
        if (c->base) b->x[i] = streams[(n - 1) % 2];
    }
}

/* One state that every layer runs in, statistics and copies apart. */
static void lay_copies(carver *c, const lora_decoder_config *k, int64_t M, lora_buffers *b) {
    int64_t L = k->num_hidden_layers;
    uint16_t **kept = carve(c, L, sizeof *kept);
    for (int64_t i = b->lowest; i < L; i++) {
        lora_layer_state statistics = {0};
        carve_statistics(c, k, M, &statistics);
        uint16_t *copy = i < L - 1 ? carve(c, M, (size_t)lora_kept_width(k) * sizeof *copy) : NULL;
        if (!c->base) continue;
        kept[i] = copy;
        b->states[i].lse = statistics.lse;
        for (int n = 0; n < LORA_LAYER_NORMS; n++) b->states[i].stats[n] = statistics.stats[n];
    }
    b->kept = kept;
}

/* Only where a layer's state is its own: what is computed again brings its low-rank products with it. */
static void lay_low(carver *c, const lora_ctx *ctx, const lora_layer *l, int64_t M, lora_layer_state *s) {
    for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
        const lora_matrix *m = &l->matrices[slot];
        bool wanted = m->has_adapter && lora_linear_keeps_low(ctx, M, &m->adapter);
        s->low[slot] = wanted ? carve_floats(c, M, m->adapter.rank) : NULL;
    }
}

static void lay_states(carver *c, const lora_decoder *d, int64_t M, bool own, lora_buffers *b) {
    const lora_decoder_config *k = &d->config;
    int64_t L = k->num_hidden_layers;
    float *branch = lora_has_branches(k) ? carve_floats(c, M, k->hidden_size) : NULL;
    lora_layer_state kept = b->lowest < L ? carve_state(c, k, M, branch) : carve_working_state(c, k, M, branch);
    for (int64_t i = 0; i < L; i++) {
        if (i > b->lowest && own) kept = carve_state(c, k, M, branch);
        if (i >= b->lowest && own) lay_low(c, d->ctx, &d->layers[i], M, &kept);
        if (!c->base) continue;
        b->states[i] = kept;
        if (i < b->lowest)
            b->states[i] = (lora_layer_state){.qkv = kept.qkv, .att = kept.att, .gate = kept.gate, .up = kept.up,
                                              .att_branch = branch, .mlp_branch = branch, .x2 = b->x[i]};
    }
}

static void lay_gradients(carver *c, const lora_decoder *d, int64_t M, lora_buffers *b) {
    const lora_decoder_config *k = &d->config;
    b->stats_final = carve_floats(c, M, 2);
    b->dxn = carve_floats(c, M, k->hidden_size);
    if (b->lowest == k->num_hidden_layers) return;
    b->dx = carve_floats(c, M, k->hidden_size);
    if (lora_has_branches(k)) b->dbranch = carve_floats(c, M, k->hidden_size);
}

/* h and dh serve the MLP, datt and dqkv the attention that follows it in backward: the same memory twice. */
static void lay_inner(carver *c, const lora_decoder_config *k, int64_t M, lora_buffers *b) {
    size_t begin = c->used;
    b->h = carve_floats(c, M, k->intermediate_size);
    b->dh = carve_floats(c, M, k->intermediate_size);
    size_t mlp_end = c->used;
    if (begin != SIZE_MAX) c->used = begin;
    b->datt = carve_floats(c, M, lora_q_width(k));
    b->dqkv = carve_floats(c, M, lora_qkv_width(k));
    if (c->used < mlp_end) c->used = mlp_end;
}

static size_t layout(const lora_decoder *d, int64_t M, bool training, void *base, lora_buffers *b) {
    const lora_decoder_config *k = &d->config;
    carver c = {base, 0};
    int64_t L = k->num_hidden_layers;
    *b = (lora_buffers){.lowest = training ? lora_lowest_trainable_layer(d) : L};
    b->x = carve(&c, L + 1, sizeof *b->x);
    b->states = carve(&c, L, sizeof *b->states);
    b->positions = carve(&c, M, sizeof *b->positions);
    b->rope_rows = k->rope_switch ? carve(&c, M, sizeof *b->rope_rows) : b->positions;
    b->kv_start = carve(&c, M, sizeof *b->kv_start);
    b->kv_length = carve(&c, M, sizeof *b->kv_length);
    b->kv_rows = carve(&c, M, sizeof *b->kv_rows);
    b->last_rows = carve(&c, M, sizeof *b->last_rows);
    bool keeps_all = d->recompute == LORA_RECOMPUTE_NONE, copies = keeps_all && d->activation_dtype == LORA_BF16 && b->lowest < L;
    lay_streams(&c, k, M, copies, b);
    lay_states(&c, d, M, keeps_all && !copies, b);
    if (copies) lay_copies(&c, k, M, b);
    b->xn = carve_floats(&c, M, k->hidden_size);
    if (training) lay_gradients(&c, d, M, b);
    if (b->lowest < L)
        lay_inner(&c, k, M, b);
    else if (base)
        b->h = b->states[0].gate;
    return c.used;
}

/* Passes in a row that need less than half of the arena, before it becomes as small as they need it. */
enum { SMALL_PASSES = 16 };

/* Replaces the arena; the old one is freed first, so that the two never live together. */
static lora_status resize_arena(lora_decoder *d, size_t bytes) {
    void *old = d->arena;
    d->arena_bytes = 0;
    d->arena = NULL; /* never a freed pointer, not even in a child forked right here */
    d->small_passes = (lora_small_passes){0};
    lora_mem_free(&d->ctx->engine->mem, old);
    if (bytes > 0 && bytes < SIZE_MAX / 2) d->arena = lora_mem_alloc(&d->ctx->engine->mem, LORA_MEM_ACTIVATION, bytes);
    if (d->arena) d->arena_bytes = bytes;
    return bytes == 0 || d->arena ? LORA_OK : LORA_ENOMEM;
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
    size_t bytes = layout(d, n_tokens, training, NULL, b), size = arena_size_for(d, bytes);
    if (size != d->arena_bytes)
        LORA_CHECK(resize_arena(d, size) == LORA_OK, err, LORA_ENOMEM,
                   "activations: expected %zu bytes for %lld tokens, got none; use fewer tokens or recompute=\"layer\"",
                   size, (long long)n_tokens);
    layout(d, n_tokens, training, d->arena, b);
    return LORA_OK;
}

void lora_decoder_free_activations(lora_decoder *d) { (void)resize_arena(d, 0); }

int64_t lora_decoder_arena_bytes(const lora_decoder *d, int64_t n_tokens, bool training) {
    lora_buffers unused;
    size_t bytes = n_tokens > 0 ? layout(d, n_tokens, training, NULL, &unused) : 0;
    return bytes > INT64_MAX ? INT64_MAX : (int64_t)bytes;
}

int64_t lora_decoder_scratch_bytes(const lora_decoder *d, int64_t n_tokens) {
    const lora_decoder_config *k = &d->config;
    enum { PER_THREAD = 1 << 20 }; /* packed weights and tiles, in a cache */
    lora_weight head = {.rows = k->vocab_size, .cols = k->hidden_size};
    int64_t widest = lora_max_i64((k->gated_mlp ? 2 : 1) * k->intermediate_size, lora_max_i64(lora_qkv_width(k), k->hidden_size));
    return lora_linear_cross_entropy_scratch(d->ctx, n_tokens, &head) + lora_gemm_scratch(d->ctx, n_tokens, widest) +
           lora_pool_threads(d->ctx->engine->pool) * PER_THREAD + lora_adapted_globals_bytes(d);
}
