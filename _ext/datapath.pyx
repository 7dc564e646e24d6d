# cython: language_level=3, boundscheck=False, wraparound=False
# cython: cdivision=True, initializedcheck=False
"""Verified reads and checksummed writes of an open volume, and the NBD loop over them, without
the GIL. Contract: volcore/kernels/datapath.py.

Lock order: the GIL is never held while a stripe's mutex is waited for; whoever holds a mutex may
wait for the GIL. The mutex of descriptors is a leaf.
"""

from os import sched_getaffinity

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_READ, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release,
    PyObject_GetBuffer
)
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EINTR, EOPNOTSUPP, ETIMEDOUT, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcpy, memmove, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, pread, pwrite

from system cimport (
    MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN, PTHREAD_MUTEX_RECURSIVE, RWF_NOWAIT, SHUT_RDWR, be16toh, be32toh, be64toh,
    htobe16, htobe32, htobe64, iovec, msghdr, poll, pollfd, preadv2, pthread_cond_broadcast,
    pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_t,
    pthread_cond_timedwait, pthread_cond_wait, pthread_condattr_destroy, pthread_condattr_init,
    pthread_condattr_setclock, pthread_condattr_t, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_trylock, pthread_mutex_unlock,
    pthread_mutexattr_destroy, pthread_mutexattr_init, pthread_mutexattr_settype,
    pthread_mutexattr_t, recv, sendmsg, shutdown
)


cdef extern from "crc32c_impl.h" nogil:
    void crc32c_setup()
    void crc32c_blocks(const uint8_t *, size_t, size_t, uint32_t *)
    size_t crc32c_find_bad(const uint8_t *, size_t, size_t, const uint32_t *)

cdef enum:
    BLOCK_BYTES = 4096
    CHUNK_BLOCKS = 1024
    CHUNK_BYTES = 4194304
    STRIPES = 16
    BUCKETS = 64  # of a stripe's table of maps
    RUNS_MAX = 32  # owners that one pass reads from
    PIECE_BLOCKS = 64  # checksummed while it is in the second-level cache
    HOLE_BLOCKS_MIN = 8  # shorter holes travel as zeroes
    ZERO_OWNER = 0xFFFE
    DATA = 1

# What came of a request.
cdef enum:
    DONE = 0
    ASK = 1  # something rare: the Python path does it from the beginning
    WAIT = 2  # it would have to wait for the disk

crc32c_setup()

include "layerfd.pxi"
include "chunkcache.pxi"
include "layerio.pxi"


