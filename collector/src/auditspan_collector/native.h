/* What the compiled hot path does beneath Python: copies, and SHA-256 of short pieces without an object a digest.

   The digests are OpenSSL's (EVP_DigestInit(3)), from the library that Python's own hashlib uses, found at run time.
   Nothing is linked, and where they can't be had the caller uses hashlib. The contexts are shared: call with the GIL
   held. */

#ifndef AUDITSPAN_NATIVE_H
#define AUDITSPAN_NATIVE_H

#include <Python.h>
#include <string.h>

/* A new bytes object that is to be filled before anybody else sees it. */
static inline PyObject *auditspan_bytes(ptrdiff_t size) { return PyBytes_FromStringAndSize(NULL, size); }

static inline void auditspan_copy(unsigned char *to, ptrdiff_t at, const unsigned char *source, ptrdiff_t begin,
                                  ptrdiff_t count)
{
    memcpy(to + at, source + begin, (size_t)count);
}

/* The same where most pieces are short: two moves that may overlap instead of a call. */
static inline void auditspan_copy_short(unsigned char *to, ptrdiff_t at, const unsigned char *source, ptrdiff_t begin,
                                        ptrdiff_t count)
{
    to += at;
    source += begin;
    if (count > 32) {
        memcpy(to, source, (size_t)count);
    } else if (count >= 16) {
        unsigned char first[16], last[16];
        memcpy(first, source, 16);
        memcpy(last, source + count - 16, 16);
        memcpy(to, first, 16);
        memcpy(to + count - 16, last, 16);
    } else if (count >= 8) {
        unsigned long long first, last;
        memcpy(&first, source, 8);
        memcpy(&last, source + count - 8, 8);
        memcpy(to, &first, 8);
        memcpy(to + count - 8, &last, 8);
    } else if (count >= 4) {
        unsigned int first, last;
        memcpy(&first, source, 4);
        memcpy(&last, source + count - 4, 4);
        memcpy(to, &first, 4);
        memcpy(to + count - 4, &last, 4);
    } else {
        for (ptrdiff_t i = 0; i < count; i++)
            to[i] = source[i];
    }
}

/* A part of a table's columns (columnar.py): *to* is where its next bytes go in its room, *limit* where that ends. The
   room has AUDITSPAN_SLACK bytes more: a short piece is copied as if it were that long, where the rows go on for as
   much, which takes no branch for each length. */
typedef struct {
    unsigned char *room, *to, *limit;
    long long kind; /* of a value: so many bytes, or 0: a string */
} auditspan_part;

#define AUDITSPAN_SLACK 64
#define AUDITSPAN_AHEAD 256 /* a row writes to more places than a core foresees; measured, a fourth less time */

static inline void auditspan_part_begin(unsigned char *parts, ptrdiff_t part, PyObject *room, ptrdiff_t used,
                                        ptrdiff_t size, ptrdiff_t kind)
{
    auditspan_part *its = (auditspan_part *)parts + part;
    its->room = (unsigned char *)PyByteArray_AS_STRING(room);
    its->to = its->room + used;
    its->limit = its->room + size;
    its->kind = kind;
}

static inline void auditspan_part_clear(unsigned char *parts, ptrdiff_t part)
{
    auditspan_part *its = (auditspan_part *)parts + part;
    its->to = its->room;
}

static inline ptrdiff_t auditspan_part_size(const unsigned char *parts, ptrdiff_t part)
{
    const auditspan_part *its = (const auditspan_part *)parts + part;
    return its->to - its->room;
}

/* Append the *size* bytes at *at* of rows[0:end]: 1 when there was room. */
static inline int auditspan_append(unsigned char *parts, ptrdiff_t part, const unsigned char *rows, ptrdiff_t at,
                                   ptrdiff_t size, ptrdiff_t end)
{
    auditspan_part *its = (auditspan_part *)parts + part;
    unsigned char *to = its->to;
    if (size > its->limit - to)
        return 0;
    if (size <= 32 && end - at >= 32)
        memcpy(to, rows + at, 32);
    else if (size <= AUDITSPAN_SLACK && end - at >= AUDITSPAN_SLACK)
        memcpy(to, rows + at, AUDITSPAN_SLACK);
    else
        memcpy(to, rows + at, (size_t)size);
    its->to = to + size;
    __builtin_prefetch(to + AUDITSPAN_AHEAD, 1);
    return 1;
}

