/* The projections of a layer: base, LoRA adapter and scaling vector in one, forward and backward. */
#include "lora_c/model/pass.h"

/* The first matrix of the layer with the same A: parts of a fused module share its dropout masks. */
static int mask_slot(const lora_layer *l, int slot) {
    for (int s = 0; s < slot; s++)
        if (l->matrices[s].has_adapter && l->matrices[s].adapter.A == l->matrices[slot].adapter.A) return s;
    return slot;
}

/* No dropout outside training; a mask of its own for every step, layer and module. */
const lora_adapter *lora_run_adapter(const lora_layer *l, const lora_run *run, int64_t layer, int slot, lora_adapter_pass *pass) {
    const lora_matrix *m = &l->matrices[slot];
    *pass = (lora_adapter_pass){0};
    if (run->n_groups) return run->n_groups == 1 ? lora_adapter_at(run->groups->adapters, layer, slot) : NULL;
    if (!m->has_adapter) return NULL;
    *pass = (lora_adapter_pass){
        .dropout = run->training ? m->adapter.dropout : 0,
        .dropout_stream = (run->dropout_step << 20) + ((uint64_t)layer << 4) + (uint64_t)mask_slot(l, slot),
        .norm = m->norm,
        .low = run->states ? run->states[layer].low[slot] : NULL,
    };
    return &m->adapter;
}

/* The layer of matrix slot as this run computes it into y; groups is memory for its adapters, where rows have their own. */
static lora_linear_layer linear(const lora_layer *l, const lora_run *run, int64_t layer, int slot, lora_mat y, lora_adapter_rows *groups) {
    const lora_matrix *m = &l->matrices[slot];
    lora_linear_layer linear = {.w = &m->w, .bias = m->bias, .y = y};
    linear.adapter = lora_run_adapter(l, run, layer, slot, &linear.pass);
    linear.groups = groups;
    linear.n_groups = run->n_groups > 1 ? lora_run_groups(run, layer, slot, groups) : 0;
    return linear;
}

/* Slot reads l * x, from memory of its own. */
static lora_status project_scaled(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, lora_mat x, lora_mat y,
                                  bool accumulate, lora_error *err) {
    const lora_layer *l = &d->layers[layer];
    lora_adapter_rows groups[LORA_DECODE_BATCH];
    lora_mat scaled = lora_run_mat(run, b->scaled, x.cols);
    LORA_TRY(lora_scale_columns(d->ctx, l->matrices[slot].scaling.l, x, scaled, err));
    lora_linear_layer one = linear(l, run, layer, slot, y, groups);
    one.accumulate = accumulate;
    return lora_linear_forward(d->ctx, scaled, 1, &one, err);
}

lora_status lora_project(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int first, int64_t n, lora_mat x,
                         const lora_mat *out, bool accumulate, lora_error *err) {
    const lora_matrix *m = &d->layers[layer].matrices[first];
    lora_linear_layer layers[LORA_LINEAR_LAYERS];
    lora_adapter_rows groups[LORA_LINEAR_LAYERS][LORA_DECODE_BATCH];
    int64_t n_plain = 0;
    for (int i = 0; i < n; i++) {
        if (m[i].scaling.l && m[i].scaling.input) {
            LORA_TRY(project_scaled(d, run, b, layer, first + i, x, out[i], accumulate, err));
            continue;
        }
        layers[n_plain] = linear(&d->layers[layer], run, layer, first + i, out[i], groups[i]);
        layers[n_plain++].accumulate = accumulate;
    }
    if (n_plain) LORA_TRY(lora_linear_forward(d->ctx, x, n_plain, layers, err));
    for (int i = 0; i < n; i++) /* never accumulated: what is scaled does not lie in the stream */
        if (m[i].scaling.l && !m[i].scaling.input) LORA_TRY(lora_scale_columns(d->ctx, m[i].scaling.l, out[i], out[i], err));
    return LORA_OK;
}

/* The gradient of what a matrix puts out, in place, from that of its output times l. */
static lora_status unscale_gradient(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, lora_mat x, lora_mat dy,
                                    lora_error *err) {
    const lora_layer *l = &d->layers[layer];
    const lora_scaling *s = &l->matrices[slot].scaling;
    lora_mat unscaled = lora_mat_none();
    if (s->dl) {
        unscaled = lora_run_mat(run, b->unscaled, dy.cols);
        lora_linear_layer again = linear(l, run, layer, slot, unscaled, NULL);
        LORA_TRY(lora_linear_forward(d->ctx, x, 1, &again, err));
    }
    return lora_scale_columns_backward(d->ctx, s->l, dy, unscaled, dy, false, s->dl, err);
}

static lora_linear_gradient gradient_of(const lora_layer *l, const lora_run *run, int64_t layer, const lora_projected *part) {
    const lora_matrix *m = &l->matrices[part->slot];
    lora_linear_gradient g = {.dy = part->dy, .w = &m->w, .dW = m->dW, .dbias = m->dbias};
    g.adapter = lora_run_adapter(l, run, layer, part->slot, &g.pass);
    return g;
}

/* Through a matrix that reads l * x. */
static lora_status scaled_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, const lora_projected *part,
                                   lora_mat x, lora_mat dx, bool accumulate, lora_error *err) {
    const lora_layer *l = &d->layers[layer];
    const lora_scaling *s = &l->matrices[part->slot].scaling;
    lora_linear_gradient g = gradient_of(l, run, layer, part);
    lora_mat scaled = lora_run_mat(run, b->scaled, x.cols), dscaled = lora_mat_none();
    if (lora_reads_input(&l->matrices[part->slot])) LORA_TRY(lora_scale_columns(d->ctx, s->l, x, scaled, err));
    if (dx.data || s->dl) dscaled = lora_run_mat(run, b->dscaled, x.cols);
    LORA_TRY(lora_linear_backward(d->ctx, scaled, 1, &g, dscaled, false, err));
    return dscaled.data ? lora_scale_columns_backward(d->ctx, s->l, dscaled, x, dx, accumulate, s->dl, err) : LORA_OK;
}

lora_status lora_project_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int n, const lora_projected *parts,
                                  lora_mat x, lora_mat dx, bool accumulate, lora_error *err) {
    const lora_layer *l = &d->layers[layer];
    lora_linear_gradient gradients[LORA_LINEAR_LAYERS];
    const lora_projected *scaled[LORA_LINEAR_LAYERS];
    int n_plain = 0, n_scaled = 0;
    for (int i = 0; i < n; i++) {
        const lora_matrix *m = &l->matrices[parts[i].slot];
        if (!dx.data && !lora_matrix_trains(m)) continue;
        if (m->scaling.l && m->scaling.input) {
            scaled[n_scaled++] = &parts[i];
            continue;
        }
        if (m->scaling.l) LORA_TRY(unscale_gradient(d, run, b, layer, parts[i].slot, x, parts[i].dy, err));
        gradients[n_plain++] = gradient_of(l, run, layer, &parts[i]);
    }
    if (n_plain) LORA_TRY(lora_linear_backward(d->ctx, x, n_plain, gradients, dx, accumulate, err));
    for (int i = 0; i < n_scaled; i++)
        LORA_TRY(scaled_backward(d, run, b, layer, scaled[i], x, dx, accumulate || n_plain > 0 || i > 0, err));
    return LORA_OK;
}
