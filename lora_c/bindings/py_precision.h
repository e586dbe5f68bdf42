/* What the module and Decoder share of the precision. */
#ifndef LORA_PY_PRECISION_H
#define LORA_PY_PRECISION_H

#include "lora_c/bindings/py_state.h"

/** -1 with ValueError for a name that is none (NULL included). */
int lora_py_precision_by_name(const char *argument, const char *name, lora_precision *out);

extern PyMethodDef lora_py_precision_functions[]; /* set_precision, set_fast_operands and what they set */

PyObject *lora_py_decoder_precision(PyObject *decoder, void *unused);
int lora_py_decoder_set_precision(PyObject *decoder, PyObject *value, void *unused);

#endif
