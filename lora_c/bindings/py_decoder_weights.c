/* How a Decoder gets its weights, adapters and trained token rows. The library borrows; the owners are kept by place. */
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_devices.h"

#include <math.h>
#include <string.h>

typedef lora_py_decoder decoder;

static PyObject *raise_from(const decoder *self, const lora_error *err) {
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
}

typedef lora_py_weight_place weight_place;

/* The slot that rest names among the matrices of a layer (global: those of none) or the vectors. */
static int find_slot(const char *rest, int global, weight_place *place) {
    for (place->is_vector = 0; place->is_vector < 2; place->is_vector++) {
        int end = place->is_vector ? LORA_VECTOR_SLOTS : LORA_MATRIX_SLOTS;
        for (place->slot = 0; place->slot < end; place->slot++) {
            int slot = place->slot,
                own = place->is_vector ? slot == LORA_FINAL_NORM || slot == LORA_NORM_BIAS + LORA_FINAL_NORM : slot >= LORA_LAYER_MATRICES;
            if (own == global && strcmp(rest, lora_decoder_slot_name(place->is_vector, slot).text) == 0) return 1;
        }
    }
    return 0;
}

static int find_place(const decoder *self, const char *name, weight_place *place) {
    *place = (weight_place){.layer = -1};
    if (find_slot(name, 1, place)) return 0;
    if (strncmp(name, "layers.", 7) == 0 && name[7] >= '0' && name[7] <= '9') {
        const char *p = name + 7;
        int64_t layer = 0;
        for (; *p >= '0' && *p <= '9' && layer < INT32_MAX; p++) layer = layer * 10 + (*p - '0');
        place->layer = layer;
        if (*p == '.' && layer < self->config.num_hidden_layers && find_slot(p + 1, 0, place)) return 0;
    }
    PyErr_Format(PyExc_ValueError,
                 "name: expected embed_tokens, embed_positions, lm_head, norm or layers.N.<part> with N < %lld and a part such as "
                 "q_proj, q_proj.bias or input_layernorm, got '%s'",
                 (long long)self->config.num_hidden_layers, name);
    return -1;
}

/* --- owners ------------------------------------------------------------------------------------------------------- */

enum {
    WEIGHTS = LORA_MATRIX_SLOTS + LORA_VECTOR_SLOTS,
    METHODS = WEIGHTS + LORA_MATRIX_SLOTS,
    OWNERS_PER_LAYER = METHODS + LORA_PY_METHODS
};

int lora_py_make_owners(decoder *self) {
    Py_ssize_t n = (Py_ssize_t)(self->config.num_hidden_layers + 1) * OWNERS_PER_LAYER + 2;
    self->owners = PyMem_Calloc((size_t)n, sizeof *self->owners);
    if (!self->owners) PyErr_NoMemory();
    self->n_owners = self->owners ? n : 0;
    return self->owners ? 0 : -1;
}

static PyObject **owners_of(const decoder *self, const weight_place *place) { return self->owners + (place->layer + 1) * OWNERS_PER_LAYER; }

static PyObject **weight_owner(const decoder *self, const weight_place *place) {
    return owners_of(self, place) + (place->is_vector ? LORA_MATRIX_SLOTS : 0) + place->slot;
}

static PyObject **adapter_owner(const decoder *self, const weight_place *place) { return owners_of(self, place) + WEIGHTS + place->slot; }

PyObject **lora_py_method_owner(const decoder *self, const weight_place *place, int method) {
    return owners_of(self, place) + METHODS + method;
}

static PyObject **token_rows_owner(const decoder *self) { return self->owners + self->n_owners - 1; }

PyObject **lora_py_virtual_tokens_owner(const decoder *self) { return self->owners + self->n_owners - 2; }

/* The decoder is let go of first: the end of the old owner may run Python code. */
void lora_py_replace_owner(decoder *self, PyObject **place, PyObject *owner) {
    PyObject *old = *place;
    *place = Py_XNewRef(owner);
    lora_py_leave(&self->base);
    Py_XDECREF(old);
}

