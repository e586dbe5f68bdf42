/* What the Python types of optimizers share. */
#ifndef LORA_PY_OPTIMIZER_H
#define LORA_PY_OPTIMIZER_H

#include "lora_c/bindings/py_array.h"

typedef struct lora_py_optimizer {
    lora_py_object base;
    lora_py_parameter **parameters;
    Py_ssize_t n;
    lora_optimizer *optimizer;
    lora_optimizer_kind kind;
    lora_optimizer_options options;
    _Atomic double lr; /* may be set while another thread steps */
} lora_py_optimizer;

/* Arguments that need the list of parameters; NULL where a type has none or nobody gave it. */
typedef struct lora_py_optimizer_given {
    PyObject *params, *no_decay, *lr_ratios, *paged_folder;
    PyObject *adamw; /* matrices that are none to Muon */
} lora_py_optimizer_given;

/* py_optimizer.c */
/** The end of every construction. NULL with an exception. */
PyObject *lora_py_optimizer_make(PyTypeObject *type, lora_optimizer_kind kind, double lr, const lora_optimizer_options *options,
                                 const lora_py_optimizer_given *given);
void lora_py_optimizer_dealloc(PyObject *o);
PyObject *lora_py_optimizer_repr(PyObject *o);
extern PyMethodDef lora_py_optimizer_methods[];
PyObject *lora_py_optimizer_get_lr(PyObject *o, void *unused);
PyObject *lora_py_optimizer_get_decay(PyObject *o, void *unused);
PyObject *lora_py_optimizer_get_step(PyObject *o, void *unused);
PyObject *lora_py_optimizer_get_kinds(PyObject *o, void *unused);
int lora_py_optimizer_set_lr(PyObject *o, PyObject *value, void *unused);
/* The attributes that all have. */
#define LORA_PY_OPTIMIZER_ATTRIBUTES                                                                                                       \
    {"lr", lora_py_optimizer_get_lr, lora_py_optimizer_set_lr, "Learning rate of the steps that give none.", NULL},                        \
        {"weight_decay", lora_py_optimizer_get_decay, NULL, "Weight decay.", NULL},                                                        \
        {"step_count", lora_py_optimizer_get_step, NULL, "Steps done.", NULL}, {                                                           \
        "moment_names", lora_py_optimizer_get_kinds, NULL, "What the state has of parameters: the keys of state_dict() but step.", NULL    \
    }

/* py_optimizer_state.c */
PyObject *lora_py_optimizer_moment_names(lora_py_optimizer *self);
PyObject *lora_py_optimizer_state_dict(PyObject *o, PyObject *unused);
PyObject *lora_py_optimizer_load_state_dict(PyObject *o, PyObject *given);
PyObject *lora_py_optimizer_moment(PyObject *o, PyObject *args);
PyObject *lora_py_optimizer_moment_shape(PyObject *o, PyObject *args);
PyObject *lora_py_optimizer_set_moment(PyObject *o, PyObject *args);
PyObject *lora_py_optimizer_set_step_count(PyObject *o, PyObject *given);
extern const char lora_py_state_dict_doc[], lora_py_load_state_dict_doc[], lora_py_moment_doc[], lora_py_moment_shape_doc[],
    lora_py_set_moment_doc[], lora_py_set_step_count_doc[];

#endif
