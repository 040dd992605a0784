/* HOT PATH: a record's bytes in one pass over its span's attributes, and its id.

   What a record's bytes are is said in wire.py, and what is left out of them in privacy.py; the tests hold this to both.
   Whatever is not plain (a value that is neither text, texts, number nor truth, a key that is not known, a record that is
   long) is not decided here: the answer is None then, and the caller goes the readable way. Nothing is called back, no
   object but the answer is made, and every write is checked against the room that is left. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define ROOM 8192 /* bytes of a span; what is longer goes the readable way */

/* What privacy.kind_of says of a key. */
enum { PLAIN = 0, DROPPED = 1, ADDRESS = 2, HEADER = 3, EXCEPTION = 4, AGENT = 5, SESSION = 6 };

typedef struct {
    unsigned char *at, *end; /* where the next byte goes; where the room ends */
} Out;

typedef struct {
    const unsigned char *at;
    Py_ssize_t size;
} Text;

static int put(Out *out, const void *from, Py_ssize_t size)
{
    if (size > out->end - out->at)
        return 0;
    memcpy(out->at, from, (size_t)size);
    out->at += size;
    return 1;
}

static Py_ssize_t varint_size(unsigned long long number)
{
    Py_ssize_t size = 1;
    while (number >>= 7)
        size++;
    return size;
}

static int put_varint(Out *out, unsigned long long number)
{
    if (out->end - out->at < 10)
        return 0;
    while (number > 0x7f) {
        *out->at++ = (unsigned char)(number | 0x80);
        number >>= 7;
    }
    *out->at++ = (unsigned char)number;
    return 1;
}

static int put_fixed64(Out *out, unsigned long long number)
{
    int i;
    if (out->end - out->at < 8)
        return 0;
    for (i = 0; i < 8; i++)
        *out->at++ = (unsigned char)(number >> (8 * i));
    return 1;
}

/* The bytes of an object of exactly that type; 0 for any other. */
static int bytes_of(PyObject *object, Text *text)
{
    if (!PyBytes_CheckExact(object))
        return 0;
    text->at = (const unsigned char *)PyBytes_AsString(object);
    text->size = PyBytes_Size(object);
    return 1;
}

/* One attribute up to its value: field 9 of a Span with a KeyValue, whose value will take value_size bytes. */
static int put_key(Out *out, const Text *key, Py_ssize_t value_size)
{
    Py_ssize_t size = key->size + 1 + varint_size((unsigned long long)value_size) + value_size;
    return put(out, "\x4a", 1) && put_varint(out, (unsigned long long)size) && put(out, key->at, key->size) &&
           put(out, "\x12", 1) && put_varint(out, (unsigned long long)value_size);
}

static int put_text(Out *out, const Text *key, const char *text, Py_ssize_t size)
{
    return put_key(out, key, 1 + varint_size((unsigned long long)size) + size) && put(out, "\x0a", 1) &&
           put_varint(out, (unsigned long long)size) && put(out, text, size);
}

/* The text of an object of exactly that type, which keeps it; 0 for any other, and for one with a surrogate. */
static int text_of(PyObject *object, Text *text)
{
    const char *utf8;
    if (!PyUnicode_CheckExact(object))
        return 0;
    utf8 = PyUnicode_AsUTF8AndSize(object, &text->size);
    if (utf8 == NULL) {
        PyErr_Clear();
        return 0;
    }
    text->at = (const unsigned char *)utf8;
    return 1;
}