/* --- weights ------------------------------------------------------------------------------------------------------ */

const char lora_py_set_weight_doc[] =
    "set_weight($self, name, weight, /, *, row=None)\n--\n\n"
    "Set a weight by name. Its memory is borrowed and kept alive.\n\n"
    "Parameters\n----------\n"
    "name : str\n    embed_tokens, embed_positions, lm_head, norm, or layers.N. and: input_layernorm, post_attention_layernorm (before "
    "the\n"
    "    MLP), attention_output_norm, mlp_output_norm, q_norm, k_norm, <q|k|v|o|gate|up|down>_proj; projections and norms of\n"
    "    'layer' also with .bias behind it.\n"
    "weight : NF4Tensor, GGMLTensor, Parameter or array\n    Matrices: (out_features, in_features) NF4, GGUF blocks, float32 or bfloat16. "
    "Vectors: float32 (bfloat16 is\n"
    "    converted to a copy). A Parameter with requires_grad is trained.\n"
    "row : int, optional\n    The weight is the rows from this one on of the given matrix (elements of the given vector), which holds "
    "several.\n\n"
    "Raises\n------\nValueError\n    Unknown name, or another shape.\nTypeError\n    Another element type.";

/* A row number, or -1 for None. */
static int get_row(PyObject *given, int64_t *row) {
    *row = -1;
    if (given == Py_None) return 0;
    if (!lora_py_whole(given, row)) return -1;
    if (*row >= 0) return 0;
    PyErr_Format(PyExc_ValueError, "row: expected >= 0, got %lld", (long long)*row);
    return -1;
}

/* A matrix or a vector as it is given, then cut to what the slot takes, then on the decoder's device. */
typedef struct given_weight {
    lora_py_weight matrix;
    lora_py_vector vector;
    PyObject *keep; /* what owns the memory */
} given_weight;

static int read_given(const decoder *self, PyObject *given, const char *name, const weight_place *place, given_weight *out) {
    lora_py_state *state = lora_py_state_of(Py_TYPE((PyObject *)self));
    *out = (given_weight){0};
    int status = place->is_vector ? lora_py_get_vector(state, self->base.ctx, given, name, &out->vector)
                                  : lora_py_get_weight(state, self->base.ctx, given, name, &out->matrix);
    out->keep = place->is_vector ? out->vector.keep : out->matrix.keep;
    return status;
}

static int cut_vector(const decoder *self, const weight_place *place, int64_t row, lora_py_vector *v) {
    int64_t rows, cols;
    if (place->slot < LORA_BIAS) {
        PyErr_SetString(PyExc_ValueError, "row: expected 0 for a norm, got another");
        return -1;
    }
    lora_decoder_matrix_shape(self->decoder, (lora_matrix_slot)(place->slot - LORA_BIAS), &rows, &cols);
    if (row < 0 || row > v->n - rows) {
        PyErr_Format(PyExc_ValueError, "row: expected %lld elements from row on, got row %lld of %lld", (long long)rows, (long long)row,
                     (long long)v->n);
        return -1;
    }
    v->data += row;
    if (v->grad) v->grad += row;
    v->n = rows;
    return 0;
}

/* Cuts the rows that the slot takes out of what is given. */
static int cut_rows(const decoder *self, const weight_place *place, int64_t row, given_weight *g) {
    if (place->is_vector) return cut_vector(self, place, row, &g->vector);
    int64_t rows, cols;
    lora_error err = {0};
    lora_decoder_matrix_shape(self->decoder, (lora_matrix_slot)place->slot, &rows, &cols);
    lora_weight whole = g->matrix.w;
    if (lora_weight_rows(&whole, row, rows, &g->matrix.w, &err) != LORA_OK) {
        raise_from(self, &err);
        return -1;
    }
    if (g->matrix.grad) g->matrix.grad += row * whole.cols;
    return 0;
}

