/* Decoder.set_virtual_tokens: trained tokens before every sequence. The library borrows; the decoder keeps their Parameters. */
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_devices.h"

#include <math.h>
#include <string.h>

typedef lora_py_decoder decoder;

enum { ENCODER_PARTS = 5 };

const char lora_py_set_virtual_tokens_doc[] =
    "set_virtual_tokens($self, kind, values=None, /, *, scale=1.0)\n--\n\n"
    "Put trained tokens before every sequence that begins from here on. Ids, losses, logits and lengths are those of the other tokens.\n\n"
    "Shapes\n------\nOf 'prompt' (n, hidden_size); of 'prefix' (n, num_hidden_layers * 2 * num_key_value_heads * head_dim): of each "
    "layer the\nkey and the value, as PEFT lays them.\n\n"
    "Parameters\n----------\n"
    "kind : 'prompt', 'prefix' or None\n    Embeddings (prompt tuning), or keys and values in each layer (prefix tuning). None ends it.\n"
    "values : Parameter or sequence of Parameter\n    Shared; trained where requires_grad. Of a prefix also the embedding (n, width), W1 "
    "(hidden, width), b1, W2 and b2 of\n    W2 tanh(W1 e + b1) + b2, which makes it.\n"
    "scale : float\n    Of the embeddings of a prompt, on their way in.\n\n"
    "Raises\n------\nValueError\n    A shape does not fit, or there are as many as max_position_embeddings.\n\n"
    "Notes\n-----\nThey take the first n positions, and count towards max_position_embeddings, the max_tokens of a cache, and the tokens "
    "of\n"
    "arena_bytes(). A sequence in a cache keeps those that it began with.\n\n"
    "Source\n------\nPrompt tuning, arXiv:2104.08691; prefix tuning, arXiv:2101.00190.";

static int64_t prefix_width(const decoder *self) {
    return self->config.num_hidden_layers * 2 * self->config.num_key_value_heads * self->config.head_dim;
}

/* A Parameter on the decoder's device of ndim dimensions; sizes of -1 may be any. */
static int check_parameter(const decoder *self, PyObject *given, const char *name, int64_t rows, int64_t cols) {
    const lora_py_parameter *p = (const lora_py_parameter *)given;
    int ndim = cols < 0 ? 1 : 2;
    bool fits = Py_IS_TYPE(given, lora_py_state_of(Py_TYPE((PyObject *)self))->parameter_type) && p->ndim == ndim &&
                (rows < 0 || p->shape[0] == rows) && (ndim == 1 || cols == 0 || p->shape[1] == cols);
    if (fits) return lora_py_same_device(self->base.ctx, &p->base, name);
    char shape[64] = "";
    if (ndim == 1)
        PyOS_snprintf(shape, sizeof shape, "(%lld,)", (long long)rows);
    else if (rows < 0)
        PyOS_snprintf(shape, sizeof shape, cols ? "(n, %lld)" : "(n, m)", (long long)cols);
    else
        PyOS_snprintf(shape, sizeof shape, cols ? "(%lld, %lld)" : "(%lld, m)", (long long)rows, (long long)cols);
    PyErr_Format(PyExc_ValueError, "values: expected a Parameter of shape %s as %s, got another", shape, name);
    return -1;
}

