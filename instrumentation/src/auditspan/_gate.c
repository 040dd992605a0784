/* HOT PATH: what the SDK calls for each span, for spans that leave no record or are not told apart yet.

   gate.py says when this is used and what it is given; processor.py is the definition. Whatever is not plain here (an
   attribute's key that is not known to be nobody's of ours, a rule, a caller's audit-context, a span around this one) is
   left to processor.py before anything was changed. No exception of this file's own making leaves it.

   Each function's constants stand in the tuple that is its self, so that no state of this module is shared by
   interpreters. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* gate.py makes the tuple in this order. */
enum {
    STARTS, ENDS, PASSES, SERVER, CONSUMER, LIVE, MOST_LIVE, KNOWN, STATE, EMITTER, SPAN_KEY, UPSTREAM_KEY, CURRENT, SAFE,
    PLAIN_READS, FAILED, SLOT,
    N_KIND, N_ATTRIBUTES, N_DICT, N_CONTEXT, N_PARENT, N_GET, N_SPAN_CONTEXT, N_EMITTER, N_ORIGIN, N_ENTRY, N_CERTAIN,
    N_WANTED, N_HELD, N_JUDGED, N_WRITTEN, N_ENDED, N_SOURCE, N_LET_GO, K_METHOD, K_METHOD_OLD, K_STATUS, K_STATUS_OLD,
    CONSTANTS
};

enum { UNDECIDED = 0, DONE = 1 };

#define C(which) PyTuple_GetItem(self, which) /* borrowed */

/* The dict in which *span* has its attributes, a new reference; NULL without an exception where it is another thing. */
static PyObject *attributes_of(PyObject *self, PyObject *span)
{
    PyObject *found = NULL, *bounded = PyObject_GetAttr(span, C(N_ATTRIBUTES));
    if (bounded != NULL) {
        found = PyObject_GetAttr(bounded, C(N_DICT));
        Py_DECREF(bounded);
    }
    if (found == NULL || !PyDict_CheckExact(found)) {
        PyErr_Clear();
        Py_XDECREF(found);
        return NULL;
    }
    return found;
}

/* Whether all keys are known to be none of ours. */
static int plain(PyObject *self, PyObject *attributes)
{
    PyObject *key, *value, *known = C(KNOWN);
    Py_ssize_t place = 0;
    while (PyDict_Next(attributes, &place, &key, &value))
        if (!PyUnicode_CheckExact(key) || PySet_Contains(known, key) != 1) {
            PyErr_Clear();
            return 0;
        }
    return 1;
}

/* The value under one of two names, borrowed; NULL where there is none that counts. */
static PyObject *either(PyObject *self, PyObject *attributes, int first, int second)
{
    PyObject *found = PyDict_GetItemWithError(attributes, C(first));
    if (found == NULL || PyObject_IsTrue(found) != 1)
        found = PyDict_GetItemWithError(attributes, C(second));
    return found;
}

/* 1 or 0 for a truth, -1 for anything else. */
static int truth(PyObject *state, PyObject *name)
{
    PyObject *found = PyObject_GetAttr(state, name);
    int answer = found == Py_True ? 1 : found == Py_False ? 0 : -1;
    if (found == NULL)
        PyErr_Clear();
    Py_XDECREF(found);
    return answer;
}

/* Whether nothing that counts is around an entry span: no audit-context, no span of this process. */
static int alone(PyObject *self, PyObject *span, PyObject *origin)
{
    PyObject *parent;
    int answer;
    if (!PyDict_Check(origin))
        return 0;
    if (PyDict_Size(origin) == 0)
        return 1;
    if (PyDict_GetItemWithError(origin, C(UPSTREAM_KEY)) != NULL || PyErr_Occurred())
        return 0;
    parent = PyObject_GetAttr(span, C(N_PARENT));
    if (parent == NULL)
        return 0;
    answer = parent == Py_None || (PyTuple_Check(parent) && PyTuple_Size(parent) > 2 &&
                                   PyTuple_GetItem(parent, 2) == Py_True); /* SpanContext.is_remote */
    Py_DECREF(parent);
    return answer;
}

