# cython: language_level=3
"""The C types of transcode.py's variables. Only Cython reads this file; without it the source runs as it stands."""

cimport cython

cdef extern from "native.h":
    void auditspan_copy_short(
        unsigned char* to, Py_ssize_t at, const unsigned char* source, Py_ssize_t begin, Py_ssize_t count
    ) noexcept
    bint auditspan_equal(
        const unsigned char* one, Py_ssize_t at, const unsigned char* other, Py_ssize_t begin, Py_ssize_t size
    ) noexcept
    bint auditspan_is_ascii(const unsigned char* text, Py_ssize_t begin, Py_ssize_t end) noexcept
    bint auditspan_sha256_load(const char* library)
    bint auditspan_sha256_leaf(
        const unsigned char* leaf, Py_ssize_t begin, Py_ssize_t end, const unsigned char* last, Py_ssize_t last_size,
        unsigned char* identity, Py_ssize_t identity_at, unsigned char* hash, Py_ssize_t hash_at
    ) noexcept
    bint auditspan_sha256_id(
        const unsigned char* begin, Py_ssize_t size, const unsigned char* body, Py_ssize_t a, Py_ssize_t a_size,
        Py_ssize_t b, Py_ssize_t b_size, unsigned char* digest
    ) noexcept

ctypedef const unsigned char* Bytes
ctypedef unsigned long long Number

cdef Py_ssize_t _GIVE_UP, _ODD, _COPY
cdef Py_ssize_t _PARENT, _RECORD_ID, _ACTOR_ID, _ACTOR_TYPE, _ACTOR_ORIGIN, _ACTOR_ROLES, _ACTOR_SESSION
cdef Py_ssize_t _ACTOR_AUTH_METHOD, _ACTOR_DELEGATE, _REASON, _ACTION, _OUTCOME, _TARGET_TYPE, _TARGET_ID
cdef Py_ssize_t _CLIENT_ADDRESS, _SEQUENCE_STREAM, _SEQUENCE_NUMBER, _HTTP_STATUS, _GRPC_STATUS, _GROUPS
cdef Py_ssize_t _SPAN, _EVENT, _LINK, _STATUS
cdef Py_ssize_t _STRING, _BOOL, _INT, _DOUBLE, _ARRAY, _EMPTY
cdef Py_ssize_t _MAX_ATTRIBUTES, _MAX_CHILDREN, _BUCKETS, _PLACES, _KEPT_BYTES
cdef bint _COMPILED, _DIRECT
cdef tuple _TYPE_NAMES


@cython.final
cdef class _Buffer:
    cdef bytearray data
    cdef unsigned char* p
    cdef Py_ssize_t capacity
    cdef Py_ssize_t size

    cdef int need(self, Py_ssize_t count) except -1
    cdef int grow(self, Py_ssize_t count) except -1
    cdef int byte(self, Py_ssize_t value) except -1
    cdef int put(self, Bytes source, Py_ssize_t begin, Py_ssize_t count) except -1
    cdef int append(self, bytes content) except -1
    cdef int text(self, Bytes source, Py_ssize_t begin, Py_ssize_t count) except -1
    cdef int varint(self, Number number) except -1
    @cython.locals(i=Py_ssize_t)
    cdef int fixed32(self, Number number) except -1
    @cython.locals(i=Py_ssize_t)
    cdef int fixed64(self, Number number) except -1
    @cython.locals(i=Py_ssize_t)
    cdef int zeroes(self, Py_ssize_t count) except -1
    @cython.locals(i=Py_ssize_t, count=Py_ssize_t, rest=Number)
    cdef int digits(self, Number number) except -1


