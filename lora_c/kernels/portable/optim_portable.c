/* The optimizers' kernels for any machine. */
#define RUNG
#include "lora_c/kernels/tmpl/optim_tmpl.h"

void lora_optim_fill_portable(lora_optim_kernels *k) { LORA_OPTIM_SLOTS(LORA_OPTIM_ASSIGN) }
