"""Verify and scrub: every durable block is read back from the disk and proven right.

A volume or snapshot is followed down its chain, chunk by chunk, and only what it shows is read; a
scrub reads each layer once, whoever uses it. What does not agree is only a suspect: it may have met
a writer. So suspects of an open volume are read again through its `ChunkStore`, which knows what
was written, and what is left is judged with all changes kept out: inside a transaction of the
database, in which nobody opens, flushes or merges, with the writers of an open volume held. There,
page and file agree or the block is bad.

Invariants:
1. Nothing is reported that a change explains: a chunk with a note (`dirty`) that no open volume
   answers for has blocks whose checksum cannot tell anything, unless they are missing.
2. INV-LOCAL-6 (must): nothing is written but bytes that have the checksum that the layer's page
   names at that moment, and no page is ever changed.
"""

import mmap
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, Protocol

from volcore.backends.contract import BlockDevice
from volcore.backends.local.direct import DirectReader
from volcore.backends.local.heal import find_content
from volcore.backends.local.layers import Layers, Page, PointRow
from volcore.backends.local.pace import Pace
from volcore.backends.local.store import LocalStore
from volcore.backends.local.survey import POINTS_NAMED_MAX, PointKey, Survey, chunk_end
from volcore.backends.verifying import Damage, DamageKind, VerifyRequest, VerifyWatcher
from volcore.database import Database
from volcore.errors import IntegrityError, VolcoreError
from volcore.kernels import chunkmap, crc32c
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES

CHUNKS_AHEAD: Final = 1024
"""Chunks of a layer listed with one look-up."""
_UNRESOLVED: Final = array("H", [chunkmap.UNRESOLVED]) * CHUNK_BLOCKS
_NO_CRCS: Final = array("I", bytes(4 * CHUNK_BLOCKS))
_NOT_READ_TWICE: Final = {DamageKind.UNREADABLE}
_STATES: Final = bytes([chunkmap.ABSENT, chunkmap.DATA, chunkmap.ZERO])

Runs = list[tuple[int, int]]
"""(first block, block count) within a chunk, ascending."""
Verdicts = dict[int, tuple[DamageKind, int]]
"""What is wrong with a block of a chunk, and the CRC that it should have."""


class OpenVolumes(Protocol):
    """The backend, as far as a verify needs it."""

    def writer(self, layer_id: int) -> BlockDevice | None:
        """Open the volume that has the layer open for writing; None: nobody has."""

    def hold(self, layer_id: int) -> bool:
        """Inside a transaction: keep the layer's writers out until it ends, all durable.

        Returns whether anybody has the layer open for writing.
        """


