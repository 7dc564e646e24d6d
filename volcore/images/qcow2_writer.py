"""The layout of a qcow2 file that is written front to back: all tables first, then the data.

    header | refcount table | refcount blocks | L1 | L2 tables | data clusters

Version 3, clusters of 64 KiB, 16-bit reference counts, each 1. L2 tables exist only where there is
data, and are computed one at a time while the file is written.
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from volcore.images.qcow2_format import COPIED, HEADER_V2, HEADER_V3_MORE, MAGIC
from volcore.limits import FRAME_BYTES_MAX, KIB

CLUSTER_BITS: Final = 16
CLUSTER_BYTES: Final = 64 * KIB
_REFCOUNT_ORDER: Final = 4
_REFCOUNT_BYTES: Final = 2
_REFCOUNTS_PER_BLOCK: Final = CLUSTER_BYTES // _REFCOUNT_BYTES
_ENTRIES_PER_TABLE: Final = CLUSTER_BYTES // 8
_SPAN_BYTES: Final = _ENTRIES_PER_TABLE * CLUSTER_BYTES
"""What one L2 table maps: 512 MiB."""
_HEADER_LENGTH: Final = 112
_VERSION: Final = 3
_INCOMPATIBLE = _COMPATIBLE = _AUTOCLEAR = 0

assert CLUSTER_BYTES == 1 << CLUSTER_BITS


class Qcow2Layout:
    """Where everything goes in the file."""

    def __init__(self, size_bytes: int, runs: Sequence[tuple[int, int]]) -> None:
        """Compute the layout.

        Args:
            size_bytes: size of the disk.
            runs: ascending, separate (start, end) of data, in whole clusters.
        """
        self.size_bytes = size_bytes
        self.runs = runs
        self._starts = [start for start, _ in runs]
        self._before = list(accumulate((end - start for start, end in runs), initial=0))
        """Bytes of data before each run."""
        self._l2_numbers = list(_tables(runs))
        l1_entry_count = -(-size_bytes // _SPAN_BYTES)
        self._l1_entry_count = l1_entry_count
        l1_clusters = _clusters(l1_entry_count * 8)
        data_clusters = self._before[-1] // CLUSTER_BYTES
        body = l1_clusters + len(self._l2_numbers) + data_clusters
        self._refcount_blocks, self._refcount_clusters = _refcount_sizes(1 + body)
        first = 1 + self._refcount_clusters
        self._refcount_block_offset = first * CLUSTER_BYTES
        self._l1_offset = (first + self._refcount_blocks) * CLUSTER_BYTES
        self._l2_offset = self._l1_offset + l1_clusters * CLUSTER_BYTES
        self.data_offset_bytes = self._l2_offset + len(self._l2_numbers) * CLUSTER_BYTES
        self.file_size_bytes = self.data_offset_bytes + data_clusters * CLUSTER_BYTES

    def metadata(self) -> Iterator[tuple[int, bytes]]:
        """Yield the pieces of the file up to the data; zeroes may be left out."""
        yield 0, self._header()
        table = _numbers(
            self._refcount_block_offset + i * CLUSTER_BYTES for i in range(self._refcount_blocks)
        )
        yield from _cut(CLUSTER_BYTES, table)
        cluster_count = self.file_size_bytes // CLUSTER_BYTES
        for block in range(self._refcount_blocks):
            count = min(_REFCOUNTS_PER_BLOCK, cluster_count - block * _REFCOUNTS_PER_BLOCK)
            yield (
                self._refcount_block_offset + block * CLUSTER_BYTES,
                (b"\0\x01" * count).ljust(CLUSTER_BYTES, b"\0"),
            )
        l1 = array("Q", bytes(8 * self._l1_entry_count))
        for place, number in enumerate(self._l2_numbers):
            l1[number] = COPIED | (self._l2_offset + place * CLUSTER_BYTES)
        yield from _cut(self._l1_offset, _numbers(l1))
        for place, number in enumerate(self._l2_numbers):
            yield self._l2_offset + place * CLUSTER_BYTES, self._l2_table(number)

    def _header(self) -> bytes:
        header = HEADER_V2.pack(
            MAGIC, _VERSION, 0, 0, CLUSTER_BITS, self.size_bytes, 0,
            self._l1_entry_count, self._l1_offset, CLUSTER_BYTES, self._refcount_clusters, 0, 0,
        ) + HEADER_V3_MORE.pack(
            _INCOMPATIBLE, _COMPATIBLE, _AUTOCLEAR, _REFCOUNT_ORDER, _HEADER_LENGTH
        )  # fmt: skip
        return header.ljust(_HEADER_LENGTH + 8, b"\0")  # ends with the empty list of extensions

    def _l2_table(self, number: int) -> bytes:
        """Return the table that maps `_SPAN_BYTES` from number * _SPAN_BYTES on."""
        entries = array("Q", bytes(CLUSTER_BYTES))
        first, last = number * _SPAN_BYTES, (number + 1) * _SPAN_BYTES
        index = max(0, bisect_right(self._starts, first) - 1)
        while index < len(self.runs) and self.runs[index][0] < last:
            start, end = self.runs[index]
            offset = self.data_offset_bytes + self._before[index] - start
            low, high = max(start, first), min(end, last)
            for place in range(low, high, CLUSTER_BYTES):
                entries[(place - first) // CLUSTER_BYTES] = COPIED | (offset + place)
            index += 1
        return _numbers(entries)


def _tables(runs: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Yield the numbers of the L2 tables that the runs need."""
    after = 0
    for start, end in runs:
        first = max(after, start // _SPAN_BYTES)
        after = max(after, (end - 1) // _SPAN_BYTES + 1)
        yield from range(first, after)


def _refcount_sizes(cluster_count: int) -> tuple[int, int]:
    """Return how many refcount blocks and table clusters count `cluster_count` and themselves."""
    blocks = tables = 0
    while True:
        total = cluster_count + blocks + tables
        needed_blocks = -(-total // _REFCOUNTS_PER_BLOCK)
        needed_tables = _clusters(needed_blocks * 8)
        if (needed_blocks, needed_tables) == (blocks, tables):
            return blocks, tables
        blocks, tables = needed_blocks, needed_tables


def _clusters(length_bytes: int) -> int:
    return -(-length_bytes // CLUSTER_BYTES)


def _numbers(values: "Iterator[int] | array[int]") -> bytes:
    """Return 64-bit big-endian numbers."""
    listed = tuple(values)
    return struct.pack(f">{len(listed)}Q", *listed)


def _cut(offset_bytes: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(data), FRAME_BYTES_MAX):
        yield offset_bytes + start, data[start : start + FRAME_BYTES_MAX]