/* Append the value at *at* of rows[0:end]; where it ends, or -1 when it must be looked at more closely. */
static inline ptrdiff_t auditspan_take(unsigned char *parts, ptrdiff_t part, const unsigned char *rows, ptrdiff_t at,
                                       ptrdiff_t end)
{
    ptrdiff_t size = ((const auditspan_part *)parts)[part].kind;
    if (size == 0) {
        if (at >= end || rows[at] >= 0x80)
            return -1;
        size = rows[at] + 1;
    }
    return size <= end - at && auditspan_append(parts, part, rows, at, size, end) ? at + size : -1;
}

/* Append the last *size* bytes once more: 1 when there was room. */
static inline int auditspan_append_again(unsigned char *parts, ptrdiff_t part, ptrdiff_t size)
{
    auditspan_part *its = (auditspan_part *)parts + part;
    if (size > its->limit - its->to)
        return 0;
    memcpy(its->to, its->to - size, (size_t)size);
    its->to += size;
    return 1;
}

static inline int auditspan_same(const unsigned char *rows, ptrdiff_t one, ptrdiff_t other, ptrdiff_t size)
{
    return memcmp(rows + one, rows + other, (size_t)size) == 0;
}

/* Have memory[at] on its way into the cache. */
static inline void auditspan_prefetch(const unsigned char *memory, ptrdiff_t at) { __builtin_prefetch(memory + at, 1); }

/* 64 bits of the 16 at keys[at] and a secret: both halves of a product. */
static inline unsigned long long auditspan_mix(const unsigned char *keys, ptrdiff_t at, unsigned long long first,
                                               unsigned long long second)
{
    unsigned long long low, high;
    unsigned __int128 product;
    memcpy(&low, keys + at, 8);
    memcpy(&high, keys + at + 8, 8);
    product = (unsigned __int128)(low ^ first) * (high ^ second);
    return (unsigned long long)product ^ (unsigned long long)(product >> 64);
}

static inline int auditspan_same_key(const unsigned char *one, ptrdiff_t at, const unsigned char *other,
                                     ptrdiff_t begin)
{
    return memcmp(one + at, other + begin, 16) == 0;
}

/* Whether two short pieces of *size* bytes are the same. */
static inline int auditspan_equal(const unsigned char *one, ptrdiff_t at, const unsigned char *other, ptrdiff_t begin,
                                  ptrdiff_t size)
{
    unsigned long long a, b, bits = 0;
    one += at;
    other += begin;
    if (size < 8) {
        for (ptrdiff_t i = 0; i < size; i++)
            bits |= one[i] ^ other[i];
        return bits == 0;
    }
    for (ptrdiff_t i = 0; i < size - 8; i += 8) {
        memcpy(&a, one + i, 8);
        memcpy(&b, other + i, 8);
        bits |= a ^ b;
    }
    memcpy(&a, one + size - 8, 8); /* the last ones, some of them a second time */
    memcpy(&b, other + size - 8, 8);
    return (bits | (a ^ b)) == 0;
}

/* Whether no byte of text[begin:end] has its high bit set. */
static inline int auditspan_is_ascii(const unsigned char *text, ptrdiff_t begin, ptrdiff_t end)
{
    const unsigned long long high = 0x8080808080808080ULL;
    unsigned long long eight, bits = 0;
    ptrdiff_t at = begin;
    if (end - begin < 8) {
        unsigned char byte = 0;
        for (; at < end; at++)
            byte |= text[at];
        return byte < 0x80;
    }
    for (; at < end - 8; at += 8) {
        memcpy(&eight, text + at, 8);
        bits |= eight;
    }
    memcpy(&eight, text + end - 8, 8); /* the last ones, some of them a second time */
    return ((bits | eight) & high) == 0;
}

/* Eight bytes, little endian. */
static inline void auditspan_put_index(unsigned char *to, ptrdiff_t at, unsigned long long index)
{
    int i;
    for (i = 0; i < 8; i++)
        to[at + i] = (unsigned char)(index >> (8 * i));
}

/* Append *index*: 1 when there was room. */
static inline int auditspan_append_index(unsigned char *parts, ptrdiff_t part, unsigned long long index)
{
    auditspan_part *its = (auditspan_part *)parts + part;
    if (its->limit - its->to < 8)
        return 0;
    auditspan_put_index(its->to, 0, index);
    __builtin_prefetch(its->to + AUDITSPAN_AHEAD, 1);
    its->to += 8;
    return 1;
}

typedef struct {
    int (*init)(void *, const void *, void *);
    int (*update)(void *, const void *, size_t);
    int (*final)(void *, unsigned char *, unsigned int *);
    int (*copy)(void *, const void *);
    const void *algorithm;
    void *context, *other;
} auditspan_evp;

static auditspan_evp auditspan_sha256 = {0};

