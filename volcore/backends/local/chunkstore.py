"""An open stack of layers: whole blocks in, whole blocks out, checksums kept.

Invariants (docs/invariants.md):
1. INV-LOCAL-1 (must): a page reaches the database only after the data it describes was synced.
2. INV-LOCAL-2 (must): a block that a durable page calls DATA is overwritten only in a chunk whose
   note is durable; a note goes only when page and data agree durably.
3. INV-LOCAL-3 (must): space is punched out only where the durable page says that there is no DATA.
4. INV-LOCK-1 (must): the database's lock is taken before a stripe's, never while one is held.
   Page look-ups use the reader connection, whose lock is a leaf.

A stripe guards the chunks whose index has its remainder. A write holds its stripe from the file
write to the change of the CRCs. A read looks owners and CRCs up under the stripe, reads without,
and repeats under the stripe if what it read does not agree: it may have met a write.

Every read and write is offered to the `DataPath` first, which does the same without the GIL as long
as maps are loaded, files attached and notes made. What it declines is done here, from the
beginning.
"""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final, cast

from volcore.backends import refusals
from volcore.backends.local.chunkmap import ChunkMap, Run
from volcore.backends.local.durability import DIRTY_CHUNKS_MAX, Durability
from volcore.backends.local.layers import PointRow
from volcore.backends.local.store import LocalStore
from volcore.errors import BackendIOError, IntegrityError, Reason
from volcore.kernels import chunkmap, crc32c
from volcore.kernels.datapath import STRIPES, DataPath, Stripe
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES, KIB
from volcore.model.extent import ExtentKind

MAPS_PER_STRIPE_MAX: Final = 256
"""Maps kept of one volume: 4096, 36 MiB of memory for 16 GiB of working set."""
MAPS_PER_STRIPE_MIN: Final = 8
"""The same while all open volumes together have more than MAPS_MAX."""
MAPS_MAX: Final = 16384
"""Clean and changed maps of all open volumes: 144 MiB."""
WRITE_PIECE_BYTES: Final = 512 * KIB
"""Written and checksummed at a time: the second pass finds the data in the processor's cache."""
PRESENCE_CHUNKS: Final = 1024
"""Chunks whose presence is looked up together."""
_ZEROES: Final = bytes(CHUNK_SIZE_BYTES)


