"""Extents, and the only place where byte, block and chunk numbers convert into each other."""

from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import partial
from typing import Final, NamedTuple, overload

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


_MAKE: Final = partial(tuple.__new__, Extent)
"""As `Extent._make`, without a call of Python."""


class ExtentTable(Sequence[Extent]):
    """Extents in 24 bytes each, a sixth of what objects take; those are made when asked for.

    Neighbours of one kind are joined as they are added.
    """

    __slots__ = ("_words",)

    def __init__(self, words: "array[int] | None" = None) -> None:
        """Hold `words`, three for each extent."""
        self._words = array("Q") if words is None else words

    def add(self, table: bytes) -> None:
        """Append what `volcore.kernels.extents.of_blocks` returned; it lies behind all before."""
        words, last = array("Q", table), self._words
        if last and words and (last[-3] + last[-2], last[-1]) == (words[0], words[2]):
            last[-2] += words[1]
            del words[:3]
        last += words

    def __len__(self) -> int:
        """Count the extents."""
        return len(self._words) // 3

    @overload
    def __getitem__(self, index: int) -> Extent: ...
    @overload
    def __getitem__(self, index: slice) -> "ExtentTable": ...
    def __getitem__(self, index: int | slice) -> "Extent | ExtentTable":
        """Return one extent, or a table of some that follow each other."""
        if isinstance(index, slice):
            first, end, step = index.indices(len(self))
            assert step == 1, "a table has no gaps"
            return ExtentTable(self._words[3 * first : 3 * end])
        at = 3 * range(len(self))[index]
        offset_bytes, length_bytes, kind = self._words[at : at + 3]
        return Extent(offset_bytes, length_bytes, ExtentKind(kind))

    def __iter__(self) -> Iterator[Extent]:
        """Go through the extents."""
        kinds = tuple(ExtentKind)
        words = iter(self._words)
        for offset_bytes, length_bytes, kind in zip(words, words, words, strict=True):
            yield _MAKE((offset_bytes, length_bytes, kinds[kind]))


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
