/* Decoder: weights by name, and the calls over a packed batch. The library borrows; two dicts own. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_decoder.h"

#include <math.h>
#include <string.h>

typedef lora_py_decoder decoder;

static int decoder_traverse(PyObject *o, visitproc visit, void *arg) {
    Py_VISIT(((decoder *)o)->weights);
    Py_VISIT(((decoder *)o)->adapters);
    Py_VISIT(((decoder *)o)->options);
    return lora_py_traverse(o, visit, arg);
}

static void decoder_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    decoder *self = (decoder *)o;
    lora_decoder_destroy(self->decoder);
    Py_XDECREF(self->weights);
    Py_XDECREF(self->adapters);
    Py_XDECREF(self->options);
    lora_py_delete(o);
}

static PyObject *raise_from(const decoder *self, const lora_error *err) {
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
}

/* --- construction ------------------------------------------------------------------------------------------------- */

static PyObject *options_dict(const lora_decoder_config *c, PyObject *inv_freq) {
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:d,s:O,s:d,s:L,s:O}", "hidden_size", (long long)c->hidden_size,
                         "intermediate_size", (long long)c->intermediate_size, "num_hidden_layers", (long long)c->num_hidden_layers,
                         "num_attention_heads", (long long)c->num_attention_heads, "num_key_value_heads",
                         (long long)c->num_key_value_heads, "head_dim", (long long)c->head_dim, "vocab_size",
                         (long long)c->vocab_size, "max_position_embeddings", (long long)c->max_position_embeddings,
                         "rms_norm_eps", c->rms_norm_eps, "rope_inv_freq", inv_freq, "rope_scale", c->rope_scale,
                         "sliding_window", (long long)c->sliding_window, "tie_word_embeddings",
                         c->tie_word_embeddings ? Py_True : Py_False);
}

static decoder *create(PyTypeObject *type, lora_decoder_config *c, PyObject *inv_freq_given) {
    int64_t n;
    PyObject *inv_freq = lora_py_doubles(inv_freq_given, "rope_inv_freq", &c->rope_inv_freq, &n);
    if (!inv_freq) return NULL;
    decoder *self = NULL;
    if (c->head_dim < 2 || n != c->head_dim / 2) {
        PyErr_Format(PyExc_ValueError, "rope_inv_freq: expected head_dim / 2 = %lld numbers, got %lld", (long long)(c->head_dim / 2),
                     (long long)n);
    } else if ((self = lora_py_new(type))) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status, lora_decoder_create(self->base.ctx, c, &self->decoder, &err));
        self->config = *c;
        self->config.rope_inv_freq = NULL;
        if (status != LORA_OK) raise_from(self, &err);
        else if ((self->weights = PyDict_New()) && (self->adapters = PyDict_New())) self->options = options_dict(c, inv_freq);
        if (!self->options) Py_CLEAR(self);
    }
    Py_DECREF(inv_freq);
    return self;
}

static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                            "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_inv_freq", "rope_scale",
                            "sliding_window", "tie_word_embeddings", NULL};
    long long hidden = -1, intermediate = -1, layers = -1, heads = -1, kv_heads = -1, head_dim = -1, vocab = -1, positions = -1;
    long long window = 0;
    double eps = -1.0, scale = 1.0;
    PyObject *inv_freq = NULL;
    int tied = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$LLLLLLLLdOdLp:Decoder", names, &hidden, &intermediate, &layers, &heads,
                                     &kv_heads, &head_dim, &vocab, &positions, &eps, &inv_freq, &scale, &window, &tied)) return NULL;
    const long long sizes[] = {hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, positions};
    for (int i = 0; i < 8; i++) {
        if (sizes[i] >= 1) continue;
        PyErr_Format(sizes[i] == -1 ? PyExc_TypeError : PyExc_ValueError, "%s: expected a size >= 1, got %s", names[i],
                     sizes[i] == -1 ? "none" : "a smaller one");
        return NULL;
    }
    if (!inv_freq || eps == -1.0) {
        PyErr_Format(PyExc_TypeError, "%s: expected a value, got none", inv_freq ? "rms_norm_eps" : "rope_inv_freq");
        return NULL;
    }
    lora_decoder_config config = {
        .hidden_size = hidden, .intermediate_size = intermediate, .num_hidden_layers = layers, .num_attention_heads = heads,
        .num_key_value_heads = kv_heads, .head_dim = head_dim, .vocab_size = vocab, .max_position_embeddings = positions,
        .sliding_window = window, .rms_norm_eps = eps, .rope_scale = scale, .tie_word_embeddings = tied,
    };
    return (PyObject *)create(type, &config, inv_freq);
}

