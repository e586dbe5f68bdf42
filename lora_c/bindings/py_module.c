/* The module: one context, its settings, and the types. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devicearray.h"
#include "lora_c/bindings/py_devices.h"
#include "lora_c/bindings/py_deviceweight.h"
#include "lora_c/bindings/py_precision.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char CAPSULE[] = "lora_c._core.context";

static void destroy_context(PyObject *capsule) { lora_ctx_destroy(PyCapsule_GetPointer(capsule, CAPSULE)); }

static lora_py_state *state_of(PyObject *module) { return PyModule_GetState(module); }

/* --- settings ----------------------------------------------------------------------------------------------------- */

/* -2 when name is none of them. */
static int isa_by_name(const char *name) {
    if (strcmp(name, "auto") == 0) return LORA_ISA_AUTO;
    for (int isa = LORA_ISA_REF; isa <= LORA_ISA_LAST; isa++)
        if (strcmp(name, lora_isa_name((lora_isa)isa)) == 0) return isa;
    return -2;
}

static int fail_isa(const char *argument, const char *name) {
#if defined(__aarch64__)
#define CHOICE "'auto', 'ref', 'portable' or 'neon'"
#else
#define CHOICE "'auto', 'ref', 'portable', 'avx2' or 'avx512'"
#endif
    PyErr_Format(PyExc_ValueError, "%s: expected " CHOICE ", got '%s'", argument, name);
    return -1;
}

static int read_environment(lora_ctx_options *options) {
    const char *threads = getenv("LORA_C_NUM_THREADS"), *isa = getenv("LORA_C_ISA"), *arithmetic = getenv("LORA_C_PRECISION");
    *options = (lora_ctx_options){.isa = LORA_ISA_AUTO};
    if (arithmetic && *arithmetic && lora_py_precision_by_name("LORA_C_PRECISION", arithmetic, &options->precision) < 0) return -1;
    if (threads && *threads) {
        char *end;
        errno = 0;
        long n = strtol(threads, &end, 10);
        if (*end || errno || n < 1 || n > 256) {
            PyErr_Format(PyExc_ValueError, "LORA_C_NUM_THREADS: expected a whole number from 1 to 256, got '%s'", threads);
            return -1;
        }
        options->n_threads = (int)n;
    }
    if (isa && *isa) {
        int rung = isa_by_name(isa);
        if (rung == -2) return fail_isa("LORA_C_ISA", isa);
        options->isa = (lora_isa)rung;
    }
    return 0;
}

static int make_context(lora_py_state *state) {
    lora_ctx_options options;
    lora_error err = {0};
    if (read_environment(&options) < 0) return -1;
    if (lora_ctx_create(&options, &state->ctx, &err) != LORA_OK) {
        if (options.isa == LORA_ISA_AUTO)
            lora_py_raise(state, &err);
        else
            PyErr_Format(PyExc_ValueError, "LORA_C_ISA: %s", err.message);
        return -1;
    }
    state->owner = PyCapsule_New(state->ctx, CAPSULE, destroy_context);
    if (!state->owner) lora_ctx_destroy(state->ctx);
    return state->owner ? 0 : -1;
}

PyDoc_STRVAR(set_num_threads_doc, "set_num_threads($module, n, /)\n--\n\n"
                                  "Set the number of threads; 0: one per CPU of this process. Results keep their bits.\n\n"
                                  "Raises\n------\nValueError\n    n is negative or more than 256.");

