/* The whole C interface of lora-c. */
#ifndef LORA_C_H
#define LORA_C_H
#include "lora_c/backend.h"
#include "lora_c/comm.h"
#include "lora_c/context.h"
#include "lora_c/decoder.h"
#include "lora_c/device.h"
#include "lora_c/ggml.h"
#include "lora_c/isa.h"
#include "lora_c/linear.h"
#include "lora_c/memory.h"
#include "lora_c/nf4.h"
#include "lora_c/nn.h"
#include "lora_c/optim.h"
#include "lora_c/place.h"
#include "lora_c/profile.h"
#include "lora_c/quantize.h"
#include "lora_c/status.h"
#include "lora_c/types.h"
#include "lora_c/watch.h"
#include "lora_c/weight_formats.h"
#include "lora_c/weight_rows.h"
#endif
