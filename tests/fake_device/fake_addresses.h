/* What every operation of the fake device does with its arguments: they wait in the queue, then their addresses become the device's own. */
#ifndef LORA_FAKE_ADDRESSES_H
#define LORA_FAKE_ADDRESSES_H

#include "tests/fake_device/fake.h"

/* p = the device's own address of p; one of the host sets *bad. */
#define AT(p) ((p) = fake_at(f, (p), bad))

void at_mat(const fake_device *f, lora_mat *m, const void **bad);
void at_norm(const fake_device *f, lora_norm *n, const void **bad);
void at_rotations(const fake_device *f, lora_rotations *r, const void **bad);
/** The host's table may have changed since: the device reads its own. */
void at_segments(const fake_device *f, lora_segments *s, const void **bad);
void at_kv(const fake_device *f, lora_kv *kv, const void **bad);
void at_gradient(const fake_device *f, lora_attention_gradient *g, const void **bad);
void at_loss(const fake_device *f, lora_loss *l, const void **bad);
void at_values(const fake_device *f, lora_values *l, const void **bad);
void at_weight(const fake_device *f, lora_weight *w, const void **bad);
void at_adapter(const fake_device *f, lora_adapter *a, const void **bad);
void at_pass(const fake_device *f, lora_adapter_pass *p, const void **bad);

/** Puts the operation behind the others, with a copy of args and the precision of ctx. */
lora_status queue(lora_ctx *ctx, fake_run_fn *run, const void *args, size_t bytes, lora_error *err);
/** The error of an operation that was given memory of the host. */
lora_status host_address(const char *operation, lora_error *err);

#endif
