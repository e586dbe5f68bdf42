/* The tables of a batch: filled on the host, sent as one block. */
#include "lora_c/base/util.h"
#include "lora_c/model/pass.h"

lora_batch_tables lora_lay_tables(lora_carver *c, const lora_decoder *d, int64_t M) {
    lora_batch_tables t;
    t.input_ids = lora_carve(c, M, sizeof *t.input_ids);
    t.positions = lora_carve(c, M, sizeof *t.positions);
    t.rope_rows = d->config.rope_switch ? lora_carve(c, M, sizeof *t.rope_rows) : t.positions;
    t.cu_seqlens = lora_carve(c, M + 1, sizeof *t.cu_seqlens);
    t.targets = lora_carve(c, M, sizeof *t.targets);
    t.loss_weight = lora_carve(c, M, sizeof *t.loss_weight);
    t.values = lora_has_values(&d->config) ? lora_carve(c, M, (size_t)d->config.num_labels * sizeof *t.values) : NULL;
    t.kv_start = lora_carve(c, M, sizeof *t.kv_start);
    t.kv_length = lora_carve(c, M, sizeof *t.kv_length);
    t.cache_rows = lora_carve(c, M, sizeof *t.cache_rows);
    t.last_tokens = lora_carve(c, M, sizeof *t.last_tokens);
    bool virtual = d->virtual.tokens.n > 0;
    t.real_rows = virtual ? lora_carve(c, M, sizeof *t.real_rows) : NULL;
    t.virtual_rows = virtual ? lora_carve(c, M, sizeof *t.virtual_rows) : NULL;
    t.virtual_ids = virtual ? lora_carve(c, M, sizeof *t.virtual_ids) : NULL;
    return t;
}

static void fill_segment(const lora_decoder *d, const lora_run *run, int64_t s, lora_batch_tables *t) {
    int64_t limit = d->config.rope_switch, past = lora_past_tokens(run, s);
    int32_t begin = run->cu_seqlens[s], end = run->cu_seqlens[s + 1];
    int64_t first = run->cache ? run->sequences[s] * run->cache->max_tokens : begin - past;
    int32_t shift = limit && past + (end - begin) > limit ? (int32_t)d->rope_positions : 0; /* the second table lies behind the first */
    t->kv_start[s] = first;
    t->kv_length[s] = past + (end - begin);
    t->last_tokens[run->order ? run->order[s] : s] = end - 1;
    for (int32_t m = begin; m < end; m++) {
        t->positions[m] = (int32_t)past + m - begin;
        t->cache_rows[m] = first + t->positions[m];
        if (limit) t->rope_rows[m] = t->positions[m] + shift;
    }
}

static void fill_virtual(const lora_decoder *d, const lora_run *run, lora_batch_tables *t) {
    int64_t real = 0, virtual = 0;
    for (int64_t s = 0; s < run->n_segments; s++) {
        int64_t m = run->cu_seqlens[s], n = lora_virtual_before(d, run, s);
        for (int64_t i = 0; i < n; i++, virtual++) {
            t->virtual_rows[virtual] = m++;
            t->virtual_ids[virtual] = (int32_t)i;
        }
        while (m < run->cu_seqlens[s + 1]) t->real_rows[real++] = m++;
    }
}

lora_status lora_stage_batch(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_error *err) {
    lora_carver at = {.base = d->stage};
    lora_batch_tables t = lora_lay_tables(&at, d, run->n_tokens);
    for (int64_t m = 0; m < run->n_tokens; m++) t.input_ids[m] = run->input_ids[m];
    for (int64_t s = 0; s <= run->n_segments; s++) t.cu_seqlens[s] = run->cu_seqlens[s];
    for (int64_t m = 0; run->wants_loss && m < run->n_tokens; m++) {
        t.targets[m] = t.values ? 0 : run->targets[m];
        t.loss_weight[m] = run->loss_weight[m];
    }
    for (int64_t i = 0; run->wants_loss && t.values && i < run->n_tokens * d->config.num_labels; i++) t.values[i] = run->values[i];
    for (int64_t s = 0; s < run->n_segments; s++) fill_segment(d, run, s, &t);
    if (run->n_virtual) fill_virtual(d, run, &t);
    return lora_upload(d->ctx, b->tables.input_ids, d->stage, at.used, err); /* the first table, and all behind it */
}
