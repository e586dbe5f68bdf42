/* Devices by name: the context of each that is in use, made when it is first asked for. */
#ifndef LORA_PY_DEVICES_H
#define LORA_PY_DEVICES_H

#include "lora_c/bindings/py_state.h"

/** Puts a new object, which holds nothing yet, on a device. -1 with an exception. */
int lora_py_put_on(lora_py_state *state, void *object, const char *device);
/** The name of the device of an object. */
PyObject *lora_py_get_device(PyObject *o, void *unused);
/** Refuses an object of another device than the context's; -1 with ValueError. what: the argument that it is. */
int lora_py_same_device(const lora_ctx *ctx, const lora_py_object *o, const char *what);

int lora_py_traverse_devices(lora_py_state *state, visitproc visit, void *arg);
void lora_py_clear_devices(lora_py_state *state);

extern PyMethodDef lora_py_device_functions[]; /* devices, transfers */

#endif