/* --- weights and adapters ----------------------------------------------------------------------------------------- */

typedef struct weight_place {
    int64_t layer;
    int is_vector, slot;
} weight_place;

static const char *const MATRIX_NAMES[LORA_LAYER_MATRICES] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                              "gate_proj", "up_proj", "down_proj"};

static int place_in_layer(const char *rest, weight_place *place) {
    for (int i = 0; i < LORA_LAYER_MATRICES; i++) {
        size_t length = strlen(MATRIX_NAMES[i]);
        if (strncmp(rest, MATRIX_NAMES[i], length)) continue;
        place->is_vector = strcmp(rest + length, ".bias") == 0;
        place->slot = place->is_vector ? LORA_BIAS + i : i;
        return place->is_vector || rest[length] == 0;
    }
    place->is_vector = 1;
    place->slot = strcmp(rest, "input_layernorm") == 0 ? LORA_INPUT_LAYERNORM : LORA_POST_ATTENTION_LAYERNORM;
    return place->slot == LORA_INPUT_LAYERNORM || strcmp(rest, "post_attention_layernorm") == 0;
}

static int find_place(const decoder *self, const char *name, weight_place *place) {
    *place = (weight_place){-1, 0, 0};
    if (strcmp(name, "embed_tokens") == 0) return place->slot = LORA_EMBED_TOKENS, 0;
    if (strcmp(name, "lm_head") == 0) return place->slot = LORA_LM_HEAD, 0;
    if (strcmp(name, "norm") == 0) return place->is_vector = 1, place->slot = LORA_FINAL_NORM, 0;
    if (strncmp(name, "layers.", 7) == 0 && name[7] >= '0' && name[7] <= '9') {
        const char *p = name + 7;
        int64_t layer = 0;
        for (; *p >= '0' && *p <= '9' && layer < INT32_MAX; p++) layer = layer * 10 + (*p - '0');
        place->layer = layer;
        if (*p == '.' && layer < self->config.num_hidden_layers && place_in_layer(p + 1, place)) return 0;
    }
    PyErr_Format(PyExc_ValueError,
                 "name: expected embed_tokens, lm_head, norm or layers.N.<part> with N < %lld and a part such as q_proj, "
                 "q_proj.bias or input_layernorm, got '%s'",
                 (long long)self->config.num_hidden_layers, name);
    return -1;
}

PyDoc_STRVAR(set_weight_doc,
"set_weight($self, name, weight, /)\n--\n\n"
"Set a weight by name. Its memory is borrowed and kept alive.\n\n"
"Parameters\n----------\n"
"name : str\n    embed_tokens, lm_head, norm, layers.N.input_layernorm, layers.N.post_attention_layernorm,\n"
"    layers.N.<q|k|v|o|gate|up|down>_proj, or one of these projections with .bias behind it.\n"
"weight : NF4Tensor, GGMLTensor, Parameter or array\n    Matrices: (out_features, in_features) NF4, GGUF blocks, float32 or bfloat16. Vectors: float32 (bfloat16 is\n"
"    converted to a copy). A Parameter with requires_grad is trained.\n\n"
"Raises\n------\nValueError\n    Unknown name, or another shape.\nTypeError\n    Another element type.");