/* A tuple of texts: an AnyValue with an array_value (5) of AnyValues with a string_value (1). 0: not plain. */
static int put_texts(Out *out, const Text *key, PyObject *tuple)
{
    Py_ssize_t count = PyTuple_Size(tuple), size = 0, value, i;
    Text text;
    for (i = 0; i < count; i++) {
        if (!text_of(PyTuple_GetItem(tuple, i), &text) || text.size > ROOM)
            return 0;
        value = 1 + varint_size((unsigned long long)text.size) + text.size;
        size += 1 + varint_size((unsigned long long)value) + value;
        if (size > ROOM)
            return 0;
    }
    if (!put_key(out, key, 1 + varint_size((unsigned long long)size) + size) || !put(out, "\x2a", 1) ||
        !put_varint(out, (unsigned long long)size))
        return 0;
    for (i = 0; i < count; i++) {
        if (!text_of(PyTuple_GetItem(tuple, i), &text))
            return 0;
        value = 1 + varint_size((unsigned long long)text.size) + text.size;
        if (!put(out, "\x0a", 1) || !put_varint(out, (unsigned long long)value) || !put(out, "\x0a", 1) ||
            !put_varint(out, (unsigned long long)text.size) || !put(out, text.at, text.size))
            return 0;
    }
    return 1;
}

/* An attribute whose key begins with what may be done with it (one byte), then its field. 0: not plain. */
static int put_attribute(Out *out, PyObject *known, PyObject *value)
{
    Text key;
    int kind, overflow;
    if (known == NULL || !bytes_of(known, &key) || key.size < 1)
        return 0;
    kind = key.at[0];
    key.at++;
    key.size--;
    if (kind >= SESSION)
        return 0; /* it is hashed, the readable way */
    if (kind != PLAIN && kind != ADDRESS)
        return 1; /* it is left out */
    if (PyUnicode_CheckExact(value)) {
        Py_ssize_t size, cut;
        const char *text = PyUnicode_AsUTF8AndSize(value, &size);
        if (text == NULL) { /* a surrogate */
            PyErr_Clear();
            return 0;
        }
        if (kind == ADDRESS) {
            for (cut = 0; cut < size && text[cut] != '?' && text[cut] != '#'; cut++)
                ;
            size = cut;
        }
        return put_text(out, &key, text, size);
    }
    if (kind == ADDRESS)
        return 0;
    if (PyLong_CheckExact(value)) {
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow)
            return 0;
        return put_key(out, &key, 1 + varint_size((unsigned long long)number)) && put(out, "\x18", 1) &&
               put_varint(out, (unsigned long long)number);
    }
    if (PyTuple_CheckExact(value))
        return put_texts(out, &key, value);
    if (value == Py_True || value == Py_False)
        return put_key(out, &key, 2) && put(out, value == Py_True ? "\x10\x01" : "\x10\x00", 2);
    return 0;
}

static int put_attributes(Out *out, PyObject *keys, PyObject *attributes)
{
    PyObject *key, *value;
    Py_ssize_t place = 0;
    while (PyDict_Next(attributes, &place, &key, &value))
        if (!put_attribute(out, PyDict_GetItemWithError(keys, key), value)) {
            PyErr_Clear(); /* of a key that has no hash; no exception leaves this file */
            return 0;
        }
    return 1;
}

static PyObject *enclosed(const Text *body, const Text *parts)
{
    const Text *resource = &parts[0], *scope = &parts[1], *scope_end = &parts[2], *resource_end = &parts[3];
    Py_ssize_t in_scope = scope->size + 1 + varint_size((unsigned long long)body->size) + body->size + scope_end->size;
    Py_ssize_t in_resource =
        resource->size + 1 + varint_size((unsigned long long)in_scope) + in_scope + resource_end->size;
    Py_ssize_t size = 1 + varint_size((unsigned long long)in_resource) + in_resource;
    PyObject *answer = PyBytes_FromStringAndSize(NULL, size);
    Out out;
    if (answer == NULL)
        return NULL;
    out.at = (unsigned char *)PyBytes_AsString(answer);
    out.end = out.at + size;
    /* put_varint wants ten bytes of room; behind each of these there are, or the last one is checked below. */
    if (put(&out, "\x0a", 1) && put_varint(&out, (unsigned long long)in_resource) &&
        put(&out, resource->at, resource->size) && put(&out, "\x12", 1) &&
        put_varint(&out, (unsigned long long)in_scope) && put(&out, scope->at, scope->size) && put(&out, "\x12", 1) &&
        put_varint(&out, (unsigned long long)body->size) && put(&out, body->at, body->size) &&
        put(&out, scope_end->at, scope_end->size) && put(&out, resource_end->at, resource_end->size) &&
        out.at == out.end)
        return answer;
    Py_DECREF(answer);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pack_doc,
             "pack(keys, around, ids, fields, start, end, attributes, more, flags)\n--\n\n"
             "The request with one span, or None where it is not plain.");

