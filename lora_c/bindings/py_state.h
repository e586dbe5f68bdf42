/* What the binding's files share: the module state, the objects that others look into, errors and exclusive use. */
#ifndef LORA_PY_STATE_H
#define LORA_PY_STATE_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h> /* before any system header: every file of the binding includes its own headers first */

#include <stdatomic.h>

#include "lora_c/lora_c.h"

/* One thread at a time in the few lines between that look at or change several fields of an object that are read outside of exclusive
 * use. With the GIL it is nothing: they do not release it. */
#if PY_VERSION_HEX >= 0x030D0000
#define LORA_PY_BEGIN_CRITICAL(o) Py_BEGIN_CRITICAL_SECTION(o)
#define LORA_PY_END_CRITICAL() Py_END_CRITICAL_SECTION()
#else
#define LORA_PY_BEGIN_CRITICAL(o) {
#define LORA_PY_END_CRITICAL() }
#endif

#define LORA_PY_KEYWORDS (PyCFunction)(void (*)(void))

/* A method with keywords, as method tables take it: f##_kept, which calls f with keywords that stay. */
#define LORA_PY_KEEP(f)                                                                                                                    \
    static PyObject *f##_kept(PyObject *o, PyObject *args, PyObject *kwargs) { return lora_py_with_kept(f, o, args, kwargs); }

enum { LORA_PY_MOST_DEVICES = 16 };

typedef struct lora_py_state {
    PyObject *owner; /* capsule that owns ctx: every object holds it, so that the context outlives the module */
    lora_ctx *ctx;
    _Atomic(PyObject *) devices[LORA_PY_MOST_DEVICES]; /* capsules of the contexts of other devices, NULL behind the last one */
    PyObject *device_error, *stopped_error;
    PyTypeObject *nf4_type, *ggml_type, *parameter_type, *linear_type, *decoder_type, *kv_cache_type, *decoder_adapters_type;
    PyTypeObject *adamw_type, *adamw8bit_type, *sgd_type, *lion_type, *adafactor_type, *muon_type, *gradient_tree_type;
    PyTypeObject *devicearray_type, *deviceweight_type;
    PyTypeObject *export_type; /* not a name of the module */
} lora_py_state;

/* First fields of every object of this module. */
typedef struct lora_py_object {
    PyObject_HEAD PyObject *owner; /* of ctx */
    lora_ctx *ctx;
    _Atomic int busy; /* exclusive use: the process that is inside, or 0. Not a critical section, which would end where the
                       * GIL is released; not a flag, which a child forked meanwhile would keep for ever */
} lora_py_object;

/* Where an object lies: the context of a device, and what keeps that. */
typedef struct lora_py_device {
    PyObject *owner;
    lora_ctx *ctx;
} lora_py_device;

typedef struct lora_py_nf4tensor {
    lora_py_object base;
    lora_nf4 nf4;       /* points into the blocks below or into the library's tables */
    PyObject *borrowed; /* the export of codes that lie elsewhere; NULL when owned */
    uint8_t *codes, *absmax_codes;
    float *absmax, *nested_absmax, *tables; /* tables: own lut and nested map, where they came from a file */
    Py_ssize_t code_bytes;
    int64_t n_blocks, n_nested;
    lora_4bit_type type; /* what the codes mean: another table, the same layout */
} lora_py_nf4tensor;

typedef struct lora_py_ggmltensor {
    lora_py_object base;
    lora_ggml ggml;
    PyObject *borrowed; /* the export of the mapped file or the array; NULL when owned */
    uint8_t *owned;
    Py_ssize_t bytes;
} lora_py_ggmltensor;

enum { LORA_PY_MAX_DIMS = 8 };
enum { LORA_PY_MOST_ITEMS = 1 << 20 }; /* an iterable may have no end, and an array of a repeated element rows without number */

typedef struct lora_py_block lora_py_block; /* py_block.c */

typedef struct lora_py_parameter {
    lora_py_object base;
    lora_py_block *block; /* owns what data and grad point into */
    float *data, *grad;   /* grad: NULL when frozen */
    int ndim;
    Py_ssize_t shape[LORA_PY_MAX_DIMS], strides[LORA_PY_MAX_DIMS]; /* strides in bytes, for the buffer protocol */
    int64_t size;
    PyObject *name;
} lora_py_parameter;

extern PyModuleDef lora_py_module;
extern PyType_Spec lora_py_nf4tensor_spec, lora_py_ggmltensor_spec, lora_py_parameter_spec, lora_py_loralinear_spec, lora_py_adamw_spec,
    lora_py_adamw8bit_spec, lora_py_sgd_spec, lora_py_lion_spec, lora_py_adafactor_spec, lora_py_muon_spec, lora_py_decoder_spec,
    lora_py_kvcache_spec, lora_py_gradient_tree_spec, lora_py_decoder_adapters_spec, lora_py_devicearray_spec, lora_py_deviceweight_spec,
    lora_py_export_spec;
