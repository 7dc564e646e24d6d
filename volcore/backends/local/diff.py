"""What differs between two points of a volume, by their maps alone."""

from volcore.backends.local.chunkmap import ChunkMap
from volcore.backends.local.layers import Layers, PointRow
from volcore.errors import IntegrityError, Reason
from volcore.kernels import chunkmap
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS
from volcore.model.extent import Extent, ExtentKind, chunk_count


def diff_points(layers: Layers, source: PointRow | None, target: PointRow) -> list[Extent]:
    """Return ascending extents of `target` that may differ from `source` (None: from zeroes).

    They differ at most where a layer that only one of them has wrote something.
    *Complexity*: pages of these layers, whatever the size of the volume.
    """
    target_chain = layers.chain(target.layer_id)
    source_chain = layers.chain(source.layer_id) if source else []
    between = set(target_chain) ^ set(source_chain)
    extents: list[Extent] = []
    for chunk in layers.chunks(between, 0, chunk_count(target.size_bytes) - 1):
        changed = bytearray(CHUNK_BLOCKS)
        for page in layers.pages(between, chunk):
            try:
                chunkmap.diff(changed, page.states)
            except ValueError as err:
                raise IntegrityError(
                    f"the map of chunk {chunk} in layer {page.layer_id} makes no sense; restore "
                    "the volumes that use it",
                    reason=Reason.BAD_RECORD,
                ) from err
        resolved = ChunkMap(target_chain, layers.pages(target_chain, chunk), writable=False)
        for first, count, wanted in chunkmap.state_runs(changed, 0, CHUNK_BLOCKS):
            if wanted:
                _add(extents, chunk, resolved.kinds(first, count), whole=source is None)
    return extents


def _add(
    extents: list[Extent], chunk: int, kinds: list[tuple[int, int, ExtentKind]], *, whole: bool
) -> None:
    for first, count, kind in kinds:
        if kind == ExtentKind.DATA or not whole:
            shown = ExtentKind.DATA if kind == ExtentKind.DATA else ExtentKind.ZERO
            append_extent(
                extents,
                offset_bytes=(chunk * CHUNK_BLOCKS + first) * BLOCK_SIZE_BYTES,
                length_bytes=count * BLOCK_SIZE_BYTES,
                kind=shown,
            )


def append_extent(
    extents: list[Extent], *, offset_bytes: int, length_bytes: int, kind: ExtentKind
) -> None:
    """Add a range, joined with the last one where it continues it."""
    if extents and (extents[-1].end_bytes, extents[-1].kind) == (offset_bytes, kind):
        last = extents.pop()
        offset_bytes, length_bytes = last.offset_bytes, last.length_bytes + length_bytes
    extents.append(Extent(offset_bytes, length_bytes, kind))
