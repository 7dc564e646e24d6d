"""Merging two frozen layers of which nobody sees the lower but through the upper.

The one that stores less moves into the other, some chunks at a time:

1. Moving down, blocks of the lower layer that the upper one covers are given up: its page calls
   them ABSENT. Nobody reads them.
2. Blocks are read, proven, and written into the target, where no page says DATA now.
3. The target is synced.
4. One transaction writes the target's merged pages and deletes the source's.
5. Space that no page points at is punched out.

Each transaction leaves a pair that reads as before, so a merge that is cut off at any point is
taken up where it was, in either direction, and there is nothing to recover. Who opened the layers
before still finds the same bytes in the source's file, which stays until all of them have followed.

Invariants (docs/invariants.md):
1. INV-MERGE-1 (must): a block is written into a frozen layer only where its durable page does not
   say DATA.
2. INV-MERGE-2 (must): a page moves in the transaction that deletes it from where it was, after its
   data was synced.
"""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from volcore.backends.local.layers import Layers
from volcore.backends.local.pagecodec import Page
from volcore.backends.local.pruning import Pair, Pruning
from volcore.backends.local.store import LocalStore
from volcore.errors import ExhaustedError, IntegrityError, Reason
from volcore.kernels import chunkmap, crc32c
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES, MIB

STEP_BYTES: Final = 8 * MIB
"""Data moved in one step, at least one chunk; what a crash makes us move again."""
STEP_CHUNKS: Final = 64
"""Pages moved in one step: bounds its transactions to milliseconds."""
_ABSENT_ONES: Final = bytes([255, 0, 0]) + bytes(253)
_DATA_ONES: Final = bytes([0, 255, 0]) + bytes(253)
_ZERO_ONES: Final = bytes([0, 0, 255]) + bytes(253)
"""Each translates states to bytes of ones where the state is that, else 0."""
_SOME: Final = bytes([0]) + bytes([1]) * 255

Run = tuple[int, int]
"""(first block, block count) within a chunk."""


@dataclass(frozen=True, slots=True)
class Move:
    """One chunk on its way: the source's page, what becomes of the target's, what is copied."""

    source: Page
    target: Page
    """As it is while data is copied: with ABSENT wherever the source has something to say."""
    is_masked: bool
    """The target's durable page still says DATA about what is copied or freed."""
    merged: Page
    runs: list[Run]
    freed: list[Run]
    """What was DATA in the target and is not any more."""


