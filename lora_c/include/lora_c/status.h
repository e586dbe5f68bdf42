/* Status codes and caller-owned error messages.
 *
 * Every fallible function returns a lora_status and takes a lora_error * last (NULL allowed). Messages have one form:
 * "<argument>: expected <what>, got <what>", plus the way out where there is one. Nothing in the library prints,
 * aborts, sets errno or keeps a thread-local error. */
#ifndef LORA_C_STATUS_H
#define LORA_C_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lora_status {
    LORA_OK = 0,
    LORA_EINVAL = -1,       /* a value is out of range, buffers overlap, … */
    LORA_ESHAPE = -2,       /* a shape or a stride does not fit */
    LORA_EDTYPE = -3,       /* an element type does not fit */
    LORA_ENOMEM = -4,       /* the allocator said no */
    LORA_EUNSUPPORTED = -5, /* valid, but not implemented here */
    LORA_EDEVICE = -6,      /* a device or its library failed */
    LORA_EBUSY = -7,        /* the object is in use by another thread */
    LORA_ESTOPPED = -8,     /* somebody asked the pass to stop */
} lora_status;

enum { LORA_ERROR_BYTES = 256 };

typedef struct lora_error {
    lora_status code;
    char message[LORA_ERROR_BYTES];
} lora_error;

#if defined(__GNUC__)
#define LORA_MUST_CHECK __attribute__((warn_unused_result))
#define LORA_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define LORA_MUST_CHECK
#define LORA_PRINTF(fmt, args)
#endif

/** Writes code and message into err (may be NULL) and returns code. Long messages are cut, always terminated. */
lora_status lora_fail(lora_error *err, lora_status code, const char *fmt, ...) LORA_PRINTF(3, 4);

/** "ok", "invalid value", "shape mismatch", … ; never NULL. */
const char *lora_status_name(lora_status status);

/* Returns the status of expr to the caller unless it is LORA_OK. */
#define LORA_TRY(expr)                                                                                                                     \
    do {                                                                                                                                   \
        lora_status lora_try_status_ = (expr);                                                                                             \
        if (lora_try_status_ != LORA_OK) return lora_try_status_;                                                                          \
    } while (0)

/* Refuses a caller's mistake: LORA_CHECK(n > 0, err, LORA_ESHAPE, "n: expected > 0, got %lld", (long long)n); */
#define LORA_CHECK(cond, err, code, ...)                                                                                                   \
    do {                                                                                                                                   \
        if (!(cond)) return lora_fail((err), (code), __VA_ARGS__);                                                                         \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
