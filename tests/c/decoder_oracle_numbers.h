/* What the oracle and the decoder beside it must agree on. */
#ifndef LORA_TESTS_DECODER_ORACLE_NUMBERS_H
#define LORA_TESTS_DECODER_ORACLE_NUMBERS_H

#include "tests/c/decoder_oracle.h"

static const double EPS = 1e-5, SCALE = 0.75, ROPE_SCALE = 1.1;
static const double INV_FREQ[2][OD / 2] = {{1, 0.3, 0.1, 0.02}, {0.7, 0.2, 0.05, 0.01}};
static const double EMBEDDING_SCALE = 1.5, RESIDUAL_SCALE = 0.6, ATTENTION_SCALE = 0.25, LOGIT_SCALE = 0.5, PROMPT_SCALE = 1.25;
static const double ATTENTION_CAP = 1.25, LOGIT_CAP = 1.5;
enum { SWITCH = 5 };
static const uint64_t SEED = 11;

/* The slot whose A slot reads. */
static inline int a_slot(const oracle_options *o, int slot) {
    if (!o->shared_a) return slot;
    return slot == LORA_K_PROJ || slot == LORA_V_PROJ ? LORA_Q_PROJ : slot == LORA_UP_PROJ && !o->ungated ? LORA_GATE_PROJ : slot;
}

static inline bool is_local(const oracle_options *o, int layer) { return o->local_layers && layer < 2; }

static inline int64_t window_of(const oracle_options *o, int layer) { return o->local_layers && layer == 2 ? 0 : o->window; }

/* -1: no rotation */
static inline int rope_of(const oracle_options *o, int layer) { return o->local_layers ? (is_local(o, layer) ? layer : -1) : 0; }

static inline bool scales_input(int slot) { return slot == LORA_K_PROJ || slot == LORA_UP_PROJ || slot == LORA_DOWN_PROJ; }

static inline bool has_bottleneck(const oracle_options *o, int layer, int place) {
    return o->bottlenecks && (layer == 2 || layer == place);
}
static const double BOTTLENECK_SCALE = 0.8;
static const lora_activation BOTTLENECK_ACTIVATION[] = {LORA_SILU, LORA_GELU_TANH, LORA_RELU}; /* by layer */

#endif
