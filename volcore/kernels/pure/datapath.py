"""Oracle of the data path: the same locks and tables, and no I/O. Contract: the module's face."""

import os
import threading
from collections import OrderedDict
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STRIPES = 16
_CHUNK_BLOCKS = 1024
_mutex = threading.Lock()
_clock = 0


def _tick() -> int:
    global _clock
    _clock += 1
    return _clock


class LayerFd:
    """A layer's descriptor: open, in use by some threads, or closed."""

    def __init__(self) -> None:
        self._fd = -1
        self._users = 0
        self._doomed = False
        self.used = 0
        """When it was entered last; larger is later."""

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def is_open(self) -> bool:
        """Whether `enter` gives a descriptor."""
        return self._fd >= 0

    def install(self, fd: int) -> None:
        """Take over the open descriptor `fd`."""
        if fd < 0 or self._fd >= 0 or self._doomed:
            raise ValueError("the descriptor must be open, and none may be there")
        self.used = _tick()
        self._fd = fd

    def enter(self) -> int:
        """Return the descriptor, which stays open until `leave`, or -1: then do not leave."""
        with _mutex:
            if self._fd >= 0:
                self._users += 1
                self.used = _tick()
            return self._fd

    def leave(self) -> None:
        """Say that the descriptor is no longer used by this call."""
        with _mutex:
            self._users -= 1
            if not self._users and self._doomed and self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def close(self, unless_used: bool = False) -> bool:
        """Close, at once or when the last user leaves; return whether it is closed.

        With `unless_used`, one in use stays open; else it never opens again.
        """
        with _mutex:
            self._doomed |= not unless_used
            if self._users:
                return False
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            return True


class ChunkState:
    """What the data path needs of a chunk's map: its arrays, which stay where they are."""

    def __init__(
        self,
        index: int,
        owners: "Buffer",
        crcs: "Buffer",
        states: "Buffer",
        maybe_durable: "Buffer",
        mark: "Buffer | None" = None,
    ) -> None:
        """Pin the arrays: owners uint16, CRCs uint32, states and maybe_durable uint8, each 1024.

        `maybe_durable` is 1 for each block that may not be overwritten unless `noted`. `mark` is a
        byte that is 1 while the map is dirty; one that its stripe forgot keeps its mark.
        """
        for array, item in ((owners, 2), (crcs, 4), (states, 1), (maybe_durable, 1)):
            if memoryview(array).nbytes != item * _CHUNK_BLOCKS:
                raise ValueError("an array of a chunk's map has the wrong size")
        self.mark = memoryview(bytearray(1) if mark is None else mark).cast("B")
        if len(self.mark) != 1:
            raise ValueError("a mark is one byte")
        self.index = index
        self.version = 0
        """Counts changes."""
        self.durable_version = 0
        self.noted = False
        self.dirty = False
        """In its stripe's list of changed maps."""


class Stripe:
    """A lock of an open volume, and the maps under it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._maps: OrderedDict[int, ChunkState] = OrderedDict()
        self._dirty: dict[int, ChunkState] = {}

    def acquire(self) -> None:
        """Wait for the lock."""
        self._lock.acquire()

    def release(self) -> None:
        """Let go once."""
        self._lock.release()

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def dirty_count(self) -> int:
        """Maps that were changed; may be read without the lock."""
        return len(self._dirty)

    def find(self, index: int) -> ChunkState | None:
        """Return the chunk's map, which thereby counts as used."""
        found = self._maps.get(index)
        if found is not None:
            self._maps.move_to_end(index)
        return found

    def add(self, state: ChunkState) -> None:
        """Keep a map that is not there yet."""
        if state.index in self._maps:
            raise ValueError(f"chunk {state.index} is there already")
        self._maps[state.index] = state

    def shrink(self, count_max: int, besides: int) -> int:
        """Forget clean maps, least used first, not `besides`; return how many."""
        removed = 0
        for index in list(self._maps):
            if len(self._maps) <= count_max:
                break
            if index != besides and index not in self._dirty:
                del self._maps[index]
                removed += 1
        return removed

    def states(self) -> list[ChunkState]:
        """Return all maps, in any order."""
        return list(self._maps.values())

    def dirty(self) -> list[ChunkState]:
        """Return the changed maps, the longest changed first."""
        return list(self._dirty.values())

    def soil(self, state: ChunkState) -> None:
        """Note that a map of this stripe was changed."""
        if self._maps.get(state.index) is not state:
            raise ValueError(f"chunk {state.index} is not in this stripe")
        state.dirty = True
        state.mark[0] = 1
        self._dirty.setdefault(state.index, state)

    def settle(self, state: ChunkState) -> None:
        """Note that a map is durable as it is."""
        if state.dirty:
            state.dirty = False
            state.mark[0] = 0
            del self._dirty[state.index]

    def clear(self) -> None:
        """Forget all maps; none may be dirty."""
        if self._dirty:
            raise ValueError("changed maps may not be forgotten")
        self._maps.clear()


class DataPath:
    """The maps and descriptors of an open volume; `read` and `write` may decline."""

    def __init__(self, *, writable: bool, dirty_chunks_max: int) -> None:
        """Start with an empty chain. Writes are declined beyond `dirty_chunks_max`."""
        self.stripes = tuple(Stripe() for _ in range(_STRIPES))
        self.size_bytes = 0
        self.closed = False
        """Writes are declined."""
        self._length = 0

    def set_chain(self, length: int) -> None:
        """Start again with a chain of `length` layers, none attached; every stripe is held."""
        self._length = length

    def extend_chain(self, length: int) -> None:
        """Put layers on top of the chain; every stripe is held."""
        if length < self._length:
            raise ValueError("a chain that gets shorter is another one")
        self._length = length

    def attach(self, position: int, file: LayerFd) -> None:
        """Use `file` for the layer at `position` from the oldest; the caller holds a stripe."""
        if not 0 <= position < self._length:
            raise ValueError(f"position {position} is not in a chain of {self._length}")

    def dirty_count(self) -> int:
        """Return how many maps were changed."""
        return sum(stripe.dirty_count for stripe in self.stripes)

    def read(self, first_block: int, target: "Buffer") -> bool:
        """Fill whole blocks with proven bytes, or return False."""
        return False

    def write(self, first_block: int, source: "Buffer") -> bool:
        """Write whole blocks and mark them, or return False: then do it again."""
        return False