/* A state as OpenedSpan's __init__ leaves it, or NULL with an exception. */
static PyObject *new_state(PyObject *self, PyObject *ids, PyObject *origin, int certain)
{
    PyTypeObject *type = (PyTypeObject *)C(STATE);
    newfunc make = (newfunc)PyType_GetSlot(type, Py_tp_new);
    PyObject *nothing = PyTuple_New(0), *state;
    if (nothing == NULL)
        return NULL;
    state = make(type, nothing, NULL);
    Py_DECREF(nothing);
    if (state == NULL)
        return NULL;
    if (PyObject_SetAttr(state, C(N_SPAN_CONTEXT), ids) < 0 || PyObject_SetAttr(state, C(N_EMITTER), C(EMITTER)) < 0 ||
        PyObject_SetAttr(state, C(N_ORIGIN), origin) < 0 || PyObject_SetAttr(state, C(N_ENTRY), Py_True) < 0 ||
        (certain && PyObject_SetAttr(state, C(N_CERTAIN), Py_True) < 0)) {
        Py_DECREF(state);
        return NULL;
    }
    return state;
}

/* A server span of HTTP that nothing is around. */
static int enter(PyObject *self, PyObject *span, PyObject *origin, PyObject *attributes)
{
    PyObject *method, *ids, *state, *live = C(LIVE);
    int certain, answer = UNDECIDED;
    if (C(PLAIN_READS) != Py_True || !alone(self, span, origin) || !plain(self, attributes) ||
        PyDict_Size(live) >= PyLong_AsSsize_t(C(MOST_LIVE)))
        return UNDECIDED;
    method = either(self, attributes, K_METHOD, K_METHOD_OLD);
    if (method == NULL || !PyUnicode_CheckExact(method))
        return UNDECIDED;
    certain = PySet_Contains(C(SAFE), method) != 1;
    ids = PyObject_GetAttr(span, C(N_CONTEXT));
    if (ids == NULL)
        return UNDECIDED;
    if (PyTuple_Check(ids) && PyTuple_Size(ids) > 1) {
        state = new_state(self, ids, origin, certain);
        if (state != NULL) {
            if (PyObject_SetAttr(span, C(SLOT), state) == 0 && PyDict_SetItem(live, PyTuple_GetItem(ids, 1), state) == 0)
                answer = DONE;
            Py_DECREF(state);
        }
    }
    Py_DECREF(ids);
    return answer;
}

/* A span right inside one that has a state. */
static int inherit(PyObject *self, PyObject *span, PyObject *origin, PyObject *attributes)
{
    PyObject *around, *state;
    int answer = UNDECIDED;
    if (!PyDict_Check(origin) || !plain(self, attributes))
        return UNDECIDED;
    around = PyDict_GetItemWithError(origin, C(SPAN_KEY));
    if (around == NULL)
        return UNDECIDED;
    Py_INCREF(around);
    state = PyObject_GetAttr(around, C(SLOT));
    Py_DECREF(around);
    if (state == NULL)
        return UNDECIDED;
    if (state != Py_None && PyObject_SetAttr(span, C(SLOT), state) == 0)
        answer = DONE;
    Py_DECREF(state);
    return answer;
}

static int starts(PyObject *self, PyObject *span, PyObject *context)
{
    PyObject *kind = PyObject_GetAttr(span, C(N_KIND)), *attributes = NULL, *origin = NULL;
    int answer = UNDECIDED;
    if (kind != NULL && kind != C(CONSUMER) && (attributes = attributes_of(self, span)) != NULL) {
        if (context != Py_None) {
            origin = context;
            Py_INCREF(origin);
        } else {
            origin = PyObject_CallMethodObjArgs(C(CURRENT), C(N_GET), NULL);
        }
        if (origin != NULL)
            answer = kind == C(SERVER) ? enter(self, span, origin, attributes) : inherit(self, span, origin, attributes);
    }
    if (PyErr_Occurred())
        PyErr_Clear();
    Py_XDECREF(origin);
    Py_XDECREF(attributes);
    Py_XDECREF(kind);
    return answer;
}

/* *function*, called with what we were called with: it knows what may be left out or named. */
static PyObject *by_python(PyObject *function, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords)
{
    PyObject *positional = PyTuple_New(count), *named = PyDict_New(), *answer = NULL;
    Py_ssize_t place, all = keywords == NULL ? 0 : PyTuple_Size(keywords);
    int failed = positional == NULL || named == NULL;
    for (place = 0; !failed && place < count; place++) {
        Py_INCREF(arguments[place]);
        failed = PyTuple_SetItem(positional, place, arguments[place]) < 0;
    }
    for (place = 0; !failed && place < all; place++)
        failed = PyDict_SetItem(named, PyTuple_GetItem(keywords, place), arguments[count + place]) < 0;
    if (!failed)
        answer = PyObject_Call(function, positional, named);
    Py_XDECREF(positional);
    Py_XDECREF(named);
    return answer;
}