/* Frozen weights of the host go to the device, where they are not there. What owns the memory there takes the place of keep. */
static int place_on_device(const decoder *self, const weight_place *place, given_weight *g) {
    lora_ctx *ctx = self->base.ctx;
    lora_status status;
    lora_error err = {0};
    void *memory = NULL;
    lora_weight host = g->matrix.w;
    if (place->is_vector ? g->vector.there : g->matrix.there) return 0;
    LORA_PY_CALL(ctx, status,
                 place->is_vector ? lora_vector_place(ctx, g->vector.data, g->vector.n, &g->vector.data, &memory, &err)
                                  : lora_weight_place(ctx, &host, &g->matrix.w, &memory, &err));
    if (status != LORA_OK) {
        raise_from(self, &err);
        return -1;
    }
    PyObject *placed = lora_py_hold(&self->base, memory);
    if (!placed) return -1;
    Py_SETREF(g->keep, placed);
    return 0;
}

PyObject *lora_py_decoder_set_weight(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "row", NULL};
    const char *name;
    int64_t row;
    PyObject *given, *row_given = Py_None;
    decoder *self = (decoder *)o;
    weight_place place;
    given_weight g;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO|$O:set_weight", names, &name, &given, &row_given) ||
        find_place(self, name, &place) < 0 || get_row(row_given, &row) < 0)
        return NULL;
    int status = read_given(self, given, name, &place, &g);
    if (status == 0 && row >= 0) status = cut_rows(self, &place, row, &g);
    if (status == 0) status = place_on_device(self, &place, &g);
    if (status < 0 || lora_py_enter_decoder(self) < 0) {
        Py_XDECREF(g.keep);
        return NULL;
    }
    lora_status set;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, set,
                 place.is_vector
                     ? lora_decoder_set_vector(self->decoder, place.layer, (lora_vector_slot)place.slot, g.vector.data, g.vector.n,
                                               g.vector.grad, &err)
                     : lora_decoder_set_matrix(self->decoder, place.layer, (lora_matrix_slot)place.slot, &g.matrix.w, g.matrix.grad, &err));
    if (set == LORA_OK)
        lora_py_replace_owner(self, weight_owner(self, &place), g.keep);
    else
        lora_py_leave(&self->base);
    Py_XDECREF(g.keep);
    if (set != LORA_OK) return raise_from(self, &err);
    Py_RETURN_NONE;
}

/* --- adapters ----------------------------------------------------------------------------------------------------- */

/* The place of a matrix that can have an adapter. */
int lora_py_find_adapter_place(const decoder *self, const char *name, weight_place *place) {
    if (find_place(self, name, place) < 0) return -1;
    if (!place->is_vector && place->slot != LORA_EMBED_POSITIONS) return 0;
    PyErr_Format(PyExc_ValueError, "name: expected a projection of a layer, embed_tokens or lm_head, got '%s'", name);
    return -1;
}

int lora_py_find_adapter(const decoder *self, const char *name, const lora_py_parameter *A, const lora_py_parameter *B, PyObject *row_given,
                         weight_place *place, lora_adapter *adapter) {
    int64_t row, in, out;
    if (get_row(row_given, &row) < 0 || lora_py_find_adapter_place(self, name, place) < 0) return -1;
    int whole = row < 0; /* else B holds the rows of several matrices */
    if (whole) row = 0;
    lora_decoder_matrix_shape(self->decoder, (lora_matrix_slot)place->slot, &out, &in);
    if (A->ndim != 2 || A->shape[1] != in || B->ndim != 2 || (whole ? B->shape[0] != out : row > B->shape[0] - out) ||
        B->shape[1] != A->shape[0]) {
        PyErr_Format(PyExc_ValueError, "A, B: expected shapes (r, %lld) and (%s%lld, r) for %s, got others", (long long)in,
                     whole ? "" : "row + ", (long long)out, name);
        return -1;
    }
    const lora_ctx *ctx = self->base.ctx;
    if (lora_py_same_device(ctx, &A->base, "A") < 0 || lora_py_same_device(ctx, &B->base, "B") < 0) return -1;
    if (A == B) {
        PyErr_SetString(PyExc_ValueError, "B: expected a Parameter of its own, got the one of A");
        return -1;
    }
    int64_t r = A->shape[0];
    place->row = row;
    *adapter = (lora_adapter){
        .rank = r, .A = A->data, .B = B->data + row * r, .dA = A->grad, .dB = B->grad ? B->grad + row * r : NULL, .scale = 1};
    return 0;
}