cdef inline Py_ssize_t run_end(const uint16_t *owners, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    # UNRESOLVED and ZERO_OWNER differ in the lowest bit alone: setting it makes them one.
    cdef uint16_t bit = 1 if owners[at] >= ZERO_OWNER else 0
    cdef uint16_t owner = owners[at] | bit
    cdef uint64_t bits = bit * <uint64_t>0x0001000100010001, word
    cdef uint64_t pattern = owner * <uint64_t>0x0001000100010001
    at += 1
    while at + 4 <= end:
        memcpy(&word, owners + at, 8)
        if (word | bits) != pattern:
            break
        at += 4
    while at < end and (owners[at] | bit) == owner:
        at += 1
    return at


cdef class DataPath:
    """The maps and descriptors of an open volume. Contract: volcore/kernels/datapath.py."""

    cdef stripe *stripes_at[STRIPES]
    cdef slot **slots  # by position in the chain; NULL until attached
    cdef int chain_length
    cdef volatile uint64_t _size_bytes
    cdef volatile bint _closed
    cdef bint writable
    cdef Py_ssize_t dirty_max
    cdef readonly tuple stripes

    def __cinit__(self, *, bint writable, Py_ssize_t dirty_chunks_max):
        cdef int number
        self.stripes = tuple([Stripe() for _ in range(STRIPES)])
        for number in range(STRIPES):
            self.stripes_at[number] = (<Stripe>self.stripes[number]).one
        self.writable = writable
        self.dirty_max = dirty_chunks_max

    def __dealloc__(self):
        self._detach()

    cdef void _detach(self):
        cdef int position
        if self.slots != NULL:
            for position in range(self.chain_length):
                if self.slots[position] != NULL:
                    slot_drop(self.slots[position])
            free(self.slots)
            self.slots = NULL
        self.chain_length = 0

    @property
    def size_bytes(self):
        return self._size_bytes

    @size_bytes.setter
    def size_bytes(self, uint64_t value):
        self._size_bytes = value

    @property
    def closed(self):
        return self._closed

    @closed.setter
    def closed(self, bint value):
        self._closed = value

    def set_chain(self, int length):
        self._detach()
        self.slots = <slot **>calloc(length, sizeof(void *))
        if self.slots == NULL:
            raise MemoryError
        self.chain_length = length

    def extend_chain(self, int length):
        cdef slot **longer
        if length < self.chain_length:
            raise ValueError("a chain that gets shorter is another one")
        longer = <slot **>calloc(length, sizeof(void *))
        if longer == NULL:
            raise MemoryError
        memcpy(longer, self.slots, self.chain_length * sizeof(void *))
        free(self.slots)
        self.slots = longer
        self.chain_length = length

    def attach(self, int position, LayerFd file not None):
        if not 0 <= position < self.chain_length:
            raise ValueError(f"position {position} is not in a chain of {self.chain_length}")
        if self.slots[position] == NULL:  # else somebody may be about to enter the one that is there
            slot_hold(file.one)
            self.slots[position] = file.one

    def dirty_count(self):
        cdef Py_ssize_t total = 0
        cdef int number
        for number in range(STRIPES):
            total += self.stripes_at[number].dirty_count
        return total

    def read(self, uint64_t first_block, target):
        cdef Py_buffer view
        cdef int outcome
        PyObject_GetBuffer(target, &view, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
        try:
            if view.len % BLOCK_BYTES:
                raise ValueError("whole blocks only")
            with nogil:
                outcome = self.read_blocks(
                    first_block, view.len // BLOCK_BYTES, <uint8_t *>view.buf, False, False)
        finally:
            PyBuffer_Release(&view)
        return outcome == DONE

    def write(self, uint64_t first_block, source):
        cdef Py_buffer view
        cdef int outcome
        PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
        try:
            if view.len % BLOCK_BYTES:
                raise ValueError("whole blocks only")
            with nogil:
                outcome = self.write_blocks(
                    first_block, view.len // BLOCK_BYTES, <const uint8_t *>view.buf)
        finally:
            PyBuffer_Release(&view)
        return outcome == DONE

    cdef int read_blocks(self, uint64_t block, Py_ssize_t count, uint8_t *target, bint nowait,
                         bint sparse) noexcept nogil:
        cdef Py_ssize_t first, part
        cdef int outcome
        while count:
            first = block % CHUNK_BLOCKS
            part = min(count, CHUNK_BLOCKS - first)
            outcome = self.read_chunk(block // CHUNK_BLOCKS, first, part, target, nowait, sparse)
            if outcome != DONE:
                return outcome
            block += part
            target += part * BLOCK_BYTES
            count -= part
        return DONE

    cdef int read_chunk(self, uint64_t index, Py_ssize_t first, Py_ssize_t count, uint8_t *target,
                        bint nowait, bint sparse) noexcept nogil:
        # Owners and CRCs are looked up under the mutex, bytes are read without it.
        cdef stripe *guard = self.stripes_at[index % STRIPES]
        cdef uint32_t crcs[CHUNK_BLOCKS]
        cdef slot *slots[RUNS_MAX]
        cdef int fds[RUNS_MAX]
        cdef Py_ssize_t lengths[RUNS_MAX]
        cdef Py_ssize_t end = first + count, at, stop
        cdef const uint32_t *expected
        cdef chunk *found
        cdef int runs, run, outcome = DONE
        while first < end and outcome == DONE:
            runs = 0
            at = first
            pthread_mutex_lock(&guard.mutex)
            found = find_chunk(guard, index)
            if found == NULL:
                outcome = ASK
            else:
                while at < end and runs < RUNS_MAX:
                    stop = run_end(found.owners, at, end)
                    lengths[runs] = stop - at
                    slots[runs] = NULL
                    fds[runs] = -1
                    if found.owners[at] < ZERO_OWNER:
                        if found.owners[at] < self.chain_length:
                            slots[runs] = self.slots[found.owners[at]]
                        if slots[runs] != NULL:
                            fds[runs] = slot_enter(slots[runs])
                        if fds[runs] < 0:
                            outcome = ASK
                            break
                    elif sparse and stop - at >= HOLE_BLOCKS_MIN:
                        outcome = ASK
                        break
                    runs += 1
                    at = stop
                memcpy(crcs, found.crcs + first, (at - first) * sizeof(uint32_t))
            pthread_mutex_unlock(&guard.mutex)
            expected = crcs
            for run in range(runs):
                if fds[run] >= 0:
                    if outcome == DONE:
                        outcome = read_run(fds[run], target, index * CHUNK_BYTES + first * BLOCK_BYTES,
                                           lengths[run], expected, nowait)
                    slot_leave(slots[run])
                else:
                    memset(target, 0, lengths[run] * BLOCK_BYTES)
                target += lengths[run] * BLOCK_BYTES
                expected += lengths[run]
                first += lengths[run]
        return outcome

    cdef int write_blocks(self, uint64_t block, Py_ssize_t count,
                          const uint8_t *source) noexcept nogil:
        cdef Py_ssize_t first, part
        cdef int outcome
        while count:
            first = block % CHUNK_BLOCKS
            part = min(count, CHUNK_BLOCKS - first)
            outcome = self.write_chunk(block // CHUNK_BLOCKS, first, part, source)
            if outcome != DONE:
                return outcome
            block += part
            source += part * BLOCK_BYTES
            count -= part
        return DONE

    cdef int write_chunk(self, uint64_t index, Py_ssize_t first, Py_ssize_t count,
                         const uint8_t *source) noexcept nogil:
        # The mutex is held from the write to the change of the CRCs: whoever reads under it sees
        # both or none.
        cdef stripe *guard = self.stripes_at[index % STRIPES]
        cdef slot *top = NULL
        cdef chunk *found = NULL
        cdef int fd = -1, outcome = ASK
        pthread_mutex_lock(&guard.mutex)
        if self.writable and not self._closed and self.chain_length:
            found = find_chunk(guard, index)
            top = self.slots[self.chain_length - 1]
        if found != NULL and top != NULL and guard.dirty_count * STRIPES <= self.dirty_max:
            if found.noted or memchr(found.maybe_durable + first, 1, count) == NULL:
                fd = slot_enter(top)
        if fd >= 0:
            link_dirty(guard, found)
            outcome = write_run(fd, found, <uint16_t>(self.chain_length - 1), first, count, source)
            slot_leave(top)
        pthread_mutex_unlock(&guard.mutex)
        return outcome


include "nbdloop.pxi"
