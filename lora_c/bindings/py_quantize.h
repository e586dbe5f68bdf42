/* How an NF4Tensor, whose memory is the host's, is filled. */
#ifndef LORA_PY_QUANTIZE_H
#define LORA_PY_QUANTIZE_H

#include "lora_c/bindings/py_array.h"

/** Codes and scales of w, computed on the device of ctx, with the same bytes on every device.   Errors  EINVAL names the first value
 *  that is not finite; ENOMEM, EDEVICE */
lora_status lora_py_fill_nf4(lora_ctx *ctx, lora_py_nf4tensor *self, const lora_py_array *w, lora_error *err) LORA_MUST_CHECK;

#endif