/* Sets (adapter != NULL) or removes an adapter, with keep as its owner. */
static PyObject *change_adapter(decoder *self, const weight_place *place, const lora_adapter *adapter, PyObject *keep) {
    if (lora_py_enter_decoder(self) < 0) return NULL;
    lora_status set;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, set, lora_decoder_set_adapter(self->decoder, place->layer, (lora_matrix_slot)place->slot, adapter, &err));
    if (set == LORA_OK)
        lora_py_replace_owner(self, adapter_owner(self, place), keep);
    else
        lora_py_leave(&self->base);
    if (set != LORA_OK) return raise_from(self, &err);
    Py_RETURN_NONE;
}

const char lora_py_set_adapter_doc[] =
    "set_adapter($self, name, A, B, /, *, scale, dropout=0.0, seed=0, magnitude=None, row=None)\n--\n\n"
    "Put a LoRA adapter on a projection: y = W x + scale B A x. It replaces the one that is there.\n\n"
    "Shapes\n------\nA (r, in_features); B (out_features, r).\n\n"
    "Parameters\n----------\n"
    "name : str\n    layers.N.<q|k|v|o|gate|up|down>_proj; or embed_tokens or lm_head, (vocab_size, hidden_size) matrices that get no\n"
    "    dropout and no DoRA and take memory of their size in float32, twice where they train.\n"
    "A, B : Parameter\n    Shared; trained where requires_grad.\n"
    "scale : float\n    lora_alpha / r.\n"
    "dropout : float\n    On the input of A in forward_backward().\n"
    "seed : int\n    For the dropout masks.\n"
    "magnitude : Parameter, optional\n    (out_features,): makes it DoRA, row n of W + scale B A given the length magnitude[n].\n"
    "row : int, optional\n    B (and magnitude) are those of a matrix that holds several: the rows from this one on are used. Projections "
    "with the\n"
    "    same A share its dropout masks.\n\n"
    "Raises\n------\nValueError\n    Unknown name, or a shape does not fit.\n\n"
    "Source\n------\nLoRA, arXiv:2106.09685, eq. 3; DoRA, arXiv:2402.09353, eq. 5.";

PyObject *lora_py_decoder_set_adapter(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "scale", "dropout", "seed", "magnitude", "row", NULL};
    const char *name;
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    lora_py_parameter *A, *B;
    PyObject *magnitude = Py_None, *row_given = Py_None;
    double scale = NAN, dropout = 0.0;
    unsigned long long seed = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!O!|$ddKOO:set_adapter", names, &name, state->parameter_type, &A,
                                     state->parameter_type, &B, &scale, &dropout, &seed, &magnitude, &row_given))
        return NULL;
    if (!isfinite(scale) || !(dropout >= 0.0 && dropout < 1.0)) {
        PyErr_SetString(PyExc_ValueError, "scale, dropout: expected a finite scale and 0 <= dropout < 1, got others");
        return NULL;
    }
    weight_place place;
    lora_adapter adapter;
    if (lora_py_find_adapter((decoder *)o, name, A, B, row_given, &place, &adapter) < 0) return NULL;
    lora_py_parameter *m = magnitude == Py_None ? NULL : (lora_py_parameter *)magnitude;
    if (m && (!Py_IS_TYPE(magnitude, state->parameter_type) || m->ndim != 1 || m->shape[0] != B->shape[0])) {
        PyErr_Format(PyExc_ValueError, "magnitude: expected a Parameter of shape (%lld,) for %s, got another", (long long)B->shape[0],
                     name);
        return NULL;
    }
    if (m && lora_py_same_device(((decoder *)o)->base.ctx, &m->base, "magnitude") < 0) return NULL;
    adapter.scale = (float)scale;
    adapter.dropout = (float)dropout;
    adapter.dropout_seed = seed;
    adapter.magnitude = m ? m->data + place.row : NULL;
    adapter.dmagnitude = m && m->grad ? m->grad + place.row : NULL;
    PyObject *keep = PyTuple_Pack(3, A, B, magnitude);
    PyObject *result = keep ? change_adapter((decoder *)o, &place, &adapter, keep) : NULL;
    Py_XDECREF(keep);
    return result;
}

