/* What KVCache and Decoder know of each other. */
#ifndef LORA_PY_DECODER_H
#define LORA_PY_DECODER_H

#include "lora_c/bindings/py_buffer.h"

typedef struct lora_py_decoder {
    lora_py_object base;
    lora_decoder *decoder;
    lora_decoder_config config; /* its pointers are not kept here */
    PyObject *options;          /* the configuration as a dict */
    PyObject **owners;          /* (n_owners): what owns the memory that the library borrows; not a dict, which others could empty */
    Py_ssize_t n_owners;
    lora_precision precision; /* of passes that are not told another */
    lora_recompute recompute;
    lora_dtype activation_dtype;
} lora_py_decoder;

typedef struct lora_py_kvcache {
    lora_py_object base;
    lora_kv_cache *cache;
    lora_py_decoder *decoder;
} lora_py_kvcache;

/* Arrays that a configuration borrows until the decoder is made. */
typedef struct lora_py_decoder_memory {
    int32_t *windows;
    int8_t *layer_rope;
    double *inv_freq[LORA_MAX_ROPES];
    const char *device; /* of an argument */
} lora_py_decoder_memory;

/** The arguments of Decoder() as a configuration. Returns them as a dict, or NULL with an exception; release the memory
 *  in both cases. */
PyObject *lora_py_decoder_arguments(PyObject *args, PyObject *kwargs, lora_decoder_config *config, lora_py_decoder_memory *memory);
void lora_py_release_decoder_memory(lora_py_decoder_memory *memory);

/** Exclusive use, with the decoder in order and its own precision set; -1 with an exception. Ends with lora_py_leave(). */
int lora_py_enter_decoder(lora_py_decoder *self);

/* py_decoder_weights.c: the methods that give the decoder its weights and adapters */
/** Room for the owners of all weights and adapters; -1 with an exception. */
int lora_py_make_owners(lora_py_decoder *self);
PyObject *lora_py_decoder_set_weight(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_set_adapter(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_set_token_rows(PyObject *o, PyObject *args);
PyObject *lora_py_decoder_remove_adapter(PyObject *o, PyObject *args);
extern const char lora_py_set_weight_doc[], lora_py_set_adapter_doc[], lora_py_set_token_rows_doc[], lora_py_remove_adapter_doc[];

PyObject *lora_py_kvcache_new(lora_py_decoder *decoder, int64_t n_sequences, int64_t max_tokens);

#endif
