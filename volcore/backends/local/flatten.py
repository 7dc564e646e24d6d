"""Copying what a volume shares with its ancestors, so that it stands alone."""

from collections.abc import Callable
from dataclasses import replace

from volcore.backends.contract import Progress
from volcore.backends.local.chunkstore import ChunkStore
from volcore.backends.local.store import LocalStore
from volcore.limits import CHUNK_SIZE_BYTES


def flatten_once(
    store: LocalStore, chunks: ChunkStore, progress: Progress, free: Callable[[int], None]
) -> bool:
    """Copy, then cut if no other top layer came meanwhile; return whether the volume stands alone.

    The former parent is given to `free` in the transaction of the cut. *Concurrency*: the volume is
    in use; nobody thaws or freezes its top for a merge.
    """
    chain = chunks.chain
    if len(chain) == 1:
        return True
    last = chunks.size_bytes // CHUNK_SIZE_BYTES
    todo = store.reader.chunks(chain[:-1], 0, last)
    for done, chunk in enumerate(todo):
        progress(done * CHUNK_SIZE_BYTES, len(todo) * CHUNK_SIZE_BYTES)
        chunks.absorb(chunk)
    chunks.durability.flush()
    with store.database.transaction():
        chunks.durability.hold()
        if chunks.top != chain[-1]:
            return False
        parent_id = store.layers.layer(chunks.top).parent_id
        store.layers.cut(chunks.top)
        point = store.layers.find_volume(chunks.volume_id)
        assert point is not None, "an open volume is not deleted"
        store.layers.put_volume(
            chunks.volume_id, replace(point, parent_volume=None, parent_snapshot=None)
        )
        if parent_id is not None:
            free(parent_id)
    progress(len(todo) * CHUNK_SIZE_BYTES, len(todo) * CHUNK_SIZE_BYTES)
    return True