static PyObject *decoder_set_weight(PyObject *o, PyObject *args) {
    const char *name;
    PyObject *given;
    decoder *self = (decoder *)o;
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    weight_place place;
    if (!PyArg_ParseTuple(args, "sO:set_weight", &name, &given) || find_place(self, name, &place) < 0) return NULL;
    lora_py_weight matrix = {0};
    const float *vector = NULL;
    int64_t n = 0;
    int status = place.is_vector ? lora_py_get_vector(state, given, name, &vector, &n, &matrix.grad, &matrix.keep)
                                 : lora_py_get_weight(state, given, name, &matrix);
    if (status < 0 || lora_py_enter(&self->base) < 0) {
        Py_XDECREF(matrix.keep);
        return NULL;
    }
    PyObject *old = Py_XNewRef(PyDict_GetItemString(self->weights, name)); /* borrowed by the library until it is replaced */
    lora_status set = LORA_OK;
    lora_error err = {0};
    status = PyDict_SetItemString(self->weights, name, matrix.keep);
    if (status == 0) {
        LORA_PY_CALL(self->base.ctx, set, place.is_vector
            ? lora_decoder_set_vector(self->decoder, place.layer, (lora_vector_slot)place.slot, vector, n, matrix.grad, &err)
            : lora_decoder_set_matrix(self->decoder, place.layer, (lora_matrix_slot)place.slot, &matrix.w, matrix.grad, &err));
    }
    if (set != LORA_OK) {
        if (old) status = PyDict_SetItemString(self->weights, name, old);
        else status = PyDict_DelItemString(self->weights, name);
    }
    Py_XDECREF(old);
    Py_XDECREF(matrix.keep);
    lora_py_leave(&self->base);
    if (status < 0) return NULL;
    if (set != LORA_OK) return raise_from(self, &err);
    Py_RETURN_NONE;
}

/* Sets (adapter != NULL) or removes an adapter, with keep as its owner. */
static PyObject *change_adapter(decoder *self, const char *name, const lora_adapter *adapter, PyObject *keep) {
    weight_place place;
    if (find_place(self, name, &place) < 0) return NULL;
    if (place.is_vector || place.layer < 0) {
        PyErr_Format(PyExc_ValueError, "name: expected a projection of a layer, got '%s'", name);
        return NULL;
    }
    if (lora_py_enter(&self->base) < 0) return NULL;
    PyObject *old = Py_XNewRef(PyDict_GetItemString(self->adapters, name));
    PyObject *value = keep ? keep : Py_None;
    lora_status set = LORA_OK;
    lora_error err = {0};
    int status = PyDict_SetItemString(self->adapters, name, value);
    if (status == 0) {
        LORA_PY_CALL(self->base.ctx, set,
                     lora_decoder_set_adapter(self->decoder, place.layer, (lora_matrix_slot)place.slot, adapter, &err));
        if (set != LORA_OK) status = PyDict_SetItemString(self->adapters, name, old ? old : Py_None);
    }
    Py_XDECREF(old);
    lora_py_leave(&self->base);
    if (status < 0) return NULL;
    if (set != LORA_OK) return raise_from(self, &err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_adapter_doc,
"set_adapter($self, name, A, B, /, *, scale, dropout=0.0, seed=0, magnitude=None)\n--\n\n"
"Put a LoRA adapter on a projection: y = W x + scale B A x. It replaces the one that is there.\n\n"
"Shapes\n------\nA (r, in_features); B (out_features, r).\n\n"
"Parameters\n----------\n"
"name : str\n    layers.N.<q|k|v|o|gate|up|down>_proj.\n"
"A, B : Parameter\n    Shared; trained where requires_grad.\n"
"scale : float\n    lora_alpha / r.\n"
"dropout : float\n    On the input of A in forward_backward().\n"
"seed : int\n    For the dropout masks.\n"
"magnitude : Parameter, optional\n    (out_features,): makes it DoRA, row n of W + scale B A given the length magnitude[n].\n\n"
"Raises\n------\nValueError\n    Unknown name, or a shape does not fit.\n\n"
"Source\n------\nLoRA, arXiv:2106.09685, eq. 3; DoRA, arXiv:2402.09353, eq. 5.");

static PyObject *decoder_set_adapter(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "scale", "dropout", "seed", "magnitude", NULL};
    const char *name;
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    lora_py_parameter *A, *B;
    PyObject *magnitude = Py_None;
    double scale = NAN, dropout = 0.0;
    unsigned long long seed = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!O!|$ddKO:set_adapter", names, &name, state->parameter_type, &A,
                                     state->parameter_type, &B, &scale, &dropout, &seed, &magnitude)) return NULL;
    if (!isfinite(scale) || !(dropout >= 0.0 && dropout < 1.0)) {
        PyErr_SetString(PyExc_ValueError, "scale, dropout: expected a finite scale and 0 <= dropout < 1, got others");
        return NULL;
    }
    weight_place place;
    if (find_place((decoder *)o, name, &place) < 0) return NULL;
    const lora_decoder_config *c = &((decoder *)o)->config;
    int64_t q = c->num_attention_heads * c->head_dim, kv = c->num_key_value_heads * c->head_dim;
    const int64_t in[] = {c->hidden_size, c->hidden_size, c->hidden_size, q, c->hidden_size, c->hidden_size, c->intermediate_size};
    const int64_t out[] = {q, kv, kv, c->hidden_size, c->intermediate_size, c->intermediate_size, c->hidden_size};
    if (!place.is_vector && place.slot < LORA_LAYER_MATRICES) {
        if (A->ndim != 2 || A->shape[1] != in[place.slot] || B->ndim != 2 || B->shape[0] != out[place.slot]
            || B->shape[1] != A->shape[0]) {
            PyErr_Format(PyExc_ValueError, "A, B: expected shapes (r, %lld) and (%lld, r) for %s, got others", (long long)in[place.slot],
                         (long long)out[place.slot], name);
            return NULL;
        }
    }
    lora_py_parameter *m = magnitude == Py_None ? NULL : (lora_py_parameter *)magnitude;
    if (m && (!Py_IS_TYPE(magnitude, state->parameter_type) || m->ndim != 1 || m->shape[0] != B->shape[0])) {
        PyErr_Format(PyExc_ValueError, "magnitude: expected a Parameter of shape (%lld,) for %s, got another", (long long)B->shape[0], name);
        return NULL;
    }
    lora_adapter adapter = {.rank = A->shape[0], .A = A->data, .B = B->data, .dA = A->grad, .dB = B->grad,
                            .scale = (float)scale, .dropout = (float)dropout, .dropout_seed = seed,
                            .magnitude = m ? m->data : NULL, .dmagnitude = m ? m->grad : NULL};
    PyObject *keep = PyTuple_Pack(3, A, B, magnitude);
    PyObject *result = keep ? change_adapter((decoder *)o, name, &adapter, keep) : NULL;
    Py_XDECREF(keep);
    return result;
}

