/* Decoder: weights by name, and the calls over a packed batch. The library borrows; two dicts own. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_devices.h"
#include "lora_c/bindings/py_precision.h"

#include <math.h>
#include <string.h>

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
    lora_py_delete(o);
}

static PyObject *raise_from(const decoder *self, const lora_error *err) {
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
}

/* --- construction ------------------------------------------------------------------------------------------------- */

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

/* --- batches ------------------------------------------------------------------------------------------------------ */

typedef struct batch {
    lora_py_ids ids, cu, targets;
    lora_py_array weight, values;
    int32_t whole[2]; /* cu_seqlens of one segment */
    lora_batch b;
} batch;

static void release_batch(batch *x) {
    lora_py_release_ids(&x->ids);
    lora_py_release_ids(&x->cu);
    lora_py_release_ids(&x->targets);
    lora_py_release(&x->weight);
    lora_py_release(&x->values);
}

/* Numbers of a row of logits. */
static int64_t head_rows(const decoder *self) { return self->config.num_labels ? self->config.num_labels : self->config.vocab_size; }

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
    PyErr_Format(PyExc_ValueError,
                 "cu_seqlens: expected 0, the ends of the segments, and at last %lld, the number of tokens, got %lld "
                 "numbers ending with %d",
                 (long long)x->ids.n, (long long)n, (int)cu[n - 1]);
    return -1;
}

/* Targets are tokens or labels, or of some classifiers the values that their numbers are compared with. */
static int get_targets(const decoder *self, PyObject *targets, batch *x) {
    const int64_t n[] = {x->ids.n, self->config.num_labels};
    if (!self->config.num_labels || self->config.problem == LORA_SINGLE_LABEL)
        return lora_py_get_ids(targets, "targets", &x->targets) < 0 ? -1 : lora_py_expect(&x->targets.array, 1, n);
    if (lora_py_get(targets, "targets", LORA_PY_F32, 0, &x->values) < 0 || lora_py_expect(&x->values, 2, n) < 0) return -1;
    return lora_py_detach(&x->values); /* they are checked before they are used */
}

static int get_batch(const decoder *self, PyObject *ids, PyObject *cu, PyObject *targets, PyObject *weight, batch *x) {
    if (get_tokens(ids, cu, x) < 0) return -1;
    const int64_t n[] = {x->ids.n};
    if (get_targets(self, targets, x) < 0) return -1;
    if (lora_py_get(weight, "loss_weight", LORA_PY_F32, 0, &x->weight) < 0 || lora_py_expect(&x->weight, 1, n) < 0 ||
        lora_py_detach(&x->weight) < 0)
        return -1; /* says which targets are read */
    x->b.targets = x->targets.data;
    x->b.loss_weight = x->weight.data;
    x->b.values = x->values.data;
    return 0;
}

PyDoc_STRVAR(forward_backward_doc,
             "forward_backward($self, input_ids, cu_seqlens, targets, loss_weight, /, *, grad_scale=1.0, dropout_step=None)\n--\n\n"
             "One forward and one backward pass over a packed batch.\n\n"
             "Shapes\n------\ninput_ids, targets, loss_weight (n_tokens,); cu_seqlens (n_segments + 1,): 0, the ends of the segments.\n\n"
             "Parameters\n----------\n"
             "input_ids, cu_seqlens, targets : int32 or int64 array, or list of int\n    targets[i] is the token that position i must "
             "predict, of a classifier the label; of one of another problem_type\n    float32 (n_tokens, num_labels), the values that its "
             "numbers are compared with.\n"
             "loss_weight : array\n    float32; 0 where a position carries no loss. A classifier has it on the last tokens of segments.\n"
             "grad_scale : float\n    Gradients of grad_scale times the returned loss are added to every trained parameter.\n"
             "dropout_step : int, optional\n    Chooses the dropout masks; needed where an adapter has lora_dropout or there is noise.\n\n"
             "Returns\n-------\nfloat\n    Sum of loss_weight times cross entropy in nats, or times the loss of the problem_type (its mean "
             "over the labels).\n\n"
             "Raises\n------\nValueError\n    A shape, an id or a segment does not fit, or a weight is missing (it is named).\n"
             "RuntimeError\n    Another thread is using this decoder.");

