/* The devices that checks run on: the CPU, then those of LORA_C_BACKENDS, or the fake one beside the program. */
#ifndef LORA_TESTS_DEVICES_H
#define LORA_TESTS_DEVICES_H

#include "tests/c/check.h"

typedef struct checked_device {
    char name[32];
    double tolerance[2]; /* by precision, of an array of results by its largest; 0: the CPU's bits */
} checked_device;

/* The first is the CPU. Returns how many there are. */
int checked_devices(const checked_device **out);
/* Files of the backends: for lora_devices and lora_ctx_create_on. */
const char *backend_paths(void);
/* A library beside the program. The text stays for the life of the program. */
const char *library_beside(const char *file);

/* Runs checks once for each device. */
void on_every_device(void (*checks)(void));
const checked_device *device_in_use(void); /* the CPU outside of on_every_device */

/* Rungs of the CPU that the device in use computes with: every one, or the best alone where it has mathematics of its own. */
lora_isa device_first_isa(void);
#define FOR_EACH_DEVICE_ISA(isa) for (lora_isa isa = device_first_isa(); isa <= lora_cpu_best_isa(); isa = (lora_isa)(isa + 1))

/* A context like that of check_ctx, on the device in use; its engine ends with it. */
lora_ctx *device_ctx(lora_isa isa, int threads);
lora_ctx *device_ctx_on(const char *device, const char *paths, lora_isa isa, int threads);
void device_ctx_free(lora_ctx *ctx);
/* Whether allocations of the device count with those of the host, one of which checks make fail. */
bool device_allocations_fail(const lora_ctx *ctx);

/* Results that have the same bits on every device that has the CPU's: checks give the same results in the same order each time. */
void same_on_every_device(const char *what, const void *results, size_t bytes);

#endif