extern PyMethodDef lora_py_row_ops[], lora_py_matrix_ops[], lora_py_tree_functions[];

/* Types are final, so the type of an object is the one that the module made. */
static inline lora_py_state *lora_py_state_of(PyTypeObject *type) { return PyType_GetModuleState(type); }

/** A str of bytes that need not be UTF-8. */
PyObject *lora_py_text(const char *text);

/** Maps a status to its exception, once for the whole binding. Always returns NULL. */
PyObject *lora_py_raise(lora_py_state *state, const lora_error *err);

/** Sets kind with the line "<expected>, got <given>", whatever the given value is. Always returns -1. */
int lora_py_refuse(PyObject *kind, const char *expected, PyObject *given);

/** Allocates an object that holds the context; the garbage collector, and so gc.get_objects(), does not see it before
 *  lora_py_publish(). NULL with an exception. */
void *lora_py_new(PyTypeObject *type);
/** The end of every construction: the object is whole and may be seen. NULL stays NULL. */
PyObject *lora_py_publish(void *self);
/** The end of every dealloc: lets go of the context, the object and its type. */
void lora_py_delete(PyObject *self);
int lora_py_traverse(PyObject *self, visitproc visit, void *arg);
/** tp_new and __reduce__ of types that refuse. */
PyObject *lora_py_reduce(PyObject *self, PyObject *unused);
/** A table of attributes, whose names end with NULL, for notebooks. */
PyObject *lora_py_html(PyObject *self, const char *const *attributes);

/** Exclusive use of a mutable object: -1 with RuntimeError when another thread is inside; 1 when the parent of this process
 *  forked it while a thread was inside, which this process does not have. */
int lora_py_enter(lora_py_object *self);
static inline void lora_py_leave(lora_py_object *self) { atomic_store(&self->busy, 0); }

/* py_arguments.c */
/** Calls f with a copy of kwargs that no Python code can reach: a conversion (__float__, __index__, ...) could find the dict
 *  and empty it, and what f has read from it would be gone. */
PyObject *lora_py_with_kept(PyCFunctionWithKeywords f, PyObject *o, PyObject *args, PyObject *kwargs);
/** The same for tp_new. */
PyObject *lora_py_new_with_kept(newfunc f, PyTypeObject *type, PyObject *args, PyObject *kwargs);
/** What a list or another iterable of up to LORA_PY_MOST_ITEMS holds, as a tuple: a list may change while memory for its members
 *  is cleared. expected: "<arg>: expected <what>", the begin of what is said otherwise. */
PyObject *lora_py_items(PyObject *o, const char *expected);
/** Converter for O&: any whole number as int64_t, the nearest one where it needs more bits, so that the check of its range
 *  is the one that refuses it. */
int lora_py_whole(PyObject *o, void *out);

/** Memory under a tag, zeroed; NULL with MemoryError. name is the argument or array that it is for. */
void *lora_py_alloc(lora_ctx *ctx, lora_mem_tag tag, size_t bytes, const char *name);

/* py_block.c: all memory of Parameters. shape has ndim entries, all > 0; functions that make something give NULL with an exception. */
/** Zeroed memory for n elements in all, which the caller holds, too, and drops when its Parameters are made. */
lora_py_block *lora_py_block_new(lora_py_device device, int64_t n, int requires_grad);
void lora_py_block_drop(lora_py_block *block); /* NULL allowed */
/** The Parameter whose elements begin at the first-th of a block. name: a str. */
lora_py_parameter *lora_py_parameter_at(lora_py_state *state, lora_py_block *block, int64_t first, int ndim, const int64_t *shape,
                                        PyObject *name);
/** A Parameter with a block of its own. */
lora_py_parameter *lora_py_parameter_new(lora_py_state *state, lora_py_device device, int ndim, const int64_t *shape, const char *name,
                                         int requires_grad);
int lora_py_is_parameter(PyObject *o); /* py_parameter.c */
/** Whether the memory of the second begins where that of the first ends, in one block. */
int lora_py_lies_behind(const lora_py_parameter *first, const lora_py_parameter *next);

/* Runs C calls with the GIL released and the context locked; LORA_PY_CALL keeps what one returns. */
#define LORA_PY_CALL(ctx, status, expr) LORA_PY_DO(ctx, (status) = (expr))
#define LORA_PY_DO(ctx, statement)                                                                                                         \
    do {                                                                                                                                   \
        Py_BEGIN_ALLOW_THREADS lora_ctx_lock(ctx);                                                                                         \
        statement;                                                                                                                         \
        lora_ctx_unlock(ctx);                                                                                                              \
        Py_END_ALLOW_THREADS                                                                                                               \
    } while (0)

#endif
