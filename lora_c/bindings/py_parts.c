/* The trained parts of a layer: Parameters that it shares, and those of its own, which lie in one block. */
#include "lora_c/bindings/py_buffer.h"
#include "lora_c/bindings/py_devices.h"

/* Shares a Parameter or holds an array. */
static int take_part(lora_py_state *state, lora_py_device device, lora_py_part *p) {
    int is_parameter = Py_IS_TYPE(p->given, state->parameter_type), elsewhere = is_parameter && !lora_py_is_host(device.ctx);
    p->n = p->ndim == 2 ? p->shape[0] * p->shape[1] : p->shape[0];
    if (p->given == Py_None) return 0;
    if (elsewhere && lora_py_same_device(device.ctx, (lora_py_object *)p->given, p->arg) < 0) return -1;
    lora_ctx *from = elsewhere ? device.ctx : state->ctx;
    if (lora_py_get_on(from, p->given, p->arg, LORA_PY_F32, 0, &p->start) < 0 || lora_py_expect(&p->start, p->ndim, p->shape) < 0)
        return -1;
    if (!is_parameter) return 0;
    *p->place = (lora_py_parameter *)Py_NewRef(p->given);
    lora_py_release(&p->start);
    return 0;
}

static int make_part(lora_py_state *state, lora_py_block *block, int64_t first, lora_py_part *p) {
    PyObject *name = PyUnicode_FromString(p->name);
    if (name) *p->place = lora_py_parameter_at(state, block, first, p->ndim, p->shape, name);
    Py_XDECREF(name);
    if (!*p->place) return -1;
    return p->start.data ? lora_py_upload(&(*p->place)->base, (*p->place)->data, p->start.data, (size_t)p->n * sizeof(float)) : 0;
}

/* Makes the parts that are not shared, in one block. */
static int make_parts(lora_py_state *state, lora_py_device device, lora_py_part *parts, int n_parts) {
    int64_t total = 0, first = 0;
    for (int i = 0; i < n_parts; i++) total += *parts[i].place ? 0 : parts[i].n;
    if (total == 0) return 0;
    lora_py_block *block = lora_py_block_new(device, total, 1);
    int status = block ? 0 : -1;
    for (int i = 0; status == 0 && i < n_parts; i++) {
        if (*parts[i].place) continue;
        status = make_part(state, block, first, &parts[i]);
        first += parts[i].n;
    }
    lora_py_block_drop(block);
    return status;
}

int lora_py_set_parts(lora_py_state *state, lora_py_device device, lora_py_part *parts, int n_parts) {
    int status = 0;
    for (int i = 0; status == 0 && i < n_parts; i++) status = take_part(state, device, &parts[i]);
    if (status == 0) status = make_parts(state, device, parts, n_parts);
    for (int i = 0; i < n_parts; i++) lora_py_release(&parts[i].start);
    return status;
}
