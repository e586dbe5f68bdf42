/* The most that the operations of a training step are asked for, as a pure function of the decoder and the batch. */
#include "lora_c/base/util.h"
#include "lora_c/model/extras.h"

static void reach(int64_t *most, int64_t n) { *most = lora_max_i64(*most, n); }
static int64_t eights(int64_t n) { return lora_round_up(n, 8); }
static int64_t fours(int64_t n) { return lora_round_up(n, 4); }

static lora_stored_kind stored(const lora_weight *w) {
    return w->kind == LORA_WEIGHT_F32 ? LORA_STORED_FLOAT32 : w->kind == LORA_WEIGHT_BF16 ? LORA_STORED_BFLOAT16 : LORA_STORED_PACKED;
}

static void add_weight(lora_scratch_shape *s, lora_stored_kind kind, int64_t N, int64_t K, int64_t rank) {
    reach(&s->weights[kind], lora_max_i64(N * eights(K + rank), (N + rank) * eights(K)));
}

static void add_adapter(lora_scratch_shape *s, const lora_weight *w, const lora_adapter *a, int64_t N, int64_t K) {
    bool dropped = a->dropout > 0;
    reach(&s->rank, a->rank);
    reach(&s->factor, lora_max_i64(a->rank * eights(K), N * eights(a->rank)));
    if (dropped) reach(&s->dropped, K);
    if (!a->magnitude) return;
    reach(&s->dora, 2 * fours(N) + (dropped ? 4 * fours(K) : 0));
    if (stored(w) != LORA_STORED_FLOAT32) reach(&s->normed, N * fours(K));
    reach(&s->dy, N); /* times magnitude / norm, in float32 */
    if (dropped) reach(&s->x, K);
}

static void add_matrix(const lora_decoder *d, int64_t M, const lora_matrix *m, int slot, lora_scratch_shape *s) {
    int64_t N, K;
    lora_decoder_matrix_shape(d, (lora_matrix_slot)slot, &N, &K);
    add_weight(s, stored(&m->w), N, K, m->has_adapter ? m->adapter.rank : 0);
    if (m->dbias) reach(&s->summed, N);
    if (m->scaling.dl) reach(&s->summed, m->scaling.input ? K : N);
    if (m->scaling.l && m->scaling.input) reach(&s->x, K);
    if (!m->has_adapter) return;
    add_adapter(s, &m->w, &m->adapter, N, K);
    s->low_kept = s->low_kept || (m->adapter.dB && lora_linear_keeps_low(d->ctx, M, &m->adapter));
}

static void add_norm(const lora_norm_weights *norm, int64_t columns, lora_scratch_shape *s) {
    if (norm->dw || norm->db) reach(&s->summed, 2 * columns);
}

/* Whole rows of what a norm of a layer reads: its groups lie beside each other. */
static int64_t normed_columns(const lora_decoder_config *c, int norm) {
    return norm == LORA_Q_NORM ? lora_q_width(c) : norm == LORA_K_NORM ? lora_kv_width(c) : c->hidden_size;
}

static void add_layer(const lora_decoder *d, int64_t M, const lora_layer *l, lora_scratch_shape *s) {
    const lora_decoder_config *c = &d->config;
    for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
        if (slot == LORA_GATE_PROJ && !c->gated_mlp) continue;
        add_matrix(d, M, &l->matrices[slot], slot, s);
    }
    for (int norm = 0; norm < LORA_LAYER_NORMS; norm++)
        if (lora_has_norm(c, norm)) add_norm(&l->norms[norm], normed_columns(c, norm), s);
    for (int p = 0; p < LORA_BOTTLENECK_PLACES; p++) {
        int64_t size = l->bottlenecks[p].size, wider = lora_max_i64(size, c->hidden_size);
        if (size == 0) continue;
        add_weight(s, LORA_STORED_FLOAT32, size, c->hidden_size, 0);
        add_weight(s, LORA_STORED_FLOAT32, c->hidden_size, size, 0);
        reach(&s->x, wider);
        reach(&s->dy, wider);
        if (l->bottlenecks[p].ddown_bias || l->bottlenecks[p].dup_bias) reach(&s->summed, wider);
    }
}

