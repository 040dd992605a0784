# cython: language_level=3
"""The C types of pairs.py's variables. Only Cython reads this file; without it the source runs as it stands."""

cimport cython

cdef extern from "native.h":
    object auditspan_bytes(Py_ssize_t size)
    void auditspan_copy(
        unsigned char* to, Py_ssize_t at, const unsigned char* source, Py_ssize_t begin, Py_ssize_t count
    ) noexcept
    void auditspan_prefetch(const unsigned char* memory, Py_ssize_t at) noexcept
    unsigned long long auditspan_mix(
        const unsigned char* keys, Py_ssize_t at, unsigned long long first, unsigned long long second
    ) noexcept
    bint auditspan_same_key(
        const unsigned char* one, Py_ssize_t at, const unsigned char* other, Py_ssize_t begin
    ) noexcept

cdef bint _COMPILED
cdef Py_ssize_t _KEY, _PAIR, _SLOTS, _AHEAD
cdef int _TAGGED, _TAG_SHIFT


@cython.locals(pairs=bytes, at=Py_ssize_t)
cpdef bytes side_by_side(bytes keys, bytes values)


@cython.final
cdef class Pairs:
    cdef unsigned long long _first, _second
    cdef Py_ssize_t _count, _mask
    cdef bytearray _tags, _held

    cpdef clear(self)
    @cython.locals(slot=Py_ssize_t, tags="unsigned char *")
    cpdef bytes get(self, bytes key)
    @cython.locals(at=Py_ssize_t, tags="unsigned char *")
    cpdef bint has_any(self, bytes pairs)
    @cython.locals(at=Py_ssize_t, added=Py_ssize_t)
    cpdef bint add(self, bytes pairs)
    @cython.locals(at=Py_ssize_t)
    cpdef drop(self, bytes pairs)
    @cython.locals(slot=Py_ssize_t, tags="unsigned char *", held="unsigned char *")
    cdef int _foresee(self, bytes pairs, Py_ssize_t at) except -1
    @cython.locals(tag="unsigned char", slot=Py_ssize_t, tags="unsigned char *", held="unsigned char *")
    cdef Py_ssize_t _find(self, const unsigned char* keys, Py_ssize_t at, unsigned long long mixed) noexcept
    @cython.locals(mixed="unsigned long long", slot=Py_ssize_t)
    cdef bint _put(self, const unsigned char* pairs, Py_ssize_t at) except -1
    @cython.locals(free=Py_ssize_t, slot=Py_ssize_t, home=Py_ssize_t)
    cdef bint _drop(self, const unsigned char* pairs, Py_ssize_t at) except -1
    @cython.locals(tags=bytearray, held=bytearray, slots=Py_ssize_t, slot=Py_ssize_t, place=Py_ssize_t)
    cdef _grow(self)
    cdef unsigned long long _mix(self, const unsigned char* keys, Py_ssize_t at) noexcept


cdef bint _same(const unsigned char* held, Py_ssize_t slot, const unsigned char* keys, Py_ssize_t at) noexcept
cdef _move(unsigned char* held, Py_ssize_t to, const unsigned char* pairs, Py_ssize_t at)
