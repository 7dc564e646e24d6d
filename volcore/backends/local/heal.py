"""Where the right content of a bad block may still be; whatever is found is proven by its CRC."""

from collections.abc import Callable, Iterable, Iterator

from volcore.backends.local.store import LocalStore
from volcore.backends.local.survey import Survey
from volcore.errors import IntegrityError, VolcoreError
from volcore.kernels import chunkmap, crc32c
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_SIZE_BYTES


def find_content(
    store: LocalStore,
    survey: Survey,
    layer_id: int,
    chunk: int,
    wanted: dict[int, int],
    source: Callable[[int], Iterable[bytes]],
) -> dict[int, bytes]:
    """Return the right bytes of as many blocks as can be found.

    Looked at in this order: the page cache (memory may be right where the disk is wrong), other
    layers whose page names the same checksum at the same place (flattened copies, images imported
    again), the file that an image came from.

    Args:
        store: the pool.
        survey: its rows.
        layer_id: the layer that holds the bad blocks.
        chunk: the chunk they are in.
        wanted: CRC-32C by block of the chunk.
        source: called with an offset; gives blocks that may be the right one.
    """
    found: dict[int, bytes] = {}
    for block, candidate in _in_layer(store, layer_id, chunk, wanted):
        _take(found, wanted, block, candidate)
    for sibling in survey.siblings(layer_id, chunk) if len(found) < len(wanted) else ():
        if len(found) == len(wanted):
            break
        try:
            page = survey.page(sibling, chunk)
        except IntegrityError:
            continue
        if page is not None:
            alike = [
                block
                for block, crc in wanted.items()
                if page.states[block] == chunkmap.DATA and page.crcs[block] == crc
            ]
            for block, candidate in _in_layer(store, sibling, chunk, alike):
                _take(found, wanted, block, candidate)
    for block in wanted.keys() - found.keys():
        for candidate in source(chunk * CHUNK_SIZE_BYTES + block * BLOCK_SIZE_BYTES):
            _take(found, wanted, block, candidate)
    return found


def _take(found: dict[int, bytes], wanted: dict[int, int], block: int, candidate: bytes) -> None:
    """Keep a candidate that proves right."""
    whole = len(candidate) == BLOCK_SIZE_BYTES
    if block not in found and whole and crc32c.crc32c(candidate) == wanted[block]:
        found[block] = bytes(candidate)


def _in_layer(
    store: LocalStore, layer_id: int, chunk: int, blocks: Iterable[int]
) -> Iterator[tuple[int, bytes]]:
    data = memoryview(bytearray(BLOCK_SIZE_BYTES))
    for block in blocks:
        try:
            got = store.files.read(
                layer_id, data, chunk * CHUNK_SIZE_BYTES + block * BLOCK_SIZE_BYTES
            )
        except VolcoreError:
            continue
        if got == BLOCK_SIZE_BYTES:
            yield block, bytes(data)