/* The step that chooses the dropout masks. One that is left out would be the same masks in every step. */
static int read_dropout_step(decoder *self, PyObject *given, uint64_t *step) {
    bool draws;
    *step = 0;
    if (given != Py_None) {
        *step = PyLong_AsUnsignedLongLongMask(given);
        return *step == (uint64_t)-1 && PyErr_Occurred() ? -1 : 0;
    }
    LORA_PY_CALL(self->base.ctx, draws, lora_decoder_has_dropout(self->decoder));
    if (!draws) return 0;
    PyErr_SetString(PyExc_ValueError,
                    "dropout_step: expected the number of the training step with lora_dropout or noise, which draw others in "
                    "each, got none");
    return -1;
}

static PyObject *decoder_forward_backward(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "grad_scale", "dropout_step", NULL};
    PyObject *ids, *cu, *targets, *weight, *step = Py_None;
    double grad_scale = 1.0, loss = 0.0;
    uint64_t dropout_step;
    decoder *self = (decoder *)o;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$dO:forward_backward", names, &ids, &cu, &targets, &weight, &grad_scale, &step) ||
        read_dropout_step(self, step, &dropout_step) < 0)
        return NULL;
    batch x;
    int ready = get_batch(self, ids, cu, targets, weight, &x) == 0 && lora_py_enter_decoder(self) == 0;
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

static int apart_from_weights(const decoder *self, const lora_py_array *out) {
    lora_py_state *state = lora_py_state_of(Py_TYPE((PyObject *)self));
    for (Py_ssize_t i = 0; i < self->n_owners; i++)
        if (lora_py_apart_from_owner(state, out, "the weights", self->owners[i]) < 0) return -1;
    return 0;
}

PyDoc_STRVAR(
    loss_doc,
    "loss($self, input_ids, cu_seqlens, targets, loss_weight, /, *, token_loss=None)\n--\n\n"
    "The loss of forward_backward() without gradients and without dropout.\n\n"
    "Parameters\n----------\n"
    "input_ids, cu_seqlens, targets : int32 or int64 array, or list of int\n    As given to forward_backward().\n"
    "loss_weight : array\n    float32; 0 where a position carries no loss.\n"
    "token_loss : array, optional\n    float32 (n_tokens,), receives the unweighted loss of each token, 0 where loss_weight is 0.\n\n"
    "Returns\n-------\nfloat\n    Sum of loss_weight times cross entropy in nats.\n\n"
    "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward().");

static PyObject *decoder_loss(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "token_loss", NULL};
    PyObject *ids, *cu, *targets, *weight, *token_given = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$O:loss", names, &ids, &cu, &targets, &weight, &token_given)) return NULL;
    decoder *self = (decoder *)o;
    batch x;
    lora_py_array token_loss = {0};
    int ready = get_batch(self, ids, cu, targets, weight, &x) == 0;
    if (ready && token_given != Py_None) {
        const int64_t n[] = {x.ids.n};
        ready = lora_py_get(token_given, "token_loss", LORA_PY_F32, LORA_PY_WRITABLE, &token_loss) == 0 &&
                lora_py_expect(&token_loss, 1, n) == 0 && apart_from_weights(self, &token_loss) == 0;
    }
    ready = ready && lora_py_enter_decoder(self) == 0;
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

enum { LOGITS = -1, LAST_LOGITS = -2 }; /* in the place of a layer */

/* The rows of a batch, each of so many numbers: its logits, or with layer >= 0 its hidden states. */
static PyObject *rows_of_batch(decoder *self, PyObject *ids, PyObject *cu, int64_t width, int64_t layer) {
    PyObject *result = NULL;
    batch x;
    void *rows;
    if (get_tokens(ids, cu, &x) == 0) {
        const int64_t shape[] = {layer == LAST_LOGITS ? x.b.n_segments : x.ids.n, width};
        result = lora_py_new_array(LORA_PY_F32, 2, shape, 0, &rows);
    }
    if (result && lora_py_enter_decoder(self) < 0) Py_CLEAR(result);
    if (result) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status,
                     layer == LAST_LOGITS ? lora_decoder_last_logits(self->decoder, &x.b, rows, &err)
                     : layer == LOGITS    ? lora_decoder_logits(self->decoder, &x.b, rows, &err)
                                          : lora_decoder_hidden_states(self->decoder, &x.b, layer, rows, &err));
        lora_py_leave(&self->base);
        if (status != LORA_OK) {
            Py_CLEAR(result);
            raise_from(self, &err);
        }
    }
    release_batch(&x);
    return result;
}

