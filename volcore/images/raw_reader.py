"""Reads the content of a raw file; holes are found by asking the file system, not by reading."""

import errno
import functools
import os
from collections.abc import Iterator
from typing import BinaryIO

from volcore.images import refusals
from volcore.images.chunks import Fill
from volcore.images.fileio import fill_exactly, size_of, unreadable
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
        while (run := self._data_after(position)) is not None:
            start, position = run
            first = max(last + 1, start // CHUNK_SIZE_BYTES)
            last = max(last, (min(position, self._file_size_bytes) - 1) // CHUNK_SIZE_BYTES)
            for index in range(first, last + 1):
                yield index, functools.partial(self.fill, index)

    def _data_after(self, position: int) -> tuple[int, int] | None:
        """Return (start, end) of the next data at or after `position`, None at the end."""
        if position >= self._file_size_bytes:
            return None
        try:
            start = os.lseek(self._file.fileno(), position, os.SEEK_DATA)
            return start, os.lseek(self._file.fileno(), start, os.SEEK_HOLE)
        except OSError as err:
            if err.errno == errno.EINVAL:  # a block device knows no holes
                return position, self._file_size_bytes
            if err.errno != errno.ENXIO:
                raise unreadable(err) from err
        if size_of(self._file) < self._file_size_bytes:
            raise refusals.truncated("raw")
        return None  # a hole up to the end

    def fill(self, index: int, buffer: memoryview) -> bool:
        """Fill `buffer` with chunk `index`; see `volcore.images.chunks.Fill`."""
        offset_bytes = index * CHUNK_SIZE_BYTES
        end = min(CHUNK_SIZE_BYTES, self._file_size_bytes - offset_bytes)
        fill_exactly(self._file, offset_bytes, buffer[:end], format_name="raw")
        if end < CHUNK_SIZE_BYTES:
            buffer[end:] = bytes(CHUNK_SIZE_BYTES - end)
        return True
