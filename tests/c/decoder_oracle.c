#include "tests/c/decoder_oracle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/philox.h"
#include "tests/c/decoder_oracle_numbers.h"

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

static int64_t norm_width(const oracle_options *o, int norm) {
    if (norm < LORA_Q_NORM) return OH;
    return o->qk_norm == LORA_QK_NORM_HEAD ? OD : norm == LORA_Q_NORM ? OQ : OKV;
}

static bool has_norm(const oracle_options *o, int norm) {
    if (norm < LORA_ATTENTION_OUTPUT_NORM) return !o->no_pre_norm;
    return norm < LORA_Q_NORM ? o->post_norm : o->qk_norm != LORA_QK_NORM_NONE;
}

static void make_virtual(oracle_model *m) {
    static const int64_t encoder[][2] = {{O_VIRTUAL, O_ENCODER_WIDTH},
                                         {O_ENCODER_HIDDEN, O_ENCODER_WIDTH},
                                         {1, O_ENCODER_HIDDEN},
                                         {O_PREFIX_WIDTH, O_ENCODER_HIDDEN},
                                         {1, O_PREFIX_WIDTH}};
    oracle_virtual kind = m->options.virtual;
    m->t[O_VALUES] = tensor(O_VIRTUAL, kind == O_PROMPT ? OH : O_PREFIX_WIDTH, 0, 0.6f, 6, kind == O_PROMPT || kind == O_PREFIX);
    for (int i = 0; i < 5; i++)
        m->t[O_ENCODER + i] = tensor(encoder[i][0], encoder[i][1], 0, 0.4f, 7 + (uint64_t)i, kind == O_ENCODED_PREFIX);
}

oracle_model *oracle_new(oracle_options o) {
    oracle_model *m = calloc(1, sizeof *m);
    m->options = o;
    float mean = o.offset ? 0 : 1;
    for (int layer = 0; layer < O_LAYERS; layer++) {
        oracle_tensor *t = m->t + layer * O_PER_LAYER;
        uint64_t seed = 1000 + 100 * (uint64_t)layer;
        for (int i = 0; i < LORA_LAYER_MATRICES; i++) {
            int64_t N = SHAPES[i][0], K = SHAPES[i][1];
            bool exists = i != LORA_GATE_PROJ || !o.ungated;
            t[O_MATRIX + i] = tensor(N, K, 0, 0.2f, seed++, exists);
            t[O_BIAS + i] = tensor(1, N, 0, 0.2f, seed++, o.biases && exists);
            t[O_A + i] = tensor(OR, K, 0, 0.2f, seed++, o.adapters && exists && a_slot(&o, i) == i);
            t[O_B + i] = tensor(N, OR, 0, 0.2f, seed++, o.adapters && exists);
            t[O_SCALING + i] = tensor(1, scales_input(i) ? K : N, 1, 0.2f, seed++, o.scalings && exists);
        }
        for (int i = 0; i < LORA_BOTTLENECK_PLACES; i++) {
            bool exists = has_bottleneck(&o, layer, i);
            t[O_DOWN + i] = tensor(O_SIZE, OH, 0, 0.3f, seed++, exists);
            t[O_DOWN_BIAS + i] = tensor(1, O_SIZE, 0, 0.2f, seed++, exists);
            t[O_UP + i] = tensor(OH, O_SIZE, 0, 0.3f, seed++, exists);
            t[O_UP_BIAS + i] = tensor(1, OH, 0, 0.2f, seed++, exists);
        }
        for (int i = 0; i < LORA_LAYER_NORMS; i++) {
            t[O_NORM + i] = tensor(1, norm_width(&o, i), mean, 0.2f, seed++, has_norm(&o, i));
            t[O_NORM_BIAS + i] = tensor(1, norm_width(&o, i), 0, 0.2f, seed++, o.layer_norm && has_norm(&o, i));
        }
    }
    m->t[O_EMBED] = tensor(OV, OH, 0, 0.7f, 1, true);
    m->t[O_HEAD] = tensor(OV, OH, 0, 0.3f, 2, !o.tied);
    m->t[O_POSITIONS_EMBED] = tensor(O_POSITIONS, OH, 0, 0.5f, 4, o.positions);
    m->t[O_FINAL_NORM] = tensor(1, OH, mean, 0.2f, 3, true);
    m->t[O_FINAL_NORM_BIAS] = tensor(1, OH, 0, 0.2f, 5, o.layer_norm);
    make_virtual(m);
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
    static const char *const parts[] = {"matrix", "bias", "norm", "norm bias", "A", "B", "scaling", "down", "down bias", "up", "up bias"};
    static const char *const globals[] = {"embed_tokens",    "lm_head",        "embed_positions",   "final norm",
                                          "final norm bias", "virtual tokens", "encoder embedding", "encoder w1",
                                          "encoder b1",      "encoder w2",     "encoder b2"};
    static const int first[] = {O_MATRIX,  O_BIAS, O_NORM,      O_NORM_BIAS, O_A,       O_B,
                                O_SCALING, O_DOWN, O_DOWN_BIAS, O_UP,        O_UP_BIAS, O_PER_LAYER};
    if (i >= O_EMBED) return globals[i - O_EMBED];
    int part = 0, within = i % O_PER_LAYER;
    while (within >= first[part + 1]) part++;
    snprintf(name, sizeof name, "layer %d %s %d", i / O_PER_LAYER, parts[part], within - first[part]);
    return name;
}

