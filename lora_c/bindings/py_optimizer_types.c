/* The types of optimizers: their arguments and attributes. */
#include "lora_c/bindings/py_optimizer.h"

#include <string.h>

/* --- attributes of some --- */

static PyObject *get_eps(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(((lora_py_optimizer *)o)->options.eps);
}

static PyObject *get_betas(PyObject *o, void *unused) {
    (void)unused;
    return Py_BuildValue("(dd)", ((lora_py_optimizer *)o)->options.beta1, ((lora_py_optimizer *)o)->options.beta2);
}

static PyObject *get_momentum(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(((lora_py_optimizer *)o)->options.momentum);
}

/* kind##_new with the arguments that stay, and the type. own: its attributes beside those of all. */
#define OPTIMIZER_TYPE(kind, python_name, doc, own)                                                                                        \
    static PyObject *kind##_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {                                                    \
        return lora_py_new_with_kept(make_##kind, type, args, kwargs);                                                                     \
    }                                                                                                                                      \
    static PyType_Slot kind##_slots[] = {                                                                                                  \
        {Py_tp_new, kind##_new},                                                                                                           \
        {Py_tp_dealloc, lora_py_optimizer_dealloc},                                                                                        \
        {Py_tp_traverse, lora_py_traverse},                                                                                                \
        {Py_tp_repr, lora_py_optimizer_repr},                                                                                              \
        {Py_tp_methods, lora_py_optimizer_methods},                                                                                        \
        {Py_tp_getset, own},                                                                                                               \
        {Py_tp_doc, (void *)doc},                                                                                                          \
        {0, NULL},                                                                                                                         \
    };                                                                                                                                     \
    PyType_Spec lora_py_##kind##_spec = {                                                                                                  \
        .name = "lora_c._core." python_name,                                                                                               \
        .basicsize = sizeof(lora_py_optimizer),                                                                                            \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,                                                       \
        .slots = kind##_slots,                                                                                                             \
    };

static PyGetSetDef adam_getset[] = {
    LORA_PY_OPTIMIZER_ATTRIBUTES,
    {"betas", get_betas, NULL, "Decay rates of the two moments.", NULL},
    {"eps", get_eps, NULL, "Added to the root of the second moment.", NULL},
    {0},
};

static PyGetSetDef lion_getset[] = {
    LORA_PY_OPTIMIZER_ATTRIBUTES,
    {"betas", get_betas, NULL, "Decay rates of the two moments.", NULL},
    {0},
};

static PyGetSetDef sgd_getset[] = {
    LORA_PY_OPTIMIZER_ATTRIBUTES,
    {"momentum", get_momentum, NULL, "Decay rate of the first moment.", NULL},
    {0},
};

static PyGetSetDef muon_getset[] = {
    LORA_PY_OPTIMIZER_ATTRIBUTES,
    {"momentum", get_momentum, NULL, "Decay rate of the first moment.", NULL},
    {"betas", get_betas, NULL, "Decay rates of the two moments.", NULL},
    {0},
};

static PyGetSetDef adafactor_getset[] = {
    LORA_PY_OPTIMIZER_ATTRIBUTES,
    {0},
};

/* --- AdamW --- */

static PyObject *make_adamw(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "lr", "betas", "eps", "weight_decay", "no_decay", "lr_ratios", "paged_folder", NULL};
    lora_py_optimizer_given given = {0};
    double lr = 1e-4;
    lora_optimizer_options o = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d$(dd)ddOOO:AdamW", names, &given.params, &lr, &o.beta1, &o.beta2, &o.eps,
                                     &o.weight_decay, &given.no_decay, &given.lr_ratios, &given.paged_folder))
        return NULL;
    return lora_py_optimizer_make(type, LORA_ADAMW, lr, &o, &given);
}

