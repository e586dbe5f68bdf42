/* What only products read is kept in the type that they round it to: written once by what makes it, half as large where that is bfloat16,
 * and the products have the same bits. Here alone is decided what that is; the stream, its gradient and what sums are taken of stay
 * float32. */
#include "lora_c/model/pass.h"

/* Whether a scaling of some layer works on what one of n matrices from slot first on reads, or on what it puts out. */
static bool scales(const lora_decoder *d, int first, int n, bool input) {
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = first; slot < first + n; slot++) {
            const lora_scaling *s = &d->layers[layer].matrices[slot].scaling;
            if (s->l && s->input == input) return true;
        }
    return false;
}

static int64_t largest_rank(const lora_decoder *d) {
    int64_t rank = 0;
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            const lora_matrix *m = &d->layers[layer].matrices[slot];
            if (m->has_adapter) rank = lora_max_i64(rank, m->adapter.rank);
        }
    return rank;
}

lora_operand_types lora_operand_types_of(const lora_decoder *d, int64_t M) {
    lora_dtype narrow = lora_linear_operand(d->ctx, M);
    bool normed = d->config.pre_norm;                                               /* else the stream itself is read */
    bool prefix = d->virtual.tokens.n > 0 && d->virtual.tokens.kind == LORA_PREFIX; /* works in the memory of the output of attention */
    return (lora_operand_types){
        .attention_input = !normed || scales(d, LORA_Q_PROJ, 3, true) ? LORA_F32 : narrow,
        .attention_output = prefix || scales(d, LORA_O_PROJ, 1, true) ? LORA_F32 : narrow,
        .mlp_input = !normed || scales(d, LORA_GATE_PROJ, 2, true) ? LORA_F32 : narrow,
        .mlp_inner = scales(d, LORA_DOWN_PROJ, 1, true) ? LORA_F32 : narrow,
        .mlp_gradient = scales(d, LORA_GATE_PROJ, 2, false) ? LORA_F32 : narrow,
        .lent = narrow == LORA_F32 ? 0 : lora_round_up(largest_rank(d), 8),
    };
}

lora_mat lora_attention_output(const lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer) {
    return lora_run_typed(run, b->states[layer].att, lora_q_width(&d->config), b->types.attention_output, b->types.lent);
}

lora_mat lora_mlp_inner(const lora_decoder *d, const lora_run *run, const lora_buffers *b) {
    return lora_run_typed(run, b->h, d->config.intermediate_size, b->types.mlp_inner, b->types.lent);
}

/* In float32 they take the place of gate and up; else that of h, which is not needed by then. */
void lora_mlp_gradients(const lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, lora_mat *dgate, lora_mat *dup) {
    const lora_layer_state *s = &b->states[layer];
    int64_t I = d->config.intermediate_size;
    bool narrow = b->types.mlp_gradient != LORA_F32;
    *dgate = lora_run_typed(run, narrow ? b->h : s->gate, I, b->types.mlp_gradient, b->types.lent);
    *dup = lora_mat_none();
    if (!d->config.gated_mlp) return;
    *dup = lora_run_typed(run, narrow ? (void *)((uint16_t *)b->h + run->n_tokens * dgate->ld) : s->up, I, b->types.mlp_gradient,
                          b->types.lent);
}
