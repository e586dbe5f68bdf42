/* The state of an optimizer: which array has which moments, and where they lie. */
#include <inttypes.h>

#include "lora_c/base/os.h"
#include "lora_c/base/util.h"
#include "lora_c/optim/optimizer.h"

size_t lora_moment_element(lora_moment which) {
    return which == LORA_MOMENT_FIRST_CODES || which == LORA_MOMENT_SECOND_CODES ? 1 : sizeof(float);
}

const char *lora_moment_name(lora_moment which) {
    static const char *const names[LORA_MOMENTS] = {"m", "v", "m_codes", "v_codes", "m_absmax", "v_absmax", "row", "col"};
    return (unsigned)which < LORA_MOMENTS ? names[which] : "unknown";
}

/* --- which array has what --- */

static bool is_plain(const lora_optimizer *opt, const lora_param *param) {
    return opt->rule->is_plain && opt->rule->is_plain(&opt->options, param);
}

static int64_t elements_of(const lora_optimizer *opt, const lora_param *param, lora_moment which) {
    const lora_optimizer_rule *rule = is_plain(opt, param) ? &lora_adamw_rule : opt->rule;
    return rule->elements(&opt->options, param, which);
}

/* Those of the first list in their order, then those of the second: so the moments of a list lie behind each other. */
static void sort_params(lora_optimizer *opt) {
    int64_t at[LORA_MOMENTS] = {0}, listed = 0;
    for (int list = 0; list < LORA_OPTIM_LISTS; list++) {
        opt->lists[list].params = opt->listed + listed;
        for (int which = 0; which < LORA_MOMENTS; which++) opt->lists[list].state[which] = (void *)at[which]; /* becomes an address */
        for (int64_t i = 0; i < opt->n_params; i++) {
            if (is_plain(opt, &opt->params[i]) != (list == LORA_PLAIN_LIST)) continue;
            opt->listed[listed++] = opt->params[i];
            opt->lists[list].n++;
            for (int which = 0; which < LORA_MOMENTS; which++) {
                opt->starts[which][i] = at[which];
                opt->sizes[which][i] = elements_of(opt, &opt->params[i], (lora_moment)which);
                at[which] += opt->sizes[which][i];
            }
        }
    }
    for (int which = 0; which < LORA_MOMENTS; which++)
        opt->state_bytes[which] = (size_t)at[which] * lora_moment_element((lora_moment)which);
}

/* --- memory --- */