PyDoc_STRVAR(set_token_rows_doc,
"set_token_rows($self, ids, rows, /)\n--\n\n"
"Train some rows of the embedding and nothing else of it.\n\n"
"Shapes\n------\nids (n,); rows (n, hidden_size).\n\n"
"Parameters\n----------\n"
"ids : int32 or int64 array, list of int, or None\n    Token ids, distinct; None ends it.\n"
"rows : Parameter or None\n    Their rows, with requires_grad.\n\n"
"Raises\n------\nValueError\n    embed_tokens is not a Parameter with requires_grad, or an id or a shape does not fit.\n\n"
"Notes\n-----\nThe Parameter that is embed_tokens serves this alone: its rows are overwritten before each pass, and its gradient is\n"
"moved into rows.grad. A head that is the same Parameter takes part.");

static PyObject *decoder_set_token_rows(PyObject *o, PyObject *args) {
    decoder *self = (decoder *)o;
    PyObject *given, *rows_given;
    lora_py_ids ids = {0};
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    if (!PyArg_ParseTuple(args, "OO:set_token_rows", &given, &rows_given) || (given != Py_None && lora_py_get_ids(given, "ids", &ids) < 0))
        return NULL;
    lora_py_parameter *rows = Py_IS_TYPE(rows_given, state->parameter_type) ? (lora_py_parameter *)rows_given : NULL;
    bool fits = ids.n == 0 || (rows && rows->grad && rows->ndim == 2 && rows->shape[0] == ids.n && rows->shape[1] == self->config.hidden_size);
    if (!fits)
        PyErr_Format(PyExc_ValueError, "rows: expected a Parameter of shape (%lld, %lld) with requires_grad, got another", (long long)ids.n,
                     (long long)self->config.hidden_size);
    if (!fits || lora_py_enter(&self->base) < 0) {
        lora_py_release_ids(&ids);
        return NULL;
    }
    lora_status set = LORA_OK;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, set, lora_decoder_set_token_rows(self->decoder, ids.n, ids.data, rows ? rows->data : NULL,
                                                                  rows ? rows->grad : NULL, &err));
    int status = 0;
    if (set == LORA_OK) status = PyDict_SetItemString(self->adapters, "token rows", rows_given); /* borrowed by the library */
    lora_py_leave(&self->base);
    lora_py_release_ids(&ids);
    if (status < 0) return NULL;
    if (set != LORA_OK) return raise_from(self, &err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(remove_adapter_doc, "remove_adapter($self, name, /)\n--\n\nTake the adapter off a projection; none there is fine.");

static PyObject *decoder_remove_adapter(PyObject *o, PyObject *args) {
    const char *name;
    return PyArg_ParseTuple(args, "s:remove_adapter", &name) ? change_adapter((decoder *)o, name, NULL, NULL) : NULL;
}

/* --- batches ------------------------------------------------------------------------------------------------------ */

typedef struct batch {
    lora_py_ids ids, cu, targets;
    lora_py_array weight;
    int32_t whole[2]; /* cu_seqlens of one segment */
    lora_batch b;
} batch;

static void release_batch(batch *x) {
    lora_py_release_ids(&x->ids);
    lora_py_release_ids(&x->cu);
    lora_py_release_ids(&x->targets);
    lora_py_release(&x->weight);
}

/* cu_given may be None: one segment. */
static int get_tokens(PyObject *ids, PyObject *cu_given, batch *x) {
    *x = (batch){0};
    if (lora_py_get_ids(ids, "input_ids", &x->ids) < 0) return -1;
    if (x->ids.n > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "input_ids: expected fewer than 2**31 tokens, got more");
        return -1;
    }
    x->whole[1] = (int32_t)x->ids.n;
    const int32_t *cu = x->whole;
    int64_t n = 2;
    if (cu_given != Py_None) {
        if (lora_py_get_ids(cu_given, "cu_seqlens", &x->cu) < 0) return -1;
        cu = x->cu.data;
        n = x->cu.n;
    }
    x->b = (lora_batch){.n_tokens = x->ids.n, .n_segments = n - 1, .input_ids = x->ids.data, .cu_seqlens = cu};
    if (n >= 2 && cu[n - 1] == x->ids.n) return 0; /* the library checks what lies between */
    PyErr_Format(PyExc_ValueError, "cu_seqlens: expected 0, the ends of the segments, and at last %lld, the number of tokens, got %lld "
                 "numbers ending with %d", (long long)x->ids.n, (long long)n, (int)cu[n - 1]);
    return -1;
}