PyDoc_STRVAR(logits_doc, "logits($self, input_ids, cu_seqlens=None, /)\n--\n\n"
                         "The logits of every position.\n\n"
                         "Parameters\n----------\n"
                         "input_ids : int32 or int64 array, or list of int\n    Tokens of all segments, one behind the other.\n"
                         "cu_seqlens : int32 or int64 array, or list of int, optional\n    By default all tokens are one segment.\n\n"
                         "Returns\n-------\nndarray\n    float32 (n_tokens, vocab_size), of a classifier (n_tokens, num_labels).\n\n"
                         "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward().");

static PyObject *decoder_logits(PyObject *o, PyObject *args) {
    PyObject *ids, *cu = Py_None;
    if (!PyArg_ParseTuple(args, "O|O:logits", &ids, &cu)) return NULL;
    return rows_of_batch((decoder *)o, ids, cu, head_rows((decoder *)o), LOGITS);
}

PyDoc_STRVAR(last_logits_doc,
             "last_logits($self, input_ids, cu_seqlens=None, /)\n--\n\n"
             "The logits of the last token of each segment: what a classifier says of it.\n\n"
             "Parameters\n----------\n"
             "input_ids : int32 or int64 array, or list of int\n    Tokens of all segments, one behind the other.\n"
             "cu_seqlens : int32 or int64 array, or list of int, optional\n    By default all tokens are one segment.\n\n"
             "Returns\n-------\nndarray\n    float32 (n_segments, num_labels), of a language model (n_segments, vocab_size).\n\n"
             "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward().");

static PyObject *decoder_last_logits(PyObject *o, PyObject *args) {
    PyObject *ids, *cu = Py_None;
    if (!PyArg_ParseTuple(args, "O|O:last_logits", &ids, &cu)) return NULL;
    return rows_of_batch((decoder *)o, ids, cu, head_rows((decoder *)o), LAST_LOGITS);
}

PyDoc_STRVAR(hidden_states_doc,
             "hidden_states($self, input_ids, layer, cu_seqlens=None, /)\n--\n\n"
             "What goes into a layer, or out of the last one.\n\n"
             "Parameters\n----------\n"
             "input_ids : int32 or int64 array, or list of int\n    Tokens of all segments, one behind the other.\n"
             "layer : int\n    0: the embeddings; i: after i layers; the number of layers: after the last one and the final norm,\n    "
             "which is what the head reads. These are the hidden_states of transformers.\n"
             "cu_seqlens : int32 or int64 array, or list of int, optional\n    By default all tokens are one segment.\n\n"
             "Returns\n-------\nndarray\n    float32 (n_tokens, hidden_size).\n\n"
             "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward(), or there is no such layer.");

static PyObject *decoder_hidden_states(PyObject *o, PyObject *args) {
    PyObject *ids, *cu = Py_None;
    Py_ssize_t layer;
    decoder *self = (decoder *)o;
    if (!PyArg_ParseTuple(args, "On|O:hidden_states", &ids, &layer, &cu)) return NULL;
    if (layer < 0) {
        PyErr_Format(PyExc_ValueError, "layer: expected 0 (the embedding) to %lld (the last, normed), got %zd",
                     (long long)self->config.num_hidden_layers, layer);
        return NULL;
    }
    return rows_of_batch(self, ids, cu, self->config.hidden_size, layer);
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
    "training : bool\n    With what the backward pass needs.");

static PyObject *decoder_arena_bytes(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "training", NULL};
    int64_t n, bytes;
    int training = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$p:arena_bytes", names, lora_py_whole, &n, &training) || !is_token_count(n))
        return NULL;
    LORA_PY_CALL(((decoder *)o)->base.ctx, bytes, lora_decoder_arena_bytes(((decoder *)o)->decoder, n, training));
    return PyLong_FromLongLong(bytes);
}

PyDoc_STRVAR(scratch_bytes_doc,
             "scratch_bytes($self, n_tokens, /)\n--\n\nReturn the bytes that the operations of a training step of n_tokens work in.");