static inline int auditspan_sha256_begin(const unsigned char *data, ptrdiff_t size)
{
    auditspan_evp *evp = &auditspan_sha256;
    return evp->init(evp->context, evp->algorithm, NULL) == 1 && evp->update(evp->context, data, (size_t)size) == 1;
}

static inline int auditspan_sha256_add(const unsigned char *data, ptrdiff_t size)
{
    return auditspan_sha256.update(auditspan_sha256.context, data, (size_t)size) == 1;
}

static inline int auditspan_sha256_end(unsigned char *digest)
{
    return auditspan_sha256.final(auditspan_sha256.context, digest, NULL) == 1;
}

/* Of the columns leaf[begin:end], the digests of 0x00 || columns and of 0x00 || columns || last, in one pass; 32 bytes
   are written at each place. 1 when done, as all that follow. */
static inline int auditspan_sha256_leaf(const unsigned char *leaf, ptrdiff_t begin, ptrdiff_t end,
                                        const unsigned char *last, ptrdiff_t last_size,
                                        unsigned char *identity, ptrdiff_t identity_at,
                                        unsigned char *hash, ptrdiff_t hash_at)
{
    auditspan_evp *evp = &auditspan_sha256;
    return auditspan_sha256_begin((const unsigned char *)"", 1)
        && auditspan_sha256_add(leaf + begin, end - begin)
        && evp->copy(evp->other, evp->context) == 1
        && evp->final(evp->other, identity + identity_at, NULL) == 1
        && auditspan_sha256_add(last, last_size)
        && auditspan_sha256_end(hash + hash_at);
}

/* Of the node whose children stand at tree[at:at+64], the digest of 0x01 || children; it takes the left one's place. */
static inline int auditspan_sha256_node(unsigned char *tree, ptrdiff_t at)
{
    return auditspan_sha256_begin((const unsigned char *)"\1", 1)
        && auditspan_sha256_add(tree + at, 64)
        && auditspan_sha256_end(tree + at);
}

/* The digest of begin || body[a:a+a_size] || body[b:b+b_size]. */
static inline int auditspan_sha256_id(const unsigned char *begin, ptrdiff_t size, const unsigned char *body,
                                      ptrdiff_t a, ptrdiff_t a_size, ptrdiff_t b, ptrdiff_t b_size,
                                      unsigned char *digest)
{
    return auditspan_sha256_begin(begin, size)
        && auditspan_sha256_add(body + a, a_size)
        && auditspan_sha256_add(body + b, b_size)
        && auditspan_sha256_end(digest);
}

#ifdef _WIN32

static inline int auditspan_sha256_load(const char *library) { (void)library; return 0; }

#else

#include <dlfcn.h>

static void *auditspan_symbol(void *library, const char *name) { return dlsym(library, name); }

/* Look the functions up in what the shared object *library* is linked with: 1 when they are there and are right. */
static inline int auditspan_sha256_load(const char *library)
{
    static const unsigned char expected[4] = {0xba, 0x78, 0x16, 0xbf}; /* FIPS 180-2, appendix B.1: "abc" */
    auditspan_evp *evp = &auditspan_sha256;
    void *(*fetch)(void *, const char *, const char *);
    const void *(*algorithm)(void);
    void *(*context)(void);
    unsigned char digest[32];
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return 0;
    /* POSIX's way to turn what dlsym gives into a function. */
    *(void **)&evp->init = auditspan_symbol(handle, "EVP_DigestInit_ex");
    *(void **)&evp->update = auditspan_symbol(handle, "EVP_DigestUpdate");
    *(void **)&evp->final = auditspan_symbol(handle, "EVP_DigestFinal_ex");
    *(void **)&evp->copy = auditspan_symbol(handle, "EVP_MD_CTX_copy_ex");
    *(void **)&fetch = auditspan_symbol(handle, "EVP_MD_fetch"); /* OpenSSL 3; looks the algorithm up only once */
    *(void **)&algorithm = auditspan_symbol(handle, "EVP_sha256");
    *(void **)&context = auditspan_symbol(handle, "EVP_MD_CTX_new");
    if (!evp->init || !evp->update || !evp->final || !evp->copy || !algorithm || !context)
        return 0;
    evp->algorithm = fetch ? fetch(NULL, "SHA256", NULL) : algorithm();
    evp->context = context();
    evp->other = context();
    if (!evp->algorithm || !evp->context || !evp->other)
        return 0;
    return auditspan_sha256_begin((const unsigned char *)"abc", 3)
        && auditspan_sha256_end(digest)
        && memcmp(digest, expected, sizeof expected) == 0;
}

#endif
#endif
