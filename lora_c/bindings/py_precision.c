/* exact, fast or int8: for the module's operations and for a decoder. */
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_devices.h"
#include "lora_c/bindings/py_precision.h"

#include <string.h>

int lora_py_precision_by_name(const char *argument, const char *name, lora_precision *out) {
    for (int p = LORA_PRECISION_EXACT; p <= LORA_PRECISION_INT8; p++)
        if (name && strcmp(name, lora_precision_name((lora_precision)p)) == 0) return *out = (lora_precision)p, 0;
    PyErr_Format(PyExc_ValueError, "%s: expected 'exact', 'fast' or 'int8', got '%s'", argument, name ? name : "");
    return -1;
}

static lora_py_state *state_of(PyObject *module) { return PyModule_GetState(module); }

PyDoc_STRVAR(set_precision_doc,
             "set_precision($module, name, /)\n--\n\n"
             "Choose the arithmetic of matrix products on every device: 'exact' (float32), 'fast' or 'int8'.\n\n"
             "'fast' rounds their operands to bfloat16 where the CPU runs that at twice the float32 rate (AMD, Zen 4 and later; aarch64\n"
             "with FEAT_BF16), to int16 with a scale per 64 values where it has AVX512_VNNI, and is 'exact' on other CPUs; GPUs round to\n"
             "bfloat16, those of compute capability 7.5 to float16. Sums stay float32. The environment variable\n"
             "LORA_C_PRECISION sets it at import; a Decoder has a precision of its own, and TrainConfig and GenerationConfig have theirs.\n"
             "On the command line the variable stands for --precision.\n\n"
             "'int8', on CPUs, is 'fast' but for the products of linear layers, and of a frozen head in its loss, with their base\n"
             "weights, forward and backward: their operands are rounded to 8 bits, within +-127 with a scale per 64 values. CPUs with\n"
             "VNNI run that at four times the float32 rate, and all CPUs give these products the same bits, for a token alone and among\n"
             "others. Forward of up to 24 tokens is so on 4-bit weights (blocks of 64 values or more) and as in 'fast' on others.\n\n"
             "Raises\n------\nValueError\n    Unknown name.\nNotImplementedError\n    A device in use lacks 'int8'.");

/* The CPU last, which has all of them: where a device refuses, nothing has changed. */
static lora_status set_on(lora_ctx *const *all, int n, lora_precision precision, lora_error *err) {
    for (int i = n - 1; i >= 0; i--) LORA_TRY(lora_ctx_set_precision(all[i], precision, err));
    return LORA_OK;
}

static PyObject *set_precision(PyObject *module, PyObject *args) {
    const char *name;
    lora_precision precision;
    if (!PyArg_ParseTuple(args, "s:set_precision", &name) || lora_py_precision_by_name("name", name, &precision) < 0) return NULL;
    lora_py_state *state = state_of(module);
    lora_ctx *all[1 + LORA_PY_MOST_DEVICES];
    const int n = lora_py_contexts(state, all);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(state->ctx, status, set_on(all, n, precision, &err));
    if (status != LORA_OK) return lora_py_raise(state, &err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_precision_doc, "get_precision($module, /)\n--\n\nReturn 'exact', 'fast' or 'int8'.");

static PyObject *get_precision(PyObject *module, PyObject *unused) {
    (void)unused;
    lora_ctx *ctx = state_of(module)->ctx;
    lora_precision precision;
    LORA_PY_CALL(ctx, precision, lora_ctx_precision(ctx));
    return PyUnicode_FromString(lora_precision_name(precision));
}

PyDoc_STRVAR(set_fast_operands_doc,
             "set_fast_operands($module, name, /)\n--\n\n"
             "Choose what 'fast' products round their operands to: 'auto' (see set_precision), 'float32', 'bfloat16' or 'int16'.\n\n"
             "Machines that are told the same give the same bits. set_isa() chooses again.\n\n"
             "Raises\n------\nValueError\n    Unknown name.\nNotImplementedError\n    These kernels or this CPU lack it.");

static PyObject *set_fast_operands(PyObject *module, PyObject *args) {
    const char *name;
    if (!PyArg_ParseTuple(args, "s:set_fast_operands", &name)) return NULL;
    int operands = LORA_OPERANDS_AUTO;
    while (operands <= LORA_OPERANDS_INT16 && strcmp(name, lora_operands_name((lora_operands)operands)) != 0) operands++;
    if (operands > LORA_OPERANDS_INT16)
        return PyErr_Format(PyExc_ValueError, "name: expected 'auto', 'float32', 'bfloat16' or 'int16', got '%s'", name);
    lora_py_state *state = state_of(module);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(state->ctx, status, lora_ctx_set_fast_operands(state->ctx, (lora_operands)operands, &err));
    if (status != LORA_OK) return lora_py_raise(state, &err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_fast_operands_doc,
             "get_fast_operands($module, /)\n--\n\nReturn what 'fast' products round their operands to: 'float32', 'bfloat16' or 'int16'.");

static PyObject *get_fast_operands(PyObject *module, PyObject *unused) {
    (void)unused;
    lora_ctx *ctx = state_of(module)->ctx;
    lora_operands operands;
    LORA_PY_CALL(ctx, operands, lora_ctx_fast_operands(ctx));
    return PyUnicode_FromString(lora_operands_name(operands));
}

PyMethodDef lora_py_precision_functions[] = {
    {"set_precision", set_precision, METH_VARARGS, set_precision_doc},
    {"get_precision", get_precision, METH_NOARGS, get_precision_doc},
    {"set_fast_operands", set_fast_operands, METH_VARARGS, set_fast_operands_doc},
    {"get_fast_operands", get_fast_operands, METH_NOARGS, get_fast_operands_doc},
    {0},
};

PyObject *lora_py_decoder_precision(PyObject *o, void *unused) {
    (void)unused;
    return PyUnicode_FromString(lora_precision_name(((lora_py_decoder *)o)->precision));
}

int lora_py_decoder_set_precision(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    lora_py_decoder *self = (lora_py_decoder *)o;
    lora_precision precision;
    const char *name = value && PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    if (PyErr_Occurred() || lora_py_precision_by_name("precision", name, &precision) < 0 || lora_py_enter_decoder(self) < 0) return -1;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_decoder_set_precision(self->decoder, precision, &err));
    if (status == LORA_OK) self->precision = precision;
    lora_py_leave(&self->base);
    return status == LORA_OK ? 0 : (lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err), -1);
}
