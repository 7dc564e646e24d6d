"""What differs between two points of a volume, by their maps alone.

A chunk in which the topmost layer's blocks are all alike is decided by its brief, in one pass over
an index; only the others cost a look at their pages.
"""

from array import array
from collections import defaultdict
from functools import partial
from typing import Final

from volcore.backends.local.layers import Brief, Layers, PointRow
from volcore.backends.local.pagecodec import Page, damaged, read_briefs
from volcore.kernels import chunkmap
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES
from volcore.model.extent import Extent, ExtentKind, chunk_count

BlockRun = tuple[int, int, int]
"""(first block in its chunk, block count, block state)."""
_UNRESOLVED: Final = array("H", [chunkmap.UNRESOLVED]) * CHUNK_BLOCKS
_KINDS: Final = (ExtentKind.ABSENT, ExtentKind.DATA, ExtentKind.ZERO)
_MAKE: Final = partial(tuple.__new__, Extent)
"""As `Extent._make`, without a call of Python."""


def diff_points(layers: Layers, source: PointRow | None, target: PointRow) -> list[Extent]:
    """Return ascending extents of `target` that may differ from `source` (None: from zeroes).

    They differ at most where a layer that only one of them has wrote something. Call it inside a
    transaction. *Complexity*: pages of these layers, whatever the size of the volume.

    Raises:
        IntegrityError: BAD_CHECKSUM, a map is damaged.
    """
    target_chain = layers.chain(target.layer_id)
    source_chain = layers.chain(source.layer_id) if source else []
    rank = {layer_id: position for position, layer_id in enumerate(target_chain)}
    between = set(target_chain) ^ set(source_chain)
    common = [layer_id for layer_id in target_chain if layer_id not in between]
    last_chunk = chunk_count(target.size_bytes) - 1
    tops, others = _topmost(layers.briefs(between, last_chunk), rank)
    proven = [
        (layer_id, chunk, brief)
        for chunk, layer_id, brief, _ in tops.values()
        if brief is not None and layer_id in rank
    ]
    changed = {
        chunk: [_MAKE((chunk * CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES, _KINDS[state]))]
        for (_, chunk, _), state in zip(proven, read_briefs(proven), strict=True)
        if state != chunkmap.ABSENT
    }
    if len(changed) < len(tops):
        mixed = {
            chunk: [row[3], *others[chunk]] for chunk, row in tops.items() if chunk not in changed
        }
        changed |= _mixed(layers, mixed, rank, common)
    return _joined(changed, with_zeroes=source is not None, size_bytes=target.size_bytes)


def append_extent(
    extents: list[Extent], *, offset_bytes: int, length_bytes: int, kind: ExtentKind
) -> None:
    """Add a range, joined with the last one where it continues it."""
    if extents and (extents[-1].end_bytes, extents[-1].kind) == (offset_bytes, kind):
        last = extents.pop()
        offset_bytes, length_bytes = last.offset_bytes, last.length_bytes + length_bytes
    extents.append(Extent(offset_bytes, length_bytes, kind))


def _topmost(
    rows: list[Brief], rank: dict[int, int]
) -> tuple[dict[int, Brief], defaultdict[int, list[int]]]:
    """Return the row of each chunk that comes first in the target, and the ids of the others."""
    tops: dict[int, Brief] = {}
    others: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        chunk = row[0]
        top = tops.setdefault(chunk, row)
        if top is row:
            continue
        if rank.get(row[1], -1) > rank.get(top[1], -1):
            tops[chunk], row = row, top
        others[chunk].append(row[3])
    return tops, others


def _mixed(
    layers: Layers, mixed: dict[int, list[int]], rank: dict[int, int], common: list[int]
) -> dict[int, list[Extent]]:
    """Return the extents of each chunk whose pages have to be looked at.

    An extent is the only object that is kept of a run: half the time of a long list was garbage
    collection.
    """
    pages: defaultdict[int, list[Page]] = defaultdict(list)
    for page in layers.pages_of_rows(row_id for row_ids in mixed.values() for row_id in row_ids):
        pages[page.chunk_index].append(page)
    changed: dict[int, list[Extent]] = {}
    for chunk in mixed:
        own = pages[chunk]
        try:
            if len(own) == 1 and own[0].layer_id in rank:
                runs = chunkmap.state_runs(own[0].states, 0, CHUNK_BLOCKS)
            else:
                runs = _resolved_runs(layers, own, rank, common)
        except ValueError as err:
            raise damaged(own[0].layer_id, chunk) from err
        base = chunk * CHUNK_SIZE_BYTES
        changed[chunk] = [
            _MAKE((base + first * BLOCK_SIZE_BYTES, count * BLOCK_SIZE_BYTES, _KINDS[state]))
            for first, count, state in runs
            if state != chunkmap.ABSENT
        ]
    return changed


def _resolved_runs(
    layers: Layers, pages: list[Page], rank: dict[int, int], common: list[int]
) -> list[BlockRun]:
    """Return the runs, DATA or ZERO, of one chunk's changed blocks; neighbours differ."""
    changed = bytearray(CHUNK_BLOCKS)
    for page in pages:
        chunkmap.diff(changed, page.states)
    owners, crcs = array("H", _UNRESOLVED), array("I", bytes(4 * CHUNK_BLOCKS))
    wanted = [page for page in pages if page.layer_id in rank]
    if len(wanted) < len(pages):  # what only the source wrote shows what both have below it
        wanted += layers.pages(common, pages[0].chunk_index)
    for page in sorted(wanted, key=lambda page: rank[page.layer_id], reverse=True):
        chunkmap.overlay(owners, crcs, page.states, page.crcs, 0)
    return [
        (first, count, chunkmap.ZERO if owner == chunkmap.ZERO_OWNER else chunkmap.DATA)
        for start, length, is_changed in chunkmap.state_runs(changed, 0, CHUNK_BLOCKS)
        if is_changed
        for first, count, owner in chunkmap.resolve_runs(owners, start, length)
    ]


def _joined(
    changed: dict[int, list[Extent]], *, with_zeroes: bool, size_bytes: int
) -> list[Extent]:
    """Return the extents of all chunks, ascending, nothing past the end.

    Within a chunk neighbours differ in kind: only its first one may continue what is before it.
    """
    extents: list[Extent] = []
    for chunk in sorted(changed):
        own = changed[chunk]
        if not with_zeroes:
            own = [one for one in own if one[2] is not ExtentKind.ZERO]
        if own and extents and extents[-1].end_bytes == own[0].offset_bytes:
            offset_bytes, length_bytes, kind = own[0]
            append_extent(extents, offset_bytes=offset_bytes, length_bytes=length_bytes, kind=kind)
            own = own[1:]
        extents += own
    while extents and extents[-1].end_bytes > size_bytes:
        offset_bytes, _, kind = extents.pop()
        if offset_bytes < size_bytes:
            extents.append(Extent(offset_bytes, size_bytes - offset_bytes, kind))
    return extents