class Merge:
    """Moves pages of pairs; used by one thread."""

    def __init__(self, store: LocalStore, rows: Layers, is_open: Callable[[int], bool]) -> None:
        """Read `rows` over a connection of its own; `is_open` tells who may read a layer."""
        self._store = store
        self._rows = rows
        self._changes = Pruning(store.layers)
        self._is_open = is_open

    def step(self, pair: Pair) -> int | None:
        """Move some chunks; return the bytes written, or None when no page is left to move.

        *Durability*: what was moved is durable at return. *Concurrency*: anything may run beside.

        Raises:
            ExhaustedError: POOL_FULL; nothing is damaged, repeat when there is space.
            IntegrityError: a block or page of the pair is damaged; the pair stays as it is.
        """
        source, target = self._direction(pair)
        moves = self._moves(source, target, down=target == pair.lower)
        if not moves:
            return None
        masked = [move.target for move in moves if move.is_masked]
        if masked:
            with self._store.database.transaction():
                if not self._is_pair(pair):
                    return None
                self._store.layers.put_pages(masked)
        copied = self._copy(moves, source, target)
        with self._store.database.transaction():
            if not self._is_pair(pair):
                return None
            self._store.layers.put_pages([move.merged for move in moves])
            self._changes.delete_pages(source, [move.source.chunk_index for move in moves])
            self._store.database.after_commit(lambda: self._punch_source(source, moves))
        for move in moves:
            self._punch(target, move.source.chunk_index, move.freed)
        return copied

    def _direction(self, pair: Pair) -> tuple[int, int]:
        """Return (source, target): the layer with less data moves."""
        files = self._store.files
        if files.allocated_bytes(pair.upper) <= files.allocated_bytes(pair.lower):
            return pair.upper, pair.lower
        return pair.lower, pair.upper

    def _is_pair(self, pair: Pair) -> bool:
        """Tell, inside a transaction, whether both are still what they were."""
        return pair in self._changes.pairs(pair.upper)

    def _moves(self, source: int, target: int, *, down: bool) -> list[Move]:
        """Return the first chunks that fit a step, with what becomes of them."""
        moves: list[Move] = []
        left_bytes = STEP_BYTES
        pages = self._rows.first_pages(source, STEP_CHUNKS)
        chunks = [page.chunk_index for page in pages]
        targets = {page.chunk_index: page for page in self._rows.pages_among(target, chunks)}
        for page in pages:
            old = targets.get(page.chunk_index) or _blank_page(target, page.chunk_index)
            move = _moved_down(page, old) if down else _moved_up(page, old)
            left_bytes -= sum(count for _, count in move.runs) * BLOCK_SIZE_BYTES
            if moves and left_bytes < 0:
                break
            moves.append(move)
        return moves

    def _copy(self, moves: Iterable[Move], source: int, target: int) -> int:
        """Copy the runs, proven, and sync them; return how many bytes."""
        copied = 0
        try:
            for move in moves:
                for run in move.runs:
                    copied += self._copy_run(move, run, source, target)
            if copied:
                self._store.files.sync(target)
        except ExhaustedError:
            for move in moves:
                self._punch(target, move.source.chunk_index, move.runs)
            raise
        return copied

    def _copy_run(self, move: Move, run: Run, source: int, target: int) -> int:
        first, count = run
        chunk = move.source.chunk_index
        offset_bytes = chunk * CHUNK_SIZE_BYTES + first * BLOCK_SIZE_BYTES
        data = memoryview(bytearray(count * BLOCK_SIZE_BYTES))
        got = self._store.files.read(source, data, offset_bytes)
        crcs = memoryview(move.source.crcs)[first : first + count]
        if got < len(data) or crc32c.find_bad_block(data, BLOCK_SIZE_BYTES, crcs) >= 0:
            raise IntegrityError(
                f"layer {source} has a damaged block in chunk {chunk} and is not merged; verify "
                "the volumes that use it",
                reason=Reason.BAD_CHECKSUM,
                layer=source,
                offset_bytes=offset_bytes,
            )
        _, err = self._store.files.write(target, data, offset_bytes)
        if err is not None:
            raise err
        return len(data)

    # Space

    def _punch_source(self, source: int, moves: Iterable[Move]) -> None:
        """After the commit, under the database's lock: nobody opens the source meanwhile."""
        if not self._is_open(source):
            for move in moves:
                self._punch(source, move.source.chunk_index, _runs(move.source.states))

    def _punch(self, layer_id: int, chunk: int, runs: Iterable[Run]) -> None:
        for first, count in runs:
            offset_bytes = chunk * CHUNK_SIZE_BYTES + first * BLOCK_SIZE_BYTES
            self._store.files.punch(layer_id, offset_bytes, count * BLOCK_SIZE_BYTES)


def _moved_down(source: Page, old: Page) -> Move:
    """Lay a page of the upper layer over that of the lower, which is the target."""
    states = _both(old.states, source.states.translate(_ABSENT_ONES))
    crcs = array("I", old.crcs)
    chunkmap.freeze(states, crcs)
    target = Page(old.layer_id, old.chunk_index, states, crcs)
    covered = old.states.count(chunkmap.DATA) != states.count(chunkmap.DATA)
    gone = _both(old.states.translate(_DATA_ONES), source.states.translate(_ZERO_ONES))
    merged = _merged(target, source, old.layer_id)
    return Move(source, target, covered, merged, _runs(source.states), _ones(gone))


def _moved_up(source: Page, old: Page) -> Move:
    """Lay the page of the upper layer, which is the target, over one of the lower."""
    wanted = _both(source.states.translate(_DATA_ONES), old.states.translate(_ABSENT_ONES))
    merged = _merged(source, old, old.layer_id)
    return Move(source, old, False, merged, _ones(wanted), [])


def _merged(lower: Page, upper: Page, layer_id: int) -> Page:
    states, crcs = bytearray(lower.states), array("I", lower.crcs)
    chunkmap.merge(states, crcs, upper.states, upper.crcs)
    return Page(layer_id, lower.chunk_index, bytes(states), crcs)


def _blank_page(layer_id: int, chunk: int) -> Page:
    return Page(layer_id, chunk, bytes(CHUNK_BLOCKS), array("I", bytes(4 * CHUNK_BLOCKS)))


def _both(one: bytes, other: bytes) -> bytes:
    """Return the bits that both have."""
    return (int.from_bytes(one) & int.from_bytes(other)).to_bytes(len(one))


def _ones(flags: bytes) -> list[Run]:
    """Return the runs of bytes that are not 0."""
    states = flags.translate(_SOME)
    return [
        (first, count) for first, count, one in chunkmap.state_runs(states, 0, len(flags)) if one
    ]


def _runs(states: bytes) -> list[Run]:
    """Return the runs of DATA."""
    return _ones(states.translate(_DATA_ONES))
