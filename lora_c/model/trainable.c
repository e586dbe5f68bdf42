/* Which parts of a decoder train, and so how far down the backward pass goes. */
#include "lora_c/model/extras.h"

bool lora_reads_input(const lora_matrix *m) {
    return m->dW || m->scaling.dl || (m->has_adapter && (m->adapter.dA || m->adapter.dB || m->adapter.dmagnitude));
}

bool lora_matrix_trains(const lora_matrix *m) { return lora_reads_input(m) || m->dbias; }

bool lora_norm_trains(const lora_norm_weights *n) { return n->dw || n->db; }

bool lora_bottleneck_trains(const lora_bottleneck *b) { return b->ddown || b->ddown_bias || b->dup || b->dup_bias; }

bool lora_qk_norm_trains(const lora_layer *l) {
    return lora_norm_trains(&l->norms[LORA_Q_NORM]) || lora_norm_trains(&l->norms[LORA_K_NORM]);
}

bool lora_qkv_trains(const lora_layer *l) {
    return l->prefix_trains || lora_norm_trains(&l->norms[LORA_INPUT_LAYERNORM]) || lora_qk_norm_trains(l) ||
           lora_matrix_trains(&l->matrices[LORA_Q_PROJ]) || lora_matrix_trains(&l->matrices[LORA_K_PROJ]) ||
           lora_matrix_trains(&l->matrices[LORA_V_PROJ]);
}

bool lora_attention_trains(const lora_layer *l) {
    return lora_qkv_trains(l) || lora_matrix_trains(&l->matrices[LORA_O_PROJ]) || lora_norm_trains(&l->norms[LORA_ATTENTION_OUTPUT_NORM]) ||
           lora_bottleneck_trains(&l->bottlenecks[LORA_AFTER_ATTENTION]);
}

bool lora_gate_up_trains(const lora_layer *l) {
    return lora_norm_trains(&l->norms[LORA_POST_ATTENTION_LAYERNORM]) || lora_matrix_trains(&l->matrices[LORA_GATE_PROJ]) ||
           lora_matrix_trains(&l->matrices[LORA_UP_PROJ]);
}

static bool layer_trains(const lora_layer *l) {
    return lora_attention_trains(l) || lora_gate_up_trains(l) || lora_matrix_trains(&l->matrices[LORA_DOWN_PROJ]) ||
           lora_norm_trains(&l->norms[LORA_MLP_OUTPUT_NORM]) || lora_bottleneck_trains(&l->bottlenecks[LORA_AFTER_MLP]);
}

bool lora_embeddings_train(const lora_decoder *d) {
    return lora_global_gradient(d, LORA_EMBED_TOKENS) || lora_global(d, LORA_EMBED_POSITIONS)->dW || lora_prompt_trains(d);
}

int64_t lora_lowest_trainable_layer(const lora_decoder *d) {
    int64_t layer = 0, L = d->config.num_hidden_layers;
    if (lora_embeddings_train(d)) return 0; /* their gradient comes through every layer */
    while (layer < L && !layer_trains(&d->layers[layer])) layer++;
    return layer;
}