static PyObject *decoder_scratch_bytes(PyObject *o, PyObject *given) {
    int64_t n, bytes;
    if (!lora_py_whole(given, &n) || !is_token_count(n)) return NULL;
    LORA_PY_CALL(((decoder *)o)->base.ctx, bytes, lora_decoder_scratch_bytes(((decoder *)o)->decoder, n)); /* asks the threads */
    return PyLong_FromLongLong(bytes);
}

/* --- decoding ----------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(new_cache_doc, "new_cache($self, max_tokens, n_sequences=1, /)\n--\n\n"
                            "Return a KVCache for n_sequences sequences of up to max_tokens tokens each.\n\n"
                            "Parameters\n----------\n"
                            "max_tokens : int\n    Of each sequence.\n"
                            "n_sequences : int\n    How many sequences there are.\n\n"
                            "Raises\n------\nValueError\n    A size is out of range.\nMemoryError\n    It does not fit in memory.");

static PyObject *decoder_new_cache(PyObject *o, PyObject *args) {
    int64_t max_tokens, n_sequences = 1;
    if (!PyArg_ParseTuple(args, "O&|O&:new_cache", lora_py_whole, &max_tokens, lora_py_whole, &n_sequences)) return NULL;
    return lora_py_kvcache_new((decoder *)o, n_sequences, max_tokens);
}

/* One sequence per segment; None: 0, 1, … The library checks that they exist and differ. */
static int get_sequences(PyObject *given, int64_t n_segments, lora_py_ids *out) {
    if (given != Py_None) return lora_py_get_ids(given, "sequences", out) < 0 ? -1 : lora_py_expect(&out->array, 1, &n_segments);
    out->data = PyMem_RawMalloc((size_t)n_segments * sizeof *out->data);
    if (!out->data) {
        PyErr_NoMemory();
        return -1;
    }
    for (int64_t i = 0; i < n_segments; i++) out->data[i] = (int32_t)i;
    return 0;
}

PyDoc_STRVAR(decode_doc,
             "decode($self, cache, input_ids, /, *, cu_seqlens=None, sequences=None, precision=None, adapters=None)\n--\n\n"
             "Append tokens to the sequences of a cache. The prompt and each later token go through the same call.\n\n"
             "Shapes\n------\ninput_ids (n_tokens,); cu_seqlens (n_segments + 1,); sequences (n_segments,).\n\n"
             "Parameters\n----------\n"
             "cache : KVCache\n    Of this decoder.\n"
             "input_ids : int32 or int64 array, or list of int\n    New tokens of all segments.\n"
             "cu_seqlens : optional\n    By default all tokens are one segment.\n"
             "sequences : optional\n    The sequence of each segment, distinct; by default 0, 1, ...\n"
             "precision : optional\n    'exact' or 'fast' for this call; by default the decoder's.\n"
             "adapters : list of DecoderAdapters or None, optional\n    What each segment has instead of the decoder's own adapters; None "
             "in it: the bare\n    weights. Where they differ, a call takes up to DECODE_BATCH tokens, and each gets the bits that it "
             "gets alone.\n    Not with adapters of embed_tokens or lm_head, nor with token rows.\n\n"
             "Returns\n-------\nndarray\n    float32 (n_segments, vocab_size): the logits after each segment\'s last token.\n\n"
             "Raises\n------\nValueError\n    The cache is full or of another decoder, or an argument does not fit.\n"
             "RuntimeError\n    Another thread is using the decoder, the cache or adapters.");

/* Exclusive use of all that a decode uses; -1 with an exception, and of nothing. */
static int enter_decode(decoder *self, lora_py_kvcache *cache, lora_py_chosen *chosen) {
    if (lora_py_enter_decoder(self) < 0) return -1;
    if (lora_py_enter(&cache->base) >= 0) {
        if (lora_py_enter_chosen(chosen) == 0) return 0;
        lora_py_leave(&cache->base);
    }
    lora_py_leave(&self->base);
    return -1;
}

