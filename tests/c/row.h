/* Rows of floats between bands of NaN, for the checks of row-wise kernels. */
#ifndef LORA_TESTS_ROW_H
#define LORA_TESTS_ROW_H

#include "tests/c/check_ops.h"

enum { GUARD = 16 };

/* n floats between NaN bands, shifted by offset floats from an aligned address. */
typedef struct row {
    float *all, *p;
    int64_t n, offset;
} row;

static inline row row_make(int64_t n, int64_t offset) {
    row r = {malloc((size_t)(n + 2 * GUARD + offset) * sizeof(float)), NULL, n, offset};
    for (int64_t i = 0; i < n + 2 * GUARD + offset; i++) r.all[i] = NAN;
    r.p = r.all + GUARD + offset;
    return r;
}
static inline bool row_guards(row r) {
    for (int64_t i = 0; i < GUARD + r.offset; i++)
        if (!isnan(r.all[i])) return false;
    for (int64_t i = 0; i < GUARD; i++)
        if (!isnan(r.p[r.n + i])) return false;
    return true;
}
static inline row row_copy(row a) {
    row r = row_make(a.n, a.offset);
    memcpy(r.p, a.p, (size_t)a.n * sizeof(float));
    return r;
}

static inline row row_random(int64_t n, int64_t offset, float low, float high) {
    row r = row_make(n, offset);
    for (int64_t i = 0; i < n; i++) r.p[i] = uniform(low, high);
    return r;
}

#define FREE(...)                                                                                                                          \
    do {                                                                                                                                   \
        row list_[] = {__VA_ARGS__};                                                                                                       \
        for (size_t j_ = 0; j_ < sizeof list_ / sizeof list_[0]; j_++) free(list_[j_].all);                                                \
    } while (0)

/* got against want: |difference| <= bound(i); the guards of got must still be NaN. */
#define CLOSE(name, got, want, bound)                                                                                                      \
    do {                                                                                                                                   \
        CHECK(row_guards(got), "%s %s n=%lld: wrote outside the row", lora_isa_name(isa), name, (long long)(got).n);                       \
        for (int64_t i = 0; i < (got).n; i++) {                                                                                            \
            double difference_ = fabs((double)(got).p[i] - (double)(want).p[i]), bound_ = (bound);                                         \
            CHECK(difference_ <= bound_, "%s %s n=%lld [%lld]: got %.9g, expected %.9g, bound %.3g", lora_isa_name(isa), name,             \
                  (long long)(got).n, (long long)i, (double)(got).p[i], (double)(want).p[i], bound_);                                      \
        }                                                                                                                                  \
    } while (0)

#endif
