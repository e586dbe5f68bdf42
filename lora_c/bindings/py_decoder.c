/* The type Decoder: its life, its memory, its table of methods. The library borrows; owners keep what it borrows alive. */
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_devices.h"

typedef lora_py_decoder decoder;

static int decoder_traverse(PyObject *o, visitproc visit, void *arg) {
    for (Py_ssize_t i = 0; i < ((decoder *)o)->n_owners; i++) Py_VISIT(((decoder *)o)->owners[i]);
    Py_VISIT(((decoder *)o)->options);
    return lora_py_traverse(o, visit, arg);
}

static void decoder_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    decoder *self = (decoder *)o;
    lora_decoder_destroy(self->decoder);
    for (Py_ssize_t i = 0; i < self->n_owners; i++) Py_XDECREF(self->owners[i]);
    PyMem_Free(self->owners);
    Py_XDECREF(self->options);
    Py_XDECREF(self->offload_folder);
    lora_py_delete(o);
}

static PyObject *raise_from(const decoder *self, const lora_error *err) {
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
}

/* --- construction ------------------------------------------------------------------------------------------------- */

/* In the thread of a pass, without the GIL. */
static void layer_done(void *self, int64_t layer) {
    atomic_store_explicit(&((decoder *)self)->complete_layer, layer, memory_order_release);
}

static PyObject *make_decoder(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    lora_decoder_config config = {0};
    lora_py_decoder_memory memory = {0};
    PyObject *options = lora_py_decoder_arguments(args, kwargs, &config, &memory);
    lora_py_device device;
    decoder *self = options && lora_py_find_device(lora_py_state_of(type), memory.device, &device) == 0 ? lora_py_new(type) : NULL;
    if (self) {
        lora_py_put_on(self, device);
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status, lora_decoder_create(self->base.ctx, &config, &self->decoder, &err));
        if (status == LORA_OK) lora_decoder_on_layer_done(self->decoder, layer_done, self);
        atomic_store(&self->complete_layer, config.num_hidden_layers);
        self->config = config;
        self->config.sliding_window = NULL;
        self->config.layer_rope = NULL;
        for (int i = 0; i < LORA_MAX_ROPES; i++) self->config.ropes[i].inv_freq = NULL;
        self->options = Py_NewRef(options);
        if (status == LORA_OK)
            self->precision = lora_decoder_precision(self->decoder);
        else
            raise_from(self, &err);
        if (status != LORA_OK || lora_py_make_owners(self) < 0) Py_CLEAR(self);
    }
    Py_XDECREF(options);
    lora_py_release_decoder_memory(&memory);
    return lora_py_publish(self);
}

static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    return lora_py_new_with_kept(make_decoder, type, args, kwargs);
}

static bool is_token_count(int64_t n) {
    if (n >= 1 && n <= INT32_MAX) return true;
    PyErr_Format(PyExc_ValueError, "n_tokens: expected 1 to 2**31 - 1, got %lld", (long long)n);
    return false;
}

PyDoc_STRVAR(free_activations_doc,
             "free_activations($self, /)\n--\n\nFree the memory of activations; the next pass takes what it needs.\n\n"
             "It also shrinks by itself, after some passes that need less than half of it.\n\n"
             "Raises\n------\nRuntimeError\n    Another thread is using this decoder.");

static PyObject *decoder_free_activations(PyObject *o, PyObject *unused) {
    (void)unused;
    decoder *self = (decoder *)o;
    if (lora_py_enter_decoder(self) < 0) return NULL;
    LORA_PY_DO(self->base.ctx, lora_decoder_free_activations(self->decoder));
    lora_py_leave(&self->base);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    arena_bytes_doc,
    "arena_bytes($self, n_tokens, /, *, training=True)\n--\n\nReturn the bytes of activations for a batch of n_tokens, before it runs.\n\n"
    "Parameters\n----------\n"
    "n_tokens : int\n    Tokens of the batch, all segments together, virtual ones included.\n"
    "training : bool\n    With what the backward pass needs.\n\n"
    "Raises\n------\nRuntimeError\n    Another thread is using this decoder.");