static int get_batch(PyObject *ids, PyObject *cu, PyObject *targets, PyObject *weight, batch *x) {
    if (get_tokens(ids, cu, x) < 0) return -1;
    const int64_t n[] = {x->ids.n};
    if (lora_py_get_ids(targets, "targets", &x->targets) < 0 || lora_py_expect(&x->targets.array, 1, n) < 0) return -1;
    if (lora_py_get(weight, "loss_weight", LORA_PY_F32, 0, &x->weight) < 0 || lora_py_expect(&x->weight, 1, n) < 0) return -1;
    x->b.targets = x->targets.data;
    x->b.loss_weight = x->weight.data;
    return 0;
}

PyDoc_STRVAR(forward_backward_doc,
"forward_backward($self, input_ids, cu_seqlens, targets, loss_weight, /, *, grad_scale=1.0, dropout_step=0)\n--\n\n"
"One forward and one backward pass over a packed batch.\n\n"
"Shapes\n------\ninput_ids, targets, loss_weight (n_tokens,); cu_seqlens (n_segments + 1,): 0, the ends of the segments.\n\n"
"Parameters\n----------\n"
"input_ids, cu_seqlens, targets : int32 or int64 array, or list of int\n    targets[i] is the token that position i must predict.\n"
"loss_weight : array\n    float32; 0 where a position carries no loss.\n"
"grad_scale : float\n    Gradients of grad_scale times the returned loss are added to every trained parameter.\n"
"dropout_step : int\n    Chooses the dropout masks.\n\n"
"Returns\n-------\nfloat\n    Sum of loss_weight times cross entropy in nats.\n\n"
"Raises\n------\nValueError\n    A shape, an id or a segment does not fit, or a weight is missing (it is named).\n"
"RuntimeError\n    Another thread is using this decoder.");

