"""Blocks of one layer: read and proven, written and checksummed."""


cdef bint nowait_works = True


cdef int read_run(int fd, uint8_t *target, size_t offset_bytes, Py_ssize_t count,
                  const uint32_t *crcs, bint nowait) noexcept nogil:
    # Read whole blocks and prove them, piece by piece.
    global nowait_works
    cdef iovec vector
    cdef Py_ssize_t got, blocks
    cdef size_t done, want
    while count:
        blocks = min(count, <Py_ssize_t>PIECE_BLOCKS)
        want = blocks * BLOCK_BYTES
        done = 0
        while done < want:
            if nowait and nowait_works:
                vector.iov_base = target + done
                vector.iov_len = want - done
                got = preadv2(fd, &vector, 1, offset_bytes + done, RWF_NOWAIT)
                if got < 0 and errno == EOPNOTSUPP:
                    nowait_works = False
                    continue
                if got < 0 and errno == EAGAIN:
                    return WAIT
            else:
                got = pread(fd, target + done, want - done, offset_bytes + done)
            if got < 0 and errno == EINTR:
                continue
            if got <= 0:
                return ASK
            done += got
        if crc32c_find_bad(target, BLOCK_BYTES, blocks, crcs) != <size_t>blocks:
            return ASK  # met a write, or damage: the Python path tells them apart
        target += want
        offset_bytes += want
        crcs += blocks
        count -= blocks
    return DONE


cdef int write_run(int fd, chunk *found, uint16_t owner, Py_ssize_t first, Py_ssize_t count,
                   const uint8_t *source) noexcept nogil:
    cdef Py_ssize_t blocks, at, got
    cdef size_t done, want
    while count:
        found.version += 1
        blocks = min(count, <Py_ssize_t>PIECE_BLOCKS)
        want = blocks * BLOCK_BYTES
        done = 0
        while done < want:
            got = pwrite(fd, source + done, want - done,
                         found.index * CHUNK_BYTES + first * BLOCK_BYTES + done)
            if got < 0 and errno == EINTR:
                continue
            if got <= 0:
                break
            done += got
        blocks = done // BLOCK_BYTES
        crc32c_blocks(source, BLOCK_BYTES, blocks, found.crcs + first)
        memset(found.states + first, DATA, blocks)
        for at in range(first, first + blocks):
            found.owners[at] = owner
        first += blocks
        count -= blocks
        source += blocks * BLOCK_BYTES
        if done < want:
            take_over(fd, found, first, count)
            return ASK
    return DONE


cdef void take_over(int fd, chunk *found, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    # After a failed write, take the CRCs of what is in the file: old, or partly new.
    cdef uint8_t block[BLOCK_BYTES]
    cdef Py_ssize_t at
    for at in range(first, first + count):
        if found.states[at] == DATA:
            if pread(fd, block, BLOCK_BYTES, found.index * CHUNK_BYTES + at * BLOCK_BYTES) == BLOCK_BYTES:
                crc32c_blocks(block, BLOCK_BYTES, 1, found.crcs + at)
