/* A decoder that looks for the first value that is not finite. */
#include "lora_c/bindings/py_decoder.h"

PyObject *lora_py_decoder_watching(PyObject *o, void *unused) {
    (void)unused;
    return PyBool_FromLong(((lora_py_decoder *)o)->watching);
}

int lora_py_decoder_set_watching(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    lora_py_decoder *self = (lora_py_decoder *)o;
    if (!value || !PyBool_Check(value)) return lora_py_refuse(PyExc_TypeError, "watching: expected True or False", value ? value : Py_None);
    if (lora_py_enter_decoder(self) < 0) return -1;
    lora_error err = {0};
    lora_status status = lora_decoder_watch(self->decoder, value == Py_True, &err);
    self->watching = status == LORA_OK && value == Py_True;
    lora_py_leave(&self->base);
    if (status != LORA_OK) lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    return status == LORA_OK ? 0 : -1;
}

PyObject *lora_py_decoder_first_nonfinite(PyObject *o, void *unused) {
    (void)unused;
    lora_py_decoder *self = (lora_py_decoder *)o;
    if (lora_py_enter_decoder(self) < 0) return NULL;
    lora_nonfinite first = lora_decoder_nonfinite(self->decoder);
    lora_py_leave(&self->base);
    const lora_watch_found *found = &first.found;
    if (!found->operation) Py_RETURN_NONE;
    return Py_BuildValue("{s:s,s:s,s:s,s:L,s:O,s:L,s:L,s:d}", "operation", found->operation, "result", found->result, "weight",
                         first.weight.text, "layer", (long long)found->layer, "backward", found->backward ? Py_True : Py_False, "row",
                         (long long)found->row, "column", (long long)found->column, "value", (double)found->value);
}
