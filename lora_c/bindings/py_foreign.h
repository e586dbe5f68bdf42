/* What keeps memory of other libraries while a device may use it. */
#ifndef LORA_PY_FOREIGN_H
#define LORA_PY_FOREIGN_H

#include "lora_c/bindings/py_devices.h"
#include "lora_c/bindings/py_dlpack.h"

/* One of them. */
typedef struct lora_py_foreign {
    lora_dl_managed *plain;
    lora_dl_managed_versioned *versioned;
    PyObject *object;
} lora_py_foreign;

/** A capsule whose end gives them back when the device has done what it was asked for. NULL with an exception, and nothing is taken. */
PyObject *lora_py_hold_foreign(lora_py_device device, const lora_py_foreign *memory);

#endif
