/* The arguments of Decoder(): what differs between the families of models. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_decoder.h"

#include <math.h>
#include <string.h>

enum { N_SIZES = 8, LAYERS = 2, NOT_GIVEN = -1 };

/* What the arguments are read into, and what keeps their memory. */
typedef struct given {
    int64_t sizes[N_SIZES];
    double eps, weight_offset, embedding_scale, residual_scale, attention_scale, attention_softcap, logit_scale, logit_softcap;
    double rope_scale, second_rope_scale;
    const char *norm, *qk_norm, *activation, *problem, *device;
    int pre_norm, post_norm, gated, positions, tied;
    int64_t rope_switch, num_labels;
    PyObject *window, *layer_rope, *inv_freq, *second_inv_freq;
} given;

static char *NAMES[] = {"hidden_size",
                        "intermediate_size",
                        "num_hidden_layers",
                        "num_attention_heads",
                        "num_key_value_heads",
                        "head_dim",
                        "vocab_size",
                        "max_position_embeddings",
                        "norm_eps",
                        "norm",
                        "norm_weight_offset",
                        "pre_norm",
                        "post_norm",
                        "qk_norm",
                        "activation",
                        "gated_mlp",
                        "learned_positions",
                        "tie_word_embeddings",
                        "embedding_scale",
                        "residual_scale",
                        "attention_scale",
                        "attention_softcap",
                        "logit_scale",
                        "logit_softcap",
                        "sliding_window",
                        "rope_inv_freq",
                        "rope_scale",
                        "second_rope_inv_freq",
                        "second_rope_scale",
                        "layer_rope",
                        "rope_switch",
                        "num_labels",
                        "problem_type",
                        "device",
                        NULL};

static int read_arguments(PyObject *args, PyObject *kwargs, given *g) {
    int64_t *s = g->sizes;
    for (int i = 0; i < N_SIZES; i++) s[i] = NOT_GIVEN;
    return PyArg_ParseTupleAndKeywords(
        args, kwargs, "|$O&O&O&O&O&O&O&O&dsdppsspppddddddOOdOdOO&O&ss:Decoder", NAMES, lora_py_whole, &s[0], lora_py_whole, &s[1],
        lora_py_whole, &s[2], lora_py_whole, &s[3], lora_py_whole, &s[4], lora_py_whole, &s[5], lora_py_whole, &s[6], lora_py_whole, &s[7],
        &g->eps, &g->norm, &g->weight_offset, &g->pre_norm, &g->post_norm, &g->qk_norm, &g->activation, &g->gated, &g->positions, &g->tied,
        &g->embedding_scale, &g->residual_scale, &g->attention_scale, &g->attention_softcap, &g->logit_scale, &g->logit_softcap, &g->window,
        &g->inv_freq, &g->rope_scale, &g->second_inv_freq, &g->second_rope_scale, &g->layer_rope, lora_py_whole, &g->rope_switch,
        lora_py_whole, &g->num_labels, &g->problem, &g->device);
}

static int check_required(const given *g) {
    for (int i = 0; i < N_SIZES; i++) {
        if (g->sizes[i] >= 1) continue;
        PyErr_Format(g->sizes[i] == NOT_GIVEN ? PyExc_TypeError : PyExc_ValueError, "%s: expected a size >= 1, got %s", NAMES[i],
                     g->sizes[i] == NOT_GIVEN ? "none" : "a smaller one");
        return -1;
    }
    if (g->sizes[LAYERS] > LORA_MAX_LAYERS) { /* before anything is allocated for each of them */
        PyErr_Format(PyExc_ValueError, "%s: expected 1 to %d, got %lld", NAMES[LAYERS], (int)LORA_MAX_LAYERS, (long long)g->sizes[LAYERS]);
        return -1;
    }
    if (g->eps != -1.0) return 0;
    PyErr_SetString(PyExc_TypeError, "norm_eps: expected a value, got none");
    return -1;
}

/* The index of text among choices (NULL-terminated). */
static int choose(const char *name, const char *text, const char *const *choices, int *out) {
    for (*out = 0; choices[*out]; ++*out)
        if (strcmp(text, choices[*out]) == 0) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected '%s' or another known name, got '%s'", name, choices[0], text);
    return -1;
}

