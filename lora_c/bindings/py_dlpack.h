/* Parameters for other libraries, by DLPack. */
#ifndef LORA_PY_DLPACK_H
#define LORA_PY_DLPACK_H

#include "lora_c/bindings/py_state.h"

PyObject *lora_py_dlpack(PyObject *parameter, PyObject *args, PyObject *kwargs);
PyObject *lora_py_dlpack_device(PyObject *parameter, PyObject *unused);

#endif
