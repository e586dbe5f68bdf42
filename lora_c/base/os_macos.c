/* What macOS does otherwise than Linux. */
#include "lora_c/base/os.h"

#if defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#include <unistd.h>

static size_t number_of(const char *name) {
    uint64_t value = 0;
    size_t bytes = sizeof value;
    if (sysctlbyname(name, &value, &bytes, NULL, 0) != 0) return 0;
    return bytes == sizeof(uint32_t) ? (size_t)(uint32_t)value : (size_t)value;
}

/* The tasks of an operation are alike: one on an efficiency core would be waited for by all others. */
int lora_cpu_count(void) {
    size_t fast = number_of("hw.perflevel0.logicalcpu");
    long n = fast ? (long)fast : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : (int)n;
}

bool lora_os_arm_bf16(void) { return number_of("hw.optional.arm.FEAT_BF16") != 0; }
bool lora_os_arm_dotprod(void) { return number_of("hw.optional.arm.FEAT_DotProd") != 0; }
bool lora_os_arm_i8mm(void) { return number_of("hw.optional.arm.FEAT_I8MM") != 0; }

/* Inactive pages and those of files are given back when memory is asked for. Swap grows with the disk: it is not counted. */
size_t lora_os_memory_left(bool with_swap) {
    (void)with_swap;
    vm_statistics64_data_t found;
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, (host_info64_t)&found, &count) != KERN_SUCCESS) return SIZE_MAX;
    return ((size_t)found.free_count + found.inactive_count + found.purgeable_count) * (size_t)sysconf(_SC_PAGESIZE);
}

size_t lora_os_memory_total(void) {
    size_t total = number_of("hw.memsize");
    return total ? total : SIZE_MAX;
}
#endif