static int choose_kinds(const given *g, lora_decoder_config *c) {
    static const char *const norms[] = {"rms", "layer", NULL}, *const qk_norms[] = {"none", "head", "row", NULL};
    static const char *const activations[] = {"silu", "gelu_tanh", NULL};
    static const char *const problems[] = {"single_label_classification", "regression", "multi_label_classification", NULL};
    int norm, qk_norm, activation, problem;
    if (choose("norm", g->norm, norms, &norm) < 0 || choose("qk_norm", g->qk_norm, qk_norms, &qk_norm) < 0 ||
        choose("activation", g->activation, activations, &activation) < 0 || choose("problem_type", g->problem, problems, &problem) < 0)
        return -1;
    c->norm = (lora_norm_kind)norm;
    c->qk_norm = (lora_qk_norm)qk_norm;
    c->activation = (lora_activation)activation;
    c->problem = (lora_problem)problem;
    return 0;
}

/* One number for all layers, or one for each. */
static int get_windows(PyObject *given, int64_t layers, int32_t *out) {
    if (PyLong_Check(given)) {
        int64_t all;
        if (!lora_py_whole(given, &all)) return -1;
        if (all < 0 || all > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "sliding_window: expected 0 to 2**31 - 1, got %lld", (long long)all);
            return -1;
        }
        for (int64_t i = 0; i < layers; i++) out[i] = (int32_t)all;
        return 0;
    }
    lora_py_ids ids = {0};
    int status = lora_py_get_ids(given, "sliding_window", &ids) < 0 ? -1 : lora_py_expect(&ids.array, 1, &layers);
    if (status == 0) memcpy(out, ids.data, (size_t)layers * sizeof *out);
    lora_py_release_ids(&ids);
    return status;
}

static int get_layer_rope(PyObject *given, int64_t layers, int8_t *out) {
    lora_py_ids ids = {0};
    int status = lora_py_get_ids(given, "layer_rope", &ids) < 0 ? -1 : lora_py_expect(&ids.array, 1, &layers);
    for (int64_t i = 0; status == 0 && i < layers; i++) {
        out[i] = (int8_t)(ids.data[i] < -1 ? -2 : ids.data[i] > LORA_MAX_ROPES ? LORA_MAX_ROPES : ids.data[i]);
    }
    lora_py_release_ids(&ids);
    return status;
}

static int get_rope(PyObject *given, const char *name, double scale, lora_decoder_config *c, double **keep) {
    int64_t n;
    lora_rope_config *rope = &c->ropes[c->n_ropes];
    if (lora_py_get_doubles(given, name, keep, &n) < 0) return -1;
    if (n > c->head_dim / 2) {
        PyErr_Format(PyExc_ValueError, "%s: expected at most head_dim / 2 = %lld numbers, got %lld", name, (long long)(c->head_dim / 2),
                     (long long)n);
        return -1;
    }
    rope->inv_freq = *keep;
    rope->rotary = 2 * n;
    rope->scale = scale;
    c->n_ropes++;
    return 0;
}

/* The arguments with their defaults, as a dict. */
static PyObject *options_dict(const given *g, PyObject *kwargs) {
    PyObject *options = Py_BuildValue(
        "{s:s,s:d,s:O,s:O,s:s,s:s,s:O,s:O,s:O,s:d,s:d,s:d,s:d,s:d,s:d,s:O,s:O,s:d,s:O,s:d,s:O,s:L,s:L,s:s}", "norm", g->norm,
        "norm_weight_offset", g->weight_offset, "pre_norm", g->pre_norm ? Py_True : Py_False, "post_norm",
        g->post_norm ? Py_True : Py_False, "qk_norm", g->qk_norm, "activation", g->activation, "gated_mlp", g->gated ? Py_True : Py_False,
        "learned_positions", g->positions ? Py_True : Py_False, "tie_word_embeddings", g->tied ? Py_True : Py_False, "embedding_scale",
        g->embedding_scale, "residual_scale", g->residual_scale, "attention_scale", g->attention_scale, "attention_softcap",
        g->attention_softcap, "logit_scale", g->logit_scale, "logit_softcap", g->logit_softcap, "sliding_window", g->window,
        "rope_inv_freq", g->inv_freq, "rope_scale", g->rope_scale, "second_rope_inv_freq", g->second_inv_freq, "second_rope_scale",
        g->second_rope_scale, "layer_rope", g->layer_rope, "rope_switch", (long long)g->rope_switch, "num_labels", (long long)g->num_labels,
        "problem_type", g->problem);
    if (options && kwargs && PyDict_Update(options, kwargs) < 0) Py_CLEAR(options);
    return options;
}

