/* The calls of a Decoder over a packed batch, and decoding with a cache. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_precision.h"

typedef lora_py_decoder decoder;

static PyObject *raise_from(const decoder *self, const lora_error *err) {
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
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

const char lora_py_forward_backward_doc[] =
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
    "RuntimeError\n    Another thread is using this decoder.";

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

PyObject *lora_py_decoder_forward_backward(PyObject *o, PyObject *args, PyObject *kwargs) {
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
        atomic_store(&self->complete_layer, self->config.num_hidden_layers); /* a parent that forked in a pass has left another */
        LORA_PY_CALL(self->base.ctx, status, lora_decoder_forward_backward(self->decoder, &x.b, (float)grad_scale, &loss, &err));
        atomic_store(&self->complete_layer, self->config.num_hidden_layers);
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

const char lora_py_loss_doc[] =
    "loss($self, input_ids, cu_seqlens, targets, loss_weight, /, *, token_loss=None)\n--\n\n"
    "The loss of forward_backward() without gradients and without dropout.\n\n"
    "Parameters\n----------\n"
    "input_ids, cu_seqlens, targets : int32 or int64 array, or list of int\n    As given to forward_backward().\n"
    "loss_weight : array\n    float32; 0 where a position carries no loss.\n"
    "token_loss : array, optional\n    float32 (n_tokens,), receives the unweighted loss of each token, 0 where loss_weight is 0.\n\n"
    "Returns\n-------\nfloat\n    Sum of loss_weight times cross entropy in nats.\n\n"
    "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward().";

PyObject *lora_py_decoder_loss(PyObject *o, PyObject *args, PyObject *kwargs) {
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

const char lora_py_logits_doc[] =
    "logits($self, input_ids, cu_seqlens=None, /)\n--\n\n"
    "The logits of every position.\n\n"
    "Parameters\n----------\n"
    "input_ids : int32 or int64 array, or list of int\n    Tokens of all segments, one behind the other.\n"
    "cu_seqlens : int32 or int64 array, or list of int, optional\n    By default all tokens are one segment.\n\n"
    "Returns\n-------\nndarray\n    float32 (n_tokens, vocab_size), of a classifier (n_tokens, num_labels).\n\n"
    "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward().";

PyObject *lora_py_decoder_logits(PyObject *o, PyObject *args) {
    PyObject *ids, *cu = Py_None;
    if (!PyArg_ParseTuple(args, "O|O:logits", &ids, &cu)) return NULL;
    return rows_of_batch((decoder *)o, ids, cu, head_rows((decoder *)o), LOGITS);
}

const char lora_py_last_logits_doc[] =
    "last_logits($self, input_ids, cu_seqlens=None, /)\n--\n\n"
    "The logits of the last token of each segment: what a classifier says of it.\n\n"
    "Parameters\n----------\n"
    "input_ids : int32 or int64 array, or list of int\n    Tokens of all segments, one behind the other.\n"
    "cu_seqlens : int32 or int64 array, or list of int, optional\n    By default all tokens are one segment.\n\n"
    "Returns\n-------\nndarray\n    float32 (n_segments, num_labels), of a language model (n_segments, vocab_size).\n\n"
    "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward().";

PyObject *lora_py_decoder_last_logits(PyObject *o, PyObject *args) {
    PyObject *ids, *cu = Py_None;
    if (!PyArg_ParseTuple(args, "O|O:last_logits", &ids, &cu)) return NULL;
    return rows_of_batch((decoder *)o, ids, cu, head_rows((decoder *)o), LAST_LOGITS);
}

const char lora_py_hidden_states_doc[] =
    "hidden_states($self, input_ids, layer, cu_seqlens=None, /)\n--\n\n"
    "What goes into a layer, or out of the last one.\n\n"
    "Parameters\n----------\n"
    "input_ids : int32 or int64 array, or list of int\n    Tokens of all segments, one behind the other.\n"
    "layer : int\n    0: the embeddings; i: after i layers; the number of layers: after the last one and the final norm,\n    "
    "which is what the head reads. These are the hidden_states of transformers.\n"
    "cu_seqlens : int32 or int64 array, or list of int, optional\n    By default all tokens are one segment.\n\n"
    "Returns\n-------\nndarray\n    float32 (n_tokens, hidden_size).\n\n"
    "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward_backward(), or there is no such layer.";

PyObject *lora_py_decoder_hidden_states(PyObject *o, PyObject *args) {
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

/* --- decoding ----------------------------------------------------------------------------------------------------- */

const char lora_py_new_cache_doc[] = "new_cache($self, max_tokens, n_sequences=1, /)\n--\n\n"
                                     "Return a KVCache for n_sequences sequences of up to max_tokens tokens each.\n\n"
                                     "Parameters\n----------\n"
                                     "max_tokens : int\n    Of each sequence.\n"
                                     "n_sequences : int\n    How many sequences there are.\n\n"
                                     "Raises\n------\nValueError\n    A size is out of range.\nMemoryError\n    It does not fit in memory.";

PyObject *lora_py_decoder_new_cache(PyObject *o, PyObject *args) {
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

const char lora_py_decode_doc[] =
    "decode($self, cache, input_ids, /, *, cu_seqlens=None, sequences=None, precision=None, adapters=None)\n--\n\n"
    "Append tokens to the sequences of a cache. The prompt and each later token go through the same call.\n\n"
    "Shapes\n------\ninput_ids (n_tokens,); cu_seqlens (n_segments + 1,); sequences (n_segments,).\n\n"
    "Parameters\n----------\n"
    "cache : KVCache\n    Of this decoder.\n"
    "input_ids : int32 or int64 array, or list of int\n    New tokens of all segments.\n"
    "cu_seqlens : optional\n    By default all tokens are one segment.\n"
    "sequences : optional\n    The sequence of each segment, distinct; by default 0, 1, ...\n"
    "precision : optional\n    'exact', 'fast' or 'int8' for this call; by default the decoder's.\n"
    "adapters : list of DecoderAdapters or None, optional\n    What each segment has instead of the decoder's own adapters; None "
    "in it: the bare\n    weights. Where they differ, a call takes up to DECODE_BATCH tokens, and each gets the bits that it "
    "gets alone.\n    Not with adapters of embed_tokens or lm_head, nor with token rows.\n\n"
    "Returns\n-------\nndarray\n    float32 (n_segments, vocab_size): the logits after each segment\'s last token.\n\n"
    "Raises\n------\nValueError\n    The cache is full or of another decoder, or an argument does not fit.\n"
    "RuntimeError\n    Another thread is using the decoder, the cache or adapters.";

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

PyObject *lora_py_decoder_decode(PyObject *o, PyObject *args, PyObject *kwargs) {
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
        lora_status status = LORA_OK;
        lora_error err = {0};
        if (precision_name) status = lora_decoder_set_precision(self->decoder, precision, &err);
        if (status == LORA_OK)
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
