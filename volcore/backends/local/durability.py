"""How an open volume becomes durable: flush, overwrite notes, and holding writers for a freeze.

Write order: data, sync of the data, pages (with the catalog's changes, if any), then holes.
"""

import threading
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from volcore.backends.local.chunkmap import ChunkMap
from volcore.backends.local.layers import Page
from volcore.errors import BackendIOError, InvariantViolationError, Reason, VolcoreError
from volcore.kernels import chunkmap
from volcore.limits import (
    BLOCK_SIZE_BYTES,
    CHUNK_BLOCKS,
    CHUNK_SIZE_BYTES,
    OVERWRITE_CHUNKS_MAX,
)

if TYPE_CHECKING:
    from volcore.backends.local.chunkstore import ChunkStore

DIRTY_CHUNKS_MAX: Final = 2048
"""Changed chunks after which a write flushes: bounds memory."""
NOTES_TOGETHER: Final = 16
"""Chunks noted with one commit at least: 64 MiB, aligned."""
NOTES_TOGETHER_MAX: Final = 256
"""The same at most, for a volume that is written all over."""
NOTES_KEPT: Final = 1024
"""Notes that stay as long as the volume is open: 4 GiB to read again after a crash."""
EASE_INTERVAL_S: Final = 30.0
"""So often a flush takes a quarter of the notes back when there are more."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A chunk's page as it was before the data was synced."""

    chunk_index: int
    chunk_map: ChunkMap
    version: int
    layer_id: int
    states: bytes
    crcs: "array[int]"
    holes: bytes | None


