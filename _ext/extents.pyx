# cython: language_level=3, boundscheck=False, wraparound=False
# cython: cdivision=True, initializedcheck=False
"""Extent algebra. Contract: volcore/kernels/extents.py.

The GIL stays held where both sides are Python tuples, and building those is the work.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT8_MAX, UINT64_MAX, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, qsort

from common cimport as_unsigned, run_end

cdef extern from *:
    """
    typedef unsigned __int128 uint128_t;
    """
    ctypedef uint64_t uint128_t  # wider in C than here; only used in C expressions


cdef struct Layout:
    uint64_t object_size
    uint64_t unit
    uint64_t count


cdef struct Piece:
    uint64_t object_index
    uint64_t object_offset
    uint64_t length


cdef struct Span:
    uint64_t start
    uint64_t end
    Py_ssize_t rank  # place in the caller's list: the higher one wins
    uint8_t kind


# ---- cores ----

cdef Piece piece_at(const Layout *layout, uint64_t offset, uint64_t left) noexcept nogil:
    # Striper::file_to_extents, one turn of its loop, with its names.
    cdef uint64_t stripes_per_object = layout.object_size // layout.unit
    cdef uint64_t blockno = offset // layout.unit
    cdef uint64_t stripeno = blockno // layout.count
    cdef uint64_t stripepos = blockno % layout.count
    cdef uint64_t objectsetno = stripeno // stripes_per_object
    cdef uint64_t block_off = offset % layout.unit
    cdef Piece piece
    piece.object_index = objectsetno * layout.count + stripepos
    piece.object_offset = (stripeno % stripes_per_object) * layout.unit + block_off
    piece.length = min(left, layout.unit - block_off)
    return piece


cdef bint image_offset(const Layout *layout, uint64_t object_index, uint64_t object_offset,
                       uint64_t *offset) noexcept nogil:
    # Striper::extent_to_file. False when the byte lies past 2**64 - 1.
    cdef uint64_t stripes_per_object = layout.object_size // layout.unit
    cdef uint128_t stripeno = (<uint128_t>(object_index // layout.count) * stripes_per_object
                               + object_offset // layout.unit)
    cdef uint128_t blockno
    if stripeno > UINT64_MAX:
        return False
    blockno = stripeno * layout.count + object_index % layout.count
    if blockno > UINT64_MAX:
        return False
    blockno = blockno * layout.unit + object_offset % layout.unit
    if blockno > UINT64_MAX:
        return False
    offset[0] = <uint64_t>blockno
    return True


cdef int compare_spans(const void *first, const void *second) noexcept nogil:
    cdef const Span *a = <const Span *>first
    cdef const Span *b = <const Span *>second
    return (a.start > b.start) - (a.start < b.start)


cdef void heap_push(Span *heap, Py_ssize_t count, Span span) noexcept nogil:
    cdef Py_ssize_t at = count, parent
    while at > 0:
        parent = (at - 1) // 2
        if heap[parent].rank > span.rank:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = span


cdef void heap_pop(Span *heap, Py_ssize_t count) noexcept nogil:
    # Drops the top of a heap of count items.
    cdef Span last = heap[count - 1]
    cdef Py_ssize_t at = 0, child = 1
    count -= 1
    while child < count:
        if child + 1 < count and heap[child + 1].rank > heap[child].rank:
            child += 1
        if last.rank > heap[child].rank:
            break
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = last


cdef Py_ssize_t emit(Span *out, Py_ssize_t count, uint64_t start, uint64_t end,
                     uint8_t kind) noexcept nogil:
    if count and out[count - 1].end == start and out[count - 1].kind == kind:
        out[count - 1].end = end
        return count
    out[count].start = start
    out[count].end = end
    out[count].kind = kind
    return count + 1


cdef Py_ssize_t merge_core(Span *spans, Py_ssize_t count, Span *heap, Span *out) noexcept nogil:
    # Sweep from left to right. The heap holds the spans begun, the latest in the caller's list on
    # top. Each turn goes to a start or an end, so out needs at most 2 * count items.
    cdef Py_ssize_t at, next_span = 0, heap_count = 0, out_count = 0
    cdef uint64_t position = 0, limit
    for at in range(1, count):
        if spans[at].start < spans[at - 1].start:
            qsort(spans, count, sizeof(Span), compare_spans)
            break
    while next_span < count or heap_count:
        if heap_count == 0:
            position = spans[next_span].start
        while next_span < count and spans[next_span].start <= position:
            heap_push(heap, heap_count, spans[next_span])
            heap_count += 1
            next_span += 1
        while heap_count and heap[0].end <= position:
            heap_pop(heap, heap_count)
            heap_count -= 1
        if heap_count:
            limit = heap[0].end
            if next_span < count and spans[next_span].start < limit:
                limit = spans[next_span].start
            out_count = emit(out, out_count, position, limit, heap[0].kind)
            position = limit
    return out_count


cdef Py_ssize_t count_runs(const uint8_t *kinds, Py_ssize_t count) noexcept nogil:
    # Of kinds other than 0.
    cdef Py_ssize_t at, found = kinds[0] != 0
    for at in range(1, count):
        found += (kinds[at] != kinds[at - 1]) & (kinds[at] != 0)
    return found


cdef Py_ssize_t tabulate(const uint64_t *chunks, Py_ssize_t chunk_count, const uint8_t *kinds,
                         Py_ssize_t block_count, uint64_t block_size, uint64_t end,
                         uint64_t *table) noexcept nogil:
    # Returns the number of words written: three for each extent.
    cdef Py_ssize_t chunk, at, stop, used = 0
    cdef uint64_t base, first, length
    for chunk in range(chunk_count):
        base = chunks[chunk] * (block_count * block_size)
        at = 0
        while at < block_count:
            stop = run_end(kinds, at, block_count)
            first = base + at * block_size
            if first >= end:
                return used
            if kinds[at]:
                length = min((stop - at) * block_size, end - first)
                if used and (table[used - 3] + table[used - 2] == first
                             and table[used - 1] == kinds[at]):
                    table[used - 2] += length
                else:
                    table[used] = first
                    table[used + 1] = length
                    table[used + 2] = kinds[at]
                    used += 3
            at = stop
        kinds += block_count
    return used


# ---- shells ----

cdef Layout as_layout(object object_size, object unit, object count) except *:
    cdef Layout layout = Layout(as_unsigned(object_size), as_unsigned(unit), as_unsigned(count))
    if layout.object_size == 0 or layout.unit == 0 or layout.count == 0:
        raise ValueError("object_size_bytes, stripe_unit_bytes and stripe_count must be positive")
    if layout.object_size % layout.unit:
        raise ValueError(f"object size {object_size} is no multiple of stripe unit {unit}")
    return layout


cdef int check_end(uint64_t offset, uint64_t length) except -1:
    if length > UINT64_MAX - offset:
        raise OverflowError(f"{offset} + {length} is past 2**64 - 1")
    return 0


def map_extents(offset_bytes, length_bytes, *, object_size_bytes, stripe_unit_bytes,
                stripe_count):
    cdef Layout layout = as_layout(object_size_bytes, stripe_unit_bytes, stripe_count)
    cdef uint64_t offset = as_unsigned(offset_bytes), length = as_unsigned(length_bytes), done = 0
    cdef Piece piece
    check_end(offset, length)
    if layout.count == 1:
        layout.unit = layout.object_size  # as Ceph does: one object after the other, whole
    extents = []
    while done < length:
        piece = piece_at(&layout, offset + done, length - done)
        extents.append((piece.object_index, piece.object_offset, piece.length, done))
        done += piece.length
    return extents


def object_to_image(object_index, object_offset_bytes, *, object_size_bytes, stripe_unit_bytes,
                    stripe_count):
    cdef Layout layout = as_layout(object_size_bytes, stripe_unit_bytes, stripe_count)
    cdef uint64_t index = as_unsigned(object_index), within = as_unsigned(object_offset_bytes)
    cdef uint64_t offset = 0
    if within >= layout.object_size:
        raise ValueError(f"offset {within} is past the object's {layout.object_size} bytes")
    if not image_offset(&layout, index, within, &offset):
        raise OverflowError("the byte lies past 2**64 - 1 in the image")
    return offset


cdef Py_ssize_t read_spans(object extents, Span *spans, Py_ssize_t limit) except -1:
    # Empty extents are left out. Returns how many spans were filled in.
    cdef Py_ssize_t count = 0
    cdef uint64_t start, size
    for offset, length, kind in extents:
        if count == limit:
            raise ValueError("extents changed while being read")
        start = as_unsigned(offset)
        size = as_unsigned(length)
        check_end(start, size)
        spans[count] = Span(start, start + size, count, <uint8_t>as_unsigned(kind, UINT8_MAX))
        if size:
            count += 1
    return count


def merge_extents(extents not None):
    cdef Py_ssize_t limit = len(extents), count, at
    cdef Span *spans
    cdef Span *out
    if limit == 0:
        return []
    spans = <Span *>malloc(4 * limit * sizeof(Span))  # input, heap, and twice that for output
    if spans == NULL:
        raise MemoryError
    try:
        out = spans + 2 * limit
        count = merge_core(spans, read_spans(extents, spans, limit), spans + limit, out)
        return [(out[at].start, out[at].end - out[at].start, out[at].kind) for at in range(count)]
    finally:
        free(spans)


cdef int check_chunks(const uint64_t[::1] chunks, Py_ssize_t block_count,
                      uint64_t block_size) except -1:
    cdef Py_ssize_t at
    if block_size == 0 or block_size > <uint64_t>1 << 32 or block_count > 1 << 20:
        raise ValueError(f"{block_count} blocks of {block_size} bytes are no chunk")
    for at in range(1, chunks.shape[0]):
        if chunks[at] <= chunks[at - 1]:
            raise ValueError("the chunks do not ascend")
    if chunks[chunks.shape[0] - 1] >= (<uint64_t>1 << 63) // (block_count * block_size):
        raise ValueError(f"chunk {chunks[chunks.shape[0] - 1]} lies past 2**63 bytes")
    return 0


def of_blocks(const uint64_t[::1] chunks not None, const uint8_t[::1] kinds not None,
              block_size_bytes, end_bytes):
    cdef uint64_t block_size = as_unsigned(block_size_bytes), end = as_unsigned(end_bytes)
    cdef Py_ssize_t count = chunks.shape[0], length = kinds.shape[0], bound, used
    if count == 0 and length == 0:
        return b""
    if count == 0 or length == 0 or length % count:
        raise ValueError(f"{length} blocks are not those of {count} chunks")
    check_chunks(chunks, length // count, block_size)
    cdef Py_ssize_t block_count = length // count, chunk
    with nogil:
        bound = 0
        for chunk in range(count):
            bound += count_runs(&kinds[chunk * block_count], block_count)
    table = PyBytes_FromStringAndSize(NULL, 3 * bound * sizeof(uint64_t))
    cdef uint64_t *words = <uint64_t *>PyBytes_AS_STRING(table)
    with nogil:
        used = tabulate(&chunks[0], count, &kinds[0], block_count, block_size, end, words)
    return table if used == 3 * bound else table[:used * sizeof(uint64_t)]
