/* A decoder that looks for the first value that is not finite: the bits stay the same, and what it finds has the right name. */
#include <string.h>

#include "tests/c/devices.h"
#include "tests/c/tiny_decoder.h"

static double step(tiny_decoder *t, float grad_scale) {
    lora_batch batch = tiny_batch();
    lora_error err = {0};
    double loss = 0;
    CHECK(lora_decoder_forward_backward(t->decoder, &batch, grad_scale, &loss, &err) == LORA_OK, "step: %s", err.message);
    return loss;
}

static void watch(tiny_decoder *t, bool on) {
    lora_error err = {0};
    CHECK(lora_decoder_watch(t->decoder, on, &err) == LORA_OK, "watch: %s", err.message);
}

static void finds_nothing_in_finite_values(tiny_decoder *t) {
    double plain = step(t, 1.0f);
    watch(t, true);
    double watched = step(t, 1.0f);
    CHECK(memcmp(&plain, &watched, sizeof plain) == 0, "watched loss %.17g, expected %.17g", watched, plain);
    CHECK(!lora_decoder_nonfinite(t->decoder).found.operation, "found %s", lora_decoder_nonfinite(t->decoder).found.operation);
}

static void finds_what_overflows(tiny_decoder *t) {
    step(t, 3e38f); /* the gradient of the loss is beyond float32 once the layers have made it larger */
    lora_nonfinite first = lora_decoder_nonfinite(t->decoder);
    CHECK(first.found.operation != NULL, "found nothing");
    if (!first.found.operation) return;
    CHECK(first.found.backward || strcmp(first.found.operation, "linear_cross_entropy") == 0, "%s in the forward pass",
          first.found.operation);
    CHECK(!isfinite(first.found.value), "%s: %g is finite", first.found.operation, (double)first.found.value);
    CHECK(first.found.row >= 0 && first.found.column >= 0, "at %lld, %lld", (long long)first.found.row, (long long)first.found.column);
    watch(t, true); /* forgets */
    CHECK(!lora_decoder_nonfinite(t->decoder).found.operation, "still found after it was switched on again");
    watch(t, false);
    watch(t, false);
    CHECK(!lora_decoder_nonfinite(t->decoder).found.operation, "found while it is off");
}

static void check_one(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    tiny_decoder t;
    lora_error err = {0};
    CHECK(tiny_decoder_make(ctx, 0.25f, -1, &t, &err) == LORA_OK, "tiny decoder: %s", err.message);
    finds_nothing_in_finite_values(&t);
    finds_what_overflows(&t);
    watch(&t, true); /* and is destroyed while it watches */
    tiny_decoder_free(&t);
    device_ctx_free(ctx);
}

void check_watch(void) { on_every_device(check_one); }
