/* Activations kept in bfloat16: all layers run in the memory of one state, which is rounded into the layer's own half-sized
 * copy when the layer is done and widened again before its backward pass. The forward pass never reads the copy, so the loss
 * keeps its bits; gradients see activations that are rounded once. */
#include "lora_c/model/decoder_struct.h"

enum { MAX_PARTS = 9 };

static lora_mat part(const float *data, int64_t M, int64_t width) { return lora_mat_f32(data, M, width, width); }

/* What a layer's backward pass reads, statistics of norms and softmax aside: those are small and stay as they are. */
static int parts_of(const lora_decoder *d, const lora_buffers *b, int64_t layer, int64_t M, lora_mat *out) {
    const lora_decoder_config *k = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int n = 0;
    out[n++] = part(b->x[layer], M, k->hidden_size);
    out[n++] = part(s->qkv, M, lora_qkv_width(k));
    out[n++] = part(s->att, M, lora_q_width(k));
    out[n++] = part(s->x2, M, k->hidden_size);
    out[n++] = part(s->up, M, k->intermediate_size);
    if (k->gated_mlp) out[n++] = part(s->gate, M, k->intermediate_size);
    if (s->qk) out[n++] = part(s->qk, M, lora_q_width(k) + lora_kv_width(k));
    if (k->post_norm) {
        out[n++] = part(s->att_branch, M, k->hidden_size);
        out[n++] = part(s->mlp_branch, M, k->hidden_size);
    }
    return n;
}

static lora_status copy_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, bool restore, lora_error *err) {
    lora_mat parts[MAX_PARTS];
    uint16_t *narrow = b->kept[layer];
    int n = parts_of(d, b, layer, run->n_tokens, parts);
    for (int i = 0; i < n; i++) {
        lora_mat copy = parts[i];
        copy.data = narrow;
        copy.dtype = LORA_BF16;
        LORA_TRY(lora_convert_rows(d->ctx, restore ? copy : parts[i], restore ? parts[i] : copy, err));
        narrow += copy.rows * copy.cols;
    }
    return LORA_OK;
}

/* The last layer is the first to be needed again and finds everything in place. */
static bool has_copy(const lora_decoder *d, const lora_buffers *b, int64_t layer) {
    return b->kept && layer >= b->lowest && layer < d->config.num_hidden_layers - 1;
}

lora_status lora_keep_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    return has_copy(d, b, layer) ? copy_layer(d, run, b, layer, false, err) : LORA_OK;
}

lora_status lora_restore_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    return has_copy(d, b, layer) ? copy_layer(d, run, b, layer, true, err) : LORA_OK;
}

int64_t lora_kept_width(const lora_decoder_config *k) {
    int64_t H = k->hidden_size, norms = k->qk_norm != LORA_QK_NORM_NONE ? lora_q_width(k) + lora_kv_width(k) : 0;
    return 2 * H + lora_qkv_width(k) + lora_q_width(k) + (k->gated_mlp ? 2 : 1) * k->intermediate_size + norms + (k->post_norm ? 2 * H : 0);
}