/* --- the oracle --- */

enum { O_ROWS = O_TOKENS + O_SEGMENTS * O_VIRTUAL };

/* The batch with its virtual tokens: number i of them has the id -1 - i. */
typedef struct oracle_run {
    const oracle_model *m;
    lora_batch batch;
    bool training;
    int32_t ids[O_ROWS], cu_seqlens[O_SEGMENTS + 1];
    double prefix[O_VIRTUAL][O_LAYERS][2][OKV];
} oracle_run;

static void make_prefix(oracle_run *r) {
    const oracle_tensor *t = r->m->t + O_ENCODER;
    double *out = &r->prefix[0][0][0][0];
    if (r->m->options.virtual == O_PREFIX) memcpy(out, r->m->t[O_VALUES].p, sizeof r->prefix);
    for (int i = 0; r->m->options.virtual == O_ENCODED_PREFIX && i < O_VIRTUAL; i++) {
        double hidden[O_ENCODER_HIDDEN];
        for (int h = 0; h < O_ENCODER_HIDDEN; h++) {
            double sum = t[2].p[h];
            for (int k = 0; k < O_ENCODER_WIDTH; k++) sum += t[1].p[h * O_ENCODER_WIDTH + k] * t[0].p[i * O_ENCODER_WIDTH + k];
            hidden[h] = tanh(sum);
        }
        for (int n = 0; n < O_PREFIX_WIDTH; n++) {
            double *at = &out[i * O_PREFIX_WIDTH + n];
            *at = t[4].p[n];
            for (int h = 0; h < O_ENCODER_HIDDEN; h++) *at += t[3].p[n * O_ENCODER_HIDDEN + h] * hidden[h];
        }
    }
}

static void begin_run_of(const oracle_model *m, const lora_batch *batch, bool training, oracle_run *r) {
    int32_t n = 0, virtual = m->options.virtual ? O_VIRTUAL : 0;
    *r = (oracle_run){.m = m, .batch = *batch, .training = training};
    for (int64_t s = 0; s < batch->n_segments; s++) {
        for (int32_t i = 0; i < virtual; i++) r->ids[n++] = -1 - i;
        for (int32_t t = batch->cu_seqlens[s]; t < batch->cu_seqlens[s + 1]; t++) r->ids[n++] = batch->input_ids[t];
        r->cu_seqlens[s + 1] = n;
    }
    r->batch.n_tokens = n;
    r->batch.input_ids = r->ids;
    r->batch.cu_seqlens = r->cu_seqlens;
    make_prefix(r);
}

static double dropped(const oracle_run *r, int layer, int slot, int64_t token, int64_t K, int64_t k, double x) {
    float p = r->m->options.dropout;
    if (!r->training || p == 0) return x;
    uint64_t stream = r->batch.dropout_step * (1u << 20) + (uint64_t)layer * 16 + (uint64_t)slot;
    return lora_philox_uniform(SEED, stream, (uint64_t)(token * K + k)) < p ? 0 : x / (1 - (double)p);
}