static PyObject *decoder_decode(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "cu_seqlens", "sequences", "precision", "adapters", NULL};
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    lora_py_kvcache *cache;
    const char *precision_name = NULL;
    lora_precision precision = LORA_PRECISION_EXACT;
    PyObject *ids, *cu = Py_None, *sequences_given = Py_None, *adapters = Py_None, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O|$OOzO:decode", names, state->kv_cache_type, &cache, &ids, &cu, &sequences_given,
                                     &precision_name, &adapters))
        return NULL;
    if (precision_name && lora_py_precision_by_name("precision", precision_name, &precision) < 0) return NULL;
    decoder *self = (decoder *)o;
    if (cache->decoder != self) {
        PyErr_SetString(PyExc_ValueError, "cache: expected a cache of this decoder, got one of another; use new_cache()");
        return NULL;
    }
    batch x;
    lora_py_ids sequences = {0};
    lora_py_chosen chosen = {0};
    void *logits;
    if (get_tokens(ids, cu, &x) == 0 && get_sequences(sequences_given, x.b.n_segments, &sequences) == 0 &&
        lora_py_choose_adapters(state, adapters, x.b.n_segments, &chosen) == 0) {
        const int64_t shape[] = {x.b.n_segments, head_rows(self)};
        result = lora_py_new_array(LORA_PY_F32, 2, shape, 0, &logits);
    }
    if (result && enter_decode(self, cache, &chosen) < 0) Py_CLEAR(result);
    if (result) {
        lora_status status;
        lora_error err = {0};
        if (precision_name) lora_decoder_set_precision(self->decoder, precision);
        LORA_PY_CALL(state->ctx, status,
                     lora_decoder_decode(self->decoder, cache->cache, x.b.n_segments, x.b.cu_seqlens, sequences.data, x.b.input_ids,
                                         chosen.of, logits, &err));
        lora_py_leave_chosen(&chosen);
        lora_py_leave(&cache->base);
        lora_py_leave(&self->base);
        if (status != LORA_OK) {
            Py_CLEAR(result);
            lora_py_raise(state, &err);
        }
    }
    lora_py_release_chosen(&chosen);
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
        return lora_py_refuse(PyExc_ValueError, "recompute: expected 'none' or 'layer'", value ? value : Py_None);
    }
    if (lora_py_enter_decoder(self) < 0) return -1;
    self->recompute = layer ? LORA_RECOMPUTE_LAYER : LORA_RECOMPUTE_NONE;
    lora_decoder_set_recompute(self->decoder, self->recompute);
    lora_py_leave(&self->base);
    return 0;
}

static PyObject *get_activation_dtype(PyObject *o, void *unused) {
    (void)unused;
    return PyUnicode_FromString(lora_dtype_name(((decoder *)o)->activation_dtype));
}

static int set_activation_dtype(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    decoder *self = (decoder *)o;
    int half = value && PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, "bfloat16") == 0;
    int single = value && PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, "float32") == 0;
    lora_error err = {0};
    if (!half && !single) {
        return lora_py_refuse(PyExc_ValueError, "activation_dtype: expected 'float32' or 'bfloat16'", value ? value : Py_None);
    }
    if (lora_py_enter_decoder(self) < 0) return -1;
    self->activation_dtype = half ? LORA_BF16 : LORA_F32;
    lora_status status = lora_decoder_set_activation_dtype(self->decoder, self->activation_dtype, &err);
    lora_py_leave(&self->base);
    if (status != LORA_OK) lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    return status == LORA_OK ? 0 : -1;
}

static PyObject *get_noise(PyObject *o, void *unused) {
    (void)unused;
    return Py_BuildValue("(dK)", ((decoder *)o)->noise_alpha, (unsigned long long)((decoder *)o)->noise_seed);
}

static int set_noise(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    decoder *self = (decoder *)o;
    double alpha;
    PyObject *seed;
    lora_error err = {0};
    if (!value || !PyTuple_Check(value)) return lora_py_refuse(PyExc_TypeError, "noise: expected (alpha, seed)", value ? value : Py_None);
    if (!PyArg_ParseTuple(value, "dO!:noise", &alpha, &PyLong_Type, &seed)) return -1;
    uint64_t number = PyLong_AsUnsignedLongLongMask(seed);
    if ((number == (uint64_t)-1 && PyErr_Occurred()) || lora_py_enter_decoder(self) < 0) return -1;
    lora_status status = lora_decoder_set_noise(self->decoder, alpha, number, &err);
    if (status == LORA_OK) self->noise_alpha = alpha, self->noise_seed = number;
    lora_py_leave(&self->base);
    if (status != LORA_OK) lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    return status == LORA_OK ? 0 : -1;
}

static PyObject *get_stopping(PyObject *o, void *unused) {
    (void)unused;
    return PyBool_FromLong(lora_decoder_stopping(((decoder *)o)->decoder));
}

