/* The C checks as on a CPU with AVX-VNNI, on one with AVX2 alone or with AVX-512 (make check-avx-vnni). The linker puts these functions
 * in the place of main and of the detection (--wrap), so that product and checks are the ordinary ones. */
#include <stdbool.h>
#include <stdio.h>

#include "lora_c/base/cpuinfo.h"
#include "tests/emulate/avx_vnni_forms.h"
#include "tests/emulate/vpdpbusd.h"

bool __real_lora_cpu_has_avx_vnni(void);
bool __wrap_lora_cpu_has_avx_vnni(void);
int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);

bool __wrap_lora_cpu_has_avx_vnni(void) { return lora_cpu_best_isa() >= LORA_ISA_AVX2; }

int __wrap_main(int argc, char **argv) {
    if (__real_lora_cpu_has_avx_vnni()) {
        printf("AVX-VNNI: expected a CPU without it, got one that has it; make check runs its kernels here\n");
        return 1;
    }
    vpdpbusd_emulate();
    if (avx_vnni_wrong_forms()) return 1;
    const long before = vpdpbusd_emulated();
    const int status = __real_main(argc, argv);
    const long n = vpdpbusd_emulated() - before;
    printf("AVX-VNNI: %ld instructions emulated%s\n", n, n ? "" : ", expected some: these checks have not run its kernels");
    return n ? status : 1;
}