static int fill(const given *g, lora_decoder_config *c, lora_py_decoder_memory *memory) {
    const int64_t *s = g->sizes;
    *c = (lora_decoder_config){
        .hidden_size = s[0],
        .intermediate_size = s[1],
        .num_hidden_layers = s[2],
        .num_attention_heads = s[3],
        .num_key_value_heads = s[4],
        .head_dim = s[5],
        .vocab_size = s[6],
        .max_position_embeddings = s[7],
        .norm_eps = g->eps,
        .norm_weight_offset = g->weight_offset,
        .pre_norm = g->pre_norm,
        .post_norm = g->post_norm,
        .gated_mlp = g->gated,
        .learned_positions = g->positions,
        .tie_word_embeddings = g->tied,
        .embedding_scale = g->embedding_scale,
        .residual_scale = g->residual_scale,
        .attention_scale = g->attention_scale,
        .attention_softcap = g->attention_softcap,
        .logits = {(float)g->logit_scale, (float)g->logit_softcap},
        .rope_switch = g->rope_switch,
        .num_labels = g->num_labels,
    };
    if (choose_kinds(g, c) < 0) return -1;
    int64_t layers = c->num_hidden_layers;
    if (!(memory->windows = PyMem_RawCalloc((size_t)layers, sizeof *memory->windows)) ||
        !(memory->layer_rope = PyMem_RawCalloc((size_t)layers, sizeof *memory->layer_rope))) {
        PyErr_NoMemory();
        return -1;
    }
    if (get_windows(g->window, layers, memory->windows) < 0) return -1;
    c->sliding_window = memory->windows;
    if (g->layer_rope != Py_None) {
        if (get_layer_rope(g->layer_rope, layers, memory->layer_rope) < 0) return -1;
        c->layer_rope = memory->layer_rope;
    }
    if (g->inv_freq != Py_None && get_rope(g->inv_freq, "rope_inv_freq", g->rope_scale, c, &memory->inv_freq[0]) < 0) return -1;
    return g->second_inv_freq == Py_None
               ? 0
               : get_rope(g->second_inv_freq, "second_rope_inv_freq", g->second_rope_scale, c, &memory->inv_freq[1]);
}

PyObject *lora_py_decoder_arguments(PyObject *args, PyObject *kwargs, lora_decoder_config *config, lora_py_decoder_memory *memory) {
    PyObject *zero = PyLong_FromLong(0), *options = NULL;
    given g = {.eps = -1.0,
               .norm = "rms",
               .qk_norm = "none",
               .activation = "silu",
               .problem = "single_label_classification",
               .device = "cpu",
               .pre_norm = 1,
               .gated = 1,
               .embedding_scale = 1.0,
               .residual_scale = 1.0,
               .attention_scale = 0.0,
               .logit_scale = 1.0,
               .rope_scale = 1.0,
               .second_rope_scale = 1.0,
               .window = zero,
               .layer_rope = Py_None,
               .inv_freq = Py_None,
               .second_inv_freq = Py_None};
    if (zero && read_arguments(args, kwargs, &g) && check_required(&g) == 0) {
        if (g.attention_scale == 0.0) g.attention_scale = 1.0 / sqrt((double)g.sizes[5]);
        if (fill(&g, config, memory) == 0) options = options_dict(&g, kwargs);
        memory->device = g.device;
    }
    Py_XDECREF(zero);
    return options;
}

void lora_py_release_decoder_memory(lora_py_decoder_memory *memory) {
    PyMem_RawFree(memory->windows);
    PyMem_RawFree(memory->layer_rope);
    for (int i = 0; i < LORA_MAX_ROPES; i++) PyMem_RawFree(memory->inv_freq[i]);
}