static size_t padded(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

static lora_status take_pages(lora_optimizer *opt, lora_error *err) {
    size_t total = 0;
    for (int which = 0; which < LORA_MOMENTS; which++) total += padded(opt->state_bytes[which]);
    if (total == 0) return LORA_OK;
    void *first;
    LORA_TRY(lora_paged_alloc(opt->ctx, opt->options.paged_folder, total, &first, err));
    char *at = first;
    for (int which = 0; which < LORA_MOMENTS; at += padded(opt->state_bytes[which++])) opt->state[which] = at;
    return LORA_OK;
}

static lora_status take_memory(lora_optimizer *opt, lora_error *err) {
    for (int which = 0; which < LORA_MOMENTS; which++) {
        size_t bytes = opt->state_bytes[which];
        bool is_there = bytes > 0 || opt->rule->elements(&opt->options, &(lora_param){.n = 1, .cols = 1}, (lora_moment)which) > 0;
        if (!is_there) continue;
        opt->state[which] = lora_ctx_alloc(opt->ctx, LORA_MEM_OPTIM, bytes);
        LORA_CHECK(opt->state[which], err, LORA_ENOMEM, "%s: expected %zu bytes of memory, got none", lora_moment_name((lora_moment)which),
                   bytes);
    }
    return LORA_OK;
}

lora_status lora_optim_state_create(lora_optimizer *opt, lora_error *err) {
    opt->tables = lora_host_alloc(opt->ctx, LORA_MEM_SCRATCH, (size_t)opt->n_params * 2 * LORA_MOMENTS * sizeof *opt->tables);
    opt->listed = lora_host_alloc(opt->ctx, LORA_MEM_SCRATCH, (size_t)opt->n_params * sizeof *opt->listed);
    LORA_CHECK(opt->tables && opt->listed, err, LORA_ENOMEM, "params: expected memory for a list of %" PRId64 ", got none", opt->n_params);
    for (int which = 0; which < LORA_MOMENTS; which++) {
        opt->starts[which] = opt->tables + 2 * which * opt->n_params;
        opt->sizes[which] = opt->starts[which] + opt->n_params;
    }
    sort_params(opt);
    opt->process = lora_process_id();
    if (opt->paged) {
        opt->window = lora_host_alloc(opt->ctx, LORA_MEM_SCRATCH, (size_t)opt->n_params * sizeof *opt->window);
        LORA_CHECK(opt->window, err, LORA_ENOMEM, "params: expected memory for a list of %" PRId64 ", got none", opt->n_params);
    }
    LORA_TRY(opt->paged ? take_pages(opt, err) : take_memory(opt, err));
    for (int list = 0; list < LORA_OPTIM_LISTS; list++)
        for (int which = 0; which < LORA_MOMENTS; which++) {
            size_t offset = (size_t)opt->lists[list].state[which] * lora_moment_element((lora_moment)which);
            opt->lists[list].state[which] = opt->state[which] ? (char *)opt->state[which] + offset : NULL;
        }
    return LORA_OK;
}

static void give_back(lora_optimizer *opt) {
    size_t total = 0;
    for (int which = 0; which < LORA_MOMENTS; which++) {
        total += padded(opt->state_bytes[which]);
        if (!opt->paged) lora_ctx_free(opt->ctx, opt->state[which]);
    }
    if (opt->paged) lora_paged_free(opt->ctx, opt->state[0], total); /* the first moment begins the file */
}

void lora_optim_state_destroy(lora_optimizer *opt) {
    give_back(opt);
    lora_host_free(opt->ctx, opt->window);
    lora_host_free(opt->ctx, opt->listed);
    lora_host_free(opt->ctx, opt->tables);
}

lora_status lora_optim_check_process(const lora_optimizer *opt, lora_error *err) {
    LORA_CHECK(!opt->paged || opt->process == lora_process_id(), err, LORA_EDEVICE,
               "optimizer: expected the process that made its paged state, got a child of it; make another optimizer there");
    return LORA_OK;
}

/* --- in and out --- */

int64_t lora_optimizer_moment_size(const lora_optimizer *opt, int64_t index, lora_moment which) {
    return index >= 0 && index < opt->n_params && (unsigned)which < LORA_MOMENTS ? opt->sizes[which][index] : 0;
}

/* Where a moment of an array lies, and its bytes. */
static lora_status find_moment(const lora_optimizer *opt, int64_t index, lora_moment which, void **moment, size_t *bytes, lora_error *err) {
    LORA_CHECK(index >= 0 && index < opt->n_params, err, LORA_EINVAL, "index: expected 0 to %" PRId64 ", got %" PRId64, opt->n_params - 1,
               index);
    LORA_CHECK((unsigned)which < LORA_MOMENTS && opt->state[which], err, LORA_EINVAL, "which: expected a moment of this kind, got %d",
               (int)which);
    LORA_TRY(lora_optim_check_process(opt, err));
    size_t element = lora_moment_element(which);
    *moment = (char *)opt->state[which] + (size_t)opt->starts[which][index] * element;
    *bytes = (size_t)opt->sizes[which][index] * element;
    return LORA_OK;
}

static lora_status finish(const lora_optimizer *opt, void *moment, size_t bytes, lora_error *err) {
    LORA_TRY(lora_sync(opt->ctx, err));
    if (opt->paged) lora_paged_advise(opt->ctx, moment, bytes, LORA_PAGE_DONE);
    return LORA_OK;
}

lora_status lora_optimizer_get_moment(const lora_optimizer *opt, int64_t index, lora_moment which, void *out, lora_error *err) {
    void *moment = NULL;
    size_t bytes = 0;
    LORA_TRY(find_moment(opt, index, which, &moment, &bytes, err));
    LORA_CHECK(out || bytes == 0, err, LORA_EINVAL, "out: expected a pointer, got NULL");
    if (bytes == 0) return LORA_OK;
    LORA_TRY(lora_download(opt->ctx, out, moment, bytes, err));
    return finish(opt, moment, bytes, err);
}

lora_status lora_optimizer_set_moment(lora_optimizer *opt, int64_t index, lora_moment which, const void *from, lora_error *err) {
    void *moment = NULL;
    size_t bytes = 0;
    LORA_TRY(find_moment(opt, index, which, &moment, &bytes, err));
    LORA_CHECK(from || bytes == 0, err, LORA_EINVAL, "from: expected a pointer, got NULL");
    if (bytes == 0) return LORA_OK;
    LORA_TRY(lora_upload(opt->ctx, moment, from, bytes, err));
    return finish(opt, moment, bytes, err);
}
