/* Exclusive use of a Decoder. */
#include "lora_c/bindings/py_decoder.h"

/* A pass of the parent that was cut off by fork may have had another precision, and left half of what it keeps. */
int lora_py_enter_decoder(lora_py_decoder *self) {
    int entered = lora_py_enter(&self->base);
    if (entered < 0) return -1;
    if (entered == 1) LORA_PY_DO(self->base.ctx, lora_decoder_after_fork(self->decoder));
    lora_status always = lora_decoder_set_precision(self->decoder, self->precision, NULL);
    (void)always; /* it was set before */
    return 0;
}