static PyObject *decoder_forward_backward(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "grad_scale", "dropout_step", NULL};
    PyObject *ids, *cu, *targets, *weight;
    double grad_scale = 1.0, loss = 0.0;
    unsigned long long dropout_step = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$dK:forward_backward", names, &ids, &cu, &targets, &weight, &grad_scale,
                                     &dropout_step)) return NULL;
    decoder *self = (decoder *)o;
    batch x;
    int ready = get_batch(ids, cu, targets, weight, &x) == 0 && lora_py_enter(&self->base) == 0;
    lora_status status = LORA_OK;
    lora_error err = {0};
    if (ready) {
        x.b.dropout_step = dropout_step;
        LORA_PY_CALL(self->base.ctx, status, lora_decoder_forward_backward(self->decoder, &x.b, (float)grad_scale, &loss, &err));
        lora_py_leave(&self->base);
    }
    release_batch(&x);
    if (!ready) return NULL;
    return status == LORA_OK ? PyFloat_FromDouble(loss) : raise_from(self, &err);
}

PyDoc_STRVAR(loss_doc,
"loss($self, input_ids, cu_seqlens, targets, loss_weight, /, *, token_loss=None)\n--\n\n"
"The loss of forward_backward() without gradients and without dropout.\n\n"
"Parameters\n----------\ntoken_loss : array, optional\n    float32 (n_tokens,), receives the unweighted loss of each token, 0 where loss_weight is 0.\n\n"
"Returns\n-------\nfloat\n    Sum of loss_weight times cross entropy in nats.\n\n"
"Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward().");

static PyObject *decoder_loss(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "token_loss", NULL};
    PyObject *ids, *cu, *targets, *weight, *token_given = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$O:loss", names, &ids, &cu, &targets, &weight, &token_given)) return NULL;
    decoder *self = (decoder *)o;
    batch x;
    lora_py_array token_loss = {0};
    int ready = get_batch(ids, cu, targets, weight, &x) == 0;
    if (ready && token_given != Py_None) {
        const int64_t n[] = {x.ids.n};
        ready = lora_py_get(token_given, "token_loss", LORA_PY_F32, LORA_PY_WRITABLE, &token_loss) == 0
                && lora_py_expect(&token_loss, 1, n) == 0 && lora_py_apart(&token_loss, &x.weight) == 0;
    }
    ready = ready && lora_py_enter(&self->base) == 0;
    double loss = 0.0;
    lora_status status = LORA_OK;
    lora_error err = {0};
    if (ready) {
        LORA_PY_CALL(self->base.ctx, status, lora_decoder_loss(self->decoder, &x.b, &loss, token_loss.data, &err));
        lora_py_leave(&self->base);
    }
    lora_py_release(&token_loss);
    release_batch(&x);
    if (!ready) return NULL;
    return status == LORA_OK ? PyFloat_FromDouble(loss) : raise_from(self, &err);
}

PyDoc_STRVAR(logits_doc,
"logits($self, input_ids, cu_seqlens=None, /)\n--\n\n"
"The logits of every position.\n\n"
"Parameters\n----------\ncu_seqlens : optional\n    By default all tokens are one segment.\n\n"
"Returns\n-------\nndarray\n    float32 (n_tokens, vocab_size).\n\n"
"Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward().");

static PyObject *decoder_logits(PyObject *o, PyObject *args) {
    PyObject *ids, *cu = Py_None, *result = NULL;
    if (!PyArg_ParseTuple(args, "O|O:logits", &ids, &cu)) return NULL;
    decoder *self = (decoder *)o;
    batch x;
    void *logits;
    if (get_tokens(ids, cu, &x) == 0) {
        const int64_t shape[] = {x.ids.n, self->config.vocab_size};
        result = lora_py_new_array(LORA_PY_F32, 2, shape, 0, &logits);
    }
    if (result && lora_py_enter(&self->base) < 0) Py_CLEAR(result);
    if (result) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status, lora_decoder_logits(self->decoder, &x.b, logits, &err));
        lora_py_leave(&self->base);
        if (status != LORA_OK) {
            Py_CLEAR(result);
            raise_from(self, &err);
        }
    }
    release_batch(&x);
    return result;
}

PyDoc_STRVAR(arena_bytes_doc,
"arena_bytes($self, n_tokens, /, *, training=True)\n--\n\nReturn the bytes of activations for a batch of n_tokens, before it runs.");

static PyObject *decoder_arena_bytes(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "training", NULL};
    long long n;
    int training = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "L|$p:arena_bytes", names, &n, &training)) return NULL;
    if (n < 1 || n > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "n_tokens: expected 1 to 2**31 - 1, got %lld", n);
        return NULL;
    }
    return PyLong_FromLongLong(lora_decoder_arena_bytes(((decoder *)o)->decoder, n, training));
}