@cython.final
cdef class Transcoder:
    # What stays.
    cdef object plan, heads
    cdef Py_ssize_t leaf_version, attributes_per_span, value_bytes, request_bytes
    cdef Py_ssize_t events_per_span, links_per_span, spans_per_request, min_messages, min_bytes_a_message
    cdef list kinds, status_codes
    cdef bytes shapes, names
    cdef bytes nibbles
    cdef Bytes shapes_p, names_p, nibble
    cdef Number ones
    cdef Py_ssize_t slots
    cdef Py_ssize_t[::1] name_begin, name_end, next_name, bucket, is_peer, fill, fill_begin
    cdef bytes actor_types, origins, outcomes, grpc_denied, grpc_ok
    cdef bytes unknown, unverified, success, failure, denied
    # Of a request.
    cdef bytes body, tenant, received, id_begin
    cdef Bytes p, received_p, id_begin_p
    cdef object sequence_key
    cdef bytes key, key_service
    cdef Py_ssize_t key_at, key_to
    cdef Py_ssize_t size, spans, tagged, copies, bytes, groups, messages
    cdef bint instrumented
    cdef list odd, services
    cdef object resource, scope
    cdef bint resource_known, scope_known, resource_counted
    cdef Py_ssize_t resource_begin, resource_end, scope_begin, scope_end
    cdef str service
    cdef bytes resource_first, resource_dropped, resource_url, resource_rest
    cdef bytes scope_first, scope_dropped, scope_url, scope_rest
    # What a step leaves for the next.
    cdef Number number
    cdef Py_ssize_t tag, start, stop, high, events, links
    cdef Py_ssize_t record_id_at, stream_at, stream_to, stream_size
    cdef Number sequence
    cdef bint is_tagged
    # Of a span.
    cdef _Buffer out, ends, hashes, identities, keys, numbers
    cdef _Buffer texts, types, scratch
    cdef Py_ssize_t[::1] at, to, first
    cdef Number[::1] value
    cdef Py_ssize_t[::1] key_begin, key_end, value_begin, value_end, text_at, text_size, kind, place
    cdef Py_ssize_t[::1] event_begin, event_end, link_begin, link_end
    cdef Py_ssize_t[::1] name_at, name_size, trace_at, span_at, dropped, flags
    cdef Py_ssize_t[::1] next_alike, last_alike

    @cython.locals(allowed=Py_ssize_t)
    cdef bint _is_too_much(self) noexcept
    @cython.locals(value=Number, byte=Number, shift=Py_ssize_t)
    cdef Py_ssize_t _varint(self, Py_ssize_t pos, Py_ssize_t end) noexcept
    @cython.locals(byte=Py_ssize_t, after=Py_ssize_t)
    cdef Py_ssize_t _tag(self, Py_ssize_t pos, Py_ssize_t end) noexcept
    @cython.locals(length=Py_ssize_t)
    cdef Py_ssize_t _open(self, Py_ssize_t pos, Py_ssize_t end) noexcept
    cdef Py_ssize_t _skip(self, Py_ssize_t wire_type, Py_ssize_t pos, Py_ssize_t end) noexcept
    @cython.locals(begin=Py_ssize_t, number=Py_ssize_t, stop=Py_ssize_t, done=Py_ssize_t)
    cdef Py_ssize_t _group(self, Py_ssize_t pos, Py_ssize_t end, Py_ssize_t level) except -3
    @cython.locals(count=Py_ssize_t, start=Py_ssize_t, done=Py_ssize_t, content=bytes)
    cdef Py_ssize_t _span(self, Py_ssize_t begin, Py_ssize_t end) except -3
    @cython.locals(end=Py_ssize_t)
    cdef int _close(self, Py_ssize_t begin) except -1
    @cython.locals(i=Py_ssize_t)
    cdef int _claim(self) except -1
    @cython.locals(begin=Py_ssize_t, end=Py_ssize_t)
    cdef bytes _sequence(self)
    @cython.locals(count=Py_ssize_t, tag=Py_ssize_t, stop=Py_ssize_t)
    cdef Py_ssize_t _scan(self, Py_ssize_t pos, Py_ssize_t end) noexcept
    @cython.locals(begin=Py_ssize_t, stop=Py_ssize_t, value=Py_ssize_t, value_end=Py_ssize_t)
    cdef Py_ssize_t _key_value(self, Py_ssize_t pos, Py_ssize_t end, Py_ssize_t index) noexcept
    cdef bint _is_utf8(self, Py_ssize_t pos, Py_ssize_t end) noexcept
    @cython.locals(byte=Py_ssize_t, low=Py_ssize_t, high=Py_ssize_t, more=Py_ssize_t, i=Py_ssize_t)
    cdef bint _is_long_utf8(self, Py_ssize_t pos, Py_ssize_t end) noexcept
    @cython.locals(parts=list, start=Py_ssize_t, pos=Py_ssize_t, at=Py_ssize_t, below=bint)
    cdef bytes _outside(self, Py_ssize_t begin, Py_ssize_t end)
    @cython.locals(scope=bytes, resource=bytes)
    cdef bytes _alone(self, Py_ssize_t begin, Py_ssize_t end)
    @cython.locals(fields=bytes)
    cdef Py_ssize_t _find_heads(self) except -4
    @cython.locals(index=Py_ssize_t, heads=Py_ssize_t)
    cdef Py_ssize_t _leaf(self, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t count) except -4
    @cython.locals(i=Py_ssize_t, begin=Py_ssize_t, end=Py_ssize_t, slot=Py_ssize_t)
    cdef Py_ssize_t _find_names(self, Py_ssize_t count) noexcept
    @cython.locals(i=Py_ssize_t, begin=Py_ssize_t, end=Py_ssize_t, place=Py_ssize_t, other=Py_ssize_t)
    cdef Py_ssize_t _repeats(self, Py_ssize_t low, Py_ssize_t high) noexcept
    @cython.locals(pos=Py_ssize_t, end=Py_ssize_t)
    cdef Py_ssize_t _string(self, Py_ssize_t index) noexcept
    cdef bint _is_spool(self) noexcept
    @cython.locals(
        i=Py_ssize_t, seen=Py_ssize_t, number=Py_ssize_t, wire_type=Py_ssize_t, shape=Py_ssize_t
    )
    cdef Py_ssize_t _fields(self, Py_ssize_t pos, Py_ssize_t end, Py_ssize_t base, Py_ssize_t last) noexcept
    @cython.locals(begin=Py_ssize_t, width=Py_ssize_t, number=Number, i=Py_ssize_t)
    cdef Py_ssize_t _field(self, Py_ssize_t pos, Py_ssize_t end, Py_ssize_t place, Py_ssize_t shape) noexcept
    cdef Py_ssize_t _child(self, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t place) noexcept
    @cython.locals(kind=Py_ssize_t, code=Py_ssize_t)
    cdef bint _odd_values(self) noexcept
    cdef bint _long_texts(self) noexcept
    @cython.locals(bits=cython.uint, i=Py_ssize_t)
    cdef bint _is_zero(self, Py_ssize_t begin, Py_ssize_t count) noexcept
    @cython.locals(
        place=Py_ssize_t, count=Py_ssize_t, i=Py_ssize_t, begin=Py_ssize_t, size=Py_ssize_t, kind=Py_ssize_t
    )
    cdef Py_ssize_t _map(self, Py_ssize_t low, Py_ssize_t high) except -4
    @cython.locals(pos=Py_ssize_t, end=Py_ssize_t, begin=Py_ssize_t, kind=Py_ssize_t)
    cdef Py_ssize_t _text(self, Py_ssize_t index) except -4
    @cython.locals(tag=Py_ssize_t)
    cdef Py_ssize_t _scalar(self, Py_ssize_t pos, Py_ssize_t end) except -4
    @cython.locals(stop=Py_ssize_t)
    cdef Py_ssize_t _array(self, Py_ssize_t pos, Py_ssize_t end) except -4
    @cython.locals(byte=Py_ssize_t)
    cdef Py_ssize_t _json_string(self, Py_ssize_t pos, Py_ssize_t end) except -4
    cdef Py_ssize_t _beginning(self) except -4
    cdef int _ending(self) except -1
    @cython.locals(http=Py_ssize_t)
    cdef Py_ssize_t _who_did_what(self) except -4
    @cython.locals(i=Py_ssize_t, index=Py_ssize_t)
    cdef Py_ssize_t _said(self, Py_ssize_t column) noexcept
    @cython.locals(i=Py_ssize_t)
    cdef Py_ssize_t _there(self, Py_ssize_t column) noexcept
    @cython.locals(index=Py_ssize_t)
    cdef int _said_or(self, Py_ssize_t column, bytes otherwise) except -1
    cdef int _append_text(self, bytes text) except -1
    @cython.locals(index=Py_ssize_t, begin=Py_ssize_t, size=Py_ssize_t, at=Py_ssize_t)
    cdef Py_ssize_t _word(self, Py_ssize_t column, bytes words, bytes otherwise) except -4
    cdef bint _is_one_of(self, Py_ssize_t index, bytes words)
    @cython.locals(index=Py_ssize_t, begin=Py_ssize_t, size=Py_ssize_t, i=Py_ssize_t, byte=Py_ssize_t)
    cdef Py_ssize_t _action(self) except -4
    @cython.locals(http=Py_ssize_t, grpc=Py_ssize_t, digits=Py_ssize_t, place=Py_ssize_t, i=Py_ssize_t)
    cdef bytes _outcome(self)
    @cython.locals(called=bint, i=Py_ssize_t, slot=Py_ssize_t, index=Py_ssize_t)
    cdef int _client_address(self) except -1
    @cython.locals(i=Py_ssize_t, index=Py_ssize_t, place=Py_ssize_t, size=Py_ssize_t)
    cdef Py_ssize_t _roles(self) except -4
    @cython.locals(begin=Py_ssize_t, count=Py_ssize_t, stop=Py_ssize_t)
    cdef Py_ssize_t _role_list(self, Py_ssize_t pos, Py_ssize_t end) except -4
    cdef int _record_id(self, Py_ssize_t index) except -1
    @cython.locals(ids=bytes, i=Py_ssize_t, byte=Py_ssize_t)
    cdef int _derive_record_id(self) except -1
    @cython.locals(count=Py_ssize_t, high=Py_ssize_t, i=Py_ssize_t, byte=Py_ssize_t, digit=Py_ssize_t)
    cdef bint _uuid(self, Py_ssize_t place) noexcept
    @cython.locals(place=Py_ssize_t, bits=Py_ssize_t, i=Py_ssize_t)
    cdef int _span_id(self, Py_ssize_t index) except -1
    cdef int _sequence_stream(self, Py_ssize_t index) except -1
    @cython.locals(number=Number, i=Py_ssize_t, digit=Py_ssize_t)
    cdef int _sequence_number(self, Py_ssize_t index) except -1
    @cython.locals(i=Py_ssize_t, low=Py_ssize_t)
    cdef Py_ssize_t _events(self, Py_ssize_t count) except -4
    @cython.locals(i=Py_ssize_t, low=Py_ssize_t)
    cdef Py_ssize_t _links(self, Py_ssize_t count) except -4
    @cython.locals(i=Py_ssize_t)
    cdef int _maps(self, Py_ssize_t count) except -1


cdef void _copy(unsigned char* to, Py_ssize_t at, Bytes source, Py_ssize_t begin, Py_ssize_t count) noexcept
cdef Py_ssize_t _bucket_of(Bytes p, Py_ssize_t begin, Py_ssize_t end) noexcept
cdef bint _same(
    Bytes p, Py_ssize_t begin, Py_ssize_t size, Bytes q, Py_ssize_t low, Py_ssize_t high
) noexcept
cdef bint _is_ascii(Bytes p, Py_ssize_t begin, Py_ssize_t size) noexcept
@cython.locals(at=Py_ssize_t, length=Py_ssize_t, i=Py_ssize_t, byte=Py_ssize_t)
cdef Py_ssize_t _find_word(
    Bytes words, Py_ssize_t end, Bytes p, Py_ssize_t begin, Py_ssize_t size, bint fold
) noexcept
cdef Py_ssize_t _uuid_place(Py_ssize_t i) noexcept
