/* A step over the lists of an optimizer. A paged state goes through memory window by window: while one is changed the system is asked
 * for the next, and the one before is let go. Updates that may be cut give the same bits in any pieces. */
#include "lora_c/base/util.h"
#include "lora_c/optim/optimizer.h"

static const lora_optimizer_rule *rule_of(const lora_optimizer *opt, int list) {
    return list == LORA_PLAIN_LIST ? &lora_adamw_rule : opt->rule;
}

/* Where the next window begins: an array, an element of it, and the moments of that. */
typedef struct position {
    int64_t index, first;
    char *state[LORA_MOMENTS];
} position;

/* Fills the window with pieces from a position on, and moves that behind them. */
static lora_optim_list next_window(lora_optimizer *opt, int list, position *at) {
    const lora_optim_list *all = &opt->lists[list];
    lora_optim_list out = {.params = opt->window};
    for (int which = 0; which < LORA_MOMENTS; which++) out.state[which] = at->state[which];
    for (int64_t left = LORA_OPTIM_WINDOW; at->index < all->n; at->index++, at->first = 0) {
        lora_param piece = all->params[at->index];
        int64_t rest = piece.n - at->first, n = rest <= left ? rest : left / LORA_OPTIM_PIECE * LORA_OPTIM_PIECE;
        if (n == 0 && rest > 0) break;
        if (piece.n > 0) piece.data += at->first, piece.grad += at->first;
        piece.n = n;
        piece.cols = 0;
        out.params[out.n++] = piece;
        for (int which = 0; which < LORA_MOMENTS; which++)
            if (at->state[which])
                at->state[which] += (size_t)rule_of(opt, list)->elements(&opt->options, &piece, (lora_moment)which) *
                                    lora_moment_element((lora_moment)which);
        left -= n;
        if (n == rest) continue;
        at->first += n;
        break;
    }
    return out;
}

/* What lies behind a position, as far as a window reaches. */
static void ask_for_next(const lora_optimizer *opt, int list, const position *at) {
    const lora_param window = {.n = LORA_OPTIM_WINDOW};
    for (int which = 0; which < LORA_MOMENTS; which++) {
        int64_t n = at->state[which] ? rule_of(opt, list)->elements(&opt->options, &window, (lora_moment)which) : 0;
        if (n == 0) continue;
        size_t left = (size_t)((char *)opt->state[which] + opt->state_bytes[which] - at->state[which]);
        size_t bytes = (size_t)n * lora_moment_element((lora_moment)which);
        lora_paged_advise(opt->ctx, at->state[which], left < bytes ? left : bytes, LORA_PAGE_SOON);
    }
}

static lora_status update_paged(lora_optimizer *opt, int list, double lr, double grad_scale, lora_error *err) {
    position at = {0};
    for (int which = 0; which < LORA_MOMENTS; which++) at.state[which] = opt->lists[list].state[which];
    ask_for_next(opt, list, &at);
    while (at.index < opt->lists[list].n) {
        lora_optim_list window = next_window(opt, list, &at);
        ask_for_next(opt, list, &at);
        LORA_TRY(rule_of(opt, list)->update(opt, &window, lr, grad_scale, err));
        for (int which = 0; which < LORA_MOMENTS; which++)
            if (window.state[which])
                lora_paged_advise(opt->ctx, window.state[which], (size_t)(at.state[which] - (char *)window.state[which]), LORA_PAGE_DONE);
    }
    return LORA_OK;
}

lora_status lora_optim_update(lora_optimizer *opt, double lr, double grad_scale, lora_error *err) {
    for (int list = 0; list < LORA_OPTIM_LISTS; list++) {
        if (opt->lists[list].n == 0) continue;
        if (opt->paged)
            LORA_TRY(update_paged(opt, list, lr, grad_scale, err));
        else
            LORA_TRY(rule_of(opt, list)->update(opt, &opt->lists[list], lr, grad_scale, err));
    }
    return LORA_OK;
}
