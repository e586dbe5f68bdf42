/* A small random decoder with every kind of part, and the same model written as naive float64 loops: the oracle of
 * losses, logits and (by central differences) gradients. */
#ifndef LORA_TESTS_DECODER_ORACLE_H
#define LORA_TESTS_DECODER_ORACLE_H

#include "tests/c/check.h"

/* Q = 32 differs from H, KV = 16 from both: no two shapes can be mistaken for each other. */
enum { OH = 24, OI = 40, O_HEADS = 4, O_KV_HEADS = 2, OD = 8, O_LAYERS = 3, OV = 37, OR = 3, O_POSITIONS = 16 };
enum { O_SIZE = 5 }; /* of bottlenecks */
enum { OQ = O_HEADS * OD, OKV = O_KV_HEADS * OD, O_TOKENS = 13, O_SEGMENTS = 3 };
/* Virtual tokens before each segment, and an encoder of a prefix. */
enum { O_VIRTUAL = 3, O_PREFIX_WIDTH = O_LAYERS * 2 * OKV, O_ENCODER_WIDTH = 10, O_ENCODER_HIDDEN = 7 };

/* Tensors of a layer: matrix and bias by slot, norm and norm bias by slot, A and B by slot, scaling by slot, the parts of the
 * bottlenecks by place. Then those that belong to no layer. */
enum {
    O_MATRIX = 0,
    O_BIAS = O_MATRIX + LORA_LAYER_MATRICES,
    O_NORM = O_BIAS + LORA_LAYER_MATRICES,
    O_NORM_BIAS = O_NORM + LORA_LAYER_NORMS,
    O_A = O_NORM_BIAS + LORA_LAYER_NORMS,
    O_B = O_A + LORA_LAYER_MATRICES,
    O_SCALING = O_B + LORA_LAYER_MATRICES,
    O_DOWN = O_SCALING + LORA_LAYER_MATRICES,
    O_DOWN_BIAS = O_DOWN + LORA_BOTTLENECK_PLACES,
    O_UP = O_DOWN_BIAS + LORA_BOTTLENECK_PLACES,
    O_UP_BIAS = O_UP + LORA_BOTTLENECK_PLACES,
    O_PER_LAYER = O_UP_BIAS + LORA_BOTTLENECK_PLACES
};
enum {
    O_EMBED = O_LAYERS * O_PER_LAYER,
    O_HEAD,
    O_POSITIONS_EMBED,
    O_FINAL_NORM,
    O_FINAL_NORM_BIAS,
    O_VALUES,
    O_ENCODER,
    O_TENSORS = O_ENCODER + 5
};
/* O_VALUES: embeddings of a prompt, or a prefix. O_ENCODER: embedding, w1, b1, w2, b2. */

typedef struct oracle_tensor {
    int64_t rows, cols, n;
    float *w, *g; /* NULL where the options leave the tensor out */
    double *p;    /* what the oracle reads */
} oracle_tensor;

typedef enum oracle_virtual { O_NO_VIRTUAL, O_PROMPT, O_PREFIX, O_ENCODED_PREFIX } oracle_virtual;

typedef struct oracle_options {
    bool tied, biases, adapters;
    int64_t window; /* of all layers; with local_layers of layers 0 and 1 */
    float dropout;
    bool layer_norm, offset; /* LayerNorm; 1 + weight */
    bool no_pre_norm, post_norm;
    lora_qk_norm qk_norm;
    bool gelu, ungated, positions;
    bool scales;                      /* of embedding, residual stream, attention and logits */
    bool softcaps;                    /* of attention and logits */
    bool local_layers;                /* layer 0 and 1 have a rope of their own, layer 2 has none */
    bool partial_rope, switched_rope; /* half of each head turns; segments of more than 5 tokens use the second table */
    oracle_virtual virtual;
    bool shared_a;    /* k and v have the A of q, up that of gate */
    bool scalings;    /* of the inputs of k, up and down, of the outputs of the others */
    bool bottlenecks; /* layer 0: behind attention, 1: behind the MLP, 2: both */
} oracle_options;

typedef struct oracle_model {
    oracle_options options;
    oracle_tensor t[O_TENSORS];
} oracle_model;

oracle_model *oracle_new(oracle_options options);
void oracle_free(oracle_model *m);
void oracle_zero_grad(oracle_model *m);
/* Copies the float weights to the oracle's again. */
void oracle_sync(oracle_model *m);

lora_decoder_config oracle_config(const oracle_model *m);
/* A decoder with all weights set, mirrored (device_mirror.h); only trains[i] tensors get their gradient (NULL: all). */
lora_decoder *oracle_decoder(const oracle_model *m, lora_ctx *ctx, const bool *trains);
void oracle_set_tensor(const oracle_model *m, lora_ctx *ctx, lora_decoder *d, int tensor, const bool *trains);
const char *oracle_name(int tensor); /* valid until the next call */

/* Segments of 5, 1 and 7 tokens; some tokens repeat, some carry no loss. */
lora_batch oracle_batch(void);

void oracle_logits(const oracle_model *m, const lora_batch *batch, bool training, double *logits); /* (n_tokens, OV) */
double oracle_loss(const oracle_model *m, const lora_batch *batch, bool training);

/* Its slope along one element of a tensor, by central differences, in training. */
double oracle_slope(oracle_model *m, int tensor, int64_t i);
double oracle_largest(const float *g, int64_t n);

/* A training step of the decoder with loss scale 0.5; the gradients lie in m afterwards. */
double oracle_step(oracle_model *m, lora_decoder *d);
/* Checks that they have the same bits. */
void oracle_same_gradients(const oracle_model *got, const oracle_model *want, const char *what);

/* Parts of the family "decoder" in files of their own. */
void check_bf16_activations(oracle_options options);
void check_int8_activations(oracle_options options); /* of the CPU */
void check_int8_activations_refused(oracle_options options);
void check_weight_formats(oracle_options options);
void check_decoder_cache(void);
void check_decoder_refusals(void);

#endif
