#include "tests/c/decoder_oracle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/philox.h"

static const double EPS = 1e-5, SCALE = 0.75, ROPE_SCALE = 1.1;
static const double INV_FREQ[OD / 2] = {1, 0.3, 0.1, 0.02};
static const uint64_t SEED = 11;

/* --- the model --- */

static const int64_t SHAPES[7][2] = {{OQ, OH}, {OKV, OH}, {OKV, OH}, {OH, OQ}, {OI, OH}, {OI, OH}, {OH, OI}};

static oracle_tensor tensor(int64_t rows, int64_t cols, float mean, float scale, uint64_t seed, bool wanted) {
    oracle_tensor t = {.rows = rows, .cols = cols, .n = rows * cols};
    if (!wanted) return t;
    t.w = malloc((size_t)t.n * sizeof *t.w);
    t.g = calloc((size_t)t.n, sizeof *t.g);
    t.p = malloc((size_t)t.n * sizeof *t.p);
    check_normal(t.w, t.n, seed, scale);
    for (int64_t i = 0; i < t.n; i++) t.w[i] += mean;
    return t;
}

oracle_model *oracle_new(oracle_options o) {
    oracle_model *m = calloc(1, sizeof *m);
    m->options = o;
    for (int layer = 0; layer < O_LAYERS; layer++) {
        oracle_tensor *t = m->t + layer * O_PER_LAYER;
        uint64_t seed = 1000 + 100 * (uint64_t)layer;
        for (int i = 0; i < 7; i++) {
            int64_t N = SHAPES[i][0], K = SHAPES[i][1];
            t[O_MATRIX + i] = tensor(N, K, 0, 0.2f, seed++, true);
            t[O_BIAS + i] = tensor(1, N, 0, 0.2f, seed++, o.biases);
            t[O_A + i] = tensor(OR, K, 0, 0.2f, seed++, o.adapters);
            t[O_B + i] = tensor(N, OR, 0, 0.2f, seed++, o.adapters);
        }
        for (int i = 0; i < 2; i++) t[O_NORM + i] = tensor(1, OH, 1, 0.2f, seed++, true);
    }
    m->t[O_EMBED] = tensor(OV, OH, 0, 0.7f, 1, true);
    m->t[O_HEAD] = tensor(OV, OH, 0, 0.3f, 2, !o.tied);
    m->t[O_FINAL_NORM] = tensor(1, OH, 1, 0.2f, 3, true);
    oracle_sync(m);
    return m;
}

void oracle_sync(oracle_model *m) {
    for (int i = 0; i < O_TENSORS; i++)
        for (int64_t j = 0; m->t[i].w && j < m->t[i].n; j++) m->t[i].p[j] = (double)m->t[i].w[j];
}

void oracle_zero_grad(oracle_model *m) {
    for (int i = 0; i < O_TENSORS; i++)
        if (m->t[i].g) memset(m->t[i].g, 0, (size_t)m->t[i].n * sizeof(float));
}

void oracle_free(oracle_model *m) {
    for (int i = 0; i < O_TENSORS; i++) {
        free(m->t[i].w);
        free(m->t[i].g);
        free(m->t[i].p);
    }
    free(m);
}

const char *oracle_name(int i) {
    static char name[64];
    static const char *const parts[] = {"matrix", "bias", "norm", "A", "B"};
    static const int first[] = {O_MATRIX, O_BIAS, O_NORM, O_A, O_B, O_PER_LAYER};
    if (i >= O_EMBED) return i == O_EMBED ? "embed_tokens" : i == O_HEAD ? "lm_head" : "final norm";
    int part = 0, within = i % O_PER_LAYER;
    while (within >= first[part + 1]) part++;
    snprintf(name, sizeof name, "layer %d %s %d", i / O_PER_LAYER, parts[part], within - first[part]);
    return name;
}

/* --- the decoder under test --- */

lora_decoder_config oracle_config(const oracle_model *m) {
    return (lora_decoder_config){.hidden_size = OH, .intermediate_size = OI, .num_hidden_layers = O_LAYERS,
                                 .num_attention_heads = O_HEADS, .num_key_value_heads = O_KV_HEADS, .head_dim = OD,
                                 .vocab_size = OV, .max_position_embeddings = O_POSITIONS,
                                 .sliding_window = m->options.window, .rms_norm_eps = EPS, .rope_inv_freq = INV_FREQ,
                                 .rope_scale = ROPE_SCALE, .tie_word_embeddings = m->options.tied};
}