PyDoc_STRVAR(
    adamw_doc,
    "AdamW(params, lr=0.0001, *, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, no_decay=(), lr_ratios=None, paged_folder=None)\n--\n\n"
    "AdamW with decoupled weight decay.\n\n"
    "Parameters\n----------\n"
    "params : sequence of Parameter\n    Each once, all with requires_grad, all on one device.\n"
    "lr : float\n    Learning rate.\n"
    "betas : tuple of two float\n    Decay rates of the moments.\n"
    "eps : float\n    Added to the root of the second moment.\n"
    "weight_decay : float\n    The parameter is multiplied by 1 - lr * weight_decay before the update.\n"
    "no_decay : sequence of Parameter\n    Members of params without weight decay.\n"
    "lr_ratios : sequence of float, optional\n    For each of params what its learning rate is multiplied by.\n"
    "paged_folder : str or path, optional\n    The state lies in a file without a name there, and in memory only while it is used; that of "
    "Parameters on a GPU lies in\n"
    "    pinned memory of the host, and the folder is not used.\n\n"
    "Raises\n------\nValueError, TypeError\n    A parameter is frozen, given twice, or not a Parameter; a number is out of range.\n\n"
    "Notes\n-----\nThe moments take 8 bytes per element. One thread at a time.\n\n"
    "Source\n------\nAdamW, arXiv:1711.05101, algorithm 2.");

OPTIMIZER_TYPE(adamw, "AdamW", adamw_doc, adam_getset)

/* --- AdamW8bit --- */

static PyObject *make_adamw8bit(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "lr", "betas", "eps", "weight_decay", "min_8bit_size", "no_decay", "lr_ratios", "paged_folder", NULL};
    lora_py_optimizer_given given = {0};
    double lr = 1e-3;
    lora_optimizer_options o = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .min_8bit_size = 4096};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d$(dd)ddO&OOO:AdamW8bit", names, &given.params, &lr, &o.beta1, &o.beta2, &o.eps,
                                     &o.weight_decay, lora_py_whole, &o.min_8bit_size, &given.no_decay, &given.lr_ratios,
                                     &given.paged_folder))
        return NULL;
    return lora_py_optimizer_make(type, LORA_ADAMW8BIT, lr, &o, &given);
}

PyDoc_STRVAR(
    adamw8bit_doc,
    "AdamW8bit(params, lr=0.001, *, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, min_8bit_size=4096, no_decay=(), lr_ratios=None, "
    "paged_folder=None)\n--\n\n"
    "AdamW with moments of 8 bits, as bitsandbytes has it.\n\n"
    "Parameters\n----------\n"
    "params : sequence of Parameter\n    Each once, all with requires_grad, all on one device.\n"
    "lr : float\n    Learning rate.\n"
    "betas : tuple of two float\n    Decay rates of the moments.\n"
    "eps : float\n    Added to the root of the second moment.\n"
    "weight_decay : float\n    The parameter is multiplied by 1 - lr * weight_decay before the update.\n"
    "min_8bit_size : int\n    Parameters of fewer elements keep moments of 32 bits.\n"
    "no_decay : sequence of Parameter\n    Members of params without weight decay.\n"
    "lr_ratios : sequence of float, optional\n    For each of params what its learning rate is multiplied by.\n"
    "paged_folder : str or path, optional\n    The state lies in a file without a name there, and in memory only while it is used; that of "
    "Parameters on a GPU lies in\n"
    "    pinned memory of the host, and the folder is not used.\n\n"
    "Raises\n------\nValueError, TypeError\n    A parameter is frozen, given twice, or not a Parameter; a number is out of range.\n\n"
    "Notes\n-----\nThe moments take 2.03 bytes per element: codes of the dynamic maps with a scale for each 256. One thread at a time.\n\n"
    "Source\n------\n8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2.");

OPTIMIZER_TYPE(adamw8bit, "AdamW8bit", adamw8bit_doc, adam_getset)

/* --- SGD --- */