PyDoc_STRVAR(on_start_doc, "on_start($self, span, parent_context=None)\n--\n\nAs AuditSpanProcessor.on_start.");

static PyObject *on_start(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords)
{
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_Size(keywords);
    PyObject *context = count + named > 1 ? arguments[1] : Py_None;
    /* The SDK names the second one. */
    if (count < 1 || count + named > 2 || (named && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(keywords, 0), "parent_context") != 0))
        return by_python(C(STARTS), arguments, count, keywords);
    if (starts(self, arguments[0], context) == DONE)
        Py_RETURN_NONE;
    return PyObject_CallFunctionObjArgs(C(STARTS), arguments[0], context, NULL);
}

/* Whether an answered request that nobody asked about is plainly no record. */
static int passes(PyObject *self, PyObject *span)
{
    PyObject *attributes = attributes_of(self, span), *method, *status;
    int answer = 0, overflow;
    long code;
    if (attributes == NULL)
        return 0;
    method = either(self, attributes, K_METHOD, K_METHOD_OLD);
    if (method != NULL && PyUnicode_CheckExact(method) && PySet_Contains(C(SAFE), method) == 1) {
        status = either(self, attributes, K_STATUS, K_STATUS_OLD);
        if (status != NULL && PyLong_CheckExact(status)) {
            code = PyLong_AsLongAndOverflow(status, &overflow);
            answer = !overflow && code >= 200 && code < 300 && plain(self, attributes);
        }
    }
    Py_DECREF(attributes);
    return answer;
}

PyDoc_STRVAR(passes_doc, "passes($self, span, state, method, status, /)\n--\n\nAs AuditSpanProcessor.passes.");

static PyObject *told_passes(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *state, *method, *attributes;
    int overflow = 0, answer = 0;
    long code;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "passes takes a span, its state, a method and a status");
        return NULL;
    }
    state = arguments[1], method = arguments[2];
    if (C(PLAIN_READS) != Py_True || !PyUnicode_CheckExact(method) || !PyLong_CheckExact(arguments[3]))
        return PyObject_CallFunctionObjArgs(C(PASSES), arguments[0], state, method, arguments[3], NULL);
    code = PyLong_AsLongAndOverflow(arguments[3], &overflow);
    if (overflow || code < 200 || code >= 300 || PySet_Contains(C(SAFE), method) != 1)
        Py_RETURN_FALSE;
    if (truth(state, C(N_WANTED)) == 0 && truth(state, C(N_CERTAIN)) == 0 && truth(state, C(N_HELD)) == 0 &&
        (attributes = attributes_of(self, arguments[0])) != NULL) {
        answer = plain(self, attributes) && PyObject_SetAttr(state, C(N_JUDGED), Py_True) == 0;
        Py_DECREF(attributes);
    }
    PyErr_Clear();
    if (answer)
        Py_RETURN_TRUE;
    return PyObject_CallFunctionObjArgs(C(PASSES), arguments[0], state, method, arguments[3], NULL);
}

/* The request is over and what was to be written is: forget it. */
static int over(PyObject *self, PyObject *state, PyObject *id, PyObject *source)
{
    PyObject *let_go, *answer, *type, *error, *trace;
    if (PyDict_DelItem(C(LIVE), id) < 0 || PyObject_SetAttr(state, C(N_ENDED), Py_True) < 0)
        PyErr_Clear();
    if (source == Py_None)
        return DONE;
    let_go = PyObject_GetAttr(source, C(N_LET_GO));
    if (let_go == NULL) {
        PyErr_Clear(); /* it has none, which most have */
        return DONE;
    }
    answer = PyObject_CallFunctionObjArgs(let_go, NULL);
    Py_DECREF(let_go);
    if (answer == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Fetch(&type, &error, &trace);
        PyErr_NormalizeException(&type, &error, &trace);
        if (error != NULL && trace != NULL)
            PyException_SetTraceback(error, trace);
        answer = PyObject_CallFunctionObjArgs(C(FAILED), error == NULL ? Py_None : error, NULL);
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(trace);
    }
    if (answer == NULL)
        return -1; /* KeyboardInterrupt and its like are the application's */
    Py_DECREF(answer);
    return DONE;
}