/* --- decoding ----------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(new_cache_doc,
"new_cache($self, max_tokens, n_sequences=1, /)\n--\n\n"
"Return a KVCache for n_sequences sequences of up to max_tokens tokens each.\n\n"
"Raises\n------\nValueError\n    A size is out of range.\nMemoryError\n    It does not fit in memory.");

static PyObject *decoder_new_cache(PyObject *o, PyObject *args) {
    long long max_tokens, n_sequences = 1;
    if (!PyArg_ParseTuple(args, "L|L:new_cache", &max_tokens, &n_sequences)) return NULL;
    return lora_py_kvcache_new((decoder *)o, n_sequences, max_tokens);
}

/* One sequence per segment; None: 0, 1, … The library checks that they exist and differ. */
static int get_sequences(PyObject *given, int64_t n_segments, lora_py_ids *out) {
    if (given != Py_None)
        return lora_py_get_ids(given, "sequences", out) < 0 ? -1 : lora_py_expect(&out->array, 1, &n_segments);
    out->converted = PyMem_RawMalloc((size_t)n_segments * sizeof(int32_t));
    if (!out->converted) {
        PyErr_NoMemory();
        return -1;
    }
    for (int64_t i = 0; i < n_segments; i++) out->converted[i] = (int32_t)i;
    out->data = out->converted;
    return 0;
}

PyDoc_STRVAR(decode_doc,
"decode($self, cache, input_ids, /, *, cu_seqlens=None, sequences=None)\n--\n\n"
"Append tokens to the sequences of a cache. The prompt and each later token go through the same call.\n\n"
"Shapes\n------\ninput_ids (n_tokens,); cu_seqlens (n_segments + 1,); sequences (n_segments,).\n\n"
"Parameters\n----------\n"
"cache : KVCache\n    Of this decoder.\n"
"input_ids : int32 or int64 array, or list of int\n    New tokens of all segments.\n"
"cu_seqlens : optional\n    By default all tokens are one segment.\n"
"sequences : optional\n    The sequence of each segment, distinct; by default 0, 1, ...\n\n"
"Returns\n-------\nndarray\n    float32 (n_segments, vocab_size): the logits after each segment\'s last token.\n\n"
"Raises\n------\nValueError\n    The cache is full or of another decoder, or an argument does not fit.\n"
"RuntimeError\n    Another thread is using the decoder or the cache.");

static PyObject *decoder_decode(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "cu_seqlens", "sequences", NULL};
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    lora_py_kvcache *cache;
    PyObject *ids, *cu = Py_None, *sequences_given = Py_None, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O|$OO:decode", names, state->kv_cache_type, &cache, &ids, &cu,
                                     &sequences_given)) return NULL;
    decoder *self = (decoder *)o;
    if (cache->decoder != self) {
        PyErr_SetString(PyExc_ValueError, "cache: expected a cache of this decoder, got one of another; use new_cache()");
        return NULL;
    }
    batch x;
    lora_py_ids sequences = {0};
    void *logits;
    if (get_tokens(ids, cu, &x) == 0 && get_sequences(sequences_given, x.b.n_segments, &sequences) == 0) {
        const int64_t shape[] = {x.b.n_segments, self->config.vocab_size};
        result = lora_py_new_array(LORA_PY_F32, 2, shape, 0, &logits);
    }
    if (result && lora_py_enter(&self->base) < 0) Py_CLEAR(result);
    if (result && lora_py_enter(&cache->base) < 0) {
        lora_py_leave(&self->base);
        Py_CLEAR(result);
    }
    if (result) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(state->ctx, status, lora_decoder_decode(self->decoder, cache->cache, x.b.n_segments, x.b.cu_seqlens,
                                                             sequences.data, x.b.input_ids, logits, &err));
        lora_py_leave(&cache->base);
        lora_py_leave(&self->base);
        if (status != LORA_OK) {
            Py_CLEAR(result);
            lora_py_raise(state, &err);
        }
    }
    lora_py_release_ids(&sequences);
    release_batch(&x);
    return result;
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

static PyObject *get_recompute(PyObject *o, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((decoder *)o)->recompute == LORA_RECOMPUTE_LAYER ? "layer" : "none");
}

