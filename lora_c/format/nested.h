/* The codes of double quantization: where the nearest value of the signed dynamic map changes. */
#ifndef LORA_FORMAT_NESTED_H
#define LORA_FORMAT_NESTED_H

#ifdef __cplusplus
extern "C" {
#endif

/** first[i]: the smallest float32 whose nearest index is i, a tie to the even one; -infinity at 0, infinity at 256. The code of y is
 * the number of i in 1 .. 255 with y >= first[i]. */
void lora_nested_firsts(float first[257]);

#ifdef __cplusplus
}
#endif
#endif
