# cython: language_level=3, boundscheck=False, wraparound=False
# cython: cdivision=True, initializedcheck=False
"""Zero detection shells over zero_impl.c. Contract: volcore/kernels/zero.py."""

from cpython.buffer cimport PyBuffer_Release
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from common cimport GIL_RELEASE_MIN_BYTES, acquire_bytes, check_length, count_blocks


cdef extern from "zero_impl.h" nogil:
    void zero_setup()
    int zero_is_zero(const uint8_t *data, size_t length_bytes)
    size_t zero_find_blocks(
        const uint8_t *data, size_t block_size_bytes, size_t block_count, uint8_t *out)


zero_setup()


def is_zero(data):
    cdef bint answer = True
    cdef Py_buffer view
    acquire_bytes(data, &view)
    if 0 < view.len < GIL_RELEASE_MIN_BYTES:
        answer = zero_is_zero(<const uint8_t *>view.buf, view.len)
    elif view.len > 0:
        with nogil:
            answer = zero_is_zero(<const uint8_t *>view.buf, view.len)
    PyBuffer_Release(&view)
    return answer


def find_zero_blocks(const uint8_t[::1] data not None, Py_ssize_t block_size_bytes,
                     uint8_t[::1] out not None):
    cdef Py_ssize_t count = count_blocks(data.shape[0], block_size_bytes)
    cdef Py_ssize_t zero_count
    check_length("out", out.shape[0], count)
    if count == 0:
        return 0
    cdef const uint8_t *start = &data[0]
    cdef uint8_t *target = &out[0]
    if data.shape[0] < GIL_RELEASE_MIN_BYTES:
        return zero_find_blocks(start, block_size_bytes, count, target)
    with nogil:
        zero_count = zero_find_blocks(start, block_size_bytes, count, target)
    return zero_count