static int set_recompute(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    decoder *self = (decoder *)o;
    int layer = value && PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, "layer") == 0;
    int none = value && PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, "none") == 0;
    if (!layer && !none) {
        PyErr_Format(PyExc_ValueError, "recompute: expected 'none' or 'layer', got %R", value ? value : Py_None);
        return -1;
    }
    if (lora_py_enter(&self->base) < 0) return -1;
    self->recompute = layer ? LORA_RECOMPUTE_LAYER : LORA_RECOMPUTE_NONE;
    lora_decoder_set_recompute(self->decoder, self->recompute);
    lora_py_leave(&self->base);
    return 0;
}

static PyObject *get_config(PyObject *o, void *unused) {
    (void)unused;
    return PyDict_Copy(((decoder *)o)->options);
}

static PyObject *decoder_repr(PyObject *o) {
    const lora_decoder_config *c = &((decoder *)o)->config;
    return PyUnicode_FromFormat("Decoder(hidden_size=%lld, num_hidden_layers=%lld, vocab_size=%lld)", (long long)c->hidden_size,
                                (long long)c->num_hidden_layers, (long long)c->vocab_size);
}

static PyGetSetDef decoder_getset[] = {
    {"recompute", get_recompute, set_recompute, "'layer' keeps one row per layer and computes the rest again: same bits, less memory.", NULL},
    {"config", get_config, NULL, "The arguments of the constructor.", NULL},
    {0},
};

static PyMethodDef decoder_methods[] = {
    {"set_weight", decoder_set_weight, METH_VARARGS, set_weight_doc},
    {"set_adapter", LORA_PY_KEYWORDS decoder_set_adapter, METH_VARARGS | METH_KEYWORDS, set_adapter_doc},
    {"set_token_rows", decoder_set_token_rows, METH_VARARGS, set_token_rows_doc},
    {"remove_adapter", decoder_remove_adapter, METH_VARARGS, remove_adapter_doc},
    {"forward_backward", LORA_PY_KEYWORDS decoder_forward_backward, METH_VARARGS | METH_KEYWORDS, forward_backward_doc},
    {"loss", LORA_PY_KEYWORDS decoder_loss, METH_VARARGS | METH_KEYWORDS, loss_doc},
    {"logits", decoder_logits, METH_VARARGS, logits_doc},
    {"arena_bytes", LORA_PY_KEYWORDS decoder_arena_bytes, METH_VARARGS | METH_KEYWORDS, arena_bytes_doc},
    {"new_cache", decoder_new_cache, METH_VARARGS, new_cache_doc},
    {"decode", LORA_PY_KEYWORDS decoder_decode, METH_VARARGS | METH_KEYWORDS, decode_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(decoder_doc,
"Decoder(*, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, vocab_size, "
"max_position_embeddings, rms_norm_eps, rope_inv_freq, rope_scale=1.0, sliding_window=0, tie_word_embeddings=False)\n--\n\n"
"A Llama-family decoder: forward and backward over a packed batch, and decoding with a KV cache.\n\n"
"Parameters\n----------\n"
"hidden_size, ... : int\n    As in config.json of a Hugging Face folder.\n"
"rope_inv_freq : array\n    float64 (head_dim / 2,): angle per position of each pair.\n"
"rope_scale : float\n    Multiplies cosine and sine.\n"
"sliding_window : int\n    A position sees this many keys, itself included; 0: all.\n\n"
"Raises\n------\nValueError\n    A size is out of range or contradicts another.\n\n"
"Notes\n-----\nWeights are set by name with set_weight() and are borrowed. One thread at a time; results do not depend on the number\n"
"of threads inside.\n\n"
"Source\n------\nLlama 2, arXiv:2307.09288, section 2.2.");

static PyType_Slot decoder_slots[] = {
    {Py_tp_new, decoder_new},         {Py_tp_dealloc, decoder_dealloc}, {Py_tp_traverse, decoder_traverse},
    {Py_tp_repr, decoder_repr},       {Py_tp_methods, decoder_methods}, {Py_tp_getset, decoder_getset},
    {Py_tp_doc, (void *)decoder_doc}, {0, NULL},
};

PyType_Spec lora_py_decoder_spec = {
    .name = "lora_c._core.Decoder",
    .basicsize = sizeof(decoder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = decoder_slots,
};
