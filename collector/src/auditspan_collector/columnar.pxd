# cython: language_level=3
"""The C types of columnar.py's variables. Only Cython reads this file; without it the source runs as it stands."""

cimport cython

cdef extern from "native.h":
    object auditspan_bytes(Py_ssize_t size)
    void auditspan_copy_short(
        unsigned char* to, Py_ssize_t at, const unsigned char* source, Py_ssize_t begin, Py_ssize_t count
    ) noexcept
    void auditspan_put_index(unsigned char* to, Py_ssize_t at, unsigned long long index) noexcept

cdef bint _COMPILED
cdef Py_ssize_t _TURN, _OFFSET_BYTES, _LENGTH_BYTES


@cython.final
cdef class Columns:
    cdef Py_ssize_t _columns
    cdef list _heads
    cdef int[::1] _kinds, _behind
    cdef long long[::1] _sizes, _places, _counts

    @cython.locals(part=int, at=Py_ssize_t, end=Py_ssize_t, row=Py_ssize_t, written=bytes, source="const unsigned char *", to="unsigned char *")
    cpdef bytes block(self, bytes rows, Py_ssize_t count)
    @cython.locals(head=bytes, name=bytes, size=Py_ssize_t, part=int)
    cdef _lay_out(self, Py_ssize_t count)
    @cython.locals(part=int)
    cdef Py_ssize_t _measure_row(self, const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(part=int)
    cdef Py_ssize_t _copy_row(self, const unsigned char* rows, Py_ssize_t at, unsigned char* to) except -1
    @cython.locals(kind=int, begin=Py_ssize_t, length=Py_ssize_t)
    cdef Py_ssize_t _measure(self, int part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(begin=Py_ssize_t, length=Py_ssize_t, _element=Py_ssize_t, inner=int)
    cdef Py_ssize_t _measure_array(self, int part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(stop=Py_ssize_t)
    cdef Py_ssize_t _copy(self, int part, const unsigned char* rows, Py_ssize_t at, unsigned char* to) except -1
    @cython.locals(begin=Py_ssize_t, length=Py_ssize_t, _element=Py_ssize_t, inner=int)
    cdef Py_ssize_t _copy_array(self, int part, const unsigned char* rows, Py_ssize_t at, unsigned char* to) except -1


@cython.locals(last=Py_ssize_t)
cdef Py_ssize_t _length_end(const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
@cython.locals(length=Py_ssize_t, bits=Py_ssize_t, shift=int)
cdef Py_ssize_t _length(const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
cdef int _put(unsigned char* to, Py_ssize_t at, const unsigned char* source, Py_ssize_t begin, Py_ssize_t count) except -1