/* y (N) = W x + bias + s B A drop(x) for one token, where a scaling has multiplied x */
static void linear_unscaled(const oracle_run *r, int layer, int slot, int64_t token, const double *x, double *y) {
    const oracle_tensor *t = r->m->t + layer * O_PER_LAYER, *w = &t[O_MATRIX + slot];
    int a = a_slot(&r->m->options, slot); /* and its dropout mask */
    double low[OR] = {0};
    for (int64_t n = 0; n < w->rows; n++) {
        y[n] = t[O_BIAS + slot].p ? t[O_BIAS + slot].p[n] : 0;
        for (int64_t k = 0; k < w->cols; k++) y[n] += w->p[n * w->cols + k] * x[k];
    }
    if (!t[O_A + a].p) return;
    for (int64_t k = 0; k < w->cols; k++)
        for (int i = 0; i < OR; i++) low[i] += t[O_A + a].p[i * w->cols + k] * dropped(r, layer, a, token, w->cols, k, x[k]);
    for (int64_t n = 0; n < w->rows; n++)
        for (int i = 0; i < OR; i++) y[n] += SCALE * t[O_B + slot].p[n * OR + i] * low[i];
}

/* The same with the scaling of input or output. */
static void linear(const oracle_run *r, int layer, int slot, int64_t token, const double *x, double *y) {
    const oracle_tensor *t = r->m->t + layer * O_PER_LAYER, *l = &t[O_SCALING + slot], *w = &t[O_MATRIX + slot];
    bool input = l->p && scales_input(slot);
    double scaled[OI];
    for (int64_t k = 0; k < w->cols; k++) scaled[k] = input ? l->p[k] * x[k] : x[k];
    linear_unscaled(r, layer, slot, token, scaled, y);
    for (int64_t n = 0; n < w->rows && l->p && !input; n++) y[n] *= l->p[n];
}

/* y = norm of x (n); weight, bias: tensors */
static void norm(const oracle_model *m, const oracle_tensor *weight, const oracle_tensor *bias, int64_t n, const double *x, double *y) {
    double mean = 0, square = 0, count = (double)n;
    for (int64_t i = 0; i < n && m->options.layer_norm; i++) mean += x[i] / count;
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / count;
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) / sqrt(square + EPS) * (weight->p[i] + (m->options.offset ? 1 : 0)) + (bias->p ? bias->p[i] : 0);
}

/* The norm of a layer, or a copy where it has none. */
static void layer_norm(const oracle_run *r, int layer, int slot, const double *x, double *y) {
    const oracle_tensor *t = r->m->t + layer * O_PER_LAYER + slot;
    if (t[O_NORM].p)
        norm(r->m, &t[O_NORM], &t[O_NORM_BIAS], t[O_NORM].n, x, y);
    else
        memcpy(y, x, OH * sizeof *x);
}

/* q or k (heads * OD): normed, then turned to its position in a segment of length tokens. */
static void place(const oracle_run *r, int layer, int norm_slot, double *x, int64_t heads, int64_t position, int64_t length) {
    const oracle_options *o = &r->m->options;
    const oracle_tensor *t = r->m->t + layer * O_PER_LAYER + norm_slot;
    double turned[OQ];
    int64_t width = heads * OD, rotary = o->partial_rope ? OD / 2 : OD;
    for (int64_t at = 0; t[O_NORM].p && at < width; at += t[O_NORM].n) {
        norm(r->m, &t[O_NORM], &t[O_NORM_BIAS], t[O_NORM].n, x + at, turned);
        memcpy(x + at, turned, (size_t)t[O_NORM].n * sizeof *x);
    }
    int rope = o->switched_rope && length > SWITCH ? 1 : rope_of(o, layer);
    for (int64_t h = 0; rope >= 0 && h < heads; h++)
        for (int i = 0; i < rotary / 2; i++) {
            double angle = (double)position * INV_FREQ[rope][i], c = ROPE_SCALE * cos(angle), s = ROPE_SCALE * sin(angle);
            double *p = x + h * OD + i, a = p[0], b = p[rotary / 2];
            p[0] = a * c - b * s;
            p[rotary / 2] = b * c + a * s;
        }
}

