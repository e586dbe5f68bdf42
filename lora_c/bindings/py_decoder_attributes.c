/* The attributes of a Decoder. */
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_devices.h"
#include "lora_c/bindings/py_precision.h"

typedef lora_py_decoder decoder;

static const char *const RECOMPUTE_NAMES[] = {
    [LORA_RECOMPUTE_NONE] = "none", [LORA_RECOMPUTE_LAYER] = "layer", [LORA_RECOMPUTE_ATTENTION] = "attention"};

static PyObject *get_recompute(PyObject *o, void *unused) {
    (void)unused;
    return PyUnicode_FromString(RECOMPUTE_NAMES[((decoder *)o)->recompute]);
}

static int set_recompute(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    decoder *self = (decoder *)o;
    int found = -1;
    for (int i = 0; i <= LORA_RECOMPUTE_ATTENTION && value && PyUnicode_Check(value); i++)
        if (PyUnicode_CompareWithASCIIString(value, RECOMPUTE_NAMES[i]) == 0) found = i;
    if (found < 0) return lora_py_refuse(PyExc_ValueError, "recompute: expected 'none', 'attention' or 'layer'", value ? value : Py_None);
    if (lora_py_enter_decoder(self) < 0) return -1;
    self->recompute = (lora_recompute)found;
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
    static const lora_dtype choices[] = {LORA_F32, LORA_BF16, LORA_INT8};
    size_t chosen = 0, n = sizeof choices / sizeof *choices;
    while (value && PyUnicode_Check(value) && chosen < n && PyUnicode_CompareWithASCIIString(value, lora_dtype_name(choices[chosen])) != 0)
        chosen++;
    lora_error err = {0};
    if (!value || !PyUnicode_Check(value) || chosen == n) {
        return lora_py_refuse(PyExc_ValueError, "activation_dtype: expected 'float32', 'bfloat16' or 'int8'", value ? value : Py_None);
    }
    if (lora_py_enter_decoder(self) < 0) return -1;
    lora_status status = lora_decoder_set_activation_dtype(self->decoder, choices[chosen], &err);
    if (status == LORA_OK) self->activation_dtype = choices[chosen];
    lora_py_leave(&self->base);
    if (status != LORA_OK) lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    return status == LORA_OK ? 0 : -1;
}

static PyObject *get_activation_offload(PyObject *o, void *unused) {
    (void)unused;
    PyObject *folder;
    LORA_PY_BEGIN_CRITICAL(o);
    folder = Py_XNewRef(((decoder *)o)->offload_folder);
    LORA_PY_END_CRITICAL();
    if (!folder) Py_RETURN_NONE;
    PyObject *text = PyUnicode_DecodeFSDefault(PyBytes_AS_STRING(folder));
    Py_DECREF(folder);
    return text;
}

static int set_activation_offload(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    decoder *self = (decoder *)o;
    PyObject *folder = NULL;
    lora_error err = {0};
    lora_status status;
    if (!value) return lora_py_refuse(PyExc_ValueError, "activation_offload: expected a folder or None", Py_None);
    if (value != Py_None && !PyUnicode_FSConverter(value, &folder)) return -1;
    if (lora_py_enter_decoder(self) < 0) {
        Py_XDECREF(folder);
        return -1;
    }
    LORA_PY_CALL(self->base.ctx, status,
                 lora_decoder_set_activation_offload(self->decoder, folder ? PyBytes_AS_STRING(folder) : NULL, &err));
    PyObject *unused_folder = folder;
    if (status == LORA_OK) {
        LORA_PY_BEGIN_CRITICAL(o);
        unused_folder = self->offload_folder;
        self->offload_folder = folder;
        LORA_PY_END_CRITICAL();
    }
    lora_py_leave(&self->base);
    Py_XDECREF(unused_folder);
    if (status != LORA_OK) lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    return status == LORA_OK ? 0 : -1;
}

static PyObject *get_noise(PyObject *o, void *unused) {
    (void)unused;
    double alpha;
    uint64_t seed;
    LORA_PY_BEGIN_CRITICAL(o);
    alpha = ((decoder *)o)->noise_alpha;
    seed = ((decoder *)o)->noise_seed;
    LORA_PY_END_CRITICAL();
    return Py_BuildValue("(dK)", alpha, (unsigned long long)seed);
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
    if (status == LORA_OK) {
        LORA_PY_BEGIN_CRITICAL(o);
        self->noise_alpha = alpha;
        self->noise_seed = number;
        LORA_PY_END_CRITICAL();
    }
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

/* Not exclusive either. */
static PyObject *get_complete_layer(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(atomic_load_explicit(&((decoder *)o)->complete_layer, memory_order_acquire));
}

static PyObject *get_config(PyObject *o, void *unused) {
    (void)unused;
    return PyDict_Copy(((decoder *)o)->options);
}

PyGetSetDef lora_py_decoder_getset[] = {
    {"recompute", get_recompute, set_recompute,
     "'layer' keeps one row per layer and computes the rest again: same bits, less memory. 'attention' computes q, k, v and the stream\n"
     "behind attention again: between the two.",
     NULL},
    {"noise", get_noise, set_noise, "(alpha, seed) of the noise on embedded tokens in forward_backward(); alpha 0: none.", NULL},
    {"activation_dtype", get_activation_dtype, set_activation_dtype,
     "'bfloat16' keeps what backward needs of a layer in half the memory, 'int8', on CPUs, in 0.4 of it: same loss, gradients of rounded\n"
     "activations.",
     NULL},
    {"activation_offload", get_activation_offload, set_activation_offload,
     "A folder: what backward needs of the layers is kept in memory of the host (pinned, of a GPU; a file without a name in the folder, of "
     "the CPU), with the same bits. None: on the device.",
     NULL},
    {"precision", lora_py_decoder_precision, lora_py_decoder_set_precision,
     "'exact', 'fast' or 'int8', for every pass; at first that of the module. See set_precision().", NULL},
    {"complete_layer", get_complete_layer, NULL,
     "The lowest layer whose gradients are complete in the training pass that another thread is in, as are those of the layers above\n"
     "it; num_hidden_layers where there is none. On other devices they are only asked for.",
     NULL},
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