/* In the decoder's own precision, whichever the last pass had. */
static int bytes_of(decoder *self, int64_t (*count)(const lora_decoder *d, int64_t n_tokens, bool training), int64_t n, bool training,
                    int64_t *bytes) {
    if (lora_py_enter_decoder(self) < 0) return -1;
    LORA_PY_CALL(self->base.ctx, *bytes, count(self->decoder, n, training));
    lora_py_leave(&self->base);
    return 0;
}

static PyObject *decoder_arena_bytes(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "training", NULL};
    int64_t n, bytes;
    int training = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$p:arena_bytes", names, lora_py_whole, &n, &training) || !is_token_count(n))
        return NULL;
    if (bytes_of((decoder *)o, lora_decoder_arena_bytes, n, training, &bytes) < 0) return NULL;
    return PyLong_FromLongLong(bytes);
}

PyDoc_STRVAR(scratch_bytes_doc, "scratch_bytes($self, n_tokens, /, n_segments=None)\n--\n\n"
                                "Return the bytes that the operations of a training step of n_tokens work in.\n\n"
                                "Parameters\n----------\n"
                                "n_tokens : int\n    Tokens of the batch, all segments together, virtual ones included.\n"
                                "n_segments : int, optional\n    The most sequences that they are; not given, each token may be one.\n\n"
                                "Raises\n------\nRuntimeError\n    Another thread is using this decoder.");

static PyObject *decoder_scratch_bytes(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "n_segments", NULL};
    decoder *self = (decoder *)o;
    PyObject *given = Py_None;
    int64_t n, segments, bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|O:scratch_bytes", names, lora_py_whole, &n, &given) || !is_token_count(n))
        return NULL;
    segments = n;
    if (given != Py_None && !lora_py_whole(given, &segments)) return NULL;
    if (segments < 1) return PyErr_Format(PyExc_ValueError, "n_segments: expected 1 or more, got %lld", (long long)segments);
    if (lora_py_enter_decoder(self) < 0) return NULL;
    LORA_PY_CALL(self->base.ctx, bytes, lora_decoder_scratch_bytes(self->decoder, n, segments)); /* of scratch it asks the threads */
    lora_py_leave(&self->base);
    return PyLong_FromLongLong(bytes);
}

PyDoc_STRVAR(offload_bytes_doc,
             "offload_bytes($self, n_tokens, /)\n--\n\n"
             "Return the bytes that a training pass of n_tokens keeps in memory of the host: 0 without activation_offload.\n\n"
             "Raises\n------\nRuntimeError\n    Another thread is using this decoder.");

static int64_t offload_bytes(const lora_decoder *d, int64_t n_tokens, bool training) {
    (void)training;
    return lora_decoder_offload_bytes(d, n_tokens);
}

static PyObject *decoder_offload_bytes(PyObject *o, PyObject *given) {
    int64_t n, bytes;
    if (!lora_py_whole(given, &n) || !is_token_count(n)) return NULL;
    if (bytes_of((decoder *)o, offload_bytes, n, true, &bytes) < 0) return NULL;
    return PyLong_FromLongLong(bytes);
}

static PyObject *decoder_repr(PyObject *o) {
    const lora_decoder_config *c = &((decoder *)o)->config;
    return PyUnicode_FromFormat("Decoder(hidden_size=%lld, num_hidden_layers=%lld, vocab_size=%lld)", (long long)c->hidden_size,
                                (long long)c->num_hidden_layers, (long long)c->vocab_size);
}

LORA_PY_KEEP(lora_py_decoder_set_weight)
LORA_PY_KEEP(lora_py_decoder_set_adapter)
LORA_PY_KEEP(lora_py_decoder_set_virtual_tokens)
LORA_PY_KEEP(lora_py_decoder_set_scaling)
LORA_PY_KEEP(lora_py_decoder_set_bottleneck)
LORA_PY_KEEP(lora_py_decoder_forward_backward)
LORA_PY_KEEP(lora_py_decoder_loss)
LORA_PY_KEEP(decoder_arena_bytes)
LORA_PY_KEEP(decoder_scratch_bytes)
LORA_PY_KEEP(lora_py_decoder_decode)

