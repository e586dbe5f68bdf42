/* AVX-VNNI's vpdpbusd for CPUs without it: by a handler of the signal SIGILL, on Linux. */
#ifndef LORA_TESTS_VPDPBUSD_H
#define LORA_TESTS_VPDPBUSD_H

/* From here on the instruction has its result in every thread. Whatever else is illegal still ends the program. */
void vpdpbusd_emulate(void);

/* How many were emulated so far, without those of children after a fork. */
long vpdpbusd_emulated(void);

#endif