static PyObject *pack(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    unsigned char room[ROOM];
    Out out = {room, room + ROOM};
    Text parts[4], ids, fields, more, body;
    unsigned long long start, end, flags;
    int i, fits;
    (void)module;
    if (count != 9 || !PyDict_CheckExact(arguments[0]) || !PyTuple_CheckExact(arguments[1]) ||
        PyTuple_Size(arguments[1]) != 4 || !bytes_of(arguments[2], &ids) || !bytes_of(arguments[3], &fields) ||
        !PyDict_CheckExact(arguments[6]) || !bytes_of(arguments[7], &more))
        Py_RETURN_NONE;
    for (i = 0; i < 4; i++)
        if (!bytes_of(PyTuple_GetItem(arguments[1], i), &parts[i]))
            Py_RETURN_NONE;
    start = PyLong_AsUnsignedLongLong(arguments[4]);
    end = PyLong_AsUnsignedLongLong(arguments[5]);
    flags = PyLong_AsUnsignedLongLong(arguments[8]);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    fits = put(&out, ids.at, ids.size) && put(&out, fields.at, fields.size) && put(&out, "\x39", 1) &&
           put_fixed64(&out, start) && put(&out, "\x41", 1) && put_fixed64(&out, end) &&
           put_attributes(&out, arguments[0], arguments[6]) && put(&out, more.at, more.size) &&
           put(&out, "\x7a\x00\x85\x01", 4) && out.end - out.at >= 8 && put_fixed64(&out, flags);
    if (!fits || flags > 0xffffffffULL)
        Py_RETURN_NONE;
    out.at -= 4; /* a fixed32 */
    body.at = room;
    body.size = out.at - room;
    return enclosed(&body, parts);
}

PyDoc_STRVAR(record_id_doc,
             "record_id(unix_ns, a, b)\n--\n\n"
             "A UUID of version 7 as 36 letters: the time in ms, the last 12 bits of a and the last 62 of b.");

static PyObject *record_id(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    static const char digits[] = "0123456789abcdef";
    unsigned long long half[2], numbers[3];
    char text[36];
    int i, at = 0;
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "record_id takes three numbers");
        return NULL;
    }
    for (i = 0; i < 3; i++) {
        numbers[i] = PyLong_AsUnsignedLongLongMask(arguments[i]);
        if (PyErr_Occurred())
            return NULL;
    }
    half[0] = (numbers[0] / 1000000) << 16 | 0x7000 | (numbers[1] & 0xfff);
    half[1] = 0x8000000000000000ULL | (numbers[2] & 0x3fffffffffffffffULL);
    for (i = 0; i < 32; i++) {
        if (i == 8 || i == 12 || i == 16 || i == 20)
            text[at++] = '-';
        text[at++] = digits[half[i / 16] >> (60 - 4 * (i % 16)) & 0xf];
    }
    return PyBytes_FromStringAndSize(text, sizeof text);
}

static PyMethodDef methods[] = {
    {"record_id", (PyCFunction)(void (*)(void))record_id, METH_FASTCALL, record_id_doc},
    {"pack", (PyCFunction)(void (*)(void))pack, METH_FASTCALL, pack_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_packing", "A record's bytes in one pass; see _packing.c.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__packing(void) { return PyModuleDef_Init(&module); }
