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
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Final

from volcore.backends import refusals
from volcore.backends.local.chunkmap import ChunkMap, Run
from volcore.backends.local.durability import Durability
from volcore.backends.local.layers import PointRow
from volcore.backends.local.store import LocalStore
from volcore.errors import BackendIOError, IntegrityError, Reason
from volcore.kernels import chunkmap, crc32c
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES, KIB
from volcore.model.extent import ExtentKind

STRIPES: Final = 16
"""Locks per volume: more than the threads that serve one."""
MAPS_PER_STRIPE_MAX: Final = 64
"""Clean maps kept: 1024 per volume, 8 MiB of memory for 4 GiB of working set."""
WRITE_PIECE_BYTES: Final = 512 * KIB
"""Written and checksummed at a time: the second pass finds the data in the processor's cache."""
PRESENCE_CHUNKS: Final = 1024
"""Chunks whose presence is looked up together."""
_ZEROES: Final = bytes(CHUNK_SIZE_BYTES)


class Stripe:
    """A lock and the maps it guards."""

    __slots__ = ("dirty", "lock", "maps")

    def __init__(self) -> None:
        self.lock = RLock()
        self.maps: OrderedDict[int, ChunkMap] = OrderedDict()
        self.dirty: dict[int, ChunkMap] = {}


