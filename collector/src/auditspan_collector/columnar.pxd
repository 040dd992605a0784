# cython: language_level=3
"""The C types of columnar.py's variables. Only Cython reads this file; without it the source runs as it stands."""

cimport cython

cdef extern from "native.h":
    object auditspan_bytes(Py_ssize_t size)
    void auditspan_copy(
        unsigned char* to, Py_ssize_t at, const unsigned char* source, Py_ssize_t begin, Py_ssize_t count
    ) noexcept
    bint auditspan_same(const unsigned char* rows, Py_ssize_t one, Py_ssize_t other, Py_ssize_t size) noexcept
    void auditspan_part_begin(
        unsigned char* parts, Py_ssize_t part, object room, Py_ssize_t used, Py_ssize_t size, Py_ssize_t kind
    ) noexcept
    void auditspan_part_clear(unsigned char* parts, Py_ssize_t part) noexcept
    Py_ssize_t auditspan_part_size(unsigned char* parts, Py_ssize_t part) noexcept
    Py_ssize_t auditspan_take(
        unsigned char* parts, Py_ssize_t part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t end
    ) noexcept
    bint auditspan_append(
        unsigned char* parts, Py_ssize_t part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t size, Py_ssize_t end
    ) noexcept
    bint auditspan_append_again(unsigned char* parts, Py_ssize_t part, Py_ssize_t size) noexcept
    bint auditspan_append_index(unsigned char* parts, Py_ssize_t part, unsigned long long index) noexcept

cdef bint _COMPILED
cdef Py_ssize_t _TURN, _OFFSET_BYTES, _LENGTH_BYTES, _ROOM_BYTES, _SLACK, _PART_BYTES


@cython.final
cdef class Columns:
    cdef Py_ssize_t _columns
    cdef list _heads, _rooms
    cdef int[::1] _kinds, _behind, _flat
    cdef long long[::1] _counts, _last_at, _last_size, _last_count, _last_bytes
    cdef bytearray _parts
    cdef unsigned char* _p

    @cython.locals(
        part=int, at=Py_ssize_t, end=Py_ssize_t, row=Py_ssize_t, source="const unsigned char *", kinds="int[::1]",
        behind="int[::1]"
    )
    cpdef bytes block(self, bytes rows, Py_ssize_t count, bytes before=*)
    @cython.locals(part=int)
    cdef int _clear(self) except -1
    cdef Py_ssize_t _size(self, int part) noexcept
    @cython.locals(size=Py_ssize_t, part=int, at=Py_ssize_t, written=bytes)
    cdef bytes _together(self, bytes head)
    @cython.locals(stop=Py_ssize_t)
    cdef Py_ssize_t _take(self, int part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(kind=int, begin=Py_ssize_t, length=Py_ssize_t)
    cdef Py_ssize_t _take_any(self, int part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(size=Py_ssize_t, inner=int, counted=Py_ssize_t, stop=Py_ssize_t)
    cdef Py_ssize_t _take_column(self, int part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(begin=Py_ssize_t, length=Py_ssize_t, _element=Py_ssize_t, inner=int)
    cdef Py_ssize_t _take_array(self, int part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
    cdef int _append(self, int part, const unsigned char* rows, Py_ssize_t at, Py_ssize_t size, Py_ssize_t end) except -1
    cdef int _append_again(self, int part, Py_ssize_t size) except -1
    cdef int _append_offset(self, int part, Py_ssize_t length) except -1
    @cython.locals(used=Py_ssize_t, room=bytearray)
    cdef int _grow(self, int part, Py_ssize_t size) except -1


@cython.locals(last=Py_ssize_t)
cdef Py_ssize_t _length_end(const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
@cython.locals(length=Py_ssize_t, bits=Py_ssize_t, shift=int)
cdef Py_ssize_t _length(const unsigned char* rows, Py_ssize_t at, Py_ssize_t end) except -1
cdef bint _same(const unsigned char* rows, Py_ssize_t one, Py_ssize_t other, Py_ssize_t size) noexcept
cdef int _put(unsigned char* to, Py_ssize_t at, const unsigned char* source, Py_ssize_t count) except -1