class Durability:
    """The durable side of one `ChunkStore`."""

    def __init__(self, chunks: "ChunkStore") -> None:
        self._chunks = chunks
        self._store = chunks.store
        self._eased_s = 0.0
        self._all_synced = False
        self._pushed: list[int] = []
        """Of the last `hold`: the top that it ends with, if that is new and blank."""
        self._syncing = threading.Lock()
        """A leaf. One sync at a time: of several the kernel tells a single one of a failure."""
        self._syncs_begun = 0
        self._synced: set[int] = set()
        """Layers of the sync that began last, once it has ended."""
        self.noted: dict[int, None] = {}
        """Chunks with a durable note, oldest first.

        Added to under the database's lock; taken from under that and the chunk's stripe.
        """

    def flush(self, *, evict: int = 0) -> None:
        """Make every change that returned before this call durable; take `evict` notes back.

        Raises:
            ExhaustedError: POOL_FULL; flush again when there is space.
            BackendIOError: the sync failed; the volume must be closed and opened again.
        """
        self._check()
        sealed = self._seal()
        now_s = time.monotonic()
        if len(self.noted) > NOTES_KEPT and now_s - self._eased_s > EASE_INTERVAL_S:
            self._eased_s = now_s
            evict = max(evict, len(self.noted) // 4)
        if not sealed and not evict:
            return
        self._sync({item.layer_id for item in sealed})
        database = self._store.database
        with database.transaction():
            self._put(sealed)
            evicted = self._evict(sealed, evict)
            database.after_commit(lambda: self._settle(sealed))
            # The rows of taken notes are back if the transaction is undone.
            database.after_rollback(lambda: self._add_noted(evicted))

    def flush_if_large(self) -> None:
        """Flush when so much is changed that memory matters."""
        counts = [stripe.dirty_count for stripe in self._chunks.stripes]
        # A stripe alone counts as well: the data path looks at nothing else.
        if max(sum(counts), max(counts) * len(counts)) > DIRTY_CHUNKS_MAX:
            self.flush()

    def note(self, chunk_index: int) -> None:
        """Note durably that blocks of the chunk are overwritten in place from now on."""
        # As many again as there are: writes all over a volume pay a few commits, not one for each.
        group = min(NOTES_TOGETHER_MAX, max(NOTES_TOGETHER, len(self.noted)))
        group = 1 << (group.bit_length() - 1)
        surplus = len(self.noted) + group - OVERWRITE_CHUNKS_MAX
        if surplus > 0:
            self.flush(evict=max(surplus, OVERWRITE_CHUNKS_MAX // 4))
        first = chunk_index // group * group
        end = -(-self._chunks.size_bytes // CHUNK_SIZE_BYTES)
        wanted = range(first, max(chunk_index + 1, min(first + group, end)))
        database = self._store.database
        with database.transaction():
            if self._chunks.closed or chunk_index in self.noted:
                return
            self._store.layers.add_notes(self._chunks.top, wanted)
            database.after_commit(lambda: self._add_noted(wanted))
        if database.inside():
            raise InvariantViolationError(
                "a volume was overwritten inside a transaction of the catalog",
                reason=Reason.INVARIANT_VIOLATION,
                volume=self._chunks.volume_id,
            )

    def _add_noted(self, chunks: Iterable[int]) -> None:
        self.noted.update(dict.fromkeys(chunks))
        for chunk_index in chunks:
            stripe = self._chunks.stripe(chunk_index)
            with stripe:
                chunk_map = stripe.find(chunk_index)
                if chunk_map is not None:
                    chunk_map.noted = True

    def sync_ahead(self) -> None:
        """Sync data, so that a `hold` soon after has little to sync; writers go on."""
        if any(stripe.dirty_count for stripe in self._chunks.stripes):
            self._sync({self._chunks.top})

    def sync_kept_out(self) -> None:
        """Sync all data after `keep_out`, in the same transaction (another thread may do it)."""
        self.sync_ahead()
        self._all_synced = True

    def keep_out(self) -> None:
        """Inside a transaction: keep writers out from now until it ends.

        A `sync_kept_out` after it leaves nothing to sync for the `hold` that follows.
        """
        self._acquire()
        self._store.database.after_commit(self._release)
        self._store.database.after_rollback(self._release)

    def hold(self, *, last: bool = False) -> None:
        """Inside a transaction: make all durable with it, and keep writers out until it ends.

        With `last`, nobody uses the volume after it.
        """
        database = self._store.database
        sealed: list[Sealed] = []
        pushed = self._pushed = []

        def done() -> None:
            try:
                self._settle(sealed)
                if last:
                    self._forget()
                else:
                    self._chunks.rebase(*pushed)
            finally:
                self._release()

        if not self._all_synced and any(stripe.dirty_count for stripe in self._chunks.stripes):
            # Most of the data goes while writers still run.
            self._sync({self._chunks.top})
        self._acquire()
        database.after_commit(done)
        database.after_rollback(self._release)
        if last:
            self._chunks.stop_writes()
        try:
            sealed += self._seal()
            if not self._all_synced:
                self._sync({item.layer_id for item in sealed})
            self._put(sealed)
        except BaseException:
            # Whoever catches this may still commit: then nothing of it is to be taken as durable.
            sealed.clear()
            raise

    def push(self, layer_id: int) -> None:
        """After a `hold`: tell that the volume has a new, blank top on the one that it had."""
        self._pushed.append(layer_id)

    def abandon(self) -> None:
        """Let no change begin any more, return when none is under way, and forget them all."""
        self._chunks.stop_writes()
        for stripe in self._chunks.stripes:
            with stripe:
                for chunk_map in stripe.dirty():
                    stripe.settle(chunk_map)
        self._forget()

    def _forget(self) -> None:
        for stripe in self._chunks.stripes:
            with stripe:
                stripe.clear()

    def _check(self) -> None:
        if self._chunks.broken:
            raise BackendIOError(
                f"an earlier sync of volume {self._chunks.volume_id} failed; close all its "
                "devices and open it again",
                reason=Reason.BACKEND_IO,
                volume=self._chunks.volume_id,
            )

    def _acquire(self) -> None:
        for stripe in self._chunks.stripes:
            stripe.acquire()

    def _release(self) -> None:
        self._all_synced = False
        for stripe in self._chunks.stripes:
            stripe.release()

    def _seal(self) -> list[Sealed]:
        sealed = []
        # Against the way of a stream of writes, to meet each of its writers once: with them, a
        # flush would wait for one after the other all the way round.
        for stripe in reversed(self._chunks.stripes):
            with stripe:
                for chunk_map in cast("list[ChunkMap]", stripe.dirty()):
                    states, crcs, holes = chunk_map.seal()
                    sealed.append(
                        Sealed(
                            chunk_map.index,
                            chunk_map,
                            chunk_map.version,
                            self._chunks.top,
                            states,
                            crcs,
                            holes,
                        )
                    )
        return sealed

    def _sync(self, layer_ids: set[int]) -> None:
        begun = self._syncs_begun
        with self._syncing:
            self._check()
            if self._syncs_begun > begun and layer_ids <= self._synced:
                return  # one that began after this call has done it
            self._syncs_begun += 1
            self._synced = set()
            for layer_id in layer_ids:
                try:
                    self._store.files.sync(layer_id)
                except VolcoreError:
                    # The kernel may have dropped what it could not write: memory no longer knows.
                    self._chunks.stop_writes(broken=True)
                    raise
            self._synced = layer_ids

    def _put(self, sealed: Sequence[Sealed]) -> None:
        """Write the pages that no newer flush has overtaken."""
        self._store.layers.put_pages(
            [
                Page(item.layer_id, item.chunk_index, item.states, item.crcs)
                for item in sealed
                if item.chunk_map.durable_version < item.version
            ]
        )
        if sealed:
            self._chunks.unflushed.expect(self._store.layers.page_sum(self._chunks.top))

    def _evict(self, sealed: Sequence[Sealed], count: int) -> list[int]:
        """Take the oldest notes back whose pages agree with their data after this commit."""
        written = {item.chunk_index: item for item in sealed}
        evicted: list[int] = []
        for chunk_index in list(self.noted):
            if len(evicted) >= count:
                break
            stripe = self._chunks.stripe(chunk_index)
            with stripe:
                chunk_map = stripe.find(chunk_index)
                item = written.get(chunk_index)
                settled = (
                    chunk_map is None
                    or not chunk_map.dirty
                    or (
                        item is not None
                        and item.chunk_map is chunk_map
                        and item.version == chunk_map.version
                    )
                )
                if settled:
                    del self.noted[chunk_index]
                    if chunk_map is not None:
                        chunk_map.noted = False
                    evicted.append(chunk_index)
        if evicted:
            self._store.layers.delete_notes(self._chunks.top, evicted)
        return evicted

    def _settle(self, sealed: Sequence[Sealed]) -> None:
        """Take over that the pages are durable, and free the space they no longer need."""
        if sealed:
            self._chunks.unflushed.arrive()
        for item in sealed:
            chunk_map = item.chunk_map
            stripe = self._chunks.stripe(item.chunk_index)
            with stripe:
                self._chunks.flushed.add(item.chunk_index)
                chunk_map.durable_version = max(chunk_map.durable_version, item.version)
                settled = chunk_map.durable_version == chunk_map.version
                if settled:
                    stripe.settle(chunk_map)
                if (
                    item.holes is not None
                    and chunk_map.holes is not None
                    and chunk_map.durable_version == item.version
                    and item.layer_id == self._chunks.top
                ):
                    self._punch(item, chunk_map)

    def _punch(self, item: Sealed, chunk_map: ChunkMap) -> None:
        assert item.holes is not None
        assert chunk_map.holes is not None
        base = item.chunk_index * CHUNK_SIZE_BYTES
        for first, count, wanted in chunkmap.state_runs(item.holes, 0, CHUNK_BLOCKS):
            if not wanted:
                continue
            chunkmap.mark(chunk_map.holes, first, count, 0)
            for start, length, state in chunkmap.state_runs(item.states, first, count):
                if state == chunkmap.DATA:
                    continue
                for at, blocks, now in chunkmap.state_runs(chunk_map.states, start, length):
                    if now != chunkmap.DATA:
                        self._store.files.punch(
                            item.layer_id, base + at * BLOCK_SIZE_BYTES, blocks * BLOCK_SIZE_BYTES
                        )
        if 1 not in chunk_map.holes:
            chunk_map.holes = None
