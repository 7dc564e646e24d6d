"""What differs between two points of a volume, by the states of their blocks alone.

States are in an index, each chunk's with a checksum of its own, so CRCs are not looked at. Chunks
are taken some at a time, so that memory does not grow with the volume.
"""

import itertools
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from volcore.backends.local.layers import Layers, PointRow
from volcore.backends.local.pagecodec import PROVEN_LENGTHS
from volcore.errors import IntegrityError, Reason
from volcore.kernels import chunkmap, extents, mapscan
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS
from volcore.model.extent import ExtentTable, chunk_count

CHUNKS_AT_ONCE: Final = 1 << 13
"""Chunks of which states are in memory at once: some 30 MiB, whatever the number of layers."""
_NO_ZEROES: Final = bytes.maketrans(bytes([chunkmap.ZERO]), bytes([chunkmap.ABSENT]))
_BELOW: Final = 3
"""Kind of a block that the target has from a layer that both points have."""
_TO_BELOW: Final = bytes([chunkmap.ABSENT]) + bytes([_BELOW]) * 255
_BELOW_TO_ZERO: Final = bytes.maketrans(bytes([_BELOW]), bytes([chunkmap.ZERO]))
_LOOK: Final = (
    "SELECT CAST(group_concat(states, '') FILTER (WHERE is_proven) AS BLOB),"  # noqa: S608
    " json_group_array(chunk_index) FILTER (WHERE NOT is_proven)"
    f" FROM (SELECT chunk_index, states, length(states) IN {PROVEN_LENGTHS} AS is_proven"
    " FROM page INDEXED BY page_states WHERE layer_id = ? AND {} ORDER BY chunk_index)"
)
"""One row of SQLite for many chunks takes a third of the time that one for each takes. A blob is
joined as text, and is the same bytes when it becomes a blob again."""
_LOOK_BETWEEN: Final = _LOOK.format("chunk_index BETWEEN ? AND ?")
_LOOK_AMONG: Final = _LOOK.format("chunk_index IN (SELECT value FROM json_each(?))")


@dataclass(frozen=True, slots=True)
class States:
    """The states of some chunks, in one layer or seen through several."""

    chunks: "array[int]"
    """Ascending."""
    blocks: bytes | bytearray
    """1024 for each chunk."""


_NOTHING: Final = States(array("Q"), b"")


def diff_points(layers: Layers, source: PointRow | None, target: PointRow) -> ExtentTable:
    """Return ascending extents of `target` that may differ from `source` (None: from zeroes).

    They differ at most where a layer that only one of them has wrote something. Call it while the
    rows do not change. *Complexity*: pages of these layers, whatever the size of the volume.

    Raises:
        IntegrityError: BAD_CHECKSUM, a map is damaged.
    """
    target_chain = layers.chain(target.layer_id)[::-1]
    source_chain = layers.chain(source.layer_id)[::-1] if source else []
    both = set(target_chain) & set(source_chain)
    gaining, losing = (
        [layer_id for layer_id in chain if layer_id not in both]
        for chain in (target_chain, source_chain)
    )
    below = [layer_id for layer_id in target_chain if layer_id in both]
    found = ExtentTable()
    count = chunk_count(target.size_bytes)
    for first in range(0, count, CHUNKS_AT_ONCE):
        chunks = range(first, min(first + CHUNKS_AT_ONCE, count))
        changed = _seen_through(_look(layers, layer_id, chunks) for layer_id in gaining)
        lost = _seen_through(_look(layers, layer_id, chunks) for layer_id in losing)
        if lost.chunks:
            changed = _with_lost(layers, changed, lost, below)
        blocks = changed.blocks if source else changed.blocks.translate(_NO_ZEROES)
        found.add(extents.of_blocks(changed.chunks, blocks, BLOCK_SIZE_BYTES, target.size_bytes))
    return found


def _seen_through(layers: Iterable[States]) -> States:
    """Return what is seen through layers, the topmost first; two of them are kept at a time."""
    some = (states for states in layers if states.chunks)
    first, second = next(some, _NOTHING), next(some, None)
    if second is None:
        return first
    places: dict[int, int] = {}
    blocks = bytearray()
    for states in itertools.chain((first, second), some):
        for chunk in states.chunks:
            places.setdefault(chunk, len(places))
        blocks += bytes(len(places) * CHUNK_BLOCKS - len(blocks))
        _fill(blocks, places, states, chunkmap.ABSENT)
    ascending = array("Q", sorted(places))
    starts = [places[chunk] * CHUNK_BLOCKS for chunk in ascending]
    return States(ascending, b"".join([blocks[at : at + CHUNK_BLOCKS] for at in starts]))


def _with_lost(layers: Layers, gained: States, lost: States, below: Sequence[int]) -> States:
    """Return `gained` with what only the source had: there the target shows what both have."""
    lost = States(lost.chunks, lost.blocks.translate(_TO_BELOW))
    changed = _seen_through([gained, lost])
    blocks, wanted = bytearray(changed.blocks), set(lost.chunks)
    places = {chunk: place for place, chunk in enumerate(changed.chunks)}
    for layer_id in below:
        if _BELOW not in blocks:
            break
        _fill(blocks, places, _look(layers, layer_id, wanted), _BELOW)
    return States(changed.chunks, blocks.translate(_BELOW_TO_ZERO))


def _fill(blocks: bytearray, places: dict[int, int], below: States, unknown: int) -> None:
    """Take what is `unknown` from a layer below, all of whose chunks have places."""
    wanted = array("Q", [places[chunk] for chunk in below.chunks])
    mapscan.fill(blocks, wanted, below.blocks, unknown)


def _look(layers: Layers, layer_id: int, among: "range | set[int]") -> States:
    """Return the states that a layer has for some chunks.

    Raises:
        IntegrityError: BAD_CHECKSUM, they are not what was written.
    """
    if isinstance(among, range):
        found = layers.database.query(_LOOK_BETWEEN, (layer_id, among[0], among[-1]))
    else:
        found = layers.database.query(_LOOK_AMONG, (layer_id, json.dumps(list(among))))
    ((rows, others),) = found
    try:
        chunks, blocks = mapscan.read_states(rows or b"", layer_id)
    except ValueError as err:
        raise _damaged(layer_id) from err
    states = States(array("Q", chunks), blocks)
    if old := json.loads(others):  # of versions that had no proof of states
        pages = layers.pages_among(layer_id, old)
        if len(pages) != len(old):
            raise _damaged(layer_id)
        older = array("Q", [page.chunk_index for page in pages])
        states = _seen_through([states, States(older, b"".join(page.states for page in pages))])
    if not all(chunk in among for chunk in states.chunks):
        raise _damaged(layer_id)
    return states


def _damaged(layer_id: int) -> IntegrityError:
    return IntegrityError(
        f"a map of layer {layer_id} is damaged; verify tells which, and whose",
        reason=Reason.BAD_CHECKSUM,
        layer=layer_id,
    )