static lora_status set_tensor(const oracle_model *m, lora_decoder *d, int i, const bool *trains, lora_error *err) {
    const oracle_tensor *t = &m->t[i];
    float *g = !trains || trains[i] ? t->g : NULL;
    lora_weight w = {.kind = LORA_WEIGHT_F32, .rows = t->rows, .cols = t->cols, .ld = t->cols, .data = t->w};
    int64_t layer = i < O_EMBED ? i / O_PER_LAYER : -1;
    int within = i % O_PER_LAYER;
    if (!t->w) return LORA_OK;
    if (i == O_FINAL_NORM) return lora_decoder_set_vector(d, -1, LORA_FINAL_NORM, t->w, t->n, g, err);
    if (i >= O_EMBED) return lora_decoder_set_matrix(d, -1, i == O_EMBED ? LORA_EMBED_TOKENS : LORA_LM_HEAD, &w, g, err);
    if (within < O_BIAS) return lora_decoder_set_matrix(d, layer, (lora_matrix_slot)within, &w, g, err);
    if (within < O_NORM) return lora_decoder_set_vector(d, layer, (lora_vector_slot)(LORA_BIAS + within - O_BIAS), t->w, t->n, g, err);
    if (within < O_A) return lora_decoder_set_vector(d, layer, (lora_vector_slot)(LORA_INPUT_LAYERNORM + within - O_NORM), t->w, t->n, g, err);
    if (within >= O_B) return LORA_OK; /* set together with A */
    const oracle_tensor *b = t + (O_B - O_A);
    lora_adapter a = {.rank = OR, .A = t->w, .B = b->w, .dA = g, .dB = !trains || trains[i + O_B - O_A] ? b->g : NULL,
                      .scale = (float)SCALE, .dropout = m->options.dropout, .dropout_seed = SEED};
    return lora_decoder_set_adapter(d, layer, (lora_matrix_slot)(within - O_A), &a, err);
}

void oracle_set_tensor(const oracle_model *m, lora_decoder *d, int tensor, const bool *trains) {
    lora_error err = {0};
    CHECK(set_tensor(m, d, tensor, trains, &err) == LORA_OK, "%s", err.message);
}

lora_decoder *oracle_decoder(const oracle_model *m, lora_ctx *ctx, const bool *trains) {
    lora_decoder_config config = oracle_config(m);
    lora_decoder *d = NULL;
    lora_error err = {0};
    CHECK(lora_decoder_create(ctx, &config, &d, &err) == LORA_OK, "%s", err.message);
    for (int i = 0; i < O_TENSORS; i++) oracle_set_tensor(m, d, i, trains);
    return d;
}

lora_batch oracle_batch(void) {
    static const int32_t ids[O_TOKENS] = {3, 17, 3, 36, 0, 8, 21, 21, 5, 30, 3, 12, 9};
    static const int32_t targets[O_TOKENS] = {17, 3, 36, 0, 11, -7, 21, 5, 30, 3, 12, 9, 36};
    static const int32_t cu_seqlens[O_SEGMENTS + 1] = {0, 5, 6, O_TOKENS};
    static const float loss_weight[O_TOKENS] = {1, 0.5f, 1, 0, 1, 0, 0, 1, 1, 2, 0, 1, 0.25f};
    return (lora_batch){.n_tokens = O_TOKENS, .n_segments = O_SEGMENTS, .input_ids = ids, .cu_seqlens = cu_seqlens,
                        .targets = targets, .loss_weight = loss_weight, .dropout_step = 5};
}

/* --- the oracle --- */

typedef struct oracle_run {
    const oracle_model *m;
    const lora_batch *batch;
    bool training;
} oracle_run;

static double dropped(const oracle_run *r, int layer, int slot, int64_t token, int64_t K, int64_t k, double x) {
    float p = r->m->options.dropout;
    if (!r->training || p == 0) return x;
    uint64_t stream = r->batch->dropout_step * (1u << 20) + (uint64_t)layer * 16 + (uint64_t)slot;
    return lora_philox_uniform(SEED, stream, (uint64_t)(token * K + k)) < p ? 0 : x / (1 - (double)p);
}

/* y (N) = W x + bias + s B A drop(x) for one token */
static void linear(const oracle_run *r, int layer, int slot, int64_t token, const double *x, double *y) {
    const oracle_tensor *t = r->m->t + layer * O_PER_LAYER, *w = &t[O_MATRIX + slot];
    double low[OR] = {0};
    for (int64_t n = 0; n < w->rows; n++) {
        y[n] = t[O_BIAS + slot].p ? t[O_BIAS + slot].p[n] : 0;
        for (int64_t k = 0; k < w->cols; k++) y[n] += w->p[n * w->cols + k] * x[k];
    }
    if (!t[O_A + slot].p) return;
    for (int64_t k = 0; k < w->cols; k++)
        for (int i = 0; i < OR; i++) low[i] += t[O_A + slot].p[i * w->cols + k] * dropped(r, layer, slot, token, w->cols, k, x[k]);
    for (int64_t n = 0; n < w->rows; n++)
        for (int i = 0; i < OR; i++) y[n] += SCALE * t[O_B + slot].p[n * OR + i] * low[i];
}

static void rmsnorm(const double *x, const double *weight, double *y) {
    double mean = 0;
    for (int i = 0; i < OH; i++) mean += x[i] * x[i] / OH;
    for (int i = 0; i < OH; i++) y[i] = x[i] / sqrt(mean + EPS) * weight[i];
}

