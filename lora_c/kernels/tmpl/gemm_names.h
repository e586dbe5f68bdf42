/* Names of what gemm_tmpl.h and gemm_instances_tmpl.h make: x with the includer's SUFFIX. */
#define LORA_CAT2(a, b) a##b
#define LORA_CAT(a, b) LORA_CAT2(a, b)
#define NAME(x) LORA_CAT(x, SUFFIX)
#define UNROLL LORA_UNROLL_BY(32)