static PyMethodDef decoder_methods[] = {
    {"set_weight", LORA_PY_KEYWORDS lora_py_decoder_set_weight_kept, METH_VARARGS | METH_KEYWORDS, lora_py_set_weight_doc},
    {"set_adapter", LORA_PY_KEYWORDS lora_py_decoder_set_adapter_kept, METH_VARARGS | METH_KEYWORDS, lora_py_set_adapter_doc},
    {"set_token_rows", lora_py_decoder_set_token_rows, METH_VARARGS, lora_py_set_token_rows_doc},
    {"set_virtual_tokens", LORA_PY_KEYWORDS lora_py_decoder_set_virtual_tokens_kept, METH_VARARGS | METH_KEYWORDS,
     lora_py_set_virtual_tokens_doc},
    {"remove_adapter", lora_py_decoder_remove_adapter, METH_VARARGS, lora_py_remove_adapter_doc},
    {"set_scaling", LORA_PY_KEYWORDS lora_py_decoder_set_scaling_kept, METH_VARARGS | METH_KEYWORDS, lora_py_set_scaling_doc},
    {"remove_scaling", lora_py_decoder_remove_scaling, METH_VARARGS, lora_py_remove_scaling_doc},
    {"set_bottleneck", LORA_PY_KEYWORDS lora_py_decoder_set_bottleneck_kept, METH_VARARGS | METH_KEYWORDS, lora_py_set_bottleneck_doc},
    {"remove_bottleneck", lora_py_decoder_remove_bottleneck, METH_VARARGS, lora_py_remove_bottleneck_doc},
    {"forward_backward", LORA_PY_KEYWORDS lora_py_decoder_forward_backward_kept, METH_VARARGS | METH_KEYWORDS,
     lora_py_forward_backward_doc},
    {"loss", LORA_PY_KEYWORDS lora_py_decoder_loss_kept, METH_VARARGS | METH_KEYWORDS, lora_py_loss_doc},
    {"logits", lora_py_decoder_logits, METH_VARARGS, lora_py_logits_doc},
    {"last_logits", lora_py_decoder_last_logits, METH_VARARGS, lora_py_last_logits_doc},
    {"hidden_states", lora_py_decoder_hidden_states, METH_VARARGS, lora_py_hidden_states_doc},
    {"scratch_bytes", LORA_PY_KEYWORDS decoder_scratch_bytes_kept, METH_VARARGS | METH_KEYWORDS, scratch_bytes_doc},
    {"offload_bytes", decoder_offload_bytes, METH_O, offload_bytes_doc},
    {"free_activations", decoder_free_activations, METH_NOARGS, free_activations_doc},
    {"arena_bytes", LORA_PY_KEYWORDS decoder_arena_bytes_kept, METH_VARARGS | METH_KEYWORDS, arena_bytes_doc},
    {"new_cache", lora_py_decoder_new_cache, METH_VARARGS, lora_py_new_cache_doc},
    {"new_adapters", lora_py_decoder_new_adapters, METH_NOARGS, lora_py_new_adapters_doc},
    {"decode", LORA_PY_KEYWORDS lora_py_decoder_decode_kept, METH_VARARGS | METH_KEYWORDS, lora_py_decode_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(
    decoder_doc,
    "Decoder(*, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, vocab_size, "
    "max_position_embeddings, norm_eps, norm='rms', norm_weight_offset=0.0, pre_norm=True, post_norm=False, qk_norm='none', "
    "activation='silu', gated_mlp=True, learned_positions=False, tie_word_embeddings=False, embedding_scale=1.0, residual_scale=1.0, "
    "attention_scale=0.0, attention_softcap=0.0, logit_scale=1.0, logit_softcap=0.0, sliding_window=0, rope_inv_freq=None, "
    "rope_scale=1.0, second_rope_inv_freq=None, second_rope_scale=1.0, layer_rope=None, rope_switch=0, num_labels=0, "
    "problem_type='single_label_classification', device='cpu')\n--\n\n"
    "A decoder: forward and backward over a packed batch, and decoding with a KV cache. What differs between the families of\n"
    "models is an argument.\n\n"
    "Parameters\n----------\n"
    "hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim : int\n"
    "    As in config.json of a Hugging Face folder.\n"
    "vocab_size, max_position_embeddings : int\n    As there, too.\n"
    "norm : 'rms' or 'layer'\n    Kind of all norms.\n"
    "norm_eps, norm_weight_offset : float\n    Added under the root, and to the weight (Gemma: 1).\n"
    "pre_norm, post_norm : bool\n    Norms of the inputs and of the outputs of attention and MLP; at least one of them.\n"
    "qk_norm : 'none', 'head' or 'row'\n    RMSNorm of queries and keys before the rotation, head by head or all heads together.\n"
    "activation : 'silu' or 'gelu_tanh'\n    Of gate_proj's output, which multiplies up_proj's.\n"
    "gated_mlp : bool\n    Else there is no gate_proj, and the activation is of up_proj's output.\n"
    "learned_positions : bool\n    An embedding of the position (embed_positions) is added to that of the token.\n"
    "tie_word_embeddings : bool\n    The embedding is the head, too.\n"
    "embedding_scale, residual_scale : float\n    Multiply the embedding, and what attention and MLP add to the residual stream.\n"
    "attention_scale : float\n    Multiplies query times key; 0: 1 / sqrt(head_dim).\n"
    "attention_softcap, logit_softcap : float\n    c tanh(x / c) of scores and logits; 0: none.\n"
    "logit_scale : float\n    Logits are multiplied by this first.\n"
    "sliding_window : int or sequence of int\n    For all layers or one for each: a position sees this many keys, itself included; 0: "
    "all.\n"
    "rope_inv_freq : array\n    float64, at most head_dim / 2: angle per position of each pair; fewer turn only the start of a head. None: "
    "no rotation.\n"
    "rope_scale : float\n    Multiplies cosine and sine.\n"
    "second_rope_inv_freq, second_rope_scale : optional\n    A second table.\n"
    "layer_rope : sequence of int, optional\n    Table of each layer, 0 or 1; -1: no rotation. By default 0 for all.\n"
    "rope_switch : int\n    Sequences of more tokens than this use the second table in all layers (longrope); 0: never.\n"
    "num_labels : int\n    0: a language model. Else a classifier: lm_head is (num_labels, hidden_size), and logits are of labels.\n"
    "problem_type : str\n    What a classifier is asked, with its loss: 'single_label_classification' (cross entropy), 'regression' "
    "(mean\n    "
    "squared error) or 'multi_label_classification' (binary cross entropy of each label).\n"
    "device : str\n    What it computes on, a name of devices(). Parameters must lie there; frozen weights are copied to it.\n\n"
    "Raises\n------\nValueError\n    A number is out of range or contradicts another.\n\n"
    "Notes\n-----\nWeights are set by name with set_weight() and are borrowed. One thread at a time; results do not depend on the number\n"
    "of threads inside.\n\n"
    "Source\n------\nLlama 2, arXiv:2307.09288, section 2.2; Gemma 2, arXiv:2408.00118, section 2; OLMo 2, arXiv:2501.00656, section 2.");

static PyType_Slot decoder_slots[] = {
    {Py_tp_new, decoder_new},           {Py_tp_dealloc, decoder_dealloc},
    {Py_tp_traverse, decoder_traverse}, {Py_tp_repr, decoder_repr},
    {Py_tp_methods, decoder_methods},   {Py_tp_getset, lora_py_decoder_getset},
    {Py_tp_doc, (void *)decoder_doc},   {0, NULL},
};

PyType_Spec lora_py_decoder_spec = {
    .name = "lora_c._core.Decoder",
    .basicsize = sizeof(decoder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = decoder_slots,
};