static int ends(PyObject *self, PyObject *span, PyObject *state, PyObject *id)
{
    PyObject *source = NULL;
    int wanted = truth(state, C(N_WANTED)), certain = truth(state, C(N_CERTAIN)), answer = UNDECIDED;
    int written = truth(state, C(N_WRITTEN)), judged = truth(state, C(N_JUDGED)), finished;
    if (truth(state, C(N_HELD)) != 0 || wanted < 0 || certain < 0)
        return UNDECIDED;
    source = PyObject_GetAttr(state, C(N_SOURCE));
    if (source == NULL) {
        PyErr_Clear();
        return UNDECIDED;
    }
    finished = written == 1 || (judged == 1 && !wanted && !certain);
    if (!finished && source == Py_None && C(PLAIN_READS) == Py_True && !wanted && !certain && written == 0 &&
        truth(state, C(N_ENTRY)) == 1 && passes(self, span)) {
        if (PyObject_SetAttr(state, C(N_JUDGED), Py_True) < 0)
            PyErr_Clear();
        finished = 1;
    }
    if (PyErr_Occurred())
        PyErr_Clear();
    if (finished)
        answer = over(self, state, id, source);
    Py_DECREF(source);
    return answer;
}

PyDoc_STRVAR(on_end_doc, "on_end($self, span)\n--\n\nAs AuditSpanProcessor.on_end.");

static PyObject *on_end(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords)
{
    PyObject *span, *ids, *id, *state, *emitter;
    int answer = UNDECIDED;
    if (count != 1 || (keywords != NULL && PyTuple_Size(keywords) > 0))
        return by_python(C(ENDS), arguments, count, keywords);
    span = arguments[0];
    ids = PyObject_GetAttr(span, C(N_CONTEXT));
    if (ids != NULL && PyTuple_Check(ids) && PyTuple_Size(ids) > 1) {
        id = PyTuple_GetItem(ids, 1);
        state = PyDict_GetItemWithError(C(LIVE), id);
        if (state == NULL) {
            if (!PyErr_Occurred())
                answer = DONE; /* most spans are inside of others' */
        } else {
            Py_INCREF(state);
            emitter = PyObject_GetAttr(state, C(N_EMITTER));
            if (emitter != NULL)
                answer = emitter == C(EMITTER) ? ends(self, span, state, id) : DONE;
            Py_XDECREF(emitter);
            Py_DECREF(state);
        }
    }
    Py_XDECREF(ids);
    if (answer < 0)
        return NULL;
    PyErr_Clear();
    if (answer == DONE)
        Py_RETURN_NONE;
    return PyObject_CallFunctionObjArgs(C(ENDS), span, NULL);
}

static PyMethodDef on_start_def = {"on_start", (PyCFunction)(void (*)(void))on_start, METH_FASTCALL | METH_KEYWORDS,
                                   on_start_doc};
static PyMethodDef passes_def = {"passes", (PyCFunction)(void (*)(void))told_passes, METH_FASTCALL, passes_doc};
static PyMethodDef on_end_def = {"on_end", (PyCFunction)(void (*)(void))on_end, METH_FASTCALL | METH_KEYWORDS, on_end_doc};

/* -- the module */

PyDoc_STRVAR(gate_doc, "gate($module, constants, /)\n--\n\non_start, on_end and passes of a processor.");

static PyObject *gate(PyObject *module, PyObject *constants)
{
    PyObject *start, *end, *passing, *answer;
    (void)module;
    if (!PyTuple_CheckExact(constants) || PyTuple_Size(constants) != CONSTANTS ||
        !PyDict_CheckExact(PyTuple_GetItem(constants, LIVE)) || !PyType_Check(PyTuple_GetItem(constants, STATE))) {
        PyErr_SetString(PyExc_TypeError, "gate takes the tuple that gate.py makes");
        return NULL;
    }
    start = PyCFunction_NewEx(&on_start_def, constants, NULL);
    end = PyCFunction_NewEx(&on_end_def, constants, NULL);
    passing = PyCFunction_NewEx(&passes_def, constants, NULL);
    answer = start == NULL || end == NULL || passing == NULL ? NULL : PyTuple_Pack(3, start, end, passing);
    Py_XDECREF(start);
    Py_XDECREF(end);
    Py_XDECREF(passing);
    return answer;
}

static PyMethodDef methods[] = {
    {"gate", gate, METH_O, gate_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_gate", "What the SDK calls for each span; see _gate.c.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__gate(void) { return PyModuleDef_Init(&module); }