static PyObject *make_sgd(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "lr", "momentum", "dampening", "weight_decay", "nesterov", "no_decay", "lr_ratios", NULL};
    lora_py_optimizer_given given = {0};
    double lr = 1e-3;
    lora_optimizer_options o = {0};
    int nesterov = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d$dddpOO:SGD", names, &given.params, &lr, &o.momentum, &o.dampening, &o.weight_decay,
                                     &nesterov, &given.no_decay, &given.lr_ratios))
        return NULL;
    o.nesterov = nesterov != 0;
    return lora_py_optimizer_make(type, LORA_SGD, lr, &o, &given);
}

PyDoc_STRVAR(
    sgd_doc,
    "SGD(params, lr=0.001, *, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, no_decay=(), lr_ratios=None)\n--\n\n"
    "Stochastic gradient descent, with momentum where it is asked for.\n\n"
    "Parameters\n----------\n"
    "params : sequence of Parameter\n    Each once, all with requires_grad, all on one device.\n"
    "lr : float\n    Learning rate.\n"
    "momentum : float\n    What is kept of the sum of gradients before; 0: there is none, and no state.\n"
    "dampening : float\n    The gradient is added to that times 1 - dampening.\n"
    "weight_decay : float\n    So much of the parameter is added to its gradient.\n"
    "nesterov : bool\n    Look one step ahead.\n"
    "no_decay : sequence of Parameter\n    Members of params without weight decay.\n"
    "lr_ratios : sequence of float, optional\n    For each of params what its learning rate is multiplied by.\n\n"
    "Raises\n------\nValueError, TypeError\n    A parameter is frozen, given twice, or not a Parameter; a number is out of range.\n\n"
    "Notes\n-----\nThe state takes 4 bytes per element with momentum. One thread at a time.\n\n"
    "Source\n------\nSutskever et al., ICML 2013, section 2, as PyTorch has it.");

OPTIMIZER_TYPE(sgd, "SGD", sgd_doc, sgd_getset)

/* --- Lion --- */

static PyObject *make_lion(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "lr", "betas", "weight_decay", "no_decay", "lr_ratios", NULL};
    lora_py_optimizer_given given = {0};
    double lr = 1e-4;
    lora_optimizer_options o = {.beta1 = 0.9, .beta2 = 0.99};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d$(dd)dOO:Lion", names, &given.params, &lr, &o.beta1, &o.beta2, &o.weight_decay,
                                     &given.no_decay, &given.lr_ratios))
        return NULL;
    return lora_py_optimizer_make(type, LORA_LION, lr, &o, &given);
}

PyDoc_STRVAR(
    lion_doc,
    "Lion(params, lr=0.0001, *, betas=(0.9, 0.99), weight_decay=0.0, no_decay=(), lr_ratios=None)\n--\n\n"
    "Lion: the sign of a mean of gradients.\n\n"
    "Parameters\n----------\n"
    "params : sequence of Parameter\n    Each once, all with requires_grad, all on one device.\n"
    "lr : float\n    Learning rate.\n"
    "betas : tuple of two float\n    What is kept of the mean in the update, and in the mean.\n"
    "weight_decay : float\n    The parameter is multiplied by 1 - lr * weight_decay before the update.\n"
    "no_decay : sequence of Parameter\n    Members of params without weight decay.\n"
    "lr_ratios : sequence of float, optional\n    For each of params what its learning rate is multiplied by.\n\n"
    "Raises\n------\nValueError, TypeError\n    A parameter is frozen, given twice, or not a Parameter; a number is out of range.\n\n"
    "Notes\n-----\nThe state takes 4 bytes per element. One thread at a time.\n\n"
    "Source\n------\nLion, arXiv:2302.06675, algorithm 2.");

OPTIMIZER_TYPE(lion, "Lion", lion_doc, lion_getset)

/* --- Adafactor --- */

