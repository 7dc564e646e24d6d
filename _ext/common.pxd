"""What the kernels share: one bound, one core, and the checks of their shells."""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
)
from cpython.number cimport PyNumber_Index
from libc.stdint cimport UINT64_MAX, uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint64_t le64toh(uint64_t number)

cdef extern from * nogil:
    int __builtin_ctzll(uint64_t number)

cdef enum:
    # Giving up the GIL costs more than the work below this, and on a busy server the wait to get it
    # back can last a whole switch interval (5 ms). At 10 GB/s this many bytes take about 3 us.
    GIL_RELEASE_MIN_BYTES = 32768


cdef inline uint64_t as_unsigned(object value, uint64_t maximum=UINT64_MAX) except? 1:
    # Cython's own conversion of a float cuts it off; this refuses it.
    cdef uint64_t number = PyNumber_Index(value)
    if number > maximum:
        raise OverflowError(f"{number} is more than {maximum}")
    return number


cdef inline int acquire_bytes(object source, Py_buffer *view) except -1:
    # What a const uint8_t[::1] argument does, in a quarter of the time (no memoryview object is
    # made): for calls that may be as short as one block. The caller releases the view.
    cdef const char *item = "B"
    PyObject_GetBuffer(source, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    if view.format != NULL:
        item = view.format
    if item[0] == c"@" or item[0] == c"=" or item[0] == c"<":
        item += 1
    if view.ndim != 1 or (item[0] != c"B" and item[0] != c"c") or item[1] != 0:
        PyBuffer_Release(view)
        raise ValueError("expected one dimension of unsigned bytes")
    return 0


cdef inline Py_ssize_t count_blocks(Py_ssize_t length, Py_ssize_t block_size) except -1:
    if block_size <= 0:
        raise ValueError(f"block_size_bytes must be positive, not {block_size}")
    if length % block_size:
        raise ValueError(f"{length} bytes are no whole number of blocks of {block_size} bytes")
    return length // block_size


cdef inline int check_length(str name, Py_ssize_t actual, Py_ssize_t wanted) except -1:
    if actual != wanted:
        raise ValueError(f"{name} must have {wanted} items, not {actual}")
    return 0


cdef inline Py_ssize_t run_end(const uint8_t *items, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    # Where the run of equal items that begins at `at` ends.
    cdef uint8_t item = items[at]
    cdef uint64_t pattern = item * <uint64_t>0x0101010101010101, word
    at += 1
    while at + 8 <= end:
        memcpy(&word, items + at, 8)
        word = le64toh(word ^ pattern)
        if word:
            return at + __builtin_ctzll(word) // 8
        at += 8
    while at < end and items[at] == item:
        at += 1
    return at
