# cython: language_level=3, boundscheck=False, wraparound=False
# cython: cdivision=True, initializedcheck=False
"""CRC-32C shells over crc32c_impl.c. Contract: volcore/kernels/crc32c.py."""

from cpython.buffer cimport PyBuffer_Release
from libc.stddef cimport size_t
from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t, uint64_t

from common cimport GIL_RELEASE_MIN_BYTES, acquire_bytes, as_unsigned, check_length, count_blocks


cdef extern from "crc32c_impl.h" nogil:
    void crc32c_setup()
    const char *crc32c_name(size_t index)
    const char *crc32c_current()
    int crc32c_use(const char *name)
    const char *crc32c_missing_feature()
    uint32_t crc32c_update(uint32_t crc, const uint8_t *data, size_t length_bytes)
    void core_blocks "crc32c_blocks"(
        const uint8_t *data, size_t block_size_bytes, size_t block_count, uint32_t *out)
    size_t crc32c_find_bad(
        const uint8_t *data, size_t block_size_bytes, size_t block_count, const uint32_t *expected)
    void crc32c_copy_blocks(
        uint8_t *target, const uint8_t *source, size_t block_size_bytes, size_t block_count,
        uint32_t *out)
    uint32_t core_combine "crc32c_combine"(
        uint32_t crc_first, uint32_t crc_second, uint64_t second_length_bytes)


crc32c_setup()


def implementations():
    cdef size_t index = 0
    names = []
    while crc32c_name(index) != NULL:
        names.append(crc32c_name(index).decode("ascii"))
        index += 1
    return names


def implementation():
    return crc32c_current().decode("ascii")


def use_implementation(str name not None):
    if crc32c_use(name.encode()) != 0:
        raise ValueError(f"no CRC-32C implementation {name!r} here, only {implementations()}")


def missing_cpu_feature():
    """Name a CPU feature that this build assumes and this CPU lacks, or None."""
    cdef const char *name = crc32c_missing_feature()
    return None if name == NULL else name.decode("ascii")


def crc32c(data, value=0):
    cdef uint32_t crc = <uint32_t>as_unsigned(value, UINT32_MAX)
    cdef Py_buffer view
    acquire_bytes(data, &view)
    if 0 < view.len < GIL_RELEASE_MIN_BYTES:
        crc = crc32c_update(crc, <const uint8_t *>view.buf, view.len)
    elif view.len > 0:
        with nogil:
            crc = crc32c_update(crc, <const uint8_t *>view.buf, view.len)
    PyBuffer_Release(&view)
    return crc


def crc32c_blocks(const uint8_t[::1] data not None, Py_ssize_t block_size_bytes,
                  uint32_t[::1] out not None):
    cdef Py_ssize_t count = count_blocks(data.shape[0], block_size_bytes)
    check_length("out", out.shape[0], count)
    if count == 0:
        return
    cdef const uint8_t *start = &data[0]
    cdef uint32_t *target = &out[0]
    if data.shape[0] < GIL_RELEASE_MIN_BYTES:
        core_blocks(start, block_size_bytes, count, target)
        return
    with nogil:
        core_blocks(start, block_size_bytes, count, target)


def find_bad_block(const uint8_t[::1] data not None, Py_ssize_t block_size_bytes,
                   const uint32_t[::1] expected not None):
    cdef Py_ssize_t count = count_blocks(data.shape[0], block_size_bytes)
    cdef Py_ssize_t index
    check_length("expected", expected.shape[0], count)
    if count == 0:
        return -1
    cdef const uint8_t *start = &data[0]
    cdef const uint32_t *wanted = &expected[0]
    if data.shape[0] < GIL_RELEASE_MIN_BYTES:
        index = crc32c_find_bad(start, block_size_bytes, count, wanted)
    else:
        with nogil:
            index = crc32c_find_bad(start, block_size_bytes, count, wanted)
    return -1 if index == count else index


def copy_crc32c_blocks(uint8_t[::1] target not None, const uint8_t[::1] source not None,
                       Py_ssize_t block_size_bytes, uint32_t[::1] out not None):
    cdef Py_ssize_t count = count_blocks(source.shape[0], block_size_bytes)
    check_length("target", target.shape[0], source.shape[0])
    check_length("out", out.shape[0], count)
    if count == 0:
        return
    cdef uint8_t *to = &target[0]
    cdef const uint8_t *start = &source[0]
    cdef uint32_t *crcs = &out[0]
    if source.shape[0] < GIL_RELEASE_MIN_BYTES:
        crc32c_copy_blocks(to, start, block_size_bytes, count, crcs)
        return
    with nogil:
        crc32c_copy_blocks(to, start, block_size_bytes, count, crcs)


def crc32c_combine(crc_first, crc_second, second_length_bytes):
    return core_combine(
        <uint32_t>as_unsigned(crc_first, UINT32_MAX),
        <uint32_t>as_unsigned(crc_second, UINT32_MAX),
        as_unsigned(second_length_bytes),
    )