static PyObject *make_adafactor(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {
        "params",        "lr",          "eps",      "clip_threshold", "decay_rate", "beta1", "weight_decay", "scale_parameter",
        "relative_step", "warmup_init", "no_decay", "lr_ratios",      NULL};
    lora_py_optimizer_given given = {0};
    PyObject *rate = Py_None, *beta1 = Py_None;
    int scale = 1, relative = 1, warmup = 0;
    lora_optimizer_options o = {.adafactor = {.eps1 = 1e-30, .eps2 = 1e-3, .clip_threshold = 1.0, .decay_rate = -0.8}};
    lora_adafactor_hyper *h = &o.adafactor;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O$(dd)ddOdpppOO:Adafactor", names, &given.params, &rate, &h->eps1, &h->eps2,
                                     &h->clip_threshold, &h->decay_rate, &beta1, &o.weight_decay, &scale, &relative, &warmup,
                                     &given.no_decay, &given.lr_ratios))
        return NULL;
    double lr = 0.0;
    if (rate != Py_None && relative) {
        PyErr_SetString(PyExc_ValueError, "lr: expected none with relative_step, got one; give relative_step=False, too");
        return NULL;
    }
    if (rate == Py_None && !relative) {
        PyErr_SetString(PyExc_ValueError, "lr: expected a finite number >= 0 without relative_step, got None");
        return NULL;
    }
    if ((rate != Py_None && (lr = PyFloat_AsDouble(rate)) == -1.0 && PyErr_Occurred()) ||
        (beta1 != Py_None && (h->beta1 = PyFloat_AsDouble(beta1)) == -1.0 && PyErr_Occurred()))
        return NULL;
    h->scale_parameter = scale != 0;
    h->relative_step = relative != 0;
    h->warmup_init = warmup != 0;
    return lora_py_optimizer_make(type, LORA_ADAFACTOR, lr, &o, &given);
}

PyDoc_STRVAR(
    adafactor_doc,
    "Adafactor(params, lr=None, *, eps=(1e-30, 0.001), clip_threshold=1.0, decay_rate=-0.8, beta1=None, weight_decay=0.0, "
    "scale_parameter=True, relative_step=True, warmup_init=False, no_decay=(), lr_ratios=None)\n--\n\n"
    "Adafactor: second moments of matrices as those of their rows and columns.\n\n"
    "Parameters\n----------\n"
    "params : sequence of Parameter\n    Each once, all with requires_grad, all on one device.\n"
    "lr : float, optional\n    Learning rate; only without relative_step, which has its own.\n"
    "eps : tuple of two float\n    Added to squares; the least scale of a parameter.\n"
    "clip_threshold : float\n    Updates are scaled down to this root mean square.\n"
    "decay_rate : float\n    Of the second moments: beta2 of step t is 1 - t ** decay_rate.\n"
    "beta1 : float, optional\n    Decay rate of first moments; by default there are none.\n"
    "weight_decay : float\n    So much of the parameter, times its rate, is taken off.\n"
    "scale_parameter : bool\n    The rate is multiplied by the root mean square of the parameter.\n"
    "relative_step : bool\n    The rate of step t is min(0.01, 1 / sqrt(t)).\n"
    "warmup_init : bool\n    With relative_step: min(1e-6 * t, 1 / sqrt(t)).\n"
    "no_decay : sequence of Parameter\n    Members of params without weight decay.\n"
    "lr_ratios : sequence of float, optional\n    For each of params what its learning rate is multiplied by.\n\n"
    "Raises\n------\nValueError, TypeError\n    A parameter is frozen, given twice, or not a Parameter; a number is out of range.\n\n"
    "Notes\n-----\nThe state of a matrix takes 4 bytes for each row and column. One thread at a time.\n\n"
    "Source\n------\nAdafactor, arXiv:1804.04235, algorithms 4 to 6, as transformers has it.");

OPTIMIZER_TYPE(adafactor, "Adafactor", adafactor_doc, adafactor_getset)

/* --- Muon --- */

