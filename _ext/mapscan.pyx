# cython: language_level=3, boundscheck=False, wraparound=False
# cython: cdivision=True, initializedcheck=False
"""The states of many chunks at once. Contract: volcore/kernels/mapscan.py."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT8_MAX, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from common cimport as_unsigned, check_length

cdef extern from "<endian.h>" nogil:
    uint32_t htole32(uint32_t number)
    uint32_t le32toh(uint32_t number)
    uint64_t htole64(uint64_t number)
    uint64_t le64toh(uint64_t number)

cdef extern from "crc32c_impl.h" nogil:
    void crc32c_setup()
    uint32_t crc32c_update(uint32_t crc, const uint8_t *data, size_t length_bytes)

cdef enum:
    CHUNK_BLOCKS = 1024
    PACKED_BYTES = 256
    MIXED = 3
    CHUNK_AT = 4
    FORM_AT = 12
    HEAD_BYTES = 13


crc32c_setup()


# ---- cores ----

cdef Py_ssize_t row_bytes(const uint8_t *row) noexcept nogil:
    return HEAD_BYTES + (PACKED_BYTES if row[FORM_AT] == MIXED else 0)


cdef Py_ssize_t count_rows(const uint8_t *rows, Py_ssize_t length) noexcept nogil:
    # -1 when the last one is cut off.
    cdef Py_ssize_t at = 0, count = 0
    while at < length:
        if length - at < HEAD_BYTES or length - at < row_bytes(rows + at):
            return -1
        at += row_bytes(rows + at)
        count += 1
    return count


cdef bint unpack(const uint8_t *packed, uint8_t *states) noexcept nogil:
    # False when a state is none that there is: both of its bits are set.
    cdef Py_ssize_t at
    cdef uint8_t both = 0
    cdef uint32_t four
    for at in range(PACKED_BYTES):
        four = packed[at]
        both |= packed[at] & packed[at] >> 1 & 0x55
        four = htole32((four | four << 6 | four << 12 | four << 18) & 0x03030303)
        memcpy(states + 4 * at, &four, 4)
    return both == 0


cdef bint read_core(const uint8_t *rows, Py_ssize_t count, uint64_t layer_id, uint64_t *chunks,
                    uint8_t *states) noexcept nogil:
    # False when a row is not what was written, or the chunks do not ascend.
    cdef uint64_t layer = htole64(layer_id), chunk
    cdef uint32_t seed = crc32c_update(0, <uint8_t *>&layer, sizeof(layer)), proof
    cdef Py_ssize_t number
    for number in range(count):
        memcpy(&proof, rows, sizeof(proof))
        if le32toh(proof) != crc32c_update(seed, rows + CHUNK_AT, row_bytes(rows) - CHUNK_AT):
            return False
        memcpy(&chunk, rows + CHUNK_AT, sizeof(chunk))
        chunks[number] = le64toh(chunk)
        if number and chunks[number] <= chunks[number - 1]:
            return False
        if rows[FORM_AT] > MIXED:
            return False
        if rows[FORM_AT] < MIXED:
            memset(states, rows[FORM_AT], CHUNK_BLOCKS)
        elif not unpack(rows + HEAD_BYTES, states):
            return False
        rows += row_bytes(rows)
        states += CHUNK_BLOCKS
    return True


cdef void fill_core(uint8_t *kinds, const uint8_t *below, uint8_t unknown) noexcept nogil:
    cdef Py_ssize_t at
    cdef bint takes
    for at in range(CHUNK_BLOCKS):
        takes = (kinds[at] == unknown) & (below[at] != 0)
        kinds[at] = below[at] if takes else kinds[at]


# ---- shells ----

def read_states(const uint8_t[::1] rows not None, layer_id):
    cdef uint64_t layer = as_unsigned(layer_id)
    cdef Py_ssize_t length = rows.shape[0], count = 0
    cdef bint proven = True
    if length:
        count = count_rows(&rows[0], length)
    if count < 0:
        raise ValueError("the last row is cut off")
    chunks = PyBytes_FromStringAndSize(NULL, count * sizeof(uint64_t))
    states = PyBytes_FromStringAndSize(NULL, count * CHUNK_BLOCKS)
    cdef uint64_t *chunks_at = <uint64_t *>PyBytes_AS_STRING(chunks)
    cdef uint8_t *states_at = <uint8_t *>PyBytes_AS_STRING(states)
    if count:
        with nogil:
            proven = read_core(&rows[0], count, layer, chunks_at, states_at)
    if not proven:
        raise ValueError("a row is not what was written")
    return chunks, states


def fill(uint8_t[::1] kinds not None, const uint64_t[::1] places not None,
         const uint8_t[::1] below not None, unknown):
    cdef uint8_t open_kind = <uint8_t>as_unsigned(unknown, UINT8_MAX)
    cdef Py_ssize_t count = places.shape[0], number
    if kinds.shape[0] % CHUNK_BLOCKS:
        raise ValueError(f"{kinds.shape[0]} blocks are no whole number of chunks")
    check_length("below", below.shape[0], count * CHUNK_BLOCKS)
    for number in range(count):
        if places[number] >= <uint64_t>(kinds.shape[0] // CHUNK_BLOCKS):
            raise ValueError(f"there is no chunk {places[number]}")
    with nogil:
        for number in range(count):
            fill_core(&kinds[<Py_ssize_t>places[number] * CHUNK_BLOCKS],
                      &below[number * CHUNK_BLOCKS], open_kind)
