"""Extents, and the only place where byte, block and chunk numbers convert into each other."""

from enum import IntEnum
from typing import NamedTuple

from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES


class ExtentKind(IntEnum):
    """What a range holds, seen from one volume or layer.

    The numbers are the block states of the chunk map (`volcore.kernels.chunkmap`).
    """

    ABSENT = 0
    """Nothing here: read the parent, or zeroes where there is none."""
    DATA = 1
    ZERO = 2
    """Trimmed or zeroed: reads as zeroes; the parent is not consulted."""


class Extent(NamedTuple):
    """A byte range of one kind; `length_bytes` is at least 1. A tuple: lists of them are long."""

    offset_bytes: int
    length_bytes: int
    kind: ExtentKind

    @property
    def end_bytes(self) -> int:
        """First byte after the range."""
        return self.offset_bytes + self.length_bytes


def block_index(offset_bytes: int) -> int:
    """Return the index of the block that holds the byte."""
    return offset_bytes // BLOCK_SIZE_BYTES


def block_count(size_bytes: int) -> int:
    """Return how many blocks cover `size_bytes`, the last one maybe partly."""
    return -(-size_bytes // BLOCK_SIZE_BYTES)


def chunk_index(offset_bytes: int) -> int:
    """Return the index of the chunk that holds the byte."""
    return offset_bytes // CHUNK_SIZE_BYTES


def chunk_count(size_bytes: int) -> int:
    """Return how many chunks cover `size_bytes`, the last one maybe partly."""
    return -(-size_bytes // CHUNK_SIZE_BYTES)
