"""The block states of an open volume, in memory that outlives the process.

An answered write is in the page cache, and survives the death of the process; that its block is
DATA now is known to memory alone until a flush. A guest does not notice that its server died: QEMU
connects again, and the next flush succeeds. So the states of the maps of an open volume lie in
shared memory: after a `kill -9`, `recovery.settle` finds them there. Checksums are not kept: they
are taken from the data, as for a note.

A page fault there waits for no disk: a pool whose disk hangs holds no other one up.

Layout: docs/formats/local.md. INV-LOCAL-12 (must): a chunk's mark is set before a change of it is
answered, and cleared after the commit that made it durable.
"""

import ctypes
import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from volcore.limits import CHUNK_BLOCKS

_HEADER: Final = struct.Struct("<8sQqq")
"""Magic, layer id, and its page sum of now and after the commit under way."""
_MAGIC: Final = b"volcoreU"
_ENTRY: Final = struct.Struct("<QBxxxxxxx")
"""Chunk index, mark."""
_PAGE_BYTES: Final = 4096
_SLOTS: Final = _PAGE_BYTES // _ENTRY.size
_SEGMENT_BYTES: Final = _PAGE_BYTES + _SLOTS * CHUNK_BLOCKS
_MARK_AT: Final = 8
_FAILED: Final = ctypes.c_void_p(-1).value

_log = structlog.get_logger("volcore.local")
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Place:
    """Where the states of one chunk lie."""

    __slots__ = ("_free", "_number", "mark", "states")

    def __init__(
        self, number: int, free: "deque[int]", states: memoryview, mark: memoryview
    ) -> None:
        """Take the place `number`, which goes back to `free` with this object."""
        self._number = number
        self._free = free
        self.states = states
        """1024 bytes."""
        self.mark = mark
        """One byte: 1 while the states are not durable."""

    def __del__(self) -> None:
        self._free.append(self._number)


class _Mapped(ctypes.c_char * _SEGMENT_BYTES):  # type: ignore[misc]
    """Part of a file, until nothing points there; unlike `mmap.mmap` it keeps no descriptor."""

    def __del__(self) -> None:
        _libc.munmap(ctypes.addressof(self), _SEGMENT_BYTES)


def _mapped(fd: int, at: int) -> memoryview:
    flags = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc.mmap(None, _SEGMENT_BYTES, flags, mmap.MAP_SHARED, fd, at)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return memoryview(_Mapped.from_address(address)).cast("B")


class Unflushed:
    """The file of one open volume; made with the first place that is taken.

    *Concurrency*: `take` from any thread; the rest with nobody taking.
    """

    def __init__(self, path: Path | None, layer_id: int, page_sum: int) -> None:
        """Keep the states of the layer in `path`, which is new; None: there are no places."""
        self._path = path
        self._layer_id = layer_id
        self._sums = page_sum, page_sum
        self._lock = threading.Lock()
        self._header: memoryview | None = None
        self._segments: list[memoryview] = []
        self._free: deque[int] = deque()
        self._given_up = path is None

    def take(self, chunk_index: int) -> Place | None:
        """Return a place without a mark; None where there is no space for one."""
        while True:
            with suppress(IndexError):
                number = self._free.pop()
                break
            if not self._grow():
                return None
        segment = self._segments[number // _SLOTS]
        slot = number % _SLOTS
        _ENTRY.pack_into(segment, slot * _ENTRY.size, chunk_index, 0)
        mark_at = slot * _ENTRY.size + _MARK_AT
        states_at = _PAGE_BYTES + slot * CHUNK_BLOCKS
        return Place(
            number,
            self._free,
            segment[states_at : states_at + CHUNK_BLOCKS],
            segment[mark_at : mark_at + 1],
        )

    def follow(self, layer_id: int, page_sum: int) -> None:
        """The states are of another layer from now on; no mark is set."""
        with self._lock:
            self._layer_id = layer_id
            self._write_header(page_sum, page_sum)

    def expect(self, page_sum: int) -> None:
        """Inside a transaction that changes pages of the layer: say what its page sum will be."""
        with self._lock:
            self._write_header(self._sums[0], page_sum)

    def arrive(self) -> None:
        """The transaction was committed."""
        with self._lock:
            self._write_header(self._sums[1], self._sums[1])

    def _write_header(self, now: int, later: int) -> None:
        self._sums = now, later
        if self._header is not None:
            _HEADER.pack_into(self._header, 0, _MAGIC, self._layer_id, now, later)

    def drop(self) -> None:
        """Delete the file: all is durable, or nobody may know it any more. Idempotent."""
        with self._lock:
            self._given_up = True
            if self._path is not None and self._header is not None:
                self._path.unlink(missing_ok=True)
                self._header = None
                self._segments.clear()

    def leave(self) -> "Left | None":
        """Keep the file, if there is one, and touch it no more."""
        with self._lock:
            self._given_up = True
            if self._path is None or self._header is None:
                return None
            return Left(self._path, self._layer_id, self._sums)

    def _grow(self) -> bool:
        """Make more places; return whether there are any."""
        with self._lock:
            if self._free:
                return True
            if self._given_up:
                return False
            try:
                self._map_more()
            except OSError as err:
                self._given_up = True
                _log.warning(
                    "what this volume has not flushed is lost if the server is killed",
                    file=str(self._path),
                    reason=err.strerror,
                )
            return not self._given_up

    def _map_more(self) -> None:
        assert self._path is not None
        new = 0
        if self._header is None:
            self._path.unlink(missing_ok=True)  # the rows say what counts of it
            new = os.O_CREAT | os.O_EXCL
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | new, 0o600)
        try:
            at = _PAGE_BYTES + len(self._segments) * _SEGMENT_BYTES
            os.posix_fallocate(fd, at, _SEGMENT_BYTES)  # else a page fault finds no memory
            segment = _mapped(fd, at)
            if self._header is None:
                os.posix_fallocate(fd, 0, _PAGE_BYTES)
                self._header = _mapped(fd, 0)
                self._write_header(*self._sums)
        finally:
            os.close(fd)
        first = len(self._segments) * _SLOTS
        self._segments.append(segment)
        self._free.extend(range(first, first + _SLOTS))


@dataclass(frozen=True, slots=True)
class Left:
    """A file of a volume that is not open."""

    path: Path
    layer_id: int
    sums: tuple[int, int]

    def counts(self, layer_id: int, page_sum: int) -> bool:
        """Say whether it is of the layer, and nobody else has changed pages since."""
        return layer_id == self.layer_id and page_sum in self.sums


def found(path: Path) -> Left | None:
    """Return what a file says of itself; None if it was never finished."""
    with path.open("rb") as file:
        raw = file.read(_HEADER.size)
    if len(raw) < _HEADER.size:
        return None
    magic, layer_id, now, later = _HEADER.unpack(raw)
    return Left(path, layer_id, (now, later)) if magic == _MAGIC else None


def marked(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (chunk index, states) of each chunk that was not durable."""
    with path.open("rb") as file:
        file.seek(_PAGE_BYTES)
        while len(segment := file.read(_SEGMENT_BYTES)) == _SEGMENT_BYTES:
            for slot in range(_SLOTS):
                chunk_index, mark = _ENTRY.unpack_from(segment, slot * _ENTRY.size)
                if mark:
                    at = _PAGE_BYTES + slot * CHUNK_BLOCKS
                    yield chunk_index, segment[at : at + CHUNK_BLOCKS]