class _MapCount:
    """Maps in memory, of all open volumes."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0

    def add(self, count: int) -> int:
        """Add `count`, which may be negative, and return how many there are now."""
        with self._lock:
            self._count += count
            return self._count


_all_maps = _MapCount()


class ChunkStore:
    """One volume or snapshot that is open; shared by its devices."""

    def __init__(
        self, store: LocalStore, volume_id: str, point: PointRow, *, writable: bool
    ) -> None:
        """Open `point`; call under the database's lock, after its notes were settled."""
        self.store = store
        self.volume_id = volume_id
        self.snapshot_id: str | None = None
        """Set by whoever opens a snapshot."""
        self.writable = writable
        self.users = 0
        self._broken = False
        self._closed = False
        self.chain = store.layers.chain(point.layer_id)
        """Layer ids, oldest first; replaced, never changed."""
        self.path = DataPath(writable=writable, dirty_chunks_max=DIRTY_CHUNKS_MAX)
        self.path.set_chain(len(self.chain))
        self.path.size_bytes = point.size_bytes
        self._present: dict[int, frozenset[int]] = {}
        self.flushed: set[int] = set()
        """Chunks whose pages were written since the volume was opened.

        A look-up that began before such a write may have missed it, so this set counts as well.
        """
        self.stripes = self.path.stripes
        self._own = _owner_row(len(self.chain) - 1)
        self.durability = Durability(self)
        self.unflushed = store.memory.volume(volume_id, self.top, store.layers.page_sum(self.top))

    @property
    def top(self) -> int:
        """The layer that writes go to."""
        return self.chain[-1]

    @property
    def size_bytes(self) -> int:
        """Present size."""
        return self.path.size_bytes

    @property
    def broken(self) -> bool:
        """A sync failed, so nobody knows what is on the disk: only closing is left."""
        return self._broken

    @property
    def closed(self) -> bool:
        """No change may begin any more."""
        return self._closed

    def stop_writes(self, *, broken: bool = False) -> None:
        """Let no change begin any more, for good."""
        self._broken |= broken
        self._closed |= not broken
        self.path.closed = True
        if broken:
            self.unflushed.drop()  # what it says may not be on the disk

    def stripe(self, chunk_index: int) -> Stripe:
        """Return the stripe that guards the chunk."""
        return self.stripes[chunk_index % STRIPES]

    # Reading

    def read(self, first_block: int, target: memoryview) -> None:
        """Fill `target`, whole blocks, with proven bytes."""
        if self.path.read(first_block, target):
            return
        for chunk, first, count, at in _parts(first_block, len(target) // BLOCK_SIZE_BYTES):
            part = target[at * BLOCK_SIZE_BYTES : (at + count) * BLOCK_SIZE_BYTES]
            stripe = self.stripe(chunk)
            with stripe:
                chunk_map = self._map(stripe, chunk)
                runs = chunk_map.runs(first, count)
                expected = array("I", chunk_map.crcs[first : first + count])
                chain = self.chain
            if self._fill(chunk, runs, memoryview(expected), chain, part) is not None:
                with stripe:
                    self._read_locked(chunk, self._map(stripe, chunk), first, part)

    def _read_locked(self, chunk: int, chunk_map: ChunkMap, first: int, target: memoryview) -> None:
        """Fill `target` with nobody writing to the chunk: what does not agree now is damaged."""
        count = len(target) // BLOCK_SIZE_BYTES
        runs = chunk_map.runs(first, count)
        bad = self._fill(chunk, runs, chunk_map.crcs[first : first + count], self.chain, target)
        if bad is not None:
            block, owner = bad
            offset_bytes = chunk * CHUNK_SIZE_BYTES + block * BLOCK_SIZE_BYTES
            raise IntegrityError(
                f"block at offset {offset_bytes} of volume {self.volume_id} fails its checksum "
                f"(layer {self.chain[owner]}); restore it from a copy",
                reason=Reason.BAD_CHECKSUM,
                volume=self.volume_id,
                offset_bytes=offset_bytes,
                layer=self.chain[owner],
            )

    def _fill(
        self,
        chunk: int,
        runs: list[Run],
        expected: memoryview,
        chain: list[int],
        target: memoryview,
    ) -> tuple[int, int] | None:
        """Fill `target` run by run; return block and owner of the first that does not agree."""
        start = runs[0][0]
        for first, count, owner in runs:
            at = first - start
            piece = target[at * BLOCK_SIZE_BYTES : (at + count) * BLOCK_SIZE_BYTES]
            if owner == chunkmap.ZERO_OWNER:
                piece[:] = _ZEROES[: len(piece)]
                continue
            offset_bytes = chunk * CHUNK_SIZE_BYTES + first * BLOCK_SIZE_BYTES
            got = self.store.files.read(chain[owner], piece, offset_bytes) // BLOCK_SIZE_BYTES
            if got:
                with self.stripe(chunk):  # keeps the chain as it is
                    self._attach(chain, owner)
            bad = crc32c.find_bad_block(
                piece[: got * BLOCK_SIZE_BYTES], BLOCK_SIZE_BYTES, expected[at : at + got]
            )
            if bad < 0 and got < count:
                bad = got
            if bad >= 0:
                return first + bad, owner
        return None

    def kinds(self, first_block: int, block_count: int) -> list[tuple[int, int, ExtentKind]]:
        """Return the range as (first block, block count, kind); neighbours may be alike."""
        found: list[tuple[int, int, ExtentKind]] = []
        next_block, end = first_block, first_block + block_count
        for chunk, first, count in self._known_parts(first_block, block_count):
            base = chunk * CHUNK_BLOCKS
            if next_block < base + first:
                found.append((next_block, base + first - next_block, ExtentKind.ABSENT))
            stripe = self.stripe(chunk)
            with stripe:
                kinds = self._map(stripe, chunk).kinds(first, count)
            found += [(base + at, length, kind) for at, length, kind in kinds]
            next_block = base + first + count
        if next_block < end:
            found.append((next_block, end - next_block, ExtentKind.ABSENT))
        return found

    # Writing

    def write(self, first_block: int, source: memoryview) -> None:
        """Write whole blocks; `source` must not change meanwhile."""
        if self.path.write(first_block, source):
            return
        for chunk, first, count, at in _parts(first_block, len(source) // BLOCK_SIZE_BYTES):
            part = source[at * BLOCK_SIZE_BYTES : (at + count) * BLOCK_SIZE_BYTES]
            with self._changing(chunk, first, count) as (stripe, chunk_map):
                self._write_locked(stripe, chunk, chunk_map, first, part)
        self.durability.flush_if_large()

    def write_bulk(self, first_block: int, source: memoryview) -> None:
        """Write whole blocks past the page cache, where that can be."""
        for chunk, first, count, at in _parts(first_block, len(source) // BLOCK_SIZE_BYTES):
            part = source[at * BLOCK_SIZE_BYTES : (at + count) * BLOCK_SIZE_BYTES]
            with self._changing(chunk, first, count) as (stripe, chunk_map):
                self._write_locked(stripe, chunk, chunk_map, first, part, direct=True)
        self.durability.flush_if_large()

    def patch(self, block: int, start: int, data: memoryview) -> None:
        """Write part of one block."""
        chunk, first = divmod(block, CHUNK_BLOCKS)
        with self._changing(chunk, first, 1) as (stripe, chunk_map):
            self._patch_locked(stripe, chunk, chunk_map, first, start, data)

    def patch_zeroes(self, block: int, start: int, length_bytes: int) -> None:
        """Zero part of one block; what reads as zeroes already is left alone."""
        chunk, first = divmod(block, CHUNK_BLOCKS)
        with self._changing(chunk, first, 1) as (stripe, chunk_map):
            if chunk_map.owners[first] < chunkmap.ZERO_OWNER:
                zeroes = memoryview(_ZEROES)[:length_bytes]
                self._patch_locked(stripe, chunk, chunk_map, first, start, zeroes)

    # For the data path

    def prepare_read(self, first_block: int, block_count: int) -> None:
        """Load the maps of the blocks, and attach the files that own them."""
        for chunk, first, count, _ in _parts(first_block, block_count):
            stripe = self.stripe(chunk)
            with stripe:
                for owner in {run[2] for run in self._map(stripe, chunk).runs(first, count)}:
                    if owner != chunkmap.ZERO_OWNER:
                        self._attach(self.chain, owner)

    def prepare_write(self, first_block: int, block_count: int) -> None:
        """Load the maps of the blocks, note them if need be, and attach the top layer's file."""
        self.durability.flush_if_large()
        for chunk, first, count, _ in _parts(first_block, block_count):
            with self._changing(chunk, first, count):
                self._attach(self.chain, len(self.chain) - 1, create=True)

    def trim(self, first_block: int, block_count: int) -> None:
        """Make whole blocks read as zeroes; their space is freed by the next flush."""
        for chunk, first, count in self._known_parts(first_block, block_count):
            with self._changing(chunk, first, 0) as (stripe, chunk_map):
                for start, length, owner in chunk_map.runs(first, count):
                    if owner != chunkmap.ZERO_OWNER:
                        self._trim_locked(chunk_map, start, length, owner)
                        chunk_map.version += 1
                        stripe.soil(chunk_map)

    def absorb(self, chunk: int) -> None:
        """Copy to the top layer what older layers own of the chunk."""
        with self._changing(chunk, 0, 0) as (stripe, chunk_map):
            for first, count, owner in chunk_map.runs(0, CHUNK_BLOCKS):
                if owner < len(self.chain) - 1:
                    assert not chunk_map.needs_note(first, count), "a lower owner has no DATA above"
                    data = memoryview(bytearray(count * BLOCK_SIZE_BYTES))
                    self._read_locked(chunk, chunk_map, first, data)
                    self._write_locked(stripe, chunk, chunk_map, first, data)
        self.durability.flush_if_large()

    @contextmanager
    def _changing(self, chunk: int, first: int, count: int) -> Iterator[tuple[Stripe, ChunkMap]]:
        """Hold the chunk's stripe, with a note durable if the blocks need one."""
        stripe = self.stripe(chunk)
        while True:
            with stripe:
                self._check_writable()
                chunk_map = self._map(stripe, chunk)
                if chunk_map.noted or not chunk_map.needs_note(first, count):
                    yield stripe, chunk_map
                    return
            self.durability.note(chunk)

    def _check_writable(self) -> None:
        if self._closed:
            raise refusals.device_closed(self.volume_id)
        if self._broken:
            raise BackendIOError(
                f"an earlier sync of volume {self.volume_id} failed; close all its devices and "
                "open it again",
                reason=Reason.BACKEND_IO,
                volume=self.volume_id,
            )
        assert self.writable, "devices refuse writes to what is frozen"

    def _write_locked(
        self,
        stripe: Stripe,
        chunk: int,
        chunk_map: ChunkMap,
        first: int,
        source: memoryview,
        *,
        direct: bool = False,
    ) -> None:
        end = first + len(source) // BLOCK_SIZE_BYTES
        piece_bytes = CHUNK_SIZE_BYTES if direct else WRITE_PIECE_BYTES
        stripe.soil(chunk_map)
        while first < end:
            chunk_map.version += 1
            piece = source[:piece_bytes]
            offset_bytes = chunk * CHUNK_SIZE_BYTES + first * BLOCK_SIZE_BYTES
            written, err = self.store.files.write(self.top, piece, offset_bytes, direct=direct)
            count = written // BLOCK_SIZE_BYTES
            crc32c.crc32c_blocks(
                piece[: count * BLOCK_SIZE_BYTES],
                BLOCK_SIZE_BYTES,
                chunk_map.crcs[first : first + count],
            )
            chunkmap.mark(chunk_map.states, first, count, chunkmap.DATA)
            chunk_map.owners[first : first + count] = self._own[:count]
            first += count
            if err is not None:
                self._take_over(chunk, chunk_map, first, end - first)
                raise err
            source = source[piece_bytes:]
        self._attach(self.chain, len(self.chain) - 1)

    def _attach(self, chain: list[int], owner: int, *, create: bool = False) -> None:
        """Let the data path use the file of a layer; call with a stripe held."""
        file = self.store.files.file(chain[owner], create=create)
        if file is not None and chain is self.chain:
            self.path.attach(owner, file)

    def _take_over(self, chunk: int, chunk_map: ChunkMap, first: int, count: int) -> None:
        """After a failed write, take the CRCs of what is in the file: old, or partly new."""
        for start, length, state in chunkmap.state_runs(chunk_map.states, first, count):
            if state == chunkmap.DATA:
                offset_bytes = chunk * CHUNK_SIZE_BYTES + start * BLOCK_SIZE_BYTES
                data = memoryview(bytearray(length * BLOCK_SIZE_BYTES))
                got = self.store.files.read(self.top, data, offset_bytes) // BLOCK_SIZE_BYTES
                crc32c.crc32c_blocks(
                    data[: got * BLOCK_SIZE_BYTES],
                    BLOCK_SIZE_BYTES,
                    chunk_map.crcs[start : start + got],
                )

    def _patch_locked(
        self,
        stripe: Stripe,
        chunk: int,
        chunk_map: ChunkMap,
        first: int,
        start: int,
        data: memoryview,
    ) -> None:
        block = memoryview(bytearray(BLOCK_SIZE_BYTES))
        self._read_locked(chunk, chunk_map, first, block)
        block[start : start + len(data)] = data
        self._write_locked(stripe, chunk, chunk_map, first, block)

    def _trim_locked(self, chunk_map: ChunkMap, first: int, count: int, owner: int) -> None:
        if owner == len(self.chain) - 1:
            if chunk_map.holes is None:
                chunk_map.holes = bytearray(CHUNK_BLOCKS)
            chunkmap.mark(chunk_map.holes, first, count, 1)
        alone = len(self.chain) == 1
        chunkmap.mark(chunk_map.states, first, count, chunkmap.ABSENT if alone else chunkmap.ZERO)
        new_owner = chunkmap.UNRESOLVED if alone else chunkmap.ZERO_OWNER
        chunk_map.owners[first : first + count] = _owner_row(new_owner)[:count]

    # Maps

    def _map(self, stripe: Stripe, chunk: int) -> ChunkMap:
        """Return the chunk's map; call with the stripe held."""
        found = stripe.find(chunk)
        if found is not None:
            return cast("ChunkMap", found)
        pages = self.store.reader.pages(self.chain, chunk) if self._has_pages(chunk) else []
        place = self.unflushed.take(chunk) if self.writable else None
        chunk_map = ChunkMap(self.chain, pages, writable=self.writable, index=chunk, place=place)
        chunk_map.noted = chunk in self.durability.noted
        stripe.add(chunk_map)
        limit = MAPS_PER_STRIPE_MAX if _all_maps.add(1) < MAPS_MAX else MAPS_PER_STRIPE_MIN
        if len(stripe) > limit + stripe.dirty_count:
            _all_maps.add(-stripe.shrink(limit + stripe.dirty_count, chunk))
        return chunk_map

    def forget(self) -> None:
        """Inside the transaction that makes all durable: give the maps back.

        What could not be made durable is left for the next opening.
        """
        self.store.database.after_commit(self.unflushed.drop)
        self.store.database.after_rollback(lambda: self.store.memory.keep(self.unflushed))
        _all_maps.add(-sum(map(len, self.stripes)))

    def _has_pages(self, chunk: int) -> bool:
        """Tell whether some layer may have a page for the chunk: spares most look-ups of blanks."""
        span = chunk // PRESENCE_CHUNKS
        present = self._present.get(span)
        if present is None:
            first = span * PRESENCE_CHUNKS
            chunks = self.store.reader.chunks(self.chain, first, first + PRESENCE_CHUNKS - 1)
            present = self._present[span] = frozenset(chunks)
        return chunk in present or chunk in self.flushed

    def _known_parts(self, first_block: int, block_count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (chunk, first block, block count) where some layer may have something."""
        first_chunk = first_block // CHUNK_BLOCKS
        last_chunk = (first_block + block_count - 1) // CHUNK_BLOCKS
        if last_chunk - first_chunk < 4:
            for chunk, first, count, _ in _parts(first_block, block_count):
                yield chunk, first, count
            return
        chunks: set[int] = set()
        for stripe in self.stripes:
            with stripe:
                dirty = (chunk_map.index for chunk_map in stripe.dirty())
                chunks.update(chunk for chunk in dirty if first_chunk <= chunk <= last_chunk)
        chunks.update(self.store.reader.chunks(self.chain, first_chunk, last_chunk))
        for chunk in sorted(chunks):
            low = max(first_block, chunk * CHUNK_BLOCKS)
            high = min(first_block + block_count, (chunk + 1) * CHUNK_BLOCKS)
            yield chunk, low - chunk * CHUNK_BLOCKS, high - low

    def grow(self, size_bytes: int) -> None:
        """Follow a resize that was committed; the chain waits for whoever holds every stripe."""
        self.path.size_bytes = size_bytes

    def rebase(self, top: int | None = None) -> None:
        """Follow a change of the rows that was committed: a blank `top` on the one before, or any.

        Call under the database's lock with every stripe held: the background work may have changed
        the chain of what is open at any time before.
        """
        layers = self.store.layers
        if top is not None and top != self.top:
            chain, page_sum = [*self.chain, top], 0
        else:
            point = layers.point(self.volume_id, self.snapshot_id)
            self.path.size_bytes = point.size_bytes
            chain = layers.chain(point.layer_id, self.chain)
            page_sum = layers.page_sum(chain[-1])
        if chain == self.chain:
            return
        pushed = chain[: len(self.chain)] == self.chain
        if chain[-1] != self.top:
            self.durability.noted.clear()
        self.chain = chain
        self._own = _owner_row(len(chain) - 1)
        self.unflushed.follow(self.top, page_sum)
        if pushed:
            for stripe in self.stripes:
                for chunk_map in stripe.states():
                    cast("ChunkMap", chunk_map).push()
            self.path.extend_chain(len(chain))
            return
        for stripe in self.stripes:
            assert not stripe.dirty_count, "a chain changes only with all pages durable"
            _all_maps.add(-len(stripe))
            stripe.clear()
        self._present.clear()
        self.path.set_chain(len(chain))


def _owner_row(owner: int) -> memoryview:
    return memoryview(array("H", [owner]) * CHUNK_BLOCKS)


def _parts(first_block: int, block_count: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (chunk, first block in it, block count, blocks before it) for each chunk touched."""
    done = 0
    while done < block_count:
        chunk, first = divmod(first_block + done, CHUNK_BLOCKS)
        count = min(CHUNK_BLOCKS - first, block_count - done)
        yield chunk, first, count, done
        done += count