const char lora_py_set_token_rows_doc[] =
    "set_token_rows($self, ids, rows, /)\n--\n\n"
    "Train some rows of the embedding and nothing else of it.\n\n"
    "Shapes\n------\nids (n,); rows (n, hidden_size).\n\n"
    "Parameters\n----------\n"
    "ids : int32 or int64 array, list of int, or None\n    Token ids, distinct; None ends it.\n"
    "rows : Parameter or None\n    Their rows, with requires_grad.\n\n"
    "Raises\n------\nValueError\n    embed_tokens is not a Parameter with requires_grad, or an id or a shape does not fit.\n\n"
    "Notes\n-----\nThe Parameter that is embed_tokens serves this alone: its rows are overwritten before each pass, and its gradient is\n"
    "moved into rows.grad. A head that is the same Parameter takes part.";

PyObject *lora_py_decoder_set_token_rows(PyObject *o, PyObject *args) {
    decoder *self = (decoder *)o;
    PyObject *given, *rows_given;
    lora_py_ids ids = {0};
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    if (!PyArg_ParseTuple(args, "OO:set_token_rows", &given, &rows_given) || (given != Py_None && lora_py_get_ids(given, "ids", &ids) < 0))
        return NULL;
    lora_py_parameter *rows = Py_IS_TYPE(rows_given, state->parameter_type) ? (lora_py_parameter *)rows_given : NULL;
    bool fits =
        ids.n == 0 || (rows && rows->grad && rows->ndim == 2 && rows->shape[0] == ids.n && rows->shape[1] == self->config.hidden_size);
    if (!fits)
        PyErr_Format(PyExc_ValueError, "rows: expected a Parameter of shape (%lld, %lld) with requires_grad, got another", (long long)ids.n,
                     (long long)self->config.hidden_size);
    if (fits && rows) fits = lora_py_same_device(self->base.ctx, &rows->base, "rows") == 0;
    if (!fits || lora_py_enter_decoder(self) < 0) {
        lora_py_release_ids(&ids);
        return NULL;
    }
    lora_status set = LORA_OK;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, set,
                 lora_decoder_set_token_rows(self->decoder, ids.n, ids.data, rows ? rows->data : NULL, rows ? rows->grad : NULL, &err));
    if (set == LORA_OK)
        lora_py_replace_owner(self, token_rows_owner(self), (PyObject *)rows);
    else
        lora_py_leave(&self->base);
    lora_py_release_ids(&ids);
    if (set != LORA_OK) return raise_from(self, &err);
    Py_RETURN_NONE;
}

const char lora_py_remove_adapter_doc[] = "remove_adapter($self, name, /)\n--\n\nTake the adapter off a projection; none there is fine.";

PyObject *lora_py_decoder_remove_adapter(PyObject *o, PyObject *args) {
    const char *name;
    weight_place place;
    if (!PyArg_ParseTuple(args, "s:remove_adapter", &name) || lora_py_find_adapter_place((decoder *)o, name, &place) < 0) return NULL;
    return change_adapter((decoder *)o, &place, NULL, NULL);
}
