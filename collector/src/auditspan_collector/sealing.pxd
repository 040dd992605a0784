# cython: language_level=3
"""The C types of sealing.py's variables. Only Cython reads this file; without it the source runs as it stands."""

cimport cython

cdef extern from "native.h":
    object auditspan_bytes(Py_ssize_t size)
    bint auditspan_sha256_load(const char* library)
    bint auditspan_sha256_node(unsigned char* tree, Py_ssize_t at) noexcept
    void auditspan_copy(
        unsigned char* to, Py_ssize_t at, const unsigned char* source, Py_ssize_t begin, Py_ssize_t count
    ) noexcept
    void auditspan_put_index(unsigned char* to, Py_ssize_t at, unsigned long long index) noexcept

cdef bint _COMPILED, _DIRECT
cdef Py_ssize_t _HASH_BYTES, _INDEX_BYTES, _DEEPEST


@cython.locals(
    head=Py_ssize_t, count=Py_ssize_t, size=Py_ssize_t, written=object, each="unsigned int[::1]", index="unsigned long long",
    at=Py_ssize_t, place=Py_ssize_t, contents=bytes, ends="unsigned long long[::1]", begin=Py_ssize_t,
    end=Py_ssize_t, i=Py_ssize_t
)
cpdef tuple rows(bytes prefix, unsigned long long first, object blocks)
@cython.locals(tree=bytearray, top=Py_ssize_t, at=Py_ssize_t, carry="unsigned long long")
cpdef bytes grow(unsigned long long size, bytes roots, bytes hashes)
@cython.locals(cut=list, at=Py_ssize_t)
cpdef list pieces(bytes data, Py_ssize_t size)
cdef int _put(object to, Py_ssize_t at, bytes source, Py_ssize_t begin, Py_ssize_t count) except -1
