/* Compressed matrices on a device. */
#ifndef LORA_PY_DEVICEWEIGHT_H
#define LORA_PY_DEVICEWEIGHT_H

#include "lora_c/bindings/py_buffer.h"
#include "lora_c/bindings/py_devices.h"
#include "lora_c/place.h"

typedef struct lora_py_deviceweight {
    lora_py_object base;
    lora_weight w; /* points into memory */
    void *memory;
    PyObject *text;       /* repr of what it was made from */
    lora_4bit_type type;  /* of an NF4Tensor */
    int own_lut, own_map; /* whether its tables are not the library's */
} lora_py_deviceweight;

/** A copy of an NF4Tensor or a GGMLTensor there. NULL with an exception. */
PyObject *lora_py_deviceweight_new(lora_py_state *state, lora_py_device device, PyObject *tensor);
/** The method to(device) of NF4Tensor and GGMLTensor, and its docstring. */
PyObject *lora_py_weight_to(PyObject *tensor, PyObject *args);
extern const char lora_py_weight_to_doc[];

extern PyMethodDef lora_py_meta_functions[]; /* meta_weight */

#endif
