/* What a device must be able to do: the table that a backend fills. The CPU's is one of them; others come from shared libraries with
 * one exported symbol, lora_backend_entry. The public functions of nn.h, linear.h, optim.h, quantize.h and memory.h check their arguments,
 * keep the accounts and call this table, so the contract of an entry is the comment of the function of its name, with these additions:
 *
 *   Addresses  Every array is at an address that alloc gave, but for what is named host. Structs are read during the call.
 *   Order      Entries of one state take effect in the order of their calls, at the latest in sync. An error that shows later than
 *              its call is the result of sync. Contents of arrays (ids, targets, cu_seqlens) have been checked by the caller.
 *   Fork       A child of the process that called create is refused before memory, transfers, sync or destroy of that state are called.
 *
 * Numbers: bits depend on shapes, formats and the backend only, never on timing. */
#ifndef LORA_C_BACKEND_H
#define LORA_C_BACKEND_H

#include "lora_c/device.h"
#include "lora_c/linear.h"
#include "lora_c/nn.h"
#include "lora_c/optim.h"
#include "lora_c/quantize.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LORA_BACKEND_ABI = 6 }; /* changes with this file, and with the structs that it passes */

/* Memory of the device. Tags are for the accounts (lora_ctx_memory). */
typedef struct lora_backend_memory {
    void *(*alloc)(void *state, lora_mem_tag tag, size_t bytes); /* not cleared, 64-byte aligned; NULL when refused; any thread */
    void (*free)(void *state, void *p);                          /* of alloc, not NULL; before a sync, too; any thread */
    void *(*stage_alloc)(void *state, size_t bytes);             /* host memory, see lora_stage_alloc */
    void (*stage_free)(void *state, void *p);                    /* of stage_alloc, as free */
    lora_status (*upload)(void *state, void *to, const void *from_host, size_t bytes, lora_error *err);
    lora_status (*download)(void *state, void *to_host, const void *from, size_t bytes, lora_error *err);
    lora_status (*clear)(void *state, void *p, size_t bytes, lora_error *err); /* any thread */
    lora_status (*sync)(void *state, lora_error *err);
    /* Memory beside the device's own, of which only what is in use lies on it; see lora_paged_alloc. */
    lora_status (*paged_alloc)(void *state, const char *folder, size_t bytes, void **out, lora_error *err);
    void (*paged_free)(void *state, void *p, size_t bytes);
    void (*paged_advise)(void *state, void *p, size_t bytes, lora_page_use use);
    lora_mem_usage (*usage)(const void *state, lora_mem_tag tag); /* LORA_MEM_TAGS: all together */
    void (*reset_peak)(void *state);
    lora_status (*memory_info)(void *state, lora_memory_info *out, lora_error *err); /* may wait; see lora_ctx_memory_info */
    void *(*stream)(const void *state);                                              /* see lora_ctx_stream */
    lora_status (*stream_follows)(void *state, void *stream, void *before, lora_error *err);
} lora_backend_memory;

/* Operations by the name of their public function without lora_. */
typedef struct lora_backend_ops {
    lora_status (*norm_forward)(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err);
    lora_status (*norm_backward)(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx,
                                 bool accumulate_dx, float *dweight, float *dbias, lora_error *err);
    lora_status (*scale_rows)(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err);
    lora_status (*add_noise)(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err);
    lora_status (*scale_columns)(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err);
    lora_status (*scale_columns_backward)(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx,
                                          float *dl, lora_error *err);
    lora_status (*softcap_rows)(lora_ctx *ctx, float softcap, lora_mat x, lora_error *err);
    lora_status (*softcap_backward)(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err);
    lora_status (*rope_table)(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                              double scale, float *cos, float *sin, lora_error *err);
    lora_status (*rope)(lora_ctx *ctx, const lora_rotations *table, int64_t n_heads, int64_t head_dim, const int32_t *positions, lora_mat x,
                        bool backward, lora_error *err);
    lora_status (*attention_forward)(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                     const lora_kv *kv, lora_mat o, float *lse, lora_error *err);
    lora_status (*attention_backward)(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                      const lora_attention_gradient *gradient, lora_error *err);
    lora_status (*mlp_forward)(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err);
    lora_status (*mlp_backward)(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate,
                                lora_mat dup, lora_error *err);
    lora_status (*embedding_forward)(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err);
    lora_status (*embedding_backward)(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err);
    lora_status (*linear_cross_entropy)(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                        lora_error *err);
    lora_status (*values_loss)(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err);
    lora_status (*copy_rows)(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate,
                             lora_error *err);
    lora_status (*convert_rows)(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err);
    lora_status (*linear_forward)(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err);
    lora_status (*linear_backward)(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                   bool accumulate_dx, lora_error *err);
    bool (*linear_keeps_low)(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter);
    lora_status (*dora_norm)(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm, lora_error *err);
    lora_status (*linear_merge)(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign,
                                float *merged, lora_error *err);
    lora_status (*linear_merge_backward)(lora_ctx *ctx, const lora_adapter *adapter, lora_mat dmerged, lora_error *err);
    lora_status (*adamw_step)(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper,
                              lora_error *err);
    lora_status (*adamw8bit_step)(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state,
                                  const lora_adamw_hyper *hyper, lora_error *err);
    lora_status (*sgd_step)(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper,
                            lora_error *err);
    lora_status (*lion_step)(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper,
                             lora_error *err);
    lora_status (*adafactor_step)(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adafactor_state *state,
                                  const lora_adafactor_hyper *hyper, lora_error *err);
    lora_status (*muon_step)(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper,
                             lora_error *err);
    lora_status (*sum_of_squares)(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err);
    lora_status (*quantize_4bit)(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax,
                                 int64_t *first_bad, lora_error *err);
    lora_status (*double_quantize)(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                   float *nested_offset, lora_error *err);
    lora_status (*dequantize)(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype, lora_error *err);
    int64_t (*scratch_bytes)(const lora_ctx *ctx, const lora_scratch_shape *shape);
} lora_backend_ops;

typedef struct lora_backend {
    uint32_t abi;     /* LORA_BACKEND_ABI when it was compiled */
    const char *name; /* of its devices: "cpu", "cuda" */
    bool has_int8;    /* contexts may have LORA_PRECISION_INT8, convert_rows takes LORA_INT8 */
    bool host_memory; /* its addresses are the host's, and nothing happens later than its call */
    /** Devices of this kind in *out, up to most; those that cannot be used with the reason. Returns their number. */
    int64_t (*devices)(int64_t most, lora_device *out);
    /** The state of device index; host: a context of the CPU that stays while the state does, for what a backend leaves to it. */
    lora_status (*create)(lora_ctx *host, int64_t index, void **state, lora_error *err);
    void (*destroy)(void *state); /* waits for what is under way */
    /** What lora_linear_operand says. NULL: float32, and no operation is given bfloat16. */
    lora_dtype (*linear_operand)(const lora_ctx *ctx, int64_t M);
    lora_backend_memory memory;
    lora_backend_ops ops;
} lora_backend;

/** The one symbol of a backend's library. NULL when it was compiled for another abi. */
typedef const lora_backend *(*lora_backend_entry_fn)(uint32_t abi);

/* The first fields of every context. */
typedef struct lora_backend_view {
    const lora_backend *backend;
    void *state;
    lora_precision precision;
} lora_backend_view;
static inline const lora_backend_view *lora_backend_of(const lora_ctx *ctx) { return (const lora_backend_view *)(const void *)ctx; }

#ifdef __cplusplus
}
#endif
#endif