/* What is float32 in every layer, and becomes an operand. */
static void add_activations(const lora_decoder_config *c, const lora_operand_types *types, lora_scratch_shape *s) {
    int64_t H = c->hidden_size, I = c->intermediate_size, Q = lora_q_width(c);
    if (types->attention_input == LORA_F32 || types->mlp_input == LORA_F32) reach(&s->x, H);
    if (types->attention_output == LORA_F32) reach(&s->x, Q);
    if (types->mlp_inner == LORA_F32) reach(&s->x, I);
    reach(&s->dy, lora_max_i64(H, Q)); /* the stream's, and attention's */
    reach(&s->dy, lora_kv_width(c));
    if (types->mlp_gradient == LORA_F32) reach(&s->dy, I);
}

static void add_head(const lora_decoder *d, lora_scratch_shape *s) {
    const lora_decoder_config *c = &d->config;
    s->head = lora_global_weight(d, LORA_LM_HEAD);
    s->head.rows = lora_head_rows(c);
    s->head.cols = c->hidden_size;
    s->head_trains = lora_global_gradient(d, LORA_LM_HEAD) != NULL;
    if (lora_has_values(c)) {
        add_weight(s, stored(&s->head), s->head.rows, s->head.cols, 0);
        reach(&s->x, c->hidden_size);
        reach(&s->dy, s->head.rows);
    }
    for (int slot = LORA_LAYER_MATRICES; slot < LORA_MATRIX_SLOTS; slot++) {
        const lora_matrix *m = lora_global(d, slot);
        if (!m->has_adapter || !(m->adapter.dA || m->adapter.dB)) continue;
        reach(&s->merged, slot == LORA_LM_HEAD ? lora_head_rows(c) : c->vocab_size);
        reach(&s->merged_rank, m->adapter.rank);
    }
}

/* What the decoder itself keeps beside its arena: tables of RoPE, row norms of DoRA, ids of token rows, and what only some models have. */
static int64_t own_bytes(const lora_decoder *d, int64_t n_tokens) {
    int64_t bytes = lora_rope_tables_bytes(d, n_tokens) + lora_adapted_globals_bytes(d) + lora_prefix_encoder_bytes(d) +
                    d->token_rows.n * (int64_t)sizeof *d->token_rows.ids;
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            const lora_matrix *m = &d->layers[layer].matrices[slot];
            if (m->norm) bytes += m->w.rows * (int64_t)sizeof *m->norm;
        }
    return bytes;
}

int64_t lora_decoder_scratch_bytes(const lora_decoder *d, int64_t n_tokens, int64_t n_segments) {
    const lora_decoder_config *c = &d->config;
    lora_operand_types types = lora_operand_types_of(d, n_tokens);
    lora_scratch_shape s = {.n_tokens = n_tokens,
                            .n_segments = lora_min_i64(n_tokens, n_segments),
                            .n_heads = c->num_attention_heads,
                            .n_kv_heads = c->num_key_value_heads,
                            .head_dim = c->head_dim,
                            .lent = types.lent};
    bool backward = lora_lowest_trainable_layer(d) < c->num_hidden_layers; /* there gate and up, and q, k and v, are one product */
    s.widest = lora_max_i64((backward && c->gated_mlp ? 2 : 1) * c->intermediate_size,
                            lora_max_i64(backward ? lora_qkv_width(c) : lora_q_width(c), c->hidden_size));
    add_activations(c, &types, &s);
    for (int64_t layer = 0; layer < c->num_hidden_layers; layer++) add_layer(d, n_tokens, &d->layers[layer], &s);
    add_norm(&d->final_norm, c->hidden_size, &s);
    add_head(d, &s);
    if (d->virtual.tokens.encoder) reach(&s.summed, c->num_hidden_layers * 2 * lora_kv_width(c));
    s.head_alone = s.head_trains && !backward && s.summed == 0; /* not the norm before it either */
    return lora_scratch_bytes(d->ctx, &s) + own_bytes(d, n_tokens);
}
