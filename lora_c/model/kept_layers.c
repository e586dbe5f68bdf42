/* Activations kept as copies: all layers run in the memory of one state, which is copied into the layer's own memory when the layer is
 * done and back before its backward pass. Copies in bfloat16 are half as large, in int8 those of streams and of attention's inputs are
 * bfloat16 and the others a byte per value; the forward pass never reads them, so the loss keeps its bits, and gradients see activations
 * that are rounded once. Those in memory of the host, or of a layer whose attention is computed again, have the type that is asked for, and
 * float32 keeps all bits; of a layer that is computed again the input alone is copied. */
#include "lora_c/model/pass.h"

enum { MAX_PARTS = 9 + LORA_BOTTLENECK_PLACES };

typedef struct part {
    float *data; /* (M, width), contiguous; not read to count */
    int64_t width;
    bool block_scaled; /* in int8: what a product reads or puts out, of like magnitude within a row; else bfloat16 */
} part;

/* What a layer's backward pass reads, statistics of norms and softmax aside: those are small and stay as they are. */
static int parts_of(const lora_decoder *d, const lora_buffers *b, int64_t layer, part *out) {
    const lora_decoder_config *c = &d->config;
    const lora_layer_state *s = &b->states[layer];
    const bool keeps_attention = d->recompute != LORA_RECOMPUTE_ATTENTION; /* else its block is computed again, from x and its output */
    int n = 0;
    out[n++] = (part){.data = b->x[layer], .width = c->hidden_size};
    if (d->recompute == LORA_RECOMPUTE_LAYER) return n;
    if (keeps_attention) out[n++] = (part){.data = s->qkv, .width = lora_qkv_width(c)};
    if (b->types.attention_output == LORA_F32) /* else it has memory of its own */
        out[n++] = (part){.data = s->att, .width = lora_q_width(c), .block_scaled = true};
    if (keeps_attention) out[n++] = (part){.data = s->x2, .width = c->hidden_size};
    out[n++] = (part){.data = s->up, .width = c->intermediate_size, .block_scaled = true};
    if (c->gated_mlp) out[n++] = (part){.data = s->gate, .width = c->intermediate_size, .block_scaled = true};
    if (keeps_attention && c->qk_norm != LORA_QK_NORM_NONE) out[n++] = (part){.data = s->qk, .width = lora_q_width(c) + lora_kv_width(c)};
    for (int p = 0; p < LORA_BOTTLENECK_PLACES; p++)
        if ((keeps_attention || p != LORA_AFTER_ATTENTION) && lora_has_bottleneck(d, layer, p))
            out[n++] = (part){.data = s->before[p], .width = c->hidden_size};
    if (c->post_norm) {
        if (keeps_attention) out[n++] = (part){.data = s->att_branch, .width = c->hidden_size};
        out[n++] = (part){.data = s->mlp_branch, .width = c->hidden_size};
    }
    return n;
}

/* The copy of a part at the next place. */
static lora_mat carve_part(lora_carver *at, const lora_buffers *b, const part *p, int64_t M) {
    lora_dtype dtype = b->kept_dtype == LORA_INT8 && !p->block_scaled ? LORA_BF16 : b->kept_dtype;
    int64_t ld = lora_dtype_width(dtype, p->width);
    void *data = lora_carve(at, M, (size_t)ld * lora_dtype_bytes(dtype));
    return (lora_mat){.data = data, .rows = M, .cols = p->width, .ld = ld, .dtype = dtype};
}

void *lora_carve_kept(lora_carver *at, const lora_decoder *d, const lora_buffers *b, int64_t layer, int64_t M) {
    part parts[MAX_PARTS];
    int n = parts_of(d, b, layer, parts);
    void *begin = carve_part(at, b, parts, M).data;
    for (int i = 1; i < n; i++) (void)carve_part(at, b, parts + i, M);
    return begin;
}

static lora_status copy_part(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err) {
    if (from.dtype == to.dtype) return lora_copy_rows(ctx, from, NULL, to, NULL, false, err);
    return lora_convert_rows(ctx, from, to, err);
}

static lora_status copy_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, bool restore, lora_error *err) {
    part parts[MAX_PARTS];
    int64_t M = run->n_tokens;
    lora_carver all = {.base = NULL}, at = {.base = b->kept[layer]};
    if (d->offload_folder) (void)lora_carve_kept(&all, d, b, layer, M);
    int n = parts_of(d, b, layer, parts);
    if (d->offload_folder && restore) lora_paged_advise(d->ctx, b->kept[layer], all.used, LORA_PAGE_SOON);
    for (int i = 0; i < n; i++) {
        lora_mat state = lora_mat_f32(parts[i].data, M, parts[i].width, parts[i].width), copy = carve_part(&at, b, parts + i, M);
        LORA_TRY(copy_part(d->ctx, restore ? copy : state, restore ? state : copy, err));
    }
    if (d->offload_folder && !restore) lora_paged_advise(d->ctx, b->kept[layer], all.used, LORA_PAGE_DONE);
    return LORA_OK;
}

/* The last layer is the first to be needed again and finds everything in place. */
bool lora_keeps_copy(const lora_decoder *d, const lora_buffers *b, int64_t layer) {
    return b->kept && layer >= b->lowest && layer < d->config.num_hidden_layers - 1;
}

lora_status lora_keep_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    return lora_keeps_copy(d, b, layer) ? copy_layer(d, run, b, layer, false, err) : LORA_OK;
}

lora_status lora_restore_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    return lora_keeps_copy(d, b, layer) ? copy_layer(d, run, b, layer, true, err) : LORA_OK;
}