/* Not exclusive: it is meant for the pass that another thread is in. */
static int set_stopping(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    if (!value || !PyBool_Check(value)) return lora_py_refuse(PyExc_TypeError, "stopping: expected True or False", value ? value : Py_None);
    lora_decoder_set_stopping(((decoder *)o)->decoder, value == Py_True);
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
    {"recompute", get_recompute, set_recompute, "'layer' keeps one row per layer and computes the rest again: same bits, less memory.",
     NULL},
    {"noise", get_noise, set_noise, "(alpha, seed) of the noise on embedded tokens in forward_backward(); alpha 0: none.", NULL},
    {"activation_dtype", get_activation_dtype, set_activation_dtype,
     "'bfloat16' keeps what backward needs of a layer in half the memory: same loss, gradients of rounded activations.", NULL},
    {"precision", lora_py_decoder_precision, lora_py_decoder_set_precision,
     "'exact' or 'fast', for every pass; at first that of the module. See set_precision().", NULL},
    {"stopping", get_stopping, set_stopping,
     "While True, passes end between two layers with PassStopped, the running one too; may be set by any thread.", NULL},
    {"virtual_tokens", lora_py_decoder_get_virtual_tokens, NULL, "How many set_virtual_tokens() has put before every sequence.", NULL},
    {"config", get_config, NULL, "The arguments of the constructor.", NULL},
    {"watching", lora_py_decoder_watching, lora_py_decoder_set_watching,
     "While True, passes look for the first value that is not finite: same bits, slower. Setting it forgets what was found.", NULL},
    {"first_nonfinite", lora_py_decoder_first_nonfinite, NULL,
     "The first value that was not finite while watching, as a dict of operation, result, weight, layer, backward, row, column and value; "
     "or None.",
     NULL},
    {"device", lora_py_get_device, NULL, "The name of the device that it computes on.", NULL},
    {0},
};

LORA_PY_KEEP(lora_py_decoder_set_weight)
LORA_PY_KEEP(lora_py_decoder_set_adapter)
LORA_PY_KEEP(lora_py_decoder_set_virtual_tokens)
LORA_PY_KEEP(lora_py_decoder_set_scaling)
LORA_PY_KEEP(lora_py_decoder_set_bottleneck)
LORA_PY_KEEP(decoder_forward_backward)
LORA_PY_KEEP(decoder_loss)
LORA_PY_KEEP(decoder_arena_bytes)
LORA_PY_KEEP(decoder_decode)

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
    {"forward_backward", LORA_PY_KEYWORDS decoder_forward_backward_kept, METH_VARARGS | METH_KEYWORDS, forward_backward_doc},
    {"loss", LORA_PY_KEYWORDS decoder_loss_kept, METH_VARARGS | METH_KEYWORDS, loss_doc},
    {"logits", decoder_logits, METH_VARARGS, logits_doc},
    {"last_logits", decoder_last_logits, METH_VARARGS, last_logits_doc},
    {"hidden_states", decoder_hidden_states, METH_VARARGS, hidden_states_doc},
    {"scratch_bytes", decoder_scratch_bytes, METH_O, scratch_bytes_doc},
    {"free_activations", decoder_free_activations, METH_NOARGS, free_activations_doc},
    {"arena_bytes", LORA_PY_KEYWORDS decoder_arena_bytes_kept, METH_VARARGS | METH_KEYWORDS, arena_bytes_doc},
    {"new_cache", decoder_new_cache, METH_VARARGS, new_cache_doc},
    {"new_adapters", lora_py_decoder_new_adapters, METH_NOARGS, lora_py_new_adapters_doc},
    {"decode", LORA_PY_KEYWORDS decoder_decode_kept, METH_VARARGS | METH_KEYWORDS, decode_doc},
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
    {Py_tp_new, decoder_new},         {Py_tp_dealloc, decoder_dealloc}, {Py_tp_traverse, decoder_traverse}, {Py_tp_repr, decoder_repr},
    {Py_tp_methods, decoder_methods}, {Py_tp_getset, decoder_getset},   {Py_tp_doc, (void *)decoder_doc},   {0, NULL},
};

PyType_Spec lora_py_decoder_spec = {
    .name = "lora_c._core.Decoder",
    .basicsize = sizeof(decoder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = decoder_slots,
};
