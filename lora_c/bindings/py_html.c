/* _repr_html_: a small table of attributes for notebooks. Labels and values are numbers, names and types: nothing to escape. */
#include "lora_c/bindings/py_state.h"

#include <string.h>

static const char *last_name(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

/* A whole number with commas, the name of a type for what holds numbers, else as str() has it. */
static PyObject *text_of(PyObject *value) {
    if (PyLong_CheckExact(value)) {
        PyObject *comma = PyUnicode_FromString(",");
        PyObject *text = comma ? PyObject_Format(value, comma) : NULL;
        Py_XDECREF(comma);
        return text;
    }
    if (PyObject_CheckBuffer(value)) return PyUnicode_FromString(last_name(Py_TYPE(value)->tp_name));
    return PyObject_Str(value);
}

static PyObject *row_of(PyObject *o, const char *attribute) {
    PyObject *value = PyObject_GetAttrString(o, attribute);
    PyObject *text = value ? text_of(value) : NULL;
    PyObject *row =
        text ? PyUnicode_FromFormat("<tr><th style=\"text-align:left\">%s</th><td style=\"text-align:left\">%U</td></tr>", attribute, text)
             : NULL;
    Py_XDECREF(value);
    Py_XDECREF(text);
    return row;
}

PyObject *lora_py_html(PyObject *o, const char *const *attributes) {
    PyObject *html = PyUnicode_FromFormat("<table><caption>%s</caption><tbody>", last_name(Py_TYPE(o)->tp_name));
    for (; html && *attributes; attributes++) PyUnicode_AppendAndDel(&html, row_of(o, *attributes));
    if (html) PyUnicode_AppendAndDel(&html, PyUnicode_FromString("</tbody></table>"));
    return html;
}
