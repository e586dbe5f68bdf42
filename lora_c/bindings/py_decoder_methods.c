/* How a Decoder gets scaling vectors (IA3) and bottlenecks. The library borrows; the owners are kept by place. */
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_devices.h"

#include <math.h>
#include <string.h>

typedef lora_py_decoder decoder;
typedef lora_py_weight_place weight_place;

static PyObject *finish(decoder *self, lora_status set, const lora_error *err, const weight_place *place, int method, PyObject *keep) {
    if (set == LORA_OK) {
        lora_py_replace_owner(self, lora_py_method_owner(self, place, method), keep);
        Py_RETURN_NONE;
    }
    lora_py_leave(&self->base);
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
}

/* A matrix of a layer: no embedding, no head. */
static int find_layer_matrix(const decoder *self, const char *name, weight_place *place) {
    if (lora_py_find_adapter_place(self, name, place) < 0) return -1;
    if (place->layer >= 0) return 0;
    PyErr_Format(PyExc_ValueError, "name: expected a projection of a layer, got '%s'", name);
    return -1;
}

/* --- scaling vectors ---------------------------------------------------------------------------------------------- */

static PyObject *change_scaling(decoder *self, const weight_place *place, const lora_scaling *scaling, PyObject *keep) {
    if (lora_py_enter_decoder(self) < 0) return NULL;
    lora_status set;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, set, lora_decoder_set_scaling(self->decoder, place->layer, (lora_matrix_slot)place->slot, scaling, &err));
    return finish(self, set, &err, place, place->slot, keep);
}

const char lora_py_set_scaling_doc[] =
    "set_scaling($self, name, l, /, *, input=False, row=None)\n--\n\n"
    "Put a scaling vector (IA3) on a projection: y = l * (W x + bias), or W (l * x) + bias with input.\n\n"
    "Parameters\n----------\n"
    "name : str\n    layers.N.<q|k|v|o|gate|up|down>_proj.\n"
    "l : Parameter\n    (out_features,), or (in_features,) with input. Shared; trained where requires_grad.\n"
    "input : bool\n    It multiplies what the projection reads. With a LoRA adapter, base and adapter read it; without input it\n"
    "    multiplies the sum of both.\n"
    "row : int, optional\n    l is that of a matrix that holds several: the elements from this one on are used (not with input).\n\n"
    "Raises\n------\nValueError\n    Unknown name, or a shape does not fit.\n\n"
    "Source\n------\nIA3, arXiv:2205.05638, section 3.3.";

/* Elements of a Parameter of any shape. */
static int64_t elements(const lora_py_parameter *p) {
    int64_t n = 1;
    for (int i = 0; i < p->ndim; i++) n *= p->shape[i];
    return n;
}

static int check_vector(const decoder *self, const char *name, const lora_py_parameter *l, bool input, int64_t row,
                        const weight_place *place) {
    int64_t out, in;
    lora_decoder_matrix_shape(self->decoder, (lora_matrix_slot)place->slot, &out, &in);
    int64_t n = elements(l), wanted = input ? in : out;
    if (row < 0 ? n == wanted : !input && row <= n - wanted) return lora_py_same_device(self->base.ctx, &l->base, "l");
    PyErr_Format(PyExc_ValueError, "l: expected %s%lld elements for %s%s, got %lld", row < 0 ? "" : "row + ", (long long)wanted, name,
                 input ? ", whose input it scales" : "", (long long)n);
    return -1;
}

PyObject *lora_py_decoder_set_scaling(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "input", "row", NULL};
    const char *name;
    decoder *self = (decoder *)o;
    lora_py_parameter *l;
    int input = 0;
    int64_t row = -1;
    weight_place place;
    PyObject *row_given = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!|$pO:set_scaling", names, &name, lora_py_state_of(Py_TYPE(o))->parameter_type, &l,
                                     &input, &row_given))
        return NULL;
    if (row_given != Py_None && !lora_py_whole(row_given, &row)) return NULL;
    if (row_given != Py_None && row < 0) {
        PyErr_Format(PyExc_ValueError, "row: expected >= 0, got %lld", (long long)row);
        return NULL;
    }
    if (find_layer_matrix(self, name, &place) < 0 || check_vector(self, name, l, input, row, &place) < 0) return NULL;
    int64_t first = row < 0 ? 0 : row;
    lora_scaling scaling = {.l = l->data + first, .dl = l->grad ? l->grad + first : NULL, .input = input};
    return change_scaling(self, &place, &scaling, (PyObject *)l);
}

const char lora_py_remove_scaling_doc[] =
    "remove_scaling($self, name, /)\n--\n\nTake the scaling vector off a projection; none there is fine.";

PyObject *lora_py_decoder_remove_scaling(PyObject *o, PyObject *args) {
    const char *name;
    weight_place place;
    if (!PyArg_ParseTuple(args, "s:remove_scaling", &name) || find_layer_matrix((decoder *)o, name, &place) < 0) return NULL;
    return change_scaling((decoder *)o, &place, NULL, NULL);
}

/* --- bottlenecks -------------------------------------------------------------------------------------------------- */

static PyObject *change_bottleneck(decoder *self, const weight_place *place, const lora_bottleneck *bottleneck, PyObject *keep) {
    if (lora_py_enter_decoder(self) < 0) return NULL;
    lora_status set;
    lora_error err = {0};
    lora_bottleneck_place at = place->slot == LORA_O_PROJ ? LORA_AFTER_ATTENTION : LORA_AFTER_MLP;
    LORA_PY_CALL(self->base.ctx, set, lora_decoder_set_bottleneck(self->decoder, place->layer, at, bottleneck, &err));
    return finish(self, set, &err, place, LORA_LAYER_MATRICES + (int)at, keep);
}

