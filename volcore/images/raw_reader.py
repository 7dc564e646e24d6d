"""Reads the content of a raw file; holes are found by asking the file system, not by reading."""

import errno
import functools
import os
from collections.abc import Iterator
from typing import BinaryIO

from volcore.images.chunks import Fill
from volcore.images.fileio import fill_exactly
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES


class RawSource:
    """The chunks of a raw file; see `volcore.images.chunks.ChunkSource`."""

    def __init__(self, file: BinaryIO, file_size_bytes: int) -> None:
        self._file = file
        self._file_size_bytes = file_size_bytes
        self.size_bytes = -(-file_size_bytes // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES

    def chunks(self) -> Iterator[tuple[int, Fill]]:
        """See `ChunkSource.chunks`. *Concurrency*: moves the file position."""
        last = -1
        position = 0
        while position < self._file_size_bytes:
            try:
                start = os.lseek(self._file.fileno(), position, os.SEEK_DATA)
            except OSError as err:
                if err.errno == errno.ENXIO:  # no data up to the end
                    return
                raise
            position = os.lseek(self._file.fileno(), start, os.SEEK_HOLE)
            first = max(last + 1, start // CHUNK_SIZE_BYTES)
            last = max(last, (min(position, self._file_size_bytes) - 1) // CHUNK_SIZE_BYTES)
            for index in range(first, last + 1):
                yield index, functools.partial(self._fill, index)

    def _fill(self, index: int, buffer: memoryview) -> bool:
        offset_bytes = index * CHUNK_SIZE_BYTES
        end = min(CHUNK_SIZE_BYTES, self._file_size_bytes - offset_bytes)
        fill_exactly(self._file, offset_bytes, buffer[:end], format_name="raw")
        if end < CHUNK_SIZE_BYTES:
            buffer[end:] = bytes(CHUNK_SIZE_BYTES - end)
        return True