static PyObject *set_num_threads(PyObject *module, PyObject *args) {
    int64_t n;
    if (!PyArg_ParseTuple(args, "O&:set_num_threads", lora_py_whole, &n)) return NULL;
    if (n < 0 || n > 256) {
        PyErr_Format(PyExc_ValueError, "n: expected 0 to 256, got %lld", (long long)n);
        return NULL;
    }
    lora_py_state *state = state_of(module);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(state->ctx, status, lora_ctx_set_threads(state->ctx, (int)n, &err));
    if (status != LORA_OK) return lora_py_raise(state, &err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_num_threads_doc, "get_num_threads($module, /)\n--\n\nReturn the number of threads.");

static PyObject *get_num_threads(PyObject *module, PyObject *unused) {
    (void)unused;
    lora_py_state *state = state_of(module);
    int n;
    LORA_PY_CALL(state->ctx, n, lora_ctx_threads(state->ctx));
    return PyLong_FromLong(n);
}

PyDoc_STRVAR(set_isa_doc, "set_isa($module, name, /)\n--\n\n"
                          "Choose the kernels: 'auto' (the best of this CPU) or one of supported_isas().\n\n"
                          "Raises\n------\nValueError\n    Unknown name.\nNotImplementedError\n    This CPU lacks it.");

static PyObject *set_isa(PyObject *module, PyObject *args) {
    const char *name;
    if (!PyArg_ParseTuple(args, "s:set_isa", &name)) return NULL;
    int isa = isa_by_name(name);
    if (isa == -2) {
        fail_isa("name", name);
        return NULL;
    }
    lora_py_state *state = state_of(module);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(state->ctx, status, lora_ctx_set_isa(state->ctx, (lora_isa)isa, &err));
    if (status != LORA_OK) return lora_py_raise(state, &err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_isa_doc, "get_isa($module, /)\n--\n\nReturn the name of the kernels in use.");

static PyObject *get_isa(PyObject *module, PyObject *unused) {
    (void)unused;
    return PyUnicode_FromString(lora_isa_name(lora_ctx_isa(state_of(module)->ctx)));
}

PyDoc_STRVAR(supported_isas_doc, "supported_isas($module, /)\n--\n\nReturn the names that set_isa() accepts on this CPU, slowest first.");

static PyObject *supported_isas(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    for (int isa = LORA_ISA_REF; list && isa <= LORA_ISA_LAST; isa++) {
        lora_ctx *probe;
        if (lora_ctx_create(&(lora_ctx_options){.n_threads = 1, .isa = (lora_isa)isa}, &probe, NULL) != LORA_OK) continue;
        lora_ctx_destroy(probe);
        PyObject *name = PyUnicode_FromString(lora_isa_name((lora_isa)isa));
        if (!name || PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

/* --- memory ------------------------------------------------------------------------------------------------------- */

static int add_usage(PyObject *report, const char *name, lora_mem_usage usage) {
    PyObject *entry = Py_BuildValue("{s:n,s:n}", "live", (Py_ssize_t)usage.live_bytes, "peak", (Py_ssize_t)usage.peak_bytes);
    int status = entry ? PyDict_SetItemString(report, name, entry) : -1;
    Py_XDECREF(entry);
    return status;
}

PyDoc_STRVAR(memory_report_doc,
             "memory_report($module, device='cpu', /)\n--\n\n"
             "Return {purpose: {'live': bytes, 'peak': bytes}, ..., 'total': ...} of the library's own memory on a device.\n\n"
             "The peak of the total is that of the sum at one time. NumPy's memory is not counted.");

/* The context of the device that a function was given, the CPU's by default; NULL with an exception. */
static lora_ctx *context_from(PyObject *module, PyObject *args) {
    const char *name = "cpu";
    lora_py_device device;
    return PyArg_ParseTuple(args, "|s", &name) && lora_py_find_device(state_of(module), name, &device) == 0 ? device.ctx : NULL;
}

static PyObject *memory_report(PyObject *module, PyObject *args) {
    lora_ctx *ctx = context_from(module, args);
    if (!ctx) return NULL;
    PyObject *report = PyDict_New();
    for (int tag = 0; report && tag < LORA_MEM_TAGS; tag++)
        if (add_usage(report, lora_mem_tag_name((lora_mem_tag)tag), lora_ctx_memory(ctx, (lora_mem_tag)tag)) < 0) Py_CLEAR(report);
    if (report && add_usage(report, "total", lora_ctx_memory_total(ctx)) < 0) Py_CLEAR(report);
    return report;
}

PyDoc_STRVAR(reset_peak_memory_doc,
             "reset_peak_memory($module, device='cpu', /)\n--\n\nSet every peak of memory_report() to what is live.");

static PyObject *reset_peak_memory(PyObject *module, PyObject *args) {
    lora_ctx *ctx = context_from(module, args);
    if (!ctx) return NULL;
    lora_ctx_reset_peak(ctx);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(memory_left_doc,
             "memory_left($module, root='', with_swap=False, /)\n--\n\n"
             "Return the bytes that this process could still take, None where the system does not say.\n\n"
             "What the machine has available, and swap where asked for, within the limits of the process and its control groups.\n"
             "root is the folder that stands for '/'.");

static PyObject *memory_left(PyObject *module, PyObject *args) {
    const char *root = "";
    int with_swap = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "|sp:memory_left", &root, &with_swap)) return NULL;
    const size_t left = lora_memory_left(root, with_swap != 0);
    if (left == SIZE_MAX) Py_RETURN_NONE;
    return PyLong_FromSize_t(left);
}

/* --- profile ------------------------------------------------------------------------------------------------------ */

PyDoc_STRVAR(set_profiling_doc,
             "set_profiling($module, on, /)\n--\n\n"
             "Switch the accounts of profile_report() on, with every cost at 0, or off; what was recorded stays readable.");

static PyObject *set_profiling(PyObject *module, PyObject *given) {
    lora_ctx *ctx = state_of(module)->ctx;
    int on = PyObject_IsTrue(given);
    if (on < 0) return NULL;
    LORA_PY_DO(ctx, lora_ctx_set_profiling(ctx, on));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(profile_report_doc,
             "profile_report($module, /)\n--\n\n"
             "Return {operation: {'calls': int, 'seconds': float, 'flops': float, 'bytes': float}} since set_profiling(True).\n\n"
             "Operations do not contain each other: their seconds (wall clock) add up. flops counts useful multiply-adds twice, bytes\n"
             "operands read and results written once. Operations that never ran are left out.");

static PyObject *profile_report(PyObject *module, PyObject *unused) {
    (void)unused;
    lora_ctx *ctx = state_of(module)->ctx;
    PyObject *report = PyDict_New();
    for (int op = 0; report && op < LORA_OPS; op++) {
        lora_op_cost cost;
        LORA_PY_CALL(ctx, cost, lora_ctx_op_cost(ctx, (lora_op)op));
        if (cost.calls == 0) continue;
        PyObject *entry = Py_BuildValue("{s:L,s:d,s:d,s:d}", "calls", (long long)cost.calls, "seconds", cost.seconds, "flops", cost.flops,
                                        "bytes", cost.bytes);
        if (!entry || PyDict_SetItemString(report, lora_op_name((lora_op)op), entry) < 0) Py_CLEAR(report);
        Py_XDECREF(entry);
    }
    return report;
}

PyDoc_STRVAR(fma_peak_doc,
             "fma_peak($module, /)\n--\n\n"
             "Measure float32 multiply-adds of every thread together, in flop/s, on the kernels in use: the machine's own yardstick.\n\n"
             "Takes some milliseconds. 0.0 for kernels without such a loop.");

static PyObject *fma_peak(PyObject *module, PyObject *unused) {
    (void)unused;
    lora_ctx *ctx = state_of(module)->ctx;
    double peak;
    LORA_PY_CALL(ctx, peak, lora_ctx_fma_peak(ctx));
    return PyFloat_FromDouble(peak);
}

/* --- the module --------------------------------------------------------------------------------------------------- */

static PyMethodDef settings[] = {
    {"set_num_threads", set_num_threads, METH_VARARGS, set_num_threads_doc},
    {"get_num_threads", get_num_threads, METH_NOARGS, get_num_threads_doc},
    {"set_isa", set_isa, METH_VARARGS, set_isa_doc},
    {"get_isa", get_isa, METH_NOARGS, get_isa_doc},
    {"supported_isas", supported_isas, METH_NOARGS, supported_isas_doc},
    {"memory_report", memory_report, METH_VARARGS, memory_report_doc},
    {"reset_peak_memory", reset_peak_memory, METH_VARARGS, reset_peak_memory_doc},
    {"memory_left", memory_left, METH_VARARGS, memory_left_doc},
    {"set_profiling", set_profiling, METH_O, set_profiling_doc},
    {"profile_report", profile_report, METH_NOARGS, profile_report_doc},
    {"fma_peak", fma_peak, METH_NOARGS, fma_peak_doc},
    {0},
};

static int add_types(PyObject *module, lora_py_state *state) {
    struct {
        PyType_Spec *spec;
        PyTypeObject **type;
    } all[] = {
        {&lora_py_nf4tensor_spec, &state->nf4_type},
        {&lora_py_ggmltensor_spec, &state->ggml_type},
        {&lora_py_parameter_spec, &state->parameter_type},
        {&lora_py_loralinear_spec, &state->linear_type},
        {&lora_py_adamw_spec, &state->adamw_type},
        {&lora_py_decoder_spec, &state->decoder_type},
        {&lora_py_adamw8bit_spec, &state->adamw8bit_type},
        {&lora_py_sgd_spec, &state->sgd_type},
        {&lora_py_lion_spec, &state->lion_type},
        {&lora_py_adafactor_spec, &state->adafactor_type},
        {&lora_py_muon_spec, &state->muon_type},
        {&lora_py_gradient_tree_spec, &state->gradient_tree_type},
        {&lora_py_kvcache_spec, &state->kv_cache_type},
        {&lora_py_decoder_adapters_spec, &state->decoder_adapters_type},
        {&lora_py_devicearray_spec, &state->devicearray_type},
        {&lora_py_deviceweight_spec, &state->deviceweight_type},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        *all[i].type = (PyTypeObject *)PyType_FromModuleAndSpec(module, all[i].spec, NULL);
        if (!*all[i].type || PyModule_AddType(module, *all[i].type) < 0) return -1;
    }
    state->export_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &lora_py_export_spec, NULL);
    return state->export_type ? 0 : -1;
}

static int module_exec(PyObject *module) {
    lora_py_state *state = state_of(module);
    if (lora_py_import_numpy() < 0 || make_context(state) < 0) return -1;
    state->device_error =
        PyErr_NewExceptionWithDoc("lora_c._core.DeviceError", "A device or its library failed.", PyExc_RuntimeError, NULL);
    if (!state->device_error || PyModule_AddObjectRef(module, "DeviceError", state->device_error) < 0) return -1;
    state->stopped_error = PyErr_NewExceptionWithDoc("lora_c._core.PassStopped",
                                                     "A pass was left between two layers, because "
                                                     "Decoder.stopping was set.",
                                                     PyExc_RuntimeError, NULL);
    if (!state->stopped_error || PyModule_AddObjectRef(module, "PassStopped", state->stopped_error) < 0) return -1;
    if (add_types(module, state) < 0) return -1;
    if (PyModule_AddIntConstant(module, "DECODE_BATCH", LORA_DECODE_BATCH) < 0) return -1;
    if (PyModule_AddFunctions(module, lora_py_precision_functions) < 0) return -1;
    if (PyModule_AddFunctions(module, lora_py_device_functions) < 0) return -1;
    if (PyModule_AddFunctions(module, lora_py_device_array_functions) < 0) return -1;
    if (PyModule_AddFunctions(module, lora_py_meta_functions) < 0) return -1;
    if (PyModule_AddFunctions(module, lora_py_tree_functions) < 0) return -1;
    if (PyModule_AddFunctions(module, lora_py_row_ops) < 0) return -1;
    return PyModule_AddFunctions(module, lora_py_matrix_ops);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    lora_py_state *state = state_of(module);
    Py_VISIT(state->device_error);
    Py_VISIT(state->stopped_error);
    Py_VISIT(state->nf4_type);
    Py_VISIT(state->ggml_type);
    Py_VISIT(state->parameter_type);
    Py_VISIT(state->linear_type);
    Py_VISIT(state->adamw_type);
    Py_VISIT(state->adamw8bit_type);
    Py_VISIT(state->sgd_type);
    Py_VISIT(state->lion_type);
    Py_VISIT(state->adafactor_type);
    Py_VISIT(state->muon_type);
    Py_VISIT(state->gradient_tree_type);
    Py_VISIT(state->decoder_type);
    Py_VISIT(state->kv_cache_type);
    Py_VISIT(state->decoder_adapters_type);
    Py_VISIT(state->devicearray_type);
    Py_VISIT(state->deviceweight_type);
    Py_VISIT(state->export_type);
    return lora_py_traverse_devices(state, visit, arg);
}

static int module_clear(PyObject *module) {
    lora_py_state *state = state_of(module);
    Py_CLEAR(state->device_error);
    Py_CLEAR(state->stopped_error);
    Py_CLEAR(state->nf4_type);
    Py_CLEAR(state->ggml_type);
    Py_CLEAR(state->parameter_type);
    Py_CLEAR(state->linear_type);
    Py_CLEAR(state->adamw_type);
    Py_CLEAR(state->adamw8bit_type);
    Py_CLEAR(state->sgd_type);
    Py_CLEAR(state->lion_type);
    Py_CLEAR(state->adafactor_type);
    Py_CLEAR(state->muon_type);
    Py_CLEAR(state->gradient_tree_type);
    Py_CLEAR(state->decoder_type);
    Py_CLEAR(state->kv_cache_type);
    Py_CLEAR(state->decoder_adapters_type);
    Py_CLEAR(state->devicearray_type);
    Py_CLEAR(state->deviceweight_type);
    Py_CLEAR(state->export_type);
    lora_py_clear_devices(state);
    Py_CLEAR(state->owner); /* the context goes when the last object goes */
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED}, /* NumPy's C API table is process-wide */
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* objects that change are used exclusively, see lora_py_object.busy */
#endif
    {0, NULL},
};

PyModuleDef lora_py_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "lora_c._core",
    .m_doc = "The C library of lora_c: 4-bit weights, LoRA layers, the decoder, the optimizer and every operation.",
    .m_size = sizeof(lora_py_state),
    .m_methods = settings,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&lora_py_module); }
