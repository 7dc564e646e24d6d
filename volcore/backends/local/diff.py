"""What differs between two points of a volume, by their maps alone.

A chunk in which the topmost layer's blocks are all alike is decided by its brief, in one pass over
an index; only the others cost a look at their pages. Both are taken some at a time, so that memory
does not grow with the volume.
"""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from volcore.backends.local.layers import Layers, PointRow
from volcore.backends.local.pagecodec import UNIFORM, Page, damaged, decoded, read_briefs
from volcore.kernels import chunkmap, extents
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS
from volcore.model.extent import ExtentTable, chunk_count

Brief = tuple[int, int, int | None, int, int]
"""(chunk_index, layer_id, brief, row id, checksum) of a page, as the index has it.

The brief is None where blocks are not all alike.
"""
BRIEFS_CHUNKS: Final = 1 << 16
"""Chunks of which briefs are read at once: some MiB of rows."""
MAPS_CHUNKS: Final = 1 << 10
"""Chunks of which maps are in memory at once: one MiB of states, five of pages."""
_NO_ZEROES: Final = bytes.maketrans(bytes([chunkmap.ZERO]), bytes([chunkmap.ABSENT]))
_UNRESOLVED: Final = array("H", [chunkmap.UNRESOLVED]) * CHUNK_BLOCKS


def diff_points(layers: Layers, source: PointRow | None, target: PointRow) -> ExtentTable:
    """Return ascending extents of `target` that may differ from `source` (None: from zeroes).

    They differ at most where a layer that only one of them has wrote something. Call it while the
    rows do not change. *Complexity*: pages of these layers, whatever the size of the volume.

    Raises:
        IntegrityError: BAD_CHECKSUM, a map is damaged.
    """
    target_chain = layers.chain(target.layer_id)
    source_chain = layers.chain(source.layer_id) if source else []
    rank = {layer_id: position for position, layer_id in enumerate(target_chain)}
    between = set(target_chain) ^ set(source_chain)
    common = [layer_id for layer_id in target_chain if layer_id not in between]
    found = ExtentTable()
    count = chunk_count(target.size_bytes)
    for first in range(0, count, BRIEFS_CHUNKS):
        last = min(first + BRIEFS_CHUNKS, count) - 1
        tops, others = _topmost(_briefs(layers, between, first, last), rank)
        alike = _alike(tops.values(), rank)
        ordered = sorted(tops)
        for at in range(0, len(ordered), MAPS_CHUNKS):
            chunks = ordered[at : at + MAPS_CHUNKS]
            mixed = {chunk: [tops[chunk], *others[chunk]] for chunk in chunks if chunk not in alike}
            maps = _mixed(layers, mixed, rank, common)
            states = b"".join([alike.get(chunk) or maps[chunk] for chunk in chunks])
            if source is None:
                states = states.translate(_NO_ZEROES)
            table = extents.of_blocks(
                array("Q", chunks), states, BLOCK_SIZE_BYTES, target.size_bytes
            )
            found.add(table)
    return found


def _briefs(layers: Layers, layer_ids: Iterable[int], first: int, last: int) -> list[Brief]:
    """Return the briefs of the layers' pages for a range of chunks, ascending within a layer."""
    return layers.database.query(
        "SELECT chunk_index, layer_id, brief, rowid, checksum FROM page INDEXED BY page_facts"
        " WHERE layer_id IN (SELECT value FROM json_each(?)) AND chunk_index BETWEEN ? AND ?",
        (json.dumps(list(layer_ids)), first, last),
    )


def _pages(layers: Layers, briefs: Iterable[Brief]) -> list[Page]:
    """Return the pages of these entries of the index, in any order; those that are lost are not."""
    wanted = {brief[3]: brief for brief in briefs}
    pages = []
    for row_id, states, crcs in layers.database.query(
        "SELECT rowid, states, crcs FROM page WHERE rowid IN (SELECT value FROM json_each(?))",
        (json.dumps(list(wanted)),),
    ):
        chunk, layer_id, _, _, checksum = wanted[row_id]
        pages.append(decoded(layer_id, chunk, states, crcs, checksum))
    return pages


def _topmost(
    rows: list[Brief], rank: dict[int, int]
) -> tuple[dict[int, Brief], defaultdict[int, list[Brief]]]:
    """Return the row of each chunk that comes first in the target, and the others."""
    tops: dict[int, Brief] = {}
    others: defaultdict[int, list[Brief]] = defaultdict(list)
    for row in rows:
        chunk = row[0]
        top = tops.setdefault(chunk, row)
        if top is row:
            continue
        if rank.get(row[1], -1) > rank.get(top[1], -1):
            tops[chunk], row = row, top
        others[chunk].append(row)
    return tops, others


def _alike(tops: Iterable[Brief], rank: dict[int, int]) -> dict[int, bytes]:
    """Return the states of chunks that one layer of the target decides, by their briefs."""
    proven = [
        (layer_id, chunk, brief)
        for chunk, layer_id, brief, _, _ in tops
        if brief is not None and layer_id in rank
    ]
    return {
        chunk: UNIFORM[state]
        for (_, chunk, _), state in zip(proven, read_briefs(proven), strict=True)
        if state != chunkmap.ABSENT
    }


def _mixed(
    layers: Layers, mixed: dict[int, list[Brief]], rank: dict[int, int], common: list[int]
) -> dict[int, bytes]:
    """Return the states of each chunk whose pages have to be looked at: ABSENT did not change."""
    pages: defaultdict[int, list[Page]] = defaultdict(list)
    if mixed:
        for page in _pages(layers, (brief for briefs in mixed.values() for brief in briefs)):
            pages[page.chunk_index].append(page)
    maps: dict[int, bytes] = {}
    for chunk, briefs in mixed.items():
        own = pages[chunk]
        if len(own) != len(briefs):
            raise damaged(briefs[0][1], chunk)
        try:
            if len(own) > 1 or own[0].layer_id not in rank:
                maps[chunk] = _resolved(layers, own, rank, common)
            else:
                maps[chunk] = own[0].states
        except ValueError as err:
            raise damaged(own[0].layer_id, chunk) from err
    return maps


def _resolved(layers: Layers, pages: list[Page], rank: dict[int, int], common: list[int]) -> bytes:
    """Return what the target has in one chunk's changed blocks, DATA or ZERO; ABSENT elsewhere."""
    changed = bytearray(CHUNK_BLOCKS)
    for page in pages:
        chunkmap.diff(changed, page.states)
    owners, crcs = array("H", _UNRESOLVED), array("I", bytes(4 * CHUNK_BLOCKS))
    wanted = [page for page in pages if page.layer_id in rank]
    if len(wanted) < len(pages):  # what only the source wrote shows what both have below it
        wanted += layers.pages(common, pages[0].chunk_index)
    for page in sorted(wanted, key=lambda page: rank[page.layer_id], reverse=True):
        chunkmap.overlay(owners, crcs, page.states, page.crcs, 0)
    states = bytearray(CHUNK_BLOCKS)
    for start, length, is_changed in chunkmap.state_runs(changed, 0, CHUNK_BLOCKS):
        if not is_changed:
            continue
        for first, count, owner in chunkmap.resolve_runs(owners, start, length):
            is_zero = owner == chunkmap.ZERO_OWNER
            chunkmap.mark(states, first, count, chunkmap.ZERO if is_zero else chunkmap.DATA)
    return bytes(states)