static PyObject *make_muon(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params",       "lr",    "weight_decay", "momentum",  "nesterov", "ns_coefficients", "eps", "ns_steps",
                            "adjust_lr_fn", "adamw", "betas",        "adamw_eps", "no_decay", "lr_ratios",       NULL};
    lora_py_optimizer_given given = {0};
    double lr = 1e-3;
    lora_optimizer_options o = {.weight_decay = 0.1,
                                .momentum = 0.95,
                                .ns_coefficients = {3.4445, -4.775, 2.0315},
                                .ns_eps = 1e-7,
                                .ns_steps = 5,
                                .beta1 = 0.9,
                                .beta2 = 0.999,
                                .eps = 1e-8};
    int nesterov = 1;
    const char *adjust = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d$ddp(ddd)dO&zO(dd)dOO:Muon", names, &given.params, &lr, &o.weight_decay, &o.momentum,
                                     &nesterov, &o.ns_coefficients[0], &o.ns_coefficients[1], &o.ns_coefficients[2], &o.ns_eps,
                                     lora_py_whole, &o.ns_steps, &adjust, &given.adamw, &o.beta1, &o.beta2, &o.eps, &given.no_decay,
                                     &given.lr_ratios))
        return NULL;
    o.nesterov = nesterov != 0;
    o.match_rms_adamw = adjust && strcmp(adjust, "match_rms_adamw") == 0;
    if (adjust && !o.match_rms_adamw && strcmp(adjust, "original") != 0) {
        PyErr_Format(PyExc_ValueError, "adjust_lr_fn: expected original or match_rms_adamw, got %s", adjust);
        return NULL;
    }
    return lora_py_optimizer_make(type, LORA_MUON, lr, &o, &given);
}

PyDoc_STRVAR(
    muon_doc,
    "Muon(params, lr=0.001, *, weight_decay=0.1, momentum=0.95, nesterov=True, ns_coefficients=(3.4445, -4.775, 2.0315), eps=1e-07, "
    "ns_steps=5, adjust_lr_fn=None, adamw=(), betas=(0.9, 0.999), adamw_eps=1e-08, no_decay=(), lr_ratios=None)\n--\n\n"
    "Muon: momentum of matrices with its singular values brought near 1; AdamW for what is no matrix.\n\n"
    "Parameters\n----------\n"
    "params : sequence of Parameter\n    Each once, all with requires_grad, all on one device.\n"
    "lr : float\n    Learning rate.\n"
    "weight_decay : float\n    The parameter is multiplied by 1 - lr * weight_decay before the update.\n"
    "momentum : float\n    Decay rate of the mean of gradients.\n"
    "nesterov : bool\n    Look one step ahead.\n"
    "ns_coefficients : tuple of three float\n    Of the polynomial a x + b x**3 + c x**5.\n"
    "eps : float\n    The least norm that a matrix is divided by.\n"
    "ns_steps : int\n    How often the polynomial is applied.\n"
    "adjust_lr_fn : str, optional\n    original: lr * sqrt(max(1, rows / cols)), the default; match_rms_adamw: lr * 0.2 * sqrt(max(rows, "
    "cols)).\n"
    "adamw : sequence of Parameter\n    Members of params that get AdamW although they are matrices: embeddings and heads.\n"
    "betas : tuple of two float\n    Of AdamW.\n"
    "adamw_eps : float\n    Of AdamW.\n"
    "no_decay : sequence of Parameter\n    Members of params without weight decay.\n"
    "lr_ratios : sequence of float, optional\n    For each of params what its learning rate is multiplied by.\n\n"
    "Raises\n------\nValueError, TypeError\n    A parameter is frozen, given twice, or not a Parameter; a number is out of range.\n\n"
    "Notes\n-----\nThe state takes 4 bytes per element of a matrix. Products are float32. One thread at a time.\n\n"
    "Source\n------\nMuon, kellerjordan.github.io/posts/muon (2024), as PyTorch has it; arXiv:2502.16982, section 2.");

OPTIMIZER_TYPE(muon, "Muon", muon_doc, muon_getset)
