#ifndef LORA_TESTS_AVX_VNNI_FORMS_H
#define LORA_TESTS_AVX_VNNI_FORMS_H

/* Runs vpdpbusd of AVX-VNNI with every kind of operand. How many results are wrong; says of which. */
int avx_vnni_wrong_forms(void);

#endif
