/* Blocks: the memory of Parameters. Those of one block lie behind each other, in one array of data and one of gradients. */
#include "lora_c/bindings/py_devices.h"

struct lora_py_block {
    lora_py_device device; /* its holders keep it */
    float *data, *grad;    /* grad: NULL when frozen */
    _Atomic Py_ssize_t holders;
};

void lora_py_block_drop(lora_py_block *block) {
    if (!block || atomic_fetch_sub(&block->holders, 1) > 1) return;
    lora_ctx_free(block->device.ctx, block->data);
    lora_ctx_free(block->device.ctx, block->grad);
    PyMem_RawFree(block);
}

lora_py_block *lora_py_block_new(lora_py_device device, int64_t n, int requires_grad) {
    lora_py_block *block = PyMem_RawCalloc(1, sizeof *block);
    if (!block) {
        PyErr_NoMemory();
        return NULL;
    }
    block->device = device;
    atomic_init(&block->holders, 1);
    size_t bytes = (size_t)n * sizeof(float);
    block->data = lora_py_alloc(device.ctx, LORA_MEM_PARAM, bytes, "data");
    if (block->data && requires_grad) block->grad = lora_py_alloc(device.ctx, LORA_MEM_GRAD, bytes, "grad");
    if (block->data && (block->grad || !requires_grad)) return block;
    lora_py_block_drop(block);
    return NULL;
}

lora_py_parameter *lora_py_parameter_at(lora_py_state *state, lora_py_block *block, int64_t first, int ndim, const int64_t *shape,
                                        PyObject *name) {
    lora_py_parameter *self = lora_py_new(state->parameter_type);
    if (!self) return NULL;
    lora_py_put_on(self, block->device);
    self->ndim = ndim;
    self->size = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        self->shape[i] = (Py_ssize_t)shape[i];
        self->strides[i] = (Py_ssize_t)(self->size * (int64_t)sizeof(float));
        self->size *= shape[i];
    }
    self->block = block;
    atomic_fetch_add(&block->holders, 1);
    self->data = block->data + first;
    self->grad = block->grad ? block->grad + first : NULL;
    self->name = Py_NewRef(name);
    return (lora_py_parameter *)lora_py_publish(self);
}

lora_py_parameter *lora_py_parameter_new(lora_py_state *state, lora_py_device device, int ndim, const int64_t *shape, const char *name,
                                         int requires_grad) {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= shape[i];
    PyObject *text = PyUnicode_FromString(name);
    lora_py_block *block = text ? lora_py_block_new(device, n, requires_grad) : NULL;
    lora_py_parameter *self = block ? lora_py_parameter_at(state, block, 0, ndim, shape, text) : NULL;
    lora_py_block_drop(block);
    Py_XDECREF(text);
    return self;
}

int lora_py_lies_behind(const lora_py_parameter *first, const lora_py_parameter *next) {
    return first->block == next->block && next->data == first->data + first->size;
}
