/* What Decoder, KVCache and DecoderAdapters know of each other. */
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
    _Atomic lora_precision precision; /* of passes that are not told another */
    _Atomic lora_recompute recompute;
    double noise_alpha; /* this one, the seed and the folder: read and written in a critical section */
    uint64_t noise_seed;
    PyObject *offload_folder; /* bytes, or NULL: none. The library's own may end while it is read */
    _Atomic lora_dtype activation_dtype;
    atomic_bool watching;
    _Atomic int64_t complete_layer; /* of the training pass that goes on; num_hidden_layers: none is */
} lora_py_decoder;

typedef struct lora_py_kvcache {
    lora_py_object base;
    lora_kv_cache *cache;
    lora_py_decoder *decoder;
} lora_py_kvcache;

typedef struct lora_py_decoder_adapters {
    lora_py_object base;
    lora_decoder_adapters *adapters;
    lora_py_decoder *decoder;
    PyObject **owners; /* (n_owners): of the arrays of each adapter */
    Py_ssize_t n_owners;
} lora_py_decoder_adapters;

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

typedef struct lora_py_weight_place {
    int64_t layer;
    int is_vector, slot;
    int64_t row; /* of an adapter: the first row of B that it uses */
} lora_py_weight_place;

/* py_decoder_weights.c: the methods that give the decoder its weights and adapters */
/** Room for the owners of all weights and adapters; -1 with an exception. */
int lora_py_make_owners(lora_py_decoder *self);
/** The place of a matrix that can have an adapter, by its name; -1 with an exception. */
int lora_py_find_adapter_place(const lora_py_decoder *self, const char *name, lora_py_weight_place *place);
/** The place of an adapter by its name, and the adapter of A and B, whose shapes are checked, with scale 1; -1 with an exception. */
int lora_py_find_adapter(const lora_py_decoder *self, const char *name, const lora_py_parameter *A, const lora_py_parameter *B,
                         PyObject *row_given, lora_py_weight_place *place, lora_adapter *adapter);
/* Owners of a layer's scaling vectors, by matrix slot, and of its bottlenecks, by place behind them. */
enum { LORA_PY_METHODS = LORA_LAYER_MATRICES + LORA_BOTTLENECK_PLACES };
PyObject **lora_py_method_owner(const lora_py_decoder *self, const lora_py_weight_place *place, int method);
/** After the library has taken owner's memory (NULL: nothing) for what it had there. Leaves the decoder. */
void lora_py_replace_owner(lora_py_decoder *self, PyObject **place, PyObject *owner);
PyObject *lora_py_decoder_set_weight(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_set_adapter(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_set_token_rows(PyObject *o, PyObject *args);
PyObject *lora_py_decoder_remove_adapter(PyObject *o, PyObject *args);
extern const char lora_py_set_weight_doc[], lora_py_set_adapter_doc[], lora_py_set_token_rows_doc[], lora_py_remove_adapter_doc[];

/* py_decoder_passes.c */
PyObject *lora_py_decoder_forward_backward(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_loss(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_logits(PyObject *o, PyObject *args);
PyObject *lora_py_decoder_last_logits(PyObject *o, PyObject *args);
PyObject *lora_py_decoder_hidden_states(PyObject *o, PyObject *args);
PyObject *lora_py_decoder_new_cache(PyObject *o, PyObject *args);
PyObject *lora_py_decoder_decode(PyObject *o, PyObject *args, PyObject *kwargs);
extern const char lora_py_forward_backward_doc[], lora_py_loss_doc[], lora_py_logits_doc[], lora_py_last_logits_doc[],
    lora_py_hidden_states_doc[], lora_py_new_cache_doc[], lora_py_decode_doc[];

/* py_decoder_attributes.c */
extern PyGetSetDef lora_py_decoder_getset[];

/* py_decoder_watch.c: getters and a setter */
PyObject *lora_py_decoder_watching(PyObject *o, void *unused);
int lora_py_decoder_set_watching(PyObject *o, PyObject *value, void *unused);
PyObject *lora_py_decoder_first_nonfinite(PyObject *o, void *unused);
/* py_virtual_tokens.c */
PyObject **lora_py_virtual_tokens_owner(const lora_py_decoder *self); /* in py_decoder_weights.c */
PyObject *lora_py_decoder_set_virtual_tokens(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_get_virtual_tokens(PyObject *o, void *unused);
extern const char lora_py_set_virtual_tokens_doc[];

/* py_decoder_methods.c: scaling vectors and bottlenecks */
PyObject *lora_py_decoder_set_scaling(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_remove_scaling(PyObject *o, PyObject *args);
PyObject *lora_py_decoder_set_bottleneck(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_decoder_remove_bottleneck(PyObject *o, PyObject *args);
extern const char lora_py_set_scaling_doc[], lora_py_remove_scaling_doc[], lora_py_set_bottleneck_doc[], lora_py_remove_bottleneck_doc[];

/* py_decoder_adapters.c */
PyObject *lora_py_decoder_new_adapters(PyObject *o, PyObject *unused);
extern const char lora_py_new_adapters_doc[];
/* The adapters argument of decode: what each segment has. */
typedef struct lora_py_chosen {
    PyObject *items;                  /* a tuple, or NULL: none were given */
    const lora_decoder_adapters **of; /* (n_segments); NULL: none were given */
    lora_py_decoder_adapters *distinct[LORA_DECODE_BATCH];
    int n_distinct;
} lora_py_chosen;
/** Reads the argument, None or an iterable; -1 with an exception. Release it in both cases. */
int lora_py_choose_adapters(lora_py_state *state, PyObject *given, int64_t n_segments, lora_py_chosen *out);
void lora_py_release_chosen(lora_py_chosen *chosen);
/** Exclusive use of all of them; -1 with an exception, and of none. */
int lora_py_enter_chosen(lora_py_chosen *chosen);
void lora_py_leave_chosen(lora_py_chosen *chosen);

PyObject *lora_py_kvcache_new(lora_py_decoder *decoder, int64_t n_sequences, int64_t max_tokens);

#endif