/* o (OQ) of token t, which sees tokens first .. t */
static void attend(const oracle_options *options, const double *q, double (*k)[OKV], double (*v)[OKV], int64_t first, int64_t t,
                   double *o) {
    for (int h = 0; h < O_HEADS; h++) {
        int kv = h / (O_HEADS / O_KV_HEADS) * OD;
        double weight[O_ROWS], sum = 0;
        for (int64_t j = first; j <= t; j++) {
            double score = 0;
            for (int i = 0; i < OD; i++) score += q[h * OD + i] * k[j][kv + i];
            score *= options->scales ? ATTENTION_SCALE : 1 / sqrt(OD);
            if (options->softcaps) score = ATTENTION_CAP * tanh(score / ATTENTION_CAP);
            sum += weight[j] = exp(score);
        }
        for (int i = 0; i < OD; i++) {
            o[h * OD + i] = 0;
            for (int64_t j = first; j <= t; j++) o[h * OD + i] += weight[j] / sum * v[j][kv + i];
        }
    }
}

static double bent(lora_activation activation, double x) {
    if (activation == LORA_RELU) return fmax(x, 0);
    if (activation == LORA_SILU) return x / (1 + exp(-x));
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

/* y += scale * (up activation(down y + down bias) + up bias), where the layer has a bottleneck at place */
static void bottleneck(const oracle_run *r, int layer, int place, double *y) {
    const oracle_tensor *t = r->m->t + layer * O_PER_LAYER + place;
    double inside[O_SIZE];
    if (!t[O_DOWN].p) return;
    for (int i = 0; i < O_SIZE; i++) {
        inside[i] = t[O_DOWN_BIAS].p[i];
        for (int k = 0; k < OH; k++) inside[i] += t[O_DOWN].p[i * OH + k] * y[k];
        inside[i] = bent(BOTTLENECK_ACTIVATION[layer], inside[i]);
    }
    for (int n = 0; n < OH; n++) {
        double update = t[O_UP_BIAS].p[n];
        for (int i = 0; i < O_SIZE; i++) update += t[O_UP].p[n * O_SIZE + i] * inside[i];
        y[n] += (double)(float)BOTTLENECK_SCALE * update;
    }
}

/* x += residual_scale * post_norm(bottleneck(y)) */
static void add(const oracle_run *r, int layer, int norm_slot, double *y, double *x) {
    double branch[OH];
    bottleneck(r, layer, norm_slot == LORA_ATTENTION_OUTPUT_NORM ? LORA_AFTER_ATTENTION : LORA_AFTER_MLP, y);
    layer_norm(r, layer, norm_slot, y, branch);
    for (int i = 0; i < OH; i++) x[i] += (r->m->options.scales ? RESIDUAL_SCALE : 1) * branch[i];
}

/* Keys and values of a prefix stand there as they are. */
static void put_prefix(const oracle_run *r, int layer, int32_t id, double *k, double *v) {
    if (id >= 0 || r->m->options.virtual == O_PROMPT) return;
    memcpy(k, r->prefix[-1 - id][layer][0], OKV * sizeof *k);
    memcpy(v, r->prefix[-1 - id][layer][1], OKV * sizeof *v);
}

static void attention_layer(const oracle_run *r, int layer, double (*x)[OH]) {
    double q[O_ROWS][OQ], k[O_ROWS][OKV], v[O_ROWS][OKV], xn[OH], o[OQ], y[OH];
    for (int64_t s = 0; s < r->batch.n_segments; s++) {
        int64_t begin = r->batch.cu_seqlens[s], end = r->batch.cu_seqlens[s + 1];
        for (int64_t t = begin; t < end; t++) {
            layer_norm(r, layer, LORA_INPUT_LAYERNORM, x[t], xn);
            linear(r, layer, LORA_Q_PROJ, t, xn, q[t]);
            linear(r, layer, LORA_K_PROJ, t, xn, k[t]);
            linear(r, layer, LORA_V_PROJ, t, xn, v[t]);
            place(r, layer, LORA_Q_NORM, q[t], O_HEADS, t - begin, end - begin);
            place(r, layer, LORA_K_NORM, k[t], O_KV_HEADS, t - begin, end - begin);
            put_prefix(r, layer, r->batch.input_ids[t], k[t], v[t]);
            int64_t window = window_of(&r->m->options, layer), first = window && t - window + 1 > begin ? t - window + 1 : begin;
            attend(&r->m->options, q[t], k, v, first, t, o);
            linear(r, layer, LORA_O_PROJ, t, o, y);
            add(r, layer, LORA_ATTENTION_OUTPUT_NORM, y, x[t]);
        }
    }
}

static double activation(const oracle_options *o, double x) { return bent(o->gelu ? LORA_GELU_TANH : LORA_SILU, x); }

static void mlp_layer(const oracle_run *r, int layer, double (*x)[OH]) {
    const oracle_options *o = &r->m->options;
    double xn[OH], gate[OI], up[OI], y[OH];
    for (int64_t t = 0; t < r->batch.n_tokens; t++) {
        layer_norm(r, layer, LORA_POST_ATTENTION_LAYERNORM, x[t], xn);
        if (!o->ungated) linear(r, layer, LORA_GATE_PROJ, t, xn, gate);
        linear(r, layer, LORA_UP_PROJ, t, xn, up);
        for (int i = 0; i < OI; i++) gate[i] = o->ungated ? activation(o, up[i]) : activation(o, gate[i]) * up[i];
        linear(r, layer, LORA_DOWN_PROJ, t, gate, y);
        add(r, layer, LORA_MLP_OUTPUT_NORM, y, x[t]);
    }
}

/* Element i of what a token brings into the first layer. */
static double embedding_of(const oracle_run *r, int32_t id, int i) {
    const oracle_model *m = r->m;
    if (id >= 0) return (m->options.scales ? EMBEDDING_SCALE : 1) * m->t[O_EMBED].p[id * OH + i];
    return m->options.virtual == O_PROMPT ? PROMPT_SCALE * m->t[O_VALUES].p[(-1 - id) * OH + i] : 0;
}

static void embed(const oracle_run *r, double (*x)[OH]) {
    const oracle_tensor *positions = &r->m->t[O_POSITIONS_EMBED];
    for (int64_t s = 0; s < r->batch.n_segments; s++)
        for (int64_t begin = r->batch.cu_seqlens[s], t = begin; t < r->batch.cu_seqlens[s + 1]; t++)
            for (int i = 0; i < OH; i++)
                x[t][i] = embedding_of(r, r->batch.input_ids[t], i) + (positions->p ? positions->p[(t - begin) * OH + i] : 0);
}

void oracle_logits(const oracle_model *m, const lora_batch *batch, bool training, double *logits) {
    oracle_run run;
    double x[O_ROWS][OH], xn[OH];
    begin_run_of(m, batch, training, &run);
    const double *head = m->t[m->options.tied ? O_EMBED : O_HEAD].p;
    embed(&run, x);
    for (int layer = 0; layer < O_LAYERS; layer++) {
        attention_layer(&run, layer, x);
        mlp_layer(&run, layer, x);
    }
    for (int64_t t = 0; t < run.batch.n_tokens; t++) {
        if (run.ids[t] < 0) continue;
        norm(m, &m->t[O_FINAL_NORM], &m->t[O_FINAL_NORM_BIAS], OH, x[t], xn);
        for (int v = 0; v < OV; v++) {
            double sum = 0;
            for (int i = 0; i < OH; i++) sum += head[v * OH + i] * xn[i];
            sum *= m->options.scales ? LOGIT_SCALE : 1;
            *logits++ = m->options.softcaps ? LOGIT_CAP * tanh(sum / LOGIT_CAP) : sum;
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

/* The step error h^2 / 6 f''' is near 1e-9, the rounding error 1e-15 / h. */
double oracle_slope(oracle_model *m, int tensor, int64_t i) {
    lora_batch batch = oracle_batch();
    const double h = 3e-5;
    double *p = &m->t[tensor].p[i], kept = *p, side[2];
    for (int s = 0; s < 2; s++) {
        *p = kept + (s ? -h : h);
        side[s] = oracle_loss(m, &batch, true);
    }
    *p = kept;
    return (side[0] - side[1]) / (2 * h);
}

double oracle_largest(const float *g, int64_t n) {
    double top = 0;
    for (int64_t i = 0; i < n; i++) top = larger(top, fabs((double)g[i]));
    return top;
}
