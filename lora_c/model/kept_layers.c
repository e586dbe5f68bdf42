/* Activations kept in bfloat16: all layers run in the memory of one state, which is rounded into the layer's own half-sized
 * copy when the layer is done and widened again before its backward pass. The forward pass never reads the copy, so the loss
 * keeps its bits; gradients see activations that are rounded once. */
#include "lora_c/base/util.h"
#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"

enum { MAX_PARTS = 9, TASK_ELEMENTS = 32768 };

typedef struct part {
    float *data; /* (M, width), contiguous */
    int64_t width;
} part;

/* What a layer's backward pass reads, statistics of norms and softmax aside: those are small and stay as they are. */
static int parts_of(const lora_decoder *d, const lora_buffers *b, int64_t layer, part *out) {
    const lora_decoder_config *k = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int n = 0;
    out[n++] = (part){b->x[layer], k->hidden_size};
    out[n++] = (part){s->qkv, lora_qkv_width(k)};
    out[n++] = (part){s->att, lora_q_width(k)};
    out[n++] = (part){s->x2, k->hidden_size};
    out[n++] = (part){s->up, k->intermediate_size};
    if (k->gated_mlp) out[n++] = (part){s->gate, k->intermediate_size};
    if (s->qk) out[n++] = (part){s->qk, lora_q_width(k) + lora_kv_width(k)};
    if (k->post_norm) {
        out[n++] = (part){s->att_branch, k->hidden_size};
        out[n++] = (part){s->mlp_branch, k->hidden_size};
    }
    return n;
}

typedef struct copy_job {
    const lora_nf4_kernels *kernels;
    float *wide;
    uint16_t *narrow;
    int64_t n;
    bool restore;
} copy_job;

static void copy_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const copy_job *job = arg;
    int64_t i = task * TASK_ELEMENTS, n = lora_min_i64(TASK_ELEMENTS, job->n - i);
    if (job->restore)
        job->kernels->bf16_to_f32(n, job->narrow + i, job->wide + i);
    else
        job->kernels->f32_to_bf16(n, job->wide + i, job->narrow + i);
}

static void copy_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, bool restore) {
    part parts[MAX_PARTS];
    uint16_t *narrow = b->kept[layer];
    int n = parts_of(d, b, layer, parts);
    for (int i = 0; i < n; i++) {
        copy_job job = {&d->ctx->engine->kernels.nf4, parts[i].data, narrow, run->n_tokens * parts[i].width, restore};
        lora_parallel_for(d->ctx->engine->pool, lora_div_up(job.n, TASK_ELEMENTS), copy_task, &job);
        narrow += job.n;
    }
}

/* The last layer is the first to be needed again and finds everything in place. */
static bool has_copy(const lora_decoder *d, const lora_buffers *b, int64_t layer) {
    return b->kept && layer >= b->lowest && layer < d->config.num_hidden_layers - 1;
}

void lora_keep_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer) {
    if (has_copy(d, b, layer)) copy_layer(d, run, b, layer, false);
}

void lora_restore_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer) {
    if (has_copy(d, b, layer)) copy_layer(d, run, b, layer, true);
}

int64_t lora_kept_width(const lora_decoder_config *k) {
    int64_t H = k->hidden_size, norms = k->qk_norm != LORA_QK_NORM_NONE ? lora_q_width(k) + lora_kv_width(k) : 0;
    return 2 * H + lora_qkv_width(k) + lora_q_width(k) + (k->gated_mlp ? 2 : 1) * k->intermediate_size + norms + (k->post_norm ? 2 * H : 0);
}