/* The projection behind which a bottleneck lies. */
static int find_bottleneck(const decoder *self, const char *name, weight_place *place) {
    if (find_layer_matrix(self, name, place) < 0) return -1;
    if (place->slot == LORA_O_PROJ || place->slot == LORA_DOWN_PROJ) return 0;
    PyErr_Format(PyExc_ValueError, "name: expected o_proj or down_proj of a layer, got '%s'", name);
    return -1;
}

const char lora_py_set_bottleneck_doc[] =
    "set_bottleneck($self, name, down, down_bias, up, up_bias, /, *, scale=1.0, activation='relu')\n--\n\n"
    "Put a bottleneck behind a projection: y = h + scale (up activation(down h + down_bias) + up_bias), h being its output.\n\n"
    "Shapes\n------\ndown (size, hidden_size); down_bias (size,); up (hidden_size, size); up_bias (hidden_size,).\n\n"
    "Parameters\n----------\n"
    "name : str\n    layers.N.o_proj (behind attention) or layers.N.down_proj (behind the MLP). A norm of that output comes after it.\n"
    "down, down_bias, up, up_bias : Parameter\n    Shared; trained where requires_grad.\n"
    "scale : float\n    Of what is added.\n"
    "activation : 'relu', 'silu' or 'gelu_tanh'\n    Between down and up.\n\n"
    "Raises\n------\nValueError\n    Unknown name, or a shape does not fit.\n\n"
    "Source\n------\narXiv:1902.00751, section 2.1; behind the MLP alone, arXiv:2005.00247.";

static int find_activation(const char *given, lora_activation *out) {
    static const char *const names[LORA_ACTIVATIONS] = {"silu", "gelu_tanh", "relu"};
    for (int i = 0; i < LORA_ACTIVATIONS; i++)
        if (strcmp(given, names[i]) == 0) return *out = (lora_activation)i, 0;
    PyErr_Format(PyExc_ValueError, "activation: expected 'silu', 'gelu_tanh' or 'relu', got '%.80s'", given);
    return -1;
}

enum { PARTS = 4 };

static int check_parts(const decoder *self, lora_py_parameter *const *p) {
    static const char *const names[PARTS] = {"down", "down_bias", "up", "up_bias"};
    int64_t H = self->config.hidden_size, size = p[0]->ndim == 2 ? p[0]->shape[0] : 0;
    const int64_t shapes[PARTS][2] = {{size, H}, {size, 0}, {H, size}, {H, 0}};
    for (int i = 0; i < PARTS; i++) {
        int ndim = i % 2 ? 1 : 2;
        bool fits = p[i]->ndim == ndim && p[i]->shape[0] == shapes[i][0] && (ndim == 1 || p[i]->shape[1] == shapes[i][1]);
        if (!fits) {
            PyErr_Format(PyExc_ValueError,
                         "%s: expected shapes (size, %lld), (size,), (%lld, size) and (%lld,) of down, down_bias, up and up_bias, "
                         "got others",
                         names[i], (long long)H, (long long)H, (long long)H);
            return -1;
        }
        if (lora_py_same_device(self->base.ctx, &p[i]->base, names[i]) < 0) return -1;
    }
    return 0;
}

PyObject *lora_py_decoder_set_bottleneck(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "", "scale", "activation", NULL};
    const char *name, *activation = "relu";
    decoder *self = (decoder *)o;
    PyTypeObject *type = lora_py_state_of(Py_TYPE(o))->parameter_type;
    lora_py_parameter *p[PARTS];
    double scale = 1;
    weight_place place;
    lora_bottleneck b = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!O!O!O!|$ds:set_bottleneck", names, &name, type, &p[0], type, &p[1], type, &p[2],
                                     type, &p[3], &scale, &activation))
        return NULL;
    if (!isfinite(scale)) {
        PyErr_SetString(PyExc_ValueError, "scale: expected a finite number, got another");
        return NULL;
    }
    if (find_activation(activation, &b.activation) < 0 || find_bottleneck(self, name, &place) < 0 || check_parts(self, p) < 0) return NULL;
    b.size = p[0]->shape[0];
    b.scale = (float)scale;
    b.down = p[0]->data, b.down_bias = p[1]->data, b.up = p[2]->data, b.up_bias = p[3]->data;
    b.ddown = p[0]->grad, b.ddown_bias = p[1]->grad, b.dup = p[2]->grad, b.dup_bias = p[3]->grad;
    PyObject *keep = PyTuple_Pack(PARTS, p[0], p[1], p[2], p[3]);
    PyObject *result = keep ? change_bottleneck(self, &place, &b, keep) : NULL;
    Py_XDECREF(keep);
    return result;
}

const char lora_py_remove_bottleneck_doc[] =
    "remove_bottleneck($self, name, /)\n--\n\nTake the bottleneck behind a projection away; none there is fine.";

PyObject *lora_py_decoder_remove_bottleneck(PyObject *o, PyObject *args) {
    const char *name;
    weight_place place;
    if (!PyArg_ParseTuple(args, "s:remove_bottleneck", &name) || find_bottleneck((decoder *)o, name, &place) < 0) return NULL;
    return change_bottleneck((decoder *)o, &place, NULL, NULL);
}
