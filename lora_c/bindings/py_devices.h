/* Devices by name: the context of each that is in use, made when it is first asked for. */
#ifndef LORA_PY_DEVICES_H
#define LORA_PY_DEVICES_H

#include "lora_c/bindings/py_state.h"

/** The device of this name, whose context and owner the state holds. -1 with an exception. */
int lora_py_find_device(lora_py_state *state, const char *name, lora_py_device *out);
/** The contexts of the CPU and of every device that has been opened, at most 1 + LORA_PY_MOST_DEVICES; returns how many. */
int lora_py_contexts(const lora_py_state *state, lora_ctx **out);
/** The device of the contexts that objects have by themselves. */
lora_py_device lora_py_cpu(const lora_py_state *state);
/** The device of an object. */
static inline lora_py_device lora_py_device_of(const void *object) {
    const lora_py_object *o = object;
    return (lora_py_device){.owner = o->owner, .ctx = o->ctx};
}
/** Puts a new object, which holds no memory yet, on a device. */
void lora_py_put_on(void *object, lora_py_device device);
int lora_py_is_host(const lora_ctx *ctx); /* whether its addresses are the host's */

/** Whether what is asked for on both is in one order, so that memory may be given from one to the other: not where the extension is loaded
 *  a second time, whose devices are its own. */
int lora_py_same_memory(const lora_ctx *a, const lora_ctx *b);
/** What follows the name of a device in a message that it is not the expected one. */
const char *lora_py_other_loading(const lora_ctx *expected, const lora_ctx *given);

/** A capsule that frees memory of the device of an object when it ends; it takes memory over. NULL with an exception. */
PyObject *lora_py_hold(const lora_py_object *of, void *memory);

/** to (host) = from (device), and waits; the other way. -1 with an exception. */
int lora_py_download(const lora_py_object *of, void *to, const void *from, size_t bytes);
int lora_py_upload(const lora_py_object *of, void *to, const void *from, size_t bytes);
/** The name of the device of an object. */
PyObject *lora_py_get_device(PyObject *o, void *unused);
/** Refuses an object of another device than the context's; -1 with ValueError. what: the argument that it is. */
int lora_py_same_device(const lora_ctx *ctx, const lora_py_object *o, const char *what);
/* params[i] of an object that trains: a Parameter with a gradient. The object takes the device of the first one, which the others must
 * share. NULL with an exception. */
lora_py_parameter *lora_py_trained_parameter(void *object, const lora_py_state *state, PyObject *o, Py_ssize_t i);

int lora_py_traverse_devices(lora_py_state *state, visitproc visit, void *arg);
void lora_py_clear_devices(lora_py_state *state);

extern PyMethodDef lora_py_device_functions[]; /* devices, memory_info, transfers */

#endif
