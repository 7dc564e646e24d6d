"""Reads the content of a qcow2 file: no other process, no other file, every number checked.

Clusters that lie one after the other in the file are read with one request. The mapping is a plain
tree (L1, L2, cluster); this module only ever follows it downwards, so that a circle cannot exist.
A file in which one cluster serves many places claims more data than it has and is refused as soon
as that shows, so that a small upload cannot fill a pool.
"""

import functools
import threading
import zlib
from array import array
from collections.abc import Iterator
from typing import BinaryIO, Final

from volcore.images import refusals
from volcore.images.chunks import Fill
from volcore.images.fileio import fill_exactly, read_at
from volcore.images.qcow2_format import (
    COMPRESSED,
    OFFSET_MASK,
    ZERO,
    read_header,
    read_l1,
    read_table,
)
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES, MIB

_CACHE_BYTES: Final = 32 * MIB
"""Mapping tables kept in memory."""
_ZERO_CHUNK: Final = bytes(CHUNK_SIZE_BYTES)
_SECTOR_BYTES: Final = 512
_WINDOW_BITS: Final = -12
"""Raw deflate with the window that QEMU uses."""

_Run = tuple[int, int, int]
"""Place in the chunk, place in the file, length in bytes."""


class Qcow2Source:
    """The chunks of a qcow2 file; see `volcore.images.chunks.ChunkSource`."""

    def __init__(self, file: BinaryIO, file_size_bytes: int) -> None:
        self._file = file
        self._file_size_bytes = file_size_bytes
        self._header = read_header(file)
        if not self._header.zlib:  # it was: other compressions are left to qemu-img
            raise refusals.changed("qcow2")
        self._l1 = read_l1(file, self._header, file_size_bytes)
        self.size_bytes = -(-self._header.size_bytes // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES
        self._lock = threading.Lock()
        self._claimed_bytes = 0
        tables = max(4, _CACHE_BYTES // self._header.cluster_size_bytes)
        self._l2 = functools.lru_cache(maxsize=tables)(self._read_l2)

    def chunks(self) -> Iterator[tuple[int, Fill]]:
        """See `ChunkSource.chunks`."""
        span = self._header.l2_span_bytes
        last = -1
        for number, offset_bytes in enumerate(self._l1):
            if not offset_bytes:
                continue
            end_bytes = min((number + 1) * span, self._header.size_bytes)
            first = max(last + 1, number * span // CHUNK_SIZE_BYTES)
            last = max(last, (end_bytes - 1) // CHUNK_SIZE_BYTES)
            for index in range(first, last + 1):
                yield index, functools.partial(self.fill, index)

    def fill(self, index: int, buffer: memoryview) -> bool:
        """Fill `buffer` with chunk `index`; see `volcore.images.chunks.Fill`."""
        runs, compressed = self._map(index)
        if not runs and not compressed:
            return False
        covered = sum(length for _, _, length in runs)
        self._claim(covered + sum(max(1, size - _SECTOR_BYTES + 1) for _, _, size in compressed))
        if covered < CHUNK_SIZE_BYTES:
            buffer[:] = _ZERO_CHUNK
        for place, offset_bytes, length in runs:
            piece = buffer[place : place + length]
            fill_exactly(self._file, offset_bytes, piece, format_name="qcow2")
        for place, offset_bytes, length in compressed:
            self._inflate(offset_bytes, length, buffer[place:])
        self._clear_after_end(index, buffer)
        return True

    def _map(self, index: int) -> tuple[list[_Run], list[_Run]]:
        """Return the plain and the compressed runs of a chunk."""
        header = self._header
        cluster = header.cluster_size_bytes
        start = index * CHUNK_SIZE_BYTES
        end = min(start + CHUNK_SIZE_BYTES, header.size_bytes)
        runs: list[_Run] = []
        compressed: list[_Run] = []
        position = start
        while position < end:
            number, slot = divmod(position >> header.cluster_bits, header.l2_entry_count)
            stop = min(end, (number + 1) * header.l2_span_bytes)
            if self._l1[number]:
                count = -(-(stop - position) // cluster)
                for entry in self._l2(number)[slot : slot + count]:
                    length = min(cluster, end - position)
                    self._map_entry(entry, position - start, length, runs, compressed)
                    position += cluster
            position = stop
        return runs, compressed

    def _map_entry(
        self, entry: int, place: int, length: int, runs: list[_Run], compressed: list[_Run]
    ) -> None:
        """Add one cluster of the disk to the runs."""
        header = self._header
        if entry & COMPRESSED:
            shift = 62 - (header.cluster_bits - 8)
            sectors = ((entry >> shift) & ((1 << (header.cluster_bits - 8)) - 1)) + 1
            offset_bytes = entry & ((1 << shift) - 1)
            size = sectors * _SECTOR_BYTES - offset_bytes % _SECTOR_BYTES
            compressed.append((place, offset_bytes, size))
            return
        offset_bytes = entry & OFFSET_MASK
        if not offset_bytes or (header.version >= 3 and entry & ZERO):
            return
        if offset_bytes % header.cluster_size_bytes:
            raise refusals.corrupt(
                "a cluster of the qcow2 file is misplaced; repair it with qemu-img check -r all"
            )
        if runs:
            before, its_offset_bytes, its_length = runs[-1]
            if (before + its_length, its_offset_bytes + its_length) == (place, offset_bytes):
                runs[-1] = (before, its_offset_bytes, its_length + length)
                return
        runs.append((place, offset_bytes, length))

    def _inflate(self, offset_bytes: int, length_bytes: int, target: memoryview) -> None:
        """Unpack one cluster; the last sector of the file may be cut short, QEMU does that."""
        cluster = self._header.cluster_size_bytes
        if offset_bytes >= self._file_size_bytes:
            raise refusals.truncated("qcow2")
        packed = read_at(self._file, offset_bytes, length_bytes)
        try:
            data = zlib.decompressobj(_WINDOW_BITS).decompress(packed, cluster)
        except zlib.error as err:
            raise _bad_compression() from err
        if len(data) != cluster:
            raise _bad_compression()
        length = min(cluster, len(target))
        target[:length] = data[:length]

    def _claim(self, length_bytes: int) -> None:
        """Count what the tables say the file holds; a sound file holds each byte once."""
        with self._lock:
            self._claimed_bytes += length_bytes
            claimed_bytes = self._claimed_bytes
        if claimed_bytes > self._file_size_bytes:
            raise refusals.corrupt(
                "the qcow2 file maps more data than it holds; it is cut off or made to deceive: "
                "get it again, or convert it with qemu-img convert -O qcow2"
            )

    def _clear_after_end(self, index: int, buffer: memoryview) -> None:
        """Zero what a compressed cluster holds after the end of the disk."""
        end = self._header.size_bytes - index * CHUNK_SIZE_BYTES
        if end < CHUNK_SIZE_BYTES:
            buffer[end:] = bytes(CHUNK_SIZE_BYTES - end)

    def _read_l2(self, number: int) -> "array[int]":
        return read_table(self._file, self._l1[number], self._header.l2_entry_count)


def _bad_compression() -> Exception:
    return refusals.corrupt(
        "a compressed cluster of the qcow2 file does not unpack; get the file again"
    )
