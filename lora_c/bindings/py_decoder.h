/* What KVCache and Decoder know of each other. */
#ifndef LORA_PY_DECODER_H
#define LORA_PY_DECODER_H

#include "lora_c/bindings/py_buffer.h"

typedef struct lora_py_decoder {
    lora_py_object base;
    lora_decoder *decoder;
    lora_decoder_config config; /* rope_inv_freq is not kept here */
    PyObject *options;          /* the configuration as a dict */
    PyObject *weights, *adapters; /* name -> what owns the borrowed memory */
    lora_recompute recompute;
} lora_py_decoder;

typedef struct lora_py_kvcache {
    lora_py_object base;
    lora_kv_cache *cache;
    lora_py_decoder *decoder;
} lora_py_kvcache;

PyObject *lora_py_kvcache_new(lora_py_decoder *decoder, int64_t n_sequences, int64_t max_tokens);

#endif
