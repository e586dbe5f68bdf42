#include "tests/fake_device/fake_addresses.h"

void at_mat(const fake_device *f, lora_mat *m, const void **bad) { AT(m->data); }

void at_norm(const fake_device *f, lora_norm *n, const void **bad) {
    AT(n->weight);
    AT(n->bias);
}

void at_rotations(const fake_device *f, lora_rotations *r, const void **bad) {
    AT(r->cos);
    AT(r->sin);
}

void at_segments(const fake_device *f, lora_segments *s, const void **bad) { s->cu_seqlens = AT(s->on_device); }

void at_kv(const fake_device *f, lora_kv *kv, const void **bad) {
    AT(kv->k);
    AT(kv->v);
    AT(kv->start);
    AT(kv->length);
}

void at_gradient(const fake_device *f, lora_attention_gradient *g, const void **bad) {
    lora_mat *const all[] = {&g->q, &g->k, &g->v, &g->o, &g->dout, &g->dq, &g->dk, &g->dv};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) at_mat(f, all[i], bad);
    AT(g->lse);
}

void at_loss(const fake_device *f, lora_loss *l, const void **bad) {
    AT(l->targets);
    AT(l->loss_weight);
    AT(l->loss_sum);
    AT(l->token_loss);
}

void at_values(const fake_device *f, lora_values *l, const void **bad) {
    AT(l->values);
    AT(l->loss_weight);
    AT(l->loss_sum);
    AT(l->row_loss);
}

void at_weight(const fake_device *f, lora_weight *w, const void **bad) {
    switch (w->kind) {
    case LORA_WEIGHT_F32:
    case LORA_WEIGHT_BF16: AT(w->dense.data); return;
    case LORA_WEIGHT_GGML: AT(w->ggml.blocks); return;
    case LORA_WEIGHT_NF4:
        AT(w->nf4.lut);
        AT(w->nf4.codes);
        AT(w->nf4.absmax);
        AT(w->nf4.absmax_codes);
        AT(w->nf4.nested_absmax);
        AT(w->nf4.nested_map);
    }
}

void at_adapter(const fake_device *f, lora_adapter *a, const void **bad) {
    AT(a->A);
    AT(a->B);
    AT(a->magnitude);
    AT(a->dA);
    AT(a->dB);
    AT(a->dmagnitude);
}

void at_pass(const fake_device *f, lora_adapter_pass *p, const void **bad) {
    AT(p->norm);
    AT(p->low);
}

lora_status queue(lora_ctx *ctx, fake_run_fn *run, const void *args, size_t bytes, lora_error *err) {
    const lora_backend_view *view = lora_backend_of(ctx);
    return fake_enqueue(view->state, (fake_job){.run = run, .precision = view->precision}, args, bytes, err);
}

lora_status host_address(const char *operation, lora_error *err) {
    return lora_fail(err, LORA_EINVAL, "%s: expected addresses of the device, got one of the host", operation);
}