class Verification:
    """One verify or scrub; used by one thread."""

    def __init__(
        self,
        store: LocalStore,
        volumes: OpenVolumes,
        request: VerifyRequest,
        watcher: VerifyWatcher,
    ) -> None:
        self._store = store
        self._volumes = volumes
        self._request = request
        self._watcher = watcher
        self._rows = Layers(Database(store.directory / "volcore.db"))
        self._survey = Survey(self._rows)
        self._disk = DirectReader(store.files.path)
        # Memory of its own pages, since O_DIRECT wants alignment: one to scan, one to judge.
        self._buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE_BYTES))
        self._second = memoryview(mmap.mmap(-1, CHUNK_SIZE_BYTES))
        self._pace = Pace(request.bytes_per_s_max)
        self._done_bytes = self._total_bytes = self._checked_bytes = 0
        self._cursor = request.cursor

    def close(self) -> None:
        """Release files and connection."""
        self._disk.close()
        self._rows.database.close()

    def run(self, point: PointRow | None) -> None:
        """Verify `point` (None: everything) from the request's cursor on."""
        if point is None:
            self._scrub()
        else:
            self._point(point)

    # What to read

    def _scrub(self) -> None:
        """Check rows and chains, then each layer once, in the order of ids.

        Ids only grow, so what is made meanwhile comes at the end and is not missed.
        """
        last_layer, last_chunk = _parsed(self._request.cursor)
        if not self._request.cursor:
            for detail in self._survey.troubles():
                self._tell(DamageKind.DATABASE, 0, (), detail=detail)
            for layer_id, detail, points in self._survey.broken_chains():
                self._tell(DamageKind.CHAIN, layer_id, points, detail=detail)
        counts = self._survey.page_counts()
        self._total_bytes = sum(count for _, count in counts) * CHUNK_SIZE_BYTES
        for layer_id, count in counts:
            if layer_id < last_layer:
                self._done_bytes += count * CHUNK_SIZE_BYTES
        while counts:
            for layer_id, _ in counts:
                if layer_id >= last_layer:
                    self._layer(layer_id, last_chunk if layer_id == last_layer else -1)
            newest = counts[-1][0]
            counts = [entry for entry in self._survey.page_counts() if entry[0] > newest]
            self._total_bytes += sum(count for _, count in counts) * CHUNK_SIZE_BYTES

    def _layer(self, layer_id: int, chunk_index: int) -> None:
        """Check every DATA block of one layer after `chunk_index`."""
        if chunk_index < 0:
            self._check_pages([layer_id])
        self._done_bytes += self._survey.pages_up_to(layer_id, chunk_index) * CHUNK_SIZE_BYTES
        while chunks := self._survey.chunks_after(layer_id, chunk_index, CHUNKS_AHEAD):
            for chunk_index in chunks:
                page = self._sound_page(layer_id, chunk_index)
                if page is not None:
                    runs = _data_runs(page)
                    self._check(layer_id, chunk_index, runs, memoryview(page.crcs))
                self._advance(f"{layer_id}:{chunk_index}")

    def _point(self, point: PointRow) -> None:
        """Check what one volume or snapshot shows."""
        chain, trouble = self._survey.chain(point.layer_id)
        if trouble:
            views = self._survey.views(point.layer_id, 0, whole=True)
            keys = [view.key for view in views]
            self._tell(DamageKind.CHAIN, point.layer_id, keys, detail=trouble)
        if not self._request.cursor:
            self._check_pages(chain)
        chunks = self._rows.chunks(chain, 0, chunk_end(point.size_bytes) - 1)
        self._total_bytes = len(chunks) * CHUNK_SIZE_BYTES
        _, last_chunk = _parsed(self._request.cursor)
        self._done_bytes = sum(chunk <= last_chunk for chunk in chunks) * CHUNK_SIZE_BYTES
        for chunk in chunks:
            if chunk > last_chunk:
                self._visible(chain, chunk, point.size_bytes)
                self._advance(f"0:{chunk}")

    def _check_pages(self, layer_ids: list[int]) -> None:
        """Report layers that have lost maps, or got old ones back."""
        for layer_id in layer_ids:
            try:
                self._rows.prove([layer_id])
            except IntegrityError as err:
                keys = [view.key for view in self._survey.views(layer_id, 0, whole=True)]
                self._tell(DamageKind.MAP, layer_id, keys, detail=err.message)

    def _visible(self, chain: list[int], chunk: int, size_bytes: int) -> None:
        """Check the blocks of a chunk that show through a chain."""
        owners, crcs = array("H", _UNRESOLVED), array("I", _NO_CRCS)
        for position in range(len(chain) - 1, -1, -1):
            try:
                page = self._survey.page(chain[position], chunk)
                if page is not None and not chunkmap.overlay(
                    owners, crcs, page.states, page.crcs, position
                ):
                    break
            except (IntegrityError, ValueError):
                # What lies below cannot be told from what this layer had.
                self._sound_page(chain[position], chunk)
                break
        block_count = min(CHUNK_BLOCKS, size_bytes // BLOCK_SIZE_BYTES - chunk * CHUNK_BLOCKS)
        by_owner: dict[int, Runs] = {}
        for first, count, owner in chunkmap.resolve_runs(owners, 0, block_count):
            if owner != chunkmap.ZERO_OWNER:
                by_owner.setdefault(owner, []).append((first, count))
        for owner, runs in by_owner.items():
            self._check(chain[owner], chunk, runs, memoryview(crcs))

    def _sound_page(self, layer_id: int, chunk: int) -> Page | None:
        """Return a page, or report it and return None."""
        try:
            page = self._survey.page(layer_id, chunk)
        except IntegrityError as err:
            detail = err.message
        else:
            detail = self._nonsense(page) if page is not None else ""
            if not detail:
                return page
        views = self._survey.views(layer_id, chunk, whole=True)
        self._tell(
            DamageKind.MAP,
            layer_id,
            [view.key for view in views],
            offset_bytes=chunk * CHUNK_SIZE_BYTES,
            length_bytes=CHUNK_SIZE_BYTES,
            detail=detail,
        )
        return None

    def _nonsense(self, page: Page) -> str:
        """Return what a page says that no version wrote, though its checksum is right."""
        what = f"chunk {page.chunk_index} in layer {page.layer_id}"
        if bytes(page.states).translate(None, _STATES):
            return f"the map of {what} makes no sense"
        return "" if self._survey.is_indexed(page) else f"the index has other states for {what}"

    # Reading and judging

    def _check(self, layer_id: int, chunk: int, runs: Runs, crcs: memoryview) -> None:
        """Read runs of a layer's chunk and report what is bad."""
        if not runs:
            return
        suspects, unreadable = self._suspects(layer_id, chunk, runs, crcs)
        if suspects:
            suspects = self._unexplained(layer_id, chunk, suspects, crcs)
        if not suspects and not unreadable:
            return
        try:
            bad, _ = self._judge(layer_id, chunk, suspects, unreadable, {})
        except VolcoreError:
            # Its volume cannot be flushed now (full disk, failed sync), and has said so: nothing
            # can be told about what it writes before it is well again.
            return
        healed: set[int] = set()
        if bad and self._request.heal:
            with suppress(VolcoreError):
                bad, healed = self._heal(layer_id, chunk, bad)
        self._report(layer_id, chunk, bad, healed)

    def _heal(self, layer_id: int, chunk: int, bad: Verdicts) -> tuple[Verdicts, set[int]]:
        """Return what was or is bad, and what of it is healed."""
        volume_ids = [view.key[0] for view in self._survey.views(layer_id, chunk)]
        volume_ids += self._survey.owner(layer_id)
        content = find_content(
            self._store,
            self._survey,
            layer_id,
            chunk,
            {block: crc for block, (_, crc) in bad.items()},
            lambda offset_bytes: self._request.source(volume_ids, offset_bytes),
        )
        if not content:
            return bad, set()
        lost = {block: crc for block, (kind, crc) in bad.items() if kind in _NOT_READ_TWICE}
        return self._judge(layer_id, chunk, bad.keys() - lost.keys(), lost, content)

    def _suspects(
        self, layer_id: int, chunk: int, runs: Runs, crcs: memoryview
    ) -> tuple[list[int], dict[int, int]]:
        """Read the runs with one request.

        Returns the blocks that do not agree, and the CRCs of those that the disk refuses.
        """
        start, end = runs[0][0], runs[-1][0] + runs[-1][1]
        data = self._buffer[: (end - start) * BLOCK_SIZE_BYTES]
        self._pace.spend(len(data), self._tick)
        found = self._disk.fetch(layer_id, chunk, start, data)
        suspects: set[int] = set()
        for first, count in runs:
            self._checked_bytes += count * BLOCK_SIZE_BYTES
            piece = data[(first - start) * BLOCK_SIZE_BYTES :][: count * BLOCK_SIZE_BYTES]
            suspects.update(_mismatches(piece, crcs[first : first + count], first))
            suspects.update(found.keys() & set(range(first, first + count)))
        lost = {b: crcs[b] for b in suspects if found.get(b) in _NOT_READ_TWICE}
        return sorted(suspects - lost.keys()), lost

    def _unexplained(
        self, layer_id: int, chunk: int, suspects: list[int], crcs: memoryview
    ) -> list[int]:
        """Drop suspects that writers of an open volume have changed.

        What agrees with the page in memory's eyes but not on the disk stays: that is damage which
        the page cache hides.
        """
        device = self._volumes.writer(layer_id)
        if device is None:
            return suspects
        left: list[int] = []
        data = memoryview(bytearray(BLOCK_SIZE_BYTES))
        with device:
            for block in suspects:
                try:
                    device.read_into(chunk * CHUNK_SIZE_BYTES + block * BLOCK_SIZE_BYTES, data)
                except VolcoreError:
                    left.append(block)
                    continue
                if crc32c.crc32c(data) == crcs[block]:
                    left.append(block)
        return left

    def _judge(
        self,
        layer_id: int,
        chunk: int,
        suspects: Iterable[int],
        unreadable: dict[int, int],
        content: dict[int, bytes],
    ) -> tuple[Verdicts, set[int]]:
        """Return which blocks are bad, with kind and CRC, and which of them `content` has healed.

        Everything else waits meanwhile: one chunk at most is read, and written if it is healed.
        What the disk has refused to read is not asked for again, which may take seconds: it is bad
        unless its CRC has changed.
        """
        rows = self._store.layers
        with self._store.database.transaction():
            held = self._volumes.hold(layer_id)
            page = next(iter(rows.pages([layer_id], chunk)), None)
            if page is None:
                return {}, set()
            noted = not held and chunk in rows.notes(layer_id)
            blocks = [b for b in sorted(suspects) if page.states[b] == chunkmap.DATA]
            found = self._bad(layer_id, chunk, blocks, page.crcs)
            for block, crc in unreadable.items():
                if page.states[block] == chunkmap.DATA and page.crcs[block] == crc:
                    found[block] = DamageKind.UNREADABLE
            bad = {
                block: (kind, page.crcs[block])
                for block, kind in found.items()
                if not noted or kind is not DamageKind.CHECKSUM
            }
            wanted = [
                block
                for block, (_, crc) in sorted(bad.items())
                if not noted and block in content and crc32c.crc32c(content[block]) == crc
            ]
            for block in wanted:
                offset_bytes = chunk * CHUNK_SIZE_BYTES + block * BLOCK_SIZE_BYTES
                self._store.files.write(layer_id, memoryview(content[block]), offset_bytes)
            if not wanted:
                return bad, set()
            self._store.files.sync(layer_id)
            still = self._bad(layer_id, chunk, wanted, page.crcs)
        return bad, set(wanted) - still.keys()

    def _bad(
        self, layer_id: int, chunk: int, blocks: list[int], crcs: "array[int]"
    ) -> dict[int, DamageKind]:
        """Read blocks from the disk, with nobody changing them; return what does not agree."""
        bad: dict[int, DamageKind] = {}
        for first, count in _neighbours(blocks):
            data = self._second[: count * BLOCK_SIZE_BYTES]
            lost = self._disk.fetch(layer_id, chunk, first, data)
            bad |= dict.fromkeys(
                _mismatches(data, memoryview(crcs)[first : first + count], first),
                DamageKind.CHECKSUM,
            )
            bad |= lost
        return bad

    # Telling

    def _report(self, layer_id: int, chunk: int, bad: Verdicts, healed: set[int]) -> None:
        """Report bad blocks in runs that are alike: kind, healed, and who sees them."""
        views = self._survey.views(layer_id, chunk)
        alike: list[tuple[int, int, tuple[DamageKind, bool, tuple[PointKey, ...]]]] = []
        for block in sorted(bad):
            keys = tuple(view.key for view in views if view.sees(block))
            what = bad[block][0], block in healed, keys
            if alike and (alike[-1][0] + alike[-1][1], alike[-1][2]) == (block, what):
                alike[-1] = alike[-1][0], alike[-1][1] + 1, what
            else:
                alike.append((block, 1, what))
        for first, count, (kind, is_healed, keys) in alike:
            if keys:
                self._tell(
                    kind,
                    layer_id,
                    keys,
                    offset_bytes=chunk * CHUNK_SIZE_BYTES + first * BLOCK_SIZE_BYTES,
                    length_bytes=count * BLOCK_SIZE_BYTES,
                    healed=is_healed,
                )

    def _tell(
        self,
        kind: DamageKind,
        layer_id: int,
        points: Iterable[PointKey],
        *,
        offset_bytes: int = 0,
        length_bytes: int = 0,
        healed: bool = False,
        detail: str = "",
    ) -> None:
        keys = tuple(points)
        self._watcher.found(
            Damage(
                kind=kind,
                layer=layer_id,
                offset_bytes=offset_bytes,
                length_bytes=length_bytes,
                points=keys[:POINTS_NAMED_MAX],
                point_count=len(keys),
                healed=healed,
                detail=detail,
            )
        )

    def _advance(self, cursor: str) -> None:
        self._cursor = cursor
        self._done_bytes += CHUNK_SIZE_BYTES
        self._tick()

    def _tick(self) -> None:
        """Tell how far it is; raises what the watcher raises."""
        self._watcher.progress(
            self._done_bytes,
            max(self._total_bytes, self._done_bytes),
            checked_bytes=self._checked_bytes,
            cursor=self._cursor,
        )


def _mismatches(data: memoryview, crcs: memoryview, first_block: int) -> Iterator[int]:
    """Yield each block of `data` whose checksum is another; counted from `first_block`."""
    at, count = 0, len(crcs)
    while at < count:
        bad = crc32c.find_bad_block(data[at * BLOCK_SIZE_BYTES :], BLOCK_SIZE_BYTES, crcs[at:])
        if bad < 0:
            return
        yield first_block + at + bad
        at += bad + 1


def _neighbours(blocks: list[int]) -> Runs:
    """Return ascending blocks as runs."""
    runs: Runs = []
    for block in blocks:
        if runs and sum(runs[-1]) == block:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((block, 1))
    return runs


def _data_runs(page: Page) -> Runs:
    return [
        (first, count)
        for first, count, state in chunkmap.state_runs(page.states, 0, CHUNK_BLOCKS)
        if state == chunkmap.DATA
    ]


def _parsed(cursor: str) -> tuple[int, int]:
    """Return layer and chunk that a cursor names: everything up to them is done."""
    layer_id, _, chunk = cursor.partition(":")
    return (int(layer_id), int(chunk)) if chunk else (0, -1)