static void rotate(double *x, int64_t heads, int64_t position) {
    for (int64_t h = 0; h < heads; h++)
        for (int i = 0; i < OD / 2; i++) {
            double angle = (double)position * INV_FREQ[i], c = ROPE_SCALE * cos(angle), s = ROPE_SCALE * sin(angle);
            double *p = x + h * OD + i, a = p[0], b = p[OD / 2];
            p[0] = a * c - b * s;
            p[OD / 2] = b * c + a * s;
        }
}

/* o (OQ) of token t, which sees tokens first .. t */
static void attend(const double *q, double (*k)[OKV], double (*v)[OKV], int64_t first, int64_t t, double *o) {
    for (int h = 0; h < O_HEADS; h++) {
        int kv = h / (O_HEADS / O_KV_HEADS) * OD;
        double weight[O_TOKENS], sum = 0;
        for (int64_t j = first; j <= t; j++) {
            double score = 0;
            for (int i = 0; i < OD; i++) score += q[h * OD + i] * k[j][kv + i];
            sum += weight[j] = exp(score / sqrt(OD));
        }
        for (int i = 0; i < OD; i++) {
            o[h * OD + i] = 0;
            for (int64_t j = first; j <= t; j++) o[h * OD + i] += weight[j] / sum * v[j][kv + i];
        }
    }
}

static void attention_layer(const oracle_run *r, int layer, double (*x)[OH]) {
    const double *norm = r->m->t[layer * O_PER_LAYER + O_NORM].p;
    double q[O_TOKENS][OQ], k[O_TOKENS][OKV], v[O_TOKENS][OKV], xn[OH], o[OQ], y[OH];
    for (int64_t s = 0; s < r->batch->n_segments; s++) {
        int64_t begin = r->batch->cu_seqlens[s];
        for (int64_t t = begin; t < r->batch->cu_seqlens[s + 1]; t++) {
            rmsnorm(x[t], norm, xn);
            linear(r, layer, LORA_Q_PROJ, t, xn, q[t]);
            linear(r, layer, LORA_K_PROJ, t, xn, k[t]);
            linear(r, layer, LORA_V_PROJ, t, xn, v[t]);
            rotate(q[t], O_HEADS, t - begin);
            rotate(k[t], O_KV_HEADS, t - begin);
            int64_t window = r->m->options.window, first = window && t - window + 1 > begin ? t - window + 1 : begin;
            attend(q[t], k, v, first, t, o);
            linear(r, layer, LORA_O_PROJ, t, o, y);
            for (int i = 0; i < OH; i++) x[t][i] += y[i];
        }
    }
}

static void mlp_layer(const oracle_run *r, int layer, double (*x)[OH]) {
    double xn[OH], gate[OI], up[OI], y[OH];
    for (int64_t t = 0; t < r->batch->n_tokens; t++) {
        rmsnorm(x[t], r->m->t[layer * O_PER_LAYER + O_NORM + 1].p, xn);
        linear(r, layer, LORA_GATE_PROJ, t, xn, gate);
        linear(r, layer, LORA_UP_PROJ, t, xn, up);
        for (int i = 0; i < OI; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        linear(r, layer, LORA_DOWN_PROJ, t, gate, y);
        for (int i = 0; i < OH; i++) x[t][i] += y[i];
    }
}

void oracle_logits(const oracle_model *m, const lora_batch *batch, bool training, double *logits) {
    oracle_run run = {m, batch, training};
    double x[O_TOKENS][OH], xn[OH];
    const double *head = m->t[m->options.tied ? O_EMBED : O_HEAD].p;
    for (int64_t t = 0; t < batch->n_tokens; t++)
        for (int i = 0; i < OH; i++) x[t][i] = m->t[O_EMBED].p[batch->input_ids[t] * OH + i];
    for (int layer = 0; layer < O_LAYERS; layer++) {
        attention_layer(&run, layer, x);
        mlp_layer(&run, layer, x);
    }
    for (int64_t t = 0; t < batch->n_tokens; t++) {
        rmsnorm(x[t], m->t[O_FINAL_NORM].p, xn);
        for (int v = 0; v < OV; v++) {
            logits[t * OV + v] = 0;
            for (int i = 0; i < OH; i++) logits[t * OV + v] += head[v * OH + i] * xn[i];
        }
    }
}

double oracle_loss(const oracle_model *m, const lora_batch *batch, bool training) {
    double logits[O_TOKENS * OV], loss = 0;
    oracle_logits(m, batch, training, logits);
    for (int64_t t = 0; t < batch->n_tokens; t++) {
        if (batch->loss_weight[t] == 0) continue;
        double sum = 0;
        for (int v = 0; v < OV; v++) sum += exp(logits[t * OV + v]);
        loss += (double)batch->loss_weight[t] * (log(sum) - logits[t * OV + batch->targets[t]]);
    }
    return loss;
}
