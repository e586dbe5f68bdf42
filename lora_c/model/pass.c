/* The frame of every pass. */
#include "lora_c/model/extras.h"

/* What runs before a pass in this order, and after it in the other. */
static const lora_pass_hook *const HOOKS[] = {&lora_adapter_norms_hook, &lora_token_rows_hook, &lora_adapted_globals_hook,
                                              &lora_prefix_encoder_hook};
enum { N_HOOKS = sizeof HOOKS / sizeof *HOOKS };

lora_status lora_check_stop(const lora_decoder *d, lora_error *err) {
    if (!atomic_load_explicit(&d->stopping, memory_order_relaxed)) return LORA_OK;
    return lora_fail(err, LORA_ESTOPPED, "decoder: the pass was stopped between two layers");
}

lora_status lora_begin_pass(lora_decoder *d, lora_run *run, lora_buffers *b, lora_error *err) {
    lora_ctx_watch_at(d->ctx, -1, false);
    LORA_TRY(lora_add_virtual_tokens(d, run, err));
    LORA_TRY(lora_arena_prepare(d, run->n_tokens, run->training, b, err));
    if (run->training) run->states = b->states;
    LORA_TRY(lora_reach_positions(d, run, err));
    LORA_TRY(lora_stage_batch(d, run, b, err));
    for (int i = 0; i < N_HOOKS; i++)
        if (HOOKS[i]->before) LORA_TRY(HOOKS[i]->before(d, run, err));
    return LORA_OK;
}

lora_status lora_end_pass(lora_decoder *d, const lora_run *run, lora_status status, lora_error *err) {
    for (int i = N_HOOKS - 1; i >= 0; i--) {
        if (!HOOKS[i]->after) continue;
        lora_status after = HOOKS[i]->after(d, run, status == LORA_OK, status == LORA_OK ? err : NULL);
        if (status == LORA_OK) status = after;
    }
    lora_status synced = lora_sync(d->ctx, status == LORA_OK ? err : NULL); /* the stage may be filled anew, results may be read */
    return status == LORA_OK ? synced : status;
}