static int read_encoder(const decoder *self, PyObject *items, lora_virtual_tokens *tokens, lora_prefix_encoder *encoder) {
    if (PyTuple_GET_SIZE(items) != ENCODER_PARTS) {
        PyErr_Format(PyExc_ValueError, "values: expected a Parameter or the 5 of an encoder, got %zd", PyTuple_GET_SIZE(items));
        return -1;
    }
    PyObject *const given[] = {PyTuple_GET_ITEM(items, 0), PyTuple_GET_ITEM(items, 1), PyTuple_GET_ITEM(items, 2),
                               PyTuple_GET_ITEM(items, 3), PyTuple_GET_ITEM(items, 4)};
    lora_py_parameter *p[ENCODER_PARTS];
    for (int i = 0; i < ENCODER_PARTS; i++) p[i] = (lora_py_parameter *)given[i];
    if (check_parameter(self, given[0], "the embedding", -1, 0) < 0 || check_parameter(self, given[1], "W1", -1, p[0]->shape[1]) < 0 ||
        check_parameter(self, given[2], "b1", p[1]->shape[0], -1) < 0 ||
        check_parameter(self, given[3], "W2", prefix_width(self), p[1]->shape[0]) < 0 ||
        check_parameter(self, given[4], "b2", prefix_width(self), -1) < 0)
        return -1;
    *encoder = (lora_prefix_encoder){.width = p[0]->shape[1],
                                     .hidden = p[1]->shape[0],
                                     .embedding = p[0]->data,
                                     .w1 = p[1]->data,
                                     .b1 = p[2]->data,
                                     .w2 = p[3]->data,
                                     .b2 = p[4]->data,
                                     .dembedding = p[0]->grad,
                                     .dw1 = p[1]->grad,
                                     .db1 = p[2]->grad,
                                     .dw2 = p[3]->grad,
                                     .db2 = p[4]->grad};
    tokens->n = p[0]->shape[0];
    tokens->encoder = encoder;
    return 0;
}

/* *keep: what owns the memory, a new reference. */
static int read_tokens(const decoder *self, const char *kind, PyObject *values, double scale, lora_virtual_tokens *tokens,
                       lora_prefix_encoder *encoder, PyObject **keep) {
    bool prompt = strcmp(kind, "prompt") == 0;
    if (!prompt && strcmp(kind, "prefix") != 0) {
        PyErr_Format(PyExc_ValueError, "kind: expected 'prompt', 'prefix' or None, got '%s'", kind);
        return -1;
    }
    *tokens = (lora_virtual_tokens){.kind = prompt ? LORA_PROMPT : LORA_PREFIX, .scale = (float)scale};
    lora_py_state *state = lora_py_state_of(Py_TYPE((PyObject *)self));
    if (!prompt && !Py_IS_TYPE(values, state->parameter_type)) {
        *keep = lora_py_items(values, "values: expected a Parameter or the 5 of an encoder");
        return *keep ? read_encoder(self, *keep, tokens, encoder) : -1;
    }
    if (check_parameter(self, values, kind, -1, prompt ? self->config.hidden_size : prefix_width(self)) < 0) return -1;
    lora_py_parameter *p = (lora_py_parameter *)values;
    tokens->n = p->shape[0];
    tokens->values = p->data;
    tokens->gradient = p->grad;
    *keep = Py_NewRef(values);
    return 0;
}

PyObject *lora_py_decoder_set_virtual_tokens(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "scale", NULL};
    decoder *self = (decoder *)o;
    const char *kind;
    PyObject *values = Py_None, *keep = NULL;
    double scale = 1.0;
    lora_virtual_tokens tokens = {0};
    lora_prefix_encoder encoder;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "z|O$d:set_virtual_tokens", names, &kind, &values, &scale)) return NULL;
    if ((kind && read_tokens(self, kind, values, scale, &tokens, &encoder, &keep) < 0) || lora_py_enter_decoder(self) < 0) {
        Py_XDECREF(keep);
        return NULL;
    }
    lora_status set;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, set, lora_decoder_set_virtual_tokens(self->decoder, kind ? &tokens : NULL, &err));
    if (set == LORA_OK)
        lora_py_replace_owner(self, lora_py_virtual_tokens_owner(self), keep);
    else
        lora_py_leave(&self->base);
    Py_XDECREF(keep);
    if (set != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}

PyObject *lora_py_decoder_get_virtual_tokens(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(lora_decoder_virtual_tokens(((decoder *)o)->decoder));
}