class ChunkStore:
    """One volume or snapshot that is open; shared by its devices."""

    def __init__(
        self, store: LocalStore, volume_id: str, point: PointRow, *, writable: bool
    ) -> None:
        """Open `point`; call under the database's lock, after its notes were settled."""
        self.store = store
        self.volume_id = volume_id
        self.writable = writable
        self.size_bytes = point.size_bytes
        self.users = 0
        self.broken = False
        """A sync failed, so nobody knows what is on the disk: only closing is left."""
        self.closed = False
        self.chain = store.layers.chain(point.layer_id)
        """Layer ids, oldest first; replaced, never changed."""
        self._present: dict[int, frozenset[int]] = {}
        self.flushed: set[int] = set()
        """Chunks whose pages were written since the volume was opened.

        A look-up that began before such a write may have missed it, so this set counts as well.
        """
        self.stripes = [Stripe() for _ in range(STRIPES)]
        self._own = _owner_row(len(self.chain) - 1)
        self.durability = Durability(self)

    @property
    def top(self) -> int:
        """The layer that writes go to."""
        return self.chain[-1]

    def stripe(self, chunk_index: int) -> Stripe:
        """Return the stripe that guards the chunk."""
        return self.stripes[chunk_index % STRIPES]

    # Reading

    def read(self, first_block: int, target: memoryview) -> None:
        """Fill `target`, whole blocks, with proven bytes."""
        for chunk, first, count, at in _parts(first_block, len(target) // BLOCK_SIZE_BYTES):
            part = target[at * BLOCK_SIZE_BYTES : (at + count) * BLOCK_SIZE_BYTES]
            stripe = self.stripe(chunk)
            with stripe.lock:
                chunk_map = self._map(stripe, chunk)
                runs = chunk_map.runs(first, count)
                expected = array("I", chunk_map.crcs[first : first + count])
                chain = self.chain
            if self._fill(chunk, runs, memoryview(expected), chain, part) is not None:
                with stripe.lock:
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
            with stripe.lock:
                kinds = self._map(stripe, chunk).kinds(first, count)
            found += [(base + at, length, kind) for at, length, kind in kinds]
            next_block = base + first + count
        if next_block < end:
            found.append((next_block, end - next_block, ExtentKind.ABSENT))
        return found

    # Writing

    def write(self, first_block: int, source: memoryview) -> None:
        """Write whole blocks; `source` must not change meanwhile."""
        for chunk, first, count, at in _parts(first_block, len(source) // BLOCK_SIZE_BYTES):
            part = source[at * BLOCK_SIZE_BYTES : (at + count) * BLOCK_SIZE_BYTES]
            with self._changing(chunk, first, count) as (stripe, chunk_map):
                self._write_locked(stripe, chunk, chunk_map, first, part)
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

    def trim(self, first_block: int, block_count: int) -> None:
        """Make whole blocks read as zeroes; their space is freed by the next flush."""
        for chunk, first, count in self._known_parts(first_block, block_count):
            with self._changing(chunk, first, 0) as (stripe, chunk_map):
                for start, length, owner in chunk_map.runs(first, count):
                    if owner != chunkmap.ZERO_OWNER:
                        self._trim_locked(chunk_map, start, length, owner)
                        chunk_map.version += 1
                        stripe.dirty[chunk] = chunk_map

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
            with stripe.lock:
                self._check_writable()
                chunk_map = self._map(stripe, chunk)
                if chunk in self.durability.noted or not chunk_map.needs_note(first, count):
                    yield stripe, chunk_map
                    return
            self.durability.note(chunk)

    def _check_writable(self) -> None:
        if self.closed:
            raise refusals.device_closed(self.volume_id)
        if self.broken:
            raise BackendIOError(
                f"an earlier sync of volume {self.volume_id} failed; close all its devices and "
                "open it again",
                reason=Reason.BACKEND_IO,
                volume=self.volume_id,
            )
        assert self.writable, "devices refuse writes to what is frozen"

    def _write_locked(
        self, stripe: Stripe, chunk: int, chunk_map: ChunkMap, first: int, source: memoryview
    ) -> None:
        end = first + len(source) // BLOCK_SIZE_BYTES
        stripe.dirty[chunk] = chunk_map
        while first < end:
            chunk_map.version += 1
            piece = source[:WRITE_PIECE_BYTES]
            offset_bytes = chunk * CHUNK_SIZE_BYTES + first * BLOCK_SIZE_BYTES
            written, err = self.store.files.write(self.top, piece, offset_bytes)
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
            source = source[WRITE_PIECE_BYTES:]

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
        chunk_map = stripe.maps.get(chunk)
        if chunk_map is not None:
            stripe.maps.move_to_end(chunk)
            return chunk_map
        pages = self.store.reader.pages(self.chain, chunk) if self._has_pages(chunk) else []
        chunk_map = stripe.maps[chunk] = ChunkMap(self.chain, pages, writable=self.writable)
        if len(stripe.maps) > MAPS_PER_STRIPE_MAX + len(stripe.dirty):
            for old in list(stripe.maps):
                if old not in stripe.dirty and old != chunk:
                    del stripe.maps[old]
                    break
        return chunk_map

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
            with stripe.lock:
                chunks.update(c for c in stripe.dirty if first_chunk <= c <= last_chunk)
        chunks.update(self.store.reader.chunks(self.chain, first_chunk, last_chunk))
        for chunk in sorted(chunks):
            low = max(first_block, chunk * CHUNK_BLOCKS)
            high = min(first_block + block_count, (chunk + 1) * CHUNK_BLOCKS)
            yield chunk, low - chunk * CHUNK_BLOCKS, high - low

    def rebase(self) -> None:
        """Follow a change of the rows that was committed; call under the database's lock.

        Whoever changed the chain holds every stripe.
        """
        point = self.store.layers.find_volume(self.volume_id)
        assert point is not None, "an open volume is not deleted"
        self.size_bytes = point.size_bytes
        chain = self.store.layers.chain(point.layer_id)
        if chain == self.chain:
            return
        pushed = chain[: len(self.chain)] == self.chain
        for stripe in self.stripes:
            if pushed:
                for chunk_map in stripe.maps.values():
                    chunk_map.push()
            else:
                assert not stripe.dirty, "a chain changes only with all pages durable"
                stripe.maps.clear()
        if not pushed:
            self._present.clear()
        if chain[-1] != self.top:
            self.durability.noted.clear()
        self.chain = chain
        self._own = _owner_row(len(chain) - 1)


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
