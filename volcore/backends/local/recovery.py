"""What an unclean stop leaves to do: torn checksums and files without a layer.

Recovery may itself be cut off at any point; it then starts again.
"""

from array import array

from volcore.backends.local.chunkmap import ChunkMap
from volcore.backends.local.layers import Page
from volcore.backends.local.store import LocalStore
from volcore.kernels import chunkmap, crc32c
from volcore.limits import BLOCK_SIZE_BYTES, CHUNK_BLOCKS, CHUNK_SIZE_BYTES


def sweep(store: LocalStore) -> int:
    """Delete the files of layers that do not exist; return how many."""
    return store.files.sweep(frozenset(store.layers.layer_ids()))


def settle_notes(store: LocalStore, layer_id: int) -> int:
    """Take the checksums of noted chunks from their data again; return how many chunks.

    Call inside a transaction, when nobody has the layer open. Blocks of these chunks were being
    overwritten in place when the process stopped: each holds its old or its new content, and no
    checksum can tell which. A block that is missing from the file keeps its checksum and fails.
    """
    chunks = store.layers.notes(layer_id)
    if not chunks:
        return 0
    # What is read below must be on the disk before a checksum says so.
    store.files.sync(layer_id)
    for chunk in chunks:
        for page in store.layers.pages([layer_id], chunk):
            store.layers.put_pages([_recomputed(store, page)])
    store.layers.clear_notes(layer_id)
    return len(chunks)


def _recomputed(store: LocalStore, page: Page) -> Page:
    chunk_map = ChunkMap([page.layer_id], [page], writable=True)
    crcs = array("I", page.crcs)
    view = memoryview(crcs)
    store.files.uncache(page.layer_id, page.chunk_index * CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES)
    for first, count, state in chunkmap.state_runs(chunk_map.states, 0, CHUNK_BLOCKS):
        if state == chunkmap.DATA:
            data = memoryview(bytearray(count * BLOCK_SIZE_BYTES))
            offset_bytes = page.chunk_index * CHUNK_SIZE_BYTES + first * BLOCK_SIZE_BYTES
            got = store.files.read(page.layer_id, data, offset_bytes) // BLOCK_SIZE_BYTES
            crc32c.crc32c_blocks(
                data[: got * BLOCK_SIZE_BYTES], BLOCK_SIZE_BYTES, view[first : first + got]
            )
    return Page(page.layer_id, page.chunk_index, page.states, crcs)
