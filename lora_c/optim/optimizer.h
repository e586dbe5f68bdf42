/* What the kinds of optimizers share. */
#ifndef LORA_OPTIM_OPTIMIZER_H
#define LORA_OPTIM_OPTIMIZER_H

#include "lora_c/device.h"
#include "lora_c/optim.h"

/* Arrays that one operation changes, and where each moment of the first of them begins; the others' lie behind it in their order. */
typedef struct lora_optim_list {
    int64_t n;
    lora_param *params;
    void *state[LORA_MOMENTS];
} lora_optim_list;

/* What a kind of optimizer does on its own. */
typedef struct lora_optimizer_rule {
    bool pageable; /* its update may be given pieces of arrays, cut at multiples of LORA_OPTIM_PIECE elements */
    lora_status (*check)(const lora_optimizer_options *options, lora_error *err);
    /* Whether AdamW with moments of 32 bits changes an array in place of update. NULL: none. */
    bool (*is_plain)(const lora_optimizer_options *options, const lora_param *param);
    /* Elements of a moment of an array, or of a piece of it, that update changes. */
    int64_t (*elements)(const lora_optimizer_options *options, const lora_param *param, lora_moment which);
    /* Changes every array of the list and its state by one step; the number of steps is counted by the caller. */
    lora_status (*update)(lora_optimizer *opt, const lora_optim_list *list, double lr, double grad_scale, lora_error *err);
} lora_optimizer_rule;

extern const lora_optimizer_rule lora_adamw_rule, lora_adamw8bit_rule;                               /* adamw.c */
extern const lora_optimizer_rule lora_sgd_rule, lora_lion_rule, lora_adafactor_rule, lora_muon_rule; /* of the files of their names */

/* The first list is the kind's own, the second that of plain AdamW. */
enum { LORA_OWN_LIST, LORA_PLAIN_LIST, LORA_OPTIM_LISTS };
enum { LORA_OPTIM_PIECE = 16384, LORA_OPTIM_WINDOW = 4 << 20 }; /* elements; a window is what is in memory of a paged state at a time */

struct lora_optimizer {
    lora_ctx *ctx;
    const lora_optimizer_rule *rule;
    lora_optimizer_options options;
    int64_t n_params, steps;
    lora_param *params;
    lora_param *listed; /* (n_params): those of the first list, then those of the second */
    lora_optim_list lists[LORA_OPTIM_LISTS];
    int64_t *starts[LORA_MOMENTS]; /* (n_params) each: where an array's moment begins, in elements */
    int64_t *sizes[LORA_MOMENTS];  /* (n_params) each */
    int64_t *tables;               /* the memory of both */
    void *state[LORA_MOMENTS];     /* a moment of all arrays behind each other */
    size_t state_bytes[LORA_MOMENTS];
    lora_param *window; /* (n_params): pieces of arrays, where the state is paged */
    bool paged;
    int process; /* that made a paged state; a child after fork would change its parent's */
    double *sum; /* where the operation leaves the sum of squares */
};

/* state.c */
/** Sorts the arrays into the lists and takes memory for their state. */
lora_status lora_optim_state_create(lora_optimizer *opt, lora_error *err) LORA_MUST_CHECK;
void lora_optim_state_destroy(lora_optimizer *opt);
/** Refuses a child of the process that made a paged state. */
lora_status lora_optim_check_process(const lora_optimizer *opt, lora_error *err) LORA_MUST_CHECK;
size_t lora_moment_element(lora_moment which);
const char *lora_moment_name(lora_moment which);

/* windows.c */
/** One step of all lists; a paged state window by window. */
lora_status lora_optim_update(lora_optimizer *opt, double lr, double grad_scale, lora_error *err) LORA_MUST_CHECK;

/* adamw.c */
lora_status lora_check_betas(const lora_optimizer_options *o, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_weight_decay(const lora_optimizer_options *o, lora_error *err) LORA_MUST_CHECK;

#endif
